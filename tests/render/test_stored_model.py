"""Pictures from a store are those of the whole model, or coarser ones where the budget says so, but always the same."""

import random
from contextlib import closing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_nerf.octree.routing import route
from inf_nerf.render.images import Crop, RenderedImage, render_image
from inf_nerf.render.model import Model
from inf_nerf.render.poses import look_at
from inf_nerf.render.stored_model import BLOCK, PROBE, StoredModel, Surface, block_bundles, probes
from inf_nerf.scene.cameras import Cameras
from tests.octree.conftest import grow
from tests.render.stored_nodes import MemorySource, stored, whole_model
from tests.train.tiny import tiny_config

TREE = next(tree for tree in map(grow, range(200)) if 40 < tree.num_nodes < 120 and tree.num_levels > 3)
MODEL = whole_model(TREE)
ROW = MODEL.field.node_bytes + MODEL.cells.resolution**3


def views(seed: int, count: int = 3, width: int = 96, height: int = 70) -> Cameras:
    """Cameras inside and outside the cube."""
    draw = random.Random(seed)
    poses = []
    for _ in range(count):
        reach = draw.choice([0.8, 2.0])
        eye = tuple(draw.uniform(-reach, reach) for _ in range(3))
        poses.append(torch.from_numpy(look_at(eye, tuple(draw.uniform(-0.5, 0.5) for _ in range(3)))))
    return Cameras.pinhole(torch.stack(poses), width, height, draw.choice([20.0, 60.0, 100.0]))


def picture(model: Model | StoredModel, cameras: Cameras, photo: int = 0, crop: Crop | None = None) -> RenderedImage:
    return render_image(model, cameras, photo, 0, rays_per_chunk=500, lod_blend=0.5, crop=crop)


def assert_same(found: RenderedImage, expected: RenderedImage) -> None:
    """To the last bit; only sums over pixels may be rounded in another order."""
    for name in ("rgb", "depth", "opacity", "level", "touched"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.share, expected.share, rtol=1e-4, atol=1e-3)
    assert found.num_samples == expected.num_samples


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10_000))
def test_pictures_of_a_sufficient_budget_are_those_of_the_whole_model(seed: int) -> None:
    cameras = views(seed)
    with closing(stored(MODEL, 200 * ROW).cache) as cache:
        model = StoredModel(MODEL, TREE, cache)
        for photo in range(len(cameras)):
            assert_same(picture(model, cameras, photo), picture(MODEL, cameras, photo))


@pytest.mark.parametrize("kind", ["occupancy", "tree"])
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_every_sampler_and_backend_sees_the_same(kind: str, backend: str) -> None:
    config = tiny_config(sampler={"kind": kind, "tree_samples": [24, 12, 8]}, field={"backend": backend})
    whole = whole_model(TREE, config)
    with closing(stored(whole, 200 * ROW).cache) as cache:
        for seed in range(3):
            cameras = views(seed, 1, 40, 30)
            found, expected = (picture(model, cameras) for model in (StoredModel(whole, TREE, cache), whole))
            torch.testing.assert_close(found.rgb, expected.rgb, rtol=0, atol=1e-5)
            assert torch.equal(found.touched, expected.touched)


def test_a_picture_in_parts_is_the_whole_one() -> None:
    split = 0
    for seed in range(8):
        cameras = views(seed, 1)
        enough = stored(MODEL, 200 * ROW)
        [(_, nodes)] = enough._plan(cameras, 0, 0, Crop(0, 0, 96, 70), 0.5)
        for rows in range(3, len(nodes) + 1, 4):
            model = stored(MODEL, rows * ROW)
            plan = model._plan(cameras, 0, 0, Crop(0, 0, 96, 70), 0.5)
            if len(plan) > 1 and max(len(part) for _, part in plan) < model.cache.num_rows - 1:
                assert_same(picture(model, cameras), picture(MODEL, cameras))
                assert model.cache.figures.peak_bytes <= rows * ROW
                split += 1
    assert split > 1


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 9])
def test_a_budget_that_is_too_small_gives_a_coarser_picture(rows: int) -> None:
    cameras = views(7, 2)
    model = stored(MODEL, rows * ROW)
    found = picture(model, cameras)
    assert bool(found.rgb.isfinite().all())
    assert bool(found.touched.any())
    assert model.cache.figures.peak_bytes <= rows * ROW
    if rows == 1:  # the backdrop behind the root
        alone = MODEL.over(TREE.restrict({1}), MODEL.field.first(torch.tensor([1])), MODEL.cells).without_background()
        assert torch.equal(found.rgb, picture(alone, cameras).rgb)
    if rows == 2:
        coarsest = MODEL.over(TREE.restrict({1}), MODEL.field.first(torch.tensor([1, 0])), MODEL.cells)
        coarsest.field.tables[1], coarsest.field.density_weights[1], coarsest.field.colour_weights[1] = (
            MODEL.field.tables[-1],
            MODEL.field.density_weights[-1],
            MODEL.field.colour_weights[-1],
        )
        assert torch.equal(found.rgb, picture(coarsest, cameras).rgb)


