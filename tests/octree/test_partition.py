import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_nerf.octree.partition import SHARED, SLACK, Partition, make_partition
from inf_nerf.octree.routing import route
from inf_nerf.octree.topology import BACKGROUND_KEY, ROOT_KEY, Octree

Trees = Callable[[int], Octree]
seeds = st.integers(0, 10_000)
ranks = st.integers(1, 70)
upper_levels = st.integers(1, 4)


def weights_of(tree: Octree, partition: Partition) -> tuple[dict[int, int], list[int]]:
    """Weight of each subtree that was dealt, and the load of each rank."""
    weight = dict(zip(tree.keys.tolist(), tree.num_points.tolist()))
    return {key: weight[key] for roots in partition.roots for key in roots}, [
        sum(weight[key] for key in roots) for roots in partition.roots
    ]


@settings(max_examples=60, deadline=None)
@given(seeds, ranks, upper_levels)
def test_shared_and_owned_are_a_disjoint_cover(complete_tree: Trees, seed: int, num_ranks: int, upper: int) -> None:
    tree = complete_tree(seed)
    partition = make_partition(tree, num_ranks, upper)
    parts = [partition.shared, *partition.owned]
    assert partition.num_ranks == len(partition.owned) == len(partition.roots) == num_ranks
    assert sum(map(len, parts)) == tree.num_nodes + 1
    assert frozenset[int]().union(*parts) == {BACKGROUND_KEY, *tree.keys.tolist()}
    assert {BACKGROUND_KEY, ROOT_KEY} <= partition.shared
    for owned, roots in zip(partition.owned, partition.roots):
        assert owned == frozenset[int]().union(*(tree.subtree_keys(key) for key in roots))
        assert all(key >> 3 in partition.shared for key in roots)


@settings(max_examples=40, deadline=None)
@given(seeds, ranks, upper_levels)
def test_shared_upper_levels_are_a_minimum(complete_tree: Trees, seed: int, num_ranks: int, upper: int) -> None:
    tree = complete_tree(seed)
    partition = make_partition(tree, num_ranks, upper)
    assert set(tree.keys[tree.level < upper].tolist()) <= partition.shared
    weights, _ = weights_of(tree, partition)
    weight = dict(zip(tree.keys.tolist(), tree.num_points.tolist()))
    total = int(tree.num_points[tree.level == upper].sum())
    for key in partition.shared - {BACKGROUND_KEY} - set(tree.keys[tree.level < upper].tolist()):
        assert weight[key] * num_ranks > total  # only what is too heavy was cut
        assert len(tree.subtree_keys(key)) > 1
    for key in weights:
        assert weights[key] * num_ranks <= total or len(tree.subtree_keys(key)) == 1


@settings(max_examples=60, deadline=None)
@given(seeds, ranks, upper_levels)
def test_ranks_are_balanced_within_the_slack_and_the_heaviest_subtree(
    complete_tree: Trees, seed: int, num_ranks: int, upper: int
) -> None:
    tree = complete_tree(seed)
    weights, loads = weights_of(tree, make_partition(tree, num_ranks, upper))
    total, heaviest = sum(loads), max(weights.values(), default=0)
    assert max(loads) <= max(SLACK * total / num_ranks, total / num_ranks + heaviest)
    assert sum(load > 0 for load in loads) == min(num_ranks, sum(weight > 0 for weight in weights.values()))


def test_neighbours_go_to_the_same_rank() -> None:
    keys = [1, 9, 11, 13, 15]  # the four upper octants: (-, -), (-, +), (+, -), (+, +)
    tree = Octree.from_keys(torch.tensor(keys), torch.tensor([400, 97, 100, 102, 101]), 0.1)
    assert make_partition(tree, 2, 1).roots in (((13, 15), (9, 11)), ((9, 13), (11, 15)))


@settings(max_examples=20, deadline=None)
@given(seeds, ranks, upper_levels)
def test_a_partition_depends_on_the_tree_alone(complete_tree: Trees, seed: int, num_ranks: int, upper: int) -> None:
    tree = complete_tree(seed)
    partition = make_partition(tree, num_ranks, upper)
    assert make_partition(Octree.from_state(tree.state()), num_ranks, upper) == partition
    assert pickle.loads(pickle.dumps(partition)) == partition


