"""Samplers: where they may put samples, what they must not skip, and how they relate to each other."""

from dataclasses import replace

import pytest
import torch

from inf_nerf.config import OctreeConfig, SamplerConfig
from inf_nerf.field.occupancy import Occupancy
from inf_nerf.octree.build import build_octree
from inf_nerf.octree.routing import route
from inf_nerf.render.empty_space import EmptySpace
from inf_nerf.render.sampling import (
    Steps,
    contract,
    cube_span,
    march,
    routed_radius,
    sample_background,
    sample_tree,
)
from inf_nerf.scene.cameras import Rays

MAX_RES = 32


@pytest.fixture
def octree():
    generator = torch.Generator().manual_seed(0)
    xyz = torch.rand(400, 3, generator=generator) * 1.8 - 0.9
    footprint = 0.002 * torch.exp2(4 * torch.rand(400, generator=generator))
    return build_octree(xyz, footprint, OctreeConfig(num_levels=4, min_points=2), MAX_RES)


def make_rays(count, seed=1, radius=0.004):
    generator = torch.Generator().manual_seed(seed)
    origin = torch.randn(count, 3, generator=generator) * 2
    origin[: count // 4] *= 0.1  # some cameras inside the cube
    target = torch.rand(count, 3, generator=generator) * 2 - 1
    direction = torch.nn.functional.normalize(target - origin, dim=1)
    return Rays(origin, direction, torch.full((count,), radius), torch.zeros(count, dtype=torch.int64))


def full_occupancy(octree):
    occupancy = Occupancy(torch.full((octree.num_nodes,), 0.01), 8, 0.9)
    occupancy.enabled = True
    return occupancy


def random_occupancy(octree, share=0.1, seed=2):
    occupancy = full_occupancy(octree)
    generator = torch.Generator().manual_seed(seed)
    occupancy.density = (torch.rand(occupancy.density.shape, generator=generator) < share).float()
    occupancy.refresh()
    return occupancy


def is_occupied(octree, occupancy, xyz, node):
    return occupancy.occupied.view(-1)[occupancy.cell_of(octree.to_local(xyz, node), node)]


def run_march(octree, occupancy, rays, generator=None, **settings):
    config = SamplerConfig(**settings)
    steps = Steps.of(rays, config, routed_radius(rays, 1.0, generator), generator, config.max_samples)
    return march(steps, octree, occupancy, EmptySpace(octree, occupancy))


def test_cube_span_of_a_ray_through_the_centre():
    rays = Rays(torch.tensor([[-3.0, 0, 0]]), torch.tensor([[1.0, 0, 0]]), torch.ones(1), torch.zeros(1).long())
    enter, leave = cube_span(rays, SamplerConfig().near)
    assert (enter.item(), leave.item()) == (2.0, 4.0)


def test_nothing_is_sampled_outside_the_cube(octree):
    rays = make_rays(200)
    samples = run_march(octree, full_occupancy(octree), rays)
    assert len(samples) > 1000
    assert (samples.xyz.abs() <= 1 + 1e-5).all() and (samples.t > 0).all()


def test_rays_that_miss_the_cube_have_no_samples(octree):
    rays = Rays(torch.tensor([[0.0, 0, 3]]), torch.tensor([[0.0, 0, 1]]), torch.ones(1) * 0.01, torch.zeros(1).long())
    assert len(run_march(octree, full_occupancy(octree), rays)) == 0


@pytest.mark.parametrize("near", [0.3, 0.001])
def test_a_camera_in_the_cube_sees_nothing_nearer_than_near(octree, near):
    rays = replace(make_rays(50), origin=torch.zeros(50, 3))
    nearest = run_march(octree, full_occupancy(octree), rays, near=near).t.min()
    assert near <= nearest < 1.1 * near


def test_samples_are_ordered_by_ray_then_distance(octree):
    samples = run_march(octree, random_occupancy(octree), make_rays(200), torch.Generator().manual_seed(0))
    same = samples.ray[1:] == samples.ray[:-1]
    assert (samples.ray.diff() >= 0).all() and (samples.t.diff()[same] > 0).all()


def test_steps_fill_the_span_when_everything_is_occupied(octree):
    rays = make_rays(100)
    enter, leave = cube_span(rays, SamplerConfig().near)
    samples = run_march(octree, full_occupancy(octree), rays)
    covered = torch.zeros(len(rays)).index_add_(0, samples.ray, samples.delta)
    hit = leave > enter
    step = (0.01 * leave).clamp_min(1e-3)
    assert ((covered - (leave - enter).clamp_min(0)).abs()[hit] < 2 * step[hit]).all()


def test_skipping_removes_exactly_the_samples_in_empty_cells(octree):
    rays, occupancy = make_rays(300), random_occupancy(octree, share=0.05)
    everything = run_march(octree, full_occupancy(octree), rays)
    kept = run_march(octree, occupancy, rays)
    inside = is_occupied(octree, occupancy, everything.xyz, everything.node)
    assert 0 < len(kept) < 0.3 * len(everything)
    assert len(kept) == int(inside.sum())
    torch.testing.assert_close(kept.t, everything.t[inside])
    assert torch.equal(kept.node, everything.node[inside])


def test_the_coarse_test_never_hides_an_occupied_cell(octree):
    occupancy = random_occupancy(octree, share=0.02)
    space = EmptySpace(octree, occupancy)
    xyz = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1
    node, _ = route(octree, xyz, torch.full((20_000,), 1e-4))
    inside = is_occupied(octree, occupancy, xyz, node)
    assert inside.any() and not inside.all()
    for length in (1e-4, 0.01, 0.05, 0.3, 3.0):
        # an interval whose middle is up to half a length away must still be kept
        shift = torch.nn.functional.normalize(torch.randn(20_000, 3), dim=1) * (0.5 * length)
        middle = (xyz + shift)[inside]
        within = (middle.abs() <= 1).all(1)
        assert space.may_hold(middle[within], torch.full((int(within.sum()),), length)).all()


def test_coarser_footprints_take_fewer_samples(octree):
    fine = len(run_march(octree, full_occupancy(octree), make_rays(100, radius=0.004), max_samples=4096))
    coarse = len(run_march(octree, full_occupancy(octree), make_rays(100, radius=0.016), max_samples=4096))
    assert 3.0 < fine / coarse < 5.0


def test_max_samples_caps_the_candidates_of_a_ray(octree):
    samples = run_march(octree, full_occupancy(octree), make_rays(50, radius=1e-4), max_samples=64)
    assert torch.bincount(samples.ray).max() <= 64 + 8


def test_without_a_generator_sampling_repeats_and_with_one_it_varies(octree):
    rays, occupancy = make_rays(50), full_occupancy(octree)
    assert torch.equal(run_march(octree, occupancy, rays).t, run_march(octree, occupancy, rays).t)
    first = run_march(octree, occupancy, rays, torch.Generator().manual_seed(1))
    again = run_march(octree, occupancy, rays, torch.Generator().manual_seed(1))
    other = run_march(octree, occupancy, rays, torch.Generator().manual_seed(2))
    assert torch.equal(first.t, again.t) and torch.equal(first.footprint, again.footprint)
    assert len(first) != len(other) or not torch.equal(first.t, other.t)
    exact = first.t * 0.004
    assert (first.footprint / exact).log2().abs().max() <= 0.5 + 1e-3


def test_the_tree_sampler_concentrates_on_a_wall(octree):
    rays = Rays(
        torch.tensor([[0.0, 0, 3]]).repeat(20, 1),
        torch.nn.functional.normalize(torch.tensor([[0.0, 0, -1]]) + 0.05 * torch.randn(20, 3), dim=1),
        torch.full((20,), 0.004),
        torch.zeros(20, dtype=torch.int64),
    )

    def wall(xyz, footprint):
        return torch.where((xyz[:, 2] - 0.25).abs() < 0.05, 200.0, 0.0)

    samples = sample_tree(rays, octree, wall, SamplerConfig(), rays.radius, None)
    assert torch.bincount(samples.ray).tolist() == [48] * 20
    assert (samples.delta >= 0).all() and (samples.xyz.abs() <= 1 + 1e-4).all()
    near_wall = ((samples.xyz[:, 2] - 0.3).abs() < 0.05).float().mean()
    assert near_wall > 0.5


def test_contraction_keeps_the_cube_and_bounds_the_rest():
    inside = torch.rand(100, 3) * 2 - 1
    torch.testing.assert_close(contract(inside), inside)
    outside = contract(torch.randn(1000, 3) * 1e4)
    assert (outside.abs() <= 2).all()
    edge = torch.tensor([[1.0 - 1e-6, 0.3, 0.2], [1.0 + 1e-6, 0.3, 0.2]])
    torch.testing.assert_close(contract(edge)[0], contract(edge)[1], atol=1e-5, rtol=0)


def test_background_starts_where_the_ray_leaves_the_cube():
    rays = make_rays(30)
    enter, leave = cube_span(rays, SamplerConfig().near)
    leave = torch.where(leave > enter, leave, torch.zeros_like(leave))
    which = torch.arange(30)
    samples = sample_background(rays, which, leave, 8, None)
    assert samples.xyz.shape == (30, 8, 3) and (samples.xyz >= 0).all() and (samples.xyz <= 1).all()
    # nothing of it lies in the image of the cube's inside, [1/4, 3/4]^3
    hit = leave > 0
    outside = ((samples.xyz < 0.25 - 1e-4) | (samples.xyz > 0.75 + 1e-4)).any(-1)
    assert outside[hit].all()
