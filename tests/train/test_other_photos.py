"""Going on from a checkpoint with other photos: what is kept goes by name, what is trained looks at space anew."""

import json
from pathlib import Path

import pytest
import torch

from inf_nerf.config import Config
from inf_nerf.octree.topology import key_name, key_of
from inf_nerf.train.checkpoint import restore, save_checkpoint
from inf_nerf.train.loop import Work, train
from inf_nerf.train.manifest import MANIFEST, digest_of, read_manifest
from inf_nerf.train.opened import OCCUPANCY, read_tensors
from tests.train.test_checkpoint import assert_equal_checkpoints, folder
from tests.train.test_subtree import BASE, a_block, assert_only_the_block_changed, run
from tests.train.tiny import tiny_config, tiny_octree, tiny_scene, tiny_work

NEW, GONE = "4.png", "gone.png"
STEPS = 20  # of a block that is trained again


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has the photos in another order, and one of them in place of another."""
    work, run_dir = tiny_work(BASE).work, tmp_path_factory.mktemp("before")
    run(work, run_dir)
    work.model.occupancy.density[:, ::2] = 0  # so that there are cells that were found to be empty
    path = save_checkpoint(run_dir, work, tiny_scene(), tiny_octree(), "tiny", None, True)
    manifest = json.loads((path / MANIFEST).read_text())
    photos = manifest["photos"][::-1]
    manifest["photos"] = [photo | {"name": GONE} if photo["name"] == NEW else photo for photo in photos]
    manifest["digest"] = digest_of(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))
    return path


def again(before: Path, config: Config | None = None) -> Work:
    """A block to be trained again from a checkpoint."""
    config = config or tiny_config(train={"steps": STEPS, "batch_size": 192, "subtree": a_block(), "lr_init": 0.005})
    work = tiny_work(config).work
    restore(work, before)
    manifest = read_manifest(before)
    now = work.progress.step, work.progress.seconds
    work.progress.budget_from = now if manifest["complete"] else tuple(manifest["budget_from"])
    return work


def saved_density(path: Path, work: Work) -> torch.Tensor:
    """Densities [N, G^3] of the cells of the nodes that ``work`` holds."""
    manifest = read_manifest(path)
    names = (f"nodes/{key_name(key)}.safetensors" for key in work.model.octree.keys.tolist())
    return torch.stack([read_tensors(path, name, manifest)[f"{OCCUPANCY}density"] for name in names])


def saved_appearance(path: Path) -> dict[str, torch.Tensor]:
    """Of every photo, by name."""
    manifest = read_manifest(path)
    rows = read_tensors(path, "shared.safetensors", manifest)["appearance"]
    return {photo["name"]: row for photo, row in zip(manifest["photos"], rows, strict=True)}


def test_appearance_goes_by_name_and_a_new_photo_begins_with_the_mean(before: Path) -> None:
    work = tiny_work(BASE).work
    restore(work, before)
    saved, found = saved_appearance(before), dict(zip(work.photos, work.model.appearance.detach(), strict=True))
    split = {photo["name"]: photo["split"] for photo in read_manifest(before)["photos"]}
    mean = torch.stack([row for name, row in saved.items() if split[name] == "train"]).mean(0)
    assert saved.keys() - found.keys() == {GONE} and found.keys() - saved.keys() == {NEW}
    assert float(mean.abs().max()) > 0
    torch.testing.assert_close(found[NEW], mean)
    for name in saved.keys() & found.keys():
        assert torch.equal(found[name], saved[name])


def test_draws_tiles_and_moments_of_the_appearance_begin_anew(before: Path) -> None:
    work, fresh = tiny_work(BASE).work, tiny_work(BASE).work
    restore(work, before)
    assert (work.progress.step, work.draws) == (60, fresh.draws)
    fresh.generator.manual_seed(fresh.generator.initial_seed() + 60)
    assert torch.equal(work.generator.get_state(), fresh.generator.get_state())
    assert work.reservoir.state() == fresh.reservoir.state()
    assert not work.optimiser.appearance_state()
    assert work.optimiser.state_of(1)["table.step"] > 0  # nodes keep theirs


def test_of_the_rest_only_the_light_of_the_new_photo_is_learned(before: Path, tmp_path: Path) -> None:
    after = run(again(before), tmp_path)
    saved, found = saved_appearance(before), saved_appearance(after)
    for name in saved.keys() & found.keys():
        assert torch.equal(found[name], saved[name])
    work = tiny_work(BASE).work
    restore(work, before)
    assert not torch.allclose(found[NEW], work.model.appearance[work.photos.index(NEW)])
    assert read_manifest(after)["added"] == [NEW]
    # nodes as before, and what all photos share is another file
    sums = {"shared.safetensors", "optimiser/appearance.safetensors"}
    manifests = [read_manifest(path) for path in (after, before)]
    files = [{name: entry for name, entry in each["files"].items() if name not in sums} for each in manifests]
    inside = {key_name(key) for key in tiny_octree().subtree_keys(key_of(a_block()))}
    changed = {Path(name).stem for name in files[0] if files[0][name] != files[1].get(name)}
    assert changed - {"0-of-1"} == inside

    settled = again(after)  # trained once more, the photo keeps its light like all others
    assert not settled.model.appearance.requires_grad and settled.added == ()
    assert_only_the_block_changed(after, run(settled, tmp_path))


def test_an_interrupted_training_goes_on_learning_that_light(before: Path, tmp_path: Path) -> None:
    straight = run(again(before), tmp_path / "straight")
    stopped, steps = again(before), 60 + STEPS // 2

    def on_save(val_psnr: float | None) -> None:
        save_checkpoint(tmp_path / "stopped", stopped, tiny_scene(), tiny_octree(), "tiny", val_psnr, False)

    train(stopped, lambda row: None, on_save, lambda: stopped.progress.step >= steps - 1)
    half = folder(tmp_path / "stopped", steps)
    assert_equal_checkpoints(run(again(half), tmp_path / "stopped"), straight)


def test_nodes_that_are_trained_look_at_all_of_their_space_and_the_others_do_not(before: Path) -> None:
    work, fresh = again(before), tiny_work(tiny_config(train={"subtree": a_block()})).work
    occupancy, by_points = work.model.occupancy, fresh.model.occupancy
    trained = ~work.model.field.frozen[:-1]
    was = saved_density(before, work)
    assert occupancy.enabled
    assert torch.equal(occupancy.density[~trained], was[~trained])
    assert not bool(occupancy.occupied[~trained].all())
    for name in ("protected", "free"):
        assert torch.equal(getattr(occupancy, name)[trained], getattr(by_points, name)[trained])
    assert torch.equal(occupancy.occupied[trained], (by_points.protected | ~by_points.free)[trained])
    empty = was <= occupancy.threshold[:, None]
    assert bool(empty[trained].any())
    # as often as the warm-up probes every cell: once in 8 steps of 4
    open_for = (occupancy.threshold[:, None] / occupancy.decay**0.5).expand_as(was)
    assert torch.equal(occupancy.density[trained], torch.where(was > open_for, was, open_for)[trained])


def test_a_node_whose_turn_comes_later_looks_anew_then(before: Path, tmp_path: Path) -> None:
    config = tiny_config(train={"steps": 99, "batch_size": 192, "turn_steps": 4})
    first, second = (tiny_work(config, turn=turn, num_turns=2) for turn in (0, 1))
    shared, own = second.partition.shared, second.partition.owned
    restore(first.work, before)
    occupancy = first.work.model.occupancy
    assert bool((occupancy.density > occupancy.threshold[:, None]).all())
    occupancy.density.zero_()
    path = save_checkpoint(tmp_path, first.work, tiny_scene(), tiny_octree(), "tiny", None, False)
    assert {key_of(name) for name in read_manifest(path)["unseen"]} == own[1]

    restore(second.work, path)
    occupancy, keys = second.work.model.occupancy, second.work.model.octree.keys.tolist()
    is_shared = torch.tensor([key in shared for key in keys])
    assert not bool(occupancy.density[is_shared].any())
    assert bool((occupancy.density > occupancy.threshold[:, None])[~is_shared].all())
    path = save_checkpoint(tmp_path, second.work, tiny_scene(), tiny_octree(), "tiny", None, False)
    assert read_manifest(path)["unseen"] == []


def test_what_is_beyond_a_subtree_looks_anew_when_the_whole_tree_is_trained(before: Path, tmp_path: Path) -> None:
    after = run(again(before), tmp_path)
    beyond = set(tiny_octree().keys.tolist()) - tiny_octree().subtree_keys(key_of(a_block()))
    assert {key_of(name) for name in read_manifest(after)["unseen"]} == beyond
    whole = tiny_work(BASE).work
    restore(whole, after)
    occupancy = whole.model.occupancy
    anew = torch.tensor([key in beyond for key in whole.model.octree.keys.tolist()])
    was, is_open = saved_density(after, whole), occupancy.density > occupancy.threshold[:, None]
    assert torch.equal(occupancy.density[~anew], was[~anew])
    assert bool(is_open[anew].all()) and bool((was[anew] == 0).any())
