"""Samples of live state are those that pictures are made of, and their histograms hold all of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from inf_nerf.plots.samples import AskedSamples, asked_samples, samples_figure, spread_rays
from tests.train.tiny import tiny_config, tiny_work

NONE = torch.zeros(0)
NOTHING = AskedSamples(NONE, NONE, NONE.view(0, 3), NONE.long(), NONE, num_rays=4)


@pytest.fixture(scope="module")
def live() -> AskedSamples:
    work = tiny_work(tiny_config()).work
    (rays,) = spread_rays(work.cameras, [0], 60)
    found = asked_samples(work.model, rays)
    with torch.no_grad():
        rendered = work.model.render(rays)
    # what they add up to is what the picture shows of the cube
    assert float(found.weight.sum()) == pytest.approx(float(rendered.opacity.sum()), rel=1e-3)
    again = asked_samples(work.model, rays)
    assert all(torch.equal(getattr(found, name), getattr(again, name)) for name in ("distance", "rgb", "level"))
    return found


def heights(axes: Any) -> list[float]:
    """Of the bars in a panel."""
    return [patch.get_height() for patch in axes.patches if hasattr(patch, "get_height")]


def test_every_sample_is_in_every_panel(live: AskedSamples) -> None:
    distance, density, colour, level = samples_figure(live).axes
    count = len(live.distance)
    assert count > 100 and live.num_rays >= 40
    for axes in (distance, density, level):
        assert sum(heights(axes)) == pytest.approx(count)
    outlines: Any = colour.patches
    for patch, channel in zip(outlines, range(3), strict=True):
        top = np.asarray(patch.get_xy())[:, 1]
        expected = np.histogram(live.rgb[:, channel].clamp(0, 1).double().numpy(), 50, (0, 1))[0].max()
        assert top.max() == pytest.approx(expected)


def test_no_samples_are_said_and_no_error() -> None:
    figure = samples_figure(NOTHING)
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["no samples"] * 4
    joined = AskedSamples.cat([NOTHING, NOTHING])
    assert joined.num_rays == 8 and len(joined.distance) == 0


def test_densities_of_zero_are_drawn_at_the_edge(live: AskedSamples) -> None:
    empty = replace(live, density=torch.zeros_like(live.density))
    found = heights(samples_figure(empty).axes[1])
    assert found[0] == len(live.density) and sum(found) == len(live.density)


@pytest.mark.parametrize("count", [1, 10, 100_000])
def test_rays_are_spread_over_the_photos(count: int) -> None:
    cameras = tiny_work(tiny_config()).work.cameras
    sets = spread_rays(cameras, [0, 2], count)
    assert len(sets) == 2
    width, height = cameras.level_size(0, 0)
    assert all(1 <= len(rays) <= width * height for rays in sets)
    assert {int(rays.photo[0]) for rays in sets} == {0, 2}
