"""The work that all rows share: rays through a cube that is divided evenly over M nodes.

Letters: R rays, S samples of each at fixed distances, Q = R * S samples in order of the rays, M nodes in a grid of
M^(1/3) a side.  A sample is answered by the node that it lies in, as in an octree all of whose samples are finer than
its last level.  Rays enter and leave through random points of the cube's surface, so their order is random as in
training, and neighbouring samples are neighbours in space.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from inf_nerf.config import FieldConfig
from inf_nerf.field.field import Field

TWIN_ROUNDS = 1  # the torch twin is written to be read; one round after the warm-up says how slow it is
# M -> log2 of a node's table: about as many entries in all, whatever the number of nodes
TABLES = {1: 19, 8: 17, 64: 14, 512: 11}


def field_config(nodes: int, backend: str = "numba") -> FieldConfig:
    """16 levels of 2 features, heads of 32-64-16 and 32-64-64-3; no appearance."""
    return FieldConfig.model_validate({"backend": backend, "log2_table_size": TABLES[nodes], "appearance_dim": 0})


def make_field(nodes: int, backend: str = "numba") -> Field:
    """A field of M nodes with fixed random values, large enough in the tables that the heads see differences."""
    field = Field(field_config(nodes, backend), torch.arange(1, nodes + 1), seed=0)
    for index in range(nodes):
        field.state_of(index)["table"].mul_(1e3)
    return field


@dataclass(frozen=True, eq=False)
class Workload:
    """R rays of S samples in M nodes, and the colours that the rays should have."""

    nodes: int
    xyz: Tensor  # [Q, 3] in the cube [0, 1]^3
    direction: Tensor  # [R, 3] unit
    delta: Tensor  # [Q] length of a sample
    ray: Tensor  # [Q] int64
    target: Tensor  # [R, 3]

    @property
    def num_rays(self) -> int:
        """R."""
        return len(self.direction)

    @property
    def num_samples(self) -> int:
        """Q."""
        return len(self.xyz)

    @property
    def per_side(self) -> int:
        """Nodes along a side of the cube."""
        return round(self.nodes ** (1 / 3))

    @cached_property
    def node(self) -> Tensor:
        """Node [Q] int64 of each sample, in order of the rays."""
        cell = (self.xyz * self.per_side).long().clamp_(0, self.per_side - 1)
        return (cell[:, 0] * self.per_side + cell[:, 1]) * self.per_side + cell[:, 2]

    @cached_property
    def local(self) -> Tensor:
        """Positions [Q, 3] in their nodes' own [0, 1], in order of the rays."""
        return (self.xyz * self.per_side).frac_()

    @cached_property
    def by_node(self) -> tuple[Tensor, Tensor]:
        """Positions [Q, 3] in their nodes and the nodes [Q], sorted by node."""
        node, order = torch.sort(self.node, stable=True)
        return self.local[order], node

    @cached_property
    def counts(self) -> list[int]:
        """Samples of each of the M nodes."""
        return torch.bincount(self.node, minlength=self.nodes).tolist()


def make_workload(nodes: int, num_rays: int, samples: int = 48, seed: int = 0) -> Workload:
    """``num_rays`` rays of ``samples`` samples each; the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    enter, leave = _on_surface(num_rays, generator), _on_surface(num_rays, generator)
    across = leave - enter
    length = across.norm(dim=1).clamp_min(1e-3)
    share = (torch.arange(samples) + 0.5) / samples
    xyz = enter[:, None] + across[:, None] * share[:, None]  # [R, S, 3]
    return Workload(
        nodes,
        xyz.reshape(-1, 3).clamp_(0, 1 - 2.0**-20),
        across / length[:, None],
        (length / samples).repeat_interleave(samples),
        torch.arange(num_rays).repeat_interleave(samples),
        torch.rand(num_rays, 3, generator=generator),
    )


def _on_surface(count: int, generator: torch.Generator) -> Tensor:
    """Random points [count, 3] on the sides of the cube [0, 1]^3."""
    points = torch.rand(count, 3, generator=generator)
    side = torch.randint(0, 6, (count,), generator=generator)
    points[torch.arange(count), side % 3] = (side // 3).float()
    return points
