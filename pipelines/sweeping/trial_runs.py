"""The MLflow runs of a sweep's trials, nested in the sweep's own; written by the sweep's driver alone."""

import logging
from pathlib import Path

from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from inf_nerf.train.manifest import latest_checkpoint, read_manifest
from pipelines.prepare import CONFIG_FILE, Prepared
from pipelines.progress import METRICS_FILE, RowReader
from pipelines.provenance import provenance
from pipelines.sweeping.journal import Report, State, Trial, name_of
from pipelines.sweeping.tuning import METRIC
from pipelines.tracking import Tracker

PARENT_TAG = "mlflow.parentRunId"  # by which MLflow knows nested runs

log = logging.getLogger(__name__)


class TrialRuns:
    """Follows what trials write into their run directories; never raises."""

    def __init__(self, trials_dir: Path, prepared: Prepared, parent: str | None) -> None:
        """``parent`` is the id of the sweep's run; None: nothing is recorded."""
        self._trials_dir = trials_dir
        self._prepared = prepared
        self._parent = parent
        self._open: dict[int, _TrialRun] = {}

    def start(self, trial: Trial) -> None:
        """Begin a trial's run, or continue the one it had."""
        if self._parent is None or trial.number in self._open:
            return
        run_dir = self._trials_dir / name_of(trial.number)
        try:
            self._open[trial.number] = _TrialRun(run_dir, trial, self._prepared, self._parent)
        except InputError as error:
            log.warning("Trial %s is not recorded in MLflow: %s", name_of(trial.number), error)

    def report(self, trial: Trial, report: Report) -> None:
        """Hand on what a trial logged up to a save."""
        if (run := self._open.get(trial.number)) is not None:
            run.hand_on(report)

    def end(self, trial: Trial, state: State, reason: str | None) -> None:
        """End a trial's run: FINISHED, KILLED where it was stopped early, FAILED."""
        if (run := self._open.pop(trial.number, None)) is not None:
            run.close(state, reason)

    def interrupt(self) -> None:
        """The sweep stops; its trials go on another time."""
        for number in list(self._open):
            self._open.pop(number).close("stopped", None)


class _TrialRun:
    def __init__(self, run_dir: Path, trial: Trial, prepared: Prepared, parent: str) -> None:
        config: Config = load_config(run_dir / CONFIG_FILE)
        self._run_dir = run_dir
        tags = {PARENT_TAG: parent, "sweep.trial": name_of(trial.number)}
        self._tracker = Tracker(config, run_dir, tags).__enter__()
        self._tracker.set_tags(provenance(config, run_dir, prepared))
        self._reader = RowReader(run_dir / METRICS_FILE)
        self._known = self._tracker.recorded_step  # before the driver died

    def hand_on(self, report: Report | None = None) -> None:
        # A row repeats the score of the save before it, at another step: the report has it at its own.
        rows = [
            {name: value for name, value in row.items() if name != METRIC}
            for row in self._reader.read()
            if row["step"] > self._known
        ]
        if report is not None:
            rows.append({"step": report.step, METRIC: report.val_psnr, "progress": report.progress})
        self._tracker.log_metrics(rows)

    def close(self, state: State, reason: str | None) -> None:
        self.hand_on()
        newest = latest_checkpoint(self._run_dir)
        if newest is not None:
            manifest = read_manifest(newest)
            self._tracker.log_checkpoint(newest, manifest["digest"])
            if state == "finished":
                self._tracker.log_model(newest, manifest)
        if state == "stopped":
            self._tracker.interrupted()
        failure = InputError(reason) if state == "failed" else None
        self._tracker.__exit__(type(failure) if failure else None, failure, None)
