"""The city's colours: procedural textures that are averaged over the footprint of a sample.

Every function takes the width of the footprint in metres on the surface.  Stripes, windows and lines are integrated over
it in closed form; noise loses each octave that the footprint swallows.  So a far view shows the mean of a near one instead
of a random sample of it.  Colours are sRGB-encoded values in 0..1, and they are mixed as such everywhere.
"""

import math
from typing import Any

import numba

from inf_nerf.scene.city_layout import (
    BRICK,
    CABIN,
    CAR,
    DENSE,
    GLASS,
    HOMES,
    HOUSE,
    LEAVES,
    METAL,
    OFFICE,
    PARK,
    PAVEMENT_M,
    PITCH,
    PLAZA,
    STONE,
    STUCCO,
    City,
)

Rgb = tuple[float, float, float]

_compiled: Any = numba.njit(cache=True, nogil=True, error_model="numpy")


@_compiled
def _hash(x: int, y: int, tag: int) -> float:
    """Uniform number in [0, 1) of a lattice cell."""
    h = (x * 374761393 + y * 668265263 + tag * 2147483629) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 2246822519) & 0xFFFFFFFF
    return (h ^ (h >> 15)) / 4294967296.0


@_compiled
def _noise(x: float, y: float, tag: int) -> float:
    """Smooth lattice noise in [-1, 1] with cells of side 1."""
    fx, fy = math.floor(x), math.floor(y)
    ix, iy = int(fx), int(fy)
    u, v = x - fx, y - fy
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    low = _hash(ix, iy, tag) * (1 - u) + _hash(ix + 1, iy, tag) * u
    high = _hash(ix, iy + 1, tag) * (1 - u) + _hash(ix + 1, iy + 1, tag) * u
    return 2 * (low * (1 - v) + high * v) - 1


@_compiled
def _fade(width: float, wavelength: float) -> float:
    """Share of a detail of this wavelength that survives averaging over ``width``."""
    ratio = width / wavelength
    if ratio >= 1.0:
        return 0.0
    return 1.0 if ratio <= 0.2 else (1.0 - ratio) * 1.25


@_compiled
def fractal(x: float, y: float, width: float, wavelength: float, octaves: int, tag: int) -> float:
    """Noise of several octaves, about in [-1, 1]; octaves finer than the footprint average to zero."""
    total, amplitude = 0.0, 0.5
    for octave in range(octaves):
        kept = _fade(width, wavelength)
        if kept == 0.0:
            break
        total += kept * amplitude * _noise(x / wavelength, y / wavelength, tag + octave)
        wavelength *= 0.47
        amplitude *= 0.62
    return total


@_compiled
def band(x: float, low: float, high: float, width: float) -> float:
    """Share of [x - width/2, x + width/2] inside [low, high]."""
    return max(0.0, min(x + width / 2, high) - max(x - width / 2, low)) / width


@_compiled
def stripes(x: float, period: float, low: float, high: float, width: float) -> float:
    """Share of the footprint inside the stripes [low, high] that repeat with ``period`` (0 <= low <= high <= period)."""
    start, end = (x - width / 2) / period, (x + width / 2) / period
    a, b = math.floor(start), math.floor(end)
    duty = high - low
    area_a = a * duty + min(max((start - a) * period - low, 0.0), duty)
    area_b = b * duty + min(max((end - b) * period - low, 0.0), duty)
    return (area_b - area_a) / width


@_compiled
def mix(a: Rgb, b: Rgb, share: float) -> Rgb:
    keep = 1.0 - share
    return a[0] * keep + b[0] * share, a[1] * keep + b[1] * share, a[2] * keep + b[2] * share


@_compiled
def scale(a: Rgb, factor: float) -> Rgb:
    return a[0] * factor, a[1] * factor, a[2] * factor


