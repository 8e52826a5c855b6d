"""Stage ``eval``: score the held-out photos of a run, write ``eval.json`` and an image sheet, print a table.

A result is used again while the checkpoint and the settings are the same; ``eval_key.json`` beside it says for which
it holds.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from inf_nerf.render.parallel import available_cores
from inf_nerf.render.sheet import SheetRow, evaluation_sheet
from inf_nerf.scene.photos import read_mask, read_photo
from inf_nerf.train.checkpoint import Checkpoint, load_checkpoint
from inf_nerf.train.evaluation import View, evaluate, require_test_photos, work
from inf_nerf.train.manifest import config_of, latest_checkpoint, read_manifest

RESULT, KEY, SHEET = "eval.json", "eval_key.json", Path("pictures/eval_sheet.png")
FORMAT = 1  # of the result; raised when a value changes its meaning, so that old results are not used again


def run(run_dir: Path, config: Config | None = None, checkpoint: Path | None = None) -> dict[str, Any]:
    """Evaluate a run's checkpoint (default: the latest) and return the content of ``eval.json``.

    ``config`` defaults to the checkpoint's; only its evaluation settings matter.  Raises :class:`InputError` where the
    run has no checkpoint, no test photos, or photos that cannot be read.
    """
    console = Console()
    path = checkpoint or find_checkpoint(run_dir)
    manifest = read_manifest(path)
    settings = config or config_of(path, manifest)
    key = _key(manifest["digest"], settings)
    result = _reusable(run_dir, key)
    if result is None:
        loaded = load_checkpoint(path)
        require_test_photos(loaded.scene)
        result = _evaluate(run_dir, loaded, settings, console, key)
    else:
        console.print(
            f"Checkpoint and settings are those of {run_dir / RESULT}, which is used again.",
            markup=False,
            soft_wrap=True,
        )
    console.print(table(result))
    return result


def find_checkpoint(run_dir: Path) -> Path:
    """The latest complete checkpoint of a run; :class:`InputError` naming the remedy if there is none."""
    if not run_dir.is_dir():
        raise InputError(f"The run directory {run_dir} does not exist; make it with inf-nerf prepare and train.")
    path = latest_checkpoint(run_dir)
    if path is None:
        raise InputError(f"{run_dir} holds no complete checkpoint; run inf-nerf train --output-dir {run_dir} first.")
    return path


def table(result: dict[str, Any]) -> Table:
    """The scores by pyramid level, for the screen."""
    right = result.get("right_half")
    shown = Table(title="Held-out photos (PSNR in dB / SSIM)", title_justify="left")
    shown.add_column("pyramid level")
    shown.add_column("size", justify="right")
    shown.add_column("plain", justify="right")
    if right:
        shown.add_column("right half", justify="right")
    for index, level in enumerate(result["levels"]):
        cells = [str(level["level"]), f"{level['width']} x {level['height']}", _pair(level)]
        if right:
            cells.append(_pair(right["levels"][index]) if index < len(right["levels"]) else "")
        shown.add_row(*cells)
    shown.add_section()
    protocols = [result, right] if right else [result]
    shown.add_row("mean", "", *(_pair(scores) for scores in protocols))
    shown.add_row("mean, colour-corrected", "", *(_pair(scores["colour_corrected"]) for scores in protocols))
    shown.add_row("level 0, colour-corrected", "", *(_pair(scores["colour_corrected"], "0") for scores in protocols))
    shown.add_row("level 0, floor: mean colour", "", *(f"{scores['psnr0_floor']:.2f}" for scores in protocols))
    shares = ", ".join(f"{level}: {100 * share:.1f} %" for level, share in result["level_share"].items())
    nodes, size = (_mean(result["images"], name) for name in ("nodes_touched", "bytes_touched"))
    shown.caption = (
        f"{result['num_nodes']} nodes, {result['model_bytes'] / 1e6:.1f} MB; "
        f"a level-0 view touches {nodes:.1f} nodes, {size / 1e6:.1f} MB."
        f"\nShare of the pictures answered by each octree level - {shares}"
    )
    shown.caption_justify = "left"
    return shown


def _evaluate(run_dir: Path, loaded: Checkpoint, settings: Config, console: Console, key: str) -> dict[str, Any]:
    scene = loaded.scene
    spread = min(settings.eval.sheet_photos, len(scene.test))
    shown = {scene.photos[scene.test[index * len(scene.test) // spread]].name for index in range(spread)}
    rows: list[SheetRow] = []

    def keep(view: View) -> None:
        progress.update(task, description=escape(f"eval {view.name} {view.scores.psnr:.2f} dB"))
        if view.name in shown:
            caption = f"{view.name}   PSNR {view.scores.psnr:.2f} dB   SSIM {view.scores.ssim:.3f}"
            rows.append(SheetRow(caption, view.photo, view.rendered.rgb, view.rendered.level))

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rays"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("eval", total=work(scene, settings))
        result = evaluate(
            loaded,
            settings,
            lambda photo: (read_photo(scene, photo), read_mask(scene, photo)),
            workers=available_cores(),
            on_rays=lambda count: progress.advance(task, count),
            on_view=keep,
        )
    content = json.dumps(result, indent=1, sort_keys=True) + "\n"
    if rows:
        write_atomic(run_dir / SHEET, evaluation_sheet(rows, loaded.model.octree.num_levels))
    (run_dir / KEY).unlink(missing_ok=True)
    write_atomic(run_dir / RESULT, content)
    write_atomic(run_dir / KEY, json.dumps({"key": key, "sha256": _sha256(content)}) + "\n")
    return result


def _key(checkpoint: str, settings: Config) -> str:
    """Hash of everything that a result depends on."""
    parts = {
        "format": FORMAT,
        "checkpoint": checkpoint,
        "eval": settings.digest("eval"),
        "pyramid_levels": settings.scene.pyramid_levels,
    }
    return _sha256(json.dumps(parts, sort_keys=True))


def _reusable(run_dir: Path, key: str) -> dict[str, Any] | None:
    """The result in the run if it was made for ``key`` and nobody changed it since."""
    try:
        made = json.loads((run_dir / KEY).read_text())
        content = (run_dir / RESULT).read_text()
    except (OSError, ValueError):
        return None
    return json.loads(content) if made == {"key": key, "sha256": _sha256(content)} else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _pair(scores: dict[str, Any], level: str = "") -> str:
    return f"{scores['psnr' + level]:.2f} / {scores['ssim' + level]:.3f}"


def _mean(images: list[dict[str, Any]], key: str) -> float:
    return sum(image[key] for image in images) / len(images)


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("eval")
