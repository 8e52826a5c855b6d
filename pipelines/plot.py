"""Stage ``plot``: pictures of how a run trained, of its octree, and of the samples that it is asked."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load

from inf_nerf.analysis.recorded import read_recorded
from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from inf_nerf.octree.topology import Octree
from inf_nerf.places import Place
from inf_nerf.plots.octree import octree_figure
from inf_nerf.plots.progress import training_progress
from inf_nerf.plots.samples import AskedSamples, asked_samples, samples_figure, spread_rays
from inf_nerf.train.manifest import MANIFEST, latest_checkpoint
from inf_nerf.train.opened import OpenCheckpoint, open_checkpoint
from pipelines.prepare import OCTREE_FILE

DPI = 110
PHOTOS = 4  # whose rays are looked at
MODEL_BYTES = 1 << 30  # of nodes held for it

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """One of the pictures."""

    file: str
    # of a run and its checkpoint, if it has one; :class:`InputError` where they lack what it shows
    figure: Callable[[Place, OpenCheckpoint | None], Figure]


def run(run_dir: Place, out: Path | None = None, only: str | None = None) -> list[Path]:
    """Draw the pictures of a run, or of a checkpoint in one, and say where they are; see :func:`draw`."""
    files = draw(run_dir, out, only)
    names = ", ".join(str(file) for file in files)
    Console(soft_wrap=True).print(f"Wrote {names}.", markup=False, highlight=False)
    return files


def draw(run_dir: Place, out: Path | None = None, only: str | None = None) -> list[Path]:
    """Draw the pictures of a run into ``out``, by default its folder ``pictures``; returns their files.

    A picture whose numbers are not there yet is left out with a sentence.  Raises :class:`InputError` where that is so
    of all.
    """
    checkpoint: Place | None = None
    if (run_dir / MANIFEST).is_file():
        run_dir, checkpoint = run_dir.parent.parent, run_dir
    if out is None and not isinstance(run_dir, Path):
        raise InputError(f"Nothing is written to {run_dir}, which is no local run directory; name a folder with --out.")
    folder = out or Path(str(run_dir)) / "pictures"
    checkpoint = checkpoint or latest_checkpoint(run_dir)
    opened = open_checkpoint(checkpoint) if checkpoint is not None else None
    files, missing = [], []
    for kind in KINDS.values() if only is None else [KINDS[only]]:
        try:
            figure = kind.figure(run_dir, opened)
        except InputError as error:
            missing.append(str(error))
            continue
        picture = BytesIO()
        figure.savefig(picture, dpi=DPI, format="png")
        write_atomic(folder / kind.file, picture.getvalue())
        files.append(folder / kind.file)
    if not files:
        raise InputError(missing[0])
    for sentence in missing:
        log.warning("A picture is left out: %s", sentence)
    return files


def _progress(run_dir: Place, opened: OpenCheckpoint | None) -> Figure:
    recorded = read_recorded(run_dir)
    if not recorded.rows:
        raise InputError(f"{run_dir} has no row in metrics.jsonl to draw; train it first.")
    return training_progress(recorded, recorded.name)


def _octree(run_dir: Place, opened: OpenCheckpoint | None) -> Figure:
    if opened is not None:  # its tree is the live one
        return octree_figure(opened.octree, f"{run_dir.name}, step {opened.step:,}: {opened.octree.num_nodes:,} nodes")
    if not (run_dir / OCTREE_FILE).is_file():
        raise InputError(f"{run_dir} holds no octree; run inf-nerf prepare first.")
    try:
        octree = Octree.from_state(load((run_dir / OCTREE_FILE).read_bytes()))
    except (SafetensorError, KeyError) as error:
        raise InputError(
            f"The octree in {run_dir / OCTREE_FILE} cannot be read ({error}); prepare it again."
        ) from error
    return octree_figure(octree, f"{run_dir.name}, as prepared: {octree.num_nodes:,} nodes")


def _samples(run_dir: Place, opened: OpenCheckpoint | None) -> Figure:
    if opened is None:
        raise InputError(f"{run_dir} holds no complete checkpoint whose samples could be drawn; train it first.")
    return samples_figure(of_checkpoint(opened), f"{run_dir.name}, step {opened.step:,}")


def of_checkpoint(opened: OpenCheckpoint) -> AskedSamples:
    """Samples of some of the training photos' rays, as the checkpoint answers them."""
    train = opened.scene.train
    photos = train[:: max(1, len(train) // PHOTOS)][:PHOTOS]
    model = opened.within(max(MODEL_BYTES, opened.model_bytes // 4)).model
    try:
        parts = [asked_samples(model.for_rays(rays), rays) for rays in spread_rays(opened.scene.cameras, photos)]
    finally:
        model.cache.close()
    return AskedSamples.cat(parts)


KINDS = {
    "progress": Kind("plot_progress.png", _progress),
    "octree": Kind("plot_octree.png", _octree),
    "samples": Kind("plot_samples.png", _samples),
}


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("plot")
