"""What a training survives, shown on real Ray workers: kills, standstills, interrupts, a lost node, another driver.

`docs/reliability.md` lists what is promised; the tests of saves, resuming and preparing show the rest without Ray.
"""

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from inf_nerf.train.manifest import latest_checkpoint, read_manifest
from tests.pipelines.disturbed import SAVE_EVERY, STEPS, Training, prepared_city

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SAME_DB = 0.2  # on as many workers
OTHER_WORKERS_DB = 0.5  # random numbers differ


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_city(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def training(prepared: Path, tmp_path: Path) -> Iterator[Callable[..., Training]]:
    """Starts trainings in ``tmp_path / "run"`` and ends those that are left."""
    started: list[Training] = []

    def start(*overrides: str, **environment: str) -> Training:
        run_dir = tmp_path / "run"
        copied = None if run_dir.exists() else prepared
        started.append(Training(run_dir, *overrides, prepared=copied, **environment))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """PSNR of the held-out photos after a training that nothing happens to."""
    training = Training(tmp_path_factory.mktemp("undisturbed") / "run", prepared=prepared)
    try:
        training.end(0)
        return training.psnr()
    finally:
        training.close()


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_every_step_once(training: Training) -> None:
    steps = [row["step"] for row in training.rows()]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS


def test_a_worker_that_is_killed_at_a_random_step_costs_nothing_but_time(
    training: Callable[..., Training], undisturbed: float
) -> None:
    seed = time.time_ns() % 1_000_000
    dice = random.Random(seed)
    at = dice.randrange(SAVE_EVERY + 1, STEPS - SAVE_EVERY)
    running = training()
    running.wait_for(lambda: running.step() >= at)
    victim = dice.choice(running.workers())
    saved, step = running.saved(), running.step()
    victim.kill()
    running.end(0)
    print(f"seed {seed}: killed at step {step}, {running.psnr():.3f} dB, undisturbed {undisturbed:.3f} dB")
    assert step - saved <= SAVE_EVERY + 2  # rows come every second step
    assert_every_step_once(running)
    assert abs(running.psnr() - undisturbed) <= SAME_DB


@pytest.mark.long
def test_a_worker_that_stands_still_in_a_collective_is_replaced_within_its_timeout(
    training: Callable[..., Training], undisturbed: float
) -> None:
    running = training("train.collective_timeout_seconds=30")
    running.wait_for(lambda: running.step() >= STEPS // 3)
    before, saved = running.workers(), running.saved()
    before[-1].send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    running.wait_for(lambda: not any(is_alive(worker) for worker in before))
    noticed, last = time.monotonic() - stopped, running.step()
    running.end(0)
    print(f"both workers ended after {noticed:.0f} s; went on from step {saved} of {last}")
    assert noticed < 150  # half a minute, and Ray's patience with a worker that does not answer
    assert last - saved <= SAVE_EVERY + 2
    assert_every_step_once(running)
    assert abs(running.psnr() - undisturbed) <= SAME_DB


def test_a_driver_that_is_killed_is_followed_by_the_same_command_on_any_number_of_workers(
    training: Callable[..., Training], undisturbed: float
) -> None:
    first = training()
    first.wait_for(lambda: first.step() > SAVE_EVERY + 4)
    left, saved = first.workers(), first.saved()
    first.process.kill()
    first.process.wait()
    second = training()  # at once: the workers of the first may still run
    second.wait_for(lambda: len(second.workers()) == 2)
    assert not any(is_alive(worker) for worker in left)
    second.wait_for(lambda: second.saved() > saved)

    beside = training()
    assert "error: Another process is training in" in beside.end(2)

    said = second.end(130, signal.SIGINT)
    newest = latest_checkpoint(second.run_dir)
    assert newest is not None and f"Stopped and saved {newest}; the same command continues from there." in said
    assert read_manifest(newest)["num_workers"] == 2

    third = training("train.num_workers=3", "train.cpus_per_worker=0.3")
    third.end(0)
    assert_every_step_once(third)
    newest = latest_checkpoint(third.run_dir)
    assert newest is not None
    assert read_manifest(newest)["num_workers"] == 3
    print(f"three workers in the end: {third.psnr():.3f} dB, undisturbed {undisturbed:.3f} dB")
    assert abs(third.psnr() - undisturbed) <= OTHER_WORKERS_DB


@pytest.mark.long
def test_signals_before_the_first_step_and_in_a_save_save_first_and_the_same_command_goes_on(
    training: Callable[..., Training], undisturbed: float
) -> None:
    run = training()
    run.wait_for(run.workers)
    assert run.step() == 0
    run.end(130, signal.SIGINT)  # before the first step
    assert run.saved() >= 1

    run = training("train.save_every=1")
    run.wait_for(lambda: list((run.run_dir / "checkpoints").glob("*.partial")))
    run.end(143, signal.SIGTERM)  # in a save
    saved = run.saved()
    assert saved > 1
    assert not list((run.run_dir / "checkpoints").glob("*.partial"))

    run = training()
    run.end(0)
    print(f"stopped twice: {run.psnr():.3f} dB, undisturbed {undisturbed:.3f} dB")
    assert abs(run.psnr() - undisturbed) <= SAME_DB
    assert_every_step_once(run)
