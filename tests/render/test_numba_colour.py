"""Colours of samples that wait for others, against one at a time."""

from typing import Any, NamedTuple

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from inf_nerf.field.heads import LEAK  # noqa: E402
from inf_nerf.field.vector_code import LANES, ROWS  # noqa: E402
from inf_nerf.render.numba_colour import add_colour, colour_the_rest, nobody_waits  # noqa: E402

GEO, GIVEN, HIDDEN, NODES, RAYS = 5, 7, 16, 3, 4


class Weights(NamedTuple):
    colour: np.ndarray


@numba.njit
def together(node, ray, weight, head, base, weights):
    waiting = nobody_waits(NODES, GEO, HIDDEN)
    sums = np.zeros((RAYS, 3))
    for q in range(len(node)):
        add_colour(node[q], ray[q], weight[q], head[q], base[q], GEO, HIDDEN, weights, waiting, sums)
    colour_the_rest(GEO, HIDDEN, weights, waiting, sums)
    return sums


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, LEAK * x)


def one_at_a_time(
    node: np.ndarray, ray: np.ndarray, weight: np.ndarray, head: np.ndarray, base: np.ndarray, weights: Weights
) -> np.ndarray:
    sums = np.zeros((RAYS, 3))
    for q in range(len(node)):
        first, rest = np.split(weights.colour[node[q]], [(GEO + GIVEN) * HIDDEN])
        second, third = np.split(rest, [HIDDEN * HIDDEN])
        geo = 1 / (1 + np.exp(-head[q, 1 : 1 + GEO]))
        one = leaky(geo @ first.reshape(-1, HIDDEN)[:GEO] + base[q, :HIDDEN])
        two = leaky(one @ second.reshape(HIDDEN, HIDDEN))
        sums[ray[q]] += weight[q] / (1 + np.exp(-two @ third.reshape(HIDDEN, 3)))
    return sums


def draw(count: int, seed: int = 0) -> tuple[Any, ...]:
    random = np.random.default_rng(seed)
    colour = random.normal(size=(NODES, (GEO + GIVEN) * HIDDEN + HIDDEN * HIDDEN + 3 * HIDDEN)) * 0.5
    return (
        random.integers(NODES, size=count),
        np.sort(random.integers(RAYS, size=count)),
        random.random(count).astype(np.float32),
        random.normal(size=(count, 1 + GEO + LANES)).astype(np.float32),
        random.normal(size=(count, HIDDEN + LANES)).astype(np.float32),
        Weights(colour.astype(np.float32)),
    )


@pytest.mark.parametrize("count", [0, 1, ROWS, ROWS * NODES * 4 + 3])
def test_waiting_changes_no_colour(count: int) -> None:
    samples = draw(count)
    np.testing.assert_allclose(together(*samples), one_at_a_time(*samples), rtol=2e-6, atol=2e-6)


def test_a_ray_looks_the_same_whichever_others_wait_beside_it() -> None:
    node, ray, weight, head, base, weights = draw(60)
    alone = ray == 2
    sums = together(node, ray, weight, head, base, weights)
    own = together(node[alone], ray[alone], weight[alone], head[alone], base[alone], weights)
    np.testing.assert_array_equal(own[2].astype(np.float32), sums[2].astype(np.float32))


def test_what_is_not_a_number_stays_where_it_is() -> None:
    node, ray, weight, head, base, weights = draw(60)
    head[ray == 1] = np.nan
    sums = together(node, ray, weight, head, base, weights)
    assert np.isnan(sums[1]).all()
    assert np.isfinite(np.delete(sums, 1, axis=0)).all()
