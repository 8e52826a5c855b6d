"""The flight over the synthetic city, and the sparse points that a reconstruction of its photos would have.

World frame: metres, z up.  Poses are camera to world with axes x right, y down, z forward; pixel centres lie at .5.
V photos, P points, O observations.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inf_nerf.scene.city.render import SKY, cast
from inf_nerf.scene.city.solids import DENSE, HOMES, PARK, PLAZA, City

FIELD_OF_VIEW_DEGREES = 60.0  # horizontal
NEAR_M = 36.0  # distance from which the lowest flight looks at its target
CLEARANCE_M = 7.0  # free space around a camera
SEEDS = {"far": 110, "mid": 120, "near": 150}  # pixels of a photo that are tried as points
MIN_OBSERVATIONS = 3
MAX_SCALE_CHANGE = 2.5  # a feature is matched only between photos of similar distance
MAX_VIEW_CHANGE_DEGREES = 50.0
DETECTION_RATE = 0.75  # share of the visible points that a photo's features cover
NOISE_PX = 0.3  # standard deviation of an observation, along x and along y


@dataclass(frozen=True)
class Flight:
    """Camera poses and the one pinhole camera that took the photos."""

    names: tuple[str, ...]
    poses: NDArray[np.float64]  # [V, 3, 4] camera to world
    focal: float  # pixels; the principal point is the middle
    width: int
    height: int


@dataclass(frozen=True)
class Tracks:
    """Points with their observations, sorted by point and then by photo."""

    xyz: NDArray[np.float64]  # [P, 3]
    error: NDArray[np.float64]  # [P] mean distance in px between an observation and the projected point
    source: NDArray[np.int64]  # [P] photo whose pixel the point was found in
    source_xy: NDArray[np.float64]  # [P, 2] that pixel position, without noise
    point: NDArray[np.int64]  # [O]
    photo: NDArray[np.int64]  # [O]
    xy: NDArray[np.float64]  # [O, 2] px


def plan_flight(city: City, photos: int, size: int, seed: int) -> Flight:
    """An orbit far out, a lawnmower in the middle, and low orbits around a few places; ``photos`` >= 3 in all."""
    rng = np.random.default_rng([seed, photos, 0xF117])
    near = max(1, round(0.4 * photos))
    middle = max(1, round(0.33 * photos))
    far = photos - near - middle
    shots = {
        "far": _far_orbit(city, far, rng),
        "mid": _lawnmower(city, middle, rng),
        "near": _low_orbits(city, near, rng),
    }
    names = [f"{kind}_{index:03d}.jpg" for kind, poses in shots.items() for index in range(len(poses))]
    width, height = size, round(size * 3 / 4)
    focal = width / 2 / np.tan(np.radians(FIELD_OF_VIEW_DEGREES / 2))
    return Flight(tuple(names), np.array([p for poses in shots.values() for p in poses]), float(focal), width, height)


def _far_distance(city: City) -> float:
    return max(2.3 * city.half_extent, 3 * NEAR_M)


def _far_orbit(city: City, count: int, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Oblique views from a circle around the city, every fourth one straight down."""
    poses = []
    for index in range(count):
        azimuth = 2 * np.pi * (index + float(rng.uniform(-0.2, 0.2))) / count
        target = np.append(rng.uniform(-0.12, 0.12, 2) * city.half_extent, 5.0)
        nadir = index % 4 == 3
        depression = 84.0 if nadir else (40.0, 52.0, 46.0)[index % 3]
        poses.append(_look(target, _far_distance(city) * float(rng.uniform(0.92, 1.05)), azimuth, depression))
    return poses


