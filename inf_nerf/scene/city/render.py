"""Photographs of the synthetic city: analytic ray casting, sun and shadow, and exact-area anti-aliasing.

World frame: metres, z up.  Camera axes x right, y down, z forward; the centre of the top-left pixel is (0.5, 0.5).
Surfaces are Lambertian and haze depends on the place, not on the camera, so a point has one colour in all photos.
A pixel is the mean of 2 x 2 samples that tile it, or of 3 x 3 where those disagree.  R rays.
"""

import functools
import math
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from inf_nerf.files import fingerprint
from inf_nerf.scene.city.facade import flat_roof, leaves, pitched_roof, wall
from inf_nerf.scene.city.ground import ground
from inf_nerf.scene.city.solids import BOX, ELLIPSOID, GABLE_X, GABLE_Y, HIP, LEAVES, TILES, City
from inf_nerf.scene.city.texture import Rgb, compiled, fractal, mix

GROUND, SKY = -1, -2  # what a ray meets instead of a solid
SUN: Rgb = (-0.48, -0.36, 0.80)  # direction to the sun, unit length
SUNLIGHT: Rgb = (0.64, 0.59, 0.50)
SKYLIGHT: Rgb = (0.55, 0.60, 0.68)
COARSE, FINE = 2, 3  # samples along a side of a plain and of a refined pixel
CONTRAST = 0.08  # samples of a pixel that differ by more are refined

Vec = tuple[float, float, float]
Hit = tuple[float, int, float, float, float]  # distance, solid, normal


@compiled
def _meet(city: City, solid: int, o: Vec, d: Vec, inverse: Vec, best: float) -> Hit:
    """First hit of one solid from outside, nearer than ``best``; otherwise the distance is infinite."""
    miss = (math.inf, SKY, 0.0, 0.0, 0.0)
    b = city.bounds[solid]
    ax, bx = (b[0] - o[0]) * inverse[0], (b[3] - o[0]) * inverse[0]
    ay, by = (b[1] - o[1]) * inverse[1], (b[4] - o[1]) * inverse[1]
    az, bz = (b[2] - o[2]) * inverse[2], (b[5] - o[2]) * inverse[2]
    enter_x, enter_y, enter_z = min(ax, bx), min(ay, by), min(az, bz)
    near = max(max(enter_x, enter_y), max(enter_z, 0.0))
    far = min(min(max(ax, bx), max(ay, by)), min(max(az, bz), best))
    if near > far:
        return miss
    nx, ny, nz = 0.0, 0.0, 0.0
    entered = near > 0.0
    if near == enter_z:
        nz = -1.0 if d[2] > 0 else 1.0
    elif near == enter_x:
        nx = -1.0 if d[0] > 0 else 1.0
    else:
        ny = -1.0 if d[1] > 0 else 1.0
    shape = city.shape[solid]
    if shape == BOX:
        return (near, solid, nx, ny, nz) if entered else miss
    cx, cy, cz = (b[0] + b[3]) / 2, (b[1] + b[4]) / 2, (b[2] + b[5]) / 2
    hx, hy, hz = (b[3] - b[0]) / 2, (b[4] - b[1]) / 2, (b[5] - b[2]) / 2
    if shape == ELLIPSOID:
        px, py, pz = (o[0] - cx) / hx, (o[1] - cy) / hy, (o[2] - cz) / hz
        qx, qy, qz = d[0] / hx, d[1] / hy, d[2] / hz
        qq, pq = qx * qx + qy * qy + qz * qz, px * qx + py * qy + pz * qz
        root = pq * pq - qq * (px * px + py * py + pz * pz - 1)
        if root <= 0:
            return miss
        t = (-pq - math.sqrt(root)) / qq
        if not 0 < t < best:
            return miss
        nx, ny, nz = (px + t * qx) / hx, (py + t * qy) / hy, (pz + t * qz) / hz
        norm = math.sqrt(nx * nx + ny * ny + nz * nz)
        return t, solid, nx / norm, ny / norm, nz / norm
    run = min(hx, hy)  # a roof: its bounds cut by slopes that rise 2 hz over the run
    rise = 2 * hz
    for slope in range(4):
        along_x = slope < 2
        if (shape == GABLE_X and along_x) or (shape == GABLE_Y and not along_x):
            continue
        half = hx if along_x else hy
        length = run if shape == HIP else half
        sign = 1.0 if slope % 2 else -1.0
        sx, sy = (sign * rise, 0.0) if along_x else (0.0, sign * rise)
        sz = length
        # inside: sign * rise * (x - c) + length * (z - z0) <= rise * half
        excess = sx * (o[0] - cx) + sy * (o[1] - cy) + sz * (o[2] - b[2]) - rise * half
        rate = sx * d[0] + sy * d[1] + sz * d[2]
        if rate == 0.0:
            if excess > 0:
                return miss
            continue
        t = -excess / rate
        if rate < 0:
            if t > near:
                near, entered = t, True
                norm = math.sqrt(sx * sx + sy * sy + sz * sz)
                nx, ny, nz = sx / norm, sy / norm, sz / norm
        else:
            far = min(far, t)
        if near > far:
            return miss
    return (near, solid, nx, ny, nz) if entered else miss


