"""A radiance field over an octree: what every ray sees.

Letters: R rays, Q samples, N octree nodes, M = N + 1 field nodes (the background is the last), A appearance numbers.
The model does not know its rank.  It may hold a pruned octree; a pruned child is served by its parent, and samples for
which the missing child belongs to another rank are marked foreign so that the losses can discount them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inf_nerf.config import Config
from inf_nerf.field.field import Field
from inf_nerf.field.occupancy import Occupancy
from inf_nerf.octree.routing import blend_neighbour, route
from inf_nerf.octree.topology import BACKGROUND_KEY, Octree
from inf_nerf.render.compositing import along_rays, composite, transmittance
from inf_nerf.render.empty_space import EmptySpace
from inf_nerf.render.sampling import (
    Samples,
    cube_span,
    march,
    routed_radius,
    sample_background,
    sample_tree,
)
from inf_nerf.scene.cameras import Rays

OPAQUE = 1e-3  # transmittance below which nothing behind is looked at
ENDLESS = 1e9  # length of a step that lets nothing through
UNTRAINED = 0.8  # share of the initial density above which a field may just not have been trained
INVISIBLE = 1e-4  # weight below which a sample's colour is not computed, outside training


@dataclass(frozen=True)
class Rendered:
    """What R rays see, and where it came from."""

    rgb: Tensor  # [R, 3]
    depth: Tensor  # [R] expected distance along the unit ray; background counts as where the ray leaves the cube
    opacity: Tensor  # [R] of the foreground
    level: Tensor  # [R] weighted mean octree level of the foreground
    foreign: Tensor  # [R] compositing weight answered in place of another rank's nodes, detached
    share: Tensor  # [M] compositing weight answered by each node, summed over rays, detached
    touched: Tensor  # [M] bool: nodes that were asked
    num_samples: int  # foreground samples asked for their density
    samples: Samples  # with gradients: only those that light reaches
    weights: Tensor  # [Q] of the samples
    span: tuple[Tensor, Tensor]  # distances [R] at which rays enter and leave the root cube


def empty_density(config: Config, octree: Octree) -> Tensor:
    """Density [N] below which a node's cell is empty: too thin to be seen across a cell, and thinner than the haze that
    a field starts with, lest small cells that were never trained be taken for empty."""
    cell = 2 * octree.half / config.sampler.occupancy_res
    return (config.sampler.occupancy_threshold / cell).clamp_max(UNTRAINED * config.field.initial_density)


class Model:
    """Octree, field, occupancy and appearance of one process."""

    def __init__(
        self,
        config: Config,
        octree: Octree,
        num_photos: int,
        train_photos: list[int],
        backdrop: Tensor,  # [3] colour behind everything, seen only below the ground
        solid_ground: bool,
        device: torch.device | str = "cpu",
    ) -> None:
        keys = torch.cat((octree.keys.cpu(), torch.tensor([BACKGROUND_KEY])))
        self.config = config
        self.octree = octree
        self.field = Field(config.field, keys, config.train.seed, device)
        sampler = config.sampler
        self.occupancy = Occupancy(
            empty_density(config, octree), sampler.occupancy_res, sampler.occupancy_decay, device
        )
        self.appearance = nn.Parameter(torch.zeros(num_photos, config.field.appearance_dim, device=device))
        self.train_photos = torch.tensor(train_photos, device=device)
        self.is_trained = torch.zeros(num_photos, dtype=torch.bool, device=device)
        self.is_trained[self.train_photos] = True
        self.backdrop = backdrop.to(device)
        # the frame puts the ground just above z = 0, so a ray that leaves the cube lower has crossed the ground: the
        # background must not explain what it should have hit
        self.solid_ground = solid_ground
        self.empty_space = EmptySpace(octree, self.occupancy)
        self.steps_across = 96.0  # budget of a ray through the cube; training adapts it to sampler.samples

    @property
    def background(self) -> int:
        """Index of the background node."""
        return self.octree.num_nodes

    def occupancy_changed(self) -> None:
        """Call after the occupancy grids were refreshed."""
        self.empty_space = EmptySpace(self.octree, self.occupancy)

    def density(self, xyz: Tensor, footprint: Tensor) -> Tensor:
        """Density [Q] at scene positions [Q, 3], answered at the level that fits the footprints [Q]."""
        node, _ = route(self.octree, xyz, footprint)
        node, order = torch.sort(node, stable=True)
        sigma, _ = self.field.density(self.octree.to_local(xyz[order], node), node)
        return torch.empty_like(sigma).index_copy(0, order, sigma)

    def mean_appearance(self) -> Tensor:
        """Mean vector [A] of the training photos."""
        return self.appearance[self.train_photos].mean(0)

    def sample(self, rays: Rays, generator: torch.Generator | None) -> Samples:
        """Foreground samples by the configured sampler."""
        sampler = self.config.sampler
        radius = routed_radius(rays, self.config.octree.footprint_px, generator)
        if sampler.kind == "tree":
            return sample_tree(rays, self.octree, self.density, sampler, radius, generator)
        samples = march(
            rays,
            self.octree,
            self.occupancy,
            self.empty_space,
            sampler,
            radius,
            generator,
            self.steps_across,
            compiled=self.field.encoder.name == "numba",
        )
        if generator is not None:
            # while little is known to be empty, longer steps keep the cost of a batch about constant
            change = sampler.samples * len(rays) / max(1, len(samples))
            self.steps_across = min(sampler.max_samples, max(32.0, self.steps_across * min(1.1, max(0.9, change))))
        return samples

    def render(
        self,
        rays: Rays,
        *,
        generator: torch.Generator | None = None,
        lod_blend: float = 0.0,
        appearance: Tensor | None = None,  # [A] or [R, A]; None: of the photo, or the mean where it has none
        backdrop: Tensor | None = None,  # [3]
    ) -> Rendered:
        """Render rays; with a generator as in training (jitter), without one deterministically.

        With gradients only the samples that light reaches are kept, and `lod_blend` must be 0.
        """
        rays = rays.to(self.appearance.device)
        num_rays = len(rays)
        samples = self.sample(rays, generator)
        num_samples = len(samples)
        looks = self._appearance(rays, appearance)
        touched = torch.zeros(self.background + 1, dtype=torch.bool, device=looks.device)
        if torch.is_grad_enabled():
            if lod_blend:
                raise ValueError(f"lod_blend is {lod_blend}, but levels are not mixed while gradients are recorded")
            samples, rgb, weights, remaining = self._lit_foreground(samples, rays, looks)
            touched[samples.node] = True
        else:
            rgb, weights, remaining = self._foreground(samples, rays, looks, lod_blend, touched)
        enter, leave = cube_span(rays)
        leave = torch.where(leave > enter, leave, torch.zeros_like(leave))
        colour = along_rays(weights, rgb, samples.ray, num_rays)
        behind, beyond = self._background(rays, looks, leave, remaining.detach(), generator)
        # no field answers behind the ground: there the backdrop shows
        colour = colour + remaining[:, None] * torch.where(
            beyond[:, None], behind, self.backdrop if backdrop is None else backdrop
        )
        detached = weights.detach()
        share = torch.zeros(self.background + 1, device=colour.device).index_add_(0, samples.node, detached)
        share[-1] = (remaining.detach() * beyond).sum()
        touched[-1] = bool((beyond & (remaining.detach() > OPAQUE)).any())
        opacity = 1 - remaining
        level = along_rays(detached, self.octree.level[samples.node].float(), samples.ray, num_rays)
        return Rendered(
            rgb=colour,
            depth=along_rays(weights, samples.t, samples.ray, num_rays) + remaining * leave,
            opacity=opacity,
            level=level / opacity.detach().clamp_min(1e-6),
            foreign=along_rays(detached, samples.foreign.float(), samples.ray, num_rays),
            share=share,
            touched=touched,
            num_samples=num_samples,
            samples=samples,
            weights=weights,
            span=(enter, leave),
        )

    def _appearance(self, rays: Rays, override: Tensor | None) -> Tensor:
        """Appearance vectors [R, A]."""
        if override is not None:
            return override.expand(len(rays), -1)
        photo = rays.photo.clamp_min(0)
        looks = self.appearance[photo]
        unknown = (rays.photo < 0) | ~self.is_trained[photo]
        return torch.where(unknown[:, None], self.mean_appearance(), looks) if bool(unknown.any()) else looks

    def _lit_foreground(self, samples: Samples, rays: Rays, looks: Tensor) -> tuple[Samples, Tensor, Tensor, Tensor]:
        """The samples that light reaches, their colour [Q', 3] and weight [Q'], and the transmittance [R] behind them.

        A first pass asks for densities alone.  What lies behind a surface gets neither weight nor gradient, so nothing
        else is computed for it; for the rest the pass is not in vain, since its features are kept.
        """
        node, order = torch.sort(samples.node, stable=True)
        xyz = self.octree.to_local(samples.xyz[order], node)
        features = self.field.features(xyz, node)
        with torch.no_grad():
            sigma_sorted, _ = self.field.density(xyz, node, features)
            sigma = torch.empty_like(sigma_sorted).index_copy_(0, order, sigma_sorted)
            lit = transmittance(sigma, samples.delta, samples.ray, len(rays)) > OPAQUE
        # the last sample that light reaches takes all that is left, lest the background shine through in its place
        last = lit[:-1] & ~lit[1:] & (samples.ray[:-1] == samples.ray[1:])
        delta = torch.cat((samples.delta[:-1].masked_fill(last, ENDLESS), samples.delta[-1:]))[lit]
        kept = torch.nonzero(lit[order]).squeeze(1)
        order = (torch.cumsum(lit, 0) - 1)[order[kept]]
        samples, node = samples[lit], node[kept]
        sigma_sorted, geo = self.field.density(xyz[kept], node, features[kept])
        back = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        weights, remaining = composite(sigma_sorted[back], delta, samples.ray, len(rays))
        rgb = self.field.colour(geo, rays.direction, looks, node, samples.ray[order])[back]
        return samples, rgb, weights, remaining

    def _foreground(
        self, samples: Samples, rays: Rays, looks: Tensor, lod_blend: float, touched: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Colour [Q, 3] and weight [Q] of the samples, and the transmittance [R] behind them, without gradients.

        Marks the nodes that are asked in ``touched`` [M].
        """
        node, xyz, source, mix = samples.node, samples.xyz, torch.arange(len(samples), device=rays.origin.device), None
        if lod_blend > 0 and len(samples):
            neighbour, weight = blend_neighbour(self.octree, xyz, samples.footprint, lod_blend)
            extra = torch.nonzero(weight > 0).squeeze(1)
            source = torch.cat((source, extra))
            mix = torch.cat((1 - weight, weight[extra]))
            node = torch.cat((node, neighbour[extra]))
        touched[node] = True
        node, order = torch.sort(node, stable=True)
        back = torch.argsort(order)  # sorted -> given order
        source_sorted = source[order]
        sigma, geo = self.field.density(self.octree.to_local(xyz[source_sorted], node), node)
        sigma_parts = sigma[back]
        if mix is not None:
            sigma_parts = sigma_parts * mix
            total = sigma_parts.new_zeros(len(samples)).index_add(0, source, sigma_parts)
        else:
            total = sigma_parts
        weights, remaining = composite(total, samples.delta, samples.ray, len(rays))
        seen = torch.nonzero(weights[source_sorted] > INVISIBLE).squeeze(1)
        ray = samples.ray[source_sorted][seen]
        rgb_sorted = sigma.new_zeros(len(node), 3)
        rgb_sorted[seen] = self.field.colour(geo[seen], rays.direction, looks, node[seen], ray)
        rgb_parts = rgb_sorted[back]
        if mix is None:
            return rgb_parts, weights, remaining
        parts = rgb_parts * (sigma_parts / total[source].clamp_min(1e-20))[:, None]
        return parts.new_zeros(len(samples), 3).index_add(0, source, parts), weights, remaining

    def _background(
        self, rays: Rays, looks: Tensor, leave: Tensor, remaining: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Colour [R, 3] of what lies beyond the cube, and for which rays [R] anything does."""
        behind = torch.zeros(len(rays), 3, device=rays.origin.device)
        count = self.config.sampler.background_samples
        beyond = torch.full((len(rays),), count > 0, device=rays.origin.device)
        if self.solid_ground:
            exit_z = rays.origin[:, 2] + rays.direction[:, 2] * leave
            beyond &= (leave <= 0) | (exit_z > 0)
        which = torch.nonzero(beyond & (remaining > OPAQUE)).squeeze(1)
        if count == 0 or len(which) == 0:
            return behind, beyond
        samples = sample_background(rays, which, leave, count, generator)
        xyz = samples.xyz.reshape(-1, 3)
        ray = torch.arange(len(which), device=xyz.device).repeat_interleave(count)
        node = torch.full((len(xyz),), self.background, dtype=torch.int64, device=xyz.device)
        sigma, geo = self.field.density(xyz, node)
        rgb = self.field.colour(geo, rays.direction[which], looks[which], node, ray)
        weights, _ = composite(sigma.clamp_min(1e-6), samples.delta.reshape(-1), ray, len(which))
        return behind.index_copy(0, which, along_rays(weights, rgb, ray, len(which))), beyond
