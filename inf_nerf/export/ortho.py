"""Export an orthophoto: the scene straight from above, every pixel of the same size on the ground.

All rays are parallel and start so far above the cube that their footprint, which grows with the distance, is nearly the
same at its top and at its bottom: the octree level that answers does not depend on the height of the ground.  Tiles are
rendered one by one and kept on disk, so neither the size of the picture nor an interruption costs memory or work.

Letters: H, W: height and width in pixels; T: side of a tile.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from inf_nerf.errors import InputError
from inf_nerf.export.placement import CORNERS, CropBox, Placement
from inf_nerf.export.raster_files import (
    SUFFIXES,
    WORLD_SUFFIXES,
    Pixels,
    epsg_code,
    geo_tags,
    world_file,
    write_png,
    write_tiff,
)
from inf_nerf.export.surface import Rendering
from inf_nerf.export.unfinished import Progress, Unfinished, no_progress
from inf_nerf.files import write_atomic
from inf_nerf.octree.topology import Octree
from inf_nerf.render.parallel import ordered_map
from inf_nerf.render.stored_model import BLOCK, StoredModel
from inf_nerf.scene.cameras import Rays

Array = NDArray[np.float64]

TILE = 256  # pixels
OPAQUE = 0.5  # least opacity of a pixel that is not left transparent
FARTHEST = 64.0  # scene units between the start of the rays and the top of the cube
NEAREST = 4.0
ROUNDING = 2.0**-17  # of a distance, from step to step: smaller than a footprint if the rays start near enough
ABOVE = 1 + 1e-4  # factor on footprints, lest rounding take the first sample to the next finer level
BAND = 16  # rows of a PNG that are put together at once


@dataclass(frozen=True)
class MapGrid:
    """The pixels of an orthophoto; coordinates of `Placement.map_from_scene`."""

    left: float  # of the first pixel's outer edge
    top: float
    gsd: float  # side of a pixel, in the unit of exports
    width: int
    height: int
    floor: float  # heights between which the cube lies
    ceiling: float

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """Row and column of every tile, row by row."""
        return [(row, column) for row in range(-(-self.height // TILE)) for column in range(-(-self.width // TILE))]

    @staticmethod
    def over(placement: Placement, gsd: float, low: Array, high: Array, crop: CropBox | None) -> "MapGrid":
        """The pixels that cover what is between ``low`` and ``high`` [3] of the scene frame, or the crop; the edges of
        pixels are multiples of ``gsd``, so that pictures of neighbouring crops fit together."""
        cube = placement.map_from_scene(2 * CORNERS - 1)
        corners = placement.map_from_scene(crop.corners if crop else low + CORNERS * (high - low))
        first, last = np.floor(corners.min(axis=0) / gsd), np.ceil(corners.max(axis=0) / gsd)
        width, height = (last - first)[:2].astype(int).tolist()
        left, top = float(first[0] * gsd), float(last[1] * gsd)
        return MapGrid(left, top, gsd, width, height, float(cube[:, 2].min()), float(cube[:, 2].max()))


def write_ortho(
    rendering: Rendering,
    octree: Octree,
    footprint_px: float,
    placement: Placement,
    grid: MapGrid,
    out: Path,
    unfinished: Unfinished,
    progress: Progress = no_progress,
) -> None:
    """Render the tiles that are not there yet and write ``out`` and its world file; a TIFF gets the keys of a GeoTIFF
    where the projected system is known."""
    if out.suffix not in SUFFIXES:
        raise InputError(f"{out} is no kind of orthophoto that is written; use {', '.join(SUFFIXES)}.")
    geo = out.suffix != ".png" and placement.crs is not None
    tags = geo_tags(grid.left, grid.top, grid.gsd, epsg_code(placement.crs)) if geo and placement.crs else []
    start = distance_above(grid.gsd / placement.scale)
    footprint = settled_footprint(octree, grid.gsd / placement.scale, start, footprint_px)
    for done, (row, column) in enumerate(grid.tiles):
        progress("tiles", done, len(grid.tiles))
        if not unfinished.has(_tile(row, column)):
            rays = map_rays(placement, grid, row, column, start, footprint)
            shape = min(TILE, grid.height - row * TILE), min(TILE, grid.width - column * TILE)
            unfinished.save(_tile(row, column), render_rays(rendering, rays, shape))
    progress("tiles", len(grid.tiles), len(grid.tiles))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.stem}.{os.getpid()}.partial{out.suffix}")
    try:
        if out.suffix == ".png":
            write_png(partial, grid.width, grid.height, _bands(grid, unfinished))
        else:
            write_tiff(partial, grid.width, grid.height, TILE, _filled(grid, unfinished), tags)
        write_atomic(out.with_suffix(WORLD_SUFFIXES[out.suffix]), world_file(grid.left, grid.top, grid.gsd))
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


def distance_above(footprint: float) -> float:
    """How far above the cube rays with a footprint start, scene units: far, but not so far that the rounding of the
    distance is more than the footprint."""
    return min(FARTHEST, max(NEAREST, footprint / ROUNDING))


def settled_footprint(octree: Octree, footprint: float, start: float, footprint_px: float) -> float:
    """The footprint at the top of the cube such that one level answers down to the bottom.

    It grows by about 2 / ``start`` on the way.  If it would pass the gsd of a level there, it starts at that.
    """
    routed = footprint * footprint_px
    passed = [gsd for gsd in octree.gsd.unique().tolist() if routed < gsd <= routed * (1 + 2 * math.sqrt(3) / start)]
    return ABOVE * (max(passed) if passed else routed) / footprint_px


def map_rays(placement: Placement, grid: MapGrid, row: int, column: int, start: float, footprint: float) -> Rays:
    """Rays straight down through the centres of a tile's pixels, row by row."""
    x = grid.left + (np.arange(column * TILE, min(grid.width, (column + 1) * TILE)) + 0.5) * grid.gsd
    y = grid.top - (np.arange(row * TILE, min(grid.height, (row + 1) * TILE)) + 0.5) * grid.gsd
    at = np.stack(np.broadcast_arrays(x[None, :], y[:, None], 0.0), axis=-1).reshape(-1, 3)
    above, below = (placement.map_to_scene(at + np.array([0.0, 0.0, height])) for height in (grid.ceiling, grid.floor))
    down = (below - above) / np.linalg.norm(below - above, axis=1, keepdims=True)
    count = len(at)
    return Rays(
        origin=torch.from_numpy(above - start * down).float(),
        direction=torch.from_numpy(down).float(),
        radius=torch.full((count,), footprint / start),
        photo=torch.full((count,), -1),
    )


