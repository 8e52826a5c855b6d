"""A complete training in miniature: photos of bumpy ground, its sparse points and tracks, a tree of three levels.

A step takes about ten milliseconds.  Processes that import this module as several ranks get the same scene.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.octree.build import build_octree
from inf_nerf.octree.partition import Partition, branch, make_partition
from inf_nerf.octree.tiles import cut_photo
from inf_nerf.octree.topology import Octree, is_below, key_of
from inf_nerf.render.poses import look_at
from inf_nerf.scene.cameras import Cameras
from inf_nerf.scene.frame import WorldFrame
from inf_nerf.scene.points import SparsePoints
from inf_nerf.scene.scene import Photo, Scene
from inf_nerf.train.assembly import assemble
from inf_nerf.train.loop import Work
from inf_nerf.train.reservoir import TileBatches

WIDTH, HEIGHT = 64, 48
SPLITS = ("train", "train", "train", "val", "train", "train")
MEAN_COLOUR = (0.5, 0.45, 0.4)
SETTINGS: dict[str, dict[str, Any]] = {
    "scene": {"pyramid_levels": 2},
    "octree": {"num_levels": 3},
    "field": {
        "num_levels": 4, "log2_table_size": 9, "base_res": 4, "max_res": 16, "hidden_density": 16, "hidden_color": 16,
        "geo_features": 7, "appearance_dim": 4, "initial_density": 1.0,
    },
    "sampler": {"max_samples": 64, "background_samples": 4, "occupancy_res": 8, "occupancy_every": 2,
                "occupancy_warmup": 4},
    "loss": {"regularised_points": 32, "depth_rays": 24},
    # less than the tiles take, so that the reservoir has to swap
    "data": {"tile_size": 16, "reservoir_mb": 0.03, "swap_every": 3},
    "train": {"steps": 12, "batch_size": 96, "log_every": 4, "val_rays": 32, "lr_init": 0.01},
}  # fmt: skip


def tiny_config(**sections: dict[str, Any]) -> Config:
    """The settings above with some keys replaced, e.g. ``train={"steps": 3}``."""
    names = SETTINGS.keys() | sections.keys()
    return Config.model_validate({name: SETTINGS.get(name, {}) | sections.get(name, {}) for name in names})


def ground_height(xy: Tensor) -> Tensor:
    """Height [P] of the ground at places [P, 2]; always above z = 0."""
    return 0.1 + 0.05 * torch.sin(4 * xy[:, 0]) * torch.cos(3 * xy[:, 1])


def texture(xy: Tensor) -> Tensor:
    """Colours [P, 3] in [0.2, 0.8] at places [P, 2]."""
    x, y = xy.unbind(-1)
    return 0.5 + 0.3 * torch.stack([torch.sin(5 * x), torch.cos(4 * y), torch.sin(3 * (x + y))], dim=-1)


@cache
def tiny_scene() -> Scene:
    """Six photos from above, and the points they see with all observations."""
    eyes = [(x, y, 1.2) for y in (-0.4, 0.4) for x in (-0.5, 0.0, 0.5)]
    poses = torch.from_numpy(np.stack([look_at(eye, (0.7 * eye[0], 0.5 * eye[1], 0.1)) for eye in eyes]))
    state = Cameras.pinhole(poses, WIDTH, HEIGHT, 60.0).state()
    cameras = Cameras.from_state(state | {"appearance": torch.arange(len(eyes))})
    photos = tuple(Photo(f"{i}.png", split, f"{i}.png", None) for i, split in enumerate(SPLITS))
    frame, source_size = WorldFrame(np.eye(4)), torch.tensor([[WIDTH, HEIGHT]])
    return Scene(photos, cameras, _points(cameras), frame, "", {}, source_size)


def _points(cameras: Cameras) -> SparsePoints:
    line = torch.linspace(-0.95, 0.95, 30)
    xy = torch.cartesian_prod(line, line)
    xyz = torch.cat([xy, ground_height(xy)[:, None]], dim=1)
    rotation, centre = cameras.cam_to_world.split([3, 1], dim=2)
    local = torch.einsum("vji,vpj->vpi", rotation, xyz - centre.transpose(1, 2))  # [V, P, 3] camera axes
    focal, principal = cameras.intrinsics[0, :2], cameras.intrinsics[0, 2:]
    pixel = local[..., :2] / local[..., 2:] * focal + principal  # [V, P, 2]
    seen = (local[..., 2] > 0) & (pixel > 0).all(2) & (pixel < cameras.size[0]).all(2)
    point, photo = torch.nonzero(seen.T).unbind(1)  # by point
    distance = local.norm(dim=2)[photo, point]
    radius = cameras.rays_at(photo, pixel[photo, point]).radius
    footprint = torch.full((len(xyz),), torch.inf).scatter_reduce(0, point, distance * radius, "amin")
    kept = seen.any(0)
    starts = torch.cumsum(seen.sum(0)[kept], 0)
    return SparsePoints(
        xyz=xyz[kept],
        footprint=footprint[kept],
        rgb=(texture(xy[kept]) * 255).byte(),
        error=torch.linspace(0.2, 1.0, int(kept.sum())),
        track_start=torch.cat([torch.zeros(1, dtype=torch.int64), starts]),
        track_photo=photo,
        track_xy=pixel[photo, point],
    )


@cache
def tiny_octree() -> Octree:
    """The whole tree: a root, its four lower octants, and what lies below them."""
    points, config = tiny_scene().points, tiny_config()
    return build_octree(points.xyz, points.footprint, config.octree, config.field.max_res)


@cache
def _tiles() -> pa.Table:
    """All tiles of all photos with the nodes that they see."""
    scene, config = tiny_scene(), tiny_config()
    tables = []
    for photo in range(len(scene.photos)):
        rays = scene.cameras.image_rays(photo, 0)
        t = (0.1 - rays.origin[:, 2]) / rays.direction[:, 2]
        colour = texture((rays.origin + t[:, None] * rays.direction)[:, :2]).view(HEIGHT, WIDTH, 3)
        image = (colour * 255).byte().numpy()
        tables.append(cut_photo(scene, tiny_octree(), photo, image, None, config, "tiny")[0])
    return pa.concat_tables([table.replace_schema_metadata(None) for table in tables])


def tiles_of(partition: Partition, rank: int, split: str, subtree: int | None = None) -> TileBatches:
    """The tiles that see a node of ``rank``; those that see only shared nodes are dealt in turn.

    With a ``subtree`` only tiles count that see one of its nodes.
    """
    rows, share, dealt = [], [], 0
    for row, tile in enumerate(_tiles().select(["split", "nodes"]).to_pylist()):
        if subtree is not None and not bool(is_below(torch.tensor(tile["nodes"]), subtree).any()):
            continue
        ranks = [rank for rank in partition.owners_of(torch.tensor(tile["nodes"])).tolist() if rank >= 0]
        if not ranks:
            ranks, dealt = [dealt % partition.num_ranks], dealt + 1
        if tile["split"] == split and rank in ranks:
            rows.append(row)
            share.append(ranks.count(rank) / len(ranks))
    table = _tiles().take(rows).append_column("share", pa.array(share, pa.float32()))

    def batches() -> Iterator[pa.Table]:
        return iter([table.slice(start, 7) for start in range(0, len(table), 7)])

    return batches


@dataclass(frozen=True)
class Tiny:
    """One rank, ready to train."""

    work: Work
    partition: Partition


def tiny_work(
    config: Config | None = None,
    num_ranks: int = 1,
    rank: int = 0,
    shared_levels: int = 1,
    turn: int = 0,
    num_turns: int = 1,
) -> Tiny:
    """Rank ``rank`` of ``num_ranks`` at step 0."""
    config = config or tiny_config()
    scene, octree = tiny_scene(), tiny_octree()
    if (subtree := config.train.subtree) is None:
        partition = make_partition(octree, num_ranks * num_turns, shared_levels)
    else:
        partition = make_partition(*branch(octree, subtree, num_ranks * num_turns, shared_levels))
    key = None if subtree is None else key_of(subtree)
    train, val = (tiles_of(partition, turn * num_ranks + rank, split, key) for split in ("train", "val"))
    work = assemble(config, scene, octree, partition, rank, train, val, MEAN_COLOUR, turn=turn, num_turns=num_turns)
    return Tiny(work, partition)
