"""The training loop: when it stops, saves and logs, what it refuses, and what it leaves alone."""

import time
from typing import Any

import pytest
import torch

from inf_nerf.diagnose.profiler import Profiler
from inf_nerf.octree.topology import BACKGROUND_KEY
from inf_nerf.train import loop
from inf_nerf.train.assembly import part_of
from inf_nerf.train.figures import LOSSES, psnr
from inf_nerf.train.loop import (
    MOST_DRAWS,
    PROBE_SHARES,
    NotFiniteError,
    Progress,
    Work,
    next_draws,
    score_val,
    train,
    update_occupancy,
    warm_up,
)
from tests.train.tiny import tiny_config, tiny_work

LEAVES = ("tables", "density_weights", "colour_weights")


def values(work: Work) -> list[torch.Tensor]:
    return [getattr(work.model.field, name).detach().clone() for name in LEAVES] + [work.model.appearance.clone()]


class Record:
    """Trains and remembers what was reported."""

    def __init__(self, work: Work, stop_at: int | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.saved: list[tuple[int, float | None]] = []
        self.finished = train(
            work,
            self.rows.append,
            lambda val_psnr: self.saved.append((work.progress.step, val_psnr)),
            lambda: stop_at is not None and work.progress.step >= stop_at,
        )


def test_training_ends_after_its_steps_and_saves_once() -> None:
    work = tiny_work(tiny_config(train={"steps": 5})).work
    record = Record(work)
    assert record.finished
    assert work.progress.step == 5
    assert [step for step, _ in record.saved] == [5]


def test_saves_come_at_their_steps_and_never_twice() -> None:
    record = Record(tiny_work(tiny_config(train={"steps": 6, "save_every": 3})).work)
    assert [step for step, _ in record.saved] == [3, 6]


def test_stop_request_saves_and_says_unfinished() -> None:
    work = tiny_work().work
    record = Record(work, stop_at=3)
    assert not record.finished
    assert work.progress.step == 4
    assert [step for step, _ in record.saved] == [4]


def test_a_pause_takes_neither_steps_nor_time_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PAUSE_SECONDS", 0.3)
    work, held = tiny_work(tiny_config(train={"steps": 6})).work, list[int]()

    def paused() -> bool:
        if work.progress.step == 3 and len(held) < 4:
            held.append(work.progress.step)
            return len(held) < 4
        return work.progress.step == 2

    began = time.monotonic()
    assert train(work, lambda row: None, lambda val: None, lambda: False, pause_requested=paused)
    assert work.progress.step == 6 and len(held) == 4
    assert work.progress.seconds < time.monotonic() - began - 0.85


def test_a_pause_ends_with_a_stop_and_a_save() -> None:
    work, held, saved = tiny_work(tiny_config(train={"steps": 6})).work, list[int](), list[int]()

    def paused() -> bool:
        if work.progress.step >= 2:
            held.append(work.progress.step)
        return bool(held)

    def save(val: float | None) -> None:
        saved.append(work.progress.step)

    assert not train(work, lambda row: None, save, lambda: len(held) > 2, pause_requested=paused)
    assert saved == [3] and set(held) == {2, 3}


def test_a_requested_save_comes_after_the_step_and_once() -> None:
    work, saved = tiny_work(tiny_config(train={"steps": 6})).work, list[int]()
    train(
        work, lambda row: None, lambda val: saved.append(work.progress.step), lambda: False,
        save_requested=lambda: work.progress.step == 2,
    )  # fmt: skip
    assert saved == [3, 6]


def test_training_ends_after_its_time() -> None:
    work = tiny_work(tiny_config(train={"steps": 100_000, "max_seconds": 0.2})).work
    assert Record(work).finished
    assert 0 < work.progress.step < 1000
    assert work.progress.seconds >= 0.2


def test_warming_up_leaves_no_trace() -> None:
    work, untouched = (tiny_work(tiny_config(train={"steps": 4})).work for _ in range(2))
    warm_up(work)
    assert torch.equal(work.generator.get_state(), untouched.generator.get_state())
    assert work.model.steps_across == untouched.model.steps_across
    assert not work.model.field.touched.any()
    assert work.model.appearance.grad is None
    for found, wanted in zip(values(work), values(untouched), strict=True):
        assert torch.equal(found, wanted)
    assert not any(getattr(work.model.field, name).grad.any() for name in LEAVES)


def test_time_of_earlier_parts_counts() -> None:
    work = tiny_work(tiny_config(train={"steps": 100_000, "max_seconds": 50.0})).work
    work.progress.seconds = 49.9
    assert Record(work).finished
    assert work.progress.step < 100


def test_progress_is_the_larger_share() -> None:
    config = tiny_config(train={"steps": 100, "max_seconds": 10.0})
    assert Progress(10, 5.0).share(config) == 0.5
    assert Progress(80, 5.0).share(config) == 0.8
    assert Progress(300, 50.0).share(config) == 1.0
    assert Progress(30, 1e6).share(tiny_config(train={"steps": 100})) == 0.3


def test_rows_hold_what_the_metrics_file_promises() -> None:
    rows = Record(tiny_work(tiny_config(train={"steps": 8, "log_every": 4})).work).rows
    assert [row["step"] for row in rows] == [4, 8]
    for row in rows:
        assert row["loss"] > 0
        assert row["loss"] == pytest.approx(
            sum(getattr(tiny_config().loss, f"lambda_{name}") * row[f"loss_{name}"] for name in LOSSES)
        )
        assert sum(row["level_share"].values()) == pytest.approx(1)
        assert 5 < row["psnr"] < 40
        assert row["memory_mb"] > 10
        assert row["samples_per_ray"] > 1
        assert row["rays_per_second"] > 1
        assert 0 < row["host_memory"] < 1 and 0 < row["data_share"] < 1
        assert row["not_finite"] == row["slowest_rank"] == 0
        assert row["time_share"] == {}  # no profiler is active
        assert row["shared_gradient_bytes"] == row["shared_gradient_share"] == row["idle_share"] == 0  # nobody to tell


def test_a_profile_names_the_parts_of_a_step_and_accounts_for_nearly_all_of_it() -> None:
    work = tiny_work(tiny_config(train={"steps": 24, "log_every": 8})).work
    with Profiler() as profiler:
        rows = Record(work).rows
    found = profiler.report()["sections"]
    parts = {"occupancy", "data", "forward", "backward", "agree", "exchange", "optimiser", "log", "save"}
    inner = {"forward/render", "forward/losses", "forward/render/sample", "forward/render/field"}
    assert parts | inner <= found.keys()
    assert found["backward"]["count"] == 24 and found["log"]["count"] == 3
    assert rows[-1]["time_share"].keys() == parts - {"save", "log"}
    for row in rows:
        assert 0.7 < sum(row["time_share"].values()) < 1.05


def test_learning_lowers_the_loss() -> None:
    rows = Record(tiny_work(tiny_config(train={"steps": 24, "log_every": 8, "lr_final": 0.01})).work).rows
    assert rows[-1]["loss_rgb"] < 0.8 * rows[0]["loss_rgb"]


def test_same_seed_trains_the_same_and_another_does_not() -> None:
    config = tiny_config(train={"steps": 3})
    works = [tiny_work(config).work, tiny_work(config).work, tiny_work(tiny_config(train={"steps": 3, "seed": 1})).work]
    for work in works:
        Record(work)
    first, second, other = (values(work) for work in works)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])


