"""As many trials at a time as a cluster holds, each with all that it needs, and never one that waits for another."""

from typing import Any

import pytest

from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from pipelines.sweeping import concurrency
from pipelines.sweeping.concurrency import max_concurrent, nodes_for_trials, resources_of


def config(workers: Any = 2, cpus: float = 1, gpus: float = 0) -> Config:
    return load_config(
        overrides=[f"train.num_workers={workers}", f"train.cpus_per_worker={cpus}", f"train.gpus_per_worker={gpus}"]
    )


@pytest.mark.parametrize(
    ("nodes", "each", "count"),
    [
        ([{"CPU": 2}], {}, 2),
        ([{"CPU": 2}], {"cpus": 0.5}, 4),
        ([{"CPU": 8}], {"cpus": 3}, 2),
        ([{"CPU": 3}, {"CPU": 3}], {"cpus": 2}, 2),  # not 3: a process never spans two nodes
        ([{"CPU": 16, "GPU": 4}, {"CPU": 64}], {"cpus": 4, "gpus": 1}, 4),
        ([{"CPU": 0.9}, {"CPU": 1}], {}, 1),
        ([{"CPU": 0.3}], {"cpus": 0.1}, 3),
    ],
)
def test_direct_trials_are_one_process_each(nodes: list[Any], each: dict[str, Any], count: int) -> None:
    assert max_concurrent(config(workers=7, **each), "direct", nodes) == count


@pytest.mark.parametrize(
    ("nodes", "each", "count"),
    [
        ([{"CPU": 5}], {}, 2),
        ([{"CPU": 4}], {}, 1),  # two would leave no CPU to what brings their tiles, and both would wait for ever
        ([{"CPU": 3}, {"CPU": 2}], {}, 2),
        ([{"CPU": 8, "GPU": 4}], {"workers": 2, "gpus": 1}, 2),
        ([{"CPU": 9}], {"workers": "[1, 4]"}, 2),  # as many as it may have, or trials would not be alike
        ([{"CPU": 4}, {"CPU": 4}, {"CPU": 1}], {"workers": 1, "cpus": 4}, 2),  # the third node brings tiles
        ([{"CPU": 4}, {"CPU": 4}], {"workers": 1, "cpus": 4}, 1),
        ([{"CPU": 2}, {"CPU": 2}], {"workers": 1, "cpus": 0.5}, 5),  # not 6: half a CPU on each node is none
    ],
)
def test_trials_with_ray_train_hold_their_workers_and_leave_a_cpu(
    nodes: list[Any], each: dict[str, Any], count: int
) -> None:
    assert max_concurrent(config(**each), "trainer", nodes) == count


def test_a_machine_without_room_for_one_trial_is_refused_and_a_cluster_may_grow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match=r"A trial needs 4 processes .* more than 4 CPUs and 0 GPUs hold; lower"):
        max_concurrent(config(4), "trainer", [{"CPU": 4}])
    with pytest.raises(InputError, match=r"train.gpus_per_worker=1, more than"):
        max_concurrent(config(1, gpus=1), "direct", [{"CPU": 4}])
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert max_concurrent(config(4), "trainer", [{"CPU": 4}]) == 1
    assert "start when the cluster has grown" in caplog.text


def test_a_ray_of_our_own_counts_as_many_cpus_as_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"Alive": True, "Resources": {"CPU": 4.0, "memory": 1e9}}
    monkeypatch.setattr(concurrency.ray, "nodes", lambda: [node, {"Alive": False, "Resources": {"CPU": 99.0}}])
    monkeypatch.setattr(concurrency, "available_cores", lambda: 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert max_concurrent(config(), "direct", nodes_for_trials(config(), "direct")) == 2
    assert max_concurrent(config(), "trainer", nodes_for_trials(config(), "trainer")) == 1
    assert max_concurrent(config(3), "trainer", nodes_for_trials(config(3), "trainer")) == 1
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert max_concurrent(config(), "direct", nodes_for_trials(config(), "direct")) == 4


def test_a_trial_with_ray_train_asks_for_no_cpu_of_its_own() -> None:
    assert "CPU" not in resources_of(config(), "trainer")
    assert resources_of(config(cpus=3, gpus=1), "direct") == {"CPU": 3, "GPU": 1}
