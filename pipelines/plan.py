"""What a training will need, before anything runs: tree, memory, disk, hours.

    inf-nerf plan --config configs/laptop.yaml --data-root photos/ --workers 4

Tiles are counted from the sizes of photos.  What each sees is computed for some photos without decoding them, and two
photos are cut to learn the bytes of a tile; a run directory that is prepared already is read instead.  Seconds and the
memory of a step are measured by a short training on this machine (:mod:`pipelines.calibration`).
"""

import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from inf_nerf.config import Config, TrainConfig
from inf_nerf.errors import InputError
from inf_nerf.field.field import node_parameters
from inf_nerf.octree.build import build_octree
from inf_nerf.octree.growth import most_nodes
from inf_nerf.octree.load import TILE_TABLE, RankTiles, draws_of
from inf_nerf.octree.tiles import cut_photo, nodes_of_tiles, tile_boxes, tile_file
from inf_nerf.octree.topology import Octree
from inf_nerf.render.parallel import available_cores
from inf_nerf.scene.photos import read_mask, read_photo
from inf_nerf.scene.scene import Scene, load_scene
from inf_nerf.train.evaluation import require_test_photos
from inf_nerf.train.memory import checkpoint_bytes, field_bytes, occupancy_bytes
from pipelines import prepare
from pipelines.calibration import Calibration, calibrate
from pipelines.division import Dealing, describe, division_table, tile_tables, worker_name
from pipelines.ray_session import object_store_bytes, on_cluster

LOOKED_AT = 48  # photos for which is computed which nodes their tiles see
CUT = 2  # photos that are decoded and cut


@dataclass(frozen=True)
class Project:
    """What is known of a scene without training."""

    scene: Scene
    octree: Octree
    tables: dict[str, pa.Table]  # TILE_TABLE of train and val tiles: of all photos, or of some
    looked_at: float  # part of the training photos that are in the table
    num_tiles: int  # of train and val photos
    decoded_bytes: int  # of the pixels of train tiles
    pixels: int  # of train and val tiles


def run(config: Config, data_root: Path | None, run_dir: Path | None, as_json: bool = False) -> dict[str, Any]:
    """Print the plan of a training and return it as plain numbers; writes nothing.

    Raises :class:`InputError` for data that cannot be used, and where neither photos nor a prepared run are named.
    """
    is_prepared = run_dir is not None and (run_dir / prepare.RUN_FILE).is_file()
    if is_prepared:
        assert run_dir is not None
        prepare.refuse_other_settings(config, run_dir)
        project = _prepared(run_dir)
    elif data_root is not None:
        project = unprepared(config, data_root)
    else:
        raise InputError("There is nothing to plan: name the photos with --data-root, or a prepared run directory.")
    dealing = Dealing.of(config, project.octree, project.tables)
    num_ranks = config.train.least_workers  # with these each has the most to hold
    partition, tiles = dealing.partition_of(num_ranks), dealing.tiles(num_ranks)["train"]
    heaviest = int(np.argmax([mine.load for mine in tiles]))
    sample = _sample(config, project, tiles[heaviest], run_dir if is_prepared else None)
    cores = available_cores()
    threads = cores if config.train.num_workers == 0 else min(cores, max(1, int(config.train.cpus_per_worker)))
    config = config.model_copy(update={"train": in_steps(config, project)})
    measured = calibrate(
        config,
        project.scene,
        project.octree,
        partition,
        num_ranks,
        heaviest,
        {"train": [mine.load for mine in tiles]},
        sample.tiles,
        threads,
    )
    described = describe(config, partition, tiles, num_ranks)
    plan = _plan(config, project, described, num_ranks, tiles, sample, measured, threads)
    if as_json:
        print(json.dumps(plan, indent=1))
    else:
        _show(plan, Console(soft_wrap=True))
    return plan


