"""Where on the earth the coordinates of the input lie.

Letters: V photos.  Found in the input, in this order: coordinates that are earth-centred already, OpenDroneMap's
``coords.txt``, GPS positions in the photos' EXIF.  The last two give positions of cameras, to which the cameras of the
input are fitted by a similarity that some wrong positions do not move.  Or the user says it: ``--crs`` (the
coordinates are in a projected system) or ``--origin`` (they are metres east, north and up of a place).

Earth-centred coordinates are those of WGS 84 (EPSG:4978), heights are above its ellipsoid; a receiver that gives
heights above sea level shifts everything by as much.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from inf_nerf.errors import InputError
from inf_nerf.export.optional import needed_for
from inf_nerf.scene.scene import Scene

Array = NDArray[np.float64]

SEMI_MAJOR, FLATTENING = 6_378_137.0, 1 / 298.257_223_563  # of WGS 84, metres
ECCENTRICITY_2 = FLATTENING * (2 - FLATTENING)
EARTH_RADII = 6.3e6, 6.45e6  # metres from the earth's centre between which all photos are taken
ECEF, GEODETIC = "EPSG:4978", "EPSG:4979"
COORDS = ("coords.txt", "odm_georeferencing/coords.txt")
GPS_IFD = 0x8825
MIN_POSITIONS = 3
DRAWS, SEED = 500, 0  # triples of cameras that the robust fit tries
INLIER = 3.0  # times the median distance
ON_A_LINE = 0.05  # extent across a flight over the extent along it, below which the roll about it is not known
ALIGNED = math.radians(2.0), 0.02  # angle and share of the scale within which a model counts as registered


@dataclass(frozen=True, eq=False)
class Georeference:
    """The map from the input's coordinates to the earth."""

    to_ecef: Array  # [4, 4] float64, input coordinates -> earth-centred, metres
    crs: str  # projected system in which exports are written, e.g. "EPSG:32633"
    source: str  # where it is known from, for people
    residual_m: float | None = None  # median distance of the cameras from their positions
    is_input_crs: bool = False  # the input's coordinates are in `crs` themselves

    def __post_init__(self) -> None:
        assert self.to_ecef.shape == (4, 4) and self.to_ecef.dtype == np.float64

    @property
    def metres_per_unit(self) -> float:
        """Of the input's coordinates."""
        return float(np.cbrt(np.linalg.det(self.to_ecef[:3, :3])))

    def to_crs(self, xyz: ArrayLike) -> Array:
        """Input coordinates [P, 3] in the projected system: east, north, height."""
        if self.is_input_crs:
            return np.asarray(xyz, np.float64)
        return transform(self._forward, apply(self.to_ecef, np.asarray(xyz, np.float64)))

    def from_crs(self, xyz: ArrayLike) -> Array:
        """Inverse of :meth:`to_crs`."""
        if self.is_input_crs:
            return np.asarray(xyz, np.float64)
        return apply(_inverse(self.to_ecef), transform(self._backward, np.asarray(xyz, np.float64)))

    @cached_property
    def _forward(self) -> Any:
        return transformer(ECEF, self.crs)

    @cached_property
    def _backward(self) -> Any:
        return transformer(self.crs, ECEF)


def find_georeference(
    scene: Scene, crs: str | None = None, origin: tuple[float, float, float] | None = None
) -> Georeference | None:
    """What the input, or the user by a projected system or an origin (degrees, degrees, metres), says; else None.

    Raises :class:`InputError` for positions that cannot belong to the photos.
    """
    centres = scene.frame.to_world(scene.cameras.centre.double().numpy())
    if crs is not None:
        return from_input_crs(crs, centres)
    if origin is not None:
        return Georeference(enu_to_ecef(*origin), utm_zone(*origin[:2]), f"the origin {origin[0]:g}, {origin[1]:g}")
    radii = np.linalg.norm(centres, axis=1)
    if radii.min() > EARTH_RADII[0] and radii.max() < EARTH_RADII[1]:
        lat, lon, _ = transform(transformer(ECEF, GEODETIC), np.median(centres, axis=0)[None])[0]
        return Georeference(np.eye(4), utm_zone(lat, lon), "earth-centred coordinates of the input")
    root = Path(scene.root)
    for name in COORDS:
        if (root / name).is_file():
            zone, positions = read_coords(root / name, len(centres))
            return fitted(centres, transform(transformer(zone, ECEF), positions), scene.frame.up, name, zone)
    found = [exif_position(root / photo.file) for photo in scene.photos]
    known = np.array([position is not None for position in found])
    if known.sum() < MIN_POSITIONS:
        return None
    positions = np.array([geodetic_to_ecef(*position) for position in found if position is not None])
    return fitted(centres[known], positions, scene.frame.up, f"the GPS positions of {known.sum()} photos", None)


