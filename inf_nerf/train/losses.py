"""The five losses and the appearance prior.

Every loss is a sum over what this process holds, divided by a count that all workers know (the global batch, the number
of drawn nodes), so that adding the gradients of all workers gives the gradient of one process on the joined batch.

seed name               paper                          here
lambda_rgb              photometric                    squared error of the colours
lambda_depth            -                              distance of tracked SfM points, in footprints, Huber
lambda_sparsity         transparency, weight w3        mean of 1 - exp(-sigma gsd)
lambda_consistency      parent-child, weight w2        squared difference of exp(-sigma gsd), child's mean of 7
lambda_regularization   distortion, weight w1          mip-NeRF 360, eq. 15

The paper uses exp(-sigma) with scene-unit steps in the node losses; times the gsd they mean the same at every level, so
its weights do not carry over.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from inf_nerf.config import Config, LossConfig
from inf_nerf.octree.partition import Partition
from inf_nerf.octree.topology import Octree
from inf_nerf.render.compositing import distortion
from inf_nerf.render.model import Model, Rendered
from inf_nerf.render.sampling import Samples
from inf_nerf.render.segments import span_length

DEPTH_SCALE = 32.0  # footprints; depth errors beyond it count linearly


def ray_weights(rendered: Rendered) -> Tensor:
    """How much each ray [R] counts on this rank, in [0, 1], detached.

    What is answered in place of another rank's nodes does not count: that rank draws the pixel too and trains it, and
    here it would blur the shared nodes.  What shared nodes answer counts fully, since a pixel's draws are divided among
    the ranks.
    """
    return (1 - rendered.foreign).clamp(0, 1)


@dataclass(frozen=True)
class Seen:
    """What R rays see, as far as losses and figures ask."""

    rgb: Tensor  # [R, 3]
    depth: Tensor  # [R] expected distance
    spread: Tensor  # [R] distortion of the foreground weights
    weight: Tensor  # [R] how much the ray counts, detached
    node: Tensor  # [Q] of this process' samples
    num_samples: int  # foreground samples that it asked for their density
    lit: tuple[Samples, Tensor] | None = None  # its samples and their weights [Q], where it answers its rays alone

    @staticmethod
    def of(rendered: Rendered) -> "Seen":
        """What was rendered with gradients by this process alone."""
        assert rendered.samples is not None and rendered.weights is not None
        weight, node, lit = ray_weights(rendered), rendered.samples.node, (rendered.samples, rendered.weights.detach())
        return Seen(rendered.rgb, rendered.depth, ray_spread(rendered), weight, node, rendered.num_samples, lit)


def photometric(rgb: Tensor, target: Tensor, weight: Tensor, batch_size: int) -> Tensor:
    """Weighted squared error of colours [R, 3], over the global batch."""
    return (weight * (rgb - target).square().mean(1)).sum() / batch_size


def depth(
    found: Tensor,  # [T] rendered distance
    target: Tensor,  # [T] distance of the tracked point
    footprint: Tensor,  # [T] of the observing pixel at that distance
    weight: Tensor,  # [T]
    count: int,  # track rays of all workers
) -> Tensor:
    """Huber loss of distances in units of 32 footprints, so that near and far cameras count alike."""
    error = (found - target) / (DEPTH_SCALE * footprint)
    return (weight * F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none")).sum() / count


def ray_spread(rendered: Rendered) -> Tensor:
    """Distortion [R] of the foreground weights with distances scaled to [0, 1] inside the cube."""
    enter, _ = rendered.span
    samples, weights = rendered.samples, rendered.weights
    if samples is None or weights is None:
        raise ValueError("the spread of samples needs rays that were rendered with gradients")
    length = span_length(rendered.span)[samples.ray]
    middle = (samples.t - enter[samples.ray]) / length
    return distortion(weights, middle, samples.delta / length, samples.ray, len(enter))


def spread(per_ray: Tensor, weight: Tensor, batch_size: int) -> Tensor:
    """Weighted sum of distortions [R], over the global batch."""
    return (weight * per_ray).sum() / batch_size


@dataclass(frozen=True)
class NodeLosses:
    """The two losses on random points inside nodes, drawn alike on all ranks, each node computed by one of them."""

    config: LossConfig
    seed: int
    octree: Octree  # of this rank
    nodes: Tensor  # [K] local index of every node that is trained now, -1 where another rank computes it
    children: Tensor  # [K'] the same for every node but the root
    keys: Tensor  # [K] of the nodes that are trained now

    @staticmethod
    def of(
        config: Config, full: Octree, local: Octree, partition: Partition, part: int, num_turns: int = 1
    ) -> "NodeLosses":
        """Shared nodes are dealt to the ranks in turn, owned ones are computed by their owner.

        Nodes of parts that are not trained at the same time as ``part`` are not drawn.
        """
        num_ranks = len(partition.owned) // num_turns
        first = part // num_ranks * num_ranks
        owner = {key: rank for rank in range(num_ranks) for key in partition.owned[first + rank]}
        keys = [key for key in full.keys.tolist() if key in owner or key in partition.shared]
        index = {key: i for i, key in enumerate(local.keys.tolist())}
        mine = [
            index[key] if owner.get(key, place % num_ranks) == part - first else -1 for place, key in enumerate(keys)
        ]
        nodes = torch.tensor(mine)
        return NodeLosses(config.loss, config.train.seed, local, nodes, nodes[1:], torch.tensor(keys))

    def without(self, frozen: Tensor) -> "NodeLosses":
        """The same but for nodes that are ``frozen`` [M] bool, of which none is drawn."""
        nodes, children = (torch.where(frozen.cpu()[each], -1, each) for each in (self.nodes, self.children))
        return replace(self, nodes=nodes, children=children)

    def draw(self, step: int) -> tuple[list[tuple[int, torch.Generator]], list[tuple[int, torch.Generator]]]:
        """Local nodes for transparency and local children for consistency, each with the generator of its points."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        drawn = []
        for candidates in (self.nodes, self.children):
            chosen = torch.randint(max(1, len(candidates)), (self.config.regularised_nodes,), generator=generator)
            seeds = torch.randint(2**62, (self.config.regularised_nodes,), generator=generator)
            local = candidates[chosen].tolist() if len(candidates) else []
            drawn.append(
                [(n, torch.Generator().manual_seed(s)) for n, s in zip(local, seeds.tolist(), strict=False) if n >= 0]
            )
        return drawn[0], drawn[1]

    def transparency(self, model: Model, drawn: list[tuple[int, torch.Generator]]) -> Tensor:
        """Mean of 1 - exp(-sigma gsd) over the drawn nodes: empty unless photos say otherwise."""
        if not drawn:
            return self.octree.gsd.new_zeros(())
        node, xyz = self._points(drawn)
        sigma = _density_at(model, node[:, None].expand(xyz.shape[:-1]), xyz)
        return -torch.expm1(-sigma * self.octree.gsd[node, None]).mean(1).sum() / self.config.regularised_nodes

    def consistency(self, model: Model, drawn: list[tuple[int, torch.Generator]]) -> Tensor:
        """Squared difference between a parent's transparency at a point and its child's, averaged over the 7-point
        stencil one child gsd wide: a parent is the child seen coarsely.  Gradients reach both."""
        if not drawn:
            return self.octree.gsd.new_zeros(())
        child, points = self._points(drawn)  # [D], [D, P, 3]
        parent, gsd, side = self.octree.parent[child], self.octree.gsd[child], 2 * self.octree.half[child]
        reach = (gsd / side)[:, None, None]
        centre = points * (1 - 2 * reach) + reach  # child-local, room for the stencil
        offsets = torch.cat((torch.zeros(1, 3), torch.eye(3), -torch.eye(3))).to(reach)
        stencil = centre[:, :, None] + offsets * reach[..., None]  # [D, P, 7, 3]
        scene = self.octree.centre[child, None] + (centre - 0.5) * side[:, None, None]
        above = self.octree.to_local(scene.flatten(0, 1), parent.repeat_interleave(scene.shape[1])).view_as(scene)
        at_points = torch.cat((stencil, above[:, :, None]), dim=2)  # [D, P, 8, 3]
        node = torch.cat((child[:, None].expand(-1, 7), parent[:, None]), dim=1)  # [D, 8]
        sigma = _density_at(model, node[:, None].expand(at_points.shape[:-1]), at_points)
        seen = torch.exp(-sigma * gsd[:, None, None])
        difference = seen[..., :7].mean(2) - seen[..., 7]
        return difference.square().mean(1).sum() / self.config.regularised_nodes

    def _points(self, drawn: list[tuple[int, torch.Generator]]) -> tuple[Tensor, Tensor]:
        """The drawn nodes [D] and their points [D, P, 3], node-local."""
        count, device = self.config.regularised_points, self.octree.gsd.device
        points = torch.stack([torch.rand(count, 3, generator=generator) for _, generator in drawn])
        return torch.tensor([node for node, _ in drawn], device=device), points.to(device)


def appearance_prior(appearance: Tensor, photo: Tensor, batch_size: int) -> Tensor:
    """Mean square of the batch's appearance vectors, which keeps them from explaining geometry."""
    return appearance[photo].square().sum() / (batch_size * max(1, appearance.shape[1]))


def _density_at(model: Model, node: Tensor, xyz: Tensor) -> Tensor:
    """Density [...] of nodes [...] at node-local points [..., 3]."""
    ascending, order = torch.sort(node.flatten(), stable=True)
    sigma, _ = model.field.density(xyz.flatten(0, -2)[order], ascending)
    return torch.empty_like(sigma).index_copy(0, order, sigma).view(node.shape)
