"""What samples ask of a tree, and the rules of what comes and goes, against the definitions written as loops."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inf_nerf.config import OctreeConfig
from inf_nerf.octree.growth import ERROR, OCCUPIED, OFTEN, WEIGHT, Demand, demand_of, needless_nodes, wanted_nodes
from inf_nerf.octree.routing import route
from inf_nerf.octree.topology import ABSENT, Octree, key_level

SEEDS = st.integers(0, 10_000)


def samples_in(tree: Octree, seed: int, count: int = 400, rays: int = 50) -> tuple[Tensor, ...]:
    """Random samples as :func:`demand_of` takes them."""
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.rand(count, 3, generator=generator) * 2 - 1
    footprint = 2.0 ** -(4 + 7 * torch.rand(count, generator=generator))
    node, foreign = route(tree, xyz, footprint)
    weight, ray = torch.rand(count, generator=generator), torch.randint(rays, (count,), generator=generator)
    error, counts = torch.rand(rays, generator=generator), torch.rand(rays, generator=generator)
    return node, xyz, footprint, foreign, weight, ray, error, counts


def random_demand(tree: Octree, seed: int) -> Demand:
    """A demand in which most octants are asked of and half of the nodes hold something."""
    generator = torch.Generator().manual_seed(seed)
    demand = Demand.none(tree.num_nodes)
    demand.nodes[:, :OCCUPIED] = torch.rand(tree.num_nodes, OCCUPIED, dtype=torch.float64, generator=generator)
    demand.nodes[:, WEIGHT] *= torch.rand(tree.num_nodes, generator=generator) > 0.4
    demand.nodes[:, OCCUPIED] = (torch.rand(tree.num_nodes, generator=generator) > 0.5).double()
    demand.rays += torch.tensor([100.0, 40.0])
    return demand


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_demand_is_that_of_every_sample_alone(restricted_tree: Callable[[int], Octree], seed: int) -> None:
    tree = restricted_tree(seed)
    node, xyz, footprint, foreign, weight, ray, error, counts = samples_in(tree, seed)
    found = demand_of(tree, node, xyz, footprint, foreign, weight, ray, error, counts)
    expected = Demand.none(tree.num_nodes)
    for q in range(len(node)):
        at = int(node[q])
        if foreign[q]:
            continue
        expected.nodes[at, WEIGHT] += float(weight[q])
        if float(footprint[q]) < float(tree.gsd[at]):
            x, y, z = (xyz[q] >= tree.centre[at]).tolist()
            assert int(tree.children[at, 4 * x + 2 * y + z]) == ABSENT
            expected.nodes[at, 1 + 4 * x + 2 * y + z] += float(weight[q])
            expected.nodes[at, 9 + 4 * x + 2 * y + z] += float(weight[q]) * float(error[ray[q]])
    torch.testing.assert_close(found.nodes, expected.nodes)
    torch.testing.assert_close(
        found.rays, torch.stack((counts.sum(), (counts * error).sum())).double(), rtol=1e-5, atol=1e-6
    )


def wanted_slowly(tree: Octree, demand: Demand, config: OctreeConfig, most: int) -> list[int]:
    """The rule of :func:`wanted_nodes`, octant by octant."""
    mean = float(demand.nodes[:, WEIGHT].sum()) / tree.num_nodes
    weight, squared = demand.rays.tolist()
    found: list[tuple[float, int]] = []
    for node in range(tree.num_nodes):
        for which in range(8):
            asked, error = float(demand.nodes[node, 1 + which]), float(demand.nodes[node, 9 + which])
            key = int(tree.keys[node]) * 8 + which
            if int(tree.children[node, which]) != ABSENT or asked == 0 or asked < OFTEN * mean:
                continue
            if error / asked <= config.subdivision_threshold * squared / weight:
                continue
            if key_level(key) < config.num_levels and 2 * 0.5 ** key_level(key) >= config.min_node_size:
                found.append((-error, key))
    return sorted(key for _, key in sorted(found)[: max(0, most - tree.num_nodes)])


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, levels=st.integers(2, 7), room=st.sampled_from([0, 3, 1000]), size=st.sampled_from([0.0, 0.25]))
def test_wanted_nodes_are_those_of_the_rule(
    complete_tree: Callable[[int], Octree], seed: int, levels: int, room: int, size: float
) -> None:
    tree, config = complete_tree(seed), OctreeConfig(num_levels=levels, min_node_size=size)
    demand, most = random_demand(tree, seed), tree.num_nodes + room
    found = wanted_nodes(tree, demand, config, most)
    assert found == wanted_slowly(tree, demand, config, most)
    assert len(found) <= room


def needless_slowly(tree: Octree, demand: Demand, config: OctreeConfig) -> list[int]:
    """The rule of :func:`needless_nodes`: take leaves away one by one until none can go."""
    mean = float(demand.nodes[:, WEIGHT].sum()) / tree.num_nodes
    kept = dict(zip(tree.keys.tolist(), demand.nodes, strict=True))
    while True:
        gone = [
            key
            for key, asked in kept.items()
            if key != 1
            and not any(8 * key + which in kept for which in range(8))
            and float(asked[WEIGHT]) <= config.pruning_threshold * mean
            and not float(asked[OCCUPIED])
        ]
        if not gone:
            return sorted(set(tree.keys.tolist()) - set(kept))
        for key in gone:
            del kept[key]


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, threshold=st.sampled_from([0.0, 0.1, 2.0]))
def test_needless_nodes_are_those_of_the_rule(
    complete_tree: Callable[[int], Octree], seed: int, threshold: float
) -> None:
    tree, config = complete_tree(seed), OctreeConfig(pruning_threshold=threshold)
    demand = random_demand(tree, seed)
    assert needless_nodes(tree, demand, config) == needless_slowly(tree, demand, config)


def test_without_rays_nothing_comes_or_goes(complete_tree: Callable[[int], Octree]) -> None:
    tree = complete_tree(3)
    none = Demand.none(tree.num_nodes)
    assert wanted_nodes(tree, none, OctreeConfig(), 10_000) == needless_nodes(tree, none, OctreeConfig()) == []


def test_a_demand_of_a_part_is_found_in_the_whole(complete_tree: Callable[[int], Octree]) -> None:
    whole = next(tree for tree in map(complete_tree, range(20)) if tree.num_nodes > 20)
    part = whole.restrict(whole.keys[:5].tolist())
    demand = random_demand(part, 0)
    there = demand.over(whole.index_of(part.keys), whole.num_nodes)
    assert torch.equal(there.nodes[whole.index_of(part.keys)], demand.nodes)
    assert float(there.nodes.sum()) == pytest.approx(float(demand.nodes.sum()))
    assert float(there.nodes[5:, ERROR].sum()) == 0 and torch.equal(there.rays, demand.rays)
