"""The command line: every stage is one command of one app, and ``python -m pipelines.<stage>`` runs the same one.

Stages import Ray, MLflow and torch when they run, not when this module is imported, so that ``--help`` is quick.
Anything the user can put right arrives as :class:`InputError`: one sentence on stderr and exit code 2.  So does a file
that the system refuses to read or write.
"""

import json
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inf_nerf.errors import InputError
from inf_nerf.files import FULL

if TYPE_CHECKING:
    from inf_nerf.config import Config
    from inf_nerf.places import Place

EXIT_INPUT_ERROR = 2
PACKAGES = ("inf_nerf", "pipelines")
MODULES = {"eval": "evaluate"}  # `inf-nerf eval` is python -m pipelines.evaluate: eval is a name of Python's

app = typer.Typer(
    name="inf-nerf",
    help=(
        "Turn posed photos into an octree of small radiance fields with level of detail.\n\n"
        "See it work first: **inf-nerf demo**. With your own photos (a COLMAP folder or a transforms.json): "
        "**prepare**, **train**, **eval**, **render**, all on one run directory."
    ),
    epilog="Bad input ends with one sentence and exit code 2; an interrupted training with 130 or 143, and continues "
    "when the same command is given again.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


class LogLevel(StrEnum):
    """How much the program says about itself."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


class Mode(StrEnum):
    """What a picture shows."""

    COLOUR = "colour"
    DEPTH = "depth"
    LEVEL = "level"


Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one config key, e.g. --set octree.num_levels=3; repeatable, stronger than --config and the flags.",
    ),
]
Level = Annotated[LogLevel, typer.Option("--log-level", case_sensitive=False, help="DEBUG also shows tracebacks.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML file of config keys that differ from the defaults; see configs/.")
]
RunDirectory = Annotated[Path, typer.Option("--output-dir", help="The run directory; made if it does not exist.")]
Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="The run directory of prepare and train, or a checkpoint in it; a path or a URI (s3://...)."
    ),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        "--memory-budget",
        metavar="SIZE",
        help="Hold no more than so much of the model, e.g. 64MB or 25%, and read nodes when a picture needs them; "
        "where that is too little, pictures get coarser.",
    ),
]


@app.command()
def synth(
    out: Annotated[Path, typer.Option("--out", help="Where the COLMAP folder of the city is written.")],
    blocks: Annotated[int, typer.Option(help="City blocks along each side.")] = 4,
    photos: Annotated[int, typer.Option(help="Photos, from several heights.")] = 60,
    size: Annotated[int, typer.Option(help="Longest side of a photo in pixels.")] = 480,
    seed: Annotated[int, typer.Option(help="Another seed is another city.")] = 0,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Draw a synthetic city as drone photos with a COLMAP model.

    Writes OUT/images and OUT/sparse/0, the same as a COLMAP reconstruction; no config key changes the city.

    Example: `inf-nerf synth --out runs/city --blocks 4 --photos 60`
    """
    _start_logging(log_level)
    _configure(None, overrides)  # checked like everywhere, so that one set of overrides can serve all stages
    from pipelines import synth as stage

    stage.run(out, blocks=blocks, photos=photos, size=size, seed=seed)


@app.command()
def prepare(
    data_root: Annotated[Path, typer.Option("--data-root", help="Folder with the photos and their COLMAP model.")],
    output_dir: RunDirectory,
    config: ConfigFile = None,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Read the scene, build the octree and cut the photos into tiles.

    Writes scene, octree and tiles into the run directory. Stopped half-way, it goes on where it was.

    Example: `inf-nerf prepare --config configs/laptop.yaml --data-root photos --output-dir runs/photos`
    """
    _start_logging(log_level)
    settings = _configure(config, overrides)
    from pipelines import prepare as stage

    stage.run(settings, data_root, output_dir)


@app.command()
def plan(
    config: ConfigFile = None,
    data_root: Annotated[Path | None, typer.Option("--data-root", help="As for prepare.")] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="A run directory; if it is prepared, its tiles are read.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Ray Train workers (train.num_workers).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Say what a training will need before it runs: tree, memory of each worker, disk, hours.

    Decodes two photos and trains for some seconds to learn what a step costs on this machine; writes nothing.

    Example: `inf-nerf plan --config configs/laptop.yaml --data-root photos --workers 4`
    """
    _start_logging(log_level)
    settings = _configure(config, overrides, {"train.num_workers": workers}, output_dir)
    from pipelines import plan as stage

    stage.run(settings, data_root, output_dir, as_json)


@app.command()
def train(
    output_dir: RunDirectory,
    config: ConfigFile = None,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", help="As for prepare, which runs first if it has not; else not needed."),
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
    _start_logging(log_level)
    flags = {
        "train.num_workers": workers,
        "train.subtree": subtree,
        "train.steps": steps,
        "train.lr_init": lr,
        "train.batch_size": batch_size,
        "tracking.experiment": experiment_name,
    }
    settings = _configure(config, overrides, flags, output_dir)
    from pipelines import train as stage

    raise typer.Exit(stage.run(settings, output_dir, data_root=data_root, resume=resume))


@app.command(name="eval")
def evaluate(
    run: Run,
    checkpoint: Annotated[
        str | None, typer.Option(help="A directory below RUN/checkpoints; the latest if not given.")
    ] = None,
    memory_budget: MemoryBudget = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the result; RUN if not given.")] = None,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Score the held-out photos at every pyramid level.

    Writes RUN/eval.json and an image sheet in RUN/pictures, and shows the table. A result for the same checkpoint and
    settings is used again. With a memory budget the files are named eval_<bytes>B.

    Example: `inf-nerf eval runs/photos`
    """
    _start_logging(log_level)
    from inf_nerf.places import place

    run_dir = place(run)
    settings = _configure(None, overrides, run_dir=run_dir) if overrides else None
    from pipelines import evaluate as stage

    stage.run(run_dir, settings, None if checkpoint is None else place(checkpoint), memory_budget, out)


@app.command()
def render(
    run: Run,
    path: Annotated[
        str, typer.Option("--path", metavar="orbit|zoom|photos|FILE", help="Camera path; FILE is a JSON of cameras.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", help="A video (.mp4), a picture of the first frame (.png), or a directory of stills."),
    ],
    mode: Annotated[Mode, typer.Option(help="What to show: level is the octree level that answered.")] = Mode.COLOUR,
    memory_budget: MemoryBudget = None,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Render a still or a video along a camera path.

    Size, frames and field of view are the config keys render.*; the path 'zoom' goes from far to near through the
    octree's levels.

    Example: `inf-nerf render runs/photos --path zoom --out zoom.mp4 --set render.frames=120`
    """
    _start_logging(log_level)
    from inf_nerf.places import place

    run_dir = place(run)
    settings = _configure(None, overrides, run_dir=run_dir) if overrides else None
    from pipelines import render as stage

    stage.run(run_dir, path, out, mode=mode.value, config=settings, memory_budget=memory_budget)


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option("--output-dir", help="The demo's run directory.")] = Path("runs/demo"),
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Everything on a small synthetic city: synth, prepare, train, eval, render.

    Takes some minutes on two CPU cores and ends by saying where to look. Given again, it continues or shows what is
    there.

    Example: `inf-nerf demo`
    """
    _start_logging(log_level)
    from pipelines import demo as stage

    raise typer.Exit(stage.run(output_dir, overrides or ()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the app on ``arguments`` (the process's own if None) and return the exit code."""
    return _invoke(typer.main.get_command(app), "inf-nerf", arguments)


def run_stage(name: str) -> None:
    """Run the command ``name`` on the process's arguments and exit: the body of ``python -m pipelines.<stage>``."""
    command: Any = typer.main.get_command(app)
    raise SystemExit(_invoke(command.commands[name], f"python -m pipelines.{MODULES.get(name, name)}", None))


def _invoke(command: Any, program: str, arguments: Sequence[str] | None) -> int:
    """Run a command; an error that the user can put right, anywhere in what it raises, is one sentence and code 2."""
    try:
        command.main(args=None if arguments is None else list(arguments), prog_name=program)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    except Exception as error:
        sentence = _sentence(list(_with_causes(error)))
        if sentence is None:
            raise
        if logging.getLogger(PACKAGES[0]).isEnabledFor(logging.DEBUG):
            traceback.print_exc()
        print(f"error: {sentence}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    return 0


def _sentence(errors: list[BaseException]) -> str | None:
    """What to tell the user of ``errors``, innermost first; None if they are faults of the program."""
    for error in errors:
        if isinstance(error, InputError):
            return str(error)
    for error in errors:
        if isinstance(error, OSError) and error.filename is not None:
            return f"{error.filename}: {error.strerror}; correct the path or its permissions."
        if isinstance(error, OSError) and error.errno in FULL:
            return f"{error.strerror}; free some, or choose another place for the output."
    return None


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and its causes, innermost first; Ray carries a worker's error as a cause of its own."""
    workers = getattr(error, "worker_failures", None)
    inner = [getattr(error, "cause", None), error.__cause__, *(workers.values() if isinstance(workers, dict) else ())]
    for cause in inner:
        if isinstance(cause, BaseException) and cause is not error:
            yield from _with_causes(cause)
    yield error


class _Stderr(logging.Handler):
    """Writes to whatever ``sys.stderr`` is at the time, so that a live display can keep its place below."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _start_logging(level: LogLevel) -> None:
    """Our loggers speak from ``level`` on, those of third parties from warnings on."""
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers = [other for other in root.handlers if not isinstance(other, _Stderr)] + [handler]
    root.setLevel(max(logging.WARNING, logging.getLevelName(level.value)))
    for package in PACKAGES:
        logging.getLogger(package).setLevel(level.value)


def _configure(
    path: Path | None,
    overrides: Sequence[str] | None,
    flags: dict[str, Any] | None = None,
    run_dir: "Place | None" = None,
) -> "Config":
    """Defaults (or the run's own configuration where no file is named), then the file, the flags and ``--set``."""
    from inf_nerf.config import load_config

    if run_dir is not None and (run_dir / "manifest.json").is_file():  # a checkpoint in a run
        run_dir = run_dir.parent.parent
    stored = run_dir / "config.yaml" if run_dir is not None and path is None else None
    base = load_config(stored).model_dump(mode="json") if stored is not None and stored.is_file() else None
    changes = [f"{key}={json.dumps(value)}" for key, value in (flags or {}).items() if value is not None]
    return load_config(path, [*changes, *(overrides or ())], base=base)
