"""Camera paths: around the scene, from far to near, along the photos, or from a JSON file.

Paths are smooth and repeatable.  Orbit, spiral and zoom look at the scene, start from what the sparse points say about
it and stay above its ground.  Camera axes are x right, y down, z forward; positions are in the scene frame, z up.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from inf_nerf.config import RenderConfig
from inf_nerf.errors import InputError
from inf_nerf.render.camera_path import CameraPath, rendered_path
from inf_nerf.render.path_files import path_from_json
from inf_nerf.render.poses import between, look_at, travel
from inf_nerf.scene.scene import Scene

Array = NDArray[np.float64]

ORBIT_ELEVATION = 38.0  # degrees above the horizon, as seen from the scene's centre
ZOOM_ELEVATION = 52.0
SPIRAL_ELEVATIONS = 30.0, 60.0  # degrees, at its start and its end
SPIRAL_TURNS = 2.0
SPIRAL_CLOSER = 0.3  # distance to the centre at the end, as a part of that at the start
ZOOM_TURN = 30.0  # degrees around the target over the whole zoom
NUM_AZIMUTHS = 16  # directions that a zoom chooses from
FINEST_PART = 0.1  # the points with the smallest footprints, among which a zoom looks for its target
CLEARANCE = 0.25  # smallest distance to points along a zoom, as a part of the distance to the target
GROUND_NEIGHBOURS = 32  # points whose height says where the ground is
FRAMES_PER_PHOTO = 8  # frames from one photo of the photos' path to the next
POINT_LIMIT = 10_000  # points looked at; more add time but no shape


def named_path(name: str, scene: Scene, render: RenderConfig, finest_footprint: float) -> CameraPath:
    """The path ``orbit``, ``spiral``, ``zoom`` or ``photos``, or the one in the JSON file ``name``.

    ``finest_footprint`` (scene units) is the pixel footprint at which a zoom ends.  Raises :class:`InputError` for
    anything else, for a file that cannot be used, and for a scene with too little in it.
    """
    makers: dict[str, Callable[[], CameraPath]] = {
        "orbit": lambda: orbit(scene, render),
        "spiral": lambda: spiral(scene, render),
        "zoom": lambda: zoom(scene, render, finest_footprint),
        "photos": lambda: photos(scene, render),
    }
    if name in makers:
        return makers[name]()
    if not Path(name).is_file():
        raise InputError(
            f"The camera path {name!r} is neither orbit, spiral, zoom or photos nor a JSON file that exists."
        )
    return path_from_json(Path(name), scene)


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


def spiral(scene: Scene, render: RenderConfig) -> CameraPath:
    """Around the scene's centre while coming nearer at a constant rate, and higher above the horizon."""
    points = _points_inside(scene)
    centre = np.median(points, axis=0)
    part = np.linspace(0.0, 1.0, render.frames) if render.frames > 1 else np.zeros(1)
    low, high = SPIRAL_ELEVATIONS
    directions = np.stack([_direction(2 * math.pi * SPIRAL_TURNS * at, low + (high - low) * at) for at in part])
    far = max(_framing_distance(_extent(points), centre, directions[0], render), 1e-3)
    distance = far * SPIRAL_CLOSER**part
    eyes = centre + distance[:, None] * directions
    for eye, away in zip(eyes, distance):
        eye[2] = max(eye[2], _ground_height(points, eye) + 0.2 * away)
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

    As many evenly spread photos are passed as the number of frames leaves room for.  With `render.appearance` "photos"
    each frame mixes the appearances of the two that it is between.
    """
    order = sorted(range(len(scene.photos)), key=lambda index: scene.photos[index].name)
    num_keys = min(len(order), max(2, render.frames // FRAMES_PER_PHOTO))
    keys = [order[round(position)] for position in np.linspace(0, len(order) - 1, num_keys)]
    poses, time = travel(scene.cameras.cam_to_world[keys].double().numpy(), render.frames)
    if render.appearance == "mean":
        return rendered_path(poses, render)
    of_keys = np.eye(len(scene.photos))[keys]  # [K, V]
    return rendered_path(poses, render, torch.from_numpy(between(of_keys, time)).float())


def _looking_at(eyes: Array, targets: Array, render: RenderConfig) -> CameraPath:
    return rendered_path(np.stack([look_at(eye, target) for eye, target in zip(eyes, targets)]), render)


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
