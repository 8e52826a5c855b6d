"""Sweep config keys with Ray Tune: many trainings on the same tiles, compared by photos that none of them sees.

    inf-nerf sweep --config configs/sweep.yaml --output-dir runs/sweep

    runs/sweep/sweep.yaml     what is swept          journal.jsonl    what became of every trial
               prepared/      scene, octree, tiles   trials/<number>/ a run directory of each trial
               results.json, results.csv, best.yaml, plots/           (pipelines.sweeping.report)

The driver (this process) asks for values, starts trials through Tune, stops those that are behind, and writes the
journal and MLflow.  After its death, however it came, ``--resume`` continues from the journal: trials that ended stay
as they are, interrupted ones go on from their newest checkpoint.
"""

import math
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ray import tune
from rich.console import Console

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from pipelines import prepare, synth
from pipelines.division import tile_tables
from pipelines.provenance import provenance
from pipelines.ray_session import on_cluster, session_cpus, start_ray
from pipelines.run_lock import run_lock
from pipelines.sweeping import report
from pipelines.sweeping.concurrency import max_concurrent, nodes_for_trials, resources_of
from pipelines.sweeping.journal import JOURNAL_FILE, Journal, Report, State, Trial, name_of
from pipelines.sweeping.space import Scored, with_values
from pipelines.sweeping.sweep_file import SWEEP_FILE, Sweep, keep
from pipelines.sweeping.trial import make_run, run_trial
from pipelines.sweeping.trial_runs import TrialRuns
from pipelines.sweeping.tuning import Halving, Recorder, Suggestions, ending
from pipelines.tracking import Tracker

PREPARED_DIR, TRIALS_DIR, TUNE_DIR, CITY_DIR = "prepared", "trials", "ray", "city"

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # which copy what the journal has
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "RAY_AIR_NEW_OUTPUT": "0",  # the old one can be silent
}


def run(
    sweep: Sweep, output_dir: Path, data_root: Path | None = None, prepared: Path | None = None, resume: bool = False
) -> int:
    """Run all trials and report; returns the exit code: 0, 130 after Ctrl-C, 143 after SIGTERM.

    ``prepared`` names a prepared run whose tiles are used; else they are made from ``data_root`` or from the synthetic
    city of the sweep file.  Raises :class:`InputError` for a directory that holds another sweep, or one that began
    where ``resume`` is not given.
    """
    sweep_dir = output_dir.absolute()
    began = (sweep_dir / SWEEP_FILE).exists()
    if resume and not began:
        raise InputError(f"{sweep_dir} holds no sweep to resume; leave --resume out to begin one.")
    sweep_dir.mkdir(parents=True, exist_ok=True)
    with run_lock(sweep_dir):
        journal = Journal(sweep_dir / JOURNAL_FILE)
        num_ended = len(journal.trials) - len(list(journal.unfinished()))
        if began and not resume and num_ended < sweep.space.num_trials:
            raise InputError(
                f"{sweep_dir} holds a sweep of which {num_ended} of {sweep.space.num_trials} trials ended; give "
                "--resume to continue it, or choose another --output-dir."
            )
        keep(sweep, sweep_dir)
        tracker = Tracker(sweep.config, sweep_dir, {"sweep.trials": str(sweep.space.num_trials)})
        if num_ended >= sweep.space.num_trials and not tracker.unfinished():
            print(f"All {num_ended} trials in {sweep_dir} ended; nothing to train.")
            report.write(sweep, journal, sweep_dir)
            return 0
        with tracker:
            found = _prepare(sweep, sweep_dir, data_root, prepared)
            tracker.set_tags(provenance(sweep.config, sweep_dir / PREPARED_DIR, found))
            return _Driver(sweep, sweep_dir, found, journal, tracker).run()


