"""Rays come from the right place in the right direction with the right footprint, at every pyramid level."""

import numpy as np
import pycolmap
import pytest
import torch
from torch import Tensor

from inf_nerf.scene.cameras import Cameras, Rays
from inf_nerf.scene.undistortion import assemble, is_pinhole, make_lookup, one_camera
from tests.scene.tiny_capture import CAMERA_PARAMS, make_camera


def view_of(camera: pycolmap.Camera) -> Cameras:
    return one_camera(camera, None if is_pinhole(camera) else make_lookup(camera))


def random_pixels(camera: pycolmap.Camera, count: int = 2000) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    size = torch.tensor([camera.width, camera.height])
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    return torch.cat([corners, torch.rand(count, 2, generator=generator)]) * size


def zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)


@pytest.mark.parametrize("model", CAMERA_PARAMS)
def test_points_on_rays_project_back_onto_their_pixel(model: str) -> None:
    camera = make_camera(model, 801, 603)
    cameras, xy = view_of(camera), random_pixels(camera)
    rays = cameras.rays_at(zeros(len(xy)), xy)
    assert bool(cameras.has_ray(zeros(len(xy)), xy).all())
    back = camera.img_from_cam(rays.direction.double().numpy() * 7.5)
    assert np.abs(back - xy.numpy()).max() < 0.05
    torch.testing.assert_close(rays.direction.norm(dim=1), torch.ones(len(xy)))


@pytest.mark.parametrize("model", CAMERA_PARAMS)
def test_radius_is_the_root_of_the_area_between_half_pixel_neighbours(model: str) -> None:
    camera = make_camera(model, 801, 603)
    xy = random_pixels(camera, 200)[4:].clamp_min(1).double()

    def direction(x: float, y: float) -> Tensor:
        return torch.from_numpy(np.asarray(camera.cam_ray_from_img((xy + torch.tensor([x, y])).numpy())))

    across, down = direction(0.5, 0) - direction(-0.5, 0), direction(0, 0.5) - direction(0, -0.5)
    area = torch.linalg.cross(across, down).norm(dim=1)
    rays = view_of(camera).rays_at(zeros(len(xy)), xy.float())
    torch.testing.assert_close(rays.radius.double(), area.sqrt(), rtol=3e-3, atol=0)


def test_every_perspective_model_of_pycolmap_is_tested() -> None:
    known = set(pycolmap.CameraModelId.__members__) - {"INVALID", "EQUIRECTANGULAR"}
    assert known == set(CAMERA_PARAMS)


def test_lookup_is_exact_where_the_lens_bends_most() -> None:
    # The largest interpolation error of a bent lens, away from control points, in pixels.
    camera = make_camera("SIMPLE_RADIAL", 4000, 3000)
    cameras, xy = view_of(camera), random_pixels(camera)
    back = camera.img_from_cam(cameras.rays_at(zeros(len(xy)), xy).direction.double().numpy())
    assert np.abs(back - xy.numpy()).max() < 0.05


def test_pixels_beyond_the_lens_have_no_ray_but_finite_numbers() -> None:
    camera = pycolmap.Camera(camera_id=1, model="SIMPLE_FISHEYE", width=160, height=120, params=[40.0, 80.0, 60.0])
    cameras = view_of(camera)
    inside = cameras.pixels_with_ray(0)
    assert inside is not None
    assert inside.shape == (120, 160)
    assert bool(inside[60, 80])
    y, x = torch.meshgrid(torch.arange(120) + 0.5, torch.arange(160) + 0.5, indexing="ij")
    angle = ((x - 80) ** 2 + (y - 60) ** 2).sqrt() / 40
    assert not bool(inside[angle > np.pi / 2].any())
    assert bool(inside[angle < 1.3].all())
    rays = cameras.image_rays(0, 0)
    assert bool(torch.isfinite(rays.direction).all())
    assert bool((rays.radius > 0).all())
    assert view_of(make_camera("OPENCV")).pixels_with_ray(0) is None


