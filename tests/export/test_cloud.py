"""Cells add up the same however they are cut into parts and blocks."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_nerf.errors import InputError
from inf_nerf.export.cloud import (
    CELL,
    Cells,
    Grid,
    blocks,
    coarser,
    colours,
    count_in,
    deinterleave,
    interleave,
    merged,
    reduced,
)


def code_of(x: int, y: int, z: int) -> int:
    """Morton code, bit by bit."""
    return sum(((value >> bit) & 1) << (3 * bit + axis) for axis, value in enumerate((x, y, z)) for bit in range(21))


def random_parts(seed: int, count: int = 4, points: int = 300) -> tuple[list[np.ndarray], list[np.ndarray]]:
    draw = np.random.default_rng(seed)
    return [draw.uniform(-1, 1, (points, 3)) * [1, 1, 0.1] for _ in range(count)], [
        draw.uniform(0, 1, (points, 3)) for _ in range(count)
    ]


def all_cells(parts: list[Cells], bits: int, most: int) -> Cells:
    ranges = list(blocks(parts, bits, most))
    assert ranges == sorted(ranges)
    return np.concatenate([merged(parts, *limits) for limits in ranges] or [np.empty(0, CELL)])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2**20 - 1)] * 3), min_size=1, max_size=20))
def test_codes_interleave_bits_and_back(index: list[tuple[int, int, int]]) -> None:
    array = np.array(index, np.uint64)
    assert interleave(array).tolist() == [code_of(*cell) for cell in index]
    np.testing.assert_array_equal(deinterleave(interleave(array)), array)


@pytest.mark.parametrize("side", [0.5, 0.11, 0.03])
def test_blocks_of_parts_are_the_sums_over_all_points(side: float) -> None:
    grid = Grid.of(side)
    xyz, rgb = random_parts(1)
    sums: dict[int, list[np.ndarray]] = defaultdict(lambda: [np.zeros(3), np.zeros(3), np.zeros(1)])
    for points, colour in zip(np.concatenate(xyz), np.concatenate(rgb), strict=True):
        entry = sums[code_of(*np.floor((points + 1) / side).astype(int).tolist())]
        entry[0], entry[1], entry[2] = entry[0] + points, entry[1] + colour, entry[2] + 1
    parts = [grid.cells(*pair) for pair in zip(xyz, rgb, strict=True)]
    for most in (1, 40, 10**6):
        cells = all_cells(parts, grid.bits, most)
        assert cells["code"].tolist() == sorted(sums)
        mean = np.array([sums[code][0] / sums[code][2] for code in sorted(sums)])
        np.testing.assert_allclose(grid.positions(cells), mean, atol=1e-5)
        look = np.array([sums[code][1] / sums[code][2] for code in sorted(sums)])
        np.testing.assert_allclose(colours(cells), look, atol=1e-5)


def test_what_is_merged_does_not_depend_on_the_blocks() -> None:
    grid = Grid.of(0.05)
    parts = [grid.cells(*pair) for pair in zip(*random_parts(2), strict=True)]
    whole = all_cells(parts, grid.bits, 10**6)
    for most in (1, 17, 200):
        np.testing.assert_array_equal(all_cells(parts, grid.bits, most), whole)


def test_no_block_is_larger_than_allowed_unless_it_is_one_cell() -> None:
    grid = Grid.of(0.05)
    parts = [grid.cells(*pair) for pair in zip(*random_parts(3), strict=True)]
    for first, last in blocks(parts, grid.bits, 30):
        assert 0 < count_in(parts, first, last) <= 30 or last == first + 1


def test_coarser_cells_are_those_of_twice_the_side() -> None:
    fine, coarse = Grid(2 / 64, 6), Grid(2 / 32, 5)
    xyz, rgb = random_parts(4, 1)
    found, expected = coarser(fine.cells(xyz[0], rgb[0])), coarse.cells(xyz[0], rgb[0])
    np.testing.assert_array_equal(found["code"], expected["code"])
    np.testing.assert_array_equal(found["count"], expected["count"])
    np.testing.assert_allclose(coarse.positions(found), coarse.positions(expected), atol=1e-5)
    np.testing.assert_allclose(colours(found), colours(expected), atol=1e-5)


def test_nothing_is_no_cells() -> None:
    empty = Grid.of(0.1).cells(np.zeros((0, 3)), np.zeros((0, 3)))
    assert len(empty) == len(reduced([])) == len(coarser(empty)) == 0
    assert list(blocks([empty], 5, 10)) == []


def test_points_on_the_faces_of_the_cube_are_in_its_cells() -> None:
    grid = Grid.of(0.3)
    corners = np.array([[-1.0, -1, -1], [1, 1, 1]])
    np.testing.assert_allclose(grid.positions(grid.cells(corners, corners * 0)), corners, atol=1e-6)


def test_grids_of_too_many_cells_are_refused() -> None:
    assert Grid.of(2 / 2**20).bits == 20
    with pytest.raises(InputError, match="coarser --gsd"):
        Grid.of(2 / 2**20 * 0.9)
