"""Gradients that collect for some steps before they are added up, and travel in few bytes while others are used."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.octree.partition import Partition
from inf_nerf.train.checkpoint import restore
from inf_nerf.train.loop import Work, forward, train, update
from inf_nerf.train.manifest import latest_checkpoint
from inf_nerf.train.reservoir import RayBatch
from inf_nerf.train.schedule import learning_rate
from tests.train.ranks import run_ranks
from tests.train.test_checkpoint import assert_equal_checkpoints, folder, run
from tests.train.test_shared_gradients import CONFIG, LEAVES, FixedTracks, joined, pixels, prepare
from tests.train.tiny import tiny_config, tiny_work

STEPS = 4
# a large eps: otherwise Adam turns the rounding of gradients that are nearly zero into whole steps
LOSSES = CONFIG.loss.model_dump()


def config_for(**train: Any) -> Config:
    return tiny_config(loss=LOSSES, train={"steps": STEPS, "eps": 1e-2, **train})


def batches_of(partition: Partition, rank: int) -> list[tuple[RayBatch, FixedTracks]]:
    """A rank's pixels of every step."""
    batch, tracks = pixels(partition)[rank]
    parts = torch.arange(len(batch)).tensor_split(STEPS)
    names = ("photo", "level", "xy", "rgb")
    return [(RayBatch(*(getattr(batch, name)[part] for name in names)), tracks) for part in parts]


def values(work: Work) -> dict[int, list[Tensor]]:
    """Values by node key, and the appearance under -1."""
    field = work.model.field
    found = {
        key: [getattr(field, name).detach()[n].clone() for name in LEAVES] for n, key in enumerate(field.keys.tolist())
    }
    return found | {-1: [work.model.appearance.detach().clone()]}


def backward(work: Work, batch: RayBatch, tracks: FixedTracks) -> dict[str, float]:
    """The gradients of one step on top of those that are there."""
    work.tracks = tracks  # type: ignore[assignment]
    terms, _, _ = forward(work, batch)
    torch.stack(list(terms.values())).sum().backward()
    return work.gradients.agree({"owned_norm2": work.gradients.owned_norm2()}, {})


def as_rank(rank: int, num_ranks: int, settings: dict[str, Any]) -> list[dict[int, list[Tensor]]]:
    """Values after every step."""
    tiny = tiny_work(config_for(**settings), num_ranks, rank)
    work, history = tiny.work, []
    batches = batches_of(tiny.partition, rank)
    prepare(work, batches[0][1])
    for batch, tracks in batches:
        update(work, backward(work, batch, tracks), rate_of(work))
        work.progress.step += 1
        history.append(values(work))
    return history


def rate_of(work: Work) -> float:
    return learning_rate(work.config.train, work.progress.step, work.progress.share(work.config))


def twin(num_ranks: int, settings: dict[str, Any]) -> list[dict[int, list[Tensor]]]:
    """One process on the joined batches, in which the gradients of what is shared just stay in their buffers."""
    config = config_for(**settings)
    partition = tiny_work(config, num_ranks).partition
    work, history = tiny_work(config).work, []
    owned = torch.tensor([key not in partition.shared for key in work.model.field.keys.tolist()])
    parts = [batches_of(partition, rank) for rank in range(num_ranks)]
    prepare(work, parts[0][0][1])
    for step in range(STEPS):
        backward(work, *joined([part[step] for part in parts]))
        work.optimiser.step(rate_of(work), owned, appearance=False)
        if (step + 1) % config.train.shared_every == 0:
            work.optimiser.step(rate_of(work))
        work.progress.step += 1
        history.append(values(work))
    return history


CASES = {
    "every step": (2, {}, 1e-5),
    "every second": (2, {"shared_every": 2}, 1e-5),
    "every second of three ranks": (3, {"shared_every": 2}, 1e-5),
    "in bfloat16": (2, {"shared_gradient_dtype": "bfloat16"}, 4e-4),
}


def as_ranks(rank: int, num_ranks: int) -> dict[str, Any]:
    return {name: as_rank(rank, ranks, settings) for name, (ranks, settings, _) in CASES.items() if ranks == num_ranks}


