"""Numbers that follow each other: what of them is course and what is scatter.

N values in the order of their steps.  Scatter is measured around a running median, so that a curve which falls or
rises is not taken for a noisy one.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

REACH = 5  # neighbours on either side that scatter is measured from
MAD_TO_DEVIATION = 1.4826  # of normally distributed values
MOST_CORRELATION = 0.95


def running_median(values: Array, reach: int) -> Array:
    """Medians [N] over up to ``reach`` neighbours on either side, as many on both, so that a line stays as it is."""
    count = len(values)
    result = np.empty(count)
    for index in range(count):
        near = min(reach, index, count - 1 - index)
        result[index] = np.median(values[index - near : index + near + 1])
    return result


def scatter(values: Array) -> Array:
    """How far each of the values [N] is from the median of its neighbours, as many on either side; the last two from
    that of the ones before, and the first two, where every training falls steeply, not at all."""
    count, left = len(values), np.zeros(len(values))
    for index in range(2, count):
        near = min(REACH, index, count - 1 - index)
        around = values[index - REACH if near < 2 and index > REACH else index - max(near, 2) : index]
        if near >= 2:
            around = np.concatenate((around, values[index + 1 : index + near + 1]))
        left[index] = values[index] - np.median(around)
    return left


def spread(values: Array) -> float:
    """Standard deviation that outliers do not change (median absolute deviation); 0 for no values."""
    return float(MAD_TO_DEVIATION * np.median(np.abs(values - np.median(values)))) if len(values) else 0.0


@dataclass(frozen=True)
class Trend:
    """Slope of a straight line through points, with its 95 % interval."""

    slope: float
    low: float
    high: float

    def probability_above(self, value: float) -> float:
        """How sure it is that the slope is more than ``value``, in [0, 1]."""
        error = (self.high - self.low) / (2 * 1.96)
        if error == 0:
            return float(self.slope > value)
        return 0.5 * (1 + math.erf((self.slope - value) / error / math.sqrt(2)))


def trend(x: ArrayLike, y: ArrayLike) -> Trend:
    """The least-squares line through N >= 3 points.

    Neighbouring errors of a training are alike, so the interval is that of N (1 - r) / (1 + r) independent points, r
    being their correlation.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) < 3 or len(x) != len(y):
        raise ValueError(f"a trend needs three points or more, got {len(x)} and {len(y)}")
    away = x - x.mean()
    room = float(away @ away)
    if room == 0:
        raise ValueError("a trend needs different places")
    slope = float(away @ y) / room
    left = y - y.mean() - slope * away
    variance = float(left @ left) / (len(x) - 2)
    before, after = left[:-1], left[1:]
    alike = float(before @ after) / max(float(left @ left), 1e-300)
    alike = min(MOST_CORRELATION, max(0.0, alike))
    error = math.sqrt(variance / room * (1 + alike) / (1 - alike))
    free = max(1.0, len(x) * (1 - alike) / (1 + alike) - 2)
    reach = (1.96 + 2.8 / free) * error  # close to Student's t from four degrees of freedom on
    return Trend(slope, slope - reach, slope + reach)
