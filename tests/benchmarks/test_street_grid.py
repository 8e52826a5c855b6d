"""A city by a rule: its points lie on its surfaces, and rays meet the first of them."""

import math

import pytest
import torch
from torch import Tensor

from benchmarks import street_grid
from benchmarks.street_grid import EYE_M, HIGHEST_M, LOT_M, LOWEST_M, StreetGrid, aerial_views, street_views

CITY = StreetGrid(300.0, 200.0)


def points(city: StreetGrid, per_m2: float = 0.2, seed: int = 0) -> Tensor:
    return torch.cat(list(city.points(per_m2, seed)))


def standing(city: StreetGrid) -> list[tuple[list[float], list[float], float]]:
    """All boxes of a city, from one more lot on every side than it has."""
    i, j = (torch.arange(-(side // LOT_M) - 2, side // LOT_M + 2) for side in (city.width_m, city.depth_m))
    low, high, height = city.boxes(torch.cartesian_prod(i, j).long())
    return [(a, b, h) for a, b, h in zip(low.tolist(), high.tolist(), height.tolist(), strict=True) if h > 0]


def first_surface(city: StreetGrid, origin: list[float], direction: list[float]) -> float:
    """Distance at which a ray meets the city, by asking every box and the ground."""
    found = math.inf
    if direction[2] < 0:
        t = -origin[2] / direction[2]
        x, y = (origin[axis] + t * direction[axis] for axis in (0, 1))
        if abs(x) <= city.width_m / 2 and abs(y) <= city.depth_m / 2:
            found = t
    for low, high, height in standing(city):
        near, far = 0.0, math.inf
        for axis, (a, b) in enumerate(((low[0], high[0]), (low[1], high[1]), (0.0, height))):
            first, second = sorted(((a - origin[axis]) / direction[axis], (b - origin[axis]) / direction[axis]))
            near, far = max(near, first), min(far, second)
        if near <= far:
            found = min(found, near)
    return found


def test_points_lie_on_ground_walls_and_roofs() -> None:
    cloud = points(CITY)
    boxes = standing(CITY)
    assert (cloud[:, :2].abs() <= CITY.half_m).all()
    on_ground = (cloud[:, 2] == 0).sum()
    assert 0.3 < on_ground / len(cloud) < 0.6
    for x, y, z in cloud[torch.randperm(len(cloud))[:500]].tolist():
        inside = [
            (low, high, height) for low, high, height in boxes if low[0] <= x <= high[0] and low[1] <= y <= high[1]
        ]
        if z == 0:
            assert not inside or min(abs(x - inside[0][0][0]), abs(y - inside[0][0][1])) < 1e-9
            continue
        (low, high, height) = inside[0]
        apart = [abs(x - low[0]), abs(x - high[0]), abs(y - low[1]), abs(y - high[1]), abs(z - height)]
        assert min(apart) < 1e-6 and z <= height + 1e-9


def test_the_density_of_points_is_the_same_on_all_surfaces() -> None:
    cloud, boxes = points(CITY, per_m2=0.5), standing(CITY)
    roofs = sum((high[0] - low[0]) * (high[1] - low[1]) for low, high, _ in boxes)
    walls = sum(2 * (high[0] - low[0] + high[1] - low[1]) * height for low, high, height in boxes)
    surface = CITY.width_m * CITY.depth_m + walls  # what a roof adds its base takes away
    assert roofs > 0.1 * surface
    assert len(cloud) == pytest.approx(0.5 * surface, rel=0.01)


def test_a_larger_city_is_the_same_in_the_middle() -> None:
    lots = torch.cartesian_prod(torch.arange(-3, 2), torch.arange(-2, 1))
    for small, large in zip(CITY.boxes(lots), StreetGrid(3000.0, 3000.0).boxes(lots), strict=True):
        assert torch.equal(small, large)


def test_heights_and_open_lots_vary() -> None:
    low, high, height = StreetGrid(4000.0, 4000.0).boxes(
        torch.cartesian_prod(torch.arange(-50, 50), torch.arange(-50, 50))
    )
    built = height[height > 0]
    assert 0.8 < len(built) / len(height) < 0.9
    assert built.min() >= LOWEST_M and built.max() <= HIGHEST_M and built.std() > 5
    assert ((high - low)[height > 0] > 10).all()


def test_points_and_rays_do_not_depend_on_the_size_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    before = points(CITY)
    monkeypatch.setattr(street_grid, "LOTS_AT_ONCE", 1000)
    assert torch.equal(points(CITY), before)


def test_rays_meet_the_first_surface() -> None:
    generator = torch.Generator().manual_seed(0)
    origins = torch.cat([street_views(8)[:, :, 3], aerial_views(8)[:, :, 3]]).repeat_interleave(40, 0)
    direction = torch.randn(len(origins), 3, generator=generator, dtype=torch.float64)
    direction[:, 2] *= 0.2
    direction /= direction.norm(dim=1, keepdim=True)
    found = CITY.distance(origins, direction).tolist()
    expected = [first_surface(CITY, o, d) for o, d in zip(origins.tolist(), direction.tolist(), strict=True)]
    assert found == pytest.approx(expected, rel=1e-9)
    assert 50 < sum(map(math.isinf, expected)) < len(expected) - 200


def test_pedestrians_stand_in_streets_and_see_far() -> None:
    city = StreetGrid(2000.0, 2000.0)
    views = street_views(16)
    eye, way = views[:, :, 3].clone(), views[:, :, 2]
    assert (eye[:, 2] == EYE_M).all() and eye[:, :2].abs().max() < 2 * LOT_M
    distance = city.distance(eye, way / way.norm(dim=1, keepdim=True))
    assert (distance > 10).all()
    assert len({tuple(torch.sign(w).tolist()) for w in way.round(decimals=0)}) == 4
