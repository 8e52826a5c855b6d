"""Lookups that turn pixels of a camera with lens distortion into directions.

pycolmap undoes the distortion of every camera model at control points spread evenly over the image; `Cameras`
interpolates between them.  The number of control points is doubled until interpolation is exact to `TOLERANCE_PX`, so a
camera costs some 10 kB and no iteration remains at training time.  Directions are unit vectors rather than points on an
image plane, so that fisheye cameras may look 90 degrees off their axis and beyond.
"""

from dataclasses import dataclass

import numpy as np
import pycolmap
import torch
from numpy.typing import NDArray

from inf_nerf.errors import InputError
from inf_nerf.scene.cameras import Cameras

TOLERANCE_PX = 0.01
ROUND_TRIP_PX = 0.05
CELLS_ALONG_EDGE = 128  # at least, if the lens does not fill the image: two cells along its edge stay unused
CELLS = (8, 16, 32, 64, 128, 256)  # along the longer side, tried in order


@dataclass(frozen=True, eq=False)
class Lookup:
    """Directions at control points: those of the image and one ring outside it."""

    direction: NDArray[np.float32]  # [rows, columns, 3] unit
    valid: NDArray[np.bool_]  # [rows, columns], false where the camera model has no ray


def is_pinhole(camera: pycolmap.Camera) -> bool:
    """Whether focal lengths and principal point say everything about the camera."""
    return camera.is_perspective_pinhole() and camera.is_undistorted()


def intrinsics(camera: pycolmap.Camera) -> list[float]:
    """``fx fy cx cy`` at the camera's own size."""
    return [camera.focal_length_x, camera.focal_length_y, camera.principal_point_x, camera.principal_point_y]


def make_lookup(camera: pycolmap.Camera) -> Lookup:
    """The coarsest lookup of ``camera`` that is exact to `TOLERANCE_PX`, or the finest there is."""
    lookup = None
    for cells in CELLS:
        scale = cells / max(camera.width, camera.height)
        shape = max(2, round(camera.height * scale)), max(2, round(camera.width * scale))
        lookup = _sample(camera, shape)
        fine_enough = lookup.valid.all() or cells >= CELLS_ALONG_EDGE
        if fine_enough and _error_px(camera, lookup) <= TOLERANCE_PX:
            break
    assert lookup is not None
    if not lookup.valid.any():
        raise InputError(
            f"Camera {camera.camera_id} ({camera.model_name}) has distortion parameters for which no pixel has a ray; "
            f"correct {camera.params_to_string()!r} in the camera file or calibrate again."
        )
    return lookup


def _sample(camera: pycolmap.Camera, cells: tuple[int, int]) -> Lookup:
    rows, columns = cells
    x, y = np.meshgrid(np.linspace(0, camera.width, columns + 1), np.linspace(0, camera.height, rows + 1))
    xy = np.stack([x, y], axis=-1).reshape(-1, 2)
    direction, valid = _exact(camera, xy)
    # Where there is no ray, the one without distortion keeps numbers finite; `Cameras.has_ray` tells that it is none.
    straight = (xy - intrinsics(camera)[2:]) / intrinsics(camera)[:2]
    straight = np.concatenate([straight, np.ones((len(xy), 1))], axis=1)
    direction[~valid] = (straight / np.linalg.norm(straight, axis=1, keepdims=True))[~valid]
    direction, valid = direction.reshape(rows + 1, columns + 1, 3), valid.reshape(rows + 1, columns + 1)
    for axis in (0, 1):
        direction = _extrapolate(direction, axis)
    return Lookup(direction.astype(np.float32), np.pad(valid, 1, mode="edge"))


def _exact(camera: pycolmap.Camera, xy: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Directions [N, 3] of pixels ``xy`` [N, 2] and where the camera model has one.

    pycolmap answers NaN where undistortion fails, and something that projects elsewhere for the pixels of a fisheye
    photo beyond 90 degrees.
    """
    direction = np.asarray(camera.cam_ray_from_img(xy), np.float64)
    back = np.asarray(camera.img_from_cam(direction, check_cheirality=False), np.float64)
    return direction, np.nan_to_num(np.abs(back - xy), nan=np.inf).max(axis=-1) < ROUND_TRIP_PX


def _extrapolate(direction: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """One more control point on either end of ``axis``, on the parabola through the three nearest."""
    p = np.moveaxis(direction, axis, 0)
    before, after = 3 * p[0] - 3 * p[1] + p[2], 3 * p[-1] - 3 * p[-2] + p[-3]
    return np.moveaxis(np.concatenate([before[None], p, after[None]]), 0, axis)


def _error_px(camera: pycolmap.Camera, lookup: Lookup) -> float:
    """Largest interpolation error in pixels over points between the control points, borders included."""
    cells = lookup.valid.shape[0] - 3, lookup.valid.shape[1] - 3
    between_x = np.linspace(0, camera.width, 2 * cells[1] + 1)
    between_y = np.linspace(0, camera.height, 2 * cells[0] + 1)
    x, y = np.meshgrid(between_x[1:-1], between_y[1:-1])
    xy = np.stack([x, y], axis=-1).reshape(-1, 2)
    exact, valid = _exact(camera, xy)
    view = torch.zeros(len(xy), dtype=torch.int64)
    cameras = one_camera(camera, lookup)
    rays = cameras.rays_at(view, torch.from_numpy(xy).float())
    inside = cameras.has_ray(view, torch.from_numpy(xy).float()).numpy() & valid
    difference = (rays.direction.numpy() - exact)[inside]
    return float((np.linalg.norm(difference, axis=-1) / rays.radius.numpy()[inside]).max(initial=0.0))


def one_camera(camera: pycolmap.Camera, lookup: Lookup | None) -> Cameras:
    """A single view by ``camera`` from the origin, at its own size."""
    return assemble([camera], [lookup], np.array([[camera.width, camera.height]]), np.zeros(1, int), np.eye(3, 4)[None])


def assemble(
    cameras: list[pycolmap.Camera],
    lookups: list[Lookup | None],
    size: NDArray[np.int_],  # [C, 2] width and height of pyramid level 0
    camera_id: NDArray[np.int_],  # [V]
    cam_to_world: NDArray[np.float64],  # [V, 3, 4]
) -> Cameras:
    """Cameras at the size of pyramid level 0; lookups need no scaling, they span the image whatever its size."""
    source = np.array([[camera.width, camera.height] for camera in cameras])
    scale = np.tile(size / source, 2)  # [C, 4] for fx fy cx cy
    shapes = [lookup.valid.shape if lookup else (0, 0) for lookup in lookups]
    lengths = [rows * columns for rows, columns in shapes]
    tables = [lookup.direction.reshape(-1, 3) for lookup in lookups if lookup]
    valid = [lookup.valid.reshape(-1) for lookup in lookups if lookup]
    return Cameras(
        camera_id=torch.from_numpy(camera_id.astype(np.int64)),
        cam_to_world=torch.from_numpy(cam_to_world.astype(np.float32)),
        appearance=torch.arange(len(camera_id)),
        size=torch.from_numpy(size.astype(np.int64)),
        intrinsics=torch.from_numpy((np.array([intrinsics(c) for c in cameras]) * scale).astype(np.float32)),
        grid_shape=torch.tensor(shapes, dtype=torch.int64),
        grid_start=torch.tensor([sum(lengths[:c]) for c in range(len(lengths))], dtype=torch.int64),
        grid_table=torch.from_numpy(np.concatenate([np.zeros((0, 3), np.float32), *tables])),
        grid_valid=torch.from_numpy(np.concatenate([np.zeros(0, bool), *valid])),
    )