@_compiled
def wall(
    material: int,
    u: float,
    v: float,
    wu: float,
    wv: float,
    length: float,
    height: float,
    from_ground: bool,
    colour: Rgb,
    accent: Rgb,
    tag: int,
) -> Rgb:
    """Facade at ``u`` metres along it and ``v`` metres above its foot, of a wall ``length`` x ``height``."""
    if material == CAR:
        dark = band(v, 0.0, 0.16, wv)
        wheels = stripes(u, length / 2, length / 4 - 0.33, length / 4 + 0.33, wu) * band(v, 0.0, 0.42, wv)
        return mix(scale(colour, 0.92), (0.10, 0.10, 0.11), max(dark, wheels if length > 3 else 0.0))
    if material == CABIN:
        return mix(colour, (0.14, 0.17, 0.20), band(v, 0.08, 0.48, wv) * band(u, 0.08, length - 0.08, wu))
    if material == METAL:
        return mix(colour, scale(colour, 0.55), stripes(v, 0.22, 0.0, 0.09, wv) * band(u, 0.1, length - 0.1, wu))
    grain = fractal(u, v, max(wu, wv), 3.0, 5, tag)
    if material == STONE:
        joints = max(stripes(v, 0.8, 0.0, 0.06, wv), stripes(u, 1.3, 0.0, 0.06, wu))
        base = mix(scale(colour, 1.0 + 0.10 * grain), scale(colour, 0.72), joints)
        bay = length / max(1.0, round(length / 4.0))
        pane = stripes(u, bay, bay / 2 - 0.55, bay / 2 + 0.55, wu)
        window = pane * band(v, 0.28 * height, 0.74 * height, wv)
        leads = stripes(v, 0.7, 0.0, 0.12, wv)
        return mix(base, mix((0.20, 0.24, 0.34), (0.45, 0.42, 0.40), leads), window)
    if material not in (STUCCO, BRICK, OFFICE, GLASS, HOUSE):
        return scale(colour, 1.0 + 0.12 * grain)
    shop = 4.2 if from_ground and material != HOUSE and height > 6 else 0.0
    if v < shop:
        return _shop_front(u, v, wu, wv, length, colour, accent, tag)
    v -= shop
    height -= shop
    floor_height = 3.4 if material in (OFFICE, GLASS) else (2.9 if material == HOUSE else 3.1)
    floor_height = height / max(1.0, round(height / floor_height))
    bay = 1.6 if material == GLASS else (2.9 if material == HOUSE else 2.4)
    bay = length / max(1.0, round(length / bay))
    cell_u, cell_v = math.floor(u / bay), math.floor(v / floor_height)
    kept = _fade(max(wu, wv), bay)
    chance = 0.5 + kept * (_hash(cell_u, cell_v, tag) - 0.5)
    glass = mix((0.16, 0.20, 0.26), (0.50, 0.56, 0.62), chance)
    base = scale(colour, 1.0 + 0.12 * grain)
    if material == OFFICE:
        window = stripes(v, floor_height, 1.0, floor_height - 0.35, wv)
        mullion = max(stripes(u, bay, 0.0, 0.14, wu), stripes(v, floor_height, 1.75, 1.83, wv))
        return mix(base, mix(glass, scale(accent, 0.8), mullion), window * band(u, 0.5, length - 0.5, wu))
    if material == GLASS:
        tint = mix(colour, glass, 0.35)
        spandrel = stripes(v, floor_height, 0.0, 0.8, wv)
        frame = max(stripes(u, bay, 0.0, 0.10, wu), stripes(v, floor_height, 0.8, 0.92, wv))
        fin = stripes(u, 4 * bay, 0.0, 0.32, wu)
        body = mix(mix(tint, scale(colour, 0.62), spandrel), scale(accent, 0.85), frame)
        return mix(body, scale(accent, 1.0), fin)
    if material == BRICK:
        course = max(stripes(v, 0.3, 0.0, 0.04, wv), 0.6 * stripes(u, 0.6, 0.0, 0.04, wu))
        base = mix(base, (0.72, 0.68, 0.62), 0.5 * course)
    half = min(0.62, 0.3 * bay)
    sill, lintel = 0.9, floor_height - 0.6
    middle = bay / 2
    frame = stripes(u, bay, middle - half - 0.12, middle + half + 0.12, wu) * stripes(
        v, floor_height, sill - 0.14, lintel + 0.12, wv
    )
    pane = stripes(u, bay, middle - half, middle + half, wu) * stripes(v, floor_height, sill, lintel, wv)
    cross = max(stripes(u, bay, middle - 0.05, middle + 0.05, wu), stripes(v, floor_height, 1.75, 1.84, wv))
    base = mix(base, scale(colour, 0.8), stripes(v, floor_height, 0.0, 0.22, wv))  # a ledge at every floor
    if material == HOUSE or tag % 3 == 0:
        shutters = stripes(u, bay, middle - half - 0.6, middle + half + 0.6, wu) * stripes(
            v, floor_height, sill - 0.1, lintel, wv
        )
        base = mix(base, scale(accent, 0.85), 0.85 * max(shutters - frame, 0.0))
    base = mix(base, (0.93, 0.92, 0.89), frame)
    blind = band(v - math.floor(v / floor_height) * floor_height, lintel - 1.0 * chance, lintel, wv) * kept
    glass = mix(glass, (0.86, 0.82, 0.72), 0.7 * blind)
    return mix(base, mix(glass, (0.90, 0.89, 0.86), cross), pane)


