"""The command line: every stage is one command of one app, and ``python -m pipelines.<stage>`` runs the same one.

The commands stand in `pipelines/commands`; their stages import Ray, MLflow and torch when they run, not before, so that
``--help`` is quick.
Anything the user can put right arrives as :class:`InputError`: one sentence on stderr and exit code 2.  So does a file
that the system refuses to read or write.
"""

import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import typer

from inf_nerf.errors import InputError
from inf_nerf.files import FULL
from pipelines.commands import configuration, data, exports, results, runs, training, viewing
from pipelines.options import PACKAGES
from pipelines.signals import sigterm_leaves

EXIT_INPUT_ERROR = 2
MODULES = {"eval": "evaluate"}  # `inf-nerf eval` is python -m pipelines.evaluate: eval is a name of Python's

app = typer.Typer(
    name="inf-nerf",
    help=(
        "Turn posed photos into an octree of small radiance fields with level of detail.\n\n"
        "See it work first: **inf-nerf demo**. With your own photos (a COLMAP folder or a transforms.json): "
        "**prepare**, **train**, **eval**, **render**, **export**, all on one run directory."
    ),
    epilog="Bad input ends with one sentence and exit code 2; an interrupted training with 130 or 143, and continues "
    "when the same command is given again.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for command in (data.synth, data.prepare, data.plan, training.train):
    app.command()(command)
app.command(name="eval")(results.evaluate)
for command in (results.render, viewing.view, viewing.report, viewing.plot, exports.export, runs.compare, runs.analyze):
    app.command()(command)
for command in (training.sweep, runs.monitor, runs.track, training.demo):
    app.command()(command)
app.add_typer(configuration.config)


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
        given = None if arguments is None else list(arguments)
        with sigterm_leaves():
            command.main(args=given, prog_name=program, token_normalize_func=_with_hyphens)
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


def _with_hyphens(name: str) -> str:
    """Options may be spelled ``--output_dir`` too."""
    return name.replace("_", "-")


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
