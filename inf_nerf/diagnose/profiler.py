"""Where the time of a program goes: named sections that nest, timed as they run.

    with Profiler() as profiler:
        with section("step"), section("backward"):
            ...
    profiler.report()

:func:`section` costs nothing to speak of where no profiler is active, so that code may name its parts and know of none.
A section is known by its path, ``step/backward``; its own time is what its inner sections do not account for, so that
own times add up to the whole.  Threads nest for themselves and share the figures.  Memory is bounded: sums, a few
hundred durations of each path for percentiles, and the latest spans for a timeline.
"""

import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Self

import torch

from inf_nerf.diagnose.memory_use import highest_bytes, resident_bytes

KEPT_DURATIONS = 256  # of each path, for percentiles
KEPT_SPANS = 4096  # of all paths, for the timeline
MEMORY_EVERY = 16  # calls of a section between two looks at the memory, which cost more than the clock

Span = tuple[int, str, float, float, int]  # step, path, begin and end (seconds of the profiler's clock), thread

_NOTHING: AbstractContextManager[object] = nullcontext()
_active: "Profiler | None" = None


def section(name: str) -> AbstractContextManager[object]:
    """Time what is inside as ``name``, below the sections that this thread is in."""
    return _NOTHING if _active is None else _active.section(name)


def profile_file(rank: int) -> str:
    """Where a rank's report lies in a run directory."""
    return f"profile/rank{rank}.json"


def at_step(step: int) -> None:
    """What follows belongs to this step of a training."""
    if _active is not None:
        _active.step = step


def own_seconds() -> dict[str, float]:
    """Own time of every path so far; empty where no profiler is active."""
    return {} if _active is None else _active.own_seconds()


