"""Both heads on the CPU in one pass over the samples: from features to density and colour, and back.

The same function as the chain in :class:`inf_nerf.field.field.Field`, float32.  Samples are taken in chunks of one node
that stay in the cache from the features to the colour; backward computes a chunk's activations again instead of reading
them from memory.  Threads take ranges of samples as they come free and add up the gradient of a node's weights before
they write it; where a node's samples reach into the next range, both parts are added in order, so that a result does
not depend on the number of threads.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from inf_nerf.field.heads import persistent_gradient
from inf_nerf.field.numba_jobs import STAMP, ranges, run, run_end
from inf_nerf.field.vector_code import LANES, SHORT, exponentials, gate, leaky_relus, product, sigmoids

CHUNK = 128  # samples whose activations stay in the L2 cache
RANGE = 2048  # samples of a range
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
    for name, index, count in (("node", node, len(density_weights)), ("ray", ray, len(given))):
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < count:
            raise IndexError(f"samples name a {name} from {int(index.min())} to {int(index.max())}, there are {count}")
    sizes = _Sizes._make([*density_sizes, *colour_sizes[:2], num_learned])
    return _Radiance.apply(  # pyright: ignore[reportReturnType]
        features, given, node, ray, density_weights, colour_weights, sizes, np.float32(density_bias)
    )


class _Sizes(NamedTuple):
    """Widths of the layers."""

    features: int
    inner: int  # the density head's hidden layer
    out: int  # density and geometry
    inputs: int  # of the colour head
    hidden: int  # its two hidden layers
    learned: int  # inputs from the ray that may need a gradient


class _Activations(NamedTuple):
    """Of a chunk, or their gradients; flat."""

    inner: np.ndarray
    head: np.ndarray
    sigma: np.ndarray
    inputs: np.ndarray
    one: np.ndarray
    two: np.ndarray
    seen: np.ndarray


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
        sizes: _Sizes,
        density_bias: np.float32,
    ) -> tuple[Tensor, Tensor]:
        features, given, node, ray = (value.contiguous() for value in (features, given, node, ray))
        sigma, rgb = features.new_empty(len(node)), features.new_empty(len(node), 3)
        inputs = _flat(features, given, node, ray, density_weights, colour_weights)
        forward, _ = _kernels()
        run(forward, ranges(len(node), RANGE), sizes, *inputs, density_bias, *_flat(sigma, rgb))
        ctx.save_for_backward(features, given, node, ray, rgb)
        ctx.weights, ctx.sizes = (density_weights, colour_weights), sizes
        ctx.density_bias = density_bias
        return sigma, rgb

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        features, given, node, ray, rgb = ctx.saved_tensors
        num_learned = ctx.sizes.learned
        needs_given = ctx.needs_input_grad[1]
        needs_weights = ctx.needs_input_grad[4]
        grad_features = torch.empty_like(features)
        grad_given = features.new_empty(len(node) if needs_given else 0, num_learned)
        sinks = [persistent_gradient(leaf) if needs_weights else leaf.detach()[:0] for leaf in ctx.weights]
        inputs = _flat(features, given, node, ray, *ctx.weights)
        gradients = _flat(*(each.contiguous() for each in grad_outputs), grad_features, grad_given, *sinks)
        _, backward = _kernels()
        jobs = ranges(len(node), RANGE)
        edges = run(backward, jobs, ctx.sizes, *inputs, ctx.density_bias, *_flat(rgb), *gradients)
        for nodes, *shares in edges if needs_weights else ():
            for which, at in enumerate(nodes.tolist()):
                if at >= 0:
                    for sink, share in zip(sinks, shares, strict=True):
                        sink[at] += torch.from_numpy(share).view(2, -1)[which]
        result = None
        if needs_given:
            result = torch.zeros_like(given)
            result[:, :num_learned].index_add_(0, ray, grad_given)
        return grad_features, result, *[None] * 6


def _flat(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().view(-1).numpy() for tensor in tensors]


@njit
def _layer(n, wide, out, x, at, weights, first, y):
    """y [n, out] = x [n, wide] @ weights [wide, out]."""
    product(n, out, wide, x, at, wide, 1, weights, first, out, y, 0, out, False)


@njit
def _learn(n, wide, out, x, at, grad_y, sink, first):
    """Adds x^T @ grad_y to the gradient of a layer's weights [wide, out]."""
    product(wide, out, n, x, at, 1, wide, grad_y, 0, out, sink, first, out, True)


@njit
def _back(n, wide, out, grad_y, y_row, turned, first, all_wide, grad_x, at):
    """grad_x [n, wide] = grad_y [n, out] (its rows ``y_row`` apart) @ the first columns of turned [out, all_wide]."""
    product(n, wide, out, grad_y, 0, y_row, 1, turned, first, all_wide, grad_x, at, wide, False)


