"""How well pixels are rendered whose surface lies near the border of two subtrees, against all others.

A border is a seam where the subtrees were trained by different ranks, and none where one rank trained both, so a run on
one worker says what is inherent to the places.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from inf_nerf.octree.borders import Borders
from inf_nerf.render.images import RenderedImage
from inf_nerf.scene.cameras import Rays
from inf_nerf.train.metrics import psnr

WIDTH = 1 / 32  # of the side of a subtree's cube: what is nearer to a border than this is near
SURFACE = 0.9  # least opacity of a pixel whose expected depth is taken for a surface
PLACES = ("interior", "near", "between_ranks")  # the last is a part of the second


@dataclass(frozen=True)
class SeamErrors:
    """Sums over the pixels that see a surface in the root cube."""

    squared_error: Tensor = field(default_factory=lambda: torch.zeros(len(PLACES), dtype=torch.float64))
    num_pixels: Tensor = field(default_factory=lambda: torch.zeros(len(PLACES), dtype=torch.float64))

    def __add__(self, other: "SeamErrors") -> "SeamErrors":
        return SeamErrors(self.squared_error + other.squared_error, self.num_pixels + other.num_pixels)

    def figures(self) -> dict[str, Any]:
        """PSNR of all pixels of a kind together and their share of the pixels; kinds without a pixel are left out."""
        total = float(self.num_pixels[:2].sum())
        found: dict[str, Any] = {"width": WIDTH}
        for place, error, count in zip(PLACES, self.squared_error.tolist(), self.num_pixels.tolist(), strict=True):
            if count:
                found[place] = {"psnr": psnr(error / count), "share": count / total}
        return found


def seam_errors(
    borders: Borders,
    rays: Rays,  # h * w of the whole picture
    rendered: RenderedImage,
    difference: Tensor,  # [h, w, 3] of the picture and the photo
    counted: Tensor,  # [h, w] bool
) -> SeamErrors:
    """The errors of one picture."""
    xyz = rays.origin + rays.direction * rendered.depth.view(-1, 1)  # [h * w, 3]
    surface = (rendered.opacity > SURFACE) & counted & (xyz.abs().amax(1) < 1).view_as(counted)
    distance = borders.distance(xyz[surface.view(-1)])
    squared = difference[surface].double().square().mean(1)
    near, seam = distance.any < WIDTH, distance.ranks < WIDTH
    kinds = torch.stack((~near, near, seam)).double()  # [3, pixels]
    return SeamErrors(kinds @ squared, kinds.sum(1))
