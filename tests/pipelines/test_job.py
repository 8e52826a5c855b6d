"""In a Ray job, whose working directory is temporary, what is kept must lie elsewhere; URIs are refused everywhere."""

import json
from pathlib import Path

import pytest

from inf_nerf.config import load_config
from inf_nerf.errors import InputError
from pipelines import cli
from pipelines.job import JOB_VARIABLE, folder
from pipelines.mlflow_store import tracking_uri

RELATIVE = "is runs/x, relative to the working directory of this job, which is temporary; give an absolute path"


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB_VARIABLE, json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["train", "--output-dir", "runs/x"], "--output-dir"),
        (["train", "--output-dir", "/run", "--data-root", "runs/x"], "--data-root"),
        (["prepare", "--data-root", "/photos", "--output-dir", "runs/x"], "--output-dir"),
        (["prepare", "--data-root", "runs/x", "--output-dir", "/run"], "--data-root"),
        (["plan", "--data-root", "runs/x"], "--data-root"),
        (["synth", "--out", "runs/x"], "--out"),
        (["demo", "--output-dir", "runs/x"], "--output-dir"),
        (["eval", "/run", "--out", "runs/x"], "--out"),
        (["render", "/run", "--path", "orbit", "--out", "runs/x"], "--out"),
    ],
)
def test_relative_paths_are_refused_in_a_job_by_their_option(
    job: None, arguments: list[str], option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert f"error: {option} {RELATIVE}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_a_command_writes_by_default_is_refused_in_a_job_as_well(
    job: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo"]) == 2
    assert "error: --output-dir is runs/demo, relative" in capsys.readouterr().err


def test_relative_paths_are_fine_elsewhere_even_on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert folder("--output-dir", Path("runs/x")) == Path("runs/x")


@pytest.mark.parametrize("uri", ["s3://bucket/run", "gs://bucket/run", "memory://run"])
def test_a_run_directory_behind_a_uri_is_refused_and_nothing_is_made(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--output-dir", uri]) == 2
    said = capsys.readouterr().err
    assert f"error: --output-dir is {uri}, but" in said and "mount the store on every node" in said
    assert list(tmp_path.iterdir()) == []


def test_the_uri_of_a_folder_is_the_folder() -> None:
    assert folder("--output-dir", Path("file:///mnt/run")) == Path("/mnt/run")
    assert folder("--output-dir", Path("/mnt/odd:/run")) == Path("/mnt/odd:/run")


def test_the_default_database_is_refused_in_a_job_by_its_key(job: None) -> None:
    with pytest.raises(InputError, match=r"tracking\.uri is not set, and its default database lies in the working"):
        tracking_uri(load_config())


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "sqlite+pysqlite:///runs/mlflow.db"])
def test_a_relative_database_is_refused_in_a_job(job: None, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"tracking\.uri is .*mlflow\.db, which lies in the working directory"):
        tracking_uri(load_config(overrides=[f"tracking.uri={uri}"]))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match="which lies in the working directory"):
        tracking_uri(load_config())


@pytest.mark.parametrize("uri", ["sqlite:////mnt/mlflow.db", "http://10.0.0.1:5000", "postgresql://db/mlflow"])
def test_other_stores_are_used_in_a_job(job: None, uri: str) -> None:
    assert tracking_uri(load_config(overrides=[f"tracking.uri={uri}"])) == uri


def test_a_job_that_records_nothing_needs_no_store(job: None) -> None:
    tracking_uri(load_config(overrides=["tracking.enabled=false"]))


def test_ray_has_the_variable_by_which_a_job_is_known() -> None:
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    assert JOB_VARIABLE == RAY_JOB_CONFIG_JSON_ENV_VAR
