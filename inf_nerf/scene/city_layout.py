"""Where everything stands in the synthetic city: streets, blocks, buildings, trees and cars.

World frame: metres, z up, the ground is the plane z = 0, the city is centred on the origin.  A solid is a shape inscribed
in an axis-aligned box: the box itself, a pitched roof over its floor plan, or an ellipsoid.  N solids, B x B blocks.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BOX, GABLE_X, GABLE_Y, HIP, ELLIPSOID = range(5)  # shapes; GABLE_X has its ridge along x
(
    PLAIN,
    STUCCO,
    BRICK,
    OFFICE,
    GLASS,
    HOUSE,
    STONE,
    TILES,
    CAR,
    CABIN,
    LEAVES,
    METAL,
) = range(12)  # materials
DENSE, HOMES, PARK, PITCH, PLAZA = range(5)  # what fills a block
PAVEMENT_M = 3.0  # between the kerb and the lots, inside a block
CELL_M = 6.0  # side of a cell of the ray-casting grid
OUTSKIRTS_M = 42.0  # fields with trees around the outermost street

Rect = tuple[float, float, float, float]  # x0, y0, x1, y1
Colour = tuple[float, float, float]  # sRGB-encoded, 0..1

WALLS: tuple[Colour, ...] = (
    (0.86, 0.80, 0.68),
    (0.82, 0.70, 0.56),
    (0.88, 0.86, 0.81),
    (0.74, 0.76, 0.76),
    (0.84, 0.66, 0.54),
    (0.70, 0.76, 0.72),
    (0.90, 0.82, 0.60),
)
BRICKS: tuple[Colour, ...] = ((0.62, 0.34, 0.27), (0.55, 0.38, 0.31), (0.68, 0.45, 0.34), (0.50, 0.33, 0.30))
GLASSES: tuple[Colour, ...] = ((0.34, 0.46, 0.56), (0.28, 0.42, 0.44), (0.42, 0.48, 0.56), (0.46, 0.42, 0.38))
TILE_COLOURS: tuple[Colour, ...] = ((0.68, 0.34, 0.23), (0.58, 0.28, 0.22), (0.74, 0.42, 0.28), (0.38, 0.37, 0.40))
LEAF_COLOURS: tuple[Colour, ...] = (
    (0.30, 0.44, 0.17),
    (0.36, 0.50, 0.20),
    (0.24, 0.38, 0.17),
    (0.44, 0.52, 0.22),
    (0.62, 0.46, 0.20),
)
CAR_COLOURS: tuple[Colour, ...] = (
    (0.85, 0.85, 0.86),
    (0.18, 0.18, 0.20),
    (0.55, 0.57, 0.60),
    (0.66, 0.13, 0.12),
    (0.16, 0.28, 0.52),
    (0.78, 0.66, 0.24),
)


class City(NamedTuple):
    """All a ray needs to know; plain arrays, so that compiled code reads it."""

    shape: NDArray[np.int64]  # [N] BOX ... ELLIPSOID
    bounds: NDArray[np.float64]  # [N, 6] x0 y0 z0 x1 y1 z1
    material: NDArray[np.int64]  # [N]
    colour: NDArray[np.float64]  # [N, 3]
    accent: NDArray[np.float64]  # [N, 3] second colour: roof, shop front, frames
    tag: NDArray[np.int64]  # [N] seeds the texture
    block_x: NDArray[np.float64]  # [B, 2] kerb to kerb
    block_y: NDArray[np.float64]  # [B, 2]
    block_use: NDArray[np.int64]  # [B, B] indexed x, y
    cell_start: NDArray[np.int64]  # [GX * GY + 1] into cell_item
    cell_item: NDArray[np.int64]  # solids that overlap a cell
    cell_top: NDArray[np.float64]  # [GX * GY] highest z in a cell
    grid_origin: NDArray[np.float64]  # [2]
    grid_shape: NDArray[np.int64]  # [2] GX, GY
    cell_size: float  # metres
    top: float  # highest z of all
    half_extent: float  # the outermost kerbs lie within +-half_extent in x and y


class _Solids:
    """Collects solids while the city is laid out."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.shape: list[int] = []
        self.bounds: list[tuple[float, ...]] = []
        self.material: list[int] = []
        self.colour: list[Colour] = []
        self.accent: list[Colour] = []

    def add(
        self, shape: int, rect: Rect, z0: float, z1: float, material: int, colour: Colour, accent: Colour | None = None
    ) -> None:
        self.shape.append(shape)
        self.bounds.append((rect[0], rect[1], z0, rect[2], rect[3], z1))
        self.material.append(material)
        self.colour.append(colour)
        self.accent.append(accent or colour)

    def pick(self, colours: tuple[Colour, ...], spread: float = 0.04) -> Colour:
        """One of the colours, slightly changed."""
        chosen = np.array(colours[self.rng.integers(len(colours))])
        varied = np.clip(chosen + self.rng.normal(0, spread, 3) * 0.5 + self.rng.normal(0, spread * 0.5), 0.05, 0.95)
        return (float(varied[0]), float(varied[1]), float(varied[2]))

    def tree(self, x: float, y: float, height: float) -> None:
        """A trunk and a crown of four blobs."""
        rng = self.rng
        radius = height * float(rng.uniform(0.26, 0.36))
        self.add(BOX, _around(x, y, 0.035 * height, 0.035 * height), 0, height * 0.6, PLAIN, (0.32, 0.25, 0.18))
        leaf = self.pick(LEAF_COLOURS)
        for blob in range(4):
            size = radius * (1.0 if blob == 0 else float(rng.uniform(0.55, 0.78)))
            angle, reach = float(rng.uniform(0, 2 * np.pi)), 0.0 if blob == 0 else 0.62 * radius
            cx, cy = x + reach * np.cos(angle), y + reach * np.sin(angle)
            cz = height - radius * 1.05 + (0.0 if blob == 0 else float(rng.uniform(-0.4, 0.5)) * radius)
            self.add(ELLIPSOID, _around(cx, cy, size, size), cz - size * 0.95, cz + size * 0.95, LEAVES, leaf)

    def car(self, x: float, y: float, along_x: bool) -> None:
        """A body and a cabin."""
        paint = self.pick(CAR_COLOURS, 0.02)
        shift = 0.25 if self.rng.random() < 0.5 else -0.25
        body, cabin = (2.1, 0.88), (1.15, 0.76)
        if along_x:
            self.add(BOX, _around(x, y, *body), 0.22, 0.92, CAR, paint)
            self.add(BOX, _around(x + shift, y, *cabin), 0.92, 1.48, CABIN, paint)
        else:
            self.add(BOX, _around(x, y, body[1], body[0]), 0.22, 0.92, CAR, paint)
            self.add(BOX, _around(x, y + shift, cabin[1], cabin[0]), 0.92, 1.48, CABIN, paint)


