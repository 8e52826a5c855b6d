"""One trial of a sweep: an ordinary training in a run directory of its own, which Ray Tune follows.

The run directory reads the tiles of the sweep through links, so `inf-nerf eval`, `render` and `train` work on it as on
any other.  A ``direct`` trial trains in its own process with the plain loop; a ``trainer`` trial starts Ray Train
workers.  Both continue from the newest checkpoint that they find, and report at every save.
"""

import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from inf_nerf.octree.load import RankTiles
from inf_nerf.octree.tiles import tile_file
from inf_nerf.train.assembly import assemble
from inf_nerf.train.checkpoint import restore, save_checkpoint
from inf_nerf.train.determinism import deterministic
from inf_nerf.train.loop import Progress
from inf_nerf.train.loop import train as train_loop
from inf_nerf.train.manifest import clear_leftovers, config_of, latest_checkpoint, read_manifest, set_aside_damaged
from inf_nerf.train.reservoir import TileBatches
from pipelines import prepare
from pipelines.attempts import fit
from pipelines.division import Dealing, tile_tables
from pipelines.ingest import mixed, read_tiles
from pipelines.progress import METRICS_FILE, append_row, forget_rows_after
from pipelines.run_lock import run_lock
from pipelines.run_log import run_id, run_log
from pipelines.sweeping.journal import Report, name_of

PREPARED_FILES = (
    prepare.RUN_FILE,
    prepare.OCTREE_FILE,
    prepare.SOURCES_FILE,
    "scene.json",
    "scene.safetensors",
    "tiles",
)
LOCK_SECONDS = 60.0  # for the process of an interrupted trial to end

OnReport = Callable[[Report], None]


def make_run(config: Config, prepared_dir: Path, run_dir: Path) -> None:
    """A run directory that is prepared by links to another one, with a configuration of its own."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in PREPARED_FILES:
        link = run_dir / name
        if (prepared_dir / name).exists() and not link.is_symlink():
            link.symlink_to(os.path.relpath(prepared_dir.resolve() / name, run_dir.resolve()))
    write_atomic(run_dir / prepare.CONFIG_FILE, config.to_yaml())


def run_trial(params: dict[str, Any], trials_dir: Path, kind: str) -> None:
    """What Ray Tune runs: train ``trials_dir``'s run ``params["trial"]``; ``kind`` is ``direct`` or ``trainer``.

    What the trial cannot do is reported, in one sentence: Tune starts again only what lost its process.
    """
    run_dir = trials_dir / name_of(params["trial"])

    def on_report(report: Report) -> None:
        tune.report(asdict(report))

    try:
        config = load_config(run_dir / prepare.CONFIG_FILE)
        rank = 0 if kind == "direct" else None
        with run_lock(run_dir, LOCK_SECONDS), run_log(run_dir, run_id(run_dir), rank):
            if not _report_newest(run_dir, on_report):
                train = train_direct if kind == "direct" else _train_with_ray
                train(config, run_dir, on_report)
    except Exception as error:
        sentence = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        tune.report({**asdict(Report(-1, 0.0, math.nan, math.nan)), "problem": sentence})


def train_direct(config: Config, run_dir: Path, on_report: OnReport) -> None:
    """Train a prepared run in this process, from its newest checkpoint to the end of the budget, without Ray.

    It is the training of one Ray Train worker: the same rays in the same order.
    """
    device = torch.device("cuda" if config.train.gpus_per_worker else "cpu")
    torch.set_num_threads(max(1, int(config.train.cpus_per_worker)))
    prepared = prepare.read_prepared(run_dir)
    dealing = Dealing.of(config, prepared.octree, tile_tables(run_dir, prepared))
    config = dealing.in_steps(config)
    partition = dealing.partition_of(1)
    if partition.num_ranks > 1:
        raise InputError(
            "The nodes do not fit in train.node_memory_mb at once, and a direct trial takes no turns; set "
            "sweep.trials=trainer."
        )
    scene = prepared.scene
    tiles = {
        split: _stream([tile_file(run_dir.resolve(), photo) for photo in getattr(scene, split)], mine[0])
        for split, mine in dealing.tiles(1).items()
    }
    work = assemble(
        config,
        scene,
        prepared.octree,
        partition,
        0,
        tiles["train"],
        tiles.get("val"),
        prepared.mean_colour,
        device,
        loads=dealing.loads(1),
    )
    work.pixels = dealing.pixels
    newest = latest_checkpoint(run_dir)
    if newest is None:
        work.reservoir.fill()
    else:
        restore(work, newest)
    metrics, run = run_dir / METRICS_FILE, run_id(run_dir)
    forget_rows_after(metrics, work.progress.step)

    def on_log(row: dict[str, object]) -> None:
        append_row(metrics, run, row)

    def on_save(val_psnr: float | None) -> None:
        progress = work.progress
        share = progress.share(config)
        save_checkpoint(run_dir, work, scene, work.adaptation.tree, prepared.identity, val_psnr, share >= 1)
        on_report(Report(progress.step, progress.seconds, share, math.nan if val_psnr is None else val_psnr))

    with deterministic(config.train.deterministic):
        train_loop(work, on_log, on_save, lambda: False)


def _train_with_ray(config: Config, run_dir: Path, on_report: OnReport) -> None:
    """Train a prepared run with Ray Train, whose workers report to Tune by way of the controller."""
    prepared = prepare.read_prepared(run_dir)
    dealing = Dealing.of(config, prepared.octree, tile_tables(run_dir, prepared))
    config = dealing.in_steps(config)
    newest = latest_checkpoint(run_dir)
    forget_rows_after(run_dir / METRICS_FILE, read_manifest(newest)["step"] if newest is not None else 0)
    fit(config, run_dir, dealing, newest, [TuneReportCallback()])


def _report_newest(run_dir: Path, on_report: OnReport) -> bool:
    """Say what the newest sound checkpoint scored, which may not have been heard; True if training is complete."""
    clear_leftovers(run_dir)
    set_aside_damaged(run_dir)
    newest = latest_checkpoint(run_dir)
    if newest is None:
        return False
    manifest = read_manifest(newest)
    progress, score = Progress(manifest["step"], manifest["seconds"]), manifest["val_psnr"]
    share = progress.share(config_of(newest, manifest))
    on_report(Report(progress.step, progress.seconds, share, math.nan if score is None else score))
    return bool(manifest["complete"])


def _stream(files: list[Path], tiles: RankTiles) -> TileBatches:
    """A rank's tiles in the order in which Ray Data would bring them."""
    names = pa.table({"file": [str(file) for file in mixed(files)]})
    return lambda: read_tiles(names, tiles)
