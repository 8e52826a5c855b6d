"""`inf-nerf monitor` shows what a run's files hold, here or behind a URI, and asks trainings for something."""

import io
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from rich.console import Console

from inf_nerf.config import load_config
from inf_nerf.errors import InputError
from inf_nerf.places import place
from inf_nerf.train.manifest import FORMAT_VERSION, MANIFEST, digest_of
from pipelines import monitor
from pipelines.monitor import Follower, sparkline
from pipelines.run_lock import run_lock
from pipelines.worker import PAUSE_FILE, SAVE_FILE, STOP_FILE


def rows(*steps: int, **values: Any) -> str:
    made = [{"step": step, "seconds": step / 10, "loss": 0.5, "rays_per_second": 1e4, **values} for step in steps]
    return "".join(json.dumps(each) + "\n" for each in made)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("train: {steps: 100}\n")
    return tmp_path


def printed(run_dir: Any, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    monitor.run(run_dir, console=console, **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_one_look_prints_the_last_row_and_every_alert_once(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").write_text(rows(10, 20) + rows(30, 40, host_memory=0.97))
    said = printed(run_dir, once=True)
    assert "step 40/100" in said and "10,000 rays/s" in said and "0:00:04 trained, 40 %" in said
    assert said.count("CRITICAL step 30, host_memory: 97 %") == 1


def test_a_run_that_did_not_begin_is_waited_for(run_dir: Path) -> None:
    assert "waiting for the first row" in printed(run_dir, once=True)


def test_following_ends_when_the_training_is_complete(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").write_text(rows(90, 100))
    manifest = {"format_version": FORMAT_VERSION, "step": 100, "complete": True}
    (newest := run_dir / "checkpoints/00000100").mkdir(parents=True)
    (newest / MANIFEST).write_text(json.dumps(manifest | {"digest": digest_of(manifest)}))
    said = printed(run_dir, interval=0.1)
    assert "step 100/100" in said and "100 %" in said


def test_following_ends_where_rows_are_overdue_and_nobody_trains(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_dir / "config.yaml").write_text("train: {steps: 100}\nmonitor: {stall_seconds: 60}\n")
    (run_dir / "metrics.jsonl").write_text(rows(10, 20))
    now = [0.0]
    monkeypatch.setattr("pipelines.monitor.time.monotonic", lambda: now[0])
    monkeypatch.setattr("pipelines.monitor.time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    said = printed(run_dir)
    assert "Nobody trains in" in said and "stalled" not in said and now[0] > 60
    follower = Follower(run_dir, load_config(run_dir / "config.yaml"))
    with run_lock(run_dir):
        follower.read()
        now[0] += 61
        assert [alert.name for alert in follower.read()[1]] == ["stalled"] and not follower.left


def test_rows_are_read_as_they_come(run_dir: Path) -> None:
    follower = Follower(run_dir, load_config(run_dir / "config.yaml"))
    assert follower.read() == ([], [])
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write(rows(10) + '{"step": 20')
        file.flush()
        assert [row["step"] for row in follower.read()[0]] == [10]
        file.write("}\n" + rows(30, not_finite=1, nodes=["r05"]))
        file.flush()
        new, alerts = follower.read()
    assert [row["step"] for row in new] == [20, 30]
    assert [(alert.name, alert.step) for alert in alerts] == [("not_finite", 30)] and "r05" in alerts[0].message
    console = Console(file=io.StringIO(), width=200)
    console.print(follower.picture())
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "rays/s" in shown and "CRITICAL step 30, not_finite" in shown


def test_a_run_behind_a_uri_is_followed(run_dir: Path) -> None:
    memory = fsspec.filesystem("memory")
    where = "/monitored/run"
    memory.pipe(f"{where}/config.yaml", b"train: {steps: 100}\n")
    memory.pipe(f"{where}/metrics.jsonl", (rows(10) + '{"step": 2').encode())
    follower = Follower(place(f"memory:/{where}"), load_config(place(f"memory:/{where}") / "config.yaml"))
    assert [row["step"] for row in follower.read()[0]] == [10]
    memory.pipe(f"{where}/metrics.jsonl", (rows(10, 20, 30)).encode())
    assert [row["step"] for row in follower.read()[0]] == [20, 30]
    assert "step 30/100" in printed(place(f"memory:/{where}"), once=True)
    with pytest.raises(InputError, match="is no local folder"):
        printed(place(f"memory:/{where}"), request="pause")
    memory.rm(where, recursive=True)


def test_requests_are_files_that_the_workers_look_for(run_dir: Path) -> None:
    with run_lock(run_dir):
        for request, file in (("pause", PAUSE_FILE), ("checkpoint", SAVE_FILE), ("stop", STOP_FILE)):
            assert f": {request}." in printed(run_dir, request=request)
            assert (run_dir / file).exists()
        printed(run_dir, request="resume")
    assert not (run_dir / PAUSE_FILE).exists()


def test_nothing_is_asked_where_nobody_trains(run_dir: Path) -> None:
    for _ in range(2):  # a lock file may be left or not
        with pytest.raises(InputError, match="Nobody trains in"):
            printed(run_dir, request="stop")
        with run_lock(run_dir):
            pass
    assert not (run_dir / STOP_FILE).exists()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run directory"):
        printed(tmp_path)


def test_bars_go_from_the_least_to_the_most() -> None:
    assert sparkline([0, 1, float("nan"), 2, 7]) == "▁▂ ▃█"
    assert sparkline([3, 3]) == "▁▁" and sparkline([]) == "" == sparkline([float("nan")])
