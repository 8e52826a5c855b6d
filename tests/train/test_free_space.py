"""What sparse points say about occupancy: never against a point, and free where lines of sight are."""

from dataclasses import replace

import torch
from torch import Tensor

from inf_nerf.config import SamplerConfig
from inf_nerf.octree.routing import route
from inf_nerf.render.model import Model
from inf_nerf.scene.scene import Scene
from inf_nerf.train.assembly import has_solid_ground
from inf_nerf.train.free_space import SCENE_CELLS, air, free_cells, learn_from_points, underground
from tests.train.tiny import ground_height, tiny_scene, tiny_work

NEAR = SamplerConfig().near


def cell_of(xyz: Tensor) -> Tensor:
    return ((xyz * 0.5 + 0.5) * SCENE_CELLS).long().clamp(0, SCENE_CELLS - 1)


def at(grid: Tensor, xyz: Tensor) -> Tensor:
    return grid[tuple(cell_of(xyz).unbind(1))]


def middles(mask: Tensor) -> Tensor:
    """Scene positions of the middles of the cells in ``mask`` [S, S, S]."""
    return (torch.nonzero(mask) + 0.5) / SCENE_CELLS * 2 - 1


def is_occupied(model: Model, xyz: Tensor, node: Tensor) -> Tensor:
    """Whether scene positions [Q, 3] lie in occupied cells of nodes [Q]; bool [Q]."""
    return model.occupancy.occupied.view(-1)[model.occupancy.cell_of(model.octree.to_local(xyz, node), node)]


def dense_scene() -> Scene:
    """The tiny scene with every point seen many times by all photos, so that lines of sight fill the air."""
    scene = tiny_scene()
    line = torch.linspace(-0.9, 0.9, 60)
    xy = torch.cartesian_prod(line, line)
    xyz = torch.cat([xy, ground_height(xy)[:, None]], dim=1)
    count, photos = len(xyz), len(scene.photos)
    points = replace(
        scene.points,
        xyz=xyz,
        footprint=torch.full((count,), 0.02),
        rgb=torch.zeros(count, 3, dtype=torch.uint8),
        error=torch.ones(count),
        track_start=torch.arange(count + 1) * photos,
        track_photo=torch.arange(photos).repeat(count),
        track_xy=torch.zeros(count * photos, 2),
    )
    return replace(scene, points=points)


def test_air_is_above_the_ground_and_below_the_cameras() -> None:
    free = air(dense_scene(), NEAR)
    assert 0.02 < float(free.float().mean()) < 0.5
    place = middles(free)
    assert bool((place[:, 2] > ground_height(place[:, :2])).all())


def test_no_point_is_in_the_air() -> None:
    scene = dense_scene()
    assert not bool(at(air(scene, NEAR), scene.points.xyz).any())


def test_without_observations_there_is_no_air() -> None:
    points = tiny_scene().points
    none = replace(
        points,
        track_start=torch.zeros_like(points.track_start),
        track_photo=points.track_photo[:0],
        track_xy=points.track_xy[:0],
    )
    assert not bool(air(replace(tiny_scene(), points=none), NEAR).any())


def test_cells_below_the_ground_are_underground() -> None:
    xyz = dense_scene().points.xyz
    free = underground(xyz)
    side = 2 / SCENE_CELLS
    assert not bool(at(free, xyz).any())
    place = middles(free)
    inner = (place[:, :2].abs() < 0.85).all(1)
    assert bool((place[inner, 2] < ground_height(place[inner, :2]) - side / 2).all())
    assert bool(at(free, xyz - torch.tensor([0.0, 0.0, 8 * side])).all())


def test_columns_without_points_nearby_take_the_lowest_of_all() -> None:
    xyz = torch.tensor([[-0.9, -0.9, 0.3], [-0.8, -0.8, -0.2]])
    free = underground(xyz)
    far = torch.tensor([[0.5, 0.5, -0.3], [0.5, 0.5, -0.1], [-0.9, -0.9, 0.1]])
    assert at(free, far).tolist() == [True, False, True]


def test_no_points_leave_nothing_solid() -> None:
    assert not bool(underground(torch.zeros(0, 3)).any())


def test_node_cells_are_free_only_where_the_scene_is() -> None:
    model = tiny_work().work.model
    generator = torch.Generator().manual_seed(0)
    free = torch.rand(SCENE_CELLS, SCENE_CELLS, SCENE_CELLS, generator=generator) < 0.5
    free[:, :, SCENE_CELLS // 2 :] = True
    found = free_cells(model, free)
    g, octree = model.occupancy.resolution, model.octree
    node, cell = torch.nonzero(found).unbind(1)
    corner = torch.stack([cell // g**2, cell // g % g, cell % g], dim=1)
    centre = octree.centre[node] + (2 * (corner + 0.5) / g - 1) * octree.half[node, None]
    assert bool(at(free, centre).all())
    upper = octree.centre[:, 2] - octree.half >= 0
    assert bool(found[upper].all())
    assert not bool(found[0].view(g, g, g)[:, :, : g // 2].any())


def test_points_are_occupied_in_every_node_on_their_path_whatever_the_field_says() -> None:
    model = tiny_work().work.model
    model.occupancy.enabled = True  # nothing was measured yet, so only protection holds
    model.occupancy.refresh()
    xyz, footprint = tiny_scene().points.xyz, tiny_scene().points.footprint
    for coarser in (1.0, 2.0, 100.0):
        node, _ = route(model.octree, xyz, footprint * coarser)
        assert bool(is_occupied(model, xyz, node).all())


def test_plainly_empty_space_is_free_from_the_start() -> None:
    model = tiny_work().work.model
    learn_from_points(model, dense_scene())
    low = torch.tensor([[0.1, 0.2, -0.6], [0.1, 0.2, -0.9]])
    root = torch.zeros(2, dtype=torch.int64)
    assert not bool(is_occupied(model, low, root).any())
    assert float(model.occupancy.occupied.float().mean()) < 0.95
    middle, length = torch.tensor([[0.1, 0.2, -0.7]]), torch.tensor([0.02])
    assert not bool(model.empty_space.may_hold(middle, length).any())


def test_without_solid_ground_what_is_below_stays_possible() -> None:
    model = tiny_work().work.model
    model.solid_ground = False
    learn_from_points(model, dense_scene())
    low, root = torch.tensor([[0.1, 0.2, -0.6]]), torch.zeros(1, dtype=torch.int64)
    assert bool(is_occupied(model, low, root).all())


def test_ground_is_solid_when_points_lie_above_zero() -> None:
    scene = tiny_scene()
    assert has_solid_ground(scene)
    sunk = replace(scene, points=replace(scene.points, xyz=scene.points.xyz - torch.tensor([0.0, 0.0, 0.4])))
    assert not has_solid_ground(sunk)
