"""A tree that changes while it is trained: what follows it, on one rank and on several."""

from pathlib import Path
from typing import Any

import pytest
import torch

from inf_nerf.config import Config
from inf_nerf.octree.partition import make_partition
from inf_nerf.octree.topology import BACKGROUND_KEY, FOREIGN, Octree
from inf_nerf.train.assembly import assemble
from inf_nerf.train.checkpoint import restore, save_checkpoint
from inf_nerf.train.loop import Work, score_val, train
from inf_nerf.train.opened import load_checkpoint
from tests.train.ranks import run_ranks
from tests.train.test_checkpoint import assert_equal_checkpoints, folder
from tests.train.tiny import MEAN_COLOUR, tiles_of, tiny_config, tiny_octree, tiny_scene, tiny_work

HALF, FULL = 5, 12
MOST = 22  # nodes; the sparse points make 17


def adaptive(**octree: Any) -> Config:
    """Settings by which a tree grows one level beyond what its points asked for."""
    grown = {"num_levels": 4, "update_every": 4, "subdivision_threshold": 0.5, "max_nodes": MOST}
    return tiny_config(octree=grown | octree, train={"steps": FULL, "save_every": 100})


def run(work: Work, run_dir: Path, until: int = FULL) -> None:
    """Train to a step and save there."""

    def on_save(val_psnr: float | None) -> None:
        complete = work.progress.share(work.config) >= 1
        save_checkpoint(run_dir, work, tiny_scene(), work.adaptation.tree, "tiny", val_psnr, complete)

    train(work, lambda row: None, on_save, lambda: work.progress.step >= until - 1)


def grow_here(work: Work, *keys: int) -> None:
    """Add nodes as if samples had asked for them."""
    tree = work.adaptation.tree
    kept = torch.tensor(sorted({*tree.keys.tolist(), *keys}))
    work.adaptation.become(work, Octree.from_keys(kept, torch.zeros(len(kept)), float(tree.gsd[0])))
    for key in keys:
        work.adaptation._begin(work, key)
    work.model.occupancy.refresh()
    work.model.occupancy_changed()


def trained(config: Config, steps: int = 6) -> Work:
    work = tiny_work(config).work
    train(work, lambda row: None, lambda psnr: None, lambda: work.progress.step >= steps - 1)
    return work


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Work, Path]:
    """A training whose tree grew, and where its checkpoint is."""
    run_dir = tmp_path_factory.mktemp("grown")
    work = tiny_work(adaptive()).work
    run(work, run_dir)
    return work, folder(run_dir, FULL)


def test_a_tree_grows_to_its_cap_and_what_grew_is_trained(grown: tuple[Work, Path]) -> None:
    work, _ = grown
    before, tree = tiny_octree(), work.adaptation.tree
    assert tree.num_nodes == MOST and set(before.keys.tolist()) < set(tree.keys.tolist())
    new = sorted(set(tree.keys.tolist()) - set(before.keys.tolist()))
    assert torch.equal(work.model.octree.keys, tree.keys)
    model = work.model
    assert len(work.to_probe) == model.occupancy.num_nodes == model.octree.num_nodes == model.field.num_nodes - 1
    states = [work.optimiser.state_of(int(model.octree.index_of(torch.tensor(key)))) for key in new]
    assert any(state and float(state["table.step"]) > 0 for state in states)


def test_a_checkpoint_holds_the_tree_that_is_trained(grown: tuple[Work, Path]) -> None:
    work, path = grown
    opened = load_checkpoint(path)
    assert torch.equal(opened.octree.keys, work.adaptation.tree.keys)
    rays = tiny_scene().cameras.image_rays(3, 0)
    with torch.no_grad():
        assert torch.equal(opened.model.render(rays).rgb, work.model.render(rays).rgb)


def test_a_training_that_adapts_continues_as_if_never_stopped(grown: tuple[Work, Path], tmp_path: Path) -> None:
    run(tiny_work(adaptive()).work, tmp_path, until=HALF)  # the tree has changed, and what was asked since waits
    again = tiny_work(adaptive()).work
    restore(again, folder(tmp_path, HALF))
    assert again.adaptation.tree.num_nodes > tiny_octree().num_nodes
    run(again, tmp_path)
    assert_equal_checkpoints(folder(tmp_path, FULL), grown[1])


