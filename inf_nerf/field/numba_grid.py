"""The hash grid on the CPU: compiled loops that stay inside one node's one level for as long as they can.

Same function and conventions as :func:`inf_nerf.field.hash_grid.encode`, float32 only.  Both kernels go over blocks of
one node's samples and, in a block, over one level after the other; look-ups are those of
:mod:`inf_nerf.field.vector_grid`.  Backward gives whole nodes, or levels of a node with many samples, to one thread,
which adds in sample order: no atomics, and the same bits whatever the number of threads.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from inf_nerf.field.hash_grid import GridSpec
from inf_nerf.field.heads import persistent_gradient
from inf_nerf.field.numba_jobs import STAMP, parts, run, run_end
from inf_nerf.field.vector_code import LANES
from inf_nerf.field.vector_grid import CORNERS, PIECE, deposit, fetch, find_corners

BLOCK = 32_768  # samples of a node that are taken level by level; a level that is worth it is read ahead once for them
LINE_BYTES = 64
PARTS = 4  # for each thread, so that none waits long for the last one
WARM_LINES = 24  # cache lines read ahead per sample at most; measured break-even is 25 to 30


def encode(spec: GridSpec, table: Tensor, xyz: Tensor, node: Tensor, known: Tensor | None = None) -> Tensor:
    """Features [Q, L * F] of positions ``xyz`` [Q, 3] in their nodes [Q] of ``table`` [M, P, F].

    ``known`` are the features if they were computed before; then only the gradient is left to do.

    Fastest when samples are sorted by node.  Backward adds to ``table.grad`` in place (it is made once if missing);
    positions get no gradient, and ``torch.autograd.grad`` with respect to the table is not supported.
    """
    return _Encode.apply(table, xyz, node, spec, known)  # pyright: ignore[reportReturnType]


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, xyz: Tensor, node: Tensor, spec: GridSpec, known: Tensor | None) -> Tensor:
        if table.dtype != torch.float32 or xyz.dtype != torch.float32:
            raise TypeError(f"the numba grid is float32 only, found a {table.dtype} table and {xyz.dtype} positions")
        if len(node) and not 0 <= int(node.min()) <= int(node.max()) < len(table):
            raise IndexError(f"sample nodes reach from {int(node.min())} to {int(node.max())}, nodes are {len(table)}")
        xyz, node = xyz.detach().contiguous(), node.contiguous()
        if known is None:
            features = torch.empty(len(xyz), spec.num_features, dtype=torch.float32)
            forward, _ = _kernels(spec.features_per_level)
            run(forward, parts(len(xyz)), *_arguments(spec, table, xyz, node, features))
        else:
            features = known.detach()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(xyz, node)
            ctx.table, ctx.spec = table, spec
        return features

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None, None, None, None]:
        xyz, node = ctx.saved_tensors
        gradient = persistent_gradient(ctx.table)
        _, backward = _kernels(ctx.spec.features_per_level)
        jobs = _owned_parts(node.numpy(), ctx.spec.num_levels, torch.get_num_threads())
        run(backward, jobs, *_arguments(ctx.spec, gradient, xyz, node, grad_outputs[0].contiguous()))
        return None, None, None, None, None


def _owned_parts(node: np.ndarray, num_levels: int, threads: int) -> list[tuple[int, int, int, int]]:
    """First and last level, first and last sample of parts that write to different places: no two of them share a level
    of a node.  Whole nodes where there are enough of them, levels of a node that has many samples; large parts first.
    """
    if threads == 1 or len(node) == 0:
        return [(0, num_levels, 0, len(node))]
    wanted = max(1, len(node) // (threads * PARTS))  # samples of a part
    segments = [(0, len(node))]
    if (node[1:] >= node[:-1]).all():
        cuts = {0, len(node)} | {int(np.searchsorted(node, node[at])) for at in range(wanted, len(node), wanted)}
        segments = list(pairwise(sorted(cuts)))
    found = []
    for start, stop in segments:
        pieces = min(num_levels, max(1, (stop - start) // wanted))
        cuts = [num_levels * piece // pieces for piece in range(pieces + 1)]
        found += [(first, last, start, stop) for first, last in pairwise(cuts)]
    return sorted(found, key=lambda part: (part[0] - part[1]) * (part[3] - part[2]))


class Levels(NamedTuple):
    """Of the hash grid, [L] each, with room behind for whole vectors; L is at most PIECE."""

    scales: np.ndarray
    strides: np.ndarray  # vertices a side, 0 where hashed
    sizes: np.ndarray  # entries
    offsets: np.ndarray  # first entry
    num_levels: int  # L


@cache
def levels_of(spec: GridSpec) -> Levels:
    """The levels as compiled code takes them."""
    if spec.num_levels > PIECE:
        raise ValueError(f"the numba grid takes at most {PIECE} levels, found {spec.num_levels}")
    strides = [0 if hashed else res for hashed, res in zip(spec.hashed, spec.resolutions, strict=True)]
    columns = (spec.scales, np.float32), (strides, np.uint32), (spec.sizes, np.uint32), (spec.offsets[:-1], np.uint32)
    arrays = [np.pad(np.array(values, kind), (0, LANES)) for values, kind in columns]
    return Levels._make([*arrays, spec.num_levels])


def _arguments(spec: GridSpec, table: Tensor, xyz: Tensor, node: Tensor, values: Tensor) -> tuple[Any, ...]:
    flat = [tensor.detach().view(-1).numpy() for tensor in (table, xyz, node, values)]
    return levels_of(spec), spec.num_entries, *flat


@njit(nogil=True)
def _columns(xyz, start, count, room, columns):
    """Positions start to start + count, one coordinate after the other: ``columns[axis * room + q]``."""
    for axis in range(3):
        for q in range(count):
            columns[axis * room + q] = xyz[3 * (start + q) + axis]


@njit(nogil=True)
def _warm(table, first, count, per_line, num_samples):
    """Read one number of every cache line of a level's ``count`` numbers if enough samples follow to pay for it.

    A sequential read brings a node's level into the cache several times faster than the samples' scattered reads would.
    The sum is returned only so that the reads are not optimised away.
    """
    total = np.float32(0)
    if num_samples * WARM_LINES * per_line >= count:
        for place in range(first, first + count, per_line):
            total += table[place]
    return total


@cache
def _kernels(num_features: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward for F features per level, a constant that the compiler unrolls."""
    per_line, stamp = LINE_BYTES // 4, STAMP

    @njit(nogil=True, cache=True)
    def forward(first, last, levels, num_entries, table, xyz, node, features):
        """Samples first to last."""
        _ = stamp
        room = min(BLOCK, last - first) + LANES
        columns = np.zeros(3 * room, np.float32)
        rows, weights = np.empty(CORNERS * PIECE, np.uint32), np.empty(CORNERS * PIECE, np.float32)
        row_length = levels.num_levels * num_features
        warmed = np.float32(0)
        start = first
        while start < last:
            stop = run_end(node, start, last, BLOCK)
            _columns(xyz, start, stop - start, room, columns)
            for level in range(levels.num_levels):
                scale, stride, size = levels.scales[level], levels.strides[level], levels.sizes[level]
                entries = (node[start] * num_entries + levels.offsets[level]) * num_features
                warmed += _warm(table, entries, np.int64(size) * num_features, per_line, stop - start)
                for at in range(0, stop - start, PIECE):
                    count = min(PIECE, stop - start - at)
                    find_corners(columns, room, at, count, scale, stride, size, rows, weights)
                    place = (start + at) * row_length + level * num_features
                    fetch(num_features, count, table, entries, rows, weights, features, place, row_length)
            start = stop
        return warmed

    @njit(nogil=True, cache=True)
    def backward(first_level, last_level, first, last, levels, num_entries, gradient, xyz, node, grad_features):
        """Levels first to last of samples first to last."""
        _ = stamp
        room = min(BLOCK, last - first) + LANES
        columns = np.zeros(3 * room, np.float32)
        rows, weights = np.empty(CORNERS * PIECE, np.uint32), np.empty(CORNERS * PIECE, np.float32)
        row_length = levels.num_levels * num_features
        warmed = np.float32(0)
        start = first
        while start < last:
            stop = run_end(node, start, last, BLOCK)
            _columns(xyz, start, stop - start, room, columns)
            for level in range(first_level, last_level):
                scale, stride, size = levels.scales[level], levels.strides[level], levels.sizes[level]
                entries = (node[start] * num_entries + levels.offsets[level]) * num_features
                warmed += _warm(gradient, entries, np.int64(size) * num_features, per_line, stop - start)
                for at in range(0, stop - start, PIECE):
                    count = min(PIECE, stop - start - at)
                    find_corners(columns, room, at, count, scale, stride, size, rows, weights)
                    place = (start + at) * row_length + level * num_features
                    deposit(num_features, count, gradient, entries, rows, weights, grad_features, place, row_length)
            start = stop
        return warmed

    return forward, backward
