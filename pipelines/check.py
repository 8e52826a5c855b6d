"""What is wrong with a configuration before anything runs, and what may be.

An error is what a command would refuse.  A warning is what is likely not meant, or what only this machine lacks, such
as a GPU or a file, which another machine may have.
"""

import json
import shlex
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from math import ceil, log2
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from inf_nerf.config import Config
from inf_nerf.config_file import merge, overridden, problems_in, read_yaml, validated
from inf_nerf.errors import InputError
from inf_nerf.field.backends import RUNS_ON
from inf_nerf.foreign_keys import Outcome, translate
from inf_nerf.octree.build import root_gsd
from inf_nerf.render.parallel import available_cores
from inf_nerf.scene.split import missing_val_images
from inf_nerf.train.perceptual import Lpips
from pipelines import plan
from pipelines.division import Dealing, describe
from pipelines.ray_session import object_store_bytes, on_cluster
from pipelines.sweeping.sweep_file import load_sweep

DEEP = 15  # levels: more are 4096 times finer than a usual tree
FAST = 0.1  # a learning rate from which fields rarely recover
COARSE_EPS = 1e-10  # beside which gradients of hash grids vanish
CELLS_PER_ENTRY = 16  # surface cells of the finest resolution for an entry of its table
SMALLEST_SIDE = 16  # pixels of a photo on the coarsest pyramid level


@dataclass
class Report:
    """What was found."""

    source: str
    outcomes: list[Outcome] = field(default_factory=list)  # of keys of other trainers
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # good to know


def run(
    path: Path | None,
    data_root: Path | None,
    overrides: Iterable[str] = (),
    strict: bool = False,
    as_json: bool = False,
) -> int:
    """Print what is wrong with a configuration file; returns the exit code: 2 for errors, and for warnings if
    ``strict``, else 0."""
    report = check(path, data_root, overrides)
    if as_json:
        print(json.dumps(asdict(report), indent=1, ensure_ascii=False, default=str))
    else:
        _show(report, Console(soft_wrap=True))
    return 2 if report.errors or (strict and report.warnings) else 0


def check(path: Path | None, data_root: Path | None, overrides: Iterable[str] = ()) -> Report:
    """All that is found without training: in the file, in how its keys fit each other, this machine and the photos."""
    report = Report(str(path or "the defaults"))
    config = None
    try:
        config = _read(path, list(overrides), report)
        if config is not None and data_root is not None:
            config = _look_at_photos(config, data_root, report)
    except InputError as error:
        report.errors.append(str(error))
    if data_root is None:
        report.notes.append("Without --data-root photos, tree and memory were not looked at.")
    if config is not None:
        report.warnings += [*_doubts(config), *_lacks(config)]
        if any(outcome.key == "hardware.gpu_ids" and outcome.value for outcome in report.outcomes):
            report.warnings += _gpus_unasked(config)
    return report


def _read(path: Path | None, overrides: list[str], report: Report) -> Config | None:
    """The configuration, or None where there are errors, which are in the report."""
    values: dict[str, Any] = {}
    if path is not None:
        content = read_yaml(path, Config.model_fields)
        if {"sweep", "base"} & set(content):
            return load_sweep(path, overrides).config
        ours, report.outcomes = translate(content, report.source)
        merge(values, ours)
    for override in overrides:
        ours, outcomes = translate(overridden(override), f"--set {override}")
        report.outcomes += outcomes
        merge(values, ours)
    report.errors += problems_in(values, Config, report.source)
    return None if report.errors else validated(values, Config, report.source)


