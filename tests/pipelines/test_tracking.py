"""What MLflow's own client reads back is what the training said; and MLflow can never end a training."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from inf_nerf.octree.topology import Octree
from pipelines import mlflow_store, spool, track, tracking
from pipelines.mlflow_store import RUN_FILE, SPOOL_FILE, artifacts_of, tracking_uri, without_password
from pipelines.spool import Spool
from pipelines.tracking import Tracker, numbers


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(spool, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(spool, "FAREWELL_SECONDS", 0.3)


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


def test_what_the_configuration_says_of_the_run_are_tags(client: MlflowClient, run_dir: Path) -> None:
    said = ["tracking.description=A city", "tracking.version='1.0'", "tracking.labels=[large, first]"]
    with Tracker(load_config(overrides=said), run_dir) as tracker:
        pass
    tags = client.get_run(run_id_of(tracker)).data.tags
    assert (tags["mlflow.note.content"], tags["version"], tags["labels"]) == ("A city", "1.0", "large,first")
    (other := run_dir.with_name("other")).mkdir()
    with Tracker(Config(), other) as silent:
        pass
    assert not {"mlflow.note.content", "version", "labels"} & set(client.get_run(run_id_of(silent)).data.tags)


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

    monkeypatch.setattr(tracking, "open_client", refuse)
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


class Outage:
    """While it lasts, no request reaches the store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lasts = False
        for name in ("log_batch", "get_run", "update_run", "set_terminated", "log_text", "get_experiment_by_name"):
            monkeypatch.setattr(MlflowClient, name, self._around(getattr(MlflowClient, name)))

    def _around(self, original: Any) -> Any:
        def request(*arguments: Any, **named: Any) -> Any:
            if self.lasts:
                raise ConnectionError("[Errno 111] Connection refused")
            return original(*arguments, **named)

        return request


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(monkeypatch)


def rows(first: int, last: int) -> list[dict[str, Any]]:
    return [{"step": step, "loss": 1 / step, "level_share": {"0": 0.5}} for step in range(first, last + 1)]


def steps_of(client: MlflowClient, tracker: Tracker, name: str = "loss") -> list[int]:
    return [metric.step for metric in client.get_metric_history(run_id_of(tracker), name)]


def test_a_store_that_goes_away_and_comes_back_misses_nothing(
    client: MlflowClient, run_dir: Path, outage: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), Tracker(Config(), run_dir) as tracker:
        tracker.log_metrics(rows(1, 10))
        outage.lasts = True
        for step in range(11, 50):
            tracker.log_metrics(rows(step, step))
        tracker.log_evaluation({"psnr": 20.0}, step=49)
        outage.lasts = False
        tracker.log_metrics(rows(50, 60))
    assert steps_of(client, tracker) == steps_of(client, tracker, "level_share/0") == list(range(1, 61))
    assert client.get_run(run_id_of(tracker)).data.metrics["eval/psnr"] == 20.0
    assert client.get_run(run_id_of(tracker)).info.status == "FINISHED"
    assert len(caplog.records) <= 1
    assert len(Spool(run_dir / SPOOL_FILE)) == 0


def test_what_a_store_misses_to_the_end_is_sent_by_track(
    client: MlflowClient, run_dir: Path, outage: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), Tracker(Config(), run_dir) as tracker:
        tracker.log_metrics(rows(1, 5))
        outage.lasts = True
        tracker.log_metrics(rows(6, 9))
    said = [record.getMessage() for record in caplog.records]
    assert "cannot be written to (Connection refused)" in said[0]
    assert said[1].endswith(f"send them with: inf-nerf track {run_dir}") and len(said) == 2
    with pytest.raises(
        InputError, match=r"cannot be written to \(Connection refused\); 0 entries were sent and \d+ stay"
    ):
        track.run(run_dir, Config())
    outage.lasts = False
    assert client.get_run(run_id_of(tracker)).info.status == "RUNNING"  # as far as the store knows
    assert track.run(run_dir, Config()) > 0
    assert steps_of(client, tracker) == list(range(1, 10))
    run = client.get_run(run_id_of(tracker))
    assert run.info.status == "FINISHED"
    assert track.run(run_dir, Config()) == 0
    assert client.get_run(run_id_of(tracker)).info.end_time == run.info.end_time


def test_a_begun_training_goes_on_while_its_store_is_away_and_a_new_one_is_refused(
    client: MlflowClient, run_dir: Path, outage: Outage
) -> None:
    outage.lasts = True
    with pytest.raises(InputError, match=r"cannot be used \(Connection refused\); correct tracking\.uri"):
        Tracker(Config(), run_dir).__enter__()
    assert list(run_dir.iterdir()) == []
    outage.lasts = False
    with Tracker(Config(), run_dir) as first:
        first.log_metrics(rows(1, 3))
        first.interrupted()
    outage.lasts = True
    with Tracker(load_config(overrides=["train.steps=7"]), run_dir) as second:
        assert second.run_id == first.run_id
        second.log_metrics(rows(4, 6))
        second.interrupted()
    outage.lasts = False
    assert Tracker(Config(), run_dir).unfinished()
    with Tracker(load_config(overrides=["train.steps=7"]), run_dir) as third:
        third.log_metrics(rows(7, 8))
    assert steps_of(client, third) == list(range(1, 9))
    run = client.get_run(run_id_of(third))
    assert run.data.tags["changed.train.steps"] == "7"
    assert (run.info.status, third.run_id) == ("FINISHED", first.run_id)