@_compiled
def _shop_front(u: float, v: float, wu: float, wv: float, length: float, colour: Rgb, accent: Rgb, tag: int) -> Rgb:
    """Ground floor: wide windows, a sign and a striped awning."""
    bay = length / max(1.0, round(length / 5.0))
    window = stripes(u, bay, 0.5, bay - 0.5, wu) * band(v, 0.5, 2.6, wv)
    kept = _fade(wu, bay)
    light = 0.4 + 0.4 * kept * (_hash(math.floor(u / bay), 3, tag) - 0.5)
    goods = mix((0.20, 0.22, 0.26), (0.78, 0.70, 0.56), light + 0.25 * fractal(u, v, max(wu, wv), 0.8, 2, tag))
    frame = stripes(u, bay / 3, 0.0, 0.1, wu)
    front = mix(scale(colour, 0.82), mix(goods, (0.25, 0.25, 0.26), frame), window)
    awning = mix(accent, (0.93, 0.91, 0.86), stripes(u, 0.7, 0.0, 0.35, wu))
    front = mix(front, awning, stripes(u, bay, 0.3, bay - 0.3, wu) * band(v, 2.6, 3.3, wv))
    return mix(front, (0.80, 0.78, 0.74), band(v, 3.9, 4.2, wv))


@_compiled
def flat_roof(
    material: int,
    u: float,
    v: float,
    wu: float,
    wv: float,
    length: float,
    depth: float,
    colour: Rgb,
    accent: Rgb,
    tag: int,
) -> Rgb:
    """Top of a box ``length`` x ``depth`` at ``(u, v)`` metres from its corner."""
    width = max(wu, wv)
    if material in (CAR, CABIN):
        if material == CABIN:
            return colour
        return mix(
            colour, scale(colour, 0.8), max(stripes(u, length / 3, 0.0, 0.05, wu), stripes(v, depth / 3, 0.0, 0.05, wv))
        )
    if material == METAL:
        fan = math.hypot(u - length / 2, v - depth / 2) / min(length, depth)
        return mix(colour, (0.22, 0.23, 0.25), 0.75 * band(fan, 0.0, 0.36, width / min(length, depth)))
    if material == LEAVES:
        return leaves(u, v, width, colour, tag)
    if length < 3 or depth < 3:
        return colour
    kind = tag % 5
    grain = fractal(u, v, width, 6.0, 7, tag)
    edge = min(min(u, length - u), min(v, depth - v))
    if kind == 0:  # gravel with walkway slabs
        roof = scale((0.62, 0.60, 0.56), 1.0 + 0.28 * grain)
        path = band(edge, 1.0, 1.9, width)
        joints = max(stripes(u, 0.9, 0.0, 0.06, wu), stripes(v, 0.9, 0.0, 0.06, wv))
        roof = mix(roof, mix((0.74, 0.73, 0.70), (0.5, 0.5, 0.49), joints), path)
    elif kind == 1:  # bitumen sheets
        roof = scale((0.38, 0.38, 0.39), 1.0 + 0.25 * grain)
        roof = mix(roof, (0.27, 0.27, 0.28), max(stripes(u, 1.4, 0.0, 0.10, wu), stripes(v, 5.0, 0.0, 0.10, wv)))
    elif kind == 2:  # pale membrane
        roof = scale((0.80, 0.80, 0.77), 1.0 + 0.14 * grain)
        roof = mix(roof, (0.64, 0.64, 0.62), stripes(v, 2.0, 0.0, 0.12, wv))
    elif kind == 3:  # planted roof
        roof = leaves(u, v, width, (0.46, 0.52, 0.28), tag)
        roof = mix(
            roof, (0.66, 0.62, 0.54), max(band(u, length / 2 - 0.7, length / 2 + 0.7, wu), band(edge, 0.5, 1.1, width))
        )
    else:  # timber terrace with solar panels
        planks = stripes(u, 0.28, 0.0, 0.05, wu)
        roof = mix(scale((0.66, 0.52, 0.38), 1.0 + 0.2 * grain), (0.36, 0.28, 0.22), planks)
        field = band(u, 1.6, length - 1.6, wu) * stripes(v, 3.2, 0.6, 2.6, wv) * band(v, 1.6, depth - 1.6, wv)
        frame = max(stripes(u, 1.1, 0.0, 0.09, wu), stripes(v, 3.2, 1.55, 1.65, wv))
        cells = max(stripes(u, 0.183, 0.0, 0.02, wu), 0.0)
        panel = mix(mix((0.12, 0.17, 0.32), (0.42, 0.48, 0.58), cells), (0.78, 0.80, 0.82), frame)
        roof = mix(roof, panel, field)
    return mix(roof, mix((0.78, 0.75, 0.70), colour, 0.5), band(edge, -1.0, 0.38, width))  # parapet