def _doubts(config: Config) -> Iterator[str]:
    """What is likely not meant, whatever the machine and the photos."""
    octree, grid, train, loss = config.octree, config.field, config.train, config.loss
    if octree.num_levels > DEEP:
        yield f"octree.num_levels is {octree.num_levels}: more than {DEEP} levels are rarely met by photos."
    if train.shared_upper_levels == octree.num_levels and train.most_workers > 1:
        yield (
            f"train.shared_upper_levels is octree.num_levels ({octree.num_levels}), so every worker holds the whole "
            "tree and nothing is divided."
        )
    if train.lr_init > FAST:
        yield f"train.lr_init is {train.lr_init:g}: rates above {FAST:g} end trainings with NaN; 0.01 is usual."
    if train.eps > COARSE_EPS:
        yield f"train.eps is {train.eps:g}, beside which gradients of hash grids vanish; 1e-15 is usual."
    if train.lr_decay_start >= train.steps:
        yield f"train.lr_decay_start is {train.lr_decay_start} of {train.steps} steps, so the rate never falls."
    if grid.max_res**2 > CELLS_PER_ENTRY * 2**grid.log2_table_size:
        yield (
            f"field.max_res is {grid.max_res}, but field.log2_table_size={grid.log2_table_size} has an entry for "
            f"{grid.max_res**2 / 2**grid.log2_table_size:.0f} cells of a surface; they will collide."
        )
    if loss.lambda_rgb == 0:
        yield "loss.lambda_rgb is 0, so no photo teaches anything."
    if config.scene.val_every == 0 and config.scene.val_list is None and not config.scene.val_images:
        yield "scene.val_every is 0, so no val photos say which checkpoint is best."
    for key in ("log_every", "eval_every", "picture_every"):
        if getattr(train, key) > train.steps:
            yield f"train.{key} is {getattr(train, key)}, but training ends after {train.steps} steps."


def _lacks(config: Config) -> Iterator[str]:
    """What this machine has not, and another may have."""
    train, gpus, cores = config.train, torch.cuda.device_count(), available_cores()
    asked = train.least_workers * train.gpus_per_worker
    if asked > gpus and not on_cluster():
        yield f"train.gpus_per_worker={train.gpus_per_worker:g} asks for {asked:g} GPUs, and this machine has {gpus}."
    if RUNS_ON.get(config.field.backend) == "cuda" and gpus == 0:
        yield f"field.backend is {config.field.backend!r}, which runs on GPUs, and this machine has none."
    if train.precision == "float16" and train.gpus_per_worker == 0:
        yield "train.precision is 'float16', which needs train.gpus_per_worker."
    workers = train.num_workers if isinstance(train.num_workers, int) else train.least_workers
    if workers * train.cpus_per_worker > cores and not on_cluster():
        yield (
            f"train.num_workers={workers} with train.cpus_per_worker={train.cpus_per_worker:g} take turns on the "
            f"{cores} cores of this machine."
        )
    if config.monitor.command and shutil.which(program := shlex.split(config.monitor.command)[0]) is None:
        yield f"monitor.command names {program}, which cannot be run here, so no alert would reach it."
    if config.eval.lpips_backbone is None:
        yield "eval.lpips_backbone names no weights of AlexNet or VGG-16, so there is no LPIPS."
    else:
        try:
            Lpips.load(config.eval.lpips_backbone)
        except InputError as error:
            yield str(error)


def _gpus_unasked(config: Config) -> Iterator[str]:
    if config.train.gpus_per_worker == 0:
        here = f"this machine has {torch.cuda.device_count()}"
        yield f"hardware.gpu_ids names GPUs ({here}), but train.gpus_per_worker is 0, so training runs on the CPU."


