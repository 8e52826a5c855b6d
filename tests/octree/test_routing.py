import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inf_nerf.octree.routing import blend_neighbour, route, route_recursive
from inf_nerf.octree.topology import ABSENT, FOREIGN, ROOT_KEY, Octree

Trees = Callable[[int], Octree]
seeds = st.integers(0, 10_000)


def draw_samples(tree: Octree, seed: int, count: int = 200) -> tuple[Tensor, Tensor]:
    """Samples [Q, 3] and footprints [Q], many of them exactly on cutting planes, on the cube's side, or at a gsd."""
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.rand(count, 3, generator=generator) * 2 - 1
    dyadic = torch.round(xyz * 8) / 8
    xyz = torch.where(torch.rand(count, 3, generator=generator) < 0.3, dyadic, xyz)
    near = torch.randint(0, tree.num_nodes, (count,), generator=generator)  # deep nodes get samples too
    inside = tree.centre[near] + tree.half[near, None] * xyz
    xyz = torch.where(torch.rand(count, 1, generator=generator) < 0.5, inside, xyz)
    octaves = torch.rand(count, generator=generator) * 9 - 1
    octaves = torch.where(torch.rand(count, generator=generator) < 0.3, octaves.round(), octaves)
    return xyz, tree.gsd[0] * 2.0**-octaves


def contains(tree: Octree, node: Tensor, xyz: Tensor) -> Tensor:
    """Whether the samples [Q, 3] are in the cubes of their nodes, sides included [Q]."""
    return ((xyz - tree.centre[node]).abs() <= tree.half[node, None]).all(dim=1)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_routing_equals_recursion(restricted_tree: Trees, seed: int) -> None:
    tree = restricted_tree(seed)
    xyz, footprint = draw_samples(tree, seed)
    node, foreign = route(tree, xyz, footprint)
    slow_node, slow_foreign = route_recursive(tree, xyz, footprint)
    assert torch.equal(node, slow_node)
    assert torch.equal(foreign, slow_foreign)
    assert (node.dtype, foreign.dtype) == (torch.int64, torch.bool)


@pytest.mark.parametrize("value", [-1.0, -(2.0**-24), -0.0, 0.0, 1 - 2.0**-24, 1.0, 1.5, -1.5])
def test_routing_equals_recursion_at_the_ends_of_the_number_range(restricted_tree: Trees, value: float) -> None:
    tree = restricted_tree(4)
    xyz = torch.full((3, 3), value)
    footprint = torch.tensor([1.0, 1e-4, 0.0])
    assert torch.equal(route(tree, xyz, footprint)[0], route_recursive(tree, xyz, footprint)[0])


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_every_sample_gets_exactly_one_node_and_lies_in_it(restricted_tree: Trees, seed: int) -> None:
    tree = restricted_tree(seed)
    xyz, footprint = draw_samples(tree, seed)
    node, foreign = route(tree, xyz, footprint)
    assert node.shape == foreign.shape == (len(xyz),)
    assert ((node >= 0) & (node < tree.num_nodes)).all()
    assert contains(tree, node, xyz).all()


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_a_node_answers_because_it_is_fine_enough_or_has_no_child_there(restricted_tree: Trees, seed: int) -> None:
    tree = restricted_tree(seed)
    xyz, footprint = draw_samples(tree, seed)
    node, foreign = route(tree, xyz, footprint)
    above = (xyz >= tree.centre[node]).long()
    child = tree.children[node, above @ torch.tensor([4, 2, 1])]
    resolved = footprint >= tree.gsd[node]
    assert (resolved | (child < 0)).all()
    assert torch.equal(foreign, ~resolved & (child == FOREIGN))
    parent = tree.parent[node]
    assert ((parent < 0) | (footprint < tree.gsd[parent])).all()


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_a_finer_footprint_never_gives_a_coarser_node(restricted_tree: Trees, seed: int) -> None:
    tree = restricted_tree(seed)
    xyz, footprint = draw_samples(tree, seed)
    level = tree.level[route(tree, xyz, footprint)[0]]
    for factor in (0.99, 0.6, 0.1, 0.0):
        finer = tree.level[route(tree, xyz, footprint * factor)[0]]
        assert (finer >= level).all()


