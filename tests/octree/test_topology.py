from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from inf_nerf.octree import topology
from inf_nerf.octree.topology import (
    ABSENT,
    BACKGROUND_KEY,
    FOREIGN,
    MAX_LEVELS,
    ROOT_KEY,
    Octree,
    is_below,
    key_level,
    key_levels,
    key_name,
    key_of,
    keys_at,
    octant,
)

Trees = Callable[[int], Octree]
seeds = st.integers(0, 10_000)


def assert_same(tree: Octree, other: Octree) -> None:
    for field in fields(Octree):
        found, expected = getattr(tree, field.name), getattr(other, field.name)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected), field.name


@given(st.lists(st.integers(0, 7), max_size=MAX_LEVELS - 1))
def test_names_have_a_digit_for_every_octant_on_the_way_down(octants: list[int]) -> None:
    key = ROOT_KEY
    for digit in octants:
        key = key * 8 + digit
    assert key_name(key) == "r" + "".join(map(str, octants))
    assert key_level(key) == len(octants)
    assert key < 2**62


def test_background_has_a_name_of_its_own() -> None:
    assert key_name(BACKGROUND_KEY) == "bg"


@pytest.mark.parametrize("key", [-1, 2, 7, 16, 8**MAX_LEVELS])
def test_numbers_that_are_no_key_are_refused(key: int) -> None:
    with pytest.raises(ValueError, match="not the key"):
        key_name(key)


