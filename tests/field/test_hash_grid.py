"""The torch hash grid against tinycudann's rules written out for one position in plain Python."""

import math

import numpy as np
import pytest
import torch

from inf_nerf.errors import InputError
from inf_nerf.field.hash_grid import GridSpec, encode

SMALL = GridSpec(num_levels=4, features_per_level=2, log2_table_size=8, base_res=3, max_res=24)


def scalar_encode(spec: GridSpec, table: np.ndarray, xyz: np.ndarray) -> list[float]:
    """Features of one position [3] in one node's table [P, F], rule by rule, sharing nothing with the library."""
    features: list[float] = []
    first_entry = 0
    log2_growth = math.log2(spec.max_res / spec.base_res) / (spec.num_levels - 1)
    for level in range(spec.num_levels):
        scale = 2 ** (level * log2_growth) * spec.base_res - 1
        resolution = math.ceil(scale - 1e-5) + 1  # whole numbers must not be missed by a rounding error here
        size = min(-(-(resolution**3) // 8) * 8, 2**spec.log2_table_size)
        position = [coordinate * scale + 0.5 for coordinate in xyz]
        cell = [math.floor(coordinate) for coordinate in position]
        sums = [0.0] * spec.features_per_level
        for corner in range(8):
            weight, vertex = 1.0, []
            for axis in range(3):
                upper = corner >> axis & 1
                fraction = position[axis] - cell[axis]
                weight *= fraction if upper else 1 - fraction
                vertex.append(cell[axis] + upper)
            if resolution**3 <= size:
                index = vertex[0] + vertex[1] * resolution + vertex[2] * resolution**2
            else:
                index = vertex[0] * 1 ^ (vertex[1] * 2654435761) % 2**32 ^ (vertex[2] * 805459861) % 2**32
            for feature in range(spec.features_per_level):
                sums[feature] += weight * table[first_entry + index % size, feature]
        features += sums
        first_entry += size
    assert first_entry == len(table)
    return features


def test_spec_of_the_paper_has_its_number_of_parameters() -> None:
    spec = GridSpec(num_levels=16, features_per_level=2, log2_table_size=19, base_res=16, max_res=2048)

    assert spec.num_entries * spec.features_per_level == 12_196_240
    assert spec.resolutions[:6] == (16, 23, 31, 43, 59, 81)
    assert spec.sizes[:3] == (4096, 12168, 29792)  # 16^3; 23^3 = 12167 and 31^3 = 29791 rounded up to multiples of 8
    assert spec.sizes[-1] == 2**19 and spec.hashed[-1]


def test_one_level_has_the_base_resolution() -> None:
    spec = GridSpec(num_levels=1, features_per_level=2, log2_table_size=10, base_res=5, max_res=64)

    assert spec.resolutions == (5,) and spec.sizes == (128,)


def test_small_grid_worked_by_hand() -> None:
    # Level 0: scale 1, 2 vertices a side, 8 entries, dense.  Level 1: scale 3, 4 a side, 64 vertices in 16 entries.
    spec = GridSpec(num_levels=2, features_per_level=1, log2_table_size=4, base_res=2, max_res=4)
    assert spec.scales == (1.0, 3.0) and spec.resolutions == (2, 4)
    assert spec.sizes == (8, 16) and spec.offsets == (0, 8, 24) and spec.hashed == (False, True)
    table = torch.arange(24.0).reshape(1, 24, 1)
    xyz = torch.tensor([[0.5, 0.5, 0.5], [0.25, 0.5, 0.5]])

    features = encode(spec, table, xyz, torch.zeros(2, dtype=torch.int64))

    # Centre, level 0: position 1, vertex (1, 1, 1), entry 1 + 2 + 4 = 7.  Level 1: position 2, vertex (2, 2, 2); the
    # primes are 1, 1 and 5 modulo 16, so the entry is 2 ^ 2 ^ 10 = 10, which is row 18 of the table.
    assert features[0].tolist() == [7.0, 18.0]
    # x = 0.25, level 0: position 0.75, a quarter of entry 6 and three quarters of entry 7.  Level 1: position 1.25,
    # three quarters of vertex 1 (entry 1 ^ 2 ^ 10 = 9, row 17) and a quarter of vertex 2 (row 18).
    assert features[1].tolist() == [0.25 * 6 + 0.75 * 7, 0.75 * 17 + 0.25 * 18]


def test_twin_equals_the_scalar_rules() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(3, SMALL.num_entries, SMALL.features_per_level))
    xyz = rng.random((40, 3)).astype(np.float32)
    xyz[0], xyz[1] = 0.0, 1.0
    node = rng.integers(0, 3, 40)
    assert any(SMALL.hashed) and not all(SMALL.hashed)

    features = encode(SMALL, torch.from_numpy(table), torch.from_numpy(xyz).double(), torch.from_numpy(node))

    expected = [scalar_encode(SMALL, table[m], position) for position, m in zip(xyz, node, strict=True)]
    # The spec rounds scales in float32 as tinycudann does: 24 cells times 1e-7.
    np.testing.assert_allclose(features.numpy(), expected, atol=1e-4)


def test_twin_has_the_right_gradient_of_the_table() -> None:
    spec = GridSpec(num_levels=2, features_per_level=2, log2_table_size=4, base_res=2, max_res=6)
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(2, spec.num_entries, 2, dtype=torch.float64, generator=generator).requires_grad_()
    xyz = torch.rand(5, 3, dtype=torch.float64, generator=generator)
    node = torch.tensor([0, 0, 1, 1, 1])

    assert torch.autograd.gradcheck(lambda values: encode(spec, values, xyz, node), (table,))


def test_nodes_do_not_see_each_other() -> None:
    table = torch.randn(2, SMALL.num_entries, 2, generator=torch.Generator().manual_seed(2))
    xyz = torch.rand(20, 3, generator=torch.Generator().manual_seed(3))
    node = torch.arange(20) // 10
    before = encode(SMALL, table, xyz, node)
    table[1] += 1.0

    after = encode(SMALL, table, xyz, node)

    assert torch.equal(before[:10], after[:10])
    assert not torch.isclose(before[10:], after[10:]).any()


def test_no_positions_give_no_features() -> None:
    table = torch.zeros(1, SMALL.num_entries, 2)

    assert encode(SMALL, table, torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (0, 8)


def test_finest_resolution_below_the_base_is_refused() -> None:
    with pytest.raises(InputError, match=r"field\.max_res \(8\) is below field\.base_res \(16\)"):
        GridSpec(num_levels=4, features_per_level=2, log2_table_size=10, base_res=16, max_res=8)
