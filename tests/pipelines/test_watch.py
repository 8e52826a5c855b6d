"""An alert reaches every sink once, a failing sink ends nothing, and the strongest action is taken."""

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from inf_nerf.config import Config, load_config
from pipelines.watch import ALERTS_FILE, Watch
from pipelines.worker import PAUSE_FILE, SAVE_FILE, STOP_FILE


def config(*overrides: str) -> Config:
    return load_config(overrides=overrides)


def full(step: int) -> dict[str, Any]:
    return {"step": step, "seconds": step / 10, "host_memory": 0.99}


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / ALERTS_FILE).read_text().splitlines()]


@pytest.fixture
def received() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An address on this machine, and what was posted to it."""
    found: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/alerts", found
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_alert_reaches_file_log_tag_program_and_address_once(
    tmp_path: Path, received: tuple[str, list[dict[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    address, posted = received
    program = tmp_path / "program.py"
    program.write_text(f"import sys\nopen({str(tmp_path / 'heard')!r}, 'a').write(sys.stdin.read())\n")
    settings = config(f"monitor.webhook={address}", f"monitor.command='{sys.executable} {program}'")
    tags: dict[str, str] = {}
    with Watch(settings, tmp_path, tags.update) as watch:
        watch.take([full(10), full(20)])
        watch.take([full(30)])
    (line,) = lines(tmp_path)
    assert (line["name"], line["severity"], line["step"], line["action"]) == ("host_memory", "critical", 10, "warn")
    assert line["value"] == 0.99 and line["limit"] == 0.95 and line["run"] == tmp_path.name
    assert posted == [line] == [json.loads((tmp_path / "heard").read_text())]
    assert list(tags) == ["alert.host_memory"] and tags["alert.host_memory"].startswith("step 10: 99 %")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "Step 10, host_memory: 99 % of a machine's memory are used" in caplog.text


def test_sinks_that_fail_are_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = config("monitor.webhook=http://127.0.0.1:9/", "monitor.command='false'")
    with Watch(settings, tmp_path) as watch:
        watch.take([full(10)])
    assert "monitor.command could not be given" in caplog.text and "monitor.webhook could not be sent" in caplog.text
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize(
    ("overrides", "file"),
    [
        ((), None),
        (("monitor.stop_on=[host_memory]",), STOP_FILE),
        (("monitor.pause_on=[host_memory]",), PAUSE_FILE),
        (("monitor.checkpoint_on=[loss_spike,host_memory]",), SAVE_FILE),
        (("monitor.checkpoint_on=[host_memory]", "monitor.stop_on=[host_memory]"), STOP_FILE),
        (("monitor.stop_on=[loss_spike]",), None),
    ],
)
def test_actions_are_asked_of_the_workers(tmp_path: Path, overrides: tuple[str, ...], file: str | None) -> None:
    with Watch(config(*overrides), tmp_path) as watch:
        watch.take([full(10)])
    made = {path.name for path in tmp_path.iterdir()} - {ALERTS_FILE}
    assert made == ({file} if file else set())


def test_a_training_that_is_not_watched_is_left_alone(tmp_path: Path) -> None:
    with Watch(config("monitor.enabled=false"), tmp_path) as watch:
        watch.take([full(10)])
        watch.look()
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_does_not_come_is_told_but_not_of_a_training_that_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("pipelines.watch.time.monotonic", lambda: now[0])
    with Watch(config("monitor.stall_seconds=30"), tmp_path) as watch:
        watch.take([full(10) | {"host_memory": 0.1}])
        (tmp_path / PAUSE_FILE).touch()
        now[0] = 100.0
        watch.look()
        (tmp_path / PAUSE_FILE).unlink()
        now[0] = 129.0
        watch.look()
        assert not (tmp_path / ALERTS_FILE).exists()
        now[0] = 131.0
        watch.look()
        watch.look()
    assert [line["name"] for line in lines(tmp_path)] == ["stalled"]


def test_a_checkpoint_that_takes_long_is_no_stalled_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pipelines.watch.time.monotonic", lambda: now[0])
    nodes = tmp_path / "checkpoints/00000010.partial/nodes"
    with Watch(config("monitor.stall_seconds=30"), tmp_path) as watch:
        watch.take([full(10) | {"host_memory": 0.1}])
        nodes.mkdir(parents=True)
        for number in range(8):
            (nodes / f"r{number}.safetensors").touch()
            os.utime(nodes, (number, number))  # whatever the clock of the storage
            now[0] += 25.0
            watch.look()
        (tmp_path / "checkpoints/00000010.partial").rename(tmp_path / "checkpoints/00000010")
        now[0] += 25.0
        watch.look()
        assert not (tmp_path / ALERTS_FILE).exists()
        now[0] += 31.0
        watch.look()
    assert [line["name"] for line in lines(tmp_path)] == ["stalled"]


def test_an_alert_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"monitor.stop_on"):
        config("monitor.stop_on=[coffee]")
