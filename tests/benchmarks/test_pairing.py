"""Timing: order, medians, ratios, limits, threads."""

import pytest
import torch

from benchmarks.pairing import Candidate, Case, Effort, measure, torch_threads

ONCE = Effort(seconds=0, fewest=1, most=1)


class Clock:
    """Time that passes only when work is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, *seconds: float):
        """A candidate's run that takes these times in turn, the last one for ever."""
        left = list(seconds)

        def run() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_time_is_the_median_of_the_rounds_after_the_warm_up() -> None:
    clock = Clock()
    case = Case("row", 8, 1, [Candidate("a", clock.work(100, 1, 5, 2))])
    (result,) = measure(case, Effort(seconds=0, fewest=3, most=3), clock)
    assert result.median_ms == pytest.approx(2000) and result.rounds == 3
    assert (result.name, result.nodes, result.threads, result.candidate) == ("row", 8, 1, "a")


def test_ratio_is_to_the_first_candidate() -> None:
    clock = Clock()
    results = measure(Case("row", 1, 1, [Candidate("a", clock.work(2)), Candidate("b", clock.work(5))]), ONCE, clock)
    assert [result.ratio for result in results] == pytest.approx([1, 2.5])


def test_fraction_is_of_the_limit_and_absent_without_one() -> None:
    clock = Clock()
    with_limit = Case("row", 1, 1, [Candidate("a", clock.work(2))], limit_ms=500)
    assert measure(with_limit, ONCE, clock)[0].limit_fraction == pytest.approx(0.25)
    assert measure(Case("row", 1, 1, [Candidate("a", clock.work(2))]), ONCE, clock)[0].limit_fraction is None


def test_preparation_is_not_timed() -> None:
    clock = Clock()
    (result,) = measure(Case("row", 1, 1, [Candidate("a", clock.work(1), prepare=clock.work(50))]), ONCE, clock)
    assert result.median_ms == pytest.approx(1000)


def test_candidates_take_turns_and_every_round_starts_with_another() -> None:
    calls: list[str] = []
    candidates = [Candidate(name, lambda name=name: calls.append(name)) for name in "abc"]
    measure(Case("row", 1, 1, candidates), Effort(seconds=0, fewest=2, most=2))
    assert "".join(calls) == "abc" + "abc" + "bca"


def test_rounds_end_with_the_time_but_not_before_the_fewest() -> None:
    clock = Clock()
    case = Case("row", 1, 1, [Candidate("a", clock.work(1))])
    assert measure(case, Effort(seconds=4, fewest=2, most=9), clock)[0].rounds == 4
    assert measure(case, Effort(seconds=0.5, fewest=2, most=9), clock)[0].rounds == 2
    assert measure(case, Effort(seconds=99, fewest=2, most=9), clock)[0].rounds == 9


def test_a_slow_candidate_is_not_waited_for_again() -> None:
    clock = Clock()
    candidates = [Candidate("a", clock.work(1)), Candidate("slow", clock.work(100), rounds=1)]
    results = measure(Case("row", 1, 1, candidates), Effort(seconds=500, fewest=3, most=5), clock)
    assert [result.rounds for result in results] == [5, 1]


def test_threads_are_the_cases_or_the_candidates_own_and_are_put_back() -> None:
    seen: list[int] = []
    before = torch.get_num_threads()
    candidates = [
        Candidate("a", lambda: seen.append(torch.get_num_threads())),
        Candidate("b", lambda: seen.append(torch.get_num_threads()), threads=1),
    ]
    results = measure(Case("row", 1, 2, candidates), ONCE)
    assert seen == [2, 1, 2, 1] and [result.threads for result in results] == [2, 1]
    assert torch.get_num_threads() == before


def test_threads_are_put_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), torch_threads(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before
