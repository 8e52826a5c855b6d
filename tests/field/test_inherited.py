"""A child starts as its parent: exactly where no vertices share entries, closely where they do."""

import pytest
import torch
from torch import Tensor

from inf_nerf.config import FieldConfig
from inf_nerf.field.field import Field
from inf_nerf.field.hash_grid import GridSpec, encode
from inf_nerf.field.inherited import fit, inherit, inherited_table, num_points, opacity_at
from inf_nerf.field.occupancy import Occupancy

DENSE = GridSpec(3, 2, 16, 5, 16)  # 17^3 vertices in 2^16 entries
HASHED = GridSpec(4, 2, 10, 4, 32)
CORNER = torch.tensor([0.5, 0.0, 0.5])
GSD = 0.02


def points(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed))


def table_of(spec: GridSpec) -> Tensor:
    return torch.randn(spec.num_entries, 2, generator=torch.Generator().manual_seed(0))


def read(spec: GridSpec, table: Tensor, xyz: Tensor) -> Tensor:
    return encode(spec, table[None], xyz, torch.zeros(len(xyz), dtype=torch.int64))


def test_dense_levels_read_at_vertices_what_the_parent_reads_there() -> None:
    table = table_of(DENSE)
    child = inherited_table(DENSE, table, CORNER, points(0), torch.zeros(0))
    for level in range(DENSE.num_levels):
        steps = torch.arange(1, DENSE.resolutions[level] - 1)
        vertex = (torch.cartesian_prod(steps, steps, steps) - 0.5) / DENSE.scales[level]
        vertex = vertex[((vertex >= 0) & (vertex <= 1)).all(1)]
        columns = slice(2 * level, 2 * level + 2)
        expected = read(DENSE, table, CORNER + vertex / 2)[:, columns]
        assert len(vertex) >= 8
        torch.testing.assert_close(read(DENSE, child, vertex)[:, columns], expected, rtol=1e-3, atol=1e-3)


def test_between_vertices_a_child_is_nearer_to_its_parent_than_to_nothing() -> None:
    table, xyz = table_of(DENSE), points(2000)
    child = inherited_table(DENSE, table, CORNER, points(0), torch.zeros(0))
    expected = read(DENSE, table, CORNER + xyz / 2)
    assert float((read(DENSE, child, xyz) - expected).square().mean()) < 0.25 * float(expected.square().mean())


def test_a_shared_entry_is_the_mean_of_what_is_visible() -> None:
    table = table_of(HASHED)
    surface = points(4000) * torch.tensor([1.0, 1.0, 0.02]) + torch.tensor([0.0, 0.0, 0.4])
    xyz = torch.cat((points(4000, 2), surface))
    on_surface = torch.arange(len(xyz)) >= 4000
    errors = []
    for visible in (torch.ones(len(xyz)), torch.where(on_surface, 1.0, 0.001)):
        child = inherited_table(HASHED, table, CORNER, xyz, visible)
        assert bool(child.isfinite().all())
        expected = read(HASHED, table, CORNER + surface / 2)
        errors.append(float((read(HASHED, child, surface) - expected).square().mean()))
    assert errors[1] < errors[0] < float(expected.square().mean())


@pytest.fixture(scope="module")
def family() -> Field:
    """A parent with a surface in it, and a child that is untrained."""
    config = FieldConfig(
        backend="torch", num_levels=6, log2_table_size=12, base_res=4, max_res=32, hidden_density=16, hidden_color=16,
        appearance_dim=2, initial_density=5.0,
    )  # fmt: skip
    field = Field(config, torch.tensor([1, 13, 0]), 0)
    optimiser = torch.optim.Adam(field.parameters_of(0).values(), lr=5e-3)
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        xyz = torch.rand(2048, 3, generator=generator)
        node = torch.zeros(len(xyz), dtype=torch.int64)
        direction = torch.tensor([[0.0, 0.0, -1.0]]).expand(len(xyz), -1)
        sigma, rgb = field.radiance(xyz, node, direction, torch.zeros(len(xyz), 2), torch.arange(len(xyz)))
        ground = (xyz[:, 2] < 0.6 + 0.1 * torch.sin(9 * xyz[:, 0])).float()
        colour = 0.5 + 0.4 * torch.sin(20 * xyz)
        loss = (-torch.expm1(-sigma * GSD) - ground).square().mean() + (
            ground[:, None] * (rgb - colour).square()
        ).mean()
        loss.backward()
        field.expose_gradients()
        optimiser.step()
        field.clear_gradients()
    return field


