"""Stage ``eval``: score held-out photos of a run, write ``eval.json``, ``eval.csv`` and an image sheet, print a table.

A result is used again while the checkpoint and the settings are the same; ``eval_key.json`` beside it says for which
it holds.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from inf_nerf.places import AnyPlace, Place
from inf_nerf.render.budget import budget_bytes
from inf_nerf.render.parallel import available_cores
from inf_nerf.render.sheet import SheetRow, evaluation_sheet
from inf_nerf.scene.photos import read_mask, read_photo
from inf_nerf.scene.scene import DESCRIPTION, Scene
from inf_nerf.train.evaluation import View, evaluate, require_test_photos, work
from inf_nerf.train.manifest import MANIFEST, config_of, latest_checkpoint, read_manifest
from inf_nerf.train.opened import Checkpoint, StoredCheckpoint, load_checkpoint, open_checkpoint
from pipelines.scores import as_csv, differences, table

FORMAT = 3  # of the result; raised when a value changes its meaning, so that old results are not used again


@dataclass(frozen=True)
class Files:
    """Where a result is written; one under a memory budget has names of its own."""

    folder: Path
    budget: int | None = None  # bytes

    @property
    def _stem(self) -> str:
        return "eval" if self.budget is None else f"eval_{self.budget}B"

    @property
    def result(self) -> Path:
        return self.folder / f"{self._stem}.json"

    @property
    def key(self) -> Path:
        return self.folder / f"{self._stem}_key.json"

    @property
    def csv(self) -> Path:
        return self.folder / f"{self._stem}.csv"

    @property
    def sheet(self) -> Path:
        return self.folder / f"pictures/{self._stem}_sheet.png"


def run(
    run_dir: Place,
    config: Config | None = None,
    checkpoint: Place | None = None,
    memory_budget: str | None = None,
    out: Path | None = None,
    baseline: Place | None = None,
) -> dict[str, Any]:
    """Evaluate a run's checkpoint (default: the latest) and return the content of ``eval.json``.

    ``run_dir`` may also be a checkpoint.  ``config`` defaults to the checkpoint's; only its evaluation settings matter.
    Under a ``memory_budget`` such as ``64MB`` or ``25%`` of the model the result is ``eval_<bytes>B.json``.  Files go
    to ``out``, by default into the run.  What another run, the ``baseline``, scores is shown beside it.  Raises
    :class:`InputError` where there is no checkpoint, no test photos, photos that cannot be read, or no folder to write
    to, and where the baseline has other test photos.
    """
    console = Console()
    path = checkpoint or find_checkpoint(run_dir)
    manifest = read_manifest(path)
    budget = budget_bytes(memory_budget, _model_bytes(manifest)) if memory_budget is not None else None
    files = Files(out or _folder(run_dir), budget)
    settings = config or config_of(path, manifest)
    key = _key(manifest["digest"], settings, budget)
    result = _reusable(files, key)
    if result is None:
        loaded = load_checkpoint(path) if budget is None else open_checkpoint(path).within(budget)
        require_test_photos(loaded.scene)
        if (scene := with_points(loaded.scene, path)) is not loaded.scene:
            loaded = replace(loaded, scene=scene)
        result = _evaluate(files, loaded, settings, console, key)
    else:
        console.print(
            f"Checkpoint and settings are those of {files.result}, which is used again.",
            markup=False,
            soft_wrap=True,
        )
    console.print(table(result))
    if baseline is not None:
        console.print(differences(result, run(baseline)))
    return result


def find_checkpoint(run_dir: AnyPlace) -> AnyPlace:
    """The latest complete checkpoint of a run, or the checkpoint itself; :class:`InputError` naming the remedy if there
    is none."""
    if (run_dir / MANIFEST).is_file():
        return run_dir
    if not run_dir.is_dir():
        raise InputError(f"The run directory {run_dir} does not exist; make it with inf-nerf prepare and train.")
    path = latest_checkpoint(run_dir)
    if path is None:
        raise InputError(f"{run_dir} holds no complete checkpoint; run inf-nerf train --output-dir {run_dir} first.")
    return path


def run_of(named: Place) -> Place | None:
    """The run directory that was named, itself or by one of its checkpoints; None where a checkpoint lies alone."""
    if not (named / MANIFEST).is_file():
        return named
    above = named.parent.parent
    return above if (above / DESCRIPTION).is_file() else None


def _evaluate(
    files: Files, loaded: Checkpoint | StoredCheckpoint, settings: Config, console: Console, key: str
) -> dict[str, Any]:
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
    if isinstance(loaded, StoredCheckpoint):
        result["memory"] = memory_figures(loaded)
    content = json.dumps(result, indent=1, sort_keys=True) + "\n"
    if rows:
        write_atomic(files.sheet, evaluation_sheet(rows, loaded.model.octree.num_levels))
    files.key.unlink(missing_ok=True)
    write_atomic(files.result, content)
    write_atomic(files.csv, as_csv(result))
    write_atomic(files.key, json.dumps({"key": key, "sha256": _sha256(content)}) + "\n")
    return result


def with_points(scene: Scene, named: Place) -> Scene:
    """The scene of a run or checkpoint with the sparse points that its run has; one that lies alone has none."""
    folder = run_of(named)
    return scene if folder is None or not (folder / DESCRIPTION).is_file() else Scene.load(folder)


def memory_figures(loaded: StoredCheckpoint) -> dict[str, int]:
    """What it took to hold nodes under a budget, once everything is rendered; stops reading ahead."""
    cache = loaded.model.cache
    cache.close()
    return {"budget_bytes": cache.budget, "bytes_read": cache.bytes_read, **asdict(cache.figures)}


def _folder(run_dir: Place) -> Path:
    """Where results go if no folder was named."""
    folder = run_of(run_dir)
    if not isinstance(folder, Path):
        raise InputError(f"Nothing is written to {run_dir}, which is no local run directory; name a folder with --out.")
    return folder


def _model_bytes(manifest: dict[str, Any]) -> int:
    return sum(entry["bytes"] for name, entry in manifest["files"].items() if name.startswith("nodes/"))


def _key(checkpoint: str, settings: Config, budget: int | None) -> str:
    """Hash of everything that a result depends on."""
    parts = {
        "format": FORMAT,
        "checkpoint": checkpoint,
        "eval": settings.digest("eval"),
        "pyramid_levels": settings.scene.pyramid_levels,
    } | ({} if budget is None else {"budget": budget})
    return _sha256(json.dumps(parts, sort_keys=True))


def _reusable(files: Files, key: str) -> dict[str, Any] | None:
    """The result in the run if it was made for ``key`` and nobody changed it since."""
    try:
        made = json.loads(files.key.read_text())
        content = files.result.read_text()
    except (OSError, ValueError):
        return None
    return json.loads(content) if made == {"key": key, "sha256": _sha256(content)} else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("eval")
