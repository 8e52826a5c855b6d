"""Where along a ray the field is asked.

Letters: R rays, C coarse intervals, Q samples.  Distances run along unit directions in scene units.  Steps grow with
distance because a footprint does: a step is ``sampler.step`` footprints long.  Nothing is sampled before a ray enters
the root cube [-1, 1]^3, and the background answers only after it has left.

Two samplers share one result.  ``march`` keeps of all :class:`Steps` those that occupancy grids do not know to be
empty; ``sample_tree`` is the paper's 192 -> 96 -> 48 resampling by the density of the octree itself.  Level-of-detail
jitter is drawn once per ray, so that all passes over it are answered by the same levels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from inf_nerf.config import SamplerConfig
from inf_nerf.field.occupancy import Cells
from inf_nerf.octree.routing import route
from inf_nerf.octree.topology import Octree
from inf_nerf.render.empty_space import EmptySpace
from inf_nerf.scene.cameras import Rays

CLOSE = 0.15  # scene units; the step budget of a ray is reckoned from here on
STEPS_PER_INTERVAL = 8  # fine steps in one interval of the coarse test
THIN = 1e-6  # least density of the background, so that its endless last sample stops what light is left
FAR = 1e3  # background distances end here, in root half-sides


@dataclass(frozen=True)
class Samples:
    """Flat samples ordered by ray, then by distance."""

    ray: Tensor  # [Q] int64
    t: Tensor  # [Q] distance of the middle
    delta: Tensor  # [Q] length
    xyz: Tensor  # [Q, 3] scene position
    footprint: Tensor  # [Q] as routed, level-of-detail jitter included
    node: Tensor  # [Q] int64 node that answers
    foreign: Tensor  # [Q] bool: the answering node stands in for one that another rank owns

    def __len__(self) -> int:
        return self.ray.shape[0]

    def __getitem__(self, index: Tensor) -> "Samples":
        return Samples(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class Part:
    """Which samples this process answers, where several process the same rays: those in nodes that it alone holds and,
    for some of the rays, those in nodes that all hold.  What stands in for another's node is answered by the other."""

    shared: Tensor  # [N] bool: nodes that all hold
    drawn: Tensor  # [R] bool: rays whose samples in shared nodes it answers

    def holds(self, samples: Samples) -> Tensor:
        """Which samples [Q] bool are its own."""
        return ~samples.foreign & (~self.shared[samples.node] | self.drawn[samples.ray])


