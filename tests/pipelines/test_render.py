"""The stage render writes stills and videos with their figures, and refuses what it does not know."""

import json
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from pipelines import frames
from pipelines import render as stage
from tests.pipelines.tiny_run import train_tiny
from tests.plane_scene import PlaneModel, as_checkpoint, plane_scene

CONFIG = Config.model_validate({"render": {"width": 65, "height": 49, "frames": 5, "fps": 5}})


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    scene = plane_scene()
    folder = tmp_path / "run"
    folder.mkdir()
    scene.save(folder)

    def load(path: Path) -> Any:
        checkpoint = as_checkpoint(scene, PlaneModel(6))
        checkpoint.config = CONFIG
        return checkpoint

    monkeypatch.setattr(stage, "find_checkpoint", lambda run_dir: run_dir)
    monkeypatch.setattr(frames, "load_checkpoint", load)
    return folder


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_video_of_odd_size_has_all_frames_and_even_sides(run_dir: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "new" / f"zoom.{suffix}"
    figures = stage.run(run_dir, "zoom", out)
    reader = imageio_ffmpeg.read_frames(str(out))
    meta: Any = next(reader)
    seen = [np.frombuffer(frame, np.uint8).reshape(50, 66, 3) for frame in reader if isinstance(frame, bytes)]
    assert meta["size"] == (66, 50)
    assert len(seen) == 5
    assert seen[0].std() > 5
    assert not np.array_equal(seen[0], seen[-1])
    assert sorted(path.name for path in out.parent.iterdir()) == [f"zoom.{suffix}", "zoom_frames.json"]
    assert json.loads((out.parent / "zoom_frames.json").read_text()) == figures
    assert figures["frames"] == len(figures["nodes_touched"]) == len(figures["level_share"]) == 5
    assert len(figures["differences"]) == 4
    assert figures["max_difference"] == max(figures["differences"]) > 0
    assert figures["max_to_median"] >= 1
    assert all(sum(share.values()) == pytest.approx(1, abs=1e-5) for share in figures["level_share"])


@pytest.mark.parametrize("mode", stage.MODES)
def test_png_is_the_first_frame(run_dir: Path, tmp_path: Path, mode: str) -> None:
    figures = stage.run(run_dir, "orbit", tmp_path / "still.png", mode=mode)
    assert np.asarray(Image.open(tmp_path / "still.png")).shape == (49, 65, 3)
    assert figures["frames"] == 1


def test_folder_takes_numbered_stills(run_dir: Path, tmp_path: Path) -> None:
    stage.run(run_dir, "photos", tmp_path / "stills")
    assert sorted(path.name for path in (tmp_path / "stills").iterdir()) == [
        *(f"{index:05d}.png" for index in range(5)),
        "frames.json",
    ]


def test_settings_of_the_caller_replace_those_of_the_run(run_dir: Path, tmp_path: Path) -> None:
    config = Config.model_validate({"render": {"width": 32, "height": 20, "frames": 3}})
    stage.run(run_dir, "orbit", tmp_path / "still.png", config=config)
    assert Image.open(tmp_path / "still.png").size == (32, 20)


def test_what_is_unknown_is_refused_and_nothing_is_written(run_dir: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="mode 'heat' is unknown"):
        stage.run(run_dir, "orbit", tmp_path / "a.mp4", mode="heat")
    with pytest.raises(InputError, match="no kind of picture"):
        stage.run(run_dir, "orbit", tmp_path / "a.txt")
    with pytest.raises(InputError, match="'helix' is neither"):
        stage.run(run_dir, "helix", tmp_path / "a.mp4")
    assert sorted(tmp_path.rglob("*")) == before


def test_failing_frame_leaves_no_video(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(*arguments: Any) -> Any:
        calls.append(arguments)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(frames, "render_frame", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        stage.run(run_dir, "orbit", tmp_path / "videos" / "a.mp4")
    assert len(calls) == 1
    assert list((tmp_path / "videos").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, "60%"])
def test_frames_of_ray_workers_are_those_of_one_process(tmp_path: Path, budget: str | None) -> None:
    trained = train_tiny(tmp_path / "trained")
    alone = stage.run(trained, "orbit", tmp_path / "alone", memory_budget=budget)
    shared = stage.run(trained, "orbit", tmp_path / "shared", memory_budget=budget, workers=2)
    names = sorted(path.name for path in (tmp_path / "alone").glob("*.png"))
    assert len(names) == 3
    assert all((tmp_path / "alone" / name).read_bytes() == (tmp_path / "shared" / name).read_bytes() for name in names)
    assert ("memory" in shared) == (budget is not None)
    for figures in (alone, shared):
        figures.pop("memory", None)
    assert shared == alone
    with pytest.raises(InputError, match=r"999 workers need more than .* lower --workers"):
        stage.run(trained, "orbit", tmp_path / "many", workers=999)
