"""Commands on runs as MLflow and their directories record them: compare, analyze, monitor, track.

Stages are imported when a command runs, not before, so that ``--help`` is quick.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import Level, LogLevel, Overrides, Run, configure, start_logging

TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        envvar="MLFLOW_TRACKING_URI",
        help="The MLflow store; mlflow.db in the working directory if not given.",
    ),
]


class Request(StrEnum):
    """What a training can be asked for."""

    PAUSE = "pause"
    RESUME = "resume"
    CHECKPOINT = "checkpoint"
    STOP = "stop"


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Run directories, or ids of MLflow runs in the store (--tracking-uri)."),
    ],
    tracking_uri: TrackingUri = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Show runs side by side: the settings that differ, PSNR per level, time, memory.

    Ends with the command that opens MLflow's own comparison of these runs. No config key changes it.

    Example: `inf-nerf compare runs/first runs/second`
    """
    start_logging(log_level)
    configure(None, overrides)
    from pipelines import compare as stage

    stage.run(runs, tracking_uri, as_json)


def analyze(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Run directories, also of trainings that go on, or files of rows."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything that was found as JSON.")] = False,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Say whether trainings were stable and have converged, how fast they were, and what went wrong.

    Reads metrics.jsonl and logs/ of a run; docs/analysis.md says what the verdicts mean. No config key changes it.

    Example: `inf-nerf analyze runs/photos`
    """
    start_logging(log_level)
    configure(None, overrides)
    from inf_nerf.places import place
    from pipelines import analyze as stage

    stage.run([place(each) for each in runs], as_json)


def monitor(
    run: Run,
    once: Annotated[bool, typer.Option("--once", help="Show what the run is now and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    request: Annotated[
        Request | None, typer.Option(help="Ask the training for something instead; it looks twice a second.")
    ] = None,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Follow a run in the terminal: its figures, how they went, and alerts.

    From any process or machine that reaches the run's files, until the training is complete. Alerts are judged by the
    run's own monitor.* keys; nothing is done about them. Without a terminal it prints lines.

    Example: `inf-nerf monitor runs/photos`
    """
    start_logging(log_level)
    configure(None, overrides)
    from inf_nerf.places import place
    from pipelines import monitor as stage

    stage.run(place(run), once, interval, None if request is None else request.value)


def track(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run directories of train or sweep.")],
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Send MLflow what it missed while its store was away.

    The store is the one that recorded a run; tracking.uri or MLFLOW_TRACKING_URI with a user and a password is used
    where it is the same. A training that goes on sends what waits by itself.

    Example: `inf-nerf track runs/photos`
    """
    start_logging(log_level)
    settings = [configure(None, overrides, run_dir=run_dir) for run_dir in run_dirs]
    from pipelines import track as stage

    for run_dir, config in zip(run_dirs, settings, strict=True):
        stage.run(run_dir, config)
