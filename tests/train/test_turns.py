"""Training in turns: what waits is left alone and comes back bit for bit, and any resume goes on."""

from pathlib import Path

import pytest
import torch

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.octree.partition import Partition, make_partition
from inf_nerf.octree.topology import key_name
from inf_nerf.train.checkpoint import restore, save_checkpoint
from inf_nerf.train.loop import Work, score_val, train
from inf_nerf.train.manifest import latest_checkpoint, read_manifest
from inf_nerf.train.opened import load_checkpoint
from inf_nerf.train.turns import MIB, Turns, node_bytes, plan_turns
from tests.train.ranks import run_ranks
from tests.train.test_checkpoint import assert_equal_checkpoints, downward, folder, tensors
from tests.train.tiny import tiny_config, tiny_octree, tiny_scene, tiny_work

STEPS = 4  # of a turn
IN_TURNS = tiny_config(train={"steps": 16, "turn_steps": STEPS})


def partition_into(num_parts: int) -> Partition:
    return make_partition(tiny_octree(), num_parts, 1)


def begin(run_dir: Path, turns: Turns, rank: int = 0, config: Config = IN_TURNS) -> Work:
    """A rank in the turn that the newest checkpoint of the run ended in or before."""
    start = latest_checkpoint(run_dir)
    turn = turns.at(read_manifest(start)["step"] if start else 0)
    work = tiny_work(config, turns.num_ranks, rank, turn=turn, num_turns=turns.num_turns).work
    if start:
        restore(work, start)
    return work


def take_turn(run_dir: Path, work: Work, turns: Turns, stop_at: int | None = None) -> Path:
    """Train to the end of the turn, or to a step before it; the checkpoint that is left."""

    def on_save(val_psnr: float | None) -> None:
        complete = work.progress.share(work.config) >= 1
        save_checkpoint(run_dir, work, tiny_scene(), tiny_octree(), "tiny", val_psnr, complete)

    until = turns.end(work.progress.step)
    train(work, lambda row: None, on_save, lambda: stop_at is not None and work.progress.step >= stop_at - 1, until)
    return folder(run_dir, work.progress.step)


def hashes(checkpoint: Path) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in read_manifest(checkpoint)["files"].items()}


def states(work: Work) -> dict[str, dict[str, torch.Tensor]]:
    """Values, moments and occupancy of all nodes in memory, by name."""
    model, found = work.model, {}
    for node, key in enumerate(model.field.keys.tolist()):
        found[key_name(key)] = {**model.field.state_of(node), **work.optimiser.state_of(node)}
        if node < model.octree.num_nodes:
            found[key_name(key)] |= {f"occupancy.{k}": v for k, v in model.occupancy.state_of(node).items()}
    return {key: {name: value.clone() for name, value in state.items()} for key, state in found.items()}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []


def two_turns(config: Config = IN_TURNS, num_ranks: int = 1) -> Turns:
    return Turns(partition_into(2 * num_ranks), num_ranks, config.train.turn_steps)


def test_without_a_cap_there_is_one_turn_without_an_end() -> None:
    for num_ranks in (1, 2, 4, 100):
        turns = plan_turns(IN_TURNS, partition_into, num_ranks)
        assert turns.partition == partition_into(num_ranks)
        assert (turns.num_turns, turns.at(10**6), turns.end(7)) == (1, 0, None)


def test_turns_follow_each_other_round_and_round() -> None:
    turns = Turns(partition_into(6), 2, 10)
    assert [turns.at(step) for step in (0, 9, 10, 25, 29, 30, 61)] == [0, 0, 1, 2, 2, 0, 0]
    assert [turns.end(step) for step in (0, 9, 10, 25)] == [10, 10, 20, 30]


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_there_are_as_few_turns_as_fit_under_the_cap(num_ranks: int) -> None:
    def held(num_turns: int) -> float:
        partition = partition_into(num_ranks * num_turns)
        return (len(partition.shared) + max(map(len, partition.owned))) * node_bytes(IN_TURNS) / MIB

    for cap in {held(1), held(2), held(3)}:
        turns = plan_turns(tiny_config(train={"node_memory_mb": cap}), partition_into, num_ranks)
        assert held(turns.num_turns) <= cap
        assert all(held(fewer) > cap for fewer in range(1, turns.num_turns))


