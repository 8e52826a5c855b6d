"""The scene from above, as its sparse points know it: how often each place was seen, and how finely.

P points, B cells along a side.  A cell shows the median over the points in it.
"""

import math
from dataclasses import dataclass

import matplotlib
import numpy as np
from numpy.typing import NDArray

from inf_nerf.render.colourmap import Picture
from inf_nerf.scene.scene import Scene

CELLS = 60
PIXELS = 8  # of a cell's side
EMPTY = (238, 238, 234)
CAMERA = (20, 20, 20)
COLOURS = "viridis"


@dataclass(frozen=True)
class GroundMap:
    """A picture of the root cube from above, north (y) up, and what its colours mean."""

    picture: Picture  # [h, w, 3]
    low: float  # value of the darkest colour
    median: float
    high: float  # value of the brightest one


def coverage_map(scene: Scene) -> GroundMap | None:
    """Photos that saw a point; None without points in the cube, or where the input knew no observations."""
    observations = np.diff(scene.points.track_start.numpy())
    return _map(scene, observations.astype(np.float64)) if observations.any() else None


def gsd_map(scene: Scene) -> GroundMap | None:
    """Finest footprint of a photo's pixel on a point, in units of the input, on a logarithmic scale."""
    return _map(scene, scene.points.footprint.double().numpy() / scene.frame.scale, logarithmic=True)


def cell_medians(xy: NDArray[np.float64], values: NDArray[np.float64], cells: int = CELLS) -> NDArray[np.float64]:
    """Median [B, B] of the ``values`` [P] at places [P, 2] in [-1, 1] of each cell, rows by y; NaN where there is
    none."""
    place = np.clip(((xy + 1) / 2 * cells).astype(np.int64), 0, cells - 1)
    cell = place[:, 1] * cells + place[:, 0]
    order = np.lexsort((values, cell))
    cell, values = cell[order], values[order]
    found, first, count = np.unique(cell, return_index=True, return_counts=True)
    middle = (values[first + (count - 1) // 2] + values[first + count // 2]) / 2
    result = np.full(cells * cells, np.nan)
    result[found] = middle
    return result.reshape(cells, cells)


def _map(scene: Scene, values: NDArray[np.float64], logarithmic: bool = False) -> GroundMap | None:
    xyz = scene.points.xyz.double().numpy()
    inside = (np.abs(xyz) <= 1).all(axis=1) & np.isfinite(values)
    if not inside.any():
        return None
    medians = cell_medians(xyz[inside, :2], values[inside])
    known = ~np.isnan(medians)
    low, high = np.percentile(medians[known], (2, 98))
    scaled = [np.log(np.maximum(part, 1e-300)) if logarithmic else part for part in (medians, low, high)]
    part = (scaled[0] - scaled[1]) / max(float(scaled[2] - scaled[1]), 1e-12)
    colour = matplotlib.colormaps[COLOURS](np.clip(np.nan_to_num(part), 0, 1))[..., :3]
    cells = np.where(known[..., None], np.rint(colour * 255), EMPTY).astype(np.uint8)
    picture = cells[::-1].repeat(PIXELS, axis=0).repeat(PIXELS, axis=1)
    _mark_cameras(picture, scene)
    return GroundMap(picture, float(low), float(np.median(values[inside])), float(high))


def _mark_cameras(picture: Picture, scene: Scene) -> None:
    """A dot where each photo was taken, if that is above the cube."""
    side = len(picture)
    for x, y in scene.cameras.centre[:, :2].tolist():
        column, row = math.floor((x + 1) / 2 * side), math.floor((1 - y) / 2 * side)
        if 0 <= column < side and 0 <= row < side:
            picture[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = CAMERA
