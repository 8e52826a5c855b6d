"""Look-ups of many positions in one level and of one position in all levels, against each other and the twin."""

from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from inf_nerf.field import hash_grid, numba_grid
from inf_nerf.field.hash_grid import GridSpec
from inf_nerf.field.heads import LEAK
from inf_nerf.field.numba_grid import levels_of
from inf_nerf.field.vector_code import LANES, gate
from inf_nerf.field.vector_grid import CORNERS, PIECE, fetch, find_corners, find_level_corners


def kernels(num_features: int) -> tuple[Any, Any]:
    """Features of positions by both ways of finding corners."""

    @njit
    def by_level(levels, table, columns, room, count, features):
        rows, weights = np.empty(CORNERS * PIECE, np.uint32), np.empty(CORNERS * PIECE, np.float32)
        row_length = levels.num_levels * num_features
        for level in range(levels.num_levels):
            scale, stride, size = levels.scales[level], levels.strides[level], levels.sizes[level]
            first = np.int64(levels.offsets[level]) * num_features
            find_corners(columns, room, 0, count, scale, stride, size, rows, weights)
            fetch(num_features, count, table, first, rows, weights, features, level * num_features, row_length)

    @njit
    def by_position(levels, table, columns, room, count, features):
        rows, weights = np.empty(CORNERS * PIECE, np.uint32), np.empty(CORNERS * PIECE, np.float32)
        for q in range(count):
            x, y, z = columns[q], columns[room + q], columns[2 * room + q]
            find_level_corners(
                x, y, z, levels.num_levels, levels.scales, levels.strides, levels.sizes, levels.offsets, rows, weights
            )
            place = q * levels.num_levels * num_features
            fetch(num_features, levels.num_levels, table, 0, rows, weights, features, place, num_features)

    return by_level, by_position


@pytest.mark.parametrize("num_features", [1, 2, 4, 8])
def test_both_ways_of_finding_corners_agree_to_the_bit_and_equal_the_twin(num_features: int) -> None:
    by_level, by_position = kernels(num_features)
    for num_levels in (1, 7, 8, 16, 17, 32):
        spec = GridSpec(num_levels, num_features, 8, 4, 40 if num_levels > 1 else 4)
        generator = torch.Generator().manual_seed(num_levels)
        table = torch.rand(1, spec.num_entries, num_features, generator=generator) - 0.5
        for count in (1, LANES + 3, PIECE):
            xyz = torch.rand(count, 3, generator=generator) * 1.2 - 0.1
            expected = hash_grid.encode(spec, table, xyz, torch.zeros(count, dtype=torch.int64))
            room = count + LANES
            columns = np.zeros((3, room), np.float32)
            columns[:, :count] = xyz.T.numpy()
            found = []
            for kernel in (by_level, by_position):
                features = np.full(count * spec.num_features + 1, 7, np.float32)
                kernel(levels_of(spec), table.view(-1).numpy(), columns.ravel(), room, count, features)
                assert features[-1] == 7
                found.append(features[:-1].reshape(count, -1))
            np.testing.assert_array_equal(found[0], found[1])
            np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-6)


def test_a_node_of_several_blocks_equals_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = GridSpec(3, 2, 8, 4, 20)
    generator = torch.Generator().manual_seed(0)
    count = 2 * numba_grid.BLOCK + 5
    table = torch.rand(2, spec.num_entries, 2, generator=generator) - 0.5
    xyz, node = (
        torch.rand(count, 3, generator=generator),
        torch.arange(2).repeat_interleave(torch.tensor([3, count - 3])),
    )
    upstream = torch.randn(count, spec.num_features, generator=generator)
    leaves = []
    for encode in (numba_grid.encode, hash_grid.encode):
        leaf = table.clone().requires_grad_()
        features = encode(spec, leaf, xyz, node)
        features.backward(upstream)
        leaves.append((features.detach(), leaf.grad))
    torch.testing.assert_close(leaves[0][0], leaves[1][0], atol=1e-6, rtol=0)
    torch.testing.assert_close(leaves[0][1], leaves[1][1], atol=1e-2, rtol=1e-4)


def test_more_levels_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 128 levels"):
        levels_of(GridSpec(129, 2, 8, 4, 40))


def test_a_table_that_is_not_contiguous_is_refused_and_no_gradient_is_lost() -> None:
    spec = GridSpec(2, 2, 8, 4, 8)
    table = torch.rand(2, spec.num_entries, 1).permute(2, 1, 0).requires_grad_()
    with pytest.raises(RuntimeError, match="view"):
        numba_grid.encode(spec, table, torch.rand(3, 3), torch.zeros(3, dtype=torch.int64))


@njit
def gated(values, gates, count):
    gate(values, gates, count)


@pytest.mark.parametrize("count", [1, 7, LANES, 2 * LANES + 5])
def test_gates_leak_where_they_are_not_positive(count: int) -> None:
    gates = np.resize(np.array([1e-9, 0, -0.0, -2, 3, np.nan], np.float32), count + LANES)
    values = np.arange(1, count + LANES + 1, dtype=np.float32)
    expected = np.where(gates > 0, values, np.float32(LEAK) * values)
    before = values.copy()
    gated(values, gates, count)
    np.testing.assert_array_equal(values[:count], expected[:count])
    whole = -(-count // LANES) * LANES
    np.testing.assert_array_equal(values[whole:], before[whole:])
