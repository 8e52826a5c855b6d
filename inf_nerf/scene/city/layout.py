"""Where everything stands in the synthetic city: streets, blocks, buildings, trees and cars.

Metres; a rectangle is x0, y0, x1, y1.  B x B blocks.
"""

import numpy as np
from numpy.typing import NDArray

from inf_nerf.scene.city.solids import (
    BOX,
    BRICK,
    BRICKS,
    CAR_COLOURS,
    COUNTRY_ROAD_M,
    DENSE,
    ELLIPSOID,
    GABLE_X,
    GABLE_Y,
    GLASS,
    GLASSES,
    HIP,
    HOMES,
    HOUSE,
    LEAVES,
    METAL,
    OFFICE,
    OUTSKIRTS_M,
    PARK,
    PAVEMENT_M,
    PITCH,
    PLAIN,
    PLAZA,
    STONE,
    STUCCO,
    TILE_COLOURS,
    TILES,
    WALLS,
    City,
    Rect,
    Solids,
    around,
    index_solids,
    inset,
)


def build_city(blocks: int, seed: int) -> City:
    """Lay out ``blocks`` x ``blocks`` blocks; the same arguments give the same city."""
    rng = np.random.default_rng([seed, blocks, 0xC17])
    block_x, block_y = _kerbs(blocks, rng), _kerbs(blocks, rng)
    half = float(max(abs(block_x).max(), abs(block_y).max()))
    use = _uses(blocks, rng)
    solids = Solids(rng)
    for i in range(blocks):
        for j in range(blocks):
            block: Rect = (block_x[i, 0], block_y[j, 0], block_x[i, 1], block_y[j, 1])
            inner = inset(block, PAVEMENT_M)
            centre_distance = float(np.hypot(block[0] + block[2], block[1] + block[3])) / 2
            height_share = max(0.0, 1.0 - centre_distance / (1.1 * half))
            if use[i, j] == DENSE:
                _dense_block(solids, inner, height_share)
            elif use[i, j] == HOMES:
                _home_block(solids, inner)
            elif use[i, j] == PARK:
                _park(solids, inner)
            elif use[i, j] == PLAZA:
                _church(solids, inner)
            _kerbside(solids, block, avenue=bool(use[i, j] in (DENSE, PLAZA)))
    _outskirts(solids, block_x, block_y)
    roads = np.array([country_road(block_x), country_road(block_y)])
    return index_solids(solids, block_x, block_y, use, roads, half)