def build_city(blocks: int, seed: int) -> City:
    """Lay out ``blocks`` x ``blocks`` blocks; the same arguments give the same city."""
    rng = np.random.default_rng([seed, blocks, 0xC17])
    block_x, block_y = _kerbs(blocks, rng), _kerbs(blocks, rng)
    half = float(max(abs(block_x).max(), abs(block_y).max()))
    use = _uses(blocks, rng)
    solids = _Solids(rng)
    for i in range(blocks):
        for j in range(blocks):
            block: Rect = (block_x[i, 0], block_y[j, 0], block_x[i, 1], block_y[j, 1])
            inner = _inset(block, PAVEMENT_M)
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
    return _index(solids, block_x, block_y, use, half)


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


def _dense_block(solids: _Solids, inner: Rect, height_share: float) -> None:
    rng = solids.rng
    for lot in _split(inner, 17.0, rng):
        on_street = min(lot[0] - inner[0], lot[1] - inner[1], inner[2] - lot[2], inner[3] - lot[3]) < 0.1
        rect = _inset(lot, float(rng.uniform(0.0, 1.2)))
        if not on_street or rng.random() < 0.06:
            _grove(solids, _inset(lot, 1.5), spacing=6.5)
        elif rng.random() < 0.12 + 0.3 * height_share:
            _tower(solids, rect, height_share)
        else:
            _midrise(solids, rect, height_share)


def _midrise(solids: _Solids, rect: Rect, height_share: float) -> None:
    rng = solids.rng
    floors = int(rng.integers(3, 6)) + round(3 * height_share)
    height = 4.2 + 3.1 * (floors - 1)
    material = int(rng.choice([STUCCO, STUCCO, BRICK, BRICK, OFFICE]))
    colour = solids.pick(BRICKS if material == BRICK else WALLS)
    accent = solids.pick(CAR_COLOURS, 0.05)
    solids.add(BOX, rect, 0, height, material, colour, accent)
    if material != OFFICE and rng.random() < 0.45:
        span = min(rect[2] - rect[0], rect[3] - rect[1])
        solids.add(HIP, _inset(rect, -0.4), height, height + 0.32 * span, TILES, solids.pick(TILE_COLOURS))
        return
    if rng.random() < 0.4 and min(rect[2] - rect[0], rect[3] - rect[1]) > 11:
        rect = _inset(rect, 2.2)
        solids.add(BOX, rect, height, height + 3.1, material, solids.pick(WALLS), accent)
        height += 3.1
    _roof_units(solids, rect, height)