@_compiled
def pitched_roof(u: float, v: float, wu: float, wv: float, colour: Rgb, tag: int) -> Rgb:
    """Rows of tiles: ``u`` along the eaves, ``v`` up the slope, in metres."""
    row, column = math.floor(v / 0.36), math.floor(u / 0.42 + 0.5 * (math.floor(v / 0.36) % 2))
    single = _fade(max(wu, wv), 0.42) * (_hash(column, row, tag) - 0.5)
    weather = fractal(u, v, max(wu, wv), 4.0, 4, tag)
    tile = scale(colour, 1.0 + 0.30 * single + 0.22 * weather)
    gap = max(stripes(v, 0.36, 0.0, 0.07, wv), 0.5 * stripes(u, 0.42, 0.0, 0.06, wu))
    moss = max(0.0, fractal(u, v, max(wu, wv), 7.0, 5, tag + 91) - 0.22)
    return mix(mix(tile, scale(colour, 0.5), gap), (0.40, 0.42, 0.26), min(1.2 * moss, 0.6))


@_compiled
def leaves(u: float, v: float, width: float, colour: Rgb, tag: int) -> Rgb:
    bright = 1.0 + 0.55 * fractal(u, v, width, 1.6, 5, tag)
    yellow = 1.0 + 0.10 * fractal(u, v, width, 2.3, 2, tag + 5)
    return colour[0] * bright * yellow, colour[1] * bright, colour[2] * bright * 0.96


@_compiled
def ground(city: City, x: float, y: float, width: float) -> Rgb:
    """Street, pavement, garden, park or field at a point of the ground."""
    blocks = len(city.block_x)
    i, across_x, half_x = _street(city.block_x, x)
    j, across_y, half_y = _street(city.block_y, y)
    outside = max(max(city.block_x[0, 0] - x, x - city.block_x[blocks - 1, 1]), 0.0)
    outside = max(outside, max(city.block_y[0, 0] - y, y - city.block_y[blocks - 1, 1]))
    if outside > 10.0:
        return _field(x, y, width, outside)
    if i >= 0 and j >= 0:
        return _block(city, i, j, x, y, width)
    asphalt = scale((0.385, 0.385, 0.395), 1.0 + 0.16 * fractal(x, y, width, 9.0, 7, 3))
    if i < 0 and j < 0:
        return asphalt
    line = (0.86, 0.85, 0.80)
    if i < 0:
        across, half, along, low, high = across_x, half_x, y, city.block_y[j, 0], city.block_y[j, 1]
    else:
        across, half, along, low, high = across_y, half_y, x, city.block_x[i, 0], city.block_x[i, 1]
    to_crossing = min(along - low, high - along)
    worn = 0.85 + 0.25 * fractal(x, y, width, 1.2, 3, 71)
    track = stripes(abs(across), half / 2 + 0.6, 0.7, 1.2, width)
    road = scale(asphalt, 1.0 - 0.10 * track)
    zebra = (
        band(to_crossing, 1.0, 3.8, width)
        * stripes(across, 1.0, 0.0, 0.5, width)
        * band(abs(across), 0.0, half - 0.4, width)
    )
    stop = band(to_crossing, 4.6, 5.1, width) * band(abs(across), 0.0, half - 2.4, width)
    dashes = stripes(along, 6.0, 0.0, 3.2, width) * band(to_crossing, 6.0, 1e9, width)
    if half > 6.0:
        middle = band(abs(across), 0.18, 0.32, width) * band(to_crossing, 5.0, 1e9, width)
        marks = max(middle, band(abs(across), half / 2 - 0.6, half / 2 - 0.45, width) * dashes)
    else:
        marks = band(abs(across), 0.0, 0.08, width) * dashes
    parking = band(abs(across), half - 2.3, half - 2.18, width) * band(to_crossing, 6.5, 1e9, width)
    return mix(road, line, min(1.0, worn * max(max(zebra, stop), max(marks, parking))))


