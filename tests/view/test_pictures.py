"""Pictures of a view are those of the model, at any fineness, in any mode, within a box, and given up when unwanted."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from inf_nerf.octree.routing import route_recursive
from inf_nerf.render.colourmap import as_picture
from inf_nerf.render.images import render_image
from inf_nerf.render.poses import look_at
from inf_nerf.scene.cameras import Rays
from inf_nerf.train.opened import StoredCheckpoint, open_checkpoint
from inf_nerf.view.pictures import AROUND, MODES, SOLID, Look, Unwanted, View, answer, draw
from tests.view.trained_run import SAVES, trained_run

POSE = torch.from_numpy(look_at((0.3, -0.9, 0.9), (0.0, 0.0, 0.1))).float()
VIEW = View(POSE, 48, 32, 60.0, Look())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoredCheckpoint]:
    run_dir = trained_run(tmp_path_factory.mktemp("view") / "run")
    stored = open_checkpoint(run_dir / "checkpoints" / SAVES[-1]).within(10**8)
    yield stored
    stored.model.cache.close()


def always() -> bool:
    return True


@pytest.mark.parametrize("divisor", [1, 2, 4])
def test_picture_is_that_of_a_camera_with_larger_pixels(checkpoint: StoredCheckpoint, divisor: int) -> None:
    drawn = draw(checkpoint, VIEW, divisor, is_wanted=always)
    whole = render_image(
        checkpoint.model, VIEW.cameras(divisor), 0, 0, rays_per_chunk=999, lod_blend=checkpoint.config.render.lod_blend
    )
    assert drawn.picture.shape == (32 // divisor, 48 // divisor, 3)
    np.testing.assert_array_equal(drawn.picture, as_picture(whole.rgb))
    assert torch.equal(drawn.touched, whole.touched)
    torch.testing.assert_close(drawn.share.sum(), torch.tensor(float(whole.share.sum()) / whole.depth.numel()))


def test_depth_is_along_the_axis_of_the_camera(checkpoint: StoredCheckpoint) -> None:
    drawn = draw(checkpoint, VIEW, is_wanted=always)
    rendered = render_image(
        checkpoint.model, VIEW.cameras(), 0, 0, rays_per_chunk=999, lod_blend=checkpoint.config.render.lod_blend
    )
    rays = VIEW.cameras().image_rays(0, 0)
    points = rays.origin + rays.direction * rendered.depth.view(-1, 1)
    along = (points - POSE[:, 3]) @ POSE[:, 2]
    solid = (rendered.opacity > SOLID).flatten().numpy()
    assert solid.any()
    np.testing.assert_allclose(drawn.depth.ravel()[solid], along.numpy()[solid], rtol=1e-5)
    assert (drawn.depth.ravel()[~solid] > 100).all()


@pytest.mark.parametrize("mode", MODES)
def test_modes_show_different_things(checkpoint: StoredCheckpoint, mode: str) -> None:
    picture = draw(checkpoint, replace(VIEW, look=Look(mode)), is_wanted=always).picture
    assert picture.shape == (32, 48, 3) and picture.std() > 1
    others = [draw(checkpoint, replace(VIEW, look=Look(other)), is_wanted=always).picture for other in MODES]
    assert sum(np.array_equal(picture, other) for other in others) == 1


def test_larger_pixels_ask_coarser_nodes(checkpoint: StoredCheckpoint) -> None:
    levels = []
    for octaves in (-1.0, 0.0, 2.0, 6.0):
        touched = draw(checkpoint, replace(VIEW, look=Look(octaves=octaves)), is_wanted=always).touched[:-1]
        levels.append(int(checkpoint.octree.level[touched].max()))
    assert levels == sorted(levels, reverse=True) and levels[0] > levels[-1]


def test_appearance_of_a_photo_is_that_vectors(checkpoint: StoredCheckpoint) -> None:
    model = checkpoint.model
    with torch.no_grad():
        model.appearance[1] += 3.0
        checkpoint.appearance[1] += 3.0
    plain, other = (draw(checkpoint, replace(VIEW, look=Look(photo=p)), is_wanted=always) for p in (None, 1))
    expected = render_image(
        model, VIEW.cameras(), 0, 0, rays_per_chunk=999, lod_blend=0.5, appearance=checkpoint.appearance[1]
    )
    np.testing.assert_array_equal(other.picture, as_picture(expected.rgb))
    assert not np.array_equal(plain.picture, other.picture)


def test_only_the_box_is_seen(checkpoint: StoredCheckpoint) -> None:
    low, high = (-0.3, -0.3, 0.0), (0.2, 0.3, 0.4)
    drawn = draw(checkpoint, replace(VIEW, look=Look(box=(low, high))), is_wanted=always)
    rays = VIEW.cameras().image_rays(0, 0)
    inverse = 1 / rays.direction
    a, b = (torch.tensor(low) - rays.origin) * inverse, (torch.tensor(high) - rays.origin) * inverse
    misses = torch.minimum(a, b).amax(1) >= torch.maximum(a, b).amin(1)
    picture = drawn.picture.reshape(-1, 3)
    assert 0 < int(misses.sum()) < len(misses)
    assert (np.abs(picture[misses.numpy()] - np.array(AROUND) * 255) <= 1).all()
    assert picture[~misses.numpy()].std() > 1
    solid = drawn.depth.ravel() < 100
    t = torch.from_numpy(drawn.depth.ravel()) / (rays.direction @ POSE[:, 2])
    points = (rays.origin + rays.direction * t[:, None])[torch.from_numpy(solid)]
    assert bool(((points >= torch.tensor(low) - 0.02) & (points <= torch.tensor(high) + 0.02)).all())


def test_two_halves_hide_what_the_whole_hides(checkpoint: StoredCheckpoint) -> None:
    def light(box: tuple[tuple[float, float, float], tuple[float, float, float]]) -> np.ndarray:
        view = replace(VIEW, look=Look("opacity", box=box))
        return 1 - draw(checkpoint, view, is_wanted=always).picture[..., 0] / 255.0

    left, right = light(((-1, -1, -1), (0, 1, 1))), light(((0, -1, -1), (1, 1, 1)))
    whole = light(((-1, -1, -1), (1, 1, 1)))
    assert np.abs(left * right - whole).mean() < 0.02


def test_unwanted_picture_is_given_up_at_once(checkpoint: StoredCheckpoint) -> None:
    large = replace(VIEW, width=480, height=360)
    asked = 0

    def twice() -> bool:
        nonlocal asked
        asked += 1
        return asked < 2

    started = time.perf_counter()
    with pytest.raises(Unwanted):
        draw(checkpoint, large, is_wanted=twice)
    given_up = time.perf_counter() - started
    assert asked == 2
    assert draw(checkpoint, large, is_wanted=always).seconds > 3 * given_up


def test_click_finds_the_node_that_the_picture_shows_there(checkpoint: StoredCheckpoint) -> None:
    drawn = draw(checkpoint, VIEW, is_wanted=always)
    rays = VIEW.cameras().image_rays(0, 0)
    for pixel in (700, 770, 1000, 1300):
        ray = Rays(*(part[pixel : pixel + 1] for part in (rays.origin, rays.direction, rays.radius, rays.photo)))
        found = answer(checkpoint, ray, Look())
        if found is None:
            assert drawn.depth.ravel()[pixel] > 100
            continue
        assert bool(drawn.touched[found.node])
        xyz, footprint = torch.tensor([found.point]), torch.tensor([found.footprint])
        assert int(route_recursive(checkpoint.octree, xyz, footprint)[0]) == found.node


def test_click_beside_everything_finds_nothing(checkpoint: StoredCheckpoint) -> None:
    up = Rays(torch.tensor([[0.0, 0, 0.9]]), torch.tensor([[0.0, 0, 1]]), torch.tensor([0.01]), torch.tensor([-1]))
    assert answer(checkpoint, up, Look()) is None


def test_a_small_budget_draws_too_and_keeps_to_it(tmp_path: Path) -> None:
    run_dir = trained_run(tmp_path / "run")
    opened = open_checkpoint(run_dir / "checkpoints" / SAVES[-1])
    budget = opened.model_bytes // 3
    stored = opened.within(budget)
    for mode in MODES:
        assert draw(stored, replace(VIEW, look=Look(mode)), is_wanted=always).picture.shape == (32, 48, 3)
    assert stored.model.cache.figures.peak_bytes <= budget
    stored.model.cache.close()


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'heat' is none of colour"):
        Look("heat")
