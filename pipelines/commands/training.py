"""Commands that train: train, sweep, demo.

Stages are imported when a command runs, not before, so that ``--help`` is quick.
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from inf_nerf.errors import InputError
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

log = logging.getLogger(__name__)


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
        str | None,
        typer.Option(
            metavar="latest|best|DIR",
            help="Go on from the latest checkpoint, from the one that val photos like best, or from a checkpoint "
            "directory, e.g. of another run; settings of the training may change.",
        ),
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
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the training pixels, in place of steps (train.epochs).")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Initial learning rate (train.lr_init).")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rays of one step over all workers (train.batch_size).")
    ] = None,
    project_name: Annotated[str | None, typer.Option(help="MLflow experiment (tracking.experiment).")] = None,
    experiment_name: Annotated[
        str | None, typer.Option(help="Name of the MLflow run in it (tracking.run_name).")
    ] = None,
    profiler: Annotated[
        bool, typer.Option("--profiler", help="Write traces of some steps by torch's profiler (train.profiler).")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="As --log-level DEBUG, and look into every node's numbers (debug.enabled)."),
    ] = False,
    wandb: Annotated[bool, typer.Option("--wandb", hidden=True)] = False,
    distributed: Annotated[bool, typer.Option("--distributed", hidden=True)] = False,
    world_size: Annotated[int | None, typer.Option("--world-size", min=1, hidden=True)] = None,
    local_rank: Annotated[int | None, typer.Option("--local-rank", hidden=True)] = None,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Train the octree with Ray Train and record the run in MLflow.

    Ends after train.steps or train.max_seconds, whichever comes first, with an evaluation. Give the same command again
    to continue an interrupted run; Ctrl-C saves first.

    Example: `inf-nerf train --config configs/laptop.yaml --output-dir runs/photos --workers 2`
    """
    start_logging(LogLevel.DEBUG if debug else log_level)
    if steps is not None and epochs is not None:
        raise InputError(f"--steps {steps} and --epochs {epochs:g} both say how long to train; give one of them.")
    flags = {
        "train.num_workers": _workers(workers, distributed, world_size, local_rank),
        "train.subtree": subtree,
        "train.steps": steps,
        "train.epochs": epochs,
        "train.lr_init": lr,
        "train.batch_size": batch_size,
        "train.profiler": profiler or None,
        "debug.enabled": debug or None,
        "tracking.experiment": project_name,
        "tracking.run_name": experiment_name,
        "tracking.enabled": wandb or None,
    }
    unset = ["train.epochs"] if steps is not None else []
    if wandb:
        log.info("--wandb: MLflow records runs here, where tracking.uri says.")
    settings = configure(config, overrides, flags, output_dir, unset)
    from pipelines import train as stage

    raise typer.Exit(stage.run(settings, output_dir, data_root=data_root, resume=resume))


def _workers(workers: int | None, distributed: bool, world_size: int | None, local_rank: int | None) -> int | None:
    """How many workers train, also where a launcher of processes such as torchrun is asked to say so."""
    if local_rank:
        raise InputError(
            f"--local-rank is {local_rank}, but Ray starts and numbers the workers itself: start one command, without "
            "a launcher, and say with --workers how many there are to be."
        )
    if workers is not None and world_size is not None and workers != world_size:
        raise InputError(f"--workers {workers} and --world-size {world_size} differ; give --workers alone.")
    count = world_size if workers is None else workers
    if distributed and count is None:
        raise InputError("--distributed does not say over how many workers; give --workers in its place.")
    return count


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
    from pipelines.sweeping.sweep_file import load_sweep

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
