"""`inf-nerf plot` draws what a run directory holds, and says what it does not."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inf_nerf.errors import InputError
from pipelines import plot
from tests.view.trained_run import SAVES, trained_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("plot") / "run")


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def test_three_pictures_are_drawn_into_the_run(run_dir: Path) -> None:
    files = plot.run(run_dir)
    assert files == [
        run_dir / "pictures" / name for name in ("plot_progress.png", "plot_octree.png", "plot_samples.png")
    ]
    for file in files:
        pixels = np.asarray(Image.open(file).convert("RGB"))
        assert min(pixels.shape[:2]) > 600
        assert 0.005 < (pixels != 255).any(-1).mean() < 0.9  # drawn, and not full
    assert not list(run_dir.rglob("*.partial"))


def test_one_picture_of_an_earlier_checkpoint_goes_where_it_is_wanted(run_dir: Path, tmp_path: Path) -> None:
    (file,) = plot.run(run_dir / "checkpoints" / SAVES[0], tmp_path / "here", "octree")
    assert file == tmp_path / "here" / "plot_octree.png" and file.is_file()
    assert not (run_dir / "pictures").exists()


def test_what_is_not_there_yet_is_left_out_with_a_sentence(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    assert [file.name for file in plot.run(run_dir)] == ["plot_progress.png"]
    assert "holds no octree" in caplog.text and "no complete checkpoint" in caplog.text
    (run_dir / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=r"no row in metrics\.jsonl"):
        plot.run(run_dir)
