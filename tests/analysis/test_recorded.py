"""Whatever a run left is read: torn lines, two trainings in one file, no file at all."""

import json
from pathlib import Path
from typing import Any

import pytest

from inf_nerf.analysis.findings import examine
from inf_nerf.analysis.recorded import Recorded, from_text, read_recorded
from inf_nerf.errors import InputError


def rows(count: int, first: int = 1, **more: Any) -> list[dict[str, Any]]:
    return [{"step": step, "loss": 0.1, "psnr": 10.0, **more} for step in range(first, first + count)]


def write(file: Path, lines: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_torn_last_line_and_lines_that_are_no_rows_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", [*rows(3), {"no": "step"}])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('[1]\n{"step": 4, "lo')
    found = read_recorded(tmp_path)
    assert [row["step"] for row in found.rows] == [1, 2, 3]
    assert "3 lines could not be read" in found.notes[0]


def test_of_two_trainings_in_one_file_the_last_counts(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", rows(5) + rows(3))
    found = read_recorded(tmp_path)
    assert len(found.rows) == 3 and "5 rows of 1 earlier training in" in found.notes[0]
    write(tmp_path / "metrics.jsonl", rows(5, run="a") + rows(4, first=6, run="b"))
    assert [row["step"] for row in read_recorded(tmp_path).rows] == [6, 7, 8, 9]


def test_training_that_goes_on_with_a_newer_program_is_one(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", rows(5) + rows(4, first=6, run="b"))
    found = read_recorded(tmp_path)
    assert len(found.rows) == 9 and not any("earlier" in note for note in found.notes)


def test_logs_of_all_processes_are_joined_by_time(tmp_path: Path) -> None:
    write(tmp_path / "logs/rank1.jsonl", [{"time": "2", "message": "b"}])
    write(tmp_path / "logs/driver.jsonl", [{"time": "1", "message": "a"}, {"time": "3", "message": "c"}])
    (tmp_path / "logs/id").write_text("abc\n")
    found = read_recorded(tmp_path)
    assert [record["message"] for record in found.records] == ["a", "b", "c"]
    assert any("no row" in note for note in found.notes)


def test_text_logs_say_warnings_errors_and_how_it_ended(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text(
        "10:00:00 INFO begins\n10:00:01 WARNING The store is away; tracking waits.\n"
        "Traceback (most recent call last):\n  File x\n"
        "torch.OutOfMemoryError: CUDA out of memory.\nerror: a sentence.\n"
    )
    assert [(each["level"], each["message"]) for each in read_recorded(tmp_path).records] == [
        ("WARNING", "The store is away; tracking waits."),
        ("ERROR", "torch.OutOfMemoryError: CUDA out of memory."),
        ("ERROR", "a sentence."),
    ]
    assert list(from_text("all is well\n")) == []


def test_file_of_rows_will_do_and_what_is_neither_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "some.jsonl", rows(2))
    assert len(read_recorded(tmp_path / "some.jsonl").rows) == 2
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no row"):
        read_recorded(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="does not exist"):
        read_recorded(tmp_path / "nowhere")


def test_empty_run_is_too_short_and_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run directory"):
        read_recorded(tmp_path)
    (tmp_path / "config.yaml").touch()
    found = examine(read_recorded(tmp_path))
    assert found.convergence.verdict == "too short" and found.last_step is None
    assert len(found.notes) == 2
    assert json.loads(json.dumps(found.plain(), allow_nan=False))["validation"] is None


def test_training_that_ended_with_a_number_that_is_not_finite_has_diverged_until_it_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", rows(30))
    begins = {"time": "1", "level": "INFO", "message": "Rank 0 of 1 trains", "part": 0, "step": 0}
    ends = {"time": "2", "level": "ERROR", "message": "The loss or its gradient is not a finite number in step 31; x"}
    write(tmp_path / "logs/rank0.jsonl", [begins, ends])
    assert examine(read_recorded(tmp_path)).convergence.verdict == "diverged"
    write(tmp_path / "logs/rank0.jsonl", [begins, ends, {**begins, "time": "3"}])
    assert examine(read_recorded(tmp_path)).convergence.verdict != "diverged"


def test_convergence_is_of_the_last_turn(tmp_path: Path) -> None:
    first = [{**row, "psnr": 10 + 0.3 * row["step"]} for row in rows(60)]
    second = [{**row, "psnr": 8 + 0.2 * (row["step"] - 60)} for row in rows(60, first=61)]  # of other nodes
    write(tmp_path / "metrics.jsonl", first + second)
    begins = [{"time": str(part), "rank": 0, "part": part, "step": 60 * part} for part in (0, 1)]
    write(tmp_path / "logs/rank0.jsonl", begins[:1])
    assert examine(read_recorded(tmp_path)).convergence.verdict == "diverged"
    write(tmp_path / "logs/rank0.jsonl", begins)
    found = examine(read_recorded(tmp_path))
    assert found.convergence.verdict == "still improving" and "from step 60 on" in found.notes[-1]


def test_val_scores_come_from_the_saves_of_this_training(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", rows(30, run="b"))
    saves = [(10, 20.0, "b"), (20, 22.0, "b"), (20, 23.0, "b"), (30, 21.0, "b"), (40, 99.0, "a"), (25, None, "b")]
    write(
        tmp_path / "logs/rank0.jsonl",
        [{"time": str(place), "step": step, "val_psnr": score, "run": run}
         for place, (step, score, run) in enumerate(saves)],
    )  # fmt: skip
    found = examine(read_recorded(tmp_path)).validation
    assert found is not None
    of_rows = [{**row, "val_psnr": 15.0 + row["step"]} for row in rows(3, run="b")]
    assert Recorded("run", of_rows).val_scores() == {1: 16.0, 2: 17.0, 3: 18.0}
    assert (found.first_step, found.last_step, found.last, found.best_step, found.best) == (10, 30, 21.0, 20, 23.0)
