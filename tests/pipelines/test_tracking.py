"""What MLflow's own client reads back is what the training said; and MLflow can never end a training."""

import json
import logging
import math
import threading
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from inf_nerf.octree.topology import Octree
from pipelines import tracking
from pipelines.tracking import Tracker, artifacts_of, numbers, tracking_uri, without_password


@pytest.fixture
def client(mlflow_uri: str) -> MlflowClient:
    return MlflowClient(mlflow_uri)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "some"
    path.mkdir(parents=True)
    return path


def run_id_of(tracker: Tracker) -> str:
    assert tracker.run_id is not None
    return tracker.run_id


def test_all_config_keys_are_params(client: MlflowClient, run_dir: Path) -> None:
    config = load_config(overrides=["train.lr_init=3e-3", "tracking.run_name=mine"])
    with Tracker(config, run_dir, {"sweep": "7"}) as tracker:
        pass
    run = client.get_run(run_id_of(tracker))
    assert set(run.data.params) == set(config.flat())
    assert run.data.params["train.lr_init"] == "0.003"
    assert run.data.params["train.max_seconds"] == "null"
    assert run.info.run_name == "mine"
    assert run.data.tags["sweep"] == "7"
    assert run.data.tags["run_dir"] == str(run_dir)
    assert client.get_experiment(run.info.experiment_id).name == config.tracking.experiment


def test_rows_come_back_as_metrics_over_steps(client: MlflowClient, run_dir: Path) -> None:
    rows = [
        {"step": step, "loss": 1 / step, "level_share": {"0": 0.25, "1": 0.75}, "psnr": math.nan, "note": "text"}
        for step in range(1, 400)
    ]
    with Tracker(Config(), run_dir) as tracker:
        tracker.log_metrics(rows[:1])
        tracker.log_metrics(rows[1:])  # more metrics than one request may carry
        tracker.log_metrics([])
    history = client.get_metric_history(run_id_of(tracker), "loss")
    assert [(metric.step, metric.value) for metric in history] == [(row["step"], row["loss"]) for row in rows]
    assert client.get_run(run_id_of(tracker)).data.metrics == {
        "loss": rows[-1]["loss"],
        "level_share/0": 0.25,
        "level_share/1": 0.75,
    }


def test_octree_evaluation_pictures_and_checkpoint_are_recorded(client: MlflowClient, run_dir: Path) -> None:
    octree = Octree.from_keys(torch.tensor([1, 8, 15]), torch.tensor([30, 10, 12]), 0.1)
    evaluation = {
        "psnr": 21.5,
        "levels": [{"level": 0, "psnr": 20.0}, {"level": 1, "psnr": 23.0}],
        "images": [{"name": "a.jpg", "psnr": 19.0}],
        "right_half": {"psnr": 22.5, "levels": [{"level": 0, "psnr": 21.0}]},
    }
    picture, checkpoint = run_dir / "sheet.png", run_dir / "checkpoints" / "00000100"
    picture.write_bytes(b"picture")
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    with Tracker(Config(), run_dir) as tracker:
        tracker.log_octree(octree)
        tracker.log_evaluation(evaluation, step=100)
        tracker.log_picture(picture)
        tracker.log_checkpoint(checkpoint, "abc")
    run = client.get_run(run_id_of(tracker))
    assert run.data.metrics == {
        "octree/num_nodes": 3,
        "octree/num_levels": 2,
        "octree/nodes/level0": 1,
        "octree/nodes/level1": 2,
        "octree/points/level0": 30,
        "octree/points/level1": 22,
        "eval/psnr": 21.5,
        "eval/level0/psnr": 20,
        "eval/level1/psnr": 23,
        "eval/right_half/psnr": 22.5,
        "eval/right_half/level0/psnr": 21,
    }
    assert client.get_metric_history(run.info.run_id, "eval/psnr")[0].step == 100
    assert run.data.tags["checkpoint.path"] == str(checkpoint)
    assert run.data.tags["checkpoint.sha256"] == "abc"
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert names == {"config.yaml", "octree.json", "eval.json", "pictures"}
    stored = client.download_artifacts(run.info.run_id, "eval.json")
    assert json.loads(Path(stored).read_text()) == evaluation
    assert load_config(Path(client.download_artifacts(run.info.run_id, "config.yaml"))) == Config()