@compiled
def _nonzero(x: float) -> float:
    """A direction's component that can be divided by."""
    return x if abs(x) > 1e-12 else 1e-12


@compiled
def trace(city: City, o: Vec, d: Vec, limit: float, any_hit: bool) -> Hit:
    """Nearest surface along a ray (unit ``d``) within ``limit``; with ``any_hit`` the first solid found."""
    best: Hit = (limit, SKY, 0.0, 0.0, 0.0)
    if d[2] < 0 and o[2] > 0 and -o[2] / d[2] < limit:
        best = (-o[2] / d[2], GROUND, 0.0, 0.0, 1.0)
    d = (_nonzero(d[0]), _nonzero(d[1]), _nonzero(d[2]))
    inverse = (1.0 / d[0], 1.0 / d[1], 1.0 / d[2])
    size, x0, y0 = city.cell_size, city.grid_origin[0], city.grid_origin[1]
    cells_x, cells_y = city.grid_shape[0], city.grid_shape[1]
    ax, bx = (x0 - o[0]) * inverse[0], (x0 + size * cells_x - o[0]) * inverse[0]
    ay, by = (y0 - o[1]) * inverse[1], (y0 + size * cells_y - o[1]) * inverse[1]
    az, bz = -o[2] * inverse[2], (city.top - o[2]) * inverse[2]
    near = max(max(min(ax, bx), min(ay, by)), max(min(az, bz), 0.0))
    far = min(min(max(ax, bx), max(ay, by)), min(max(az, bz), best[0]))
    if near >= far:
        return best
    start = near + 1e-9
    ix = min(max(math.floor((o[0] + start * d[0] - x0) / size), 0), cells_x - 1)
    iy = min(max(math.floor((o[1] + start * d[1] - y0) / size), 0), cells_y - 1)
    step_x, step_y = (1 if d[0] > 0 else -1), (1 if d[1] > 0 else -1)
    across_x, across_y = size * abs(inverse[0]), size * abs(inverse[1])
    next_x = (x0 + (ix + (d[0] > 0)) * size - o[0]) * inverse[0]
    next_y = (y0 + (iy + (d[1] > 0)) * size - o[1]) * inverse[1]
    entry = near
    while True:
        leave = min(min(next_x, next_y), far)
        cell = ix * cells_y + iy
        if min(o[2] + entry * d[2], o[2] + leave * d[2]) < city.cell_top[cell]:
            for index in range(city.cell_start[cell], city.cell_start[cell + 1]):
                hit = _meet(city, city.cell_item[index], o, d, inverse, best[0])
                if hit[0] < best[0]:
                    best = hit
                    if any_hit:
                        return best
        if best[0] <= leave or leave >= far:
            return best
        entry = leave
        if next_x < next_y:
            ix += step_x
            next_x += across_x
        else:
            iy += step_y
            next_y += across_y
        if ix < 0 or iy < 0 or ix >= cells_x or iy >= cells_y:
            return best


@compiled
def _spread(t: float, d: Vec, n: Vec, right: Vec, down: Vec, axis: Vec) -> float:
    """Width along a tangent ``axis`` of the patch that a sample of sides ``right`` and ``down`` sees at ``t``."""
    facing = d[0] * n[0] + d[1] * n[1] + d[2] * n[2]
    facing = min(facing, -0.04)
    along = (d[0] * axis[0] + d[1] * axis[1] + d[2] * axis[2]) / facing
    a = right[0] * axis[0] + right[1] * axis[1] + right[2] * axis[2]
    a -= along * (right[0] * n[0] + right[1] * n[1] + right[2] * n[2])
    b = down[0] * axis[0] + down[1] * axis[1] + down[2] * axis[2]
    b -= along * (down[0] * n[0] + down[1] * n[1] + down[2] * n[2])
    return t * math.sqrt(a * a + b * b) + 1e-6


