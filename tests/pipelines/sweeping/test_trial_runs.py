"""The MLflow runs of trials: nested, whole, and ended as their trials did."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.prepare import Prepared
from pipelines.sweeping.journal import Report, State, Trial, name_of
from pipelines.sweeping.trial import make_run
from pipelines.sweeping.trial_runs import TrialRuns
from pipelines.tracking import Tracker
from tests.pipelines.small_city import CONFIG

STATES: tuple[tuple[State, str], ...] = (("finished", "FINISHED"), ("stopped", "KILLED"), ("failed", "FAILED"))


def log_rows(run_dir: Path, *steps: int) -> None:
    with open(run_dir / "metrics.jsonl", "a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "loss": 1 / step, "val_psnr": 18.5}) + "\n")  # of the save before


@pytest.mark.parametrize(("state", "status"), STATES)
def test_a_trial_is_a_nested_run_that_a_new_driver_continues(
    mlflow_uri: str, tmp_path: Path, city_run: Path, city_prepared: Prepared, state: State, status: str
) -> None:
    trial = Trial(3, {"loss.lambda_depth": 0.003})
    run_dir = tmp_path / "trials" / name_of(3)
    make_run(CONFIG, city_run, run_dir)
    with Tracker(CONFIG, tmp_path) as parent:
        runs = TrialRuns(tmp_path / "trials", city_prepared, parent.run_id)
        runs.start(trial)
        log_rows(run_dir, 1, 2)
        trial.reports.append(Report(2, 0.5, 0.5, 18.5))
        runs.report(trial, trial.reports[-1])
        runs.interrupt()
        again = TrialRuns(tmp_path / "trials", city_prepared, parent.run_id)
        again.start(trial)
        log_rows(run_dir, 3, 4)
        again.report(trial, Report(4, 1.0, 1.0, 19.0))
        again.end(trial, state, "a reason" if state == "failed" else None)
    client = MlflowClient(mlflow_uri)
    (experiment,) = [each for each in client.search_experiments() if each.name == CONFIG.tracking.experiment]
    (run,) = client.search_runs([experiment.experiment_id], f"tags.mlflow.parentRunId = '{parent.run_id}'")
    assert (run.info.status, run.data.tags["sweep.trial"]) == (status, "003")
    assert run.data.params["loss.lambda_depth"] == "0.003"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "val_psnr")] == [(2, 18.5), (4, 19.0)]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4]


def test_without_tracking_nothing_is_recorded(tmp_path: Path, city_prepared: Prepared) -> None:
    runs = TrialRuns(tmp_path / "trials", city_prepared, None)
    trial = Trial(0, {})
    runs.start(trial)
    runs.report(trial, Report(1, 1.0, 1.0, 18.0))
    runs.end(trial, "finished", None)
    assert not list(tmp_path.iterdir())
