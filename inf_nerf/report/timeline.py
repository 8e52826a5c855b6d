"""Where the time of a training went: a table of its sections, and single steps drawn as they ran."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from inf_nerf.report.charts import COLOURS, WIDTH, number
from inf_nerf.report.facts import Facts
from inf_nerf.report.page import figure, figures, missing, paragraph, table

NO_PROFILE = "There is no profile in the run: it was not saved yet, or trained with profile.sections=false."
ROW = 22  # px of one depth of nesting
TEXT_WIDTH = 6.2  # px of a letter, about
MOST_WORKERS = 16  # that the table compares
Span = Mapping[str, Any]


def time_spent(facts: Facts) -> str:
    """Sections of the first worker by their own time, the shares of all workers, and two steps."""
    if not facts.profiles:
        return missing(NO_PROFILE)
    first = facts.profiles[0]
    names = {
        "typical": "Of the latest steps the one of median length",
        "slowest": "The slowest of them: what it did beside the usual",
    }
    parts = [
        figure(step_chart(step["spans"]), f"{names[name]}: step {step['step']}, {_ms(step['seconds'])} ms.")
        for name, step in first["timeline"].items()
    ]
    worst = ", ".join(first["bottlenecks"])
    text = paragraph(f"Most time of its own took, in this order: {worst}.") + section_table(first["sections"])
    if len(facts.profiles) > 1:
        text += "<p></p>" + worker_table(facts.profiles[:MOST_WORKERS])
    return figures(parts) + text


def section_table(sections: Mapping[str, Mapping[str, float]]) -> str:
    """Each section's figures, the largest own time first; memory where it was looked at."""
    ordered = sorted(sections.items(), key=lambda entry: -entry[1]["own"])
    rows = [
        (
            path,
            f"{100 * found['share']:.1f} %",
            number(found["own"]),
            number(found["total"]),
            f"{int(found['count']):,}",
            *(_ms(found[key]) for key in ("mean", "std", "min", "median", "p95", "max")),
            f"{found['memory_peak'] / 2**20:,.0f}" if found["memory_count"] else "–",
        )
        for path, found in ordered
    ]
    head = ("section", "own share", "own, s", "total, s", "calls", "mean, ms", "std", "min", "median", "p95", "max")
    return table((*head, "peak MB"), rows)


def worker_table(profiles: Sequence[Mapping[str, Any]]) -> str:
    """Own share of the outermost sections, worker by worker."""
    shares: list[dict[str, float]] = []
    for profile in profiles:
        of_worker: dict[str, float] = {}
        for path, found in profile["sections"].items():
            name = path.partition("/")[0]
            of_worker[name] = of_worker.get(name, 0.0) + found["share"]
        shares.append(of_worker)
    names = sorted({name for of_worker in shares for name in of_worker}, key=lambda name: -shares[0].get(name, 0.0))
    rows = [(name, *(f"{100 * of_worker.get(name, 0.0):.1f} %" for of_worker in shares)) for name in names]
    return table(("section", *(f"worker {profile['rank']}" for profile in profiles)), rows)


def step_chart(spans: Sequence[Span]) -> str:
    """Spans of one step as bars from left to right, inner ones below outer ones, threads below each other."""
    if not spans:
        return ""
    whole = max(span["end"] for span in spans) or 1e-9
    depth = [span["path"].count("/") for span in spans]
    deepest = max(depth) + 1
    threads = max(span["thread"] for span in spans) + 1
    outermost = list(dict.fromkeys(span["path"].partition("/")[0] for span in spans))
    height = ROW * deepest * threads + 24
    parts = []
    for span, level in zip(spans, depth, strict=True):
        left, right = (span[end] / whole * WIDTH for end in ("begin", "end"))
        top = 2 + ROW * (deepest * span["thread"] + level)
        outer, _, name = span["path"].rpartition("/")
        colour = COLOURS[outermost.index(span["path"].partition("/")[0]) % len(COLOURS)]
        title = f"{escape(span['path'])}: {_ms(span['end'] - span['begin'])} ms"
        opacity = 0.9 if not outer else 0.55
        parts.append(
            f'<rect x="{left:.1f}" y="{top}" width="{max(0.4, right - left):.1f}" height="{ROW - 3}" '
            f'fill="{colour}" fill-opacity="{opacity}"><title>{title}</title></rect>'
        )
        if right - left > TEXT_WIDTH * len(name) + 4:
            parts.append(f'<text x="{left + 3:.1f}" y="{top + 14}" pointer-events="none">{escape(name)}</text>')
    parts.append(f'<text x="0" y="{height - 6}">0</text>')
    parts.append(f'<text x="{WIDTH}" y="{height - 6}" text-anchor="end">{_ms(whole)} ms</text>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}" if seconds >= 0.1 else f"{1000 * seconds:.3g}"
