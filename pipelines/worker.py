"""What every Ray Train worker runs: one rank's training, from the newest checkpoint of the run directory on.

A worker that Ray starts anew, a restarted driver and a resumed run all take this way, on any number of ranks: the
partition is made for as many as there are.
"""

import json
import time
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from inf_nerf.errors import InputError
from inf_nerf.train.assembly import assemble
from inf_nerf.train.checkpoint import restore, save_checkpoint
from inf_nerf.train.loop import NotFiniteError, Work
from inf_nerf.train.loop import train as train_loop
from inf_nerf.train.manifest import latest_checkpoint
from inf_nerf.train.reservoir import TileBatches
from inf_nerf.train.shared_gradients import on_all_ranks
from pipelines import prepare
from pipelines.ingest import tile_batches
from pipelines.progress import METRICS_FILE, forget_rows_after

STOP_FILE = "stop"
POLL_SECONDS = 0.5


def train_worker(settings: dict[str, Any]) -> str | None:
    """One rank, wherever Ray runs it; returns None, or the one sentence that says why training cannot go on."""
    config, run_dir = settings["config"], settings["run_dir"]
    context = ray.train.get_context()
    rank, num_ranks = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(settings["threads"])
    device = ray.train.torch.get_device() if config.train.gpus_per_worker else torch.device("cpu")
    metrics = run_dir / METRICS_FILE
    try:
        prepared, work = on_all_ranks(lambda: _ready(settings, rank, num_ranks, device))
        if rank == 0:
            forget_rows_after(metrics, work.progress.step)  # of an attempt that lost a worker

        def on_log(row: dict[str, object]) -> None:
            with open(metrics, "a") as file:
                file.write(json.dumps(row) + "\n")

        def on_save(val_psnr: float | None) -> None:
            complete = work.progress.share(config) >= 1
            path = save_checkpoint(
                run_dir, work, prepared.scene, prepared.octree, prepared.identity, val_psnr, complete
            )
            ray.train.report({"step": work.progress.step, "val_psnr": val_psnr, "checkpoint_path": str(path)})

        train_loop(work, on_log, on_save, _StopFile(run_dir).requested)
    except (InputError, NotFiniteError) as error:
        return str(error)
    return None


def _ready(settings: dict[str, Any], rank: int, num_ranks: int, device: torch.device) -> tuple[prepare.Prepared, Work]:
    """One rank's training, where the newest checkpoint left it."""
    config, run_dir = settings["config"], settings["run_dir"]
    prepared = prepare.read_prepared(run_dir)
    shards = {name: _shard(name) for name in settings["datasets"]}
    work = assemble(
        config,
        prepared.scene,
        prepared.octree,
        settings["partition_of"](num_ranks),
        rank,
        shards["train"],
        shards.get("val"),
        prepared.mean_colour,
        device,
    )
    # Ray calls the worker again after one was lost: go on from the newest checkpoint
    start = latest_checkpoint(run_dir) or settings["start"]
    if start is not None:
        restore(work, start)
    return prepared, work


def _shard(name: str) -> TileBatches:
    iterator = ray.train.get_dataset_shard(name)
    assert iterator is not None
    return tile_batches(iterator)


class _StopFile:
    """Polls for the driver's request to stop, at most every half second."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / STOP_FILE
        self._next = 0.0

    def requested(self) -> bool:
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + POLL_SECONDS
        return self._path.exists()