def difference(field: Field, xyz: Tensor) -> tuple[float, float]:
    """Root mean square difference of opacity, and of colour on surfaces, between child and parent."""
    looks, direction = torch.zeros(len(xyz), 2), torch.tensor([[0.0, 0.0, -1.0]]).expand(len(xyz), -1)
    seen = []
    with torch.no_grad():
        for node, places in ((0, CORNER + xyz / 2), (1, xyz)):
            of = torch.full((len(xyz),), node)
            opacity = opacity_at(field, node, places, GSD)
            seen.append((opacity, field.radiance(places, of, direction, looks, torch.arange(len(xyz)))[1]))
    (opacity, rgb), (other, other_rgb) = seen
    error = (opacity[:, None] * (rgb - other_rgb).square()).sum() / (3 * opacity.sum())
    return float((opacity - other).square().mean().sqrt()), float(error.sqrt())


def test_a_child_is_close_to_its_parent_and_closer_after_the_fit(family: Field) -> None:
    xyz = points(4000, 5)
    untrained = difference(family, xyz)
    occupancy = Occupancy(torch.tensor([1.0, 1.0]), 8, 0.9)
    generator = torch.Generator().manual_seed(7)
    filled = occupancy.points_in(1, num_points(family.spec), generator)
    moments = family.state_of(0)["table"].square()
    before = [value.clone() for value in family.state_of(0).values()]
    inherited = inherit(family, 1, 0, CORNER, GSD, filled, moments)
    taken = difference(family, xyz)
    fit(family, 1, 0, CORNER, GSD, filled, torch.zeros(2), generator)
    fitted = difference(family, xyz)
    assert taken[0] < 0.25 * untrained[0] and taken[1] < 0.5 * untrained[1]
    assert fitted[0] < taken[0] and fitted[1] < taken[1] < untrained[1]
    assert inherited is not None and inherited.shape == moments.shape
    assert float(inherited.min()) >= 0 and float(inherited.mean()) == pytest.approx(float(moments.mean()), rel=0.8)
    # nobody else learned anything, and no gradient is left behind
    assert all(torch.equal(*pair) for pair in zip(before, family.state_of(0).values(), strict=True))
    assert not family.touched.any() and all(float(grad.abs().max()) == 0 for grad in family.gradients_of(1))


def test_cells_of_a_child_are_what_its_parent_has_there() -> None:
    occupancy = Occupancy(torch.tensor([1.0, 3.0]), 4, 0.9)
    occupancy.density[0] = torch.arange(64.0)
    occupancy.protected[0, 40] = True
    occupancy.free[0] = torch.arange(64) % 2 == 0
    occupancy.change_nodes(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, -1, 1]))
    assert occupancy.density.shape == (3, 64) and float(occupancy.density[1].abs().max()) == 0
    occupancy.inherit(1, 0, CORNER)
    for cell in range(64):
        x, y, z = (cell >> 4) / 4, (cell >> 2 & 3) / 4, (cell & 3) / 4
        above = int(occupancy.cell((CORNER + torch.tensor([x, y, z]) / 2 + 0.01)[None]))
        assert float(occupancy.density[1, cell]) == 2 * float(occupancy.density[0, above])
        assert bool(occupancy.protected[1, cell]) == (above == 40)
        assert bool(occupancy.free[1, cell]) == (above % 2 == 0)


def test_points_are_drawn_in_occupied_cells() -> None:
    occupancy = Occupancy(torch.tensor([1.0]), 4, 0.9)
    occupancy.occupied[:] = False
    occupancy.occupied[0, [5, 63]] = True
    xyz = occupancy.points_in(0, 500, torch.Generator().manual_seed(0))
    assert set(occupancy.cell(xyz).tolist()) == {5, 63}
    occupancy.occupied[:] = False  # then anywhere
    assert len(set(occupancy.cell(occupancy.points_in(0, 2000, torch.Generator().manual_seed(0))).tolist())) == 64
