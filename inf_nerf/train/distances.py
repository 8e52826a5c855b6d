"""Held-out photos by distance: scores of what is near and far, and how far depths are off sparse points.

Bands are octaves of the expected distance along a pixel's ray in the scene frame.  The points are those that structure
from motion saw in a test photo: the photo was not trained on, though most of its points also lie on rays of training
photos.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inf_nerf.render.images import RenderedImage
from inf_nerf.scene.scene import Scene
from inf_nerf.train.metrics import ScoreMaps, psnr
from inf_nerf.train.seams import SURFACE

FIRST, BANDS = -10, 20  # bands reach from 2^-10 half sides of the root cube to 2^10
SUMS = ("pixels", "squared_error", "corrected", "ssim", "lpips")
MOST_POINTS = 2000  # of one photo, evenly taken: bounds the memory of many photos


@dataclass(frozen=True)
class BandSums:
    """Sums over the pixels of each band that see a surface."""

    values: Tensor = field(default_factory=lambda: torch.zeros(BANDS, len(SUMS), dtype=torch.float64))

    def __add__(self, other: "BandSums") -> "BandSums":
        return BandSums(self.values + other.values)

    def figures(self) -> list[dict[str, Any]]:
        """The bands that hold a pixel, near ones first; ``lpips`` is None where there was no network for it."""
        total = float(self.values[:, 0].sum())
        found = []
        for band, row in enumerate(self.values.tolist()):
            pixels, squared, corrected, ssim, lpips = row
            if pixels:
                found.append(
                    {
                        "from": 2.0 ** (FIRST + band),
                        "to": 2.0 ** (FIRST + band + 1),
                        "share": pixels / total,
                        "psnr": psnr(squared / pixels),
                        "psnr_corrected": psnr(corrected / pixels),
                        "ssim": ssim / pixels,
                        "lpips": lpips / pixels if lpips == lpips else None,
                    }
                )
        return found


def band_sums(
    rendered: RenderedImage,
    maps: ScoreMaps,
    corrected: Tensor,  # [h, w] squared error after the colour correction
    counted: Tensor,  # [h, w] bool
) -> BandSums:
    """The bands of one picture."""
    surface = (rendered.opacity > SURFACE) & counted & (rendered.depth > 0)
    band = (rendered.depth[surface].double().log2().floor() - FIRST).clamp(0, BANDS - 1).long()
    lpips = maps.lpips if maps.lpips is not None else torch.full_like(rendered.depth, torch.nan)
    rows = (torch.ones_like(corrected), maps.squared_error, corrected, maps.ssim, lpips)
    values = torch.zeros(BANDS, len(SUMS), dtype=torch.float64)
    return BandSums(values.index_add_(0, band, torch.stack([row[surface].double() for row in rows], dim=1)))


@dataclass(frozen=True)
class DepthErrors:
    """Expected distances at pixels against the distances of the sparse points seen there; Q observations."""

    relative: Tensor = field(default_factory=lambda: torch.zeros(0))  # [Q] of the point's distance
    in_pixels: Tensor = field(default_factory=lambda: torch.zeros(0))  # [Q] of the pixel's side at the point
    opaque: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))  # [Q]
    trained: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))  # [Q] on a training photo as well

    def __add__(self, other: "DepthErrors") -> "DepthErrors":
        return DepthErrors(
            torch.cat((self.relative, other.relative)),
            torch.cat((self.in_pixels, other.in_pixels)),
            torch.cat((self.opaque, other.opaque)),
            torch.cat((self.trained, other.trained)),
        )

    def figures(self) -> dict[str, Any]:
        """Of all observations, and under ``unseen`` of those whose points no training photo shows."""
        found = self._of(torch.ones_like(self.opaque))
        return found | {"unseen": self._of(~self.trained)} if bool((~self.trained).any()) else found

    def _of(self, which: Tensor) -> dict[str, Any]:
        count = int(which.sum())
        if not count:
            return {"observations": 0}
        relative, in_pixels = self.relative[which].numpy(), self.in_pixels[which].numpy()
        return {
            "observations": count,
            "median": float(np.quantile(relative, 0.5)),
            "p90": float(np.quantile(relative, 0.9)),
            "median_px": float(np.quantile(in_pixels, 0.5)),
            "opaque": float(self.opaque[which].double().mean()),
        }


class PointsOfPhotos:
    """The sparse points that structure from motion saw in test photos."""

    def __init__(self, scene: Scene) -> None:
        points = scene.points
        is_test, is_train = (torch.zeros(len(scene.photos), dtype=torch.bool) for _ in range(2))
        is_test[torch.tensor(scene.test, dtype=torch.int64)] = True
        is_train[torch.tensor(scene.train, dtype=torch.int64)] = True
        self._scene = scene
        point_of = points.track_point
        self._trained = torch.zeros(len(points), dtype=torch.bool)  # [P]
        self._trained[point_of[is_train[points.track_photo]]] = True
        usable = is_test[points.track_photo] & points.in_cube[point_of]
        which = torch.nonzero(usable).squeeze(1)
        photo, order = torch.sort(points.track_photo[which], stable=True)
        self._photo, self._which, self._point = photo, which[order], point_of[which[order]]

    def errors(self, photo: int, rendered: RenderedImage) -> DepthErrors:
        """How far the depths of the whole level-0 picture of ``photo`` are off its points."""
        wanted = torch.tensor([photo, photo + 1])
        first, last = torch.searchsorted(self._photo, wanted).tolist()
        mine = slice(first, last, max(1, -(-(last - first) // MOST_POINTS)))
        points, point = self._scene.points, self._point[mine]
        xy = points.track_xy[self._which[mine]]
        height, width = rendered.depth.shape
        column, row = xy[:, 0].floor().long(), xy[:, 1].floor().long()
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        column, row, point, xy = column[inside], row[inside], point[inside], xy[inside]
        rays = self._scene.cameras.rays_at(torch.full_like(point, photo), xy)
        distance = (points.xyz[point] - rays.origin).norm(dim=1)
        error = (rendered.depth[row, column] - distance).abs()
        return DepthErrors(
            relative=error / distance,
            in_pixels=error / (distance * rays.radius),
            opaque=rendered.opacity[row, column] > SURFACE,
            trained=self._trained[point],
        )
