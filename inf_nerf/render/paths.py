"""Camera paths: around the scene, from far to near, along the photos, or from a JSON file.

Paths are smooth and repeatable.  Orbit and zoom look at the scene, start from what the sparse points say about it and
stay above its ground.  Camera axes are x right, y down, z forward; positions are in the scene frame, z up.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from inf_nerf.config import RenderConfig
from inf_nerf.errors import InputError
from inf_nerf.scene.cameras import Cameras
from inf_nerf.scene.frame import WorldFrame
from inf_nerf.scene.scene import Scene

Array = NDArray[np.float64]

ORBIT_ELEVATION = 38.0  # degrees above the horizon, as seen from the scene's centre
ZOOM_ELEVATION = 52.0
ZOOM_TURN = 30.0  # degrees around the target over the whole zoom
NUM_AZIMUTHS = 16  # directions that a zoom chooses from
FINEST_PART = 0.1  # the points with the smallest footprints, among which a zoom looks for its target
CLEARANCE = 0.25  # smallest distance to points along a zoom, as a part of the distance to the target
GROUND_NEIGHBOURS = 32  # points whose height says where the ground is
FRAMES_PER_PHOTO = 8  # frames from one photo of the photos' path to the next
TURN_LENGTH = 0.5  # scene units of movement that count as much as a turn by one radian
POINT_LIMIT = 10_000  # points looked at; more add time but no shape


@dataclass(frozen=True, eq=False)
class CameraPath:
    """Views in the order in which a video shows them."""

    cameras: Cameras
    fps: int

    def __len__(self) -> int:
        return len(self.cameras)


def named_path(name: str, scene: Scene, render: RenderConfig, finest_footprint: float) -> CameraPath:
    """The path ``orbit``, ``zoom`` or ``photos``, or the one in the JSON file ``name``.

    ``finest_footprint`` (scene units) is the pixel footprint at which a zoom ends.  Raises :class:`InputError` for
    anything else, for a file that cannot be used, and for a scene with too little in it.
    """
    makers: dict[str, Callable[[], CameraPath]] = {
        "orbit": lambda: orbit(scene, render),
        "zoom": lambda: zoom(scene, render, finest_footprint),
        "photos": lambda: photos(scene, render),
    }
    if name in makers:
        return makers[name]()
    if not Path(name).is_file():
        raise InputError(f"The camera path {name!r} is neither orbit, zoom or photos nor a JSON file that exists.")
    return path_from_json(Path(name), scene.frame)


def orbit(scene: Scene, render: RenderConfig) -> CameraPath:
    """A full circle around the scene's centre, from obliquely above."""
    points = _points_inside(scene)
    centre = np.median(points, axis=0)
    low, high = np.percentile(points, (5, 95), axis=0)
    reach = float(np.linalg.norm((high - low)[:2])) / 2
    distance = 1.15 * reach / math.tan(math.radians(render.fov_degrees) / 2)
    distance = max(distance, 1e-3)
    angles = 2 * math.pi * np.arange(render.frames) / render.frames
    eyes = centre + distance * np.stack([_direction(angle, ORBIT_ELEVATION) for angle in angles])
    eyes[:, 2] = np.maximum(eyes[:, 2], np.percentile(points[:, 2], 99) + 0.05 * distance)
    return _looking_at(eyes, np.broadcast_to(centre, eyes.shape), render)


