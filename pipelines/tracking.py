"""One MLflow run per training, written by the driver only.

The tracker is a context manager.  Entering it creates the store's schema if need be (once, before workers exist:
several processes opening a new database at once fail) and starts the run, or continues the one that
``RUN/mlflow_run.json`` names.  Everything after that goes through one background thread with a bounded queue, so that a
slow store never holds up training: metric rows that find the queue full are left out and counted, and ``metrics.jsonl``
still has them.
"""

import json
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from inf_nerf.octree.topology import Octree
from pipelines.job import refuse_temporary_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]

RUN_FILE = "mlflow_run.json"
PARAMS_PER_BATCH = 100  # MLflow's limits
METRICS_PER_BATCH = 1000
QUEUE_LENGTH = 256
GIVE_UP_AFTER = 3  # consecutive failures of the store
CLOSING_SECONDS = 120.0

log = logging.getLogger(__name__)


def tracking_uri(config: Config) -> str:
    """The MLflow store: ``tracking.uri``, else ``MLFLOW_TRACKING_URI``, else a database in the working directory.

    Raises :class:`InputError` for one in the working directory of a Ray job.
    """
    named = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    uri = named or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    if config.tracking.enabled:
        refuse_temporary_store(uri, is_default=not named)
    return uri


def artifacts_of(uri: str) -> str | None:
    """Where files of a new experiment go: beside a database, wherever this process works; None: where a server says."""
    scheme, _, path = uri.partition("://")
    return str(Path(path[1:]).absolute().parent / "mlruns") if scheme.startswith("sqlite") else None