def test_a_training_that_is_complete_sends_what_waits(client: MlflowClient, run_dir: Path, outage: Outage) -> None:
    with Tracker(Config(), run_dir) as first:
        outage.lasts = True
        first.log_metrics(rows(1, 3))
    later = Tracker(Config(), run_dir)
    assert not later.unfinished()
    later.send_waiting()  # still away: a warning
    outage.lasts = False
    later.send_waiting()
    assert steps_of(client, first) == [1, 2, 3]
    assert client.get_run(run_id_of(first)).info.status == "FINISHED"


def test_entries_that_are_sent_a_second_time_are_not_double(
    client: MlflowClient, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between a request and its mark in the file."""
    sent, drop = bytearray(), Spool.drop

    def note_and_drop(self: Spool, entries: Any) -> None:
        sent.extend(b"".join(json.dumps(entry).encode() + b"\n" for entry, _ in entries))
        drop(self, entries)

    monkeypatch.setattr(Spool, "drop", note_and_drop)
    with Tracker(Config(), run_dir) as tracker:
        tracker.log_metrics(rows(1, 400))
        tracker.log_evaluation({"psnr": 20.0}, step=400)
    before = client.get_run(run_id_of(tracker)).to_dictionary()
    (run_dir / SPOOL_FILE).write_bytes(sent)
    assert track.run(run_dir, Config()) > 400
    assert steps_of(client, tracker) == list(range(1, 401))
    assert len(client.get_metric_history(run_id_of(tracker), "eval/psnr")) == 1
    assert client.get_run(run_id_of(tracker)).to_dictionary() == before


def test_what_the_store_refuses_is_left_out_and_holds_up_nothing(
    client: MlflowClient, run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: MlflowClient, *arguments: Any) -> None:
        raise RuntimeError("the bucket wants a key")

    monkeypatch.setattr(MlflowClient, "log_artifact", broken)
    monkeypatch.setattr(mlflow_store, "RETRY_SECONDS", 0.01)
    with caplog.at_level(logging.WARNING), Tracker(Config(), run_dir) as tracker:
        tracker.log_metrics([{"step": 1, "loss": 1.0}, {"step": 1, "x" * 300: 1.0}, {"step": 2, "loss": 1.0}])
        tracker.log_artifact(run_dir / "absent")
        (run_dir / "file").touch()
        tracker.log_artifact(run_dir / "file")
        tracker.log_metrics(rows(3, 4))
    assert steps_of(client, tracker) == [1, 2, 3, 4]
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.endswith("(the bucket wants a key), which is left out.")
    assert client.get_run(run_id_of(tracker)).info.status == "FINISHED"


def test_entries_for_another_run_are_not_forgotten(client: MlflowClient, run_dir: Path, outage: Outage) -> None:
    with Tracker(Config(), run_dir) as first:
        outage.lasts = True
        first.log_metrics(rows(1, 3))
    outage.lasts = False
    other = load_config(overrides=["tracking.experiment=other"])
    with pytest.raises(InputError, match=r"keeps \d+ entries for another MLflow run; send them with inf-nerf track"):
        Tracker(other, run_dir).__enter__()
    track.run(run_dir, Config())
    with Tracker(other, run_dir) as second:
        assert second.recorded_step == -1
    assert second.run_id != first.run_id
    assert steps_of(client, first) == [1, 2, 3]


def test_track_needs_a_run_that_was_recorded(run_dir: Path) -> None:
    with pytest.raises(InputError, match=rf"holds no {RUN_FILE}"):
        track.run(run_dir, Config())


def test_a_driver_knows_which_rows_an_earlier_one_recorded(client: MlflowClient, run_dir: Path) -> None:
    with Tracker(Config(), run_dir) as first:
        assert first.recorded_step == -1
        first.log_metrics(rows(1, 7))
        first.interrupted()
    with Tracker(Config(), run_dir) as second:
        assert second.recorded_step == 7


def test_tags_are_in_the_store_and_in_the_run_directory(client: MlflowClient, run_dir: Path) -> None:
    with Tracker(Config(), run_dir, {"mlflow.parentRunId": "0" * 32}) as tracker:
        assert client.get_run(run_id_of(tracker)).data.tags["mlflow.parentRunId"] == "0" * 32  # from the beginning
        tracker.set_tags({"octree.hash": "abc"})
    assert client.get_run(run_id_of(tracker)).data.tags["octree.hash"] == "abc"
    reference = mlflow_store.RunReference.read(run_dir)
    assert reference is not None and reference.tags["octree.hash"] == "abc"


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
