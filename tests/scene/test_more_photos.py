"""More photos of a known scene: its frame and split stay, and a model in other coordinates is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch

from inf_nerf.config import SceneConfig
from inf_nerf.errors import InputError
from inf_nerf.scene.more_photos import MOVED_PX
from inf_nerf.scene.scene import Scene, load_scene
from tests.scene.tiny_capture import make_camera, write_capture

CONFIG = SceneConfig(val_every=4)
NEW = ("flight_0/img_000.png", "flight_1/img_005.png", "flight_1/img_007.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All photos and their model."""
    return write_capture(tmp_path_factory.mktemp("more") / "all", [make_camera("OPENCV")], num_points=900).root


@pytest.fixture(scope="module")
def known(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The scene before the last photos were taken."""
    before = shutil.copytree(root, tmp_path_factory.mktemp("known") / "before")
    for name in NEW:
        (before / "images" / name).unlink()
    return load_scene(before, CONFIG)


@pytest.fixture
def moved(root: Path, tmp_path: Path) -> Path:
    """A copy whose model a test may change."""
    return Path(shutil.copytree(root, tmp_path / "moved"))


def transform(root: Path, similarity: pycolmap.Sim3d) -> None:
    folder = root / "sparse/0"
    model = pycolmap.Reconstruction(str(folder))
    model.transform(similarity)
    model.write_binary(str(folder))


def test_known_photos_stay_where_they_were_and_new_ones_are_learned_from(root: Path, known: Scene) -> None:
    joined, alone = load_scene(root, CONFIG, known), load_scene(root, CONFIG)
    assert np.array_equal(joined.frame.matrix, known.frame.matrix)
    assert not np.array_equal(joined.frame.matrix, alone.frame.matrix)
    assert [photo.name for photo in joined.photos] == [photo.name for photo in alone.photos]
    split = {photo.name: photo.split for photo in known.photos} | dict.fromkeys(NEW, "train")
    assert {photo.name: photo.split for photo in joined.photos} == split
    assert {photo.name: photo.split for photo in alone.photos} != split
    rows = [row for row, photo in enumerate(joined.photos) if photo.name not in NEW]
    assert torch.equal(joined.cameras.cam_to_world[rows], known.cameras.cam_to_world)
    assert len(joined.points.track_photo) > len(known.points.track_photo)


@pytest.mark.parametrize("off", [0.5, 3.0])
def test_a_model_may_be_off_by_less_than_a_pixel(moved: Path, known: Scene, off: float) -> None:
    aside = np.array([0.6, 0.0, 0.8]) * off * float(known.points.footprint.median()) / known.frame.scale
    transform(moved, pycolmap.Sim3d(1.0, pycolmap.Rotation3d(), aside))
    if off < MOVED_PX:
        assert np.array_equal(load_scene(moved, CONFIG, known).frame.matrix, known.frame.matrix)
    else:
        with pytest.raises(InputError, match=r"sparse/0 has flight_.* 3\.0 pixels off .* in different coordinates"):
            load_scene(moved, CONFIG, known)


@pytest.mark.parametrize("change", ["turned", "scaled", "longer lens"])
def test_a_model_in_other_coordinates_or_of_another_lens_is_refused(moved: Path, known: Scene, change: str) -> None:
    if change == "longer lens":
        model = pycolmap.Reconstruction(str(moved / "sparse/0"))
        focal_x, focal_y, *others = model.cameras[1].params
        model.cameras[1].params = [1.05 * focal_x, 1.05 * focal_y, *others]
        model.write_binary(str(moved / "sparse/0"))
    else:
        turn = pycolmap.Rotation3d(np.array([0.0, 0.0, 0.01, 1.0]) / np.linalg.norm([0.01, 1.0]))
        scale = 1.0 if change == "turned" else 1.01
        transform(moved, pycolmap.Sim3d(scale, turn if change == "turned" else pycolmap.Rotation3d(), np.zeros(3)))
    with pytest.raises(InputError, match="in different coordinates; register new photos in the model"):
        load_scene(moved, CONFIG, known)


def test_too_few_photos_in_common_are_refused(root: Path, known: Scene) -> None:
    others = tuple(replace(photo, name=f"old/{photo.name}") for photo in known.photos[2:])
    with pytest.raises(InputError, match=r"has 2 of the 9 photos that .*before was known by, and 3 are needed"):
        load_scene(root, CONFIG, replace(known, photos=(*known.photos[:2], *others)))
