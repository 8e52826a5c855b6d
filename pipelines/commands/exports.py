"""The command that turns what was trained into what other programs can use: export.

Its stage is imported when it runs, not before, so that ``--help`` is quick.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from inf_nerf.errors import InputError
from pipelines.options import (
    Level,
    LogLevel,
    MemoryBudget,
    Overrides,
    Run,
    Which,
    as_folder,
    chosen,
    configure,
    start_logging,
)


class Export(StrEnum):
    """What a run is exported as."""

    POINTS = "points"
    MESH = "mesh"
    TILES = "tiles"
    ORTHO = "ortho"
    CHECKPOINT = "checkpoint"


def export(
    run: Run,
    to: Annotated[
        Export,
        typer.Option(
            "--to",
            help="points (.ply, .las, .laz), mesh (.glb, .obj, .ply), tiles (3D Tiles, a folder), ortho (.png, .tif), "
            "or checkpoint (a folder).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", callback=as_folder, help="The file or folder to write.")],
    gsd: Annotated[
        float | None,
        typer.Option(
            help="Side of cells or pixels: metres where the scene is georeferenced, else units of the input; "
            "twice that of the finest nodes if not given."
        ),
    ] = None,
    crop: Annotated[
        str | None, typer.Option(metavar="X0,Y0,Z0,X1,Y1,Z1", help="Only this box, in the input's coordinates.")
    ] = None,
    levels: Annotated[int | None, typer.Option(min=1, help="Levels of the octree that --to checkpoint keeps.")] = None,
    crs: Annotated[
        str | None,
        typer.Option(
            metavar="EPSG:CODE", help="The input's coordinates are in this projected system, for example UTM."
        ),
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option(metavar="LAT,LON,HEIGHT", help="The input's coordinates are metres east, north and up of here."),
    ] = None,
    checkpoint: Which = None,
    memory_budget: MemoryBudget = None,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Export points, a mesh, 3D Tiles, an orthophoto, or a smaller checkpoint.

    In the coordinates of the input, or in a projected system where the input says where on the earth it lies. Stopped
    half-way, the same command goes on where it was.

    Example: `inf-nerf export runs/photos --to ortho --out ortho.tif --gsd 0.05`
    """
    start_logging(log_level)
    run_dir = chosen(run, checkpoint)
    settings = configure(None, overrides, run_dir=run_dir) if overrides else None
    from pipelines import export as stage

    stage.run(
        run_dir,
        to.value,
        out,
        gsd=gsd,
        crop=_numbers("--crop", crop),
        levels=levels,
        crs=crs,
        origin=_numbers("--origin", origin),
        config=settings,
        memory_budget=memory_budget,
    )


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Numbers between commas."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text!r} is not made of numbers between commas; correct it.") from None
