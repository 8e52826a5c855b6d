"""Camera paths are smooth, see what they promise, and stay above the ground."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inf_nerf.config import RenderConfig
from inf_nerf.errors import InputError
from inf_nerf.render.paths import CameraPath, look_at, named_path, orbit, path_from_json, photos, zoom
from inf_nerf.scene.frame import WorldFrame
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


@pytest.mark.parametrize("maker", [orbit, lambda scene, render: zoom(scene, render, FINEST)])
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
@pytest.mark.parametrize("name", ["orbit", "zoom", "photos"])
def test_shortest_paths_exist(name: str, frames: int) -> None:
    path = named_path(name, plane_scene(), RenderConfig(frames=frames), FINEST)
    assert len(path) == frames
    assert_poses(path)


def frame_json(centre: tuple[float, float, float], **more: float) -> dict[str, Any]:
    matrix = [[1.0, 0, 0, centre[0]], [0, -1, 0, centre[1]], [0, 0, -1, centre[2]], [0, 0, 0, 1]]
    return {"camera_to_world": matrix, **more}


def write_path(folder: Path, **changes: Any) -> Path:
    content = {"width": 32, "height": 24, "fov_degrees": 90, "fps": 10, "frames": [frame_json((0, 0, 50))]} | changes
    file = folder / "path.json"
    file.write_text(json.dumps(content))
    return file


def test_json_path_goes_through_the_world_frame(tmp_path: Path) -> None:
    frame = WorldFrame.from_parts(0.01, np.eye(3), np.array([1000.0, 2000.0, 0.0]))
    frames = [frame_json((1000, 2000, 50)), frame_json((1100, 2000, 50), fov_degrees=60)]
    path = path_from_json(write_path(tmp_path, frames=frames), frame)
    torch.testing.assert_close(path.cameras.centre, torch.tensor([[0.0, 0, 0.5], [1.0, 0, 0.5]]))
    assert path.fps == 10
    rays = path.cameras.rays_at(torch.tensor([0, 1]), torch.tensor([[32.0, 12.0], [32.0, 12.0]]))
    side = rays.direction[:, 0] / -rays.direction[:, 2]
    torch.testing.assert_close(side, torch.tensor([1.0, np.tan(np.pi / 6)], dtype=torch.float32))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": "wide"}, "'width' as 'wide'"),
        ({"fps": 0}, "'fps' as 0"),
        ({"frames": []}, "no list 'frames'"),
        ({"frames": [7]}, r"frames\[0\] no mapping"),
        ({"frames": [{"camera_to_world": [[1, 0], [0, 1]]}]}, r"frames\[0\].camera_to_world not as a 4 x 4"),
        ({"frames": [{"camera_to_world": (2 * np.eye(4)).tolist()}]}, "without a rotation"),
        ({"frames": [frame_json((0, 0, 1), fov_degrees=-5)]}, "'fov_degrees' as -5"),
    ],
)
def test_bad_json_path_names_file_and_place(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    file = write_path(tmp_path, **changes)
    with pytest.raises(InputError, match=said) as raised:
        path_from_json(file, WorldFrame(np.eye(4)))
    assert str(file) in str(raised.value)


def test_broken_json_and_unknown_names_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "path.json"
    file.write_text("{")
    with pytest.raises(InputError, match="not a JSON file"):
        named_path(str(file), plane_scene(), RENDER, FINEST)
    with pytest.raises(InputError, match="'spiral' is neither"):
        named_path("spiral", plane_scene(), RENDER, FINEST)
