"""Follow a run in the terminal, from another process or machine, or ask a training for something.

    inf-nerf monitor runs/photos
    inf-nerf monitor s3://bucket/run --once
    inf-nerf monitor runs/photos --request pause

Only files of the run are read, so it works while the training runs and after it, and wherever they can be reached.
Alerts are judged here by the run's own settings, as its driver does; nothing is done about them.
"""

import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from inf_nerf.config import Config, load_config
from inf_nerf.diagnose.alerts import Alert, Monitor
from inf_nerf.errors import InputError
from inf_nerf.places import Place
from inf_nerf.train.manifest import latest_checkpoint, read_manifest
from pipelines.progress import METRICS_FILE, Row, RowReader, Saving, describe, rows_of, share_done, waiting_text
from pipelines.run_lock import is_held
from pipelines.worker import PAUSE_FILE, SAVE_FILE, STOP_FILE

REQUESTS = {"pause": PAUSE_FILE, "checkpoint": SAVE_FILE, "stop": STOP_FILE}
SHOWN = {
    "loss": "loss",
    "psnr": "PSNR of training rays, dB",
    "rays_per_second": "rays/s",
    "samples_per_ray": "samples/ray",
    "data_share": "share waiting for data",
    "seconds_imbalance": "imbalance of workers",
    "idle_share": "share waiting for workers",
    "memory_mb": "memory of worker 0, MB",
    "host_memory": "machine's memory used",
    "device_memory": "GPU's memory used",
    "device_busy": "GPU busy",
}
BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 40  # of a sparkline
LATEST_ALERTS = 8


class Follower:
    """A run as far as its rows were read."""

    def __init__(self, run_dir: Place, config: Config) -> None:
        self.run_dir = run_dir
        self.config = config
        self.monitor = Monitor(config.monitor, config.train.precision)
        self.alerts: list[Alert] = []
        self.left = False  # rows are overdue because nobody trains
        self._saving = Saving(run_dir)
        self._reader = RowReader(run_dir / METRICS_FILE) if isinstance(run_dir, Path) else _RemoteRows(run_dir)
        self._arrived: float | None = None

    def read(self) -> tuple[list[Row], list[Alert]]:
        """What is new since the last call."""
        rows = self._reader.read()
        news = [alert for row in rows for alert in self.monitor.take(row)]
        if rows or self._saving.goes_on():
            self._arrived = time.monotonic()
        elif self._arrived is not None and not self._paused():
            overdue = self.monitor.waiting(time.monotonic() - self._arrived)
            self.left = bool(overdue) and isinstance(self.run_dir, Path) and not is_held(self.run_dir)
            news += [] if self.left else overdue
        self.alerts += news
        return rows, news

    def complete(self) -> bool:
        """Whether the training came to its end."""
        newest = latest_checkpoint(self.run_dir)
        return newest is not None and bool(read_manifest(newest)["complete"])

    def _paused(self) -> bool:
        return (self.run_dir / PAUSE_FILE).is_file()

    def line(self) -> str:
        """One line of the last row."""
        if not self.monitor.rows:
            return f"{self.run_dir}: {waiting_text(self.config)}"
        row, train = self.monitor.rows[-1], self.config.train
        done = share_done(row, train.steps, train.max_seconds)
        elapsed = timedelta(seconds=round(row.get("seconds", 0)))
        return f"{describe(row, train.steps)}  {elapsed} trained, {100 * done:.0f} %"

    def picture(self) -> Group:
        """The run for a terminal."""
        table = Table(title=str(self.run_dir), title_justify="left", expand=False)
        table.add_column("metric")
        table.add_column("last", justify="right")
        table.add_column(f"the last {COLUMNS} of {len(self.monitor.rows)} rows")
        for key, name in SHOWN.items():
            if values := self.monitor.series(key):
                table.add_row(name, f"{values[-1]:,.4g}", sparkline(values[-COLUMNS:]))
        parts: list[Any] = [Text(self.line()), table]
        for alert in self.alerts[-LATEST_ALERTS:]:
            style = "bold red" if alert.severity == "critical" else "yellow"
            parts.append(Text(told(alert), style=style))
        if not self.alerts:
            parts.append(Text("No alert.", style="green"))
        return Group(*parts)


class _RemoteRows:
    """Rows of a metrics file behind a URI; it is read whole each time."""

    def __init__(self, run_dir: Place) -> None:
        self._file = run_dir / METRICS_FILE
        self._offset = 0

    def read(self) -> list[Row]:
        try:
            content = self._file.read_bytes()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        rows = rows_of(whole[min(self._offset, len(whole)) :])
        self._offset = len(whole)
        return rows


def run(
    run_dir: Place,
    once: bool = False,
    interval: float = 2.0,
    request: str | None = None,
    console: Console | None = None,
) -> None:
    """Show a run until its training is complete, or rows are overdue and nobody trains; with ``once`` what it is now.

    ``request`` is ``pause``, ``resume``, ``checkpoint`` or ``stop``, and nothing is shown then.  Raises
    :class:`InputError` where no training can be.
    """
    console = console or Console()
    if not (run_dir / "config.yaml").is_file():
        raise InputError(f"{run_dir} is no run directory (it has no config.yaml); name one of prepare and train.")
    if request is not None:
        make(run_dir, request)
        console.print(f"Asked the training in {run_dir}: {request}.", markup=False, highlight=False, soft_wrap=True)
        return
    follower = Follower(run_dir, load_config(run_dir / "config.yaml"))
    if once or not console.is_terminal:
        _follow_plainly(follower, console, once, interval)
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            follower.read()
            live.update(follower.picture(), refresh=True)
            if follower.complete() or follower.left:
                break
            time.sleep(interval)
    if follower.left:
        console.print(_left(run_dir), markup=False, highlight=False, soft_wrap=True)


def make(run_dir: Place, request: str) -> None:
    """Ask the workers of a run for something; they look twice a second."""
    if not isinstance(run_dir, Path):
        raise InputError(f"--request {request} writes into the run, and {run_dir} is no local folder; ask where it is.")
    if not is_held(run_dir):
        raise InputError(f"Nobody trains in {run_dir} who could be asked; inf-nerf train starts one or goes on.")
    if request == "resume":
        (run_dir / PAUSE_FILE).unlink(missing_ok=True)
    else:
        (run_dir / REQUESTS[request]).touch()


def sparkline(values: Sequence[float]) -> str:
    """Values as bars between their least and their most; those that are not finite are gaps."""
    finite = [value for value in values if abs(value) < float("inf")]
    if not finite:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    last = len(BARS) - 1
    return "".join(BARS[round((v - low) / span * last)] if abs(v) < float("inf") else " " for v in values)


def told(alert: Alert) -> str:
    """An alert as a line."""
    return f"{alert.severity.upper()} step {alert.step}, {alert.name}: {alert.message}."


def _follow_plainly(follower: Follower, console: Console, once: bool, interval: float) -> None:
    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    while True:
        rows, news = follower.read()
        for alert in news:
            say(told(alert))
        if rows or once:
            say(follower.line())
        if follower.left:
            say(_left(follower.run_dir))
        if once or follower.complete() or follower.left:
            return
        time.sleep(interval)


def _left(run_dir: Place) -> str:
    return f"Nobody trains in {run_dir} any more; the command that began its training continues it."


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("monitor")