def test_the_picture_does_not_depend_on_what_was_held_before() -> None:
    cameras = views(11, 3)
    for rows in (3, 6, 12):
        fresh = picture(stored(MODEL, rows * ROW), cameras, 2)
        model = stored(MODEL, rows * ROW)
        for photo in (0, 1, 0, 2):
            model.expect(cameras, 2, 0, 0.5)
            again = picture(model, cameras, photo)
        model.cache.close()
        assert torch.equal(again.rgb, fresh.rgb)
        assert torch.equal(again.touched, fresh.touched)


def test_a_crop_in_parts_is_the_cut_out_of_the_whole() -> None:
    cameras, crop = views(3, 1), Crop(11, 5, 80, 69)
    whole = picture(MODEL, cameras)
    for rows in (12, 200):
        model = stored(MODEL, rows * ROW)
        found = picture(model, cameras, crop=crop)
        if rows == 200:
            assert torch.equal(found.rgb, whole.rgb[5:69, 11:80])
        assert found.rgb.shape == (64, 69, 3)


def test_parts_cover_every_pixel_once() -> None:
    cameras, crop = views(5, 1), Crop(7, 3, 95, 68)
    for rows in (2, 5, 9, 30):
        covered = torch.zeros(70, 96, dtype=torch.int64)
        plan = stored(MODEL, rows * ROW)._plan(cameras, 0, 0, crop, 0.0)
        for part, _ in plan:
            covered[part.top : part.bottom, part.left : part.right] += 1
        assert rows > 2 or len(plan) == 1  # the root answers everywhere
        assert bool((covered[3:68, 7:95] == 1).all())
        assert int(covered.sum()) == 65 * 88


def test_a_view_of_any_rays_answers_as_the_whole_model() -> None:
    rays = views(2, 1).image_rays(0, 0)[torch.arange(0, 96 * 70, 17)]
    with torch.no_grad():
        expected = MODEL.render(rays, lod_blend=0.5)
        found = stored(MODEL, 200 * ROW).render(rays, lod_blend=0.5)
        assert torch.equal(found.rgb, expected.rgb)
        assert bool(stored(MODEL, 2 * ROW).render(rays).rgb.isfinite().all())


def test_an_appearance_can_be_fitted_to_a_view() -> None:
    cameras = views(2, 1)
    rays = cameras.image_rays(0, 0)[torch.arange(0, 96 * 70, 97)]
    gradients = []
    for model in (MODEL, stored(MODEL, 200 * ROW).view(cameras, 0, 0, Crop(0, 0, 96, 70))):
        model.field.requires_grad_(False)
        look = torch.zeros(4, requires_grad=True)
        model.render(rays, appearance=look).rgb.square().sum().backward()
        gradients.append(look.grad)
        model.field.requires_grad_(True)
    assert torch.equal(gradients[0], gradients[1])
    assert bool(gradients[0].abs().max() > 0)


