"""Which nodes a bundle of rays can ask, from the topology alone: nothing of a node's values has to be at hand.

Letters: B bundles, C candidate nodes, G groups, R rays.  A bundle is what its rays have in common: a sphere that holds
the origins, a cone that holds the directions, and the finest pixel.  A node can be asked if its cube meets the cone and
the smallest footprint there is below its parent's gsd.  Only children of such nodes are looked at, so that the cost
grows with the result and not with the tree; the result holds the parent of each of its nodes.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from inf_nerf.octree.topology import Octree
from inf_nerf.scene.cameras import Rays

SLACK = 1e-5  # of positions in scene units, of angles and of footprints: rays are rounded to float32
SQRT_3 = math.sqrt(3.0)  # from the centre of a cube to its corner, in half sides


@dataclass(frozen=True)
class Bundles:
    """What the rays of each of B bundles have in common; float64."""

    centre: Tensor  # [B, 3] of the sphere of origins
    spread: Tensor  # [B] its radius
    axis: Tensor  # [B, 3] unit, of the cone of directions
    angle: Tensor  # [B] between the axis and the cone's side, in [0, pi]
    radius: Tensor  # [B] smallest footprint per unit distance, as routed

    def __len__(self) -> int:
        return len(self.spread)

    def __getitem__(self, index: Tensor) -> "Bundles":
        return Bundles(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def cat(parts: "list[Bundles]") -> "Bundles":
        """All bundles of all parts, in order."""
        return Bundles(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Bundles)))

    @staticmethod
    def of(rays: Rays, footprint_px: float, group: Tensor | None = None) -> "Bundles":
        """The bundle of all rays, or one for each number in ``group`` [R] int64, of which 0 to the largest occur."""
        if len(rays) == 0:
            raise ValueError("a bundle needs at least one ray")
        group = torch.zeros(len(rays), dtype=torch.int64) if group is None else group.cpu()
        single = Bundles(
            rays.origin.double().cpu(),
            torch.zeros(len(rays), dtype=torch.float64),
            rays.direction.double().cpu(),
            torch.zeros(len(rays), dtype=torch.float64),
            rays.radius.double().cpu() * footprint_px,
        )
        return single.joined(group)

    def joined(self, group: Tensor | None = None) -> "Bundles":
        """Bundles that hold all of these, or those of each group [B] as in :meth:`of`."""
        group = torch.zeros(len(self), dtype=torch.int64) if group is None else group
        count = int(group.max()) + 1
        size = torch.zeros(count, dtype=torch.float64).index_add_(0, group, torch.ones_like(self.spread))[:, None]
        centre = torch.zeros(count, 3, dtype=torch.float64).index_add_(0, group, self.centre) / size
        axis = torch.zeros(count, 3, dtype=torch.float64).index_add_(0, group, self.axis)
        length = axis.norm(dim=1, keepdim=True)
        # directions that cancel out have no mean; any axis will do, since their cone is at least a half space
        axis = torch.where(length > 1e-9, axis / length.clamp_min(1e-9), torch.tensor([0.0, 0.0, 1.0]).double())
        away = (self.centre - centre[group]).norm(dim=1) + self.spread
        # from the chord, which is exact for small angles where a cosine is not
        turned = 2 * torch.asin(((self.axis - axis[group]).norm(dim=1) / 2).clamp_max(1.0)) + self.angle
        none = torch.zeros(count, dtype=torch.float64)
        return Bundles(
            centre=centre,
            spread=none.scatter_reduce(0, group, away, "amax"),
            axis=axis,
            angle=none.scatter_reduce(0, group, turned, "amax").clamp_max(math.pi),
            radius=(none + math.inf).scatter_reduce(0, group, self.radius, "amin"),
        )

    def meet(self, octree: Octree, node: Tensor, near: float) -> Tensor:
        """Smallest footprint [C] at which any bundle meets the cubes of nodes [C], no nearer than ``near``; infinite
        where none does."""
        centre, half = octree.centre[node].double().cpu(), octree.half[node].double().cpu()
        towards = centre - self.centre[:, None]  # [B, C, 3]
        slack = SLACK * (1 + self.centre.norm(dim=1)[:, None])  # [B, 1]
        distance = towards.norm(dim=2)  # [B, C]
        size = half * SQRT_3 + self.spread[:, None] + slack
        axis = self.axis[:, None].expand_as(towards)
        off_axis = torch.atan2(torch.linalg.cross(towards, axis).norm(dim=2), (towards * axis).sum(2))
        seen_as = torch.where(distance > size, torch.asin((size / distance).clamp_max(1.0)), math.pi)
        meets = off_axis <= self.angle[:, None] + seen_as + SLACK
        to_cube = (towards.abs() - half[:, None]).clamp_min(0).norm(dim=2)
        nearest = (to_cube - self.spread[:, None] - slack).clamp_min(near)
        footprint = nearest * self.radius[:, None] * (1 - SLACK)
        return torch.where(meets, footprint, math.inf).amin(0)


def working_set(octree: Octree, bundles: Bundles, lod_blend: float = 0.0, *, near: float) -> Tensor:
    """Nodes [n] int64, ascending, that samples on the rays can ask; ``lod_blend`` octaves of levels are mixed.
    Nothing nearer than ``near`` (`sampler.near`) is sampled.

    Every node that :func:`inf_nerf.octree.routing.route` or ``blend_neighbour`` can answer for a sample is among them;
    some may be that none asks.  The root always is.  The background is in no octree and left to the caller.
    """
    widened = 2.0 ** (lod_blend / 2)
    accepted = torch.zeros(1, dtype=torch.int64)
    found = [accepted]
    while len(accepted):
        child = octree.children[accepted].cpu()
        place = torch.nonzero(child >= 0)
        candidate, parent = child[place[:, 0], place[:, 1]], accepted[place[:, 0]]
        asked = bundles.meet(octree, candidate, near) < octree.gsd[parent].double().cpu() * widened
        accepted = candidate[asked]
        found.append(accepted)
    return torch.cat(found)
