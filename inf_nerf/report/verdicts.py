"""What the analysis of a training found, as a part of the report."""

from inf_nerf.analysis.findings import Findings
from inf_nerf.report.charts import bar_chart
from inf_nerf.report.page import figure, figures, paragraph, table

MOST_PROBLEMS = 20  # kinds that are listed
LONGEST_MESSAGE = 200  # characters


def verdicts(found: Findings) -> str:
    """Verdicts with reasons, where the PSNR leads, where the time went, and what went wrong."""
    convergence, speed = found.convergence, found.performance
    rows = [
        ("convergence", convergence.verdict, convergence.sentence, convergence.advice),
        ("stability of the loss", found.stability.verdict, found.stability.sentence, ""),
        ("throughput", speed.verdict, speed.sentence, speed.advice),
    ]
    parts = [table(("", "verdict", "why", "what to do"), rows)]
    if (projection := convergence.projection) is not None:
        when = "At the end of the budget" if projection.at_end else "After twice the steps"
        parts.append(
            paragraph(
                f"{when} (step {projection.step:,}) training rays are expected to have {projection.psnr:.2f} dB, "
                f"{projection.low:.2f} to {projection.high:.2f}."
            )
        )
    if (val := found.validation) is not None:
        parts.append(
            paragraph(
                f"Val rays: PSNR {val.last:.2f} dB at step {val.last_step:,}, at best {val.best:.2f} dB at step "
                f"{val.best_step:,}."
            )
        )
    shares = {name: 100 * share for name, share in speed.shares.items() if share is not None}
    if shares:
        chart = bar_chart(list(shares), list(shares.values()), "% of the time of a step, median")
        parts.append(figures([figure(chart, "", "Where the time went")]))
    parts.append(_problems(found))
    parts += [paragraph(note) for note in found.notes]
    return "".join(parts)


def _problems(found: Findings) -> str:
    if not found.problems:
        return paragraph("No warning and no error is recorded.") if found.has_logs else ""
    rows = [
        (
            problem.level.lower(),
            problem.message.partition("\n")[0][:LONGEST_MESSAGE],
            str(problem.count),
            problem.first_time or "–",
            ", ".join("driver" if rank is None else str(rank) for rank in problem.ranks),
            problem.remedy,
        )
        for problem in found.problems[:MOST_PROBLEMS]
    ]
    return table(("", "what was said", "times", "first, UTC", "ranks", "what to do"), rows)
