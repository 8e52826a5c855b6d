"""What a training says about itself while it runs: the driver follows ``RUN/metrics.jsonl``, which rank 0 appends to.

On a terminal a live line shows step, rays/s, samples per ray, loss, PSNR, elapsed and remaining time; anywhere else a
plain line comes every few seconds.  New rows are handed to a callback, the tracker's.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from inf_nerf.config import Config
from inf_nerf.files import write_atomic
from inf_nerf.places import Place

METRICS_FILE = "metrics.jsonl"
RECENT_ROWS = 16  # the rate is taken over these

Row = dict[str, Any]

log = logging.getLogger(__name__)


class RowReader:
    """Complete new lines of a growing JSON-lines file, from a byte offset on."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset

    def read(self) -> list[Row]:
        """Rows since the last call.  A line still being written waits; one that is no JSON object is passed over.

        A file that has become shorter was cut back by a resumed training: reading goes on from its new end.
        """
        try:
            with open(self.path, "rb") as file:
                self.offset = min(self.offset, file.seek(0, 2))
                file.seek(self.offset)
                complete = file.read().rpartition(b"\n")[:2]
        except FileNotFoundError:
            return []
        text = b"".join(complete)
        self.offset += len(text)
        return rows_of(text)


class Saving:
    """Looks whether a checkpoint of a run is being written: no row comes meanwhile, but files do."""

    def __init__(self, run_dir: Place) -> None:
        self._folder = run_dir / "checkpoints"
        self._found: dict[str, int] = {}

    def goes_on(self) -> bool:
        """Whether anything of one came, or one was finished, since the last call; False behind a URI."""
        if not isinstance(self._folder, Path):
            return False
        before, self._found = self._found, {}
        for folder in (*self._folder.glob("*.partial"), *self._folder.glob("*.partial/*/")):
            with suppress(OSError):  # renamed meanwhile
                self._found[str(folder)] = folder.stat().st_mtime_ns
        return self._found != before


def rows_of(lines: bytes) -> list[Row]:
    """The rows in complete lines; one that is no JSON object with a step is passed over."""
    return [row for line in lines.splitlines() if (row := _parse(line)) is not None]


def append_row(metrics: Path, run: str, row: Mapping[str, Any]) -> None:
    """Write down one row of a training whose name is ``run``."""
    with open(metrics, "a") as file:
        file.write(json.dumps({**row, "run": run}) + "\n")


def forget_rows_after(metrics: Path, step: int) -> None:
    """Drop the rows of steps that will be trained again, and lines that are no rows."""
    if metrics.exists():
        lines = metrics.read_bytes().splitlines()
        kept = [line for line in lines if (row := _parse(line)) is not None and row["step"] <= step]
        write_atomic(metrics, b"".join(line + b"\n" for line in kept))


class TrainingProgress:
    """Shows a training within a ``with`` block; the driver calls :meth:`update` now and then.

    Rows from byte ``offset`` of the metrics file on are shown and handed to ``on_rows``; None: only new ones.
    """

    def __init__(
        self,
        config: Config,
        metrics_path: Path,
        on_rows: Callable[[list[Row]], None] | None = None,
        *,
        offset: int | None = None,
        console: Console | None = None,
        plain_seconds: float = 10.0,
    ) -> None:
        self.last: Row = {}
        self._waiting = waiting_text(config)
        if offset is None:
            offset = metrics_path.stat().st_size if metrics_path.exists() else 0
        self._reader = RowReader(metrics_path, offset)
        self._total_steps = config.train.steps
        self._max_seconds = config.train.max_seconds
        self._on_rows = on_rows
        self._console = console or Console()
        self._plain_seconds = plain_seconds
        self._recent: deque[Row] = deque(maxlen=RECENT_ROWS)
        self._printed_at = time.monotonic()
        self._printed_step: int | None = None
        self._live: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (SpinnerColumn(), BarColumn(bar_width=20), TextColumn("{task.description}"), _Times())
            self._live = Progress(*columns, console=self._console)
            self._task = self._live.add_task(self._waiting, total=1.0)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._take_rows()
        if self._live is not None:
            self._live.stop()
        elif self.last and self.last["step"] != self._printed_step:
            self._print_line()

    def update(self) -> None:
        """Take what is new in the file and show it; cheap, never raises."""
        self._take_rows()
        if self._live is None and time.monotonic() - self._printed_at >= self._plain_seconds:
            self._print_line()

    def _take_rows(self) -> None:
        rows = self._reader.read()
        if not rows:
            return
        self._recent.extend(rows)
        self.last = rows[-1]
        if self._live is not None:
            self._live.update(
                self._task,
                description=describe(self.last, self._total_steps),
                completed=share_done(self.last, self._total_steps, self._max_seconds),
                left=seconds_left(self._recent, self._total_steps, self._max_seconds),
                seconds=self.last.get("seconds"),
            )
        if self._on_rows is not None:
            try:
                self._on_rows(rows)
            except Exception as error:  # showing and recording must not end a training
                log.warning("New metric rows could not be handed on: %s", error)

    def _print_line(self) -> None:
        self._printed_at = time.monotonic()
        line = self._waiting
        if self.last:
            self._printed_step = self.last["step"]
            left = seconds_left(self._recent, self._total_steps, self._max_seconds)
            line = f"{describe(self.last, self._total_steps)}  {_times(self.last.get('seconds'), left)}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def waiting_text(config: Config) -> str:
    """What there is to say before the first row."""
    return f"waiting for the first row of metrics (one every {config.train.log_every} steps)"


def describe(row: Mapping[str, Any], total_steps: int) -> str:
    """One line of the numbers that a row has."""
    parts = [f"step {row['step']}/{total_steps}"]
    for key, text in (
        ("rays_per_second", "{:,.0f} rays/s"),
        ("samples_per_ray", "{:.1f} samples/ray"),
        ("loss", "loss {:.4f}"),
        ("psnr", "PSNR {:.2f}"),
    ):
        value = row.get(key)
        if isinstance(value, int | float):
            parts.append(text.format(value))
    return "  ".join(parts)


def share_done(row: Mapping[str, Any], total_steps: int, max_seconds: float | None) -> float:
    """The larger of step share and time share, in [0, 1]."""
    by_time = row.get("seconds", 0.0) / max_seconds if max_seconds else 0.0
    return min(1.0, max(row["step"] / total_steps, by_time))


def seconds_left(recent: "deque[Row]", total_steps: int, max_seconds: float | None) -> float | None:
    """Seconds until the steps or the time are used up, whichever is earlier; None while no rate is known."""
    if not recent or "seconds" not in recent[-1]:
        return None
    first, last = recent[0], recent[-1]
    bounds = [max_seconds - last["seconds"]] if max_seconds else []
    steps, seconds = last["step"] - first["step"], last["seconds"] - first.get("seconds", 0.0)
    if steps > 0 and seconds > 0:
        bounds.append((total_steps - last["step"]) * seconds / steps)
    return max(0.0, min(bounds)) if bounds else None


class _Times(ProgressColumn):
    """Training time and what is left of it, by the rows' own clock."""

    def render(self, task: Task) -> Text:
        return Text(_times(task.fields.get("seconds"), task.fields.get("left")))


def _times(elapsed: float | None, remaining: float | None) -> str:
    return "" if elapsed is None else f"{_clock(elapsed)} elapsed  {_clock(remaining)} left"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def _parse(line: bytes) -> Row | None:
    """The row in a line, or None where it holds none: a machine that stopped may leave anything."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
