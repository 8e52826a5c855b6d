"""Occupancy: what is protected, what is free, what a probe measures, and when cells are culled."""

from typing import Any

import pytest
import torch
from torch import Tensor

from inf_nerf.errors import InputError
from inf_nerf.field.occupancy import POINTS, Occupancy

G = 4


def grids(num_nodes: int = 2, threshold: float = 0.5, decay: float = 0.5) -> Occupancy:
    return Occupancy(torch.full((num_nodes,), threshold), G, decay)


class Slope:
    """A field whose density is a function of the place in the node; remembers what was asked."""

    def __init__(self, sigma: Any) -> None:
        self.sigma = sigma
        self.asked: list[Tensor] = []

    def density(self, xyz: Tensor, node: Tensor) -> tuple[Tensor, None]:
        assert not torch.is_grad_enabled()
        self.asked.append(xyz)
        return self.sigma(xyz), None


def probe(occupancy: Occupancy, field: Any, node: int = 0, share: int = 0, shares: int = 1, seed: int = 0) -> None:
    occupancy.probe(field, node, share, shares, torch.Generator().manual_seed(seed))


def measured(occupancy: Occupancy) -> Tensor:
    """What was measured of each cell [N, G^3]."""
    return occupancy.density


def test_everything_is_occupied_at_first() -> None:
    assert bool(grids().occupied.all())


def test_cell_has_x_slowest() -> None:
    xyz = torch.tensor([[0.0, 0, 0], [0.99, 0, 0], [0, 0.3, 0], [0, 0, 0.6], [1.0, 1, 1]])
    assert grids().cell(xyz).tolist() == [0, 3 * 16, 4, 2, 63]
    assert grids().cell_of(xyz, torch.tensor([1, 0, 1, 0, 1])).tolist() == [64, 48, 68, 2, 127]


def test_shares_probe_every_cell_inside_itself() -> None:
    occupancy = grids()
    field = Slope(lambda xyz: torch.ones(len(xyz)))
    for share in range(3):
        probe(occupancy, field, share=share, shares=3)
    cells = occupancy.cell(torch.cat(field.asked))
    assert torch.bincount(cells).tolist() == [POINTS] * G**3
    assert bool((measured(occupancy)[0] > 0).all())
    assert not bool(measured(occupancy)[1].any())


def test_probe_stores_the_most_of_a_cell_where_it_was_asked() -> None:
    occupancy = grids()
    field = Slope(lambda xyz: 1 + xyz[:, 0] * 100 + xyz[:, 1] * 10 + xyz[:, 2])
    probe(occupancy, field, node=1)
    (asked,) = field.asked
    most = torch.zeros(G**3).scatter_reduce(0, occupancy.cell(asked), field.sigma(asked), "amax")
    torch.testing.assert_close(measured(occupancy)[1], most)


def test_free_cells_are_not_probed() -> None:
    occupancy = grids()
    occupancy.free[0, ::2] = True
    field = Slope(lambda xyz: torch.ones(len(xyz)))
    probe(occupancy, field)
    assert bool((occupancy.cell(torch.cat(field.asked)) % 2 == 1).all())
    assert bool((measured(occupancy)[0] > 0).equal(~occupancy.free[0]))


def test_thin_surface_survives_many_probes() -> None:
    occupancy = grids(threshold=1.0, decay=0.8)
    occupancy.enabled = True
    wall = Slope(lambda xyz: torch.where((xyz[:, 2] - 0.6).abs() < 0.02, 200.0, 0.0))  # a sixth of a cell
    for seed in range(200):
        probe(occupancy, wall, seed=seed)
    occupancy.refresh()
    assert bool(occupancy.occupied[0].view(G, G, G)[:, :, 2].all())
    assert not bool(occupancy.occupied[0].view(G, G, G)[:, :, [0, 1, 3]].any())


def test_probe_is_a_decaying_maximum() -> None:
    occupancy = grids(decay=0.5)
    for sigma, expected in ((8.0, 8.0), (0.0, 4.0), (1.0, 2.0), (1.5, 1.5), (3.0, 3.0)):
        probe(occupancy, Slope(lambda xyz, sigma=sigma: torch.full((len(xyz),), sigma)))
        torch.testing.assert_close(measured(occupancy)[0], torch.full((G**3,), expected))


def test_probe_of_a_share_leaves_the_other_cells() -> None:
    occupancy = grids()
    one = Slope(lambda xyz: torch.full((len(xyz),), 3.0))
    probe(occupancy, one, share=1, shares=4)
    assert int((measured(occupancy)[0] > 0).sum()) == G**3 // 4


