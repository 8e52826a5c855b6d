"""``transforms.json`` of nerfstudio and instant-ngp.

Poses are camera-to-world with OpenGL camera axes (x right, y up, z backward) and become OpenCV axes here.  Intrinsics
may stand in every frame or once for all.  ``applied_transform`` (and ``applied_scale``), with which nerfstudio turns a
COLMAP model, is undone, so that the world frame is that of the original model.  Frames whose photo is missing are left
out and counted.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from numpy.typing import NDArray

from inf_nerf.errors import InputError
from inf_nerf.scene.capture import Capture, Tracks, header_size
from inf_nerf.scene.ply import read_ply

FILE = "transforms.json"
OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])
SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".JPG", ".PNG")  # synthetic scenes leave the suffix out
POINT_CLOUDS = ("sparse_pc.ply", "points3D.ply")  # looked for when the file names none
CAMERA_MODELS = {
    "PINHOLE": "PINHOLE",
    "SIMPLE_PINHOLE": "PINHOLE",
    "PERSPECTIVE": "PINHOLE",
    "OPENCV": "OPENCV",
    "SIMPLE_RADIAL": "OPENCV",
    "RADIAL": "OPENCV",
    "OPENCV_FISHEYE": "OPENCV_FISHEYE",
}


def read_transforms(root: Path) -> Capture:
    """Read ``transforms.json`` in ``root`` and the point cloud beside it.

    Raises :class:`InputError` naming the file and the frame that cannot be used.
    """
    path = root / FILE
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); export it again.") from error
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(f"{path} has no list 'frames'; export it again.")

    undo = _undo_applied(content, path)
    found: list[tuple[str, NDArray[np.float64], tuple[Any, ...], str | None]] = []
    for number, frame in enumerate(frames):
        file = _find_photo(root, frame.get("file_path"), path, number)
        if file is None:
            continue
        pose = _pose(frame.get("transform_matrix"), undo, path, number)
        mask = frame.get("mask_path")
        if mask is not None and not (root / str(mask)).is_file():
            raise InputError(f"The mask {root / str(mask)} of frame {number} in {path} is missing; put it there.")
        found.append((file, pose, _camera({**content, **frame}, root / file, path, number), mask))
    found.sort(key=lambda entry: entry[0])
    names = [entry[0] for entry in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path} has two frames for the photo {twice}; remove one of them.")
    if frames and not found:
        raise InputError(f"None of the {len(frames)} photos in {path} exists; put them where file_path says.")
    kinds = sorted({entry[2] for entry in found})
    cameras = [
        pycolmap.Camera(camera_id=index + 1, model=model, width=width, height=height, params=list(params))
        for index, (model, width, height, params) in enumerate(kinds)
    ]
    point_cloud = _point_cloud(root, content.get("ply_file_path"), path)
    return Capture(
        source=path,
        names=names,
        files=names,
        masks=[entry[3] for entry in found],
        cameras=cameras,
        camera_id=np.array([kinds.index(entry[2]) for entry in found], np.int64),
        cam_to_world=np.array([entry[1] for entry in found]).reshape(-1, 3, 4),
        tracks=_points(root / point_cloud, undo),
        sources=[FILE, point_cloud],
        report={"format": FILE, "missing_frames": len(frames) - len(found)},
    )


def _undo_applied(content: dict[str, Any], path: Path) -> NDArray[np.float64]:
    """Similarity [3, 4] from the file's coordinates back to those before ``applied_transform``."""
    applied = np.eye(4)
    try:
        if content.get("applied_transform") is not None:
            applied[:3] = np.asarray(content["applied_transform"], np.float64)[:3]
        applied[:3] *= float(content.get("applied_scale", 1.0))
        return np.asarray(np.linalg.inv(applied)[:3], np.float64)
    except (ValueError, TypeError, np.linalg.LinAlgError) as error:
        raise InputError(
            f"In {path}, applied_transform is not an invertible 3 x 4 matrix; correct or remove it."
        ) from error


def _find_photo(root: Path, file_path: object, path: Path, number: int) -> str | None:
    """Path of a frame's photo relative to the data root, with forward slashes; None if there is no such file."""
    if not isinstance(file_path, str) or not file_path:
        raise InputError(f"Frame {number} in {path} has no file_path; export the file again.")
    for suffix in SUFFIXES:
        if (root / (file_path + suffix)).is_file():
            relative = os.path.relpath(root / (file_path + suffix), root)
            return Path(relative).as_posix()
    return None