def _tower(solids: _Solids, rect: Rect, height_share: float) -> None:
    rng = solids.rng
    material = int(rng.choice([GLASS, GLASS, OFFICE, BRICK]))
    colour = solids.pick({GLASS: GLASSES, OFFICE: WALLS, BRICK: BRICKS}[material])
    accent = solids.pick(WALLS)
    podium = 4.2 + 3.4 * int(rng.integers(1, 3))
    solids.add(BOX, rect, 0, podium, OFFICE, solids.pick(WALLS), accent)
    rect = _inset(rect, float(rng.uniform(1.2, 2.4)))
    height = podium + 3.4 * int(rng.integers(4, 7) + 4 * height_share)
    solids.add(BOX, rect, podium, height, material, colour, accent)
    if rng.random() < 0.6:
        rect = _inset(rect, float(rng.uniform(1.0, 2.0)))
        upper = height + 3.4 * int(rng.integers(1, 4))
        solids.add(BOX, rect, height, upper, material, colour, accent)
        height = upper
    _roof_units(solids, rect, height)
    if rng.random() < 0.5:
        x, y = (rect[0] + rect[2]) / 2, (rect[1] + rect[3]) / 2
        solids.add(BOX, _around(x, y, 0.2, 0.2), height, height + 6, PLAIN, (0.75, 0.3, 0.25))


def _roof_units(solids: _Solids, rect: Rect, z: float) -> None:
    """Stair heads, air conditioners and vents on a flat roof."""
    rng = solids.rng
    room = _inset(rect, 1.8)
    if room[2] - room[0] < 2 or room[3] - room[1] < 2:
        return
    for _ in range(int(rng.integers(2, 6))):
        x, y = float(rng.uniform(room[0], room[2])), float(rng.uniform(room[1], room[3]))
        size = float(rng.choice([0.35, 0.7, 1.3]))
        grey = float(rng.uniform(0.5, 0.8))
        box = _around(x, y, size * float(rng.uniform(0.8, 1.2)), size)
        solids.add(BOX, box, z, z + size * float(rng.uniform(0.9, 1.7)), METAL, (grey, grey, grey))


def _home_block(solids: _Solids, inner: Rect) -> None:
    rng = solids.rng
    for lot in _split(inner, 13.0, rng):
        width, depth = lot[2] - lot[0], lot[3] - lot[1]
        x, y = (lot[0] + lot[2]) / 2 + rng.uniform(-0.6, 0.6), (lot[1] + lot[3]) / 2 + rng.uniform(-0.6, 0.6)
        house = _around(x, y, min(width * 0.31, 5.5), min(depth * 0.31, 5.5))
        height = float(rng.choice([3.2, 5.8, 5.8]))
        solids.add(BOX, house, 0, height, HOUSE, solids.pick(WALLS), solids.pick(CAR_COLOURS))
        shape = int(rng.choice([GABLE_X, GABLE_Y, HIP]))
        ridge = height + float(rng.uniform(2.2, 3.2))
        solids.add(
            shape, _inset(house, -0.5), height - 0.1, ridge, TILES, solids.pick(TILE_COLOURS), solids.pick(WALLS)
        )
        chimney = _around(x + rng.uniform(-1.5, 1.5), y + rng.uniform(-1.5, 1.5), 0.35, 0.35)
        solids.add(BOX, chimney, height, ridge + 0.5, PLAIN, (0.50, 0.30, 0.25))
        for side in range(4):
            if rng.random() < 0.5:
                hedge = [lot[0] + 0.3, lot[1] + 0.3, lot[2] - 0.3, lot[3] - 0.3]
                axis = side % 2
                hedge[axis + 2 if side < 2 else axis] = hedge[axis if side < 2 else axis + 2] + (
                    0.7 if side < 2 else -0.7
                )
                solids.add(BOX, (hedge[0], hedge[1], hedge[2], hedge[3]), 0, 1.2, LEAVES, (0.24, 0.36, 0.16))
        for corner_x, corner_y in ((lot[0] + 2, lot[1] + 2), (lot[2] - 2, lot[3] - 2), (lot[0] + 2, lot[3] - 2)):
            if rng.random() < 0.55:
                solids.tree(corner_x, corner_y, float(rng.uniform(4, 7)))


def _park(solids: _Solids, inner: Rect) -> None:
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


