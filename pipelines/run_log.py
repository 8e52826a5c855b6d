"""What the processes of a training say, kept in the run as lines of JSON: one file for the driver, one for each rank.

    RUN/logs/rank1.jsonl:
    {"time": "2026-05-04T10:12:03.123Z", "level": "INFO", "run": "5d0c91a7e2b4", "rank": 1,
     "logger": "pipelines.worker", "message": "Saved step 500.", "step": 500, "val_psnr": 21.4}

The loggers are the only channel: what they say from ``--log-level`` on is kept (of third parties, warnings and worse),
and besides the exception that a process ends with.  Ray shows nobody what its workers print.  A training in the
driver's process (``train.num_workers=0``) writes into the driver's file, with its rank.
"""

import json
import logging
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from pipelines.options import PACKAGES

LOGS = "logs"  # folder in a run
ID_FILE = "logs/id"
DRIVER = "driver"

log = logging.getLogger(__name__)


def run_id(run_dir: Path) -> str:
    """The name that tells a run's lines from those of others; made by the first driver, which holds the run's lock."""
    file = run_dir / ID_FILE
    with suppress(OSError):
        if found := file.read_text().strip():
            return found
    made = uuid.uuid4().hex[:12]
    file.parent.mkdir(exist_ok=True)
    write_atomic(file, made + "\n")
    return made


def log_level() -> int:
    """The level from which on our loggers speak."""
    return logging.getLogger(PACKAGES[0]).getEffectiveLevel()


@contextmanager
def run_log(run_dir: Path, run: str, rank: int | None = None, level: int | None = None) -> Iterator[None]:
    """Keep what this process says; ``rank`` is None in the driver, ``level`` None where the loggers are set already.

    An exception that leaves the block is kept with where it came from, and goes on.  A file that cannot be written is a
    warning and no reason to stop.
    """
    root = logging.getLogger()
    here = next((other for other in root.handlers if isinstance(other, JsonLines) and other.run == run), None)
    with _speaking_from(level):
        if here is not None:  # a rank in the driver's process
            with here.of_rank(rank):
                yield
            return
        try:
            (run_dir / LOGS).mkdir(exist_ok=True)
            handler = JsonLines(run_dir / LOGS / f"{DRIVER if rank is None else f'rank{rank}'}.jsonl", run, rank)
        except OSError as error:
            log.warning("The log of the run cannot be written (%s); training goes on without.", error.strerror)
            yield
            return
        root.addHandler(handler)
        try:
            yield
        except BaseException as error:
            handler.keep(error)
            raise
        finally:
            root.removeHandler(handler)
            handler.close()


class JsonLines(logging.Handler):
    """Appends a line for each record, whole and at once; what a record holds as ``facts`` becomes keys of the line."""

    def __init__(self, file: Path, run: str, rank: int | None) -> None:
        super().__init__()
        self.run = run
        self.rank = rank
        self._file = _opened(file)

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING and record.name.partition(".")[0] not in PACKAGES:
            return  # of a third party's logger that has a level of its own
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname,
            "run": self.run,
            "rank": self.rank,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        with suppress(OSError, ValueError):  # a full disk, or a thread that outlives the training
            self._file.write(json.dumps(line, default=str).encode() + b"\n")

    def keep(self, error: BaseException) -> None:
        """Write down what ends the process; whoever catches it decides what people see."""
        expected = isinstance(error, InputError | KeyboardInterrupt | SystemExit)
        message = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}".removesuffix(": ")
        level = logging.ERROR if isinstance(error, InputError) or not expected else logging.WARNING
        info = None if expected else (type(error), error, error.__traceback__)
        record = logging.LogRecord(__name__, level, __file__, 0, message, None, info)
        vars(record).update(facts(ended=True))
        self.emit(record)

    @contextmanager
    def of_rank(self, rank: int | None) -> Iterator[None]:
        """Name another rank for a while."""
        before, self.rank = self.rank, rank
        try:
            yield
        finally:
            self.rank = before

    def close(self) -> None:
        self._file.close()
        super().close()


def facts(**values: Any) -> dict[str, Any]:
    """What a log call says besides its sentence, for its ``extra``."""
    return {"facts": values}


@contextmanager
def _speaking_from(level: int | None) -> Iterator[None]:
    """Have our loggers speak from ``level`` on."""
    loggers = [logging.getLogger(package) for package in PACKAGES] if level is not None else []
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(level or logging.NOTSET)
    try:
        yield
    finally:
        for each, old in zip(loggers, before, strict=True):
            each.setLevel(old)


def _opened(file: Path) -> FileIO:
    """A file to append to, behind the line that a process was writing when it was killed."""
    stream = FileIO(file, "a+")
    size = stream.seek(0, 2)
    if size:
        stream.seek(size - 1)
        if stream.read(1) != b"\n":
            stream.write(b"\n")
    return stream
