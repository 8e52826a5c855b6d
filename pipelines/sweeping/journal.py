"""What became of every trial of a sweep: one line of JSON for each thing that happened, in the order it happened.

    {"trial": 3, "begun": {"loss.lambda_depth": 0.01}}
    {"trial": 3, "report": {"step": 250, "seconds": 14.2, "progress": 0.25, "val_psnr": 18.7}}
    {"trial": 3, "ended": "finished" | "stopped" | "failed", "reason": null}

The driver alone writes it, a whole line at a time, before anything follows from it.  It is all that a sweep needs to
continue after its driver died, and all that the report is made of.  (Ray Tune's own restore keeps no state of the
scheduler, writes its state file in place, and starts all over where that cannot be read.)
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from inf_nerf.files import write_atomic

JOURNAL_FILE = "journal.jsonl"

State = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Report:
    """What a trial said of itself at a save."""

    step: int
    seconds: float  # of training
    progress: float  # part of the budget, in [0, 1]
    val_psnr: float  # dB


@dataclass
class Trial:
    """One trial as far as it got."""

    number: int
    values: dict[str, Any]  # config key -> value
    reports: list[Report] = field(default_factory=list)
    state: State = "running"
    reason: str | None = None  # of a failure

    @property
    def score(self) -> float | None:
        """The last val PSNR, or None before the first."""
        return self.reports[-1].val_psnr if self.reports else None

    @property
    def step(self) -> int:
        """The last step that was reported."""
        return self.reports[-1].step if self.reports else -1


def name_of(number: int) -> str:
    """How a trial is called, and its run directory."""
    return f"{number:03d}"


class Journal:
    """Trials by number, kept in a file."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a line that was being written when the driver died is dropped."""
        self.path = path
        self.trials: dict[int, Trial] = {}
        self.order: list[tuple[int, Report]] = []  # reports of all trials as they came
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            write_atomic(path, whole)
        for line in whole.splitlines():
            self._take(json.loads(line))

    def begin(self, number: int, values: dict[str, Any]) -> None:
        """A trial was given its values."""
        self._write({"trial": number, "begun": values})

    def report(self, number: int, report: Report) -> None:
        """A trial came to a save."""
        self._write({"trial": number, "report": vars(report)})

    def end(self, number: int, state: State, reason: str | None = None) -> None:
        """A trial is over."""
        self._write({"trial": number, "ended": state, "reason": reason})

    def unfinished(self) -> Iterator[Trial]:
        """Trials that began and did not end, by number."""
        return (self.trials[number] for number in sorted(self.trials) if self.trials[number].state == "running")

    def _write(self, event: dict[str, Any]) -> None:
        with open(self.path, "ab", buffering=0) as file:
            file.write(json.dumps(event).encode() + b"\n")
            os.fsync(file.fileno())
        self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        number = event["trial"]
        if "begun" in event:
            self.trials[number] = Trial(number, event["begun"])
        elif "report" in event:
            report = Report(**event["report"])
            self.trials[number].reports.append(report)
            self.order.append((number, report))
        else:
            self.trials[number].state, self.trials[number].reason = event["ended"], event["reason"]
