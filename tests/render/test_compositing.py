"""Compositing and distortion against loops, hand-computed values and closed forms."""

import math

import pytest
import torch

from inf_nerf.render.compositing import along_rays, composite, distortion


def composite_loop(sigma, delta, ray, num_rays):
    weights, remaining = [], [1.0] * num_rays
    for s, d, r in zip(sigma.tolist(), delta.tolist(), ray.tolist(), strict=True):
        alpha = 1 - math.exp(-s * d)
        weights.append(remaining[r] * alpha)
        remaining[r] *= 1 - alpha
    return torch.tensor(weights, dtype=torch.float64), torch.tensor(remaining, dtype=torch.float64)


def distortion_loop(weights, middle, width, ray, num_rays):
    result = torch.zeros(num_rays, dtype=torch.float64)
    for i in range(len(ray)):
        for j in range(len(ray)):
            if ray[i] == ray[j]:
                result[ray[i]] += weights[i] * weights[j] * (middle[i] - middle[j]).abs()
        result[ray[i]] += weights[i] ** 2 * width[i] / 3
    return result


def random_rays(num_rays=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 9, (num_rays,), generator=generator)
    counts[0], counts[-1] = 0, 0  # rays without samples at both ends
    ray = torch.repeat_interleave(torch.arange(num_rays), counts)
    sigma = 5 * torch.rand(len(ray), generator=generator, dtype=torch.float64)
    delta = 0.3 * torch.rand(len(ray), generator=generator, dtype=torch.float64)
    return sigma, delta, ray, num_rays


@pytest.mark.parametrize("seed", range(5))
def test_weights_equal_the_loop(seed):
    sigma, delta, ray, num_rays = random_rays(seed=seed)
    weights, remaining = composite(sigma, delta, ray, num_rays)
    expected_weights, expected_remaining = composite_loop(sigma, delta, ray, num_rays)
    torch.testing.assert_close(weights, expected_weights)
    torch.testing.assert_close(remaining, expected_remaining)


def test_hand_computed_weights_and_gradients():
    # one ray, two samples of optical depth ln 2: weights 1/2 and 1/4, 1/4 left
    sigma = torch.full((2,), math.log(2.0), dtype=torch.float64, requires_grad=True)
    weights, remaining = composite(sigma, torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), 1)
    torch.testing.assert_close(weights.tolist(), [0.5, 0.25])
    torch.testing.assert_close(remaining.tolist(), [0.25])
    # d w2 / d sigma = (-T1 a2, T1 (1 - a2)) = (-1/4, 1/4)
    (gradient,) = torch.autograd.grad(weights[1], sigma)
    torch.testing.assert_close(gradient.tolist(), [-0.25, 0.25])


def test_slab_matches_closed_form():
    # density 3 between distances 1 and 2: transmittance exp(-3), expected depth (1 - e^-3 (1 + 3)) / 3 + 1 - e^-3
    n = 20_000
    t = 1 + (torch.arange(n, dtype=torch.float64) + 0.5) / n
    ray = torch.zeros(n, dtype=torch.int64)
    sigma, delta = torch.full_like(t, 3.0), torch.full_like(t, 1 / n)
    weights, remaining = composite(sigma, delta, ray, 1)
    assert remaining.item() == pytest.approx(math.exp(-3), rel=1e-9)
    depth = along_rays(weights, t, ray, 1).item()
    assert depth == pytest.approx((1 - math.exp(-3)) + (1 - 4 * math.exp(-3)) / 3, rel=1e-6)


def test_gradients_are_right_in_float64():
    sigma, delta, ray, num_rays = random_rays(seed=3)
    sigma.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: composite(s, delta, ray, num_rays), (sigma,))


def test_huge_densities_stay_finite():
    sigma = torch.tensor([0.0, 1e8, 1e8, 0.5], requires_grad=True)
    ray = torch.tensor([0, 0, 1, 1])
    weights, remaining = composite(sigma, torch.ones(4), ray, 2)
    weights.sum().backward()
    assert torch.isfinite(weights).all() and torch.isfinite(remaining).all()
    assert sigma.grad is not None and torch.isfinite(sigma.grad).all()
    torch.testing.assert_close(weights, torch.tensor([0.0, 1.0, 1.0, 0.0]))


def test_endless_dense_samples_leave_the_rays_after_them_exact():
    num_rays = 2000
    sigma = torch.tensor([0.3, 0.7, 1e6]).repeat(num_rays).requires_grad_()
    delta = torch.tensor([1.0, 1.0, 1e9]).repeat(num_rays)
    weights, _ = composite(sigma, delta, torch.arange(num_rays).repeat_interleave(3), num_rays)
    weights.square().sum().backward()
    expected, _ = composite_loop(torch.tensor([0.3, 0.7, 60.0]), torch.ones(3), torch.zeros(3, dtype=torch.int64), 1)
    torch.testing.assert_close(weights.view(num_rays, 3).double(), expected.expand(num_rays, 3), atol=1e-6, rtol=0)
    assert sigma.grad is not None
    torch.testing.assert_close(sigma.grad.view(num_rays, 3), sigma.grad[:3].expand(num_rays, 3), atol=1e-6, rtol=0)


def test_nothing_composites_to_nothing():
    none = torch.zeros(0)
    weights, remaining = composite(none, none, torch.zeros(0, dtype=torch.int64), 3)
    assert weights.shape == (0,) and remaining.tolist() == [1.0, 1.0, 1.0]
    assert distortion(none, none, none, torch.zeros(0, dtype=torch.int64), 3).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("seed", range(4))
def test_distortion_equals_the_double_loop(seed):
    weights, width, ray, num_rays = random_rays(seed=seed)
    middle = torch.rand(len(ray), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    middle = torch.cat([middle[ray == r].sort().values for r in range(num_rays)])
    found = distortion(weights, middle, width, ray, num_rays)
    torch.testing.assert_close(found, distortion_loop(weights, middle, width, ray, num_rays))


def test_distortion_gradients_are_right():
    weights, width, ray, num_rays = random_rays(seed=1)
    middle = torch.linspace(0, 1, len(ray), dtype=torch.float64)
    weights.requires_grad_()
    assert torch.autograd.gradcheck(lambda w: distortion(w, middle, width, ray, num_rays), (weights,))
