"""All that can be said of one recorded training."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from inf_nerf.analysis.convergence import Convergence, convergence
from inf_nerf.analysis.performance import Performance, performance
from inf_nerf.analysis.problems import Problem, problems, step_of
from inf_nerf.analysis.recorded import Recorded
from inf_nerf.analysis.stability import Stability, stability

NOT_FINITE = "is not a finite number"  # in the sentence that such a training ends with


@dataclass(frozen=True)
class Validation:
    """PSNR of the val rays."""

    first_step: int
    last_step: int
    last: float  # dB
    best_step: int
    best: float


@dataclass(frozen=True)
class Findings:
    """What was found in a run."""

    name: str
    last_step: int | None
    seconds: float | None  # of training
    convergence: Convergence
    stability: Stability
    performance: Performance
    validation: Validation | None
    problems: list[Problem]
    has_logs: bool  # False: nothing is known of problems
    notes: list[str]

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON; what is not finite is null."""
        return _plain(asdict(self))


def examine(recorded: Recorded) -> Findings:
    """Judge a recorded training."""
    steps, found = recorded.values("step"), problems(recorded.records)
    last_step = int(steps[-1]) if steps else None
    turn = _turn_since(recorded)
    judged = replace(recorded, rows=[row for row in recorded.rows if row["step"] > turn])
    notes = [f"Nodes are trained in turns; convergence is of the last one, from step {turn:,} on."] if turn else []
    return Findings(
        name=recorded.name,
        last_step=last_step,
        seconds=recorded.values("seconds")[-1] if recorded.has("seconds") else None,
        convergence=convergence(
            judged.values("step"),
            judged.values("psnr"),
            judged.values("lr") if judged.has("lr") else None,
            judged.values("progress") if judged.has("progress") else None,
            _stopped_not_finite(recorded, last_step),
        ),
        stability=stability(steps, recorded.values("loss")),
        performance=performance(recorded.rows),
        validation=_validation(recorded.val_scores()),
        problems=found,
        has_logs=bool(recorded.records),
        notes=[*recorded.notes, *notes],
    )


def _stopped_not_finite(recorded: Recorded, last_step: int | None) -> bool:
    """Whether that is how the training ended, and nobody has begun to go on since."""
    ended = False
    for record in recorded.records:
        if record.get("level") == "ERROR" and NOT_FINITE in str(record.get("message")):
            step = step_of(record)
            ended = step is None or last_step is None or step >= last_step
        elif "part" in record:  # a rank begins
            ended = False
    return ended


def _turn_since(recorded: Recorded) -> int:
    """The step at which rank 0 last took up other nodes, which see other photos; 0 if it never did."""
    since, part = 0, None
    for record in recorded.records:
        if record.get("rank") == 0 and "part" in record:
            if part is not None and record["part"] != part:
                since = int(record.get("step", 0))
            part = record["part"]
    return since


def _validation(scores: dict[int, float]) -> Validation | None:
    if not scores:
        return None
    steps = list(scores)
    best = max(steps, key=lambda step: scores[step])
    return Validation(steps[0], steps[-1], scores[steps[-1]], best, scores[best])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