def test_a_static_training_goes_on_with_the_tree_that_became(grown: tuple[Work, Path]) -> None:
    work = tiny_work(tiny_config(octree={"num_levels": 4})).work
    restore(work, grown[1])
    assert torch.equal(work.model.octree.keys, grown[0].adaptation.tree.keys)
    assert score_val(work) == pytest.approx(score_val(grown[0]))


def test_a_child_renders_as_its_parent_did_and_takes_over_its_moments() -> None:
    work = trained(tiny_config())
    tree = work.model.octree
    rays = tiny_scene().cameras.image_rays(1, 0)
    with torch.no_grad():
        share = work.model.render(rays).share[:-1]
    leaf = int(tree.keys[torch.where(tree.level == 2, share, 0).argmax()])
    before = {key: work.optimiser.state_of(n) for n, key in enumerate(work.model.field.keys.tolist())}
    with torch.no_grad():
        seen = work.model.render(rays)
    grow_here(work, *(8 * leaf + which for which in range(8)))
    model, optimiser = work.model, work.optimiser
    for n, key in enumerate(model.field.keys.tolist()):
        state = optimiser.state_of(n)
        if key in before:
            assert state.keys() == before[key].keys()
            assert all(torch.equal(state[name], before[key][name]) for name in state)
        else:
            parent = before[leaf]
            assert all(torch.equal(state[name], parent[name]) for name in state if not name.startswith("table.exp"))
            assert float(state["table.exp_avg"].abs().max()) == 0 < float(state["table.exp_avg_sq"].max())
    with torch.no_grad():
        now = model.render(rays)
    moved = now.share[:-1][model.octree.level == 3].sum()
    assert float(moved) > 1
    assert float((now.rgb - seen.rgb).square().mean()) < 1e-4


def test_a_planted_empty_subtree_is_pruned_and_pictures_stay() -> None:
    config = tiny_config(
        octree={"prune_every": 400},  # at 200 one cell may still hold something, which depends on the processor
        train={"steps": 1000, "save_every": 2000, "lr_init": 0.02, "val_rays": 400},
        sampler={"occupancy_warmup": 8, "occupancy_decay": 0.5},
        loss={"lambda_sparsity": 0.2},
        data={"reservoir_mb": 1.0},
    )
    tree = tiny_octree()
    root = next(8 * 9 + which for which in (1, 3, 5, 7) if 8 * 9 + which not in tree.keys)  # in the air
    planted = [root, 8 * root + 1, 8 * root + 6]
    keys = torch.tensor(sorted({*tree.keys.tolist(), *planted}))
    prepared = Octree.from_keys(keys, torch.zeros(len(keys)), float(tree.gsd[0]))
    train_tiles, val_tiles = (tiles_of(make_partition(tree, 1, 1), 0, split) for split in ("train", "val"))
    partition = make_partition(prepared, 1, 1)
    work = assemble(config, tiny_scene(), prepared, partition, 0, train_tiles, val_tiles, MEAN_COLOUR)
    train(work, lambda row: None, lambda psnr: None, lambda: False, until=399)
    before = score_val(work)
    work.progress.step = 400
    assert work.adaptation.adapt(work)
    left = set(work.adaptation.tree.keys.tolist())
    assert left.isdisjoint(planted)
    assert score_val(work) == pytest.approx(before, abs=0.05)
    train(work, lambda row: None, lambda psnr: None, lambda: False, until=402)  # and training goes on


@pytest.mark.parametrize("keep", ["weight", "cells"])
def test_a_leaf_that_answers_or_holds_something_stays(keep: str) -> None:
    work = trained(tiny_config(octree={"prune_every": 100}))
    work.model.occupancy.enabled = True
    asked = work.adaptation._asked["pruning"]
    asked.nodes.zero_()
    asked.nodes[0, 0], asked.rays[0] = 1.0, 1.0
    leaf = work.model.octree.num_nodes - 1
    work.model.occupancy.density.zero_()
    if keep == "weight":
        asked.nodes[leaf, 0] = 1.0
    else:
        work.model.occupancy.density[leaf, 3] = 1e6
    key = int(work.model.octree.keys[leaf])
    path = {key >> 3 * up for up in range(3)}
    work.progress.step = 100
    assert work.adaptation.adapt(work)
    assert set(work.adaptation.tree.keys.tolist()) == path


