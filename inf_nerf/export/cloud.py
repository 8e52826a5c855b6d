"""Coloured points averaged in cells, more of them than fit into memory.

A cell is named by its Morton code in a grid over the root cube (the bits of x, y and z interleaved, x lowest), so cells
of any cube of the octree lie side by side, and a coarser cell's code is the code of any of its eight shifted by three
bits.  Every photo's cells are one sorted array on disk; :func:`merged` joins a range of codes of all of them.

Letters: P points, C cells.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inf_nerf.errors import InputError

Array = NDArray[np.float64]
Cells = NDArray[Any]  # [C] of CELL, ascending codes, each once

# sums over the points of a cell: of their places in the cell, in [0, 1], and of their colours, in [0, 1]
CELL = np.dtype([("code", "<u8"), ("count", "<u4"), ("within", "<f4", 3), ("rgb", "<f4", 3)])
MOST_BITS = 20  # of a cell's place along an axis
SPREAD = tuple(  # steps that move the bits of a number three places apart
    (np.uint64(shift), np.uint64(mask))
    for shift, mask in (
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    )
)


@dataclass(frozen=True)
class Grid:
    """Cells of the root cube [-1, 1]^3."""

    side: float  # of a cell, scene units
    bits: int  # 2 ** bits cells along an axis cover the cube

    @staticmethod
    def of(side: float) -> "Grid":
        """Cells of the given side; :class:`InputError` if there would be too many."""
        bits = max(0, math.ceil(math.log2(2 / side) - 1e-9))
        if bits > MOST_BITS:
            raise InputError(
                f"A gsd of {side:g} of the cube's half side makes more than 2^{MOST_BITS} cells along a side; choose a "
                "coarser --gsd."
            )
        return Grid(side, bits)

    def cells(self, xyz: Array, rgb: Array) -> Cells:
        """Cells of scene positions [P, 3] in the cube with colours [P, 3] in [0, 1]."""
        place = (xyz + 1) / self.side
        index = np.floor(place).clip(0, 2**self.bits - 1)
        cells = np.empty(len(xyz), CELL)
        cells["code"], cells["count"] = interleave(index.astype(np.uint64)), 1
        cells["within"], cells["rgb"] = (place - index).clip(0, 1), rgb
        return reduced([cells])

    def positions(self, cells: Cells) -> Array:
        """Mean scene position [C, 3] in each cell."""
        return (deinterleave(cells["code"]) + cells["within"] / cells["count"][:, None].astype(float)) * self.side - 1


def colours(cells: Cells) -> Array:
    """Mean colour [C, 3] in [0, 1] of each cell."""
    return (cells["rgb"] / cells["count"][:, None].astype(float)).clip(0, 1)


def interleave(index: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Morton codes [C] of cells [C, 3]."""
    spread = index.copy()
    for shift, mask in SPREAD:
        spread = (spread | (spread << shift)) & mask
    return spread[:, 0] | (spread[:, 1] << np.uint64(1)) | (spread[:, 2] << np.uint64(2))


def deinterleave(code: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Cells [C, 3] of Morton codes [C]; inverse of :func:`interleave`."""
    index = np.stack([code >> np.uint64(axis) for axis in range(3)], axis=-1) & SPREAD[-1][1]
    masks = [*(mask for _, mask in SPREAD[-2::-1]), np.uint64(0x1FFFFF)]
    for (shift, _), mask in zip(SPREAD[::-1], masks, strict=True):
        index = (index | (index >> shift)) & mask
    return index


def reduced(parts: Sequence[Cells]) -> Cells:
    """All cells of all parts, equal ones added up in the order of the parts."""
    cells = np.concatenate(parts) if parts else np.empty(0, CELL)
    if len(cells) == 0:
        return cells
    cells = cells[np.argsort(cells["code"], kind="stable")]
    first = np.flatnonzero(np.diff(cells["code"], prepend=~cells["code"][:1]))
    result = cells[first].copy()
    for name in ("count", "within", "rgb"):
        wide = np.float64 if name != "count" else np.uint64
        result[name] = np.add.reduceat(cells[name].astype(wide), first, axis=0)
    return result


def coarser(cells: Cells) -> Cells:
    """The cells of twice the side that hold these."""
    octant = np.stack([(cells["code"] >> np.uint64(axis)) & np.uint64(1) for axis in range(3)], axis=-1)
    raised = cells.copy()
    raised["code"] = cells["code"] >> np.uint64(3)
    raised["within"] = (cells["within"] + octant * cells["count"][:, None]) / 2
    return reduced([raised])


def count_in(parts: Sequence[Cells], first: int, last: int) -> int:
    """Cells of all parts with codes from ``first`` to before ``last``, those of several parts counted several times."""
    return sum(bisect_left(part["code"], last) - bisect_left(part["code"], first) for part in parts)


def merged(parts: Sequence[Cells], first: int, last: int) -> Cells:
    """The cells of all parts with codes from ``first`` to before ``last``."""
    return reduced(
        [np.asarray(part[bisect_left(part["code"], first) : bisect_left(part["code"], last)]) for part in parts]
    )


def blocks(parts: Sequence[Cells], bits: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of codes, ascending, that hold all cells of all parts, each no more than ``most`` if it can be cut."""

    def cut(first: int, width: int) -> Iterator[tuple[int, int]]:
        count = count_in(parts, first, first + width)
        if count <= most or width == 1:
            if count:
                yield first, first + width
            return
        for octant in range(8):
            yield from cut(first + octant * width // 8, width // 8)

    return cut(0, 8**bits)
