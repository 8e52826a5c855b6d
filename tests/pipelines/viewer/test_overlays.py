"""What is drawn into pictures has the right shape, and never more of it than a browser draws with ease."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("viser", minversion="1.0")

from pipelines.viewer.overlays import THUMBNAIL, cube_edges, frustum_size, nearest_nodes, thumbnail
from tests.train.tiny import tiny_octree


def test_edges_of_a_cube_are_its_twelve() -> None:
    edges = cube_edges(np.array([[1.0, 2.0, 3.0]]), np.array([[0.5]]))
    assert edges.shape == (12, 2, 3)
    np.testing.assert_allclose(np.linalg.norm(edges[:, 1] - edges[:, 0], axis=1), 1.0)
    assert len({tuple(corner) for corner in edges.reshape(-1, 3).round(6).tolist()}) == 8
    assert len({tuple(sorted(map(tuple, edge))) for edge in edges.tolist()}) == 12


def test_boxes_have_sides_of_their_own() -> None:
    edges = cube_edges(np.zeros((2, 3)), np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]))
    assert edges.shape == (24, 2, 3)
    np.testing.assert_allclose(np.abs(edges[:12]).max(axis=(0, 1)), (1, 2, 3))


def test_cubes_of_a_level_are_all_or_the_nearest() -> None:
    octree = tiny_octree()
    eye = np.array([0.9, 0.9, 0.5])
    assert torch.equal(nearest_nodes(octree, None, eye, 10**6), torch.arange(octree.num_nodes))
    whole = nearest_nodes(octree, 2, eye, 10**6)
    assert bool((octree.level[whole] == 2).all()) and len(whole) == int((octree.level == 2).sum())
    near = nearest_nodes(octree, 2, eye, 5)
    away = (octree.centre[whole].double() - torch.from_numpy(eye)).norm(dim=1)
    assert set(near.tolist()) <= set(whole.tolist()) and len(near) == 5
    assert float((octree.centre[near].double() - torch.from_numpy(eye)).norm(dim=1).max()) <= float(
        away.sort().values[5]
    )


def test_frustums_are_smaller_than_the_gaps_between_them() -> None:
    assert frustum_size(torch.tensor([[0.0, 0, 0]])) == 0.1
    line = torch.stack([torch.arange(5.0) * 0.1, torch.zeros(5), torch.zeros(5)], dim=1)
    assert frustum_size(line) == pytest.approx(0.05)
    assert frustum_size(100 * line) == pytest.approx(0.075)


def test_thumbnail_is_small_and_absent_photos_have_none(tmp_path: Path) -> None:
    Image.new("RGB", (900, 600), (200, 30, 10)).save(tmp_path / "photo.jpg")
    found = thumbnail(tmp_path / "photo.jpg")
    assert found is not None and max(found.shape) == THUMBNAIL
    assert np.abs(found.astype(int) - (200, 30, 10)).max() < 12
    (tmp_path / "no.jpg").write_bytes(b"no photo")
    assert thumbnail(tmp_path / "no.jpg") is None and thumbnail(tmp_path / "gone.jpg") is None