def zoom(scene: Scene, render: RenderConfig, finest_footprint: float) -> CameraPath:
    """From a view of the whole scene down to where its points are finest, closing in at a constant rate.

    The distance to the target shrinks by the same factor in every frame, and with it the footprint of a pixel, so every
    octree level is on the screen for the same time.  The last frame's pixels have ``finest_footprint`` (scene units).
    """
    points = _points_inside(scene)
    centre = np.median(points, axis=0)
    target = _finest_place(scene)
    pixel = 2 * math.tan(math.radians(render.fov_degrees) / 2) / render.width  # footprint per unit distance
    near = finest_footprint / pixel
    part = np.linspace(0.0, 1.0, render.frames) if render.frames > 1 else np.zeros(1)

    def track(azimuth: float) -> tuple[Array, Array]:
        """Eyes and points looked at, [F, 3] each, of a zoom that ends in direction ``azimuth``."""
        start = _direction(azimuth - math.radians(ZOOM_TURN), ZOOM_ELEVATION)
        far = max(_framing_distance(_extent(points), centre, start, render), 2 * near)
        distance = far * (near / far) ** part  # [F]
        share = (distance - near) / (far - near)  # of the way from the target to the centre
        looked_at = target + share[:, None] * (centre - target)
        azimuths = azimuth - math.radians(ZOOM_TURN) * (1 - part)
        directions = np.stack([_direction(angle, ZOOM_ELEVATION) for angle in azimuths])
        return looked_at + distance[:, None] * directions, looked_at

    tracks = [track(2 * math.pi * step / NUM_AZIMUTHS) for step in range(NUM_AZIMUTHS)]
    free = [_clearance(eyes, looked_at, points) for eyes, looked_at in tracks]
    # The first free direction, or else the freest: the choice must not depend on rounding.
    chosen = next((index for index, value in enumerate(free) if value > CLEARANCE), int(np.argmax(free)))
    eyes, looked_at = tracks[chosen]
    eyes = eyes.copy()
    for index, eye in enumerate(eyes):
        eye[2] = max(eye[2], _ground_height(points, eye) + 0.2 * float(np.linalg.norm(eye - looked_at[index])))
    return _looking_at(eyes, looked_at, render)


def photos(scene: Scene, render: RenderConfig) -> CameraPath:
    """Through the places of photos in the order of their names, with smooth turns, seen by the path's own camera.

    As many evenly spread photos are passed as the number of frames leaves room for.
    """
    order = sorted(range(len(scene.photos)), key=lambda index: scene.photos[index].name)
    num_keys = min(len(order), max(2, render.frames // FRAMES_PER_PHOTO))
    keys = [order[round(position)] for position in np.linspace(0, len(order) - 1, num_keys)]
    pose = scene.cameras.cam_to_world[keys].double().numpy()  # [K, 3, 4]
    time = _steady_time(pose, render.frames)
    eyes = _spline(pose[:, :, 3], time)
    rotations = _slerp(pose[:, :, :3], time)
    poses = np.concatenate([rotations, eyes[:, :, None]], axis=-1)
    return _path(poses, render)


def path_from_json(file: Path, frame: WorldFrame) -> CameraPath:
    """A path written by hand or by another program; docs/camera-paths.md documents the file.

    Raises :class:`InputError` naming the file and the place in it.
    """
    return path_from_description(_read_json(file), frame, str(file))


def path_from_description(content: Mapping[str, Any], frame: WorldFrame, source: str) -> CameraPath:
    """The path that the content of such a file describes.

    Poses are in the frame of the input (the COLMAP model or transforms.json) and go through ``frame``.  Raises
    :class:`InputError` naming ``source`` and the place in it.
    """
    width, height = _number(source, content, "width", 1, 16384), _number(source, content, "height", 1, 16384)
    fov = _number(source, content, "fov_degrees", 1e-3, 175.0)
    fps = _number(source, content, "fps", 1, 240)
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise InputError(f"{source} has no list 'frames' with at least one frame; see docs/camera-paths.md.")
    poses, focal = [], []
    for index, entry in enumerate(frames):
        if not isinstance(entry, dict):
            raise InputError(
                f"{source} holds in frames[{index}] no mapping with 'camera_to_world'; correct that frame."
            )
        poses.append(_pose(source, index, entry.get("camera_to_world")))
        own = _number(source, entry, "fov_degrees", 1e-3, 175.0) if "fov_degrees" in entry else fov
        focal.append(width / 2 / math.tan(math.radians(own) / 2))
    cam_to_world = frame.camera_to_scene(np.stack(poses))
    views = torch.from_numpy(cam_to_world).float()
    base = Cameras.pinhole(views, int(width), int(height), fov).state()
    count = len(poses)
    base["camera_id"] = torch.arange(count)
    base["size"] = base["size"].expand(count, 2).clone()
    base["grid_shape"] = base["grid_shape"].expand(count, 2).clone()
    base["grid_start"] = base["grid_start"].expand(count).clone()
    base["intrinsics"] = torch.tensor([[value, value, width / 2, height / 2] for value in focal])
    return CameraPath(Cameras.from_state(base), round(fps))


def look_at(eye: ArrayLike, target: ArrayLike) -> Array:
    """Pose [3, 4] of a camera at ``eye`` that looks at ``target`` with the horizon level."""
    position = np.asarray(eye, np.float64)
    forward = np.asarray(target, np.float64) - position
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    if np.linalg.norm(right) < 1e-9:  # straight down: any horizon will do
        right = np.array((1.0, 0.0, 0.0))
    right = right / np.linalg.norm(right)
    down = np.cross(forward, right)
    return np.stack([right, down, forward, position], axis=-1)


def _looking_at(eyes: Array, targets: Array, render: RenderConfig) -> CameraPath:
    return _path(np.stack([look_at(eye, target) for eye, target in zip(eyes, targets)]), render)


def _path(poses: Array, render: RenderConfig) -> CameraPath:
    views = torch.from_numpy(np.ascontiguousarray(poses)).float()
    return CameraPath(Cameras.pinhole(views, render.width, render.height, render.fov_degrees), render.fps)


def _direction(azimuth: float, elevation_degrees: float) -> Array:
    """Unit vector [3] from the target to the eye."""
    elevation = math.radians(elevation_degrees)
    flat = math.cos(elevation)
    return np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)])