def _prepare(sweep: Sweep, sweep_dir: Path, data_root: Path | None, named: Path | None) -> prepare.Prepared:
    """What all trials read; made if need be."""
    prepared_dir, city = sweep_dir / PREPARED_DIR, sweep.settings.city
    ready = (prepared_dir / prepare.SUMMARY_FILE).is_file()
    if named is not None:
        if not prepared_dir.exists():
            prepared_dir.symlink_to(os.path.relpath(named.resolve(), sweep_dir.resolve()))
        if prepared_dir.resolve() != named.resolve():
            raise InputError(f"{sweep_dir} reads {prepared_dir.resolve()}, not {named}; choose another --output-dir.")
    elif data_root is not None:
        prepare.run(sweep.config, data_root, prepared_dir)
    elif not ready and city is not None:
        synth.run(sweep_dir / CITY_DIR, **city.model_dump())
        prepare.run(sweep.config, sweep_dir / CITY_DIR, prepared_dir)
    elif not ready:
        raise InputError(f"{sweep_dir} is not prepared; name the photos with --data-root or a run with --prepared.")
    found = prepare.read_prepared(prepared_dir)
    prepare.refuse_other_settings(sweep.config, prepared_dir)
    if not found.scene.val:
        raise InputError(f"{prepared_dir} has no val photos to compare trials by; set scene.val_every, e.g. to 16.")
    return found


