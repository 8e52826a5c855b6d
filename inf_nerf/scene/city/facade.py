"""Walls, roofs and leaves of the synthetic city, averaged over the footprint of a sample (see texture.py)."""

import math

from inf_nerf.scene.city.solids import BRICK, CABIN, CAR, GLASS, HOUSE, LEAVES, METAL, OFFICE, STONE, STUCCO
from inf_nerf.scene.city.texture import Rgb, band, compiled, fade, fractal, hashed, mix, scale, stripes


@compiled
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
    kept = fade(max(wu, wv), bay)
    chance = 0.5 + kept * (hashed(cell_u, cell_v, tag) - 0.5)
    glass = mix((0.18, 0.23, 0.30), (0.56, 0.63, 0.70), chance)
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


@compiled
def _shop_front(u: float, v: float, wu: float, wv: float, length: float, colour: Rgb, accent: Rgb, tag: int) -> Rgb:
    """Ground floor: wide windows, a sign and a striped awning."""
    bay = length / max(1.0, round(length / 5.0))
    window = stripes(u, bay, 0.5, bay - 0.5, wu) * band(v, 0.5, 2.6, wv)
    kept = fade(wu, bay)
    light = 0.4 + 0.4 * kept * (hashed(math.floor(u / bay), 3, tag) - 0.5)
    goods = mix((0.20, 0.22, 0.26), (0.78, 0.70, 0.56), light + 0.25 * fractal(u, v, max(wu, wv), 0.8, 2, tag))
    frame = stripes(u, bay / 3, 0.0, 0.1, wu)
    front = mix(scale(colour, 0.82), mix(goods, (0.25, 0.25, 0.26), frame), window)
    awning = mix(accent, (0.93, 0.91, 0.86), stripes(u, 0.7, 0.0, 0.35, wu))
    front = mix(front, awning, stripes(u, bay, 0.3, bay - 0.3, wu) * band(v, 2.6, 3.3, wv))
    return mix(front, (0.80, 0.78, 0.74), band(v, 3.9, 4.2, wv))


@compiled
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


@compiled
def pitched_roof(u: float, v: float, wu: float, wv: float, colour: Rgb, tag: int) -> Rgb:
    """Rows of tiles: ``u`` along the eaves, ``v`` up the slope, in metres."""
    row, column = math.floor(v / 0.36), math.floor(u / 0.42 + 0.5 * (math.floor(v / 0.36) % 2))
    single = fade(max(wu, wv), 0.42) * (hashed(column, row, tag) - 0.5)
    weather = fractal(u, v, max(wu, wv), 4.0, 4, tag)
    tile = scale(colour, 1.0 + 0.30 * single + 0.22 * weather)
    gap = max(stripes(v, 0.36, 0.0, 0.07, wv), 0.5 * stripes(u, 0.42, 0.0, 0.06, wu))
    moss = max(0.0, fractal(u, v, max(wu, wv), 7.0, 5, tag + 91) - 0.22)
    return mix(mix(tile, scale(colour, 0.5), gap), (0.40, 0.42, 0.26), min(1.2 * moss, 0.6))


@compiled
def leaves(u: float, v: float, width: float, colour: Rgb, tag: int) -> Rgb:
    bright = 1.0 + 0.55 * fractal(u, v, width, 1.6, 5, tag)
    yellow = 1.0 + 0.10 * fractal(u, v, width, 2.3, 2, tag + 5)
    return colour[0] * bright * yellow, colour[1] * bright, colour[2] * bright * 0.96
