"""Build the tree from the sparse points and the footprints at which they were seen.

Letters: P points, A points that still descend.  Frame and units: the scene frame.
"""

import torch
from torch import Tensor

from inf_nerf.config import OctreeConfig
from inf_nerf.octree.topology import ROOT_KEY, Octree, octant


def root_gsd(octree: OctreeConfig, max_res: int) -> float:
    """Ground sampling distance of the root in scene units: its side over its finest grid times ``res_upsample``."""
    return 2.0 / (max_res * octree.res_upsample)


def build_octree(
    points_xyz: Tensor,  # [P, 3] scene frame
    footprint: Tensor,  # [P] size of the finest pixel that saw the point, footprint_px = 1
    octree: OctreeConfig,
    max_res: int,
) -> Octree:
    """Divide the root cube where the photos resolve more than a node can hold.

    A node's child exists if and only if at least ``min_points`` of the points that reached the node lie in the child's
    octant and are finer than the node's gsd; these points reach the child.  Points outside the root cube are left out,
    points that are not finer stay where they are.  No point at all gives the root alone.
    """
    if points_xyz.shape != (len(footprint), 3):
        raise ValueError(f"points have shape {tuple(points_xyz.shape)}, expected ({len(footprint)}, 3)")
    inside = (points_xyz.abs() <= 1).all(dim=1)
    xyz = points_xyz[inside]  # [A, 3]
    fine = footprint[inside] * octree.footprint_px  # [A]
    gsd = root_gsd(octree, max_res)
    keys = [torch.tensor([ROOT_KEY])]
    counts = [torch.tensor([len(xyz)])]
    key = torch.full((len(xyz),), ROOT_KEY, dtype=torch.int64)  # [A] node that each point has reached
    centre = torch.zeros_like(xyz)  # [A, 3] centre of that node
    for level in range(1, octree.num_levels):
        finer = fine < torch.tensor(gsd * 2.0 ** (1 - level), dtype=torch.float32)
        xyz, fine, key, centre = xyz[finer], fine[finer], key[finer], centre[finer]
        child, place, count = torch.unique(
            key * 8 + octant(xyz, centre), sorted=True, return_inverse=True, return_counts=True
        )
        full = count >= octree.min_points
        if not bool(full.any()):
            break
        keys.append(child[full])
        counts.append(count[full])
        going = full[place]
        xyz, fine, key, centre = xyz[going], fine[going], child[place[going]], centre[going]
        centre = centre + torch.where(xyz >= centre, 1.0, -1.0) * 2.0**-level
    return Octree.from_keys(torch.cat(keys), torch.cat(counts), gsd)
