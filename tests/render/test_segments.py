"""Rays cut into segments: nobody else's samples lie inside one, and together they are the ray."""

import pytest
import torch
from torch import Tensor

from inf_nerf.octree.topology import Octree
from inf_nerf.render.compositing import composite
from inf_nerf.render.sampling import Part, Samples
from inf_nerf.render.segments import NUM_VALUES, join, segments_of, subtree_roots, summed
from inf_nerf.scene.cameras import Rays
from inf_nerf.train.losses import ray_spread
from tests.train.tiny import tiny_config, tiny_octree, tiny_work


def grazing(count: int, seed: int) -> Rays:
    """Rays in all directions, most nearly level with the ground, from outside and inside, with all footprints."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.rand(count, generator=generator) * 2 * torch.pi
    tilt = (torch.rand(count, generator=generator) - 0.6) * 0.6
    direction = torch.stack((angle.cos() * tilt.cos(), angle.sin() * tilt.cos(), tilt.sin()), 1)
    through = torch.rand(count, 3, generator=generator) * torch.tensor([1.6, 1.6, 0.3]) - torch.tensor([0.8, 0.8, 0.0])
    origin = through - direction * (0.1 + 2 * torch.rand(count, 1, generator=generator))
    radius = 0.004 * 2 ** (4 * torch.rand(count, generator=generator))
    return Rays(origin, direction, radius, torch.full((count,), -1))


def shared_of(octree: Octree, levels: int) -> Tensor:
    return octree.level < levels


def slow_keys(samples: Samples, octree: Octree, levels: int) -> list[tuple[int, ...]]:
    """For every sample its ray and its owned subtree's key, or its shared node's key and the octant."""
    found = []
    for ray, node, xyz in zip(samples.ray.tolist(), samples.node.tolist(), samples.xyz, strict=True):
        key, level = int(octree.keys[node]), int(octree.level[node])
        if level >= levels:
            found.append((ray, key >> 3 * (level - levels)))
        else:
            x, y, z = (xyz >= octree.centre[node]).tolist()
            found.append((ray, key, 4 * x + 2 * y + z))
    return found


@pytest.mark.parametrize("kind", ["occupancy", "tree"])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_samples_of_a_segment_are_all_of_its_key_and_lie_behind_each_other(levels: int, kind: str) -> None:
    model = tiny_work(tiny_config(sampler={"kind": kind, "tree_samples": [64, 48, 96]})).work.model
    for seed in range(4):
        samples = model.sample(grazing(150, seed), torch.Generator().manual_seed(seed))
        segments = segments_of(samples, model.octree, subtree_roots(model.octree, shared_of(model.octree, levels)))
        keys = slow_keys(samples, model.octree, levels)
        assert len(segments) == len(set(keys)) > 300  # as many stretches of equal keys as there are keys
        by_segment: dict[int, set[tuple[int, ...]]] = {}
        for segment, key in zip(segments.of_sample.tolist(), keys, strict=True):
            by_segment.setdefault(segment, set()).add(key)
        assert all(len(found) == 1 for found in by_segment.values())
        crossings = torch.bincount(segments.ray)
        assert int(crossings.max()) >= 4
        first = torch.searchsorted(segments.of_sample, torch.arange(len(segments)))
        assert torch.equal(segments.start, samples.t[first])
        assert torch.equal(segments.ray, samples.ray[first])


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("levels", [1, 2])
def test_every_sample_is_answered_by_one_part(num_ranks: int, levels: int) -> None:
    rays = grazing(120, 9)
    drawn_by = torch.arange(len(rays)) % num_ranks
    whole = tiny_work().work.model
    samples = whole.sample(rays, None)
    expected = sorted(
        zip(samples.ray.tolist(), samples.t.tolist(), whole.octree.keys[samples.node].tolist(), strict=True)
    )
    found = []
    for rank in range(num_ranks):
        work = tiny_work(None, num_ranks, rank, levels).work
        octree, part = work.model.octree, Part(work.shared[:-1], drawn_by == rank)
        own = work.model.sample(rays, None)
        own = own[part.holds(own)]
        assert len(own) < len(samples)
        found += zip(own.ray.tolist(), own.t.tolist(), octree.keys[own.node].tolist(), strict=True)
    assert sorted(found) == expected


@pytest.mark.parametrize("levels", [1, 2])
def test_joined_segments_are_the_rendered_ray(levels: int) -> None:
    work = tiny_work().work
    model, rays = work.model, grazing(200, 3)
    model.field.tables.data.mul_(3000)
    rendered = model.render(rays, backdrop=torch.zeros(3))
    lit = model.lit_samples(rays, None)
    segments = segments_of(lit.samples, model.octree, subtree_roots(model.octree, shared_of(model.octree, levels)))
    sigma, rgb = lit.density, torch.rand(len(lit.samples), 3, generator=torch.Generator().manual_seed(1))
    values = summed(sigma, rgb, lit.delta, lit.samples, segments, rendered.span)
    assert values.shape == (len(segments), NUM_VALUES)
    joined = join(values, segments.ray, rendered.span)
    weights, light = composite(sigma, lit.delta, lit.samples.ray, len(rays))
    colour = torch.zeros(len(rays), 3).index_add(0, lit.samples.ray, weights[:, None] * rgb)
    torch.testing.assert_close(joined.rgb, colour, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(joined.light, light, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(joined.light, 1 - rendered.opacity, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(joined.spread, ray_spread(rendered), rtol=1e-3, atol=1e-5)
    leave = torch.where(rendered.span[1] > rendered.span[0], rendered.span[1], 0.0)
    torch.testing.assert_close(joined.distance + joined.light * leave, rendered.depth, rtol=1e-4, atol=1e-4)
    assert bool((joined.spread > 1e-3).any())


def test_joined_values_have_right_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    ray = torch.tensor([0, 0, 0, 2, 2, 3])
    span = (torch.tensor([1.0, 1.0, 0.5, 0.5]).double(), torch.tensor([3.0, 0.0, 2.0, 2.0]).double())
    values = torch.rand(6, NUM_VALUES, generator=generator, dtype=torch.float64).requires_grad_()

    def of(values: Tensor) -> tuple[Tensor, ...]:
        found = join(values, ray, span)
        return found.rgb, found.distance, found.spread, found.light

    assert torch.autograd.gradcheck(of, (values,))


def test_nothing_joins_to_nothing() -> None:
    span = (torch.ones(2), torch.full((2,), 2.0))
    joined = join(torch.zeros(0, NUM_VALUES), torch.zeros(0, dtype=torch.int64), span)
    assert torch.equal(joined.rgb, torch.zeros(2, 3))
    assert torch.equal(joined.light, torch.ones(2))


def test_a_subtree_has_one_root() -> None:
    octree = tiny_octree()
    root = subtree_roots(octree, shared_of(octree, 2))
    for node, key in enumerate(octree.keys.tolist()):
        level = int(octree.level[node])
        wanted = -1 if level < 2 else int(octree.index_of(torch.tensor(key >> 3 * (level - 2))))
        assert int(root[node]) == wanted
