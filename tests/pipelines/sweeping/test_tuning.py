"""Which trials go on: as successive halving says, and the same after a driver died as if it had not."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle
from ray.tune.schedulers import TrialScheduler

from pipelines.sweeping.journal import Journal, Report
from pipelines.sweeping.tuning import Halving, Recorder, Suggestions, ending


def tune_trial(number: int) -> Any:
    return SimpleNamespace(trial_id=f"some-{number}", config={"trial": number})


def result(report: Report) -> dict[str, Any]:
    return {**vars(report), "training_iteration": 1}


def halved(reports: list[tuple[int, Report]], grace: float, reduction: float) -> list[bool]:
    """Successive halving as it is described: at each rung a trial needs the score of the best 1/reduction so far."""
    rungs = [grace * reduction**k for k in range(20) if grace * reduction**k <= 1]
    seen: dict[float, list[float]] = {rung: [] for rung in rungs}
    passed: set[tuple[int, float]] = set()
    decisions = []
    for number, report in reports:
        goes_on = True
        reached = [rung for rung in rungs if report.progress >= rung]
        if reached and (number, reached[-1]) not in passed:
            others = seen[reached[-1]]
            goes_on = not others or report.val_psnr >= np.percentile(others, 100 * (1 - 1 / reduction))
            others.append(report.val_psnr)
            passed.add((number, reached[-1]))
        decisions.append(goes_on or report.progress >= 1)
    return decisions


def some_reports(seed: int) -> list[tuple[int, Report]]:
    """Of nine trials, each with eight reports, as they might come."""
    generator = np.random.default_rng(seed)
    left = dict.fromkeys(range(9), 0)
    reports = []
    while left:
        number = int(generator.choice(list(left)))
        left[number] += 1
        share = left[number] / 8
        reports.append((number, Report(left[number] * 10, 1.0, share, 15 + 3 * share + float(generator.normal()))))
        if left[number] == 8:
            del left[number]
    return reports


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("grace", "reduction"), [(0.25, 2.0), (0.125, 3.0)])
def test_trials_are_halved_as_described(tmp_path: Path, seed: int, grace: float, reduction: float) -> None:
    reports = some_reports(seed)
    halving = Halving(grace, reduction, Journal(tmp_path / "journal.jsonl"))
    said = [
        halving.on_trial_result(None, tune_trial(number), result(report)) == TrialScheduler.CONTINUE
        for number, report in reports
    ]
    assert said == halved(reports, grace, reduction)
    assert not all(said)


@pytest.mark.parametrize("died_after", [0, 7, 30, 60])
def test_a_driver_that_died_decides_as_one_that_did_not(tmp_path: Path, died_after: int) -> None:
    reports = some_reports(7)
    journal = Journal(tmp_path / "journal.jsonl")
    for number in range(9):
        journal.begin(number, {})
    for number, report in reports[:died_after]:
        journal.report(number, report)
    halving = Halving(0.25, 2.0, Journal(journal.path))
    said = halved(reports, 0.25, 2.0)
    last = {number: goes_on for (number, _), goes_on in zip(reports[:died_after], said, strict=False)}
    assert halving.goes_on == last
    for (number, report), goes_on in zip(reports[died_after:], said[died_after:], strict=True):
        # an interrupted trial says again what it said
        assert halving.hear(number, Report(report.step - 10, 1.0, report.progress, 0.0))
        assert halving.hear(number, report) == goes_on


def test_without_a_grace_all_go_on(tmp_path: Path) -> None:
    halving = Halving(None, 2.0, Journal(tmp_path / "journal.jsonl"))
    assert all(halving.hear(number, report) for number, report in some_reports(0))


def test_a_score_that_is_no_number_stops_no_other_trial(tmp_path: Path) -> None:
    halving = Halving(0.25, 2.0, Journal(tmp_path / "journal.jsonl"))
    assert halving.hear(0, Report(5, 1.0, 0.5, math.nan))
    assert halving.hear(1, Report(5, 1.0, 0.5, 10.0))


def test_interrupted_trials_come_before_new_ones() -> None:
    new = iter([5, 6])
    suggestions = Suggestions([3, 1], lambda: next(new, None))
    asked = [suggestions.suggest(f"id{k}") for k in range(6)]
    assert asked == [{"trial": 3}, {"trial": 1}, {"trial": 5}, {"trial": 6}, "FINISHED", "FINISHED"]


def test_what_the_trials_say_is_in_the_journal_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for number in range(4):
        journal.begin(number, {})
    heard: list[Any] = []
    recorder = Recorder(
        journal,
        lambda number: heard.append(("start", number)),
        lambda number, report: heard.append((number, report.step)),
        lambda number, state, reason: heard.append(("end", number, journal.trials[number].state)),
    )
    said = {0: [0.5, 0.5, 1.0], 1: [0.5], 2: [], 3: [0.25]}
    for number, shares in said.items():
        recorder.on_trial_start(0, [], tune_trial(number))
        for share in shares:
            recorder.on_trial_result(0, [], tune_trial(number), result(Report(int(share * 8), 1.0, share, 18.0)))
    recorder.on_trial_result(0, [], tune_trial(3), {"problem": "a sentence.", "val_psnr": math.nan})
    for number in (0, 1, 3):
        recorder.on_trial_complete(0, [], tune_trial(number))
    recorder.on_trial_error(0, [], tune_trial(2))
    trials = Journal(journal.path).trials
    assert [len(trials[number].reports) for number in range(4)] == [2, 1, 0, 1]
    assert [trials[number].state for number in range(4)] == ["finished", "stopped", "failed", "failed"]
    assert trials[3].reason == "a sentence."
    assert "lost its process" in str(trials[2].reason)
    assert heard[:5] == [("start", 0), (0, 4), (0, 8), ("start", 1), (1, 4)]
    assert heard[-4:] == [("end", number, "running") for number in (0, 1, 3, 2)], "before it is written"


def test_a_trial_that_ended_without_a_score_failed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.begin(0, {})
    assert ending(journal, 0)[0] == "failed"
    journal.report(0, Report(5, 1.0, 1.0, math.nan))
    assert ending(journal, 0) == ("failed", "no val pixel could be scored")


def test_tune_may_write_down_all_that_it_is_given(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    unwritable = open(tmp_path / "file", "w")  # noqa: SIM115
    with unwritable:
        for given in (
            Suggestions([], lambda: unwritable.fileno()),
            Halving(0.5, 2, journal),
            Recorder(journal, lambda number: None, lambda number, report: None, lambda *end: unwritable.close()),
        ):
            cloudpickle.dumps(given)  # pyright: ignore[reportPrivateImportUsage]
