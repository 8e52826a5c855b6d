"""Maps show the median of each cell, north up."""

from dataclasses import replace

import numpy as np
import torch

from inf_nerf.report.maps import CELLS, EMPTY, PIXELS, cell_medians, coverage_map, gsd_map
from inf_nerf.scene.frame import WorldFrame
from tests.train.tiny import tiny_scene


def test_cell_shows_the_median_of_its_points() -> None:
    random = np.random.default_rng(0)
    xy, values = random.uniform(-1, 1, (500, 2)), random.normal(size=500)
    found = cell_medians(xy, values, 6)
    for row in range(6):
        for column in range(6):
            low = np.array([column, row]) / 3 - 1
            inside = ((xy >= low) & (xy < low + 1 / 3)).all(axis=1)
            expected = np.median(values[inside]) if inside.any() else np.nan
            np.testing.assert_allclose(found[row, column], expected)


def test_coverage_counts_photos_of_points_and_knows_where_nothing_is() -> None:
    scene = tiny_scene()
    found = coverage_map(scene)
    assert found is not None
    assert found.picture.shape == (CELLS * PIXELS, CELLS * PIXELS, 3)
    counts = torch.diff(scene.points.track_start)
    assert found.median == float(np.median(counts.numpy()))
    assert 1 <= found.low < found.high <= len(scene.photos)
    assert (found.picture[:3, :3] == EMPTY).all()  # no point lies in the corner


def test_footprints_are_in_units_of_the_input() -> None:
    scene = tiny_scene()
    plain, larger = gsd_map(scene), gsd_map(replace(scene, frame=WorldFrame.from_parts(0.01, np.eye(3), np.zeros(3))))
    assert plain is not None and larger is not None
    np.testing.assert_allclose(larger.median, 100 * plain.median)
    np.testing.assert_array_equal(larger.picture, plain.picture)


def test_input_without_observations_has_no_coverage() -> None:
    scene = tiny_scene()
    points = replace(scene.points, track_start=torch.zeros_like(scene.points.track_start))
    assert coverage_map(replace(scene, points=points)) is None
