"""Timing a trained run; a whole one is timed with the demo's slow test."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import trained
from inf_nerf.config import SamplerConfig
from inf_nerf.errors import InputError
from inf_nerf.render.sampling import cube_span, routed_radius
from tests.train.tiny import tiny_config, tiny_octree


def test_a_run_without_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no complete checkpoint; train it first"):
        trained.main([str(tmp_path)])


def test_the_far_view_is_answered_by_the_root() -> None:
    config, octree = tiny_config(), tiny_octree()
    checkpoint: Any = SimpleNamespace(config=config, model=SimpleNamespace(octree=octree))
    rays = trained.far_view(checkpoint).image_rays(0, 0)
    enter, leave = cube_span(rays, SamplerConfig().near)
    footprint = (enter * routed_radius(rays, config.octree.footprint_px, None))[leave > enter]
    assert len(rays) == 800 * 600
    assert float(octree.gsd[0]) < float(footprint.min()) < float(footprint.median()) < 2 * float(octree.gsd[0])
