"""Training one subtree again: it changes, and nothing else does, to the byte."""

from pathlib import Path

import pytest
import torch

from inf_nerf.errors import InputError
from inf_nerf.octree.partition import branch, make_partition
from inf_nerf.octree.topology import BACKGROUND_KEY, ROOT_KEY, key_name, key_of
from inf_nerf.train.checkpoint import restore, save_checkpoint
from inf_nerf.train.loop import Progress, Work, score_val, train
from inf_nerf.train.manifest import latest_checkpoint, read_manifest
from tests.train.ranks import run_ranks
from tests.train.tiny import tiny_config, tiny_octree, tiny_scene, tiny_work

BASE = tiny_config(train={"steps": 60, "batch_size": 192})


def a_block() -> str:
    """A child of the root with children of its own."""
    octree = tiny_octree()
    node = next(n for n in range(1, octree.num_nodes) if (octree.children[n] >= 0).any())
    return key_name(int(octree.keys[node]))


def run(work: Work, run_dir: Path) -> Path:
    def on_save(val_psnr: float | None) -> None:
        complete = work.progress.share(work.config) >= 1
        save_checkpoint(run_dir, work, tiny_scene(), tiny_octree(), "tiny", val_psnr, complete)

    train(work, lambda row: None, on_save, lambda: False)
    path = latest_checkpoint(run_dir)
    assert path is not None
    return path


def retrain(run_dir: Path, base: Path, num_ranks: int = 1, rank: int = 0, steps: int = 40) -> Path:
    config = tiny_config(train={"steps": steps, "batch_size": 192, "subtree": a_block(), "lr_init": 0.005})
    work = tiny_work(config, num_ranks, rank).work
    restore(work, base)
    work.progress.budget_from = (work.progress.step, work.progress.seconds)
    return run(work, run_dir)


def as_one_of_two(rank: int, run_dir: Path, base: Path) -> None:
    retrain(run_dir, base, 2, rank)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tiny_work(BASE).work, tmp_path_factory.mktemp("base"))


def assert_only_the_block_changed(base: Path, after: Path) -> None:
    found, wanted = (
        {name: entry["sha256"] for name, entry in read_manifest(path)["files"].items() if not name.startswith("ranks/")}
        for path in (after, base)
    )
    assert found.keys() == wanted.keys()
    inside = {key_name(key) for key in tiny_octree().subtree_keys(key_of(a_block()))}
    changed = {name for name in found if found[name] != wanted[name]}
    assert {Path(name).stem for name in changed} == inside
    assert changed == {f"{folder}/{name}.safetensors" for name in inside for folder in ("nodes", "optimiser")}


def test_everything_else_is_the_same_to_the_byte(base: Path, tmp_path: Path) -> None:
    after = retrain(tmp_path, base)
    assert_only_the_block_changed(base, after)
    manifest = read_manifest(after)
    assert (manifest["step"], manifest["complete"], manifest["budget_from"][0]) == (100, True, 60)


def test_the_manifest_still_says_who_trained_the_rest(base: Path, tmp_path: Path) -> None:
    config = tiny_config(train={"steps": 6, "batch_size": 192, "subtree": a_block(), "save_every": 2})
    work = tiny_work(config).work
    restore(work, base)
    work.progress.budget_from = (work.progress.step, work.progress.seconds)
    before, after = (read_manifest(path)["subtrees"] for path in (base, run(work, tmp_path)))
    assert len(before) > 1 and set(before.values()) == {0}
    assert after == before | {a_block(): 1}  # a part of its own: its borders are seams


def test_several_workers_divide_the_subtree(base: Path, tmp_path: Path) -> None:
    run_ranks(2, as_one_of_two, tmp_path, base)
    after = latest_checkpoint(tmp_path)
    assert after is not None
    assert_only_the_block_changed(base, after)


def test_frozen_nodes_get_no_gradient_no_probe_and_no_node_loss(base: Path) -> None:
    work = tiny_work(tiny_config(train={"subtree": a_block()})).work
    field = work.model.field
    assert set(field.keys[field.frozen].tolist()) == {ROOT_KEY, BACKGROUND_KEY}
    assert not any(field.frozen[node] for node in work.node_losses.nodes.tolist() if node >= 0)
    before = {name: value.clone() for name, value in work.model.occupancy.state_of(0).items()}
    train(work, lambda row: None, lambda val: None, lambda: False)
    assert all(torch.equal(value, before[name]) for name, value in work.model.occupancy.state_of(0).items())
    assert not work.optimiser.state_of(0)
    assert work.optimiser.state_of(1)
    assert not work.optimiser.appearance_state()


def test_the_block_is_not_worse_for_it(base: Path, tmp_path: Path) -> None:
    after = retrain(tmp_path, base, steps=120)
    psnr = []
    for path in (base, after):
        config = tiny_config(train={"subtree": a_block(), "val_rays": 2048})  # its val rays are the block's
        work = tiny_work(config).work
        restore(work, path)
        psnr.append(score_val(work))
    assert psnr[1] > psnr[0]


def test_the_budget_counts_from_where_it_begins() -> None:
    config = tiny_config(train={"steps": 100, "max_seconds": 10.0})
    assert Progress(110, 30.0, (100, 29.0)).share(config) == 0.1
    assert Progress(105, 34.0, (100, 29.0)).share(config) == 0.5
    assert Progress(100, 29.0, (100, 29.0)).share(config) == 0.0


@pytest.mark.parametrize("name", ["", "x05", "r8", "bg", "05", "r0 5", "r" + "0" * 20])
def test_a_name_of_no_node_is_one_sentence(name: str) -> None:
    with pytest.raises(InputError, match=r"names no node; a name is r and one digit .* for example r05\.$"):
        branch(tiny_octree(), name, 1, 1)


def test_a_node_that_the_tree_has_not_is_answered_with_the_nearest() -> None:
    name = a_block()
    with pytest.raises(InputError, match=rf"no node {name}\d+; the nearest one above it is {name}\d*, .* down to 2"):
        branch(tiny_octree(), name + "0000000", 1, 1)


@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_the_path_is_shared_and_the_subtree_is_dealt(num_parts: int) -> None:
    key = key_of(a_block())
    partition = make_partition(*branch(tiny_octree(), a_block(), num_parts, 1))
    inside = tiny_octree().subtree_keys(key)
    assert partition.shared >= {BACKGROUND_KEY, 1}
    assert partition.shared.union(*partition.owned) == {BACKGROUND_KEY, 1} | inside
    assert (key in partition.shared) == (num_parts > 1)
