"""What every Ray Train worker runs: one rank's training, from the newest checkpoint of the run directory on.

A worker that Ray starts anew, a restarted driver and a resumed run all take this way, on any number of ranks: the
partition is made for as many as there are.

What ends a training for good is said once: a rank that has to give up alone leaves its sentence in the run directory,
where the others, whose collectives end with it, find it.
"""

import contextlib
import gc
import json
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from inf_nerf.diagnose.debugger import Debugger
from inf_nerf.diagnose.profiler import Profiler, profile_file
from inf_nerf.errors import InputError
from inf_nerf.files import FULL, write_atomic
from inf_nerf.train.assembly import assemble
from inf_nerf.train.checkpoint import restore, save_checkpoint
from inf_nerf.train.determinism import deterministic
from inf_nerf.train.loop import Work
from inf_nerf.train.loop import train as train_loop
from inf_nerf.train.manifest import DamagedError, latest_checkpoint, read_manifest, set_aside
from inf_nerf.train.reservoir import TileBatches
from inf_nerf.train.shared_gradients import of_first_rank, on_all_ranks
from inf_nerf.train.traces import traced
from inf_nerf.train.training_pictures import TrainingPictures
from inf_nerf.train.turns import Turns
from pipelines import prepare
from pipelines.ingest import shard_name, tile_batches
from pipelines.progress import METRICS_FILE, append_row, forget_rows_after
from pipelines.resume import budget_from
from pipelines.run_lock import at_work
from pipelines.run_log import facts, run_log

STOP_FILE, PAUSE_FILE, SAVE_FILE = "stop", "pause", "save"  # what the workers are asked for, while it lies in the run
PROBLEM_FILE = "problem"
POLL_SECONDS = 0.5

log = logging.getLogger(__name__)


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
    context = ray.train.get_context()
    rank = context.get_world_rank()
    run, level = settings["log"]
    with run_log(settings["run_dir"], run, rank, level):
        _train_rank(settings, rank, context.get_world_size())


def _train_rank(settings: dict[str, Any], rank: int, num_ranks: int) -> None:
    config, run_dir = settings["config"], settings["run_dir"]
    torch.set_num_threads(settings["threads"])
    device = ray.train.torch.get_device() if config.train.gpus_per_worker else torch.device("cpu")
    prepared = on_all_ranks(lambda: prepare.read_prepared(run_dir))
    turns = Turns(settings["partition_of"](num_ranks), num_ranks, config.train.turn_steps)
    idle_since: float | None = None
    profiler = Profiler(device, config.profile.synchronise) if config.profile.sections else None
    debugger = Debugger(config.debug, run_dir / f"debug/rank{rank}.json") if config.debug.enabled else None
    nothing = contextlib.nullcontext()
    with deterministic(config.train.deterministic), profiler or nothing, debugger or nothing:
        while not _take_turn(settings, prepared, turns, rank, device, profiler, debugger, idle_since):
            idle_since = time.monotonic()
            gc.collect()  # what the turn held is gone before the next one needs its place