def test_fisheye_rays_reach_ninety_degrees_off_axis() -> None:
    camera = pycolmap.Camera(camera_id=1, model="SIMPLE_FISHEYE", width=160, height=80, params=[52.0, 80.0, 40.0])
    rays = view_of(camera).rays_at(zeros(1), torch.tensor([[80 + 52 * 1.5, 40.0]]))
    torch.testing.assert_close(
        rays.direction, torch.tensor([[np.sin(1.5), 0.0, np.cos(1.5)]]).float(), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(("width", "height"), [(101, 67), (64, 48), (7, 1)])
def test_levels_cover_the_photo_with_their_own_scale(width: int, height: int) -> None:
    camera = pycolmap.Camera(camera_id=1, model="PINHOLE", width=width, height=height, params=[50.0, 60.0, 3.0, 2.0])
    cameras = view_of(camera)
    for level in range(5):
        level_width, level_height = cameras.level_size(0, level)
        assert (level_width, level_height) == (max(1, width >> level), max(1, height >> level))
        x, y = level_width - 1, level_height // 2
        rays = cameras.rays(zeros(1), torch.tensor([level]), torch.tensor([[x, y]]))
        level0 = torch.tensor([[(x + 0.5) * width / level_width, (y + 0.5) * height / level_height]])
        expected = cameras.rays_at(zeros(1), level0)
        torch.testing.assert_close(rays.direction, expected.direction)
        growth = np.sqrt(width / level_width * height / level_height)
        torch.testing.assert_close(rays.radius, expected.radius * growth)


@pytest.mark.parametrize("model", ["PINHOLE", "OPENCV", "FISHEYE"])
def test_pixels_of_every_level_share_out_the_same_solid_angle(model: str) -> None:
    cameras = view_of(make_camera(model, 128, 96))
    whole = [float((cameras.image_rays(0, level).radius ** 2).sum()) for level in range(3)]
    np.testing.assert_allclose(whole, whole[0], rtol=2e-3)


def test_image_rays_are_row_major_and_can_be_had_by_rows() -> None:
    cameras = view_of(make_camera("OPENCV"))
    width, height = cameras.level_size(0, 1)
    rays = cameras.image_rays(0, 1)
    assert len(rays) == width * height
    one = cameras.rays(zeros(1), torch.tensor([1]), torch.tensor([[4, 3]]))
    torch.testing.assert_close(rays.direction[3 * width + 4], one.direction[0])
    some = cameras.image_rays(0, 1, slice(2, 5))
    torch.testing.assert_close(some.direction, rays.direction[2 * width : 5 * width])
    assert len(cameras.image_rays(0, 1, slice(0, 0))) == 0


def test_rays_of_different_cameras_in_one_batch_are_those_of_each() -> None:
    listed = [make_camera("OPENCV", 101, 67), make_camera("PINHOLE", 90, 120), make_camera("FISHEYE", 80, 60)]
    lookups = [None if is_pinhole(camera) else make_lookup(camera) for camera in listed]
    poses = np.tile(np.eye(3, 4), (3, 1, 1))
    poses[:, :, 3] = np.arange(9).reshape(3, 3)
    size = np.array([[camera.width, camera.height] for camera in listed])
    cameras = assemble(listed, lookups, size, np.arange(3), poses)
    photo = torch.tensor([2, 0, 1, 0, 2])
    xy = torch.tensor([[10, 50], [3, 4], [80, 100], [99, 60], [70, 3]])
    rays = cameras.rays(photo, zeros(5), xy)
    for ray, (index, pixel) in enumerate(zip(photo.tolist(), xy, strict=True)):
        alone = one_camera(listed[index], lookups[index]).rays(zeros(1), zeros(1), pixel[None])
        torch.testing.assert_close(rays.direction[ray], alone.direction[0])
        torch.testing.assert_close(rays.radius[ray], alone.radius[0])
        torch.testing.assert_close(rays.origin[ray], torch.from_numpy(poses[index, :, 3]).float())
    assert rays.photo.tolist() == photo.tolist()


def test_cameras_survive_their_state() -> None:
    cameras = view_of(make_camera("OPENCV"))
    again = Cameras.from_state(cameras.state())
    torch.testing.assert_close(again.image_rays(0, 0).direction, cameras.image_rays(0, 0).direction)


def test_virtual_views_have_the_asked_field_of_view_and_no_photo() -> None:
    cameras = Cameras.pinhole(torch.eye(3, 4)[None], 640, 480, 90.0)
    edges = cameras.rays_at(zeros(2), torch.tensor([[0.0, 240.0], [640.0, 240.0]]))
    torch.testing.assert_close((edges.direction[0] * edges.direction[1]).sum(), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert edges.photo.tolist() == [-1, -1]


def test_rays_can_be_chosen_joined_and_be_none() -> None:
    rays = Cameras.pinhole(torch.eye(3, 4)[None], 4, 3, 60.0).image_rays(0, 0)
    joined = Rays.cat([rays[:5], rays[torch.arange(12) >= 5]])
    for name in ("origin", "direction", "radius", "photo"):
        torch.testing.assert_close(getattr(joined, name), getattr(rays, name))
    assert len(rays[torch.zeros(12, dtype=torch.bool)]) == 0
    assert len(rays[torch.tensor([3, 3])].to("cpu")) == 2
    assert len(Cameras.pinhole(torch.eye(3, 4)[None], 4, 3, 60.0).rays(zeros(0), zeros(0), torch.zeros(0, 2))) == 0
