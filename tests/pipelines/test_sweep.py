"""Sweeps: what they refuse, and one on a real Ray whose driver is killed half way and continues."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from inf_nerf.config import load_config
from inf_nerf.errors import InputError
from inf_nerf.train.manifest import latest_checkpoint, read_manifest
from pipelines import prepare, sweep
from pipelines.sweeping.journal import JOURNAL_FILE, Journal, Report
from pipelines.sweeping.sweep_file import load_sweep
from tests.pipelines.disturbed import CITY, SETTINGS
from tests.pipelines.small_city import cut_here

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 400
WEIGHTS = ("rgb", "depth", "sparsity", "consistency", "regularization")
SPACE = {f"loss.lambda_{name}": {"loguniform": [1e-4, 1.0]} for name in WEIGHTS}


def write_sweep(folder: Path, *overrides: str, steps: int = 60, **settings: Any) -> Path:
    """A sweep file of the tiny city."""
    budget = (f"train.steps={steps}", "train.max_seconds=null")
    config = load_config(ROOT / "configs/demo.yaml", (*SETTINGS, *budget, *overrides))
    content = config.model_dump(mode="json")
    content["sweep"] = {"space": SPACE, "city": CITY, **settings}
    path = folder / "some.yaml"
    path.write_text(json.dumps(content))
    return path


class Sweeping:
    """``inf-nerf sweep`` in a process of its own."""

    def __init__(self, path: Path, sweep_dir: Path, *more: str, **environment: str) -> None:
        self.sweep_dir = sweep_dir
        self._output = sweep_dir.parent / f"said-{time.monotonic_ns()}.txt"
        command = ["sweep", "--config", str(path), "--output-dir", str(sweep_dir), *more]
        with open(self._output, "w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines", *command],
                cwd=sweep_dir.parent,
                env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", **environment},
                stdout=output,
                stderr=output,
            )

    @property
    def said(self) -> str:
        return self._output.read_text()

    def journal(self) -> Journal:
        """A copy of the journal as it is now."""
        copy = self.sweep_dir.parent / "journal-copy"
        path = self.sweep_dir / JOURNAL_FILE
        copy.write_bytes(path.read_bytes() if path.exists() else b"")
        return Journal(copy)

    def wait_for(self, what: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            if found := what():
                return found
            assert self.process.poll() is None, self.said
            time.sleep(0.05)
        raise AssertionError(self.said)

    def end(self, code: int, number: signal.Signals | None = None) -> str:
        if number is not None:
            self.process.send_signal(number)
        assert self.process.wait(WAIT_SECONDS) == code, self.said
        return self.said

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def states(journal: Journal) -> list[str]:
    return [journal.trials[number].state for number in sorted(journal.trials)]


@pytest.mark.slow
def test_a_sweep_whose_driver_is_killed_is_finished_by_resume(mlflow_uri: str, tmp_path: Path) -> None:
    path = write_sweep(
        tmp_path, "tracking.enabled=true", "train.cpus_per_worker=1", num_samples=5, searcher="optuna", reports=4
    )
    sweep_dir = tmp_path / "sweep"
    first = Sweeping(path, sweep_dir)
    try:
        first.wait_for(lambda: sum(state != "running" for state in states(first.journal())) >= 2)
        first.wait_for(lambda: any(trial.reports for trial in first.journal().unfinished()))
        children = psutil.Process(first.process.pid).children(recursive=True)
        first.process.kill()
        first.process.wait()
    finally:
        first.close()
    before = first.journal()
    ended = {number: trial for number, trial in before.trials.items() if trial.state != "running"}
    assert 2 <= len(ended) < 5
    checkpoints = {number: _newest(sweep_dir, number) for number in ended}
    psutil.wait_procs(children, timeout=30)

    refused = Sweeping(path, sweep_dir)
    assert "give --resume to continue it" in refused.end(2)
    second = Sweeping(path, sweep_dir, "--resume")
    try:
        said = second.end(0)
    finally:
        second.close()
    assert "Traceback" not in said
    journal = Journal(sweep_dir / JOURNAL_FILE)
    assert sorted(journal.trials) == [*range(5)]
    assert set(states(journal)) <= {"finished", "stopped"}
    for number, trial in ended.items():
        assert journal.trials[number] == trial, "a trial that had ended was touched"
        assert not re.search(rf"trial {number:03d} starts", said)
        assert _newest(sweep_dir, number) == checkpoints[number]
    for trial in before.unfinished():
        if trial.reports:
            assert journal.trials[trial.number].reports[: len(trial.reports)] == trial.reports
            steps = [report.step for report in journal.trials[trial.number].reports]
            assert steps == sorted(set(steps)), "reported once each"

    results = json.loads((sweep_dir / "results.json").read_text())
    best = journal.trials[results["best"]]
    assert best.state == "finished"
    assert best.score == max(trial.score or 0 for trial in journal.trials.values() if trial.state == "finished")
    assert load_config(sweep_dir / "best.yaml").flat().items() >= best.values.items()
    assert "val PSNR of all trials" in said
    for name in ("sensitivity", "parallel", "curves"):
        assert (sweep_dir / "plots" / f"{name}.svg").stat().st_size > 2000
    _check_mlflow(mlflow_uri, journal, sweep_dir)

    again = Sweeping(path, sweep_dir)
    assert "All 5 trials" in again.end(0)


def _newest(sweep_dir: Path, number: int) -> tuple[str, str]:
    newest = latest_checkpoint(sweep_dir / "trials" / f"{number:03d}")
    assert newest is not None
    return newest.name, read_manifest(newest)["digest"]


def _check_mlflow(uri: str, journal: Journal, sweep_dir: Path) -> None:
    """One run of the sweep with a nested one for each trial, with its values and its scores."""
    client = MlflowClient(uri)
    (experiment,) = [each for each in client.search_experiments() if each.name == "inf-nerf"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "sweep")
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"results.json", "results.csv", "best.yaml", "sensitivity.svg", "parallel.svg", "curves.svg"} <= names
    nested = client.search_runs([experiment.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    by_trial = {int(run.data.tags["sweep.trial"]): run for run in nested}
    assert sorted(by_trial) == sorted(journal.trials)
    assert len(nested) == len(by_trial)
    assert len({run.data.tags["data.hash"] for run in runs}) == 1
    for number, trial in journal.trials.items():
        run = by_trial[number]
        assert run.info.status == {"finished": "FINISHED", "stopped": "KILLED"}[trial.state]
        assert {key: float(run.data.params[key]) for key in trial.values} == trial.values
        history = client.get_metric_history(run.info.run_id, "val_psnr")
        points = {metric.step: metric.value for metric in history}
        if trial.state == "finished":
            assert points.keys() >= {trial.step}
        assert points.items() <= {report.step: report.val_psnr for report in trial.reports}.items()
        steps = {metric.step for metric in client.get_metric_history(run.info.run_id, "loss")}
        rows = (sweep_dir / "trials" / f"{number:03d}" / "metrics.jsonl").read_text().splitlines()
        assert max(steps) == max(json.loads(row)["step"] for row in rows)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_sweep_that_says_how_to_go_on_and_a_failing_trial_is_in_its_table(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    path = write_sweep(
        tmp_path, steps=60, reports=2, grace=None,
        searcher="one-at-a-time", space={"train.lr_init": {"grid": [1e30]}, "loss.lambda_depth": {"grid": [0.1, 1]}},
    )  # fmt: skip
    sweep_dir = tmp_path / "sweep"
    first = Sweeping(path, sweep_dir)
    try:
        first.wait_for(lambda: any(trial.reports for trial in first.journal().trials.values()))
        said = first.end(code, number)
    finally:
        first.close()
    assert re.search(r"Stopped after \d of 4 trials; the same command with --resume continues\.", said)
    assert "Traceback" not in said
    second = Sweeping(path, sweep_dir, "--resume")
    try:
        said = second.end(0)
    finally:
        second.close()
    journal = Journal(sweep_dir / JOURNAL_FILE)
    assert states(journal) == ["finished", "failed", "finished", "finished"]
    assert "not a finite number" in str(journal.trials[1].reason)
    assert "trial 001 failed: " in said + first.said
    assert json.loads((sweep_dir / "results.json").read_text())["trials"][-1]["trial"] == 1


@pytest.mark.slow
def test_a_trial_with_ray_train_reports_what_its_workers_do(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, steps=20, reports=2, trials="trainer", space={"loss.lambda_depth": {"grid": [0.1]}})
    sweep_dir = tmp_path / "sweep"
    process = Sweeping(path, sweep_dir, RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.3")
    try:
        said = process.end(0)
    finally:
        process.close()
    assert "1 trials, 1 at a time, Ray Train each" in said
    (trial,) = Journal(sweep_dir / JOURNAL_FILE).trials.values()
    assert (trial.state, [report.step for report in trial.reports]) == ("finished", [10, 20])
    newest = latest_checkpoint(sweep_dir / "trials" / "000")
    assert newest is not None and read_manifest(newest)["complete"]
    assert load_config(sweep_dir / "trials" / "000" / "config.yaml").train.num_workers == 2


@pytest.fixture
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_cut_by_ray", cut_here)
    monkeypatch.setattr(sweep, "start_ray", lambda cpus: pytest.fail("Ray was started"))


@pytest.mark.usefixtures("_without_ray")
def test_a_directory_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    wanted = load_sweep(write_sweep(tmp_path, num_samples=2))
    with pytest.raises(InputError, match="holds no sweep to resume; leave --resume out"):
        sweep.run(wanted, tmp_path / "sweep", resume=True)
    without = load_sweep(write_sweep(tmp_path, num_samples=2, city=None))
    with pytest.raises(InputError, match="is not prepared; name the photos with --data-root or a run with --prepared"):
        sweep.run(without, tmp_path / "sweep")
    with pytest.raises(InputError, match=r"0 of 2 trials ended; give --resume"):
        sweep.run(without, tmp_path / "sweep")
    other = load_sweep(write_sweep(tmp_path, num_samples=2, city=None, seed=3))
    with pytest.raises(InputError, match=r"sweep.seed is 3, but .* begun with 0"):
        sweep.run(other, tmp_path / "sweep", resume=True)


@pytest.mark.usefixtures("_without_ray")
def test_a_prepared_run_is_read_and_must_fit(tmp_path: Path, city_run: Path) -> None:
    wanted = load_sweep(write_sweep(tmp_path, num_samples=2))
    with pytest.raises(InputError, match=r"was prepared with .*; choose another --output-dir"):
        sweep.run(wanted, tmp_path / "sweep", prepared=city_run)
    assert (tmp_path / "sweep" / "prepared").resolve() == city_run.resolve()
    with pytest.raises(InputError, match=r"reads .*, not .*; choose another --output-dir"):
        sweep.run(wanted, tmp_path / "sweep", prepared=tmp_path, resume=True)


def test_a_trial_saves_at_its_reports(tmp_path: Path) -> None:
    wanted = load_sweep(write_sweep(tmp_path, "train.max_seconds=80", steps=100, reports=8))
    config = sweep.trial_config(wanted, "direct", {"loss.lambda_depth": 0.25}, "name-000", 1000)
    assert (config.train.save_every, config.train.save_seconds, config.train.num_workers) == (13, 10.0, 0)
    assert (config.loss.lambda_depth, config.tracking.run_name) == (0.25, "name-000")
    assert sweep.trial_config(wanted, "trainer", {"train.steps": 16}, "n", 1000).train.save_every == 2
    assert sweep.trial_config(wanted, "trainer", {}, "n", 1000).train.num_workers == 2


@pytest.mark.usefixtures("_without_ray")
def test_a_sweep_that_ended_before_its_driver_died_is_reported_without_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every trial had come to its end, but the driver wrote down neither the ends nor the report."""
    wanted = load_sweep(write_sweep(tmp_path, num_samples=2, reports=2))
    monkeypatch.setattr(sweep._Driver, "_tune", lambda *given: pytest.fail("trained"))
    sweep_dir = tmp_path / "sweep"
    journal = Journal(sweep_dir / JOURNAL_FILE)
    sweep_dir.mkdir()
    sweep.keep(wanted, sweep_dir)
    journal.begin(0, wanted.space.values(0))
    journal.begin(1, wanted.space.values(1))
    journal.report(0, Report(30, 1.0, 0.5, 18.0))
    journal.report(1, Report(30, 1.0, 0.5, 17.0))  # behind
    journal.report(0, Report(60, 2.0, 1.0, 19.0))
    assert sweep.run(wanted, sweep_dir, resume=True) == 0
    assert states(Journal(sweep_dir / JOURNAL_FILE)) == ["finished", "stopped"]
    assert "Best: trial 000 with 19.00 dB" in capsys.readouterr().out


def test_reports_of_a_trial_divide_its_epochs(tmp_path: Path) -> None:
    wanted = load_sweep(write_sweep(tmp_path, "train.epochs=2", "train.batch_size=10", steps=100, reports=8))
    assert sweep.trial_config(wanted, "direct", {}, "name", 1000).train.save_every == 25
    assert sweep.trial_config(wanted, "direct", {"train.epochs": 4.0}, "name", 1000).train.save_every == 50
