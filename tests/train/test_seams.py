"""Errors near the borders of subtrees are told from the others'."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from inf_nerf.octree.borders import Borders
from inf_nerf.octree.topology import Octree
from inf_nerf.scene.cameras import Rays
from inf_nerf.train.checkpoint import save_checkpoint
from inf_nerf.train.manifest import MANIFEST, digest_of
from inf_nerf.train.opened import load_checkpoint
from inf_nerf.train.seams import WIDTH, SeamErrors, seam_errors
from tests.train.tiny import tiny_octree, tiny_scene, tiny_work

BORDERS = Borders(
    Octree.from_keys(torch.tensor([1, 8, 10, 12, 14]), torch.tensor([4, 1, 1, 1, 1]), 0.1), {8: 0, 10: 1, 12: 0, 14: 1}
)


def looking_down(x: list[float], y: list[float]) -> Rays:
    """A row of rays that meet z = -0.5 at these places after a distance of 2."""
    origin = torch.stack((torch.tensor(x), torch.tensor(y), torch.full((len(x),), 1.5)), 1)
    count = len(x)
    return Rays(origin, torch.tensor([0.0, 0.0, -1.0]).expand(count, 3), torch.ones(count), torch.zeros(count).long())


def errors(opacity: list[float], counted: list[bool]) -> SeamErrors:
    """Of a picture of one row: interior, near a border of one rank, of two ranks, interior, outside the cube."""
    rays = looking_down([0.5, WIDTH / 2, 0.5, -0.5, 3.0], [0.5, 0.5, -WIDTH / 2, 0.5, 0.5])
    rendered = SimpleNamespace(depth=torch.full((1, 5), 2.0), opacity=torch.tensor([opacity]))
    difference = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.9])[None, :, None].expand(1, 5, 3)
    return seam_errors(BORDERS, rays, rendered, difference, torch.tensor([counted]))  # type: ignore[arg-type]


def test_pixels_are_sorted_by_where_their_surface_lies() -> None:
    found = errors([1.0] * 5, [True] * 5)
    assert found.num_pixels.tolist() == [2, 2, 1]
    assert found.squared_error.tolist() == pytest.approx([0.02, 0.13, 0.09], rel=1e-5)
    figures = found.figures()
    assert figures["near"]["share"] == 0.5
    assert figures["between_ranks"] == {"psnr": pytest.approx(10.4576, abs=1e-3), "share": 0.25}
    assert figures["interior"]["psnr"] == pytest.approx(20)
    assert figures["width"] == WIDTH


def test_sky_and_masked_pixels_do_not_count() -> None:
    found = errors([1.0, 0.5, 1.0, 1.0, 1.0], [True, True, False, True, True])
    assert found.num_pixels.tolist() == [2, 0, 0]
    assert found.figures().keys() == {"width", "interior"}


def test_pictures_add_up() -> None:
    one, none = errors([1.0] * 5, [True] * 5), errors([0.0] * 5, [True] * 5)
    total = sum((one, none, one), SeamErrors())
    assert torch.equal(total.num_pixels, 2 * one.num_pixels)
    assert SeamErrors().figures() == {"width": WIDTH}


def test_checkpoints_say_who_trained_what_and_old_ones_are_taken_for_one_worker(tmp_path: Path) -> None:
    tiny = tiny_work()
    assert tiny.work.subtrees == tiny.partition.subtrees
    tiny.work.subtrees = {key: key % 3 for key in tiny.partition.subtrees}  # as of three workers
    path = save_checkpoint(tmp_path, tiny.work, tiny_scene(), tiny_octree(), "tiny", None, True)
    assert load_checkpoint(path).subtrees == tiny.work.subtrees
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["subtrees"]
    manifest["digest"] = digest_of(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert load_checkpoint(path).subtrees == dict.fromkeys(tiny.partition.subtrees, 0)