def cube_span(rays: Rays, near: float, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Distances [R] at which rays enter the root cube, or ``box`` [2, 3] (opposite corners in it), no less than
    ``near``, and leave it; enter >= leave where they miss it."""
    inverse = 1 / torch.where(rays.direction.abs() < 1e-9, torch.full_like(rays.direction, 1e-9), rays.direction)
    low, high = (-1, 1) if box is None else (box[0], box[1])
    a, b = (low - rays.origin) * inverse, (high - rays.origin) * inverse
    enter = torch.minimum(a, b).amax(1).clamp_min(near)
    leave = torch.maximum(a, b).amin(1)
    return enter, leave


@dataclass(frozen=True)
class Steps:
    """Candidate steps of the R' rays that hit the root cube; step k is at ``enter * exp(log_growth * (k + phase))``."""

    hit: Tensor  # [R'] which rays
    origin: Tensor  # [R', 3]
    direction: Tensor  # [R', 3]
    radius: Tensor  # [R'] footprint per unit distance as routed
    enter: Tensor  # [R'] distances between which a ray is inside the cube
    leave: Tensor  # [R']
    log_growth: Tensor  # [R'] of the distance from step to step
    phase: Tensor  # [R'] of a step, in [0, 1)

    @staticmethod
    def of(
        rays: Rays,
        config: SamplerConfig,
        radius: Tensor,  # [R] footprint per unit distance as routed: see `routed_radius`
        generator: torch.Generator | None,
        most: float,
        box: Tensor | None = None,  # [2, 3]: nothing outside it is sampled
    ) -> "Steps":
        """A step is ``config.step`` footprints long, or longer where there would be more than about ``most`` of them
        between entering and leaving the cube (what a camera inside the cube has right before it does not count).  With
        a generator (training) the steps of a ray start at a random phase.
        """
        enter, leave = cube_span(rays, config.near, box)
        hit = torch.nonzero(leave > enter).squeeze(1)
        enter, leave, radius = enter[hit], leave[hit], radius[hit]
        octaves = torch.log(leave / enter)
        budgeted = torch.log((leave / enter.clamp_min(CLOSE)).clamp_min(1.01))
        log_growth = torch.maximum(torch.log1p(config.step * radius), budgeted / most)
        log_growth = torch.maximum(log_growth, octaves / config.max_samples)
        origin, direction = rays.origin[hit], rays.direction[hit]
        return Steps(hit, origin, direction, radius, enter, leave, log_growth, uniform(len(hit), generator, origin))

    def samples(self, ray: Tensor, t: Tensor, node: Tensor, foreign: Tensor) -> Samples:
        """Samples at distances ``t`` [Q] along rays ``ray`` [Q], which number the rays of these steps."""
        delta = t * torch.expm1(self.log_growth)[ray]
        xyz = torch.addcmul(self.origin[ray], self.direction[ray], t[:, None])
        return Samples(self.hit[ray], t, delta, xyz, t * self.radius[ray], node, foreign)


def march(steps: Steps, octree: Octree, cells: Cells, empty_space: EmptySpace) -> Samples:
    """The steps that lie in what is not known to be empty."""
    log_interval = steps.log_growth * STEPS_PER_INTERVAL
    num_intervals = torch.ceil(torch.log(steps.leave / steps.enter) / log_interval).long().clamp_min_(1)
    device = steps.hit.device
    ray = torch.repeat_interleave(torch.arange(len(steps.hit), device=device), num_intervals)  # [C]
    first = torch.cumsum(num_intervals, 0) - num_intervals
    k = (torch.arange(len(ray), device=device) - first[ray]).float()
    begin = steps.enter[ray] * torch.exp(log_interval[ray] * k)
    length = begin * torch.expm1(log_interval[ray])
    position = torch.addcmul(steps.origin[ray], steps.direction[ray], (begin + 0.5 * length)[:, None])
    keep = torch.nonzero(empty_space.may_hold(position, length)).squeeze(1)
    ray, begin = ray[keep], begin[keep]

    step = torch.arange(STEPS_PER_INTERVAL, device=device)
    growth = torch.exp(steps.log_growth[ray, None] * (step + steps.phase[ray, None]))  # [C, 8]
    t = (begin[:, None] * growth).reshape(-1)
    ray = ray.repeat_interleave(STEPS_PER_INTERVAL)
    inside = torch.nonzero(t < steps.leave[ray]).squeeze(1)
    t, ray = t[inside], ray[inside]
    xyz = torch.addcmul(steps.origin[ray], steps.direction[ray], t[:, None])
    node, foreign = route(octree, xyz, t * steps.radius[ray])
    cell = cells.cell_of(octree.to_local(xyz, node), node)
    kept = torch.nonzero(cells.occupied.view(-1)[cell]).squeeze(1)
    return steps.samples(ray[kept], t[kept], node[kept], foreign[kept])


def routed_radius(rays: Rays, footprint_px: float, generator: torch.Generator | None) -> Tensor:
    """Footprint per unit distance [R]; with a generator jittered by half an octave either way, once per ray."""
    radius = rays.radius * footprint_px
    return radius if generator is None else radius * torch.exp2(uniform(len(rays), generator, radius) - 0.5)


def sample_tree(
    rays: Rays,
    octree: Octree,
    density: Callable[[Tensor, Tensor], Tensor],
    config: SamplerConfig,
    radius: Tensor,  # [R] footprint per unit distance as routed
    generator: torch.Generator | None,
    box: Tensor | None = None,  # [2, 3]: nothing outside it is sampled
) -> Samples:
    """The paper's sampler: 192 samples, linear to distance 1 and in disparity beyond, resampled twice by the weights
    (to the power 0.9) that the octree's own density gives them.  ``density(xyz [Q, 3], footprint [Q])`` -> [Q].
    """
    enter, leave = cube_span(rays, config.near, box)
    hit = torch.nonzero(leave > enter).squeeze(1)
    origin, direction, radius = rays.origin[hit], rays.direction[hit], radius[hit]
    low, high = _warp(enter[hit]), _warp(leave[hit])
    first, *later = config.tree_samples
    edges = torch.linspace(0, 1, first + 1, device=origin.device).expand(len(hit), -1)
    if generator is not None:
        edges = edges + (uniform(len(hit), generator, origin) - 0.5)[:, None] / first
        edges = edges.clamp(0, 1)
    for count in later:
        bounds = _unwarp(low[:, None] + (high - low)[:, None] * edges)
        middle, delta = 0.5 * (bounds[:, 1:] + bounds[:, :-1]), bounds.diff(dim=1)
        xyz = origin[:, None] + direction[:, None] * middle[..., None]
        with torch.no_grad():
            sigma = density(xyz.view(-1, 3), (middle * radius[:, None]).view(-1)).view_as(delta)
        tau = sigma * delta
        weights = torch.exp(-(torch.cumsum(tau, 1) - tau)) * -torch.expm1(-tau)
        edges = _resample(edges, weights.pow(0.9), count, generator)
    bounds = _unwarp(low[:, None] + (high - low)[:, None] * edges)
    t, delta = (0.5 * (bounds[:, 1:] + bounds[:, :-1])).reshape(-1), bounds.diff(dim=1).reshape(-1)
    ray = torch.arange(len(hit), device=hit.device).repeat_interleave(edges.shape[1] - 1)
    xyz = torch.addcmul(origin[ray], direction[ray], t[:, None])
    footprint = t * radius[ray]
    node, foreign = route(octree, xyz, footprint)
    return Samples(hit[ray], t, delta, xyz, footprint, node, foreign)


@dataclass(frozen=True)
class BackgroundSamples:
    """B samples of each of R' rays beyond the root cube, in contracted space."""

    ray: Tensor  # [R'] which rays
    xyz: Tensor  # [R', B, 3] in [0, 1]: the contraction of all space beyond the cube
    delta: Tensor  # [R', B] in contracted units; the last one is endless

    def __getitem__(self, index: Tensor) -> "BackgroundSamples":
        return BackgroundSamples(self.ray[index], self.xyz[index], self.delta[index])


def sample_background(
    rays: Rays, which: Tensor, leave: Tensor, count: int, generator: torch.Generator | None
) -> BackgroundSamples:
    """Samples uniform in disparity from the cube's surface (or the camera, where a ray misses the cube) to infinity."""
    start = leave[which].clamp_min(0.5)[:, None]
    u = (torch.arange(count, device=which.device) + uniform(len(which), generator, rays.origin)[:, None]) / count
    t = torch.clamp_max(start / (1 - u).clamp_min(1e-6), FAR)  # [R', B]
    xyz = rays.origin[which][:, None] + rays.direction[which][:, None] * t[..., None]
    delta = torch.full_like(t, 8.0 / count)
    delta[:, -1] = 1e9  # whatever light is left ends here
    return BackgroundSamples(which, contract(xyz) * 0.25 + 0.5, delta)


def contract(xyz: Tensor) -> Tensor:
    """All of space into [-2, 2]^3: identity inside [-1, 1]^3, x * (2 - 1/n) / n with n = max |x| outside."""
    norm = xyz.abs().amax(-1, keepdim=True).clamp_min(1.0)
    return xyz * ((2 - 1 / norm) / norm)


def uniform(count: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Random numbers [count] in [0, 1), or 0.5 without a generator."""
    if generator is None:
        return torch.full((count,), 0.5, device=like.device)
    return torch.rand(count, generator=generator, device=generator.device).to(like.device)


def _warp(t: Tensor) -> Tensor:
    return torch.where(t < 1, t / 2, 1 - 1 / (2 * t))


def _unwarp(s: Tensor) -> Tensor:
    return torch.where(s < 0.5, 2 * s, 1 / (2 - 2 * s).clamp_min(math.ulp(1.0)))


def _resample(edges: Tensor, weights: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """``count`` + 1 edges [R, count + 1] spread by the histogram ``weights`` [R, S] over ``edges`` [R, S + 1]."""
    pdf = weights + 1e-5
    cdf = torch.cumsum(pdf / pdf.sum(1, keepdim=True), 1)
    cdf = torch.cat((torch.zeros_like(cdf[:, :1]), cdf), 1)
    cdf[:, -1] = 1.0
    u = torch.linspace(0, 1, count + 1, device=edges.device).expand(len(edges), -1)
    if generator is not None:
        u = (u + (uniform(len(edges), generator, edges) - 0.5)[:, None] / count).clamp(0, 1)
    index = torch.searchsorted(cdf, u.contiguous(), right=True).clamp(1, cdf.shape[1] - 1)
    low, high = torch.gather(cdf, 1, index - 1), torch.gather(cdf, 1, index)
    share = ((u - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)
    left, right = torch.gather(edges, 1, index - 1), torch.gather(edges, 1, index)
    return left + share * (right - left)
