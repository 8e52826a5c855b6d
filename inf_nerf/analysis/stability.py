"""Whether the loss goes its way quietly: its scatter around its own course, and the spikes that stand out of it.

A converging loss falls by orders of magnitude, so its standard deviation over its mean says nothing; everything here is
about the logarithm of the loss less its running median.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from inf_nerf.analysis.series import Array, scatter, spread

SPIKE = 1.5  # a loss that is so many times its neighbours' may be a spike,
SPIKE_DEVIATIONS = 6.0  # if it is so many deviations of its scatter away
QUIET, LOUD = 0.1, 0.25  # scatter, part of the loss, up to which a training is stable, and from which on it is not
MANY_SPIKES = 3  # and more than
MANY_SPIKES_PART = 0.02  # of the rows
LEAST_ROWS = 10


@dataclass(frozen=True)
class Spike:
    """A stretch of rows whose loss stands out."""

    step: int  # of the first row
    factor: float  # the largest loss over the course


@dataclass(frozen=True)
class Stability:
    """How quiet a loss was."""

    verdict: Literal["stable", "noisy", "unstable", "too short"]
    scatter: float | None  # typical difference from the course, part of the loss
    spikes: tuple[Spike, ...]
    not_finite: int  # rows without a finite loss
    sentence: str


def stability(steps: Sequence[float], loss: Sequence[float]) -> Stability:
    """Judge the losses of rows; those that are not finite or not positive count as not finite."""
    values = np.asarray(loss, dtype=float)
    good = np.isfinite(values) & (values > 0)
    not_finite = int((~good).sum())
    at, values = np.asarray(steps, dtype=float)[good], values[good]
    if len(values) < LEAST_ROWS:
        sentence = f"{len(values)} rows have a loss; {LEAST_ROWS} are needed to tell its scatter."
        verdict = "unstable" if not_finite else "too short"
        return Stability(verdict, None, (), not_finite, _with_lost(sentence, not_finite))
    left = scatter(np.log(values))
    relative = math.expm1(spread(left))
    spikes = _spikes(at, left)
    many = len(spikes) >= MANY_SPIKES and len(spikes) > MANY_SPIKES_PART * len(values)
    verdict = "stable"
    if not_finite or many or relative > LOUD:
        verdict = "unstable"
    elif spikes or relative > QUIET:
        verdict = "noisy"
    sentence = f"The loss scatters by {relative:.1%} around its course"
    if spikes:
        worst = max(spikes, key=lambda spike: spike.factor)
        sentence += f", with {len(spikes)} spike{'s' * (len(spikes) > 1)}, the largest {worst.factor:.1f} times the "
        sentence += f"course at step {worst.step:,}"
    return Stability(verdict, relative, spikes, not_finite, _with_lost(sentence + ".", not_finite))


def _spikes(steps: Array, left: Array) -> tuple[Spike, ...]:
    """Stretches of ``left`` [N], logarithms, that are far above zero."""
    high = left > max(math.log(SPIKE), SPIKE_DEVIATIONS * spread(left))
    found: list[Spike] = []
    for index in np.flatnonzero(high):
        factor = math.exp(left[index])
        if index and high[index - 1]:
            found[-1] = Spike(found[-1].step, max(found[-1].factor, factor))
        else:
            found.append(Spike(int(steps[index]), factor))
    return tuple(found)


def _with_lost(sentence: str, not_finite: int) -> str:
    return f"{sentence} {not_finite} rows have no finite loss." if not_finite else sentence
