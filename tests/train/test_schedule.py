"""The learning rate: from its first to its last value, along an axis of steps or of the budget, or by falls."""

import pytest
import torch

from inf_nerf.config import TrainConfig
from inf_nerf.train.schedule import learning_rate
from tests.train.test_loop import Record
from tests.train.tiny import tiny_config, tiny_work


def rates(config: TrainConfig, *steps: int) -> list[float]:
    return [learning_rate(config, step, step / config.steps) for step in steps]


def test_rate_falls_exponentially_from_first_to_last_with_the_budget() -> None:
    config = TrainConfig(steps=100, lr_init=1e-2, lr_final=1e-4)
    assert rates(config, 0, 50, 100, 200) == pytest.approx([1e-2, 1e-3, 1e-4, 1e-4])
    assert learning_rate(config, 10, 0.5) == pytest.approx(1e-3), "time may be used up faster than steps"


def test_rate_stays_until_its_decay_starts() -> None:
    config = TrainConfig(steps=100, lr_init=1e-2, lr_final=1e-4, lr_decay_start=20)
    assert rates(config, 0, 20, 60, 100) == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4])


def test_decay_in_steps_ends_before_the_budget_or_goes_beyond_it() -> None:
    config = TrainConfig(steps=100, lr_init=1e-2, lr_final=1e-4, lr_decay_start=20, lr_decay_steps=40)
    assert rates(config, 20, 40, 60, 100) == pytest.approx([1e-2, 1e-3, 1e-4, 1e-4])
    assert rates(config.model_copy(update={"lr_decay_steps": 400}), 100)[0] > 1e-3


def test_decay_that_starts_after_the_budget_never_comes() -> None:
    assert rates(TrainConfig(steps=100, lr_decay_start=200), 0, 100) == [1e-2, 1e-2]


def test_rate_of_steps_is_that_of_torch() -> None:
    config = TrainConfig(schedule="step", lr_init=1e-2, lr_final=1e-9, lr_gamma=0.5, lr_every=7)
    twin = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.lr_init)
    schedule = torch.optim.lr_scheduler.StepLR(twin, step_size=config.lr_every, gamma=config.lr_gamma)
    for step in range(30):
        assert learning_rate(config, step, 0.0) == pytest.approx(schedule.get_last_lr()[0])
        twin.step()
        schedule.step()


def test_rate_of_steps_does_not_fall_below_the_last() -> None:
    assert learning_rate(TrainConfig(schedule="step", lr_final=1e-3, lr_gamma=0.1, lr_every=1), 50, 0.0) == 1e-3


def test_rows_say_the_rate_that_the_schedule_gives() -> None:
    settings = {"steps": 8, "log_every": 1, "schedule": "step", "lr_gamma": 0.5, "lr_every": 3, "lr_init": 0.01}
    rows = Record(tiny_work(tiny_config(train=settings)).work).rows
    assert [row["lr"] for row in rows] == pytest.approx([0.01] * 3 + [0.005] * 3 + [0.0025] * 2)
