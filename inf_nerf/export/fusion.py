"""Distances to the surface, fused from what the training photos' cameras see of the model.

A field of few photos is haze of any density in the ground and above it, so no level of its density is the surface.
Where light ends on the average is: every camera renders distance and colour, and around that distance it says how far
in front of the surface a place is (Curless and Levoy, "A volumetric method for building complex models from range
images", SIGGRAPH 1996).  The mean over the cameras is zero at the surface, and unknown where no camera sees it.

Cameras are the pinholes next to the photos' own, without distortion, so that a place has one pixel.

Letters: P places, h, w: size of a window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inf_nerf.export.placement import CropBox
from inf_nerf.export.surface import Pixels, Rendering, sight_of
from inf_nerf.export.unfinished import Progress, Unfinished
from inf_nerf.scene.cameras import Cameras

Array = NDArray[np.float64]

# what a pixel sees: 0 for the distance where it sees no surface, or its edge
SEEN = np.dtype([("distance", "<f4"), ("rgb", "u1", 3)])


@dataclass(frozen=True, eq=False)
class Outlook:
    """One camera and what its pixels see; the pixels lie on disk and are read as far as they are looked at."""

    centre: Array  # [3] scene frame
    rotation: Array  # [3, 3] camera -> scene
    focal: Array  # [2] pixels of the window
    principal: Array  # [2] from the window's corner
    sharpness: float  # pixels of the photo per unit of angle
    pixels: NDArray[Any]  # [h, w] of SEEN


@dataclass(frozen=True, eq=False)
class Fused:
    """What all cameras say of P places."""

    ahead: Array  # [P] mean distance to the surface, scene units, above 0 in front of it; the reach where unknown
    known: NDArray[np.bool_]  # [P] whether a camera sees the surface there, or through there
    rgb: Array  # [P, 3] in [0, 1], of the surface within the reach; black where there is none


def outlooks(
    rendering: Rendering,
    cameras: Cameras,
    photos: Sequence[int],
    side: float,
    crop: CropBox,
    unfinished: Unfinished,
    progress: Progress,
) -> list[Outlook]:
    """What the photos' cameras see of the crop in pixels of about ``side`` scene units; those on disk are not rendered
    again."""
    plain = Cameras.from_state(cameras.state() | {"grid_shape": torch.zeros_like(cameras.grid_shape)})
    found = []
    for done, photo in enumerate(photos):
        progress("photos", done, len(photos))
        name = f"photos/{photo:06d}"
        if not unfinished.has(name + ".pixels.npy"):
            place, pixels = _look(rendering, plain, photo, side, crop)
            unfinished.save(name + ".place.npy", place)
            unfinished.save(name + ".pixels.npy", pixels)  # last: says that both are there
        pixels = unfinished.load(name + ".pixels.npy")
        if pixels.size:
            found.append(_outlook(plain, photo, np.asarray(unfinished.load(name + ".place.npy")), pixels))
    progress("photos", len(photos), len(photos))
    return found


def fused(views: Sequence[Outlook], xyz: Array, reach: float) -> Fused:
    """What cameras say of scene positions [P, 3].

    A place farther than ``reach`` in front of what a camera sees counts as that far in front; one that lies farther
    behind is hidden from it, and it says nothing.  A camera counts by the photo's pixels on an area there.
    """
    total, weight = np.zeros(len(xyz)), np.zeros(len(xyz))
    colour, painted = np.zeros((len(xyz), 3)), np.zeros(len(xyz))
    for view in views:
        index, ahead, rgb, away = _seen_from(view, xyz)
        near = ahead >= -reach
        index, ahead, rgb, share = index[near], ahead[near], rgb[near], (view.sharpness / away[near]) ** 2
        total[index] += share * np.minimum(ahead, reach)
        weight[index] += share
        share = share * (ahead <= reach)
        colour[index] += share[:, None] * rgb
        painted[index] += share
    known = weight > 0
    tiny = np.finfo(float).tiny
    return Fused(np.where(known, total / weight.clip(tiny), reach), known, colour / painted.clip(tiny)[:, None])


def _seen_from(view: Outlook, xyz: Array) -> tuple[NDArray[np.int64], Array, Array, Array]:
    """Which places [p] have four pixels with a surface around them in the picture; how far they are in front of it [p],
    its colour there [p, 3], and how far the places are away [p]."""
    local = (xyz - view.centre) @ view.rotation
    ahead = local[:, 2] > 0
    plane = local[:, :2] / np.where(ahead, local[:, 2], 1.0)[:, None]
    pixel = plane * view.focal + view.principal - 0.5  # of pixel centres
    height, width = view.pixels.shape
    index = np.flatnonzero(ahead & (pixel >= 0).all(axis=1) & (pixel < (width - 1, height - 1)).all(axis=1))
    first = pixel[index].astype(np.int64)  # [p, 2] x, y
    within = pixel[index] - first
    distance, rgb = np.zeros(len(index)), np.zeros((len(index), 3))
    whole = np.ones(len(index), np.bool_)
    for x in (0, 1):
        for y in (0, 1):
            corner = view.pixels[first[:, 1] + y, first[:, 0] + x]
            part = np.abs(1 - x - within[:, 0]) * np.abs(1 - y - within[:, 1])
            distance += part * corner["distance"]
            rgb += part[:, None] * corner["rgb"]
            whole &= corner["distance"] > 0
    away = np.linalg.norm(local[index[whole]], axis=1)
    return index[whole], distance[whole] - away, rgb[whole] / 255, away


def _look(
    rendering: Rendering, cameras: Cameras, photo: int, side: float, crop: CropBox
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Level, left and top of a window [3], and its pixels [h, w] of SEEN; none of a camera that sees nothing there."""
    sight = sight_of(rendering, cameras, photo, side, crop)
    if sight is None:
        return np.zeros(3, np.int64), np.zeros((0, 0), SEEN)
    window, centre, found = sight.window, cameras.centre[photo].double().numpy(), []
    for band in sight.bands:
        points = Pixels.of(rendering, cameras, photo, sight.level, band, window)
        there = np.empty(len(points.xyz), SEEN)
        there["distance"] = np.where(points.surface, np.linalg.norm(points.xyz - centre, axis=1), 0.0)
        there["rgb"] = np.rint(points.rgb * 255)
        found.append(there.reshape(band.height, band.width))
    return np.array([sight.level, window.left, window.top]), np.concatenate(found)


def _outlook(cameras: Cameras, photo: int, place: NDArray[np.int64], pixels: NDArray[Any]) -> Outlook:
    level, left, top = place.tolist()
    camera = int(cameras.camera_id[photo])
    focal, principal = cameras.intrinsics[camera].double().numpy().reshape(2, 2)
    pose = cameras.cam_to_world[photo].double().numpy()
    scale = np.array(cameras.level_size(photo, level)) / cameras.size[camera].numpy()
    corner = np.array([left, top])
    return Outlook(
        pose[:, 3], pose[:, :3], focal * scale, principal * scale - corner, float(np.sqrt(focal.prod())), pixels
    )