def test_loss_that_is_not_finite_changes_nothing() -> None:
    work = tiny_work().work
    Record(work, stop_at=1)
    step = work.progress.step
    work.model.field.colour_weights.data[1:] = torch.nan
    before = values(work)
    moments = {
        node: {k: v.clone() for k, v in work.optimiser.state_of(node).items()} for node in range(work.shared.numel())
    }
    saved: list[object] = []
    with pytest.raises(NotFiniteError, match=f"step {step + 1}"):
        train(work, lambda row: None, saved.append, lambda: False)
    for old, new in zip(before, values(work), strict=True):
        assert torch.equal(old.nan_to_num(7), new.nan_to_num(7))
    for node, state in moments.items():
        assert all(torch.equal(value, work.optimiser.state_of(node)[name]) for name, value in state.items())
    assert work.progress.step == step
    assert saved == []


@pytest.mark.parametrize("grad_clip", [0.0, 1.0])
def test_gradient_that_is_not_finite_changes_nothing(grad_clip: float) -> None:
    work = tiny_work(tiny_config(train={"grad_clip": grad_clip})).work
    before = values(work)
    finite_loss = work.model.render

    def render(*args: Any, **named: Any) -> Any:
        found = finite_loss(*args, **named)
        found.rgb.register_hook(lambda gradient: gradient * torch.inf)
        return found

    work.model.render = render  # type: ignore[method-assign]
    with pytest.raises(NotFiniteError):
        train(work, lambda row: None, lambda val: None, lambda: False)
    assert all(torch.equal(old, new) for old, new in zip(before, values(work), strict=True))


