"""The hash grid on CUDA: one launch for all nodes, forward and backward, written in Triton.

Same function and conventions as :func:`inf_nerf.field.hash_grid.encode`, float32 only.  A program takes BLOCK samples
and one level; programs of a level follow each other, so that one level of the table at a time competes for the cache,
as in tinycudann.  Floating-point contraction is off, so positions and weights round as in the torch twin.  Backward
adds by atomics: the last bits of a gradient depend on their order and differ from run to run.
"""

from functools import cache
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from inf_nerf.field.hash_grid import PRIMES, GridSpec
from inf_nerf.field.heads import persistent_gradient

BLOCK = 256  # samples of one program; with NUM_WARPS each thread has one, as in tinycudann's backward
NUM_WARPS = 8
PRIME_Y, PRIME_Z = tl.constexpr(PRIMES[1]), tl.constexpr(PRIMES[2])


def encode(spec: GridSpec, table: Tensor, xyz: Tensor, node: Tensor, known: Tensor | None = None) -> Tensor:
    """Features [Q, L * F] of positions ``xyz`` [Q, 3] in their nodes [Q] of ``table`` [M, P, F].

    ``known`` are the features if they were computed before; then only the gradient is left to do.  Backward adds
    to ``table.grad`` in place (it is made once if missing); positions get no gradient, and ``torch.autograd.grad`` with
    respect to the table is not supported.  NaN counts as 0.
    """
    return _Encode.apply(table, xyz, node, spec, known)  # pyright: ignore[reportReturnType]


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, xyz: Tensor, node: Tensor, spec: GridSpec, known: Tensor | None) -> Tensor:
        if table.dtype != torch.float32 or xyz.dtype != torch.float32:
            raise TypeError(f"the Triton grid is float32 only, found a {table.dtype} table and {xyz.dtype} positions")
        if len(node):
            first, last = torch.stack(node.aminmax()).tolist()
            if not 0 <= first <= last < len(table):
                raise IndexError(f"sample nodes reach from {first} to {last}, nodes are {len(table)}")
        xyz, node = xyz.detach().contiguous(), node.contiguous()
        if known is None:
            features = xyz.new_empty(len(xyz), spec.num_features)
            _launch(_forward, spec, table.detach(), xyz, node, features)
        else:
            features = known.detach()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(xyz, node)
            ctx.table, ctx.spec = table, spec
        return features

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None, None, None, None]:
        xyz, node = ctx.saved_tensors
        _launch(_backward, ctx.spec, persistent_gradient(ctx.table), xyz, node, grad_outputs[0].contiguous())
        return None, None, None, None, None


