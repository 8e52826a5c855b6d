"""Watches a training from its driver: judges the rows that come, tells whoever should know, and acts.

An alert is a line in ``RUN/alerts.jsonl`` and in the log, a tag ``alert.<name>`` of the MLflow run and, if wanted, the
input of a program or the body of a request.  Programs and requests wait in a thread of their own: a training never
waits for them, and one that fails is a warning.
"""

import json
import logging
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from inf_nerf.config import AlertName, Config
from inf_nerf.diagnose.alerts import Alert, Monitor
from pipelines.progress import Saving
from pipelines.run_log import facts
from pipelines.worker import PAUSE_FILE, SAVE_FILE, STOP_FILE

ALERTS_FILE = "alerts.jsonl"
COMMAND_SECONDS = 30.0
REQUEST_SECONDS = 10.0

log = logging.getLogger(__name__)


class Watch:
    """Judges, tells and acts within a ``with`` block; ``set_tags`` is the tracker's."""

    def __init__(self, config: Config, run_dir: Path, set_tags: Any = None) -> None:
        self._config = config.monitor
        self._run_dir = run_dir
        self._set_tags = set_tags
        self._monitor = Monitor(config.monitor, config.train.precision)
        self._arrived = time.monotonic()
        self._saving = Saving(run_dir)
        self._pool = ThreadPoolExecutor(1, "alerts") if config.monitor.command or config.monitor.webhook else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def take(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """New rows of the metrics file."""
        if self._config.enabled and rows:
            self._arrived = time.monotonic()
            for row in rows:
                for alert in self._monitor.take(row):
                    self._raise(alert)

    def look(self) -> None:
        """Call it now and then: is a row overdue?  A training that was asked to pause, or that saves, may take its
        time."""
        if self._saving.goes_on() or (self._run_dir / PAUSE_FILE).exists():
            self._arrived = time.monotonic()
        elif self._config.enabled:
            for alert in self._monitor.waiting(time.monotonic() - self._arrived):
                self._raise(alert)

    def _raise(self, alert: Alert) -> None:
        action = self._action(alert.name)
        level = logging.ERROR if alert.severity == "critical" else logging.WARNING
        log.log(level, "Step %d, %s: %s.", alert.step, alert.name, alert.message, extra=facts(alert=asdict(alert)))
        line = {"time": round(time.time(), 3), "run": self._run_dir.name, **asdict(alert), "action": action}
        try:
            with open(self._run_dir / ALERTS_FILE, "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            log.warning("%s cannot be written (%s).", self._run_dir / ALERTS_FILE, error.strerror)
        if self._set_tags is not None:
            self._set_tags({f"alert.{alert.name}": f"step {alert.step}: {alert.message}"})
        if self._pool is not None:
            self._pool.submit(tell, line, self._config.command, self._config.webhook)
        self._act(alert.name, action)

    def _action(self, name: AlertName) -> str:
        """The strongest that is configured."""
        for action in ("stop", "pause", "checkpoint"):
            if name in getattr(self._config, f"{action}_on"):
                return action
        return "warn"

    def _act(self, name: AlertName, action: str) -> None:
        file = {"stop": STOP_FILE, "pause": PAUSE_FILE, "checkpoint": SAVE_FILE}.get(action)
        if file is None:
            return
        (self._run_dir / file).touch()
        if action == "stop":
            log.warning("Training stops and saves because of %s (monitor.stop_on).", name)
        elif action == "pause":
            log.warning(
                "Training pauses because of %s (monitor.pause_on); go on with: inf-nerf monitor %s --request resume",
                name,
                self._run_dir,
            )


def tell(line: Mapping[str, Any], command: str | None, webhook: str | None) -> None:
    """Give an alert to a program and to an address; a failure is a warning."""
    text = json.dumps(line) + "\n"
    if command:
        try:
            subprocess.run(
                shlex.split(command), input=text, text=True, check=True, timeout=COMMAND_SECONDS, capture_output=True
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            log.warning("monitor.command could not be given the alert %s (%s).", line["name"], error)
    if webhook:
        try:
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(webhook, text.encode(), headers, method="POST")
            urllib.request.urlopen(request, timeout=REQUEST_SECONDS).close()
        except (OSError, ValueError) as error:
            log.warning("monitor.webhook could not be sent the alert %s (%s).", line["name"], error)