@njit
def _transpose(weights, first, rows, columns, result, at):
    for i in range(rows):
        for j in range(columns):
            result[at + j * rows + i] = weights[first + i * columns + j]


@njit
def _add(target, first, part):
    for i in range(len(part)):
        target[first + i] += part[i]


@njit
def _clear(values):
    for i in range(len(values)):
        values[i] = np.float32(0)


@njit(inline="always")
def _counts(sizes):
    """First weight of the density's second layer, all of density; of colour's second and third layer, all of colour."""
    second = sizes.features * sizes.inner
    third = sizes.inputs * sizes.hidden
    fourth = third + sizes.hidden * sizes.hidden
    return second, second + sizes.inner * sizes.out, third, fourth, fourth + sizes.hidden * 3


@njit
def _room(sizes):
    """Activations of a chunk; vectors may reach a little behind the last number."""
    return _Activations(
        np.zeros(CHUNK * sizes.inner + LANES, np.float32),
        np.zeros(CHUNK * sizes.out + LANES, np.float32),
        np.zeros(CHUNK + LANES, np.float32),
        np.zeros(CHUNK * sizes.inputs + LANES, np.float32),
        np.zeros(CHUNK * sizes.hidden + LANES, np.float32),
        np.zeros(CHUNK * sizes.hidden + LANES, np.float32),
        np.zeros(CHUNK * SHORT + LANES, np.float32),
    )


@njit
def _activate(start, n, at, sizes, features, given, ray, density, colour, bias, x):
    """All layers but the last of ``n`` samples of node ``at``, into the activations ``x``."""
    second, density_count, third, _, colour_count = _counts(sizes)
    own, its = at * density_count, at * colour_count
    num_geo = sizes.out - 1
    num_given = sizes.inputs - num_geo
    _layer(n, sizes.features, sizes.inner, features, start * sizes.features, density, own, x.inner)
    leaky_relus(x.inner, 0, n * sizes.inner)
    _layer(n, sizes.inner, sizes.out, x.inner, 0, density, own + second, x.head)
    for q in range(n):
        x.sigma[q] = x.head[q * sizes.out] + bias
        line = q * sizes.inputs
        for j in range(num_geo):
            x.inputs[line + j] = x.head[q * sizes.out + 1 + j]
        sigmoids(x.inputs, line, num_geo)  # reaches into what is written next
        row = ray[start + q] * num_given
        for j in range(num_given):
            x.inputs[line + num_geo + j] = given[row + j]
    _layer(n, sizes.inputs, sizes.hidden, x.inputs, 0, colour, its, x.one)
    leaky_relus(x.one, 0, n * sizes.hidden)
    _layer(n, sizes.hidden, sizes.hidden, x.one, 0, colour, its + third, x.two)
    leaky_relus(x.two, 0, n * sizes.hidden)


