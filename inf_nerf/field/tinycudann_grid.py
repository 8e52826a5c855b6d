"""The hash grid on CUDA by tinycudann: one launch per node that has samples, on that node's slice of the table.

Same function and conventions as :func:`inf_nerf.field.hash_grid.encode`, float32 only, samples sorted by node.
tinycudann keeps a grid's numbers level by level, entry by entry, feature by feature, which is a row of our table, so
its encoding is called with views of the rows, and its own parameters go unused.  It runs in float32: its default of
half precision would need a converted copy of every row in every step, and would round gradients where samples meet.
tinycudann fuses a multiplication and an addition that the torch twin rounds apart, and its exp2 is an approximation, so
positions differ by some 1e-7 of the cube.
"""

from functools import cache
from itertools import pairwise
from typing import Any

import tinycudann  # pyright: ignore[reportMissingImports]
import torch
from torch import Tensor, nn
from torch.func import functional_call

from inf_nerf.errors import InputError
from inf_nerf.field.hash_grid import GridSpec
from inf_nerf.field.heads import persistent_gradient, segment_bounds


def encode(spec: GridSpec, table: Tensor, xyz: Tensor, node: Tensor, known: Tensor | None = None) -> Tensor:
    """Features [Q, L * F] of positions ``xyz`` [Q, 3] in their nodes [Q], ascending, of ``table`` [M, P, F].

    ``known`` features are not used: tinycudann's backward has to follow its own forward.  Backward adds to
    ``table.grad`` in place (it is made once if missing); positions get no gradient, and ``torch.autograd.grad`` with
    respect to the table is not supported.  NaN counts as 0.
    """
    return _Encode.apply(table, xyz, node, spec)  # pyright: ignore[reportReturnType]


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, xyz: Tensor, node: Tensor, spec: GridSpec) -> Tensor:
        if table.dtype != torch.float32 or xyz.dtype != torch.float32:
            raise TypeError(f"tinycudann is used in float32, found a {table.dtype} table and {xyz.dtype} positions")
        if bool((node[1:] < node[:-1]).any()):
            raise ValueError("tinycudann takes one node's samples at a time; sort the samples by node")
        bounds = segment_bounds(node, len(table)).tolist()
        if bounds[0] or bounds[-1] != len(node):
            raise IndexError(f"sample nodes reach from {int(node[0])} to {int(node[-1])}, nodes are {len(table)}")
        with torch.cuda.device_of(table):
            encoding = _encoding(spec)
        # tinycudann continues beyond the cube, the twin reads its border
        xyz = xyz.detach().nan_to_num(nan=0.0).clamp(0, 1)
        features = xyz.new_empty(len(xyz), spec.num_features)
        needs_gradient = ctx.needs_input_grad[0]
        pieces = []  # of each node with samples: its index, its first and last sample, its row and what came of it
        for index, (start, stop) in enumerate(pairwise(bounds)):
            if start == stop:
                continue
            with torch.set_grad_enabled(needs_gradient):
                row = table.detach()[index].reshape(-1).requires_grad_(needs_gradient)  # [P * F]
                output = functional_call(encoding, {"params": row}, (xyz[start:stop],))
            features[start:stop] = output.detach()
            if needs_gradient:
                pieces.append((index, start, stop, row, output))
        ctx.table, ctx.pieces = table, pieces
        return features

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None, None, None]:
        gradient, upstream = persistent_gradient(ctx.table), grad_outputs[0].contiguous()
        for index, start, stop, row, output in ctx.pieces:
            # tinycudann writes a gradient of the whole row, so only one row's at a time exists beside the buffer
            (part,) = torch.autograd.grad(output, row, upstream[start:stop])
            gradient[index].view(-1).add_(part)
        return None, None, None, None


@cache
def _encoding(spec: GridSpec) -> nn.Module:
    """tinycudann's encoding for one node's grid; a process has one device, so it serves all tables."""
    settings = {
        "otype": "HashGrid",
        "n_levels": spec.num_levels,
        "n_features_per_level": spec.features_per_level,
        "log2_hashmap_size": spec.log2_table_size,
        "base_resolution": spec.base_res,
        "per_level_scale": spec.growth,
        "interpolation": "Linear",
    }
    encoding = tinycudann.Encoding(3, settings, dtype=torch.float32)
    expected = spec.num_entries * spec.features_per_level
    if encoding.params.numel() != expected:
        raise InputError(
            f"tinycudann lays this grid out in {encoding.params.numel()} numbers a node where {expected} are expected; "
            "set field.backend=triton, or change field.max_res by one."
        )
    return encoding
