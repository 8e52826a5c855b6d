"""Tracks: rays of observations hit their points, and each observation belongs to one rank."""

from dataclasses import replace

import torch

from inf_nerf.config import SamplerConfig
from inf_nerf.octree.partition import SHARED, make_partition
from inf_nerf.octree.routing import route
from inf_nerf.scene.scene import Scene
from inf_nerf.train.tracks import Tracks
from tests.train.tiny import ground_height, tiny_octree, tiny_scene

NEAR = SamplerConfig().near


def tracks() -> Tracks:
    return all_of(tiny_scene())


def all_of(scene: Scene) -> Tracks:
    return Tracks.of(scene, tiny_octree(), make_partition(tiny_octree(), 1, 1), 0, 1.0, NEAR)


def test_rays_meet_their_points_at_the_given_distance() -> None:
    rays, distance, weight = tracks().sample(200, torch.Generator().manual_seed(0))
    assert len(rays) == len(distance) == len(weight) == 200
    place = rays.origin + distance[:, None] * rays.direction
    torch.testing.assert_close(place[:, 2], ground_height(place[:, :2]), rtol=0, atol=1e-4)


def test_only_training_photos_are_used() -> None:
    scene = tiny_scene()
    found = tracks()
    assert set(found.photo.tolist()) == set(scene.train)
    inside = (scene.points.xyz.abs() <= 1).all(1)[scene.points.track_point]
    trained = torch.isin(scene.points.track_photo, torch.tensor(scene.train))
    assert len(found.photo) == int((inside & trained).sum())


def test_points_outside_the_cube_and_at_the_camera_are_left_out() -> None:
    scene = tiny_scene()
    xyz = scene.points.xyz.clone()
    xyz[:300, 0] += 3
    xyz[300] = scene.cameras.centre[0] * torch.tensor([1.0, 1.0, 0.8])  # inside the cube
    xyz[301] = scene.cameras.centre[int(scene.points.track_photo[scene.points.track_start[301]])]
    moved = replace(scene, points=replace(scene.points, xyz=xyz))
    found = all_of(moved)
    assert len(found.photo) < len(tracks().photo)
    assert bool((found.distance > 0.02).all())
    point = scene.points.track_point
    expected = (xyz[point] - scene.cameras.centre[scene.points.track_photo]).norm(dim=1)
    assert bool(torch.isin(found.distance, expected[point >= 300]).all())


def test_weight_falls_with_the_reprojection_error() -> None:
    scene = tiny_scene()
    errors = torch.linspace(0, 3, len(scene.points))
    found = all_of(replace(scene, points=replace(scene.points, error=errors)))
    assert float(found.weight[0]) == 1.0 / (1 + float(errors[int(scene.points.track_point[0])]))
    assert bool((found.weight[1:] <= found.weight[:-1]).all())
    assert float(found.weight[-1]) < 0.3


def test_errors_that_colmap_did_not_compute_count_as_none() -> None:
    scene = tiny_scene()
    errors = torch.full((len(scene.points),), -1.0)
    found = all_of(replace(scene, points=replace(scene.points, error=errors)))
    assert bool((found.weight == 1).all())


def test_every_observation_belongs_to_the_rank_of_its_node() -> None:
    scene, octree = tiny_scene(), tiny_octree()
    partition = make_partition(octree, 2, 1)
    parts = [Tracks.of(scene, octree, partition, rank, 1.0, NEAR) for rank in range(2)]
    node, _ = route(octree, scene.points.xyz, scene.points.footprint)
    owner = partition.owners_of(octree.keys[node])[scene.points.track_point]
    trained = torch.isin(scene.points.track_photo, torch.tensor(scene.train))
    held = torch.cumsum(trained, 0) - 1  # of a training photo: its place among those
    for rank, part in enumerate(parts):
        mine = trained & ((owner == rank) | ((owner == SHARED) & (held % 2 == rank)))
        assert torch.equal(part.xy, scene.points.track_xy[mine])
        assert len(part.photo) > 100
    assert parts[0].per_rank == parts[1].per_rank == [len(part.photo) for part in parts]


def test_nothing_is_drawn_from_no_tracks() -> None:
    scene = tiny_scene()
    points = scene.points
    none = replace(
        points,
        track_start=torch.zeros_like(points.track_start),
        track_photo=points.track_photo[:0],
        track_xy=points.track_xy[:0],
    )
    found = all_of(replace(scene, points=none))
    rays, distance, weight = found.sample(10, torch.Generator())
    assert len(rays) == len(distance) == len(weight) == 0


def test_same_generator_draws_the_same() -> None:
    first, second = (tracks().sample(50, torch.Generator().manual_seed(3))[1] for _ in range(2))
    assert torch.equal(first, second)
