"""Marching on the CPU: one compiled loop over each ray's steps, instead of some sixty passes over all candidates.

Same steps, tests and routing as the torch code in :mod:`inf_nerf.render.sampling`, which is its twin in tests; only
rounding differs, so a sample within rounding of a cell's border may fall to the other side.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from numba import njit
from torch import Tensor

from inf_nerf.field.occupancy import Occupancy
from inf_nerf.octree.topology import FOREIGN, Octree
from inf_nerf.render.empty_space import COARSEST, FINEST, EmptySpace

FIRST_CAPACITY = 32  # samples a ray that room is made for at first


def occupied_steps(
    origin: Tensor,  # [R, 3]
    direction: Tensor,  # [R, 3]
    radius: Tensor,  # [R] footprint per unit distance
    enter: Tensor,  # [R] distances between which a ray is inside the cube
    leave: Tensor,  # [R]
    log_growth: Tensor,  # [R] of the distance from step to step
    phase: Tensor,  # [R] of a step, in [0, 1)
    steps_per_interval: int,
    octree: Octree,
    occupancy: Occupancy,
    empty_space: EmptySpace,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`inf_nerf.render.sampling.occupied_steps`, by as many threads as torch uses."""
    rays = [
        np.ascontiguousarray(value.numpy()) for value in (origin, direction, radius, enter, leave, log_growth, phase)
    ]
    tree = [value.numpy() for value in (octree.children, octree.centre, octree.half, octree.gsd)]
    grids = [occupancy.occupied.numpy().reshape(len(tree[0]), -1), *(g.numpy() for g in empty_space.tables)]
    parts = max(1, min(torch.get_num_threads(), len(origin)))
    bounds = [len(origin) * part // parts for part in range(parts + 1)]
    arguments = (steps_per_interval, occupancy.resolution, *rays, *tree, *grids)
    if parts == 1:
        found = [_march(0, len(origin), *arguments)]
    else:
        with ThreadPoolExecutor(parts) as pool:
            found = [done.result() for done in [pool.submit(_march, *ends, *arguments) for ends in pairwise(bounds)]]
    ray, t, node, foreign = (torch.cat([torch.from_numpy(part[i]) for part in found]) for i in range(4))
    return ray, t, node, foreign


@njit(inline="always")
def _may_hold(x, y, z, length, pyramid, sizes, starts):
    """:meth:`EmptySpace.may_hold` of one interval."""
    if length > np.float32(4 / COARSEST):
        return True
    mip = int(np.ceil(np.log2(length * np.float32(FINEST / 2))))
    mip = min(max(mip, 0), len(sizes) - 1)
    size = sizes[mip]
    i, j, k = _cell(x, size), _cell(y, size), _cell(z, size)
    return pyramid[starts[mip] + (i * size + j) * size + k]


@njit(inline="always")
def _cell(x, size):
    """Cell of a coordinate in [-1, 1] among ``size``."""
    cell = int((x * np.float32(0.5) + np.float32(0.5)) * np.float32(size))
    return min(max(cell, 0), size - 1)


@njit(inline="always")
def _route(x, y, z, footprint, children, centre, gsd):
    """The node that answers, and whether it stands in for one of another rank."""
    node = 0
    while footprint < gsd[node]:
        octant = 4 * (x >= centre[node, 0]) + 2 * (y >= centre[node, 1]) + (z >= centre[node, 2])
        child = children[node, octant]
        if child < 0:
            return node, child == FOREIGN
        node = child
    return node, False


@njit(inline="always")
def _is_occupied(x, y, z, node, centre, half, resolution, occupied):
    side = np.float32(2) * half[node]
    i = _local_cell((x - centre[node, 0]) / side, resolution)
    j = _local_cell((y - centre[node, 1]) / side, resolution)
    k = _local_cell((z - centre[node, 2]) / side, resolution)
    return occupied[node, (i * resolution + j) * resolution + k]


@njit(inline="always")
def _local_cell(x, resolution):
    cell = int((x + np.float32(0.5)) * np.float32(resolution))
    return min(max(cell, 0), resolution - 1)


@njit
def _grown(array, count, room):
    larger = np.empty(room, array.dtype)
    larger[:count] = array[:count]
    return larger


@njit(nogil=True, cache=True)
def _march(
    first, last, steps, resolution, origin, direction, radius, enter, leave, log_growth, phase,
    children, centre, half, gsd, occupied, pyramid, sizes, starts,
):  # fmt: skip
    """Steps of rays first to last that lie in occupied cells."""
    room = max(1, (last - first) * FIRST_CAPACITY)
    ray, t = np.empty(room, np.int64), np.empty(room, np.float32)
    node, foreign = np.empty(room, np.int64), np.empty(room, np.bool_)
    count = 0
    for r in range(first, last):
        log_interval = log_growth[r] * np.float32(steps)
        growth = np.exp(log_growth[r])
        start_share, interval_share = np.exp(log_growth[r] * phase[r]), np.expm1(log_interval)
        num_intervals = max(1, int(np.ceil(np.log(leave[r] / enter[r]) / log_interval)))
        if count + num_intervals * steps > room:  # as much room as this ray can need
            grown = 2 * room + num_intervals * steps
            ray, t = _grown(ray, count, grown), _grown(t, count, grown)
            node, foreign = _grown(node, count, grown), _grown(foreign, count, grown)
            room = grown
        for interval in range(num_intervals):
            begin = enter[r] * np.exp(log_interval * np.float32(interval))
            length = begin * interval_share
            middle = begin + np.float32(0.5) * length
            x = origin[r, 0] + direction[r, 0] * middle
            y = origin[r, 1] + direction[r, 1] * middle
            z = origin[r, 2] + direction[r, 2] * middle
            if not _may_hold(x, y, z, length, pyramid, sizes, starts):
                continue
            distance = begin * start_share
            for _ in range(steps):
                if distance >= leave[r]:
                    break
                x = origin[r, 0] + direction[r, 0] * distance
                y = origin[r, 1] + direction[r, 1] * distance
                z = origin[r, 2] + direction[r, 2] * distance
                at, stands_in = _route(x, y, z, distance * radius[r], children, centre, gsd)
                if _is_occupied(x, y, z, at, centre, half, resolution, occupied):
                    ray[count], t[count], node[count], foreign[count] = r, distance, at, stands_in
                    count += 1
                distance *= growth
    return ray[:count], t[:count], node[:count], foreign[:count]
