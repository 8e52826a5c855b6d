"""Train a prepared run on Ray Train workers, follow it, record it in MLflow, evaluate it.

    inf-nerf train --config configs/laptop.yaml --data-root photos/ --output-dir runs/mine --workers 2

The driver (this process) starts `TorchTrainer` (`pipelines.attempts`), shows progress and talks to MLflow.  The workers
run `pipelines.worker.train_worker`.
"""

import logging
import shutil
import signal
import threading
from pathlib import Path
from types import FrameType

from rich.console import Console

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from inf_nerf.train.evaluation import require_test_photos
from inf_nerf.train.manifest import clear_leftovers, latest_checkpoint, read_manifest, set_aside_damaged
from pipelines import evaluate, plot, prepare
from pipelines.attempts import ATTEMPT, fit
from pipelines.division import Dealing, describe, division_table, tile_tables
from pipelines.progress import METRICS_FILE, Row, RowReader, TrainingProgress, forget_rows_after
from pipelines.provenance import provenance
from pipelines.ray_session import session_cpus, start_ray
from pipelines.resume import refuse_unfit, set_aside_later, starting_point
from pipelines.run_lock import run_lock
from pipelines.run_log import facts, run_id, run_log
from pipelines.tracking import Tracker
from pipelines.watch import Watch
from pipelines.worker import PAUSE_FILE, POLL_SECONDS, PROBLEM_FILE, SAVE_FILE, STOP_FILE

EXIT_STOPPED = 3  # by an alert or on request; the same command continues

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path, data_root: Path | None = None, resume: str | None = None) -> int:
    """Train until the budget is used and evaluate; returns the exit code: 0, 130 after Ctrl-C, 143 after SIGTERM, 3
    where an alert or another process stopped it."""
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
    if resume in (None, "latest"):
        set_aside_damaged(run_dir)
    start = starting_point(config, run_dir, resume)
    if config.train.subtree is not None and start is None:
        raise InputError(
            f"train.subtree={config.train.subtree} trains a part of a trained model again, and {run_dir} holds none; "
            "name a checkpoint or another run with --resume."
        )
    tracker = Tracker(config, run_dir)
    if start is not None and resume is None and read_manifest(start)["complete"]:
        print(f"{run_dir} is already trained ({read_manifest(start)['step']} steps); nothing to train.")
        if tracker.unfinished():  # the evaluation was interrupted
            with tracker:
                _record_missed(run_dir, tracker)
                _conclude(config, run_dir, start, tracker)
        else:
            tracker.send_waiting()
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
    dealing = Dealing.of(config, prepared.octree, tile_tables(run_dir, prepared))
    dealing.partition_of(config.train.least_workers)  # raises where the nodes do not fit
    config = dealing.in_steps(config)
    tracker = Tracker(config, run_dir)
    num_ranks = config.train.most_workers
    description = describe(config, dealing.partition_of(num_ranks), dealing.tiles(num_ranks)["train"], num_ranks)
    if start is not None:
        set_aside_later(start, run_dir)
    write_atomic(run_dir / prepare.CONFIG_FILE, config.to_yaml())
    Console(soft_wrap=True).print(division_table(description))
    if config.train.subtree is not None:
        print(
            f"Only the subtree {config.train.subtree} is trained; --set train.subtree=null goes on with the whole tree."
        )
    if config.train.steps <= (description["turns"] - 1) * config.train.turn_steps:
        log.warning(
            "train.steps=%d are over before the last of %d turns of train.turn_steps=%d begins, and nodes without a "
            "turn stay untrained; lower train.turn_steps, or raise train.node_memory_mb or train.steps.",
            config.train.steps,
            description["turns"],
            config.train.turn_steps,
        )
    with run_log(run_dir, run_id(run_dir)), tracker:
        step = read_manifest(start)["step"] if start is not None else 0
        log.info("Training goes from step %d on %d workers.", step, num_ranks, extra=facts(step=step, ranks=num_ranks))
        tracker.set_tags(provenance(config, run_dir, prepared))
        tracker.log_octree(prepared.octree)
        tracker.log_division(description)
        code = _fit_and_follow(config, run_dir, dealing, start, tracker)
        if code:
            newest = latest_checkpoint(run_dir)
            if newest is not None:
                manifest = read_manifest(newest)
                tracker.log_checkpoint(newest, manifest["digest"])
                tracker.log_model(newest, manifest)
            tracker.interrupted()
            command = "the same command" if resume in (None, "latest") else "the same command without --resume"
            print(f"Stopped and saved {newest}; {command} continues from there.")
        else:
            _conclude(config, run_dir, evaluate.find_checkpoint(run_dir), tracker)
    return code


