"""What a check finds: errors are what would be refused, warnings what is doubtful or lacking here; nothing is run."""

import json
from pathlib import Path

import pytest
import torch

from pipelines import check, cli
from pipelines.check import Report
from tests.scene.tiny_capture import write_capture
from tests.test_foreign_keys import EXAMPLE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.yaml"


def found(file: Path, text: str, *overrides: str, data_root: Path | None = None) -> Report:
    file.write_text(text)
    return check.check(file, data_root, overrides)


GOOD = "train: {steps: 100}\n"
LPIPS = "eval.lpips_backbone names no weights"


def warnings(report: Report) -> list[str]:
    return [warning for warning in report.warnings if not warning.startswith(LPIPS)]


def test_a_good_file_has_neither_errors_nor_warnings_but_for_weights_that_are_not_there(file: Path) -> None:
    report = found(file, GOOD)
    assert not report.errors and not warnings(report)
    assert len(report.warnings) == 1


def test_all_errors_are_named_at_once(file: Path) -> None:
    report = found(file, "train: {steps: 0, lr_ini: 1, lr_init: 1e-5}\noctre: {num_levels: 3}\n", "train.seed=-1")
    text = "\n".join(report.errors)
    for key in ("train.steps", "train.lr_ini", "octre.num_levels", "train.seed"):
        assert key in text
    assert len(report.errors) >= 4
    assert "did you mean 'train.lr_init'" in text


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("octree.num_levels=16", "octree.num_levels is 16"),
        ("train.lr_init=0.2", "train.lr_init is 0.2"),
        ("train.eps=1e-8", "train.eps is 1e-08"),
        ("train.lr_decay_start=100", "train.lr_decay_start is 100 of 100 steps"),
        ("field.log2_table_size=14", "field.max_res is 2048"),
        ("loss.lambda_rgb=0", "loss.lambda_rgb is 0"),
        ("scene.val_every=0", "scene.val_every is 0"),
        ("train.eval_every=101", "train.eval_every is 101"),
        ("train.picture_every=101", "train.picture_every is 101"),
        ("monitor.command=nowhere/to-be-found --loud", "monitor.command names nowhere/to-be-found"),
        ("train.num_workers=400", "train.num_workers=400 with train.cpus_per_worker=1"),
    ],
)
def test_doubts_are_warnings_that_name_the_key(file: Path, override: str, text: str) -> None:
    report = found(file, GOOD, override)
    assert not report.errors
    assert len(warnings(report)) == 1 and text in warnings(report)[0]


def test_a_tree_that_all_workers_share_is_doubtful(file: Path) -> None:
    overrides = ["train.num_workers=2", "train.shared_upper_levels=4", "train.cpus_per_worker=0.1"]
    assert "nothing is divided" in warnings(found(file, GOOD, *overrides))[0]


def test_what_only_this_machine_lacks_is_a_warning(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    wanted = ["train.gpus_per_worker=1", "field.backend=triton", "eval.lpips_backbone=weights/alexnet.pth"]
    report = found(file, GOOD, *wanted)
    assert not report.errors
    text = "\n".join(report.warnings)
    assert "asks for 1 GPUs, and this machine has 0" in text
    assert "'triton', which runs on GPUs" in text
    assert "weights/alexnet.pth" in text


def test_photos_tree_and_memory_are_looked_at(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_capture(root := tmp_path / "photos")
    field = "field: {log2_table_size: 12, max_res: 32, num_levels: 4}\noctree: {min_points: 1, num_levels: 10}\n"
    small = field + "train: {epochs: 3, batch_size: 64}\nscene: {pyramid_levels: 6, val_images: [absent.png]}\n"
    report = found(file, small, data_root=root)
    assert not report.errors, report.errors
    text = "\n".join(report.warnings)
    assert "scene.val_images names absent.png" in text
    assert "scene.pyramid_levels is 6" in text
    assert "octree.num_levels allows 10 levels, and the tree has" in text
    assert any("train.epochs=3 are" in note for note in report.notes)
    assert "need at least" not in text
    monkeypatch.setattr(check.psutil, "virtual_memory", lambda: type("Memory", (), {"total": 2**20})())
    assert "need at least" in "\n".join(found(file, small, data_root=root).warnings)


def test_photos_that_cannot_be_used_are_an_error(file: Path, tmp_path: Path) -> None:
    report = found(file, GOOD, data_root=tmp_path / "nowhere")
    assert "nowhere does not exist" in report.errors[0]


def test_a_sweep_file_is_checked_with_its_sweep(file: Path) -> None:
    assert not found(file, GOOD + "sweep: {space: {train.lr_init: {grid: [0.01, 0.02]}}}\n").errors
    report = found(file, GOOD + "sweep: {space: {train.lr_ini: {grid: [0.01, 0.02]}}}\n")
    assert "train.lr_ini" in report.errors[0]


@pytest.mark.parametrize(
    ("text", "options", "code"),
    [(GOOD, [], 0), (GOOD, ["--strict"], 2), ("train: {steps: 0}\n", [], 2), ("train: [\n", [], 2)],
)  # fmt: skip
def test_exit_codes(file: Path, text: str, options: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(text)
    assert cli.main(["config", "check", str(file), *options]) == code
    shown = capsys.readouterr().out
    assert ("error: " in shown) == (code == 2 and not options)


def test_each_foreign_key_stands_in_full_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "check", str(EXAMPLE)]) == 0
    lines = capsys.readouterr().out.splitlines()
    report = check.check(EXAMPLE, None)
    for outcome in report.outcomes:
        assert f"{outcome.key}: {outcome.value} -> {outcome.text}" in lines
    assert any(line.startswith("warning: hardware.gpu_ids names GPUs") for line in lines)


def test_findings_as_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("trainer: {lr_init: 0.5}\n")
    assert cli.main(["config", "check", str(file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["outcomes"][0]["key"] == "trainer.lr_init"
    assert shown["errors"] == [] and "train.lr_init is 0.5" in shown["warnings"][0]


def test_show_lists_every_key_on_a_line_and_marks_what_differs(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from inf_nerf.config import Config, load_config

    file.write_text("train: {steps: 3, lr_init: 2e-2}\n")
    assert cli.main(["config", "show", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("=")[0] for line in lines] == list(Config().flat())
    assert "train.steps=3  # default: 200000" in lines
    assert "scene.max_side=null" in lines
    assert cli.main(["config", "show", str(file), "--changed"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train.steps=3  # default: 200000",
        "train.lr_init=0.02  # default: 0.01",
    ]
    assert cli.main(["config", "show", str(file), "--yaml", "--set", "train.seed=4"]) == 0
    file.write_text(capsys.readouterr().out)
    assert load_config(file) == load_config(overrides=["train.steps=3", "train.lr_init=0.02", "train.seed=4"])


def test_show_takes_a_run_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("train: {steps: 7}\n")
    assert cli.main(["config", "show", str(tmp_path), "--changed"]) == 0
    assert capsys.readouterr().out.startswith("train.steps=7")


def test_explain_prints_type_default_unit_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "explain", "train.save_seconds", "octree"]) == 0
    shown = capsys.readouterr().out
    assert "train.save_seconds\n  type: number above 0\n  default: 300.0\n  unit: seconds\n  meaning: Most" in shown
    assert "octree.min_points\n" in shown


def test_explain_answers_a_near_miss_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "explain", "train.lr_ini"]) == 2
    assert "did you mean 'train.lr_init'" in capsys.readouterr().err
