"""Build the tree from the sparse points and the footprints at which they were seen.

Letters: P points, A points that still descend.  Frame and units: the scene frame.
"""

import torch
from torch import Tensor

from inf_nerf.config import OctreeConfig
from inf_nerf.octree.topology import ROOT_KEY, Octree, keys_at


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
    gsd, deepest = root_gsd(octree, max_res), octree.num_levels - 1
    # Sorted once by the cube of the deepest level: the points of any node then lie side by side on every level.
    key, order = torch.sort(keys_at(points_xyz[inside], deepest))  # [A]
    fine = (footprint[inside] * octree.footprint_px)[order]  # [A]
    keys = [torch.tensor([ROOT_KEY])]
    counts = [torch.tensor([len(key)])]
    for level in range(1, octree.num_levels):
        finer = fine < torch.tensor(gsd * 2.0 ** (1 - level), dtype=torch.float32)
        key, fine = key[finer], fine[finer]
        child, place, count = torch.unique_consecutive(
            key >> 3 * (deepest - level), return_inverse=True, return_counts=True
        )
        full = count >= octree.min_points
        if not bool(full.any()):
            break
        keys.append(child[full])
        counts.append(count[full])
        going = full[place]
        key, fine = key[going], fine[going]
    return Octree.from_keys(torch.cat(keys), torch.cat(counts), gsd)