@compiled
def _paint(city: City, hit: Hit, p: Vec, d: Vec, right: Vec, down: Vec) -> tuple[Rgb, Vec]:
    """Albedo of the hit surface averaged over the footprint, and its normal with small bumps."""
    t, solid = hit[0], hit[1]
    n = (hit[2], hit[3], hit[4])
    if solid == GROUND:
        wu = _spread(t, d, n, right, down, (1.0, 0.0, 0.0))
        wv = _spread(t, d, n, right, down, (0.0, 1.0, 0.0))
        return ground(city, p[0], p[1], max(wu, wv)), n
    b = city.bounds[solid]
    colour = (city.colour[solid, 0], city.colour[solid, 1], city.colour[solid, 2])
    accent = (city.accent[solid, 0], city.accent[solid, 1], city.accent[solid, 2])
    material, shape, tag = city.material[solid], city.shape[solid], city.tag[solid]
    if shape == ELLIPSOID:
        width = t * math.sqrt(right[0] * right[0] + right[1] * right[1] + right[2] * right[2]) * 1.4 + 1e-6
        u, v = p[0] + 0.61 * p[2], p[1] - 0.53 * p[2]
        if material != LEAVES:
            return colour, n
        bump = 0.9
        mx = n[0] + bump * fractal(u, v, width, 1.1, 3, tag + 31)
        my = n[1] + bump * fractal(v, u, width, 1.1, 3, tag + 32)
        norm = math.sqrt(mx * mx + my * my + n[2] * n[2]) + 1e-9
        return leaves(u, v, width, colour, tag), (mx / norm, my / norm, n[2] / norm)
    if abs(n[2]) > 0.999:
        wu = _spread(t, d, n, right, down, (1.0, 0.0, 0.0))
        wv = _spread(t, d, n, right, down, (0.0, 1.0, 0.0))
        return flat_roof(material, p[0] - b[0], p[1] - b[1], wu, wv, b[3] - b[0], b[4] - b[1], colour, accent, tag), n
    facing_x = abs(n[0]) > abs(n[1])
    along = (0.0, 1.0, 0.0) if facing_x else (1.0, 0.0, 0.0)
    if material == TILES and n[2] > 0.05:
        level = math.sqrt(n[0] * n[0] + n[1] * n[1])
        up = (-n[0] * n[2] / level, -n[1] * n[2] / level, level)
        wu, wv = _spread(t, d, n, right, down, along), _spread(t, d, n, right, down, up)
        return pitched_roof(p[1] if facing_x else p[0], (p[2] - b[2]) / level, wu, wv, colour, tag), n
    wu, wv = _spread(t, d, n, right, down, along), _spread(t, d, n, right, down, (0.0, 0.0, 1.0))
    u = p[1] - b[1] if facing_x else p[0] - b[0]
    length = b[4] - b[1] if facing_x else b[3] - b[0]
    if material == TILES:
        return wall(material, u, p[2] - b[2], wu, wv, length, b[5] - b[2], False, accent, accent, tag), n
    if material == LEAVES:
        return leaves(u, p[2], max(wu, wv), colour, tag), n
    return wall(material, u, p[2] - b[2], wu, wv, length, b[5] - b[2], b[2] <= 0.0, colour, accent, tag), n


@compiled
def _sky(d: Vec) -> Rgb:
    return mix((0.78, 0.83, 0.87), (0.40, 0.58, 0.82), min(max(d[2], 0.0) * 1.6, 1.0))