def _pose(matrix: object, undo: NDArray[np.float64], path: Path, number: int) -> NDArray[np.float64]:
    """Rotation and centre [3, 4] with OpenCV axes, before ``applied_transform``."""
    try:
        pose = np.asarray(matrix, np.float64)[:3]
    except (ValueError, TypeError, IndexError):
        pose = np.zeros(0)
    if pose.shape != (3, 4) or not np.isfinite(pose).all():
        raise InputError(f"Frame {number} in {path} has no 4 x 4 transform_matrix of numbers; export the file again.")
    rotation = undo[:, :3] @ pose[:, :3] @ OPENGL_TO_OPENCV
    left, stretch, right = np.linalg.svd(rotation)
    if stretch[2] < 0.99 * stretch[0] or np.linalg.det(rotation) <= 0:
        raise InputError(f"Frame {number} in {path} has a transform_matrix that is no rotation; export the file again.")
    centre = undo[:, :3] @ pose[:, 3] + undo[:, 3]
    return np.concatenate([left @ right, centre[:, None]], axis=1)


def _camera(values: dict[str, Any], photo: Path, path: Path, number: int) -> tuple[Any, ...]:
    """pycolmap model, width, height and parameters of a frame; ``values`` are the file's with the frame's over them."""
    try:
        size = (int(values["w"]), int(values["h"])) if "w" in values and "h" in values else header_size(photo)
        focal_x = _focal(values, "fl_x", "camera_angle_x", size[0])
        focal_y = _focal(values, "fl_y", "camera_angle_y", size[1]) or focal_x
        if focal_x is None or focal_y is None:
            raise InputError(f"Frame {number} in {path} has no fl_x and no camera_angle_x; add one for it or for all.")
        centre = float(values.get("cx", size[0] / 2)), float(values.get("cy", size[1] / 2))
        k1, k2, k3, k4, p1, p2 = (float(values.get(name, 0.0)) for name in ("k1", "k2", "k3", "k4", "p1", "p2"))
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"Frame {number} in {path} has intrinsics that are not numbers; export the file again."
        ) from error
    name = str(values.get("camera_model", "OPENCV"))
    model = "OPENCV_FISHEYE" if values.get("is_fisheye") else CAMERA_MODELS.get(name)
    if model is None:
        raise InputError(
            f"Frame {number} in {path} has the camera model {name!r}, and {', '.join(CAMERA_MODELS)} can be used; "
            "convert the photos to one of them."
        )
    base = (focal_x, focal_y, *centre)
    if (
        not all(math.isfinite(value) for value in (*base, k1, k2, k3, k4, p1, p2))
        or min(base[:2]) <= 0
        or min(size) < 1
    ):
        raise InputError(f"Frame {number} in {path} has a focal length or size that cannot be; calibrate again.")
    if model == "OPENCV_FISHEYE":
        return model, *size, (*base, k1, k2, k3, k4)
    if model == "PINHOLE" or not any((k1, k2, k3, k4, p1, p2)):
        return "PINHOLE", *size, base
    if k4:
        raise InputError(
            f"Frame {number} in {path} has k4 = {k4}, which OPENCV does not know; calibrate with three radial terms."
        )
    if k3:
        return "FULL_OPENCV", *size, (*base, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0)
    return model, *size, (*base, k1, k2, p1, p2)


def _focal(values: dict[str, Any], name: str, angle: str, side: int) -> float | None:
    """Focal length in pixels, given as such or by the field of view in radians."""
    if name in values:
        return float(values[name])
    return side / 2 / math.tan(float(values[angle]) / 2) if angle in values else None


def _point_cloud(root: Path, named: object, path: Path) -> str:
    """The PLY file that the input names or that lies beside it, relative to the data root."""
    candidates = [str(named)] if named else [name for name in POINT_CLOUDS if (root / name).is_file()]
    if not candidates:
        raise InputError(
            f"{path} comes without points, and the octree is built from them: name a point cloud in ply_file_path or "
            f"put {POINT_CLOUDS[0]} beside it (ns-process-data writes one)."
        )
    return candidates[0]


def _points(point_cloud: Path, undo: NDArray[np.float64]) -> Tracks:
    xyz, rgb = read_ply(point_cloud)
    finite = np.isfinite(xyz).all(axis=1)
    return Tracks.without_observations(xyz[finite] @ undo[:, :3].T + undo[:, 3], rgb[finite])
