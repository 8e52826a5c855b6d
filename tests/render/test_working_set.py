"""The working set holds every node that rays ask, and little else."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inf_nerf.config import SamplerConfig
from inf_nerf.octree.routing import blend_neighbour, route
from inf_nerf.octree.topology import Octree
from inf_nerf.render.sampling import cube_span
from inf_nerf.render.working_set import Bundles, working_set
from inf_nerf.scene.cameras import Rays
from tests.octree.conftest import grow, prune
from tests.train.tiny import tiny_scene

NEAR = SamplerConfig().near
seeds = st.integers(0, 10_000)


def random_rays(seed: int, count: int = 40) -> Rays:
    """Rays from one place or several, near or far, parallel or in all directions, with pixels of several sizes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    width, spread = float(draw(1)) ** 3 * 2, (0.0, 0.1, 1.0)[seed % 3]
    eye = (draw(1, 3) * 2 - 1) * (0.9, 1.5, 20.0)[seed // 3 % 3]
    target = draw(1, 3) * 2 - 1
    origin = eye + spread * (draw(count, 3) - 0.5)
    direction = torch.nn.functional.normalize(target - eye, dim=1) + width * (draw(count, 3) - 0.5)
    radius = 2.0 ** -(2 + 8 * draw(1)) * (1 + draw(count))
    return Rays(origin, torch.nn.functional.normalize(direction, dim=1), radius, torch.full((count,), -1))


def asked(tree: Octree, rays: Rays, footprint_px: float, lod_blend: float, per_ray: int = 60) -> set[int]:
    """Nodes that samples all along the rays ask."""
    enter, leave = cube_span(rays, NEAR)
    hit = leave > enter
    if not bool(hit.any()):
        return set()
    t = torch.logspace(0, 1, per_ray, base=2) - 1
    t = enter[hit, None] * (leave / enter)[hit, None] ** t  # [R, per_ray], near ones denser
    xyz = (rays.origin[hit, None] + rays.direction[hit, None] * t[..., None]).view(-1, 3)
    footprint = (t * rays.radius[hit, None] * footprint_px).view(-1)
    node, _ = route(tree, xyz, footprint)
    second, weight = blend_neighbour(tree, xyz, footprint, lod_blend, node)
    return set(node.tolist()) | set(second[weight > 0].tolist())


@settings(max_examples=150, deadline=None)
@given(seeds, seeds, st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.5, 1.0]))
def test_no_node_that_rays_ask_is_missing(tree_seed: int, seed: int, lod_blend: float, footprint_px: float) -> None:
    tree = prune(grow(tree_seed), tree_seed)
    rays = random_rays(seed)
    found = working_set(tree, Bundles.of(rays, footprint_px), lod_blend, near=NEAR)
    assert asked(tree, rays, footprint_px, lod_blend) <= set(found.tolist())


@settings(max_examples=40, deadline=None)
@given(seeds, seeds)
def test_bundles_of_bundles_miss_nothing_either(tree_seed: int, seed: int) -> None:
    tree, rays = grow(tree_seed), random_rays(seed)
    group = torch.arange(len(rays)) % 5
    parts = Bundles.of(rays, 1.0, group)
    assert len(parts) == 5
    every = asked(tree, rays, 1.0, 0.5)
    assert every <= set(working_set(tree, parts, 0.5, near=NEAR).tolist())
    assert every <= set(working_set(tree, parts.joined(), 0.5, near=NEAR).tolist())
    chosen = parts[torch.tensor([1, 3])].joined()
    assert asked(tree, rays[(group == 1) | (group == 3)], 1.0, 0.5) <= set(
        working_set(tree, chosen, 0.5, near=NEAR).tolist()
    )


