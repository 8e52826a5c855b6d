"""What this machine can do at most, measured: random reads and read-modify-writes, streaming, matrix products.

Random accesses are of eight bytes (the two features of a table entry) at preshuffled places, with several independent
sums so that no access waits for another.  Two threads read one table, as the forward pass does, but write one each, as
the backward pass does.  The limit of an encoding pass is the time of its accesses alone: eight for every sample and
level, each level at the rate of a table of its own size.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from benchmarks.pairing import torch_threads
from inf_nerf.field.hash_grid import GridSpec

ENTRY_BYTES = 8
CORNERS = 8
ACCESSES = 1 << 22  # random accesses per thread and measurement
STREAMED = 1 << 26  # numbers that are read and written one after the other
MATRIX = 1536
ROUNDS = 5
SIZES = tuple(1 << exponent for exponent in range(15, 27))  # 32 KiB to 64 MiB
FEW_SIZES = (1 << 15, 1 << 20, 1 << 22, 1 << 24)


@njit(nogil=True, cache=True)
def gather(table, places):
    """Sum of the entries at ``places``; a multiple of eight of them."""
    a = b = c = d = e = f = g = h = 0.0
    for i in range(0, len(places), 8):
        a += table[places[i]]
        b += table[places[i + 1]]
        c += table[places[i + 2]]
        d += table[places[i + 3]]
        e += table[places[i + 4]]
        f += table[places[i + 5]]
        g += table[places[i + 6]]
        h += table[places[i + 7]]
    return a + b + c + d + e + f + g + h


@njit(nogil=True, cache=True)
def update(table, places):
    """Add one to the entries at ``places``, one after the other."""
    for i in range(len(places)):
        table[places[i]] += 1.0


@njit(nogil=True, cache=True)
def rewrite(numbers):
    """Read and write every number, in order."""
    for i in range(len(numbers)):
        numbers[i] += np.float32(1)


def in_threads(kernel: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
    """Call ``kernel`` once with each tuple of arguments, all at the same time."""
    if len(arguments) == 1:
        kernel(*arguments[0])
        return
    with ThreadPoolExecutor(len(arguments)) as pool:
        for done in [pool.submit(kernel, *given) for given in arguments]:
            done.result()


@cache
def places(entries: int, thread: int, count: int = ACCESSES) -> NDArray[np.uint32]:
    """Random places in a table."""
    return np.random.default_rng(thread).integers(0, entries, count, dtype=np.uint32)


class Limits:
    """Rates of one machine, each measured when it is first asked for."""

    def __init__(self, sizes: Sequence[int] = SIZES) -> None:
        self.sizes = sizes
        self._gather = cache(self._measure_gather)
        self._update = cache(self._measure_update)
        self.stream = cache(self._measure_stream)
        self.multiply = cache(self._measure_multiply)

    def gather(self, table_bytes: int, threads: int) -> float:
        """Random reads per second."""
        return self._between(self._gather, table_bytes, threads)

    def update(self, table_bytes: int, threads: int) -> float:
        """Random read-modify-writes per second."""
        return self._between(self._update, table_bytes, threads)

    def encode_ms(self, spec: GridSpec, samples: int, threads: int, backward: bool = False) -> float:
        """Least time of the accesses of an encoding pass over ``samples`` samples that are sorted by node."""
        rate = self.update if backward else self.gather
        seconds = (CORNERS * samples / rate(size * ENTRY_BYTES, threads) for size in spec.sizes)
        return 1000 * sum(seconds)

    def multiply_ms(self, operations: float, threads: int) -> float:
        """Least time of matrix products of so many floating-point operations."""
        return 1000 * operations / self.multiply(threads)

    def stream_ms(self, num_bytes: float, threads: int) -> float:
        """Least time in which so many bytes are read or written one after the other."""
        return 1000 * num_bytes / self.stream(threads)

    def rows(self, threads: Sequence[int]) -> list[dict[str, str | int | float]]:
        """All rates, for the table."""
        result: list[dict[str, str | int | float]] = []
        for used in threads:
            for size in self.sizes:
                for name, rate in (("gather", self.gather), ("read-modify-write", self.update)):
                    row = {"name": name, "table_kib": size >> 10, "threads": used}
                    result.append(row | {"rate": round(rate(size, used) / 1e6), "unit": "M/s"})
            result.append(
                {"name": "stream", "threads": used, "rate": round(self.stream(used) / 1e9, 1), "unit": "GB/s"}
            )
            rate = round(self.multiply(used) / 1e9, 1)
            result.append({"name": "sgemm", "threads": used, "rate": rate, "unit": "GFLOP/s"})
        return result

    def _between(self, measured: Callable[[int, int], float], table_bytes: int, threads: int) -> float:
        """The rate at a size, interpolated between the measured ones around it."""
        size = min(max(table_bytes, self.sizes[0]), self.sizes[-1])
        below = max(each for each in self.sizes if each <= size)
        above = min(each for each in self.sizes if each >= size)
        if below == above:
            return measured(below, threads)
        share = np.log(size / below) / np.log(above / below)
        return float((1 - share) * measured(below, threads) + share * measured(above, threads))

    def _measure_gather(self, table_bytes: int, threads: int) -> float:
        table = np.ones(table_bytes // ENTRY_BYTES)  # not zeros: untouched ones all share one page of memory
        arguments = [(table, places(len(table), thread)) for thread in range(threads)]
        return threads * ACCESSES / _seconds(lambda: in_threads(gather, arguments))

    def _measure_update(self, table_bytes: int, threads: int) -> float:
        entries = table_bytes // ENTRY_BYTES
        arguments = [(np.ones(entries), places(entries, thread)) for thread in range(threads)]
        return threads * ACCESSES / _seconds(lambda: in_threads(update, arguments))

    def _measure_stream(self, threads: int) -> float:
        numbers = np.ones(STREAMED, np.float32)
        parts = [(part,) for part in np.array_split(numbers, threads)]
        return 2 * numbers.nbytes / _seconds(lambda: in_threads(rewrite, parts))

    def _measure_multiply(self, threads: int) -> float:
        a, b, result = torch.ones(3, MATRIX, MATRIX)
        with torch_threads(threads):
            return 2 * MATRIX**3 / _seconds(lambda: torch.mm(a, b, out=result))


def _seconds(run: Callable[[], object]) -> float:
    """The least of a few times, since a limit is what a machine can do when nothing disturbs it."""
    run()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)
