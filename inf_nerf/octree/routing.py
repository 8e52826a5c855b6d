"""Which node answers a sample.

Letters: Q samples, A samples that still descend.  A node answers the samples whose footprint is not below its gsd;
finer samples go to the child in their octant.  Where that child does not exist, the node answers: nothing finer was
captured there, or (FOREIGN) this tree was cut and the node stands in.  Samples are expected inside the root cube.  A
training jitter of the footprint is the caller's.
"""

import torch
from torch import Tensor

from inf_nerf.octree.topology import ABSENT, FOREIGN, Octree, octant


def route(octree: Octree, xyz: Tensor, footprint: Tensor) -> tuple[Tensor, Tensor]:
    """Node [Q] int64 of each sample and whether it stands in for a FOREIGN child [Q] bool.

    ``xyz`` [Q, 3] is in the scene frame, ``footprint`` [Q] in scene units.  One pass: the set of samples that still
    descend shrinks level by level, and since all of them are on one level, the gsd is a number.
    """
    node = torch.zeros(len(xyz), dtype=torch.int64, device=xyz.device)
    foreign = torch.zeros(len(xyz), dtype=torch.bool, device=xyz.device)
    parents = octree.level[(octree.children != ABSENT).any(dim=1)]  # levels of the nodes that can pass a sample on
    if len(xyz) == 0 or len(parents) == 0:
        return node, foreign
    num_passes = int(parents[-1]) + 1
    root_gsd = float(octree.gsd[0])
    table = octree.children.to(torch.int32).flatten()  # [N * 8]; half the traffic of int64
    below = torch.nonzero(footprint < root_gsd).flatten()  # [A] indices of the samples that go down
    place = torch.zeros(len(below), dtype=torch.int32, device=xyz.device)  # [A] their nodes
    xyz, footprint = xyz[below], footprint[below]  # [A, 3], [A]
    for level in range(num_passes):
        centre = octree.centre[place] if level else octree.centre[0]
        above = (xyz >= centre).to(torch.int32)  # [A, 3]
        place = table[place.mul_(2).add_(above[:, 0]).mul_(2).add_(above[:, 1]).mul_(2).add_(above[:, 2])]
        foreign[below[place == FOREIGN]] = True
        arrived = torch.nonzero(place >= 0).flatten()
        if len(arrived) < len(place):
            below, place = below[arrived], place[arrived]
            xyz, footprint = xyz[arrived], footprint[arrived]
        node[below] = place.to(torch.int64)
        if level + 1 < num_passes:
            going = torch.nonzero(footprint < root_gsd * 0.5 ** (level + 1)).flatten()
            if len(going) < len(place):
                below, place = below[going], place[going]
                xyz, footprint = xyz[going], footprint[going]
    return node, foreign


def route_recursive(octree: Octree, xyz: Tensor, footprint: Tensor) -> tuple[Tensor, Tensor]:
    """The rule of :func:`route` written as a recursion over nodes; slow, for tests."""
    node = torch.full((len(xyz),), -1, dtype=torch.int64)
    foreign = torch.zeros(len(xyz), dtype=torch.bool)

    def descend(at: int, samples: list[int]) -> None:
        for sample in samples:
            node[sample] = at
        finer = [sample for sample in samples if float(footprint[sample]) < float(octree.gsd[at])]
        groups: dict[int, list[int]] = {}
        for sample in finer:
            x, y, z = (xyz[sample] >= octree.centre[at]).tolist()
            groups.setdefault(4 * x + 2 * y + z, []).append(sample)
        for octant_index, group in groups.items():
            child = int(octree.children[at, octant_index])
            if child >= 0:
                descend(child, group)
            elif child == FOREIGN:
                foreign[group] = True

    descend(0, list(range(len(xyz))))
    return node, foreign


def blend_neighbour(
    octree: Octree, xyz: Tensor, footprint: Tensor, width: float, node: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The second node [Q] that shares in a sample's answer, and its weight [Q] in [0, 0.5]: no popping between levels.

    Two levels on a sample's path meet where the footprint equals the coarser one's gsd.  Within ``width / 2`` octaves
    of it the finer level's share falls linearly in log2(footprint) from 1 to 0, so the mixture ``(1 - weight) * node +
    weight * second`` is continuous in the footprint.  Elsewhere, and where one of the levels does not exist in this
    tree, the weight is 0 and the second node is the first.  ``width`` is in octaves, in [0, 1]; ``node`` [Q] is
    :func:`route`'s answer if it is at hand.
    """
    if not 0 <= width <= 1:
        raise ValueError(f"the width of a level-of-detail blend is {width} octaves, expected 0 to 1")
    if node is None:
        node, _ = route(octree, xyz, footprint)
    second = node.clone()
    weight = torch.zeros_like(footprint)
    if width == 0:
        return second, weight
    octaves = torch.log2(
        footprint / octree.gsd[node]
    )  # above the boundary to the finer level; 1 is that to the coarser
    finer = torch.nonzero((octaves >= 0) & (octaves < width / 2)).flatten()
    child = octree.children[node[finer], octant(xyz[finer], octree.centre[node[finer]])]
    finer, child = finer[child >= 0], child[child >= 0]
    second[finer] = child
    weight[finer] = (0.5 - octaves[finer] / width).clamp_(0, 0.5)
    coarser = torch.nonzero((octaves > 1 - width / 2) & (octaves <= 1) & (node > 0)).flatten()
    second[coarser] = octree.parent[node[coarser]]
    weight[coarser] = (0.5 + (octaves[coarser] - 1) / width).clamp_(0, 0.5)
    return second, weight
