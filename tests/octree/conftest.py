"""Trees of random clouds for the octree's properties."""

import random
from collections.abc import Callable

import pytest
import torch

from inf_nerf.config import OctreeConfig
from inf_nerf.octree.build import build_octree
from inf_nerf.octree.topology import BACKGROUND_KEY, Octree

MAX_RES = 32  # with the default res_upsample the root's gsd is 1 / 32


def grow(seed: int) -> Octree:
    """A complete tree of 1 to 6 levels from a clumped cloud with footprints over several octaves."""
    generator = torch.Generator().manual_seed(seed)
    draw = random.Random(seed)
    count = draw.choice([0, 1, 60, 400, 400, 1200, 1200, 1200])
    clumps = torch.rand(4, 3, generator=generator) * 2 - 1
    spread = torch.rand(4, 1, generator=generator)
    clump = torch.randint(0, 4, (count,), generator=generator)
    xyz = clumps[clump] + spread[clump] * (torch.rand(count, 3, generator=generator) - 0.5)
    footprint = 2.0 ** -(5 + 5 * torch.rand(count, generator=generator))
    config = OctreeConfig(num_levels=draw.choice([1, 2, 3, 4, 5, 6, 6]), min_points=draw.choice([1, 3, 6]))
    return build_octree(xyz, footprint, config, MAX_RES)


def prune(tree: Octree, seed: int) -> Octree:
    """The tree without up to three random subtrees, the root excepted."""
    kept = set(tree.keys.tolist())
    draw = random.Random(seed)
    for key in draw.sample(sorted(kept)[1:], min(draw.randint(0, 3), len(kept) - 1)):
        kept -= tree.subtree_keys(key)
    return tree.restrict(kept | {BACKGROUND_KEY})


@pytest.fixture(scope="session")
def complete_tree() -> Callable[[int], Octree]:
    """Complete tree of a seed."""
    return grow


@pytest.fixture(scope="session")
def restricted_tree() -> Callable[[int], Octree]:
    """Tree of a seed from which subtrees were removed."""
    return lambda seed: prune(grow(seed), seed)
