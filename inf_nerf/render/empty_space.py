"""Coarse occupancy of the whole root cube, for skipping empty space before samples are routed.

A sample's own grid is known only after routing, and routing every candidate is what skipping wants to avoid.  So the
nodes' grids are merged into one scene grid and a pyramid of it: a cell is occupied if any node, coarse or fine, has
something there.  Each pyramid level is widened by one cell; an interval no longer than a cell is then covered by the
one cell around its middle.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from inf_nerf.field.occupancy import Cells
from inf_nerf.octree.topology import Octree

FINEST = 128  # scene cells per side at the finest pyramid level
COARSEST = 4


class EmptySpace:
    """Pyramid of scene grids, finest first: [S, S, S] bool with S = 128, 64, ..., 4."""

    def __init__(self, octree: Octree, cells: Cells) -> None:
        scene = torch.zeros(FINEST, FINEST, FINEST, dtype=torch.bool, device=cells.occupied.device)
        for level in range(octree.num_levels):
            _merge_level(scene, octree, cells, level)
        pyramid = [scene]
        while pyramid[-1].shape[0] > COARSEST:
            pyramid.append(_halved(pyramid[-1]))
        widened = [_widened(grid) for grid in pyramid]
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


def _merge_level(scene: Tensor, octree: Octree, cells: Cells, level: int) -> None:
    """Write the union of one tree level's grids into the scene grid."""
    nodes = torch.nonzero(octree.level == level).squeeze(1)
    g = cells.resolution
    grids = cells.occupied[nodes].view(-1, 1, g, g, g)
    per_node = max(1, FINEST >> level)  # scene cells that a node spans per side
    grids = F.adaptive_max_pool3d(grids.float(), per_node) > 0 if per_node < g else _repeat(grids, per_node)
    corner = ((octree.centre[nodes] - octree.half[nodes, None]) * 0.5 + 0.5) * FINEST
    corner = (corner + 1e-3).long().clamp_(0, FINEST - per_node)
    for (x, y, z), grid in zip(corner.tolist(), grids[:, 0], strict=True):
        scene[x : x + per_node, y : y + per_node, z : z + per_node] |= grid


def _repeat(grids: Tensor, size: int) -> Tensor:
    """Enlarge [n, 1, g, g, g] to ``size`` >= g cells so that an occupied cell covers all it overlaps."""
    g = grids.shape[-1]
    cell = torch.arange(size, device=grids.device)
    first, last = cell * g // size, ((cell + 1) * g - 1) // size  # at most two cells overlap an enlarged one
    for axis in (2, 3, 4):
        grids = grids.index_select(axis, first) | grids.index_select(axis, last)
    return grids


def _halved(grid: Tensor) -> Tensor:
    """A grid [S, S, S] with cells of twice the side."""
    for axis in range(3):
        first, second = grid.unflatten(axis, (-1, 2)).unbind(axis + 1)
        grid = first | second
    return grid


def _widened(grid: Tensor) -> Tensor:
    """A grid [S, S, S] whose occupied cells also occupy their neighbours."""
    for axis in range(3):
        inner, wide = grid.shape[axis] - 1, grid.clone()
        wide.narrow(axis, 1, inner).logical_or_(grid.narrow(axis, 0, inner))
        wide.narrow(axis, 0, inner).logical_or_(grid.narrow(axis, 1, inner))
        grid = wide
    return grid
