"""Faces between subtrees: which there are, how far points are from them, and whose they are."""

import math
from collections.abc import Callable

import pytest
import torch

from inf_nerf.octree.borders import Borders
from inf_nerf.octree.partition import SHARED, make_partition
from inf_nerf.octree.topology import Octree, key_name, key_of


def four() -> Octree:
    """A root, its four lower octants, and one child of the first."""
    return Octree.from_keys(torch.tensor([1, 8, 10, 12, 14, 64]), torch.tensor([9, 4, 3, 2, 1, 1]), 0.1)


SUBTREES = {8: 0, 10: 0, 12: 1, 14: 1}  # x < 0 is rank 0's


def test_distances_are_in_sides_of_the_subtree() -> None:
    borders = Borders(four(), SUBTREES)
    xyz = torch.tensor([[-0.1, -0.3, -0.5], [-0.4, 0.2, -0.1], [0.25, 0.75, -0.5]])
    found = borders.distance(xyz)
    torch.testing.assert_close(found.any, torch.tensor([0.1, 0.2, 0.25]))  # sides are 1
    torch.testing.assert_close(found.ranks, torch.tensor([0.1, 0.4, 0.25]))


def test_space_without_a_subtree_has_no_border() -> None:
    borders = Borders(four(), SUBTREES)
    found = borders.distance(torch.tensor([[0.1, 0.1, 0.5], [-0.5, -0.5, 0.01]]))
    assert bool(found.any.isinf().all())


def test_on_one_rank_borders_are_none_between_ranks() -> None:
    found = Borders(four(), dict.fromkeys(SUBTREES, 0)).distance(torch.tensor([[-0.1, -0.3, -0.5]]))
    assert float(found.any) == pytest.approx(0.1)
    assert math.isinf(float(found.ranks))


def test_all_shared_or_one_subtree_has_no_border() -> None:
    xyz = torch.rand(50, 3) * 2 - 1
    for subtrees in ({}, {8: 0}):
        assert bool(Borders(four(), subtrees).distance(xyz).any.isinf().all())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_border_is_crossed_where_it_is_said_to_be(
    complete_tree: Callable[[int], Octree], seed: int, num_ranks: int
) -> None:
    octree = complete_tree(seed)
    subtrees = make_partition(octree, num_ranks, 1).subtrees
    cubes = [
        (octree.centre[n], float(octree.half[n]), subtrees[key])
        for n, key in enumerate(octree.keys.tolist())
        if key in subtrees
    ]

    def slow_cube(point: torch.Tensor) -> tuple[torch.Tensor, float, int] | None:
        return next((cube for cube in cubes if bool(((point - cube[0]).abs() < cube[1]).all())), None)

    generator = torch.Generator().manual_seed(seed)
    xyz = torch.rand(150, 3, generator=generator) * 1.99 - 0.995
    found = Borders(octree, subtrees).distance(xyz)
    for i, point in enumerate(xyz):
        cube = slow_cube(point)
        nearest, nearest_rank = math.inf, math.inf
        if cube is not None:
            for axis in range(3):
                for sign in (-1, 1):
                    face = float(cube[0][axis]) + sign * cube[1]
                    beyond = point.clone()
                    beyond[axis] = face + sign * 1e-4
                    other = slow_cube(beyond)
                    if other is not None:
                        away = abs(face - float(point[axis])) / (2 * cube[1])
                        nearest = min(nearest, away)
                        nearest_rank = min(nearest_rank, away if other[2] != cube[2] else math.inf)
        assert float(found.any[i]) == pytest.approx(nearest, abs=1e-5)
        assert float(found.ranks[i]) == pytest.approx(nearest_rank, abs=1e-5)


def test_keys_and_names_stand_for_each_other(complete_tree: Callable[[int], Octree]) -> None:
    for key in [0, *complete_tree(3).keys.tolist()]:
        assert key_of(key_name(key)) == key
    assert SHARED not in make_partition(complete_tree(3), 2, 1).subtrees.values()
