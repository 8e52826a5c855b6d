"""Camera paths are smooth, see what they promise, and stay above the ground."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inf_nerf.config import RenderConfig
from inf_nerf.errors import InputError
from inf_nerf.render.camera_path import CameraPath
from inf_nerf.render.paths import named_path, orbit, photos, spiral, zoom
from inf_nerf.render.poses import look_at
from inf_nerf.scene.scene import Scene
from tests.plane_scene import PLANE_Z, plane_scene

RENDER = RenderConfig(width=64, height=48, frames=40, fps=12)
FINEST = 0.004


def footprints(path: CameraPath) -> torch.Tensor:
    """Footprint [F] on the plane of the pixel in the middle of each frame."""
    index = torch.arange(len(path))
    centre = (path.cameras.size[0] / 2).expand(len(path), 2)
    rays = path.cameras.rays_at(index, centre)
    return rays.radius * (PLANE_Z - rays.origin[:, 2]) / rays.direction[:, 2]


def assert_poses(path: CameraPath) -> None:
    rotation = path.cameras.cam_to_world[:, :, :3].double()
    torch.testing.assert_close(rotation.mT @ rotation, torch.eye(3).double().expand_as(rotation), atol=1e-5, rtol=0)
    assert bool((torch.linalg.det(rotation) > 0.99).all())


def test_look_at_puts_the_target_in_the_middle_and_up_up() -> None:
    pose = look_at((1.0, 2.0, 3.0), (0.0, 0.0, 0.0))
    seen = pose[:, :3].T @ (np.zeros(3) - pose[:, 3])
    np.testing.assert_allclose(seen, (0, 0, np.sqrt(14)), atol=1e-12)
    assert pose[2, 1] < 0  # the picture's down points down
    assert abs(pose[2, 0]) < 1e-12  # the horizon is level
    down = look_at((0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
    assert np.linalg.det(down[:, :3]) == pytest.approx(1)


@pytest.mark.parametrize("maker", [orbit, spiral, lambda scene, render: zoom(scene, render, FINEST)])
def test_path_stays_above_ground_and_sees_it(maker: Any) -> None:
    path = maker(plane_scene(), RENDER)
    assert len(path) == 40
    assert path.fps == 12
    assert path.cameras.level_size(0, 0) == (64, 48)
    assert_poses(path)
    assert bool((path.cameras.centre[:, 2] > PLANE_Z + 0.01).all())
    assert bool((footprints(path) > 0).all())


def test_orbit_looks_at_the_median_point_from_all_sides() -> None:
    scene = plane_scene()
    path = orbit(scene, RENDER)
    centre = scene.points.xyz.median(dim=0).values
    to_centre = torch.nn.functional.normalize(centre - path.cameras.centre, dim=-1)
    assert bool(((to_centre * path.cameras.cam_to_world[:, :, 2]).sum(-1) > 0.999).all())
    steps = (path.cameras.centre.roll(-1, 0) - path.cameras.centre).norm(dim=-1)
    assert float(steps.max()) < 1.01 * float(steps.min())  # closed, at constant speed


def test_zoom_starts_with_the_whole_scene_in_the_picture() -> None:
    path = zoom(plane_scene(), RENDER, FINEST)
    pose = path.cameras.cam_to_world[0]
    corners = torch.tensor([[x, y, PLANE_Z] for x in (-0.85, 0.85) for y in (-0.85, 0.85)])
    seen = (corners - pose[:, 3]) @ pose[:, :3]
    pixel = seen[:, :2] / seen[:, 2:] * path.cameras.intrinsics[0, :2] + path.cameras.intrinsics[0, 2:]
    assert bool((seen[:, 2] > 0).all())
    assert bool((pixel > -0.5).all())
    assert bool((pixel < torch.tensor([64.5, 48.5])).all())


def test_zoom_closes_in_at_a_constant_rate_down_to_the_finest_footprint() -> None:
    size = footprints(zoom(plane_scene(), RENDER, FINEST))
    ratio = size[1:] / size[:-1]
    assert float(ratio.max()) < 1
    assert float(ratio.max() - ratio.min()) < 1e-3
    assert float(size[-1]) == pytest.approx(FINEST, rel=0.02)


def test_zoom_ends_where_the_points_are_finest() -> None:
    path = zoom(plane_scene(), RENDER, FINEST)
    rays = path.cameras.image_rays(len(path) - 1, 0)
    middle = rays[slice(24 * 64 + 32, 24 * 64 + 33)]
    distance = (PLANE_Z - middle.origin[:, 2]) / middle.direction[:, 2]
    place = (middle.origin + distance[:, None] * middle.direction)[0]
    assert float((place[:2] - torch.tensor([0.3, -0.2])).norm()) < 0.35


def test_zoom_does_not_fly_through_walls() -> None:
    scene = plane_scene()
    # A wall on one side of the target, in which a careless approach from there would end.
    wall = torch.tensor([[0.45, -1 + 0.02 * y, PLANE_Z + 0.02 * z] for y in range(100) for z in range(40)])
    points = scene.points
    count = len(points) + len(wall)
    fields = {
        "xyz": torch.cat([points.xyz, wall]),
        "footprint": torch.cat([points.footprint, torch.full((len(wall),), 0.05)]),
        "rgb": torch.zeros(count, 3, dtype=torch.uint8),
        "error": torch.zeros(count),
        "track_start": torch.zeros(count + 1, dtype=torch.int64),
        "track_photo": points.track_photo,
        "track_xy": points.track_xy,
    }
    walled = Scene(
        scene.photos,
        scene.cameras,
        type(points)(**fields),
        scene.frame,
        scene.root,
        scene.report,
        scene.source_size,
    )
    eyes = zoom(walled, RENDER, FINEST).cameras.centre
    below = eyes[eyes[:, 2] < PLANE_Z + 0.8]
    assert len(below) > 0
    assert bool((below[:, 0] < 0.45).all())


def test_spiral_comes_nearer_at_a_constant_rate_in_two_turns() -> None:
    scene = plane_scene()
    path = spiral(scene, RENDER)
    centre = torch.from_numpy(np.median(scene.points.xyz.numpy(), axis=0))
    away = path.cameras.centre - centre
    ratio = away.norm(dim=1)[1:] / away.norm(dim=1)[:-1]
    assert float(ratio.max()) < 1 and float(ratio.max() - ratio.min()) < 1e-3
    assert float(away.norm(dim=1)[-1] / away.norm(dim=1)[0]) == pytest.approx(0.3, rel=1e-3)
    turn = torch.atan2(away[:, 1], away[:, 0])
    total = torch.remainder(turn.diff() + torch.pi, 2 * torch.pi).sub(torch.pi).sum()
    assert float(total) == pytest.approx(4 * np.pi, rel=1e-3)
    elevation = torch.asin(away[:, 2] / away.norm(dim=1))
    assert bool((elevation.diff() > 0).all())


def test_photos_path_mixes_the_appearances_that_it_passes() -> None:
    scene = plane_scene()
    assert photos(scene, RENDER).weights is None
    path = photos(scene, RENDER.model_copy(update={"appearance": "photos"}))
    assert path.weights is not None and path.weights.shape == (40, len(scene.photos))
    torch.testing.assert_close(path.weights.sum(dim=1), torch.ones(40))
    assert bool(((path.weights > 1e-6).sum(dim=1) <= 2).all())
    order = sorted(range(len(scene.photos)), key=lambda index: scene.photos[index].name)
    assert (int(path.weights[0].argmax()), int(path.weights[-1].argmax())) == (order[0], order[-1])
    assert float(path.weights.diff(dim=0).abs().max()) < 0.5  # no jumps


def test_appearance_of_a_frame_is_the_mixture_of_vectors_and_the_mean_of_the_rest() -> None:
    scene = plane_scene()
    vectors = torch.randn(len(scene.photos), 3, generator=torch.Generator().manual_seed(0))
    learnt = [0, 2]
    mean = vectors[learnt].mean(dim=0)
    weights = torch.zeros(3, len(scene.photos))
    weights[0, 2], weights[1, 0], weights[2, 1] = 1.0, 0.25, 1.0
    path = CameraPath(photos(scene, RENDER).cameras, 10, weights)
    found = [path.appearance(frame, vectors, learnt) for frame in range(3)]
    for one, expected in zip(found, (vectors[2], 0.25 * vectors[0] + 0.75 * mean, mean), strict=True):
        assert one is not None
        torch.testing.assert_close(one, expected)  # photo 1 was not learnt from: it looks like the mean
    assert CameraPath(path.cameras, 10).appearance(0, vectors, learnt) is None


def test_photos_path_passes_through_photos_with_small_steps() -> None:
    scene = plane_scene()
    path = photos(scene, RENDER)
    assert_poses(path)
    first, last = scene.cameras.cam_to_world[0], scene.cameras.cam_to_world[-1]
    torch.testing.assert_close(path.cameras.cam_to_world[0], first, atol=1e-5, rtol=0)
    torch.testing.assert_close(path.cameras.cam_to_world[-1], last, atol=1e-5, rtol=0)
    steps = path.cameras.centre.diff(dim=0).norm(dim=-1)
    assert float(steps.max()) < 2 * float(steps.median())


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("name", ["orbit", "spiral", "zoom", "photos"])
def test_shortest_paths_exist(name: str, frames: int) -> None:
    path = named_path(name, plane_scene(), RenderConfig(frames=frames), FINEST)
    assert len(path) == frames
    assert_poses(path)


def test_broken_json_and_unknown_names_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "path.json"
    file.write_text("{")
    with pytest.raises(InputError, match="not a JSON file"):
        named_path(str(file), plane_scene(), RENDER, FINEST)
    with pytest.raises(InputError, match="'helix' is neither orbit, spiral, zoom or photos"):
        named_path("helix", plane_scene(), RENDER, FINEST)
