"""Train a prepared run on Ray Train workers, follow it, record it in MLflow, evaluate it.

    inf-nerf train --config configs/laptop.yaml --data-root photos/ --output-dir runs/mine --workers 2

The driver (this process) starts `TorchTrainer`, shows progress and talks to MLflow.  The workers run `train_worker`: it
restores the newest checkpoint of the run directory if there is one, so a restarted worker, a restarted driver and a
resumed run all take the same way.
"""

import json
import logging
import shutil
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, cast

import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.base_trainer import GenDataset
from ray.train.torch import TorchConfig, TorchTrainer

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from inf_nerf.octree.partition import Partition, make_partition
from inf_nerf.render.parallel import available_cores
from inf_nerf.train.assembly import assemble
from inf_nerf.train.checkpoint import restore, save_checkpoint
from inf_nerf.train.evaluation import require_test_photos
from inf_nerf.train.loop import NotFiniteError, Work
from inf_nerf.train.loop import train as train_loop
from inf_nerf.train.manifest import clear_leftovers, latest_checkpoint, read_manifest
from inf_nerf.train.reservoir import TileBatches
from inf_nerf.train.shared_gradients import on_all_ranks
from pipelines import evaluate, prepare
from pipelines.ingest import datasets_for, tile_batches
from pipelines.progress import TrainingProgress, forget_rows_after
from pipelines.ray_session import session_cpus, start_ray
from pipelines.resume import refuse_unfit, set_aside_later, starting_point
from pipelines.run_lock import run_lock
from pipelines.tracking import Tracker

log = logging.getLogger(__name__)

STOP_FILE = "stop"
POLL_SECONDS = 0.5
METRICS_FILE = "metrics.jsonl"
ATTEMPT = "attempt-"  # Ray's records of one start of a training


def run(config: Config, run_dir: Path, data_root: Path | None = None, resume: str | None = None) -> int:
    """Train until the budget is used and evaluate; returns the exit code: 0, 130 after Ctrl-C, 143 after SIGTERM."""
    run_dir = run_dir.absolute()
    if data_root is not None:
        run_dir.mkdir(parents=True, exist_ok=True)
    elif not run_dir.is_dir():
        raise _not_prepared(run_dir)
    with run_lock(run_dir):
        clear_leftovers(run_dir)
        for attempt in (run_dir / "ray").glob(f"{ATTEMPT}*"):
            shutil.rmtree(attempt, ignore_errors=True)
        return _run(config, run_dir, data_root, resume)


def _run(config: Config, run_dir: Path, data_root: Path | None, resume: str | None) -> int:
    start = starting_point(config, run_dir, resume)
    tracker = Tracker(config, run_dir)
    if start is not None and resume is None and read_manifest(start)["complete"]:
        print(f"{run_dir} is already trained ({read_manifest(start)['step']} steps); nothing to train.")
        if tracker.unfinished():  # the evaluation was interrupted
            with tracker:
                _conclude(config, run_dir, start, tracker)
        else:
            evaluate.run(run_dir, config)
        return 0
    if data_root is not None:
        prepare.run(config, data_root, run_dir)
    elif not (run_dir / prepare.RUN_FILE).exists():
        raise _not_prepared(run_dir)
    prepare.refuse_other_settings(config, run_dir)
    prepared = prepare.read_prepared(run_dir)
    require_test_photos(prepared.scene)
    if start is not None:
        refuse_unfit(start, prepared, run_dir)
        set_aside_later(start, run_dir)
    write_atomic(run_dir / prepare.CONFIG_FILE, config.to_yaml())

    partition = make_partition(prepared.octree, max(1, config.train.num_workers), config.train.shared_upper_levels)
    with tracker:
        tracker.log_octree(prepared.octree)
        code = _fit_and_follow(config, run_dir, partition, start, tracker)
        if code:
            newest = latest_checkpoint(run_dir)
            if newest is not None:
                tracker.log_checkpoint(newest, read_manifest(newest)["digest"])
            tracker.interrupted()
            command = "the same command" if resume in (None, "latest") else "the same command without --resume"
            print(f"Stopped and saved {newest}; {command} continues from there.")
        else:
            _conclude(config, run_dir, evaluate.find_checkpoint(run_dir), tracker)
    return code


