"""A training as it was recorded: the rows of ``metrics.jsonl`` and what its processes said.

Anything may be missing, torn or mixed: a line that was being written when a machine stopped, rows of two trainings in
one file, logs of a program that wrote plain text.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from inf_nerf.errors import InputError
from inf_nerf.places import Place

METRICS, LOGS = "metrics.jsonl", "logs"
OF_RUNS = (METRICS, "config.yaml", "scene.json")  # of which every run has one

Row = dict[str, Any]

_SAID = re.compile(r"^(?:[\d:.,/ T-]+ )?(?:\[?(?P<level>WARNING|ERROR|CRITICAL)\]?[: ]+)(?P<message>.+)$")
_ENDED = re.compile(r"^(?:error: (?P<sentence>.+)|(?P<fault>(?:\w+\.)*\w*(?:Error|Exception): .+))$")


@dataclass(frozen=True)
class Recorded:
    """What a run says of its training."""

    name: str
    rows: list[Row] = field(default_factory=list)  # of the newest training, by step
    records: list[Row] = field(default_factory=list)  # what processes said, by time
    notes: list[str] = field(default_factory=list)  # what is missing or was left out

    def values(self, key: str) -> list[float]:
        """A number of every row; NaN where it has none."""
        return [float(row[key]) if is_number(row.get(key)) else float("nan") for row in self.rows]

    def val_scores(self) -> dict[int, float]:
        """PSNR of the val rays by step, at the rows and saves of this training; of one that was made again the last."""
        run = self.rows[-1].get("run") if self.rows else None
        said = [record for record in self.records if run is None or record.get("run") in (run, None)]
        found = {
            each["step"]: float(each["val_psnr"])
            for each in (*self.rows, *said)
            if is_finite(each.get("val_psnr")) and is_finite(each.get("step"))
        }
        return dict(sorted(found.items()))

    def has(self, key: str) -> bool:
        """Whether every row has the number."""
        return bool(self.rows) and all(is_number(row.get(key)) for row in self.rows)


def read_recorded(run: Place) -> Recorded:
    """What lies in a run directory, or in a file of rows alone; :class:`InputError` where it is neither."""
    if run.is_file():
        rows, notes = newest_training(*parse_rows(run.read_bytes()))
        if not rows:
            raise InputError(f"{run} holds no row of a training; name a run directory or its {METRICS}.")
        return Recorded(run.name, rows, notes=notes)
    if not run.is_dir():
        raise InputError(f"{run} does not exist; name a run directory or a {METRICS}.")
    file, records = run / METRICS, list(_said(run))
    if not records and not any((run / name).is_file() for name in OF_RUNS):
        raise InputError(f"{run} is no run directory (it has none of {', '.join(OF_RUNS)}); name one.")
    rows, notes = newest_training(*parse_rows(file.read_bytes() if file.is_file() else b""))
    if not rows:
        notes = [*notes, f"There is no row in {METRICS}: no training has logged one yet (train.log_every)."]
    if not records and not (run / LOGS).is_dir():
        notes = [*notes, "There are no logs in the run, so nothing is known of its errors."]
    records.sort(key=lambda record: str(record.get("time") or ""))
    return Recorded(run.name, rows, records, notes)


def parse_rows(content: bytes) -> tuple[list[Row], int]:
    """The rows in a file, and how many of its lines are none."""
    rows, torn = [], 0
    for line in content.splitlines():
        row = _parse(line)
        if row is not None and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            torn += 1
    return rows, torn


def newest_training(rows: Sequence[Row], torn: int = 0) -> tuple[list[Row], list[str]]:
    """Of rows that follow each other those of the last training, and what was left out.

    Another training begins where the name of the run changes, or where steps go back.  A training that went on from a
    checkpoint has cut its rows back itself.
    """
    begins = [0]
    for index, (before, row) in enumerate(pairwise(rows), start=1):
        named = before.get("run"), row.get("run")
        if row["step"] <= before["step"] or (None not in named and named[0] != named[1]):
            begins.append(index)
    notes = []
    if torn:
        notes.append(f"{torn} line{'s' * (torn > 1)} could not be read and {'are' if torn > 1 else 'is'} left out.")
    if len(begins) > 1:
        notes.append(
            f"{begins[-1]} rows of {len(begins) - 1} earlier training{'s' * (len(begins) > 2)} in the same file are "
            "left out."
        )
    return list(rows[begins[-1] :]), notes


def is_number(value: Any) -> bool:
    """Whether a value of a row is a number (which may be NaN)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a value of a row is a number, and finite."""
    return is_number(value) and math.isfinite(value)


def _said(run: Place) -> Iterator[Row]:
    """Lines of ``logs/*.jsonl`` and of text logs beside the metrics."""
    if (run / LOGS).is_dir():
        for file in sorted((run / LOGS).iterdir(), key=lambda each: each.name):
            if file.name.endswith(".jsonl"):
                yield from (record for line in file.read_bytes().splitlines() if (record := _parse(line)) is not None)
    for file in sorted(run.iterdir(), key=lambda each: each.name):
        if file.name.endswith(".log") and file.is_file():
            yield from from_text(file.read_bytes().decode(errors="replace"))


def from_text(text: str) -> Iterator[Row]:
    """Warnings and errors in a log of plain text: what loggers print, and how a program ended."""
    for line in text.splitlines():
        if (said := _SAID.match(line.strip())) is not None:
            yield {"level": said["level"], "message": said["message"]}
        elif (ended := _ENDED.match(line)) is not None:
            yield {"level": "ERROR", "message": ended["sentence"] or ended["fault"]}


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
