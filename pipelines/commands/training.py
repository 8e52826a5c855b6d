"""Commands that train: train, sweep, demo.

Stages are imported when a command runs, not before, so that ``--help`` is quick.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.job import folder
from pipelines.options import (
    ConfigFile,
    Level,
    LogLevel,
    Overrides,
    RunDirectory,
    as_folder,
    configure,
    start_logging,
)


def train(
    output_dir: RunDirectory,
    config: ConfigFile = None,
    data_root: Annotated[
        Path | None,
        typer.Option(
            "--data-root",
            callback=as_folder,
            help="As for prepare, which runs first if it has not; else not needed.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Ray Train workers (train.num_workers); 0: in this process.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="'latest' or a checkpoint directory to start from, e.g. of another run.")
    ] = None,
    subtree: Annotated[
        str | None,
        typer.Option(
            metavar="NODE",
            help="Train only the subtree of a node, e.g. r05, again, and leave all else as it is (train.subtree); with "
            "--resume.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps in all (train.steps).")] = None,
    lr: Annotated[float | None, typer.Option(help="Initial learning rate (train.lr_init).")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rays of one step over all workers (train.batch_size).")
    ] = None,
    experiment_name: Annotated[str | None, typer.Option(help="MLflow experiment (tracking.experiment).")] = None,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Train the octree with Ray Train and record the run in MLflow.

    Ends after train.steps or train.max_seconds, whichever comes first, with an evaluation. Give the same command again
    to continue an interrupted run; Ctrl-C saves first.

    Example: `inf-nerf train --config configs/laptop.yaml --output-dir runs/photos --workers 2`
    """
    start_logging(log_level)
    flags = {
        "train.num_workers": workers,
        "train.subtree": subtree,
        "train.steps": steps,
        "train.lr_init": lr,
        "train.batch_size": batch_size,
        "tracking.experiment": experiment_name,
    }
    settings = configure(config, overrides, flags, output_dir)
    from pipelines import train as stage

    raise typer.Exit(stage.run(settings, output_dir, data_root=data_root, resume=resume))


def sweep(
    config: Annotated[
        Path, typer.Option("--config", help="YAML file with a section 'sweep', e.g. configs/sweep.yaml.")
    ],
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir", callback=as_folder, help="The sweep's directory; if not given runs/NAME for NAME.yaml."
        ),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", callback=as_folder, help="As for prepare, which runs once for all trials."),
    ] = None,
    prepared: Annotated[
        Path | None,
        typer.Option(
            "--prepared", callback=as_folder, help="A prepared run to use instead; it is read and never changed."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a sweep that was interrupted.")] = False,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Train with many settings and say which are best, with Ray Tune.

    The file says which config keys get which values. Trials are compared by val photos, those that are behind are
    stopped early, and a table, plots and the best configuration are written; docs/sweeps.md has all of it.

    Example: `inf-nerf sweep --config configs/sweep.yaml`
    """
    start_logging(log_level)
    from pipelines.sweep_file import load_sweep

    wanted = load_sweep(config, overrides or ())
    from pipelines import sweep as stage

    sweep_dir = output_dir if output_dir is not None else folder("--output-dir", Path("runs") / config.stem)
    raise typer.Exit(stage.run(wanted, sweep_dir, data_root, prepared, resume))


def demo(
    output_dir: Annotated[
        Path, typer.Option("--output-dir", callback=as_folder, help="The demo's run directory.")
    ] = Path("runs/demo"),
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Everything on a small synthetic city: synth, prepare, train, eval, render.

    Takes some minutes on two CPU cores and ends by saying where to look. Given again, it continues or shows what is
    there.

    Example: `inf-nerf demo`
    """
    start_logging(log_level)
    from pipelines import demo as stage

    raise typer.Exit(stage.run(output_dir, overrides or ()))
