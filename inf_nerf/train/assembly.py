"""Puts one rank's training together: its part of the tree, its tiles, its share of the batch."""

import logging
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.octree.partition import Partition
from inf_nerf.octree.topology import Octree
from inf_nerf.render.model import Model
from inf_nerf.scene.scene import Scene
from inf_nerf.train.adaptation import Adaptation, frozen_nodes
from inf_nerf.train.exchange import Exchange
from inf_nerf.train.figures import METRICS, RANK_METRICS
from inf_nerf.train.free_space import learn_from_points
from inf_nerf.train.loop import PROBE_SHARES, Work
from inf_nerf.train.loss_scale import LossScale
from inf_nerf.train.losses import NodeLosses
from inf_nerf.train.optimiser import NodeAdam
from inf_nerf.train.reservoir import RayBatch, Reservoir, TileBatches
from inf_nerf.train.shared_gradients import SharedGradients
from inf_nerf.train.tracks import Tracks

GROUND_SLACK = 0.02  # of the cube's half side: how far below z = 0 the lowest percent of points may lie
VAL_SHARE_OF_RESERVOIR = 0.1

log = logging.getLogger(__name__)


def assemble(
    config: Config,
    scene: Scene,
    full: Octree,
    partition: Partition,
    rank: int,
    train_tiles: TileBatches,
    val_tiles: TileBatches | None,
    mean_colour: tuple[float, float, float],
    device: torch.device | str = "cpu",
    turn: int = 0,
    num_turns: int = 1,
    loads: Mapping[str, Sequence[float]] | None = None,
) -> Work:
    """Everything that `train` needs on one rank, at step 0; raises :class:`InputError` for float16 on a CPU.

    With several turns the partition has as many parts for each rank, and the tiles are those of the part of ``turn``.
    ``loads`` holds the part of each split's draws that every part makes (:class:`inf_nerf.octree.load.RankTiles`);
    None: all ranks draw equally many.
    """
    precision = config.train.precision
    if precision == "auto":
        precision = "float32" if torch.device(device).type == "cpu" else "float16"
        log.info("precision of the heads: %s (chosen automatically for %s)", precision, torch.device(device).type)
    if precision == "float16" and torch.device(device).type == "cpu":
        raise InputError(
            "train.precision is 'float16', which is slower than float32 on a CPU; set train.precision=float32, or "
            "train.gpus_per_worker=1 on a machine with a GPU."
        )
    num_ranks = partition.num_ranks // num_turns
    exchanges = config.train.foreign == "exchange" and num_ranks > 1
    if exchanges and num_turns > 1:
        raise InputError(
            "train.foreign is 'exchange', but the nodes do not fit in train.node_memory_mb at once, and nobody could "
            "answer for those that wait for their turn; raise it or set train.foreign=discount."
        )
    if exchanges and config.train.subtree is not None:
        raise InputError(
            "train.foreign is 'exchange', but with train.subtree nobody holds the nodes around the subtree; set "
            "train.foreign=discount."
        )
    part = turn * num_ranks + rank
    local = partition.octree(full, part).to(device)
    model = Model(
        config, local, len(scene.photos), scene.train, torch.tensor(mean_colour), has_solid_ground(scene), device
    )
    if precision != "float32":
        model.field.compute_heads_in(getattr(torch, precision))
    model.field.frozen = frozen_nodes(config, model.field.keys).to(device)
    if config.train.subtree is not None:
        model.appearance.requires_grad_(False)  # photos see more than the subtree, and the rest stays in their light
    learn_from_points(model, scene)
    if num_turns > 1:
        model.occupancy.density.fill_(density_before_warmup(config))
    keys = model.field.keys.tolist()
    shared = torch.tensor([key in partition.shared for key in keys], device=device)
    now = slice(turn * num_ranks, (turn + 1) * num_ranks)  # the parts that are trained together
    equal = [1.0] * partition.num_ranks
    train_loads, val_loads = ((loads or {}).get(split, equal)[now] for split in ("train", "val"))
    tracks = Tracks.of(scene, full, partition, part, config.octree.footprint_px, config.sampler.near)
    names = (*METRICS, *(f"{name}{each}" for name in RANK_METRICS for each in range(num_ranks)))
    capacity = int(config.data.reservoir_mb * 2**20)
    generator = torch.Generator().manual_seed(config.train.seed * 7919 + rank)
    return Work(
        config=config,
        model=model,
        cameras=scene.cameras,
        reservoir=Reservoir(train_tiles, capacity, config.data.level_boost),
        tracks=tracks,
        node_losses=NodeLosses.of(config, full, local, partition, part, num_turns).without(model.field.frozen),
        gradients=SharedGradients(model.field, model.appearance, shared, names, config.train.shared_gradient_dtype),
        exchange=Exchange(model, shared[:-1], rank) if exchanges else None,
        optimiser=NodeAdam(config.train, model.field, model.appearance),
        adaptation=Adaptation(config, full, partition, local),
        loss_scale=LossScale(precision),
        shared=shared,
        subtrees=partition.subtrees,
        generator=generator,
        rank=rank,
        num_rays=part_of(config.train.batch_size, rank, train_loads),
        num_tracks=part_of(config.loss.depth_rays if config.loss.lambda_depth else 0, rank, tracks.per_rank[now]),
        val=_val_rays(config, val_tiles, capacity, part_of(config.train.val_rays, rank, val_loads)),
        part=part,
        num_parts=partition.num_ranks,
        num_ranks=num_ranks,
        photos=tuple(photo.name for photo in scene.photos),
    )


def density_before_warmup(config: Config) -> float:
    """Density of cells that were never probed, from which probes take as long to come down to what a field starts with
    as the warm-up of the occupancy lasts: a node whose turn comes later has no other warm-up."""
    return config.field.initial_density / config.sampler.occupancy_decay ** probes_of_warmup(config)


def probes_of_warmup(config: Config) -> float:
    """How often every cell is probed while the warm-up of the occupancy lasts."""
    return config.sampler.occupancy_warmup / (PROBE_SHARES * config.sampler.occupancy_every)


def part_of(total: int, rank: int, loads: Sequence[float]) -> int:
    """This rank's part of a count that all ranks together make up, in proportion to their loads."""
    ends = [0.0, *accumulate(loads)]
    whole = ends[-1] or 1.0
    return round(total * ends[rank + 1] / whole) - round(total * ends[rank] / whole)


def has_solid_ground(scene: Scene) -> bool:
    """Whether the frame could put the ground above z = 0, so that nothing is to be seen below it."""
    z = scene.points.xyz[:, 2]
    return len(z) > 0 and float(torch.quantile(z[:: max(1, len(z) // 1_000_000)], 0.01)) > -GROUND_SLACK


def _val_rays(config: Config, tiles: TileBatches | None, capacity: int, count: int) -> RayBatch | None:
    """Fixed rays of the val photos' tiles on this rank."""
    if tiles is None or count == 0:
        return None
    reservoir = Reservoir(tiles, int(capacity * VAL_SHARE_OF_RESERVOIR), config.data.level_boost)
    batch = reservoir.sample(count, torch.Generator().manual_seed(config.train.seed))
    return batch if len(batch) else None
