"""A scene holds the right points, survives saving, and refuses unusable folders in one sentence."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

from inf_nerf.config import SceneConfig
from inf_nerf.errors import InputError
from inf_nerf.scene.photos import read_photo
from inf_nerf.scene.scene import Scene, load_scene
from tests.scene.tiny_capture import HEIGHT, WIDTH, make_camera, write_capture


def test_footprint_is_the_least_of_a_points_observations(tmp_path: Path) -> None:
    write_capture(tmp_path, [make_camera("PINHOLE", key=1), make_camera("OPENCV", 160, 120, key=2)])
    scene = load_scene(tmp_path, SceneConfig(max_side=90))
    points = scene.points
    for point in range(0, len(points), 29):
        seen = slice(int(points.track_start[point]), int(points.track_start[point + 1]))
        rays = scene.cameras.rays_at(points.track_photo[seen], points.track_xy[seen])
        footprint = (points.xyz[point] - rays.origin).norm(dim=1) * rays.radius
        torch.testing.assert_close(points.footprint[point], footprint.min())
    assert points.track_point.shape == points.track_photo.shape


def test_points_with_few_observations_are_dropped_and_counted(tmp_path: Path) -> None:
    truth = write_capture(tmp_path)
    lengths = np.array([point.track.length() for point in truth.model.points3D.values()])
    for least in (2, 3, 6):
        scene = load_scene(tmp_path, SceneConfig(min_observations=least))
        assert len(scene.points) == (lengths >= least).sum()
        assert scene.report["dropped_points"] == (lengths < least).sum()
        assert int(scene.points.track_start.diff().min()) >= least
    assert scene.report["points_read"] == len(lengths)


def test_level_0_has_its_own_scale_in_x_and_y(tmp_path: Path) -> None:
    write_capture(tmp_path)
    full, half = (load_scene(tmp_path, SceneConfig(max_side=side)) for side in (None, 50))
    assert full.cameras.level_size(0, 0) == (WIDTH, HEIGHT)
    width, height = half.cameras.level_size(0, 0)
    assert (width, height) == (50, 33)
    scale = torch.tensor([width / WIDTH, height / HEIGHT])
    torch.testing.assert_close(half.points.track_xy, full.points.track_xy * scale)
    torch.testing.assert_close(half.cameras.intrinsics, full.cameras.intrinsics * scale.repeat(2))
    torch.testing.assert_close(half.points.footprint, full.points.footprint / scale.prod().sqrt())
    assert load_scene(tmp_path, SceneConfig(max_side=4000)).cameras.level_size(0, 0) == (WIDTH, HEIGHT)


def test_scene_survives_saving(tmp_path: Path) -> None:
    write_capture(tmp_path / "data", [make_camera("OPENCV"), make_camera("PINHOLE", 50, 40, key=2)])
    scene = load_scene(tmp_path / "data", SceneConfig())
    scene.save(tmp_path / "run")
    again = Scene.load(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["scene.json", "scene.safetensors"]
    assert (again.photos, again.report, again.root) == (scene.photos, scene.report, scene.root)
    np.testing.assert_array_equal(again.frame.matrix, scene.frame.matrix)
    assert again.identity == scene.identity
    assert again.sources == scene.sources
    assert {f"sparse/0/{name}.bin" for name in ("cameras", "images", "points3D")} <= set(scene.sources)
    for name in ("xyz", "footprint", "rgb", "error", "track_start", "track_photo", "track_xy"):
        assert torch.equal(getattr(again.points, name), getattr(scene.points, name))
    assert (again.train, again.val, again.test) == (scene.train, scene.val, scene.test)
    assert sorted(again.train + again.val + again.test) == list(range(len(scene.photos)))


def test_identity_follows_cube_cameras_and_split(tmp_path: Path) -> None:
    write_capture(tmp_path)
    base = load_scene(tmp_path, SceneConfig()).identity
    assert load_scene(tmp_path, SceneConfig()).identity == base
    for other in (SceneConfig(margin=0.2), SceneConfig(max_side=64), SceneConfig(test_every=5)):
        assert load_scene(tmp_path, other).identity != base


def test_damaged_saved_scene_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no scene.json; run the prepare stage"):
        Scene.load(tmp_path)
    write_capture(tmp_path / "data")
    load_scene(tmp_path / "data", SceneConfig()).save(tmp_path)
    tensors = tmp_path / "scene.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be read"):
        Scene.load(tmp_path)


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        load_scene(tmp_path / "nowhere", SceneConfig())
    with pytest.raises(InputError, match="is empty"):
        load_scene(tmp_path, SceneConfig())
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match=r"neither a COLMAP model nor transforms.json; put cameras"):
        load_scene(tmp_path, SceneConfig())
    with pytest.raises(InputError, match="no COLMAP model"):
        load_scene(tmp_path, SceneConfig(format="colmap"))


def test_missing_damaged_and_wrong_photos_are_named(tmp_path: Path) -> None:
    truth = write_capture(tmp_path)
    path = tmp_path / "images" / truth.names[4]
    path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=rf"{path.name} cannot be opened .*; replace"):
        load_scene(tmp_path, SceneConfig())
    Image.new("RGB", (HEIGHT, WIDTH)).save(path)
    with pytest.raises(InputError, match=rf"{path.name} is {HEIGHT} x {WIDTH} pixels but its camera has {WIDTH} x"):
        load_scene(tmp_path, SceneConfig())
    with pytest.raises(InputError, match=r"0\S* and 11 more are missing though .*scene.images_dir"):
        load_scene(tmp_path, SceneConfig(images_dir="elsewhere"))


def test_a_photo_that_was_removed_is_left_out_with_its_observations(tmp_path: Path) -> None:
    truth = write_capture(tmp_path)
    before = load_scene(tmp_path, SceneConfig())
    (tmp_path / "images" / truth.names[4]).unlink()
    scene = load_scene(tmp_path, SceneConfig())
    assert [photo.name for photo in scene.photos] == truth.names[:4] + truth.names[5:]
    assert (before.report["missing_frames"], scene.report["missing_frames"]) == (0, 1)
    assert len(scene.points.track_photo) < len(before.points.track_photo)
    for name in truth.names[5:]:  # half of them
        (tmp_path / "images" / name).unlink()
    with pytest.raises(InputError, match=rf"{truth.names[4]} and 7 more are missing though"):
        load_scene(tmp_path, SceneConfig())


def test_fewer_than_three_photos_are_refused(tmp_path: Path) -> None:
    write_capture(tmp_path, num_photos=2)
    with pytest.raises(InputError, match="has 2 usable photos, at least 3 are needed"):
        load_scene(tmp_path, SceneConfig())


def test_scenes_without_usable_points_are_refused(tmp_path: Path) -> None:
    write_capture(tmp_path / "none", num_points=0)
    with pytest.raises(InputError, match="None of the 0 points"):
        load_scene(tmp_path / "none", SceneConfig())
    write_capture(tmp_path / "few")
    with pytest.raises(InputError, match="100 or more observations"):
        load_scene(tmp_path / "few", SceneConfig(min_observations=100))
    write_capture(tmp_path / "same")
    model = pycolmap.Reconstruction(str(tmp_path / "same/sparse/0"))
    for point in model.points3D.values():
        point.xyz = np.array([1.0, 2.0, 3.0])
    model.write_binary(str(tmp_path / "same/sparse/0"))
    with pytest.raises(InputError, match="span no volume"):
        load_scene(tmp_path / "same", SceneConfig())


@pytest.mark.parametrize(("name", "num_photos"), [("boruszyn", 28), ("caliterra", 75)])
def test_real_photos_fit_their_points(real_photos: Callable[[str], Path], name: str, num_photos: int) -> None:
    scene = load_scene(real_photos(name), SceneConfig())
    points = scene.points
    assert len(scene.photos) == num_photos
    assert scene.report["points_in_cube"] > 0.97 * len(points)  # type: ignore[operator]
    assert scene.frame.up[2] > 0.99  # both sets have z up
    assert float(scene.cameras.centre[:, 2].min()) > float(points.xyz[:, 2].median())
    assert float((points.xyz[:, 2] > 0).float().mean()) > 0.995
    rays = scene.cameras.rays_at(points.track_photo, points.track_xy)
    offset = points.xyz[points.track_point] - rays.origin
    aside = torch.linalg.cross(offset, rays.direction).norm(dim=1) / (offset.norm(dim=1) * rays.radius)
    assert float(aside.median()) < 0.6  # pixels; the models' own reprojection error is 0.37 to 0.43 at half this size
    width, height = scene.cameras.level_size(0, 0)
    assert read_photo(scene, 0).shape == (height, width, 3)


def test_photos_are_read_with_sigterm_left_to_the_program() -> None:
    program = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit('closed'));"
        "import inf_nerf.scene.scene; os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "closed\n")