def by_looking_at_all_nodes(tree: Octree, bundle: Bundles, lod_blend: float) -> set[int]:
    """The rule node by node, in plain numbers."""
    eye, axis = bundle.centre[0].tolist(), bundle.axis[0].tolist()
    found = {0}
    for node in range(1, tree.num_nodes):
        if int(tree.parent[node]) not in found:
            continue
        centre, half = tree.centre[node].tolist(), float(tree.half[node])
        distance = math.dist(centre, eye)
        size = half * math.sqrt(3) + float(bundle.spread)
        if distance > size:
            cosine = sum((c - e) * a for c, e, a in zip(centre, eye, axis, strict=True)) / distance
            off = math.acos(min(1, max(-1, cosine)))
            if off > float(bundle.angle) + math.asin(size / distance):
                continue
        gap = [max(0.0, abs(c - e) - half) for c, e in zip(centre, eye, strict=True)]
        footprint = max(math.hypot(*gap) - float(bundle.spread), NEAR) * float(bundle.radius)
        if footprint < float(tree.gsd[tree.parent[node]]) * 2 ** (lod_blend / 2):
            found.add(node)
    return found


@settings(max_examples=60, deadline=None)
@given(seeds, seeds)
def test_descending_equals_looking_at_all_nodes(tree_seed: int, seed: int) -> None:
    tree, bundle = grow(tree_seed), Bundles.of(random_rays(seed), 1.0)
    found = working_set(tree, bundle, 0.5, near=NEAR)
    slow = by_looking_at_all_nodes(tree, bundle, 0.5)
    assert slow <= set(found.tolist())  # the slack may add one that is just not met
    assert len(found) <= len(slow) + max(1, len(slow) // 20)


@settings(max_examples=40, deadline=None)
@given(seeds, seeds)
def test_the_set_is_a_tree_in_the_order_of_its_keys(tree_seed: int, seed: int) -> None:
    tree = grow(tree_seed)
    found = working_set(tree, Bundles.of(random_rays(seed), 1.0), near=NEAR)
    assert found[0] == 0
    assert bool((found.diff() > 0).all())
    assert torch.equal(tree.restrict(tree.keys[found].tolist()).keys, tree.keys[found])


def test_a_coarse_view_needs_the_root_alone_and_a_narrow_one_few_nodes() -> None:
    tree = next(tree for tree in map(grow, range(50)) if tree.num_nodes > 100)
    rays = tiny_scene().cameras.image_rays(1, 0)
    coarse = Rays(rays.origin, rays.direction, rays.radius * 1e6, rays.photo)
    assert working_set(tree, Bundles.of(coarse, 1.0), near=NEAR).tolist() == [0]
    whole = working_set(tree, Bundles.of(rays, 0.01), near=NEAR)
    one = working_set(tree, Bundles.of(rays[:1], 0.01), near=NEAR)
    assert len(one) < len(whole) / 4
    assert set(one.tolist()) <= set(whole.tolist())


def test_opposite_directions_reach_everywhere() -> None:
    tree = grow(3)
    direction = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    rays = Rays(torch.zeros(2, 3), direction, torch.full((2,), 1e-9), torch.full((2,), -1))
    bundle = Bundles.of(rays, 1.0)
    assert float(bundle.angle) >= math.pi / 2
    assert asked(tree, rays, 1.0, 0.5) <= set(working_set(tree, bundle, 0.5, near=NEAR).tolist())


def test_what_is_nearer_than_a_ray_begins_is_not_asked_finely() -> None:
    tree = grow(3)
    rays = Rays(torch.zeros(1, 3), torch.tensor([[0.6, 0.6, 0.53]]), torch.full((1,), 0.1), torch.full((1,), -1))
    counts = [len(working_set(tree, Bundles.of(rays, 1.0), near=near)) for near in (1e-4, 0.02, 0.5)]
    assert counts[0] > counts[2] and counts == sorted(counts, reverse=True)


def test_no_ray_is_no_bundle() -> None:
    with pytest.raises(ValueError, match="at least one ray"):
        Bundles.of(random_rays(0)[:0], 1.0)
