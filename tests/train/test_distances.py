"""Distances of pixels and points are those of the geometry."""

import math
from dataclasses import replace

import pytest
import torch

from inf_nerf.render.images import RenderedImage
from inf_nerf.train.distances import BandSums, DepthErrors, PointsOfPhotos, band_sums
from inf_nerf.train.metrics import ScoreMaps, psnr
from tests.plane_scene import plane_scene


def seen(depth: torch.Tensor, opacity: torch.Tensor) -> RenderedImage:
    shape = depth.shape
    nothing = torch.zeros(1)
    return RenderedImage(torch.zeros(*shape, 3), depth, opacity, torch.zeros(shape), nothing > 0, nothing, 0)


def test_bands_are_octaves_and_leave_out_what_is_no_surface() -> None:
    depth = torch.tensor([[0.75, 1.0, 1.9], [2.0, 5.0, 3.0]])
    opacity = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.5]])
    counted = torch.tensor([[True, True, True], [True, False, True]])
    squared = torch.tensor([[0.01, 0.02, 0.04], [0.1, 9.0, 9.0]], dtype=torch.float64)
    maps = ScoreMaps(squared, torch.full((2, 3), 0.5), None)
    once = band_sums(seen(depth, opacity), maps, squared / 10, counted)
    rows = (once + once + BandSums()).figures()
    assert [(row["from"], row["to"]) for row in rows] == [(0.5, 1.0), (1.0, 2.0), (2.0, 4.0)]
    assert [row["share"] for row in rows] == [0.25, 0.5, 0.25]
    assert [row["psnr"] for row in rows] == [pytest.approx(psnr(error)) for error in (0.01, 0.03, 0.1)]
    assert rows[1]["psnr_corrected"] == pytest.approx(psnr(0.003))
    assert rows[0]["ssim"] == pytest.approx(0.5)
    assert rows[0]["lpips"] is None
    with_lpips = band_sums(seen(depth, opacity), replace(maps, lpips=torch.full((2, 3), 0.2)), squared, counted)
    assert with_lpips.figures()[0]["lpips"] == pytest.approx(0.2)
    assert BandSums().figures() == []


def test_depth_is_compared_at_the_points_of_test_photos() -> None:
    scene = plane_scene(width=40, height=30)
    photo = scene.test[0]
    rays = scene.cameras.image_rays(photo, 0)
    xy = torch.tensor([[10.5, 5.5], [20.5, 15.5], [30.5, 25.5]])
    pixel = (xy[:, 1].floor() * 40 + xy[:, 0].floor()).long()
    distance = torch.tensor([0.5, 0.6, 0.7])
    xyz = rays.origin[pixel] + rays.direction[pixel] * distance[:, None]
    assert bool((xyz.abs() <= 1).all())
    count = len(xyz)
    points = replace(
        scene.points,
        xyz=xyz,
        footprint=torch.full((count,), 0.01),
        rgb=torch.zeros(count, 3, dtype=torch.uint8),
        error=torch.zeros(count),
        track_start=torch.tensor([0, 2, 3, 4]),
        track_photo=torch.tensor([photo, scene.train[0], photo, photo]),
        track_xy=torch.stack((xy[0], xy[0], xy[1], xy[2])),
    )
    depth = torch.full((30, 40), 0.6)
    errors = PointsOfPhotos(replace(scene, points=points)).errors(photo, seen(depth, torch.ones(30, 40)))
    torch.testing.assert_close(errors.relative, (0.6 - distance).abs() / distance, atol=1e-5, rtol=1e-4)
    expected = (0.6 - distance).abs() / (distance * rays.radius[pixel])
    torch.testing.assert_close(errors.in_pixels, expected, atol=1e-2, rtol=1e-3)
    found = (errors + DepthErrors()).figures()
    assert found["observations"] == 3 and found["opaque"] == 1
    assert found["median"] == pytest.approx(1 / 7, abs=1e-4)
    assert found["unseen"]["observations"] == 2
    others = PointsOfPhotos(replace(scene, points=points)).errors(scene.test[1], seen(depth, torch.ones(30, 40)))
    assert others.figures() == {"observations": 0}
    assert not math.isnan(found["p90"])
