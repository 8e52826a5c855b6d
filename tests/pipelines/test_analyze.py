"""`inf-nerf analyze` says of runs what people and programs can read."""

import json
from pathlib import Path

import pytest

from inf_nerf.errors import InputError
from pipelines import analyze

RECORDED = Path(__file__).parents[1] / "analysis" / "recorded"


def test_text_has_the_verdict_and_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    analyze.run([RECORDED / "improving_900s.jsonl", RECORDED / "too_short.jsonl"])
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.startswith("improving_900s.jsonl: still improving, step 10,660\n")
    for part in ("convergence", "projected after twice the steps", "stability    stable", "rays/s, steady", "errors"):
        assert part in first
    assert second.startswith("too_short.jsonl: too short, step 100\n")


def test_json_holds_the_same_and_more(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = analyze.run([RECORDED / "converged.jsonl"], as_json=True)
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run == found.plain()
    assert run["convergence"]["verdict"] == "converged" and run["convergence"]["projection"]["psnr"] > 20
    assert run["performance"]["shares"]["data"] < 0.1 and run["performance"]["bottleneck"] == "computation"


def test_problems_are_said_once_with_time_ranks_and_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    for rank in (0, 1):
        said = {
            "time": f"2026-05-04T10:00:0{rank}.000Z",
            "level": "ERROR",
            "rank": rank,
            "message": "CUDA out of memory",
        }
        (tmp_path / "logs" / f"rank{rank}.jsonl").write_text(json.dumps(said) + "\n")
    analyze.run([tmp_path])
    text = capsys.readouterr().out
    assert text.count("CUDA out of memory") == 1
    assert "2 times, first at 2026-05-04T10:00:00.000Z, rank 0, rank 1" in text and "Lower train.batch_size" in text


def test_run_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; name a run directory"):
        analyze.run([tmp_path / "nowhere"])
