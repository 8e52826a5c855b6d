"""Commands that make and prepare data: synth, prepare, plan.

Stages are imported when a command runs, not before, so that ``--help`` is quick.
"""

from pathlib import Path
from typing import Annotated

import typer

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


def synth(
    out: Annotated[
        Path, typer.Option("--out", callback=as_folder, help="Where the COLMAP folder of the city is written.")
    ],
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
    start_logging(log_level)
    configure(None, overrides)  # checked like everywhere, so that one set of overrides can serve all stages
    from pipelines import synth as stage

    stage.run(out, blocks=blocks, photos=photos, size=size, seed=seed)


def prepare(
    data_root: Annotated[
        Path, typer.Option("--data-root", callback=as_folder, help="Folder with the photos and their COLMAP model.")
    ],
    output_dir: RunDirectory,
    like: Annotated[
        Path | None,
        typer.Option(
            "--like",
            metavar="RUN",
            callback=as_folder,
            help="A prepared run of which these are more photos: they join its frame, octree and split as training "
            "photos, with its settings, and a training may go on from its checkpoints.",
        ),
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Read the scene, build the octree and cut the photos into tiles.

    Writes scene, octree and tiles into the run directory. Stopped half-way, it goes on where it was.

    Example: `inf-nerf prepare --config configs/laptop.yaml --data-root photos --output-dir runs/photos`
    """
    start_logging(log_level)
    settings = configure(config, overrides, run_dir=like)
    from pipelines import prepare as stage

    stage.run(settings, data_root, output_dir, like)


def plan(
    config: ConfigFile = None,
    data_root: Annotated[Path | None, typer.Option("--data-root", callback=as_folder, help="As for prepare.")] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir", callback=as_folder, help="A run directory; if it is prepared, its tiles are read."
        ),
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
    start_logging(log_level)
    settings = configure(config, overrides, {"train.num_workers": workers}, output_dir)
    from pipelines import plan as stage

    stage.run(settings, data_root, output_dir, as_json)
