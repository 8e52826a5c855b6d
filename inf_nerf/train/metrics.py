"""How close a rendered picture is to a photo.

Pictures are float tensors [h, w, 3] of sRGB-encoded colours in [0, 1]; a mask [h, w] is true where a pixel counts.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:  # so that peers, which score themselves with this module, need nothing more
    from inf_nerf.train.perceptual import Lpips

SMALLEST_MSE = 1e-10  # a perfect picture scores 100 dB instead of infinity, which JSON cannot hold
SSIM_WINDOW = 11  # side in pixels of the Gaussian window with standard deviation 1.5


@dataclass(frozen=True)
class ImageScores:
    """Peak signal-to-noise ratio in dB, structural similarity, and LPIPS where there is a network for it."""

    psnr: float
    ssim: float
    lpips: float | None = None


@dataclass(frozen=True)
class ScoreMaps:
    """What every pixel of a picture adds to its scores; meaningful where the mask was true."""

    squared_error: Tensor  # [h, w] float64, mean over the channels
    ssim: Tensor  # [h, w]
    lpips: Tensor | None  # [h, w]


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of colours in [0, 1], at most 100."""
    return -10.0 * math.log10(max(mse, SMALLEST_MSE))


def image_scores(pred: Tensor, target: Tensor, mask: Tensor | None = None, lpips: "Lpips | None" = None) -> ImageScores:
    """The scores of :func:`compare_images` alone."""
    return compare_images(pred, target, mask, lpips)[0]


def compare_images(
    pred: Tensor, target: Tensor, mask: Tensor | None = None, lpips: "Lpips | None" = None
) -> tuple[ImageScores, ScoreMaps]:
    """Scores of ``pred`` [h, w, 3] against ``target`` [h, w, 3] over the true pixels of ``mask`` [h, w].

    SSIM uses the usual 11 px Gaussian window (sigma 1.5) with reflected borders and averages the SSIM map over the
    counted pixels; pixels that do not count take the photo's mean colour in both pictures first, so that they cannot
    disturb their neighbours.  A picture with a side below 11 px is extended to 11 px by repeating its last row or
    column, in both pictures alike, and only its own pixels are averaged.  LPIPS is the published value for a whole
    picture, and the mean of its map over the counted pixels of a masked one.  Raises ValueError where no pixel counts.
    """
    # here, because it brings scipy along: seconds that every process of a training would wait for at its start
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check(pred, target, mask)
    whole = mask is None or bool(mask.all())
    if mask is None:
        mask = torch.ones(pred.shape[:2], dtype=torch.bool)
    squared_error = (pred - target).double().square().mean(-1)  # [h, w]
    height, width = mask.shape
    neutral = target[mask].mean(dim=0)  # [3]
    pair = torch.where(mask[..., None], torch.stack([pred, target]), neutral)  # [2, h, w, 3]
    channels = pair.permute(0, 3, 1, 2)
    missing = (0, max(0, SSIM_WINDOW - width), 0, max(0, SSIM_WINDOW - height))
    channels = functional.pad(channels, missing, mode="replicate")
    result = structural_similarity_index_measure(channels[:1], channels[1:], data_range=1.0, return_full_image=True)
    similarity = result[1][0, :, :height, :width].mean(dim=0)  # [h, w]
    difference, where = lpips.compare(pair[0], pair[1]) if lpips is not None else (None, None)
    if where is not None and not whole:
        difference = float(where[mask].double().mean())
    scores = ImageScores(psnr(float(squared_error[mask].mean())), float(similarity[mask].double().mean()), difference)
    return scores, ScoreMaps(squared_error, similarity, where)


def colour_corrected(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """``pred`` [h, w, 3] after the affine colour map (3x3 matrix and offset) that fits ``target`` best.

    The map is the least-squares solution over the counted pixels (the smallest one where the colours of ``pred`` do not
    determine it), so it removes differences of exposure and white balance between photos, but no structure.  The
    result is clipped to [0, 1].
    """
    _check(pred, target, mask)
    source = (pred if mask is None else pred[mask]).reshape(-1, 3).double()  # [K, 3]
    wanted = (target if mask is None else target[mask]).reshape(-1, 3).double()
    source_mean, wanted_mean = source.mean(dim=0), wanted.mean(dim=0)
    centred = source - source_mean
    covariance = centred.T @ centred / len(source)  # [3, 3]
    cross = centred.T @ (wanted - wanted_mean) / len(source)
    # Below 1e-8 the spread of a colour direction (0.03 of an 8-bit step) is rounding, not signal.
    matrix = torch.linalg.pinv(covariance, atol=1e-8, hermitian=True) @ cross
    corrected = (pred.double() - source_mean) @ matrix + wanted_mean
    return corrected.clamp(0.0, 1.0).to(pred.dtype)


def _check(pred: Tensor, target: Tensor, mask: Tensor | None) -> None:
    if pred.shape != target.shape or pred.ndim != 3 or pred.shape[-1] != 3:
        raise ValueError(f"expected two pictures [h, w, 3], got {tuple(pred.shape)} and {tuple(target.shape)}")
    if mask is not None and mask.shape != pred.shape[:2]:
        raise ValueError(f"the mask {tuple(mask.shape)} does not fit the picture {tuple(pred.shape)}")
    if pred.numel() == 0 or (mask is not None and not bool(mask.any())):
        raise ValueError("no pixel of the picture counts")