@given(st.lists(st.integers(1, 2**62), max_size=20), st.lists(st.integers(0, MAX_LEVELS - 1), max_size=20))
def test_levels_of_many_keys_are_those_of_each(numbers: list[int], levels: list[int]) -> None:
    keys = [8**level for level in levels] + [2 * 8**level - 1 for level in levels]
    assert key_levels(torch.tensor(keys, dtype=torch.int64)).tolist() == [key_level(key) for key in keys]
    for number in numbers:
        try:
            expected = [key_level(number)]
        except ValueError:
            expected = None
        if expected is None:
            with pytest.raises(ValueError, match=f"{number} is not the key"):
                key_levels(torch.tensor([1, number]))
        else:
            assert key_levels(torch.tensor([number])).tolist() == expected


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(0, MAX_LEVELS - 1))
def test_key_at_a_level_is_that_of_the_descent_by_octants(seed: int, level: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.rand(100, 3, generator=generator) * 2 - 1
    scale = 2.0 ** torch.randint(0, 24, (100, 1), generator=generator)
    xyz[:50] = (torch.round(xyz * scale) / scale)[:50]  # on cutting planes and sides
    xyz[50:60] *= 1e-30
    key, centre = torch.full((100,), ROOT_KEY), torch.zeros(100, 3)
    for depth in range(1, level + 1):
        key = key * 8 + octant(xyz, centre)
        centre = centre + torch.where(xyz >= centre, 1.0, -1.0) * 2.0**-depth
    assert torch.equal(keys_at(xyz, level), key)


def test_keys_are_the_same_however_many_points_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    xyz = torch.rand(100, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = keys_at(xyz, 7)
    monkeypatch.setattr(topology, "POINTS_AT_ONCE", 7)
    assert torch.equal(keys_at(xyz, 7), together)
    assert keys_at(xyz[:0], 7).shape == (0,)


def test_octant_counts_x_first_and_a_cutting_plane_as_above() -> None:
    corners = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    assert octant(corners, torch.zeros(3)).tolist() == list(range(8))
    assert octant(torch.zeros(1, 3), torch.zeros(1, 3)).tolist() == [7]


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_arrays_follow_from_the_keys(complete_tree: Trees, seed: int) -> None:
    tree = complete_tree(seed)
    assert tree.keys.tolist() == sorted(tree.keys.tolist())
    assert tree.level.tolist() == sorted(tree.level.tolist())
    assert tree.num_levels == int(tree.level.max()) + 1
    assert tree.parent[0] == -1
    assert tree.centre[0].tolist() == [0, 0, 0]
    assert tree.half[0] == 1
    for node in range(1, tree.num_nodes):
        parent, digit = int(tree.parent[node]), int(tree.keys[node]) & 7
        assert tree.keys[parent] == tree.keys[node] >> 3
        assert tree.children[parent, digit] == node
        assert tree.level[node] == tree.level[parent] + 1
        assert tree.half[node] * 2 == tree.half[parent]
        assert tree.gsd[node] * 2 == tree.gsd[parent]
        side = torch.tensor([digit >> 2, digit >> 1 & 1, digit & 1]) * 2 - 1
        assert torch.equal(tree.centre[node], tree.centre[parent] + side * tree.half[node])
    assert int((tree.children >= 0).sum()) == tree.num_nodes - 1
    assert int((tree.children == FOREIGN).sum()) == 0


def test_nodes_may_be_given_in_any_order() -> None:
    tree = Octree.from_keys(torch.tensor([15, 1, 8]), torch.tensor([3, 9, 4]), 0.5)
    assert tree.keys.tolist() == [1, 8, 15]
    assert tree.num_points.tolist() == [9, 4, 3]
    assert tree.centre[1:].tolist() == [[-0.5] * 3, [0.5] * 3]


@pytest.mark.parametrize("keys", [[], [8], [1, 1], [1, 8, 8], [1, 64], [1, 8, 72], [1, 3]])
def test_keys_that_are_no_tree_are_refused(keys: list[int]) -> None:
    with pytest.raises(ValueError):
        Octree.from_keys(torch.tensor(keys, dtype=torch.int64), torch.zeros(len(keys)), 0.5)


def test_arrays_of_the_wrong_shape_are_refused() -> None:
    tree = Octree.from_keys(torch.tensor([1, 15]), torch.zeros(2), 0.5)
    values = [getattr(tree, field.name) for field in fields(Octree)]
    values[1] = values[1][:, :7]
    with pytest.raises(ValueError, match="children"):
        Octree(*values)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_state_round_trips_through_safetensors(
    restricted_tree: Trees, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    tree = restricted_tree(seed)
    file: Path = tmp_path_factory.mktemp("tree") / "octree.safetensors"
    save_file(tree.state(), file)
    back = Octree.from_state(load_file(file))
    assert_same(back, tree)
    assert back.identity == tree.identity


def test_state_of_another_tree_is_refused() -> None:
    state = Octree.from_keys(torch.tensor([1, 15]), torch.zeros(2), 0.5).state()
    state["foreign"] = torch.ones_like(state["foreign"])
    with pytest.raises(ValueError, match="foreign"):
        Octree.from_state(state)


def test_identity_tells_trees_apart() -> None:
    keys, counts = torch.tensor([1, 8, 15]), torch.tensor([9, 4, 3])
    tree = Octree.from_keys(keys, counts, 0.5)
    assert tree.identity == Octree.from_keys(keys.flip(0), counts.flip(0), 0.5).identity
    others = [
        Octree.from_keys(keys[:2], counts[:2], 0.5),
        Octree.from_keys(torch.tensor([1, 8, 14]), counts, 0.5),
        Octree.from_keys(keys, counts, 0.25),
        tree.restrict({1, 8}),
    ]
    assert len({tree.identity, *(other.identity for other in others)}) == 5


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_restricting_removes_nodes_and_marks_their_places(complete_tree: Trees, seed: int) -> None:
    tree = complete_tree(seed)
    key = int(tree.keys[seed % tree.num_nodes])
    below = tree.subtree_keys(key)
    assert key in below
    if key == ROOT_KEY:
        assert below == set(tree.keys.tolist())
        return
    part = tree.restrict(set(tree.keys.tolist()) - below)
    assert set(part.keys.tolist()) == set(tree.keys.tolist()) - below
    assert int((part.children == FOREIGN).sum()) == 1
    assert part.children[part.index_of(torch.tensor(key >> 3)), key & 7] == FOREIGN
    old = tree.index_of(part.keys)
    assert torch.equal(part.centre, tree.centre[old])
    assert torch.equal(part.num_points, tree.num_points[old])
    assert torch.equal(part.children == ABSENT, tree.children[old] == ABSENT)
    again = part.restrict(part.keys.tolist())
    assert_same(again, part)


def test_keeping_everything_changes_nothing(complete_tree: Trees) -> None:
    tree = complete_tree(3)
    assert_same(tree.restrict([BACKGROUND_KEY, *tree.keys.tolist()]), tree)


@pytest.mark.parametrize("keys", [set(), {8}, {1, 64}, {1, 9}])
def test_restricting_to_what_is_no_part_is_refused(keys: set[int]) -> None:
    tree = Octree.from_keys(torch.tensor([1, 8, 64]), torch.zeros(3), 0.5)
    with pytest.raises(ValueError):
        tree.restrict(keys)


def test_index_of_a_missing_key_is_minus_one() -> None:
    tree = Octree.from_keys(torch.tensor([1, 8, 15]), torch.zeros(3), 0.5)
    assert tree.index_of(torch.tensor([[15, 9], [0, 10**9]])).tolist() == [[2, -1], [-1, -1]]


def test_subtree_of_a_missing_key_is_empty() -> None:
    tree = Octree.from_keys(torch.tensor([1, 8]), torch.zeros(2), 0.5)
    assert tree.subtree_keys(9) == frozenset()


def test_local_positions_span_the_unit_cube() -> None:
    tree = Octree.from_keys(torch.tensor([1, 15]), torch.zeros(2), 0.5)
    xyz = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.5, 1.0], [-0.1, 0.25, 1.5]])
    local = tree.to_local(xyz, torch.tensor([0, 1, 1]))
    assert local.tolist() == [[0, 0.5, 1], [0, 0.5, 1], [0, 0.25, 1]]


def test_names_and_keys_are_each_others_inverse() -> None:
    for key in (BACKGROUND_KEY, ROOT_KEY, 8, 15, 0o105, 0o1777, 1 << 57):
        assert key_of(key_name(key)) == key
    for name in ("", "r9", "q", "R0", "r-1", "r" + "7" * 20):
        with pytest.raises(ValueError, match="is not the name of an octree node"):
            key_of(name)


def test_what_lies_below_a_node() -> None:
    keys = torch.tensor([BACKGROUND_KEY, ROOT_KEY, 8, 0o105, 0o1053, 0o10537, 0o106, 0o1063, 0o115, 0o11])
    assert is_below(keys, 0o105).tolist() == [key in (0o105, 0o1053, 0o10537) for key in keys.tolist()]
    assert is_below(keys, ROOT_KEY).tolist() == [key > 0 for key in keys.tolist()]
