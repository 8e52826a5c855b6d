"""Image tiles: what is stored of a photo, and which octree nodes each tile sees.

A photo becomes a pyramid, every pyramid level a grid of tiles, every tile one row of :data:`TILE_SCHEMA`.  A row names
the nodes that its pixels ask, so that a worker can be given just the tiles of its own subtrees, however many workers
there are.

Letters: T tiles, G = 9 rays of a tile, S steps of a ray, K keypoints of the photo.  Boxes are pixel indices of their
pyramid level, distances run along unit rays in scene units.
"""

import hashlib
import io
import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.files import write_atomic
from inf_nerf.octree.routing import route
from inf_nerf.octree.topology import BACKGROUND_KEY, Octree
from inf_nerf.scene.photos import area_resize, pyramid
from inf_nerf.scene.scene import Scene

TILE_SCHEMA = pa.schema(
    [
        pa.field("tile", pa.int64(), nullable=False),  # photo << 32 | level << 24 | index in the level, row-major
        pa.field("photo", pa.int32(), nullable=False),
        pa.field("split", pa.dictionary(pa.int8(), pa.string()), nullable=False),  # "train" or "val"
        pa.field("level", pa.int8(), nullable=False),
        pa.field("x", pa.int32(), nullable=False),  # of the top-left pixel, in pixels of the level
        pa.field("y", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("pixels", pa.binary(), nullable=False),  # height * width * 3 uint8, row-major
        pa.field("mask", pa.binary()),  # height * width uint8, 1 = use; null: every pixel is used
        pa.field("nodes", pa.list_(pa.int64()), nullable=False),  # keys of the nodes that the tile sees
    ]
)
IDENTITY_KEY = b"inf_nerf.identity"
COUNTS_KEY = b"inf_nerf.counts"

NEAREST_KEYPOINTS = 16
DEPTH_MARGIN = 0.1  # of the keypoints' distances, on both ends
FINEST_JITTER = 2.0**-0.5  # training multiplies footprints by 2**(u - 0.5), u in [0, 1)
MAX_STEPS = 256
TILES_AT_ONCE = 512
ALL_USED = 1 - 1e-4  # share of a coarse pixel's area, but for rounding
ROW_GROUP_BYTES = 16 << 20


@dataclass(frozen=True)
class TileCounts:
    """What one photo's tile file contributes to the summary."""

    tiles: int
    nodes: int  # summed over the tiles
    pixels: int  # unmasked ones of level 0
    colour_sum: tuple[float, float, float]  # over those pixels, values in [0, 255]


def tile_identity(scene: Scene, octree: Octree, config: Config) -> str:
    """Hash of everything that tiles depend on: cameras, cube, split, masks, tree, and how photos are cut."""
    settings = {
        "scene": scene.identity,
        "octree": octree.identity,
        "photos": [(photo.name, photo.split, photo.mask) for photo in scene.photos],
        "pyramid_levels": config.scene.pyramid_levels,
        "max_side": config.scene.max_side,
        "tile_size": config.data.tile_size,
        "footprint_px": config.octree.footprint_px,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def tile_file(run_dir: Path, photo: int) -> Path:
    """Where the tiles of one photo are."""
    return run_dir / "tiles" / f"{photo:06d}.parquet"


def tile_boxes(width: int, height: int, tile_size: int) -> NDArray[np.int64]:
    """Cover a level with tiles: [T, 4] x, y, width, height, row-major; smaller at the right and bottom edge."""
    x, y = np.meshgrid(np.arange(0, width, tile_size), np.arange(0, height, tile_size))
    x, y = x.ravel(), y.ravel()
    return np.stack([x, y, np.minimum(tile_size, width - x), np.minimum(tile_size, height - y)], axis=1)


def cut_photo(
    scene: Scene,
    octree: Octree,
    photo: int,
    image: NDArray[np.uint8],  # [h, w, 3] level 0
    mask: NDArray[np.bool_] | None,  # [h, w] True = use
    config: Config,
    identity: str,
) -> tuple[pa.Table, TileCounts]:
    """Cut every pyramid level of a photo into tiles and find the nodes they see.

    A coarse pixel is used only if no masked pixel went into it.  Tiles without any used pixel are left out.
    """
    columns: dict[str, list[object]] = {name: [] for name in TILE_SCHEMA.names}
    for level, pixels in enumerate(pyramid(image, config.scene.pyramid_levels)):
        height, width = pixels.shape[:2]
        level_mask = None
        if mask is not None:
            level_mask = area_resize(mask, (width, height)) > ALL_USED
        boxes = tile_boxes(width, height, config.data.tile_size)
        nodes = nodes_of_tiles(scene, octree, photo, level, boxes, config.octree.footprint_px)
        for index, (x, y, w, h) in enumerate(boxes.tolist()):
            used = None if level_mask is None else level_mask[y : y + h, x : x + w]
            if used is not None and not used.any():
                continue
            columns["tile"].append(photo << 32 | level << 24 | index)
            columns["photo"].append(photo)
            columns["split"].append(scene.photos[photo].split)
            columns["level"].append(level)
            for name, value in zip(("x", "y", "width", "height"), (x, y, w, h), strict=True):
                columns[name].append(value)
            columns["pixels"].append(pixels[y : y + h, x : x + w].tobytes())
            columns["mask"].append(None if used is None or used.all() else used.astype(np.uint8).tobytes())
            columns["nodes"].append(nodes[index])
    counted = image.reshape(-1, 3) if mask is None else image[mask]  # [*, 3]
    red, green, blue = counted.sum(axis=0, dtype=np.float64).tolist()
    counts = TileCounts(len(columns["tile"]), sum(map(len, columns["nodes"])), len(counted), (red, green, blue))  # type: ignore[arg-type]
    metadata = {IDENTITY_KEY: identity, COUNTS_KEY: json.dumps(counts.__dict__)}
    return pa.table(columns, schema=TILE_SCHEMA.with_metadata(metadata)), counts


def write_tiles(path: Path, table: pa.Table) -> None:
    """Write a photo's tiles; row groups stay small so that a reader holds only a part of a large photo."""
    bytes_of_row = max(1, table.nbytes // max(1, len(table)))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=max(1, ROW_GROUP_BYTES // bytes_of_row))
    write_atomic(path, buffer.getvalue())


def read_counts(path: Path, identity: str) -> TileCounts | None:
    """The counts stored in a tile file, or None if it is missing, damaged, or was made for something else."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    if metadata.get(IDENTITY_KEY) != identity.encode():
        return None
    stored = json.loads(metadata[COUNTS_KEY])
    return TileCounts(**{**stored, "colour_sum": tuple(stored["colour_sum"])})


def nodes_of_tiles(
    scene: Scene,
    octree: Octree,
    photo: int,
    level: int,
    boxes: NDArray[np.int64],  # [T, 4]
    footprint_px: float,
) -> list[NDArray[np.int64]]:
    """Keys of the nodes that each tile sees, ascending; T lists, none empty.

    3 x 3 rays of the tile are followed through the interval of distances at which structure from motion saw something
    in or near the tile, and each step asks the tree with the finest footprint that training may draw: the node found
    and its ancestors are then the only ones that answer there.  Rays that miss the cube see the background.
    """
    width, height = scene.cameras.level_size(photo, level)
    keypoint, distance = _observed(scene, photo, width, height)
    seen: list[NDArray[np.int64]] = []
    for start in range(0, len(boxes), TILES_AT_ONCE):
        part = torch.from_numpy(boxes[start : start + TILES_AT_ONCE])
        near, far = _depth_intervals(part, keypoint, distance)
        seen += _march(scene, octree, photo, level, part, near, far, footprint_px)
    return seen


def _observed(scene: Scene, photo: int, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Keypoints of a photo that carry a point: positions [K, 2] in pixels of the level, distances [K]."""
    points = scene.points
    observation = torch.nonzero(points.track_photo == photo).squeeze(1)  # [K]
    point = torch.searchsorted(points.track_start, observation, right=True) - 1  # [K]
    full_width, full_height = scene.cameras.level_size(photo, 0)
    scale = torch.tensor([width / full_width, height / full_height])
    centre = scene.cameras.cam_to_world[photo, :, 3]
    return points.track_xy[observation] * scale, (points.xyz[point] - centre).norm(dim=1)


def _depth_intervals(boxes: Tensor, keypoint: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest and farthest distance [T] of the keypoints in a tile and of the 16 nearest to its centre."""
    if len(keypoint) == 0:
        return torch.zeros(len(boxes)), torch.full((len(boxes),), math.inf)
    low, size = boxes[:, None, :2], boxes[:, None, 2:]  # [T, 1, 2]
    chosen = ((keypoint >= low) & (keypoint < low + size)).all(dim=2)  # [T, K]
    apart = (keypoint - (low + size / 2)).square().sum(dim=2)  # [T, K]
    nearest = apart.topk(min(NEAREST_KEYPOINTS, len(keypoint)), dim=1, largest=False).indices
    chosen.scatter_(1, nearest, True)
    near = torch.where(chosen, distance, math.inf).amin(dim=1)
    far = torch.where(chosen, distance, -math.inf).amax(dim=1)
    return near * (1 - DEPTH_MARGIN), far * (1 + DEPTH_MARGIN)


def _march(
    scene: Scene, octree: Octree, photo: int, level: int, boxes: Tensor, near: Tensor, far: Tensor, footprint_px: float
) -> list[NDArray[np.int64]]:
    """Follow 3 x 3 rays of every tile from ``near`` to ``far`` [T] and collect the keys that answer."""
    num_tiles = len(boxes)
    share = torch.tensor([0.0, 0.5, 1.0])
    grid = torch.cartesian_prod(share, share)  # [G, 2]
    xy = (boxes[:, None, :2] + ((boxes[:, None, 2:] - 1) * grid).long()).reshape(-1, 2)  # [T * G, 2]
    tile = torch.arange(num_tiles).repeat_interleave(len(grid))  # [T * G]
    rays = scene.cameras.rays(torch.full_like(tile, photo), torch.full_like(tile, level), xy)
    enter, leave = _cube_interval(rays.origin, rays.direction)
    near = torch.maximum(near[tile], enter).clamp_min(1e-4)
    far = torch.minimum(far[tile], leave)
    inside = torch.nonzero(far > near).squeeze(1)
    seen: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * num_tiles
    if len(inside):
        rays, near, far, tile = rays[inside], near[inside], far[inside], tile[inside]
        footprint_of_distance = rays.radius * (footprint_px * FINEST_JITTER)  # [R]
        # A node that answers is at least footprint / 2 * cells wide; steps of at most a quarter of that skip none but
        # corners.  Nodes grow with the distance, hence equal ratios rather than equal steps.
        cells = float(2 * octree.half[0] / octree.gsd[0])
        ratio = 1 + 0.125 * cells * float(footprint_of_distance.min())
        steps = math.ceil(math.log(float((far / near).max())) / math.log(ratio)) + 1
        position = torch.linspace(0, 1, min(max(steps, 4), MAX_STEPS))  # [S]
        distance = near[:, None] * (far / near)[:, None] ** position  # [R, S]
        xyz = rays.origin[:, None] + rays.direction[:, None] * distance[..., None]  # [R, S, 3]
        footprint = footprint_of_distance[:, None] * distance
        node, _ = route(octree, xyz.reshape(-1, 3), footprint.reshape(-1))
        pair = torch.unique(tile[:, None] * octree.num_nodes + node.reshape(distance.shape))
        owner, keys = pair // octree.num_nodes, octree.keys[pair % octree.num_nodes].numpy()
        ends = torch.searchsorted(owner, torch.arange(num_tiles + 1)).tolist()
        seen = [np.sort(keys[start:end]) for start, end in pairwise(ends)]
    background = np.array([BACKGROUND_KEY], np.int64)
    return [keys if len(keys) else background for keys in seen]


def _cube_interval(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Distances [R] at which rays enter and leave the root cube [-1, 1]^3; leave <= enter where they miss it."""
    # Zero components become tiny ones: such a ray stays between its two planes or outside them for ever.
    step = torch.where(direction.abs() < 1e-12, torch.full_like(direction, 1e-12), direction)
    first, second = (-1 - origin) / step, (1 - origin) / step  # [R, 3]
    enter = torch.minimum(first, second).amax(dim=1).clamp_min(0)
    leave = torch.maximum(first, second).amin(dim=1)
    return enter, leave
