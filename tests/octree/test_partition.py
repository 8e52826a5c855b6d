import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inf_nerf.octree import partition as partition_module
from inf_nerf.octree.partition import NODES_SLACK, SHARED, SLACK, Partition, branch, make_partition, subtrees_after
from inf_nerf.octree.routing import route
from inf_nerf.octree.topology import BACKGROUND_KEY, ROOT_KEY, Octree, key_level, key_name

Trees = Callable[[int], Octree]
seeds = st.integers(0, 10_000)
ranks = st.integers(1, 70)
upper_levels = st.integers(1, 4)


def load_of(tree: Octree, seed: int) -> Tensor | None:
    """None (points), alike for all nodes, or as uneven as it gets."""
    if seed % 3 == 0:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.ones(tree.num_nodes) if seed % 3 == 1 else torch.rand(tree.num_nodes, generator=generator) ** 8


def shares_of(tree: Octree, partition: Partition, load: Tensor) -> tuple[list[float], list[float]]:
    """Part of the whole load, and of the nodes that are not shared, that each rank holds."""
    each = dict(zip(tree.keys.tolist(), (load.double() / load.double().sum().clamp_min(1e-300)).tolist()))
    num_owned = max(1, sum(map(len, partition.owned)))
    loads = [sum((each[key] for key in owned), 0.0) for owned in partition.owned]
    return loads, [len(owned) / num_owned for owned in partition.owned]


def own_points(tree: Octree) -> Tensor:
    """Sparse points that end in each node."""
    below = torch.tensor([sum(int(tree.num_points[c]) for c in row if c >= 0) for row in tree.children.tolist()])
    return tree.num_points - below


@settings(max_examples=60, deadline=None)
@given(seeds, ranks, upper_levels)
def test_shared_and_owned_are_a_disjoint_cover(complete_tree: Trees, seed: int, num_ranks: int, upper: int) -> None:
    tree = complete_tree(seed)
    partition = make_partition(tree, num_ranks, upper, load_of(tree, seed))
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
def test_shared_upper_levels_are_a_minimum_and_shared_nodes_have_shared_parents(
    complete_tree: Trees, seed: int, num_ranks: int, upper: int
) -> None:
    tree = complete_tree(seed)
    partition = make_partition(tree, num_ranks, upper, load_of(tree, seed))
    least = set(tree.keys[tree.level < upper].tolist())
    assert least <= partition.shared
    assert all(key >> 3 in partition.shared for key in partition.shared - {BACKGROUND_KEY, ROOT_KEY})
    for key in partition.shared - least - {BACKGROUND_KEY}:
        assert len(tree.subtree_keys(key)) > 1  # what is cut has children


@settings(max_examples=60, deadline=None)
@given(seeds, ranks, upper_levels)
def test_ranks_are_balanced_within_the_slack_and_the_heaviest_subtree(
    complete_tree: Trees, seed: int, num_ranks: int, upper: int
) -> None:
    tree = complete_tree(seed)
    load = load_of(tree, seed)
    partition = make_partition(tree, num_ranks, upper, load)
    loads, nodes = shares_of(tree, partition, own_points(tree) if load is None else load)
    fullest = max(max(loads) * num_ranks / SLACK, max(nodes) * num_ranks / NODES_SLACK)
    whole = Partition(partition.shared, tuple(tree.subtree_keys(key) for keys in partition.roots for key in keys), ())
    alone = shares_of(tree, whole, own_points(tree) if load is None else load)
    heaviest = max((max(a * num_ranks / SLACK, b * num_ranks / NODES_SLACK) for a, b in zip(*alone)), default=0.0)
    # the emptiest rank is at most as full as the mean of both measures together
    assert fullest <= max(1, 1 / SLACK + 1 / NODES_SLACK + heaviest) + 1e-6
    if seed % 3 == 1 and num_ranks <= len(whole.owned):  # the load is the number of nodes: one measure
        assert fullest <= max(1, 1 / NODES_SLACK + heaviest) + 1e-6


@settings(max_examples=60, deadline=None)
@given(seeds, ranks, upper_levels)
def test_cutting_never_fills_the_fullest_rank_more(complete_tree: Trees, seed: int, num_ranks: int, upper: int) -> None:
    tree = complete_tree(seed)
    load = load_of(tree, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partition_module, "PATIENCE", 0)
        whole = make_partition(tree, num_ranks, upper, load)
    cut = make_partition(tree, num_ranks, upper, load)
    assert whole.shared == {BACKGROUND_KEY, *tree.keys[tree.level < upper].tolist()}
    full = []
    for partition in (whole, cut):
        loads, nodes = shares_of(tree, partition, own_points(tree) if load is None else load)
        full.append(max(max(loads) / SLACK, max(nodes) / NODES_SLACK) * num_ranks)
    assert full[1] <= full[0] + 1e-6
    assert len(cut.shared) == len(whole.shared) or (full[0] > 1 and full[1] < full[0])


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 9), upper_levels)
def test_the_unit_of_the_load_and_the_order_of_nodes_do_not_matter(
    complete_tree: Trees, seed: int, num_ranks: int, upper: int
) -> None:
    tree = complete_tree(seed)
    load = torch.rand(tree.num_nodes, generator=torch.Generator().manual_seed(seed))
    partition = make_partition(tree, num_ranks, upper, load)
    assert make_partition(tree, num_ranks, upper, load * 1024) == partition
    order = torch.randperm(tree.num_nodes, generator=torch.Generator().manual_seed(seed))
    shuffled = Octree.from_keys(tree.keys[order], tree.num_points[order], float(tree.gsd[0]))
    assert make_partition(shuffled, num_ranks, upper, load) == partition


