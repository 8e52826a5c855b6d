"""COLMAP models: text equals binary, every layout is found, and damaged files are named."""

import shutil
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch

from inf_nerf.config import SceneConfig
from inf_nerf.errors import InputError
from inf_nerf.scene.photos import read_photo
from inf_nerf.scene.scene import Scene, load_scene
from tests.scene.tiny_capture import CAMERA_PARAMS, make_camera, write_capture


def assert_same(left: Scene, right: Scene) -> None:
    assert left.photos == right.photos
    for name, tensor in left.cameras.state().items():
        torch.testing.assert_close(tensor, right.cameras.state()[name])
    for name in ("xyz", "footprint", "rgb", "track_start", "track_photo", "track_xy"):
        torch.testing.assert_close(getattr(left.points, name), getattr(right.points, name))


def test_text_reads_as_binary(tmp_path: Path) -> None:
    cameras = [make_camera("OPENCV", key=1), make_camera("PINHOLE", 80, 90, key=2)]
    write_capture(tmp_path / "binary", cameras)
    write_capture(tmp_path / "text", cameras, text=True)
    binary, text = (load_scene(tmp_path / name, SceneConfig()) for name in ("binary", "text"))
    assert_same(binary, text)
    assert (binary.report["format"], text.report["format"]) == ("colmap.bin", "colmap.txt")


@pytest.mark.parametrize("folder", ["sparse/0", "sparse", "."])
def test_model_is_found_where_colmap_users_put_it(tmp_path: Path, folder: str) -> None:
    write_capture(tmp_path, folder=folder)
    assert load_scene(tmp_path, SceneConfig()).report["photos"] == 12


@pytest.mark.parametrize("folder", ["sparse/0", "."])
def test_photos_may_lie_in_the_data_root_itself(tmp_path: Path, folder: str) -> None:
    truth = write_capture(tmp_path, folder=folder)
    for path in (tmp_path / "images").iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / "images").rmdir()
    scene = load_scene(tmp_path, SceneConfig())
    assert [photo.file for photo in scene.photos] == truth.names
    assert read_photo(scene, 0).std() == 0


def test_model_without_rigs_and_frames_is_read(tmp_path: Path) -> None:
    # Releases of COLMAP before 3.12 write three files only.
    write_capture(tmp_path)
    before = load_scene(tmp_path, SceneConfig())
    for name in ("rigs.bin", "frames.bin"):
        (tmp_path / "sparse/0" / name).unlink()
    assert_same(before, load_scene(tmp_path, SceneConfig()))


def test_observations_lie_on_the_rays_of_their_points(tmp_path: Path) -> None:
    cameras = [make_camera(model, 101 + 10 * i, 67 + 6 * i, key=i + 1) for i, model in enumerate(CAMERA_PARAMS)]
    truth = write_capture(tmp_path, cameras, num_photos=len(cameras) + 1)
    scene = load_scene(tmp_path, SceneConfig(max_side=77))
    points = scene.points
    assert len(points) > 200
    assert scene.report["cameras"] == len(cameras)
    rays = scene.cameras.rays_at(points.track_photo, points.track_xy)
    offset = points.xyz[points.track_point] - rays.origin
    distance = offset.norm(dim=1)
    aside = torch.linalg.cross(offset, rays.direction).norm(dim=1) / (distance * rays.radius)
    assert float(aside.max()) < 0.05  # pixels of level 0
    centres = scene.frame.to_scene(truth.poses[:, :, 3])
    np.testing.assert_allclose(scene.cameras.centre.numpy(), centres, atol=1e-5)
    assert scene.frame.up @ truth.up > 0.99


def test_photos_keep_their_folders_and_are_sorted(tmp_path: Path) -> None:
    truth = write_capture(tmp_path)
    scene = load_scene(tmp_path, SceneConfig())
    assert [photo.name for photo in scene.photos] == sorted(truth.names)
    assert scene.photos[5].file == f"images/{truth.names[5]}"
    assert any("late/" in photo.name for photo in scene.photos)
    assert scene.report["photos_without_points"] == 1


