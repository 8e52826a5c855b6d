"""What is known of a finished or running training, from its run directory or from MLflow, in the same terms."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inf_nerf.config import load_config
from inf_nerf.errors import InputError
from pipelines.mlflow_store import RunReference, without_password
from pipelines.prepare import CONFIG_FILE
from pipelines.progress import METRICS_FILE, RowReader
from pipelines.tracking import by_level, numbers, text

if TYPE_CHECKING:
    from mlflow import MlflowClient

RATE, PEAK = "rays_per_second", "memory_mb"  # metrics of which not the last value counts
ROW_METRICS = ("seconds", RATE, PEAK)


@dataclass(frozen=True)
class RecordedRun:
    """A training as it was recorded; what is missing is absent."""

    name: str
    params: dict[str, str]  # dotted config keys
    metrics: dict[str, float]  # the last value, of RATE the median, of PEAK the largest; evaluations as ``eval/...``
    tags: dict[str, str]
    reference: tuple[str, str, str] | None  # MLflow's store (without a password), experiment and run


def of_directory(run_dir: Path, name: str) -> RecordedRun:
    """A run directory; raises :class:`InputError` if nothing was prepared or trained there."""
    if not (run_dir / CONFIG_FILE).is_file():
        raise InputError(f"{run_dir} holds no {CONFIG_FILE}, so nothing was trained there; name a run directory.")
    params = {key: text(value) for key, value in load_config(run_dir / CONFIG_FILE).flat().items()}
    rows = RowReader(run_dir / METRICS_FILE).read()
    metrics = _of_rows({key: [row[key] for row in rows if key in row] for key in ROW_METRICS})
    if rows:
        metrics["step"] = rows[-1]["step"]
    try:
        evaluation = json.loads((run_dir / "eval.json").read_text())
    except FileNotFoundError:
        evaluation = {}
    metrics |= dict(numbers({"eval": by_level(evaluation)}))
    begun = RunReference.read(run_dir)
    reference = None if begun is None else (begun.uri, begun.experiment_id, begun.run_id)
    return RecordedRun(name, params, metrics, {} if begun is None else begun.tags, reference)


def of_store(client: "MlflowClient", uri: str, run_id: str) -> RecordedRun:
    """A run in an MLflow store."""
    run = client.get_run(run_id)
    histories = {
        key: sorted(client.get_metric_history(run_id, key), key=lambda point: (point.timestamp, point.step))
        for key in ROW_METRICS
        if key in run.data.metrics
    }
    metrics = {key: value for key, value in run.data.metrics.items() if key.startswith("eval/")}
    metrics |= _of_rows({key: [point.value for point in history] for key, history in histories.items()})
    if "seconds" in histories:
        metrics["step"] = histories["seconds"][-1].step
    name = run.info.run_name or run_id
    reference = without_password(uri), run.info.experiment_id, run_id
    return RecordedRun(name, dict(run.data.params), metrics, dict(run.data.tags), reference)


def _of_rows(rows: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """One value for each metric of rows that come in their order."""
    result: dict[str, float] = {}
    for key, values in rows.items():
        if values:
            result[key] = {RATE: statistics.median, PEAK: max}.get(key, lambda v: v[-1])(values)
    return result
