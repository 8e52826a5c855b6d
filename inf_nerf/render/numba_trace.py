"""Rays on the CPU: one compiled loop follows each ray through what is occupied, until its light ends.

Nothing is asked behind a surface, and nothing is kept but what the caller wants: with ``lit_samples`` the samples that
light reaches and their features, for training; with ``foreground`` the sums that make a picture, and no sample at all.
Both do what the torch code in :mod:`inf_nerf.render.foreground` does, which is their twin in tests; only rounding
differs, so a sample within rounding of a cell's border may fall to the other side.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from numba.misc.special import literally
from torch import Tensor

from inf_nerf.field.field import Field
from inf_nerf.field.numba_grid import levels_of
from inf_nerf.field.numba_jobs import STAMP, UNCOUNTED, parts, ranges, run
from inf_nerf.field.occupancy import Cells
from inf_nerf.field.vector_code import LANES, apply, leaky_relus, move
from inf_nerf.field.vector_grid import CORNERS, PIECE, fetch, find_level_corners
from inf_nerf.octree.topology import Octree
from inf_nerf.render.compositing import DARK, OPAQUE_DEPTH
from inf_nerf.render.empty_space import EmptySpace
from inf_nerf.render.foreground import ENDLESS, INVISIBLE, Foreground, LitSamples
from inf_nerf.render.numba_colour import add_colour, colour_the_rest, nobody_waits
from inf_nerf.render.numba_space import Grids, Tree, is_occupied, local, may_hold, neighbour, route
from inf_nerf.render.sampling import STEPS_PER_INTERVAL, THIN, BackgroundSamples, Part, Steps

RANGE = 1024  # rays that a thread follows before it takes others
FIRST_CAPACITY = 16  # samples a ray that room is made for at first


class _Rays(NamedTuple):
    """:class:`Steps` as arrays."""

    origin: np.ndarray
    direction: np.ndarray
    radius: np.ndarray
    enter: np.ndarray
    leave: np.ndarray
    log_growth: np.ndarray
    phase: np.ndarray


class _Weights(NamedTuple):
    """Values of all nodes."""

    tables: np.ndarray  # flat
    num_entries: int  # of a node
    density: np.ndarray
    colour: np.ndarray
    bias: np.float32


def lit_samples(
    steps: Steps,
    octree: Octree,
    cells: Cells,
    empty_space: EmptySpace,
    field: Field,
    part: Part | None = None,
) -> LitSamples:
    """As :func:`inf_nerf.render.foreground.lit_samples` of the samples on these steps, or of those in ``part``."""
    lit, _, _ = _kernels(field.spec.features_per_level, field.density_sizes, field.colour_sizes)
    none = np.empty(0, np.bool_)
    whose = (none, none) if part is None else (part.shared.numpy(), part.drawn[steps.hit].numpy())
    found = run(lit, parts(len(steps.hit)), *_arguments(steps, octree, cells, empty_space, field), *whose)
    ray, t, node, foreign, ends, density, features = (
        torch.from_numpy(part[0] if len(part) == 1 else np.concatenate(part)) for part in zip(*found, strict=True)
    )
    samples = steps.samples(ray, t, node, foreign)
    return LitSamples(samples, samples.delta.masked_fill(ends, ENDLESS), features, density, len(samples))


def foreground(
    steps: Steps,
    octree: Octree,
    cells: Cells,
    empty_space: EmptySpace,
    field: Field,
    looks: Tensor,  # [R, A]
    lod_blend: float,
) -> Foreground:
    """As :func:`inf_nerf.render.foreground.foreground` of the samples on these steps of R rays."""
    _, seen, _ = _kernels(field.spec.features_per_level, field.density_sizes, field.colour_sizes)
    given = field.colour_given(steps.direction, looks[steps.hit]).detach().numpy()
    arguments = (*_arguments(steps, octree, cells, empty_space, field), given, np.float32(lod_blend))
    # ranges that do not depend on the number of threads, as the sums of their shares do not then
    per_ray, share, touched, counts = zip(*run(seen, ranges(len(steps.hit), RANGE), *arguments), strict=True)
    sums = torch.zeros(len(looks), 7)
    sums[:, 6] = 1
    sums[steps.hit] = torch.from_numpy(np.concatenate(per_ray))
    return Foreground(
        rgb=sums[:, :3],
        depth=sums[:, 3],
        level=sums[:, 4],
        foreign=sums[:, 5],
        light=sums[:, 6],
        share=torch.from_numpy(np.sum(share, axis=0)).float(),
        touched=torch.from_numpy(np.any(touched, axis=0)),
        num_samples=sum(counts),
    )


def background(samples: BackgroundSamples, node: int, field: Field, direction: Tensor, looks: Tensor) -> Tensor:
    """Colours [R', 3] of what lies beyond the cube, for rays with ``direction`` [R', 3] and appearance [R', A]."""
    _, _, behind = _kernels(field.spec.features_per_level, field.density_sizes, field.colour_sizes)
    given = field.colour_given(direction, looks).detach().numpy()
    arrays = [np.ascontiguousarray(value.numpy()) for value in (samples.xyz, samples.delta)]
    found = run(behind, ranges(len(given), RANGE), *arrays, node, levels_of(field.spec), _weights(field), given)
    return torch.from_numpy(np.concatenate(found))


def _arguments(steps: Steps, octree: Octree, cells: Cells, empty_space: EmptySpace, field: Field) -> tuple[Any, ...]:
    rays = _Rays(*(np.ascontiguousarray(getattr(steps, name).numpy()) for name in _Rays._fields))
    tree, grids = Tree.of(octree), Grids.of(cells, empty_space)
    return rays, tree, grids, levels_of(field.spec), _weights(field)


def _weights(field: Field) -> _Weights:
    density, colour = (leaf.detach().numpy() for leaf in (field.density_weights, field.colour_weights))
    tables = field.tables.detach().view(-1).numpy()
    return _Weights(tables, field.spec.num_entries, density, colour, np.float32(field.density_bias))


@njit(inline="always")
def _encode(x, y, z, node, num_features, levels, weights, rows, shares, features):
    """Features of a local position in a node; ``rows`` and ``shares`` are room to work in."""
    find_level_corners(
        x, y, z, levels.num_levels, levels.scales, levels.strides, levels.sizes, levels.offsets, rows, shares
    )
    first = node * weights.num_entries * num_features
    fetch(num_features, levels.num_levels, weights.tables, first, rows, shares, features, 0, num_features)


class _Room(NamedTuple):
    """Room for the layers of one sample."""

    rows: np.ndarray
    shares: np.ndarray
    inner: np.ndarray
    base: np.ndarray  # what direction and appearance of a ray add to the first hidden layer of colour


@njit
def _room(density_hidden, hidden):
    return _Room(
        np.empty(CORNERS * PIECE, np.uint32),
        np.empty(CORNERS * PIECE, np.float32),
        np.empty(density_hidden + LANES, np.float32),
        np.empty(hidden + LANES, np.float32),
    )


@njit(inline="always")
def _density(x, y, z, node, per_level, wide, hidden, out, levels, weights, room, features, head):
    """Density at a local position in a node; leaves its features and the density head's output behind."""
    _encode(x, y, z, node, per_level, levels, weights, room.rows, room.shares, features)
    first = node * weights.density.shape[1]
    apply(wide, hidden, weights.density, first, features, room.inner)
    leaky_relus(room.inner, 0, hidden)
    apply(hidden, out, weights.density, first + wide * hidden, room.inner, head)
    return np.exp(head[0] + weights.bias)


@njit(inline="always")
def _add_base(node, num_geo, num_given, hidden, given, weights, room):
    apply(num_given, hidden, weights.colour, node * weights.colour.shape[1] + num_geo * hidden, given, room.base)


@njit(inline="always")
def _pace(r, rays):
    """How a ray is walked: its intervals, the growth of the distance and its length as a share of it, of an interval
    and of a step, and the ratio of the first step's distance to the interval's begin."""
    step = rays.log_growth[r]
    interval = step * np.float32(STEPS_PER_INTERVAL)
    num_intervals = max(1, int(np.ceil(np.log(rays.leave[r] / rays.enter[r]) / interval)))
    start = np.exp(step * rays.phase[r])
    return num_intervals, np.exp(interval), np.expm1(interval), np.exp(step), np.expm1(step), start


@njit(inline="always")
def _position(r, distance, rays):
    origin, direction = rays.origin, rays.direction
    return (
        origin[r, 0] + direction[r, 0] * distance,
        origin[r, 1] + direction[r, 1] * distance,
        origin[r, 2] + direction[r, 2] * distance,
    )


@njit(inline="always")
def _next_interval(r, interval, begin, mip, num_intervals, growth, share, rays, grids):
    """The next interval of a ray that may hold something: whether there is one, its begin, and where to go on."""
    while interval < num_intervals:
        here, length = begin, begin * share
        interval, begin = interval + 1, begin * growth
        while mip < len(grids.sizes) - 1 and length * grids.sizes[mip] > 2:  # cells as long as the interval
            mip += 1
        x, y, z = _position(r, here + np.float32(0.5) * length, rays)
        if may_hold(x, y, z, length, mip, grids):
            return True, here, interval, begin, mip
    return False, begin, interval, begin, mip


@njit
def _grown(array, count, room):
    larger = np.empty((room, *array.shape[1:]), array.dtype)
    larger[:count] = array[:count]
    return larger


# Sizes arrive as literals, as if they were written here.  In a closure of `_kernels` they would be constants as well,
# but numba's key of what is on disk would hold a compiled function's random id, and no process would find it again.
@njit(**UNCOUNTED)
def _gather(
    first, last, count, rays, tree, grids, levels, weights, shared, drawn, own, head, found,
    per_level, wide, density_hidden, density_out,
):  # fmt: skip
    """Append the samples of rays from ``first`` on to the ``count`` that are found, until there is no room for
    those of another: the first ray that was not followed, and the count."""
    _ = literally(per_level), literally(wide), literally(density_hidden), literally(density_out)
    ray, t, node, foreign, ends, density, features = found
    for r in range(first, last):
        num_intervals, interval_growth, interval_share, growth, step_share, start = _pace(r, rays)
        if count + num_intervals * STEPS_PER_INTERVAL > len(ray):
            return r, count
        answers_shared = len(drawn) == 0 or drawn[r]
        at, depth, interval, mip, next_begin = -1, 0.0, 0, 0, rays.enter[r]
        while depth < DARK:
            held, begin, interval, next_begin, mip = _next_interval(
                r, interval, next_begin, mip, num_intervals, interval_growth, interval_share, rays, grids
            )
            if not held:
                break
            distance = begin * start
            for _ in range(STEPS_PER_INTERVAL):
                if distance >= rays.leave[r]:
                    break
                x, y, z = _position(r, distance, rays)
                at, stands_in = route(x, y, z, distance * rays.radius[r], at, tree)
                x, y, z = local(x, y, z, at, tree)
                mine = len(drawn) == 0 or not (stands_in or (shared[at] and not answers_shared))
                if mine and is_occupied(x, y, z, at, grids):
                    sigma = _density(
                        x, y, z, at, per_level, wide, density_hidden, density_out, levels, weights, own,
                        features[count], head,
                    )  # fmt: skip
                    depth += min(sigma * (distance * step_share), OPAQUE_DEPTH)
                    ray[count], t[count], node[count], foreign[count] = r, distance, at, stands_in
                    density[count], ends[count] = sigma, depth >= DARK
                    count += 1
                    if depth >= DARK:
                        break
                distance *= growth
    return last, count


@njit(**UNCOUNTED)
def _follow(
    first, last, rays, tree, grids, levels, weights, given, lod_blend,
    own, features, head, second_head, waiting, result, rgb, share, touched,
    per_level, wide, density_hidden, density_out, num_geo, num_given, hidden,
):  # fmt: skip
    """Add up what rays first to last see, but for the colours that still wait; the number of samples."""
    _ = literally(per_level), literally(wide), literally(density_hidden), literally(density_out)
    _ = literally(num_geo), literally(num_given), literally(hidden)
    count = 0
    for r in range(first, last):
        num_intervals, interval_growth, interval_share, growth, step_share, start = _pace(r, rays)
        out = result[r - first]
        base_of, depth, light = -1, 0.0, 1.0
        at, interval, mip, next_begin = -1, 0, 0, rays.enter[r]
        while depth < DARK:
            held, begin, interval, next_begin, mip = _next_interval(
                r, interval, next_begin, mip, num_intervals, interval_growth, interval_share, rays, grids
            )
            if not held:
                break
            distance = begin * start
            for _ in range(STEPS_PER_INTERVAL):
                if distance >= rays.leave[r] or depth >= DARK:
                    break
                x, y, z = _position(r, distance, rays)
                footprint = distance * rays.radius[r]
                at, stands_in = route(x, y, z, footprint, at, tree)
                a, b, c = local(x, y, z, at, tree)
                if not is_occupied(a, b, c, at, grids):
                    distance *= growth
                    continue
                count += 1
                touched[at] = True
                second, mix = at, np.float32(0)
                if lod_blend > 0:
                    second, mix = neighbour(x, y, z, footprint, at, lod_blend, tree)
                sigma, second_sigma = np.float32(0), np.float32(0)
                for turn in range(2 if mix > 0 else 1):  # the second node first, so that `head` is `at`'s own
                    which = second if turn == 0 and mix > 0 else at
                    a, b, c = local(x, y, z, which, tree)
                    sigma = _density(
                        a, b, c, which, per_level, wide, density_hidden, density_out, levels, weights, own,
                        features, head,
                    )  # fmt: skip
                    if turn == 0 and mix > 0:
                        touched[second] = True
                        second_sigma = sigma * mix
                        move(head, 0, second_head, 0, density_out)
                sigma *= np.float32(1) - mix
                total = sigma + second_sigma
                depth += min(total * (distance * step_share), OPAQUE_DEPTH)
                if depth >= DARK:
                    depth += OPAQUE_DEPTH  # all the light that is left ends here
                behind = np.exp(-depth)
                weight = np.float32(light - behind)
                light = behind
                if weight > INVISIBLE:
                    for turn in range(2 if mix > 0 else 1):
                        which, answer = (second, second_head) if turn == 0 and mix > 0 else (at, head)
                        if which != base_of:
                            _add_base(which, num_geo, num_given, hidden, given[r], weights, own)
                            base_of = which
                        part = weight
                        if mix > 0:
                            part *= (second_sigma if turn == 0 else sigma) / max(total, np.float32(1e-20))
                        add_colour(which, r - first, part, answer, own.base, num_geo, hidden, weights, waiting, rgb)
                out[3] += weight * distance
                out[4] += weight * tree.level[at]
                if stands_in:
                    out[5] += weight
                share[at] += weight
                distance *= growth
        out[6] = light
    return count


@cache
def _kernels(
    per_level: int, density_sizes: tuple[int, ...], colour_sizes: tuple[int, ...]
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """``lit_samples``, ``foreground`` and ``background`` of rays first to last, compiled for the sizes of a field."""
    wide, density_hidden, density_out = density_sizes
    hidden, num_geo = colour_sizes[1], density_out - 1
    num_given, stamp = colour_sizes[0] - num_geo, STAMP

    @njit(nogil=True, cache=True)
    def lit(first, last, rays, tree, grids, levels, weights, shared, drawn):
        """With ``drawn``, only samples in nodes of one's own, and those in ``shared`` nodes on the drawn rays."""
        _ = stamp
        room = max(1, (last - first) * FIRST_CAPACITY)
        ray, t, node = np.empty(room, np.int64), np.empty(room, np.float32), np.empty(room, np.int64)
        foreign, ends = np.empty(room, np.bool_), np.empty(room, np.bool_)
        density, features = np.empty(room, np.float32), np.empty((room, wide), np.float32)
        own, head = _room(density_hidden, hidden), np.empty(density_out + LANES, np.float32)
        at, count = first, 0
        while True:
            found = ray, t, node, foreign, ends, density, features
            at, count = _gather(
                at, last, count, rays, tree, grids, levels, weights, shared, drawn, own, head, found,
                per_level, wide, density_hidden, density_out,
            )  # fmt: skip
            if at == last:
                break
            num_intervals, _, _, _, _, _ = _pace(at, rays)
            room = room + room // 2 + num_intervals * STEPS_PER_INTERVAL  # as much as the next ray can need, and more
            ray, t, node = _grown(ray, count, room), _grown(t, count, room), _grown(node, count, room)
            foreign, ends = _grown(foreign, count, room), _grown(ends, count, room)
            density, features = _grown(density, count, room), _grown(features, count, room)
        return (
            ray[:count], t[:count], node[:count], foreign[:count], ends[:count], density[:count], features[:count]
        )  # fmt: skip

    @njit(nogil=True, cache=True)
    def seen(first, last, rays, tree, grids, levels, weights, given, lod_blend):
        """Per ray [7]: colour, distance, level, foreign, light left; per node: share, touched; samples."""
        _ = stamp
        result, rgb = np.zeros((last - first, 7), np.float32), np.zeros((last - first, 3))
        waiting = nobody_waits(len(tree.gsd), num_geo, hidden)
        share, touched = np.zeros(len(tree.gsd)), np.zeros(len(tree.gsd), np.bool_)
        own, features = _room(density_hidden, hidden), np.empty(wide, np.float32)
        head, second_head = np.empty(density_out + LANES, np.float32), np.empty(density_out + LANES, np.float32)
        count = _follow(
            first, last, rays, tree, grids, levels, weights, given, lod_blend,
            own, features, head, second_head, waiting, result, rgb, share, touched,
            per_level, wide, density_hidden, density_out, num_geo, num_given, hidden,
        )  # fmt: skip
        colour_the_rest(num_geo, hidden, weights, waiting, rgb)
        result[:, :3] = rgb
        return result, share, touched, count

    @njit(nogil=True, cache=True)
    def behind(first, last, xyz, delta, node, levels, weights, given):
        """Colours [R, 3] of rays first to last from their samples in one node, until their light ends."""
        _ = stamp
        rgb = np.zeros((last - first, 3))
        waiting = nobody_waits(len(weights.colour), num_geo, hidden)
        own, features = _room(density_hidden, hidden), np.empty(wide, np.float32)
        head = np.empty(density_out + LANES, np.float32)
        for r in range(first, last):
            depth, light, is_new = 0.0, 1.0, True
            for k in range(xyz.shape[1]):
                sigma = _density(
                    xyz[r, k, 0], xyz[r, k, 1], xyz[r, k, 2], node, per_level, wide, density_hidden, density_out,
                    levels, weights, own, features, head,
                )  # fmt: skip
                depth += min(max(sigma, THIN) * delta[r, k], OPAQUE_DEPTH)
                left = np.exp(-depth)
                weight = np.float32(light - left)
                light = left
                if not weight <= INVISIBLE:  # NaN is to be seen
                    if is_new:
                        _add_base(node, num_geo, num_given, hidden, given[r], weights, own)
                        is_new = False
                    add_colour(node, r - first, weight, head, own.base, num_geo, hidden, weights, waiting, rgb)
                if depth >= DARK:
                    break
        colour_the_rest(num_geo, hidden, weights, waiting, rgb)
        return rgb.astype(np.float32)

    return lit, seen, behind
