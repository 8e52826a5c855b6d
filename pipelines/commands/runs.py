"""Commands on runs as MLflow and their directories record them: compare, track.

Stages are imported when a command runs, not before, so that ``--help`` is quick.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import Level, LogLevel, Overrides, configure, start_logging

TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        envvar="MLFLOW_TRACKING_URI",
        help="The MLflow store; mlflow.db in the working directory if not given.",
    ),
]


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