def _launch(kernel: Any, spec: GridSpec, table: Tensor, xyz: Tensor, node: Tensor, features: Tensor) -> None:
    """Run a kernel over all samples and levels; ``table`` [M, P, F] holds values or gradients."""
    if not len(xyz):
        return
    if not table.is_contiguous():
        raise ValueError("the Triton grid reads the table as one piece of memory; pass a contiguous one")
    blocks = -(-len(xyz) // BLOCK)
    with torch.cuda.device_of(table):  # Triton launches on the current device
        kernel[(blocks, spec.num_levels)](
            table,
            xyz,
            node,
            features,
            *_levels(spec, table.device),
            len(xyz),
            spec.num_entries,
            NUM_LEVELS=spec.num_levels,
            NUM_FEATURES=spec.features_per_level,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )


@cache
def _levels(spec: GridSpec, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per level [L]: scale, vertices a side (0 where hashed), entries, first entry."""
    strides = [0 if hashed else res for hashed, res in zip(spec.hashed, spec.resolutions, strict=True)]
    return (
        torch.tensor(spec.scales, dtype=torch.float32, device=device),
        torch.tensor(strides, dtype=torch.int32, device=device),
        torch.tensor(spec.sizes, dtype=torch.int32, device=device),
        torch.tensor(spec.offsets[:-1], dtype=torch.int64, device=device),
    )


@triton.jit
def _position(xyz, sample, inside, scale, axis: tl.constexpr):
    """Cell and fraction along one axis of each sample; clamped to [0, 1], NaN to 0, so that none reads elsewhere."""
    x = tl.load(xyz + sample * 3 + axis, mask=inside, other=0.0)
    position = tl.where(x > 0, tl.minimum(x, 1.0), 0.0) * scale + 0.5
    cell = position.to(tl.int32)  # rounds towards zero, which is down here
    return cell.to(tl.uint32), position - cell.to(tl.float32)


@triton.jit
def _cells(xyz, node, scales, strides, sizes, offsets, num_samples, num_entries, BLOCK: tl.constexpr):
    """This program's samples, the first table row of each one's node and level, and its cell there."""
    level = tl.program_id(1)
    scale, size = tl.load(scales + level), tl.load(sizes + level).to(tl.uint32)
    stride = tl.load(strides + level).to(tl.uint32)
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = sample < num_samples
    # 64 bits from here on: the tables of all nodes may hold more than 2**31 numbers
    start = tl.load(node + sample, mask=inside, other=0).to(tl.int64) * num_entries + tl.load(offsets + level)
    x, fx = _position(xyz, sample, inside, scale, 0)
    y, fy = _position(xyz, sample, inside, scale, 1)
    z, fz = _position(xyz, sample, inside, scale, 2)
    return sample, inside, start, stride, size, x, y, z, fx, fy, fz


@triton.jit
def _vertex(stride, size, x, y, z, fx, fy, fz, corner: tl.constexpr):
    """Entry and trilinear weight of one of the eight vertices of each cell; ``stride`` is 0 in a hashed level."""
    if corner & 1:
        x, weight = x + 1, fx
    else:
        weight = 1 - fx
    if corner & 2:
        y, weight = y + 1, weight * fy
    else:
        weight = weight * (1 - fy)
    if corner & 4:
        z, weight = z + 1, weight * fz
    else:
        weight = weight * (1 - fz)
    hashed = (x ^ (y * PRIME_Y) ^ (z * PRIME_Z)) & (size - 1)
    dense = x + stride * (y + stride * z)
    # a vertex one step outside the cube lies less than one table length behind its end
    dense = tl.where(dense >= size, dense - size, dense)
    return tl.where(stride == 0, hashed, dense).to(tl.int64), weight


@triton.jit(do_not_specialize=["num_samples"])
def _forward(
    table,  # [M, P, F]
    xyz,  # [Q, 3]
    node,  # [Q]
    features,  # [Q, L * F]
    scales,
    strides,
    sizes,
    offsets,
    num_samples,
    num_entries,
    NUM_LEVELS: tl.constexpr,
    NUM_FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, inside, start, stride, size, x, y, z, fx, fy, fz = _cells(
        xyz, node, scales, strides, sizes, offsets, num_samples, num_entries, BLOCK
    )
    feature = tl.arange(0, NUM_FEATURES)[None, :]
    total = tl.full((BLOCK, NUM_FEATURES), 0.0, tl.float32)
    for corner in tl.static_range(8):
        entry, weight = _vertex(stride, size, x, y, z, fx, fy, fz, corner)
        place = table + (start + entry)[:, None] * NUM_FEATURES + feature
        total += weight[:, None] * tl.load(place, mask=inside[:, None], other=0.0)
    place = features + (sample[:, None] * NUM_LEVELS + tl.program_id(1)) * NUM_FEATURES + feature
    tl.store(place, total, mask=inside[:, None])


@triton.jit(do_not_specialize=["num_samples"])
def _backward(
    gradient,  # [M, P, F]
    xyz,  # [Q, 3]
    node,  # [Q]
    grad_features,  # [Q, L * F]
    scales,
    strides,
    sizes,
    offsets,
    num_samples,
    num_entries,
    NUM_LEVELS: tl.constexpr,
    NUM_FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, inside, start, stride, size, x, y, z, fx, fy, fz = _cells(
        xyz, node, scales, strides, sizes, offsets, num_samples, num_entries, BLOCK
    )
    feature = tl.arange(0, NUM_FEATURES)[None, :]
    place = grad_features + (sample[:, None] * NUM_LEVELS + tl.program_id(1)) * NUM_FEATURES + feature
    upstream = tl.load(place, mask=inside[:, None], other=0.0)
    for corner in tl.static_range(8):
        entry, weight = _vertex(stride, size, x, y, z, fx, fy, fz, corner)
        place = gradient + (start + entry)[:, None] * NUM_FEATURES + feature
        tl.atomic_add(place, weight[:, None] * upstream, mask=inside[:, None], sem="relaxed")
