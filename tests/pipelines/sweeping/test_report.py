"""What a sweep says at its end: the right trial is best, and files hold what the trials scored."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inf_nerf.config import load_config
from inf_nerf.errors import InputError
from pipelines.sweeping import plots, report
from pipelines.sweeping.journal import Journal, Report, State
from pipelines.sweeping.sweep_file import Sweep, load_sweep

DEPTH, RGB = "loss.lambda_depth", "loss.lambda_rgb"
SCORES: dict[int, tuple[list[float], State]] = {
    0: ([15.0, 17.0, 18.0, 18.5], "finished"),
    1: ([14.0], "stopped"),
    2: ([15.5, 17.5, 18.2, 18.9], "finished"),
    3: ([], "failed"),
    4: ([15.4, 19.5], "stopped"),  # ahead of all, but of a shorter training
}


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    path = tmp_path / "some.yaml"
    space = f"{{{DEPTH}: {{loguniform: [0.001, 1]}}, {RGB}: {{choice: [1, 2]}}}}"
    path.write_text(f"train: {{steps: 80}}\nsweep: {{space: {space}, num_samples: 5}}\n")
    return load_sweep(path)


@pytest.fixture
def journal(sweep: Sweep, tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "journal.jsonl")
    for number, (scores, state) in SCORES.items():
        journal.begin(number, sweep.space.values(number))
        for index, score in enumerate(scores, start=1):
            journal.report(number, Report(20 * index, 1.5 * index, index / 4, score))
        journal.end(number, state, "a\nreason" if state == "failed" else None)
    return journal


def test_the_best_is_the_best_of_those_that_used_their_budget(journal: Journal) -> None:
    trials = report.ranked(journal.trials.values())
    assert [trial.number for trial in trials] == [4, 2, 0, 1, 3]
    winner = report.best(trials)
    assert winner is not None and winner.number == 2
    early = report.best([trial for trial in trials if trial.state != "finished"])
    assert early is not None and early.number == 4
    assert report.best([journal.trials[3]]) is None


def test_files_hold_what_the_trials_scored(
    sweep: Sweep, journal: Journal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = report.write(sweep, journal, tmp_path)
    assert [file.name for file in files] == [
        *("results.json", "results.csv", "best.yaml", "sensitivity.svg", "parallel.svg", "curves.svg")
    ]
    found = json.loads(files[0].read_text())
    assert found["best"] == 2
    assert [trial["trial"] for trial in found["trials"]] == [4, 2, 0, 1, 3]
    assert found["trials"][1]["values"] == journal.trials[2].values
    assert [report["val_psnr"] for report in found["trials"][1]["reports"]] == SCORES[2][0]
    assert found["trials"][4]["reason"] == "a\nreason"
    rows = list(csv.DictReader(files[1].read_text().splitlines()))
    assert float(rows[1]["val_psnr"]) == 18.9
    assert float(rows[1][DEPTH]) == journal.trials[2].values[DEPTH]
    assert (rows[1]["state"], rows[1]["step"]) == ("finished", "80")
    said = capsys.readouterr().out
    assert "Best: trial 002 with 18.90 dB" in said
    assert "stopped early" in said and "reason" in said
    for file in files[3:]:
        assert "<svg" in file.read_text()[:600]


def test_the_best_configuration_is_ready_for_a_training(sweep: Sweep, journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(report.best_config(sweep, journal.trials[2]))
    config = load_config(path)
    expected = sweep.config.flat() | journal.trials[2].values
    assert config.flat() == expected


def test_a_sweep_without_a_score_says_what_its_first_trial_said(sweep: Sweep, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.begin(0, sweep.space.values(0))
    journal.end(0, "failed", "a reason.")
    with pytest.raises(InputError, match=r"No trial in .* came to a score; the first says: a reason\."):
        report.write(sweep, journal, tmp_path)


@pytest.mark.parametrize(
    ("values", "place", "labels"),
    [
        ([1, 2, 3], [1, 2, 3], ["1", "2", "3"]),
        ([0.001, 0.1, 1.0], [-3, -1, 0], ["0.001", "0.1", "1"]),
        ([0.0, 0.02, 2.0], [math.log10(0.002), math.log10(0.02), math.log10(2)], ["0", "0.02", "2"]),
        ([1.0, 1.1, 1.5, 1.9, 2.0], [1, 1.1, 1.5, 1.9, 2], ["1", "1.5", "2"]),  # ticks have room
        (["b", None, "a"], [2, 0, 1], ["None", "a", "b"]),
        ([False, True], [0, 1], ["False", "True"]),
        ([5.0, 5.0], [5, 5], ["5"]),
    ],
)
def test_axes_have_their_values_where_they_belong(values: list[Any], place: list[float], labels: list[str]) -> None:
    found, (ticks, names) = plots.positions(values)
    np.testing.assert_allclose(found, place)
    assert names == labels
    assert set(ticks) <= set(found.tolist())


def test_keys_that_end_alike_are_told_apart() -> None:
    assert report.short_names(["field.num_levels", "octree.num_levels", DEPTH]) == {
        "field.num_levels": "field.num_levels",
        "octree.num_levels": "octree.num_levels",
        DEPTH: "lambda_depth",
    }


def test_the_sensitivity_to_a_key_alone_leaves_out_trials_that_change_another(tmp_path: Path) -> None:
    path = tmp_path / "alone.yaml"
    space = f"{{{DEPTH}: {{grid: [0, 0.1]}}, {RGB}: {{grid: [2]}}}}"
    path.write_text(f"sweep: {{searcher: one-at-a-time, space: {space}}}\n")
    sweep = load_sweep(path)
    journal = Journal(tmp_path / "journal.jsonl")
    for number in range(sweep.space.num_trials):
        journal.begin(number, sweep.space.values(number))
        journal.report(number, Report(8, 1.0, 1.0, 18.0 + number))
        journal.end(number, "finished")
    trials = list(journal.trials.values())
    figure = plots.sensitivity(sweep, trials, trials[-1])
    depth, rgb = (axes.lines[0].get_ydata() for axes in figure.axes)
    assert sorted(map(float, np.asarray(depth))) == [18, 19, 20]
    assert sorted(map(float, np.asarray(rgb))) == [18, 21]
