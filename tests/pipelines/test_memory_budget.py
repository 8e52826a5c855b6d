"""Stages eval and render under a memory budget, on runs and checkpoints here and behind a URI."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from inf_nerf.errors import InputError
from inf_nerf.places import Place, place
from pipelines import cli, evaluate, render
from tests.pipelines.tiny_run import train_tiny

STEP = "00000010"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint, its scene, its configuration, and a photo to be scored."""
    return train_tiny(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def remote(trained: Path) -> Iterator[Place]:
    """The same run in memory."""
    system = fsspec.filesystem("memory")
    for file in trained.rglob("*"):
        if file.is_file() and "photos" not in file.parts:
            system.pipe_file(f"/budget/run/{file.relative_to(trained)}", file.read_bytes())
    yield place("memory://budget/run")
    system.rm("/budget", recursive=True)


def test_a_sufficient_budget_scores_the_same_in_a_file_of_its_own(trained: Path, tmp_path: Path) -> None:
    whole = evaluate.run(trained, out=tmp_path)
    before = (tmp_path / "eval.json").read_bytes()
    held = evaluate.run(trained, memory_budget="300%", out=tmp_path)
    memory = held.pop("memory")
    assert held["images"] == whole["images"]
    assert held["levels"] == whole["levels"]
    assert held["right_half"]["levels"] == whole["right_half"]["levels"]
    assert held["level_share"] == pytest.approx(whole["level_share"], abs=1e-5)
    assert (tmp_path / "eval.json").read_bytes() == before
    [result] = tmp_path.glob("eval_*B.json")
    assert json.loads(result.read_text())["memory"] == memory
    assert 0 < memory["peak_bytes"] <= memory["budget_bytes"]
    assert 0 < memory["bytes_read"] <= whole["model_bytes"]
    assert (tmp_path / f"pictures/{result.stem}_sheet.png").exists()


def test_a_result_under_a_budget_is_used_again_for_that_budget_alone(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = evaluate.run(trained, memory_budget="50%", out=tmp_path)
    assert "used again" not in capsys.readouterr().out
    assert evaluate.run(trained, memory_budget="50%", out=tmp_path) == first
    assert "used again" in capsys.readouterr().out
    evaluate.run(trained, memory_budget="60%", out=tmp_path)
    assert "used again" not in capsys.readouterr().out
    assert len(list(tmp_path.glob("eval_*B.json"))) == 2
    assert not (tmp_path / "eval.json").exists()


def test_two_evaluations_under_a_budget_write_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        evaluate.run(trained, memory_budget="40%", out=tmp_path / name)
        [result] = (tmp_path / name).glob("eval_*B.json")
        contents.append(result.read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("budget", ["300%", "40%"])
def test_frames_say_what_they_touched_and_what_was_held(trained: Path, tmp_path: Path, budget: str) -> None:
    figures = render.run(trained, "orbit", tmp_path / "stills", memory_budget=budget)
    memory = figures["memory"]
    assert len(figures["bytes_touched"]) == len(figures["nodes_touched"]) == 3
    assert memory["peak_bytes"] <= memory["budget_bytes"]
    assert json.loads((tmp_path / "stills/frames.json").read_text()) == figures
    if budget == "300%":
        render.run(trained, "orbit", tmp_path / "whole")
        for frame in range(3):
            assert (tmp_path / f"stills/{frame:05d}.png").read_bytes() == (
                tmp_path / f"whole/{frame:05d}.png"
            ).read_bytes()


@pytest.mark.parametrize("by", ["run", "checkpoint"])
def test_runs_and_checkpoints_behind_a_uri_are_rendered_and_scored(remote: Place, tmp_path: Path, by: str) -> None:
    name = str(remote) if by == "run" else str(remote / "checkpoints" / STEP)
    arguments = ["--memory-budget", "80%", "--set", "render.frames=2", "--log-level", "ERROR"]
    assert cli.main(["render", name, "--path", "orbit", "--out", str(tmp_path / "a"), *arguments]) == 0
    assert len(list((tmp_path / "a").glob("*.png"))) == 2
    assert cli.main(["eval", name, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "eval.json").read_text())["images"]


def test_a_remote_run_needs_a_folder_for_its_result(remote: Place) -> None:
    with pytest.raises(InputError, match="no local run directory; name a folder with --out"):
        evaluate.run(remote)


def test_a_checkpoint_in_a_run_writes_into_the_run(trained: Path) -> None:
    evaluate.run(trained / "checkpoints" / STEP, memory_budget="90%")
    [result] = trained.glob("eval_*B.json")
    result.unlink()


def test_a_checkpoint_alone_has_no_points_to_aim_at(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    (trained / "checkpoints" / STEP).rename(tmp_path / "alone" / STEP)
    try:
        alone = tmp_path / "alone" / STEP
        figures = render.run(alone, "photos", tmp_path / "photos", memory_budget="90%")
        assert figures["frames"] > 1
        with pytest.raises(InputError, match="no sparse points"):
            render.run(alone, "orbit", tmp_path / "orbit")
    finally:
        (tmp_path / "alone" / STEP).rename(trained / "checkpoints" / STEP)


@pytest.mark.parametrize(
    ("budget", "said"), [("1KB", "does not hold the root, which"), ("much", "'much' is no number of bytes")]
)
def test_a_budget_that_cannot_be_kept_is_one_sentence(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], budget: str, said: str
) -> None:
    out = ["--out", str(tmp_path / "x.png"), "--memory-budget", budget]
    assert cli.main(["render", str(trained), "--path", "orbit", *out]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_a_uri_without_its_driver_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert cli.main(["eval", "s3://bucket/run"]) == 2
    assert "pip install s3fs" in capsys.readouterr().err