def _kerbs(blocks: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Kerb positions [B, 2] along one axis, with streets of 10 m and some avenues of 16 m between them."""
    sides = rng.uniform(44, 58, blocks)
    streets = np.where(rng.random(blocks) < 0.3, 16.0, 10.0)
    if blocks > 1:
        streets[(blocks - 2) // 2] = 16.0
    low = np.concatenate([[0.0], np.cumsum(sides + streets)[:-1]])
    middle = (low[-1] + sides[-1]) / 2
    return np.stack([low - middle, low + sides - middle], axis=1)


def _uses(blocks: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """What fills each block: dense in the middle, homes outside, and a few open places."""
    centre = (blocks - 1) / 2
    x, y = np.meshgrid(np.arange(blocks), np.arange(blocks), indexing="ij")
    distance = np.hypot(x - centre, y - centre) / max(centre, 0.5) + rng.uniform(-0.15, 0.15, (blocks, blocks))
    use = np.where(distance < 1.12, DENSE, HOMES).astype(np.int64)
    order = np.argsort(distance, axis=None)
    if blocks >= 2:
        use.flat[order[1]] = PARK
    if blocks >= 3:
        use.flat[order[3]] = PLAZA
        use.flat[order[-2]] = PITCH
        for place in order[12::13]:
            use.flat[place] = PARK
    return use


def _dense_block(solids: Solids, inner: Rect, height_share: float) -> None:
    rng = solids.rng
    for lot in _split(inner, 17.0, rng):
        on_street = min(lot[0] - inner[0], lot[1] - inner[1], inner[2] - lot[2], inner[3] - lot[3]) < 0.1
        rect = inset(lot, float(rng.uniform(0.0, 1.2)))
        if not on_street or rng.random() < 0.06:
            _grove(solids, inset(lot, 1.5), spacing=6.5)
        elif rng.random() < 0.12 + 0.3 * height_share:
            _tower(solids, rect, height_share)
        else:
            _midrise(solids, rect, height_share)


def _midrise(solids: Solids, rect: Rect, height_share: float) -> None:
    rng = solids.rng
    floors = int(rng.integers(3, 6)) + round(3 * height_share)
    height = 4.2 + 3.1 * (floors - 1)
    material = int(rng.choice([STUCCO, STUCCO, BRICK, BRICK, OFFICE]))
    colour = solids.pick(BRICKS if material == BRICK else WALLS)
    accent = solids.pick(CAR_COLOURS, 0.05)
    solids.add(BOX, rect, 0, height, material, colour, accent)
    if material != OFFICE and rng.random() < 0.45:
        span = min(rect[2] - rect[0], rect[3] - rect[1])
        solids.add(HIP, inset(rect, -0.4), height, height + 0.32 * span, TILES, solids.pick(TILE_COLOURS))
        return
    if rng.random() < 0.4 and min(rect[2] - rect[0], rect[3] - rect[1]) > 11:
        rect = inset(rect, 2.2)
        solids.add(BOX, rect, height, height + 3.1, material, solids.pick(WALLS), accent)
        height += 3.1
    _roof_units(solids, rect, height)


def _tower(solids: Solids, rect: Rect, height_share: float) -> None:
    rng = solids.rng
    material = int(rng.choice([GLASS, GLASS, OFFICE, BRICK]))
    colour = solids.pick({GLASS: GLASSES, OFFICE: WALLS, BRICK: BRICKS}[material])
    accent = solids.pick(WALLS)
    podium = 4.2 + 3.4 * int(rng.integers(1, 3))
    solids.add(BOX, rect, 0, podium, OFFICE, solids.pick(WALLS), accent)
    rect = inset(rect, float(rng.uniform(1.2, 2.4)))
    height = podium + 3.4 * int(rng.integers(4, 7) + 4 * height_share)
    solids.add(BOX, rect, podium, height, material, colour, accent)
    if rng.random() < 0.6:
        rect = inset(rect, float(rng.uniform(1.0, 2.0)))
        upper = height + 3.4 * int(rng.integers(1, 4))
        solids.add(BOX, rect, height, upper, material, colour, accent)
        height = upper
    _roof_units(solids, rect, height)
    if rng.random() < 0.5:
        x, y = (rect[0] + rect[2]) / 2, (rect[1] + rect[3]) / 2
        solids.add(BOX, around(x, y, 0.2, 0.2), height, height + 6, PLAIN, (0.75, 0.3, 0.25))


def _roof_units(solids: Solids, rect: Rect, z: float) -> None:
    """Stair heads, air conditioners and vents on a flat roof."""
    rng = solids.rng
    room = inset(rect, 1.8)
    if room[2] - room[0] < 2 or room[3] - room[1] < 2:
        return
    for _ in range(int(rng.integers(2, 6))):
        x, y = float(rng.uniform(room[0], room[2])), float(rng.uniform(room[1], room[3]))
        size = float(rng.choice([0.35, 0.7, 1.3]))
        grey = float(rng.uniform(0.5, 0.8))
        box = around(x, y, size * float(rng.uniform(0.8, 1.2)), size)
        solids.add(BOX, box, z, z + size * float(rng.uniform(0.9, 1.7)), METAL, (grey, grey, grey))


def _home_block(solids: Solids, inner: Rect) -> None:
    rng = solids.rng
    for lot in _split(inner, 13.0, rng):
        width, depth = lot[2] - lot[0], lot[3] - lot[1]
        x, y = (lot[0] + lot[2]) / 2 + rng.uniform(-0.6, 0.6), (lot[1] + lot[3]) / 2 + rng.uniform(-0.6, 0.6)
        house = around(x, y, min(width * 0.31, 5.5), min(depth * 0.31, 5.5))
        height = float(rng.choice([3.2, 5.8, 5.8]))
        solids.add(BOX, house, 0, height, HOUSE, solids.pick(WALLS), solids.pick(CAR_COLOURS))
        shape = int(rng.choice([GABLE_X, GABLE_Y, HIP]))
        ridge = height + float(rng.uniform(2.2, 3.2))
        solids.add(shape, inset(house, -0.5), height - 0.1, ridge, TILES, solids.pick(TILE_COLOURS), solids.pick(WALLS))
        chimney = around(x + rng.uniform(-1.5, 1.5), y + rng.uniform(-1.5, 1.5), 0.35, 0.35)
        solids.add(BOX, chimney, height, ridge + 0.5, PLAIN, (0.50, 0.30, 0.25))
        west, south, east, north = inset(lot, 0.3)
        for hedge in (
            (west, south, west + 0.7, north),
            (west, south, east, south + 0.7),
            (east - 0.7, south, east, north),
            (west, north - 0.7, east, north),
        ):
            if rng.random() < 0.5:
                solids.add(BOX, hedge, 0, 1.2, LEAVES, (0.24, 0.36, 0.16))
        for corner_x, corner_y in ((lot[0] + 2, lot[1] + 2), (lot[2] - 2, lot[3] - 2), (lot[0] + 2, lot[3] - 2)):
            if rng.random() < 0.55:
                solids.tree(corner_x, corner_y, float(rng.uniform(4, 7)))


def _park(solids: Solids, inner: Rect) -> None:
    """Trees that leave the paths (see the ground texture: a ring and a cross) and the pond free."""
    rng = solids.rng
    cx, cy = (inner[0] + inner[2]) / 2, (inner[1] + inner[3]) / 2
    reach = min(inner[2] - inner[0], inner[3] - inner[1]) / 2
    for x in np.arange(inner[0] + 3, inner[2] - 2, 5.5):
        for y in np.arange(inner[1] + 3, inner[3] - 2, 5.5):
            px, py = x + rng.uniform(-1.6, 1.6), y + rng.uniform(-1.6, 1.6)
            ring = abs(np.hypot(px - cx, py - cy) - 0.62 * reach)
            if ring > 3.0 and min(abs(px - cx), abs(py - cy)) > 2.8 and np.hypot(px - cx, py - cy) > 0.45 * reach:
                solids.tree(float(px), float(py), float(rng.uniform(6, 11)))


def _church(solids: Solids, inner: Rect) -> None:
    """The landmark on the plaza: nave, aisle and a tower with a spire."""
    x, y = (inner[0] + inner[2]) / 2, (inner[1] + inner[3]) / 2
    stone, slate, copper = (0.84, 0.78, 0.67), (0.50, 0.52, 0.58), (0.42, 0.66, 0.57)
    nave = around(x, y, 12.0, 5.0)
    solids.add(BOX, nave, 0, 10, STONE, stone)
    solids.add(GABLE_X, inset(nave, -0.4), 10, 16, TILES, slate, stone)
    cross = around(x + 4, y, 4.0, 9.0)
    solids.add(BOX, cross, 0, 9, STONE, stone)
    solids.add(GABLE_Y, inset(cross, -0.4), 9, 14, TILES, slate, stone)
    tower = around(x - 12, y, 3.4, 3.4)
    solids.add(BOX, tower, 0, 24, STONE, stone)
    solids.add(HIP, inset(tower, -0.3), 24, 37, TILES, copper)
    solids.add(BOX, around(x + 12, y, 2.4, 3.2), 0, 7, STONE, stone)
    solids.add(ELLIPSOID, around(x + 12, y, 2.6, 3.4), 4.5, 9.5, METAL, copper)
    for angle in np.arange(12) * np.pi / 6 + 0.2:
        solids.tree(x + 20 * float(np.cos(angle)), y + 19 * float(np.sin(angle)), 5.5)


def _grove(solids: Solids, room: Rect, spacing: float) -> None:
    rng = solids.rng
    for x in np.arange(room[0] + 1, room[2], spacing):
        for y in np.arange(room[1] + 1, room[3], spacing):
            if rng.random() < 0.6:
                solids.tree(float(x + rng.uniform(0, 2)), float(y + rng.uniform(0, 2)), float(rng.uniform(5, 8)))


def _kerbside(solids: Solids, block: Rect, avenue: bool) -> None:
    """Street trees on the pavement and parked cars along the kerb, on all four sides of a block."""
    rng = solids.rng
    for side in range(4):
        axis = side % 2  # the street runs along this axis
        low, high = block[axis], block[axis + 2]
        kerb = block[1 - axis] if side < 2 else block[3 - axis]
        outward = -1.0 if side < 2 else 1.0
        trees = avenue and rng.random() < 0.6
        for along in np.arange(low + 9, high - 8, 5.4):
            if rng.random() < 0.5:
                across = kerb + outward * 1.25
                at = (along + rng.uniform(-0.4, 0.4), across) if axis == 0 else (across, along + rng.uniform(-0.4, 0.4))
                solids.car(float(at[0]), float(at[1]), along_x=axis == 0)
        if trees:
            for along in np.arange(low + 6, high - 5, 9.0):
                across = kerb - outward * 0.9
                at = (along, across) if axis == 0 else (across, along)
                solids.tree(float(at[0]), float(at[1]), float(rng.uniform(4.5, 6.0)))


def _outskirts(solids: Solids, block_x: NDArray[np.float64], block_y: NDArray[np.float64]) -> None:
    """Trees and a few farms in the fields around; the country roads stay free."""
    rng = solids.rng
    outer = (block_x[0, 0] - 14, block_y[0, 0] - 14, block_x[-1, 1] + 14, block_y[-1, 1] + 14)
    far = inset((outer[0], outer[1], outer[2], outer[3]), -(OUTSKIRTS_M - 18))
    roads = (country_road(block_x), country_road(block_y))
    for index in range(36 * len(block_x)):
        x, y = float(rng.uniform(far[0], far[2])), float(rng.uniform(far[1], far[3]))
        farm = index % 12 == 0
        room = 9.0 if farm else 2.5  # half the side of a plot
        beside = min(abs(x - roads[0]), abs(y - roads[1])) > COUNTRY_ROAD_M / 2 + room
        outside = x < outer[0] - room or y < outer[1] - room or x > outer[2] + room or y > outer[3] + room
        if not (beside and outside):
            continue
        if not farm:
            solids.tree(x, y, float(rng.uniform(5, 10)))
            continue
        for half_x, half_y, height, shape, shift in ((4.5, 3.5, 3.4, GABLE_X, -4.0), (3.0, 5.5, 3.8, GABLE_Y, 5.0)):
            barn = around(x + shift, y, half_x, half_y)
            walls = solids.pick(WALLS)
            solids.add(BOX, barn, 0, height, HOUSE, walls, solids.pick(CAR_COLOURS))
            roof = inset(barn, -0.5)
            solids.add(shape, roof, height - 0.1, height + 2.8, TILES, solids.pick(TILE_COLOURS), walls)


def country_road(kerbs: NDArray[np.float64]) -> float:
    """Where the middle street of an axis, which goes on as a country road, crosses that axis."""
    if len(kerbs) == 1:
        return float(kerbs[0, 1]) + 5.0
    street = (len(kerbs) - 2) // 2
    return float(kerbs[street, 1] + kerbs[street + 1, 0]) / 2


def _split(rect: Rect, target: float, rng: np.random.Generator) -> list[Rect]:
    """Cut a rectangle until no side is longer than 1.5 targets."""
    width, depth = rect[2] - rect[0], rect[3] - rect[1]
    if max(width, depth) < 1.5 * target:
        return [rect]
    share = float(rng.uniform(0.38, 0.62))
    if width > depth:
        cut = rect[0] + share * width
        parts = ((rect[0], rect[1], cut, rect[3]), (cut, rect[1], rect[2], rect[3]))
    else:
        cut = rect[1] + share * depth
        parts = ((rect[0], rect[1], rect[2], cut), (rect[0], cut, rect[2], rect[3]))
    return _split(parts[0], target, rng) + _split(parts[1], target, rng)
