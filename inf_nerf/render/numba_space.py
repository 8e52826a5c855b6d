"""Where a ray stands, as pieces of compiled loops: which node answers, and whether anything may be there.

The rules are those of :mod:`inf_nerf.octree.routing`, :class:`inf_nerf.render.empty_space.EmptySpace` and
:class:`inf_nerf.field.occupancy.Cells`, one position at a time.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from inf_nerf.field.occupancy import Cells
from inf_nerf.octree.topology import FOREIGN, Octree
from inf_nerf.render.empty_space import COARSEST, EmptySpace


class Tree(NamedTuple):
    """What routing reads."""

    children: np.ndarray
    parent: np.ndarray
    level: np.ndarray
    centre: np.ndarray
    half: np.ndarray
    gsd: np.ndarray

    @staticmethod
    def of(octree: Octree) -> "Tree":
        return Tree(*(getattr(octree, name).numpy() for name in Tree._fields))


class Grids(NamedTuple):
    """What is known to be empty: cells of nodes, and the pyramid of the whole cube."""

    resolution: int
    occupied: np.ndarray
    pyramid: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray

    @staticmethod
    def of(cells: Cells, empty_space: EmptySpace) -> "Grids":
        occupied = cells.occupied.numpy().reshape(cells.num_nodes, -1)
        return Grids(cells.resolution, occupied, *(table.numpy() for table in empty_space.tables))


@njit(inline="always")
def may_hold(x, y, z, length, mip, grids):
    """:meth:`EmptySpace.may_hold` of one interval."""
    if length > np.float32(4 / COARSEST):
        return True
    size = grids.sizes[mip]
    i, j, k = _cell(x, size), _cell(y, size), _cell(z, size)
    return grids.pyramid[grids.starts[mip] + (i * size + j) * size + k]


@njit(inline="always")
def _cell(x, size):
    """Cell of a coordinate in [-1, 1] among ``size``."""
    cell = int((x * np.float32(0.5) + np.float32(0.5)) * np.float32(size))
    return min(max(cell, 0), size - 1)


@njit(inline="always")
def _child(x, y, z, node, tree):
    """The child in whose octant a position lies."""
    centre = tree.centre
    return tree.children[node, 4 * (x >= centre[node, 0]) + 2 * (y >= centre[node, 1]) + (z >= centre[node, 2])]


@njit(inline="always")
def route(x, y, z, footprint, before, tree):
    """The node that answers, and whether it stands in for one of another rank.

    ``before`` is the node of the step before, or -1: it mostly answers again, which is quick to see.
    """
    node = 0
    if before > 0 and footprint < np.float32(2) * tree.gsd[before]:
        half, centre = tree.half[before], tree.centre
        dx, dy, dz = x - centre[before, 0], y - centre[before, 1], z - centre[before, 2]
        if dx >= -half and dx < half and dy >= -half and dy < half and dz >= -half and dz < half:
            node = before
    while footprint < tree.gsd[node]:
        child = _child(x, y, z, node, tree)
        if child < 0:
            return node, child == FOREIGN
        node = child
    return node, False


@njit(inline="always")
def neighbour(x, y, z, footprint, node, width, tree):
    """:func:`inf_nerf.octree.routing.blend_neighbour` of one sample: the second node, and its weight."""
    octaves = np.log2(footprint / tree.gsd[node])
    half = np.float32(0.5)
    if octaves >= 0 and octaves < half * width:
        child = _child(x, y, z, node, tree)
        if child >= 0:
            return child, min(max(half - octaves / width, np.float32(0)), half)
    elif octaves > 1 - half * width and octaves <= 1 and node > 0:
        return tree.parent[node], min(max(half + (octaves - 1) / width, np.float32(0)), half)
    return node, np.float32(0)


@njit(inline="always")
def local(x, y, z, node, tree):
    """A scene position in a node's own [0, 1]; a side is a power of two, so that dividing by it is exact."""
    centre, scale = tree.centre, np.float32(0.5) / tree.half[node]
    half = np.float32(0.5)
    return (
        (x - centre[node, 0]) * scale + half,
        (y - centre[node, 1]) * scale + half,
        (z - centre[node, 2]) * scale + half,
    )


@njit(inline="always")
def is_occupied(x, y, z, node, grids):
    """Whether something may be at a local position in a node."""
    size = grids.resolution
    i, j, k = _local_cell(x, size), _local_cell(y, size), _local_cell(z, size)
    return grids.occupied[node, (i * size + j) * size + k]


@njit(inline="always")
def _local_cell(x, resolution):
    cell = int(x * np.float32(resolution))
    return min(max(cell, 0), resolution - 1)
