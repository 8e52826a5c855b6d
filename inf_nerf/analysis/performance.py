"""How fast a training went, whether that changed, and what its time went to.

Shares are of the time between two rows, so that rows of any ``train.log_every`` compare; the first row, in which
workers get going, is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from inf_nerf.analysis.recorded import is_finite
from inf_nerf.analysis.series import Array, trend

Bottleneck = Literal["computation", "data", "communication", "slow workers"]

LEAST_ROWS = 6
HIGH_SHARE = 0.15  # of the time from which on something other than computing is the bottleneck
CHANGED = 0.1  # part of the rate by which it has to rise or fall from one end to the other
STALLED = 0.5  # part of the median rate below which a row is a stall
SHARES: dict[Bottleneck, tuple[str, ...]] = {  # keys of rows
    "data": ("data_share",),
    "communication": ("shared_gradient_share", "exchange_share"),
    "slow workers": ("idle_share",),
}
ADVICE: dict[Bottleneck, str] = {
    "computation": "Fewer samples of a ray (sampler.samples) or more workers (train.num_workers) make a step shorter.",
    "data": "Give the tiles more memory (data.reservoir_mb), swap less often (data.swap_every), or use a faster disk.",
    "communication": "Let gradients of shared nodes collect (train.shared_every) or travel in 16 bits "
    "(train.shared_gradient_dtype=bfloat16).",
    "slow workers": "Workers wait for the slowest: even out their load (train.shared_upper_levels), or look for other "
    "work on its machine.",
}


@dataclass(frozen=True)
class Performance:
    """Where the time went; None where rows do not say."""

    verdict: Literal["steady", "falling", "rising", "too short"]
    sentence: str
    advice: str
    rays_per_second: float | None  # median
    change: float | None  # of the rate from the first to the last row, part of it, along its trend
    change_low: float | None  # 95 % interval
    change_high: float | None
    stalls: tuple[int, ...]  # steps of rows at less than half the rate
    shares: dict[str, float | None]  # median part of the time: data, communication, slow workers, computation
    bottleneck: Bottleneck | None
    imbalance: float | None  # of the workers' own work, heaviest over mean less one; median
    memory_mb: float | None  # largest
    memory_growth_mb: float | None  # from the first half's median to the last row


def performance(rows: Sequence[Mapping[str, Any]]) -> Performance:
    """Judge rows in the order of their steps."""
    rows = [row for row in rows[1:] if is_finite(row.get("rays_per_second"))]
    rate = _values(rows, "rays_per_second")
    memory = _values(rows, "memory_mb")
    peak = float(memory.max()) if len(memory) else None
    if len(rate) < LEAST_ROWS or rate.min() <= 0:
        sentence = f"{len(rate)} rows after the first have a rate; {LEAST_ROWS} are needed."
        none: dict[str, float | None] = {**dict.fromkeys(SHARES), "computation": None}
        return Performance("too short", sentence, "", None, None, None, None, (), none, None, None, peak, None)
    middle = float(np.median(rate))
    along = trend(np.linspace(0, 1, len(rate)), np.log(rate))
    change, low, high = (float(np.expm1(value)) for value in (along.slope, along.low, along.high))
    verdict = "falling" if high < 0 and change < -CHANGED else "rising" if low > 0 and change > CHANGED else "steady"
    stalls = tuple(int(row["step"]) for row, value in zip(rows, rate, strict=True) if value < STALLED * middle)
    shares: dict[str, float | None] = {name: _share(rows, keys) for name, keys in SHARES.items()}
    known = [value for value in shares.values() if value is not None]
    bottleneck: Bottleneck | None = max(SHARES, key=lambda name: shares[name] or 0.0)
    if (shares[bottleneck] or 0.0) < HIGH_SHARE:
        bottleneck = "computation" if len(known) == len(SHARES) else None  # else nobody knows
    sentence = f"{middle:,.0f} rays/s, {_changed(verdict, change)}"
    if stalls:
        sentence += f"; {len(stalls)} row{'s' * (len(stalls) > 1)} at less than half of it, first at step {stalls[0]:,}"
    sentence += f". Bottleneck: {bottleneck or 'not known'}"
    if bottleneck not in (None, "computation"):
        sentence += f" ({shares[bottleneck]:.0%} of the time)"
    return Performance(
        verdict=verdict,
        sentence=sentence + ".",
        advice=ADVICE[bottleneck] if bottleneck else "",
        rays_per_second=middle,
        change=change,
        change_low=low,
        change_high=high,
        stalls=stalls,
        shares={**shares, "computation": max(0.0, 1 - sum(known)) if len(known) == len(SHARES) else None},
        bottleneck=bottleneck,
        imbalance=_median(_values(rows, "seconds_imbalance")),
        memory_mb=peak,
        memory_growth_mb=float(memory[-1] - np.median(memory[: len(memory) // 2])) if len(memory) > 1 else None,
    )


def _changed(verdict: str, change: float) -> str:
    return "steady" if verdict == "steady" else f"{verdict} by {abs(change):.0%} from the first to the last row"


def _share(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> float | None:
    """The median part of the time that the keys say together; None where a row says nothing of it."""
    each = [_values(rows, key) for key in keys]
    return None if any(len(values) < len(rows) for values in each) else _median(np.sum(each, axis=0))


def _values(rows: Sequence[Mapping[str, Any]], key: str) -> Array:
    return np.array([row[key] for row in rows if is_finite(row.get(key))], dtype=float)


def _median(values: Array) -> float | None:
    return float(np.median(values)) if len(values) else None
