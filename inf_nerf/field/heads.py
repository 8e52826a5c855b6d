"""Small networks of many nodes at once, and what they are fed with.

A head is a perceptron without biases, ReLU between its layers, linear at the end; each layer is stored as [out, in] and
the layers of one node follow each other in a row of ``weights`` [M, W].  Samples are sorted by node, so each node's
samples are one slice and one small chain of matrix products.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

CHUNK = 8192  # rows of one matrix product; larger activations leave the cache


def num_weights(sizes: Sequence[int]) -> int:
    """W: weights of a head with layers of these widths (in, hidden.., out)."""
    return sum(wide * out for wide, out in pairwise(sizes))


def layers_of(weights: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The layers, each a view [out, in], of one node's row of weights [W]."""
    parts = weights.split([wide * out for wide, out in pairwise(sizes)])
    return [part.view(out, wide) for part, (wide, out) in zip(parts, pairwise(sizes), strict=True)]


def segment_bounds(node: Tensor, num_nodes: int) -> Tensor:
    """First sample of every node, then the total: [M + 1] int64, from the sorted node of each sample [Q]."""
    return torch.searchsorted(node, torch.arange(num_nodes + 1, device=node.device))


def packed_mlp(
    weights: Tensor,  # [M, W]
    x: Tensor,  # [Q, in], sorted by node
    bounds: Tensor,  # [M + 1] int64
    sizes: Sequence[int],  # widths (in, hidden.., out)
) -> Tensor:  # [Q, out]
    """Apply each node's head to its slice of samples.

    Backward adds the gradient of the weights to ``weights.grad`` in place (it is made once if missing), so that a step
    costs nothing for the nodes without samples; ``torch.autograd.grad`` with respect to the weights is not supported.
    """
    return _PackedMlp.apply(weights, x, bounds.tolist(), tuple(sizes))  # pyright: ignore[reportReturnType]


def packed_mlp_reference(weights: Tensor, x: Tensor, bounds: Tensor, sizes: Sequence[int]) -> Tensor:
    """The same as :func:`packed_mlp` by ordinary autograd, at the price of a dense gradient of all nodes."""
    rows = weights.unbind(0)
    outputs = [x.new_zeros(0, sizes[-1])]
    for node, start, end in _segments(bounds.tolist()):
        hidden = x[start:end]
        *inner, last = layers_of(rows[node], sizes)
        for layer in inner:
            hidden = torch.relu(hidden @ layer.T)
        outputs.append(hidden @ last.T)
    return torch.cat(outputs)


class _PackedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, x: Tensor, bounds: list[int], sizes: tuple[int, ...]) -> Tensor:
        keep = any(ctx.needs_input_grad)
        rows = len(x) if keep else min(CHUNK, len(x))
        hidden = [x.new_empty(rows, width) for width in sizes[1:-1]]
        output = x.new_empty(len(x), sizes[-1])
        for node, start, end in _segments(bounds):
            layers = layers_of(weights[node], sizes)
            for first, last in _chunks(start, end):
                stored = slice(first, last) if keep else slice(0, last - first)
                value = x[first:last]
                for layer, buffer in zip(layers[:-1], hidden, strict=True):
                    value = torch.mm(value, layer.T, out=buffer[stored]).relu_()
                torch.mm(value, layers[-1].T, out=output[first:last])
        if keep:
            ctx.save_for_backward(x, *hidden)
            ctx.weights, ctx.bounds, ctx.sizes = weights, bounds, sizes
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        needs_weights, needs_x = ctx.needs_input_grad[:2]
        (grad_output,) = grad_outputs
        inputs: tuple[Tensor, ...] = ctx.saved_tensors  # what each layer was given: x, then the hidden activations
        weights: Tensor = ctx.weights
        grad_weights = persistent_gradient(weights) if needs_weights else None
        grad_x = torch.empty_like(inputs[0]) if needs_x else None
        grad_output = grad_output.contiguous()
        for node, start, end in _segments(ctx.bounds):
            layers = layers_of(weights.detach()[node], ctx.sizes)
            sinks = layers_of(grad_weights[node], ctx.sizes) if grad_weights is not None else []
            for first, last in _chunks(start, end):
                grad = grad_output[first:last]
                for depth in range(len(layers) - 1, -1, -1):
                    given = inputs[depth][first:last]
                    if sinks:
                        sinks[depth].addmm_(grad.T, given)
                    if depth > 0:
                        grad = torch.ops.aten.threshold_backward(grad @ layers[depth], given, 0)
                    elif grad_x is not None:
                        torch.mm(grad, layers[0], out=grad_x[first:last])
        return None, grad_x, None, None


def persistent_gradient(leaf: Tensor) -> Tensor:
    """The gradient buffer of a leaf tensor, made once if missing."""
    if leaf.grad is None:
        leaf.grad = torch.zeros_like(leaf)
    return leaf.grad


def _segments(bounds: list[int]) -> Iterator[tuple[int, int, int]]:
    for node, (start, end) in enumerate(pairwise(bounds)):
        if end > start:
            yield node, start, end


def _chunks(start: int, end: int) -> Iterator[tuple[int, int]]:
    for first in range(start, end, CHUNK):
        yield first, min(first + CHUNK, end)


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