def test_untouched_nodes_keep_values_and_moments() -> None:
    work = tiny_work(tiny_config(loss={"lambda_sparsity": 0.0, "lambda_consistency": 0.0})).work
    Record(work, stop_at=1)
    field, optimiser = work.model.field, work.optimiser
    num_nodes = len(field.keys)

    def snapshot() -> list[dict[str, torch.Tensor]]:
        states = [field.state_of(node) | optimiser.state_of(node) for node in range(num_nodes)]
        return [{name: value.clone() for name, value in state.items()} for state in states]

    before = snapshot()
    asked = 3
    sigma, _ = field.density(torch.rand(20, 3), torch.full((20,), asked))
    sigma.sum().backward()
    assert field.touched.nonzero().flatten().tolist() == [asked]
    optimiser.step(1e-3)
    after = snapshot()
    for node in range(num_nodes):
        same = before[node].keys() == after[node].keys() and all(
            torch.equal(value, after[node][name]) for name, value in before[node].items()
        )
        assert same == (node != asked)
    steps = {name: int(value) for name, value in after[asked].items() if name.endswith("step")}
    assert steps["table.step"] == int(before[asked].get("table.step", torch.zeros(()))) + 1
    assert not bool(field.touched.any())


def test_nodes_count_their_own_steps() -> None:
    field_steps = []
    work = tiny_work().work
    for node in (1, 2, 2):
        sigma, _ = work.model.field.density(torch.rand(9, 3), torch.full((9,), node))
        sigma.sum().backward()
        work.optimiser.step(1e-3)
    for node in (0, 1, 2):
        state = work.optimiser.state_of(node)
        field_steps.append(int(state["table.step"]) if state else 0)
    assert field_steps == [0, 1, 2]


def test_clipped_gradients_move_less_in_their_first_moment() -> None:
    norms = []
    for grad_clip in (0.0, 1e-4):
        work = tiny_work(tiny_config(train={"steps": 1, "grad_clip": grad_clip})).work
        Record(work)
        states = [work.optimiser.state_of(node) for node in range(len(work.shared))]
        moments = [v for state in states for name, v in state.items() if name.endswith("exp_avg")]
        moments += [v for name, v in work.optimiser.appearance_state().items() if name.endswith("exp_avg")]
        norms.append(float(torch.stack([moment.square().sum() for moment in moments]).sum().sqrt()))
    assert norms[1] == pytest.approx(0.1 * 1e-4, rel=1e-3)  # the first moment after one step is 0.1 of the gradient
    assert norms[0] > 10 * norms[1]


@pytest.mark.parametrize(("warmup", "last"), [(0, 6), (4, 6), (9, 8)])  # every 2 steps, 4 probes see all cells
def test_occupancy_waits_for_its_warmup_and_for_every_cell_to_be_probed(warmup: int, last: int) -> None:
    work = tiny_work(tiny_config(sampler={"occupancy_every": 2, "occupancy_warmup": warmup})).work
    occupancy = work.model.occupancy
    before = occupancy.occupied.clone()
    for step in range(last + 3):
        enabled = step >= last + 2
        work.progress.step = step
        update_occupancy(work)
        assert occupancy.enabled == enabled
        assert enabled or torch.equal(occupancy.occupied, before)


def test_occupancy_of_shared_nodes_is_the_same_on_all_ranks() -> None:
    grids = []
    for num_ranks, rank in ((1, 0), (2, 0), (2, 1)):
        work = tiny_work(tiny_config(), num_ranks, rank).work
        for work.progress.step in (2, 4, 6):
            update_occupancy(work)
        keys = work.model.octree.keys.tolist()
        grids.append({key: work.model.occupancy.state_of(node) for node, key in enumerate(keys)})
    for other in grids[1:]:
        assert other.keys() <= grids[0].keys()
        for key, state in other.items():
            for name, value in state.items():
                # what a stand-in protects is its own affair
                assert torch.equal(value, grids[0][key][name])


