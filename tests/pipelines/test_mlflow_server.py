"""A real tracking server that is stopped and started again while a training runs."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipelines.mlflow_store import SPOOL_FILE
from pipelines.spool import STEP, Spool
from pipelines.tracking import numbers
from tests.pipelines.disturbed import Training, prepared_city
from tests.pipelines.test_cli import environment, run_program

SECONDS = 400.0  # that anything may take on a busy machine


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited too long until {what}"
        time.sleep(0.2)


class Server:
    """``mlflow server`` on loopback, with a database and artifacts of its own."""

    def __init__(self, folder: Path, template: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        shutil.copy(template, folder / "server.db")

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--backend-store-uri", f"sqlite:///{self._folder}/server.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # needs a dozen processes
        with open(self._folder / "server.txt", "ab") as output:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=quiet, stdout=output, stderr=output, start_new_session=True
            )
        wait_until(self.answers, "the server answers")

    def answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self._folder / "server.txt").read_text()
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as reply:
                return reply.status == 200
        except OSError:
            return False

    def stop(self) -> None:
        """Kill it and its own workers, which are the processes of its session."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(SECONDS)
            self._process = None


@pytest.fixture
def server(tmp_path: Path, mlflow_template: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    made = Server(folder, mlflow_template)
    made.start()
    yield made
    made.stop()


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from inf_nerf.config import load_config
from pipelines.tracking import Tracker

uri, first, last, pause, end = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
with Tracker(load_config(overrides=[f"tracking.uri={uri}"]), Path("run")) as tracker:
    print(tracker.recorded_step)
    for step in range(first, last + 1):
        with open("run/metrics.jsonl", "a") as file:
            file.write(f'{{"step": {step}}}\\n')
        tracker.log_metrics([{"step": step, "loss": 1 / step, "level_share": {"0": 0.5}}])
        if Path("enough").exists():
            break
        time.sleep(pause)
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""  # a driver whose training is only its rows


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_driver_whose_server_is_away_for_a_while_tells_it_every_point(server: Server, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    metrics, spool = tmp_path / "run/metrics.jsonl", tmp_path / "run" / SPOOL_FILE
    with open(tmp_path / "output.txt", "w") as output:
        driver = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, server.uri, "1", "1000000", "0.1", "end"],
            cwd=tmp_path,
            env=environment(),
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 2, "a few rows are there")
        run_id = json.loads((tmp_path / "run/mlflow_run.json").read_text())["run_id"]
        client = MlflowClient(server.uri)
        wait_until(lambda: client.get_metric_history(run_id, "loss"), "the server has a value")
        server.stop()
        stopped_at = metrics.read_text().count("\n")
        wait_until(lambda: len(Spool(spool)) > 20, "rows wait for the server")
        server.start()
        wait_until(lambda: client.get_metric_history(run_id, "loss")[-1].step > stopped_at, "the server has more")
        (tmp_path / "enough").touch()
        driver.wait(SECONDS)
    finally:
        if driver.poll() is None:
            driver.kill()
    shown = (tmp_path / "output.txt").read_text()
    assert driver.returncode == 0, shown
    assert shown.count("cannot be written to") == 1 and "still misses" not in shown
    steps = list(range(1, metrics.read_text().count("\n") + 1))
    assert steps[-1] > stopped_at + 20
    for name, value in (("loss", lambda step: 1 / step), ("level_share/0", lambda step: 0.5)):
        history = client.get_metric_history(run_id, name)
        assert [(point.step, point.value) for point in history] == [(step, value(step)) for step in steps]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(Spool(spool)) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_on_ray_workers_tells_a_server_that_was_away_every_point_of_every_row(
    server: Server, tmp_path: Path
) -> None:
    prepared = prepared_city(tmp_path / "prepared")
    endless = ("tracking.enabled=true", f"tracking.uri={server.uri}", "train.steps=1000000")
    training = Training(tmp_path / "run", *endless, prepared=prepared)
    try:
        reference = training.run_dir / "mlflow_run.json"
        training.wait_for(lambda: training.step() > 10)
        run_id = json.loads(reference.read_text())["run_id"]
        client = MlflowClient(server.uri)

        def newest() -> int:
            """The last step that the server knows of; 0 before."""
            return max((point.step for point in client.get_metric_history(run_id, "loss")), default=0)

        training.wait_for(newest)
        server.stop()
        stopped_at = training.step()
        training.wait_for(lambda: training.step() > stopped_at + 40)
        server.start()
        training.wait_for(lambda: newest() > stopped_at + 40)
        said = training.end(130, signal.SIGINT)
    finally:
        training.close()
    assert said.count("cannot be written to") == 1 and "still misses" not in said
    rows = training.rows()
    assert stopped_at + 40 < rows[-1][STEP] in (training.saved(), training.saved() - 1)  # rows come every second step
    expected: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in numbers({name: value for name, value in row.items() if name != STEP}):
            expected.setdefault(name, []).append((row[STEP], value))
    assert {"loss", "psnr", "lr"} <= expected.keys()
    for name, points in expected.items():
        assert [(point.step, point.value) for point in client.get_metric_history(run_id, name)] == points, name
    assert client.get_run(run_id).info.status == "KILLED"
    assert len(Spool(training.run_dir / SPOOL_FILE)) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_next_driver_and_track_send_what_a_killed_one_could_not(
    server: Server, tmp_path: Path, mlflow_template: Path
) -> None:
    (tmp_path / "run").mkdir()

    def drive(first: int, last: int, end: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PROGRAM, server.uri, str(first), str(last), "0", end]
        return subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=SECONDS
        )

    begun = drive(1, 5, "end")
    assert begun.returncode == 0, begun.stderr
    server.stop()
    killed = drive(6, 9, "kill")
    assert killed.returncode == -signal.SIGKILL
    ended = drive(10, 12, "end")
    assert ended.returncode == 0 and ended.stdout.strip() == "9", ended.stderr
    assert "send them with: inf-nerf track run" in ended.stderr
    refused = run_program("pipelines", "track", "run", cwd=tmp_path)
    assert refused.returncode == 2 and "Connection refused" in refused.stderr
    server.start()
    sent = run_program("pipelines", "track", "run", cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    client = MlflowClient(server.uri)
    run_id = json.loads((tmp_path / "run/mlflow_run.json").read_text())["run_id"]
    assert [point.step for point in client.get_metric_history(run_id, "loss")] == list(range(1, 13))
    assert client.get_run(run_id).info.status == "FINISHED"
    assert "Sent 0 entries" in run_program("pipelines", "track", "run", cwd=tmp_path).stdout
