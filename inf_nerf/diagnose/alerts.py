"""What somebody should be told about a training: rules over the latest rows of ``metrics.jsonl``.

A rule that holds is told once, as long as it goes on holding; after it stopped to hold, it is told again only when
``monitor.cooldown_seconds`` of training have passed since.  Where one trouble explains another (a loader that stands
still also lowers the throughput), only the first is told.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from inf_nerf.config import AlertName, MonitorConfig

Row = Mapping[str, Any]
Severity = Literal["warning", "critical"]

BEFORE = 9  # rows that the loss is compared with
FEWEST_RATES = 10  # rows before which nobody knows how fast a training usually is
SLOW_ROWS = 10.0  # times the usual time between rows after which the next one is overdue
SLOW_START = 10.0  # times monitor.stall_seconds after which the first row is: workers start and compile before
CRITICAL: frozenset[AlertName] = frozenset({"not_finite", "host_memory", "device_memory", "stalled"})
SLOWDOWNS: frozenset[AlertName] = frozenset({"data_stall", "unbalanced", "host_memory", "device_memory"})


@dataclass(frozen=True)
class Alert:
    """One thing to tell."""

    name: AlertName
    severity: Severity
    step: int
    value: float
    limit: float
    message: str  # one sentence that says what to look at


@dataclass(frozen=True)
class _Finding:
    value: float
    limit: float
    message: str


class Monitor:
    """Judges a training by its rows, in their order; keeps the latest ``monitor.window`` of them."""

    def __init__(self, config: MonitorConfig, precision: str = "float32") -> None:
        """``precision`` is train.precision: in float16, which auto is on a GPU, a gradient overflows now and then."""
        self._config = config
        self._scaled = precision in ("float16", "auto")
        self.rows: deque[Row] = deque(maxlen=config.window)
        self._told: dict[AlertName, float] = {}  # seconds of training when it was told last
        self.active: set[AlertName] = set()  # told, and still so
        self._rules: dict[AlertName, Callable[[Row], _Finding | None]] = {
            "not_finite": self._not_finite,
            "loss_spike": self._loss_spike,
            "anomaly": self._anomaly,
            "host_memory": lambda row: self._memory("host_memory", config.host_memory, "of a machine's memory"),
            "device_memory": lambda row: self._memory("device_memory", config.device_memory, "of a GPU's memory"),
            "data_stall": self._data_stall,
            "unbalanced": self._unbalanced,
            "device_idle": self._device_idle,
            "throughput": self._throughput,
        }

    def take(self, row: Row) -> list[Alert]:
        """A new row; what of it is news."""
        if self.rows and row["step"] <= self.rows[-1]["step"]:  # steps that are trained again
            self.rows = deque((old for old in self.rows if old["step"] < row["step"]), self.rows.maxlen)
        if self.rows and row.get("turn") != self.rows[-1].get("turn"):  # other nodes and photos, whose figures differ
            self.rows.clear()
        self.rows.append(row)
        self.active.discard("stalled")
        return [alert for name, rule in self._rules.items() if (alert := self._judge(name, rule(row))) is not None]

    def waiting(self, seconds: float) -> list[Alert]:
        """No row came for so long, the first one since workers were asked to start; what of it is news."""
        usual, patience = self._usual_seconds(), self._config.stall_seconds
        limit = max(patience, SLOW_ROWS * usual) if self.rows else SLOW_START * patience
        found = None
        if seconds > limit:
            found = _Finding(
                seconds,
                limit,
                f"no row for {seconds:.0f} s{f' where {usual:.1f} s are usual' if usual else ''}: look at the logs of "
                "the workers, their machines and the storage that they read from",
            )
        alert = self._judge("stalled", found)
        return [alert] if alert is not None else []

    def series(self, key: str) -> list[float]:
        """Values of a number in the rows that are kept, the oldest first."""
        return [float(row[key]) for row in self.rows if _is_number(row.get(key))]

    def _judge(self, name: AlertName, found: _Finding | None) -> Alert | None:
        if found is None:
            self.active.discard(name)
            return None
        row: Row = self.rows[-1] if self.rows else {"step": 0}
        now, last = _number(row, "seconds") or 0.0, self._told.get(name)
        if name in self.active or (last is not None and 0 <= now - last < self._config.cooldown_seconds):
            return None
        self.active.add(name)
        self._told[name] = now
        severity: Severity = "critical" if name in CRITICAL else "warning"
        return Alert(name, severity, row["step"], found.value, found.limit, found.message)

    def _not_finite(self, row: Row) -> _Finding | None:
        count, nodes, loss = _number(row, "not_finite") or 0, row.get("nodes"), row.get("loss")
        named = nodes if isinstance(nodes, list) else None  # of a last row; elsewhere it is how many there are
        steps = row["step"] - (self.rows[-2]["step"] if len(self.rows) > 1 else 0)
        if _is_number(loss) and _number(row, "loss") is None:
            count = max(count, 1)
        elif not count or (self._scaled and named is None and count <= steps / 2):  # the loss scale finds its place
            return None
        where = f" in {', '.join(map(str, named[:5]))}" if named else ""
        return _Finding(count, 0, f"the loss or its gradient is not a finite number{where}")

    def _loss_spike(self, row: Row) -> _Finding | None:
        losses = [loss for loss in self.series("loss") if math.isfinite(loss)]
        if _number(row, "loss") is None or len(losses) <= BEFORE:
            return None
        usual = statistics.fmean(losses[-BEFORE - 1 : -1])
        limit = self._config.loss_spike * usual
        if not losses[-1] > limit:
            return None
        return _Finding(
            losses[-1],
            limit,
            f"the loss is {losses[-1]:.4g} where {usual:.4g} was usual: a lower train.lr_init or train.grad_clip=1 "
            "may help",
        )

    def _anomaly(self, row: Row) -> _Finding | None:
        count = _number(row, "anomalies")
        if not count:
            return None
        return _Finding(count, 0, f"the debugger found {count:.0f} anomalies; RUN/debug names the nodes")

    def _memory(self, key: str, limit: float, what: str) -> _Finding | None:
        share = _number(self.rows[-1], key)
        if share is None or share <= limit:
            return None
        return _Finding(share, limit, f"{100 * share:.0f} % {what} are used: docs/memory.md says which keys cap it")

    def _data_stall(self, row: Row) -> _Finding | None:
        share, limit = self._lately("data_share", min), self._config.data_share
        if share is None or share <= limit:
            return None
        return _Finding(
            share,
            limit,
            f"{100 * share:.0f} % of the time is spent waiting for data: a larger data.reservoir_mb, fewer swaps "
            "(data.swap_every) or faster storage help",
        )

    def _unbalanced(self, row: Row) -> _Finding | None:
        excess, limit = self._lately("seconds_imbalance", min), self._config.imbalance
        if excess is None or excess <= limit or "data_stall" in self.active:
            return None
        return _Finding(
            excess,
            limit,
            f"worker {row.get('slowest_rank', '?')} takes {100 * excess:.0f} % longer than the mean, and the others "
            "wait for it: look at what else its machine does",
        )

    def _device_idle(self, row: Row) -> _Finding | None:
        busy, limit = self._lately("device_busy", max), self._config.device_busy
        if busy is None or busy >= limit:
            return None
        return _Finding(busy, limit, f"a GPU computes only {100 * busy:.0f} % of the time: RUN/profile says why")

    def _throughput(self, row: Row) -> _Finding | None:
        lately = self._lately("rays_per_second", max)
        earlier = [rate for rate in self.series("rays_per_second") if math.isfinite(rate)][: -self._config.sustained]
        if lately is None or len(earlier) < FEWEST_RATES or self.active & SLOWDOWNS:
            return None
        usual = statistics.median(earlier)
        limit = self._config.throughput * usual
        if lately >= limit:
            return None
        return _Finding(
            lately, limit, f"{lately:,.0f} rays/s where {usual:,.0f} were usual: look at what else the machines do"
        )

    def _lately(self, key: str, mildest: Callable[[list[float]], float]) -> float | None:
        """The mildest of the latest rows, or None where too few have the number: one row alone is no news."""
        found = [_number(row, key) for row in list(self.rows)[-self._config.sustained :]]
        known = [value for value in found if value is not None]
        return mildest(known) if len(known) == self._config.sustained else None

    def _usual_seconds(self) -> float:
        """Between two rows."""
        times = [seconds for seconds in self.series("seconds") if math.isfinite(seconds)]
        gaps = [after - before for before, after in pairwise(times)]
        return statistics.median(gaps) if gaps else 0.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(row: Row, key: str) -> float | None:
    """A finite number of a row; None where it has none."""
    value: Any = row.get(key)
    return float(value) if _is_number(value) and math.isfinite(value) else None