@settings(max_examples=40, deadline=None)
@given(seeds, ranks, upper_levels)
def test_owners_are_found_for_every_key(complete_tree: Trees, seed: int, num_ranks: int, upper: int) -> None:
    tree = complete_tree(seed)
    partition = make_partition(tree, num_ranks, upper)
    keys = torch.tensor([BACKGROUND_KEY, *tree.keys.tolist()])
    expected = [
        next((rank for rank, owned in enumerate(partition.owned) if key in owned), SHARED) for key in keys.tolist()
    ]
    assert partition.owners_of(keys).tolist() == expected
    assert partition.owners_of(keys[None]).shape == (1, len(keys))
    assert partition.owners_of(keys[:0]).shape == (0,)


def test_a_node_that_grew_later_belongs_to_its_ancestors_owner() -> None:
    tree = Octree.from_keys(torch.tensor([1, 8, 15]), torch.tensor([20, 10, 10]), 0.1)
    partition = make_partition(tree, 2, 1)
    assert partition.roots == ((8,), (15,))
    assert partition.owners_of(torch.tensor([8 * 8 + 3, (15 * 8 + 1) * 8, 1 * 8 + 4])).tolist() == [0, 1, SHARED]


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 5), upper_levels)
def test_each_rank_routes_as_the_whole_tree_within_shared_and_own_nodes(
    complete_tree: Trees, seed: int, num_ranks: int, upper: int
) -> None:
    tree = complete_tree(seed)
    partition = make_partition(tree, num_ranks, upper)
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.rand(300, 3, generator=generator) * 2 - 1
    footprint = tree.gsd[0] * 2.0 ** -(torch.rand(300, generator=generator) * 6)
    whole = tree.keys[route(tree, xyz, footprint)[0]]
    owner = partition.owners_of(whole)
    for rank in range(num_ranks):
        part = partition.octree(tree, rank)
        assert set(part.keys.tolist()) == (partition.shared | partition.owned[rank]) - {BACKGROUND_KEY}
        node, foreign = route(part, xyz, footprint)
        mine = (owner == SHARED) | (owner == rank)
        assert torch.equal(part.keys[node[mine]], whole[mine])
        assert torch.equal(foreign, ~mine)
        assert (partition.owners_of(part.keys[node[~mine]]) == SHARED).all()


@settings(max_examples=20, deadline=None)
@given(seeds, upper_levels)
def test_one_rank_owns_everything_below_the_shared_levels(complete_tree: Trees, seed: int, upper: int) -> None:
    tree = complete_tree(seed)
    partition = make_partition(tree, 1, upper)
    assert partition.shared == {BACKGROUND_KEY, *tree.keys[tree.level < upper].tolist()}
    assert partition.owned == (frozenset(tree.keys[tree.level >= upper].tolist()),)


def test_more_ranks_than_subtrees_leave_some_without_any() -> None:
    tree = Octree.from_keys(torch.tensor([1, 8, 15]), torch.tensor([20, 12, 8]), 0.1)
    partition = make_partition(tree, 4, 1)
    assert partition.owned == (frozenset({8}), frozenset({15}), frozenset(), frozenset())
    assert partition.octree(tree, 3).keys.tolist() == [1]


def test_a_root_alone_is_shared_by_all() -> None:
    tree = Octree.from_keys(torch.tensor([1]), torch.tensor([0]), 0.1)
    partition = make_partition(tree, 3, 2)
    assert partition.shared == {BACKGROUND_KEY, ROOT_KEY}
    assert partition.owned == (frozenset(),) * 3
    assert partition.owners_of(torch.tensor([0, 1, 8])).tolist() == [SHARED] * 3


def test_a_subtree_too_heavy_for_one_rank_is_cut() -> None:
    children = [8 * 8 + digit for digit in range(4)]
    tree = Octree.from_keys(torch.tensor([1, 8, 15, *children]), torch.tensor([100, 90, 10, 25, 25, 20, 20]), 0.1)
    partition = make_partition(tree, 2, 1)
    assert partition.shared == {BACKGROUND_KEY, 1, 8}
    _, loads = weights_of(tree, partition)
    assert loads == [50, 50]
    assert partition.owners_of(torch.tensor([8, 64, 65, 66, 67, 15])).tolist() == [SHARED, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("num_ranks", "upper"), [(0, 1), (2, 0), (-1, 1)])
def test_no_ranks_and_no_shared_level_are_refused(num_ranks: int, upper: int) -> None:
    tree = Octree.from_keys(torch.tensor([1]), torch.tensor([0]), 0.1)
    with pytest.raises(ValueError, match="at least 1"):
        make_partition(tree, num_ranks, upper)