def test_same_generator_probes_the_same_places() -> None:
    fields = [Slope(lambda xyz: xyz[:, 0]) for _ in range(3)]
    for field, seed in zip(fields, (1, 1, 2), strict=True):
        probe(grids(), field, seed=seed)
    first, second, other = (field.asked[0] for field in fields)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_nothing_is_culled_before_it_is_enabled() -> None:
    occupancy = grids()
    probe(occupancy, Slope(lambda xyz: torch.zeros(len(xyz))))
    occupancy.refresh()
    assert bool(occupancy.occupied.all())
    occupancy.enabled = True
    occupancy.refresh()
    assert not bool(occupancy.occupied[0].any())


def test_cells_above_the_threshold_stay() -> None:
    occupancy = grids(threshold=0.5)
    occupancy.enabled = True
    probe(occupancy, Slope(lambda xyz: torch.where(xyz[:, 2] < 0.5, 0.6, 0.4)))
    occupancy.refresh()
    lower = torch.arange(G**3) % G < G // 2
    assert torch.equal(occupancy.occupied[0], lower)


def test_culled_cell_comes_back_when_density_appears() -> None:
    occupancy = grids()
    occupancy.enabled = True
    for sigma, expected in ((0.0, False), (2.0, True)):
        probe(occupancy, Slope(lambda xyz, sigma=sigma: torch.full((len(xyz),), sigma)))
        occupancy.refresh()
        assert bool((occupancy.occupied[0] == expected).all())


@pytest.mark.parametrize("enabled", [False, True])
def test_protected_cells_are_never_empty(enabled: bool) -> None:
    occupancy = grids()
    occupancy.protect(torch.tensor([[0.4, 0.6, 0.1]]), torch.tensor([1]))
    occupancy.free[:] = True
    occupancy.enabled = enabled
    probe(occupancy, Slope(lambda xyz: torch.zeros(len(xyz))), node=1)
    occupancy.refresh()
    assert torch.equal(occupancy.occupied, occupancy.protected)
    assert bool(occupancy.occupied.view(-1)[occupancy.cell_of(torch.tensor([[0.4, 0.6, 0.1]]), torch.tensor([1]))])
    assert not bool(occupancy.occupied[0].any())


@pytest.mark.parametrize("enabled", [False, True])
def test_free_cells_are_always_empty(enabled: bool) -> None:
    occupancy = grids()
    occupancy.free[0, 5] = True
    occupancy.enabled = enabled
    probe(occupancy, Slope(lambda xyz: torch.full((len(xyz),), 9.0)))
    occupancy.refresh()
    assert (~occupancy.occupied[0]).nonzero().flatten().tolist() == [5]


def test_protection_reaches_half_a_cell_and_stays_in_the_node() -> None:
    occupancy = grids()
    middle = torch.tensor([[0.375, 0.375, 0.375]])  # of cell 1 1 1
    occupancy.protect(middle + 0.01, torch.tensor([0]))
    cells = occupancy.protected[0].nonzero().flatten().tolist()
    assert cells == sorted(x * 16 + y * 4 + z for x in (1, 2) for y in (1, 2) for z in (1, 2))
    occupancy.protect(torch.tensor([[0.01, 0.99, 0.4]]), torch.tensor([1]))
    protected = occupancy.protected[1].nonzero().flatten().tolist()
    assert {cell // 16 for cell in protected} == {0}
    assert {cell // 4 % 4 for cell in protected} == {3}


def test_grid_comes_back_from_its_state() -> None:
    occupancy, other = grids(), grids()
    probe(occupancy, Slope(lambda xyz: xyz[:, 0]), node=1)
    occupancy.protect(torch.rand(3, 3), torch.tensor([1, 1, 1]))
    occupancy.free[1, 7:9] = True
    other.load_state(1, {name: value.clone() for name, value in occupancy.state_of(1).items()})
    for each in (occupancy, other):
        each.enabled = True
        each.refresh()
    assert torch.equal(other.occupied[1], occupancy.occupied[1])
    assert torch.equal(measured(other)[1], measured(occupancy)[1])


def test_grid_of_another_resolution_is_refused_with_the_key_to_set() -> None:
    state = grids().state_of(0)
    with pytest.raises(InputError, match=r"27 cells for 'density' where 64 are expected; .*sampler\.occupancy_res"):
        grids().load_state(0, {name: value[:27] for name, value in state.items()})
    with pytest.raises(InputError, match="nothing for 'free'"):
        grids().load_state(0, {name: value for name, value in state.items() if name != "free"})
