"""Views in the order in which a video shows them, each with its lens and the appearance of photos mixed in it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inf_nerf.config import RenderConfig
from inf_nerf.scene.cameras import Cameras

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CameraPath:
    """F frames of a scene with V photos."""

    cameras: Cameras
    fps: int
    weights: Tensor | None = None  # [F, V] of photos' appearances; what is left of 1 is the mean's.  None: all of it

    def __len__(self) -> int:
        return len(self.cameras)

    def appearance(self, frame: int, photos: Tensor, train: Sequence[int]) -> Tensor | None:
        """The appearance [A] of a frame, of vectors [V, A] of which those of ``train`` were learnt; None: the mean.

        The mean, over the photos that were learnt from, also stands for photos that were not.
        """
        if self.weights is None:
            return None
        mean = photos[list(train)].mean(dim=0)
        known = self.weights[frame, list(train)].to(photos)
        return mean + known @ (photos[list(train)] - mean)


def pinhole_path(
    poses: Array,  # [F, 3, 4] camera to scene
    size: tuple[int, int],  # width and height
    fov_degrees: float | Sequence[float],  # horizontal, one for all frames or one of each
    fps: int,
    weights: Tensor | None = None,
) -> CameraPath:
    """A path of cameras without distortion."""
    views = torch.from_numpy(np.ascontiguousarray(poses)).float()
    width, height = size
    if isinstance(fov_degrees, int | float):
        return CameraPath(Cameras.pinhole(views, width, height, fov_degrees), fps, weights)
    state, count = Cameras.pinhole(views, width, height, fov_degrees[0]).state(), len(views)
    state["camera_id"] = torch.arange(count)
    for name in ("size", "grid_shape"):
        state[name] = state[name].expand(count, 2).clone()
    state["grid_start"] = state["grid_start"].expand(count).clone()
    focal = [width / 2 / math.tan(math.radians(fov) / 2) for fov in fov_degrees]
    state["intrinsics"] = torch.tensor([[value, value, width / 2, height / 2] for value in focal])
    return CameraPath(Cameras.from_state(state), fps, weights)


def rendered_path(poses: Array, render: RenderConfig, weights: Tensor | None = None) -> CameraPath:
    """A path with the size, the lens and the speed of ``render``."""
    return pinhole_path(poses, (render.width, render.height), render.fov_degrees, render.fps, weights)
