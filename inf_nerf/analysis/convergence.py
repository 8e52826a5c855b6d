"""Whether a training has arrived: its PSNR over the logarithm of its steps, and where that leads.

PSNR grows about by a constant for every doubling of the steps until it levels off, so the gain of a doubling, over the
last rows, is what tells whether going on is worth it.  Letters: N rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from inf_nerf.analysis.series import Array, Trend, running_median, scatter, spread, trend

Verdict = Literal["converged", "still improving", "diverged", "plateau", "too short"]

LEAST_ROWS = 20
LAST_PART, LAST_ROWS = 0.25, 10  # rows at the end by which the trend is judged: so many of all, and at least
LITTLE_GAIN = 0.3  # dB for a doubling of the steps, less than which is none
FALLEN = 1.0  # dB below its best at which a training has diverged
FALLEN_DEVIATIONS = 6.0  # and by so many deviations of the scatter
LEAST_RISE = 1.0  # dB from the first rows on, less than which nothing was learned
GREY = 10.0  # dB that a picture of one grey about has; a training that stays below has lost its way at once
ANNEALED = 0.25  # part of its largest value below which the learning rate is low
BUDGET_USED = 0.98  # part of the budget from which on a training is at its end
FIT_FROM = (0.1, 0.2, 0.3, 0.4, 0.5)  # parts of the steps before which rows are left out of the fits
MIDDLE_FIT = 2  # of these is the one that is shown
EXPONENTS = np.geomspace(0.05, 3.0, 60)


@dataclass(frozen=True)
class Projection:
    """What PSNR a training will have."""

    step: int
    psnr: float  # dB
    low: float  # of an interval, see :func:`project`
    high: float
    at_end: bool  # of the budget; False: after twice the steps


@dataclass(frozen=True)
class Convergence:
    """How far a training has come; PSNR in dB, of the training rays."""

    verdict: Verdict
    sentence: str
    advice: str
    first: float | None  # median of the first rows
    last: float | None  # and of the last
    best: float | None  # and the largest of the smoothed curve
    gain: Trend | None  # dB for a doubling of the steps, over the last rows
    sure: float | None  # probability in [0.5, 1] that the gain is on the side of LITTLE_GAIN that the verdict says
    flat_since: int | None  # step
    projection: Projection | None


def convergence(
    steps: Sequence[float],
    psnr: Sequence[float],
    rate: Sequence[float] | None = None,  # learning rates [N]
    progress: Sequence[float] | None = None,  # part of the budget [N]
    stopped_not_finite: bool = False,  # the training ended because a loss or gradient was not finite
) -> Convergence:
    """Judge the PSNR [N] of rows."""
    all_steps, all_psnr = np.asarray(steps, dtype=float), np.asarray(psnr, dtype=float)
    good = np.isfinite(all_psnr) & (all_steps > 0)
    at, value = all_steps[good], all_psnr[good]
    lost = stopped_not_finite or (len(good) > 0 and not bool(good[-1]))
    if lost or len(value) < LEAST_ROWS:
        first, last = (_median(value[:5]), _median(value[-5:])) if len(value) else (None, None)
        best = float(value.max()) if len(value) else None
        if lost:
            sentence = "It ended with a loss or gradient that is not finite."
            return Convergence("diverged", sentence, LOWER_RATE, first, last, best, None, None, None, None)
        sentence = f"{len(value)} rows have a PSNR; {LEAST_ROWS} are needed to tell where it goes."
        advice = "Train longer, or log more often (train.log_every)."
        return Convergence("too short", sentence, advice, first, last, best, None, None, None, None)
    count = len(value)
    edge = min(max(5, count // 20), count // 4)
    first, last = _median(value[:edge]), _median(value[-edge:])
    smooth = running_median(value, max(2, count // 40))
    best_at = int(smooth.argmax())
    best, noise = float(smooth[best_at]), spread(scatter(value))
    gain = _gain(at, value, _last_row(count))
    if best - last > max(FALLEN, FALLEN_DEVIATIONS * noise):
        sentence = f"PSNR fell from {best:.2f} dB at step {int(at[best_at]):,} to {last:.2f} dB."
        return Convergence("diverged", sentence, LOWER_RATE, first, last, best, gain, None, None, None)
    used = _at_last(progress, good)
    projection = _projection(at, value, None if progress is None else np.asarray(progress, dtype=float)[good], used)
    above = gain.probability_above(LITTLE_GAIN)
    told = f"A doubling of the steps brings {gain.slope:.2f} dB ({gain.low:.2f} to {gain.high:.2f})"
    if gain.slope > LITTLE_GAIN:
        sentence = f"{told}, by the last {count - _last_row(count)} rows."
        ended = used is None or used >= BUDGET_USED
        advice = "More steps are worth it (train.steps, train.max_seconds)." if ended else "Let it go on."
        return Convergence("still improving", sentence, advice, first, last, best, gain, above, None, projection)
    since = _flat_since(at, value)
    if last < GREY:
        sentence = f"PSNR stays at {last:.2f} dB, which a picture of one grey has."
        return Convergence("diverged", sentence, LOWER_RATE, first, last, best, gain, 1 - above, since, None)
    if last - first < LEAST_RISE:
        sentence = f"PSNR stayed at {last:.2f} dB from the first rows on ({first:.2f} dB)."
        advice = "It learns nothing: lower or raise train.lr_init, and look at the photos and poses (inf-nerf view)."
        return Convergence("plateau", sentence, advice, first, last, best, gain, 1 - above, since, projection)
    sentence = f"{told}; it is flat since step {since:,}."
    if rate is not None and not _annealed(np.asarray(rate, dtype=float)[good]):
        advice = (
            "Let the learning rate fall before judging it: it is still high."
            if used is not None and used < BUDGET_USED
            else "Lower train.lr_final: the learning rate was still high when PSNR stopped rising."
        )
        return Convergence("plateau", sentence, advice, first, last, best, gain, 1 - above, since, projection)
    advice = "More steps bring little; a finer tree or larger fields may (octree.num_levels, field.max_res)."
    if rate is not None and _annealed(np.asarray(rate, dtype=float)[good][at <= since]):
        advice = "It became flat when the learning rate had fallen: a longer schedule may bring more (train.steps)."
    return Convergence("converged", sentence, advice, first, last, best, gain, 1 - above, since, projection)


LOWER_RATE = "Lower train.lr_init, or set train.grad_clip=1, and go on from the last good checkpoint (--resume latest)."


def project(steps: Array, psnr: Array, target: float) -> tuple[float, float, float]:
    """PSNR at step ``target`` and an interval, by fits of ``a - b * step ** -c`` to later and later parts of rows.

    The interval holds what fits to other parts say, and grows with how far the fit is followed beyond the rows.
    """
    found = [_fit(steps[steps >= part * steps[-1]], psnr[steps >= part * steps[-1]], target) for part in FIT_FROM]
    middle = found[MIDDLE_FIT]
    noise = spread(scatter(psnr))
    beyond = abs(middle - _median(psnr[-max(3, len(psnr) // 20) :]))
    reach = max(max(found) - middle, middle - min(found), 0.4 * beyond) + 2 * noise
    return middle, middle - reach, middle + reach


def _fit(steps: Array, psnr: Array, target: float) -> float:
    """The value at ``target`` of the curve ``a - b * step ** -c`` with the least squared error."""
    best, result = math.inf, float(psnr[-1])
    for exponent in EXPONENTS:
        place = (steps / steps[-1]) ** -exponent
        away = place - place.mean()
        room = float(away @ away)
        if room == 0:
            continue
        slope = float(away @ psnr) / room
        error = float(np.square(psnr - psnr.mean() - slope * away).sum())
        if error < best:
            best = error
            result = float(psnr.mean() + slope * ((target / steps[-1]) ** -exponent - place.mean()))
    return result


def _projection(steps: Array, psnr: Array, progress: Array | None, used: float | None) -> Projection:
    target, at_end = 2 * steps[-1], False
    if progress is not None and used is not None and used < BUDGET_USED:
        half = len(progress) // 2
        done = progress[-1] - progress[half]
        if done > 0:
            target, at_end = steps[-1] + (1 - used) * (steps[-1] - steps[half]) / done, True
    value, low, high = project(steps, psnr, float(target))
    return Projection(round(float(target)), value, low, high, at_end)


def _gain(steps: Array, psnr: Array, first: int) -> Trend:
    return trend(np.log2(steps[first:]), psnr[first:])


def _last_row(count: int) -> int:
    """The first of the rows by which the trend is judged."""
    return count - min(count, max(LAST_ROWS, math.ceil(LAST_PART * count)))


def _flat_since(steps: Array, psnr: Array) -> int:
    """The first step from which on a doubling brings little to the end."""
    latest = _last_row(len(steps))
    for first in np.unique(np.linspace(0, latest, 21).astype(int)):
        if _gain(steps, psnr, int(first)).slope <= LITTLE_GAIN:
            return int(steps[first])
    return int(steps[latest])


def _annealed(rate: Array) -> bool:
    return bool(rate[-1] <= ANNEALED * rate.max())


def _at_last(values: Sequence[float] | None, good: np.ndarray) -> float | None:
    return None if values is None else float(np.asarray(values, dtype=float)[good][-1])


def _median(values: Array) -> float:
    return float(np.median(values))