def _church(solids: _Solids, inner: Rect) -> None:
    """The landmark on the plaza: nave, aisle and a tower with a spire."""
    x, y = (inner[0] + inner[2]) / 2, (inner[1] + inner[3]) / 2
    stone, slate, copper = (0.80, 0.74, 0.63), (0.35, 0.36, 0.40), (0.36, 0.56, 0.48)
    nave = _around(x, y, 12.0, 5.0)
    solids.add(BOX, nave, 0, 10, STONE, stone)
    solids.add(GABLE_X, _inset(nave, -0.4), 10, 16, TILES, slate, stone)
    cross = _around(x + 4, y, 4.0, 9.0)
    solids.add(BOX, cross, 0, 9, STONE, stone)
    solids.add(GABLE_Y, _inset(cross, -0.4), 9, 14, TILES, slate, stone)
    tower = _around(x - 12, y, 3.4, 3.4)
    solids.add(BOX, tower, 0, 24, STONE, stone)
    solids.add(HIP, _inset(tower, -0.3), 24, 37, TILES, copper)
    solids.add(BOX, _around(x + 12, y, 2.4, 3.2), 0, 7, STONE, stone)
    solids.add(ELLIPSOID, _around(x + 12, y, 2.6, 3.4), 4.5, 9.5, METAL, copper)
    for angle in np.arange(12) * np.pi / 6 + 0.2:
        solids.tree(x + 20 * float(np.cos(angle)), y + 19 * float(np.sin(angle)), 5.5)


def _grove(solids: _Solids, room: Rect, spacing: float) -> None:
    rng = solids.rng
    for x in np.arange(room[0] + 1, room[2], spacing):
        for y in np.arange(room[1] + 1, room[3], spacing):
            if rng.random() < 0.6:
                solids.tree(float(x + rng.uniform(0, 2)), float(y + rng.uniform(0, 2)), float(rng.uniform(5, 8)))


def _kerbside(solids: _Solids, block: Rect, avenue: bool) -> None:
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


def _outskirts(solids: _Solids, block_x: NDArray[np.float64], block_y: NDArray[np.float64]) -> None:
    """Rows and clumps of trees in the fields around."""
    rng = solids.rng
    outer = (block_x[0, 0] - 14, block_y[0, 0] - 14, block_x[-1, 1] + 14, block_y[-1, 1] + 14)
    far = _inset((outer[0], outer[1], outer[2], outer[3]), -(OUTSKIRTS_M - 18))
    for _ in range(34 * len(block_x)):
        x, y = float(rng.uniform(far[0], far[2])), float(rng.uniform(far[1], far[3]))
        if not (outer[0] < x < outer[2] and outer[1] < y < outer[3]):
            solids.tree(x, y, float(rng.uniform(5, 10)))


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


def _inset(rect: Rect, margin: float) -> Rect:
    return (rect[0] + margin, rect[1] + margin, rect[2] - margin, rect[3] - margin)


def _around(x: float, y: float, half_x: float, half_y: float) -> Rect:
    return (x - half_x, y - half_y, x + half_x, y + half_y)


def _index(
    solids: _Solids, block_x: NDArray[np.float64], block_y: NDArray[np.float64], use: NDArray[np.int64], half: float
) -> City:
    """Sort the solids into the cells of a grid over x and y."""
    bounds = np.array(solids.bounds, dtype=np.float64)
    origin = bounds[:, :2].min(axis=0) - 1.0
    shape = np.ceil((bounds[:, 3:5].max(axis=0) + 1.0 - origin) / CELL_M).astype(np.int64)
    members: list[list[int]] = [[] for _ in range(int(shape[0] * shape[1]))]
    first = np.floor((bounds[:, :2] - origin) / CELL_M).astype(np.int64)
    last = np.floor((bounds[:, 3:5] - origin) / CELL_M).astype(np.int64)
    tops = np.zeros(len(members))
    for solid in range(len(bounds)):
        for i in range(first[solid, 0], last[solid, 0] + 1):
            for j in range(first[solid, 1], last[solid, 1] + 1):
                members[i * shape[1] + j].append(solid)
                tops[i * shape[1] + j] = max(tops[i * shape[1] + j], bounds[solid, 5])
    return City(
        shape=np.array(solids.shape, dtype=np.int64),
        bounds=bounds,
        material=np.array(solids.material, dtype=np.int64),
        colour=np.array(solids.colour, dtype=np.float64),
        accent=np.array(solids.accent, dtype=np.float64),
        tag=np.arange(len(bounds), dtype=np.int64) * 7919 + 17,
        block_x=block_x,
        block_y=block_y,
        block_use=use,
        cell_start=np.concatenate([[0], np.cumsum([len(cell) for cell in members])]).astype(np.int64),
        cell_item=np.array([solid for cell in members for solid in cell], dtype=np.int64),
        cell_top=tops,
        grid_origin=origin,
        grid_shape=shape,
        cell_size=CELL_M,
        top=float(bounds[:, 5].max()),
        half_extent=half,
    )
