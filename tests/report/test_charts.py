"""Charts draw the numbers that they are given, each where it belongs."""

import re
import xml.etree.ElementTree as ET

import pytest

from inf_nerf.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Line,
    bar_chart,
    line_chart,
    number,
    thinned,
)


def drawn(svg: str) -> list[list[tuple[float, float]]]:
    """Points of each line, in pixels."""
    lines = re.findall(r'<polyline points="([^"]*)"', svg)
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())] for line in lines]


def test_points_are_where_their_values_are() -> None:
    ((a, b, c),) = drawn(line_chart([Line("", [0, 10, 20], [1.0, 3.0, 2.0])], Axis("x"), Axis("y")))
    assert LEFT < a[0] < b[0] < c[0] < WIDTH - RIGHT
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)
    assert TOP < b[1] < c[1] < a[1] < HEIGHT - BOTTOM
    assert c[1] == pytest.approx((a[1] + b[1]) / 2, abs=0.2)


def test_logarithmic_axis_gives_equal_room_to_equal_factors() -> None:
    ((a, b, c),) = drawn(line_chart([Line("", [0, 1, 2], [1.0, 10.0, 100.0])], Axis("x"), Axis("y", logarithmic=True)))
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.2)


def test_values_that_cannot_be_drawn_are_left_out() -> None:
    nan = float("nan")
    chart = line_chart([Line("", [0, 1, 2, 3], [1.0, nan, 0.0, 4.0])], Axis("x"), Axis("y", logarithmic=True))
    assert len(drawn(chart)[0]) == 2
    assert line_chart([Line("", [1.0], [nan])], Axis("x"), Axis("y")) == ""
    assert line_chart([], Axis("x"), Axis("y")) == "" and bar_chart([], [], "x") == ""


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-3.0, -3.0, -3.0], [1e-9, 1e12], [1e6, 1e6 + 1e-7]])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_any_values_give_a_chart_with_ticks(values: list[float], logarithmic: bool) -> None:
    axis = Axis("y", logarithmic=logarithmic)
    chart = line_chart([Line("<a & b>", list(range(len(values))), values)], Axis("x"), axis)
    if any(value > 0 for value in values) or not logarithmic:
        ET.fromstring(re.sub(r'<div class="legend">.*', "", chart))
        assert len(re.findall('class="grid"', chart)) >= 2
        assert "&lt;a &amp; b&gt;" in chart


def test_many_points_are_averaged_and_none_is_ignored() -> None:
    values = [0.0] * 100_000
    assert len(thinned(values)) <= MOST_POINTS
    values[77_777] = 1000.0
    assert max(thinned(values)) == pytest.approx(1000 / 200)
    before = line_chart([Line("", list(range(100_000)), [1.0] * 100_000)], Axis("x"), Axis("y"))
    after = line_chart([Line("", list(range(100_000)), [1.0] * 99_999 + [2.0])], Axis("x"), Axis("y"))
    assert before != after and len(drawn(after)[0]) <= MOST_POINTS


def test_bars_are_as_long_as_their_values() -> None:
    chart = bar_chart(["a", "b", "c"], [10.0, 20.0, 0.0], "dB", mark=5.0)
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', chart)]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01) and widths[2] == 0.5
    assert re.findall(r"<title>([^<]*)</title>", chart) == ["a: 10", "b: 20", "c: 0"]
    assert "stroke-dasharray" in chart
    ET.fromstring(chart)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (12345.6, "12,346"), (3.14159, "3.142"), (1e-5, "1e-05"), (2.0, "2"), (-0.5, "-0.5"), (3e9, "3e+09")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
