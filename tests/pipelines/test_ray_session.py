"""Ray is joined where there is a cluster and started where there is none, and what it lacks is said at once."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from inf_nerf.config import load_config
from inf_nerf.errors import InputError
from inf_nerf.octree.load import TILE_TABLE
from inf_nerf.octree.partition import Partition
from pipelines import attempts
from pipelines.division import Dealing
from pipelines.ray_session import check_workers_fit, session_cpus, start_ray


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments that ``ray.init`` is called with, which does nothing."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **arguments: calls.append(arguments))
    return calls


def test_a_cluster_is_joined_with_its_own_resources(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    start_ray(7)
    (arguments,) = started
    assert not {"address", "num_cpus", "num_gpus", "resources", "object_store_memory"} & set(arguments)


def test_without_a_cluster_ray_starts_here_even_if_another_one_runs(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    start_ray(7)
    (arguments,) = started
    assert (arguments["address"], arguments["num_cpus"]) == ("local", 7)


def test_workers_that_this_machine_cannot_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = load_config(overrides=["train.num_workers=2", "train.gpus_per_worker=1"])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(session_cpus(config)), "GPU": 1.0})
    with pytest.raises(InputError, match=r"2 workers with train\.gpus_per_worker=1 need more than the 1 GPUs of this"):
        check_workers_fit(config)
    for fitting in (
        "train.num_workers=1",
        "train.num_workers=0",
        "train.num_workers=[1,2]",
        "train.gpus_per_worker=0.5",
    ):
        check_workers_fit(load_config(overrides=[fitting], base=config.model_dump(mode="json")))


def test_a_cluster_that_has_to_grow_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    config = load_config(overrides=["train.num_workers=4", "train.cpus_per_worker=2", "train.gpus_per_worker=1"])
    with caplog.at_level(logging.WARNING):
        check_workers_fit(config)
    (record,) = caplog.records
    assert "need more than the 0 GPUs that the cluster has now" in record.getMessage()


def test_local_training_uses_the_cores_that_this_process_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def trainer(*_: Any, train_loop_config: dict[str, Any], **__: Any) -> Any:
        threads.append(train_loop_config["threads"])
        return SimpleNamespace(fit=lambda: SimpleNamespace(return_value=None))

    monkeypatch.setattr(attempts, "datasets_for", lambda *_: ({}, None))
    monkeypatch.setattr(attempts, "TorchTrainer", trainer)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    dealing = Dealing(lambda _: Partition(frozenset(), (frozenset(),), ((),)), {"train": TILE_TABLE.empty_table()}, 2.0)
    attempts.fit(load_config(overrides=["train.num_workers=0"]), tmp_path, dealing, None)
    assert threads == [3]
