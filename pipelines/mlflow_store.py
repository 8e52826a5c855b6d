"""One MLflow run in its store: which store, which run, and how entries of a spool become what the store holds.

Sending is repeatable: metric points carry the time at which they were made, so that the store knows one that it has;
everything else is set to the value that it has already.  An entry that the store refuses is left out with a warning; a
store that does not answer raises :class:`AwayError`.
"""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from pipelines.job import refuse_temporary_store
from pipelines.spool import AwayError, Entry

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_FILE = "mlflow_run.json"
SPOOL_FILE = "mlflow-spool.jsonl"
PARAMS_PER_BATCH = 100  # MLflow's limits
METRICS_PER_BATCH = 1000
ARTIFACTS = ("text", "file", "tree", "model")  # keys of entries that go to where files are kept
TRIES = 3  # of such an entry while the store answers
RETRY_SECONDS = 1.0
REFUSED = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")  # what only MLflow itself answers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunReference:
    """The MLflow run of a run directory, as ``RUN/mlflow_run.json`` names it."""

    uri: str  # of the store, without user and password
    experiment: str
    experiment_id: str
    run_id: str
    status: str  # that the run has, or will have when all is sent
    tags: dict[str, str]  # where the training comes from

    @staticmethod
    def read(run_dir: Path) -> "RunReference | None":
        """The reference in a run directory; None where there is none that can be used."""
        try:
            return RunReference(**json.loads((run_dir / RUN_FILE).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, run_dir: Path) -> None:
        write_atomic(run_dir / RUN_FILE, json.dumps(asdict(self), indent=1) + "\n")


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


def without_password(uri: str) -> str:
    """The address without user and password, fit for files and messages."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def open_client(uri: str) -> "MlflowClient":
    """A client of a store; raises :class:`InputError` for an address that can be none."""
    # A store that is down should say so within half a minute: whoever can wait for it tries again.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    try:
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # each retry would be a warning
        return MlflowClient(uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri)
    except Exception as error:
        raise unusable(uri, error) from error


def unusable(uri: str, error: Exception) -> InputError:
    """What to say of a store that a training cannot begin with."""
    reason = reason_of(error).replace(uri, without_password(uri))
    return InputError(
        f"The MLflow store {without_password(uri)} cannot be used ({reason}); correct tracking.uri or "
        "MLFLOW_TRACKING_URI, or train with --set tracking.enabled=false."
    )


def reason_of(error: Exception) -> str:
    """The part of an error that tells most, on one line: a library says where, its cause in the system says why."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    in_system = re.findall(r"\[Errno -?\d+\] ([^'\")]+)", line)
    return (in_system[-1] if in_system else line or type(error).__name__).rstrip(". ")


class StoredRun:
    """A run in a store that entries are sent to."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self.client = client
        self.run_id = run_id
        self.left_out = 0  # entries that the store refused

    def send(self, entries: Sequence[Entry]) -> int:
        """Send the first of some entries, as many as make one request; returns how many were sent or left out."""
        count = _length_of_request(entries)
        if count > 1:
            points = [point for entry in entries[:count] for point in entry["metrics"]]
            if self._refusal(lambda: self._send_metrics(points)) is None:
                return count
        # alone, so that one that is refused takes no other with it
        is_artifact = not entries[0].keys().isdisjoint(ARTIFACTS)
        refusal = self._refusal(lambda: self._send(entries[0]), TRIES if is_artifact else None)
        if refusal is not None:
            say = log.debug if self.left_out else log.warning
            say("MLflow refuses a value of run %s (%s), which is left out.", self.run_id, reason_of(refusal))
            self.left_out += 1
        return 1

    def _refusal(self, request: Callable[[], None], tries: int | None = None) -> Exception | None:
        """Make a request; returns why the store refused, or raises :class:`AwayError` if it is to be made again.

        What fails ``tries`` times while the store itself answers counts as refused: artifacts go somewhere else.
        """
        tried = 0
        while True:
            try:
                request()
                return None
            except Exception as error:
                tried += 1
                if getattr(error, "error_code", None) in REFUSED or isinstance(error, FileNotFoundError):
                    return error
                if tries is None or not self._answers():
                    raise AwayError(reason_of(error)) from error
                if tried == tries:
                    return error
            time.sleep(RETRY_SECONDS)

    def _answers(self) -> bool:
        try:
            self.client.get_run(self.run_id)
        except Exception:
            return False
        return True

    def _send_metrics(self, points: Sequence[Sequence[Any]]) -> None:
        from mlflow.entities import Metric

        for start in range(0, len(points), METRICS_PER_BATCH):
            batch = [Metric(*point) for point in points[start : start + METRICS_PER_BATCH]]
            self.client.log_batch(self.run_id, metrics=batch, synchronous=True)

    def _send(self, entry: Entry) -> None:
        """Do what an entry says."""
        client, run_id = self.client, self.run_id
        if "metrics" in entry:
            self._send_metrics(entry["metrics"])
        if "config" in entry:
            self._send_config(entry["config"])
        if "tags" in entry:
            self._send_tags(entry["tags"])
        if "text" in entry:
            client.log_text(run_id, entry["text"], entry["name"])
        if "file" in entry:
            if not Path(entry["file"]).is_file():
                raise FileNotFoundError(f"{entry['file']} is gone")
            client.log_artifact(run_id, entry["file"], entry["folder"])
        if "tree" in entry:
            if not Path(entry["tree"]).is_dir():
                raise FileNotFoundError(f"{entry['tree']} is gone")
            client.log_artifacts(run_id, entry["tree"], entry["folder"])
        if "model" in entry:
            from pipelines.registry import send_model  # imports all that renders

            send_model(client, run_id, entry["model"])
        if "status" in entry:
            if entry["status"] == "RUNNING":
                client.update_run(run_id, status="RUNNING")
            else:
                client.set_terminated(run_id, entry["status"], entry["time"])

    def _send_config(self, values: dict[str, str]) -> None:
        """All config keys as params; MLflow refuses a param that changes, so a changed key becomes a tag."""
        from mlflow.entities import Param

        known = self.client.get_run(self.run_id).data.params
        params = [Param(key, value) for key, value in values.items() if key not in known]
        for start in range(0, len(params), PARAMS_PER_BATCH):
            batch = params[start : start + PARAMS_PER_BATCH]
            self.client.log_batch(self.run_id, params=batch, synchronous=True)
        self._send_tags({f"changed.{key}": value for key, value in values.items() if known.get(key, value) != value})

    def _send_tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        entities = [RunTag(key, str(value)) for key, value in tags.items()]
        self.client.log_batch(self.run_id, tags=entities, synchronous=True)


def _length_of_request(entries: Sequence[Entry]) -> int:
    """How many entries from the first on are metrics that fit into one request; at least 1."""
    count, points = 0, 0
    for entry in entries:
        points += len(entry.get("metrics", ()))
        if "metrics" not in entry or points > METRICS_PER_BATCH:
            break
        count += 1
    return max(1, count)