def test_jittered_footprints_stay_within_one_level() -> None:
    tree = Octree.from_keys(torch.tensor([1, 15, 127]), torch.zeros(3), 0.1)
    xyz = torch.full((3, 3), 0.9)
    assert route(tree, xyz, torch.tensor([0.1, 0.0999, 0.04]))[0].tolist() == [0, 1, 2]


def test_an_absent_child_is_served_by_its_parent() -> None:
    tree = Octree.from_keys(torch.tensor([1, 15]), torch.zeros(2), 0.1)
    node, foreign = route(tree, torch.tensor([[-0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]), torch.full((2,), 1e-3))
    assert node.tolist() == [0, 1]
    assert foreign.tolist() == [False, False]


def test_a_foreign_child_is_served_by_its_parent_and_flagged() -> None:
    tree = Octree.from_keys(torch.tensor([1, 8, 15, 64]), torch.zeros(4), 0.1).restrict({1, 8})
    xyz = torch.tensor([[0.5] * 3, [-0.9] * 3, [-0.1] * 3, [0.5, -0.5, 0.5], [0.5] * 3, [-0.9] * 3])
    node, foreign = route(tree, xyz, torch.tensor([1e-3, 1e-3, 1e-3, 1e-3, 1.0, 0.06]))
    assert node.tolist() == [0, 1, 1, 0, 0, 1]
    assert foreign.tolist() == [True, True, False, False, False, False]


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_restricting_leaves_routing_inside_kept_nodes_as_it_was(complete_tree: Trees, seed: int) -> None:
    tree = complete_tree(seed)
    draw = random.Random(seed)
    kept = set(tree.keys.tolist())
    for key in draw.sample(sorted(kept)[1:], min(2, len(kept) - 1)):
        kept -= tree.subtree_keys(key)
    part = tree.restrict(kept)
    xyz, footprint = draw_samples(tree, seed)
    whole, _ = route(tree, xyz, footprint)
    node, foreign = route(part, xyz, footprint)
    stays = part.index_of(tree.keys[whole]) >= 0
    assert torch.equal(part.keys[node[stays]], tree.keys[whole[stays]])
    assert torch.equal(foreign, ~stays)
    ancestor = tree.keys[whole[~stays]]  # a removed node's samples go to its nearest kept ancestor
    while bool((part.index_of(ancestor) < 0).any()):
        ancestor = torch.where(part.index_of(ancestor) < 0, ancestor >> 3, ancestor)
    assert torch.equal(part.keys[node[~stays]], ancestor)


def test_no_samples_and_one_sample_are_routed(complete_tree: Trees) -> None:
    for seed in range(12):
        tree = complete_tree(seed)
        node, foreign = route(tree, torch.zeros(0, 3), torch.zeros(0))
        assert (node.shape, foreign.shape) == ((0,), (0,))
        assert route(tree, torch.full((1, 3), 0.3), torch.tensor([9.0]))[0].tolist() == [0]


def test_routing_leaves_its_arguments_alone(complete_tree: Trees) -> None:
    for tree in map(complete_tree, range(12)):
        for count in (1, 5):
            columns = torch.full((3, count), 2.0)  # its transpose is what a contiguous copy would alias
            footprint = torch.full((count,), 1e-4)
            route(tree, columns.t(), footprint)
            blend_neighbour(tree, columns.t(), footprint, 0.5)
            assert (columns == 2).all()
            assert (footprint == 1e-4).all()


def mixture(tree: Octree, xyz: Tensor, footprint: Tensor, width: float) -> Tensor:
    """Share of every node in the answer to one sample at many footprints [F, N]."""
    node, _ = route(tree, xyz, footprint)
    second, weight = blend_neighbour(tree, xyz, footprint, width)
    share = torch.zeros(len(footprint), tree.num_nodes)
    share.scatter_add_(1, node[:, None], 1 - weight[:, None])
    return share.scatter_add_(1, second[:, None], weight[:, None])


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([0.05, 0.3, 0.5, 1.0]))
def test_the_blend_is_continuous_in_the_footprint(restricted_tree: Trees, seed: int, width: float) -> None:
    tree = restricted_tree(seed)
    point = draw_samples(tree, seed, count=1)[0]
    octaves = torch.linspace(-1, 8, 9 * 400 + 1)
    share = mixture(tree, point.expand(len(octaves), 3), tree.gsd[0] * 2.0**-octaves, width)
    step = 1 / 400 / width  # a share falls by its slope 1 / width times the step in octaves
    assert float((share[1:] - share[:-1]).abs().max()) <= step * 1.01 + 1e-4


