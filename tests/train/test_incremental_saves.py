"""A save writes what changed, and takes the rest from the checkpoint before it without a second copy."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from inf_nerf.octree.topology import key_name
from inf_nerf.train.checkpoint import save_checkpoint
from inf_nerf.train.loop import PROBE_SHARES, Work, update_occupancy
from inf_nerf.train.manifest import verify_files
from inf_nerf.train.opened import load_checkpoint
from tests.train.ranks import run_ranks
from tests.train.tiny import tiny_config, tiny_octree, tiny_scene, tiny_work


def save(work: Work, run_dir: Path, step: int) -> Path:
    work.progress.step = step
    return save_checkpoint(run_dir, work, tiny_scene(), tiny_octree(), "tiny", None, False)


def inodes(checkpoint: Path) -> dict[str, int]:
    """What each node's and optimiser's file is on disk."""
    files = [*checkpoint.glob("nodes/*"), *checkpoint.glob("optimiser/*")]
    return {str(file.relative_to(checkpoint)): file.stat().st_ino for file in files}


def change(work: Work, node: int) -> str:
    """Change a node's values, and say in which file they are."""
    with torch.no_grad():
        work.model.field.tables[node, 0] += 1
    return f"nodes/{key_name(int(work.model.field.keys[node]))}.safetensors"


def rewritten(before: Path, after: Path) -> set[str]:
    one, other = inodes(before), inodes(after)
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name]}


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    work = tiny_work().work
    first = save(work, tmp_path, 1)
    changed = {change(work, 2), change(work, work.model.background)}
    second = save(work, tmp_path, 2)
    assert rewritten(first, second) == changed
    assert rewritten(second, save(work, tmp_path, 3)) == set()


def test_a_checkpoint_is_whole_without_the_one_before(tmp_path: Path) -> None:
    work = tiny_work().work
    first = save(work, tmp_path, 1)
    expected = load_checkpoint(first).model
    change(work, 1)
    second = save(work, tmp_path, 2)
    shutil.rmtree(first)
    verify_files(second)
    found = load_checkpoint(second).model
    same = torch.ones(found.field.num_nodes, dtype=torch.bool)
    same[1] = False
    assert torch.equal(found.field.tables[same], expected.field.tables[same])
    assert not torch.equal(found.field.tables[1], expected.field.tables[1])


def test_saving_the_same_step_again_is_no_exception(tmp_path: Path) -> None:
    work = tiny_work().work
    first = inodes(save(work, tmp_path, 1))
    changed = change(work, 0)
    second = save(work, tmp_path, 1)
    verify_files(second)
    assert {name for name, inode in inodes(second).items() if first[name] != inode} == {changed}


def test_damage_is_not_inherited(tmp_path: Path) -> None:
    work = tiny_work().work
    first = save(work, tmp_path, 1)
    cut, lost = first / "nodes/r.safetensors", first / "nodes/bg.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1] + b"\0\0")
    lost.unlink()
    second = save(work, tmp_path, 2)
    verify_files(second)
    assert second.joinpath("nodes/r.safetensors").stat().st_ino != cut.stat().st_ino


def test_a_damaged_manifest_before_only_means_that_all_is_written(tmp_path: Path) -> None:
    work = tiny_work().work
    first = save(work, tmp_path, 1)
    (first / "manifest.json").write_text("{")
    second = save(work, tmp_path, 2)
    verify_files(second)
    assert rewritten(first, second) == inodes(second).keys()


def test_a_filesystem_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    work = tiny_work().work
    first = save(work, tmp_path, 1)
    second = save(work, tmp_path, 2)
    verify_files(second)
    assert rewritten(first, second) == inodes(second).keys()


def as_two_ranks(rank: int, run_dir: Path) -> str | None:
    """Save twice; rank 1 changes one of its own nodes in between."""
    work = tiny_work(num_ranks=2, rank=rank).work
    save(work, run_dir, 1)
    own = torch.nonzero(~work.shared).flatten()
    changed = change(work, int(own[0])) if rank == 1 else None
    save(work, run_dir, 2)
    return changed


def test_every_rank_takes_over_what_it_owns(tmp_path: Path) -> None:
    changed = set(run_ranks(2, as_two_ranks, tmp_path)) - {None}
    first, second = (tmp_path / "checkpoints" / name for name in ("00000001", "00000002"))
    verify_files(second)
    assert rewritten(first, second) == changed
    assert len(changed) == 1


def test_nodes_that_nothing_touches_are_probed_until_all_is_seen_and_then_stay_as_they_are() -> None:
    work = tiny_work(tiny_config(sampler={"occupancy_every": 1})).work
    occupancy, moved = work.model.occupancy, 3
    for step in range(1, PROBE_SHARES + 1):
        work.progress.step = step
        update_occupancy(work)
    assert bool(((occupancy.density > 0) | occupancy.free).all())
    before = occupancy.density.clone()
    work.progress.step += 1
    update_occupancy(work)
    assert torch.equal(occupancy.density, before)
    work.to_probe[moved] = PROBE_SHARES  # as a step does that touched it
    for _ in range(PROBE_SHARES + 1):
        work.progress.step += 1
        update_occupancy(work)
    changed = (occupancy.density != before).any(1)
    assert changed.nonzero().flatten().tolist() == [moved]
    assert int(work.to_probe.sum()) == 0
