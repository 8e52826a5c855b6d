"""The model: what rays see is repeatable, independent of their company, continuous in scale, and accounted for."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.octree.routing import route
from inf_nerf.octree.topology import BACKGROUND_KEY, Octree
from inf_nerf.render import compositing
from inf_nerf.render.model import Model
from inf_nerf.scene.cameras import Rays
from tests.train.tiny import MEAN_COLOUR, tiny_config, tiny_octree, tiny_scene, tiny_work

NUM_PHOTOS = 6
TRAINED = [0, 1, 2, 4, 5]


def make_model(octree: Octree | None = None, solid_ground: bool = True, config: Config | None = None) -> Model:
    """Clearly different densities and colours in every node, all cells occupied, appearance per photo."""
    model = Model(
        config or tiny_config(), octree or tiny_octree(), NUM_PHOTOS, TRAINED, torch.tensor(MEAN_COLOUR), solid_ground
    )
    model.field.tables.data.mul_(10_000)
    model.appearance.data.normal_(generator=torch.Generator().manual_seed(1))
    return model


def rays_from(origin: Tensor, direction: Tensor, radius: float = 0.018, photo: int = -1) -> Rays:
    count = len(origin)
    return Rays(
        origin,
        torch.nn.functional.normalize(direction.expand(count, 3), dim=1),
        torch.full((count,), radius),
        torch.full((count,), photo),
    )


def downward(side: int = 8, radius: float = 0.018, photo: int = -1) -> Rays:
    line = torch.linspace(-0.9, 0.9, side)
    xy = torch.cartesian_prod(line, line)
    origin = torch.cat([xy, torch.full((len(xy), 1), 1.2)], dim=1)
    return rays_from(origin, torch.tensor([[0.05, 0.02, -1.0]]), radius, photo)


def upward() -> Rays:
    """Rays above the cube that look at the sky."""
    generator = torch.Generator().manual_seed(0)
    origin = torch.rand(20, 3, generator=generator) * 2 - 1 + torch.tensor([0.0, 0.0, 2.5])
    direction = torch.rand(20, 3, generator=generator) - 0.5
    return rays_from(origin, torch.cat([direction[:, :2], 0.2 + direction[:, 2:].abs()], dim=1))


def photo_rays(photo: int = 1) -> Rays:
    return tiny_scene().cameras.image_rays(photo, 1)


@torch.no_grad()
def render(model: Model, rays: Rays, **named: Any) -> Any:
    return model.render(rays, **named)


def test_evaluation_repeats_to_the_bit() -> None:
    model = make_model()
    first, second = render(model, photo_rays(), lod_blend=0.5), render(model, photo_rays(), lod_blend=0.5)
    for name in ("rgb", "depth", "opacity", "level", "share"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_training_rays_are_jittered_by_their_generator_alone() -> None:
    pictures = [
        render(make_model(), photo_rays(), generator=torch.Generator().manual_seed(seed)).rgb for seed in (1, 1, 2)
    ]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


@pytest.mark.parametrize("sampler", [{}, {"kind": "tree", "tree_samples": [24, 12, 8]}])
def test_rays_see_the_same_alone_and_in_company(sampler: dict[str, Any]) -> None:
    model = make_model(config=tiny_config(sampler=sampler))
    rays = Rays.cat([photo_rays(1), downward(), upward(), photo_rays(4)])
    together = render(model, rays, lod_blend=0.5)
    chosen = torch.arange(0, len(rays), 37)
    apart = [render(model, rays[torch.tensor([index])], lod_blend=0.5) for index in chosen.tolist()]
    for name in ("rgb", "depth", "opacity", "level"):
        alone = torch.cat([getattr(found, name) for found in apart])
        torch.testing.assert_close(alone, getattr(together, name)[chosen], rtol=1e-4, atol=1e-5)


def gradients(model: Model, rays: Rays) -> tuple[Any, list[Tensor]]:
    """What is rendered with gradients, and what a loss on it leaves in the field."""
    rendered = model.render(rays)
    (rendered.rgb.square().sum() + rendered.depth.sum()).backward()
    leaves = (model.field.tables, model.field.density_weights, model.field.colour_weights)
    return rendered, [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]


def test_samples_behind_a_surface_cost_no_gradient_and_change_none(monkeypatch: pytest.MonkeyPatch) -> None:
    # opaque after a part of the cube
    config = tiny_config(field={"initial_density": 100.0, "backend": "torch"})
    found, gradient = gradients(make_model(config=config), photo_rays())
    monkeypatch.setattr(compositing, "DARK", math.inf)  # light reaches everything
    expected, expected_gradient = gradients(make_model(config=config), photo_rays())
    assert len(found.samples) < 0.9 * len(expected.samples) == 0.9 * found.num_samples
    torch.testing.assert_close(found.rgb, expected.rgb, atol=2e-3, rtol=0)
    assert len(gradient) == 3
    for ours, theirs in zip(gradient, expected_gradient, strict=True):
        assert float((ours - theirs).norm()) < 0.02 * float(theirs.norm())


def test_every_sample_has_its_own_gradient_where_light_reaches_all() -> None:
    """The pass that finds the light must not mix up samples: against gradients by difference quotients."""
    model = make_model(config=tiny_config(field={"backend": "torch"}))
    rays = photo_rays()[torch.arange(0, 40, 3)]
    rendered, (tables, _, _) = gradients(model, rays)
    assert len(rendered.samples) == rendered.num_samples
    strongest = tables.abs().flatten().topk(3).indices

    def loss() -> float:
        seen = render(model, rays)
        return float(seen.rgb.double().square().sum() + seen.depth.double().sum())

    flat = model.field.tables.data.view(-1)
    for place in strongest.tolist():
        values = []
        for shift in (1e-2, -1e-2):
            flat[place] += shift
            values.append(loss())
            flat[place] -= shift
        quotient = (values[0] - values[1]) / 2e-2
        assert quotient == pytest.approx(float(tables.flatten()[place]), rel=0.05)


def test_levels_are_not_mixed_with_gradients() -> None:
    with pytest.raises(ValueError, match=r"lod_blend is 0\.5"):
        make_model().render(photo_rays(), lod_blend=0.5)


def test_nodes_mixed_in_at_a_boundary_count_as_touched() -> None:
    model = make_model()
    gsd = float(model.octree.gsd[0])
    rays = downward(radius=gsd / 1.2 * 0.97)
    assert int(render(model, rays, lod_blend=1.0).touched.sum()) > int(render(model, rays).touched.sum())


def test_no_gradient_changes_no_colour() -> None:
    model = make_model()
    with_gradient = model.render(photo_rays())
    torch.testing.assert_close(render(model, photo_rays()).rgb, with_gradient.rgb.detach(), rtol=0, atol=5e-3)


def test_outputs_are_in_their_ranges() -> None:
    model = make_model()
    rays = Rays.cat([photo_rays(), upward()])
    found = render(model, rays)
    assert bool(((found.rgb >= 0) & (found.rgb <= 1 + 1e-5)).all())
    assert bool(((found.opacity >= 0) & (found.opacity <= 1)).all())
    assert bool(((found.level >= 0) & (found.level <= 2 + 1e-5)).all())
    enter, leave = found.span
    hit = leave > enter
    assert bool((found.depth[hit] >= enter[hit] * 0.9).all())
    assert bool((found.depth[hit] <= leave[hit] + 1e-4).all())


def test_no_rays_see_nothing() -> None:
    model = make_model()
    found = render(model, photo_rays()[:0])
    assert found.rgb.shape == (0, 3)
    assert found.num_samples == 0


@pytest.mark.parametrize("pruned", [False, True])
def test_share_sums_to_the_opacity(pruned: bool) -> None:
    octree = tiny_octree()
    if pruned:
        octree = octree.restrict({*octree.keys[octree.level < 2].tolist(), BACKGROUND_KEY})
    found = render(make_model(octree), photo_rays())
    torch.testing.assert_close(found.share[:-1].sum(), found.opacity.sum(), rtol=1e-4, atol=1e-4)
    assert len(found.share) == octree.num_nodes + 1
    assert bool((found.share > 0).logical_and(~found.touched)[:-1].logical_not().all())
    assert bool((found.foreign <= found.opacity + 1e-5).all())
    assert bool((found.foreign > 0.01).any()) == pruned


def test_what_a_rank_answers_for_another_is_foreign() -> None:
    tiny = tiny_work(tiny_config(), num_ranks=2, rank=0)
    rays = replace(downward(), direction=torch.tensor([0.0, 0.0, -1.0]).expand(64, 3))
    # with vertical rays and only the root shared, the subtree over the ground is the only owner they can meet
    node, _ = route(tiny_octree(), rays.origin * torch.tensor([1.0, 1.0, 0.1]), torch.full((64,), 1e-4))
    owner = tiny.partition.owners_of(tiny_octree().keys[node])
    assert owner.unique().tolist() == [0, 1]
    foreign = render(tiny.work.model, rays).foreign
    assert float(foreign[owner == 0].max()) == 0
    assert float(foreign[owner == 1].min()) > 0.05


def test_rays_that_miss_the_cube_see_only_the_background() -> None:
    model = make_model()
    found = render(model, upward())
    assert found.num_samples == 0
    assert bool((found.opacity == 0).all())
    assert torch.equal(found.share[:-1], torch.zeros(model.octree.num_nodes))
    assert float(found.share[-1]) == pytest.approx(20)
    assert found.touched.nonzero().flatten().tolist() == [model.background]
    other = render(model, upward(), backdrop=torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(other.rgb, found.rgb)
    assert found.rgb.std(0).max() > 1e-3


def test_without_background_samples_the_backdrop_shows() -> None:
    model = make_model(config=tiny_config(sampler={"background_samples": 0}))
    found = render(model, upward())
    torch.testing.assert_close(found.rgb, torch.tensor(MEAN_COLOUR).expand(20, 3))
    assert not bool(found.touched.any())


def test_background_never_explains_what_is_below_solid_ground() -> None:
    model = make_model(solid_ground=True)
    rays = downward()
    dark, bright = (render(model, rays, backdrop=torch.full((3,), value)) for value in (0.0, 1.0))
    assert float(dark.share[-1]) == 0
    assert not bool(dark.touched[-1])
    remaining = 1 - dark.opacity
    assert float(remaining.max()) > 0.01
    torch.testing.assert_close(bright.rgb - dark.rgb, remaining[:, None].expand(-1, 3), rtol=1e-4, atol=1e-5)
    model.field.load_state(
        model.background, {name: value + 1 for name, value in model.field.state_of(model.background).items()}
    )
    assert torch.equal(render(model, rays, backdrop=torch.zeros(3)).rgb, dark.rgb)


def test_background_is_seen_through_a_scene_without_ground() -> None:
    model = make_model(solid_ground=False)
    found = render(model, downward())
    assert float(found.share[-1]) == pytest.approx(float((1 - found.opacity).sum()), rel=1e-5)
    assert bool(found.touched[-1])


def test_photos_look_their_own_way_and_unknown_ones_the_mean() -> None:
    model = make_model()
    mean = render(model, downward())
    torch.testing.assert_close(
        render(model, downward(), appearance=model.appearance[TRAINED].mean(0)).rgb, mean.rgb, rtol=0, atol=1e-6
    )
    assert torch.equal(render(model, downward(photo=3)).rgb, mean.rgb)  # not a training photo
    own = render(model, downward(photo=2))
    assert not torch.allclose(own.rgb, mean.rgb, atol=1e-4)
    torch.testing.assert_close(render(model, downward(), appearance=model.appearance[2]).rgb, own.rgb)
    assert torch.equal(own.opacity, mean.opacity)


def fixed_footprint(model: Model, rays: Rays) -> Any:
    """Renders the same samples with one footprint, so that only the level changes."""
    samples = model.sample(rays, None)

    def at(footprint: float, lod_blend: float) -> Tensor:
        every = torch.full_like(samples.footprint, footprint)
        node, foreign = route(model.octree, samples.xyz, every)
        model.sample = lambda rays, generator: replace(samples, footprint=every, node=node, foreign=foreign)  # type: ignore[method-assign]
        return render(model, rays, lod_blend=lod_blend).rgb

    return at


def test_blend_is_continuous_where_levels_change() -> None:
    model = make_model(config=tiny_config(field={"backend": "torch"}))
    at = fixed_footprint(model, downward(radius=0.05))
    gsd = float(model.octree.gsd[0])
    footprints = [gsd * 2 ** (-step / 32) for step in range(-16, 80)]  # across both boundaries

    def largest_jump(lod_blend: float) -> float:
        pictures = [at(footprint, lod_blend) for footprint in footprints]
        return max(float((a - b).abs().max()) for a, b in pairwise(pictures))

    popping, blended = largest_jump(0.0), largest_jump(0.5)
    assert popping > 0.02
    assert blended < 0.25 * popping  # a sixteenth of the blend's width lies between neighbours


def test_blend_changes_nothing_far_from_boundaries() -> None:
    model = make_model(config=tiny_config(field={"backend": "torch"}))
    at = fixed_footprint(model, downward(radius=0.05))
    gsd = float(model.octree.gsd[0])
    for octaves in (0.5, -0.5, -1.5):
        footprint = gsd * 2**octaves
        torch.testing.assert_close(at(footprint, 0.5), at(footprint, 0.0), rtol=0, atol=1e-6)
    assert not torch.allclose(at(gsd * 2**-0.05, 0.5), at(gsd * 2**-0.05, 0.0), atol=1e-4)


def test_coarse_rays_are_answered_by_coarse_nodes() -> None:
    model = make_model()
    levels = [float(render(model, downward(radius=radius)).level.mean()) for radius in (0.5, 0.04, 0.01)]
    assert levels[0] == 0
    assert levels[0] < levels[1] < levels[2]


def test_tree_sampler_renders_what_the_other_one_does() -> None:
    model = make_model()
    tree = make_model(config=tiny_config(sampler={"kind": "tree", "tree_samples": [192, 96, 96]}))
    one, other = render(model, downward(radius=0.004)), render(tree, downward(radius=0.004))
    assert other.num_samples == 96 * 64
    torch.testing.assert_close(other.opacity, one.opacity, rtol=0, atol=0.03)
    torch.testing.assert_close(other.depth, one.depth, rtol=0, atol=0.05)
    torch.testing.assert_close(other.rgb, one.rgb, rtol=0, atol=0.03)


def test_density_is_asked_at_the_level_that_fits() -> None:
    model = make_model()
    generator = torch.Generator().manual_seed(2)
    xyz = torch.rand(300, 3, generator=generator) * 2 - 1
    footprint = torch.exp2(torch.rand(300, generator=generator) * 4 - 7)
    with torch.no_grad():
        found = model.density(xyz, footprint)
        node, _ = route(model.octree, xyz, footprint)
        assert len(node.unique()) > 5
        for sample in range(0, 300, 17):
            one = node[sample : sample + 1]
            expected, _ = model.field.density(model.octree.to_local(xyz[sample : sample + 1], one), one)
            torch.testing.assert_close(found[sample], expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", [{}, {"kind": "tree", "tree_samples": [24, 12, 8]}])
def test_nothing_outside_a_box_is_sampled(sampler: dict[str, Any]) -> None:
    box = torch.tensor([[-0.4, -0.2, -0.1], [0.3, 0.5, 0.3]])
    around = torch.tensor([0.1, 0.2, 0.3])
    model = make_model(config=tiny_config(sampler=sampler, field={"backend": "torch"}))
    boxed = model.seen(0.0, box, around)
    rays = photo_rays()
    samples = boxed.sample(rays, None)
    assert len(samples) and len(model.sample(rays, None)) > len(samples)
    assert bool(((samples.xyz >= box[0] - 1e-3) & (samples.xyz <= box[1] + 1e-3)).all())
    seen = render(boxed, rays)
    misses = seen.span[0] >= seen.span[1]
    assert 0 < int(misses.sum()) < len(rays)
    torch.testing.assert_close(seen.rgb[misses], around.expand(int(misses.sum()), 3))
    assert not bool(seen.touched[-1])  # the background
    assert model.box is None and bool(render(model, upward()).touched[-1])


def test_compiled_rays_see_the_same_box() -> None:
    box, around = torch.tensor([[-0.4, -0.2, -0.1], [0.3, 0.5, 0.3]]), torch.zeros(3)
    seen = [
        render(make_model(config=tiny_config(field={"backend": backend})).seen(0.0, box, around), photo_rays())
        for backend in ("torch", "numba")
    ]
    torch.testing.assert_close(seen[0].rgb, seen[1].rgb, atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[0].depth, seen[1].depth, atol=1e-3, rtol=0)


def test_larger_pixels_are_those_of_rays_with_larger_footprints() -> None:
    model, rays = make_model(), photo_rays()
    larger = replace(rays, radius=rays.radius * 4)
    once, twice = render(model.seen(2.0, None, torch.zeros(3)), rays), render(model, larger)
    assert torch.equal(once.rgb, twice.rgb) and torch.equal(once.level, twice.level)
    assert bool((once.level <= render(model, rays).level + 1e-6).all())
