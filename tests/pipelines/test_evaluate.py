"""The stage eval writes one repeatable result, uses it again while it holds, and refuses what it cannot score."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.scene.scene import Scene
from pipelines import evaluate as stage
from tests.plane_scene import PlaneModel, as_checkpoint, plane_photo, plane_scene

CONFIG = Config.model_validate(
    {"scene": {"pyramid_levels": 2}, "eval": {"appearance_steps": 5, "appearance_rays": 32, "sheet_photos": 1}}
)


def write_photos(scene: Scene, folder: Path) -> Scene:
    """The scene with its photos as files in ``folder``."""
    for index, photo in enumerate(scene.photos):
        Image.fromarray((plane_photo(scene, index).clamp(0, 1) * 255).byte().numpy()).save(folder / photo.file)
    return Scene(scene.photos, scene.cameras, scene.points, scene.frame, str(folder), scene.report, scene.source_size)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A run directory whose checkpoint is the exact model; ``manifest`` may be changed, ``loads`` counts openings."""
    (tmp_path / "photos").mkdir()
    scene = write_photos(plane_scene(), tmp_path / "photos")
    run = SimpleNamespace(
        path=tmp_path / "run",
        manifest={"digest": "a", "config": CONFIG.model_dump(mode="json")},
        loads=0,
    )
    run.path.mkdir()

    def load(path: Path) -> Any:
        run.loads += 1
        return as_checkpoint(scene, PlaneModel(6))

    monkeypatch.setattr(stage, "latest_checkpoint", lambda run_dir: run_dir / "checkpoints/00000001")
    monkeypatch.setattr(stage, "read_manifest", lambda path: run.manifest)
    monkeypatch.setattr(stage, "load_checkpoint", load)
    return run


def test_result_sheet_and_table(trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    result = stage.run(trained.path)
    assert json.loads((trained.path / "eval.json").read_text()) == result
    assert result["psnr0"] > 40
    sheet = np.asarray(Image.open(trained.path / "pictures/eval_sheet.png"))
    assert sheet.shape[1] > 4 * 400
    assert sheet.std() > 10
    shown = capsys.readouterr().out
    assert f"{result['psnr0']:.2f}" in shown
    assert f"{result['right_half']['psnr']:.2f}" in shown
    assert f"{result['psnr0_floor']:.2f}" in shown
    assert not list(trained.path.rglob("*.partial"))


def test_two_runs_write_the_same_bytes(trained: SimpleNamespace) -> None:
    stage.run(trained.path)
    first = (trained.path / "eval.json").read_bytes()
    (trained.path / "eval.json").unlink()
    stage.run(trained.path)
    assert (trained.path / "eval.json").read_bytes() == first
    assert trained.loads == 2


def test_result_is_used_again_until_checkpoint_settings_or_file_change(trained: SimpleNamespace) -> None:
    first = stage.run(trained.path)
    assert stage.run(trained.path) == first
    assert trained.loads == 1
    trained.manifest["digest"] = "b"
    stage.run(trained.path)
    assert trained.loads == 2
    other = CONFIG.model_copy(update={"eval": CONFIG.eval.model_copy(update={"right_half": False})})
    assert "right_half" not in stage.run(trained.path, other)
    assert trained.loads == 3
    edited = (trained.path / "eval.json").read_text().replace("psnr0", "psnr9")
    (trained.path / "eval.json").write_text(edited)
    assert "psnr0" in stage.run(trained.path, other)
    assert trained.loads == 4


def test_run_without_checkpoint_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run inf-nerf train"):
        stage.run(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        stage.run(tmp_path / "none")
