"""Synthesise a city: photos from drone-like cameras and a COLMAP model, for trying everything without real photos."""

import logging
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from inf_nerf.scene.city.folder import CityParameters, write_city

logger = logging.getLogger(__name__)


def run(out: Path, blocks: int = 4, photos: int = 60, size: int = 480, seed: int = 0) -> None:
    """Write the city into the new folder ``out``; the same city that is already there is left as it is.

    ``size`` is the longer side of the photos in pixels.  Raises InputError for values out of range and when ``out``
    holds anything else.
    """
    parameters = CityParameters(blocks, photos, size, seed)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("photographing the city", total=photos)
        made = write_city(out, parameters, on_photo=lambda: progress.advance(task))
    if made:
        logger.info("wrote a city of %d x %d blocks with %d photos to %s", blocks, blocks, photos, out)
    else:
        logger.info("%s holds this city already; nothing to do", out)


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("synth")
