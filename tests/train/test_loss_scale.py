"""The factor on the loss in float16, and what the loop does with it; float16 is emulated on the CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

from inf_nerf.errors import InputError
from inf_nerf.train import loss_scale
from inf_nerf.train.loop import NotFiniteError, Work, forward, train
from inf_nerf.train.loss_scale import FIRST, LossScale
from tests.train.tiny import tiny_config, tiny_work


def half_work(steps: int = 3) -> Work:
    """A miniature training whose heads compute in float16."""
    work = tiny_work(tiny_config(train={"steps": steps, "log_every": 1})).work
    work.model.field.compute_heads_in(torch.float16)
    work.loss_scale = LossScale("float16")
    return work


def values(work: Work) -> list[Tensor]:
    field = work.model.field
    return [leaf.detach().clone() for leaf in (field.tables, field.density_weights, work.model.appearance)]


def overflow(work: Work, steps: set[int]) -> None:
    """Make the gradients of these steps infinite."""
    original = work.model.render

    def render(*args: Any, **named: Any) -> Any:
        found = original(*args, **named)
        if work.progress.step in steps:
            found.rgb.register_hook(lambda gradient: gradient * torch.inf)
        return found

    work.model.render = render  # type: ignore[method-assign]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precisions_with_the_exponents_of_float32_need_no_scale(precision: str) -> None:
    scale = LossScale(precision)
    for _ in range(3):
        scale.keep()

    assert scale.value == 1
    assert not scale.lower()


def test_scale_is_halved_down_to_one_and_then_not_to_blame() -> None:
    scale = LossScale("float16")
    found = []
    while scale.lower():
        found.append(scale.value)

    assert found == [2.0**power for power in range(15, -1, -1)]
    assert scale.value == 1


def test_scale_is_doubled_after_many_good_steps_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "STEPS_BETWEEN_DOUBLINGS", 3)
    scale, found = LossScale("float16"), []
    for step in range(8):
        scale.lower() if step == 2 else scale.keep()
        found.append(scale.value / FIRST)

    assert found == [1, 1, 0.5, 0.5, 0.5, 1, 1, 1]


def test_gradients_are_those_of_the_loss_without_the_scale() -> None:
    work, twin = half_work(), tiny_work().work
    for each in (work, twin):
        terms, _, _ = forward(each, each.reservoir.sample(each.num_rays, each.generator))
        (torch.stack(list(terms.values())).sum() * each.loss_scale.value).backward()
        each.gradients.divide(each.loss_scale.value)

    for name in ("tables", "density_weights", "colour_weights"):
        found, expected = (getattr(each.model.field, name).grad for each in (work, twin))
        assert 0 < float((found - expected).norm()) < 0.02 * float(expected.norm())
    found, expected = work.model.appearance.grad, twin.model.appearance.grad
    assert found is not None and expected is not None
    assert float((found - expected).norm()) < 0.02 * float(expected.norm())


def test_small_gradients_vanish_in_float16_without_the_scale() -> None:
    work = half_work()
    field = work.model.field
    xyz, node = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(50, dtype=torch.int64)
    norms = []
    for scale in (1.0, FIRST):
        sigma, _ = field.density(xyz, node)
        (sigma.mean() * 1e-6 * scale).backward()
        assert field.tables.grad is not None
        norms.append(float(field.tables.grad.norm()) / scale)
        field.clear_gradients()

    assert norms[0] < 0.5 * norms[1]


def test_step_that_overflows_counts_but_changes_nothing_and_lowers_the_scale() -> None:
    work = half_work(steps=3)
    overflow(work, {1})
    seen, rows = [], []

    def on_log(row: dict[str, Any]) -> None:
        rows.append(row)
        seen.append((work.loss_scale.value, values(work)))

    finished = train(work, on_log, lambda val: None, lambda: False)

    assert finished and work.progress.step == 3
    assert [scale for scale, _ in seen] == [FIRST, FIRST / 2, FIRST / 2]
    assert all(torch.equal(old, new) for old, new in zip(seen[0][1], seen[1][1], strict=True))
    assert not torch.equal(seen[1][1][0], seen[2][1][0])
    assert rows[0]["lr"] > rows[1]["lr"] > rows[2]["lr"]


def test_gradients_that_no_scale_makes_finite_end_the_training() -> None:
    work = half_work(steps=30)
    overflow(work, set(range(30)))
    before = values(work)

    with pytest.raises(NotFiniteError, match="in step 17;"):
        train(work, lambda row: None, lambda val: None, lambda: False)

    assert all(torch.equal(old, new) for old, new in zip(before, values(work), strict=True))


def test_bfloat16_learns_about_as_well_as_float32() -> None:
    psnr = {}
    for precision in ("float32", "bfloat16"):
        rows: list[dict[str, Any]] = []
        work = tiny_work(tiny_config(train={"steps": 60, "log_every": 20, "precision": precision})).work
        train(work, rows.append, lambda val: None, lambda: False)
        psnr[precision] = float(rows[-1]["psnr"])

    assert psnr["bfloat16"] == pytest.approx(psnr["float32"], abs=0.5)
    assert psnr["bfloat16"] != psnr["float32"]


def test_float16_on_the_cpu_is_refused() -> None:
    with pytest.raises(InputError, match=r"slower than float32 on a CPU; set train\.precision=float32, or train\.gpus"):
        tiny_work(tiny_config(train={"precision": "float16"}))
