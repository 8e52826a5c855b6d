"""Multi-resolution hash grids of many nodes in one table, with the exact conventions of tinycudann.

Level l has scale s = base_res * growth**l - 1 and ceil(s) + 1 vertices a side; a position x in [0, 1] lies at
x * s + 0.5 in units of its cells.  A level with at most T = 2**log2_table_size vertices is stored densely, x fastest; a
finer one is hashed into T entries.  All nodes share one spec and are stacked, so a table is [M, P, F]: M nodes, P
entries of all levels, F features.  :func:`encode` is the readable twin that every faster backend is tested against.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from inf_nerf.errors import InputError

PRIMES = (1, 2654435761, 805459861)
CORNERS = tuple((corner & 1, corner >> 1 & 1, corner >> 2 & 1) for corner in range(8))


@dataclass(frozen=True)
class GridSpec:
    """Sizes of one node's grid; the settings are tinycudann's, with the growth given by the finest resolution."""

    num_levels: int
    features_per_level: int
    log2_table_size: int
    base_res: int
    max_res: int

    def __post_init__(self) -> None:
        if self.max_res < self.base_res:
            raise InputError(
                f"field.max_res ({self.max_res}) is below field.base_res ({self.base_res}); raise it or lower the base."
            )

    @property
    def growth(self) -> float:
        """Ratio of consecutive resolutions, a float32 number; tinycudann's per_level_scale."""
        steps = self.num_levels - 1
        return float(np.float32(math.exp(math.log(self.max_res / self.base_res) / steps))) if steps else 1.0

    @cached_property
    def scales(self) -> tuple[float, ...]:
        """Cells a side, less one, per level; rounded as tinycudann rounds, in float32 at every operation."""
        log2_growth = np.log2(np.float32(self.growth))
        levels = np.arange(self.num_levels, dtype=np.float32)
        scales = np.exp2(levels * log2_growth) * np.float32(self.base_res) - np.float32(1)
        return tuple(float(scale) for scale in scales)

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Vertices a side per level."""
        return tuple(math.ceil(scale) + 1 for scale in self.scales)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Table entries per level: vertices rounded up to a multiple of 8, at most T."""
        return tuple(min((res**3 + 7) // 8 * 8, 1 << self.log2_table_size) for res in self.resolutions)

    @cached_property
    def hashed(self) -> tuple[bool, ...]:
        """Whether a level has more vertices than entries."""
        return tuple(res**3 > size for res, size in zip(self.resolutions, self.sizes, strict=True))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First entry of each level, then the total."""
        return tuple(sum(self.sizes[:level]) for level in range(self.num_levels + 1))

    @property
    def num_entries(self) -> int:
        """P: entries of all levels of one node."""
        return self.offsets[-1]

    @property
    def num_features(self) -> int:
        """Width of an encoded position."""
        return self.num_levels * self.features_per_level


def corners_of(
    spec: GridSpec,
    level: int,
    xyz: Tensor,  # [Q, 3] in [0, 1]
) -> tuple[Tensor, Tensor, Tensor]:  # [Q, 8, 3] int64, [Q, 8], [Q, 8] int64
    """The vertices around each position on one level, how much each counts there, and its entry of that level."""
    corners = torch.tensor(CORNERS, device=xyz.device)  # [8, 3]
    position = xyz * spec.scales[level] + 0.5  # [Q, 3]
    cell = position.floor()
    fraction = (position - cell)[:, None, :]  # [Q, 1, 3]
    weight = torch.where(corners == 1, fraction, 1 - fraction).prod(-1)  # [Q, 8]
    vertex = cell.long()[:, None, :] + corners  # [Q, 8, 3]
    if spec.hashed[level]:
        x, y, z = (vertex[..., axis] * PRIMES[axis] for axis in range(3))
        return vertex, weight, (x ^ y ^ z) & (spec.sizes[level] - 1)
    res = spec.resolutions[level]
    return vertex, weight, (vertex[..., 0] + res * (vertex[..., 1] + res * vertex[..., 2])) % spec.sizes[level]


def encode(
    spec: GridSpec,
    table: Tensor,  # [M, P, F]
    xyz: Tensor,  # [Q, 3] in [0, 1]
    node: Tensor,  # [Q] int64
    known: Tensor | None = None,  # [Q, L * F] what this function gave before for the same table
) -> Tensor:  # [Q, L * F], level-major
    """Interpolate every level of each position's own node; ordinary autograd, any float type, any device.

    With ``known`` features other backends only record the gradient; here autograd has to see the computation again.
    Positions outside the cube read its border.  The gradient of ``table`` is dense.
    """
    entries = table.reshape(-1, spec.features_per_level)  # [M * P, F]
    xyz = xyz.clamp(0, 1)
    features = []
    for level in range(spec.num_levels):
        _, weight, index = corners_of(spec, level, xyz)
        row = index + (node * spec.num_entries + spec.offsets[level])[:, None]  # [Q, 8]
        features.append((entries[row] * weight[..., None]).sum(1))  # [Q, F]
    return torch.cat(features, dim=-1)
