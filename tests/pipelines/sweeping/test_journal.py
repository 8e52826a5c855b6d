"""The journal gives back what was written, also after a driver that died while it wrote."""

from pathlib import Path

import pytest

from pipelines.sweeping.journal import Journal, Report


def some(path: Path) -> Journal:
    journal = Journal(path)
    journal.begin(0, {"loss.lambda_depth": 0.1})
    journal.begin(1, {"loss.lambda_depth": 0.2})
    journal.report(1, Report(10, 1.5, 0.5, 17.25))
    journal.report(0, Report(10, 1.75, 0.5, 16.0))
    journal.report(1, Report(20, 3.0, 1.0, 18.5))
    journal.end(1, "finished")
    return journal


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = some(tmp_path / "journal.jsonl")
    read = Journal(tmp_path / "journal.jsonl")
    assert read.trials == written.trials
    assert read.order == written.order
    assert [number for number, _ in read.order] == [1, 0, 1]
    assert (read.trials[1].state, read.trials[1].score, read.trials[1].step) == ("finished", 18.5, 20)
    assert [trial.number for trial in read.unfinished()] == [0]
    read.end(0, "failed", "a reason")
    assert Journal(tmp_path / "journal.jsonl").trials[0].reason == "a reason"


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_was_being_written_is_dropped_and_the_next_one_is_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    some(path)
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(path)
    assert journal.trials[1].state == "running"
    assert journal.trials[1].score == 18.5
    journal.end(1, "stopped")
    assert Journal(path).trials[1].state == "stopped"


def test_a_sweep_that_did_not_begin_has_no_trials(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    assert not journal.trials
    assert not journal.path.exists()