@compiled
def _shade(city: City, o: Vec, d: Vec, right: Vec, down: Vec) -> tuple[Rgb, int]:
    """Colour and solid seen by one sample."""
    hit = trace(city, o, d, math.inf, False)
    t, solid = hit[0], hit[1]
    if solid == SKY:
        return _sky(d), solid
    n = (hit[2], hit[3], hit[4])
    p = (o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
    albedo, bumped = _paint(city, hit, p, d, right, down)
    facing = n[0] * SUN[0] + n[1] * SUN[1] + n[2] * SUN[2]
    sun = 0.0
    if facing > 0:
        lift = 1e-4 * (1.0 + t * 1e-2)
        start = (p[0] + n[0] * lift, p[1] + n[1] * lift, p[2] + n[2] * lift)
        if trace(city, start, SUN, math.inf, True)[1] == SKY:
            sun = max(bumped[0] * SUN[0] + bumped[1] * SUN[1] + bumped[2] * SUN[2], 0.0)
    sky = 0.72 + 0.28 * n[2]
    if solid >= 0:
        sky *= 0.75 + 0.25 * min(p[2] / 6.0, 1.0)
    colour = (
        albedo[0] * (SKYLIGHT[0] * sky + SUNLIGHT[0] * sun),
        albedo[1] * (SKYLIGHT[1] * sky + SUNLIGHT[1] * sun),
        albedo[2] * (SKYLIGHT[2] * sky + SUNLIGHT[2] * sun),
    )
    reach = math.sqrt(p[0] * p[0] + p[1] * p[1]) - 2.0 * city.half_extent
    if reach > 0:
        colour = mix(colour, (0.78, 0.83, 0.87), 1.0 - math.exp(-reach / (12.0 * city.half_extent)))
    return colour, solid


@compiled
def _sample(
    city: City, o: Vec, pose: Any, focal: float, cx: float, cy: float, x: float, y: float, side: float
) -> tuple[Rgb, int]:
    """The sample of ``side`` pixels around image position (x, y)."""
    a, b = (x - cx) / focal, (y - cy) / focal
    norm = math.sqrt(a * a + b * b + 1.0)
    d = (
        (pose[0, 0] * a + pose[0, 1] * b + pose[0, 2]) / norm,
        (pose[1, 0] * a + pose[1, 1] * b + pose[1, 2]) / norm,
        (pose[2, 0] * a + pose[2, 1] * b + pose[2, 2]) / norm,
    )
    step = side / (focal * norm)
    right = (pose[0, 0] * step, pose[1, 0] * step, pose[2, 0] * step)
    down = (pose[0, 1] * step, pose[1, 1] * step, pose[2, 1] * step)
    return _shade(city, o, d, right, down)


@compiled
def _render(city: City, pose: Any, focal: float, image: Any) -> None:
    height, width = image.shape[0], image.shape[1]
    o = (pose[0, 3], pose[1, 3], pose[2, 3])
    for row in range(height):
        for column in range(width):
            red, green, blue = 0.0, 0.0, 0.0
            side = COARSE
            while True:  # once, or a second time with finer samples
                darkest, brightest, first, edge = 9.0, -9.0, 0, False
                red, green, blue = 0.0, 0.0, 0.0
                for s in range(side * side):
                    x, y = column + (s % side + 0.5) / side, row + (s // side + 0.5) / side
                    c, solid = _sample(city, o, pose, focal, width / 2, height / 2, x, y, 1.0 / side)
                    red, green, blue = red + c[0], green + c[1], blue + c[2]
                    light = (c[0] + c[1] + c[2]) / 3
                    darkest, brightest = min(darkest, light), max(brightest, light)
                    if s == 0:
                        first = solid
                    edge = edge or solid != first
                if side == FINE or not (edge or brightest - darkest > CONTRAST):
                    break
                side = FINE
            samples = side * side
            image[row, column, 0] = min(red / samples, 1.0)
            image[row, column, 1] = min(green / samples, 1.0)
            image[row, column, 2] = min(blue / samples, 1.0)


@compiled
def _cast(city: City, origin: Any, direction: Any, distance: Any, solid: Any) -> None:
    for ray in range(len(origin)):
        o = (origin[ray, 0], origin[ray, 1], origin[ray, 2])
        d = (direction[ray, 0], direction[ray, 1], direction[ray, 2])
        hit = trace(city, o, d, math.inf, False)
        distance[ray], solid[ray] = hit[0], hit[1]


@functools.cache
def _kernels() -> tuple[Any, Any]:
    """The two compiled entries, kept on disk.

    Numba looks for changes only in the file of the entry itself.  The digest of all files is therefore made part of the
    entries: a changed texture is never served from an old compilation.
    """
    digest = fingerprint(Path(__file__).parent.glob("*.py"))
    keep: Any = numba.njit(cache=True, nogil=True, error_model="numpy")

    @keep
    def render_kernel(city: City, pose: Any, focal: float, image: Any) -> int:
        _render(city, pose, focal, image)
        return digest

    @keep
    def cast_kernel(city: City, origin: Any, direction: Any, distance: Any, solid: Any) -> int:
        _cast(city, origin, direction, distance, solid)
        return digest

    return render_kernel, cast_kernel


def render(city: City, pose: NDArray[np.float64], focal: float, width: int, height: int) -> NDArray[np.float32]:
    """A photo as sRGB-encoded values in 0..1, [height, width, 3].

    ``pose`` is [3, 4] camera to world, ``focal`` is in pixels, and the principal point is the middle of the image.
    """
    image = np.empty((height, width, 3), dtype=np.float32)
    _kernels()[0](city, np.ascontiguousarray(pose, dtype=np.float64), float(focal), image)
    return image


def cast(
    city: City, origin: NDArray[np.float64], direction: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distance [R] to the first surface along rays [R, 3] (unit directions) and its solid, GROUND or SKY (infinite)."""
    distance, solid = np.empty(len(origin)), np.empty(len(origin), dtype=np.int64)
    _kernels()[1](
        city,
        np.ascontiguousarray(origin, dtype=np.float64),
        np.ascontiguousarray(direction, dtype=np.float64),
        distance,
        solid,
    )
    return distance, solid
