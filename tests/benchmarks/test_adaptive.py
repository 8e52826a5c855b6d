"""The city whose sparse points have a hole."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import adaptive
from inf_nerf.config import load_config
from inf_nerf.scene.city.folder import CityParameters
from inf_nerf.scene.city.layout import build_city

SMALL = CityParameters(blocks=2, photos=9, size=48, seed=0)


def test_only_the_points_of_the_block_are_missing(tmp_path: Path) -> None:
    config = load_config(None, adaptive.SETTINGS)
    whole = adaptive.photograph(SMALL, config, tmp_path / "city", hole=False)
    holed = adaptive.photograph(SMALL, config, tmp_path / "city", hole=True)
    city = build_city(SMALL.blocks, SMALL.seed)
    blocks = [
        adaptive.block_at(city, capture.scene.frame.to_world(capture.scene.points.xyz.numpy())[:, :2])
        for capture in (whole, holed)
    ]
    (gone,) = set(blocks[0].tolist()) - set(blocks[1].tolist())
    assert gone >= 0
    assert np.array_equal(blocks[1], blocks[0][blocks[0] != gone])
    # each point that is left keeps its own observations
    before, after = whole.scene.points, holed.scene.points
    kept = torch.from_numpy(blocks[0] != gone)
    assert torch.equal(after.track_start.diff(), before.track_start.diff()[kept])
    assert torch.equal(after.track_xy, before.track_xy[kept[before.track_point]])
    assert np.array_equal(whole.scene.frame.matrix, holed.scene.frame.matrix)
    share = sum(int(block.sum()) for block in holed.in_block.values())
    assert 0 < share < sum(block.numel() for block in holed.in_block.values())


def test_places_are_in_blocks_kerb_to_kerb() -> None:
    city = build_city(2, 0)
    inside = [(city.block_x[i].mean(), city.block_y[j].mean()) for i in range(2) for j in range(2)]
    street = [(city.block_x[0, 1] + 1.0, city.block_y[0].mean()), (city.block_x[0].mean(), 1e4)]
    assert adaptive.block_at(city, np.array(inside + street)).tolist() == [0, 1, 2, 3, -1, -1]


@pytest.mark.slow
def test_both_trees_are_trained_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive, "CITY", SMALL)
    assert adaptive.main(["--steps", "10", "--threshold", "0.5", "--out", str(tmp_path / "found.json")]) == 0
    static, grown = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert static["nodes"] == static["nodes_before"] == grown["nodes_before"] < grown["nodes"]
    assert static["steps"] == grown["steps"] == 10