@dataclass
class _Driver:
    sweep: Sweep
    sweep_dir: Path
    prepared: prepare.Prepared
    journal: Journal
    tracker: Tracker

    def __post_init__(self) -> None:
        wanted = self.sweep.settings.trials
        several = on_cluster() and self.sweep.config.train.most_workers > 1
        self.kind = wanted if wanted != "auto" else "trainer" if several else "direct"
        self.trials_dir = self.sweep_dir / TRIALS_DIR
        self.runs = TrialRuns(self.trials_dir, self.prepared, self.tracker.run_id)
        self.console = Console(soft_wrap=True)
        train_tiles = tile_tables(self.sweep_dir / PREPARED_DIR, self.prepared)["train"]
        self.pixels = int(train_tiles["used"].to_numpy().sum())

    def run(self) -> int:
        """All trials that are missing, then the report; returns the exit code."""
        settings, journal = self.sweep.settings, self.journal
        halving = Halving(settings.grace, settings.reduction, journal)
        for trial in list(journal.unfinished()):
            if trial.reports and (trial.reports[-1].progress >= 1 or not halving.goes_on[trial.number]):
                state, reason = ending(journal, trial.number)  # decided, but not written before the driver died
                self.runs.start(trial)
                self._on_end(trial.number, state, reason)
                journal.end(trial.number, state, reason)
            else:
                self._make_run(trial.number, trial.values)
        missing = self.sweep.space.num_trials - len(journal.trials) + len(list(journal.unfinished()))
        received: list[int] = []
        try:
            if missing:
                start_ray(session_cpus(self.sweep.config))  # before the signals: it has handlers of its own
                with interrupting(received):
                    self._tune(halving, missing)
        except KeyboardInterrupt:
            self.runs.interrupt()
            self.tracker.interrupted()
            num_ended = len(journal.trials) - len(list(journal.unfinished()))
            self._say(
                f"Stopped after {num_ended} of {self.sweep.space.num_trials} trials; the same command with --resume "
                "continues."
            )
            return 128 + (received or [signal.SIGINT])[0]
        files = report.write(self.sweep, journal, self.sweep_dir)
        for file in files:
            self.tracker.log_artifact(file)
        return 0

    def _tune(self, halving: Halving, missing: int) -> None:
        sweep, journal = self.sweep, self.journal
        count = max_concurrent(sweep.config, self.kind, nodes_for_trials(sweep.config, self.kind))
        count = min(count, sweep.settings.max_concurrent or count, missing)
        self._say(f"{missing} trials, {count} at a time, {'Ray Train' if self.kind == 'trainer' else 'a process'} each")
        os.environ.update(TUNE_ENVIRONMENT)
        shutil.rmtree(self.sweep_dir / TUNE_DIR, ignore_errors=True)  # nothing in it is read again
        trials_dir, kind = self.trials_dir, self.kind

        def trial(config: dict[str, Any]) -> None:
            run_trial(config, trials_dir, kind)

        tuner = tune.Tuner(
            tune.with_resources(trial, resources_of(sweep.config, self.kind)),
            tune_config=tune.TuneConfig(
                search_alg=Suggestions([trial.number for trial in journal.unfinished()], self._next_new),
                scheduler=halving,
                num_samples=missing,
                max_concurrent_trials=count,
                trial_dirname_creator=lambda trial: name_of(trial.config["trial"]),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self.sweep_dir / TUNE_DIR),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=sweep.config.train.max_failures),
                callbacks=[Recorder(journal, self._on_start, self._on_report, self._on_end)],
            ),
        )
        tuner.fit()
        shutil.rmtree(self.sweep_dir / TUNE_DIR, ignore_errors=True)

    def _next_new(self) -> int | None:
        """Begin the next trial; values that do not go together are a trial that failed."""
        journal, space = self.journal, self.sweep.space
        while (number := len(journal.trials)) < space.num_trials:
            ended = [_scored(trial) for trial in journal.trials.values() if trial.state in ("finished", "stopped")]
            values = space.values(number, ended)
            try:
                self._make_run(number, values)
            except InputError as error:
                journal.begin(number, values)
                self._on_end(number, "failed", str(error))
                journal.end(number, "failed", str(error))
                continue
            journal.begin(number, values)
            return number
        return None

    def _make_run(self, number: int, values: dict[str, Any]) -> None:
        config = trial_config(self.sweep, self.kind, values, f"{self._name()}-{name_of(number)}", self.pixels)
        make_run(config, self.sweep_dir / PREPARED_DIR, self.trials_dir / name_of(number))

    def _name(self) -> str:
        return self.sweep.config.tracking.run_name or self.sweep_dir.name

    def _on_start(self, number: int) -> None:
        trial = self.journal.trials[number]
        again = f" again from step {trial.step}" if trial.reports else ""
        self._say(f"trial {name_of(number)} starts{again}: {report.described(trial.values)}")
        self.runs.start(trial)

    def _on_report(self, number: int, report: Report) -> None:
        self._say(f"trial {name_of(number)} at {report.progress:.0%}: val PSNR {report.val_psnr:.2f} dB")
        self.runs.report(self.journal.trials[number], report)

    def _on_end(self, number: int, state: State, reason: str | None) -> None:
        how = {"finished": "is trained", "stopped": "is behind and stopped early"}.get(state, f"failed: {reason}")
        self._say(f"trial {name_of(number)} {how}")
        self.runs.end(self.journal.trials[number], state, reason)

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False)


@contextmanager
def interrupting(received: list[int]) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise KeyboardInterrupt once, and leave at once when they come again; they are noted."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise SystemExit(128 + number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def trial_config(sweep: Sweep, kind: str, values: dict[str, Any], name: str, pixels: int) -> Config:
    """The configuration of a trial: it saves at every report, and a direct one has no workers; ``pixels`` are those of
    the training photos, by which epochs are counted."""
    reports = sweep.settings.reports
    changes: dict[str, Any] = {**values, "tracking.run_name": name}
    train = with_values(sweep.config, changes, "the trial's values").train
    changes["train.save_every"] = math.ceil(train.steps_for(pixels) / reports)
    if train.max_seconds:
        changes["train.save_seconds"] = train.max_seconds / reports
    if kind == "direct":
        changes["train.num_workers"] = 0
    return with_values(sweep.config, changes, "the trial's values")


def _scored(trial: Trial) -> Scored:
    scores = {round(100 * each.progress): each.val_psnr for each in trial.reports if math.isfinite(each.val_psnr)}
    return Scored(trial.values, scores, complete=trial.state == "finished")


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("sweep")
