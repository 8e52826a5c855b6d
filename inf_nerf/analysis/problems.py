"""What went wrong, from what the processes of a training said: equal sentences are one problem.

Sentences are equal but for their numbers, addresses and file names.  Where the sentence itself says what to do, after
its last semicolon, that is the remedy; faults of the system and of libraries have theirs here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SEVERITY = {"WARNING": 0, "ERROR": 1, "CRITICAL": 2}

# what a message has in it -> what to do; the first one that fits
REMEDIES: tuple[tuple[str, str], ...] = (
    (r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory",
     "Lower train.batch_size or sampler.samples, or train the nodes in turns (train.node_memory_mb)."),
    (r"MemoryError|Cannot allocate memory|OutOfMemory|SIGKILL|exit code -9|OOM",
     "The machine ran out of memory: lower data.reservoir_mb or train.num_workers, or set train.node_memory_mb."),
    (r"Connection closed by peer|Connection reset by peer|Gloo|gloo|NCCL|ProcessGroup|Broken pipe",
     "Another worker ended or stood still; the first error of the other ranks says why."),
    (r"Timed out|timed out|Timeout",
     "Something did not answer in time: look at the load of the machines, or raise train.collective_timeout_seconds."),
    (r"No space left|Disk quota|has no room left", "Make room, and give the same command again."),
    (r"CUDA error|CUDNN|cuBLAS", "Look at the device (nvidia-smi); the same command continues from the last save."),
    (r"No such file|FileNotFoundError",
     "All machines must see the run and the photos under the same path; mount them, or correct the path."),
    (r"Permission denied|PermissionError", "Correct the permissions of the path that is named."),
    (r"SystemExit: (130|143)|KeyboardInterrupt", "It was stopped by a signal; the same command goes on."),
)  # fmt: skip
UNSPECIFIC = "The traceback in the log of this rank says where; the same command continues from the last save."

_VARIABLE = re.compile(r"0x[0-9a-fA-F]+|(?:[\w.~-]*/)+[\w.@~-]+|'[^']*'|\"[^\"]*\"|\d+(?:[.:]\d+)*(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Problem:
    """Something that was said once or many times."""

    level: str  # of the worst
    message: str  # the first
    count: int
    first_time: str | None  # ISO 8601, UTC
    last_time: str | None
    first_step: int | None
    ranks: tuple[int | None, ...]  # that said it; None is the driver
    remedy: str


def problems(records: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Warnings and errors among log lines that come in the order of their time: errors first, then by their first."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if str(record.get("level")) in SEVERITY:
            groups.setdefault(pattern_of(str(record.get("message", ""))), []).append(record)
    found = [_problem(group) for group in groups.values()]
    order = {id(problem): place for place, problem in enumerate(found)}
    return sorted(found, key=lambda problem: (-SEVERITY[problem.level], order[id(problem)]))


def pattern_of(message: str) -> str:
    """What a message has in common with others like it."""
    return _VARIABLE.sub("#", message.partition("\n")[0])


def remedy_of(message: str) -> str:
    """What to do about a message."""
    for pattern, remedy in REMEDIES:
        if re.search(pattern, message):
            return remedy
    _, separator, rest = message.partition("\n")[0].rpartition("; ")
    if separator and len(rest) > 3:
        return rest[0].upper() + rest[1:].removesuffix(".") + "."
    return UNSPECIFIC if re.match(r"\w*(Error|Exception)\b", message) else ""


def _problem(group: Sequence[Mapping[str, Any]]) -> Problem:
    first, message = group[0], str(group[0].get("message", ""))
    ranks = {rank if isinstance(rank := record.get("rank"), int) else None for record in group}
    return Problem(
        level=max((str(record["level"]) for record in group), key=SEVERITY.__getitem__),
        message=message,
        count=len(group),
        first_time=first.get("time"),
        last_time=group[-1].get("time"),
        first_step=step_of(first),
        ranks=tuple(sorted(ranks, key=lambda rank: -1 if rank is None else rank)),
        remedy=remedy_of(message),
    )


def step_of(record: Mapping[str, Any]) -> int | None:
    """The step that a log line is about, if it says."""
    if isinstance(record.get("step"), int):
        return record["step"]
    named = re.search(r"\bstep (\d+)", str(record.get("message", "")))
    return int(named[1]) if named else None
