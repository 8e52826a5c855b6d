"""Products and exponentials in vectors, against numpy."""

import numpy as np
import pytest
from numba import njit

from inf_nerf.field.heads import LEAK
from inf_nerf.field.vector_code import LANES, apply, exponentials, leaky_relus, move, product, sigmoids


@pytest.mark.parametrize(("wide", "out"), [(16, 32), (32, 16), (15, 64), (33, 70), (5, 1), (1, 3), (64, 3), (7, 13)])
def test_one_row_times_a_matrix(wide: int, out: int) -> None:
    @njit
    def run(weights, first, given, result):
        apply(wide, out, weights, first, given, result)

    random = np.random.default_rng(wide)
    weights = random.standard_normal(10 + wide * out + 5, dtype=np.float32)
    given = random.standard_normal(wide, dtype=np.float32)
    result = np.full(out + 2, 7, np.float32)
    for _ in range(2):  # nothing is left over from one call to the next
        run(weights, 10, given, result)
        expected = given @ weights[10 : 10 + wide * out].reshape(wide, out)
        np.testing.assert_allclose(result[:out], expected, rtol=1e-5, atol=1e-5)
    assert result[out:].tolist() == [7, 7]


@pytest.mark.parametrize("columns", [1, 3, 8, 16, 23, 40])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_products_of_matrices(columns: int, add: bool, turned: bool) -> None:
    random = np.random.default_rng(columns)
    for rows, inner in ((1, 1), (3, 7), (4, 16), (11, 5), (9, 0)):
        left = random.standard_normal((rows, inner), dtype=np.float32)
        right = random.standard_normal((inner, columns), dtype=np.float32)
        wide = np.full((rows, columns + 4), 3, np.float32)
        a = np.concatenate([np.zeros(5, np.float32), (left.T if turned else left).ravel()])
        b = np.concatenate([np.zeros(2, np.float32), right.ravel()])
        c = np.concatenate([np.zeros(1, np.float32), wide.ravel()])
        a_row, a_column = (1, rows) if turned else (inner, 1)
        product(rows, columns, inner, a, 5, a_row, a_column, b, 2, columns, c, 1, columns + 4, add)
        result = c[1:].reshape(wide.shape)
        expected = left @ right + (3 if add else 0)
        np.testing.assert_allclose(result[:, :columns], expected, rtol=1e-4, atol=1e-4)
        assert (result[:, columns:] == 3).all()  # between the rows nothing is written


@njit
def all_three(values, power, shade, kept, count):
    exponentials(power, 3, count)
    sigmoids(shade, 3, count)
    leaky_relus(kept, 3, count)


def test_functions_of_numbers() -> None:
    x = np.concatenate([np.linspace(-87, 87, 400), np.linspace(-1, 1, 101), [0.0]]).astype(np.float32)
    copies = [np.concatenate([np.ones(3, np.float32), x, np.full(LANES, 2, np.float32)]) for _ in range(3)]
    all_three(x, copies[0], copies[1], copies[2], len(x))
    power, shade, kept = (copy[3 : 3 + len(x)] for copy in copies)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(power / exact - 1).max() < 3e-7
    np.testing.assert_allclose(shade, 1 / (1 + 1 / exact), rtol=1e-6, atol=1e-30)
    np.testing.assert_array_equal(kept, np.where(x > 0, x, np.float32(LEAK) * x))
    assert all((copy[:3] == 1).all() for copy in copies)


def test_numbers_beyond_the_range_stay_finite_and_nan_stays_nan() -> None:
    x = np.array([-1e4, 1e4, np.inf, -np.inf, np.nan, 0, 0, 0], np.float32)
    copies = [np.concatenate([np.zeros(3, np.float32), x, np.zeros(LANES, np.float32)]) for _ in range(3)]
    all_three(x, copies[0], copies[1], copies[2], len(x))
    power, shade, kept = (copy[3 : 3 + len(x)] for copy in copies)
    assert power[0] < 1e-37 and 1e38 < power[1] < np.inf
    assert shade[:4].tolist() == pytest.approx([0, 1, 1, 0], abs=1e-37)
    assert np.isnan(power[4]) and np.isnan(shade[4]) and np.isnan(kept[4])


@pytest.mark.parametrize("count", [0, 1, 15, 16, 40])
def test_moved_numbers_arrive_where_they_are_sent(count: int) -> None:
    @njit
    def run(source, target, count):
        move(source, 3, target, 5, count)

    source, target = np.arange(80, dtype=np.float32), np.full(80, -1, np.float32)
    run(source, target, count)
    np.testing.assert_array_equal(target[5 : 5 + count], source[3 : 3 + count])
    assert (target[:5] == -1).all() and (target[5 + -(-count // LANES) * LANES :] == -1).all()