def _points_inside(scene: Scene) -> Array:
    """Sparse points of the root cube, [P', 3], thinned evenly; InputError if there are none."""
    xyz = scene.points.xyz.double().numpy()
    inside = xyz[(np.abs(xyz) <= 1).all(axis=1)]
    if len(inside) == 0:
        raise InputError("The scene has no sparse points in its cube to aim at; give a camera path as a JSON file.")
    return inside[:: max(1, len(inside) // POINT_LIMIT)]


def _extent(points: Array) -> tuple[Array, Array]:
    """Opposite corners of the box that holds the scene but for its outermost points."""
    low, high = np.percentile(points, (1, 99), axis=0)
    return low, high


def _framing_distance(box: tuple[Array, Array], centre: Array, direction: Array, render: RenderConfig) -> float:
    """Distance from ``centre`` along ``direction`` from which all corners of ``box`` are in the picture."""
    corners = np.stack(np.meshgrid(*np.stack(box, axis=-1), indexing="ij"), axis=-1).reshape(8, 3) - centre
    axes = look_at(centre + direction, centre)[:, :3]  # columns right, down, forward
    right, down, forward = (corners @ axes).T  # [8] each
    half_width = math.tan(math.radians(render.fov_degrees) / 2)
    half_height = half_width * render.height / render.width
    # A corner at depth (distance + forward) is seen if |right| <= half_width * depth, and so for down.
    return float(np.max(np.maximum(np.abs(right) / half_width, np.abs(down) / half_height) - forward))


def _finest_place(scene: Scene) -> Array:
    """Centre [3] of the densest spot among the finest points of the cube."""
    xyz = scene.points.xyz.double().numpy()
    footprint = scene.points.footprint.double().numpy()
    inside = (np.abs(xyz) <= 1).all(axis=1)
    xyz, footprint = xyz[inside], footprint[inside]
    finest = xyz[footprint <= np.quantile(footprint, FINEST_PART)]
    cell = np.floor(finest / 0.1).astype(np.int64)
    cells, member, count = np.unique(cell, axis=0, return_inverse=True, return_counts=True)
    # Near the rim of the scene a picture shows little else than background, so spots count by their centrality too.
    away = np.linalg.norm((cells + 0.5)[:, :2] * 0.1 - np.median(xyz[:, :2], axis=0), axis=1)
    best = int(np.argmax(count * np.exp(-((away / 0.5) ** 2))))
    return np.median(finest[member.reshape(-1) == best], axis=0)


def _clearance(eyes: Array, targets: Array, points: Array) -> float:
    """Smallest distance from an eye to a point, as a part of its distance to what it looks at."""
    nearest = [
        np.sqrt(np.min(np.sum((points - eye) ** 2, axis=1))) / np.linalg.norm(eye - target)
        for eye, target in zip(eyes, targets)
    ]
    return float(min(nearest))


def _ground_height(points: Array, eye: Array) -> float:
    """Height of the ground below ``eye``: the lower quartile of the points nearest to it in plan."""
    away = np.sum((points[:, :2] - eye[:2]) ** 2, axis=1)
    near = np.argpartition(away, min(GROUND_NEIGHBOURS, len(points)) - 1)[:GROUND_NEIGHBOURS]
    return float(np.quantile(points[near, 2], 0.25))


def _steady_time(pose: Array, num_frames: int) -> Array:
    """Times [F] in [0, K - 1] at which a path through poses [K, 3, 4] moves and turns by equal amounts."""
    if len(pose) == 1 or num_frames == 1:
        return np.zeros(num_frames)
    fine = np.linspace(0, len(pose) - 1, 40 * (len(pose) - 1) + 1)
    moved = np.linalg.norm(np.diff(_spline(pose[:, :, 3], fine), axis=0), axis=1)
    forward = _slerp(pose[:, :, :3], fine)[:, :, 2]
    amount = moved + TURN_LENGTH * np.linalg.norm(np.diff(forward, axis=0), axis=1) + 1e-9
    reached = np.concatenate([[0.0], np.cumsum(amount)])
    return np.interp(np.linspace(0, reached[-1], num_frames), reached, fine)


def _spline(keys: Array, time: Array) -> Array:
    """Catmull-Rom curve [F, 3] through ``keys`` [K, 3] at times in [0, K - 1]; the ends are continued straight."""
    if len(keys) == 1:
        return np.repeat(keys, len(time), axis=0)
    padded = np.concatenate([2 * keys[:1] - keys[1:2], keys, 2 * keys[-1:] - keys[-2:-1]])
    first = np.minimum(time.astype(np.int64), len(keys) - 2)
    t = (time - first)[:, None]
    a, b, c, d = (padded[first + offset] for offset in range(4))
    return b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


def _slerp(keys: Array, time: Array) -> Array:
    """Rotations [F, 3, 3] between ``keys`` [K, 3, 3] at times in [0, K - 1], at constant speed between two keys."""
    if len(keys) == 1:
        return np.repeat(keys, len(time), axis=0)
    first = np.minimum(time.astype(np.int64), len(keys) - 2)
    rotations = []
    for index, moment in zip(first, time):
        start, end = keys[index], keys[index + 1]
        rotations.append(start @ _turn(start.T @ end, moment - index))
    return np.stack(rotations)


def _turn(rotation: Array, part: float) -> Array:
    """A part of a rotation [3, 3], about the same axis."""
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine, cosine = np.linalg.norm(axis) / 2, (np.trace(rotation) - 1) / 2
    angle = math.atan2(sine, cosine)
    if angle < 1e-9:
        return np.eye(3)
    if sine < 1e-6:  # half a turn: the axis is in the symmetric part
        axis = (rotation + np.eye(3))[:, int(np.argmax(np.diag(rotation)))]
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(part * angle) * cross + (1 - math.cos(part * angle)) * cross @ cross


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise InputError(f"The camera path {file} is not a JSON file ({error}); see docs/camera-paths.md.") from error
    if not isinstance(content, dict):
        raise InputError(f"The camera path {file} holds no JSON object; see docs/camera-paths.md.")
    return content


def _number(source: str, content: Mapping[str, Any], key: str, low: float, high: float) -> float:
    value = content.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{source} gives {key!r} as {value!r}; give a number from {low:g} to {high:g}.")
    return float(value)


def _pose(source: str, index: int, value: Any) -> Array:
    """Rotation and centre [3, 4] of a frame."""
    try:
        matrix = np.array(value, np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise InputError(
            f"{source} gives frames[{index}].camera_to_world not as a 4 x 4 matrix of numbers; correct it."
        )
    rotation = matrix[:3, :3]
    if not np.allclose(rotation.T @ rotation, np.eye(3), atol=1e-3) or np.linalg.det(rotation) < 0:
        raise InputError(f"{source} gives frames[{index}].camera_to_world without a rotation in it; correct it.")
    return matrix[:3]
