"""Three pictures of a sweep: how the score depends on each key, which values go together, how all trials went.

Trials that were stopped early are drawn hollow or thin: their scores are those of a shorter training.  Letters: K swept
keys, N trials.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pipelines.sweeping.journal import Trial, name_of
from pipelines.sweeping.sweep_file import Sweep

LOG_SPAN = 20.0  # of values from which on their axis is logarithmic
TICK_ROOM = 0.17  # least distance of two ticks, part of the axis
COLUMNS = 3
SCORE = "val PSNR in dB"
BEST, OTHER = "tab:red", "tab:blue"


def write(sweep: Sweep, trials: Sequence[Trial], winner: Trial, folder: Path) -> list[Path]:
    """Draw ``sensitivity.svg``, ``parallel.svg`` and ``curves.svg`` of all trials that have a score."""
    scored = [trial for trial in trials if trial.score is not None and math.isfinite(trial.score)]
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with matplotlib.rc_context({"svg.hashsalt": "inf-nerf", "svg.fonttype": "none"}):
        for name, figure in (
            ("sensitivity", sensitivity(sweep, scored, winner)),
            ("parallel", parallel(scored, winner)),
            ("curves", curves(scored, winner)),
        ):
            files.append(folder / f"{name}.svg")
            figure.savefig(files[-1], metadata={"Date": None})
    return files


def sensitivity(sweep: Sweep, trials: Sequence[Trial], winner: Trial) -> Figure:
    """The score over the values of each key; lines where only that key differs from the base configuration."""
    keys = list(winner.values)
    base, alone = sweep.config.flat(), sweep.settings.searcher == "one-at-a-time"
    rows = -(-len(keys) // COLUMNS)
    columns = min(COLUMNS, len(keys))
    figure = Figure(figsize=(3.6 * columns + 0.6, 3.0 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for key, axes in zip(keys, grid.flat):
        shown = [t for t in trials if all(t.values[k] == base[k] for k in keys if k != key)] if alone else list(trials)
        place, ticks = positions([trial.values[key] for trial in shown])
        if alone:
            order = np.argsort(place, kind="stable")
            axes.plot(place[order], [shown[index].score for index in order], color=OTHER, linewidth=1, zorder=1)
        for trial, x in zip(shown, place, strict=True):
            colour = BEST if trial is winner else OTHER
            axes.plot(x, trial.score, "o", color=colour, fillstyle="none" if trial.state == "stopped" else "full")
        if alone:
            at = next(x for trial, x in zip(shown, place, strict=True) if trial.values[key] == base[key])
            axes.axvline(at, color="grey", linestyle=":", linewidth=1)
        axes.set_xticks(*ticks)
        axes.set_xlabel(key)
        axes.grid(alpha=0.3)
    for axes in list(grid.flat)[len(keys) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(SCORE)
    _explain(figure, trials, {"marker": "o", "linestyle": "none"}, {"fillstyle": "none"})
    return figure


def parallel(trials: Sequence[Trial], winner: Trial) -> Figure:
    """A line for each trial through its values and its score, coloured by the score."""
    keys = list(winner.values)
    scores = np.array([trial.score for trial in trials], dtype=float)  # [N]
    figure = Figure(figsize=(1.9 * (len(keys) + 1) + 1, 4.2), layout="constrained")
    axes: Axes = figure.subplots()
    heights = np.empty((len(trials), len(keys) + 1))  # [N, K + 1] of each line at each axis, in [0, 1]
    for column, key in enumerate(keys):
        place, (at, labels) = positions([trial.values[key] for trial in trials])
        heights[:, column] = _unit(place, place)
        _axis(axes, column, _unit(np.asarray(at, dtype=float), place), labels)
    heights[:, -1] = _unit(scores, scores)
    ends = np.unique([scores.min(), scores.max()])
    _axis(axes, len(keys), _unit(ends, scores), [f"{value:.2f}" for value in ends])
    colours = colormaps["viridis"]
    for trial, line in zip(trials, heights, strict=True):
        style: dict[str, Any] = {"linewidth": 1.0 if trial.state == "stopped" else 2.0}
        if trial.state == "stopped":
            style["linestyle"] = "--"
        axes.plot(line, color=BEST if trial is winner else colours(0.9 * line[-1]), **style)
    axes.set(xlim=(-0.3, len(keys) + 0.5), ylim=(-0.06, 1.06), yticks=[])
    axes.set_xticks(range(len(keys) + 1), [*(key.rpartition(".")[2] for key in keys), SCORE])
    axes.tick_params(axis="x", length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    _explain(figure, trials, {"linewidth": 2.0}, {"linewidth": 1.0, "linestyle": "--"})
    return figure


def curves(trials: Sequence[Trial], winner: Trial) -> Figure:
    """The score of every trial over its training time."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes: Axes = figure.subplots()
    for trial in sorted(trials, key=lambda trial: trial.number):
        seconds = [report.seconds for report in trial.reports]
        scores = [report.val_psnr for report in trial.reports]
        style: dict[str, Any] = {"linestyle": "--"} if trial.state == "stopped" else {}
        colour = BEST if trial is winner else colormaps["tab20"](trial.number % 20)
        axes.plot(seconds, scores, marker=".", color=colour, linewidth=2.0 if trial is winner else 1.0, **style)
        axes.annotate(name_of(trial.number), (seconds[-1], scores[-1]), xytext=(3, 0), textcoords="offset points")
    axes.set(xlabel="seconds of training", ylabel=SCORE, xlim=(0, None))
    axes.grid(alpha=0.3)
    _explain(figure, trials, {"marker": "."}, {"linestyle": "--"})
    return figure


