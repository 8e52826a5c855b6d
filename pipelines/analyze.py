"""Stage ``analyze``: whether trainings were stable and have converged, how fast they were, and what went wrong."""

import json
from collections.abc import Iterator, Sequence

from rich.console import Console

from inf_nerf.analysis.findings import Findings, examine
from inf_nerf.analysis.problems import Problem
from inf_nerf.analysis.recorded import read_recorded
from inf_nerf.places import Place

MOST_PROBLEMS = 8  # kinds that are printed; the JSON has all
LONGEST_MESSAGE = 300  # characters of one


def run(runs: Sequence[Place], as_json: bool = False) -> list[Findings]:
    """Print what is found in run directories (or files of rows) and return it.

    Raises :class:`InputError` where one of them does not exist.
    """
    found = [examine(read_recorded(each)) for each in runs]
    if as_json:
        print(json.dumps({"runs": [each.plain() for each in found]}, indent=1, allow_nan=False))
        return found
    console = Console(soft_wrap=True)
    for index, each in enumerate(found):
        for line in ([""] if index else []) + list(lines(each)):
            console.print(line, markup=False, highlight=False)
    return found


def lines(found: Findings) -> Iterator[str]:
    """The findings of one run as people read them."""
    convergence, speed, projection = found.convergence, found.performance, found.convergence.projection
    reached = "" if found.last_step is None else f", step {found.last_step:,}"
    yield f"{found.name}: {convergence.verdict}{reached}"
    yield f"  convergence  {convergence.sentence}"
    if convergence.last is not None and convergence.first is not None and convergence.best is not None:
        yield (
            f"               training rays: PSNR {convergence.first:.2f} dB at first, {convergence.last:.2f} now, "
            f"{convergence.best:.2f} at best"
        )
    if projection is not None:
        when = "at the end of the budget" if projection.at_end else "after twice the steps"
        yield (
            f"               projected {when} (step {projection.step:,}): {projection.psnr:.2f} dB "
            f"({projection.low:.2f} to {projection.high:.2f})"
        )
    if found.validation is not None:
        val = found.validation
        yield (
            f"               val rays: PSNR {val.last:.2f} dB at step {val.last_step:,}, {val.best:.2f} at best "
            f"(step {val.best_step:,})"
        )
    yield f"               {convergence.advice}"
    yield f"  stability    {found.stability.verdict}. {found.stability.sentence}"
    yield f"  performance  {speed.sentence}"
    if speed.rays_per_second is not None:
        parts = [f"{name} {share:.0%}" for name, share in speed.shares.items() if share is not None]
        missing = [name for name, share in speed.shares.items() if share is None and name != "computation"]
        parts += [f"not recorded: {', '.join(missing)}"] if missing else []
        yield f"               time: {'; '.join(parts) if missing else ', '.join(parts)}"
    if speed.advice:
        yield f"               {speed.advice}"
    yield f"  errors       {_counted(found.problems) if found.problems or found.has_logs else 'not recorded'}"
    for problem in found.problems[:MOST_PROBLEMS]:
        yield from _problem_lines(problem)
    for note in found.notes:
        yield f"  note         {note}"


def _counted(problems: Sequence[Problem]) -> str:
    errors = [problem for problem in problems if problem.level != "WARNING"]
    kinds = f"{len(errors)} of errors, {len(problems) - len(errors)} of warnings"
    more = f"; the first {MOST_PROBLEMS} are shown" if len(problems) > MOST_PROBLEMS else ""
    return f"kinds: {kinds}{more}" if problems else "none"


def _problem_lines(problem: Problem) -> Iterator[str]:
    who = ", ".join("driver" if rank is None else f"rank {rank}" for rank in problem.ranks)
    times = "once" if problem.count == 1 else f"{problem.count} times, first"
    at = "" if problem.first_time is None else f" at {problem.first_time}"
    step = "" if problem.first_step is None else f", step {problem.first_step:,}"
    message = problem.message.partition("\n")[0]
    yield f"    {problem.level:8s} {message[:LONGEST_MESSAGE]}"
    yield f"             {times}{at}{step}, {who}"
    if problem.remedy and problem.remedy.rstrip(".").lower() not in message.lower():
        yield f"             {problem.remedy}"


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("analyze")