@_compiled
def _street(kerbs: Any, x: float) -> tuple[int, float, float]:
    """Block index of a coordinate, or -1 with the distance from the middle of the street and half its width."""
    blocks = len(kerbs)
    for block in range(blocks):
        if x < kerbs[block, 0]:
            left = kerbs[0, 0] - 10.0 if block == 0 else kerbs[block - 1, 1]
            return -1, x - (left + kerbs[block, 0]) / 2, (kerbs[block, 0] - left) / 2
        if x <= kerbs[block, 1]:
            return block, 0.0, 0.0
    return -1, x - kerbs[blocks - 1, 1] - 5.0, 5.0


@_compiled
def _block(city: City, i: int, j: int, x: float, y: float, width: float) -> Rgb:
    """Pavement around a block and what lies on the ground inside."""
    u, v = x - city.block_x[i, 0], y - city.block_y[j, 0]
    length, depth = city.block_x[i, 1] - city.block_x[i, 0], city.block_y[j, 1] - city.block_y[j, 0]
    edge = min(min(u, length - u), min(v, depth - v))
    grain = fractal(x, y, width, 5.0, 7, 11)
    joints = max(stripes(x, 0.75, 0.0, 0.05, width), stripes(y, 0.75, 0.0, 0.05, width))
    slabs = mix(scale((0.68, 0.66, 0.62), 1.0 + 0.14 * grain), (0.47, 0.46, 0.44), joints)
    slabs = mix(slabs, (0.80, 0.79, 0.76), band(edge, -1.0, 0.25, width))
    if edge < PAVEMENT_M:
        return slabs
    use = city.block_use[i, j]
    lawn = scale((0.42, 0.52, 0.24), 1.0 + 0.34 * grain)
    middle_x, middle_y = u - length / 2, v - depth / 2
    radius = math.hypot(middle_x, middle_y)
    reach = min(length, depth) / 2 - PAVEMENT_M
    if use == DENSE:
        setts = max(stripes(x, 0.45, 0.0, 0.06, width), stripes(y, 0.3, 0.0, 0.05, width))
        court = mix(scale((0.58, 0.53, 0.47), 1.0 + 0.2 * grain), (0.40, 0.37, 0.34), setts)
        return mix(court, lawn, _step(fractal(x, y, width, 8.0, 3, 23), 0.0, 0.08))
    if use == HOMES:
        bed = mix(lawn, (0.50, 0.38, 0.26), _step(fractal(x, y, width, 6.0, 4, 37), 0.22, 0.27))
        blossom = _step(fractal(x, y, width, 0.7, 2, 41), 0.28, 0.34) * _step(
            fractal(x, y, width, 6.0, 2, 43), 0.1, 0.2
        )
        return mix(bed, (0.80, 0.55, 0.60), 0.7 * blossom)
    if use == PARK:
        mown = scale(lawn, 1.0 + 0.10 * (2 * stripes(x + y, 4.0, 0.0, 2.0, 1.4 * width) - 1))
        path = max(
            band(abs(radius - 0.62 * reach), -1.0, 1.3, width),
            band(min(abs(middle_x), abs(middle_y)), -1.0, 1.1, width),
        )
        sand = scale((0.78, 0.70, 0.55), 1.0 + 0.2 * grain)
        place = mix(mown, sand, path)
        shore = 0.30 * reach + 0.8 * fractal(middle_x, middle_y, width, 6.0, 3, 57)
        pond = scale((0.22, 0.38, 0.42), 1.0 + 0.15 * fractal(x, y, width, 2.5, 4, 59))
        place = mix(place, (0.70, 0.67, 0.60), band(radius, 0.0, shore + 0.9, width))
        return mix(place, pond, band(radius, 0.0, shore, width))
    if use == PITCH:
        half_u, half_v = length / 2 - PAVEMENT_M - 5.5, depth / 2 - PAVEMENT_M - 5.5
        a, b = abs(middle_x), abs(middle_y)
        inside = band(a, -1.0, half_u, width) * band(b, -1.0, half_v, width)
        turf = scale(lawn, 1.06 + 0.14 * (2 * stripes(middle_x, 7.0, 0.0, 3.5, width) - 1))
        lanes = stripes(max(a - half_u, b - half_v), 1.0, 0.0, 0.09, width)
        track = mix(scale((0.68, 0.32, 0.24), 1.0 + 0.12 * grain), (0.90, 0.86, 0.82), lanes)
        field_u, field_v = half_u - 1.5, half_v - 1.5
        frame = max(
            band(a, field_u - 0.14, field_u, width) * band(b, -1.0, field_v, width),
            band(b, field_v - 0.14, field_v, width) * band(a, -1.0, field_u, width),
        )
        circle = max(band(radius, 5.0, 5.14, width), band(a, -1.0, 0.07, width) * band(b, -1.0, field_v, width))
        box = max(
            band(a, field_u - 6.0, field_u - 5.86, width) * band(b, -1.0, 8.0, width),
            band(b, 7.86, 8.0, width) * band(a, field_u - 6.0, field_u, width),
        )
        return mix(track, mix(turf, (0.93, 0.93, 0.90), max(max(frame, circle), box)), inside)
    if use == PLAZA:
        rings = stripes(radius, 4.0, 0.0, 0.7, width)
        tiles = max(stripes(x, 0.6, 0.0, 0.05, width), stripes(y, 0.6, 0.0, 0.05, width))
        paving = mix(scale((0.76, 0.68, 0.58), 1.0 + 0.14 * grain), (0.60, 0.42, 0.36), rings)
        return mix(paving, (0.52, 0.46, 0.40), 0.7 * tiles)
    return slabs


