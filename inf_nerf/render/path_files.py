"""Camera paths in JSON files: our own format, read and written, and that of nerfstudio's viewer, read.

docs/camera-paths.md documents both.  Everything that is wrong with a file is an :class:`InputError` that names the file
and the place in it.
"""

import difflib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inf_nerf.errors import InputError
from inf_nerf.render.camera_path import CameraPath, pinhole_path
from inf_nerf.scene.frame import WorldFrame
from inf_nerf.scene.scene import Scene

Array = NDArray[np.float64]

DATAPARSER = "dataparser_transforms.json"  # where nerfstudio says how it moved the scene
OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])


def path_from_json(file: Path, scene: Scene) -> CameraPath:
    """A path written by the viewer, by hand or by another program, or one of nerfstudio's."""
    return path_from_description(_read_json(file), scene, str(file), file.parent)


def path_from_description(content: Any, scene: Scene, source: str, folder: Path | None = None) -> CameraPath:
    """The path that the content of such a file describes; errors name it ``source``.

    Poses are in the frame of the input (the COLMAP model or transforms.json) and go through the scene's frame; what
    explains the frame of nerfstudio's lies in ``folder``.
    """
    if "camera_path" in content:
        return _from_nerfstudio(source, content, scene, folder)
    size = _whole(source, content, "width"), _whole(source, content, "height")
    fov = _number(source, content, "fov_degrees", 1e-3, 175.0)
    fps = _number(source, content, "fps", 1, 240)
    poses, fovs, weights = [], [], []
    for index, entry in enumerate(_frames(source, content, "frames")):
        poses.append(_pose(source, f"frames[{index}]", entry.get("camera_to_world")))
        fovs.append(_number(source, entry, "fov_degrees", 1e-3, 175.0) if "fov_degrees" in entry else fov)
        weights.append(_weights(source, f"frames[{index}]", entry.get("appearance"), scene))
    looks = torch.stack(weights) if any(bool(row.any()) for row in weights) else None
    return pinhole_path(scene.frame.camera_to_scene(np.stack(poses)), size, fovs, round(fps), looks)


def path_to_json(path: CameraPath, scene: Scene) -> str:
    """The content of a file from which :func:`path_from_json` reads the path."""
    cameras = path.cameras
    width, height = cameras.level_size(0, 0)
    focal = cameras.intrinsics[cameras.camera_id, 0].double()
    fovs = [math.degrees(2 * math.atan(width / 2 / value)) for value in focal.tolist()]
    frames: list[dict[str, Any]] = []
    for index, pose in enumerate(camera_to_world(cameras.cam_to_world.double().numpy(), scene.frame)):
        entry: dict[str, Any] = {"camera_to_world": [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]}
        if abs(fovs[index] - fovs[0]) > 1e-6:
            entry["fov_degrees"] = fovs[index]
        if path.weights is not None and bool(path.weights[index].any()):
            mixed = torch.nonzero(path.weights[index]).squeeze(1).tolist()
            entry["appearance"] = {scene.photos[i].name: round(float(path.weights[index, i]), 6) for i in mixed}
        frames.append(entry)
    content = {"width": width, "height": height, "fov_degrees": fovs[0], "fps": path.fps, "frames": frames}
    return json.dumps(content, indent=1) + "\n"


def camera_to_world(poses: Array, frame: WorldFrame) -> Array:
    """Poses [F, 3, 4] of the scene in the frame of the input: the inverse of `WorldFrame.camera_to_scene`."""
    centres = frame.to_world(poses[:, :, 3])[:, :, None]
    return np.concatenate([frame.rotation.T @ poses[:, :, :3], centres], axis=-1)


def _from_nerfstudio(source: str, content: dict[str, Any], scene: Scene, folder: Path | None) -> CameraPath:
    """Camera axes of OpenGL, vertical fields of view, and a frame of its own that a file beside it explains."""
    kind = content.get("camera_type", "perspective")
    if kind != "perspective":
        raise InputError(f"{source} has the camera_type {kind!r}; only 'perspective' can be rendered.")
    width, height = _whole(source, content, "render_width"), _whole(source, content, "render_height")
    fps = _number(source, content, "fps", 1, 240)
    to_world = _undo_dataparser(source, folder)
    poses, fovs = [], []
    for index, entry in enumerate(_frames(source, content, "camera_path")):
        place, flat = f"camera_path[{index}]", entry.get("camera_to_world")
        rows = flat
        if isinstance(flat, list) and len(flat) == 16:
            rows = [flat[start : start + 4] for start in range(0, 16, 4)]
        pose = _pose(source, place, rows)
        rotation = to_world.rotation @ pose[:, :3] @ OPENGL_TO_OPENCV
        poses.append(np.concatenate([rotation, to_world.to_scene(pose[:, 3])[:, None]], axis=-1))
        vertical = math.radians(_number(source, entry, "fov", 1e-3, 175.0))
        fovs.append(math.degrees(2 * math.atan(math.tan(vertical / 2) * width / height)))
    return pinhole_path(scene.frame.camera_to_scene(np.stack(poses)), (width, height), fovs, round(fps))


