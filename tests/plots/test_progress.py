"""The panels of a training's progress show the numbers of its rows."""

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inf_nerf.analysis.recorded import Recorded
from inf_nerf.plots.progress import training_progress


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 1 / step, "loss_rgb": 0.5 / step, "psnr": 10.0 + step, "lr": 0.01 / step,
            "memory_mb": 953.67431640625, **more}  # fmt: skip


def panel(figure: Figure, label: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_ylabel() == label)


def line(axes: Axes, name: str) -> Any:
    return next(each for each in axes.get_lines() if each.get_label() == name)


def test_panels_show_the_rows_and_the_saves() -> None:
    saves = [{"step": 4, "val_psnr": 12.0}, {"step": 2, "val_psnr": 11.0}, {"step": 4, "val_psnr": 13.0}, {"step": 3}]
    figure = training_progress(Recorded("run", [row(step) for step in range(1, 6)], saves))
    assert len(figure.axes) == 4
    loss, psnr, rate = (panel(figure, label) for label in ("loss", "PSNR, dB", "learning rate"))
    np.testing.assert_allclose(line(loss, "loss").get_ydata(), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    np.testing.assert_allclose(line(loss, "rgb").get_ydata()[4], 0.1)
    np.testing.assert_allclose(line(psnr, "training rays").get_xydata(), [[s, 10 + s] for s in range(1, 6)])
    np.testing.assert_allclose(line(psnr, "val rays").get_xydata(), [[2, 11], [4, 13]])
    assert loss.get_yscale() == rate.get_yscale() == "log" and psnr.get_yscale() == "linear"
    memory: Any = panel(figure, "memory, GB")
    np.testing.assert_allclose(memory.get_lines()[0].get_ydata(), 1.0)  # GB of 10^9 bytes
    assert memory.get_ylim()[0] == 0


@pytest.mark.parametrize("rows", [[], [{"step": 1}], [{"step": 1, "loss": float("nan"), "lr": 0.0}]])
def test_what_is_not_recorded_is_said(rows: list[dict[str, Any]]) -> None:
    figure = training_progress(Recorded("run", rows))
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["not recorded"] * 4


def test_one_row_is_a_dot() -> None:
    figure = training_progress(Recorded("run", [row(1)]))
    assert all(axes.get_lines()[0].get_marker() == "o" for axes in figure.axes)


def test_many_rows_are_averaged() -> None:
    figure = training_progress(Recorded("run", [row(step) for step in range(1, 5001)]))
    assert len(line(panel(figure, "PSNR, dB"), "training rays").get_xdata()) <= 500