def test_no_rank_holds_more_nodes_than_its_part_though_the_load_would_allow_it() -> None:
    """Four subtrees of 11, 10, 8 and 7 nodes: 11 of 36 are more than 30 %, so the largest is cut."""
    keys = [1]
    for octant, count in ((1, 10), (3, 8), (5, 7), (7, 11)):
        keys += [8 + octant, *(8 * (8 + octant) + digit for digit in range(min(8, count - 1)))]
        keys += [64 * (8 + octant) + digit for digit in range(count - 9)]
    tree = Octree.from_keys(torch.tensor(keys), torch.ones(len(keys)), 0.1)
    load = torch.zeros(tree.num_nodes)
    load[tree.level == 1] = 1
    partition = make_partition(tree, 4, 1, load)
    assert partition.shared == {BACKGROUND_KEY, 1, 15}
    assert sum(map(len, partition.owned)) == 35
    assert max(map(len, partition.owned)) / 35 <= 0.3


def test_a_cut_that_relieves_nobody_is_not_made() -> None:
    """All the work is in one leaf at the end of a chain."""
    tree = Octree.from_keys(torch.tensor([1, 8, 15, 64, 512]), torch.ones(5), 0.1)
    partition = make_partition(tree, 2, 1, torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]))
    assert partition.shared == {BACKGROUND_KEY, 1}


def test_no_rank_of_many_is_left_without_a_subtree() -> None:
    """Equal subtrees, a few less than ranks: cutting them all relieves nobody, but leaves none without work."""
    keys, lowest = [1], [1]
    for _ in range(5):  # a city is flat: four children each
        lowest = [8 * key + octant for key in lowest for octant in (0, 2, 4, 6)]
        keys += lowest
    tree = Octree.from_keys(torch.tensor(keys), torch.ones(len(keys)), 0.1)
    partition = make_partition(tree, 300, 1, (tree.level == 5).double())
    assert all(partition.owned) and len(partition.subtrees) == 1024


def test_the_load_of_shared_nodes_is_room_for_subtrees() -> None:
    """Half of all work is the root's and can be done anywhere, so a subtree of half the rest is not too heavy."""
    keys = torch.tensor([1, 8, 15, 64, 65, 120])
    tree = Octree.from_keys(keys, torch.ones(6), 0.1)
    load = torch.tensor([6.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert make_partition(tree, 2, 1, load).shared == {BACKGROUND_KEY, 1}
    load[0] = 0.0
    assert make_partition(tree, 2, 1, load).shared == {BACKGROUND_KEY, 1, 8}


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
    points = dict(zip(tree.keys.tolist(), tree.num_points.tolist()))
    assert [sum(points[key] for key in owned) for owned in partition.owned] == [50, 50]
    assert partition.owners_of(torch.tensor([8, 64, 65, 66, 67, 15])).tolist() == [SHARED, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("num_ranks", "upper"), [(0, 1), (2, 0), (-1, 1)])
def test_no_ranks_and_no_shared_level_are_refused(num_ranks: int, upper: int) -> None:
    tree = Octree.from_keys(torch.tensor([1]), torch.tensor([0]), 0.1)
    with pytest.raises(ValueError, match="at least 1"):
        make_partition(tree, num_ranks, upper)


def owner_of_nodes(tree: Octree, subtrees: dict[int, int]) -> dict[int, int]:
    """The part that trained each node below a root."""
    return {key: part for root, part in subtrees.items() for key in tree.subtree_keys(root)}


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 500),
    num_ranks=st.integers(1, 5),
    upper=st.integers(1, 4),
    place=st.floats(0, 1, exclude_max=True),
    num_parts=st.integers(1, 3),
)
def test_nodes_beyond_a_branch_that_was_trained_again_stay_whose_they_were(
    complete_tree: Trees, seed: int, num_ranks: int, upper: int, place: float, num_parts: int
) -> None:
    tree = complete_tree(seed)
    before = make_partition(tree, num_ranks, upper).subtrees
    again = int(tree.keys[int(place * tree.num_nodes)])
    now = make_partition(*branch(tree, key_name(again), num_parts, upper)).subtrees
    after = subtrees_after(tree, before, key_name(again), now)
    inside, path = tree.subtree_keys(again), {again >> 3 * up for up in range(1, key_level(again) + 1)}
    kept = {key: part for key, part in owner_of_nodes(tree, before).items() if key not in inside | path}
    first = 1 + max(kept.values(), default=-1)
    assert owner_of_nodes(tree, after) == kept | {key: first + n for key, n in owner_of_nodes(tree, now).items()}
    assert sum(len(tree.subtree_keys(root)) for root in after) == len(owner_of_nodes(tree, after))  # none in another
    assert subtrees_after(tree, after, key_name(again), now) == after  # from save to save
