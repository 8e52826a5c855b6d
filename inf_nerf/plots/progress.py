"""How a training goes, in four panels: loss, PSNR, learning rate, memory."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inf_nerf.analysis.recorded import Recorded, is_number
from inf_nerf.report.charts import COLOURS, thinned

FIGURE_SIZE = (12.0, 8.0)  # inches
MEMORY_KEYS = {"memory_mb": "first worker"}  # keys of rows -> what they are of
GB = 2**20 / 1e9  # in a MiB, which the keys count


def training_progress(recorded: Recorded, title: str = "") -> Figure:
    """Loss and its terms, PSNR, learning rate and memory over steps; a panel without numbers says so."""
    rows = recorded.rows
    figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
    (loss, psnr), (rate, memory) = figure.subplots(2, 2)
    terms = sorted({key for row in rows for key in row if key.startswith("loss_")})
    _lines(loss, {"loss": _series(rows, "loss"), **{key[5:]: _series(rows, key) for key in terms}}, "loss", log=True)
    val = recorded.val_scores()
    scores = {"training rays": _series(rows, "psnr"), "val rays": (list(val), list(val.values()))}
    _lines(psnr, scores, "PSNR, dB", marked="val rays")
    _lines(rate, {"learning rate": _series(rows, "lr")}, "learning rate", log=True)
    used = {name: _series(rows, key) for key, name in MEMORY_KEYS.items()}
    used = {name: (steps, [value * GB for value in values]) for name, (steps, values) in used.items()}
    _lines(memory, used, "memory, GB", from_zero=True)
    if title:
        figure.suptitle(title)
    return figure


Series = tuple[Sequence[float], Sequence[float]]  # steps and values


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> Series:
    found = [(row["step"], row[key]) for row in rows if is_number(row.get(key)) and math.isfinite(row[key])]
    return thinned([step for step, _ in found]), thinned([value for _, value in found])


def _lines(
    axes: Axes,
    series: Mapping[str, Series],
    label: str,
    *,
    log: bool = False,
    from_zero: bool = False,
    marked: str | None = None,  # name of the series of which each point is seen
) -> None:
    """Draw those series that have values, the first one strongest."""
    axes.set_ylabel(label)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    shown = {name: (x, y) for name, (x, y) in series.items() if any(not log or value > 0 for value in y)}
    if not shown:
        axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes, color="grey")
        return
    if log:
        axes.set_yscale("log")
    for index, (name, (x, y)) in enumerate(shown.items()):
        marker = "o" if name == marked or len(x) == 1 else None
        y = [value if value > 0 or not log else math.nan for value in y]
        axes.plot(x, y, color=COLOURS[index % len(COLOURS)], linewidth=1.0 if index else 1.8, label=name,
                  marker=marker, markersize=4)  # fmt: skip
    if from_zero:
        axes.set_ylim(0, 1.1 * max(max(y) for _, y in shown.values()))
    if len(shown) > 1 or marked in shown:
        axes.legend(fontsize=8, framealpha=0.7)