def from_input_crs(crs: str, centres: Array) -> Georeference:
    """Of an input whose coordinates are in the system ``crs``, linear about the cameras where it has to be."""
    system = _projected(crs)
    middle = np.median(centres, axis=0)
    step = max(1.0, float(np.abs(centres - middle).max()))
    ends = middle + step * np.concatenate((np.eye(3), -np.eye(3)))
    there = transform(transformer(crs, ECEF), np.concatenate((middle[None], ends)))
    if not np.isfinite(there).all():
        raise InputError(f"The coordinates of the cameras, about {middle.round()}, are not within {system.name}.")
    matrix = np.eye(4)
    matrix[:3, :3] = ((there[1:4] - there[4:]) / (2 * step)).T
    matrix[:3, 3] = there[0] - matrix[:3, :3] @ middle
    return Georeference(matrix, crs, f"coordinates of the input in {system.name}", is_input_crs=True)


def fitted(centres: Array, positions: Array, up: Array, what: str, crs: str | None) -> Georeference:
    """Of cameras at ``centres`` [V, 3] whose earth-centred ``positions`` [V, 3] are known; ``up`` [3] unit, where they
    are on one line."""
    lat, lon, height = transform(transformer(ECEF, GEODETIC), np.median(positions, axis=0)[None])[0]
    tangent = enu_to_ecef(lat, lon, height)
    enu = apply(_inverse(tangent), positions)
    matrix = fit_similarity(centres, enu, up)
    away = np.linalg.norm(apply(matrix, centres) - enu, axis=1)
    residual, extent = float(np.median(away)), float(np.median(np.linalg.norm(enu - np.median(enu, axis=0), axis=1)))
    if not residual < extent:
        raise InputError(
            f"The cameras are {residual:.0f} m (median) off {what}, which lie {extent:.0f} m around their middle, so "
            "these belong to other photos; name the place with --origin or the system with --crs."
        )
    scale = float(np.cbrt(np.linalg.det(matrix[:3, :3])))
    turned = math.acos(max(-1.0, min(1.0, (np.trace(matrix[:3, :3] / scale) - 1) / 2)))
    aligned = turned < ALIGNED[0] and abs(scale - 1) < ALIGNED[1]
    source = f"{what} (the input is registered to east, north, up already)" if aligned else what
    return Georeference(tangent @ matrix, crs or utm_zone(lat, lon), source, residual)


def fit_similarity(source: Array, target: Array, up: Array) -> Array:
    """The similarity [4, 4] that brings points ``source`` [V, 3] to ``target`` [V, 3], of which fewer than half may be
    wrong: least median of squares over triples, then least squares over what lies within three medians.

    Where the points lie on one line, ``up`` [3] of the source becomes the third axis of the target.
    """
    extent = np.linalg.svd(source - source.mean(axis=0), compute_uv=False)
    if len(source) < MIN_POSITIONS or extent[1] < ON_A_LINE * extent[0]:
        spread = [float(np.median(np.linalg.norm(x - np.median(x, axis=0), axis=1))) for x in (source, target)]
        raised = source + spread[0] * up, target + spread[1] * np.array([0.0, 0.0, 1.0])
        return least_squares(np.concatenate((source, raised[0])), np.concatenate((target, raised[1])))
    draw = np.random.default_rng(SEED)
    best, least = least_squares(source, target), math.inf
    for attempt in range(DRAWS):
        triple = draw.choice(len(source), MIN_POSITIONS, replace=False)
        matrix = best if attempt == 0 else least_squares(source[triple], target[triple])
        median = float(np.median(_distance(matrix, source, target)))
        if median < least:
            best, least = matrix, median
    for _ in range(5):
        away = _distance(best, source, target)
        near = away <= INLIER * max(float(np.median(away)), np.finfo(np.float32).tiny)
        best = least_squares(source[near], target[near])
    return best


def least_squares(source: Array, target: Array) -> Array:
    """The similarity [4, 4] that brings ``source`` [V, 3] nearest to ``target`` [V, 3] (Umeyama 1991)."""
    middle, goal = source.mean(axis=0), target.mean(axis=0)
    left, stretch, right = np.linalg.svd((target - goal).T @ (source - middle))
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(left) * np.linalg.det(right)) or 1.0])
    rotation = left * sign @ right
    scale = (stretch * sign).sum() / max(((source - middle) ** 2).sum(), np.finfo(float).tiny)
    matrix = np.eye(4)
    matrix[:3, :3] = scale * rotation
    matrix[:3, 3] = goal - scale * rotation @ middle
    return matrix