def in_steps(config: Config, project: Project) -> TrainConfig:
    """The training with ``train.steps`` as many as ``train.epochs`` take."""
    return config.train.model_copy(update={"steps": config.train.steps_for(project.decoded_bytes // 3)})


def _prepared(run_dir: Path) -> Project:
    """What a run directory holds; all of its tiles."""
    prepared = prepare.read_prepared(run_dir)
    tables = tile_tables(run_dir, prepared)
    pixels = {split: int(table["used"].to_numpy().sum()) for split, table in tables.items()}
    return Project(
        prepared.scene, prepared.octree, tables, 1.0, prepared.num_tiles, 3 * pixels["train"], sum(pixels.values())
    )


def unprepared(config: Config, data_root: Path) -> Project:
    """The scene and tree of a data root, and the tiles of some of its photos."""
    scene = load_scene(data_root.resolve(), config.scene)
    require_test_photos(scene)
    octree = build_octree(scene.points.xyz, scene.points.footprint, config.octree, config.field.max_res)
    tables: dict[str, pa.Table] = {}
    for split, photos in (("train", scene.train), ("val", scene.val)):
        if photos:
            chosen = np.unique(np.linspace(0, len(photos) - 1, min(LOOKED_AT, len(photos))).round().astype(int))
            tables[split] = pa.concat_tables([_tiles_of(config, scene, octree, photos[place]) for place in chosen])
    sizes = {split: _tile_sizes(config, scene, getattr(scene, split)) for split in ("train", "val")}
    num_tiles = sum(len(size) for size in sizes.values())
    pixels = {split: int(size.sum()) for split, size in sizes.items()}
    looked_at = float(tables["train"]["used"].to_numpy().sum() / max(1, pixels["train"]))
    return Project(scene, octree, tables, looked_at, num_tiles, 3 * pixels["train"], sum(pixels.values()))


def _tile_sizes(config: Config, scene: Scene, photos: Sequence[int]) -> NDArray[np.int64]:
    """Pixels of every tile of some photos, none of them masked."""
    sizes = [np.empty(0, np.int64)]
    for photo in photos:
        for level in range(config.scene.pyramid_levels):
            boxes = tile_boxes(*scene.cameras.level_size(photo, level), config.data.tile_size)
            sizes.append(boxes[:, 2] * boxes[:, 3])
    return np.concatenate(sizes)


def _tiles_of(config: Config, scene: Scene, octree: Octree, photo: int) -> pa.Table:
    """The TILE_TABLE of a photo, as if none of its pixels were masked."""
    columns: dict[str, list[Any]] = {name: [] for name in TILE_TABLE.names}
    for level in range(config.scene.pyramid_levels):
        boxes = tile_boxes(*scene.cameras.level_size(photo, level), config.data.tile_size)
        columns["tile"] += [photo << 32 | level << 24 | index for index in range(len(boxes))]
        columns["level"] += [level] * len(boxes)
        columns["used"] += (boxes[:, 2] * boxes[:, 3]).tolist()
        columns["nodes"] += nodes_of_tiles(scene, octree, photo, level, boxes, config.octree.footprint_px)
    return pa.table(columns, schema=TILE_TABLE)


@dataclass(frozen=True)
class _Sample:
    """Some tiles of a rank, cut from its richest photos."""

    tiles: pa.Table  # with the column share
    disk_bytes_per_pixel: float
    seconds_per_photo: float | None  # to decode and cut it; None: that is done


def _sample(config: Config, project: Project, mine: RankTiles, run_dir: Path | None) -> _Sample:
    table = project.tables["train"]
    place = np.searchsorted(mine.tile, table["tile"].to_numpy()).clip(max=max(0, len(mine.tile) - 1))
    held = mine.tile[place] == table["tile"].to_numpy() if len(mine.tile) else np.zeros(len(table), bool)
    photo = table["tile"].to_numpy() >> 32
    draws = np.bincount(photo, draws_of(table, config.data.level_boost) * held)
    cut: list[pa.Table] = []
    disk, pixels, start = 0, 0, time.monotonic()
    for chosen in np.argsort(-draws, kind="stable")[:CUT].tolist():
        if run_dir is not None:
            file = tile_file(run_dir, chosen)
            cut.append(pq.read_table(file))
            disk += file.stat().st_size
        else:
            image, mask = read_photo(project.scene, chosen), read_mask(project.scene, chosen)
            cut.append(cut_photo(project.scene, project.octree, chosen, image, mask, config, "")[0])
            buffer = io.BytesIO()
            pq.write_table(cut[-1], buffer, compression="zstd")
            disk += buffer.tell()
    seconds = (time.monotonic() - start) / len(cut)
    tiles = pa.concat_tables([table.replace_schema_metadata(None) for table in cut])
    pixels = int(np.multiply(tiles["width"].to_numpy(), tiles["height"].to_numpy(), dtype=np.int64).sum())
    place = np.searchsorted(mine.tile, tiles["tile"].to_numpy()).clip(max=max(0, len(mine.tile) - 1))
    held = mine.tile[place] == tiles["tile"].to_numpy() if len(mine.tile) else np.zeros(len(tiles), bool)
    tiles = tiles.filter(pa.array(held)).append_column("share", pa.array(mine.share[place[held]]))
    return _Sample(tiles, disk / max(1, pixels), None if run_dir is not None else seconds)


def held_bytes(
    config: Config, project: Project, described: dict[str, Any], tiles: Sequence[RankTiles]
) -> list[dict[str, int]]:
    """Bytes of fields, occupancy grids and tiles in the memory of every rank, which are known without training; of a
    tree that adapts, when it has grown evenly as far as it may."""
    growth = most_nodes(config.octree, project.octree.num_nodes) / project.octree.num_nodes
    decoded = dict(zip(project.tables["train"]["tile"].to_pylist(), project.tables["train"]["used"].to_pylist()))
    held = []
    for rank, mine in zip(described["ranks"], tiles, strict=True):
        nodes = round((described["shared_nodes"] + rank["owned_nodes"]) * growth)
        pixels = sum(decoded[tile] for tile in mine.tile.tolist()) / project.looked_at
        held.append(
            {
                "fields": field_bytes(config, nodes),
                "occupancy": occupancy_bytes(config, nodes - 1),
                "tiles": round(min(3 * pixels, config.data.reservoir_mb * 2**20)),
            }
        )
    return held


def _plan(
    config: Config,
    project: Project,
    described: dict[str, Any],
    num_ranks: int,
    tiles: Sequence[RankTiles],
    sample: _Sample,
    measured: Calibration,
    threads: int,
) -> dict[str, Any]:
    scene, octree, train = project.scene, project.octree, config.train
    most = most_nodes(config.octree, octree.num_nodes)
    each = node_parameters(config.field)
    ranks, heaviest_load = [], max(mine.load for mine in tiles)
    for rank, mine, held in zip(described["ranks"], tiles, held_bytes(config, project, described, tiles), strict=True):
        steps = round(measured.step_bytes * mine.load / heaviest_load)
        memory = {"program": measured.program_bytes, **held, "steps": steps}
        ranks.append(
            {
                **rank,
                "tiles": round(rank["tiles"] / project.looked_at),
                "memory_bytes": memory | {"total": sum(memory.values())},
            }
        )
    cores = available_cores()
    step_seconds = measured.seconds_per_step * _sharing(train, num_ranks * threads / cores, measured.device)
    train_seconds = min(train.steps * step_seconds, train.max_seconds or float("inf"))
    checkpoint = checkpoint_bytes(config, most + 1)
    prepare_seconds = None
    if sample.seconds_per_photo is not None:
        prepare_seconds = sample.seconds_per_photo * len(scene.photos) / cores
    return {
        "photos": {split: len(getattr(scene, split)) for split in ("train", "val", "test")},
        "points": len(scene.points),
        "octree": {
            "nodes": octree.num_nodes,
            "most_nodes": most,
            "nodes_per_level": octree.level.bincount().tolist(),
            "parameters_per_node": each,
            "parameters": (octree.num_nodes + 1) * each,
        },
        "tiles": {"count": project.num_tiles, "decoded_bytes": project.decoded_bytes},
        "workers": num_ranks,
        **{name: described[name] for name in described if name != "ranks"},
        "ranks": ranks,
        "object_store_bytes": object_store_bytes(),
        "disk_bytes": {
            "tiles": round(sample.disk_bytes_per_pixel * project.pixels),
            "checkpoint": checkpoint,
            # one more while saving, and the one that val photos like best
            "checkpoints": checkpoint * (train.keep_checkpoints + 1 + bool(scene.val)),
        },
        "hours": {
            "prepare": None if prepare_seconds is None else prepare_seconds / 3600,
            "train": train_seconds / 3600,
            "limit": "train.steps" if train_seconds < (train.max_seconds or float("inf")) else "train.max_seconds",
            "steps": round(train_seconds / step_seconds),
        },
        "calibration": {
            "seconds_per_step": measured.seconds_per_step,
            "rays": measured.rays,
            "steps": measured.steps,
            "cores": cores,
            "threads": threads,
            "device": measured.device,
            "lacks_gpu": bool(train.gpus_per_worker) and measured.device == "cpu",
            "slowdown": step_seconds / measured.seconds_per_step,
        },
    }


def _sharing(train: TrainConfig, load: float, device: str) -> float:
    """How many times as long a step takes beside those of the other workers, which load this machine's cores so often.

    On a cluster each worker has the cores that it asks for, and on GPUs its share of one.
    """
    if device != "cpu":
        return max(1.0, 1 / train.gpus_per_worker)
    return 1.0 if on_cluster() else max(1.0, load)


def _show(plan: dict[str, Any], console: Console) -> None:
    """Print a plan for people."""
    tree, disk, hours, found = plan["octree"], plan["disk_bytes"], plan["hours"], plan["calibration"]
    per_level = " + ".join(map(str, tree["nodes_per_level"]))
    console.print(
        f"octree of {tree['nodes']} nodes ({per_level}) from {plan['points']:,} points, "
        f"{tree['parameters_per_node'] / 1e6:.2f} M parameters each, {tree['parameters'] / 1e6:.1f} M in all"
    )
    if tree["most_nodes"] > tree["nodes"]:
        console.print(
            f"While it is trained the tree may grow to {tree['most_nodes']} nodes (octree.max_nodes), for which memory "
            "and disk are counted; the time is that of a step with the nodes of the points."
        )
    console.print(division_table(plan))
    table = Table(title="memory of each worker in MB, at its peak")
    for name in ("worker", "program", "fields", "occupancy", "steps", "tiles", "total"):
        table.add_column(name, justify="right")
    for rank in plan["ranks"]:
        memory = rank["memory_bytes"]
        name = worker_name(rank, plan["turns"])
        table.add_row(name, *(f"{memory[column.header] / 2**20:,.0f}" for column in table.columns[1:]))
    console.print(table)
    console.print(
        f"object store, shared by the workers of a machine: up to {plan['object_store_bytes'] / 2**20:,.0f} MB"
    )
    console.print(
        f"disk: {disk['tiles'] / 2**20:,.0f} MB for {plan['tiles']['count']:,} tiles, {disk['checkpoint'] / 2**20:,.0f}"
        f" MB a checkpoint, up to {disk['checkpoints'] / 2**20:,.0f} MB of them"
    )
    preparing = "done" if hours["prepare"] is None else _duration(hours["prepare"])
    console.print(
        f"prepare: {preparing}; train: {_duration(hours['train'])} for {hours['steps']:,} steps ({hours['limit']})"
    )
    console.print(_measured(found))


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


def counted(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _measured(found: dict[str, Any]) -> str:
    """On what the hours are based, in sentences."""
    where = f"the {found['cores']} cores" if found["device"] == "cpu" else "a GPU"
    said = (
        f"Measured on {where} of this machine: {found['seconds_per_step'] * 1e3:.0f} ms a step of {found['rays']:,} "
        f"rays of one worker ({counted(found['steps'], 'step')}), without exchange between workers, saving and "
        "evaluation."
    )
    if found["slowdown"] > 1:
        said += f" Workers that share {where} take {found['slowdown']:.3g} times as long."
    if found["lacks_gpu"]:
        said += " There is no GPU here, which train.gpus_per_worker asks for: plan where the training will run."
    return said


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("plan")