def _lawnmower(city: City, count: int, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Lines over the city at a medium height; the heading turns by a quarter from photo to photo."""
    distance = float(np.sqrt(_far_distance(city) * NEAR_M))
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    poses = []
    for index in range(count):
        row, column = divmod(index, columns)
        column = column if row % 2 == 0 else columns - 1 - column
        share = np.array([(column + 0.5) / columns, (row + 0.5) / rows]) * 2 - 1
        target = np.append((0.8 * share + rng.uniform(-0.06, 0.06, 2)) * city.half_extent, 6.0)
        azimuth = np.pi / 2 * (index + row) + float(rng.uniform(-0.5, 0.5))
        depression = 82.0 if index % 5 == 4 else float(rng.uniform(44, 58))
        reach = max(distance, (city.top + 2 * CLEARANCE_M) / np.sin(np.radians(depression)))
        poses.append(_look(target, reach, azimuth, depression))
    return poses


def _low_orbits(city: City, count: int, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Circles around some places, as low as the surroundings allow."""
    places = _places(city)
    orbits = min(max(1, round(count / 8)), len(places))
    poses = []
    for index in range(count):
        orbit, turn = index * orbits // count, index % max(1, -(-count // orbits))
        azimuth = 2 * np.pi * (turn + float(rng.uniform(-0.25, 0.25))) * orbits / count
        target = places[orbit] + np.append(rng.uniform(-7, 7, 2), 2.0)
        distance = NEAR_M * float(rng.uniform(0.9, 1.25))
        pose = _look(target, distance, azimuth, 88.0)
        for depression in np.arange((34.0, 42.0, 50.0)[index % 3], 88.0, 4.0):
            candidate = _look(target, distance, azimuth, float(depression))
            if _is_free(city, candidate, distance):
                pose = candidate
                break
        while not _is_free(city, pose, 0.0):
            pose[2, 3] += CLEARANCE_M
        poses.append(pose)
    return poses


def _places(city: City) -> list[NDArray[np.float64]]:
    """Centres of blocks worth a low orbit, the most varied first, as points [3] on the roof or the ground."""
    middle = (len(city.block_x) - 1) / 2
    blocks: list[tuple[float, int, int]] = []
    for rank, use in enumerate((PLAZA, PARK, DENSE, HOMES)):
        for i, j in zip(*np.nonzero(city.block_use == use)):
            blocks.append((float(np.hypot(i - middle, j - middle)) + 0.4 * rank, int(i), int(j)))
    index = np.array([(i, j) for _, i, j in sorted(blocks)])
    above = np.column_stack([city.block_x[index[:, 0]].mean(axis=1), city.block_y[index[:, 1]].mean(axis=1)])
    above = np.column_stack([above, np.full(len(above), city.top + 1)])
    drop, _ = cast(city, above, np.tile([0.0, 0.0, -1.0], (len(above), 1)))
    above[:, 2] -= drop
    return list(above)


def _is_free(city: City, pose: NDArray[np.float64], view_m: float) -> bool:
    """Whether nothing is within the clearance of a camera, nor in the middle of its view before 55 % of ``view_m``."""
    grid = np.array([(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if x or y or z], dtype=float)
    around = grid / np.linalg.norm(grid, axis=1, keepdims=True)
    offsets = np.array([(x, y, 1.0) for x in (-0.4, 0.0, 0.4) for y in (-0.3, 0.0, 0.3)])
    ahead = offsets @ pose[:, :3].T
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    eye = pose[:, 3]
    solids = city.bounds
    inside = np.all((solids[:, :3] - 1 < eye) & (eye < solids[:, 3:] + 1), axis=1).any()
    clear, _ = cast(city, np.tile(eye, (len(around), 1)), around)
    view, _ = cast(city, np.tile(eye, (len(ahead), 1)), ahead)
    return not inside and bool(clear.min() > CLEARANCE_M) and bool(view.min() > 0.55 * view_m)


def _look(
    target: NDArray[np.float64], distance: float, azimuth: float, depression_degrees: float
) -> NDArray[np.float64]:
    """Pose [3, 4] that looks at a target from ``distance``, standing in direction ``azimuth`` of it."""
    down = np.radians(depression_degrees)
    away = np.array([np.cos(down) * np.cos(azimuth), np.cos(down) * np.sin(azimuth), np.sin(down)])
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    return np.column_stack([right, np.cross(-away, right), -away, target + distance * away])


def find_tracks(city: City, flight: Flight, seed: int) -> Tracks:
    """Cast rays from random pixels and keep the surface points that at least three photos see unoccluded."""
    rng = np.random.default_rng([seed, len(flight.names), 0x7AC5])
    xyz, source, source_xy = _seeds(city, flight, rng)
    centre = flight.poses[:, :, 3]
    sight = xyz - centre[source]
    reach = np.linalg.norm(sight, axis=1)
    points, photos, positions = [], [], []
    for photo, pose in enumerate(flight.poses):
        offset = xyz - pose[:, 3]
        distance = np.linalg.norm(offset, axis=1)
        local = offset @ pose[:, :3]
        depth = np.where(local[:, 2] > 0.1, local[:, 2], np.inf)
        exact = flight.focal * local[:, :2] / depth[:, None] + np.array([flight.width, flight.height]) / 2
        seen = exact + rng.normal(0, NOISE_PX, exact.shape)
        cosine = (offset * sight).sum(axis=1) / (distance * reach)
        own = source == photo
        kept = own | (rng.random(len(xyz)) < DETECTION_RATE)
        kept &= np.isfinite(depth) & np.all((seen > 0) & (seen < [flight.width, flight.height]), axis=1)
        kept &= (distance < MAX_SCALE_CHANGE * reach) & (reach < MAX_SCALE_CHANGE * distance)
        kept &= cosine > np.cos(np.radians(MAX_VIEW_CHANGE_DEGREES))
        index = np.nonzero(kept)[0]
        first, _ = cast(city, np.tile(pose[:, 3], (len(index), 1)), offset[index] / distance[index, None])
        index = index[np.abs(first - distance[index]) < 1e-6 * distance[index] + 1e-6]
        points.append(index)
        photos.append(np.full(len(index), photo))
        positions.append(np.concatenate([seen[index], np.linalg.norm(seen - exact, axis=1)[index, None]], axis=1))
    point, photo, position = np.concatenate(points), np.concatenate(photos), np.concatenate(positions)
    count = np.bincount(point, minlength=len(xyz))
    alive = count >= MIN_OBSERVATIONS
    error = np.bincount(point, position[:, 2], minlength=len(xyz)) / np.maximum(count, 1)
    chosen = alive[point]
    point, photo, position = (np.cumsum(alive) - 1)[point[chosen]], photo[chosen], position[chosen]
    order = np.lexsort((photo, point))
    return Tracks(
        xyz=xyz[alive],
        error=error[alive],
        source=source[alive],
        source_xy=source_xy[alive],
        point=point[order],
        photo=photo[order],
        xy=position[order, :2],
    )


def _seeds(
    city: City, flight: Flight, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Surface points [P, 3] behind random pixels, with their photo [P] and position [P, 2].

    Only the city and its rim are kept: the bare fields around it have no features.
    """
    counts = [SEEDS[name.split("_")[0]] for name in flight.names]
    source = np.repeat(np.arange(len(counts)), counts)
    xy = rng.uniform(0, 1, (len(source), 2)) * [flight.width, flight.height]
    local = np.column_stack([(xy - np.array([flight.width, flight.height]) / 2) / flight.focal, np.ones(len(xy))])
    direction = np.einsum("pij,pj->pi", flight.poses[source, :, :3], local)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    origin = flight.poses[source, :, 3]
    distance, solid = cast(city, origin, direction)
    hit = solid != SKY
    xyz = origin[hit] + distance[hit, None] * direction[hit]
    inside = np.abs(xyz[:, :2]).max(axis=1) < city.half_extent + 12.0
    return xyz[inside], source[hit][inside], xy[hit][inside]
