"""Packed perceptrons against ordinary autograd; spherical harmonics and the density's activation in closed form."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from inf_nerf.field import heads
from inf_nerf.field.heads import (
    LEAK,
    layers_of,
    num_weights,
    packed_mlp,
    packed_mlp_reference,
    segment_bounds,
    spherical_harmonics,
    trunc_exp,
)

SIZES = [(4, 3), (5, 8, 3), (6, 8, 8, 4)]
BOUNDS = torch.tensor([0, 7, 7, 8, 20])  # node 1 has no sample, node 2 has one


def make_inputs(sizes: tuple[int, ...], count: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(len(BOUNDS) - 1, num_weights(sizes), dtype=torch.float64, generator=generator)
    x = torch.randn(count, sizes[0], dtype=torch.float64, generator=generator)
    return weights.requires_grad_(), x.requires_grad_()


def test_reference_is_one_small_network_per_node() -> None:
    sizes = (5, 8, 3)
    weights, x = make_inputs(sizes)
    first, second = weights[3, :40].view(5, 8), weights[3, 40:].view(8, 3)

    output = packed_mlp_reference(weights, x, BOUNDS, sizes)

    torch.testing.assert_close(output[8:], F.leaky_relu(x[8:] @ first, LEAK) @ second)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("chunk", [8192, 3])
def test_packed_equals_the_reference_with_gradients(
    sizes: tuple[int, ...], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "CHUNK", chunk)
    weights, x = make_inputs(sizes)
    twin_weights, twin_x = (tensor.detach().clone().requires_grad_() for tensor in (weights, x))

    expected = packed_mlp_reference(twin_weights, twin_x, BOUNDS, sizes)
    expected.square().sum().backward()
    found = packed_mlp(weights, x, BOUNDS, sizes)
    found.square().sum().backward()

    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(x.grad, twin_x.grad)
    torch.testing.assert_close(weights.grad, twin_weights.grad)
    assert weights.grad is not None and not weights.grad[1].any()


@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_are_those_of_finite_differences(sizes: tuple[int, ...]) -> None:
    weights, x = make_inputs(sizes)

    assert torch.autograd.gradcheck(lambda w, v: packed_mlp_reference(w, v, BOUNDS, sizes), (weights, x))
    assert torch.autograd.gradcheck(lambda v: packed_mlp(weights.detach(), v, BOUNDS, sizes), (x,))


def test_gradient_of_the_weights_accumulates_in_the_same_buffer() -> None:
    weights, x = make_inputs((5, 8, 3))
    weights.grad = torch.zeros_like(weights)
    buffer = weights.grad.data_ptr()

    packed_mlp(weights, x, BOUNDS, (5, 8, 3)).sum().backward()
    once = weights.grad.clone()
    packed_mlp(weights, x, BOUNDS, (5, 8, 3)).sum().backward()

    assert weights.grad.data_ptr() == buffer
    torch.testing.assert_close(weights.grad, 2 * once)


def test_frozen_weights_pass_gradients_on_and_collect_none() -> None:
    weights, x = make_inputs((5, 8, 3))
    weights.requires_grad_(False)

    packed_mlp(weights, x, BOUNDS, (5, 8, 3)).sum().backward()

    assert weights.grad is None
    assert x.grad is not None and x.grad.any()


def test_without_gradients_the_values_are_the_same_and_nothing_is_kept() -> None:
    weights, x = make_inputs((6, 8, 8, 4))
    expected = packed_mlp(weights, x, BOUNDS, (6, 8, 8, 4))

    with torch.no_grad():
        found = packed_mlp(weights, x, BOUNDS, (6, 8, 8, 4))

    assert torch.equal(found, expected) and found.grad_fn is None


@pytest.mark.parametrize("mlp", [packed_mlp, packed_mlp_reference])
def test_no_samples_give_no_output(mlp) -> None:
    weights, x = make_inputs((5, 8, 3), count=0)

    output = mlp(weights, x, torch.zeros(5, dtype=torch.int64), (5, 8, 3))
    output.sum().backward()

    assert output.shape == (0, 3)


def test_layers_cover_the_weights_without_copying() -> None:
    weights = torch.zeros(2, num_weights((3, 4, 2)))

    for number, layer in enumerate(layers_of(weights, (3, 4, 2))):
        layer.fill_(number + 1)

    assert weights.tolist() == [[1.0] * 12 + [2.0] * 8] * 2


def test_bounds_count_the_samples_of_each_node() -> None:
    assert segment_bounds(torch.tensor([1, 1, 1, 3]), 5).tolist() == [0, 0, 3, 3, 4, 4]
    assert segment_bounds(torch.zeros(0, dtype=torch.int64), 2).tolist() == [0, 0, 0]


def test_spherical_harmonics_are_orthonormal() -> None:
    # Gauss-Legendre in z and equal steps in longitude integrate products of degree 3 + 3 exactly.
    z, weight = np.polynomial.legendre.leggauss(8)
    longitude = np.arange(16) * (2 * math.pi / 16)
    radius = np.sqrt(1 - z**2)
    direction = np.stack(
        [np.outer(radius, np.cos(longitude)), np.outer(radius, np.sin(longitude)), np.outer(z, np.ones(16))], axis=-1
    ).reshape(-1, 3)
    area = torch.from_numpy(np.repeat(weight, 16) * (2 * math.pi / 16))

    values = spherical_harmonics(torch.from_numpy(direction))  # [128, 16]

    torch.testing.assert_close(values.T @ (area[:, None] * values), torch.eye(16, dtype=torch.float64))


def test_spherical_harmonics_have_tinycudanns_order_and_signs() -> None:
    up, right, front = spherical_harmonics(torch.eye(3, dtype=torch.float64)[[2, 0, 1]])

    assert {index: round(float(up[index]), 4) for index in up.nonzero().flatten().tolist()} == {
        0: 0.2821, 2: 0.4886, 6: 0.6308, 12: 0.7464
    }  # fmt: skip
    assert {index: round(float(right[index]), 4) for index in right.nonzero().flatten().tolist()} == {
        0: 0.2821, 3: -0.4886, 6: -0.3154, 8: 0.5463, 13: 0.4570, 15: -0.5900
    }  # fmt: skip
    assert {index: round(float(front[index]), 4) for index in front.nonzero().flatten().tolist()} == {
        0: 0.2821, 1: -0.4886, 6: -0.3154, 8: -0.5463, 9: 0.5900, 11: 0.4570
    }  # fmt: skip


def test_density_activation_is_the_exponential_with_a_bounded_gradient() -> None:
    x = torch.tensor([-20.0, 0.0, 2.0, 20.0], requires_grad=True)

    value = trunc_exp(x)
    value.sum().backward()

    torch.testing.assert_close(value, torch.exp(x))
    torch.testing.assert_close(x.grad, torch.exp(torch.tensor([-15.0, 0.0, 2.0, 15.0])))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_coarser_products_are_those_of_autograd_and_their_sums_stay_float32(precision: torch.dtype) -> None:
    sizes = (6, 16, 16, 4)
    weights, x = (tensor.detach().float().requires_grad_() for tensor in make_inputs(sizes))
    twin_weights, twin_x = (tensor.detach().clone().requires_grad_() for tensor in (weights, x))
    upstream = torch.randn(20, 4, generator=torch.Generator().manual_seed(3))

    expected = packed_mlp_reference(twin_weights.to(precision), twin_x.to(precision), BOUNDS, sizes).float()
    expected.backward(upstream)
    found = packed_mlp(weights, x, BOUNDS, sizes, precision)
    found.backward(upstream)

    assert not torch.equal(found, packed_mlp(weights, x, BOUNDS, sizes))
    for ours, theirs in ((found, expected), (x.grad, twin_x.grad), (weights.grad, twin_weights.grad)):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-2)  # equal dtypes as well


def test_gradient_that_overflows_on_its_way_down_is_seen_in_the_weights() -> None:
    sizes = (4, 8, 3)
    weights = torch.full((1, num_weights(sizes)), 100.0).requires_grad_()
    x = torch.full((2, 4), 1e-4).requires_grad_()  # so small that the gradient of the weights itself stays finite
    bounds = torch.tensor([0, 2])

    for scale, finite in ((1e-3, True), (1.0, False)):
        weights.grad = None
        packed_mlp(weights, x, bounds, sizes, torch.float16).backward(torch.full((2, 3), scale))
        assert weights.grad is not None
        assert bool(weights.grad.isfinite().all()) == finite


@pytest.mark.parametrize("apply", [packed_mlp, packed_mlp_reference])
def test_units_that_are_off_still_learn(apply: Callable[..., Tensor]) -> None:
    sizes = (2, 3, 1)
    weights = torch.full((1, num_weights(sizes)), -1.0, requires_grad=True)
    x = torch.ones(4, 2)
    output = apply(weights, x, torch.tensor([0, 4]), sizes)
    torch.testing.assert_close(output, torch.full((4, 1), 3 * 2 * LEAK))
    output.sum().backward()
    assert weights.grad is not None
    torch.testing.assert_close(weights.grad[0, :6], torch.full((6,), -4 * LEAK))