def test_cameras_with_distortion_folded_out_of_use_are_named(tmp_path: Path) -> None:
    camera = make_camera("EUCM")
    camera.params = [30.0, 30.0, 5000.0, 5000.0, 0.9, 2.0]
    write_capture(tmp_path)
    model = pycolmap.Reconstruction(str(tmp_path / "sparse/0"))
    model.cameras[1].model = camera.model
    model.cameras[1].params = camera.params.tolist()
    model.write_binary(str(tmp_path / "sparse/0"))
    with pytest.raises(InputError, match="no pixel has a ray"):
        load_scene(tmp_path, SceneConfig())


def test_panoramas_are_refused(tmp_path: Path) -> None:
    write_capture(tmp_path, text=True)
    cameras = tmp_path / "sparse/0/cameras.txt"
    cameras.write_text("1 EQUIRECTANGULAR 101 67 101 67\n")
    with pytest.raises(InputError, match="EQUIRECTANGULAR, and only perspective and fisheye"):
        load_scene(tmp_path, SceneConfig())


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin", "rigs.bin", "frames.bin"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.999])
def test_truncated_binary_file_is_named(tmp_path: Path, name: str, share: float) -> None:
    write_capture(tmp_path)
    path = tmp_path / "sparse/0" / name
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=rf"{name} is truncated.*export"):
        load_scene(tmp_path, SceneConfig())


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_truncated_text_file_is_named(tmp_path: Path, name: str, share: float) -> None:
    write_capture(tmp_path, text=True)
    path = tmp_path / "sparse/0" / f"{name}.txt"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"sparse/0"):
        load_scene(tmp_path, SceneConfig())


@pytest.mark.parametrize("cut", [0, 6])
def test_points_file_without_header_that_lacks_points_is_named(tmp_path: Path, cut: int) -> None:
    write_capture(tmp_path, text=True)
    path = tmp_path / "sparse/0/points3D.txt"
    without_header = [line for line in path.read_text().splitlines(True) if not line.startswith("#")]
    content = "".join(without_header[:-3])
    path.write_text(content[: len(content) - cut])
    with pytest.raises(InputError, match=r"points3D.txt holds \d+ of the \d+ observations .*truncated"):
        load_scene(tmp_path, SceneConfig())


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin", "rigs.bin", "frames.bin"])
def test_binary_file_with_more_than_its_records_is_named(tmp_path: Path, name: str) -> None:
    write_capture(tmp_path)
    with open(tmp_path / "sparse/0" / name, "ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match=rf"{name} has 4 bytes after its \d+ records"):
        load_scene(tmp_path, SceneConfig())


def test_text_without_announced_counts_is_read(tmp_path: Path) -> None:
    write_capture(tmp_path, text=True)
    for name in ("cameras", "images", "points3D"):
        path = tmp_path / f"sparse/0/{name}.txt"
        path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("#")))
    assert load_scene(tmp_path, SceneConfig()).report["photos"] == 12


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_missing_part_of_a_model_is_named(tmp_path: Path, name: str) -> None:
    write_capture(tmp_path)
    (tmp_path / "sparse/0" / name).unlink()
    with pytest.raises(InputError, match=rf"no {name}"):
        load_scene(tmp_path, SceneConfig())


def test_files_of_different_models_are_refused(tmp_path: Path) -> None:
    write_capture(tmp_path / "one")
    write_capture(tmp_path / "other", num_photos=5, num_points=50)
    shutil.copy(tmp_path / "other/sparse/0/images.bin", tmp_path / "one/sparse/0/images.bin")
    with pytest.raises(InputError, match=r"sparse/0 cannot be read"):
        load_scene(tmp_path / "one", SceneConfig())