def positions(values: Sequence[Any]) -> tuple[NDArray[np.float64], tuple[list[float], list[str]]]:
    """Where values lie on an axis [N], and its ticks: numbers by their size, or its logarithm; others in a row.

    Zero lies a decade below the smallest other number on a logarithmic axis.  Ticks that would lie too close to the one
    before or to the last are left out.
    """
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        texts = [str(value) for value in values]
        names = sorted(set(texts))
        return np.array([names.index(text) for text in texts], dtype=float), (list(range(len(names))), names)
    numbers = np.array(values, dtype=float)
    positive = numbers[numbers > 0]
    if len(positive) and numbers.min() >= 0 and positive.max() / positive.min() >= LOG_SPAN:
        place = np.log10(np.where(numbers > 0, numbers, positive.min() / 10))
    else:
        place = numbers
    distinct = sorted(set(zip(place.tolist(), numbers.tolist(), strict=True)))
    room = TICK_ROOM * (distinct[-1][0] - distinct[0][0])
    chosen = distinct[:1]
    for tick in distinct[1:-1]:
        if chosen[-1][0] + room <= tick[0] <= distinct[-1][0] - room:
            chosen.append(tick)
    chosen += distinct[1:][-1:]
    return place, ([at for at, _ in chosen], [f"{number:.3g}" for _, number in chosen])


def _explain(figure: Figure, trials: Sequence[Trial], style: dict[str, Any], early: dict[str, Any]) -> None:
    """Say above a figure what its lines and marks are."""
    marks = [Line2D([], [], color=BEST, label="best", **style), Line2D([], [], color=OTHER, label="trial", **style)]
    if any(trial.state == "stopped" for trial in trials):
        marks.append(Line2D([], [], color=OTHER, label="stopped early", **{**style, **early}))
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), frameon=False)


def _axis(axes: Axes, x: float, heights: NDArray[np.float64], labels: Sequence[str]) -> None:
    axes.axvline(x, color="grey", linewidth=0.8, zorder=0)
    for height, label in zip(heights, labels, strict=True):
        axes.annotate(label, (x, height), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center")


def _unit(values: NDArray[np.float64], among: NDArray[np.float64]) -> NDArray[np.float64]:
    """``values`` in units of the range of ``among``; the middle where that is nothing."""
    least, most = float(among.min()), float(among.max())
    return (values - least) / (most - least) if most > least else np.full(values.shape, 0.5)
