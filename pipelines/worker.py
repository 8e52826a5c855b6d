"""What every Ray Train worker runs: one rank's training, from the newest checkpoint of the run directory on.

A worker that Ray starts anew, a restarted driver and a resumed run all take this way, on any number of ranks: the
partition is made for as many as there are.

What ends a training for good is said once: a rank that has to give up alone leaves its sentence in the run directory,
where the others, whose collectives end with it, find it.
"""

import contextlib
import gc
import json
import time
from collections.abc import Callable
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
from inf_nerf.train.manifest import DamagedError, latest_checkpoint, read_manifest, set_aside
from inf_nerf.train.reservoir import TileBatches
from inf_nerf.train.shared_gradients import of_first_rank, on_all_ranks
from inf_nerf.train.turns import Turns
from pipelines import prepare
from pipelines.ingest import shard_name, tile_batches
from pipelines.progress import METRICS_FILE, forget_rows_after
from pipelines.resume import budget_from
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
    prepared = on_all_ranks(lambda: prepare.read_prepared(run_dir))
    turns = Turns(settings["partition_of"](num_ranks), num_ranks, config.train.turn_steps)
    idle_since: float | None = None
    while not _take_turn(settings, prepared, turns, rank, device, idle_since):
        idle_since = time.monotonic()
        gc.collect()  # what the turn held is gone before the next one needs its place


def _take_turn(
    settings: dict[str, Any],
    prepared: prepare.Prepared,
    turns: Turns,
    rank: int,
    device: torch.device,
    idle_since: float | None,
) -> bool:
    """Train from the newest checkpoint to the end of the turn; True if the training ends with it."""
    config, run_dir = settings["config"], settings["run_dir"]
    metrics = run_dir / METRICS_FILE
    ready = partial(_ready, settings, prepared, turns, rank, device)
    work = _from_newest(run_dir, settings["start"], rank, ready)
    if idle_since is not None:  # to change turns takes time of the budget
        work.progress.seconds += time.monotonic() - idle_since
    if rank == 0:
        forget_rows_after(metrics, work.progress.step)  # of an attempt that lost a worker

    def on_log(row: dict[str, object]) -> None:
        with open(metrics, "a") as file:
            file.write(json.dumps(row) + "\n")

    def on_save(val_psnr: float | None) -> None:
        progress, share = work.progress, work.progress.share(config)
        path = save_checkpoint(run_dir, work, prepared.scene, prepared.octree, prepared.identity, val_psnr, share >= 1)
        said = {"step": progress.step, "seconds": progress.seconds, "progress": share, "val_psnr": val_psnr}
        ray.train.report({**said, "checkpoint_path": str(path)})

    until = turns.end(work.progress.step)
    return train_loop(work, on_log, on_save, _StopFile(run_dir).requested, until) or work.stopped


def _from_newest(run_dir: Path, begun: Path | None, rank: int, ready: Callable[[Path | None], Work]) -> Work:
    """Continue from the newest checkpoint of which every rank can read its part, else from where the training began.

    The driver has verified the one that it found; Ray calls again after a worker was lost.
    """
    while (newest := of_first_rank(lambda: latest_checkpoint(run_dir))) is not None:
        try:
            return on_all_ranks(partial(ready, newest))
        except DamagedError as error:
            if rank == 0:
                set_aside(newest, error)
    return on_all_ranks(partial(ready, begun if begun is not None and begun.is_dir() else None))


def _ready(
    settings: dict[str, Any],
    prepared: prepare.Prepared,
    turns: Turns,
    rank: int,
    device: torch.device,
    start: Path | None,
) -> Work:
    """One rank's training where the checkpoint ``start`` left it, in the turn that then follows; None: at step 0."""
    config, begun = settings["config"], settings["start"]
    manifest = read_manifest(start) if start is not None else None
    turn = turns.at(manifest["step"]) if manifest else 0
    shards = {split: _shard(shard_name(split, turn)) for split in ("train", "val") if split in settings["datasets"]}
    scene, octree, colour = prepared.scene, prepared.octree, prepared.mean_colour
    tiles = shards["train"], shards.get("val")
    loads = settings["loads_of"][turns.num_ranks]
    work = assemble(config, scene, octree, turns.partition, rank, *tiles, colour, device, turn, turns.num_turns, loads)
    if start is None or manifest is None:
        work.reservoir.fill()
        return work
    restore(work, start)
    is_begun = begun is not None and start.resolve() == begun.resolve()
    step, seconds = budget_from(config, start) if is_begun else manifest["budget_from"]
    work.progress.budget_from = (step, seconds)
    return work


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
