"""The coarse grid of the scene never hides what a node's own grid holds."""

import pytest
import torch

from inf_nerf.field.occupancy import Occupancy
from inf_nerf.octree.topology import Octree
from inf_nerf.render.empty_space import EmptySpace


def tree() -> Octree:
    """Four levels, one path down octant 3, and a second node on level 1."""
    keys = torch.tensor([1, 11, 14, 91, 731])
    return Octree.from_keys(keys, torch.ones(5, dtype=torch.int64), root_gsd=0.1)


def deep_tree() -> Octree:
    """A path down to nodes smaller than a cell of the scene grid."""
    keys = [1]
    for octant in (5, 2, 7, 0, 3, 6, 1, 4, 2):
        keys.append(keys[-1] * 8 + octant)
    return Octree.from_keys(torch.tensor(keys), torch.ones(len(keys), dtype=torch.int64), root_gsd=0.1)


def occupied_at(octree: Octree, resolution: int, share: float, seed: int = 0) -> Occupancy:
    occupancy = Occupancy(torch.full((octree.num_nodes,), 0.5), resolution, 0.5)
    generator = torch.Generator().manual_seed(seed)
    occupancy.occupied = torch.rand(occupancy.occupied.shape, generator=generator) < share
    return occupancy


def occupied_places(octree: Octree, occupancy: Occupancy, count: int = 4000) -> torch.Tensor:
    """Scene positions [count, 3] in occupied cells of any node."""
    generator = torch.Generator().manual_seed(9)
    g = occupancy.resolution
    node, cell = torch.nonzero(occupancy.occupied).unbind(1)
    chosen = torch.randint(len(node), (count,), generator=generator)
    node, cell = node[chosen], cell[chosen]
    corner = torch.stack([cell // g**2, cell // g % g, cell % g], dim=1)
    local = (corner + 0.001 + 0.998 * torch.rand(count, 3, generator=generator)) / g
    return octree.centre[node] + (2 * local - 1) * octree.half[node, None]


@pytest.mark.parametrize("resolution", [4, 6, 8, 24, 32, 48, 100])
@pytest.mark.parametrize("make", [tree, deep_tree])
def test_no_occupied_place_is_hidden(make: object, resolution: int) -> None:
    octree = make()  # type: ignore[operator]
    occupancy = occupied_at(octree, resolution, 3 / resolution**3)
    assert bool(occupancy.occupied.any())
    places = occupied_places(octree, occupancy)
    empty_space = EmptySpace(octree, occupancy)
    generator = torch.Generator().manual_seed(1)
    length = torch.exp2(torch.rand(len(places), generator=generator) * 13 - 11)  # 0.0005 to 4
    direction = torch.nn.functional.normalize(torch.randn(len(places), 3, generator=generator), dim=1)
    # the place is anywhere on an interval around the middle
    offset = (torch.rand(len(places), generator=generator) - 0.5) * length
    middle = places + direction * offset[:, None]
    inside = (middle.abs() <= 1).all(1)
    assert bool(empty_space.may_hold(middle[inside], length[inside]).all())


def test_long_interval_reaches_across_the_cube() -> None:
    octree = tree()
    occupancy = occupied_at(octree, 8, 0.0)
    occupancy.occupied[0, 0] = True  # the corner at (-1, -1, -1)
    middle = torch.tensor([[0.3, 0.3, 0.3]])
    length = torch.tensor([3.0])  # from the corner to beyond the cube
    assert bool(EmptySpace(octree, occupancy).may_hold(middle, length).all())


def test_empty_cube_holds_nothing() -> None:
    octree = tree()
    empty_space = EmptySpace(octree, occupied_at(octree, 8, 0.0))
    middle = torch.rand(500, 3, generator=torch.Generator().manual_seed(3)) * 2 - 1
    assert not bool(empty_space.may_hold(middle, torch.full((500,), 0.05)).any())


def test_short_intervals_far_from_anything_are_skipped() -> None:
    octree = tree()
    occupancy = occupied_at(octree, 8, 0.0)
    occupancy.occupied[0, 0] = True  # [-1, -0.75]^3
    middle = torch.rand(500, 3, generator=torch.Generator().manual_seed(3)) * 2 - 1
    may_hold = EmptySpace(octree, occupancy).may_hold(middle, torch.full((500,), 0.01))
    near = (middle < -0.75 + 2 / 128).all(1)
    assert torch.equal(may_hold, near | (may_hold & (middle < -0.75 + 4 / 128).all(1)))
    assert bool(near.any())
    assert not bool(near.all())
