"""A pruned checkpoint is a checkpoint like any: what is left answers for what is gone."""

import json
from pathlib import Path

import pytest
import torch

from inf_nerf.errors import InputError
from inf_nerf.export.pruned import write_pruned
from inf_nerf.octree.topology import ABSENT, FOREIGN
from inf_nerf.render.images import render_image
from inf_nerf.train.manifest import latest_checkpoint, verify_files
from inf_nerf.train.opened import load_checkpoint, open_checkpoint
from tests.export.trained import save_trained_run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained")
    save_trained_run(run_dir)
    path = latest_checkpoint(run_dir)
    assert path is not None
    return path


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_upper_levels_answer_as_they_did(checkpoint: Path, tmp_path: Path, levels: int) -> None:
    opened, out = open_checkpoint(checkpoint), tmp_path / "pruned"
    figures = write_pruned(opened, levels, out)
    verify_files(out)
    whole, pruned = load_checkpoint(checkpoint), load_checkpoint(out)
    kept = whole.octree.level < levels
    assert pruned.octree.keys.tolist() == whole.octree.keys[kept].tolist()
    assert figures.nodes == int(kept.sum()) == pruned.octree.num_nodes
    assert not (pruned.octree.children == FOREIGN).any()
    nodes = torch.nonzero(kept).squeeze(1)
    for node, there in enumerate(nodes.tolist()):
        for name, value in whole.model.field.state_of(there).items():
            assert torch.equal(pruned.model.field.state_of(node)[name], value)
        assert torch.equal(pruned.model.cells.occupied[node], whole.model.cells.occupied[there])
    cut = whole.model.octree.restrict(whole.octree.keys[kept].tolist())
    cut.children[cut.children == FOREIGN] = ABSENT
    assert torch.equal(cut.children, pruned.octree.children)
    assert figures.bytes == sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    assert (pruned.digest == whole.digest) is False
    seen = render_image(pruned.model, pruned.scene.cameras, 1, 0, rays_per_chunk=700)
    assert bool(seen.rgb.isfinite().all())
    assert float(seen.level.max()) <= levels - 1 + 1e-5
    if levels == whole.octree.num_levels:
        assert torch.equal(seen.rgb, render_image(whole.model, whole.scene.cameras, 1, 0, rays_per_chunk=700).rgb)


def test_it_holds_nothing_but_what_answers(checkpoint: Path, tmp_path: Path) -> None:
    write_pruned(open_checkpoint(checkpoint), 1, tmp_path / "pruned")
    names = sorted(path.relative_to(tmp_path / "pruned").as_posix() for path in (tmp_path / "pruned").rglob("*.*"))
    assert names == ["manifest.json", "nodes/bg.safetensors", "nodes/r.safetensors", "shared.safetensors"]
    manifest = json.loads((tmp_path / "pruned/manifest.json").read_text())
    assert sorted(manifest["files"]) == names[1:]


def test_it_can_be_pruned_again(checkpoint: Path, tmp_path: Path) -> None:
    write_pruned(open_checkpoint(checkpoint), 2, tmp_path / "two")
    write_pruned(open_checkpoint(tmp_path / "two"), 1, tmp_path / "one_of_two")
    write_pruned(open_checkpoint(checkpoint), 1, tmp_path / "one")
    assert open_checkpoint(tmp_path / "one").digest == open_checkpoint(tmp_path / "one_of_two").digest


@pytest.mark.parametrize("levels", [0, 4])
def test_levels_that_are_not_there_are_refused(checkpoint: Path, tmp_path: Path, levels: int) -> None:
    with pytest.raises(InputError, match="--levels is 1 to 3"):
        write_pruned(open_checkpoint(checkpoint), levels, tmp_path / "pruned")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="is there already"):
        write_pruned(open_checkpoint(checkpoint), 1, tmp_path / "mine")
