"""Both heads in one compiled pass, against the chain of torch operations."""

from typing import Any

import pytest
import torch
from torch import Tensor

from inf_nerf.config import FieldConfig
from inf_nerf.field import numba_heads
from inf_nerf.field.field import Field

SIZES: list[dict[str, Any]] = [
    {},
    {"hidden_density": 20, "hidden_color": 11, "geo_features": 6, "appearance_dim": 3},
    {"appearance_dim": 0, "hidden_color": 32},
]


def pair(backends: tuple[str, str] = ("numba", "torch"), **settings: Any) -> tuple[Field, Field]:
    """The same field of five nodes twice."""
    fields = []
    for backend in backends:
        config = FieldConfig.model_validate(
            {"num_levels": 4, "log2_table_size": 9, "max_res": 64, "appearance_dim": 5, **settings, "backend": backend}
        )
        field = Field(config, torch.arange(1, 6), seed=3)
        field.tables.data.mul_(10_000)
        fields.append(field)
    return fields[0], fields[1]


def inputs(counts: list[int], appearance: int, num_rays: int = 30) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    total = sum(counts)
    return {
        "xyz": torch.rand(total, 3, generator=generator),
        "node": torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        "direction": torch.nn.functional.normalize(torch.randn(num_rays, 3, generator=generator), dim=1),
        "appearance": torch.randn(num_rays, appearance, generator=generator).requires_grad_(),
        "ray": torch.randint(num_rays, (total,), generator=generator),
    }


def run(field: Field, given: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Density, colour, and the gradients of something that depends on every number of them."""
    given = given | {"appearance": given["appearance"].detach().clone().requires_grad_()}
    sigma, rgb = field.radiance(**given)
    generator = torch.Generator().manual_seed(2)
    factors = torch.randn(len(sigma), 4, generator=generator)
    ((torch.log1p(sigma) * factors[:, 0]).sum() + (rgb * factors[:, 1:]).sum()).backward()
    leaves = [field.tables, field.density_weights, field.colour_weights, given["appearance"]]
    return sigma.detach(), rgb.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("settings", SIZES)
@pytest.mark.parametrize("counts", [[300, 0, 1, 700, 130], [0, 0, 1200, 0, 0], [5, 4, 3, 2, 1]])
def test_values_and_gradients_equal_the_chain(
    counts: list[int], settings: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba_heads, "RANGE", 290)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fused, chain = pair(**settings)
        given = inputs(counts, fused.config.appearance_dim)
        sigma, rgb, gradients = run(fused, given)
        expected_sigma, expected_rgb, expected = run(chain, given)
        torch.testing.assert_close(sigma, expected_sigma, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rgb, expected_rgb, rtol=1e-4, atol=1e-5)
        assert len(gradients) == len(expected) >= 3
        for found, wanted in zip(gradients, expected, strict=True):
            assert float((found - wanted).norm()) <= 1e-4 * float(wanted.norm())
        assert fused.touched.tolist() == [count > 0 for count in counts]
    finally:
        torch.set_num_threads(before)


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_heads, "RANGE", 70)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            field, _ = pair()
            sigma, rgb, gradients = run(field, inputs([300, 0, 1, 700, 130], 5))
            found.append([sigma, rgb, *gradients])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_gradients_accumulate_and_repeat_to_the_bit() -> None:
    field, _ = pair()
    given = inputs([200, 100, 0, 50, 9], 5)
    _, _, first = run(field, given)
    once = [gradient.clone() for gradient in first]
    field.clear_gradients()
    _, _, again = run(field, given)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    _, _, twice = run(field, given)
    for index in range(3):
        torch.testing.assert_close(twice[index], 2 * once[index], rtol=1e-5, atol=1e-6)


def test_a_frozen_field_passes_gradients_on_and_collects_none() -> None:
    field, chain = pair()
    given = inputs([200, 100, 0, 50, 9], 5)
    found = []
    for each in (field, chain):
        each.requires_grad_(False)
        looks = given["appearance"].detach().clone().requires_grad_()
        sigma, rgb = each.radiance(**(given | {"appearance": looks}))
        (rgb.square().sum() + sigma.sum()).backward()
        found.append(looks.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert float(found[0].norm()) > 0
    assert field.colour_weights.grad is not None
    assert not field.colour_weights.grad.any() and not field.touched.any()


@pytest.mark.parametrize(("name", "wrong"), [("ray", 30), ("ray", -1), ("node", 5), ("node", -1)])
def test_a_ray_or_node_that_does_not_exist_is_refused(name: str, wrong: int) -> None:
    field, _ = pair()
    given = inputs([2, 1, 0, 1, 0], 5)
    index = given.pop(name).clone()
    index[0 if wrong < 0 else -1] = wrong
    features, given_rays = (
        torch.zeros(4, field.spec.num_features),
        field.colour_given(*(given[k] for k in ("direction", "appearance"))),
    )
    order = {"node": index, "ray": given["ray"]} if name == "node" else {"node": given["node"], "ray": index}
    weights = (field.density_weights, field.colour_weights, field.density_sizes, field.colour_sizes)
    with pytest.raises(IndexError, match=f"name a {name}"):
        numba_heads.radiance(features, given_rays, order["node"], order["ray"], *weights, 0.0, 5)


def test_no_samples() -> None:
    field, _ = pair()
    sigma, rgb, gradients = run(field, inputs([0, 0, 0, 0, 0], 5))
    assert sigma.shape == (0,) and rgb.shape == (0, 3)
    assert not any(gradient.any() for gradient in gradients)


def test_lower_precision_takes_the_chain() -> None:
    field, chain = pair()
    field.compute_heads_in(torch.bfloat16)
    given = inputs([200, 100, 0, 50, 9], 5)
    _, rgb, _ = run(field, given)
    _, exact, _ = run(chain, given)
    difference = float((rgb - exact).abs().max())
    assert 1e-5 < difference < 0.05
