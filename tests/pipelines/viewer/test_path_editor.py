"""Views that a visitor collects become a path that the stage render reads as it was seen."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("viser", minversion="1.0")

from inf_nerf.config import RenderConfig
from inf_nerf.render.path_files import path_from_json, path_to_json
from inf_nerf.render.poses import look_at
from pipelines.viewer.path_editor import Keys
from tests.train.tiny import tiny_scene

RENDER = RenderConfig(width=64, height=48, frames=21, fps=10)
EYES = ((-0.5, -0.8, 0.9), (0.0, -0.9, 0.7), (0.6, -0.5, 0.8))


def test_path_passes_the_views_with_their_appearances(tmp_path: Path) -> None:
    scene, keys = tiny_scene(), Keys(tiny_scene())
    for eye, photo in zip(EYES, (1, None, 4), strict=True):
        keys.add(look_at(eye, (0.0, 0.0, 0.1)), photo)
    (tmp_path / "path.json").write_text(path_to_json(keys.path(RENDER), scene))
    path = path_from_json(tmp_path / "path.json", scene)
    assert (len(path), path.fps, path.cameras.level_size(0, 0)) == (21, 10, (64, 48))
    centres = path.cameras.centre.double().numpy()
    for eye in EYES:
        assert np.linalg.norm(centres - eye, axis=1).min() < 0.05
    np.testing.assert_allclose(centres[[0, -1]], (EYES[0], EYES[2]), atol=1e-6)
    assert path.weights is not None
    assert (path.weights[0].argmax(), path.weights[-1].argmax()) == (1, 4)
    assert float(path.weights[0, 1]) == float(path.weights[-1, 4]) == 1
    assert float(path.weights.sum(dim=1).min()) < 0.2  # the mean in the middle


def test_path_without_photos_has_the_mean_appearance() -> None:
    keys = Keys(tiny_scene())
    keys.add(look_at(EYES[0], (0.0, 0.0, 0.1)), None)
    path = keys.path(RENDER)
    assert path.weights is None and len(path) == 21
    torch.testing.assert_close(path.cameras.centre[20], path.cameras.centre[0])


def test_last_view_can_be_taken_back() -> None:
    keys = Keys(tiny_scene())
    keys.drop()
    keys.add(look_at(EYES[0], (0.0, 0.0, 0.1)), 2)
    keys.add(look_at(EYES[1], (0.0, 0.0, 0.1)), None)
    keys.drop()
    assert (len(keys), keys.photos) == (1, [2])
