"""Sparse points in the scene frame and the footprint of a pixel at each of them.

Letters: P points, O observations (a track lists the observations of one point).  The footprint is the one that samples
on rays have: distance times the radius of the ray through the observation, `Cameras.rays_at`.
"""

from dataclasses import dataclass

import numpy as np
import pycolmap
import torch
from numpy.typing import NDArray
from torch import Tensor

from inf_nerf.scene.cameras import Cameras
from inf_nerf.scene.capture import Capture
from inf_nerf.scene.frame import WorldFrame

SEEN_WITHIN_PX = 1.0
CHUNK = 1_000_000  # observations looked at together, which bounds memory


@dataclass(frozen=True, eq=False)
class SparsePoints:
    """Structure-from-motion points and the places in photos where they were seen."""

    xyz: Tensor  # [P, 3] float32, scene frame
    footprint: Tensor  # [P] float32, pixel side at the point, least over its observations, scene units, level 0
    rgb: Tensor  # [P, 3] uint8
    error: Tensor  # [P] float32, reprojection error in pixels of the photo file
    track_start: Tensor  # [P + 1] int64, observations of point p are track_start[p] : track_start[p + 1]
    track_photo: Tensor  # [O] int64
    track_xy: Tensor  # [O, 2] float32, level-0 pixel coordinates

    def __post_init__(self) -> None:
        num_points, num_observations = self.xyz.shape[0], self.track_photo.shape[0]
        assert self.xyz.shape == self.rgb.shape == (num_points, 3)
        assert self.footprint.shape == self.error.shape == (num_points,)
        assert self.track_start.shape == (num_points + 1,) and self.track_xy.shape == (num_observations, 2)

    def __len__(self) -> int:
        return self.xyz.shape[0]

    @property
    def track_point(self) -> Tensor:
        """The point of each observation, [O] int64."""
        return torch.repeat_interleave(torch.arange(len(self)), self.track_start.diff())

    @property
    def in_cube(self) -> Tensor:
        """Points inside the root cube, [P] bool."""
        return (self.xyz.abs() <= 1).all(dim=1)


def place_points(capture: Capture, cameras: Cameras, frame: WorldFrame) -> SparsePoints:
    """The points of ``capture`` in the scene frame; those that no photo shows are left out."""
    tracks = capture.tracks
    xyz = frame.to_scene(tracks.xyz)
    source = np.array([[camera.width, camera.height] for camera in capture.cameras])
    scale = cameras.size.numpy() / source  # [C, 2] level-0 pixels per pixel of the photo file
    track_xy = tracks.xy * scale[capture.camera_id[tracks.photo]]
    if len(tracks.photo):
        footprint = _observed_footprint(cameras, xyz, np.diff(tracks.start), tracks.photo, track_xy)
    else:
        footprint = _projected_footprint(capture, cameras, xyz, scale)
    seen = np.isfinite(footprint)
    kept = tracks.keep(seen)
    observed = np.repeat(seen, np.diff(tracks.start))
    return SparsePoints(
        xyz=torch.from_numpy(xyz[seen]).float(),
        footprint=torch.from_numpy(footprint[seen]).float(),
        rgb=torch.from_numpy(kept.rgb),
        error=torch.from_numpy(kept.error).float(),
        track_start=torch.from_numpy(kept.start),
        track_photo=torch.from_numpy(kept.photo),
        track_xy=torch.from_numpy(track_xy[observed]).float(),
    )


def _footprint(
    cameras: Cameras,
    photo: Tensor,  # [N]
    xy: NDArray[np.float64],  # [N, 2] level-0 pixels
    xyz: NDArray[np.float64],  # [N, 3] scene frame
) -> tuple[Tensor, Tensor]:
    """Footprint [N] of a pixel at the distance of a point, and how many pixels the point is off the pixel's ray [N]."""
    rays = cameras.rays_at(photo, torch.from_numpy(xy).float())
    offset = torch.from_numpy(xyz).float() - rays.origin
    footprint = offset.norm(dim=-1) * rays.radius
    return footprint, torch.linalg.cross(offset, rays.direction).norm(dim=-1) / footprint


def _observed_footprint(
    cameras: Cameras,
    xyz: NDArray[np.float64],  # [P, 3]
    length: NDArray[np.int64],  # [P] observations of each point
    photo: NDArray[np.int64],  # [O]
    xy: NDArray[np.float64],  # [O, 2]
) -> NDArray[np.float64]:
    """Least footprint over the observations of each point [P]; infinite for points without any."""
    least = torch.full((len(xyz),), torch.inf)
    point = np.repeat(np.arange(len(xyz)), length)
    for first in range(0, len(photo), CHUNK):
        part = slice(first, first + CHUNK)
        footprint, _ = _footprint(cameras, torch.from_numpy(photo[part]), xy[part], xyz[point[part]])
        least.scatter_reduce_(0, torch.from_numpy(point[part]), footprint, "amin")
    return least.double().numpy()


def _projected_footprint(
    capture: Capture, cameras: Cameras, xyz: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Least footprint over the photos that have the point within their frame [P]; infinite for points in none."""
    least = np.full(len(xyz), np.inf)
    for photo, (camera_id, pose) in enumerate(zip(capture.camera_id, capture.cam_to_world, strict=True)):
        camera: pycolmap.Camera = capture.cameras[camera_id]
        for first in range(0, len(xyz), CHUNK):
            in_camera = (capture.tracks.xyz[first : first + CHUNK] - pose[:, 3]) @ pose[:, :3]
            pixel = np.asarray(camera.img_from_cam(in_camera), np.float64)
            inside = ((pixel >= 0) & (pixel <= [camera.width, camera.height])).all(axis=1)  # false where it is NaN
            index = first + np.flatnonzero(inside)
            view = torch.full((len(index),), photo)
            footprint, off_ray = _footprint(cameras, view, pixel[inside] * scale[camera_id], xyz[index])
            # Far outside the photo, a fitted distortion may fold points back into it.
            footprint = footprint.masked_fill(~(off_ray < SEEN_WITHIN_PX), torch.inf)
            least[index] = np.minimum(least[index], footprint.double().numpy())
    return least
