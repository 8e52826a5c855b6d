"""The hash grid on the CPU: compiled loops that stay inside one node's one level for as long as they can.

Same function and conventions as :func:`inf_nerf.field.hash_grid.encode`, float32 only.  Both kernels go over blocks of
one node's samples and, in a block, over one level after the other.  Backward gives each level (where there are many
threads, each level of some nodes) to one thread, which adds in sample order: no atomics, and the same bits whatever the
number of threads.  Floating-point contraction is off, so
positions and weights round as in the torch twin, and only the order of the eight-term sum differs.

"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from inf_nerf.field.hash_grid import PRIMES, GridSpec
from inf_nerf.field.heads import persistent_gradient
from inf_nerf.field.numba_jobs import parts, run, run_end

BLOCK = 4096  # samples whose features of all levels stay in the L2 cache while they are written level by level
LINE_BYTES = 64
WARM_LINES = 24  # cache lines read ahead per sample at most; measured break-even is 25 to 30
PRIME_Y, PRIME_Z = np.uint32(PRIMES[1]), np.uint32(PRIMES[2])
HALF, ONE = np.float32(0.5), np.float32(1)


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
            features = torch.empty(len(xyz), spec.num_features)
            forward, _ = _kernels(spec.features_per_level)
            arrays = table.detach().numpy(), xyz.numpy(), node.numpy(), features.numpy()
            run(forward, parts(len(xyz)), *levels(spec), *arrays)
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
        arrays = gradient.numpy(), xyz.numpy(), node.numpy(), grad_outputs[0].contiguous().numpy()
        jobs = _owned_parts(node.numpy(), ctx.spec.num_levels, torch.get_num_threads())
        run(backward, jobs, *levels(ctx.spec), *arrays)
        return None, None, None, None, None


def _owned_parts(node: np.ndarray, num_levels: int, threads: int) -> list[tuple[int, int, int, int]]:
    """First and last level, first and last sample of parts that write to different places: no two of them share a level
    of a node.  The finest levels, which take longest, come first."""
    if threads == 1:
        return [(0, num_levels, 0, len(node))]
    cuts = {0, len(node)}
    if num_levels < 2 * threads and len(node) and (node[1:] >= node[:-1]).all():
        pieces = -(-2 * threads // num_levels)
        cuts |= {int(np.searchsorted(node, node[len(node) * piece // pieces])) for piece in range(1, pieces)}
    segments = list(pairwise(sorted(cuts)))
    return [(level, level + 1, *segment) for level in reversed(range(num_levels)) for segment in segments]


@cache
def levels(spec: GridSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Per level [L]: scale, vertices a side (0 where hashed), entries, first entry."""
    strides = [0 if hashed else res for hashed, res in zip(spec.hashed, spec.resolutions, strict=True)]
    return (
        np.array(spec.scales, np.float32),
        np.array(strides, np.uint32),
        np.array(spec.sizes, np.uint32),
        np.array(spec.offsets[:-1], np.int64),
    )