class Tracker:
    """Records one training in MLflow; does nothing at all while ``tracking.enabled`` is false."""

    def __init__(self, config: Config, run_dir: Path, tags: Mapping[str, str] | None = None) -> None:
        self.uri = tracking_uri(config)
        self.run_id: str | None = None
        self._config = _without_secrets(config)
        self._run_dir = run_dir
        self._tags = dict(tags or {})
        self._status: Status = "FINISHED"
        self._client: MlflowClient | None = None
        self._writer: _Writer | None = None

    def __enter__(self) -> Self:
        """Start or continue the run.  Raises :class:`InputError` where the store cannot be used."""
        if self._config.tracking.enabled:
            self._client = _open_client(self.uri)
            try:
                self.run_id = self._start_run(self._client)
            except InputError:
                raise
            except Exception as error:
                raise _unusable(self.uri, error) from error
            self._writer = _Writer()
            self._write(lambda client, run: client.log_text(run, self._config.to_yaml(), "config.yaml"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is queued and end the run: ``FAILED`` after an error, ``KILLED`` after an interruption."""
        status = _status_of(error) if error is not None else self._status
        if self._client is not None and self._writer is not None and self.run_id is not None:
            client, run_id = self._client, self.run_id
            self._writer.close(lambda: client.set_terminated(run_id, status))

    def unfinished(self) -> bool:
        """Whether the run that this directory began is in the store and did not end ``FINISHED``; starts nothing.

        Raises :class:`InputError` where the store cannot be used.
        """
        if not self._config.tracking.enabled or not (self._run_dir / RUN_FILE).exists():
            return False
        client = _open_client(self.uri)
        try:
            experiment = client.get_experiment_by_name(self._config.tracking.experiment)
            run_id = self._earlier_run(client, experiment.experiment_id) if experiment else None
            return run_id is not None and client.get_run(run_id).info.status != "FINISHED"
        except Exception as error:
            raise _unusable(self.uri, error) from error

    def interrupted(self) -> None:
        """The training was stopped and saved without an exception: unless one follows, the run ends ``KILLED``."""
        self._status = "KILLED"

    def log_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of ``metrics.jsonl``: each has a ``step``; nested names are joined by ``/``.  Never blocks."""
        if not rows or self._writer is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, int(row["step"])) for row in rows for name, value in numbers(row) if name != "step"
        ]
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            batch = metrics[start : start + METRICS_PER_BATCH]
            self._write(lambda client, run, batch=batch: client.log_batch(run, metrics=batch), may_drop=True)

    def log_octree(self, octree: Octree) -> None:
        """Nodes and points per level as metrics ``octree/...``, and as ``octree.json``."""
        summary = octree_summary(octree)
        self._log_numbers({"octree": summary}, step=0)
        self._write(lambda client, run: client.log_dict(run, summary, "octree.json"))

    def log_division(self, description: Mapping[str, Any]) -> None:
        """How nodes and tiles are divided among workers, as metrics ``division/...`` and whole as ``division.json``."""
        self._log_numbers({"division": {k: v for k, v in description.items() if k != "ranks"}}, step=0)
        self._write(lambda client, run: client.log_dict(run, dict(description), "division.json"))

    def log_evaluation(self, evaluation: Mapping[str, Any], step: int) -> None:
        """The content of ``eval.json`` as metrics ``eval/...`` (without single photos), and whole as an artifact.

        ``step`` is how far the evaluated checkpoint was trained.
        """
        self._log_numbers({"eval": _by_level(evaluation)}, step)
        self._write(lambda client, run: client.log_dict(run, dict(evaluation), "eval.json"))

    def log_picture(self, path: Path) -> None:
        """A sample render or an image sheet."""
        self._write(lambda client, run: client.log_artifact(run, str(path), "pictures"))

    def log_artifact(self, path: Path) -> None:
        """Any other file of the run."""
        self._write(lambda client, run: client.log_artifact(run, str(path)))

    def log_checkpoint(self, path: Path, sha256: str) -> None:
        """The checkpoint by reference: path and hash of its manifest; uploaded if ``tracking.log_checkpoint``."""
        path = path.absolute()
        self._write(lambda client, run: client.set_tag(run, "checkpoint.path", str(path)))
        self._write(lambda client, run: client.set_tag(run, "checkpoint.sha256", sha256))
        if self._config.tracking.log_checkpoint:
            self._write(lambda client, run: client.log_artifacts(run, str(path), f"checkpoints/{path.name}"))

    def _log_numbers(self, values: Mapping[str, Any], step: int) -> None:
        if self._writer is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in numbers(values)]
        self._write(lambda client, run: client.log_batch(run, metrics=metrics))

    def _write(self, action: "Callable[[MlflowClient, str], object]", may_drop: bool = False) -> None:
        if self._writer is not None and self._client is not None and self.run_id is not None:
            client, run_id = self._client, self.run_id
            self._writer.put(lambda: action(client, run_id), may_drop)

    def _start_run(self, client: "MlflowClient") -> str:
        tracking = self._config.tracking
        experiment = client.get_experiment_by_name(tracking.experiment)
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            raise InputError(
                f"The MLflow experiment {tracking.experiment!r} in {without_password(self.uri)} is deleted; "
                "restore it or choose another name with tracking.experiment."
            )
        experiment_id = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(tracking.experiment, artifact_location=artifacts_of(self.uri))
        )
        run_id = self._earlier_run(client, experiment_id)
        if run_id is None:
            from mlflow.tracking.context.registry import resolve_tags

            run_name = tracking.run_name or self._run_dir.absolute().name
            run_id = client.create_run(experiment_id, tags=resolve_tags(), run_name=run_name).info.run_id
            reference = {"uri": without_password(self.uri), "experiment": tracking.experiment, "run_id": run_id}
            write_atomic(self._run_dir / RUN_FILE, json.dumps(reference, indent=1) + "\n")
        else:
            client.update_run(run_id, status="RUNNING")
        self._log_config(client, run_id)
        return run_id

    def _earlier_run(self, client: "MlflowClient", experiment_id: str) -> str | None:
        """The run to continue: the one this run directory began, while store and experiment are the same."""
        from mlflow.exceptions import MlflowException

        try:
            reference = json.loads((self._run_dir / RUN_FILE).read_text())
            if reference["uri"] != without_password(self.uri):
                return None
            info = client.get_run(reference["run_id"]).info
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            return None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # the store was emptied since
        return info.run_id if info.lifecycle_stage == "active" and info.experiment_id == experiment_id else None

    def _log_config(self, client: "MlflowClient", run_id: str) -> None:
        """All config keys as params; MLflow refuses a param that changes, so a changed key becomes a tag."""
        from mlflow.entities import Param, RunTag

        known = client.get_run(run_id).data.params
        values = {key: _text(value) for key, value in self._config.flat().items()}
        params = [Param(key, value) for key, value in values.items() if key not in known]
        for start in range(0, len(params), PARAMS_PER_BATCH):
            client.log_batch(run_id, params=params[start : start + PARAMS_PER_BATCH])
        changed = {f"changed.{key}": value for key, value in values.items() if known.get(key, value) != value}
        tags = {"run_dir": str(self._run_dir.absolute()), **self._tags, **changed}
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


