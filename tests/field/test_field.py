"""The packed field: who gets values and gradients, and that nodes are independent."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from inf_nerf.config import FieldConfig
from inf_nerf.errors import InputError
from inf_nerf.field.field import Field, node_parameters

KEYS = torch.tensor([1, 8, 11, 0])  # root, two children, background
BACKENDS = ["torch", "numba"]


def make_field(backend: str = "numba", keys: Tensor = KEYS, seed: int = 0, geo_features: int = 5) -> Field:
    config = FieldConfig(
        backend=backend,  # pyright: ignore[reportArgumentType]
        num_levels=4,
        log2_table_size=8,
        base_res=4,
        max_res=32,
        hidden_density=8,
        hidden_color=8,
        geo_features=geo_features,
        appearance_dim=3,
    )
    return Field(config, keys, seed)


def make_samples(node: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    xyz = torch.rand(len(node), 3, generator=generator)
    direction = normalize(torch.randn(len(node), 3, generator=generator), dim=-1)
    return xyz, direction, torch.randn(len(node), 3, generator=generator)


NODE = torch.tensor([0] * 6 + [2] * 5 + [3] * 4)  # node 1 is not asked


def evaluate(field: Field, node: Tensor = NODE) -> tuple[Tensor, Tensor, Tensor]:
    xyz, direction, appearance = make_samples(node)
    appearance.requires_grad_()
    sigma, geo = field.density(xyz, node)
    return sigma, field.colour(geo, direction, appearance, node, torch.arange(len(node))), appearance


@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_and_ranges(backend: str) -> None:
    sigma, colour, _ = evaluate(make_field(backend))

    assert sigma.shape == (15,) and (sigma > 0).all()
    assert colour.shape == (15, 3) and ((colour > 0) & (colour < 1)).all()


@pytest.mark.parametrize("config", [FieldConfig(log2_table_size=10), FieldConfig(
    num_levels=3, log2_table_size=9, max_res=64, features_per_level=4, hidden_density=24, appearance_dim=0
)])  # fmt: skip
def test_parameters_of_a_node_are_known_without_making_one(config: FieldConfig) -> None:
    assert node_parameters(config) * len(KEYS) == Field(config, KEYS, 0).num_parameters


def test_backends_agree_on_values_and_gradients() -> None:
    fields = [make_field(backend) for backend in BACKENDS]
    results = []
    for field in fields:
        with torch.no_grad():
            field.tables.mul_(1e4)  # initial tables are so small that a wrong one would hardly show
        sigma, colour, appearance = evaluate(field)
        (sigma.sum() + colour.square().sum()).backward()
        leaves = (field.tables.grad, field.density_weights.grad, field.colour_weights.grad)
        results.append((sigma, colour, appearance.grad, *leaves))

    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_colour_reaches_the_table_and_the_appearance(backend: str) -> None:
    field = make_field(backend)
    _, colour, appearance = evaluate(field)

    colour.sum().backward()

    for leaf in (field.tables, field.density_weights, field.colour_weights, appearance):
        assert leaf.grad is not None and leaf.grad.any()


def test_gradient_of_density_does_not_touch_the_colour_head() -> None:
    field = make_field()

    evaluate(field)[0].sum().backward()

    assert field.tables.grad is not None and field.tables.grad.any()
    assert field.colour_weights.grad is not None and not field.colour_weights.grad.any()


def test_positions_and_directions_get_no_gradient() -> None:
    field = make_field()
    xyz, direction, appearance = (tensor.requires_grad_() for tensor in make_samples(NODE))

    sigma, geo = field.density(xyz, NODE)
    (sigma.sum() + field.colour(geo, direction, appearance, NODE, torch.arange(len(NODE))).sum()).backward()

    assert xyz.grad is None and direction.grad is None and appearance.grad is not None


@pytest.mark.parametrize("backend", BACKENDS)
def test_untouched_node_has_no_gradient(backend: str) -> None:
    field = make_field(backend)
    sigma, colour, _ = evaluate(field)
    (sigma.sum() + colour.sum()).backward()

    field.expose_gradients()

    assert field.touched.tolist() == [True, False, True, True]
    for index in (0, 2, 3):
        for parameter in field.parameters_of(index).values():
            assert parameter.grad is not None and parameter.grad.any()
    assert all(parameter.grad is None for parameter in field.parameters_of(1).values())


def test_clearing_leaves_no_gradient_and_keeps_the_buffers() -> None:
    field = make_field()
    assert field.tables.grad is not None
    buffer = field.tables.grad.data_ptr()
    evaluate(field)[1].sum().backward()

    field.clear_gradients()
    field.expose_gradients()

    assert not field.touched.any() and not field.tables.grad.any()
    assert field.colour_weights.grad is not None and not field.colour_weights.grad.any()
    assert field.tables.grad.data_ptr() == buffer
    assert all(parameter.grad is None for i in range(4) for parameter in field.parameters_of(i).values())


def test_optimiser_step_moves_touched_nodes_only() -> None:
    field = make_field()
    before = [{name: value.clone() for name, value in field.state_of(i).items()} for i in range(4)]
    optimiser = torch.optim.Adam([p for i in range(4) for p in field.parameters_of(i).values()], lr=0.1, fused=True)
    sigma, colour, _ = evaluate(field)
    (sigma.sum() + colour.sum()).backward()
    field.expose_gradients()

    optimiser.step()

    for index, old in enumerate(before):
        for name, value in field.state_of(index).items():
            assert torch.equal(value, old[name]) == (index == 1)
    assert not torch.equal(evaluate(field)[0], sigma)


def test_without_gradients_nothing_is_touched() -> None:
    field = make_field()

    with torch.no_grad():
        sigma, colour, _ = evaluate(field)

    assert not field.touched.any() and sigma.grad_fn is None and colour.grad_fn is None


def test_frozen_field_passes_gradients_to_the_appearance_and_collects_none() -> None:
    field = make_field().requires_grad_(False)

    _, colour, appearance = evaluate(field)
    colour.sum().backward()

    assert appearance.grad is not None and appearance.grad.any()
    assert not field.touched.any()
    assert field.tables.grad is not None and not field.tables.grad.any()


def test_unsorted_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="sorted by node"):
        evaluate(make_field(), NODE.flip(0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_samples(backend: str) -> None:
    field = make_field(backend)

    sigma, colour, _ = evaluate(field, torch.zeros(0, dtype=torch.int64))
    (sigma.sum() + colour.sum()).backward()

    assert sigma.shape == (0,) and colour.shape == (0, 3) and not field.touched.any()


def test_initial_values_of_a_node_depend_on_seed_and_key_alone() -> None:
    many, alone = make_field(), make_field(keys=torch.tensor([11]))

    for name, value in alone.state_of(0).items():
        assert torch.equal(value, many.state_of(2)[name])
        assert not torch.equal(value, many.state_of(1)[name])
        assert not torch.equal(value, make_field(keys=torch.tensor([11]), seed=1).state_of(0)[name])


def test_initial_values_are_within_their_bounds() -> None:
    field = make_field()

    assert 0.9e-4 < float(field.tables.detach().abs().max()) <= 1e-4
    assert float(field.density_weights.detach().abs().max()) <= (6 / 14) ** 0.5  # the narrower layer is 8 -> 6
    assert field.colour_weights.detach().std() > 0.1


def test_a_node_answers_the_same_alone_and_among_others() -> None:
    field, alone = make_field(), make_field(keys=KEYS[2:3])
    xyz, direction, appearance = make_samples(NODE)
    mine = NODE == 2
    node = torch.zeros(int(mine.sum()), dtype=torch.int64)

    sigma, geo = field.density(xyz, NODE)
    sigma_alone, geo_alone = alone.density(xyz[mine], node)

    torch.testing.assert_close(sigma[mine], sigma_alone)
    torch.testing.assert_close(
        field.colour(geo, direction, appearance, NODE, torch.arange(len(NODE)))[mine],
        alone.colour(geo_alone, direction[mine], appearance[mine], node, torch.arange(len(node))),
    )


def test_samples_of_a_ray_share_its_direction_and_appearance() -> None:
    field = make_field()
    xyz, direction, appearance = make_samples(NODE)
    ray = torch.tensor([2, 0, 1, 1, 2, 0, 0, 1, 2, 2, 1, 0, 0, 1, 2])
    shared, own = appearance[:3].clone().requires_grad_(), appearance[:3].clone().requires_grad_()
    _, geo = field.density(xyz, NODE)
    geo = geo.detach()
    found = field.colour(geo, direction[:3], shared, NODE, ray)
    expected = field.colour(geo, direction[ray], own[ray], NODE, torch.arange(len(NODE)))
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    assert shared.grad is not None and own.grad is not None
    torch.testing.assert_close(shared.grad, own.grad)


def test_saved_values_give_the_same_answers_in_another_field() -> None:
    source, target = make_field(seed=1), make_field(seed=2)

    for index in range(4):
        target.load_state(index, {name: value.clone() for name, value in source.state_of(index).items()})

    assert torch.equal(evaluate(source)[1], evaluate(target)[1])


def test_values_of_other_settings_are_refused() -> None:
    state = make_field(geo_features=7).state_of(0)

    with pytest.raises(InputError, match=r"node 1 hold shape .* for 'density' where .* is expected"):
        make_field().load_state(0, state)
    with pytest.raises(InputError, match="hold nothing for 'table'"):
        make_field().load_state(0, {})


def test_parameters_of_a_node_share_the_storage_of_its_state() -> None:
    field = make_field()

    assert field.parameters_of(0)["table"].data_ptr() == field.state_of(0)["table"].data_ptr()
