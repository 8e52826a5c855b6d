"""Export a point cloud: what the training photos see, averaged in cells of the gsd, block by block."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inf_nerf.export.cloud import Cells, Grid, blocks, colours, merged
from inf_nerf.export.optional import needed_for
from inf_nerf.export.placement import Placement
from inf_nerf.export.point_files import point_writer
from inf_nerf.export.unfinished import Progress, no_progress

Array = NDArray[np.float64]

AT_ONCE = 2_000_000  # cells of photos that are merged at once, which bounds memory


@dataclass(frozen=True)
class PointFigures:
    """What was written."""

    num_points: int
    low: list[float]  # [3] least coordinates, as written
    high: list[float]  # [3]
    references: int  # sparse points that the written ones were compared with
    median_distance: float | None  # of these to the nearest written point, in the unit of the coordinates


def write_points(
    parts: Sequence[Cells],
    grid: Grid,
    placement: Placement,
    out: Path,
    references: Array,  # [Q, 3] scene positions of sparse points for comparison
    progress: Progress = no_progress,
    at_once: int = AT_ONCE,
) -> PointFigures:
    """Write the cells of all parts as points into ``out``, by its suffix a PLY, LAS or LAZ file.

    What is written does not depend on ``at_once``.  A distance is to the nearest point of the same block.
    """
    ranges = list(blocks(parts, grid.bits, at_once))
    middle = placement.from_scene(np.zeros((1, 3)))[0]
    low, high, count = np.full(3, np.inf), np.full(3, -np.inf), 0
    where = grid.cells(references, np.zeros_like(references))
    nearest: list[Array] = []
    with point_writer(out, grid.side * placement.scale, middle, placement.crs) as take:
        for done, (first, last) in enumerate(ranges):
            progress("blocks", done, len(ranges))
            cells = merged(parts, first, last)
            xyz = grid.positions(cells)
            if len(asked := merged([where], first, last)):
                nearest.append(_distances(xyz, grid.positions(asked)))
            there = placement.from_scene(xyz)
            take(there, np.rint(colours(cells) * 255).astype(np.uint8))
            low, high, count = np.minimum(low, there.min(axis=0)), np.maximum(high, there.max(axis=0)), count + len(xyz)
    progress("blocks", len(ranges), len(ranges))
    away = np.concatenate(nearest) if nearest else np.zeros(0)
    median = float(np.median(away)) * placement.scale if len(away) else None
    bounds = ([], []) if count == 0 else (low.tolist(), high.tolist())
    return PointFigures(count, *bounds, len(away), median)


def _distances(points: Array, references: Array) -> Array:
    with needed_for("The comparison with sparse points"):
        from scipy.spatial import KDTree
    return KDTree(points).query(references)[0]
