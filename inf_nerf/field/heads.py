"""Small networks of many nodes at once, and what they are fed with.

A head is a perceptron without biases, leaky ReLU between its layers, linear at the end; each layer is stored as
[in, out] and the layers of one node follow each other in a row of ``weights`` [M, W].  Samples are sorted by node, so
each node's samples are one slice and one small chain of matrix products.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Slope of the activation below zero.  With 0, every unit of a colour head can die for a part of its inputs: what lies
# there stays grey, and no gradient ever reaches it again.
LEAK = 0.01
CHUNK = 8192  # rows of one matrix product on the CPU; larger activations leave the cache


def num_weights(sizes: Sequence[int]) -> int:
    """W: weights of a head with layers of these widths (in, hidden.., out)."""
    return sum(wide * out for wide, out in pairwise(sizes))


def layers_of(weights: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The layers of all nodes, each a view [M, in, out], of weights [M, W]."""
    parts = weights.split([wide * out for wide, out in pairwise(sizes)], dim=1)
    return [part.unflatten(1, (wide, out)) for part, (wide, out) in zip(parts, pairwise(sizes), strict=True)]


def segment_bounds(node: Tensor, num_nodes: int) -> Tensor:
    """First sample of every node, then the total: [M + 1] int64, from the sorted node of each sample [Q]."""
    return torch.searchsorted(node, torch.arange(num_nodes + 1, device=node.device))


def packed_mlp(
    weights: Tensor,  # [M, W]
    x: Tensor,  # [Q, in], sorted by node
    bounds: Tensor,  # [M + 1] int64
    sizes: Sequence[int],  # widths (in, hidden.., out)
    precision: torch.dtype | None = None,  # of products and activations; None: that of x
) -> Tensor:  # [Q, out], as precise as x
    """Apply each node's head to its slice of samples.

    Backward adds the gradient of the weights to ``weights.grad`` in place (it is made once if missing), so that a step
    costs nothing for the nodes without samples; ``torch.autograd.grad`` with respect to the weights is not supported.
    Matrix products are fastest where the widths are multiples of 16.  In float16 a gradient for ``x`` that overflows
    makes the gradient of the weights NaN, so that looking at the weights finds it.
    """
    return _PackedMlp.apply(weights, x, bounds.tolist(), tuple(sizes), precision or x.dtype)  # pyright: ignore[reportReturnType]


def packed_mlp_reference(weights: Tensor, x: Tensor, bounds: Tensor, sizes: Sequence[int]) -> Tensor:
    """The same as :func:`packed_mlp` by ordinary autograd, at the price of a dense gradient of all nodes."""
    *inner, last = [layer.unbind(0) for layer in layers_of(weights, sizes)]
    outputs = []
    for node, hidden in enumerate(x.split(bounds.diff().tolist())):
        for layer in inner:
            hidden = F.leaky_relu(hidden @ layer[node], LEAK)
        outputs.append(hidden @ last[node])
    return torch.cat(outputs)


