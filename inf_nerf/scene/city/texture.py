"""The city's colours: procedural textures that are averaged over the footprint of a sample.

Every function takes the width of the footprint in metres on the surface.  Stripes, windows and lines are integrated
over it in closed form; noise loses each octave that the footprint swallows.  So a far view shows the mean of a near one
instead of a random sample of it.  Colours are sRGB-encoded values in 0..1, and they are mixed as such everywhere.
"""

import math
from typing import Any

import numba

Rgb = tuple[float, float, float]

compiled: Any = numba.njit(nogil=True, error_model="numpy")


@compiled
def hashed(x: int, y: int, tag: int) -> float:
    """Uniform number in [0, 1) of a lattice cell."""
    h = (x * 374761393 + y * 668265263 + tag * 2147483629) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 2246822519) & 0xFFFFFFFF
    return (h ^ (h >> 15)) / 4294967296.0


@compiled
def _noise(x: float, y: float, tag: int) -> float:
    """Smooth lattice noise in [-1, 1] with cells of side 1."""
    fx, fy = math.floor(x), math.floor(y)
    ix, iy = int(fx), int(fy)
    u, v = x - fx, y - fy
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    low = hashed(ix, iy, tag) * (1 - u) + hashed(ix + 1, iy, tag) * u
    high = hashed(ix, iy + 1, tag) * (1 - u) + hashed(ix + 1, iy + 1, tag) * u
    return 2 * (low * (1 - v) + high * v) - 1


@compiled
def fade(width: float, wavelength: float) -> float:
    """Share of a detail of this wavelength that survives averaging over ``width``."""
    ratio = width / wavelength
    if ratio >= 1.0:
        return 0.0
    return 1.0 if ratio <= 0.2 else (1.0 - ratio) * 1.25


@compiled
def fractal(x: float, y: float, width: float, wavelength: float, octaves: int, tag: int) -> float:
    """Noise of several octaves, about in [-1, 1]; octaves finer than the footprint average to zero."""
    total, amplitude = 0.0, 0.5
    for octave in range(octaves):
        kept = fade(width, wavelength)
        if kept == 0.0:
            break
        total += kept * amplitude * _noise(x / wavelength, y / wavelength, tag + octave)
        wavelength *= 0.47
        amplitude *= 0.62
    return total


@compiled
def band(x: float, low: float, high: float, width: float) -> float:
    """Share of [x - width/2, x + width/2] inside [low, high]."""
    return max(0.0, min(x + width / 2, high) - max(x - width / 2, low)) / width


@compiled
def stripes(x: float, period: float, low: float, high: float, width: float) -> float:
    """Share of the footprint inside the stripes [low, high] of each ``period``; 0 <= low <= high <= period."""
    start, end = (x - width / 2) / period, (x + width / 2) / period
    a, b = math.floor(start), math.floor(end)
    duty = high - low
    area_a = a * duty + min(max((start - a) * period - low, 0.0), duty)
    area_b = b * duty + min(max((end - b) * period - low, 0.0), duty)
    return (area_b - area_a) / width


@compiled
def mix(a: Rgb, b: Rgb, share: float) -> Rgb:
    keep = 1.0 - share
    return a[0] * keep + b[0] * share, a[1] * keep + b[1] * share, a[2] * keep + b[2] * share


@compiled
def scale(a: Rgb, factor: float) -> Rgb:
    return a[0] * factor, a[1] * factor, a[2] * factor


@compiled
def ramp(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0)
