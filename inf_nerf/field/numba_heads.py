"""Both heads on the CPU in one pass over the samples: from features to density and colour, and back.

The same function as the chain in :class:`inf_nerf.field.field.Field`, float32.  Samples are taken in chunks of one node
that stay in the cache from the features to the colour; backward computes a chunk's activations again instead of reading
them from memory.  Each thread has a range of samples and adds up the gradient of a node's weights before it writes it;
where a node's samples reach into the next range, both parts are added in order, so that a result depends on nothing but
the number of threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from inf_nerf.field.heads import persistent_gradient
from inf_nerf.field.vector_code import LANES, exponentials, product, relus, sigmoids

CHUNK = 128  # samples whose activations stay in the L2 cache
STEEPEST = 15.0  # the gradient of exp is taken at most here, as in trunc_exp


def radiance(
    features: Tensor,  # [Q, F], sorted by node
    given: Tensor,  # [R, C] what the colour head is given of each ray, after the geometry
    node: Tensor,  # [Q] int64
    ray: Tensor,  # [Q] int64
    density_weights: Tensor,  # [M, Wd]
    colour_weights: Tensor,  # [M, Wc]
    density_sizes: tuple[int, ...],
    colour_sizes: tuple[int, ...],
    density_bias: float,
    num_learned: int,  # leading columns of ``given`` that may need a gradient
) -> tuple[Tensor, Tensor]:
    """Density [Q] and colour [Q, 3].  Backward adds to the ``grad`` of the weights in place."""
    return _Radiance.apply(  # pyright: ignore[reportReturnType]
        features,
        given,
        node,
        ray,
        density_weights,
        colour_weights,
        density_sizes,
        colour_sizes,
        density_bias,
        num_learned,
    )


class _Radiance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        given: Tensor,
        node: Tensor,
        ray: Tensor,
        density_weights: Tensor,
        colour_weights: Tensor,
        density_sizes: tuple[int, ...],
        colour_sizes: tuple[int, ...],
        density_bias: float,
        num_learned: int,
    ) -> tuple[Tensor, Tensor]:
        features, given, node, ray = (value.contiguous() for value in (features, given, node, ray))
        sigma, rgb = torch.empty(len(node)), torch.empty(len(node), 3)
        forward, _ = _kernels(density_sizes, colour_sizes, num_learned)
        _in_threads(
            forward, len(node), *_flat(features, given, node, ray, density_weights, colour_weights),
            np.float32(density_bias), *_flat(sigma, rgb),
        )  # fmt: skip
        ctx.save_for_backward(features, given, node, ray, rgb)
        ctx.weights, ctx.sizes = (density_weights, colour_weights), (density_sizes, colour_sizes, num_learned)
        ctx.density_bias = density_bias
        return sigma, rgb

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        features, given, node, ray, rgb = ctx.saved_tensors
        num_learned = ctx.sizes[2]
        needs_given = ctx.needs_input_grad[1]
        needs_weights = ctx.needs_input_grad[4]
        grad_features = torch.empty_like(features)
        grad_given = torch.empty(len(node) if needs_given else 0, num_learned)
        sinks = [persistent_gradient(leaf) if needs_weights else leaf.detach()[:0] for leaf in ctx.weights]
        _, backward = _kernels(*ctx.sizes)
        edges = _in_threads(
            backward, len(node), *_flat(features, given, node, ray, *ctx.weights), np.float32(ctx.density_bias),
            *_flat(rgb, grad_outputs[0].contiguous(), grad_outputs[1].contiguous(), grad_features, grad_given, *sinks),
        )  # fmt: skip
        for nodes, *parts in edges if needs_weights else ():
            for which, at in enumerate(nodes.tolist()):
                if at >= 0:
                    for sink, part in zip(sinks, parts, strict=True):
                        sink[at] += torch.from_numpy(part[which])
        result = None
        if needs_given:
            result = torch.zeros_like(given)
            result[:, :num_learned].index_add_(0, ray, grad_given)
        return grad_features, result, *[None] * 8


def _flat(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().reshape(-1).numpy() for tensor in tensors]


def _in_threads(kernel: Callable[..., Any], total: int, *arguments: Any) -> list[Any]:
    """``kernel(first, last, *arguments)`` of parts that cover ``range(total)``."""
    parts = max(1, min(torch.get_num_threads(), total // CHUNK))
    if parts == 1:
        return [kernel(0, total, *arguments)]
    bounds = [total * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as pool:
        return [done.result() for done in [pool.submit(kernel, *ends, *arguments) for ends in pairwise(bounds)]]


@njit(inline="always")
def _chunk_end(node, start, last):
    """End of the run of one node that begins at ``start``, at most CHUNK samples on."""
    last = min(last, start + CHUNK)
    stop = start + 1
    while stop < last and node[stop] == node[start]:
        stop += 1
    return stop


@njit(inline="always")
def _layer(n, wide, out, x, at, weights, first, y):
    """y [n, out] = x [n, wide] @ weights [wide, out]."""
    product(out, 0, n, wide, x, at, wide, 1, weights, first, out, y, 0, out)


@njit(inline="always")
def _learn(n, wide, out, x, at, grad_y, sink, first):
    """Adds x^T @ grad_y to the gradient of a layer's weights [wide, out]."""
    product(out, 1, wide, n, x, at, 1, wide, grad_y, 0, out, sink, first, out)