@_compiled
def _step(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0)


@_compiled
def _field(x: float, y: float, width: float, outside: float) -> Rgb:
    """Farmland: parcels with their own colour and rows, between hedges."""
    sheared = x + 0.25 * y
    side_x, side_y = 46.0, 34.0
    cell_x, cell_y = math.floor(sheared / side_x), math.floor(y / side_y)
    kept = _fade(width, side_y)
    kind, tone = _hash(cell_x, cell_y, 301), _hash(cell_x, cell_y, 302)
    grain = fractal(x, y, width, 14.0, 7, 303)
    crop: Rgb = (0.50, 0.54, 0.30)
    if kind < 0.25:
        crop = (0.68, 0.61, 0.38)
    elif kind < 0.5:
        crop = (0.38, 0.48, 0.23)
    elif kind < 0.65:
        crop = (0.54, 0.44, 0.33)
    crop = mix((0.52, 0.52, 0.32), scale(crop, 0.9 + 0.2 * tone), kept)
    rows = stripes(sheared if tone < 0.5 else y, 1.8, 0.0, 0.6, width)
    crop = scale(crop, (1.0 - 0.14 * rows) * (1.0 + 0.22 * grain))
    verge = max(stripes(sheared, side_x, 0.0, 1.6, width), stripes(y, side_y, 0.0, 1.6, width))
    crop = mix(crop, (0.34, 0.42, 0.20), 0.7 * verge)
    grass = scale((0.46, 0.52, 0.28), 1.0 + 0.3 * grain)
    return mix(grass, crop, _step(outside, 11.0, 14.0))
