"""Memory in use: of this process on its device, and of the whole machine as a share of what there is."""

import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import torch

STATM = "/proc/self/statm"
# where a container's limit and its use stand: version 2 of control groups, then version 1
GROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
GROUP_FOLDER = Path("/sys/fs/cgroup")


def resident_bytes() -> Callable[[], int]:
    """A function that says how many bytes this process holds in memory; cheap where the system has ``/proc``."""
    try:
        file = os.open(STATM, os.O_RDONLY)
    except OSError:
        process = psutil.Process()
        return lambda: process.memory_info().rss
    page = os.sysconf("SC_PAGESIZE")
    return lambda: int(os.pread(file, 64, 0).split(b" ", 2)[1]) * page


def highest_bytes() -> int:
    """The most bytes that this process ever held in memory, as far as the system says."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def host_share(folder: Path = GROUP_FOLDER) -> float:
    """Used share, in [0, 1], of this machine's memory, or of the container's where that is nearer to its limit.

    What the system could drop at once, such as cached files, does not count as used.
    """
    machine = psutil.virtual_memory()
    share = 1 - machine.available / machine.total
    for limit_file, used_file in GROUPS:
        with suppress(OSError, ValueError):  # "max" is no number: there is no limit
            limit, used = (int((folder / name).read_text()) for name in (limit_file, used_file))
            if 0 < limit < machine.total:
                share = max(share, (used - _cached(folder / used_file)) / limit)
    return min(1.0, max(0.0, share))


def device_share(device: torch.device) -> float | None:
    """Used share, in [0, 1], of a GPU's memory by all processes; None on a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return 1 - free / total


def device_busy(device: torch.device) -> float | None:
    """Share, in [0, 1], of the last moments in which a GPU computed; None on a CPU or without NVIDIA's library."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except (ModuleNotFoundError, RuntimeError):
        return None


def _cached(used_file: Path) -> int:
    """Bytes of a control group that are files nobody has looked at lately."""
    for line in (used_file.parent / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0