def render_rays(rendering: Rendering, rays: Rays, shape: tuple[int, int]) -> Pixels:
    """Pixels [h, w, 4] of rays in row-major order; in parts if a budget does not hold all of their nodes."""
    height, width = shape
    model = rendering.model
    if isinstance(model, StoredModel):
        if max(shape) > BLOCK and not model.fits(rays):
            index = torch.arange(len(rays)).view(shape)
            axis = 0 if height >= width else 1
            halves = index.tensor_split(2, dim=axis)
            seen = [render_rays(rendering, rays[part.flatten()], (part.shape[0], part.shape[1])) for part in halves]
            return np.concatenate(seen, axis=axis)
        model = model.for_rays(rays)

    @torch.no_grad()
    def chunk(first: int) -> Pixels:
        seen = model.render(rays[slice(first, first + rendering.rays_per_chunk)])
        pixels = torch.cat((seen.rgb.clamp(0, 1), (seen.opacity[:, None] >= OPAQUE).float()), dim=1)
        return (pixels * 255).round().byte().cpu().numpy()

    chunks = ordered_map(chunk, range(0, len(rays), rendering.rays_per_chunk), rendering.workers)
    pixels = np.concatenate(list(chunks)).reshape(height, width, 4)
    pixels[pixels[:, :, 3] == 0] = 0
    return pixels


def _tile(row: int, column: int) -> str:
    return f"{row:06d}/{column:06d}.npy"


def _bands(grid: MapGrid, unfinished: Unfinished) -> Iterator[Pixels]:
    """Some rows [h, W, 4] at a time."""
    for top in range(0, grid.height, BAND):
        row, first = divmod(top, TILE)
        columns = range(-(-grid.width // TILE))
        yield np.concatenate([unfinished.load(_tile(row, column))[first : first + BAND] for column in columns], axis=1)


def _filled(grid: MapGrid, unfinished: Unfinished) -> Iterator[Pixels]:
    """Whole tiles [T, T, 4]."""
    for row, column in grid.tiles:
        tile = np.zeros((TILE, TILE, 4), np.uint8)
        there = unfinished.load(_tile(row, column))
        tile[: there.shape[0], : there.shape[1]] = there
        yield tile