class _PackedMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, x: Tensor, bounds: list[int], sizes: tuple[int, ...], precision: torch.dtype
    ) -> Tensor:
        nodes, rows = _chunks(bounds, CHUNK if x.device.type == "cpu" else max(1, len(x)))
        given, x, used = x.dtype, x.to(precision), weights.to(precision)
        layers = [layer.unbind(0) for layer in layers_of(used, sizes)]
        output = x.new_empty(len(x), sizes[-1])
        if any(ctx.needs_input_grad):
            stored = [x.new_empty(len(x), width) for width in sizes[1:-1]]
            hidden = [buffer.split(rows) for buffer in stored]
            ctx.save_for_backward(x, *stored)
            ctx.weights, ctx.used, ctx.sizes, ctx.nodes, ctx.rows = weights, used, sizes, nodes, rows
        else:
            scratch = [x.new_empty(max(rows, default=0), width) for width in sizes[1:-1]]
            hidden = [[buffer[:count] for count in rows] for buffer in scratch]
        for node, value, result, *buffers in zip(nodes, x.split(rows), output.split(rows), *hidden, strict=True):
            for layer, buffer in zip(layers[:-1], buffers, strict=True):
                value = F.leaky_relu_(torch.mm(value, layer[node], out=buffer), LEAK)
            torch.mm(value, layers[-1][node], out=result)
        return output.to(given)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        needs_weights, needs_x = ctx.needs_input_grad[:2]
        inputs: tuple[Tensor, ...] = ctx.saved_tensors  # what each layer was given: x, then the hidden activations
        layers = [layer.transpose(1, 2).unbind(0) for layer in layers_of(ctx.used, ctx.sizes)]
        sinks = []
        if needs_weights:
            sinks = [layer.unbind(0) for layer in layers_of(persistent_gradient(ctx.weights), ctx.sizes)]
        grad_x = torch.empty_like(inputs[0])
        results = grad_x.split(ctx.rows)
        grads = grad_outputs[0].to(grad_x.dtype).contiguous().split(ctx.rows)
        given_of = [given.split(ctx.rows) for given in inputs]
        for node, grad, result, *givens in zip(ctx.nodes, grads, results, *given_of, strict=True):
            for depth in range(len(layers) - 1, -1, -1):
                if needs_weights and sinks[depth][node].dtype == grad.dtype:
                    sinks[depth][node].addmm_(givens[depth].T, grad)
                elif needs_weights:
                    sinks[depth][node].add_(givens[depth].T @ grad)
                if depth > 0:
                    grad = torch.ops.aten.leaky_relu_backward(grad @ layers[depth][node], givens[depth], LEAK, True)
                elif needs_x:
                    torch.mm(grad, layers[0][node], out=result)
                    if needs_weights and result.dtype == torch.float16:  # 0 * inf is NaN, 0 * anything finite is 0
                        sinks[0][node].add_(result.sum(dtype=torch.float32) * 0)
        return None, grad_x.to(grad_outputs[0].dtype) if needs_x else None, None, None, None


def persistent_gradient(leaf: Tensor) -> Tensor:
    """The gradient buffer of a leaf tensor, made once if missing."""
    if leaf.grad is None:
        leaf.grad = torch.zeros_like(leaf)
    return leaf.grad


def _chunks(bounds: list[int], largest: int) -> tuple[list[int], list[int]]:
    """Node and number of samples of consecutive chunks, each of one node and at most ``largest`` samples."""
    pieces = [
        (node, min(largest, end - first))
        for node, (start, end) in enumerate(pairwise(bounds))
        for first in range(start, end, largest)
    ]
    return [node for node, _ in pieces], [rows for _, rows in pieces]


def spherical_harmonics(direction: Tensor) -> Tensor:
    """The 16 real spherical harmonics of degrees 0 to 3 of unit vectors [Q, 3], orthonormal on the sphere: [Q, 16].

    Order and signs are tinycudann's ``SphericalHarmonics`` of degree 4 (for a direction itself, not mapped to [0, 1]).
    """
    x, y, z = direction.unbind(-1)
    xx, yy, zz, xy, yz, xz = x * x, y * y, z * z, x * y, y * z, x * z
    pi = math.pi
    return torch.stack(
        [
            torch.full_like(x, 0.5 * math.sqrt(1 / pi)),
            -0.5 * math.sqrt(3 / pi) * y,
            0.5 * math.sqrt(3 / pi) * z,
            -0.5 * math.sqrt(3 / pi) * x,
            0.5 * math.sqrt(15 / pi) * xy,
            -0.5 * math.sqrt(15 / pi) * yz,
            0.25 * math.sqrt(5 / pi) * (3 * zz - 1),
            -0.5 * math.sqrt(15 / pi) * xz,
            0.25 * math.sqrt(15 / pi) * (xx - yy),
            0.25 * math.sqrt(35 / (2 * pi)) * y * (yy - 3 * xx),
            0.5 * math.sqrt(105 / pi) * xy * z,
            0.25 * math.sqrt(21 / (2 * pi)) * y * (1 - 5 * zz),
            0.25 * math.sqrt(7 / pi) * z * (5 * zz - 3),
            0.25 * math.sqrt(21 / (2 * pi)) * x * (1 - 5 * zz),
            0.25 * math.sqrt(105 / pi) * z * (xx - yy),
            0.25 * math.sqrt(35 / (2 * pi)) * x * (3 * yy - xx),
        ],
        dim=-1,
    )


class _TruncExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.exp(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad_outputs[0] * torch.exp(x.clamp(-15, 15))


def trunc_exp(x: Tensor) -> Tensor:
    """exp(x), its gradient taken at x clamped to [-15, 15] as in instant-ngp, so that one sample cannot explode."""
    return _TruncExp.apply(x)  # pyright: ignore[reportReturnType]