def _undo_dataparser(source: str, folder: Path | None) -> WorldFrame:
    """The similarity from nerfstudio's frame to that of the input."""
    if folder is None or not (folder / DATAPARSER).is_file():
        raise InputError(
            f"{source} is a path of nerfstudio's, in a frame that only the {DATAPARSER} of its training knows; copy it "
            f"into {folder or 'the folder of the path'}."
        )
    content, beside = _read_json(folder / DATAPARSER), str(folder / DATAPARSER)
    scale = _number(beside, content, "scale", 1e-12, 1e12)
    try:
        matrix = np.array(content.get("transform"), np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape not in ((3, 4), (4, 4)) or not np.isfinite(matrix).all():
        raise InputError(f"{beside} gives 'transform' not as a 3 x 4 matrix of numbers; copy it again.")
    rotation, shift = matrix[:3, :3], matrix[:3, 3]
    if not _is_rotation(rotation):
        raise InputError(f"{beside} gives a 'transform' without a rotation in it; copy it again.")
    return WorldFrame.from_parts(1 / scale, rotation.T, scale * shift)


def _weights(source: str, place: str, value: Any, scene: Scene) -> Tensor:
    """Weights [V] of photos' appearances: of one photo by its name, or of several as a mapping."""
    weights = torch.zeros(len(scene.photos))
    if value is None:
        return weights
    mixed = {value: 1.0} if isinstance(value, str) else value
    names = [photo.name for photo in scene.photos]
    if not isinstance(mixed, dict):
        raise InputError(f"{source} gives {place}.appearance neither as a photo's name nor as a mapping; correct it.")
    for name in mixed:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise InputError(f"{source} names in {place}.appearance {name!r}, which is no photo; is {near!r} meant?")
        weights[names.index(name)] = _number(source, mixed, name, 0.0, 1.0)
    if float(weights.sum()) > 1 + 1e-4:
        raise InputError(f"{source} gives {place}.appearance weights whose sum is {float(weights.sum()):g}; at most 1.")
    return weights


def _frames(source: str, content: dict[str, Any], key: str) -> Sequence[dict[str, Any]]:
    frames = content.get(key)
    if not isinstance(frames, list) or not frames:
        raise InputError(f"{source} has no list {key!r} with at least one frame; see docs/camera-paths.md.")
    for index, entry in enumerate(frames):
        if not isinstance(entry, dict):
            raise InputError(f"{source} holds in {key}[{index}] no mapping with 'camera_to_world'; correct that frame.")
    return frames


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise InputError(f"The camera path {file} is not a JSON file ({error}); see docs/camera-paths.md.") from error
    if not isinstance(content, dict):
        raise InputError(f"The camera path {file} holds no JSON object; see docs/camera-paths.md.")
    return content


def _whole(source: str, content: dict[str, Any], key: str) -> int:
    return round(_number(source, content, key, 1, 16384))


def _number(source: str, content: dict[str, Any], key: str, low: float, high: float) -> float:
    value = content.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{source} gives {key!r} as {value!r}; give a number from {low:g} to {high:g}.")
    return float(value)


def _pose(source: str, place: str, value: Any) -> Array:
    """Rotation and centre [3, 4] of a frame."""
    try:
        matrix = np.array(value, np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise InputError(f"{source} gives {place}.camera_to_world not as a 4 x 4 matrix of numbers; correct it.")
    if not _is_rotation(matrix[:3, :3]):
        raise InputError(f"{source} gives {place}.camera_to_world without a rotation in it; correct it.")
    return matrix[:3]


def _is_rotation(matrix: Array) -> bool:
    return bool(np.allclose(matrix.T @ matrix, np.eye(3), atol=1e-3)) and float(np.linalg.det(matrix)) > 0
