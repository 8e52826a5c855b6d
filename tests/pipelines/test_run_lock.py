"""One training at a time, its workers included, and a lock that nobody holds stops nobody."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inf_nerf.errors import InputError
from pipelines import run_lock as locks
from pipelines.run_lock import at_work, run_lock

HOLDER = """
import sys, time
from pathlib import Path
from pipelines import run_lock
with getattr(run_lock, sys.argv[1])(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another(what: str, run_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds a lock."""
    program = [sys.executable, "-c", HOLDER, what, str(run_dir)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_driver_is_refused_until_the_first_is_gone_however_it_ended(tmp_path: Path) -> None:
    with another("run_lock", tmp_path) as driver:
        with pytest.raises(
            InputError, match=r"Another process is training in .*; wait until it ends or choose another"
        ):
            run_lock(tmp_path).__enter__()
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        with run_lock(tmp_path):
            pass


def test_a_driver_waits_for_the_workers_of_one_that_was_killed(tmp_path: Path) -> None:
    with another("at_work", tmp_path) as one, another("at_work", tmp_path) as other:
        threading.Timer(0.5, one.kill).start()
        threading.Timer(1.0, other.kill).start()
        started = time.monotonic()
        with run_lock(tmp_path):
            assert time.monotonic() - started > 0.9


def test_workers_that_stay_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.3)
    with (
        another("at_work", tmp_path),
        pytest.raises(InputError, match="Workers of an earlier training are still at work"),
    ):
        run_lock(tmp_path).__enter__()


def test_workers_work_beside_each_other_and_beside_their_driver(tmp_path: Path) -> None:
    with run_lock(tmp_path), at_work(tmp_path), at_work(tmp_path):
        pass