def test_a_checkpoint_is_uploaded_when_asked(client: MlflowClient, run_dir: Path) -> None:
    checkpoint = run_dir / "checkpoints" / "00000100"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    with Tracker(load_config(overrides=["tracking.log_checkpoint=true"]), run_dir) as tracker:
        tracker.log_checkpoint(checkpoint, "abc")
    (artifact,) = client.list_artifacts(run_id_of(tracker), "checkpoints/00000100")
    assert artifact.path.endswith("manifest.json")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (RuntimeError("broken"), "FAILED"),
        (InputError("A photo is missing."), "FAILED"),
        (SystemExit(1), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
    ],
)
def test_a_run_ends_as_its_training_did(
    client: MlflowClient, run_dir: Path, error: BaseException | None, status: str
) -> None:
    tracker = Tracker(Config(), run_dir)

    def training() -> None:
        with tracker:
            assert client.get_run(run_id_of(tracker)).info.status == "RUNNING"
            if error is not None:
                raise error

    if error is None:
        training()
    else:
        with pytest.raises(type(error)):
            training()
    assert client.get_run(run_id_of(tracker)).info.status == status


def test_an_interrupted_training_that_saved_is_killed_and_goes_on_in_the_same_run(
    client: MlflowClient, run_dir: Path
) -> None:
    with Tracker(Config(), run_dir) as first:
        first.log_metrics([{"step": 1, "loss": 0.5}])
        first.interrupted()
    assert client.get_run(run_id_of(first)).info.status == "KILLED"
    with Tracker(load_config(overrides=["train.steps=7"]), run_dir) as second:
        assert client.get_run(run_id_of(second)).info.status == "RUNNING"
        second.log_metrics([{"step": 2, "loss": 0.25}])
    run = client.get_run(run_id_of(second))
    assert second.run_id == first.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params["train.steps"] == str(Config().train.steps)  # MLflow keeps the first value
    assert run.data.tags["changed.train.steps"] == "7"
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 2


def test_a_run_is_unfinished_until_it_ended_well(client: MlflowClient, run_dir: Path) -> None:
    assert not Tracker(Config(), run_dir).unfinished()  # nothing was begun
    with Tracker(Config(), run_dir) as first:
        first.interrupted()
    assert Tracker(Config(), run_dir).unfinished()
    assert client.get_run(run_id_of(first)).info.status == "KILLED"  # looking changes nothing
    assert not Tracker(load_config(overrides=["tracking.experiment=other"]), run_dir).unfinished()
    assert not Tracker(load_config(overrides=["tracking.enabled=false"]), run_dir).unfinished()
    with Tracker(Config(), run_dir):
        pass
    assert not Tracker(Config(), run_dir).unfinished()


def test_another_run_directory_or_experiment_or_a_lost_run_is_a_new_run(client: MlflowClient, run_dir: Path) -> None:
    ids = []
    for directory, experiment in ((run_dir, "a"), (run_dir, "b"), (run_dir.with_name("other"), "b")):
        with Tracker(load_config(overrides=[f"tracking.experiment={experiment}"]), directory) as tracker:
            ids.append(run_id_of(tracker))
    client.delete_run(ids[-1])
    with Tracker(load_config(overrides=["tracking.experiment=b"]), run_dir.with_name("other")) as tracker:
        ids.append(run_id_of(tracker))
    assert len(set(ids)) == 4


def test_switched_off_nothing_is_imported_or_written(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str) -> None:
        raise AssertionError("MLflow was opened")

    monkeypatch.setattr(tracking, "_open_client", refuse)
    with Tracker(load_config(overrides=["tracking.enabled=false"]), run_dir) as tracker:
        tracker.log_metrics([{"step": 1, "loss": 1.0}])
        tracker.log_evaluation({"psnr": 1.0}, step=1)
        tracker.log_checkpoint(run_dir, "abc")
    assert tracker.run_id is None
    assert list(run_dir.iterdir()) == []


