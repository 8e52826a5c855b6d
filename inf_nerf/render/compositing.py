"""Volume rendering of flat samples.

Letters: Q samples of all rays in one list, ordered by ray and, inside a ray, by distance; R rays.  ``ray`` [Q] says
which ray a sample belongs to, so rays may have any number of samples, none included.  Sums along rays run in float64
because one running sum spans the whole batch.
"""

import math

import torch
from torch import Tensor

DARK = math.log(1000)  # optical depth behind which nothing is looked at
OPAQUE_DEPTH = 60.0  # optical depth of one sample beyond which nothing changes: exp(-60) is 1e-26


def composite(
    sigma: Tensor,  # [Q] density per scene unit
    delta: Tensor,  # [Q] step length in scene units
    ray: Tensor,  # [Q] int64, ascending
    num_rays: int,
) -> tuple[Tensor, Tensor]:
    """Weights [Q] of the samples and the transmittance [R] left behind the last one.

    alpha = 1 - exp(-sigma * delta), weight = alpha * prod over earlier samples of (1 - alpha)  (Max 1995, NeRF eq. 3).
    """
    tau, before = optical_depths(sigma, delta, ray, num_rays)
    weights = torch.exp(-before) * -torch.expm1(-tau)
    total = tau.new_zeros(num_rays).index_add(0, ray, tau)
    return weights.to(sigma.dtype), torch.exp(-total).to(sigma.dtype)


def reached(sigma: Tensor, delta: Tensor, ray: Tensor, num_rays: int) -> tuple[Tensor, Tensor]:
    """Which samples light reaches, and in which of these it ends, both [Q] bool; arguments as of :func:`composite`."""
    tau, before = optical_depths(sigma, delta, ray, num_rays)
    lit = before < DARK
    return lit, lit & (before + tau >= DARK)


def along_rays(
    weights: Tensor,  # [Q]
    values: Tensor,  # [Q] or [Q, C]
    ray: Tensor,  # [Q]
    num_rays: int,
) -> Tensor:
    """Weighted sums of sample values per ray, [R] or [R, C]."""
    if values.ndim == 1:
        return weights.new_zeros(num_rays).index_add(0, ray, weights * values)
    return weights.new_zeros(num_rays, values.shape[1]).index_add(0, ray, weights[:, None] * values)


def distortion(
    weights: Tensor,  # [Q]
    middle: Tensor,  # [Q] sample middles, in [0, 1] along the ray
    width: Tensor,  # [Q] sample widths on the same scale
    ray: Tensor,  # [Q]
    num_rays: int,
) -> Tensor:
    """Distortion [R] of each ray's weights (mip-NeRF 360, eq. 15), in O(Q) by running sums.

    sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 width_i, where the double sum over ordered middles is
    2 sum_i w_i (m_i * sum_{j<i} w_j - sum_{j<i} w_j m_j).
    """
    w, m = weights.double(), middle.double()
    pairs = 2 * w * (m * sum_before(w, ray, num_rays) - sum_before(w * m, ray, num_rays))
    own = w.square() * width.double() / 3
    return w.new_zeros(num_rays).index_add(0, ray, pairs + own).to(weights.dtype)


def optical_depths(sigma: Tensor, delta: Tensor, ray: Tensor, num_rays: int) -> tuple[Tensor, Tensor]:
    """Optical depth of each sample and of all before it on its ray, both [Q] float64.

    Depths are capped, since one endless sample would use up the digits of the sum that runs over all rays.
    """
    tau = (sigma * delta).double().clamp_max(OPAQUE_DEPTH)
    return tau, sum_before(tau, ray, num_rays)


def sum_before(values: Tensor, ray: Tensor, num_rays: int) -> Tensor:
    """Sum over the earlier samples of the same ray, [Q] float64."""
    if values.numel() == 0:
        return values
    exclusive = torch.cumsum(values, 0) - values
    counts = torch.bincount(ray, minlength=num_rays)
    first = torch.cumsum(counts, 0) - counts
    return exclusive - exclusive[first.clamp_max(values.numel() - 1)][ray]