@njit(inline="always")
def _back(n, wide, out, grad_y, turned, first, all_wide, grad_x, at):
    """grad_x [n, wide] = grad_y [n, out] @ turned [out, all_wide], the first columns of it."""
    product(wide, 0, n, out, grad_y, 0, out, 1, turned, first, all_wide, grad_x, at, wide)


@njit(inline="always")
def _transpose(weights, first, rows, columns, result):
    for i in range(rows):
        for j in range(columns):
            result[j * rows + i] = weights[first + i * columns + j]


@njit(inline="always")
def _add(target, first, part, count):
    for i in range(count):
        target[first + i] += part[i]


@njit(inline="always")
def _mask(gradient, activation, count):
    """A ReLU lets no gradient through where it was 0."""
    for i in range(count):
        if activation[i] <= 0:
            gradient[i] = np.float32(0)


@cache
def _kernels(
    density_sizes: tuple[int, ...], colour_sizes: tuple[int, ...], num_learned: int
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward of samples first to last, compiled for the widths of the heads."""
    wide, density_hidden, density_out = density_sizes
    colour_wide, hidden = colour_sizes[:2]
    num_geo = density_out - 1
    num_given = colour_wide - num_geo
    num_back = num_geo + num_learned  # leading inputs of the colour head that need a gradient
    second, density_count = wide * density_hidden, wide * density_hidden + density_hidden * density_out
    third = colour_wide * hidden  # first weight of the second layer of colour
    fourth = third + hidden * hidden
    colour_count = fourth + hidden * 3

    @njit(inline="always")
    def activate(start, n, at, features, given, ray, density, colour, bias, inner, head, sigmas, inputs, one, two):
        """Everything up to the last hidden layer of a chunk of node ``at``."""
        own, its = at * density_count, at * colour_count
        _layer(n, wide, density_hidden, features, start * wide, density, own, inner)
        relus(inner, 0, n * density_hidden)
        _layer(n, density_hidden, density_out, inner, 0, density, own + second, head)
        for q in range(n):
            sigmas[q] = head[q * density_out] + bias
            for j in range(num_geo):
                inputs[q * colour_wide + j] = head[q * density_out + 1 + j]
            sigmoids(inputs, q * colour_wide, num_geo)  # reaches into what is written next
            row = ray[start + q] * num_given
            for j in range(num_given):
                inputs[q * colour_wide + num_geo + j] = given[row + j]
        _layer(n, colour_wide, hidden, inputs, 0, colour, its, one)
        relus(one, 0, n * hidden)
        _layer(n, hidden, hidden, one, 0, colour, its + third, two)
        relus(two, 0, n * hidden)

    @njit(nogil=True, cache=True)
    def forward(first, last, features, given, node, ray, density, colour, bias, sigma, rgb):
        inner, head = np.zeros(CHUNK * density_hidden + LANES, np.float32), np.zeros(CHUNK * density_out, np.float32)
        sigmas, inputs = np.zeros(CHUNK + LANES, np.float32), np.zeros(CHUNK * colour_wide + LANES, np.float32)
        one, two = np.zeros(CHUNK * hidden + LANES, np.float32), np.zeros(CHUNK * hidden + LANES, np.float32)
        seen = np.zeros(CHUNK * 3 + LANES, np.float32)
        start = first
        while start < last:
            stop = _chunk_end(node, start, last)
            n, at = stop - start, node[start]
            activate(start, n, at, features, given, ray, density, colour, bias, inner, head, sigmas, inputs, one, two)
            _layer(n, hidden, 3, two, 0, colour, at * colour_count + fourth, seen)
            sigmoids(seen, 0, n * 3)
            exponentials(sigmas, 0, n)
            sigma[start:stop] = sigmas[:n]
            rgb[start * 3 : stop * 3] = seen[: n * 3]
            start = stop

    @njit(nogil=True, cache=True)
    def backward(
        first, last, features, given, node, ray, density, colour, bias, rgb,
        grad_sigma, grad_rgb, grad_features, grad_given, density_sink, colour_sink,
    ):  # fmt: skip
        """Returns the nodes [2] that the range shares with the one before and the one behind, -1 for none, and the
        gradients of their weights, which are not written."""
        inner, head = np.zeros(CHUNK * density_hidden + LANES, np.float32), np.zeros(CHUNK * density_out, np.float32)
        sigmas, inputs = np.zeros(CHUNK + LANES, np.float32), np.zeros(CHUNK * colour_wide + LANES, np.float32)
        one, two = np.zeros(CHUNK * hidden + LANES, np.float32), np.zeros(CHUNK * hidden + LANES, np.float32)
        grad_seen, grad_head = np.zeros(CHUNK * 3, np.float32), np.zeros(CHUNK * density_out, np.float32)
        grad_one, grad_two = np.zeros(CHUNK * hidden, np.float32), np.zeros(CHUNK * hidden, np.float32)
        grad_inputs, grad_inner = np.zeros(CHUNK * num_back, np.float32), np.zeros(CHUNK * density_hidden, np.float32)
        density_turned, colour_turned = np.zeros(density_count, np.float32), np.zeros(colour_count, np.float32)
        density_grad, colour_grad = np.zeros(density_count, np.float32), np.zeros(colour_count, np.float32)
        edge_nodes = np.full(2, -1, np.int64)
        edge_density, edge_colour = np.zeros((2, density_count), np.float32), np.zeros((2, colour_count), np.float32)
        before = -1
        start = first
        while start < last:
            stop = _chunk_end(node, start, last)
            n, at = stop - start, node[start]
            if at != before:
                before = at
                _transpose(density, at * density_count, wide, density_hidden, density_turned)
                _transpose(density, at * density_count + second, density_hidden, density_out, density_turned[second:])
                _transpose(colour, at * colour_count, colour_wide, hidden, colour_turned)
                _transpose(colour, at * colour_count + third, hidden, hidden, colour_turned[third:])
                _transpose(colour, at * colour_count + fourth, hidden, 3, colour_turned[fourth:])
                density_grad[:] = 0
                colour_grad[:] = 0
            activate(start, n, at, features, given, ray, density, colour, bias, inner, head, sigmas, inputs, one, two)
            for i in range(3 * n):
                shade = rgb[3 * start + i]
                grad_seen[i] = grad_rgb[3 * start + i] * shade * (np.float32(1) - shade)
            _learn(n, hidden, 3, two, 0, grad_seen, colour_grad, fourth)
            _back(n, hidden, 3, grad_seen, colour_turned, fourth, hidden, grad_two, 0)
            _mask(grad_two, two, n * hidden)
            _learn(n, hidden, hidden, one, 0, grad_two, colour_grad, third)
            _back(n, hidden, hidden, grad_two, colour_turned, third, hidden, grad_one, 0)
            _mask(grad_one, one, n * hidden)
            _learn(n, colour_wide, hidden, inputs, 0, grad_one, colour_grad, 0)
            _back(n, num_back, hidden, grad_one, colour_turned, 0, colour_wide, grad_inputs, 0)
            for q in range(n):
                sigmas[q] = min(max(sigmas[q], np.float32(-STEEPEST)), np.float32(STEEPEST))
            exponentials(sigmas, 0, n)
            for q in range(n):
                grad_head[q * density_out] = grad_sigma[start + q] * sigmas[q]
                for j in range(num_geo):
                    shade = inputs[q * colour_wide + j]
                    grad_head[q * density_out + 1 + j] = grad_inputs[q * num_back + j] * shade * (np.float32(1) - shade)
            if len(grad_given) > 0:
                for q in range(n):
                    for j in range(num_learned):
                        grad_given[(start + q) * num_learned + j] = grad_inputs[q * num_back + num_geo + j]
            _learn(n, density_hidden, density_out, inner, 0, grad_head, density_grad, second)
            _back(n, density_hidden, density_out, grad_head, density_turned, second, density_hidden, grad_inner, 0)
            _mask(grad_inner, inner, n * density_hidden)
            _learn(n, wide, density_hidden, features, start * wide, grad_inner, density_grad, 0)
            _back(n, wide, density_hidden, grad_inner, density_turned, 0, wide, grad_features, start * wide)
            if (stop == last or node[stop] != at) and len(density_sink) > 0:
                if first > 0 and node[first - 1] == at:
                    edge_nodes[0] = at
                    edge_density[0], edge_colour[0] = density_grad, colour_grad
                elif stop == last and last < len(node) and node[last] == at:
                    edge_nodes[1] = at
                    edge_density[1], edge_colour[1] = density_grad, colour_grad
                else:
                    _add(density_sink, at * density_count, density_grad, density_count)
                    _add(colour_sink, at * colour_count, colour_grad, colour_count)
            start = stop
        return edge_nodes, edge_density, edge_colour

    return forward, backward
