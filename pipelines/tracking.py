"""One MLflow run per training, written by the driver only.

The tracker is a context manager.  Entering it creates the store's schema if need be (once, before workers exist:
several processes opening a new database at once fail) and starts the run, or continues the one that
``RUN/mlflow_run.json`` names.  Everything after that is put into ``RUN/mlflow-spool.jsonl``, from which one background
thread sends it, so that a store that is slow or away never holds up a training and misses nothing: what is left goes
out when the same command is given again, or with ``inf-nerf track``.
"""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.octree.topology import Octree
from pipelines.mlflow_store import (
    SPOOL_FILE,
    RunReference,
    StoredRun,
    artifacts_of,
    open_client,
    tracking_uri,
    unusable,
    without_password,
)
from pipelines.spool import STEP, Spool, SpoolWriter

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]

log = logging.getLogger(__name__)


class Tracker:
    """Records one training in MLflow; does nothing at all while ``tracking.enabled`` is false."""

    def __init__(self, config: Config, run_dir: Path, tags: Mapping[str, str] | None = None) -> None:
        self.uri = tracking_uri(config)
        self.run_id: str | None = None
        self._config = _without_secrets(config)
        self._run_dir = run_dir
        self._tags = dict(tags or {})
        self._status: Status = "FINISHED"
        self._spool: Spool | None = None
        self._writer: SpoolWriter | None = None

    def __enter__(self) -> Self:
        """Start or continue the run.

        Raises :class:`InputError` where the store cannot be used.  A store that is away is no reason to stop a training
        whose run is in it already.
        """
        if self._config.tracking.enabled:
            client = open_client(self.uri)
            spool = Spool(self._run_dir / SPOOL_FILE)
            begun = self._begun()
            try:
                run_id = self._start_run(client, spool, begun)
            except InputError:
                raise
            except Exception as error:
                if begun is None:
                    raise unusable(self.uri, error) from error
                run_id = begun.run_id
            self.run_id, self._spool = run_id, spool
            self._writer = SpoolWriter(spool, StoredRun(client, run_id).send, self._name)
            self._set_status("RUNNING")
            self._put(
                config={key: text(value) for key, value in self._config.flat().items()},
                tags={"run_dir": str(self._run_dir.absolute()), **_said(self._config), **self._tags},
            )
            self._put(text=self._config.to_yaml(), name="config.yaml")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is waiting and end the run: ``FAILED`` after an error, ``KILLED`` after an interruption."""
        if self._writer is not None:
            self._set_status(_status_of(error) if error is not None else self._status)
            self._close()

    def unfinished(self) -> bool:
        """Whether the run that this directory began did not end ``FINISHED``; starts nothing, asks no store."""
        begun = self._begun() if self._config.tracking.enabled else None
        return begun is not None and begun.status != "FINISHED"

    def send_waiting(self) -> None:
        """Send what an earlier training could not, if there is any; a store that is still away is a warning."""
        begun, spool = self._begun(), Spool(self._run_dir / SPOOL_FILE)
        if self._config.tracking.enabled and begun is not None and len(spool):
            self._spool = spool
            self._writer = SpoolWriter(spool, StoredRun(open_client(self.uri), begun.run_id).send, self._name)
            self._close()

    @property
    def recorded_step(self) -> int:
        """Step of the newest row that was handed to MLflow, now or by an earlier driver; -1 if there is none."""
        step = self._spool.step if self._spool is not None else None
        return -1 if step is None else step

    def interrupted(self) -> None:
        """The training was stopped and saved without an exception: unless one follows, the run ends ``KILLED``."""
        self._status = "KILLED"

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags that are known only now; also kept in the run directory."""
        if self._writer is not None:
            self._put(tags=dict(tags))
            begun = RunReference.read(self._run_dir)
            if begun is not None:
                replace(begun, tags=begun.tags | dict(tags)).write(self._run_dir)

    def log_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of ``metrics.jsonl``: each has a ``step``; nested names are joined by ``/``."""
        for row in rows:
            self._put_numbers({name: value for name, value in row.items() if name != STEP}, row[STEP], is_row=True)

    def log_octree(self, octree: Octree) -> None:
        """Nodes and points per level as metrics ``octree/...``, and as ``octree.json``."""
        summary = octree_summary(octree)
        self._put_numbers({"octree": summary}, step=0)
        self._put_json(summary, "octree.json")

    def log_division(self, description: Mapping[str, Any]) -> None:
        """How nodes and tiles are divided among workers, as metrics ``division/...`` and whole as ``division.json``."""
        self._put_numbers({"division": {k: v for k, v in description.items() if k != "ranks"}}, step=0)
        self._put_json(description, "division.json")

    def log_evaluation(self, evaluation: Mapping[str, Any], step: int) -> None:
        """The content of ``eval.json`` as metrics ``eval/...`` (without single photos), and whole as an artifact.

        ``step`` is how far the evaluated checkpoint was trained.
        """
        self._put_numbers({"eval": by_level(evaluation)}, step)
        self._put_json(evaluation, "eval.json")

    def log_picture(self, path: Path) -> None:
        """A sample render or an image sheet."""
        self._put(file=str(path.absolute()), folder="pictures")

    def log_artifact(self, path: Path) -> None:
        """Any other file of the run; it has to stay until it was sent."""
        self._put(file=str(path.absolute()), folder=None)

    def log_checkpoint(self, path: Path, sha256: str) -> None:
        """The checkpoint by reference: path and hash of its manifest; uploaded if ``tracking.log_checkpoint``."""
        path = path.absolute()
        self._put(tags={"checkpoint.path": str(path), "checkpoint.sha256": sha256})
        if self._config.tracking.log_checkpoint:
            self._put(tree=str(path), folder=f"checkpoints/{path.name}")

    def log_model(self, path: Path, manifest: Mapping[str, Any], psnr0: float | None = None) -> None:
        """A model that ``mlflow.pyfunc`` loads and that renders the checkpoint, ``runs:/<run id>/model``.

        It holds the checkpoint by reference, with ``tracking.log_checkpoint`` its files as well.  The model of a
        training that ended becomes a version of ``tracking.register_as``; ``psnr0`` is of the test photos at full size.
        """
        self._put(
            model={
                "checkpoint": str(path.absolute()),
                "sha256": manifest["digest"],
                "step": manifest["step"],
                "with_files": self._config.tracking.log_checkpoint,
                "register": self._config.tracking.register_as if manifest["complete"] else None,
                "scores": {"val_psnr": manifest["val_psnr"], "eval_psnr0": psnr0},
            }
        )

    def _put_numbers(self, values: Mapping[str, Any], step: int, is_row: bool = False) -> None:
        now = int(time.time() * 1000)
        points = [[name, value, now, int(step)] for name, value in numbers(values)]
        if points:
            self._put(metrics=points, **({STEP: int(step)} if is_row else {}))

    def _put_json(self, content: Mapping[str, Any], name: str) -> None:
        self._put(text=json.dumps(content, indent=1), name=name)

    def _put(self, **entry: Any) -> None:
        if self._writer is not None:
            self._writer.put(entry)

    def _set_status(self, status: str) -> None:
        """In the store in its turn, in the run directory at once."""
        self._put(status=status, time=int(time.time() * 1000))
        begun = RunReference.read(self._run_dir)
        if begun is not None:
            replace(begun, status=status).write(self._run_dir)

    def _close(self) -> None:
        assert self._writer is not None
        left = self._writer.close()
        self._writer = None
        if left:
            log.warning(
                "%s still misses %d entries, which %s keeps; send them with: inf-nerf track %s",
                self._name,
                left,
                self._run_dir / SPOOL_FILE,
                self._run_dir,
            )

    @property
    def _name(self) -> str:
        return f"MLflow at {without_password(self.uri)}"

    def _begun(self) -> RunReference | None:
        """The run that this run directory began, while store and experiment are the same."""
        begun = RunReference.read(self._run_dir)
        here = without_password(self.uri), self._config.tracking.experiment
        return begun if begun is not None and (begun.uri, begun.experiment) == here else None

    def _start_run(self, client: "MlflowClient", spool: Spool, begun: RunReference | None) -> str:
        tracking = self._config.tracking
        experiment = client.get_experiment_by_name(tracking.experiment)
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            raise InputError(
                f"The MLflow experiment {tracking.experiment!r} in {without_password(self.uri)} is deleted; "
                "restore it or choose another name with tracking.experiment."
            )
        if begun is not None and experiment is not None and _is_there(client, begun, experiment.experiment_id):
            client.update_run(begun.run_id, status="RUNNING")
            return begun.run_id
        if len(spool):
            raise InputError(
                f"{spool.path} keeps {len(spool)} entries for another MLflow run; send them with inf-nerf track "
                f"{self._run_dir}, or delete the file, before a new run is begun."
            )
        spool.forget()
        experiment_id = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(tracking.experiment, artifact_location=artifacts_of(self.uri))
        )
        from mlflow.tracking.context.registry import resolve_tags

        run_name = tracking.run_name or self._run_dir.absolute().name
        run_id = client.create_run(experiment_id, tags=resolve_tags() | self._tags, run_name=run_name).info.run_id
        uri = without_password(self.uri)
        RunReference(uri, tracking.experiment, experiment_id, run_id, "RUNNING", self._tags).write(self._run_dir)
        return run_id


def _said(config: Config) -> dict[str, str]:
    """What the configuration says of the run, as tags."""
    tracking = config.tracking
    said = {
        "mlflow.note.content": tracking.description,
        "version": tracking.version,
        "labels": ",".join(tracking.labels),
    }
    return {name: value for name, value in said.items() if value}


def _is_there(client: "MlflowClient", begun: RunReference, experiment_id: str) -> bool:
    """Whether the store still has a run and nobody deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(begun.run_id).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False  # the store was emptied since
    return info.lifecycle_stage == "active" and info.experiment_id == experiment_id


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


def by_level(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation with its list of levels as ``level<l>`` and its list of photos left out."""
    result: dict[str, Any] = {}
    for key, value in evaluation.items():
        if key == "levels":
            result |= {f"level{row['level']}": {k: v for k, v in row.items() if k != "level"} for row in value}
        elif isinstance(value, Mapping):
            result[key] = by_level(value)
        elif key != "images":
            result[key] = value
    return result


def _without_secrets(config: Config) -> Config:
    """The configuration as it may be shown to whoever reads the store."""
    if config.tracking.uri is None:
        return config
    tracking = config.tracking.model_copy(update={"uri": without_password(config.tracking.uri)})
    return config.model_copy(update={"tracking": tracking})


def _status_of(error: BaseException) -> Status:
    """Interrupted is killed, anything else failed."""
    interrupted = isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code in (130, 143))
    return "KILLED" if interrupted else "FAILED"


def text(value: Any) -> str:
    """A param as it would stand in the YAML file."""
    return value if isinstance(value, str) else json.dumps(value)