def _conclude(config: Config, run_dir: Path, checkpoint: Path, tracker: Tracker) -> None:
    """Evaluate a trained checkpoint and record it."""
    manifest = read_manifest(checkpoint)
    tracker.log_checkpoint(checkpoint, manifest["digest"])
    tracker.log_evaluation(evaluate.run(run_dir, config, checkpoint), manifest["step"])
    for picture in sorted((run_dir / "pictures").glob("*.png")):
        tracker.log_picture(picture)


def _not_prepared(run_dir: Path) -> InputError:
    return InputError(f"{run_dir} is not prepared; name the photos with --data-root or run inf-nerf prepare first.")


def train_worker(settings: dict[str, Any]) -> str | None:
    """One rank, wherever Ray runs it; returns None, or the one sentence that says why training cannot go on."""
    config, run_dir = settings["config"], settings["run_dir"]
    rank = ray.train.get_context().get_world_rank()
    torch.set_num_threads(settings["threads"])
    device = ray.train.torch.get_device() if config.train.gpus_per_worker else torch.device("cpu")
    metrics = run_dir / METRICS_FILE
    try:
        prepared, work = on_all_ranks(lambda: _ready(settings, rank, device))
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


def _ready(settings: dict[str, Any], rank: int, device: torch.device) -> tuple[prepare.Prepared, Work]:
    """One rank's training, where the newest checkpoint left it."""
    config, run_dir = settings["config"], settings["run_dir"]
    prepared = prepare.read_prepared(run_dir)
    shards = {name: _shard(name) for name in settings["datasets"]}
    work = assemble(
        config,
        prepared.scene,
        prepared.octree,
        settings["partition"],
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


def _fit_and_follow(config: Config, run_dir: Path, partition: Partition, start: Path | None, tracker: Tracker) -> int:
    """Run `TorchTrainer` in a thread while this one shows progress and waits for signals.

    Ray would abort the workers on Ctrl-C; from a thread it leaves the signal to us, and the workers save first.
    """
    stop_file = run_dir / STOP_FILE
    stop_file.unlink(missing_ok=True)
    received: list[int] = []

    def request_stop(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        stop_file.touch()

    failure: list[BaseException] = []

    def fit() -> None:
        try:
            _fit(config, run_dir, partition, start)
        except BaseException as error:  # handed to the main thread
            failure.append(error)

    metrics = run_dir / METRICS_FILE
    forget_rows_after(metrics, read_manifest(start)["step"] if start is not None else 0)
    start_ray(session_cpus(config))  # now, because Ray installs a SIGTERM handler of its own
    before = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    try:
        thread.start()
        with TrainingProgress(config, metrics, tracker.log_metrics) as progress:
            while thread.is_alive():
                progress.update()
                thread.join(POLL_SECONDS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop_file.unlink(missing_ok=True)
    if failure:
        raise failure[0]
    return 128 + received[0] if received and not _is_complete(run_dir) else 0


def _fit(config: Config, run_dir: Path, partition: Partition, start: Path | None) -> None:
    num_workers, train = config.train.num_workers, config.train
    datasets, data_config = datasets_for(config, run_dir, partition, num_workers)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config,
            "run_dir": run_dir,
            "partition": partition,
            "start": start,
            "datasets": tuple(datasets),
            "threads": available_cores() if num_workers == 0 else max(1, int(train.cpus_per_worker)),
        },
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=train.gpus_per_worker > 0,
            resources_per_worker={"CPU": train.cpus_per_worker}
            | ({"GPU": train.gpus_per_worker} if train.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            # our own checkpoints say where a run stands; Ray's record of one attempt must not revive another
            name=f"{ATTEMPT}{int(time.time() * 1000)}",
            storage_path=str(run_dir / "ray"),
            failure_config=FailureConfig(max_failures=train.max_failures),
        ),
        torch_config=TorchConfig(timeout_s=int(train.collective_timeout_seconds)),
        datasets=cast(dict[str, GenDataset], datasets),  # local mode takes iterators
        dataset_config=data_config,
    )
    try:
        problem = trainer.fit().return_value
    except TrainingFailedError as error:
        raise InputError(
            f"Training failed on a worker ({str(error).strip().splitlines()[-1]}); the log above tells where, and the "
            f"same command continues from the last checkpoint of {run_dir}."
        ) from error
    if problem:
        raise InputError(problem)


def _is_complete(run_dir: Path) -> bool:
    newest = latest_checkpoint(run_dir)
    return newest is not None and bool(read_manifest(newest)["complete"])


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


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("train")