class Profiler:
    """Times sections within a ``with`` block, of all threads of the process."""

    def __init__(
        self,
        device: torch.device | str = "cpu",
        synchronise: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """With ``synchronise`` a section on a GPU waits for the device at both ends: exact, but nothing overlaps any
        more; without, a section is charged for what the host spends in it.  ``clock`` tells seconds."""
        device = torch.device(device)
        self._cuda = device if device.type == "cuda" else None
        self._waits = self._cuda is not None and synchronise
        self._clock = clock
        self._lock = threading.Lock()
        self._threads = threading.local()
        self._durations: dict[str, Durations] = {}
        self._spans: deque[Span] = deque(maxlen=KEPT_SPANS)
        self._resident = resident_bytes()
        self._outer: Profiler | None = None
        self.step = 0  # that spans belong to

    def __enter__(self) -> Self:
        global _active
        self._outer, _active = _active, self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _active
        _active = self._outer

    def section(self, name: str) -> "_Open":
        """Time what is inside as ``name``, whether this profiler is active or not."""
        return _Open(self, name)

    def report(self) -> dict[str, Any]:
        """Plain numbers, for JSON: ``sections`` by path (seconds and peak bytes), ``bottlenecks`` by own time, and the
        ``timeline`` of a typical and of the slowest step among the latest."""
        with self._lock:
            sections = {path: found.summary() for path, found in sorted(self._durations.items())}
            spans = list(self._spans)
        whole = sum(each["own"] for each in sections.values())
        for each in sections.values():
            each["share"] = each["own"] / whole if whole else 0.0
        return {"sections": sections, "bottlenecks": bottlenecks(sections), "timeline": _timeline(spans)}

    def own_seconds(self) -> dict[str, float]:
        """Own time of every path so far."""
        with self._lock:
            return {path: found.own for path, found in self._durations.items()}

    def _stack(self) -> list["_Open"]:
        try:
            return self._threads.stack
        except AttributeError:
            self._threads.stack = []
            return self._threads.stack

    def _add(self, done: "_Open", end: float) -> None:
        with self._lock:
            found = self._durations.get(done.path)
            if found is None:
                found = self._durations[done.path] = Durations()
            found.add(end - done.begun, done.inner, done.peak)
            self._spans.append((self.step, done.path, done.begun, end, threading.get_ident()))

    def _looks_at_memory(self, path: str) -> bool:
        found = self._durations.get(path)
        return found is None or found.count % MEMORY_EVERY == 0

    def _memory(self) -> int:
        """Bytes: the peak since it was last reset on a GPU, what is resident now on a CPU."""
        return self._resident() if self._cuda is None else torch.cuda.max_memory_allocated(self._cuda)


class Durations:
    """What is kept of one path; ``own`` seconds are those outside inner sections."""

    def __init__(self) -> None:
        self.count, self.total, self.own = 0, 0.0, 0.0
        self._mean, self._squares = 0.0, 0.0  # Welford's running mean and sum of squared differences from it
        self._least, self._most = math.inf, 0.0
        self._kept: list[float] = []  # a uniform sample of all durations
        self._random = random.Random(0)
        self._peaks, self._peak_mean, self._peak = 0, 0.0, 0

    def add(self, seconds: float, inner: float, peak: int | None = None) -> None:
        """One more call, of which ``inner`` seconds went to inner sections; ``peak`` bytes if they were looked at."""
        self.count += 1
        self.total += seconds
        self.own += seconds - inner
        change = seconds - self._mean
        self._mean += change / self.count
        self._squares += change * (seconds - self._mean)
        self._least, self._most = min(self._least, seconds), max(self._most, seconds)
        if len(self._kept) < KEPT_DURATIONS:
            self._kept.append(seconds)
        elif (place := int(self._random.random() * self.count)) < KEPT_DURATIONS:
            self._kept[place] = seconds
        if peak is not None:
            self._peaks += 1
            self._peak_mean += (peak - self._peak_mean) / self._peaks
            self._peak = max(self._peak, peak)

    def summary(self) -> dict[str, float]:
        """Seconds; ``std`` is that of the calls; percentiles are those of the sample; bytes of the looks at memory."""
        ordered = sorted(self._kept)
        return {
            "count": self.count,
            "total": self.total,
            "own": self.own,
            "mean": self._mean,
            "std": math.sqrt(self._squares / self.count) if self.count else 0.0,
            "min": self._least,
            "max": self._most,
            "median": ordered[len(ordered) // 2] if ordered else 0.0,
            "p95": ordered[int(0.95 * len(ordered))] if ordered else 0.0,
            "memory_count": self._peaks,
            "memory_mean": self._peak_mean,
            "memory_peak": self._peak,
        }


class _Open:
    """A section that a thread is in."""

    __slots__ = ("begun", "highest", "inner", "name", "path", "peak", "profiler")

    def __init__(self, profiler: Profiler, name: str) -> None:
        self.profiler, self.name = profiler, name

    def __enter__(self) -> "_Open":
        profiler = self.profiler
        stack = profiler._stack()
        self.path = f"{stack[-1].path}/{self.name}" if stack else self.name
        self.inner, self.peak, self.highest = 0.0, None, 0
        if profiler._waits:
            torch.cuda.synchronize(profiler._cuda)
        if profiler._looks_at_memory(self.path):
            self.peak = profiler._memory()
            if profiler._cuda is None:
                self.highest = highest_bytes()
            else:  # what the sections around have reached is theirs, and counting starts anew
                for outer in stack:
                    outer.peak = None if outer.peak is None else max(outer.peak, self.peak)
                torch.cuda.reset_peak_memory_stats(profiler._cuda)
                self.peak = 0
        stack.append(self)
        self.begun = profiler._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        profiler = self.profiler
        if profiler._waits:
            torch.cuda.synchronize(profiler._cuda)
        end = profiler._clock()
        stack = profiler._stack()
        stack.pop()
        if self.peak is not None:
            self.peak = max(self.peak, profiler._memory())
            if profiler._cuda is None and (highest := highest_bytes()) > self.highest:
                self.peak = highest
        if stack:
            outer = stack[-1]
            outer.inner += end - self.begun
            if self.peak is not None and outer.peak is not None:
                outer.peak = max(outer.peak, self.peak)
        profiler._add(self, end)


def bottlenecks(sections: dict[str, dict[str, float]], count: int = 5) -> list[str]:
    """The paths with the largest own time, the largest first."""
    return sorted(sections, key=lambda path: -sections[path]["own"])[:count]


def _timeline(spans: list[Span]) -> dict[str, Any]:
    """The spans of the step of median duration and of the slowest one, seconds from their beginning."""
    by_step: dict[int, list[Span]] = {}
    for span in spans:
        by_step.setdefault(span[0], []).append(span)
    whole = list(by_step)[1:]  # some of the oldest step's may be gone
    if not whole:
        whole = list(by_step)

    def length(step: int) -> float:
        return max(span[3] for span in by_step[step]) - min(span[2] for span in by_step[step])

    ordered = sorted(whole, key=length)
    chosen = {"typical": ordered[len(ordered) // 2], "slowest": ordered[-1]} if ordered else {}
    result: dict[str, Any] = {}
    for name, step in chosen.items():
        begin = min(span[2] for span in by_step[step])
        threads = sorted({span[4] for span in by_step[step]})
        result[name] = {
            "step": step,
            "seconds": length(step),
            "spans": [
                {"path": path, "begin": start - begin, "end": end - begin, "thread": threads.index(thread)}
                for _, path, start, end, thread in sorted(by_step[step], key=lambda span: (span[2], -span[3], span[1]))
            ],
        }
    return result
