"""The file that peers get holds the very pixels and rays that we use."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers import photos
from inf_nerf.config import SceneConfig
from inf_nerf.scene.photos import read_photo
from inf_nerf.scene.scene import Scene, load_scene
from inf_nerf.train.metrics import psnr
from tests.scene.tiny_capture import make_camera, write_capture


@pytest.fixture(params=["PINHOLE", "OPENCV"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    truth = write_capture(tmp_path / "capture", [make_camera(request.param)])
    return load_scene(truth.root, SceneConfig(max_side=50))


def test_rays_and_pixels_are_ours(scene: Scene, tmp_path: Path) -> None:
    scene.save(tmp_path / "run")
    photos.main([str(tmp_path / "run"), str(tmp_path / "photos.npz")])
    arrays = np.load(tmp_path / "photos.npz")
    for photo in range(len(scene.photos)):
        assert np.array_equal(arrays[f"pixels_{photo}"], read_photo(scene, photo))
        pose = torch.from_numpy(arrays["pose"][photo])
        directions = torch.from_numpy(arrays[f"directions_{arrays['camera'][photo]}"]).view(-1, 3)
        rays = scene.cameras.image_rays(photo, 0)
        torch.testing.assert_close(directions @ pose[:, :3].T, rays.direction)
        torch.testing.assert_close(pose[:, 3].expand_as(rays.origin), rays.origin)
    assert arrays["split"].tolist() == [photo.split for photo in scene.photos]


def test_floor_is_the_score_of_the_training_photos_mean_colour(scene: Scene) -> None:
    arrays = photos.collect(scene)
    shades = [float(arrays[f"pixels_{photo}"][0, 0, 0]) / 255 for photo in range(len(scene.photos))]  # photos are flat
    mean = float(np.mean([shades[photo] for photo in scene.train]))
    wanted = np.mean([psnr((shades[photo] - mean) ** 2) for photo in scene.test])
    assert arrays["floor"] == pytest.approx(wanted, abs=1e-4)
