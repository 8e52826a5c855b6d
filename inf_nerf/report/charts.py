"""Charts as SVG that stands inside a page: lines, bars, and points with error.

Values are drawn where they are, never smoothed but for :func:`thinned`, which averages neighbours when there are more
than a screen has columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 250  # px of a chart
LEFT, RIGHT, TOP, BOTTOM = 68, 14, 12, 40  # px around the axes
COLOURS = ("#2f6db5", "#d9663f", "#3a9a5f", "#9250a8", "#c79a1f", "#43a0b8", "#b4436c", "#6d6d6d")
MOST_POINTS = 500


@dataclass(frozen=True)
class Line:
    """One line of a chart; points that are not finite, or not positive on a logarithmic axis, are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    marks: bool = False  # a dot at each point


@dataclass(frozen=True)
class Axis:
    """What an axis shows."""

    label: str
    logarithmic: bool = False
    from_zero: bool = False


def thinned(values: Sequence[float], most: int = MOST_POINTS) -> list[float]:
    """At most ``most`` values: means of as many neighbours as it takes."""
    step = max(1, math.ceil(len(values) / most))
    parts = [values[start : start + step] for start in range(0, len(values), step)]
    return [sum(part) / len(part) for part in parts]


def line_chart(lines: Sequence[Line], x_axis: Axis, y_axis: Axis) -> str:
    """Lines over a common x; empty text where no point can be drawn."""
    drawn = [(line, _points(line, x_axis, y_axis)) for line in lines]
    drawn = [(line, points) for line, points in drawn if points]
    if not drawn:
        return ""
    x_scale = _Scale.over([x for _, points in drawn for x, _ in points], x_axis, LEFT, WIDTH - RIGHT)
    y_scale = _Scale.over([y for _, points in drawn for _, y in points], y_axis, HEIGHT - BOTTOM, TOP)
    parts = [_frame(x_scale, y_scale, x_axis, y_axis)]
    for index, (line, points) in enumerate(drawn):
        colour = COLOURS[index % len(COLOURS)]
        places = [(x_scale(x), y_scale(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        for (x, y), (px, py) in zip(points, places, strict=True):
            if line.marks or len(points) == 1:
                title = f"{escape(line.name)}: {number(x)}, {number(y)}"
                parts.append(
                    f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.2" fill="{colour}"><title>{title}</title></circle>'
                )
    legend = _legend([line.name for line, _ in drawn]) if len(drawn) > 1 or drawn[0][0].name else ""
    return _svg("".join(parts), WIDTH, HEIGHT) + legend


def bar_chart(names: Sequence[str], values: Sequence[float], label: str, mark: float | None = None) -> str:
    """Horizontal bars with their values; ``mark`` is a value that a line is drawn at."""
    if not values:
        return ""
    row, left, right = 20, 150, 70
    height = row * len(values) + 34
    scale = _Scale.over([*values, *([] if mark is None else [mark])], Axis(label, from_zero=True), left, WIDTH - right)
    parts = []
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        y = 6 + row * index
        zero, end = sorted((scale(0.0), scale(value)))
        parts.append(
            f'<text x="{left - 6}" y="{y + 13}" text-anchor="end">{escape(_short(name))}</text>'
            f'<rect x="{zero:.1f}" y="{y + 2}" width="{max(0.5, end - zero):.1f}" height="{row - 6}" '
            f'fill="{COLOURS[0]}"><title>{escape(name)}: {number(value)}</title></rect>'
            f'<text x="{end + 5:.1f}" y="{y + 13}">{number(value)}</text>'
        )
    if mark is not None:
        x = scale(mark)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 28}" stroke="{COLOURS[1]}" stroke-dasharray="4 3"/>'
        )
    parts.append(f'<text x="{(left + WIDTH - right) / 2}" y="{height - 8}" text-anchor="middle">{escape(label)}</text>')
    return _svg("".join(parts), WIDTH, height)


def number(value: float) -> str:
    """A number as a person writes it: four digits, thousands apart."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 1e7 or abs(value) < 1e-3:
        return f"{value:.3g}"
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class _Scale:
    """From values to pixels."""

    low: float
    high: float
    first: float  # px
    last: float
    logarithmic: bool

    @staticmethod
    def over(values: Sequence[float], axis: Axis, first: float, last: float) -> "_Scale":
        low, high = min(values), max(values)
        if axis.from_zero:
            low, high = min(0.0, low), max(0.0, high)
        if axis.logarithmic:
            low, high = math.log10(low), math.log10(high)
        if high - low < 1e-12 * max(1.0, abs(high)):
            room = 0.5 if axis.logarithmic else max(abs(high) / 2, 0.5)
            low, high = low - room, high + room
        elif not axis.logarithmic:
            pad = 0.04 * (high - low)
            low, high = (low if axis.from_zero and low == 0 else low - pad), high + pad
        return _Scale(low, high, first, last, axis.logarithmic)

    def __call__(self, value: float) -> float:
        place = math.log10(value) if self.logarithmic else value
        return self.first + (place - self.low) / (self.high - self.low) * (self.last - self.first)

    def ticks(self) -> list[float]:
        """Round values within."""
        if self.logarithmic:
            decades = [10.0**power for power in range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1)]
            if len(decades) >= 2:
                return decades[:: math.ceil(len(decades) / 6)]
            inner = [
                factor * 10.0**power
                for power in range(math.floor(self.low), math.ceil(self.high))
                for factor in (1, 2, 5)
            ]
            return [value for value in inner if self.low <= math.log10(value) <= self.high]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
        first = math.ceil(self.low / step)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _points(line: Line, x_axis: Axis, y_axis: Axis) -> list[tuple[float, float]]:
    pairs = [
        (float(x), float(y))
        for x, y in zip(line.x, line.y, strict=True)
        if math.isfinite(x) and math.isfinite(y)
        if (x > 0 or not x_axis.logarithmic) and (y > 0 or not y_axis.logarithmic)
    ]
    if len(pairs) <= MOST_POINTS:
        return pairs
    xs, ys = zip(*pairs, strict=True)
    return list(zip(thinned(xs), thinned(ys), strict=True))


def _frame(x_scale: _Scale, y_scale: _Scale, x_axis: Axis, y_axis: Axis) -> str:
    parts = []
    for value in x_scale.ticks():
        x = x_scale(value)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{number(value)}</text>'
        )
    for value in y_scale.ticks():
        y = y_scale(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>'
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_axis.label)}</text>'
        f'<text x="13" y="{middle}" text-anchor="middle" transform="rotate(-90 13 {middle})">'
        f"{escape(y_axis.label)}</text>"
    )
    return "".join(parts)


def _legend(names: Sequence[str]) -> str:
    entries = (
        f'<span><i style="background:{COLOURS[index % len(COLOURS)]}"></i>{escape(name)}</span>'
        for index, name in enumerate(names)
    )
    return f'<div class="legend">{"".join(entries)}</div>'


def _svg(content: str, width: int, height: int) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg">{content}</svg>'
    )


def _short(name: str) -> str:
    return name if len(name) <= 22 else "…" + name[-21:]
