"""The ground of the synthetic city: streets, gardens, parks and fields, averaged over a footprint (see texture.py)."""

import math
from typing import Any

from inf_nerf.scene.city.solids import COUNTRY_ROAD_M, DENSE, HOMES, PARK, PAVEMENT_M, PITCH, PLAZA, City
from inf_nerf.scene.city.texture import Rgb, band, compiled, fade, fractal, hashed, mix, ramp, scale, stripes


@compiled
def ground(city: City, x: float, y: float, width: float) -> Rgb:
    """Street, pavement, garden, park or field at a point of the ground."""
    blocks = len(city.block_x)
    i, across_x, half_x = _street(city.block_x, x)
    j, across_y, half_y = _street(city.block_y, y)
    outside = max(max(city.block_x[0, 0] - x, x - city.block_x[blocks - 1, 1]), 0.0)
    outside = max(outside, max(city.block_y[0, 0] - y, y - city.block_y[blocks - 1, 1]))
    if outside > 10.0:
        field = _field(x, y, width, outside)
        to_road, along = (
            (abs(x - city.roads[0]), y)
            if abs(x - city.roads[0]) < abs(y - city.roads[1])
            else (abs(y - city.roads[1]), x)
        )
        lane = mix(
            (0.47, 0.46, 0.45),
            (0.84, 0.82, 0.76),
            stripes(along, 6.0, 0.0, 3.0, width) * band(to_road, -0.1, 0.1, width),
        )
        lane = mix(lane, (0.66, 0.62, 0.52), band(to_road, COUNTRY_ROAD_M / 2 - 0.6, COUNTRY_ROAD_M / 2, width))
        return mix(field, lane, band(to_road, -COUNTRY_ROAD_M, COUNTRY_ROAD_M / 2, width))
    if i >= 0 and j >= 0:
        return _block(city, i, j, x, y, width)
    asphalt = scale((0.43, 0.43, 0.435), 1.0 + 0.16 * fractal(x, y, width, 9.0, 7, 3))
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


@compiled
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


@compiled
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
        return mix(court, lawn, ramp(fractal(x, y, width, 8.0, 3, 23), 0.0, 0.08))
    if use == HOMES:
        bed = mix(lawn, (0.50, 0.38, 0.26), ramp(fractal(x, y, width, 6.0, 4, 37), 0.22, 0.27))
        blossom = ramp(fractal(x, y, width, 0.7, 2, 41), 0.28, 0.34) * ramp(fractal(x, y, width, 6.0, 2, 43), 0.1, 0.2)
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


@compiled
def _field(x: float, y: float, width: float, outside: float) -> Rgb:
    """Farmland: parcels with their own colour and rows, between hedges."""
    sheared = x + 0.25 * y
    side_x, side_y = 46.0, 34.0
    cell_x, cell_y = math.floor(sheared / side_x), math.floor(y / side_y)
    kept = fade(width, side_y)
    kind, tone = hashed(cell_x, cell_y, 301), hashed(cell_x, cell_y, 302)
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
    return mix(grass, crop, ramp(outside, 11.0, 14.0))
