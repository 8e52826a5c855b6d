"""Where the time of planted rows went."""

from typing import Any

import numpy as np
import pytest

from inf_nerf.analysis.performance import performance


def rows(count: int = 40, **changes: Any) -> list[dict[str, Any]]:
    """Rows of a steady training; a change is a value or a function of the row's number."""
    generator, result = np.random.default_rng(0), []
    for index in range(count):
        row: dict[str, Any] = {
            "step": 20 * (index + 1),
            "rays_per_second": 50_000 * (1 + 0.02 * generator.normal()),
            "data_share": 0.03,
            "shared_gradient_share": 0.02,
            "exchange_share": 0.0,
            "idle_share": 0.04,
            "seconds_imbalance": 0.01,
            "memory_mb": 700.0,
        }
        row |= {key: value(index) if callable(value) else value for key, value in changes.items()}
        result.append(row)
    return result


def test_steady_training_computes() -> None:
    found = performance(rows())
    assert (found.verdict, found.bottleneck, found.stalls) == ("steady", "computation", ())
    assert found.rays_per_second == pytest.approx(50_000, rel=0.02)
    assert found.shares["computation"] == pytest.approx(0.91)
    assert found.imbalance == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("changes", "bottleneck"),
    [
        ({"data_share": 0.4}, "data"),
        ({"shared_gradient_share": 0.1, "exchange_share": 0.2}, "communication"),
        ({"idle_share": 0.3}, "slow workers"),
    ],
)
def test_bottleneck_is_what_takes_most_of_the_time(changes: dict[str, Any], bottleneck: str) -> None:
    found = performance(rows(**changes))
    assert found.bottleneck == bottleneck and f"Bottleneck: {bottleneck}" in found.sentence


@pytest.mark.parametrize(("factor", "verdict"), [(0.5, "falling"), (0.97, "steady"), (2.0, "rising")])
def test_rate_that_changes_is_said_to(factor: float, verdict: str) -> None:
    generator = np.random.default_rng(1)
    found = performance(
        rows(rays_per_second=lambda index: 1000 * factor ** (index / 39) * (1 + 0.02 * generator.normal()))
    )
    assert found.verdict == verdict and found.change == pytest.approx(factor - 1, abs=0.05)


def test_stalls_are_named_by_their_steps() -> None:
    found = performance(rows(rays_per_second=lambda index: 1e3 if index == 20 else 5e4))
    assert found.stalls == (420,) and "first at step 420" in found.sentence


def test_what_rows_do_not_say_is_not_known() -> None:
    old = [{key: value for key, value in row.items() if key != "data_share"} for row in rows()]
    found = performance(old)
    assert found.shares["data"] is None and found.shares["computation"] is None
    assert found.bottleneck is None and found.advice == "" and "Bottleneck: not known" in found.sentence
    assert performance([row | {"idle_share": 0.4} for row in old]).bottleneck == "slow workers"
    none = performance([])
    assert none.verdict == "too short" and none.bottleneck is None and set(none.shares.values()) == {None}


def test_first_row_in_which_workers_get_going_does_not_count() -> None:
    assert performance(rows(rays_per_second=lambda index: 1.0 if index == 0 else 5e4)).stalls == ()


def test_memory_that_grows_is_measured() -> None:
    found = performance(rows(memory_mb=lambda index: 500 + 10 * index))
    assert found.memory_mb == 890
    assert found.memory_growth_mb == pytest.approx(890 - 595, abs=15)
