"""What the synthetic city is made of: solids with a material, and the grid that finds them.

World frame: metres, z up, the ground is the plane z = 0, the city is centred on the origin.  A solid is a shape
inscribed in an axis-aligned box: the box itself, a pitched roof over its floor plan, or an ellipsoid.  N solids, B x B
blocks.
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
COUNTRY_ROAD_M = 7.0  # width
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
GLASSES: tuple[Colour, ...] = ((0.46, 0.60, 0.72), (0.38, 0.56, 0.58), (0.56, 0.62, 0.70), (0.62, 0.56, 0.48))
TILE_COLOURS: tuple[Colour, ...] = ((0.68, 0.34, 0.23), (0.58, 0.28, 0.22), (0.74, 0.42, 0.28), (0.38, 0.37, 0.40))
LEAF_COLOURS: tuple[Colour, ...] = (
    (0.30, 0.44, 0.17),
    (0.36, 0.50, 0.20),
    (0.24, 0.38, 0.17),
    (0.44, 0.52, 0.22),
    (0.60, 0.48, 0.22),
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
    roads: NDArray[np.float64]  # [2] x of the country road along y, y of the one along x
    half_extent: float  # the outermost kerbs lie within +-half_extent in x and y


class Solids:
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
        self.add(BOX, around(x, y, 0.035 * height, 0.035 * height), 0, height * 0.6, PLAIN, (0.32, 0.25, 0.18))
        leaf = self.pick(LEAF_COLOURS)
        for blob in range(4):
            size = radius * (1.0 if blob == 0 else float(rng.uniform(0.55, 0.78)))
            angle, reach = float(rng.uniform(0, 2 * np.pi)), 0.0 if blob == 0 else 0.62 * radius
            cx, cy = x + reach * np.cos(angle), y + reach * np.sin(angle)
            cz = height - radius * 1.05 + (0.0 if blob == 0 else float(rng.uniform(-0.4, 0.5)) * radius)
            self.add(ELLIPSOID, around(cx, cy, size, size), cz - size * 0.95, cz + size * 0.95, LEAVES, leaf)

    def car(self, x: float, y: float, along_x: bool) -> None:
        """A body and a cabin."""
        paint = self.pick(CAR_COLOURS, 0.02)
        shift = 0.25 if self.rng.random() < 0.5 else -0.25
        body, cabin = (2.1, 0.88), (1.15, 0.76)
        if along_x:
            self.add(BOX, around(x, y, *body), 0.22, 0.92, CAR, paint)
            self.add(BOX, around(x + shift, y, *cabin), 0.92, 1.48, CABIN, paint)
        else:
            self.add(BOX, around(x, y, body[1], body[0]), 0.22, 0.92, CAR, paint)
            self.add(BOX, around(x, y + shift, cabin[1], cabin[0]), 0.92, 1.48, CABIN, paint)


def inset(rect: Rect, margin: float) -> Rect:
    return (rect[0] + margin, rect[1] + margin, rect[2] - margin, rect[3] - margin)


def around(x: float, y: float, half_x: float, half_y: float) -> Rect:
    return (x - half_x, y - half_y, x + half_x, y + half_y)


def index_solids(
    solids: Solids,
    block_x: NDArray[np.float64],
    block_y: NDArray[np.float64],
    use: NDArray[np.int64],
    roads: NDArray[np.float64],
    half: float,
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
        roads=roads,
        half_extent=half,
    )
