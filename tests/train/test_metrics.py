"""Scores agree with their definitions, also at the edges."""

import pytest
import torch

from inf_nerf.train.metrics import colour_corrected, image_scores, psnr


def picture(height: int = 24, width: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_known_errors() -> None:
    assert psnr(0.01) == pytest.approx(20.0)
    assert psnr(0.0) == pytest.approx(100.0)
    target = picture() * 0.5
    assert image_scores(target + 0.1, target).psnr == pytest.approx(20.0, abs=1e-3)


def test_equal_pictures_score_best() -> None:
    scores = image_scores(picture(), picture())
    assert scores.psnr == pytest.approx(100.0)
    assert scores.ssim == pytest.approx(1.0)


def test_ssim_prefers_structure_over_its_absence() -> None:
    target = picture()
    flat = target.mean(dim=(0, 1), keepdim=True).expand_as(target)
    noisy = (target + 0.05 * (picture(seed=1) - 0.5)).clamp(0, 1)
    assert image_scores(flat, target).ssim < 0.2 < 0.9 < image_scores(noisy, target).ssim


def test_masked_pixels_do_not_count() -> None:
    target = picture()
    pred = target.clone()
    pred[:, 20:] = 0.0
    mask = torch.ones(24, 32, dtype=torch.bool)
    mask[:, 20:] = False
    assert image_scores(pred, target).psnr < 20
    scores = image_scores(pred, target, mask)
    assert scores.psnr == pytest.approx(100.0)
    assert scores.ssim == pytest.approx(1.0)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 40), (5, 4), (10, 11)])
def test_pictures_smaller_than_the_window_have_scores(height: int, width: int) -> None:
    target = picture(height, width)
    # Constant windows leave only rounding errors to compare.
    assert image_scores(target, target).ssim == pytest.approx(1.0, abs=1e-3)
    worse = image_scores(1 - target, target)
    assert -1 <= worse.ssim < 0.9


def test_no_pixel_and_unequal_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="no pixel"):
        image_scores(picture(), picture(), torch.zeros(24, 32, dtype=torch.bool))
    with pytest.raises(ValueError, match="two pictures"):
        image_scores(picture(), picture(25))
    with pytest.raises(ValueError, match="does not fit"):
        image_scores(picture(), picture(), torch.ones(3, 3, dtype=torch.bool))


def test_colour_correction_undoes_an_affine_change() -> None:
    target = 0.2 + 0.5 * picture()
    matrix = torch.tensor([[0.8, 0.1, 0.0], [0.0, 0.9, 0.05], [0.1, 0.0, 0.7]])
    pred = target @ matrix + torch.tensor([0.02, -0.01, 0.03])
    torch.testing.assert_close(colour_corrected(pred, target), target, atol=1e-4, rtol=0)


def test_colour_correction_never_worsens_the_fit_and_ignores_masked_pixels() -> None:
    target, pred = picture(), picture(seed=5)
    before = float((pred - target).square().mean())
    assert float((colour_corrected(pred, target) - target).square().mean()) <= before
    mask = torch.zeros(24, 32, dtype=torch.bool)
    mask[:, :16] = True
    disturbed = target.clone()
    disturbed[:, 16:] = 0.0
    assert torch.equal(colour_corrected(pred, target, mask), colour_corrected(pred, disturbed, mask))


def test_colour_correction_of_one_colour_is_the_mean_of_the_photo() -> None:
    target = picture()
    corrected = colour_corrected(torch.full_like(target, 0.3), target)
    torch.testing.assert_close(corrected, target.mean(dim=(0, 1)).expand_as(target), atol=1e-5, rtol=0)
