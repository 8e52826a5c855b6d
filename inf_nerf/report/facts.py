"""What a report is made from: all of it lies in the run, and any part may be missing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.places import Place
from inf_nerf.scene.scene import DESCRIPTION, Scene
from inf_nerf.train.manifest import latest_checkpoint
from inf_nerf.train.opened import OpenCheckpoint, open_checkpoint

METRICS, EVALUATION, SHEET, TRACKED = "metrics.jsonl", "eval.json", "pictures/eval_sheet.png", "mlflow_run.json"

Row = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """A run as it lies in its directory."""

    name: str
    scene: Scene
    checkpoint: OpenCheckpoint | None  # the newest; None before the first save
    config: Config
    rows: list[Row] = field(default_factory=list)  # of metrics.jsonl
    evaluation: dict[str, Any] | None = None  # eval.json
    sheet: bytes | None = None  # PNG of the evaluation
    origin: dict[str, str] = field(default_factory=dict)  # where the training comes from, as it was tracked

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of a number in the rows that have it."""
        found = [(row["step"], row[key]) for row in self.rows if _is_number(row.get(key))]
        return [float(step) for step, _ in found], [float(value) for _, value in found]

    def last(self, key: str) -> float | None:
        """The last value of a number; None where no row has it."""
        values = self.series(key)[1]
        return values[-1] if values else None


def read_facts(run_dir: Place, config: Config) -> Facts:
    """Everything that a run directory holds; :class:`InputError` where nothing was prepared there."""
    if not (run_dir / DESCRIPTION).is_file():
        raise InputError(f"{run_dir} is no run directory (it has no {DESCRIPTION}); name one of prepare and train.")
    newest = latest_checkpoint(run_dir)
    tracked = _json(run_dir / TRACKED)
    tags = tracked.get("tags") if isinstance(tracked, dict) else None
    return Facts(
        name=run_dir.name,
        scene=Scene.load(run_dir),
        checkpoint=open_checkpoint(newest) if newest is not None else None,
        config=config,
        rows=_rows(_bytes(run_dir / METRICS)),
        evaluation=_json(run_dir / EVALUATION),
        sheet=_bytes(run_dir / SHEET) or None,
        origin={key: str(value) for key, value in tags.items()} if isinstance(tags, Mapping) else {},
    )


def _rows(content: bytes) -> list[Row]:
    """Complete lines that are rows; the last one may be half written."""
    rows = []
    for line in content.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _bytes(file: Place) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def _json(file: Place) -> Any:
    try:
        return json.loads(_bytes(file)) if file.is_file() else None
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); delete it and make it again.") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
