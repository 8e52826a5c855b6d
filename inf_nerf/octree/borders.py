"""Where the subtrees of a partition meet.

Letters: Q points.  Below the shared nodes space falls into cubes: those of the subtrees, and octants in which a shared
node answers whatever comes, because nothing finer was captured there.  A border is a face between two subtrees.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from inf_nerf.octree.partition import SHARED
from inf_nerf.octree.topology import Octree, octant

ACROSS = 1e-5  # of a cube's side: how far behind a face its neighbour is looked up


@dataclass(frozen=True)
class BorderDistance:
    """How far points [Q] are from borders, in sides of the subtree's cube that they are in; infinite without any."""

    any: Tensor  # [Q] to the nearest face that the subtree has in common with another one
    ranks: Tensor  # [Q] to the nearest one with another rank's


class Borders:
    """The faces between subtrees."""

    def __init__(self, octree: Octree, subtrees: Mapping[int, int]) -> None:
        """``subtrees``: the rank that trains each, by the key of its root."""
        self._octree = octree
        keys = octree.keys.tolist()
        self._owner = torch.tensor([subtrees.get(key, SHARED) for key in keys], dtype=torch.int64)
        below = torch.zeros(len(keys), dtype=torch.bool)  # inside a subtree, its root included
        for node, parent in enumerate(octree.parent.tolist()):  # parents first
            below[node] = self._owner[node] != SHARED or (parent >= 0 and below[parent])
        self._is_shared = ~below

    def distance(self, xyz: Tensor) -> BorderDistance:
        """Distances of points [Q, 3] in the root cube; those in no subtree are infinitely far."""
        owner, centre, half = self._cube(xyz)
        nearest, nearest_rank = (torch.full((len(xyz),), torch.inf) for _ in range(2))
        for axis in range(3):
            for sign in (-1, 1):
                face = centre[:, axis] + sign * half
                behind = xyz.clone()
                behind[:, axis] = face + sign * 2 * half * ACROSS
                other, _, _ = self._cube(behind.clamp(-1, 1))
                border = (owner != SHARED) & (other != SHARED) & (face.abs() < 1)
                away = torch.where(border, (face - xyz[:, axis]).abs() / (2 * half), torch.inf)
                nearest = torch.minimum(nearest, away)
                nearest_rank = torch.where(owner != other, torch.minimum(nearest_rank, away), nearest_rank)
        return BorderDistance(nearest, nearest_rank)

    def _cube(self, xyz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Owner [Q], centre [Q, 3] and half side [Q] of the cubes that points lie in."""
        octree = self._octree
        node = torch.zeros(len(xyz), dtype=torch.int64)
        owner, centre, half = torch.full_like(node, SHARED), xyz.clone(), torch.ones(len(xyz))
        active = torch.arange(len(xyz))
        while len(active):
            at, place = node[active], xyz[active]
            which = octant(place, octree.centre[at])
            above = (torch.stack((which >> 2, which >> 1, which), dim=1) & 1) * 2 - 1  # [n, 3] of -1 or 1
            half[active] = octree.half[at] / 2
            centre[active] = octree.centre[at] + above * half[active, None]
            child = octree.children[at, which]
            held = child >= 0
            owner[active[held]] = self._owner[child[held]]
            descends = held & self._is_shared[child.clamp_min(0)]
            node[active[descends]] = child[descends]
            active = active[descends]
        return owner, centre, half
