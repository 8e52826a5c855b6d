"""What a training asks of its tree: where finer nodes would help, and which nobody needs.

A sample asks for a finer node if its footprint is below the gsd of the node that answers it: its octant there has no
child.  An octant gets one if many samples ask for it and the colours of their rays stay worse than those of all rays.
A leaf that answers next to nothing and holds nothing goes: its parent answers there.

Letters: N nodes, Q samples, R rays.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inf_nerf.config import OctreeConfig
from inf_nerf.octree.topology import ABSENT, Octree, octant

MAX_GROWTH = 2  # times the nodes that the sparse points made, unless octree.max_nodes says otherwise
OFTEN = 0.25  # of what a mean node answers: what samples must ask of an octant for a node of its own
WEIGHT, ASKED, ERROR, OCCUPIED = 0, slice(1, 9), slice(9, 17), 17  # columns of a demand


@dataclass
class Demand:
    """What samples asked of the nodes of a tree; sums, which add up over steps and ranks."""

    nodes: Tensor  # [N, 18] float64: compositing weight answered, by octant the part of it that asks for finer nodes
    # and its rays' squared error, and whether any cell is occupied
    rays: Tensor  # [2] float64: weight of the rays, and their squared error

    @staticmethod
    def none(num_nodes: int, device: torch.device | str = "cpu") -> "Demand":
        """Nothing was asked yet."""
        return Demand(
            torch.zeros(num_nodes, OCCUPIED + 1, dtype=torch.float64, device=device),
            torch.zeros(2, dtype=torch.float64, device=device),
        )

    def __iadd__(self, other: "Demand") -> "Demand":
        self.nodes += other.nodes
        self.rays += other.rays
        return self

    def over(self, source: Tensor, count: int) -> "Demand":
        """The same of ``count`` nodes of another tree: node i of this one is ``source[i]`` there, -1 if it is none."""
        known = torch.nonzero(source >= 0).squeeze(1)
        other = Demand.none(count, self.nodes.device)
        other.nodes[source[known]] = self.nodes[known]
        other.rays += self.rays
        return other


def demand_of(
    octree: Octree,
    node: Tensor,  # [Q] that answers
    xyz: Tensor,  # [Q, 3]
    footprint: Tensor,  # [Q] as routed
    foreign: Tensor,  # [Q] bool: the node stands in for another rank's
    weight: Tensor,  # [Q] in its ray's colour, times how much the ray counts
    ray: Tensor,  # [Q]
    error: Tensor,  # [R] squared error of the rays' colours
    ray_weight: Tensor,  # [R] how much they count
) -> Demand:
    """What the samples of some rays ask."""
    demand = Demand.none(octree.num_nodes, node.device)
    node, xyz, footprint, weight, ray = (each[~foreign] for each in (node, xyz, footprint, weight.double(), ray))
    demand.nodes[:, WEIGHT].index_add_(0, node, weight)
    asks = torch.nonzero(footprint < octree.gsd[node]).squeeze(1)
    node, weight = node[asks], weight[asks]
    place = node * 8 + octant(xyz[asks], octree.centre[node])
    for columns, values in ((ASKED, weight), (ERROR, weight * error.double()[ray[asks]])):
        sums = values.new_zeros(octree.num_nodes * 8).index_add_(0, place, values)
        demand.nodes[:, columns] += sums.view(-1, 8)
    demand.rays += torch.stack((ray_weight.double().sum(), (ray_weight.double() * error.double()).sum()))
    return demand


def most_nodes(config: OctreeConfig, prepared: int) -> int:
    """The most nodes that a tree can come to have of which the sparse points made ``prepared``."""
    if config.update_every == 0:
        return prepared
    return max(prepared, config.max_nodes or MAX_GROWTH * prepared)


def wanted_nodes(octree: Octree, demand: Demand, config: OctreeConfig, most_nodes: int) -> list[int]:
    """Keys of the nodes that a complete tree should get, ascending.

    An octant gets a node if what samples ask of it is at least OFTEN of what a mean node answers, and the mean squared
    error of their rays is more than ``subdivision_threshold`` of that of all rays.  Nodes are no deeper than
    ``num_levels`` and no smaller than ``min_node_size``; where there would be more than ``most_nodes``, those come
    first that stand for most error.
    """
    answered, asked, error = demand.nodes[:, WEIGHT], demand.nodes[:, ASKED], demand.nodes[:, ERROR]
    weight, squared = demand.rays.tolist()
    if weight <= 0:
        return []
    wanted = (octree.children == ABSENT) & (asked > 0) & (asked >= OFTEN * answered.mean())
    wanted &= error > config.subdivision_threshold * squared / weight * asked
    fits = (octree.level + 1 < config.num_levels) & (octree.half >= config.min_node_size)
    node, which = torch.nonzero(wanted & fits[:, None]).unbind(1)
    keys = octree.keys[node] * 8 + which
    first = torch.sort(error[node, which], descending=True, stable=True).indices
    return sorted(keys[first[: max(0, most_nodes - octree.num_nodes)]].tolist())


def needless_nodes(octree: Octree, demand: Demand, config: OctreeConfig) -> list[int]:
    """Keys of the nodes that a complete tree can do without, ascending: leaves, and what then is one, that answer no
    more than ``pruning_threshold`` of what a mean node does and in which no cell is occupied."""
    answered = demand.nodes[:, WEIGHT]
    if float(demand.rays[0]) <= 0:
        return []
    idle = (answered <= config.pruning_threshold * answered.mean()) & (demand.nodes[:, OCCUPIED] == 0)
    idle[0] = False
    for level in range(octree.num_levels - 1, 0, -1):  # finest first
        kept = torch.nonzero((octree.level == level) & ~idle).squeeze(1)
        idle[octree.parent[kept]] = False
    return octree.keys[idle].tolist()
