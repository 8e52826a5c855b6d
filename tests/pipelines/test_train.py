"""The training stage without Ray: what it refuses before it writes, what it clears away, and what it records.

The workers' function runs in this process on the tiles of one rank; real Ray workers are tested by the command line.
"""

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray.train
import torch

from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from inf_nerf.octree.tiles import tile_file
from inf_nerf.octree.topology import key_name
from inf_nerf.train import figures, loop
from inf_nerf.train.manifest import MANIFEST, digest_of, latest_checkpoint, read_manifest
from inf_nerf.train.reservoir import RayBatch, TileBatches
from inf_nerf.train.turns import MIB, node_bytes
from pipelines import monitor, prepare, synth, train, worker
from pipelines.division import Dealing, tile_tables
from pipelines.ingest import read_tiles
from pipelines.run_lock import run_lock
from pipelines.run_log import run_id
from pipelines.signals import sigterm_leaves
from pipelines.tracking import Tracker
from tests.test_foreign_keys import EXAMPLE

SETTINGS = [
    "field.num_levels=4", "field.log2_table_size=9", "field.max_res=16", "field.hidden_density=16",
    "field.hidden_color=16", "field.appearance_dim=4", "octree.num_levels=2", "octree.min_points=4",
    "scene.pyramid_levels=2", "scene.val_every=5", "data.tile_size=16", "sampler.max_samples=32",
    "sampler.occupancy_res=8", "train.num_workers=0", "train.batch_size=64", "train.steps=4", "train.log_every=1",
    "train.val_rays=16", "train.save_every=2", "train.keep_checkpoints=9",
]  # fmt: skip
CONFIG = load_config(overrides=[*SETTINGS, "tracking.enabled=false"])


