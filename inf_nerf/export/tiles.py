"""Export as 3D Tiles 1.1: an implicit octree over the root cube whose tiles are points.

    tileset.json            root cube, transform, geometric error, templates of the names below
    content/L/X/Y/Z.glb     points of the tile at X, Y, Z of level L, about 2^TILE_BITS cells to a side
    subtrees/L/X/Y/Z.subtree

Tiles are octants of the octree's own cube.  The points of a leaf are what the photos see in its cells; those of a tile
above are its children's, averaged in cells of twice the side, and replace them from afar.  So the geometric error of a
tile is its cell, the ground sampling distance of its level, and halves from level to level.

The frame of the tiles has the scene's axes and the unit of exports; the root's transform brings them to earth-centred
coordinates, or to the input's where no georeference is known.  ``tileset.json`` is written last.
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inf_nerf.errors import InputError
from inf_nerf.export.cloud import Cells, Grid, coarser, colours, count_in, deinterleave, merged, reduced
from inf_nerf.export.gltf import glb
from inf_nerf.export.placement import Placement
from inf_nerf.export.subtrees import SUBTREE_LEVELS, subtree_file
from inf_nerf.export.unfinished import Progress, no_progress
from inf_nerf.files import write_atomic

TILESET = "tileset.json"
TILE_BITS = 7  # cells to a side of a tile, as a power of two: some 20 000 points where a surface crosses it


@dataclass(frozen=True)
class TileFigures:
    """What was written."""

    tiles: int
    levels: int
    leaf_points: int
    bytes: int  # of the contents


def tile_grid(gsd: float) -> Grid:
    """Cells that divide the root cube evenly, as tiles need, of at most ``gsd`` scene units."""
    return Grid.of(2.0 / 2.0 ** max(TILE_BITS, Grid.of(gsd).bits))


def write_tiles(
    parts: Sequence[Cells], grid: Grid, placement: Placement, out: Path, progress: Progress = no_progress
) -> TileFigures:
    """Write the cells of all parts as a tileset into the folder ``out``.

    In memory are the cells of one leaf and of the siblings on the way up.  Raises :class:`InputError` if there are
    none.
    """
    _make_room(out)
    leaf = grid.bits - TILE_BITS
    whole = count_in(parts, 0, 8**grid.bits)
    if whole == 0:
        raise InputError(
            "The photos see nothing opaque there, so there are no tiles to write; train longer or crop less."
        )
    tiles: dict[int, list[int]] = defaultdict(list)
    leaf_points = num_bytes = seen = 0

    def build(level: int, code: int) -> Cells:
        """Write a tile and all below it; returns its cells."""
        nonlocal leaf_points, num_bytes, seen
        width = 8 ** (grid.bits - level)
        if level == leaf:
            cells = merged(parts, code * width, (code + 1) * width)
            leaf_points += len(cells)
            seen += count_in(parts, code * width, (code + 1) * width)
            progress("points", seen, whole)
        else:
            children = [8 * code + octant for octant in range(8)]
            width //= 8
            there = [child for child in children if count_in(parts, child * width, (child + 1) * width)]
            cells = reduced([coarser(build(level + 1, child)) for child in there])
        x, y, z = deinterleave(np.array([code], np.uint64))[0].tolist()
        content = tile_content(
            cells, Grid(2.0 / 2 ** (level + TILE_BITS), level + TILE_BITS), level, (x, y, z), placement
        )
        write_atomic(out / f"content/{level}/{x}/{y}/{z}.glb", content)
        tiles[level].append(code)
        num_bytes += len(content)
        return cells

    build(0, 0)
    for level in range(0, leaf + 1, SUBTREE_LEVELS):
        for code in tiles[level]:
            x, y, z = deinterleave(np.array([code], np.uint64))[0].tolist()
            write_atomic(out / f"subtrees/{level}/{x}/{y}/{z}.subtree", subtree_file(code, level, tiles))
    write_atomic(out / TILESET, json.dumps(tileset(placement, leaf + 1), indent=1) + "\n")
    return TileFigures(sum(map(len, tiles.values())), leaf + 1, leaf_points, num_bytes)


def _make_room(out: Path) -> None:
    """Remove a tileset that was there before; :class:`InputError` if the folder holds something else."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / TILESET).is_file())):
        raise InputError(f"{out} is there and is no tileset; name a new folder for the tiles with --out.")
    (out / TILESET).unlink(missing_ok=True)
    for folder in ("content", "subtrees"):
        shutil.rmtree(out / folder, ignore_errors=True)


def tile_content(cells: Cells, grid: Grid, level: int, place: tuple[int, int, int], placement: Placement) -> bytes:
    """The points of a tile in its frame."""
    centre = (np.array(place) + 0.5) * 2.0 ** (1 - level) - 1
    return glb(grid.positions(cells) * placement.scale, colours(cells), centre * placement.scale)


def tileset(placement: Placement, num_levels: int) -> dict[str, Any]:
    """Content of ``tileset.json``."""
    half = placement.scale
    name = "{level}/{x}/{y}/{z}"
    return {
        "asset": {"version": "1.1", "generator": "inf-nerf"},
        "geometricError": 2 * half,  # of drawing nothing
        "root": {
            "boundingVolume": {"box": [0, 0, 0, half, 0, 0, 0, half, 0, 0, 0, half]},
            "transform": placement.tiles_matrix.T.flatten().tolist(),  # column by column
            "geometricError": 2 * half / 2**TILE_BITS,
            "refine": "REPLACE",
            "content": {"uri": f"content/{name}.glb"},
            "implicitTiling": {
                "subdivisionScheme": "OCTREE",
                "availableLevels": num_levels,
                "subtreeLevels": SUBTREE_LEVELS,
                "subtrees": {"uri": f"subtrees/{name}.subtree"},
            },
        },
    }