def _take_turn(
    settings: dict[str, Any],
    prepared: prepare.Prepared,
    turns: Turns,
    rank: int,
    device: torch.device,
    profiler: Profiler | None,
    debugger: Debugger | None,
    idle_since: float | None,
) -> bool:
    """Train from the newest checkpoint to the end of the turn; True if the training ends with it."""
    config, run_dir, (run, _) = settings["config"], settings["run_dir"], settings["log"]
    metrics = run_dir / METRICS_FILE
    ready = partial(_ready, settings, prepared, turns, rank, device)
    work = _from_newest(run_dir, settings["start"], rank, ready)
    work.debugger = debugger
    if idle_since is not None:  # to change turns takes time of the budget
        work.progress.seconds += time.monotonic() - idle_since
    if rank == 0:
        forget_rows_after(metrics, work.progress.step)  # of an attempt that lost a worker

    log.info(
        "Rank %d of %d trains %d nodes from step %d on, on %s of %s.",
        rank,
        turns.num_ranks,
        work.model.field.num_nodes,
        work.progress.step,
        device,
        os.uname().nodename,
        extra=facts(step=work.progress.step, ranks=turns.num_ranks, part=work.part, pid=os.getpid()),
    )

    def on_log(row: dict[str, object]) -> None:
        append_row(metrics, run, row)

    def on_save(val_psnr: float | None) -> None:
        progress, share = work.progress, work.progress.share(config)
        path = save_checkpoint(
            run_dir, work, prepared.scene, work.adaptation.tree, prepared.identity, val_psnr, share >= 1
        )
        if debugger is not None:
            debugger.write()
        if profiler is not None:
            content = {"rank": rank, "num_ranks": turns.num_ranks, "step": progress.step, **profiler.report()}
            write_atomic(run_dir / profile_file(rank), json.dumps(content))
        said = {"step": progress.step, "seconds": progress.seconds, "progress": share, "val_psnr": val_psnr}
        log.info("Saved step %d.", progress.step, extra=facts(**said))
        ray.train.report({**said, "checkpoint_path": str(path)})

    pictures, until = TrainingPictures(config, prepared.scene, run_dir), turns.end(work.progress.step)
    stop, pause, save = (_Request(run_dir / name) for name in (STOP_FILE, PAUSE_FILE, SAVE_FILE))
    with traced(config.train, run_dir, rank) as step_traced:

        def on_step() -> None:
            step_traced()
            pictures.draw_if_due(work)

        asked = stop.made, until, on_step, save.taken, pause.made
        return train_loop(work, on_log, on_save, *asked) or work.stopped


def _from_newest(run_dir: Path, begun: Path | None, rank: int, ready: Callable[[Path | None], Work]) -> Work:
    """Continue from the newest checkpoint of which every rank can read its part, else from where the training began.

    The driver has verified the one that it found; Ray calls again after a worker was lost.  Raises :class:`InputError`
    where the one that the training began from is gone, and none was saved since.
    """
    while (newest := of_first_rank(lambda: latest_checkpoint(run_dir))) is not None:
        try:
            return on_all_ranks(partial(ready, newest))
        except DamagedError as error:
            if begun is not None and newest.resolve() == begun.resolve():
                begun = None  # then from the start, as the warning says
            if rank == 0:
                set_aside(newest, error)

    def from_begun() -> Work:
        if begun is not None and not begun.is_dir():
            raise InputError(
                f"{begun}, from which the training began, is gone, and {run_dir} holds no checkpoint that was saved "
                "since; put it back and give the same command again, or name another one with --resume."
            )
        return ready(begun)

    return on_all_ranks(from_begun)


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
    if start is None and config.train.subtree is not None:
        raise InputError(
            f"The model of which the subtree {config.train.subtree} is trained again is damaged, and the run holds no "
            "checkpoint before it; name another one with --resume."
        )
    manifest = read_manifest(start) if start is not None else None
    turn = turns.at(manifest["step"]) if manifest else 0
    shards = {split: _shard(shard_name(split, turn)) for split in ("train", "val") if split in settings["datasets"]}
    scene, octree, colour = prepared.scene, prepared.octree, prepared.mean_colour
    tiles = shards["train"], shards.get("val")
    loads = settings["loads_of"][turns.num_ranks]
    work = assemble(config, scene, octree, turns.partition, rank, *tiles, colour, device, turn, turns.num_turns, loads)
    work.pixels = settings["pixels"]
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


class _Request:
    """Polls for a file, at most every half second."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._next = 0.0
        self._found = False

    def made(self) -> bool:
        """Whether the file is there."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + POLL_SECONDS
            self._found = self._file.exists()
        return self._found

    def taken(self) -> bool:
        """Whether the file is there; then it is removed."""
        if not self.made():
            return False
        self._file.unlink(missing_ok=True)
        self._found = False
        return True
