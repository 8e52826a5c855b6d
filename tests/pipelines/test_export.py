"""The stage export: every kind from a trained run, within a budget, continued, in the system that the input names."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import laspy
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from inf_nerf.export.unfinished import Unfinished
from inf_nerf.scene.ply import read_ply
from pipelines import cli, evaluate, render
from pipelines import export as stage
from tests.export.specification import read_glb, read_tileset
from tests.export.trained import save_trained_run
from tests.train.tiny import ground_height, tiny_scene

GSD = 0.03  # of a scene that is two units wide
NEAR = 0.15  # the surface is that of the occupancy's cells, up to 0.1 off the points


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With surfaces near the sparse points, which few steps do not find by themselves."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    folder.mkdir()
    save_trained_run(folder)
    return folder


def test_points_lie_on_the_ground_that_was_photographed(run_dir: Path, tmp_path: Path) -> None:
    figures = stage.run(run_dir, "points", tmp_path / "ground.ply", gsd=GSD)
    xyz, _ = read_ply(tmp_path / "ground.ply")
    assert len(xyz) == figures["num_points"] > 200
    assert figures["references"] > 100
    assert figures["median_distance"] < NEAR
    assert figures["georeference"] is None
    assert json.loads((tmp_path / "ground.ply_export.json").read_text()) == figures
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ground.ply", "ground.ply_export.json"]


def test_exports_that_differ_in_their_suffix_keep_their_figures(run_dir: Path, tmp_path: Path) -> None:
    for name in ("ground.png", "ground.tif"):
        stage.run(run_dir, "ortho", tmp_path / name, gsd=0.1)
    assert len(list(tmp_path.glob("*_export.json"))) == 2


@pytest.mark.parametrize("budget", [None, "60%"])
def test_an_origin_places_points_tiles_and_orthophotos_on_the_earth(
    run_dir: Path, tmp_path: Path, budget: str | None
) -> None:
    common: dict[str, Any] = {"gsd": GSD, "origin": (52.8, 16.6, 80.0), "memory_budget": budget}
    points = stage.run(run_dir, "points", tmp_path / "ground.laz", **common)
    assert points["crs"] == "EPSG:32633"
    file = laspy.read(tmp_path / "ground.laz")
    middle = file.xyz.mean(axis=0)
    ortho = stage.run(run_dir, "ortho", tmp_path / "ground.tif", **common)
    with tifffile.TiffFile(tmp_path / "ground.tif") as picture:
        assert picture.geotiff_metadata is not None
        assert int(picture.geotiff_metadata["ProjectedCSTypeGeoKey"]) == 32633
        assert picture.asarray().shape == (ortho["height"], ortho["width"], 4)
    assert ortho["left"] < middle[0] < ortho["left"] + ortho["width"] * GSD
    assert ortho["top"] - ortho["height"] * GSD < middle[1] < ortho["top"]
    tiles = stage.run(run_dir, "tiles", tmp_path / "tiles", **common)
    matrix = np.array(read_tileset(tmp_path / "tiles")["root"]["transform"]).reshape(4, 4).T
    assert np.linalg.norm(matrix[:3, 3]) == pytest.approx(6.365e6, rel=1e-3)
    root = read_glb((tmp_path / "tiles/content/0/0/0/0.glb").read_bytes())
    assert len(root.positions) > 100
    assert tiles["cell"] <= GSD
    for figures in (points, ortho, tiles):
        assert ("memory" in figures) == (budget is not None)
        if budget is not None:
            assert figures["memory"]["peak_bytes"] <= figures["memory"]["budget_bytes"]


def test_an_orthophoto_shows_the_ground_from_above(run_dir: Path, tmp_path: Path) -> None:
    figures = stage.run(run_dir, "ortho", tmp_path / "ground.png", gsd=0.02)
    pixels = np.asarray(Image.open(tmp_path / "ground.png"))
    assert pixels.shape == (figures["height"], figures["width"], 4)
    assert (pixels[10:-10, 10:-10, 3] == 255).mean() > 0.8


def test_a_mesh_of_a_crop_lies_on_the_ground(run_dir: Path, tmp_path: Path) -> None:
    figures = stage.run(run_dir, "mesh", tmp_path / "ground.ply", gsd=GSD, crop=(-0.4, -0.4, -0.1, 0.4, 0.4, 0.4))
    xyz, _ = read_ply(tmp_path / "ground.ply")
    assert len(xyz) == figures["vertices"] > 100
    assert np.abs(xyz[:, :2]).max() <= 0.4 + GSD
    away = np.abs(xyz[:, 2] - ground_height(torch.from_numpy(xyz)[:, :2]).numpy())
    assert np.median(away) < NEAR


def test_a_pruned_checkpoint_is_evaluated_rendered_and_exported(run_dir: Path, tmp_path: Path) -> None:
    figures = stage.run(run_dir, "checkpoint", tmp_path / "small", levels=2)
    assert figures["levels"] == 2
    render.run(tmp_path / "small", "photos", tmp_path / "frame.png")
    stage.run(tmp_path / "small", "ortho", tmp_path / "small.png", gsd=0.05)
    assert evaluate.find_checkpoint(tmp_path / "small") == tmp_path / "small"


def test_parts_of_an_interrupted_export_are_used_and_those_of_another_are_not(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    save = Unfinished.save

    def counting(self: Unfinished, name: str, values: Any) -> None:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(name)
        save(self, name, values)

    monkeypatch.setattr(Unfinished, "save", counting)
    out = tmp_path / "ground.ply"
    with pytest.raises(KeyboardInterrupt):
        stage.run(run_dir, "points", out, gsd=GSD)
    assert not out.exists()
    made.clear()
    photos = len(tiny_scene().train)
    with pytest.raises(KeyboardInterrupt):
        stage.run(run_dir, "points", out, gsd=GSD)
    assert len(made) == 2  # two more
    monkeypatch.setattr(Unfinished, "save", lambda self, name, values: made.append(name) or save(self, name, values))
    made.clear()
    stage.run(run_dir, "points", out, gsd=GSD)
    assert len(made) == photos - 4
    made.clear()
    stage.run(run_dir, "points", out, gsd=2 * GSD)
    assert len(made) == photos


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--to", "points", "--out", "a.xyz"], r"\.ply, \.las, \.laz"),
        (["--to", "ortho", "--out", "a.jpg"], r"\.png, \.tif"),
        (["--to", "mesh", "--out", "a.glb"], "--crop"),
        (["--to", "mesh", "--out", "a.glb", "--crop", "1,2,3"], "x0,y0,z0,x1,y1,z1"),
        (["--to", "mesh", "--out", "a.glb", "--crop", "1,2,x,1,1,1"], "numbers between commas"),
        (["--to", "mesh", "--out", "a.glb", "--crop", "0,0,0,0,1,1"], "is no box"),
        (["--to", "mesh", "--out", "a.glb", "--crop", "5,5,5,6,6,6"], "outside the scene"),
        (["--to", "points", "--out", "a.ply", "--gsd", "0"], "--gsd"),
        (["--to", "points", "--out", "a.ply", "--gsd", "1e-9"], "coarser --gsd"),
        (["--to", "points", "--out", "a.ply", "--levels", "2"], "--levels"),
        (["--to", "checkpoint", "--out", "a"], "--levels"),
        (["--to", "points", "--out", "a.ply", "--origin", "95,0,0"], "latitude"),
        (["--to", "points", "--out", "a.ply", "--origin", "5,0,0", "--crs", "EPSG:32633"], "one of them"),
        (["--to", "points", "--out", "a.ply", "--crs", "EPSG:4326"], "not projected"),
        (["--to", "points", "--out", "a.ply", "--memory-budget", "much"], "memory budget"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    match: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(run_dir), *arguments]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert re.search(match, line)
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_a_missing_package_names_its_extra(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lazrs", None)
    assert cli.main(["export", str(run_dir), "--to", "points", "--out", str(tmp_path / "a.laz"), "--gsd", "0.1"]) == 2
    assert "pip install 'inf-nerf[export]'" in capsys.readouterr().err
