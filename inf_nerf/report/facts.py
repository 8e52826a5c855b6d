"""What a report is made from: all of it lies in the run, and any part may be missing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inf_nerf.analysis.recorded import Recorded, Row, is_number, read_recorded
from inf_nerf.config import Config
from inf_nerf.diagnose.profiler import profile_file
from inf_nerf.errors import InputError
from inf_nerf.places import Place
from inf_nerf.scene.scene import DESCRIPTION, Scene
from inf_nerf.train.manifest import latest_checkpoint
from inf_nerf.train.opened import OpenCheckpoint, open_checkpoint

EVALUATION, SHEET, TRACKED = "eval.json", "pictures/eval_sheet.png", "mlflow_run.json"


@dataclass(frozen=True)
class Facts:
    """A run as it lies in its directory."""

    name: str
    scene: Scene
    checkpoint: OpenCheckpoint | None  # the newest; None before the first save
    config: Config
    recorded: Recorded  # rows of metrics.jsonl and what the processes said
    evaluation: dict[str, Any] | None = None  # eval.json
    sheet: bytes | None = None  # PNG of the evaluation
    origin: dict[str, str] = field(default_factory=dict)  # where the training comes from, as it was tracked
    profiles: list[dict[str, Any]] = field(default_factory=list)  # of each worker, where its time went

    @property
    def rows(self) -> list[Row]:
        """Rows of metrics.jsonl."""
        return self.recorded.rows

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of a number in the rows that have it."""
        found = [(row["step"], row[key]) for row in self.rows if is_number(row.get(key))]
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
        recorded=read_recorded(run_dir),
        evaluation=_json(run_dir / EVALUATION),
        sheet=_bytes(run_dir / SHEET) or None,
        origin={key: str(value) for key, value in tags.items()} if isinstance(tags, Mapping) else {},
        profiles=_profiles(run_dir),
    )


def _profiles(run_dir: Place) -> list[dict[str, Any]]:
    """What the workers of the last save left; there may have been more of them before."""
    first = _json(run_dir / profile_file(0))
    others = range(1, first["num_ranks"]) if first else ()
    found = [first, *(_json(run_dir / profile_file(rank)) for rank in others)]
    return [profile for profile in found if profile]


def _bytes(file: Place) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def _json(file: Place) -> Any:
    try:
        return json.loads(_bytes(file)) if file.is_file() else None
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); delete it and make it again.") from error
