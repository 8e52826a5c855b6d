"""Unique memory of processes: what would be free if they ended."""

import os
import select
import subprocess
import sys
from types import TracebackType

import psutil

STORE = "/dev/shm/plasma"  # Ray's object store: shared by all processes of a machine, and capped by itself


def unique_bytes(process: psutil.Process | None = None) -> int:
    """Unique set size of a process (None: this one) without the object store's pages, which count as unique where
    only one process has looked at them so far."""
    maps = (process or psutil.Process()).memory_maps(grouped=True)
    return sum(part.private_clean + part.private_dirty for part in maps if not part.path.startswith(STORE))


class PeakMemory:
    """Samples this process's unique memory while the block runs; ``peak`` is the largest value, bytes.

    Another process looks: a thread of this one would take memory itself, for the text of all its mappings.
    """

    def __init__(self, seconds: float = 0.05) -> None:
        self.peak = 0
        self._seconds = seconds

    def __enter__(self) -> "PeakMemory":
        command = [sys.executable, __file__, str(os.getpid()), str(self._seconds)]
        self._watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._watcher.stdout and self._watcher.stdout.readline()  # it looks
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        peak, _ = self._watcher.communicate()
        self.peak = int(peak)


def watch(pid: int, seconds: float) -> None:
    """Look at a process every so many seconds until standard input is closed, then print the largest value."""
    process, peak = psutil.Process(pid), 0
    print("looks", flush=True)
    while not select.select([sys.stdin], [], [], seconds)[0]:
        peak = max(peak, unique_bytes(process))
    print(max(peak, unique_bytes(process)))


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]))
