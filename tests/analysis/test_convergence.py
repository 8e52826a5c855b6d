"""Recorded trainings are judged as they went, and a projection holds what came."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from inf_nerf.analysis.convergence import Convergence, convergence, project
from inf_nerf.analysis.recorded import Recorded, read_recorded
from inf_nerf.analysis.series import Array
from inf_nerf.analysis.stability import stability

RECORDED = Path(__file__).parent / "recorded"
STEPS = np.arange(20, 20 * 201, 20)


def judge(recorded: Recorded) -> Convergence:
    steps, psnr, rate, progress = (recorded.values(key) for key in ("step", "psnr", "lr", "progress"))
    return convergence(steps, psnr, rate, progress)


def curve(limit: float = 28.0, exponent: float = 0.6, noise: float = 0.05, steps: NDArray[Any] = STEPS) -> Array:
    """PSNR that comes close to ``limit`` as a power of the steps."""
    course = limit - 60 * steps.astype(float) ** -exponent
    return course + np.random.default_rng(0).normal(0, noise, len(steps))


@pytest.mark.parametrize(
    ("name", "verdict", "loss"),
    [
        ("improving_58s", "still improving", "stable"),
        ("improving_900s", "still improving", "stable"),
        ("too_short", "too short", "too short"),
        ("converged", "converged", "stable"),
        ("plateau", "plateau", "stable"),
        ("diverged_at_once", "diverged", None),
        ("diverged_later", "diverged", "noisy"),
    ],
)
def test_recorded_training_is_judged_as_it_went(name: str, verdict: str, loss: str | None) -> None:
    recorded = read_recorded(RECORDED / f"{name}.jsonl")
    found = judge(recorded)
    assert found.verdict == verdict, found.sentence
    assert loss is None or stability(recorded.values("step"), recorded.values("loss")).verdict == loss


@pytest.mark.parametrize("name", ["improving_58s", "improving_900s", "converged"])
@pytest.mark.parametrize("part", [0.5, 0.65, 0.8])
def test_projection_from_a_part_of_a_recorded_training_holds_its_end(name: str, part: float) -> None:
    recorded = read_recorded(RECORDED / f"{name}.jsonl")
    count = max(20, round(part * len(recorded.rows)))
    found = judge(Recorded("part", recorded.rows[:count]))
    assert found.projection is not None and found.projection.at_end
    end = float(np.median(recorded.values("psnr")[-5:]))
    assert found.projection.low < end < found.projection.high
    assert abs(found.projection.psnr - end) < 0.6
    assert found.projection.step == pytest.approx(recorded.rows[-1]["step"], rel=0.05)


def test_projection_finds_the_limit_of_a_power_law() -> None:
    value, low, high = project(STEPS.astype(float), curve(noise=0.0), 1e9)
    assert value == pytest.approx(28, abs=0.1) and low <= value <= high


def test_ended_training_is_projected_to_twice_its_steps() -> None:
    found = convergence(STEPS.tolist(), curve().tolist(), progress=np.linspace(0.005, 1, 200).tolist())
    assert found.projection is not None and not found.projection.at_end
    assert found.projection.step == 2 * STEPS[-1]


def test_gain_is_that_of_a_doubling() -> None:
    found = convergence(STEPS.tolist(), (10 + 1.5 * np.log2(STEPS)).tolist())
    assert found.verdict == "still improving" and found.gain is not None
    assert found.gain.slope == pytest.approx(1.5)
    assert found.sure == pytest.approx(1.0)


def test_flat_from_the_first_row_on_is_a_plateau_and_not_converged() -> None:
    found = convergence(STEPS.tolist(), curve(limit=11.0, exponent=3.0, noise=0.02).tolist())
    assert found.verdict == "plateau" and "learns nothing" in found.advice


def test_flat_at_a_high_rate_is_a_plateau_and_at_a_low_one_converged() -> None:
    psnr = np.minimum(15 + 0.01 * STEPS, 25) + np.random.default_rng(0).normal(0, 0.03, len(STEPS))
    high, low = np.full(200, 0.01), np.geomspace(0.01, 0.0001, 200)
    assert convergence(STEPS.tolist(), psnr.tolist(), high.tolist()).verdict == "plateau"
    found = convergence(STEPS.tolist(), psnr.tolist(), low.tolist())
    assert found.verdict == "converged" and "More steps bring little" in found.advice
    assert found.flat_since is not None and 700 <= found.flat_since <= 1400
    assert found.projection is not None and found.projection.psnr == pytest.approx(25, abs=0.3)


def test_flat_since_the_rate_has_fallen_asks_for_a_longer_schedule() -> None:
    psnr = np.minimum(15 + 0.005 * STEPS, 25) + np.random.default_rng(0).normal(0, 0.03, len(STEPS))
    found = convergence(STEPS.tolist(), psnr.tolist(), np.geomspace(0.01, 0.00001, 200).tolist())
    assert found.verdict == "converged" and "a longer schedule may bring more" in found.advice


def test_fall_or_a_row_without_a_number_at_the_end_is_divergence() -> None:
    fallen = curve()
    fallen[150:] -= np.linspace(0, 6, 50)
    assert convergence(STEPS.tolist(), fallen.tolist()).verdict == "diverged"
    lost = curve()
    lost[-1] = np.nan
    assert convergence(STEPS.tolist(), lost.tolist()).verdict == "diverged"
    assert convergence(STEPS.tolist(), curve().tolist(), stopped_not_finite=True).verdict == "diverged"
    recovered = curve()
    recovered[100] -= 8  # one bad row
    assert convergence(STEPS.tolist(), recovered.tolist()).verdict == "converged"


@pytest.mark.parametrize("count", [0, 1, 3, 19])
def test_less_than_twenty_rows_are_too_short(count: int) -> None:
    assert convergence(STEPS[:count].tolist(), curve()[:count].tolist()).verdict == "too short"


@pytest.mark.parametrize(("exponent", "verdict"), [(0.3, "still improving"), (0.6, "converged")])
@pytest.mark.parametrize("every", [1, 5, 50])
def test_verdict_does_not_depend_on_how_often_rows_are_logged(exponent: float, verdict: str, every: int) -> None:
    steps = np.arange(every, 4001, every)
    psnr = curve(exponent=exponent, noise=0.2 / every**0.5, steps=steps)
    assert convergence(steps.tolist(), psnr.tolist()).verdict == verdict
