"""Compiled tracing against the torch code that says what it does."""

import copy
from typing import Any

import pytest
import torch

from inf_nerf.config import SamplerConfig
from inf_nerf.octree.topology import Octree
from inf_nerf.render.foreground import lit_samples
from inf_nerf.render.model import Model
from inf_nerf.render.sampling import cube_span
from inf_nerf.scene.cameras import Rays
from tests.render.test_model import downward, make_model, photo_rays, upward
from tests.train.tiny import tiny_config, tiny_octree

ODD = {"hidden_density": 20, "hidden_color": 11, "geo_features": 6, "features_per_level": 4}


def pair(octree: Octree | None = None, **field: Any) -> tuple[Model, Model]:
    """The same model twice, compiled and in torch, opaque after a part of the cube, a third of its cells empty."""
    models = []
    for backend in ("numba", "torch"):
        config = tiny_config(field={"initial_density": 20.0, **field, "backend": backend})
        model = make_model(copy.deepcopy(octree) if octree else None, config=config)
        occupancy = model.occupancy
        random = torch.rand(occupancy.density.shape, generator=torch.Generator().manual_seed(3))
        occupancy.density = torch.where(random < 0.67, 1e3, 0.0)
        occupancy.enabled = True
        occupancy.refresh()
        model.occupancy_changed()
        models.append(model)
    return models[0], models[1]


def pruned() -> Octree:
    octree = tiny_octree()
    return octree.restrict(octree.keys[octree.level < 2].tolist())


RAYS = Rays.cat([photo_rays(1), downward(), upward(), photo_rays(4)])


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("field", [{}, ODD])
@pytest.mark.parametrize("octree", [None, pruned()])
def test_lit_samples_equal_their_twin(octree: Octree | None, field: dict[str, Any]) -> None:
    fast_model, slow_model = pair(octree, **field)
    fast = fast_model.lit_samples(RAYS, torch.Generator().manual_seed(5))
    marched = slow_model.sample(RAYS, torch.Generator().manual_seed(5))
    slow = lit_samples(marched, slow_model.octree, slow_model.field, len(RAYS))
    assert fast.num_asked == len(fast.samples) < 0.9 * slow.num_asked == 0.9 * len(marched)
    counts = [torch.bincount(found.samples.ray, minlength=len(RAYS)) for found in (fast, slow)]
    same = counts[0] == counts[1]  # a step within rounding of a cell's border may differ
    assert same.float().mean() > 0.98
    kept = [same[found.samples.ray] for found in (fast, slow)]
    ours, theirs = fast.samples[kept[0]], slow.samples[kept[1]]
    assert torch.equal(ours.ray, theirs.ray)
    agree = ours.node == theirs.node
    assert agree.float().mean() > 0.999
    assert (ours.foreign == theirs.foreign).float().mean() > 0.999
    assert bool(theirs.foreign.any()) == (octree is not None)
    for name in ("t", "delta", "xyz", "footprint"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-4)
    features = [found.features[which][agree] for found, which in zip((fast, slow), kept, strict=True)]
    torch.testing.assert_close(features[0], features[1], rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(fast.delta[kept[0]][agree], slow.delta[kept[1]][agree], rtol=1e-4, atol=1e-4)
    assert bool((slow.delta > 1e6).any())


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("field", [{}, ODD])
@pytest.mark.parametrize("octree", [None, pruned()])
@pytest.mark.parametrize("lod_blend", [0.0, 0.7])
def test_pictures_equal_their_twin(octree: Octree | None, field: dict[str, Any], lod_blend: float) -> None:
    fast_model, slow_model = pair(octree, **field)
    with torch.no_grad():
        fast = fast_model.render(RAYS, lod_blend=lod_blend)
        slow = slow_model.render(RAYS, lod_blend=lod_blend)
    assert fast.num_samples < 0.9 * slow.num_samples
    for name in ("rgb", "depth", "opacity", "level", "foreign"):
        ours, theirs = getattr(fast, name), getattr(slow, name)
        ours, theirs = ours.view(len(RAYS), -1), theirs.view(len(RAYS), -1)
        close = torch.isclose(ours, theirs, rtol=1e-3, atol=1e-3).all(1)
        assert close.float().mean() > 0.98, name  # a step within rounding of a cell's border may differ
    torch.testing.assert_close(fast.share, slow.share, rtol=0.02, atol=0.5)
    assert not bool((fast.touched & ~slow.touched).any())
    assert bool(fast.touched[fast.share > 1e-3].all())
    assert bool((slow.foreign > 0.01).any()) == (octree is not None)


def test_the_number_of_threads_changes_no_bit() -> None:
    model, _ = pair()
    found = []
    before = torch.get_num_threads()
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        lit = model.lit_samples(RAYS, None)
        with torch.no_grad():
            rendered = model.render(RAYS, lod_blend=0.5)
        found.append((lit.samples.t, lit.features, rendered.rgb, rendered.share))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("field", [{}, ODD])
@pytest.mark.parametrize("bias", [-12.0, 0.0, 6.0])  # light ends in the endless last sample, on its way, in the first
def test_the_background_equals_its_twin(bias: float, field: dict[str, Any]) -> None:
    rays = upward()
    _, leave = cube_span(rays, SamplerConfig().near)
    found = []
    for model in pair(**field):
        model.field.tables.data.mul_(3e3)
        model.field.density_bias = bias
        looks = torch.randn(len(rays), model.appearance.shape[1], generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            behind, beyond = model.behind(rays, looks, leave, torch.ones(len(rays)), None)
        found.append(behind[beyond])
    assert len(found[0]) > 10 and float(found[1].std(0).max()) > 1e-3
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=2e-3)


def test_room_grows_with_the_samples() -> None:
    fast_model, slow_model = pair()
    for model in (fast_model, slow_model):
        model.field.density_bias = -3.0  # nothing is opaque: all steps are kept
        model.steps_across = 1000.0
    lit = fast_model.lit_samples(downward(), None)
    assert len(lit.samples) > 40 * len(downward())
    assert abs(len(lit.samples) - len(slow_model.sample(downward(), None))) < 0.002 * len(lit.samples)
