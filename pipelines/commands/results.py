"""Commands that look at what was trained: eval, render.

Stages are imported when a command runs, not before, so that ``--help`` is quick.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import (
    Level,
    LogLevel,
    MemoryBudget,
    Mode,
    Overrides,
    Run,
    Which,
    as_folder,
    chosen,
    configure,
    start_logging,
)


def evaluate(
    run: Run,
    checkpoint: Which = None,
    memory_budget: MemoryBudget = None,
    out: Annotated[
        Path | None, typer.Option("--out", callback=as_folder, help="Folder for the result; RUN if not given.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="RUN", help="Another run of the same photos; shows the differences to it.")
    ] = None,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Score the held-out photos at every pyramid level and distance.

    Writes RUN/eval.json, eval.csv and an image sheet in RUN/pictures, and shows the table. A result for the same
    checkpoint and settings is used again. With a memory budget the files are named eval_<bytes>B.

    Example: `inf-nerf eval runs/photos`
    """
    start_logging(log_level)
    from inf_nerf.places import place

    run_dir, found = place(run), chosen(run, checkpoint)
    settings = configure(None, overrides, run_dir=run_dir) if overrides else None
    from pipelines import evaluate as stage

    other = None if baseline is None else place(baseline)
    stage.run(run_dir, settings, None if found == run_dir else found, memory_budget, out, other)


def render(
    run: Run,
    path: Annotated[
        str, typer.Option("--path", metavar="orbit|spiral|zoom|photos|FILE", help="Camera path; FILE is a JSON file.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            callback=as_folder,
            help="A video (.mp4), a picture of the first frame (.png), or a directory of stills.",
        ),
    ],
    mode: Annotated[Mode, typer.Option(help="What to show: level is the octree level that answered.")] = Mode.COLOUR,
    checkpoint: Which = None,
    memory_budget: MemoryBudget = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray workers that share the frames of a long path; else this process.")
    ] = None,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Render a still or a video along a camera path.

    Size, frames and field of view are the config keys render.*; the path 'zoom' goes from far to near through the
    octree's levels.

    Example: `inf-nerf render runs/photos --path zoom --out zoom.mp4 --set render.frames=120`
    """
    start_logging(log_level)
    run_dir = chosen(run, checkpoint)
    settings = configure(None, overrides, run_dir=run_dir) if overrides else None
    from pipelines import render as stage

    stage.run(run_dir, path, out, mode=mode.value, config=settings, memory_budget=memory_budget, workers=workers)
