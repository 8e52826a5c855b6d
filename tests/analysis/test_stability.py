"""A converging loss is not an unstable one, and what was planted is found where it is."""

import numpy as np
import pytest

from inf_nerf.analysis.series import Array
from inf_nerf.analysis.stability import stability

STEPS = np.arange(20, 20 * 201, 20)


def falling(noise: float = 0.03, seed: int = 0) -> Array:
    """A loss [200] that falls from 0.04 by a factor of 30, with relative noise."""
    loss = 0.0013 + 0.04 * np.exp(-STEPS / 600)
    return loss * np.exp(np.random.default_rng(seed).normal(0, noise, len(STEPS)))


def test_converging_loss_is_stable_though_it_varies_more_than_its_mean() -> None:
    loss = falling()
    assert loss.std() / loss.mean() > 1  # by which it would count as unstable
    found = stability(STEPS.tolist(), loss.tolist())
    assert found.verdict == "stable" and found.spikes == ()
    assert found.scatter == pytest.approx(0.03, abs=0.01)


def test_constant_loss_is_stable() -> None:
    found = stability(STEPS.tolist(), [0.5] * len(STEPS))
    assert found.verdict == "stable" and found.scatter == 0


@pytest.mark.parametrize("row", [10, 100, 198, 199])
def test_planted_spike_is_found_once_at_its_step(row: int) -> None:
    loss = falling()
    loss[row : row + 2] *= 3
    found = stability(STEPS.tolist(), loss.tolist())
    assert [spike.step for spike in found.spikes] == [STEPS[row]]
    assert found.spikes[0].factor == pytest.approx(3, rel=0.25)
    assert found.verdict == "noisy"


def test_many_spikes_or_loud_noise_are_unstable() -> None:
    loss = falling()
    loss[20:180:20] *= 4
    assert stability(STEPS.tolist(), loss.tolist()).verdict == "unstable"
    assert stability(STEPS.tolist(), falling(0.5).tolist()).verdict == "unstable"
    assert stability(STEPS.tolist(), falling(0.15).tolist()).verdict == "noisy"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_loss_that_is_not_finite_is_counted(value: float) -> None:
    loss = falling()
    loss[-1] = value
    found = stability(STEPS.tolist(), loss.tolist())
    assert (found.verdict, found.not_finite) == ("unstable", 1)
    assert "1 rows have no finite loss" in found.sentence


@pytest.mark.parametrize("count", [0, 1, 9])
def test_few_rows_say_nothing(count: int) -> None:
    found = stability(STEPS[:count].tolist(), falling()[:count].tolist())
    assert found.verdict == "too short" and found.scatter is None