@cache
def _kernels() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward."""
    stamp = STAMP

    @njit(nogil=True, cache=True)
    def forward(first, last, sizes, features, given, node, ray, density, colour, bias, sigma, rgb):
        """Density and colour of samples first to last."""
        _ = stamp
        _, _, _, fourth, colour_count = _counts(sizes)
        x = _room(sizes)
        outer = np.zeros(sizes.hidden * SHORT, np.float32)  # the last layer, three columns of a whole vector
        before = -1
        start = first
        while start < last:
            stop = run_end(node, start, last, CHUNK)
            n, at = stop - start, node[start]
            if at != before:
                before = at
                for i in range(sizes.hidden):
                    for c in range(3):
                        outer[i * SHORT + c] = colour[at * colour_count + fourth + 3 * i + c]
            _activate(start, n, at, sizes, features, given, ray, density, colour, bias, x)
            _layer(n, sizes.hidden, SHORT, x.two, 0, outer, 0, x.seen)
            sigmoids(x.seen, 0, n * SHORT)
            exponentials(x.sigma, 0, n)
            for q in range(n):
                sigma[start + q] = x.sigma[q]
                for c in range(3):
                    rgb[3 * (start + q) + c] = x.seen[q * SHORT + c]
            start = stop

    @njit(nogil=True, cache=True)
    def backward(
        first, last, sizes, features, given, node, ray, density, colour, bias, rgb,
        grad_sigma, grad_rgb, grad_features, grad_given, density_sink, colour_sink,
    ):  # fmt: skip
        """Gradients of samples first to last.

        Returns the nodes [2] that the range shares with the one before and the one behind, -1 for none, and the
        gradients of their weights, which are not written.
        """
        _ = stamp
        second, density_count, third, fourth, colour_count = _counts(sizes)
        num_geo = sizes.out - 1
        num_back = min((num_geo + sizes.learned + LANES - 1) // LANES * LANES, sizes.inputs)
        x, grad = _room(sizes), _room(sizes)
        density_turned, colour_turned = np.zeros(density_count, np.float32), np.zeros(colour_count, np.float32)
        density_grad, colour_grad = np.zeros(density_count, np.float32), np.zeros(colour_count, np.float32)
        outer_grad = np.zeros(sizes.hidden * SHORT, np.float32)
        edge_nodes = np.full(2, -1, np.int64)
        edge_density, edge_colour = np.zeros(2 * density_count, np.float32), np.zeros(2 * colour_count, np.float32)
        before = -1
        start = first
        while start < last:
            stop = run_end(node, start, last, CHUNK)
            n, at = stop - start, node[start]
            if at != before:
                before = at
                own, its = at * density_count, at * colour_count
                _transpose(density, own, sizes.features, sizes.inner, density_turned, 0)
                _transpose(density, own + second, sizes.inner, sizes.out, density_turned, second)
                _transpose(colour, its, sizes.inputs, sizes.hidden, colour_turned, 0)
                _transpose(colour, its + third, sizes.hidden, sizes.hidden, colour_turned, third)
                _transpose(colour, its + fourth, sizes.hidden, 3, colour_turned, fourth)
                _clear(density_grad)
                _clear(colour_grad)
                _clear(outer_grad)
            _activate(start, n, at, sizes, features, given, ray, density, colour, bias, x)
            for q in range(n):
                for c in range(3):
                    shade = rgb[3 * (start + q) + c]
                    grad.seen[q * SHORT + c] = grad_rgb[3 * (start + q) + c] * shade * (np.float32(1) - shade)
            _learn(n, sizes.hidden, SHORT, x.two, 0, grad.seen, outer_grad, 0)
            _back(n, sizes.hidden, 3, grad.seen, SHORT, colour_turned, fourth, sizes.hidden, grad.two, 0)
            gate(grad.two, x.two, n * sizes.hidden)
            _learn(n, sizes.hidden, sizes.hidden, x.one, 0, grad.two, colour_grad, third)
            _back(
                n, sizes.hidden, sizes.hidden, grad.two, sizes.hidden, colour_turned, third, sizes.hidden, grad.one, 0
            )
            gate(grad.one, x.one, n * sizes.hidden)
            _learn(n, sizes.inputs, sizes.hidden, x.inputs, 0, grad.one, colour_grad, 0)
            _back(n, num_back, sizes.hidden, grad.one, sizes.hidden, colour_turned, 0, sizes.inputs, grad.inputs, 0)
            for q in range(n):
                x.sigma[q] = min(max(x.sigma[q], np.float32(-STEEPEST)), np.float32(STEEPEST))
            exponentials(x.sigma, 0, n)
            for q in range(n):
                grad.head[q * sizes.out] = grad_sigma[start + q] * x.sigma[q]
                for j in range(num_geo):
                    shade = x.inputs[q * sizes.inputs + j]
                    grad.head[q * sizes.out + 1 + j] = grad.inputs[q * num_back + j] * shade * (np.float32(1) - shade)
            if len(grad_given) > 0:
                for q in range(n):
                    for j in range(sizes.learned):
                        grad_given[(start + q) * sizes.learned + j] = grad.inputs[q * num_back + num_geo + j]
            _learn(n, sizes.inner, sizes.out, x.inner, 0, grad.head, density_grad, second)
            _back(n, sizes.inner, sizes.out, grad.head, sizes.out, density_turned, second, sizes.inner, grad.inner, 0)
            gate(grad.inner, x.inner, n * sizes.inner)
            wide, place = sizes.features, start * sizes.features
            _learn(n, wide, sizes.inner, features, place, grad.inner, density_grad, 0)
            _back(n, wide, sizes.inner, grad.inner, sizes.inner, density_turned, 0, wide, grad_features, place)
            if (stop == last or node[stop] != at) and len(density_sink) > 0:
                for i in range(sizes.hidden):
                    for c in range(3):
                        colour_grad[fourth + 3 * i + c] = outer_grad[i * SHORT + c]
                if first > 0 and node[first - 1] == at:
                    edge_nodes[0] = at
                    _add(edge_density, 0, density_grad)
                    _add(edge_colour, 0, colour_grad)
                elif stop == last and last < len(node) and node[last] == at:
                    edge_nodes[1] = at
                    _add(edge_density, density_count, density_grad)
                    _add(edge_colour, colour_count, colour_grad)
                else:
                    _add(density_sink, at * density_count, density_grad)
                    _add(colour_sink, at * colour_count, colour_grad)
            start = stop
        return edge_nodes, edge_density, edge_colour

    return forward, backward
