"""The world frame inverts, up is up, and a flat scene rests on one side of the first cutting plane."""

import numpy as np
import pycolmap
import pytest
from numpy.typing import NDArray

from inf_nerf.errors import InputError
from inf_nerf.scene.frame import WorldFrame, find_frame

Array = NDArray[np.float64]


def turn(seed: int) -> Array:
    quaternion = np.random.default_rng(seed).normal(size=4)
    return np.asarray(pycolmap.Rotation3d(quaternion / np.linalg.norm(quaternion)).matrix())


def ground(seed: int = 0, count: int = 4000) -> Array:
    return np.random.default_rng(seed).uniform([-50, -20, 0], [50, 20, 6], (count, 3))


def looking(centre: Array, target: Array, sky: Array) -> Array:
    """Camera-to-world pose [3, 4] with the upper edge of the photo towards ``sky``."""
    forward = (target - centre) / np.linalg.norm(target - centre)
    right = np.cross(forward, sky)
    right = right / np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward, centre], axis=1)


def drone(nadir: bool, count: int = 20) -> Array:
    rng = np.random.default_rng(5)
    centres = rng.uniform([-40, -15, 30], [40, 15, 60], (count, 3))
    headings = rng.normal(size=(count, 3)) * [1, 1, 0]
    targets = centres - [0, 0, 30] + (0 if nadir else 1) * 25 * headings / np.linalg.norm(headings, axis=1)[:, None]
    skies = headings if nadir else np.tile([0.0, 0.0, 1.0], (count, 1))
    return np.stack([looking(c, t, s) for c, t, s in zip(centres, targets, skies, strict=True)])


def moved(poses: Array, rotation: Array, shift: Array) -> Array:
    return np.concatenate([rotation @ poses[:, :, :3], (poses[:, :, 3] @ rotation.T + shift)[:, :, None]], axis=-1)


@pytest.mark.parametrize("nadir", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_up_is_up_however_the_input_is_turned(seed: int, nadir: bool) -> None:
    rotation, shift = turn(seed), np.array([5e5, 4e6, 120.0])
    xyz = ground() @ rotation.T + shift
    frame = find_frame(xyz, moved(drone(nadir), rotation, shift), 1.0, 0.04, orient=True)
    np.testing.assert_allclose(frame.up @ rotation[:, 2], 1, atol=2e-3)
    np.testing.assert_allclose(abs(frame.rotation[0] @ rotation[:, 0]), 1, atol=2e-3)
    np.testing.assert_allclose(np.linalg.det(frame.rotation), 1)


def test_a_tower_stands_upright_although_it_is_longest_upwards() -> None:
    rng = np.random.default_rng(1)
    xyz = rng.uniform([-1, -2, 0], [1, 2, 12], (3000, 3))
    sky = np.array([0.0, 0.0, 1.0])
    circle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    centres = np.stack([10 * np.cos(circle), 10 * np.sin(circle), np.full(24, 5.0)], axis=1)
    poses = np.stack([looking(c, np.array([0.0, 0.0, 6.0]), sky) for c in centres])
    assert find_frame(xyz, poses, 1.0, 0.04, orient=True).up @ sky > 0.99
    assert find_frame(xyz, poses, 1.0, 0.04, orient=False).rotation == pytest.approx(np.eye(3))


def test_world_frame_inverts_at_map_coordinates() -> None:
    shift = np.array([3_456_789.0, 5_678_901.0, 200.0])
    xyz = ground() @ turn(2).T + shift
    frame = find_frame(xyz, moved(drone(True), turn(2), shift), 1.0, 0.04, orient=True)
    np.testing.assert_allclose(frame.to_world(frame.to_scene(xyz)), xyz, atol=1e-7, rtol=0)
    np.testing.assert_allclose(frame.to_scene(frame.to_world(xyz - shift)), xyz - shift, atol=1e-6, rtol=0)
    np.testing.assert_allclose(frame.rotation @ frame.rotation.T, np.eye(3), atol=1e-12)
    poses = frame.camera_to_scene(moved(drone(True), turn(2), shift))
    np.testing.assert_allclose(
        poses[:, :, :3] @ poses[:, :, :3].transpose(0, 2, 1), np.tile(np.eye(3), (20, 1, 1)), atol=1e-9
    )
    np.testing.assert_allclose(WorldFrame(frame.matrix).scale, frame.scale)


def test_longest_side_of_the_grown_percentile_box_spans_the_cube() -> None:
    xyz = ground(count=20001)
    frame = find_frame(xyz, drone(True), 1.0, 0.04, orient=False)
    low, high = np.percentile(xyz[:, 0], [1, 99])
    np.testing.assert_allclose(2 / frame.scale, 1.08 * (high - low))
    scene = frame.to_scene(xyz)
    np.testing.assert_allclose(np.percentile(scene[:, 0], [1, 99]), [-1 / 1.08, 1 / 1.08])
    np.testing.assert_allclose(np.percentile(scene[:, 1], 1), -np.percentile(scene[:, 1], 99))


def test_stray_points_do_not_shape_the_cube() -> None:
    xyz = ground()
    stray = np.random.default_rng(3).normal(size=(30, 3)) * 1e4
    clean = find_frame(xyz, drone(True), 1.0, 0.04, orient=True)
    dirty = find_frame(np.concatenate([xyz, stray]), drone(True), 1.0, 0.04, orient=True)
    assert dirty.scale == pytest.approx(clean.scale, rel=0.02)
    assert dirty.up @ clean.up > 0.999


def test_flat_scene_lies_on_one_side_of_the_cutting_plane() -> None:
    scene = find_frame(ground(), drone(True), 1.0, 0.04, orient=True).to_scene(ground())
    assert 0 < scene[:, 2].min() < 0.05
    assert scene[:, 2].max() < 1


def test_a_scene_as_high_as_wide_is_centred() -> None:
    xyz = np.random.default_rng(0).uniform([-10, -10, 0], [10, 10, 15], (5000, 3))
    scene = find_frame(xyz, drone(True), 1.0, 0.04, orient=False).to_scene(xyz)
    assert abs(scene[:, 2].min() + scene[:, 2].max()) < 0.02


def test_a_slab_of_half_the_height_fits_into_the_cube() -> None:
    xyz = np.random.default_rng(0).uniform([-10, -10, 0], [10, 10, 9.99], (50000, 3))
    scene = find_frame(xyz, drone(True), 0.0, 0.04, orient=False).to_scene(xyz)
    assert scene[:, 2].min() > 0
    assert scene[:, 2].max() <= 1


@pytest.mark.parametrize("count", [1, 5])
def test_points_at_one_place_make_no_cube(count: int) -> None:
    with pytest.raises(InputError, match="span no volume"):
        find_frame(np.full((count, 3), 7.0), drone(True), 1.0, 0.04, orient=True)
