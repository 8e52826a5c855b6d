"""The compiled product of a vector and a matrix, against numpy."""

import numpy as np
import pytest
from numba import njit

from inf_nerf.field.numba_heads import apply, relu, sigmoid


def product(wide: int, out: int):
    @njit
    def run(weights, first, given, result):
        apply(wide, out, weights, first, given, result)

    return run


@pytest.mark.parametrize(("wide", "out"), [(16, 32), (32, 16), (15, 64), (33, 70), (5, 1), (1, 3), (64, 3), (7, 13)])
def test_product_is_that_of_numpy(wide: int, out: int) -> None:
    random = np.random.default_rng(wide)
    weights = random.standard_normal(10 + wide * out + 5, dtype=np.float32)
    given = random.standard_normal(wide, dtype=np.float32)
    result = np.full(out + 2, 7, np.float32)
    run = product(wide, out)
    for _ in range(2):  # nothing is left over from one call to the next
        run(weights, 10, given, result)
        expected = given @ weights[10 : 10 + wide * out].reshape(wide, out)
        np.testing.assert_allclose(result[:out], expected, rtol=1e-5, atol=1e-5)
    assert result[out:].tolist() == [7, 7]


def test_activations() -> None:
    @njit
    def run(values):
        relu(values, 2)
        return sigmoid(values[2]), sigmoid(np.float32(-200)), sigmoid(np.float32(200))

    values = np.array([-1, 2, -3], np.float32)
    found, low, high = run(values)
    assert values.tolist() == [0, 2, -3]
    assert found == pytest.approx(1 / (1 + np.exp(3)), rel=1e-6)
    assert (low, high) == (0, 1)
