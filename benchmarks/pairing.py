"""Times candidates side by side, so that whatever else a machine does hits all of them alike.

A case is one thing to do and the candidates that do it.  After a warm-up, every round calls each candidate once, each
round starting with another one; a candidate's time is its median over the rounds.  Absolute times drift with the
machine, so compare ratios, and only inside one case.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Candidate:
    """One way of doing the work of a case."""

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] | None = None  # called before every run and not timed
    threads: int | None = None  # where it differs from the case's
    rounds: int | None = None  # at most, for one that is too slow to wait for


@dataclass(frozen=True)
class Case:
    """Candidates for the same work; the first one, whose rounds are not limited, is the reference of the ratios."""

    row: str
    nodes: int
    threads: int
    candidates: Sequence[Candidate]
    limit_ms: float | None = None  # least time that the machine's measured limits allow for the work


@dataclass(frozen=True)
class Result:
    """The time of one candidate."""

    name: str  # of the row
    nodes: int
    threads: int
    candidate: str
    median_ms: float
    ratio: float  # to the first candidate of the case; above 1 is slower
    limit_fraction: float | None  # of the machine's limit that was reached; 1 is the limit
    rounds: int  # that the median is taken over


@dataclass(frozen=True)
class Effort:
    """How long a case is timed: for ``seconds``, but for no fewer and no more rounds than these."""

    seconds: float
    fewest: int
    most: int


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch, and with it the compiled kernels, use ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(case: Case, effort: Effort, clock: Callable[[], float] = time.perf_counter) -> list[Result]:
    """Time a case's candidates; ``clock`` tells seconds."""
    for candidate in case.candidates:
        _timed(candidate, case.threads, clock)
    times: list[list[float]] = [[] for _ in case.candidates]
    order = list(range(len(case.candidates)))
    started = clock()
    gc.disable()
    try:
        while len(times[0]) < effort.fewest or (len(times[0]) < effort.most and clock() - started < effort.seconds):
            for index in order:
                if len(times[index]) < (case.candidates[index].rounds or effort.most):
                    times[index].append(_timed(case.candidates[index], case.threads, clock))
            order = order[1:] + order[:1]
    finally:
        gc.enable()
    reference = 1000 * statistics.median(times[0])
    return [_result(case, candidate, each, reference) for candidate, each in zip(case.candidates, times, strict=True)]


def _timed(candidate: Candidate, threads: int, clock: Callable[[], float]) -> float:
    with torch_threads(candidate.threads or threads):
        if candidate.prepare is not None:
            candidate.prepare()
        started = clock()
        candidate.run()
        return clock() - started


def _result(case: Case, candidate: Candidate, seconds: list[float], reference_ms: float) -> Result:
    median_ms = 1000 * statistics.median(seconds)
    return Result(
        name=case.row,
        nodes=case.nodes,
        threads=candidate.threads or case.threads,
        candidate=candidate.name,
        median_ms=median_ms,
        ratio=median_ms / reference_ms,
        limit_fraction=None if case.limit_ms is None else case.limit_ms / median_ms,
        rounds=len(seconds),
    )