def exif_position(photo: Path) -> tuple[float, float, float] | None:
    """Latitude and longitude in degrees and height in metres from a photo's EXIF; None where it has none."""
    try:
        with Image.open(photo) as image:
            gps = image.getexif().get_ifd(GPS_IFD)
        lat, lon = (sum(float(part) / 60**k for k, part in enumerate(gps[tag])) for tag in (2, 4))
        height = float(gps[6]) * (-1 if gps.get(5) in (1, b"\x01") else 1)
        lat, lon = lat * (-1 if gps.get(1) == "S" else 1), lon * (-1 if gps.get(3) == "W" else 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
    usable = all(math.isfinite(value) for value in (lat, lon, height)) and (lat, lon) != (0.0, 0.0)
    return (lat, lon, height) if usable else None


def read_coords(path: Path, num_photos: int) -> tuple[str, Array]:
    """Projected system and positions [V, 3] of OpenDroneMap's ``coords.txt``: the system, an offset, one line a photo
    in the order of their names.  Raises :class:`InputError` for what is not."""
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    try:
        head, offset = " ".join(lines[0]), [float(value) for value in lines[1]]
        positions = np.array([[float(value) for value in line[:3]] for line in lines[2:]], np.float64).reshape(-1, 3)
        positions[:, :2] += offset[:2]
    except (IndexError, ValueError) as error:
        raise InputError(f"{path} is no coords.txt of OpenDroneMap ({error}); put the right one there.") from error
    if len(positions) != num_photos:
        raise InputError(
            f"{path} has positions of {len(positions)} photos where the input has {num_photos}; put the one of these "
            "photos there, or remove it and name the place with --origin."
        )
    zone = re.fullmatch(r"WGS84 UTM (\d+)\s*([NS])", head)
    crs = f"EPSG:{(32600 if zone[2] == 'N' else 32700) + int(zone[1])}" if zone else head
    _projected(crs)
    return crs, positions


def utm_zone(lat: float, lon: float) -> str:
    """The UTM zone of a place, of WGS 84."""
    return f"EPSG:{(32600 if lat >= 0 else 32700) + int((lon + 180) // 6) % 60 + 1}"


def geodetic_to_ecef(lat: float, lon: float, height: float) -> Array:
    """Earth-centred coordinates [3] of a place (degrees, degrees, metres)."""
    phi, theta = math.radians(lat), math.radians(lon)
    normal = SEMI_MAJOR / math.sqrt(1 - ECCENTRICITY_2 * math.sin(phi) ** 2)
    across = (normal + height) * math.cos(phi)
    up = (normal * (1 - ECCENTRICITY_2) + height) * math.sin(phi)
    return np.array([across * math.cos(theta), across * math.sin(theta), up])


def enu_to_ecef(lat: float, lon: float, height: float) -> Array:
    """The motion [4, 4] from metres east, north and up of a place to earth-centred coordinates."""
    (sin_lat, cos_lat), (sin_lon, cos_lon) = (
        (math.sin(a), math.cos(a)) for a in (math.radians(lat), math.radians(lon))
    )
    matrix = np.eye(4)
    matrix[:3, 0] = -sin_lon, cos_lon, 0.0
    matrix[:3, 1] = -sin_lat * cos_lon, -sin_lat * sin_lon, cos_lat
    matrix[:3, 2] = cos_lat * cos_lon, cos_lat * sin_lon, sin_lat
    matrix[:3, 3] = geodetic_to_ecef(lat, lon, height)
    return matrix


def apply(matrix: Array, xyz: Array) -> Array:
    """Points [P, 3] moved by an affine map [4, 4]."""
    return xyz @ matrix[:3, :3].T + matrix[:3, 3]


def transformer(source: str, target: str) -> Any:
    """pyproj's transformation between two systems; :class:`InputError` for one that it does not know."""
    with needed_for("A georeference"):
        from pyproj import Transformer
        from pyproj.exceptions import ProjError
    try:
        return Transformer.from_crs(source, target)
    except ProjError as error:
        raise InputError(
            f"The system {source} or {target} is unknown ({error}); use a code such as EPSG:32633."
        ) from error


def transform(between: Any, xyz: Array) -> Array:
    """Points [P, 3] by a transformation of :func:`transformer`, east before north but for latitude and longitude."""
    return np.stack(between.transform(xyz[:, 0], xyz[:, 1], xyz[:, 2]), axis=-1)


def _projected(crs: str) -> Any:
    """pyproj's system, which must be projected, in metres, east before north."""
    with needed_for("A georeference"):
        from pyproj import CRS
        from pyproj.exceptions import CRSError
    try:
        system = CRS.from_user_input(crs)
    except CRSError as error:
        raise InputError(f"The system {crs!r} is unknown; use a code such as EPSG:32633.") from error
    axes = [(axis.direction, axis.unit_name) for axis in system.axis_info[:2]]
    if not system.is_projected or axes != [("east", "metre"), ("north", "metre")]:
        raise InputError(
            f"The system {crs!r} is not projected with metres to the east and north; use one that is, such as UTM."
        )
    return system


def _distance(matrix: Array, source: Array, target: Array) -> Array:
    return np.linalg.norm(apply(matrix, source) - target, axis=1)


def _inverse(matrix: Array) -> Array:
    return np.linalg.inv(matrix).astype(np.float64)