def test_a_cap_below_the_smallest_part_names_the_least_that_will_do() -> None:
    with pytest.raises(InputError, match=r"train\.node_memory_mb is 0\.001, but .* take (\d+\.\d) MB") as caught:
        plan_turns(tiny_config(train={"node_memory_mb": 0.001}), partition_into, 2)
    least = float(str(caught.value).split(" take ")[1].split(" MB")[0]) + 0.1
    assert plan_turns(tiny_config(train={"node_memory_mb": least}), partition_into, 2).num_turns >= 1


def test_what_waits_is_left_alone_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    turns = two_turns()
    own, other = ({key_name(key) for key in keys} for keys in turns.partition.owned)
    shared = {key_name(key) for key in turns.partition.shared}
    first = begin(tmp_path, turns)
    one = take_turn(tmp_path, first, turns)
    after_first = states(first)
    assert set(after_first) == shared | own
    assert {Path(name).stem for name in hashes(one) if name.startswith("nodes/")} == shared | own

    second = begin(tmp_path, turns)
    assert set(states(second)) == shared | other
    for name in shared:
        assert_same(states(second)[name], after_first[name])
    assert torch.equal(second.model.appearance, first.model.appearance)
    assert torch.equal(second.generator.get_state(), first.generator.get_state())
    assert (second.progress.step, second.draws) == (STEPS, first.draws)
    two = take_turn(tmp_path, second, turns)
    before, after = hashes(one), hashes(two)
    assert {Path(name).stem for name in after if name.startswith("nodes/")} == shared | own | other
    for folder_of in ("nodes", "optimiser"):
        for name in own:
            file = f"{folder_of}/{name}.safetensors"
            assert before[file] == after[file]
            assert (two / file).stat().st_ino == (one / file).stat().st_ino  # not even copied
    assert before["nodes/r.safetensors"] != after["nodes/r.safetensors"]

    third = begin(tmp_path, turns)
    assert third.part == first.part
    for name in own:
        assert_same(states(third)[name], after_first[name])
    assert take_turn(tmp_path, third, turns) == folder(tmp_path, 3 * STEPS)
    assert any(hashes(two)[f"nodes/{name}.safetensors"] != hashes(folder(tmp_path, 12))[f"nodes/{name}.safetensors"]
               for name in own)  # fmt: skip


def test_parents_answer_for_nodes_that_had_no_turn_yet(tmp_path: Path) -> None:
    turns = two_turns()
    work = begin(tmp_path, turns)
    checkpoint = load_checkpoint(take_turn(tmp_path, work, turns))
    assert torch.equal(checkpoint.model.octree.keys, work.model.octree.keys)
    with torch.no_grad():
        found, wanted = (model.render(downward()) for model in (checkpoint.model, work.model))
    assert torch.equal(found.rgb, wanted.rgb)
    assert found.foreign.max() > 0


def test_cells_of_a_node_whose_turn_comes_late_are_not_taken_for_empty(tmp_path: Path) -> None:
    config = tiny_config(sampler={"occupancy_every": 1, "occupancy_warmup": 4}, train={"steps": 40, "turn_steps": 10})
    turns = two_turns(config)
    take_turn(tmp_path, begin(tmp_path, turns, config=config), turns)
    work = begin(tmp_path, turns, config=config)
    once = tiny_work(config).work  # or without turns, where there is room for all
    path = latest_checkpoint(tmp_path)
    assert path is not None
    restore(once, path)
    for each in (work, once):
        occupancy = each.model.occupancy
        assert occupancy.enabled
        fresh = [node for node, key in enumerate(each.model.octree.keys.tolist()) if key in turns.partition.owned[1]]
        assert fresh and torch.equal(occupancy.occupied[fresh], (occupancy.protected | ~occupancy.free)[fresh])


