"""Keys that control a training: each of them changes what is trained, saved or said, as it promises."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from inf_nerf.train import training_pictures
from inf_nerf.train.determinism import deterministic
from inf_nerf.train.loop import Work, differentiate, train, warm_up
from inf_nerf.train.reservoir import RayBatch
from inf_nerf.train.traces import FOLDER, traced
from inf_nerf.train.training_pictures import TrainingPictures
from tests.train.test_loop import Record, values
from tests.train.tiny import tiny_config, tiny_scene, tiny_work


def batch_of(work: Work) -> RayBatch:
    return work.reservoir.sample(work.num_rays, work.generator)


def gradients(work: Work) -> list[Tensor]:
    field = work.model.field
    leaves = [leaf.grad for leaf in (field.tables, field.density_weights, field.colour_weights)]
    found = [*leaves, work.model.appearance.grad]
    return [gradient.clone() for gradient in found if gradient is not None]


def without_chance(config: Config) -> Work:
    """A work that draws nothing at random but its rays: samples lie at the middle of their steps before one colour."""
    work = tiny_work(config).work
    render, chosen = work.model.render, {"generator": None, "backdrop": torch.full((3,), 0.5)}
    work.model.render = lambda rays, **named: render(rays, **(named | chosen))  # type: ignore[method-assign]
    return work


def test_parts_of_a_step_add_up_to_it() -> None:
    loss = {"depth_rays": 0}  # whose rays are drawn for each part
    settings = [{"accumulate": parts, "batch_size": 96} for parts in (1, 3)]
    works = [without_chance(tiny_config(train=each, loss=loss)) for each in settings]
    found = [differentiate(work, batch_of(work)) for work in works]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for name, value in found[0][2].items():
        assert found[1][2][name] == pytest.approx(value, rel=1e-4), name
    for whole, parts in zip(*map(gradients, works), strict=True):
        assert float((whole - parts).norm()) <= 1e-4 * float(whole.norm())
        assert float(whole.norm()) > 0


def test_parts_of_a_step_are_rendered_one_after_another() -> None:
    work = tiny_work(tiny_config(train={"accumulate": 4, "batch_size": 96})).work
    sizes: list[int] = []
    render = work.model.render

    def render_and_count(rays: Any, **named: Any) -> Any:
        sizes.append(len(rays))
        return render(rays, **named)

    work.model.render = render_and_count  # type: ignore[method-assign]
    warm_up(work)
    differentiate(work, batch_of(work))
    assert sizes == [(96 + 24) // 4] * 5, "the warm-up's part, then four"


def test_a_training_in_parts_learns() -> None:
    settings = {"steps": 24, "log_every": 8, "lr_final": 0.01, "accumulate": 3}
    rows = Record(tiny_work(tiny_config(train=settings)).work).rows
    assert rows[-1]["loss_rgb"] < 0.8 * rows[0]["loss_rgb"]


def test_moments_and_eps_of_adam_are_those_of_the_keys() -> None:
    keys = {"beta1": 0.5, "beta2": 0.7, "eps": 1e-3}
    work, rate = tiny_work(tiny_config(train=keys)).work, 0.01
    first, second = [value.clone() for value in work.model.field.parameters_of(0).values()], []
    for _ in range(3):
        differentiate(work, batch_of(work))
        second.append([gradient.clone() for gradient in work.model.field.gradients_of(0)])
        work.optimiser.step(rate)
    for index, (value, found) in enumerate(zip(first, work.model.field.parameters_of(0).values(), strict=True)):
        mean, square = torch.zeros_like(value), torch.zeros_like(value)
        for step, gradients_now in enumerate(second, start=1):
            gradient = gradients_now[index]
            mean, square = 0.5 * mean + 0.5 * gradient, 0.7 * square + 0.3 * gradient**2
            value -= rate * mean / (1 - 0.5**step) / ((square / (1 - 0.7**step)).sqrt() + 1e-3)
        torch.testing.assert_close(found.detach(), value.detach(), atol=1e-6, rtol=1e-4)


def test_weights_of_heads_decay_and_entries_of_tables_do_not() -> None:
    rate, decay = 0.01, 0.1
    plain, decaying = (tiny_work(tiny_config(train={"weight_decay": each})).work for each in (0.0, decay))
    before = [value.clone() for value in values(plain)]
    for work in (plain, decaying):
        differentiate(work, batch_of(work))
        work.optimiser.step(rate)
    touched = torch.tensor([bool(plain.optimiser.state_of(node)) for node in range(len(plain.shared))])
    assert touched.any()
    names = ("table", "density", "colour", "appearance")
    for name, old, kept, decayed in zip(names, before, values(plain), values(decaying), strict=True):
        if name in ("density", "colour"):
            torch.testing.assert_close(
                kept[touched] - decayed[touched], rate * decay * old[touched], atol=1e-7, rtol=1e-3
            )
        else:
            assert torch.equal(kept, decayed), name


def test_epochs_are_passes_over_the_pixels() -> None:
    train = load_config(overrides=["train.epochs=2.5", "train.batch_size=100"]).train
    assert train.steps_for(1000) == 25
    assert train.steps_for(1001) == 26
    assert train.steps_for(1) == 1
    assert load_config(overrides=["train.steps=7"]).train.steps_for(1000) == 7


def test_rows_say_how_many_passes_were_made_where_the_pixels_are_known() -> None:
    work = tiny_work(tiny_config(train={"steps": 4, "log_every": 2, "batch_size": 96})).work
    work.pixels = 192
    assert [row["epoch"] for row in Record(work).rows] == [1.0, 2.0]
    assert "epoch" not in Record(tiny_work(tiny_config(train={"steps": 4, "log_every": 4})).work).rows[0]


def test_val_rays_are_scored_at_their_steps_and_with_checkpoints() -> None:
    settings = {"steps": 8, "log_every": 1, "save_every": 4, "eval_every": 3}
    record = Record(tiny_work(tiny_config(train=settings)).work)
    scored = {row["step"]: row["val_psnr"] for row in record.rows if "val_psnr" in row}
    assert list(scored) == [3, 4, 6, 8]
    assert dict(record.saved) == {4: scored[4], 8: scored[8]}
    assert all(math.isfinite(score) for score in scored.values())


def test_scoring_val_rays_changes_nothing_that_is_learned() -> None:
    works = [tiny_work(tiny_config(train={"steps": 6, "eval_every": every})).work for every in (0, 1)]
    for work in works:
        Record(work)
    assert all(torch.equal(a, b) for a, b in zip(*map(values, works), strict=True))


def test_auto_precision_is_that_of_the_device() -> None:
    work = tiny_work(tiny_config(train={"precision": "auto", "steps": 2})).work
    plain = tiny_work(tiny_config(train={"steps": 2})).work
    for each in (work, plain):
        Record(each)
    assert work.loss_scale.value == 1
    assert all(torch.equal(a, b) for a, b in zip(values(work), values(plain), strict=True))


def test_deterministic_mode_refuses_what_is_not_and_ends_with_its_block() -> None:
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert Record(tiny_work(tiny_config(train={"steps": 3})).work).finished
        with pytest.raises(RuntimeError, match="deterministic"):  # one of the operations without such an implementation
            torch.nn.functional.interpolate(
                torch.zeros(1, 1, 2, 2, device="cpu", requires_grad=True), scale_factor=2, mode="bicubic"
            ).put_(torch.tensor([0]), torch.tensor([1.0]), accumulate=False)
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("changes", [["field.backend=triton"], ["train.gpus_per_worker=1"]])
def test_deterministic_mode_refuses_backends_that_add_in_any_order(changes: list[str]) -> None:
    with pytest.raises(InputError, match="deterministic"):
        load_config(overrides=["train.deterministic=true", *changes])
    load_config(overrides=["train.deterministic=true", "train.gpus_per_worker=1", "field.backend=torch"])


def test_traces_hold_the_steps_that_the_schedule_names(tmp_path: Path) -> None:
    config = tiny_config(train={"steps": 8, "profiler": True, "profiler_schedule": [1, 1, 2, 2]})
    work, steps = tiny_work(config).work, []
    with traced(config.train, tmp_path, 3) as step_traced:

        def on_step() -> None:
            steps.append(work.progress.step)
            step_traced()

        train(work, lambda row: None, lambda val: None, lambda: False, on_step=on_step)
    assert steps == list(range(1, 9))
    files = sorted((tmp_path / FOLDER).iterdir())
    assert len(files) == 2
    for file in files:
        assert file.name.startswith("rank3.") and file.name.endswith(".pt.trace.json")
        text = file.read_text()
        assert "ProfilerStep#" in text and "aten::" in text
        assert "Input Dims" in text and "loop.py" in text, "shapes and stacks"


def test_without_profiler_nothing_is_written(tmp_path: Path) -> None:
    with traced(tiny_config().train, tmp_path, 0) as step_traced:
        step_traced()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rank", "files"), [(0, ["00000002.png", "00000004.png"]), (1, [])])
def test_pictures_come_at_their_steps_from_rank_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, files: list[str]
) -> None:
    read: list[int] = []

    def photo_of(scene: Any, photo: int) -> Any:
        read.append(photo)
        width, height = scene.cameras.level_size(photo, 0)
        return torch.full((height, width, 3), 128, dtype=torch.uint8).numpy()

    monkeypatch.setattr(training_pictures, "read_photo", photo_of)
    config = tiny_config(train={"steps": 5, "picture_every": 2})
    work, untouched = tiny_work(config).work, tiny_work(config).work
    work.rank = rank
    pictures = TrainingPictures(config, tiny_scene(), tmp_path)
    train(work, lambda row: None, lambda val: None, lambda: False, on_step=lambda: pictures.draw_if_due(work))
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == files
    assert read == ([3] if files else []), "the val photo, once"
    Record(untouched)
    assert all(torch.equal(a, b) for a, b in zip(values(work), values(untouched), strict=True))
