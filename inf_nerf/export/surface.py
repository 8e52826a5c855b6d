"""The surface that the training photos see, as coloured points in cells: one array of cells a photo.

A pixel's point is where light ends on the average, without what of it ends beyond the cube.  Pixels that are not
opaque have none, nor have those on the edge of something nearer, whose average lies in the air between.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inf_nerf.export.cloud import Cells, Grid, reduced
from inf_nerf.export.placement import CropBox
from inf_nerf.export.unfinished import Progress, Unfinished
from inf_nerf.render.images import Crop, PartRenderer, RayRenderer, RenderedImage, render_image
from inf_nerf.render.sampling import cube_span
from inf_nerf.scene.cameras import Cameras

Array = NDArray[np.float64]

OPAQUE = 0.9  # least opacity of a pixel that becomes a point
EDGE = 10.0  # footprints between the nearest and the farthest of a pixel's neighbours, from which on it is an edge
PREVIEW = 24  # least pixels along the shorter side of the picture that finds out how far away things are
BAND = 1 << 19  # pixels rendered and kept at once


@dataclass(frozen=True)
class Rendering:
    """A model and how it is asked."""

    model: Any  # RayRenderer or PartRenderer
    rays_per_chunk: int
    workers: int
    near: float  # scene units: `sampler.near`

    def picture(self, cameras: Cameras, photo: int, level: int, crop: Crop) -> RenderedImage:
        """A part of a picture with the mean appearance."""
        model: RayRenderer | PartRenderer = self.model
        return render_image(
            model, cameras, photo, level, rays_per_chunk=self.rays_per_chunk, crop=crop, workers=self.workers
        )


def surface_parts(
    rendering: Rendering,
    cameras: Cameras,
    photos: Sequence[int],
    grid: Grid,
    crop: CropBox | None,
    unfinished: Unfinished,
    progress: Progress,
) -> list[Cells]:
    """Cells of every photo, on disk; those that are there already are not made again."""
    names = [f"photos/{photo:06d}.npy" for photo in photos]
    for done, (photo, name) in enumerate(zip(photos, names, strict=True)):
        progress("photos", done, len(photos))
        if not unfinished.has(name):
            unfinished.save(name, photo_cells(rendering, cameras, photo, grid, crop))
    progress("photos", len(photos), len(photos))
    return [unfinished.load(name) for name in names]


@dataclass(frozen=True)
class Sight:
    """The part of a photo's picture that is rendered, and in which pixels."""

    level: int
    window: Crop  # pixels of the level

    @property
    def bands(self) -> Iterator[Crop]:
        """Its rows, some at a time, from the top."""
        rows = max(1, BAND // self.window.width)
        for top in range(self.window.top, self.window.bottom, rows):
            yield replace(self.window, top=top, bottom=min(self.window.bottom, top + rows))


def sight_of(rendering: Rendering, cameras: Cameras, photo: int, side: float, crop: CropBox | None) -> Sight | None:
    """Where a photo sees something opaque in the crop, in pixels that are no larger than ``side`` at the median
    distance or nearer; None if it does not."""
    preview = max(0, min(cameras.level_size(photo, 0)).bit_length() - PREVIEW.bit_length())
    width, height = cameras.level_size(photo, preview)
    points = Pixels.of(rendering, cameras, photo, preview, Crop(0, 0, width, height), Crop(0, 0, width, height))
    wanted = points.opaque & (crop.holds(points.xyz, 2 * float(points.footprint.max())) if crop else True)
    if not wanted.any():
        return None
    finest = float(np.median(points.footprint[wanted])) / 2**preview
    level = max(0, min(preview, int(np.floor(np.log2(side / finest)))))
    return Sight(level, _window(wanted.reshape(height, width), cameras.level_size(photo, level)))


def photo_cells(rendering: Rendering, cameras: Cameras, photo: int, grid: Grid, crop: CropBox | None) -> Cells:
    """What one photo sees."""
    sight = sight_of(rendering, cameras, photo, grid.side, crop)
    if sight is None:
        return reduced([])
    found = []
    for band in sight.bands:
        points = Pixels.of(rendering, cameras, photo, sight.level, band, sight.window)
        kept = points.surface & crop.holds(points.xyz) if crop else points.surface
        found.append(grid.cells(points.xyz[kept], points.rgb[kept]))
    return reduced(found)


@dataclass(frozen=True)
class Pixels:
    """What P pixels of a picture see."""

    xyz: Array  # [P, 3] scene positions
    rgb: Array  # [P, 3] in [0, 1]
    footprint: Array  # [P] scene units
    opaque: NDArray[np.bool_]  # [P]
    edge: NDArray[np.bool_]  # [P]

    @property
    def surface(self) -> NDArray[np.bool_]:
        """Whether there is a surface in the root cube that is not the edge of something nearer [P]."""
        return self.opaque & ~self.edge & (np.abs(self.xyz) <= 1).all(axis=1)

    @staticmethod
    def of(rendering: Rendering, cameras: Cameras, photo: int, level: int, crop: Crop, within: Crop) -> "Pixels":
        """Pixels of ``crop``, rendered with a row more on either side, where ``within`` has it, to find edges."""
        wide = Crop(crop.left, max(within.top, crop.top - 1), crop.right, min(within.bottom, crop.bottom + 1))
        seen = rendering.picture(cameras, photo, level, wide)
        rays = cameras.image_rays(photo, level, slice(wide.top, wide.bottom))
        across = torch.arange(len(rays)).view(wide.height, -1)[:, wide.left : wide.right].flatten()
        rays = rays[across]
        opacity = seen.opacity.flatten().double()
        _, leave = cube_span(rays, rendering.near)
        beyond = (1 - opacity) * leave.double().clamp_min(0)
        distance = (seen.depth.flatten().double() - beyond) / opacity.clamp_min(1e-6)
        footprint = distance * rays.radius.double()
        edge = _range(distance.view(wide.height, wide.width)).flatten() > EDGE * footprint
        xyz = rays.origin.double() + distance[:, None] * rays.direction.double()
        own = slice((crop.top - wide.top) * wide.width, (crop.bottom - wide.top) * wide.width)
        values = (xyz, seen.rgb.view(-1, 3).double(), footprint, opacity >= OPAQUE, edge)
        return Pixels(*(value[own].numpy() for value in values))


def _range(distance: Tensor) -> Tensor:
    """Farthest minus nearest [h, w] of a pixel and its eight neighbours."""
    padded = torch.nn.functional.pad(distance[None, None], (1, 1, 1, 1), mode="replicate")
    pool = torch.nn.functional.max_pool2d
    return (pool(padded, 3, 1) + pool(-padded, 3, 1))[0, 0]


def _window(wanted: NDArray[np.bool_], size: tuple[int, int]) -> Crop:
    """The rectangle of a picture of ``size`` that holds what is wanted in its preview [h, w], and a pixel around."""
    height, width = wanted.shape
    y, x = np.flatnonzero(wanted.any(axis=1)), np.flatnonzero(wanted.any(axis=0))
    return Crop(
        max(0, (int(x[0]) - 1) * size[0] // width),
        max(0, (int(y[0]) - 1) * size[1] // height),
        min(size[0], -(-(int(x[-1]) + 2) * size[0] // width)),
        min(size[1], -(-(int(y[-1]) + 2) * size[1] // height)),
    )
