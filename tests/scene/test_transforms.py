"""transforms.json gives the same scene as the COLMAP model it was made from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inf_nerf.config import SceneConfig
from inf_nerf.errors import InputError
from inf_nerf.scene.ply import read_ply
from inf_nerf.scene.scene import load_scene
from tests.scene.tiny_capture import Truth, make_camera, write_capture

OPENCV_TO_OPENGL = np.diag([1.0, -1.0, -1.0])
VERTEX = "".join(
    f"property {kind}\n" for kind in ("float x", "float y", "double z", "uchar red", "uchar green", "uchar blue")
)


def ply(xyz: np.ndarray, order: str = "binary_little_endian") -> bytes:
    head = f"ply\nformat {order} 1.0\ncomment made by a test\nelement vertex {len(xyz)}\n{VERTEX}end_header\n".encode()
    if order == "ascii":
        return head + "".join(f"{x!r} {y!r} {z!r} 1 2 3\n" for x, y, z in xyz.tolist()).encode()
    mark = "<" if "little" in order else ">"
    layout = [
        ("x", mark + "f4"),
        ("y", mark + "f4"),
        ("z", mark + "f8"),
        ("red", "u1"),
        ("green", "u1"),
        ("blue", "u1"),
    ]
    rows = np.zeros(len(xyz), layout)
    rows["x"], rows["y"], rows["z"] = xyz.T
    rows["red"], rows["green"], rows["blue"] = 1, 2, 3
    return head + rows.tobytes()


def content_of(truth: Truth, shift: np.ndarray) -> dict[str, Any]:
    """The file that describes the capture, its world moved by ``shift``; intrinsics in every frame."""
    frames = []
    for name, pose, camera in zip(truth.names, truth.poses, truth.cameras, strict=True):
        matrix = np.eye(4)
        matrix[:3, :3] = pose[:, :3] @ OPENCV_TO_OPENGL
        matrix[:3, 3] = pose[:, 3] + shift
        frame = {
            "file_path": f"./images/{name}",
            "transform_matrix": matrix.tolist(),
            "w": camera.width,
            "h": camera.height,
        }
        names = [part.strip() for part in camera.params_info.split(",")]
        values = dict(zip(names, camera.params.tolist(), strict=True))
        renamed = {"fx": "fl_x", "fy": "fl_y"}
        frames.append(frame | {renamed.get(key, key): value for key, value in values.items()})
    return {"frames": frames[::-1], "ply_file_path": "cloud.ply"}


def write(root: Path, content: dict[str, Any]) -> None:
    (root / "transforms.json").write_text(json.dumps(content))


@pytest.fixture
def truth(tmp_path: Path) -> Truth:
    truth = write_capture(tmp_path)
    (tmp_path / "cloud.ply").write_bytes(ply(truth.xyz))
    return truth


TRANSFORMS = SceneConfig(format="transforms", min_observations=2)


@pytest.mark.parametrize("model", ["PINHOLE", "OPENCV", "OPENCV_FISHEYE"])
def test_rays_are_those_of_the_colmap_model(tmp_path: Path, model: str) -> None:
    truth = write_capture(tmp_path, [make_camera(model)])
    (tmp_path / "cloud.ply").write_bytes(ply(truth.xyz))
    write(tmp_path, content_of(truth, np.zeros(3)) | {"camera_model": model})
    expected, found = load_scene(tmp_path, SceneConfig()), load_scene(tmp_path, TRANSFORMS)
    assert [photo.name for photo in found.photos] == [f"images/{name}" for name in truth.names]
    for photo in range(len(truth.names)):
        left, right = expected.cameras.image_rays(photo, 0), found.cameras.image_rays(photo, 0)

        # The frames differ a little, since the point cloud has points that too few photos see.
        def world(scene: Any, direction: torch.Tensor) -> np.ndarray:
            return direction.double().numpy() @ scene.frame.rotation

        np.testing.assert_allclose(world(found, right.direction), world(expected, left.direction), atol=1e-5)
        np.testing.assert_allclose(right.radius.numpy(), left.radius.numpy(), rtol=1e-4)
        origin = found.frame.to_world(right.origin[0].double().numpy())
        np.testing.assert_allclose(origin, truth.poses[photo][:, 3], atol=1e-4)


def test_footprint_is_the_least_over_the_photos_that_show_the_point(tmp_path: Path, truth: Truth) -> None:
    write(tmp_path, content_of(truth, np.zeros(3)))
    scene = load_scene(tmp_path, TRANSFORMS)
    camera = truth.cameras[0]
    least = np.full(len(truth.xyz), np.inf)
    for pose in truth.poses:
        in_camera = (truth.xyz - pose[:, 3]) @ pose[:, :3]
        pixel = np.asarray(camera.img_from_cam(in_camera))
        inside = ((pixel >= 0) & (pixel <= [camera.width, camera.height])).all(axis=1)
        distance, depth = np.linalg.norm(in_camera, axis=1), in_camera[:, 2]
        footprint = (
            distance / np.sqrt(camera.focal_length_x * camera.focal_length_y) * (depth / distance).clip(0) ** 1.5
        )
        least[inside] = np.minimum(least, footprint)[inside]
    seen = np.isfinite(least)
    np.testing.assert_allclose(scene.points.footprint.numpy(), least[seen] * scene.frame.scale, rtol=1e-3)
    assert scene.report["dropped_points"] == int((~seen).sum())
    assert len(scene.points.track_photo) == 0


def test_applied_transform_is_undone(tmp_path: Path, truth: Truth) -> None:
    applied = np.array([[0.0, 1.0, 0.0, 5.0], [1.0, 0.0, 0.0, -2.0], [0.0, 0.0, -1.0, 1.0]])
    content = content_of(truth, np.zeros(3))
    for frame in content["frames"]:
        frame["transform_matrix"] = (np.vstack([applied, [0, 0, 0, 1]]) @ np.array(frame["transform_matrix"])).tolist()
    (tmp_path / "cloud.ply").write_bytes(ply(truth.xyz @ applied[:, :3].T + applied[:, 3]))
    write(tmp_path, content | {"applied_transform": applied.tolist()})
    scene = load_scene(tmp_path, TRANSFORMS)
    np.testing.assert_allclose(scene.frame.to_world(scene.cameras.centre.numpy()), truth.poses[:, :, 3], atol=1e-3)
    assert scene.frame.up @ truth.up > 0.99


def test_missing_frames_are_counted_and_left_out(tmp_path: Path, truth: Truth) -> None:
    content = content_of(truth, np.zeros(3))
    content["frames"].append(content["frames"][0] | {"file_path": "images/gone.png"})
    (tmp_path / "images" / truth.names[3]).unlink()
    write(tmp_path, content)
    scene = load_scene(tmp_path, TRANSFORMS)
    assert scene.report["missing_frames"] == 2
    assert len(scene.photos) == len(truth.names) - 1
    assert f"images/{truth.names[3]}" not in [photo.name for photo in scene.photos]


def test_global_field_of_view_serves_frames_without_intrinsics_or_suffix(tmp_path: Path, truth: Truth) -> None:
    frames = [
        {"file_path": f"images/{name.removesuffix('.png')}", "transform_matrix": frame["transform_matrix"]}
        for name, frame in zip(truth.names[::-1], content_of(truth, np.zeros(3))["frames"], strict=True)
    ]
    write(tmp_path, {"camera_angle_x": 1.0, "frames": frames, "ply_file_path": "cloud.ply"})
    cameras = load_scene(tmp_path, TRANSFORMS).cameras
    width, height = cameras.level_size(0, 0)
    focal = width / 2 / np.tan(0.5)
    np.testing.assert_allclose(cameras.intrinsics.numpy(), [[focal, focal, width / 2, height / 2]], rtol=1e-6)


def test_masks_named_in_frames_are_used(tmp_path: Path, truth: Truth) -> None:
    content = content_of(truth, np.zeros(3))
    content["frames"][0]["mask_path"] = "images/" + truth.names[0]
    write(tmp_path, content)
    assert load_scene(tmp_path, TRANSFORMS).report["masks"] == 1
    content["frames"][0]["mask_path"] = "images/gone.png"
    write(tmp_path, content)
    with pytest.raises(InputError, match=r"mask .*gone.png of frame 0"):
        load_scene(tmp_path, TRANSFORMS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"camera_model": "SPHERICAL"}, "camera model 'SPHERICAL'"),
        ({"frames": 3}, "no list 'frames'"),
        ({"applied_transform": [[0] * 4] * 3}, "applied_transform is not an invertible"),
        ({"ply_file_path": "gone.ply"}, r"gone.ply does not exist"),
        ({"frames": []}, "0 usable photos"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, truth: Truth, change: dict[str, Any], message: str) -> None:
    write(tmp_path, content_of(truth, np.zeros(3)) | change)
    with pytest.raises(InputError, match=message):
        load_scene(tmp_path, TRANSFORMS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transform_matrix": [[1, 2], [3, 4]]}, "Frame 2 .* no 4 x 4 transform_matrix"),
        ({"transform_matrix": np.diag([1, 1, 3, 1]).tolist()}, "Frame 2 .* is no rotation"),
        ({"file_path": None}, "Frame 2 .* no file_path"),
        ({"fl_x": "wide"}, "Frame 2 .* not numbers"),
        ({"fl_x": 0.0}, "Frame 2 .* cannot be"),
        ({"k4": 0.1}, "Frame 2 .* k4"),
        ({"w": 7}, "pixels but its camera has 7 x"),
    ],
)
def test_unusable_frames_are_named(tmp_path: Path, truth: Truth, change: dict[str, Any], message: str) -> None:
    content = content_of(truth, np.zeros(3))
    content["frames"][2] |= change
    write(tmp_path, content)
    with pytest.raises(InputError, match=message):
        load_scene(tmp_path, TRANSFORMS)


def test_frames_without_focal_length_points_or_readable_json_are_refused(tmp_path: Path, truth: Truth) -> None:
    content = content_of(truth, np.zeros(3))
    for frame in content["frames"]:
        del frame["fl_x"], frame["fl_y"]
    write(tmp_path, content)
    with pytest.raises(InputError, match="no fl_x and no camera_angle_x"):
        load_scene(tmp_path, TRANSFORMS)
    content = content_of(truth, np.zeros(3))
    del content["ply_file_path"]
    write(tmp_path, content)
    with pytest.raises(InputError, match="comes without points"):
        load_scene(tmp_path, TRANSFORMS)
    (tmp_path / "transforms.json").write_text(json.dumps(content)[:-10])
    with pytest.raises(InputError, match="not readable JSON"):
        load_scene(tmp_path, TRANSFORMS)


def test_third_radial_term_is_kept(tmp_path: Path) -> None:
    camera = make_camera("FULL_OPENCV")
    camera.params = [*camera.params[:8], 0.05, 0, 0, 0]
    truth = write_capture(tmp_path, [camera])
    (tmp_path / "cloud.ply").write_bytes(ply(truth.xyz))
    content = content_of(truth, np.zeros(3))
    for frame in content["frames"]:
        del frame["k4"], frame["k5"], frame["k6"]
    write(tmp_path, content)
    expected, found = load_scene(tmp_path, SceneConfig()), load_scene(tmp_path, TRANSFORMS)
    left, right = expected.cameras.image_rays(2, 0), found.cameras.image_rays(2, 0)
    torch.testing.assert_close(right.radius, left.radius, rtol=1e-4, atol=0)


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_point_clouds_are_read_in_every_format(tmp_path: Path, order: str) -> None:
    xyz = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32).astype(np.float64)
    path = tmp_path / "cloud.ply"
    path.write_bytes(ply(xyz, order))
    found, rgb = read_ply(path)
    np.testing.assert_allclose(found, xyz)
    np.testing.assert_array_equal(rgb, np.tile([1, 2, 3], (50, 1)))
    path.write_bytes(ply(xyz, order)[:-30])
    with pytest.raises(InputError, match="damaged or truncated"):
        read_ply(path)
    path.write_bytes(b"solid")
    with pytest.raises(InputError, match="no PLY header"):
        read_ply(path)
