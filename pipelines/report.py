"""Stage ``report``: what came of a run on one HTML page that needs neither a network nor other files."""

import logging
import platform
from dataclasses import replace
from importlib import metadata
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from inf_nerf.analysis.findings import examine
from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from inf_nerf.places import Place
from inf_nerf.render.images import Crop, chunk_rays, render_image
from inf_nerf.render.parallel import available_cores
from inf_nerf.render.sheet import CELL_WIDTH, SheetRow, evaluation_sheet
from inf_nerf.report import sections, timeline
from inf_nerf.report.facts import Facts, read_facts
from inf_nerf.report.page import Section, missing, page, paragraph, picture
from inf_nerf.report.verdicts import verdicts
from inf_nerf.scene.photos import read_mask, read_photo
from inf_nerf.train.evaluation import level_target
from inf_nerf.train.metrics import image_scores
from inf_nerf.train.opened import OpenCheckpoint
from pipelines.mlflow_store import RunReference, open_client, reason_of, tracking_uri, without_password

FILE = "report.html"
WORST = 3  # photos
MODEL_BYTES = 1 << 30  # of nodes held to render them
SHEET_WIDTH = 1440  # px
PACKAGES = ("inf-nerf", "torch", "ray", "mlflow", "numpy", "numba", "pycolmap")

log = logging.getLogger(__name__)


def run(run_dir: Place, out: Path | None = None, config: Config | None = None) -> Path:
    """Write the report of a run, by default into it, and return where it is.

    Of ``config``, by default the run's own, only the MLflow store matters where there is a checkpoint.  Sections
    without data say so.  Where the run is tracked, the page becomes an artifact of its MLflow run.  Raises
    :class:`InputError` where nothing was prepared, or where there is no folder to write to.
    """
    if out is None and not isinstance(run_dir, Path):
        raise InputError(f"Nothing is written to {run_dir}, which is no local run directory; name a file with --out.")
    file = out or Path(str(run_dir)) / FILE
    stored = run_dir / "config.yaml"
    config = config or (load_config(stored) if stored.is_file() else Config())
    facts = read_facts(run_dir, config)
    if facts.checkpoint is not None:
        facts = replace(facts, config=facts.checkpoint.config)
    write_atomic(file, document(facts))
    console = Console()
    console.print(f"Wrote {file} ({file.stat().st_size / 1e6:.1f} MB).", markup=False, highlight=False, soft_wrap=True)
    if isinstance(run_dir, Path):
        _log_to_mlflow(run_dir, file, config)
    return file


def document(facts: Facts) -> str:
    """The page."""
    parts = [
        Section("Held-out photos", sections.scores(facts)),
        Section("Worst photos", worst_photos(facts)),
        Section("Sheet", sheet(facts)),
        Section("Training", sections.curves(facts)),
        Section("Time", timeline.time_spent(facts)),
        Section("Analysis", verdicts(examine(facts.recorded))),
        Section("Data", sections.data(facts)),
        Section("Octree", sections.octree(facts)),
        Section("Nodes of a picture", sections.touched(facts)),
        Section("Seams", sections.seams(facts)),
        Section("Configuration", sections.config_differences(facts)),
        Section("Environment", sections.environment(facts, _here())),
    ]
    subtitle = f"{len(facts.scene.photos)} photos of {facts.scene.root}"
    return page(f"inf-nerf: {facts.name}", subtitle, sections.summary(facts), parts)


def worst_photos(facts: Facts) -> str:
    """The held-out photos with the lowest PSNR, rendered again: photo, render, error, octree level."""
    if facts.evaluation is None:
        return missing(sections.NO_EVALUATION)
    if facts.checkpoint is None:
        return missing(sections.NO_CHECKPOINT)
    index_of = {photo.name: index for index, photo in enumerate(facts.scene.photos)}
    images = sorted(facts.evaluation["images"], key=lambda image: image["psnr"])[:WORST]
    chosen = [index_of[image["name"]] for image in images if image["name"] in index_of]
    if not chosen:
        return missing("eval.json names no photo of the run.")
    try:
        rows = _rows(facts, facts.checkpoint, chosen)
    except InputError as error:
        return missing(f"They could not be rendered: {error}")
    return paragraph("Rendered again at the size shown, with the mean appearance.") + picture(
        _pixels(evaluation_sheet(rows, facts.checkpoint.octree.num_levels)), "worst photos and their errors"
    )


def sheet(facts: Facts) -> str:
    """The pictures of the evaluation."""
    if facts.sheet is None:
        return missing("There is no pictures/eval_sheet.png in the run: inf-nerf eval makes it.")
    return picture(_pixels(facts.sheet), "held-out photos, renders, errors, octree levels")


def _rows(facts: Facts, checkpoint: OpenCheckpoint, photos: list[int]) -> list[SheetRow]:
    model = checkpoint.within(max(MODEL_BYTES, checkpoint.model_bytes // 4)).model
    cameras, rows = facts.scene.cameras, []
    try:
        for photo in photos:
            level = 0
            while cameras.level_size(photo, level)[0] > 1.5 * CELL_WIDTH:
                level += 1
            target, counted = level_target(
                read_photo(facts.scene, photo), read_mask(facts.scene, photo), cameras, photo, level
            )
            rendered = render_image(
                model,
                cameras,
                photo,
                level,
                rays_per_chunk=chunk_rays(facts.config.eval.chunk_samples, facts.config.sampler.max_samples),
                crop=Crop(0, 0, *cameras.level_size(photo, level)),
                workers=available_cores(),
            )
            scores = image_scores(rendered.rgb, target, counted)
            caption = f"{facts.scene.photos[photo].name}   PSNR {scores.psnr:.2f} dB at this size"
            rows.append(SheetRow(caption, target, rendered.rgb, rendered.level))
    finally:
        model.cache.close()
    return rows


def _pixels(png: bytes) -> np.ndarray:
    """A picture no wider than the page."""
    with Image.open(BytesIO(png)) as image:
        image.thumbnail((SHEET_WIDTH, 1 << 20), Image.Resampling.LANCZOS)
        return np.asarray(image.convert("RGB"))


def _here() -> dict[str, str]:
    found = {"Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found["cores"] = str(available_cores())
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _log_to_mlflow(run_dir: Path, file: Path, config: Config) -> None:
    """Attach the page to the run's MLflow run; a store that is away is no error of the report."""
    reference = RunReference.read(run_dir)
    if reference is None:
        return
    try:
        uri = tracking_uri(config)  # with the password that the reference leaves out, if it is the same store
        client = open_client(uri if without_password(uri) == reference.uri else reference.uri)
        client.log_artifact(reference.run_id, str(file))
    except Exception as error:
        log.warning("The report is not in MLflow: %s.", reason_of(error))
    else:
        log.info("The report is an artifact of the MLflow run %s.", reference.run_id)


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("report")