@pytest.fixture(scope="module")
def found() -> dict[str, list[Any]]:
    """By case what every rank found."""
    runs = {ranks: run_ranks(ranks, as_ranks, ranks) for ranks in (2, 3)}
    return {name: [rank[name] for rank in runs[ranks]] for name, (ranks, _, _) in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_ranks_train_as_one_process_on_the_joined_batches(case: str, found: dict[str, list[Any]]) -> None:
    num_ranks, settings, tolerance = CASES[case]
    expected = twin(num_ranks, settings)
    start = values(tiny_work(config_for()).work)
    moved = 0.0
    for rank in found[case]:
        for step, now in enumerate(rank):
            for key, parts in now.items():
                for part, wanted in zip(parts, expected[step][key], strict=True):
                    torch.testing.assert_close(part, wanted, rtol=1e-4, atol=tolerance)
                moved = max(moved, float((parts[-1] - start[key][-1]).abs().max()))
    assert moved > 50 * 4e-4


@pytest.mark.parametrize("case", CASES)
def test_shared_nodes_are_bit_equal_on_all_ranks_after_every_step(case: str, found: dict[str, list[Any]]) -> None:
    num_ranks, settings, _ = CASES[case]
    shared = {*tiny_work(config_for(), num_ranks).partition.shared, -1}
    for steps in zip(*found[case], strict=True):
        for key in shared:
            for other in steps[1:]:
                assert all(torch.equal(a, b) for a, b in zip(steps[0][key], other[key], strict=True))
    history = found[case][0]
    for step in range(1, STEPS):
        stays = all(
            torch.equal(a, b) for key in shared for a, b in zip(history[step][key], history[step - 1][key], strict=True)
        )
        assert stays == (settings.get("shared_every") == 2 and step % 2 == 0)


def trained(rank: int, settings: dict[str, Any]) -> tuple[list[Tensor], float, float]:
    """The shared tables before every step of a training, and what it logged about traffic."""
    work, history, rows = tiny_work(tiny_config(train=settings), 2, rank).work, [], []

    def look() -> bool:
        history.append(work.model.field.tables.detach()[work.shared].clone())
        return False

    train(work, rows.append, lambda val: None, look)
    sent = sum(row["shared_gradient_bytes"] for row in rows)  # type: ignore[misc]
    return history, sent, sum(row["shared_gradient_share"] for row in rows)  # type: ignore[misc]


def all_trained(rank: int) -> list[Any]:
    settings = [{}, {"shared_gradient_dtype": "bfloat16"}, {"shared_every": 4}, {"grad_clip": 1e-3}]
    return [trained(rank, {"steps": 8, "log_every": 4, **each}) for each in settings]


def test_whole_trainings_keep_shared_nodes_equal_and_say_what_it_cost() -> None:
    first, second = run_ranks(2, all_trained)
    for (one, _, share), (other, _, _) in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert not torch.equal(one[0], one[-1])
        assert 0 < share < 2
    full, half, rare, clipped = (sent for _, sent, _ in first)
    assert full == clipped == 2 * half
    assert 0 < rare < full / 3
    assert all(sent == 0 for _, sent, _ in second)  # rank 0 logs


def test_run_is_saved_only_when_nothing_is_set_aside() -> None:
    saved: list[int] = []

    def steps_of(stop_at: int | None, **settings: Any) -> list[int]:
        saved.clear()
        work = tiny_work(tiny_config(train={"shared_every": 4, **settings})).work
        train(
            work,
            lambda row: None,
            lambda val: saved.append(work.progress.step),
            lambda: stop_at is not None and work.progress.step >= stop_at,
        )
        assert not work.gradients.pending
        return saved

    assert steps_of(None, steps=10, save_every=3) == [4, 8, 10]
    assert steps_of(4, steps=10) == [8]
    assert steps_of(None, steps=7, save_every=100) == [7]


def straight_and_resumed(rank: int, where: Path) -> None:
    make = partial(tiny_work, tiny_config(train={"shared_every": 4}), 2, rank)
    run(make().work, where / "straight")
    run(make().work, where / "resumed", until=6)
    start = latest_checkpoint(where / "resumed")
    assert start == folder(where / "resumed", 8)
    assert start is not None
    again = make().work
    restore(again, start)
    run(again, where / "resumed")


def test_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    run_ranks(2, straight_and_resumed, tmp_path)
    assert_equal_checkpoints(folder(tmp_path / "resumed", 12), folder(tmp_path / "straight", 12))
