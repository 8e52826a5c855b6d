"""Coarse occupancy of the whole root cube, for skipping empty space before samples are routed.

A sample's own grid is known only after routing, and routing every candidate is what skipping wants to avoid.  So the
nodes' grids are merged into one scene grid and a pyramid of it: a cell is occupied if any node, coarse or fine, has
something there.  Each pyramid level is widened by one cell; an interval no longer than a cell is then covered by the
one cell around its middle.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from inf_nerf.field.occupancy import Occupancy
from inf_nerf.octree.topology import Octree

FINEST = 128  # scene cells per side at the finest pyramid level
COARSEST = 4


class EmptySpace:
    """Pyramid of scene grids, finest first: [S, S, S] bool with S = 128, 64, ..., 4."""

    def __init__(self, octree: Octree, occupancy: Occupancy) -> None:
        scene = torch.zeros(FINEST, FINEST, FINEST, device=occupancy.density.device)
        for level in range(octree.num_levels):
            _merge_level(scene, octree, occupancy, level)
        pyramid = [scene[None, None]]
        while pyramid[-1].shape[-1] > COARSEST:
            pyramid.append(F.max_pool3d(pyramid[-1], 2))
        widened = [F.max_pool3d(grid, 3, stride=1, padding=1) > 0 for grid in pyramid]
        self._flat = torch.cat([grid.view(-1) for grid in widened])
        sizes = torch.tensor([grid.shape[-1] for grid in widened], device=scene.device)
        self._sizes = sizes
        self._starts = torch.cumsum(sizes**3, 0) - sizes**3

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """All grids one after the other, x slowest; the cells per side [K] of each; where each starts [K]."""
        return self._flat, self._sizes, self._starts

    def may_hold(self, middle: Tensor, length: Tensor) -> Tensor:
        """Whether intervals around ``middle`` [Q, 3] of ``length`` [Q] (scene units) may hold anything; bool [Q]."""
        # the finest grid whose cells (side 2 / S) are at least as long as the interval
        mip = torch.ceil(torch.log2(length * (FINEST / 2))).clamp_(0, len(self._sizes) - 1).long()
        size = self._sizes[mip]
        cell = ((middle * 0.5 + 0.5) * size[:, None]).long()
        cell = torch.minimum(cell.clamp_min_(0), size[:, None] - 1)
        held = self._flat[self._starts[mip] + (cell[:, 0] * size + cell[:, 1]) * size + cell[:, 2]]
        return held | (length > 4 / COARSEST)  # longer than what a widened cell is sure to cover around the middle


def _merge_level(scene: Tensor, octree: Octree, occupancy: Occupancy, level: int) -> None:
    """Write the union of one tree level's grids into the scene grid."""
    nodes = torch.nonzero(octree.level == level).squeeze(1)
    g = occupancy.resolution
    grids = occupancy.occupied[nodes].view(-1, 1, g, g, g).float()
    per_node = max(1, FINEST >> level)  # scene cells that a node spans per side
    grids = F.adaptive_max_pool3d(grids, per_node) if per_node < g else _repeat(grids, per_node)
    corner = ((octree.centre[nodes] - octree.half[nodes, None]) * 0.5 + 0.5) * FINEST
    corner = (corner + 1e-3).long().clamp_(0, FINEST - per_node)
    for (x, y, z), grid in zip(corner.tolist(), grids[:, 0], strict=True):
        block = scene[x : x + per_node, y : y + per_node, z : z + per_node]
        torch.maximum(block, grid, out=block)


def _repeat(grids: Tensor, size: int) -> Tensor:
    """Enlarge [n, 1, g, g, g] to ``size`` >= g cells so that an occupied cell covers all it overlaps."""
    g = grids.shape[-1]
    cell = torch.arange(size, device=grids.device)
    first, last = cell * g // size, ((cell + 1) * g - 1) // size  # at most two cells overlap an enlarged one
    for axis in (2, 3, 4):
        grids = torch.maximum(grids.index_select(axis, first), grids.index_select(axis, last))
    return grids
