"""What every Ray Train worker runs: one rank's training, from the newest checkpoint of the run directory on.

A worker that Ray starts anew, a restarted driver and a resumed run all take this way, on any number of ranks: the
partition is made for as many as there are.

What ends a training for good is said once: a rank that has to give up alone leaves its sentence in the run directory,
where the others, whose collectives end with it, find it.
"""

import contextlib
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from inf_nerf.errors import InputError
from inf_nerf.files import FULL, write_atomic
from inf_nerf.train.assembly import assemble
from inf_nerf.train.checkpoint import restore, save_checkpoint
from inf_nerf.train.loop import Work
from inf_nerf.train.loop import train as train_loop
from inf_nerf.train.manifest import DamagedError, latest_checkpoint, set_aside
from inf_nerf.train.reservoir import TileBatches
from inf_nerf.train.shared_gradients import of_first_rank, on_all_ranks
from pipelines import prepare
from pipelines.ingest import tile_batches
from pipelines.progress import METRICS_FILE, forget_rows_after
from pipelines.run_lock import at_work

STOP_FILE = "stop"
PROBLEM_FILE = "problem"
POLL_SECONDS = 0.5


def train_worker(settings: dict[str, Any]) -> str | None:
    """One rank, wherever Ray runs it; returns None, or the one sentence that says why training cannot go on."""
    run_dir = settings["run_dir"]
    try:
        with at_work(run_dir):
            problem = _problem_of_another(run_dir)
            if problem is None:
                _train(settings)
            return problem
    except InputError as error:
        return _give_up(run_dir, str(error))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            return _give_up(
                run_dir,
                f"{run_dir} has no room left ({error.strerror}); the last checkpoint is untouched: make room and give "
                "the same command again.",
            )
        problem = _problem_of_another(run_dir)
        if problem is None:
            raise
        return problem


def _train(settings: dict[str, Any]) -> None:
    config, run_dir = settings["config"], settings["run_dir"]
    context = ray.train.get_context()
    rank, num_ranks = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(settings["threads"])
    device = ray.train.torch.get_device() if config.train.gpus_per_worker else torch.device("cpu")
    metrics = run_dir / METRICS_FILE
    prepared, work = on_all_ranks(lambda: _at_step_0(settings, rank, num_ranks, device))
    _take_up_newest(work, run_dir, settings["start"])
    if rank == 0:
        forget_rows_after(metrics, work.progress.step)  # of an attempt that lost a worker

    def on_log(row: dict[str, object]) -> None:
        with open(metrics, "a") as file:
            file.write(json.dumps(row) + "\n")

    def on_save(val_psnr: float | None) -> None:
        complete = work.progress.share(config) >= 1
        path = save_checkpoint(run_dir, work, prepared.scene, prepared.octree, prepared.identity, val_psnr, complete)
        ray.train.report({"step": work.progress.step, "val_psnr": val_psnr, "checkpoint_path": str(path)})

    train_loop(work, on_log, on_save, _StopFile(run_dir).requested)


def _at_step_0(
    settings: dict[str, Any], rank: int, num_ranks: int, device: torch.device
) -> tuple[prepare.Prepared, Work]:
    prepared = prepare.read_prepared(settings["run_dir"])
    shards = {name: _shard(name) for name in settings["datasets"]}
    work = assemble(
        settings["config"],
        prepared.scene,
        prepared.octree,
        settings["partition_of"](num_ranks),
        rank,
        shards["train"],
        shards.get("val"),
        prepared.mean_colour,
        device,
    )
    return prepared, work


def _take_up_newest(work: Work, run_dir: Path, start: Path | None) -> None:
    """Continue from the newest checkpoint of which every rank can read its part, else from ``start``.

    The driver has verified the one that it found; Ray calls again after a worker was lost.
    """
    while (newest := of_first_rank(lambda: latest_checkpoint(run_dir))) is not None:
        try:
            return on_all_ranks(partial(restore, work, newest))
        except DamagedError as error:
            if work.rank == 0:
                set_aside(newest, error)
    if start is not None and start.is_dir():
        on_all_ranks(partial(restore, work, start))


def _give_up(run_dir: Path, sentence: str) -> str:
    """Tell the other ranks why, and let go of them at once rather than by their timeout."""
    with contextlib.suppress(OSError):  # without it they are started anew and meet the problem again
        write_atomic(run_dir / PROBLEM_FILE, sentence)
    if dist.is_initialized():
        dist.destroy_process_group()
    return sentence


def _problem_of_another(run_dir: Path) -> str | None:
    try:
        return (run_dir / PROBLEM_FILE).read_text()
    except OSError:
        return None


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