def test_files_go_beside_the_database_wherever_the_process_works(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, run_dir = tmp_path / "elsewhere", tmp_path / "run"
    for folder in (elsewhere, run_dir):
        folder.mkdir()
    monkeypatch.chdir(elsewhere)
    with Tracker(load_config(overrides=["tracking.experiment=beside"]), run_dir):
        pass
    assert list((tmp_path / "mlruns").rglob("config.yaml"))
    assert list(elsewhere.iterdir()) == []
    assert artifacts_of("http://10.0.0.1:5000") is None  # the server's


def test_the_config_comes_before_the_environment_before_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert tracking_uri(load_config(overrides=["tracking.uri=http://here"])) == "http://here"
    assert tracking_uri(Config()) == "http://elsewhere"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(Config()) == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("uri", ["file:./mlruns", "sqlite:///{file}/mlflow.db", "nonsense://x"])
def test_a_store_that_cannot_be_used_is_refused_before_training(tmp_path: Path, run_dir: Path, uri: str) -> None:
    file = tmp_path / "file"
    file.touch()
    tracker = Tracker(load_config(overrides=[f"tracking.uri={uri.format(file=file)}"]), run_dir)
    with pytest.raises(InputError, match=r"cannot be used .* tracking\.enabled=false"):
        tracker.__enter__()
    assert list(run_dir.iterdir()) == []


def test_a_deleted_experiment_is_refused_by_name(client: MlflowClient, run_dir: Path) -> None:
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(InputError, match=r"'gone'.*deleted"):
        Tracker(load_config(overrides=["tracking.experiment=gone"]), run_dir).__enter__()


def test_a_failing_store_is_reported_and_given_up_but_never_raised(
    client: MlflowClient, run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def fail(*args: object, **kwargs: object) -> None:
        calls.append("log_batch")
        raise ConnectionError("the store is away")

    with caplog.at_level(logging.WARNING), Tracker(Config(), run_dir) as tracker:
        monkeypatch.setattr(MlflowClient, "log_batch", fail)
        for step in range(20):
            tracker.log_metrics([{"step": step, "loss": 1.0}])
    assert len(calls) == tracking.GIVE_UP_AFTER
    assert "the store is away" in caplog.text
    assert client.get_run(run_id_of(tracker)).info.status == "FINISHED"


def test_a_slow_store_never_holds_up_metrics(
    client: MlflowClient, run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "QUEUE_LENGTH", 16)
    released, original = threading.Event(), MlflowClient.log_batch

    def wait(self: MlflowClient, *args: object, **kwargs: object) -> object:
        released.wait(10)
        return original(self, *args, **kwargs)  # pyright: ignore[reportArgumentType]

    with caplog.at_level(logging.WARNING), Tracker(Config(), run_dir) as tracker:
        monkeypatch.setattr(MlflowClient, "log_batch", wait)
        for step in range(2 * tracking.QUEUE_LENGTH):
            tracker.log_metrics([{"step": step, "loss": 1.0}])  # would wait for ever if it waited
        released.set()
        monkeypatch.undo()
    assert "metrics.jsonl has them all" in caplog.text
    kept = [metric.step for metric in client.get_metric_history(run_id_of(tracker), "loss")]
    assert kept[:10] == list(range(10))


def test_passwords_stay_out_of_files_and_messages(run_dir: Path) -> None:
    assert without_password("http://user:secret@host:5000/path") == "http://host:5000/path"
    assert without_password("sqlite:////some/where/mlflow.db") == "sqlite:////some/where/mlflow.db"
    tracker = Tracker(load_config(overrides=["tracking.uri=nonsense://user:secret@host"]), run_dir)
    with pytest.raises(InputError) as error:
        tracker.__enter__()
    assert "secret" not in str(error.value)


def test_only_finite_numbers_are_metrics() -> None:
    values = {"a": 1, "b": {"c": 2.5, "d": {}}, "e": True, "f": None, "g": math.inf, "h": [1, 2], "i": "3"}
    assert list(numbers(values)) == [("a", 1.0), ("b/c", 2.5)]
