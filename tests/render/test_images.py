"""Whole pictures are the rays of a level in order, whatever the chunks."""

import pytest
import torch

from inf_nerf.render.images import SMALLEST_CHUNK, Crop, chunk_rays, render_image
from tests.plane_scene import PlaneModel, plane_photo, plane_scene


def test_picture_equals_closed_form_with_odd_chunks() -> None:
    scene = plane_scene()
    rendered = render_image(PlaneModel(6), scene.cameras, 4, 0, rays_per_chunk=77)
    assert rendered.rgb.shape == (30, 40, 3)
    torch.testing.assert_close(rendered.rgb, plane_photo(scene, 4), atol=2e-5, rtol=0)


def test_chunks_do_not_change_the_picture() -> None:
    scene = plane_scene()
    parts = render_image(PlaneModel(6), scene.cameras, 1, 1, rays_per_chunk=7)
    whole = render_image(PlaneModel(6), scene.cameras, 1, 1, rays_per_chunk=10_000)
    threads = render_image(PlaneModel(6), scene.cameras, 1, 1, rays_per_chunk=7, workers=3)
    for name in ("rgb", "depth", "level", "opacity", "touched", "share"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))
        assert torch.equal(getattr(parts, name), getattr(threads, name))
    assert parts.num_samples == whole.num_samples == 20 * 15


def test_crop_is_the_cut_out_of_the_whole() -> None:
    scene = plane_scene(width=41, height=31)
    whole = render_image(PlaneModel(6), scene.cameras, 2, 1, rays_per_chunk=64)
    crop = render_image(PlaneModel(6), scene.cameras, 2, 1, rays_per_chunk=64, crop=Crop(3, 2, 11, 9))
    assert torch.equal(crop.rgb, whole.rgb[2:9, 3:11])
    assert torch.equal(crop.depth, whole.depth[2:9, 3:11])


def test_pixels_outside_the_level_are_refused() -> None:
    with pytest.raises(ValueError, match="does not lie"):
        render_image(PlaneModel(6), plane_scene().cameras, 0, 1, rays_per_chunk=64, crop=Crop(0, 0, 21, 15))
    with pytest.raises(ValueError, match="at least one pixel"):
        Crop(3, 0, 3, 4)


def test_every_ray_is_reported_and_its_node_counted() -> None:
    scene, model, heard = plane_scene(), PlaneModel(6), []
    rendered = render_image(model, scene.cameras, 3, 0, rays_per_chunk=500, on_rays=heard.append)
    assert heard == [500, 500, 200]
    assert model.calls == heard
    assert not any(model.grad_enabled)
    assert float(rendered.share.sum()) == 1200
    east = rendered.level == 1
    assert float(rendered.share[1]) == float(east.sum()) > 0


def test_given_appearance_replaces_the_mean() -> None:
    scene = plane_scene()
    look = torch.tensor([0.1, -0.1, 0.05])
    rendered = render_image(PlaneModel(6), scene.cameras, 0, 0, rays_per_chunk=4096, appearance=look)
    torch.testing.assert_close(rendered.rgb, plane_photo(scene, 0, look).clamp(0, 1), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("samples", "per_ray", "expected"), [(1024, 512, SMALLEST_CHUNK), (2**20, 128, 8192)])
def test_chunk_holds_its_samples_but_never_too_few_rays(samples: int, per_ray: int, expected: int) -> None:
    assert chunk_rays(samples, per_ray) == expected