def _record_missed(run_dir: Path, tracker: Tracker) -> None:
    """Record rows that a driver which was killed did not come to read."""
    rows = RowReader(run_dir / METRICS_FILE).read()
    tracker.log_metrics([row for row in rows if row["step"] > tracker.recorded_step])


def _conclude(config: Config, run_dir: Path, checkpoint: Path, tracker: Tracker) -> None:
    """Evaluate a trained checkpoint and record it."""
    manifest = read_manifest(checkpoint)
    tracker.log_checkpoint(checkpoint, manifest["digest"])
    evaluation = evaluate.run(run_dir, config, checkpoint)
    tracker.log_evaluation(evaluation, manifest["step"])
    tracker.log_model(checkpoint, manifest, evaluation.get("psnr0"))
    if config.tracking.enabled:
        _draw(run_dir)
    for picture in sorted((run_dir / "pictures").glob("*.png")):
        tracker.log_picture(picture)


def _draw(run_dir: Path) -> None:
    """Make the pictures of how it went; they are no reason for a training to fail."""
    try:
        plot.draw(run_dir)
    except Exception as error:
        log.warning("The pictures of the training could not be drawn: %s", error)


def _not_prepared(run_dir: Path) -> InputError:
    return InputError(f"{run_dir} is not prepared; name the photos with --data-root or run inf-nerf prepare first.")


def _fit_and_follow(config: Config, run_dir: Path, dealing: Dealing, start: Path | None, tracker: Tracker) -> int:
    """Run `TorchTrainer` in a thread while this one shows progress and waits for signals.

    Ray would abort the workers on Ctrl-C; from a thread it leaves the signal to us, and the workers save first.
    """
    stop_file = run_dir / STOP_FILE
    asked = [run_dir / name for name in (STOP_FILE, PAUSE_FILE, SAVE_FILE, PROBLEM_FILE)]
    for file in asked:
        file.unlink(missing_ok=True)
    received: list[int] = []

    def request_stop(number: int, _frame: FrameType | None) -> None:
        if received:  # asked twice: leave without a checkpoint
            raise SystemExit(128 + number)
        received.append(number)
        stop_file.touch()

    failure: list[BaseException] = []

    def work() -> None:
        try:
            fit(config, run_dir, dealing, start)
        except BaseException as error:  # handed to the main thread
            failure.append(error)

    metrics = run_dir / METRICS_FILE
    forget_rows_after(metrics, read_manifest(start)["step"] if start is not None else 0)
    _record_missed(run_dir, tracker)
    start_ray(session_cpus(config))
    before = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    thread = threading.Thread(target=work, name="ray-train", daemon=True)
    try:
        thread.start()
        with Watch(config, run_dir, tracker.set_tags) as watch:

            def on_rows(rows: list[Row]) -> None:
                tracker.log_metrics(rows)
                watch.take(rows)

            with TrainingProgress(config, metrics, on_rows) as progress:
                while thread.is_alive():
                    progress.update()
                    watch.look()
                    thread.join(POLL_SECONDS)
        stopped = stop_file.exists()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for file in asked:
            file.unlink(missing_ok=True)
    if failure:
        raise failure[0]
    if _is_complete(run_dir):
        return 0
    return 128 + received[0] if received else EXIT_STOPPED if stopped else 0


def _is_complete(run_dir: Path) -> bool:
    newest = latest_checkpoint(run_dir)
    return newest is not None and bool(read_manifest(newest)["complete"])


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("train")
