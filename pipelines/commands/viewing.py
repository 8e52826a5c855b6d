"""Commands for people's eyes: view, report, plot.

Stages are imported when a command runs, not before, so that ``--help`` is quick.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import Level, LogLevel, Overrides, Run, Which, chosen, configure, start_logging


def view(
    run: Run,
    memory_budget: Annotated[
        str,
        typer.Option(
            "--memory-budget", metavar="SIZE", help="Hold no more than so much of the model, e.g. 64MB or 25%."
        ),
    ] = "1GB",
    host: Annotated[str, typer.Option(help="Address to answer on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to answer on.")] = 8080,
    checkpoint: Which = None,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Look at a run in a browser, also while it trains.

    A coarse picture comes at once and gets finer while the camera rests. Shows colour, depth, octree level, node and
    opacity, the octree's cubes, cameras, photos and points; lays out camera paths for render. Needs the extra `view`.
    No config key changes it.

    Example: `inf-nerf view runs/photos`
    """
    start_logging(log_level)
    configure(None, overrides)
    from pipelines import view as stage

    stage.run(chosen(run, checkpoint), memory_budget, host, port)


def report(
    run: Run,
    out: Annotated[Path | None, typer.Option("--out", help="The file; RUN/report.html if not given.")] = None,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Write what came of a run on one HTML page.

    Scores, worst photos, curves, coverage, octree, configuration, environment; the file needs neither a network nor
    other files. Where the run is tracked, it becomes an artifact in MLflow; tracking.uri with a user and a password is
    used where it is the same store.

    Example: `inf-nerf report runs/photos`
    """
    start_logging(log_level)
    from inf_nerf.places import place

    run_dir = place(run)
    settings = configure(None, overrides, run_dir=run_dir)
    from pipelines import report as stage

    stage.run(run_dir, out, settings)


class Plot(StrEnum):
    """What is drawn."""

    PROGRESS = "progress"
    OCTREE = "octree"
    SAMPLES = "samples"


def plot(
    run: Run,
    only: Annotated[Plot | None, typer.Option(help="Draw this picture alone.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The folder; RUN/pictures if not given.")] = None,
    checkpoint: Which = None,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Draw how a run trained, its octree in space, and the samples that it is asked, as PNG files.

    A training draws them at its end as well, and MLflow gets them. No config key changes it.

    Example: `inf-nerf plot runs/photos`
    """
    start_logging(log_level)
    configure(None, overrides)
    from pipelines import plot as stage

    stage.run(chosen(run, checkpoint), out, None if only is None else only.value)
