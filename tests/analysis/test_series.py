"""Course and scatter of numbers against plain references and planted values."""

import numpy as np
import pytest

from inf_nerf.analysis.series import running_median, scatter, spread, trend


def test_running_median_leaves_a_line_alone_and_passes_over_a_spike() -> None:
    line = np.arange(30.0)
    np.testing.assert_array_equal(running_median(line, 4), line)
    spiked = line.copy()
    spiked[12] += 100
    assert running_median(spiked, 4)[12] <= 13


def test_scatter_of_a_steep_line_is_nothing_and_of_noise_its_deviation() -> None:
    generator = np.random.default_rng(0)
    line, noise = np.linspace(5, -5, 400), generator.normal(0, 0.1, 400)
    np.testing.assert_allclose(scatter(line)[:-2], 0, atol=1e-12)
    assert 0.08 < spread(scatter(line + noise)) < 0.14


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_few_values_have_a_scatter_too(count: int) -> None:
    assert scatter(np.arange(count, dtype=float)).shape == (count,)
    assert spread(np.ones(count)) == 0


def test_spread_is_the_deviation_that_outliers_do_not_change() -> None:
    values = np.random.default_rng(1).normal(3, 2, 2000)
    assert spread(values) == pytest.approx(2, rel=0.07)
    values[:100] = 1e6
    assert spread(values) == pytest.approx(2, rel=0.15)


def test_trend_is_the_least_squares_line() -> None:
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=25), generator.normal(size=25)
    assert trend(x, y).slope == pytest.approx(np.polyfit(x, y, 1)[0])
    exact = trend(x, 3 * x + 1)
    assert exact.low == pytest.approx(3) and exact.high == pytest.approx(3)


@pytest.mark.parametrize("alike", [0.0, 0.6])
def test_interval_holds_the_slope_nineteen_times_of_twenty_even_if_errors_follow_each_other(alike: float) -> None:
    generator, held, trials = np.random.default_rng(3), 0, 400
    x = np.linspace(0, 1, 60)
    for _ in range(trials):
        noise = generator.normal(size=60)
        for index in range(1, 60):
            noise[index] += alike * noise[index - 1]
        found = trend(x, 2 * x + noise)
        held += found.low <= 2 <= found.high
    assert 0.9 < held / trials < 0.99


def test_probability_is_half_at_the_slope_and_grows_with_the_distance() -> None:
    found = trend([0, 1, 2, 3, 4, 5], [0, 1.1, 1.9, 3.2, 3.9, 5])
    assert found.probability_above(found.slope) == pytest.approx(0.5)
    assert found.probability_above(found.low) == pytest.approx(0.975, abs=1e-3)
    assert found.probability_above(found.high + 1) < 0.01


def test_a_trend_needs_three_different_places() -> None:
    with pytest.raises(ValueError, match="three points"):
        trend([1, 2], [1, 2])
    with pytest.raises(ValueError, match="different places"):
        trend([1, 1, 1], [1, 2, 3])