def _prefetch(typing: Any, entries: Any, row: Any) -> Any:
    """Ask for the cache line of ``entries[row]`` ahead of its use."""
    signature = types.void(entries, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = cgutils.get_item_pointer(context, builder, signature.args[0], array, [arguments[1], _int64(0)])
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        read, keep, data = (ir.Constant(word, value) for value in (0, 3, 1))
        builder.call(function, [builder.bitcast(place, byte), read, keep, data])
        return context.get_dummy_value()

    return signature, generate


prefetch: Any = intrinsic(_prefetch)


def _int64(value: int) -> ir.Constant:
    return ir.Constant(ir.IntType(64), value)


@njit(inline="always")
def _unit(x):
    """x clamped to [0, 1]; NaN becomes 0, so that no input can reach outside the table."""
    return min(x, ONE) if x > 0 else np.float32(0)


@njit(inline="always")
def _corners(stride, size, x, y, z):
    """The entries of a cell's eight vertices, x fastest; ``stride`` is 0 in a hashed level."""
    one = np.uint32(1)
    if stride == 0:
        mask = size - one
        x1 = x + one
        y0, y1 = y * PRIME_Y, (y + one) * PRIME_Y
        z0, z1 = z * PRIME_Z, (z + one) * PRIME_Z
        a, b, c, d = y0 ^ z0, y1 ^ z0, y0 ^ z1, y1 ^ z1
        return (
            (x ^ a) & mask,
            (x1 ^ a) & mask,
            (x ^ b) & mask,
            (x1 ^ b) & mask,
            (x ^ c) & mask,
            (x1 ^ c) & mask,
            (x ^ d) & mask,
            (x1 ^ d) & mask,
        )
    a = x + stride * (y + stride * z)
    b = a + stride
    c = a + stride * stride
    d = c + stride
    return (
        _wrap(a, size),
        _wrap(a + one, size),
        _wrap(b, size),
        _wrap(b + one, size),
        _wrap(c, size),
        _wrap(c + one, size),
        _wrap(d, size),
        _wrap(d + one, size),
    )


@njit(inline="always")
def _wrap(index, size):
    """index % size; a vertex one step outside the cube lies less than one table length behind its end."""
    return index - size if index >= size else index


@njit(inline="always")
def interpolation(scale, stride, size, x, y, z):
    """Rows and trilinear weights of the eight vertices around a position, x fastest."""
    x, y, z = _unit(x) * scale + HALF, _unit(y) * scale + HALF, _unit(z) * scale + HALF
    cx, cy, cz = np.uint32(x), np.uint32(y), np.uint32(z)
    rows = _corners(stride, size, cx, cy, cz)
    fx, fy, fz = x - np.float32(cx), y - np.float32(cy), z - np.float32(cz)
    gx, gy, gz = ONE - fx, ONE - fy, ONE - fz
    weights = (
        gx * gy * gz,
        fx * gy * gz,
        gx * fy * gz,
        fx * fy * gz,
        gx * gy * fz,
        fx * gy * fz,
        gx * fy * fz,
        fx * fy * fz,
    )
    return rows, weights


@njit(nogil=True)
def _warm(entries, num_samples):
    """Read one number of every cache line of a table if enough samples follow to pay for it.

    A sequential read brings a node's level into the cache several times faster than the samples' scattered reads would.
    The sum is returned only so that the reads are not optimised away.
    """
    per_line = LINE_BYTES // (4 * entries.shape[1])
    total = np.float32(0)
    if num_samples * WARM_LINES * per_line >= len(entries):
        for row in range(0, len(entries), per_line):
            total += entries[row, 0]
    return total


@cache
def _kernels(num_features: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward for F features per level, a constant that the compiler unrolls."""

    @njit(nogil=True, cache=True)
    def forward(first, last, scales, strides, sizes, offsets, table, xyz, node, features):
        """Samples first to last."""
        warmed = np.float32(0)
        start = first
        while start < last:
            stop = run_end(node, start, last, BLOCK)
            for level in range(len(scales)):
                scale, stride, size, column = scales[level], strides[level], sizes[level], level * num_features
                entries = table[node[start], offsets[level] : offsets[level] + size]
                warmed += _warm(entries, stop - start)
                for q in range(start, stop):
                    rows, weights = interpolation(scale, stride, size, xyz[q, 0], xyz[q, 1], xyz[q, 2])
                    for f in range(num_features):
                        value = np.float32(0)
                        for corner in range(8):
                            value += weights[corner] * entries[rows[corner], f]
                        features[q, column + f] = value
            start = stop
        return warmed

    @njit(nogil=True, cache=True)
    def backward(first, last, start, end, scales, strides, sizes, offsets, gradient, xyz, node, grad_features):
        """Levels first to last of samples start to end."""
        warmed = np.float32(0)
        while start < end:
            stop = run_end(node, start, end, BLOCK)
            for level in range(first, last):
                scale, stride, size, column = scales[level], strides[level], sizes[level], level * num_features
                entries = gradient[node[start], offsets[level] : offsets[level] + size]
                warmed += _warm(entries, stop - start)
                for q in range(start, stop):
                    rows, weights = interpolation(scale, stride, size, xyz[q, 0], xyz[q, 1], xyz[q, 2])
                    for corner in range(8):
                        for f in range(num_features):
                            entries[rows[corner], f] += weights[corner] * grad_features[q, column + f]
            start = stop
        return warmed

    return forward, backward