def as_rank(rank: int, num_ranks: int, run_dir: Path) -> dict[str, Any]:
    """Train a rank's part of a tree that grows and is pruned; what it holds then."""
    work = tiny_work(adaptive(prune_every=8), num_ranks, rank).work
    run(work, run_dir)
    field = work.model.field
    shared = {
        int(field.keys[n]): [value.clone() for value in field.state_of(n).values()]
        for n in torch.nonzero(work.shared).flatten().tolist()
    }
    return {
        "tree": work.adaptation.tree.keys.tolist(),
        "held": work.model.octree.keys.tolist(),
        "shared": shared,
    }


def as_two(rank: int, run_dir: Path) -> dict[str, Any]:
    return as_rank(rank, 2, run_dir)


def test_two_ranks_hold_their_parts_of_the_same_tree(tmp_path: Path) -> None:
    first, second = run_ranks(2, as_two, tmp_path)
    assert first["tree"] == second["tree"]
    keys = first["tree"]
    assert len(keys) > tiny_octree().num_nodes
    assert set(first["held"]) | set(second["held"]) == set(keys)
    both = set(first["held"]) & set(second["held"])
    assert both == set(first["shared"]) - {BACKGROUND_KEY} and first["shared"].keys() == second["shared"].keys()
    for key, values in first["shared"].items():
        assert all(torch.equal(*pair) for pair in zip(values, second["shared"][key], strict=True)), key
    opened = load_checkpoint(folder(tmp_path, FULL))
    assert opened.octree.keys.tolist() == keys
    # and one process goes on with what two ranks made of it
    alone = tiny_work(adaptive()).work
    restore(alone, folder(tmp_path, FULL))
    assert alone.model.octree.keys.tolist() == keys and not bool((alone.model.octree.children == FOREIGN).any())


def test_growth_of_shared_nodes_is_shared() -> None:
    tree = tiny_octree()
    partition = make_partition(tree, 2, 2)
    rank = next(rank for rank in range(2) if partition.owned[rank])
    owned = min(partition.owned[rank])
    shared = next(key for key in sorted(partition.shared) if key >= 8 and not bool((tree.keys >> 3 == key).all()))
    which = next(w for w in range(8) if 8 * shared + w not in tree.keys)
    new = [8 * shared + which, 8 * owned]
    keys = torch.tensor(sorted({*tree.keys.tolist(), *new}))
    became = partition.over(tree, Octree.from_keys(keys, torch.zeros(len(keys)), float(tree.gsd[0])))
    assert new[0] in became.shared and new[1] in became.owned[rank]
    assert became.shared - {new[0]} == partition.shared
    assert sum(map(len, became.owned)) + len(became.shared) == len(keys) + 1


def test_a_pruned_root_of_a_subtree_comes_back_to_its_owner() -> None:
    tree = tiny_octree()
    partition = make_partition(tree, 2, 1)
    gone = partition.roots[1][0]
    less = tree.keys[~torch.isin(tree.keys, torch.tensor(sorted(tree.subtree_keys(gone))))]
    small = Octree.from_keys(less, torch.zeros(len(less)), float(tree.gsd[0]))
    without = partition.over(tree, small)
    assert gone not in without.subtrees and gone not in without.owned[1]
    again = Octree.from_keys(torch.cat((less, torch.tensor([gone]))), torch.zeros(len(less) + 1), float(tree.gsd[0]))
    assert gone in partition.over(tree, again).owned[1]


REFUSED: list[tuple[dict[str, dict[str, Any]], str]] = [
    ({"octree": {"update_every": 5}, "train": {"node_memory_mb": 100}}, "node_memory_mb"),
    ({"octree": {"update_every": 5}, "train": {"foreign": "exchange"}}, "foreign"),
    ({"octree": {"prune_every": 5}, "train": {"subtree": "r0"}}, "subtree"),
    ({"octree": {"prune_every": 5}, "sampler": {"kind": "tree"}}, "sampler.kind"),
]


@pytest.mark.parametrize(("sections", "named"), REFUSED)
def test_what_does_not_go_together_is_refused_by_name(sections: dict[str, dict[str, Any]], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        tiny_config(**sections)
