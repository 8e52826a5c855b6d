"""Rays cut into segments that different processes can answer, and put together again.

Letters: R rays, Q samples, N nodes, S segments.  What a segment adds to its ray depends on nothing outside of it: its
optical depth, its colour and distance as if light reached its front undimmed, and its spread.

The samples of a ray that one owned subtree answers are one segment, and so are those that one shared node answers in
one of its octants.  No sample that is answered elsewhere lies between two of a segment.  Proof: a sample at distance t
descends to a node iff its position is in the node's cube and its footprint is below the gsd of the node's parent (gsds
halve from level to level, so the other ancestors pass it on, too).  A cube is convex and a footprint grows with t, so
for a whole subtree, whose cube is its root's, that is an interval of t.  A shared node answers what descends to it and,
in the octants where it has a child, is not finer than its own gsd: in every octant, which is a cube again, an interval.
Rounding does not harm, since positions, footprints and hence all comparisons are monotone in t after rounding as well.
Segments are therefore disjoint intervals, and each is known by the distance of any of its samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inf_nerf.octree.topology import Octree, octant
from inf_nerf.render.compositing import along_rays, composite, distortion, optical_depths, sum_before
from inf_nerf.render.sampling import Samples

DEPTH, RED, BLUE, DISTANCE, SPREAD = 0, 1, 3, 4, 5  # columns of a segment's values
NUM_VALUES = 6


@dataclass(frozen=True)
class Segments:
    """Segments in the order of their rays and distances."""

    ray: Tensor  # [S] int64
    start: Tensor  # [S] distance of the first sample
    of_sample: Tensor  # [Q] int64, ascending

    def __len__(self) -> int:
        return len(self.ray)


@dataclass(frozen=True)
class Joined:
    """What R rays see of all their segments."""

    rgb: Tensor  # [R, 3]
    distance: Tensor  # [R] weighted sum
    spread: Tensor  # [R] distortion of the weights, distances in spans of the ray
    light: Tensor  # [R] that comes past all segments


def subtree_roots(octree: Octree, shared: Tensor) -> Tensor:
    """For every node [N] the root of its owned subtree, or -1 where ``shared`` [N] bool."""
    root = torch.full_like(octree.parent, -1)
    for node in torch.nonzero(~shared).flatten().tolist():  # parents first
        above = int(root[octree.parent[node]])
        root[node] = above if above >= 0 else node
    return root


def segments_of(samples: Samples, octree: Octree, root: Tensor) -> Segments:
    """Cut samples into segments; ``root`` [N] as of :func:`subtree_roots`."""
    node = samples.node
    shared = octree.num_nodes + 8 * node + octant(samples.xyz, octree.centre[node])
    key = torch.where(root[node] >= 0, root[node], shared)
    first = torch.ones(len(key), dtype=torch.bool, device=key.device)
    first[1:] = (key[1:] != key[:-1]) | (samples.ray[1:] != samples.ray[:-1])
    at = torch.nonzero(first).squeeze(1)
    return Segments(samples.ray[at], samples.t[at], torch.cumsum(first, 0) - 1)


def summed(
    sigma: Tensor,  # [Q] density
    rgb: Tensor,  # [Q, 3]
    delta: Tensor,  # [Q] length, endless where light ends
    samples: Samples,  # Q
    segments: Segments,
    span: tuple[Tensor, Tensor],  # distances [R] at which rays enter and leave the cube
) -> Tensor:  # [S, 6] float32
    """The values of segments."""
    segment, count = segments.of_sample, len(segments)
    weights, _ = composite(sigma, delta, segment, count)
    tau, _ = optical_depths(sigma, delta, segment, count)
    length = span_length(span)[samples.ray]
    middle = (samples.t - span[0][samples.ray]) / length
    columns = [
        tau.new_zeros(count).index_add(0, segment, tau).to(sigma.dtype)[:, None],
        along_rays(weights, rgb, segment, count),
        along_rays(weights, samples.t, segment, count)[:, None],
        distortion(weights, middle, samples.delta / length, segment, count)[:, None],
    ]
    return torch.cat(columns, dim=1)


def join(values: Tensor, ray: Tensor, span: tuple[Tensor, Tensor]) -> Joined:
    """Composite segments with ``values`` [S, 6] of rays ``ray`` [S], ordered by ray and distance.

    Of the spread only the pairs of samples in different segments are missing in the values; as the segments of a ray
    are disjoint, the sum over such pairs of w_i w_j |t_i - t_j| needs each segment's sums of w and w t alone.
    """
    num_rays = len(span[0])
    tau = values[:, DEPTH].double()
    front = torch.exp(-sum_before(tau, ray, num_rays))  # [S] light that reaches a segment
    weight, moment = front * -torch.expm1(-tau), front * values[:, DISTANCE]
    pairs = moment * sum_before(weight, ray, num_rays) - weight * sum_before(moment, ray, num_rays)
    spread = front.square() * values[:, SPREAD] + 2 * pairs / span_length(span)[ray]
    rgb = front[:, None] * values[:, RED : BLUE + 1]
    none = tau.new_zeros(num_rays)
    return Joined(
        rgb=none.new_zeros(num_rays, 3).index_add(0, ray, rgb).to(values.dtype),
        distance=none.index_add(0, ray, moment).to(values.dtype),
        spread=none.index_add(0, ray, spread).to(values.dtype),
        light=torch.exp(-none.index_add(0, ray, tau)).to(values.dtype),
    )


def span_length(span: tuple[Tensor, Tensor]) -> Tensor:
    """How long rays [R] are inside the cube; a little where they miss it."""
    return (span[1] - span[0]).clamp_min(1e-6)