def test_steps_mark_the_nodes_that_they_touch_for_probing() -> None:
    work = tiny_work(tiny_config(train={"steps": 1})).work
    work.to_probe.zero_()
    Record(work)
    trained = [bool(work.optimiser.state_of(node)) for node in range(work.model.octree.num_nodes)]
    assert work.to_probe.tolist() == [PROBE_SHARES if touched else 0 for touched in trained]
    assert sum(trained) > 0


def test_tree_sampler_trains_without_occupancy() -> None:
    config = tiny_config(sampler={"kind": "tree", "tree_samples": [24, 12, 8]}, train={"steps": 4})
    work = tiny_work(config).work
    record = Record(work)
    assert record.finished
    assert not work.model.occupancy.enabled
    assert work.model.octree.num_nodes + 1 == len(work.shared)


def test_field_without_appearance_numbers_trains() -> None:
    config = tiny_config(field={"appearance_dim": 0}, train={"steps": 3})
    assert Record(tiny_work(config).work).finished


def test_losses_can_be_switched_off() -> None:
    config = tiny_config(loss={f"lambda_{name}": 0.0 for name in LOSSES if name != "rgb"}, train={"steps": 3})
    work = tiny_work(config).work
    assert work.num_tracks == 0
    record = Record(work)
    assert record.finished


def test_rank_without_tiles_trains_along() -> None:
    work = tiny_work(tiny_config(train={"steps": 3})).work
    empty = type(work.reservoir)(lambda: iter(()), 1 << 16, 2.0)
    work.reservoir, work.val, work.num_tracks = empty, None, 0
    record = Record(work)
    assert record.finished
    assert record.saved == [(3, None)]


def test_val_score_is_the_same_twice_and_touches_nothing() -> None:
    work = tiny_work().work
    before = values(work)
    first = score_val(work)
    assert first is not None
    assert first == score_val(work)
    assert 5 < first < 40
    assert not bool(work.model.field.touched.any())
    assert all(torch.equal(a, b) for a, b in zip(before, values(work), strict=True))


def test_without_val_photos_there_is_no_score() -> None:
    work = tiny_work().work
    work.val = None
    assert score_val(work) is None


def test_psnr_of_known_errors() -> None:
    assert psnr(0.01 * 7, 7) == pytest.approx(20)
    assert psnr(0.0, 5) == pytest.approx(120)


def test_parts_of_a_count_make_it_up() -> None:
    for total in (0, 1, 5, 96, 97):
        for num_ranks in (1, 2, 3, 7):
            for loads in ([1.0] * num_ranks, [0.1 * (rank + 1) for rank in range(num_ranks)]):
                parts = [part_of(total, rank, loads) for rank in range(num_ranks)]
                assert sum(parts) == total
                assert parts == pytest.approx([total * load / sum(loads) for load in loads], abs=1)
    assert [part_of(10, rank, [0.0, 0.0]) for rank in range(2)] == [0, 0]


def test_ranks_hold_the_shared_nodes_and_their_own() -> None:
    full, found = tiny_work().work.model.field.keys.tolist(), []
    for rank in range(3):
        tiny = tiny_work(tiny_config(), 3, rank)
        work, keys = tiny.work, tiny.work.model.field.keys.tolist()
        assert set(keys) == tiny.partition.shared | tiny.partition.owned[rank]
        assert {key for key, shared in zip(keys, work.shared.tolist(), strict=True) if shared} == tiny.partition.shared
        assert keys[-1] == BACKGROUND_KEY
        found += keys
    assert set(found) == set(full)


def test_as_many_pixels_are_drawn_as_it_takes_for_their_weights_to_be_the_batch() -> None:
    assert next_draws(1.0, weight=64.0, rays=64.0) == 1.0
    draws = 1.0
    for _ in range(100):
        draws = next_draws(draws, weight=0.6 * 64 * draws, rays=64 * draws)
    assert 0.6 * draws == pytest.approx(1, rel=1e-3)
    for _ in range(200):
        draws = next_draws(draws, weight=0.0, rays=64 * draws)  # all is answered by others
    assert draws == pytest.approx(MOST_DRAWS, rel=1e-3)