class _Writer:
    """Runs actions one after another in a background thread; a failing store is reported, never raised."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue(QUEUE_LENGTH)
        self._dropped = 0
        self._failures = 0  # consecutive
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    def put(self, action: Callable[[], object], may_drop: bool) -> None:
        """Queue an action; a full queue drops it if it may be dropped, else makes the caller wait."""
        try:
            self._queue.put(action, block=not may_drop)
        except queue.Full:
            self._dropped += 1

    def close(self, last: Callable[[], object]) -> None:
        """Do what is queued, then ``last``, which is tried even after the store has failed."""
        self._queue.put(None)
        self._thread.join(CLOSING_SECONDS)
        if self._thread.is_alive():
            log.warning("MLflow took longer than %.0f s to write the last values; they are given up.", CLOSING_SECONDS)
        if self._dropped:
            log.warning("MLflow was too slow for %d batches of metrics; metrics.jsonl has them all.", self._dropped)
        self._attempt(last)

    def _work(self) -> None:
        while (action := self._queue.get()) is not None:
            if self._failures < GIVE_UP_AFTER:
                self._attempt(action)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
            self._failures = 0
        except Exception as error:
            self._failures += 1
            log.warning("MLflow could not record a value (%s); the run goes on without it.", _first_line(error))
            if self._failures == GIVE_UP_AFTER:
                log.warning("MLflow failed %d times in a row; nothing more is sent.", GIVE_UP_AFTER)


def octree_summary(octree: Octree) -> dict[str, Any]:
    """How large a tree is, and how its nodes and points spread over the levels."""
    levels = range(octree.num_levels)
    return {
        "num_nodes": octree.num_nodes,
        "num_levels": octree.num_levels,
        "nodes": {f"level{level}": int((octree.level == level).sum()) for level in levels},
        "points": {f"level{level}": int(octree.num_points[octree.level == level].sum()) for level in levels},
    }


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every finite number in nested mappings with its path joined by ``/``; anything else is passed over."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{key}", float(value)


def without_password(uri: str) -> str:
    """The address without user and password, fit for files and messages."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _without_secrets(config: Config) -> Config:
    """The configuration as it may be shown to whoever reads the store."""
    if config.tracking.uri is None:
        return config
    tracking = config.tracking.model_copy(update={"uri": without_password(config.tracking.uri)})
    return config.model_copy(update={"tracking": tracking})


def _open_client(uri: str) -> "MlflowClient":
    # A store that is down should stop the start of a training within a minute, not after many patient retries.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    try:
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return MlflowClient(uri)
    except Exception as error:
        raise _unusable(uri, error) from error


def _unusable(uri: str, error: Exception) -> InputError:
    reason = _first_line(error).replace(uri, without_password(uri))
    return InputError(
        f"The MLflow store {without_password(uri)} cannot be used ({reason}); correct tracking.uri or "
        "MLFLOW_TRACKING_URI, or train with --set tracking.enabled=false."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _status_of(error: BaseException) -> Status:
    """Interrupted is killed, anything else failed."""
    interrupted = isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code in (130, 143))
    return "KILLED" if interrupted else "FAILED"


def _text(value: Any) -> str:
    """A param as it would stand in the YAML file."""
    return value if isinstance(value, str) else json.dumps(value)


def _by_level(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation with its list of levels as ``level<l>`` and its list of photos left out."""
    result: dict[str, Any] = {}
    for key, value in evaluation.items():
        if key == "levels":
            result |= {f"level{row['level']}": {k: v for k, v in row.items() if k != "level"} for row in value}
        elif isinstance(value, Mapping):
            result[key] = _by_level(value)
        elif key != "images":
            result[key] = value
    return result
