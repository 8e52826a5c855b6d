"""One picture of a view, at any fineness, in any mode, given up when nobody wants it any more.

h, w: size of the picture.  A picture with a divisor is taken by a camera with so many times fewer pixels along each
side; its pixels are larger, so coarser nodes answer it, and fewer are read.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inf_nerf.octree.routing import route
from inf_nerf.octree.topology import Octree
from inf_nerf.render.colourmap import (
    Picture,
    as_picture,
    depth_map,
    depth_range,
    level_map,
    node_map,
    opacity_map,
)
from inf_nerf.render.images import RenderedImage, render_image
from inf_nerf.scene.cameras import Cameras, Rays
from inf_nerf.train.opened import StoredCheckpoint

MODES = ("colour", "depth", "level", "node", "opacity")
CHUNK = 4096  # rays after which one asks whether the picture is still wanted
SMALLEST_SIDE = 8  # pixels
AROUND = (0.13, 0.14, 0.16)  # colour around a crop box
SOLID = 0.5  # opacity from which on a pixel shows a node
FAR = 1e3  # depth of a pixel that shows the background, in scene units


class Unwanted(Exception):
    """The picture was given up."""


@dataclass(frozen=True)
class Look:
    """How somebody wants to see the scene."""

    mode: str = MODES[0]
    octaves: float = 0.0  # coarser than the pixels ask for
    photo: int | None = None  # whose appearance; None: the mean
    box: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None  # all that is shown

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"the mode {self.mode!r} is none of {', '.join(MODES)}")


@dataclass(frozen=True, eq=False)
class View:
    """A camera and how its picture is to look."""

    pose: Tensor  # [3, 4] camera to scene
    width: int
    height: int
    fov_degrees: float  # horizontal
    look: Look

    @property
    def num_pixels(self) -> int:
        return self.width * self.height

    def cameras(self, divisor: int = 1) -> Cameras:
        """The one camera, with ``divisor`` times fewer pixels along each side."""
        width, height = (max(SMALLEST_SIDE, side // divisor) for side in (self.width, self.height))
        return Cameras.pinhole(self.pose[None], width, height, self.fov_degrees)


@dataclass(frozen=True, eq=False)
class Drawn:
    """A finished picture and what it took."""

    picture: Picture  # [h, w, 3]
    depth: NDArray[np.float32]  # [h, w] along the camera's axis, scene units
    touched: Tensor  # [M] bool: nodes that were asked
    share: Tensor  # [M] part of the pixels that each node answered
    seconds: float


@dataclass(frozen=True)
class Answered:
    """What answers one ray."""

    node: int  # index in the octree
    point: tuple[float, float, float]  # of the surface, in the scene frame
    footprint: float  # of the pixel there, scene units


def draw(
    checkpoint: StoredCheckpoint, view: View, divisor: int = 1, *, is_wanted: Callable[[], bool], workers: int = 1
) -> Drawn:
    """Render a view; raises :class:`Unwanted` soon after ``is_wanted`` says so, and what reading nodes raises."""
    started = time.perf_counter()
    cameras = view.cameras(divisor)
    box = None if view.look.box is None else torch.tensor(view.look.box)
    model = checkpoint.model.seen(view.look.octaves, box, torch.tensor(AROUND))

    def go_on(_: int) -> None:
        if not is_wanted():
            raise Unwanted

    rendered = render_image(
        model,
        cameras,
        0,
        0,
        rays_per_chunk=CHUNK,
        appearance=None if view.look.photo is None else checkpoint.appearance[view.look.photo],
        lod_blend=checkpoint.config.render.lod_blend,
        workers=workers,
        on_rays=go_on,
    )
    rays = cameras.image_rays(0, 0)
    height, width = rendered.depth.shape
    along = (rays.direction @ view.pose[:, 2]).view(height, width)
    depth = torch.where(rendered.opacity > SOLID, rendered.depth * along, FAR)
    return Drawn(
        picture=_painted(rendered, rays, view.look, checkpoint),
        depth=depth.numpy().astype(np.float32),
        touched=rendered.touched,
        share=rendered.share / (height * width),
        seconds=time.perf_counter() - started,
    )


def answer(checkpoint: StoredCheckpoint, rays: Rays, look: Look) -> Answered | None:
    """Which node answers a ray where it meets a surface; None where it meets none."""
    box = None if look.box is None else torch.tensor(look.box)
    with torch.no_grad():
        rendered = checkpoint.model.seen(look.octaves, box, torch.tensor(AROUND)).render(rays)
    if float(rendered.opacity[0]) <= SOLID:
        return None
    distance = foreground_depth(rendered.depth, rendered.opacity, rendered.span[1])
    footprint = distance * rays.radius * checkpoint.config.octree.footprint_px
    xyz = rays.origin + rays.direction * distance[:, None]
    node, _ = route(checkpoint.octree, xyz, footprint * 2**look.octaves)
    x, y, z = xyz[0].tolist()
    return Answered(int(node), (x, y, z), float(footprint))


def foreground_depth(depth: Tensor, opacity: Tensor, leave: Tensor) -> Tensor:
    """Expected distance of what is in the cube alone, of depths that count the background as where rays leave it."""
    return (depth - (1 - opacity) * leave.clamp_min(0)) / opacity.clamp_min(1e-6)


def _painted(rendered: RenderedImage, rays: Rays, look: Look, checkpoint: StoredCheckpoint) -> Picture:
    if look.mode == "depth":
        return depth_map(rendered.depth, rendered.opacity, *depth_range(rendered.depth, rendered.opacity))
    if look.mode == "level":
        return level_map(rendered.level, rendered.rgb)
    if look.mode == "opacity":
        return opacity_map(rendered.opacity)
    if look.mode == "node":
        return node_map(_keys(rendered, rays, look, checkpoint), rendered.rgb)
    return as_picture(rendered.rgb)


def _keys(rendered: RenderedImage, rays: Rays, look: Look, checkpoint: StoredCheckpoint) -> Tensor:
    """Key [h, w] of the node that answers where each pixel's surface is; -1 where there is none.

    Where nodes did not fit into memory, it is the ancestor that answered for them.
    """
    octree = _asked(checkpoint.octree, rendered.touched)
    distance = rendered.depth.flatten()
    footprint = distance * rays.radius * (checkpoint.config.octree.footprint_px * 2**look.octaves)
    node, _ = route(octree, rays.origin + rays.direction * distance[:, None], footprint)
    solid = (rendered.opacity > SOLID).flatten()
    return torch.where(solid, octree.keys[node], -1).view_as(rendered.depth)


def _asked(octree: Octree, touched: Tensor) -> Octree:
    """The nodes ``touched`` [M] and all above them."""
    kept = {1}
    for key in octree.keys[touched[: octree.num_nodes]].tolist():
        while key not in kept:
            kept.add(key)
            key >>= 3
    return octree.restrict(kept)
