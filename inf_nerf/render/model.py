"""A radiance field over an octree: what every ray sees.

Letters: R rays, Q samples, N octree nodes, M = N + 1 field nodes (the background is the last), A appearance numbers.
The model does not know its rank.  It may hold a pruned octree; a pruned child is served by its parent, and samples for
which the missing child belongs to another rank are marked foreign so that the losses can discount them.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inf_nerf.config import Config
from inf_nerf.diagnose.profiler import section
from inf_nerf.field.field import Field
from inf_nerf.field.occupancy import Cells, Occupancy
from inf_nerf.octree.routing import route
from inf_nerf.octree.topology import BACKGROUND_KEY, Octree
from inf_nerf.render.compositing import DARK, along_rays, composite
from inf_nerf.render.empty_space import EmptySpace
from inf_nerf.render.foreground import Foreground, LitSamples, foreground, lit_samples, shaded
from inf_nerf.render.sampling import (
    THIN,
    Part,
    Samples,
    Steps,
    cube_span,
    march,
    routed_radius,
    sample_background,
    sample_tree,
)
from inf_nerf.scene.cameras import Rays

OPAQUE = math.exp(-DARK)  # transmittance below which nothing behind is looked at
UNTRAINED = 0.8  # share of the initial density above which a field may just not have been trained


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
    span: tuple[Tensor, Tensor]  # distances [R] at which rays enter and leave the root cube
    samples: Samples | None  # those that light reaches; only with gradients
    weights: Tensor | None  # [Q] of the samples


def empty_density(config: Config, half: Tensor) -> Tensor:
    """Density [N] below which a cell of nodes with half sides [N] is empty: too thin to be seen across a cell, and
    thinner than the haze that a field starts with, lest small cells that were never trained be taken for empty."""
    cell = 2 * half / config.sampler.occupancy_res
    return (config.sampler.occupancy_threshold / cell).clamp_max(UNTRAINED * config.field.initial_density)


def field_keys(octree: Octree) -> Tensor:
    """Keys [M] of a field's nodes: the octree's, then the background."""
    return torch.cat((octree.keys.cpu(), torch.tensor([BACKGROUND_KEY])))


class Model:
    """Octree, field, occupancy and appearance of one process.

    Rendering asks no more of the occupancy than ``cells``; a model that was given these cannot be trained.
    """

    def __init__(
        self,
        config: Config,
        octree: Octree,
        num_photos: int,
        train_photos: list[int],
        backdrop: Tensor,  # [3] colour behind everything, seen only below the ground
        solid_ground: bool,
        device: torch.device | str = "cpu",
        field: Field | None = None,  # of the octree's nodes and the background; None: initial values
        cells: Cells | None = None,  # of the octree's nodes; None: nothing is known to be empty yet
    ) -> None:
        self.config = config
        self.octree = octree
        self.field = field or Field(config.field, field_keys(octree), config.train.seed, device)
        sampler = config.sampler
        self.cells = cells or Occupancy(
            empty_density(config, octree.half), sampler.occupancy_res, sampler.occupancy_decay, device
        )
        self.appearance = nn.Parameter(torch.zeros(num_photos, config.field.appearance_dim, device=device))
        self.train_photos = torch.tensor(train_photos, device=device)
        self.is_trained = torch.zeros(num_photos, dtype=torch.bool, device=device)
        self.is_trained[self.train_photos] = True
        self.backdrop = backdrop.to(device)
        # the frame puts the ground just above z = 0, so a ray that leaves the cube lower has crossed the ground: the
        # background must not explain what it should have hit
        self.solid_ground = solid_ground
        self.empty_space = EmptySpace(octree, self.cells)
        self.box: Tensor | None = None  # [2, 3] opposite corners of all that is seen; None: nothing is left out
        self.steps_across = 96.0  # budget of a ray through the cube; training adapts it to sampler.samples

    def over(self, octree: Octree, field: Field, cells: Cells) -> "Model":
        """The same scene answered by the nodes of ``octree``, whose values these are."""
        other = copy.copy(self)
        other.octree, other.field, other.cells = octree, field, cells
        other.empty_space = EmptySpace(octree, cells)
        return other

    def without_background(self) -> "Model":
        """The same scene with the backdrop behind the cube."""
        other = copy.copy(self)
        sampler = self.config.sampler.model_copy(update={"background_samples": 0})
        other.config = self.config.model_copy(update={"sampler": sampler})
        return other

    def seen(self, octaves: float, box: Tensor | None, around: Tensor) -> "Model":
        """The same model as seen by pixels ``octaves`` larger than they are; within ``box`` [2, 3] (opposite corners in
        the root cube) alone, with the colour ``around`` [3] behind it, unless None.  It cannot be trained."""
        other, config = copy.copy(self), self.config
        footprint_px = config.octree.footprint_px * 2**octaves
        other.config = config.model_copy(
            update={"octree": config.octree.model_copy(update={"footprint_px": footprint_px})}
        )
        if box is not None:
            other.box, other.backdrop = box.to(self.backdrop), around.to(self.backdrop)
        return other

    @property
    def occupancy(self) -> Occupancy:
        """The cells as training finds them out."""
        assert isinstance(self.cells, Occupancy), "this model only answers"
        return self.cells

    @property
    def background(self) -> int:
        """Index of the background node."""
        return self.octree.num_nodes

    def occupancy_changed(self) -> None:
        """Call after the occupancy grids were refreshed."""
        self.empty_space = EmptySpace(self.octree, self.cells)

    def density(self, xyz: Tensor, footprint: Tensor) -> Tensor:
        """Density [Q] at scene positions [Q, 3], answered at the level that fits the footprints [Q]."""
        node, _ = route(self.octree, xyz, footprint)
        node, order = torch.sort(node, stable=True)
        sigma, _ = self.field.density(self.octree.to_local(xyz[order], node), node)
        return torch.empty_like(sigma).index_copy(0, order, sigma)

    def mean_appearance(self) -> Tensor:
        """Mean vector [A] of the training photos."""
        return self.appearance[self.train_photos].mean(0)

    @property
    def _traces(self) -> bool:
        """Whether compiled code follows the rays."""
        return self.field.encoder.name == "numba" and self.config.sampler.kind == "occupancy"

    def steps(self, rays: Rays, generator: torch.Generator | None) -> Steps:
        """Where the rays may be sampled."""
        sampler = self.config.sampler
        radius = routed_radius(rays, self.config.octree.footprint_px, generator)
        return Steps.of(rays, sampler, radius, generator, self.steps_across, self.box)

    def sample(self, rays: Rays, generator: torch.Generator | None) -> Samples:
        """Foreground samples by the configured sampler, hidden ones included."""
        sampler = self.config.sampler
        if sampler.kind == "tree":
            radius = routed_radius(rays, self.config.octree.footprint_px, generator)
            return sample_tree(rays, self.octree, self.density, sampler, radius, generator, self.box)
        return march(self.steps(rays, generator), self.octree, self.cells, self.empty_space)

    def lit_samples(self, rays: Rays, generator: torch.Generator | None, part: Part | None = None) -> LitSamples:
        """The samples that light reaches; of those in ``part`` the ones that no other in it hides."""
        if self._traces:
            from inf_nerf.render import numba_trace

            steps = self.steps(rays, generator)
            return numba_trace.lit_samples(steps, self.octree, self.cells, self.empty_space, self.field, part)
        samples = self.sample(rays, generator)
        if part is not None:
            samples = samples[part.holds(samples)]
        return lit_samples(samples, self.octree, self.field, len(rays))

    def adapt_steps(self, num_lit: int, num_rays: int) -> None:
        """In training the samples that light reaches adapt the length of steps: while little is known to be empty,
        longer steps keep the cost of a batch about constant."""
        sampler = self.config.sampler
        change = sampler.samples * num_rays / max(1, num_lit)
        self.steps_across = min(sampler.max_samples, max(32.0, self.steps_across * min(1.1, max(0.9, change))))

    def foreground(self, rays: Rays, looks: Tensor, generator: torch.Generator | None, lod_blend: float) -> Foreground:
        """What rays see inside the root cube, without gradients."""
        if self._traces:
            from inf_nerf.render import numba_trace

            steps = self.steps(rays, generator)
            return numba_trace.foreground(
                steps, self.octree, self.cells, self.empty_space, self.field, looks, lod_blend
            )
        return foreground(self.sample(rays, generator), self.octree, self.field, rays.direction, looks, lod_blend)

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

        With gradients the samples are kept, and `lod_blend` must be 0.
        """
        rays = rays.to(self.appearance.device)
        looks = self.looks(rays, appearance)
        samples = weights = None
        if torch.is_grad_enabled():
            if lod_blend:
                raise ValueError(f"lod_blend is {lod_blend}, but levels are not mixed while gradients are recorded")
            with section("sample"):
                lit = self.lit_samples(rays, generator)
            if generator is not None:
                self.adapt_steps(len(lit.samples), len(rays))
            with section("field"):
                found, weights = shaded(lit, self.octree, self.field, rays.direction, looks)
            samples = lit.samples
        else:
            found = self.foreground(rays, looks, generator, lod_blend)
        enter, leave = cube_span(rays, self.config.sampler.near, self.box)
        leave = torch.where(leave > enter, leave, torch.zeros_like(leave))
        light = found.light.detach()
        with section("background"):
            behind, beyond = self.behind(rays, looks, leave, light, generator)
        # no field answers behind the ground: there the backdrop shows
        behind = torch.where(beyond[:, None], behind, self.backdrop if backdrop is None else backdrop)
        opacity = 1 - found.light
        return Rendered(
            rgb=found.rgb + found.light[:, None] * behind,
            depth=found.depth + found.light * leave,
            opacity=opacity,
            level=found.level / opacity.detach().clamp_min(1e-6),
            foreign=found.foreign,
            share=torch.cat((found.share, (light * beyond).sum()[None])),
            touched=torch.cat((found.touched, (beyond & (light > OPAQUE)).any()[None])),
            num_samples=found.num_samples,
            span=(enter, leave),
            samples=samples,
            weights=weights,
        )

    def looks(self, rays: Rays, override: Tensor | None = None) -> Tensor:
        """Appearance vectors [R, A] of the rays' photos, or of ``override`` [A] or [R, A]."""
        if override is not None:
            return override.expand(len(rays), -1)
        photo = rays.photo.clamp_min(0)
        looks = self.appearance[photo]
        unknown = (rays.photo < 0) | ~self.is_trained[photo]
        return torch.where(unknown[:, None], self.mean_appearance(), looks) if bool(unknown.any()) else looks

    def behind(
        self,
        rays: Rays,
        looks: Tensor,  # [R, A]
        leave: Tensor,  # [R] distance at which they leave the cube
        remaining: Tensor,  # [R] light that gets there
        generator: torch.Generator | None,
        drawn: Tensor | None = None,  # [R] bool; None: all
    ) -> tuple[Tensor, Tensor]:
        """Colour [R, 3] of what lies beyond the cube (computed for ``drawn`` rays), and for which rays [R] anything
        does."""
        behind = torch.zeros(len(rays), 3, device=rays.origin.device)
        count = self.config.sampler.background_samples if self.box is None else 0
        beyond = torch.full((len(rays),), count > 0, device=rays.origin.device)
        if self.solid_ground:
            exit_z = rays.origin[:, 2] + rays.direction[:, 2] * leave
            beyond &= (leave <= 0) | (exit_z > 0)
        which = torch.nonzero(beyond & (remaining > OPAQUE)).squeeze(1)
        if count == 0 or len(which) == 0:
            return behind, beyond
        samples = sample_background(rays, which, leave, count, generator)
        if drawn is not None:
            samples, which = samples[drawn[which]], which[drawn[which]]
        direction, looks = rays.direction[which], looks[which]
        if not torch.is_grad_enabled() and self._traces:
            from inf_nerf.render import numba_trace

            rgb = numba_trace.background(samples, self.background, self.field, direction, looks)
            return behind.index_copy(0, which, rgb), beyond
        xyz = samples.xyz.reshape(-1, 3)
        ray = torch.arange(len(which), device=xyz.device).repeat_interleave(count)
        node = torch.full((len(xyz),), self.background, dtype=torch.int64, device=xyz.device)
        sigma, rgb = self.field.radiance(xyz, node, direction, looks, ray)
        weights, _ = composite(sigma.clamp_min(THIN), samples.delta.reshape(-1), ray, len(which))
        return behind.index_copy(0, which, along_rays(weights, rgb, ray, len(which))), beyond
