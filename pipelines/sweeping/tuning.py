"""What Ray Tune asks of a sweep: which trial comes next, whether one goes on, and what to do with what it says.

All three speak of trials by their number, and begin with what the journal says.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipelines.sweeping.journal import Journal, Report, State

METRIC = "val_psnr"


class _Stateless:
    """Tune writes down all that it is given; what is the journal's it gets no copy of."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()


class Suggestions(_Stateless, Searcher):
    """Interrupted trials, then new ones; ``next_new`` begins one and returns its number, or None at the end."""

    def __init__(self, interrupted: list[int], next_new: Callable[[], int | None]) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._interrupted = list(interrupted)
        self._next_new = next_new

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The number of the next trial; its values are in its run directory."""
        number = self._interrupted.pop(0) if self._interrupted else self._next_new()
        return self.FINISHED if number is None else {"trial": number}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the journal has it."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the journal is the state."""


class _Numbered(NamedTuple):
    trial_id: str


class Halving(_Stateless, ASHAScheduler):
    """Asynchronous successive halving by val PSNR, at parts of the budget that grow from the grace on."""

    def __init__(self, grace: float | None, reduction: float, journal: Journal) -> None:
        """Make up for the reports in the journal, in the order in which they came; ``grace`` None: all go on."""
        rungs: Any = {"max_t": 1, "grace_period": grace or 1, "reduction_factor": reduction}
        super().__init__(time_attr="progress", metric=METRIC, mode="max", **rungs)
        self._stops = grace is not None
        self._heard: dict[int, int] = {}  # last step of each trial
        self.goes_on = {number: self.hear(number, report) for number, report in journal.order}

    def hear(self, number: int, report: Report) -> bool:
        """Whether a trial goes on after a report; one that it repeats changes nothing."""
        if report.step <= self._heard.get(number, -1):
            return True
        self._heard[number] = report.step
        trial: Any = _Numbered(str(number))
        if trial.trial_id not in self._trial_info:
            super().on_trial_add(None, trial)  # pyright: ignore[reportArgumentType]
        decision = super().on_trial_result(None, trial, vars(report))  # pyright: ignore[reportArgumentType]
        return decision == TrialScheduler.CONTINUE or report.progress >= 1 or not self._stops

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Nothing: a trial is known from its first report on."""

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Tell Tune what :meth:`hear` says; a trial that says why it cannot go on ends by itself."""
        report = report_of(result)
        goes_on = report is None or self.hear(number_of(trial), report)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        """Nothing: its last report was heard."""

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Nothing: it is not waited for."""


class Recorder(_Stateless, Callback):
    """Writes the journal; the functions it is given hear of it, of an end before it is written: it is theirs to do."""

    def __init__(
        self,
        journal: Journal,
        on_start: Callable[[int], None],
        on_report: Callable[[int, Report], None],
        on_end: Callable[[int, State, str | None], None],
    ) -> None:
        self._journal = journal
        self._on_start, self._on_report, self._on_end = on_start, on_report, on_end
        self._problems: dict[int, str] = {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """A trial has its process."""
        self._on_start(number_of(trial))

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial came to a save, or says why it cannot go on."""
        number, report = number_of(trial), report_of(result)
        if report is None:
            self._problems[number] = result["problem"]
        elif report.step > self._journal.trials[number].step:
            self._journal.report(number, report)
            self._on_report(number, report)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """A trial used its budget, was stopped, or said why it could not go on."""
        number = number_of(trial)
        self._end(number, *ending(self._journal, number, self._problems.get(number)))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Tune gave a trial up: its process was lost again and again."""
        number = number_of(trial)
        self._end(number, "failed", self._problems.get(number, "Ray lost its process too often (train.max_failures)"))

    def _end(self, number: int, state: State, reason: str | None) -> None:
        self._on_end(number, state, reason)
        self._journal.end(number, state, reason)


def ending(journal: Journal, number: int, problem: str | None = None) -> tuple[State, str | None]:
    """State and reason of a trial that does not go on."""
    reports = journal.trials[number].reports
    if problem is None and not reports:
        problem = "it ended without a word"
    if problem is None and math.isnan(reports[-1].val_psnr):
        problem = "no val pixel could be scored"
    if problem is not None:
        return "failed", problem
    return ("finished" if reports[-1].progress >= 1 else "stopped"), None


def number_of(trial: TuneTrial) -> int:
    return trial.config["trial"]


def report_of(result: dict[str, Any]) -> Report | None:
    """What a trial reported, or None where it said why it cannot go on."""
    if "problem" in result:
        return None
    score = result[METRIC]
    return Report(result["step"], result["seconds"], result["progress"], math.nan if score is None else score)
