"""The root cube as rays see it: which samples light reaches, and what they add up to.

Letters: R rays, Q samples, N octree nodes.  Written for any device and backend; on the CPU
:mod:`inf_nerf.render.numba_trace` does the same in compiled loops, and takes over where the backend is numba.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inf_nerf.field.field import Field
from inf_nerf.octree.routing import blend_neighbour
from inf_nerf.octree.topology import Octree
from inf_nerf.render.compositing import along_rays, composite, reached
from inf_nerf.render.sampling import Samples

ENDLESS = 1e9  # length of a step that lets nothing through
INVISIBLE = 1e-4  # weight below which a sample's colour is not computed, outside training


@dataclass(frozen=True)
class Foreground:
    """Sums over the samples of R rays, weighted by what of them is seen."""

    rgb: Tensor  # [R, 3]
    depth: Tensor  # [R] of distances
    level: Tensor  # [R] of octree levels, detached
    foreign: Tensor  # [R] of what stands in for another rank's nodes, detached
    light: Tensor  # [R] that comes past all samples
    share: Tensor  # [N] weight of each node over all rays, detached
    touched: Tensor  # [N] bool: nodes that were asked
    num_samples: int  # asked for their density


@dataclass(frozen=True)
class LitSamples:
    """The samples that light reaches."""

    samples: Samples
    delta: Tensor  # [Q] their lengths, endless where a ray's light ends lest the background shine through
    features: Tensor  # [Q, L * F] of the hash grid, without gradients
    density: Tensor  # [Q] without gradients
    num_asked: int  # samples asked for their density to find out

    def keep(self, index: Tensor, ends: Tensor) -> "LitSamples":
        """Only the samples ``index`` [Q'], light ending where ``ends`` [Q'] bool and nowhere else."""
        samples = self.samples[index]
        delta = samples.delta.masked_fill(ends, ENDLESS)
        return LitSamples(samples, delta, self.features[index], self.density[index], self.num_asked)


@torch.no_grad()
def lit_samples(samples: Samples, octree: Octree, field: Field, num_rays: int) -> LitSamples:
    """Ask all samples for their density, and keep those in front of what is opaque."""
    node, order = torch.sort(samples.node, stable=True)
    xyz = octree.to_local(samples.xyz[order], node)
    sorted_features = field.features(xyz, node)
    sorted_sigma, _ = field.density(xyz, node, sorted_features)
    sigma = torch.empty_like(sorted_sigma).index_copy_(0, order, sorted_sigma)
    features = torch.empty_like(sorted_features).index_copy_(0, order, sorted_features)
    lit, ends = reached(sigma, samples.delta, samples.ray, num_rays)
    delta = samples.delta.masked_fill(ends, ENDLESS)
    return LitSamples(samples[lit], delta[lit], features[lit], sigma[lit], len(samples))


def shaded(
    lit: LitSamples, octree: Octree, field: Field, direction: Tensor, looks: Tensor
) -> tuple[Foreground, Tensor]:
    """What rays with ``direction`` [R, 3] and appearance ``looks`` [R, A] see, with gradients, and the weights [Q].

    What lies behind a surface gets neither weight nor gradient, so nothing is computed for it; for the rest, finding
    out was not in vain, since the features are kept.
    """
    samples = lit.samples
    sigma, rgb = radiance(lit, octree, field, direction, looks)
    weights, light = composite(sigma, lit.delta, samples.ray, len(direction))
    return _summed(samples, rgb, weights, light, octree, samples.node, lit.num_asked), weights


def radiance(
    lit: LitSamples, octree: Octree, field: Field, direction: Tensor, looks: Tensor
) -> tuple[Tensor, Tensor]:  # [Q], [Q, 3]
    """Density and colour of the samples with gradients; arguments as of :func:`shaded`."""
    samples = lit.samples
    node, order = torch.sort(samples.node, stable=True)
    back = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
    xyz = octree.to_local(samples.xyz.index_select(0, order), node)
    ray = samples.ray.index_select(0, order)
    sigma, rgb = field.radiance(xyz, node, direction, looks, ray, lit.features.index_select(0, order))
    return sigma.index_select(0, back), rgb.index_select(0, back)


@torch.no_grad()
def foreground(
    samples: Samples, octree: Octree, field: Field, direction: Tensor, looks: Tensor, lod_blend: float
) -> Foreground:
    """What rays see without gradients, levels mixed over ``lod_blend`` octaves."""
    node, xyz, source, mix = samples.node, samples.xyz, torch.arange(len(samples), device=direction.device), None
    if lod_blend > 0 and len(samples):
        neighbour, weight = blend_neighbour(octree, xyz, samples.footprint, lod_blend)
        extra = torch.nonzero(weight > 0).squeeze(1)
        source = torch.cat((source, extra))
        mix = torch.cat((1 - weight, weight[extra]))
        node = torch.cat((node, neighbour[extra]))
    node, order = torch.sort(node, stable=True)
    back = torch.argsort(order)  # sorted -> given order
    source_sorted = source[order]
    sigma, geo = field.density(octree.to_local(xyz[source_sorted], node), node)
    parts = sigma[back] if mix is None else sigma[back] * mix
    total = parts.new_zeros(len(samples)).index_add(0, source, parts)
    _, ends = reached(total, samples.delta, samples.ray, len(direction))
    weights, light = composite(total, samples.delta.masked_fill(ends, ENDLESS), samples.ray, len(direction))
    seen = torch.nonzero(weights[source_sorted] > INVISIBLE).squeeze(1)
    ray = samples.ray[source_sorted][seen]
    rgb_sorted = sigma.new_zeros(len(node), 3)
    rgb_sorted[seen] = field.colour(geo[seen], direction, looks, node[seen], ray)
    shares = (parts / total[source].clamp_min(1e-20))[:, None]
    rgb = parts.new_zeros(len(samples), 3).index_add(0, source, rgb_sorted[back] * shares)
    return _summed(samples, rgb, weights, light, octree, node, len(samples))


def _summed(
    samples: Samples, rgb: Tensor, weights: Tensor, light: Tensor, octree: Octree, asked: Tensor, num_asked: int
) -> Foreground:
    """``asked``: nodes that were, with repetitions."""
    detached, num_rays = weights.detach(), len(light)
    touched = torch.zeros(octree.num_nodes, dtype=torch.bool, device=light.device)
    touched[asked] = True
    return Foreground(
        rgb=along_rays(weights, rgb, samples.ray, num_rays),
        depth=along_rays(weights, samples.t, samples.ray, num_rays),
        level=along_rays(detached, octree.level[samples.node].float(), samples.ray, num_rays),
        foreign=along_rays(detached, samples.foreign.float(), samples.ray, num_rays),
        light=light,
        share=torch.zeros(octree.num_nodes, device=light.device).index_add_(0, samples.node, detached),
        touched=touched,
        num_samples=num_asked,
    )