def changed(*overrides: str) -> Config:
    return load_config(None, overrides, base=CONFIG.model_dump(mode="json"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "city"
    synth.run(folder, blocks=1, photos=12, size=48, seed=0)
    return folder


def fit_here(config: Config, run_dir: Path, dealing: Dealing, start: Path | None) -> None:
    """What Ray does, without Ray."""
    prepared = prepare.read_prepared(run_dir)

    def shard(name: str) -> TileBatches:
        split, _, turn = name.partition("-")
        files = [tile_file(run_dir, photo) for photo in getattr(prepared.scene, split)]
        tiles = dealing.tiles(1)[split][int(turn or 0)]
        return lambda: read_tiles(pa.table({"file": [str(file) for file in files]}), tiles)

    settings = {"config": config, "run_dir": run_dir, "start": start, "threads": 1}
    settings |= {"log": (run_id(run_dir), logging.INFO), "pixels": dealing.pixels}
    settings |= {"partition_of": dealing.partition_of, "loads_of": {1: dealing.loads(1)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_shard", shard)
        context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
        patch.setattr(ray.train, "get_context", lambda: context)
        patch.setattr(ray.train, "report", lambda metrics: None)
        problem = worker.train_worker({**settings, "datasets": ("train", "val")})
    if problem:
        raise InputError(problem)


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(config: Config, photos: list[int], run_dir: Path, identity: str) -> Iterator[dict[str, Any]]:
        for photo in photos:
            yield prepare.cut_and_write({"photo": photo}, config, str(run_dir), identity)

    monkeypatch.setattr(prepare, "_cut_by_ray", cut)
    monkeypatch.setattr(train, "start_ray", lambda cpus: None)
    monkeypatch.setattr(train, "fit", fit_here)


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for the evaluation; the checkpoints that were evaluated."""
    evaluated: list[Path] = []

    def evaluate(run_dir: Path, config: Config, checkpoint: Path | None = None) -> dict[str, Any]:
        evaluated.append(checkpoint or train.evaluate.find_checkpoint(run_dir))
        return {"psnr": 20.0}

    monkeypatch.setattr(train.evaluate, "run", evaluate)
    return evaluated


@pytest.fixture
def trained(photos: Path, tmp_path: Path, scores: list[Path]) -> Path:
    """A run of four steps with checkpoints at two and four."""
    assert train.run(CONFIG, tmp_path / "run", data_root=photos) == 0
    return tmp_path / "run"


def content(run_dir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def steps(run_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_ends_with_checkpoints_rows_and_an_evaluation(trained: Path, scores: list[Path]) -> None:
    assert steps(trained) == [1, 2, 3, 4]
    assert scores == [trained / "checkpoints/00000004"]
    assert not list(trained.rglob("*.partial"))


def test_driver_and_rank_keep_what_they_say_under_the_name_of_the_rows(trained: Path) -> None:
    said = [json.loads(line) for line in (trained / "logs/driver.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert {line["run"] for line in said + rows} == {run_id(trained)}
    assert {line["rank"] for line in said if line["logger"] == "pipelines.worker"} == {0}  # which is this process
    assert {line["rank"] for line in said if line["logger"] in ("pipelines.train", "pipelines.watch")} <= {None}
    assert [line["step"] for line in said if line["message"].startswith("Saved")] == [2, 4]
    assert all(0 < row["data_share"] < 1 for row in rows)


def test_a_file_of_other_trainers_trains_for_its_epochs(
    photos: Path, tmp_path: Path, scores: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["train.epochs=0.03", "train.picture_every=2", "train.eval_every=3", "train.profiler=true"]
    config = load_config(EXAMPLE, [*SETTINGS, *small, "tracking.enabled=false"])
    run_dir = tmp_path / "run"
    assert train.run(config, run_dir, data_root=photos) == 0
    dealing = Dealing.of(config, (prepared := prepare.read_prepared(run_dir)).octree, tile_tables(run_dir, prepared))
    steps = config.train.steps_for(dealing.pixels)
    assert steps == -(-0.03 * dealing.pixels // 64) and 5 < steps < 60
    newest = latest_checkpoint(run_dir)
    assert newest is not None and int(newest.name) == steps
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["epoch"] == steps * 64 / dealing.pixels
    assert all("val_psnr" in row for row in rows if row["step"] % 3 == 0)
    assert rows[0]["lr"] == rows[-1]["lr"] == 0.01, "the decay of the file begins at step 50000"
    pictures = sorted(path.stem for path in (run_dir / "pictures/training").iterdir())
    assert pictures == [f"{step:08d}" for step in range(2, steps + 1, 2)]
    assert list((run_dir / "profiler").glob("rank0.*.json"))
    capsys.readouterr()
    assert train.run(config, run_dir, data_root=photos) == 0
    assert f"already trained ({steps} steps)" in capsys.readouterr().out


def test_a_directory_that_was_never_prepared_is_refused(tmp_path: Path) -> None:
    for run_dir in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match="is not prepared; name the photos with --data-root"):
            train.run(CONFIG, run_dir)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("change", ["data.tile_size=8", "field.max_res=32", "scene.val_every=4"])
def test_a_configuration_that_the_run_was_not_prepared_with_is_refused_before_anything_is_written(
    photos: Path, tmp_path: Path, change: str
) -> None:
    run_dir = tmp_path / "run"
    prepare.run(CONFIG, photos, run_dir)
    before = content(run_dir)
    with pytest.raises(InputError, match=rf"was prepared with {change.partition('=')[0]}=\d+, not \d+; choose another"):
        train.run(changed(change), run_dir)
    assert content(run_dir) == before | {".lock": b"", ".workers": b""}


def test_a_checkpoint_of_other_photos_or_a_damaged_one_is_refused_before_anything_is_renamed(trained: Path) -> None:
    early = trained / "checkpoints/00000002"
    longer, whole = changed("train.steps=8"), (early / MANIFEST).read_text()
    manifest = json.loads(whole) | {"identity": "other"}
    (early / MANIFEST).write_text(json.dumps(manifest | {"digest": digest_of(manifest)}))
    before = content(trained)
    with pytest.raises(InputError, match="belongs to other photos"):
        train.run(longer, trained, resume=str(early))
    assert content(trained) == before
    (early / MANIFEST).write_text(whole)
    (early / "nodes/r.safetensors").write_bytes(b"")
    before = content(trained)
    with pytest.raises(InputError, match=r"r\.safetensors is damaged"):
        train.run(longer, trained, resume=str(early))
    assert content(trained) == before


def test_going_back_continues_from_the_chosen_checkpoint(trained: Path) -> None:
    assert train.run(changed("train.steps=6"), trained, resume=str(trained / "checkpoints/00000002")) == 0
    assert steps(trained) == [1, 2, 3, 4, 5, 6]
    kept = {path.name.partition("-")[0] for path in (trained / "checkpoints").iterdir()}
    assert kept >= {"00000002", "00000006", "00000004.superseded"}


def test_a_checkpoint_of_another_run_starts_this_one(trained: Path, photos: Path, tmp_path: Path) -> None:
    start = str(trained / "checkpoints/00000002")
    assert train.run(changed("train.steps=3"), tmp_path / "second", data_root=photos, resume=start) == 0
    assert steps(tmp_path / "second") == [3]
    with pytest.raises(InputError, match="has checkpoints of its own"):
        train.run(changed("train.steps=9"), tmp_path / "second", resume=start)


def hashes(run_dir: Path, step: int) -> dict[str, str]:
    files = read_manifest(run_dir / f"checkpoints/{step:08d}")["files"]
    return {name: entry["sha256"] for name, entry in files.items()}


def test_what_does_not_fit_is_trained_in_turns_and_a_cap_that_is_too_small_is_refused_first(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare.run(CONFIG, photos, tmp_path / "run")
    before = content(tmp_path / "run")
    with pytest.raises(InputError, match=r"train\.node_memory_mb is 0\.01, but .* take \d"):
        train.run(changed("train.node_memory_mb=0.01"), tmp_path / "run")
    assert content(tmp_path / "run") == before | {".lock": b"", ".workers": b""}
    octree = prepare.read_prepared(tmp_path / "run").octree
    cap = node_bytes(CONFIG) * octree.num_nodes / MIB  # one less than with the background
    in_turns = changed(f"train.node_memory_mb={cap}", "train.turn_steps=1")
    assert train.run(in_turns, tmp_path / "run") == 0
    assert steps(tmp_path / "run") == [1, 2, 3, 4]
    first, second, last = (hashes(tmp_path / "run", step) for step in (1, 2, 4))
    assert len(first) < len(second) == len(last)
    assert sum(name.startswith("nodes/") for name in last) == octree.num_nodes + 1
    assert "stay untrained" not in caplog.text
    # the same command, with other turns or none, goes on with it
    assert train.run(changed("train.steps=6"), tmp_path / "run", resume="latest") == 0


@pytest.mark.usefixtures("scores")
def test_a_training_that_ends_before_the_last_turn_says_so(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)  # whatever the tests before this one left
    prepare.run(CONFIG, photos, tmp_path / "run")
    octree = prepare.read_prepared(tmp_path / "run").octree
    cap = node_bytes(CONFIG) * octree.num_nodes / MIB
    assert train.run(changed(f"train.node_memory_mb={cap}", "train.turn_steps=4"), tmp_path / "run") == 0
    assert "train.steps=4 are over before the last of 2 turns of train.turn_steps=4 begins" in caplog.text


def test_a_subtree_is_trained_again_and_the_rest_is_the_same_to_the_byte(trained: Path) -> None:
    name = key_name(int(prepare.read_prepared(trained).octree.keys[1]))
    again = changed(f"train.subtree={name}", "train.steps=3")
    with pytest.raises(InputError, match=r"train\.subtree is .* or --resume latest to change the training"):
        train.run(changed(f"train.subtree={name}"), trained)
    before = content(trained)
    for resume in ("latest", str(trained / "checkpoints/00000002")):
        with pytest.raises(InputError, match="The tree has no node r0123; the nearest one above it is r"):
            train.run(changed("train.subtree=r0123", "train.steps=3"), trained, resume=resume)
    assert content(trained) == before
    assert train.run(again, trained, resume="latest") == 0
    assert steps(trained)[-3:] == [5, 6, 7]  # the budget counts from there
    before, after = hashes(trained, 4), hashes(trained, 7)
    changed_files = {
        file for file in before if file.startswith(("nodes", "optimiser", "shared")) and before[file] != after[file]
    }
    assert changed_files == {f"nodes/{name}.safetensors", f"optimiser/{name}.safetensors"}
    assert read_manifest(trained / "checkpoints/00000007")["complete"]
    assert train.run(again, trained) == 0  # there is nothing left to do
    assert train.run(again, trained, resume="latest") == 0  # once more
    assert steps(trained)[-3:] == [8, 9, 10]


def test_an_interrupted_training_of_a_subtree_goes_on_with_its_budget(trained: Path) -> None:
    name = key_name(int(prepare.read_prepared(trained).octree.keys[1]))
    again = changed(f"train.subtree={name}", "train.steps=4", "train.save_every=2")
    assert train.run(again, trained, resume="latest") == 0
    for path in (trained / "checkpoints").glob("0000000[78]*"):
        shutil.rmtree(path)  # as if it had been stopped at step 6
    assert train.run(again, trained, resume="latest") == 0
    assert steps(trained)[-2:] == [7, 8]
    assert read_manifest(trained / "checkpoints/00000008")["budget_from"][0] == 4


def test_a_subtree_needs_a_trained_model(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.subtree=r0 trains a part of a trained model again, .* --resume\.$"):
        train.run(changed("train.subtree=r0"), tmp_path / "run", data_root=photos)


def test_what_interrupted_runs_left_is_cleared_away(trained: Path) -> None:
    for name in ("checkpoints/00000009.partial", "ray/attempt-17"):
        (trained / name).mkdir(parents=True)
        (trained / name / "file").touch()
    train.run(CONFIG, trained)
    assert not list(trained.glob("checkpoints/*.partial"))
    assert not list(trained.glob("ray/attempt-*"))


def test_garbled_rows_and_rows_past_the_checkpoint_stop_nobody(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stopped leaves garbled rows; a worker that Ray starts anew, rows past its checkpoint."""
    metrics = trained / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes() + b'\0\0}\n{"step": 5')

    def restarted(config: Config, run_dir: Path, dealing: Dealing, start: Path | None) -> None:
        metrics.write_text(metrics.read_text() + '{"step": 5}\n{"step": 6}\n')
        fit_here(config, run_dir, dealing, start)

    monkeypatch.setattr(train, "fit", restarted)
    assert train.run(changed("train.steps=6"), trained, resume="latest") == 0
    assert steps(trained) == [1, 2, 3, 4, 5, 6]


def test_two_trainings_never_share_a_run_directory(trained: Path) -> None:
    with run_lock(trained), pytest.raises(InputError, match="Another process is training in"):
        train.run(CONFIG, trained)


@pytest.mark.parametrize("name", ["nodes/r.safetensors", MANIFEST])
def test_a_damaged_newest_checkpoint_is_trained_again_from_the_one_before(
    trained: Path, scores: list[Path], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    newest = trained / "checkpoints/00000004"
    sound = content(newest)
    data = bytearray((newest / name).read_bytes())
    data[len(data) // 2] ^= 1
    (newest / name).write_bytes(bytes(data))
    assert train.run(CONFIG, trained) == 0
    (said,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert name in said and f"training goes on from {trained / 'checkpoints/00000002'}." in said
    assert steps(trained) == [1, 2, 3, 4]
    assert {path.name.partition("-")[0] for path in newest.parent.iterdir()} == {
        "00000002", "00000004", "00000004.damaged",
    }  # fmt: skip
    again = content(newest)
    assert {file for file in sound if sound[file] != again[file]} <= {MANIFEST}  # which says how long it took
    assert scores == [newest, newest]


def test_a_loss_that_is_not_finite_saves_nothing_and_says_how_to_go_on(
    photos: Path, tmp_path: Path, scores: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, whole = tmp_path / "run", loop.forward

    def poisoned(work: loop.Work, batch: RayBatch, *part: int) -> Any:
        terms, *rest = whole(work, batch, *part)
        if work.progress.step == 3:
            terms["rgb"] = terms["rgb"] * torch.nan
        return terms, *rest

    with monkeypatch.context() as patch:
        patch.setattr(loop, "forward", poisoned)
        with pytest.raises(InputError, match=r"not a finite number in step 4; nothing of it was kept: give --resume"):
            train.run(CONFIG, run_dir, data_root=photos)
    (left,) = (run_dir / "checkpoints").iterdir()
    assert left.name == "00000002"
    before = content(left)
    assert train.run(changed("train.lr_init=1e-3"), run_dir, resume="latest") == 0
    assert content(left) == before
    assert steps(run_dir) == [1, 2, 3, 4]


def test_a_second_signal_leaves_without_a_checkpoint(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def deaf(config: Config, run_dir: Path, dealing: Dealing, start: Path | None) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        while not (run_dir / worker.STOP_FILE).exists():
            time.sleep(0.01)
        asked.set()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(train, "fit", deaf)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as leaving:
        train.run(CONFIG, tmp_path / "run", data_root=photos)
    assert asked.is_set() and leaving.value.code == 143
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_evaluation_that_was_interrupted_is_recorded_by_the_same_command(
    photos: Path,
    mlflow_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scores: list[Path],
    number: signal.Signals,
) -> None:
    from mlflow import MlflowClient

    config, run_dir, client = changed("tracking.enabled=true"), tmp_path / "run", MlflowClient(mlflow_uri)

    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr(train.evaluate, "run", interrupt)
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as leaving, sigterm_leaves():
            train.run(config, run_dir, data_root=photos)
    assert getattr(leaving.value, "code", 143) == 143
    run_id = json.loads((run_dir / "mlflow_run.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == "KILLED"
    assert train.run(config, run_dir) == 0
    run = client.get_run(run_id)
    assert (run.info.status, run.data.metrics["eval/psnr"]) == ("FINISHED", 20.0)
    assert [metric.step for metric in client.get_metric_history(run_id, "eval/psnr")] == [4]
    pictures = {artifact.path for artifact in client.list_artifacts(run_id, "pictures")}
    assert pictures >= {f"pictures/plot_{name}.png" for name in ("progress", "octree", "samples")}
    ended = run.info.end_time
    assert train.run(config, run_dir) == 0  # there is nothing to record any more
    assert client.get_run(run_id).info.end_time == ended
    assert scores == [latest_checkpoint(run_dir)] * 2


def test_rows_that_a_killed_driver_did_not_read_are_recorded_by_the_next_one(
    photos: Path, mlflow_uri: str, tmp_path: Path, scores: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "log_metrics", lambda self, rows: None)
        assert train.run(changed("tracking.enabled=true"), run_dir, data_root=photos) == 0
    longer = changed("tracking.enabled=true", "train.steps=6")
    assert train.run(longer, run_dir, resume="latest") == 0
    run_id = json.loads((run_dir / "mlflow_run.json").read_text())["run_id"]
    history = MlflowClient(mlflow_uri).get_metric_history(run_id, "loss")
    assert [point.step for point in history] == steps(run_dir) == [1, 2, 3, 4, 5, 6]


def test_an_alert_that_may_stop_a_training_does_so_with_a_checkpoint_and_a_code_of_its_own(
    photos: Path, tmp_path: Path, scores: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    long = changed("train.steps=100000", "train.save_every=100000", "monitor.stop_on=[host_memory]")
    monkeypatch.setattr(figures, "host_share", lambda: 0.99)
    assert train.run(long, run_dir, data_root=photos) == train.EXIT_STOPPED
    newest = latest_checkpoint(run_dir)
    assert newest is not None and not read_manifest(newest)["complete"] and scores == []
    (alert,) = [json.loads(line) for line in (run_dir / "alerts.jsonl").read_text().splitlines()]
    assert (alert["name"], alert["step"], alert["action"]) == ("host_memory", 1, "stop")
    assert not (run_dir / worker.STOP_FILE).exists()
    assert (run_dir / "profile/rank0.json").exists()


def test_a_training_asked_to_pause_waits_until_it_is_asked_to_go_on(
    photos: Path, tmp_path: Path, scores: list[Path]
) -> None:
    run_dir = tmp_path / "run"
    long = changed("train.steps=100000", "train.save_every=100000")
    seen: list[list[int]] = []

    def disturb() -> None:
        while not (run_dir / "metrics.jsonl").exists():
            time.sleep(0.05)
        monitor.make(run_dir, "pause")
        time.sleep(2.0)  # the workers look twice a second
        seen.append(steps(run_dir))
        time.sleep(1.0)
        seen.append(steps(run_dir))
        monitor.make(run_dir, "resume")
        time.sleep(2.0)
        seen.append(steps(run_dir))
        monitor.make(run_dir, "stop")

    thread = threading.Thread(target=disturb)
    thread.start()
    assert train.run(long, run_dir, data_root=photos) == train.EXIT_STOPPED
    thread.join()
    paused, still, resumed = seen
    assert paused == still and len(resumed) > len(still)
