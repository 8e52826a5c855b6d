"""Losses against loops and closed forms."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from inf_nerf.octree.partition import make_partition
from inf_nerf.octree.topology import Octree
from inf_nerf.render.compositing import composite
from inf_nerf.train import losses
from inf_nerf.train.losses import NodeLosses
from tests.train.tiny import tiny_config, tiny_octree, tiny_work

NUM_NODES = 4  # three of a tree and the background


def rendered(
    weights: list[float],
    ray: list[int],
    node: list[int],
    foreign: list[bool],
    num_rays: int,
    t: list[float] | None = None,
    delta: list[float] | None = None,
    span: tuple[list[float], list[float]] = ([], []),
) -> Any:
    """What losses read of `Rendered`."""
    w, r = torch.tensor(weights), torch.tensor(ray)
    samples = SimpleNamespace(
        ray=r,
        node=torch.tensor(node),
        foreign=torch.tensor(foreign),
        t=torch.tensor(t or weights),
        delta=torch.tensor(delta or weights),
    )
    return SimpleNamespace(
        samples=samples,
        weights=w,
        opacity=torch.zeros(num_rays).index_add(0, r, w),
        foreign=torch.zeros(num_rays).index_add(0, r, w * samples.foreign),
        span=(torch.tensor(span[0]), torch.tensor(span[1])),
    )


class Fake:
    """A field whose density is a function of node and node-local position."""

    def __init__(self, octree: Octree, sigma: Any) -> None:
        self.octree = octree
        self.field = self
        self.asked: list[tuple[Tensor, Tensor]] = []
        self._sigma = sigma

    def density(self, xyz: Tensor, node: Tensor) -> tuple[Tensor, None]:
        self.asked.append((xyz, node))
        return self._sigma(xyz, node), None


def chain() -> Octree:
    """A root, its octant 7, and octant 0 of that."""
    return Octree.from_keys(torch.tensor([1, 15, 120]), torch.tensor([9, 6, 3]), root_gsd=0.1)


def node_losses(octree: Octree, nodes: int = 3, points: int = 5) -> NodeLosses:
    config = tiny_config(loss={"regularised_nodes": nodes, "regularised_points": points})
    return NodeLosses.of(config, octree, octree, make_partition(octree, 1, 1), 0)


def generators(*nodes: int) -> list[tuple[int, torch.Generator]]:
    return [(node, torch.Generator().manual_seed(seed)) for seed, node in enumerate(nodes)]


def test_ray_weights_by_hand() -> None:
    found = rendered(
        # own; shared; foreign stand-in of a shared node; half own, half shared; 0.2 own, 0.3 foreign, 0.5 background
        [1.0, 1.0, 1.0, 0.5, 0.5, 0.2, 0.3],
        [0, 1, 2, 3, 3, 4, 4],
        [1, 0, 0, 2, 0, 1, 0],
        [False, False, True, False, False, False, True],
        6,
    )
    weight = losses.ray_weights(found)
    torch.testing.assert_close(weight, torch.tensor([1.0, 1.0, 0.0, 1.0, 0.7, 1.0]))


def test_ray_weights_carry_no_gradient() -> None:
    found = rendered([0.6], [0], [0], [False], 1)
    found.weights.requires_grad_(True)
    found.opacity = found.weights * 1
    assert not losses.ray_weights(found).requires_grad


def test_photometric_equals_the_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    rgb, target = torch.rand(7, 3, generator=generator), torch.rand(7, 3, generator=generator)
    weight = torch.rand(7, generator=generator)
    expected = sum(float(weight[r]) * sum(float(rgb[r, c] - target[r, c]) ** 2 for c in range(3)) / 3 for r in range(7))
    assert float(losses.photometric(rgb, target, weight, 20)) == pytest.approx(expected / 20, rel=1e-5)


def test_depth_is_huber_in_footprints() -> None:
    footprint = torch.tensor([0.01, 0.02, 0.01, 0.5])
    error = torch.tensor([0.5, -0.25, 4.0, -3.0]) * losses.DEPTH_SCALE * footprint
    target = torch.tensor([1.0, 2.0, 3.0, 60.0])
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0])
    expected = 0.5 * 0.5**2 + 2 * 0.5 * 0.25**2 + 0.5 * (4 - 0.5) + (3 - 0.5)
    found = losses.depth(target + error, target, footprint, weight, 10)
    assert float(found) == pytest.approx(expected / 10, rel=1e-4)


def test_depth_counts_alike_near_and_far() -> None:
    one, footprint = torch.ones(1), torch.tensor([0.003])
    near = losses.depth(one + 0.01, one, footprint, one, 1)
    far = losses.depth(8 * (one + 0.01), 8 * one, 8 * footprint, one, 1)
    assert float(near) == pytest.approx(float(far), rel=1e-3)


def test_spread_equals_the_double_loop() -> None:
    enter, leave = [1.0, 2.0], [3.0, 2.5]
    ray, t, delta = [0, 0, 0, 1, 1], [1.1, 1.5, 2.8, 2.1, 2.4], [0.1, 0.2, 0.3, 0.05, 0.1]
    weights = [0.2, 0.5, 0.1, 0.4, 0.6]
    found = rendered(weights, ray, [0] * 5, [False] * 5, 2, t, delta, (enter, leave))
    per_ray = [0.0, 0.0]
    for i in range(5):
        length = leave[ray[i]] - enter[ray[i]]
        per_ray[ray[i]] += weights[i] ** 2 * delta[i] / length / 3
        for j in range(5):
            if ray[i] == ray[j]:
                per_ray[ray[i]] += weights[i] * weights[j] * abs(t[i] - t[j]) / length
    value = losses.spread(losses.ray_spread(found), torch.tensor([1.0, 0.5]), 4)
    assert float(value) == pytest.approx((per_ray[0] + 0.5 * per_ray[1]) / 4, rel=1e-5)


def test_spread_prefers_one_surface_to_two() -> None:
    span = ([0.0], [1.0])
    one = rendered([0.5, 0.5], [0, 0], [0, 0], [False] * 2, 1, [0.50, 0.51], [0.01, 0.01], span)
    two = rendered([0.5, 0.5], [0, 0], [0, 0], [False] * 2, 1, [0.1, 0.9], [0.01, 0.01], span)
    weight = torch.ones(1)
    assert losses.spread(losses.ray_spread(one), weight, 1) < 0.1 * losses.spread(losses.ray_spread(two), weight, 1)


def test_spread_has_finite_gradients_for_rays_that_miss_the_cube() -> None:
    sigma = torch.tensor([3.0, 2.0], requires_grad=True)
    delta = torch.tensor([0.1, 0.1])
    weights, _ = composite(sigma, delta, torch.tensor([0, 0]), 2)
    found = rendered([0.5, 0.5], [0, 0], [0, 0], [False] * 2, 2, [1.1, 1.2], [0.1, 0.1], ([1.0, 0.02], [2.0, 0.0]))
    found.weights = weights
    losses.spread(losses.ray_spread(found), torch.ones(2), 2).backward()
    assert sigma.grad is not None
    assert bool(sigma.grad.isfinite().all())


def test_transparency_by_hand() -> None:
    octree = chain()
    model: Any = Fake(octree, lambda xyz, node: 2.0 + node.float())
    value = node_losses(octree).transparency(model, generators(0, 2))
    gsd = octree.gsd.tolist()
    expected = (1 - math.exp(-2 * gsd[0]) + 1 - math.exp(-4 * gsd[2])) / 3
    assert float(value) == pytest.approx(expected, rel=1e-5)
    ((xyz, node),) = model.asked
    assert xyz.shape == (10, 3)
    assert bool(((xyz >= 0) & (xyz <= 1)).all())
    assert len({tuple(place) for place in xyz.tolist()}) == 10
    assert node.tolist() == [0] * 5 + [2] * 5


def test_consistency_is_zero_for_the_same_transparency() -> None:
    octree = chain()
    model: Any = Fake(octree, lambda xyz, node: torch.full((len(xyz),), 3.0))
    assert float(node_losses(octree).consistency(model, generators(1, 2))) == pytest.approx(0, abs=1e-12)


def test_consistency_by_hand() -> None:
    octree = chain()
    model: Any = Fake(octree, lambda xyz, node: 1.0 + 5.0 * node.float())
    value = node_losses(octree).consistency(model, generators(1, 2))
    gsd = octree.gsd.tolist()
    first = (math.exp(-6 * gsd[1]) - math.exp(-1 * gsd[1])) ** 2
    second = (math.exp(-11 * gsd[2]) - math.exp(-6 * gsd[2])) ** 2
    assert float(value) == pytest.approx((first + second) / 3, rel=1e-4)


def test_consistency_compares_the_parent_with_the_mean_of_a_stencil_one_gsd_wide() -> None:
    octree = chain()
    child = 1

    def scene_position(xyz: Tensor, node: Tensor) -> Tensor:
        return octree.centre[node] + (xyz * 2 - 1) * octree.half[node, None]

    model: Any = Fake(octree, lambda xyz, node: 1 + scene_position(xyz, node).square().sum(1))
    value = node_losses(octree).consistency(model, generators(child))
    ((asked, node),) = model.asked
    assert node.tolist() == [0] * 5 + [child] * 35  # the parent at five points, the child at seven around each
    (coarse, fine), (coarse_node, fine_node) = asked.split([5, 35]), node.split([5, 35])
    assert bool(((fine >= -1e-6) & (fine <= 1 + 1e-6)).all())
    gsd = float(octree.gsd[child])
    expected = 0.0
    stencil = scene_position(fine, fine_node).view(5, 7, 3)
    for centre, parent_place in zip(stencil, scene_position(coarse, coarse_node), strict=True):
        torch.testing.assert_close(centre[0], parent_place, rtol=0, atol=1e-5)
        offsets = (centre[1:] - centre[0]).abs()
        torch.testing.assert_close(offsets.sum(1), torch.full((6,), gsd), rtol=0, atol=1e-5)
        mean = sum(math.exp(-(1 + float(place.square().sum())) * gsd) for place in centre) / 7
        expected += (mean - math.exp(-(1 + float(centre[0].square().sum())) * gsd)) ** 2 / 5
    assert float(value) == pytest.approx(expected / 3, rel=1e-2)


def test_consistency_teaches_both_parent_and_child() -> None:
    work = tiny_work().work
    model = work.model
    model.field.tables.data.mul_(3000)
    work.node_losses.consistency(model, generators(3)).backward()
    assert model.field.touched.nonzero().flatten().tolist() == [0, 3]
    assert model.field.density_weights.grad is not None
    assert bool((model.field.density_weights.grad[[0, 3]].abs().sum(1) > 0).all())


def test_no_drawn_node_is_no_loss() -> None:
    octree = chain()
    model: Any = Fake(octree, None)
    assert float(node_losses(octree).transparency(model, [])) == 0
    assert float(node_losses(octree).consistency(model, [])) == 0


def test_a_tree_of_one_node_has_no_consistency() -> None:
    root = Octree.from_keys(torch.tensor([1]), torch.tensor([9]), root_gsd=0.1)
    transparency, consistency = node_losses(root).draw(step=4)
    assert [node for node, _ in transparency] == [0, 0, 0]
    assert consistency == []


@pytest.mark.parametrize(("num_ranks", "shared_levels"), [(2, 1), (3, 1), (2, 2)])
def test_node_losses_of_all_ranks_add_up_to_those_of_one(num_ranks: int, shared_levels: int) -> None:
    def values(of: int, rank: int) -> Tensor:
        work = tiny_work(tiny_config(loss={"regularised_nodes": 6}), of, rank, shared_levels).work
        work.model.field.tables.data.mul_(3000)
        drawn = [work.node_losses.draw(step) for step in range(3)]
        with torch.no_grad():
            return torch.stack(
                [
                    torch.stack(
                        [
                            work.node_losses.transparency(work.model, transparency),
                            work.node_losses.consistency(work.model, consistency),
                        ]
                    )
                    for transparency, consistency in drawn
                ]
            )

    ranks = [values(num_ranks, rank) for rank in range(num_ranks)]
    torch.testing.assert_close(torch.stack(ranks).sum(0), values(1, 0), rtol=1e-5, atol=1e-10)
    assert all(bool((found > 0).any()) for found in ranks)


def test_draws_differ_from_step_to_step_and_never_hit_the_root_for_consistency() -> None:
    octree = tiny_octree()
    drawn = node_losses(octree, nodes=50)
    first, second = drawn.draw(1), drawn.draw(2)
    assert [node for node, _ in first[0]] != [node for node, _ in second[0]]
    assert min(node for node, _ in first[1]) >= 1
    assert {node for node, _ in first[0]} <= set(range(octree.num_nodes))
    points = [torch.rand(3, generator=generator) for _, generator in first[0][:2]]
    assert not torch.equal(points[0], points[1])


def test_appearance_prior_by_hand() -> None:
    appearance = torch.tensor([[1.0, 3.0], [0.0, 2.0]])
    value = losses.appearance_prior(appearance, torch.tensor([0, 0, 1]), 6)
    assert float(value) == pytest.approx((5 + 5 + 2) / 6)


def test_no_appearance_numbers_is_no_loss() -> None:
    assert float(losses.appearance_prior(torch.zeros(2, 0), torch.tensor([0, 1]), 2)) == 0