@pytest.mark.parametrize("stop_at", [2, STEPS, STEPS + 3])
def test_a_stop_in_any_turn_changes_nothing(tmp_path: Path, stop_at: int) -> None:
    turns = two_turns()
    for name, stop in (("straight", None), ("stopped", stop_at)):
        while (newest := latest_checkpoint(tmp_path / name)) is None or not read_manifest(newest)["complete"]:
            take_turn(tmp_path / name, begin(tmp_path / name, turns), turns, stop)
            stop = None if (latest_checkpoint(tmp_path / name) or tmp_path).name == f"{stop_at:08d}" else stop
    assert_equal_checkpoints(folder(tmp_path / "stopped", 16), folder(tmp_path / "straight", 16))


def as_one_of_two(rank: int, run_dir: Path) -> None:
    turns = two_turns(num_ranks=2)
    for _ in range(3):
        work = begin(run_dir, turns, rank)
        take_turn(run_dir, work, turns)


def test_a_run_in_turns_resumes_on_other_workers_and_without_turns(tmp_path: Path) -> None:
    turns = two_turns()
    take_turn(tmp_path, begin(tmp_path, turns), turns)
    path = take_turn(tmp_path, begin(tmp_path, turns), turns)
    once = tiny_work(IN_TURNS).work
    restore(once, path)
    values = tensors(path)
    for name, state in states(once).items():
        for entry, value in state.items():
            file = "optimiser" if entry.endswith(("step", "exp_avg", "exp_avg_sq")) else "nodes"
            assert torch.equal(value, values[f"{file}/{name}.safetensors:{entry}"])
    run_ranks(2, as_one_of_two, tmp_path)
    newest = read_manifest(folder(tmp_path, 16))
    assert (newest["num_workers"], newest["complete"]) == (2, True)
    names = {key_name(key) for key in tiny_octree().keys.tolist()} | {"bg"}
    assert {Path(name).stem for name in newest["files"] if name.startswith("nodes/")} == names


def test_each_part_goes_on_in_its_tiles_where_it_was_left(tmp_path: Path) -> None:
    turns = two_turns(config := tiny_config(data={"reservoir_mb": 0.02}, train={"steps": 40, "turn_steps": 8}))
    first = begin(tmp_path, turns, config=config)
    take_turn(tmp_path, first, turns)
    cursor = first.reservoir.state()["cursor"]
    second = begin(tmp_path, turns, config=config)
    assert second.cursors[0] == cursor > 0
    take_turn(tmp_path, second, turns)
    third = begin(tmp_path, turns, config=config)
    before, after = (work.reservoir.state()["tiles"] for work in (first, third))
    assert after[0] not in before


def train_whole(config: Config, num_turns: int, run_dir: Path) -> Path:
    """All turns until the budget is used; the last checkpoint."""
    turns = Turns(partition_into(num_turns), 1, config.train.turn_steps)
    path = take_turn(run_dir, begin(run_dir, turns, config=config), turns)
    while not read_manifest(path)["complete"]:
        path = take_turn(run_dir, begin(run_dir, turns, config=config), turns)
    return path


@pytest.mark.slow
def test_turns_learn_about_as_much_in_as_many_steps_of_each_node(tmp_path: Path) -> None:
    """The whole model against photos that were not trained on; nodes are in training in one turn out of three."""
    psnr = []
    for num_turns in (1, 3):
        budget = {"steps": 80 * num_turns, "turn_steps": 10, "batch_size": 192, "val_rays": 2048}
        config = tiny_config(train=budget)
        path = train_whole(config, num_turns, tmp_path / str(num_turns))
        whole = tiny_work(config).work
        restore(whole, path)
        psnr.append(score_val(whole))
    assert psnr[0] > 14
    assert psnr[1] > psnr[0] - 1.0, psnr
