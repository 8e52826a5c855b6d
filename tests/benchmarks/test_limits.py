"""Machine limits: the kernels do the work that they are timed for, and limits add up."""

import numpy as np
import pytest

from benchmarks import limits
from benchmarks.limits import Limits
from inf_nerf.field.hash_grid import GridSpec

SPEC = GridSpec(num_levels=4, features_per_level=2, log2_table_size=12, base_res=4, max_res=64)


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """A machine that reads 1 G/s from tables of 1 KiB, half as many from those of 64 KiB, and writes a quarter."""
    rates = {1 << 10: 1e9, 1 << 16: 5e8}
    monkeypatch.setattr(Limits, "_measure_gather", lambda _, size, threads: threads * rates[size])
    monkeypatch.setattr(Limits, "_measure_update", lambda _, size, threads: threads * rates[size] / 4)
    monkeypatch.setattr(Limits, "_measure_stream", lambda _, threads: 1e10)
    monkeypatch.setattr(Limits, "_measure_multiply", lambda _, threads: 1e11 * threads)
    return Limits(tuple(rates))


def test_gather_reads_every_place_once() -> None:
    table = np.random.default_rng(0).random(100)
    places = limits.places(100, 0, 800)
    assert limits.gather(table, places) == pytest.approx(table[places].sum())


def test_update_adds_one_for_every_place() -> None:
    table, places = np.zeros(10), limits.places(10, 0, 500)
    limits.update(table, places)
    assert np.array_equal(table, np.bincount(places, minlength=10))


def test_rewrite_touches_every_number() -> None:
    numbers = np.zeros(100, np.float32)
    limits.rewrite(numbers)
    assert (numbers == 1).all()


def test_rates_between_measured_sizes_are_interpolated_and_not_extended(fixed: Limits) -> None:
    assert fixed.gather(1 << 13, 1) == pytest.approx(7.5e8)
    assert fixed.gather(1, 1) == 1e9 and fixed.gather(1 << 30, 2) == 1e9


def test_encoding_limit_is_eight_accesses_per_sample_and_level_at_the_levels_own_rate(fixed: Limits) -> None:
    seconds = sum(8 * 1000 / fixed.gather(size * 8, 1) for size in SPEC.sizes)
    assert fixed.encode_ms(SPEC, 1000, 1) == pytest.approx(1000 * seconds)
    assert fixed.encode_ms(SPEC, 1000, 1, backward=True) == pytest.approx(4000 * seconds)


def test_limits_of_products_and_streams(fixed: Limits) -> None:
    assert fixed.multiply_ms(1e9, 2) == pytest.approx(5)
    assert fixed.stream_ms(1e8, 1) == pytest.approx(10)


@pytest.mark.parametrize("threads", [1, 2])
def test_real_rates_are_positive(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(limits, "ACCESSES", 1 << 10)
    monkeypatch.setattr(limits, "STREAMED", 1 << 10)
    monkeypatch.setattr(limits, "MATRIX", 16)
    rows = Limits((1 << 10, 1 << 12)).rows([threads])
    assert len(rows) == 6 and all(float(row["rate"]) >= 0 for row in rows)
