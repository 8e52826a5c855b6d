"""`ray job submit` and `ray submit` train on a real head that `ray up` made of the on-premise cluster file."""

import json
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from inf_nerf.config import load_config
from inf_nerf.errors import InputError
from inf_nerf.train.manifest import latest_checkpoint, read_manifest
from pipelines import synth
from tests.pipelines.disturbed import CITY, ROOT, SETTINGS
from tests.pipelines.loopback import Loopback, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

STEPS = 40
OVERRIDES = [
    *(setting for setting in SETTINGS if not setting.startswith(("train.steps=", "train.save_every=", "tracking."))),
    "train.save_every=10",
]
TRAIN = ["--config", "configs/demo.yaml", *(word for setting in OVERRIDES for word in ("--set", setting))]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    loopback = Loopback(tmp_path_factory.mktemp("loopback"))
    try:
        loopback.up()
        yield loopback
    finally:
        loopback.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storage that the job finds under the same absolute path as its submitter, with the photos."""
    folder = tmp_path_factory.mktemp("shared")
    synth.run(folder / "city", **CITY)
    return folder


def tracking(shared: Path) -> list[str]:
    return ["--set", f"tracking.uri=sqlite:///{shared}/mlflow.db"]


def train(head: Loopback, *arguments: str, options: tuple[str, ...] = ()) -> CompletedProcess[str]:
    """A training as a job, with the arguments that it would have here."""
    return head.job("submit", *options, "--working-dir", ".", "--", "python", "-m", "pipelines.train", *arguments)


@pytest.fixture(scope="module")
def trained(head: Loopback, shared: Path) -> Path:
    """The run directory of a first job."""
    paths = ["--data-root", str(shared / "city"), "--output-dir", str(shared / "run")]
    job = train(head, *TRAIN, *paths, *tracking(shared), "--workers", "2", "--steps", str(STEPS))
    assert job.returncode == 0, job.stdout
    assert "succeeded" in job.stdout
    return shared / "run"


def newest(run_dir: Path) -> dict[str, Any]:
    checkpoint = latest_checkpoint(run_dir)
    assert checkpoint is not None
    return read_manifest(checkpoint)


def test_a_job_trains_on_two_workers_and_evaluates(trained: Path) -> None:
    manifest = newest(trained)
    assert (manifest["step"], manifest["num_workers"], manifest["complete"]) == (STEPS, 2, True)
    assert json.loads((trained / "eval.json").read_text())["psnr"] > 10
    assert yaml.safe_load((trained / "config.yaml").read_text())["train"]["steps"] == STEPS


def test_a_job_that_is_stopped_saves_and_a_new_job_continues(head: Loopback, trained: Path, shared: Path) -> None:
    again = [*TRAIN, "--output-dir", str(trained), *tracking(shared), "--workers", "2", "--resume", "latest"]
    begun = train(head, *again, "--steps", "100000", options=("--submission-id", "long", "--no-wait"))
    assert begun.returncode == 0, begun.stdout
    wait_for(lambda: newest(trained)["step"] > STEPS)
    stopped = head.job("stop", "long")
    assert stopped.returncode == 0 and "was stopped" in stopped.stdout, stopped.stdout
    left = newest(trained)
    logs = head.job("logs", "long").stdout
    assert f"Stopped and saved {latest_checkpoint(trained)}; the same command continues from there." in logs
    assert not left["complete"]

    job = train(head, *again, "--steps", str(left["step"] + 20))
    assert job.returncode == 0, job.stdout
    assert (newest(trained)["step"], newest(trained)["complete"]) == (left["step"] + 20, True)
    steps = [json.loads(line)["step"] for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[0] < STEPS


def test_a_job_with_a_wrong_config_says_what_it_would_say_here_and_fails(
    head: Loopback, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=r"'train\.stepz' is unknown; did you mean 'train\.steps'") as here:
        load_config(Path("configs/demo.yaml"), [*OVERRIDES, "train.stepz=3"])
    job = train(head, *TRAIN, "--output-dir", str(shared / "none"), "--set", "train.stepz=3")
    assert job.returncode == 1
    assert f"error: {here.value}" in job.stdout
    assert "failed with exit code 2" in job.stdout
    assert "Traceback" not in job.stdout


def test_a_job_may_not_keep_its_run_in_its_working_directory(head: Loopback, shared: Path) -> None:
    job = train(head, *TRAIN, "--data-root", str(shared / "city"), "--output-dir", "runs/here")
    assert job.returncode == 1
    assert "error: --output-dir is runs/here, relative to the working directory of this job" in job.stdout


def test_nobody_is_let_in_without_the_token(head: Loopback) -> None:
    refused = head.job("list", RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    assert "Authentication required" in refused.stdout
    other = head.job("list", RAY_AUTH_TOKEN="another token")
    assert other.returncode != 0
    assert "Authentication failed" in other.stdout


def test_ray_submit_copies_a_script_that_needs_nothing_beside_it_but_the_package(head: Loopback, shared: Path) -> None:
    mine = ["--output-dir", str(shared / "submitted"), "--data-root", str(shared / "city"), "--steps", "10"]
    settings = [word.replace("configs/demo.yaml", "inf-nerf/configs/demo.yaml") for word in TRAIN]
    done = head.submit(ROOT / "pipelines" / "train.py", *settings, *mine, *tracking(shared), "--workers", "2")
    assert done.returncode == 0, done.stdout
    assert (head.home / "train.py").is_file() and not (head.home / "pipelines").exists()
    assert (newest(shared / "submitted")["step"], newest(shared / "submitted")["num_workers"]) == (10, 2)
    assert json.loads((shared / "submitted" / "eval.json").read_text())["psnr"] > 5
