"""Which node answers a sample.

Letters: Q samples.  A node answers the samples whose footprint is not below its gsd; finer samples go to the child in
their octant.  Where that child does not exist, the node answers: nothing finer was captured there, or (FOREIGN) this
tree was cut and the node stands in.  Samples are expected inside the root cube.  A training jitter of the footprint is
the caller's.
"""

import torch
from torch import Tensor

from inf_nerf.octree.topology import ABSENT, BELOW_ONE, FOREIGN, Octree, octant


def route(octree: Octree, xyz: Tensor, footprint: Tensor) -> tuple[Tensor, Tensor]:
    """Node [Q] int64 of each sample and whether it stands in for a FOREIGN child [Q] bool.

    ``xyz`` [Q, 3] float32 is in the scene frame, ``footprint`` [Q] in scene units.  One table look-up per level and no
    branch on the data: all samples that still descend are on the level of the pass, so the gsd is a number, and the
    octants of all levels are the bits of the sample's cell in the finest grid (exact, since cells are powers of two).
    """
    passing = octree.level[(octree.children != ABSENT).any(dim=1)]  # levels of the nodes that can pass a sample on
    root_gsd = float(octree.gsd[0])
    num_passes = int(passing[-1]) + 1 if len(passing) and len(xyz) else 0
    finest = float(footprint.min()) if num_passes else root_gsd
    while num_passes and finest >= root_gsd * 0.5 ** (num_passes - 1):  # levels that no sample leaves downwards
        num_passes -= 1
    state = torch.zeros(len(xyz), dtype=torch.int32, device=xyz.device)
    if num_passes == 0:
        return state.to(torch.int64), state.to(torch.bool)
    step, answer = octree.descent
    half_grid = 2.0 ** (num_passes - 1)  # cells from the centre of the root cube to its side
    cell = xyz.t().clone(memory_format=torch.contiguous_format).clamp_(-1, BELOW_ONE)  # [3, Q]
    cell = cell.mul_(half_grid).floor_().add_(half_grid).to(torch.int32)
    for level in range(num_passes):
        above = (cell >> (num_passes - 1 - level)).bitwise_and_(1)  # [3, Q]
        octants = torch.add(above[2], torch.add(above[1], above[0], alpha=2), alpha=2)
        finer = torch.add(footprint < root_gsd * 0.5**level, state, alpha=2)  # 2 * state + finer
        state = step.index_select(0, torch.add(octants, finer, alpha=8))
    return answer.index_select(0, state), state >= 2 * octree.num_nodes


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
    octaves = torch.log2(footprint / octree.gsd.index_select(0, node))  # 0: boundary to the finer level, 1: coarser
    finer = torch.nonzero((octaves >= 0) & (octaves < width / 2)).flatten()
    near = node.index_select(0, finer)
    child = octree.children[near, octant(xyz.index_select(0, finer), octree.centre.index_select(0, near))]
    finer, child = finer[child >= 0], child[child >= 0]
    second[finer] = child
    weight[finer] = (0.5 - octaves[finer] / width).clamp_(0, 0.5)
    coarser = torch.nonzero((octaves > 1 - width / 2) & (octaves <= 1) & (node > 0)).flatten()
    second[coarser] = octree.parent[node[coarser]]
    weight[coarser] = (0.5 + (octaves[coarser] - 1) / width).clamp_(0, 0.5)
    return second, weight
