"""Subtree files of 3D Tiles 1.1: which tiles of an implicit octree exist.

A subtree spans ``SUBTREE_LEVELS`` levels from its root.  Its tiles are numbered level by level, and in a level by
their Morton code within the subtree (x lowest); a bit says for each whether it exists, and for each place one level
below the subtree whether another subtree begins there.  Every tile that exists has content.
"""

import json
import struct
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inf_nerf.export.gltf import padded

SUBTREE_LEVELS = 4
MAGIC, VERSION, ALIGNED = b"subt", 1, 8


def subtree_file(root: int, level: int, tiles: Mapping[int, Sequence[int]]) -> bytes:
    """The subtree whose root is the tile with Morton code ``root`` of ``level``; ``tiles`` are the codes of all tiles
    that exist, by level, ascending."""
    inside: list[int] = []
    for depth in range(SUBTREE_LEVELS):
        before = (8**depth - 1) // 7
        inside += [before + code for code in _below(root, depth, tiles.get(level + depth, ()))]
    below = _below(root, SUBTREE_LEVELS, tiles.get(level + SUBTREE_LEVELS, ()))
    binary, views = b"", []

    def availability(which: list[int], count: int) -> dict[str, int]:
        nonlocal binary
        if len(which) in (0, count):
            return {"constant": int(len(which) == count)}
        bits = np.zeros(count, np.uint8)
        bits[which] = 1
        data = np.packbits(bits, bitorder="little").tobytes()
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(data)})
        binary += padded(data, ALIGNED, b"\0")
        return {"bitstream": len(views) - 1, "availableCount": len(which)}

    tile = availability(inside, (8**SUBTREE_LEVELS - 1) // 7)
    content: dict[str, Any] = {
        "tileAvailability": tile,
        "contentAvailability": [tile],
        "childSubtreeAvailability": availability(below, 8**SUBTREE_LEVELS),
    }
    if binary:
        content = {"buffers": [{"byteLength": len(binary)}], "bufferViews": views, **content}
    text = padded(json.dumps(content, separators=(",", ":")).encode(), ALIGNED, b" ")
    return struct.pack("<4sIQQ", MAGIC, VERSION, len(text), len(binary)) + text + binary


def _below(root: int, depth: int, codes: Sequence[int]) -> list[int]:
    """Codes within the subtree of the tiles ``depth`` levels below ``root``."""
    first = root << 3 * depth
    return [code - first for code in codes[bisect_left(codes, first) : bisect_left(codes, first + 8**depth)]]