def _look_at_photos(config: Config, data_root: Path, report: Report) -> Config:
    """How the configuration fits the photos and their tree, and what its nodes need of this machine's memory; returns
    it with epochs as steps."""
    project = plan.unprepared(config, data_root)
    scene, octree = project.scene, project.octree
    missing = missing_val_images([photo.name for photo in scene.photos], config.scene)
    if missing:
        report.warnings.append(f"scene.val_images names {', '.join(missing)}, which {data_root} has not.")
    if not scene.val:
        report.warnings.append("There are no val photos to say which checkpoint is best; lower scene.val_every.")
    smallest = min(min(scene.cameras.level_size(photo, config.scene.pyramid_levels - 1)) for photo in scene.train)
    if smallest < SMALLEST_SIDE:
        report.warnings.append(
            f"scene.pyramid_levels is {config.scene.pyramid_levels}, whose last is {smallest} pixels high or wide."
        )
    report.warnings += _levels_for(config, scene.points.footprint.numpy(), octree.num_levels)
    dealing = Dealing.of(config, octree, project.tables)
    num_ranks = config.train.least_workers
    tiles = dealing.tiles(num_ranks)["train"]
    described = describe(config, dealing.partition_of(num_ranks), tiles, num_ranks)
    held = plan.held_bytes(config, project, described, tiles)
    together = max(  # ranks that train at the same time
        sum(sum(each.values()) for each in held[first : first + num_ranks]) for first in range(0, len(held), num_ranks)
    )
    if not on_cluster():
        report.warnings += _memory(config, together, max(sum(each.values()) for each in held), octree.num_nodes)
    train = plan.in_steps(config, project)
    if train.epochs is not None:
        report.notes.append(f"train.epochs={train.epochs:g} are {train.steps} steps of {train.batch_size} rays here.")
    return config.model_copy(update={"train": train})


def _levels_for(config: Config, footprint: "np.ndarray[Any, Any]", num_levels: int) -> Iterator[str]:
    """Whether the levels of the tree are those that the photos resolve, going by footprints [P] of sparse points."""
    fine = float(np.percentile(footprint, 10)) * config.octree.footprint_px
    wanted = max(1, 1 + ceil(log2(max(root_gsd(config.octree, config.field.max_res) / fine, 1e-9))))
    allowed = config.octree.num_levels
    if num_levels < allowed:
        yield (
            f"octree.num_levels allows {allowed} levels, and the tree has {num_levels}: sparse points ask for no more "
            f"with field.max_res={config.field.max_res} and octree.min_points={config.octree.min_points}."
        )
    elif wanted > allowed + 1:
        yield (
            f"octree.num_levels is {allowed}, but the finest tenth of the sparse points would need {wanted}; pictures "
            "will be blurred from near."
        )


def _memory(config: Config, together: int, most: int, num_nodes: int) -> Iterator[str]:
    """Whether this machine holds what all workers hold at once, or a GPU what one of them does."""
    has = psutil.virtual_memory().total
    needs = together + object_store_bytes()
    if config.train.gpus_per_worker == 0 and needs > has:
        yield (
            f"{num_nodes} nodes and their tiles need at least {needs / 2**30:.1f} GB, and this machine has "
            f"{has / 2**30:.1f} GB; set train.node_memory_mb, data.reservoir_mb or a smaller field."
        )
    if config.train.gpus_per_worker and torch.cuda.is_available():
        has = torch.cuda.get_device_properties(0).total_memory
        if most / max(1.0, config.train.gpus_per_worker) > has:
            yield (
                f"A worker's nodes need at least {most / 2**30:.1f} GB, and a GPU here has {has / 2**30:.1f} GB; set "
                "train.node_memory_mb."
            )


def _show(report: Report, console: Console) -> None:
    """For people: a table on a terminal, else a line for each key."""
    if report.outcomes and console.is_terminal:
        table = Table("key", "value", "what becomes of it", title="keys of other trainers", title_justify="left")
        for outcome in report.outcomes:
            table.add_row(outcome.key, str(outcome.value), outcome.text)
        console.print(table)
    for outcome in () if console.is_terminal else report.outcomes:
        print(f"{outcome.key}: {outcome.value} -> {outcome.text}")
    for name, sentences in (("note", report.notes), ("warning", report.warnings), ("error", report.errors)):
        for sentence in sentences:
            print(f"{name}: {sentence}")
    found = plan.counted(len(report.errors), "error"), plan.counted(len(report.warnings), "warning")
    print(f"{report.source}: {', '.join(found)}")
