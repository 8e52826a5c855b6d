"""Rays of SfM observations: where a tracked point lies along the ray of the pixel that saw it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from inf_nerf.octree.partition import SHARED, Partition
from inf_nerf.octree.routing import route
from inf_nerf.octree.topology import Octree
from inf_nerf.scene.cameras import Rays
from inf_nerf.scene.scene import Scene


@dataclass(frozen=True)
class Tracks:
    """O observations by training photos of points inside the root cube that this rank may train."""

    scene: Scene
    photo: Tensor  # [O] int64
    xy: Tensor  # [O, 2] level-0 pixels
    distance: Tensor  # [O] from the camera to the point
    weight: Tensor  # [O] falls with the point's reprojection error
    per_rank: list[int]  # observations of every rank

    @staticmethod
    def of(scene: Scene, full: Octree, partition: Partition, rank: int, footprint_px: float, near: float) -> "Tracks":
        """The usable observations of one rank, from at least ``near``: of points in its own nodes, and a part of those
        in shared ones, which are dealt in turn."""
        points = scene.points
        point = points.track_point
        node, _ = route(full.to("cpu"), points.xyz, points.footprint * footprint_px)
        key = full.keys.cpu()[node]
        owner_of_point = partition.owners_of(key)
        # of a tree of which one branch is trained, points elsewhere belong to nobody
        known = (owner_of_point != SHARED) | torch.isin(key, torch.tensor(sorted(partition.shared)))
        usable_point = (points.xyz.abs() <= 1).all(1) & known
        trained = torch.zeros(len(scene.photos), dtype=torch.bool)
        trained[torch.tensor(scene.train, dtype=torch.int64)] = True
        distance = (points.xyz[point] - scene.cameras.centre[points.track_photo]).norm(dim=1)
        keep = torch.nonzero(usable_point[point] & trained[points.track_photo] & (distance > near)).squeeze(1)
        owner = owner_of_point[point[keep]]
        owner = torch.where(owner == SHARED, torch.arange(len(keep)) % partition.num_ranks, owner)
        per_rank = owner.bincount(minlength=partition.num_ranks).tolist()
        keep = keep[owner == rank]
        error = points.error[point[keep]].clamp_min(0)  # COLMAP writes -1 where it computed none
        return Tracks(scene, points.track_photo[keep], points.track_xy[keep], distance[keep], 1 / (1 + error), per_rank)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Rays, Tensor, Tensor]:
        """Rays, target distances [T] and weights [T] of ``count`` random observations (none if there are none)."""
        count = count if len(self.photo) else 0
        chosen = torch.randint(max(1, len(self.photo)), (count,), generator=generator)
        rays = self.scene.cameras.rays_at(self.photo[chosen], self.xy[chosen])
        return rays, self.distance[chosen], self.weight[chosen]
