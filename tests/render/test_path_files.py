"""Paths survive the way into a file and back, those of nerfstudio arrive where they were, and bad files say what is."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inf_nerf.config import RenderConfig
from inf_nerf.errors import InputError
from inf_nerf.render.camera_path import CameraPath, pinhole_path
from inf_nerf.render.path_files import DATAPARSER, path_from_json, path_to_json
from inf_nerf.render.paths import orbit, photos
from inf_nerf.scene.frame import WorldFrame
from inf_nerf.scene.scene import Scene
from tests.plane_scene import plane_scene

NAME, OTHER = (photo.name for photo in plane_scene().photos[:2])
MOVED = WorldFrame.from_parts(
    0.02, np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), np.array([500_000.0, 4_000_000.0, 120.0])
)


def frame_json(centre: tuple[float, float, float], **more: Any) -> dict[str, Any]:
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
    path = path_from_json(write_path(tmp_path, frames=frames), replace(plane_scene(), frame=frame))
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
        ({"frames": [frame_json((0, 0, 1), appearance="p1")]}, r"frames\[0\].appearance 'p1', which is no photo"),
        ({"frames": [frame_json((0, 0, 1), appearance=7)]}, r"frames\[0\].appearance neither as a photo's name"),
        ({"frames": [frame_json((0, 0, 1), appearance={NAME: 2})]}, "give a number from 0 to 1"),
        ({"frames": [frame_json((0, 0, 1), appearance={NAME: 0.8, OTHER: 0.8})]}, "whose sum is 1.6"),
    ],
)
def test_bad_json_path_names_file_and_place(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    file = write_path(tmp_path, **changes)
    with pytest.raises(InputError, match=said) as raised:
        path_from_json(file, plane_scene())
    assert str(file) in str(raised.value)


def moved_scene() -> Scene:
    """A scene whose input lies far from the origin, turned and in other units."""
    return replace(plane_scene(), frame=MOVED)


def assert_same_cameras(one: CameraPath, other: CameraPath, atol: float = 1e-5) -> None:
    index = torch.arange(len(one))
    corner = torch.tensor([[1.0, 2.0]]).expand(len(one), 2)
    a, b = one.cameras.rays_at(index, corner), other.cameras.rays_at(index, corner)
    torch.testing.assert_close(a.origin, b.origin, atol=atol, rtol=0)
    torch.testing.assert_close(a.direction, b.direction, atol=atol, rtol=0)
    torch.testing.assert_close(a.radius, b.radius, atol=0, rtol=1e-4)


@pytest.mark.parametrize("kind", ["orbit", "photos", "lenses"])
def test_path_survives_the_way_into_a_file_and_back(tmp_path: Path, kind: str) -> None:
    scene, render = moved_scene(), RenderConfig(width=64, height=48, frames=7, fps=12, appearance="photos")
    path = photos(scene, render) if kind == "photos" else orbit(scene, render)
    if kind == "lenses":
        poses = path.cameras.cam_to_world.double().numpy()
        path = pinhole_path(poses, (64, 48), [40.0 + frame for frame in range(7)], 12)
    (tmp_path / "path.json").write_text(path_to_json(path, scene))
    again = path_from_json(tmp_path / "path.json", scene)
    assert (again.fps, len(again)) == (12, 7)
    assert_same_cameras(path, again)
    if path.weights is None:
        assert again.weights is None
    else:
        assert again.weights is not None
        torch.testing.assert_close(again.weights, path.weights, atol=1e-5, rtol=0)


def as_nerfstudio(path: CameraPath, scene: Scene, folder: Path, **changes: Any) -> Path:
    """What nerfstudio's viewer would write of a path, step by step as its code goes, with its frame beside it."""
    turn = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    transform = np.concatenate([turn, np.array([[3.0], [-7], [0.5]])], axis=1)  # input -> nerfstudio, before scaling
    scale = 0.3
    frames = []
    for pose in path.cameras.cam_to_world.double().numpy():
        matrix = np.eye(4)
        matrix[:3, :3] = scene.frame.rotation.T @ pose[:, :3] @ np.diag([1.0, -1, -1])  # OpenGL axes
        matrix[:3, 3] = scene.frame.to_world(pose[:, 3])
        moved = transform @ matrix
        moved[:, 3] *= scale
        focal = float(path.cameras.intrinsics[0, 0])
        fov = math.degrees(2 * math.atan(path.cameras.level_size(0, 0)[1] / 2 / focal))  # vertical
        flat = [*moved.flatten().tolist(), 0.0, 0.0, 0.0, 1.0]
        frames.append({"camera_to_world": flat, "fov": fov, "aspect": 4 / 3})
    width, height = path.cameras.level_size(0, 0)
    content = {
        "camera_type": "perspective", "render_width": width, "render_height": height, "fps": path.fps, "seconds": 2,
        "camera_path": frames, "keyframes": [], "is_cycle": False,
    } | changes  # fmt: skip
    (folder / DATAPARSER).write_text(json.dumps({"transform": transform.tolist(), "scale": scale}))
    (folder / "camera_path.json").write_text(json.dumps(content))
    return folder / "camera_path.json"


def test_path_of_nerfstudio_arrives_where_it_was(tmp_path: Path) -> None:
    scene = moved_scene()
    path = orbit(scene, RenderConfig(width=64, height=48, frames=5, fps=30))
    again = path_from_json(as_nerfstudio(path, scene, tmp_path), scene)
    assert (again.fps, again.weights) == (30, None)
    assert_same_cameras(path, again, atol=1e-4)


def test_path_of_nerfstudio_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    scene = plane_scene()
    path = orbit(scene, RenderConfig(width=64, height=48, frames=2))
    file = as_nerfstudio(path, scene, tmp_path, camera_type="fisheye")
    with pytest.raises(InputError, match="camera_type 'fisheye'"):
        path_from_json(file, scene)
    file = as_nerfstudio(path, scene, tmp_path, camera_path=[{"camera_to_world": [1, 2], "fov": 50}])
    with pytest.raises(InputError, match=r"camera_path\[0\].camera_to_world not as a 4 x 4"):
        path_from_json(file, scene)
    file = as_nerfstudio(path, scene, tmp_path)
    (tmp_path / DATAPARSER).write_text(json.dumps({"transform": np.zeros((3, 4)).tolist(), "scale": 1.0}))
    with pytest.raises(InputError, match="without a rotation"):
        path_from_json(file, scene)
    (tmp_path / DATAPARSER).unlink()
    with pytest.raises(InputError, match=f"only the {DATAPARSER} of its training knows"):
        path_from_json(file, scene)