def test_the_steps_that_the_blend_removes_are_there_without_it(complete_tree: Trees) -> None:
    tree = next(tree for tree in map(complete_tree, range(50)) if tree.num_levels > 2)
    point = tree.centre[-1:].expand(3601, 3)
    share = mixture(tree, point, tree.gsd[0] * 2.0 ** -torch.linspace(-1, 8, 3601), 0.0)
    assert float((share[1:] - share[:-1]).abs().max()) == 1


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([0.1, 0.5, 1.0]))
def test_blended_nodes_are_neighbours_on_the_samples_path(restricted_tree: Trees, seed: int, width: float) -> None:
    tree = restricted_tree(seed)
    xyz, footprint = draw_samples(tree, seed)
    node, _ = route(tree, xyz, footprint)
    second, weight = blend_neighbour(tree, xyz, footprint, width, node=node)
    again = blend_neighbour(tree, xyz, footprint, width)
    assert torch.equal(second, again[0])
    assert torch.equal(weight, again[1])
    assert ((weight >= 0) & (weight <= 0.5)).all()
    assert contains(tree, second, xyz).all()
    same = second == node
    assert (weight[same] == 0).all()
    assert ((tree.parent[second] == node) | (tree.parent[node] == second) | same).all()
    coarser = tree.gsd[torch.minimum(node, second)]  # indices grow with the level
    distance = torch.log2(footprint / coarser).abs()
    assert (distance[~same] <= width / 2).all()
    torch.testing.assert_close(weight[~same], 0.5 - distance[~same] / width, atol=1e-5, rtol=0)


def test_the_boundary_is_shared_in_halves_and_the_band_ends_in_nothing() -> None:
    tree = Octree.from_keys(torch.tensor([ROOT_KEY, 15]), torch.zeros(2), 2.0**-4)
    octaves = torch.tensor([-0.5, -0.25, -0.125, 0.0, 0.125, 0.25, 0.5])  # footprint against the boundary
    xyz = torch.full((7, 3), 0.5)
    node, _ = route(tree, xyz, 2.0 ** (octaves - 4))
    second, weight = blend_neighbour(tree, xyz, 2.0 ** (octaves - 4), 0.5)
    assert node.tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert second[2:5].tolist() == [0, 1, 1]
    torch.testing.assert_close(weight, torch.tensor([0, 0, 0.25, 0.5, 0.25, 0, 0]), atol=1e-5, rtol=0)


def test_a_level_that_is_not_there_takes_no_share() -> None:
    tree = Octree.from_keys(torch.tensor([1, 8, 15]), torch.zeros(3), 2.0**-4).restrict({1, 8})
    assert tree.children[0, [0, 1, 7]].tolist() == [1, ABSENT, FOREIGN]
    xyz = torch.tensor([[-0.5, -0.5, -0.5], [-0.5, -0.5, 0.5], [0.5, 0.5, 0.5]])
    second, weight = blend_neighbour(tree, xyz, torch.full((3,), 2.0**-4), 0.5)
    assert second.tolist() == [1, 0, 0]
    assert weight.tolist() == [0.5, 0, 0]


@pytest.mark.parametrize("footprint", [0.0, 1e-30, 1e30])
def test_the_blend_stands_extreme_footprints(complete_tree: Trees, footprint: float) -> None:
    tree = complete_tree(3)
    second, weight = blend_neighbour(tree, torch.full((2, 3), 0.2), torch.full((2,), footprint), 1.0)
    assert (weight == 0).all()
    assert torch.equal(second, route(tree, torch.full((2, 3), 0.2), torch.full((2,), footprint))[0])


@pytest.mark.parametrize("width", [-0.1, 1.1, float("nan")])
def test_a_band_wider_than_a_level_is_refused(complete_tree: Trees, width: float) -> None:
    with pytest.raises(ValueError, match="octaves"):
        blend_neighbour(complete_tree(3), torch.zeros(1, 3), torch.ones(1), width)
