"""Unique memory of processes: what would be free if they ended."""

import threading
from types import TracebackType

import psutil

STORE = "/dev/shm/plasma"  # Ray's object store: shared by all processes of a machine, and capped by itself


def unique_bytes(process: psutil.Process | None = None) -> int:
    """Unique set size of a process (None: this one) without the object store's pages, which count as unique where
    only one process has looked at them so far."""
    maps = (process or psutil.Process()).memory_maps(grouped=True)
    return sum(part.private_clean + part.private_dirty for part in maps if not part.path.startswith(STORE))


class PeakMemory:
    """Samples this process's unique memory while the block runs; ``peak`` is the largest value, bytes."""

    def __init__(self, seconds: float = 0.05) -> None:
        self.peak = 0
        self._seconds = seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, unique_bytes())
            if self._over.wait(self._seconds):
                return

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
