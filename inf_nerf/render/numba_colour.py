"""Colours on the CPU: samples wait until enough of one node are together, and go through its colour head together.

A single row spends most of the head's time waiting for one number after the other; ROWS of them side by side take about
a third of it each.  A row's result does not depend on what stands beside it, and a ray's colours are added up in
float64, so that a pixel does not show which others were rendered with it.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from inf_nerf.field.vector_code import LANES, ROWS, SHORT, leaky_relus, move, product, sigmoids


class Waiting(NamedTuple):
    """Samples of N nodes that want their colour, at most ROWS of each, and room for the layers of one node's."""

    waits: np.ndarray  # [N]
    ray: np.ndarray  # [N, ROWS]
    weight: np.ndarray  # [N, ROWS]
    geo: np.ndarray  # [N, ROWS * G and a vector]
    # what direction and appearance of the ray add to the first hidden layer
    base: np.ndarray  # [N, ROWS * hidden and a vector]
    one: np.ndarray
    two: np.ndarray
    last: np.ndarray  # the last layer's weights, three columns of a short vector
    last_of: np.ndarray  # [1] the node whose they are
    rgb: np.ndarray


@njit
def nobody_waits(num_nodes, num_geo, hidden):
    """Room for the samples of so many nodes; pages of nodes that none is in are never touched."""
    return Waiting(
        np.zeros(num_nodes, np.int64),
        np.zeros((num_nodes, ROWS), np.int64),
        np.zeros((num_nodes, ROWS), np.float32),
        np.zeros((num_nodes, ROWS * num_geo + LANES), np.float32),
        np.zeros((num_nodes, ROWS * hidden + LANES), np.float32),
        np.zeros(ROWS * hidden + LANES, np.float32),
        np.zeros(ROWS * hidden + LANES, np.float32),
        np.zeros(hidden * SHORT, np.float32),
        np.full(1, -1, np.int64),
        np.zeros(ROWS * SHORT + LANES, np.float32),
    )


@njit(inline="always")
def add_colour(node, ray, weight, head, base, num_geo, hidden, weights, waiting, sums):
    """Add ``weight`` times the colour behind a density head's output to ``sums[ray]`` [3], now or by and by."""
    row = waiting.waits[node]
    waiting.ray[node, row], waiting.weight[node, row] = ray, weight
    move(head, 1, waiting.geo, node * waiting.geo.shape[1] + row * num_geo, num_geo)
    move(base, 0, waiting.base, node * waiting.base.shape[1] + row * hidden, hidden)
    waiting.waits[node] = row + 1
    if row + 1 == ROWS:
        _colour(node, num_geo, hidden, weights, waiting, sums)


@njit
def colour_the_rest(num_geo, hidden, weights, waiting, sums):
    """Colour all that wait."""
    for node in range(len(waiting.waits)):
        if waiting.waits[node]:
            _colour(node, num_geo, hidden, weights, waiting, sums)


@njit
def _colour(node, num_geo, hidden, weights, waiting, sums):
    colour, geo, one, two, rgb = weights.colour[node], waiting.geo[node], waiting.one, waiting.two, waiting.rgb
    third = len(colour) - 3 * hidden  # where the last layer begins
    if waiting.last_of[0] != node:
        waiting.last_of[0] = node
        for i in range(hidden):
            for c in range(3):
                waiting.last[i * SHORT + c] = colour[third + 3 * i + c]
    sigmoids(geo, 0, ROWS * num_geo)
    move(waiting.base[node], 0, one, 0, ROWS * hidden)
    product(ROWS, hidden, num_geo, geo, 0, num_geo, 1, colour, 0, hidden, one, 0, hidden, True)
    leaky_relus(one, 0, ROWS * hidden)
    product(ROWS, hidden, hidden, one, 0, hidden, 1, colour, third - hidden * hidden, hidden, two, 0, hidden, False)
    leaky_relus(two, 0, ROWS * hidden)
    product(ROWS, SHORT, hidden, two, 0, hidden, 1, waiting.last, 0, SHORT, rgb, 0, SHORT, False)
    sigmoids(rgb, 0, ROWS * SHORT)
    for row in range(waiting.waits[node]):
        for c in range(3):
            sums[waiting.ray[node, row], c] += np.float64(waiting.weight[node, row]) * rgb[row * SHORT + c]
    waiting.waits[node] = 0