def test_blocks_know_their_rays() -> None:
    cameras = views(4, 1, 70, 40)
    blocks = block_bundles(cameras, 0, 0, Crop(0, 0, 70, 40), 1.0)
    assert len(blocks) == 3 * 2
    rays = cameras.image_rays(0, 0)
    x, y = torch.arange(70 * 40) % 70, torch.arange(70 * 40) // 70
    for block in range(6):
        mine = (x // BLOCK == block % 3) & (y // BLOCK == block // 3)
        off = torch.acos((rays.direction[mine].double() @ blocks.axis[block]).clamp(-1, 1))
        assert float(off.max()) <= float(blocks.angle[block]) + 1e-6
        assert float(off.max()) == pytest.approx(float(blocks.angle[block]), abs=1e-3)
        assert float(rays.radius[mine].min()) == pytest.approx(float(blocks.radius[block]))


def seen_surface(cameras: Cameras) -> Surface:
    rays, _ = probes(cameras, 0, 0, Crop(0, 0, 32, 32))
    return stored(MODEL, 5 * ROW)._surface(rays)


def below_one_by_one(surface: Surface, nodes: list[int]) -> list[int]:
    """The rule of :meth:`Surface.below` as a walk from each ray's node up to the root."""
    held = dict.fromkeys(nodes, 0)
    for key, opacity in zip(surface.key.tolist(), surface.opacity.tolist(), strict=True):
        at = int(TREE.index_of(torch.tensor([key])))
        while at >= 0:
            if at in held:
                held[at] += opacity
            at = int(TREE.parent[at])
    return list(held.values())


def test_the_surface_below_a_node_is_that_of_all_its_descendants() -> None:
    for seed in range(4):
        surface = seen_surface(views(seed, 1))
        assert len(surface.key) == (32 // PROBE) ** 2
        for nodes in (torch.arange(TREE.num_nodes), torch.arange(0, TREE.num_nodes, 3)):
            assert surface.below(TREE, nodes).tolist() == below_one_by_one(surface, nodes.tolist())


def test_where_the_surface_is_the_root_says() -> None:
    cameras = views(3, 1)
    rays, xy = probes(cameras, 0, 0, Crop(5, 9, 95, 41))
    assert torch.equal(rays.direction, cameras.image_rays(0, 0)[(xy[:, 1] + 9) * 96 + xy[:, 0] + 5].direction)
    surface = stored(MODEL, 200 * ROW)._surface(rays)
    alone = stored(MODEL, 2 * ROW).render(rays, appearance=torch.zeros(4))
    xyz = rays.origin + alone.depth[:, None] * rays.direction
    node, _ = route(TREE, xyz, alone.depth * rays.radius * MODEL.config.octree.footprint_px)
    assert torch.equal(surface.key, TREE.keys[node]) and torch.equal(surface.level, TREE.level[node])
    assert torch.equal(surface.opacity, (alone.opacity * 255).round().long())
    assert len(set(surface.key.tolist())) > 1


def test_of_what_does_not_fit_those_stay_that_hold_most_of_the_surface() -> None:
    crop, enough = Crop(0, 0, 32, 32), stored(MODEL, 200 * ROW)
    plans = ((cameras, enough._plan(cameras, 0, 0, crop, 0.0)) for cameras in (views(seed, 1) for seed in range(100)))
    crowded = [(cameras, nodes) for cameras, [(_, nodes)] in plans if len(nodes) > 12][:4]
    not_the_coarsest = 0
    for cameras, whole in crowded:
        held = dict(zip(whole.tolist(), seen_surface(cameras).below(TREE, whole).tolist(), strict=True))
        for rows in range(2, len(whole) + 1):
            model = stored(MODEL, rows * ROW)
            [(_, nodes)] = model._plan(cameras, 0, 0, crop, 0.0)
            assert len(nodes) == model.cache.room
            assert TREE.restrict(TREE.keys[nodes].tolist()).num_nodes == len(nodes)  # no node without its parent
            left_out = sorted(set(whole.tolist()) - set(nodes.tolist()))
            assert max(held[node] for node in left_out) <= min(held[node] for node in nodes.tolist())
            not_the_coarsest += int(TREE.level[left_out].min() < TREE.level[nodes].max())
    assert not_the_coarsest > 0


def test_the_source_is_asked_once_for_a_picture_that_fits() -> None:
    model = stored(MODEL, 200 * ROW)
    source = model.cache._source
    assert isinstance(source, MemorySource)
    picture(model, views(1, 1))
    assert len(source.reads) == len(set(source.reads)) < TREE.num_nodes + 1
