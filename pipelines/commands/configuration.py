"""Commands about configurations: config check, config show, config explain.

What they need is imported when a command runs, not before, so that ``--help`` is quick.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import Level, LogLevel, Overrides, as_folder, configure, start_logging

config = typer.Typer(
    name="config",
    help="Configurations: **check** one before a training, **show** all of its keys, **explain** what a key means.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
File = Annotated[
    Path | None,
    typer.Argument(metavar="FILE", help="YAML file of config keys, or a run directory; without one: the defaults."),
]


@config.command()
def check(
    file: File = None,
    data_root: Annotated[
        Path | None,
        typer.Option(
            "--data-root", callback=as_folder, help="As for prepare: photos, tree and memory are looked at as well."
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    overrides: Overrides = None,
    log_level: Level = LogLevel.WARNING,
) -> None:
    """Say what is wrong with a configuration, and what becomes of keys of other trainers.

    Errors are what a command would refuse, and end with exit code 2. Warnings are what is likely not meant, or what
    only this machine lacks.

    Example: `inf-nerf config check configs/laptop.yaml --data-root photos`
    """
    start_logging(log_level)
    from pipelines import check as stage

    raise typer.Exit(stage.run(_file(file), data_root, overrides or (), strict, as_json))


@config.command()
def show(
    file: File = None,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="As a file that --config takes.")] = False,
    changed: Annotated[bool, typer.Option("--changed", help="Only keys that differ from their defaults.")] = False,
    overrides: Overrides = None,
    log_level: Level = LogLevel.WARNING,
) -> None:
    """Show every key of a configuration with its value, and its default where that is another.

    Example: `inf-nerf config show configs/laptop.yaml --changed`
    """
    start_logging(log_level)
    wanted = configure(_file(file), overrides)
    from rich.console import Console
    from rich.table import Table

    from inf_nerf.config import Config
    from inf_nerf.key_meaning import as_yaml as text

    if as_yaml:
        print(wanted.to_yaml(), end="")
        return
    defaults, console = Config().flat(), Console()
    rows = [
        (key, text(value), text(defaults[key]) if value != defaults[key] else "")
        for key, value in wanted.flat().items()
        if not changed or value != defaults[key]
    ]
    if console.is_terminal:
        table = Table("key", "value", "default, if another")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        for key, value, default in rows:
            print(f"{key}={value}" + (f"  # default: {default}" if default else ""))


@config.command()
def explain(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Config keys, e.g. train.steps, or sections.")],
) -> None:
    """Say what config keys mean: type, default, unit.

    Example: `inf-nerf config explain train.lr_init octree`
    """
    start_logging(LogLevel.WARNING)
    from inf_nerf.key_meaning import explain as meanings

    for found in [meaning for key in keys for meaning in meanings(key)]:
        print(found.key)
        for name in ("type", "default", "unit", "meaning"):
            print(f"  {name}: {getattr(found, name) or '-'}")
        sys.stdout.flush()


def _file(path: Path | None) -> Path | None:
    """The file itself, or that of a run directory."""
    return path / "config.yaml" if path is not None and path.is_dir() else path
