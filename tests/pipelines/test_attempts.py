"""What is tried again and what is not, and what is said in the end."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ControllerError, WorkerGroupError

from inf_nerf.config import load_config
from inf_nerf.errors import InputError
from inf_nerf.octree.load import TILE_TABLE
from inf_nerf.octree.partition import Partition
from pipelines import attempts, cli
from pipelines.division import Dealing

CONFIG = load_config(overrides=["train.max_failures=2", "train.num_workers=[1, 3]", "train.cpus_per_worker=0.5"])
ALONE = Dealing(lambda _: Partition(frozenset(), (frozenset(),), ((),)), {"train": TILE_TABLE.empty_table()}, 2.0)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Stands in for Ray's: every attempt raises or returns the next outcome; gives the arguments of all attempts."""

    def replace(*outcomes: Any) -> list[dict[str, Any]]:
        calls, left = [], list(outcomes)

        def make(*_: Any, **arguments: Any) -> Any:
            calls.append(arguments)

            def fit() -> Any:
                outcome = left.pop(0)
                if isinstance(outcome, Exception):
                    raise outcome
                return SimpleNamespace(return_value=outcome)

            return SimpleNamespace(fit=fit)

        monkeypatch.setattr(attempts, "datasets_for", lambda *_: ({}, None))
        monkeypatch.setattr(attempts, "TorchTrainer", make)
        return calls

    return replace


def fit(run_dir: Path) -> None:
    attempts.fit(CONFIG, run_dir, ALONE, None)


def lost() -> ControllerError:
    return ControllerError(RuntimeError("a node was lost while workers started"))


def test_an_error_of_rays_controller_is_tried_again_under_another_name(
    trainer: Callable[..., list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(9))
    monkeypatch.setattr(attempts.time, "time", lambda: next(times))
    calls = trainer(lost(), lost(), None)
    fit(tmp_path)
    assert len({call["run_config"].name for call in calls}) == 3
    assert calls[0]["scaling_config"].num_workers == (1, 3)
    assert calls[0]["run_config"].failure_config.max_failures == 2


def test_attempts_come_to_an_end(trainer: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    calls = trainer(lost(), lost(), lost(), None)
    with pytest.raises(InputError, match=r"\(a node was lost while workers started\).*the same command continues"):
        fit(tmp_path)
    assert len(calls) == 3


def test_what_a_worker_says_is_the_users_sentence(trainer: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    trainer("The photo is damaged; replace it.")
    with pytest.raises(InputError, match=r"The photo is damaged; replace it\."):
        fit(tmp_path)


def test_bad_input_that_a_worker_raised_to_the_end_is_the_users_sentence(
    trainer: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    calls = trainer(
        WorkerGroupError("two ranks failed", {0: RuntimeError("closed"), 1: InputError("The disk is full.")})
    )
    with pytest.raises(InputError) as caught:
        fit(tmp_path)
    assert cli._sentence(list(cli._with_causes(caught.value))) == "The disk is full."
    assert len(calls) == 1  # Ray itself has started the workers again
