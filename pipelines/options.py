"""What the commands share: options with their help, the log, and the configuration that options change."""

import json
import logging
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.job import folder

if TYPE_CHECKING:
    from inf_nerf.config import Config
    from inf_nerf.places import Place

PACKAGES = ("inf_nerf", "pipelines")


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


def as_folder(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """The folder that an option names; :class:`InputError` where nothing that is kept may lie."""
    return None if path is None else folder(option.opts[0], path)


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
RunDirectory = Annotated[
    Path, typer.Option("--output-dir", callback=as_folder, help="The run directory; made if it does not exist.")
]
Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="The run directory of prepare and train, or a checkpoint in it; a path or a URI (s3://...)."
    ),
]
Which = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="latest|best|STEP|DIR",
        help="Which checkpoint of RUN: the latest, if not given; the one that val photos like best; that of a step; or "
        "a directory.",
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


class _Stderr(logging.Handler):
    """Writes to whatever ``sys.stderr`` is at the time, so that a live display can keep its place below."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def start_logging(level: LogLevel) -> None:
    """Our loggers speak from ``level`` on, those of third parties from warnings on."""
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers = [other for other in root.handlers if not isinstance(other, _Stderr)] + [handler]
    root.setLevel(max(logging.WARNING, logging.getLevelName(level.value)))
    for package in PACKAGES:
        logging.getLogger(package).setLevel(level.value)


def chosen(run: str, checkpoint: str | None) -> "Place":
    """The run that was named, of which stages take the latest checkpoint, or another checkpoint that was.

    Raises :class:`InputError` where that is none.
    """
    from inf_nerf.places import place
    from inf_nerf.train.manifest import best_checkpoint, checkpoint_of_step, read_manifest

    run_dir = place(run)
    if checkpoint in (None, "latest"):
        return run_dir
    if checkpoint == "best":
        return best_checkpoint(run_dir)
    found = checkpoint_of_step(run_dir, int(checkpoint)) if checkpoint.isdecimal() else place(checkpoint)
    read_manifest(found)
    return found


def configure(
    path: Path | None,
    overrides: Sequence[str] | None,
    flags: dict[str, Any] | None = None,
    run_dir: "Place | None" = None,
    unset: Sequence[str] = (),
) -> "Config":
    """Defaults (or the run's own configuration where no file is named), then the file, the flags and ``--set``.

    Keys that are ``unset`` become null before the flags.
    """
    from inf_nerf.config import load_config

    if run_dir is not None and (run_dir / "manifest.json").is_file():  # a checkpoint in a run
        run_dir = run_dir.parent.parent
    stored = run_dir / "config.yaml" if run_dir is not None and path is None else None
    base = load_config(stored).model_dump(mode="json") if stored is not None and stored.is_file() else None
    changes = [f"{key}={json.dumps(value)}" for key, value in (flags or {}).items() if value is not None]
    return load_config(path, [*(f"{key}=null" for key in unset), *changes, *(overrides or ())], base=base)
