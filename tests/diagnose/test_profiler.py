"""Sections add up: their figures are those of a plain list of durations, and own times are the whole."""

import json
import statistics
import threading
import time

import pytest
import torch

from inf_nerf.diagnose import profiler as module
from inf_nerf.diagnose.profiler import KEPT_DURATIONS, KEPT_SPANS, Durations, Profiler, at_step, own_seconds, section


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_figures_are_those_of_a_list_of_durations() -> None:
    durations = [((7 * i) % 13 + 1) / 1000 for i in range(200)]
    found = Durations()
    for seconds in durations:
        found.add(seconds, 0.0)
    summary = found.summary()
    assert summary["count"] == 200
    assert summary["total"] == pytest.approx(sum(durations))
    assert summary["mean"] == pytest.approx(statistics.fmean(durations))
    assert summary["std"] == pytest.approx(statistics.pstdev(durations))
    assert (summary["min"], summary["max"]) == (min(durations), max(durations))
    assert summary["median"] == pytest.approx(statistics.median(durations), abs=1e-3)
    assert summary["p95"] == pytest.approx(sorted(durations)[190])


def test_many_durations_take_no_more_memory_and_keep_their_percentiles() -> None:
    found = Durations()
    for i in range(50 * KEPT_DURATIONS):
        found.add(i / 1000, 0.0)
    assert len(found._kept) == KEPT_DURATIONS
    middle = 50 * KEPT_DURATIONS / 2000
    assert found.summary()["median"] == pytest.approx(middle, rel=0.15)
    assert found.summary()["mean"] == pytest.approx(middle, rel=0.01)


def test_a_section_knows_what_it_lies_in_and_what_is_its_own(clock: Clock) -> None:
    with Profiler(clock=clock) as profiler:
        for _ in range(2):
            with section("step"):
                clock.wait(1.0)
                with section("forward"):
                    clock.wait(2.0)
                    with section("field"):
                        clock.wait(4.0)
                with section("backward"):
                    clock.wait(0.5)
        with section("forward"):  # another one, as it lies elsewhere
            clock.wait(0.25)
    found = profiler.report()["sections"]
    own = {path: each["own"] for path, each in found.items()}
    assert own == {"step": 2, "step/forward": 4, "step/forward/field": 8, "step/backward": 1, "forward": 0.25}
    assert found["step"]["total"] == 15 and found["step/forward"]["total"] == 12
    assert sum(own.values()) == clock.now
    assert sum(each["share"] for each in found.values()) == pytest.approx(1)
    assert profiler.report()["bottlenecks"][:2] == ["step/forward/field", "step/forward"]


def test_an_outer_section_is_no_bottleneck_for_what_happens_inside(clock: Clock) -> None:
    with Profiler(clock=clock) as profiler, section("all"):
        for name, seconds in (("short", 1.0), ("long", 3.0)):
            with section(name):
                clock.wait(seconds)
    assert profiler.report()["bottlenecks"] == ["all/long", "all/short", "all"]


def test_an_exception_closes_its_sections(clock: Clock) -> None:
    with Profiler(clock=clock) as profiler:
        with pytest.raises(ZeroDivisionError), section("outer"), section("inner"):
            clock.wait(1.0 / 0)
        with section("after"):
            clock.wait(1.0)
    assert set(profiler.report()["sections"]) == {"outer", "outer/inner", "after"}


def test_without_a_profiler_nothing_is_kept() -> None:
    with section("nobody asks"):
        at_step(3)
    assert own_seconds() == {}
    with Profiler() as outer:
        with Profiler() as inner, section("inside"):
            pass
        with section("outside"):
            pass
    assert set(inner.own_seconds()) == {"inside"} and set(outer.own_seconds()) == {"outside"}
    assert module._active is None


def test_threads_nest_for_themselves_and_lose_nothing() -> None:
    rounds, barrier = 300, threading.Barrier(4)

    def work(name: str) -> None:
        barrier.wait()
        for _ in range(rounds):
            with section(name), section("inner"):
                pass

    with Profiler() as profiler:
        threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "a", "b", "c")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = profiler.report()["sections"]
    assert {path: each["count"] for path, each in found.items()} == {
        "a": 2 * rounds, "a/inner": 2 * rounds, "b": rounds, "b/inner": rounds, "c": rounds, "c/inner": rounds,
    }  # fmt: skip


def test_the_timeline_shows_a_typical_and_the_slowest_of_the_latest_steps(clock: Clock) -> None:
    with Profiler(clock=clock) as profiler:
        for step, seconds in enumerate([9.0, 1.0, 3.0, 1.0, 1.5, 1.0], start=1):
            at_step(step)
            with section("data"):
                clock.wait(0.25)
            with section("forward"), section("field"):
                clock.wait(seconds)
    timeline = profiler.report()["timeline"]
    assert timeline["slowest"]["step"] == 3 and timeline["slowest"]["seconds"] == 3.25  # the first may be cut
    assert timeline["typical"]["seconds"] == 1.25
    spans = [(span["path"], span["begin"], span["end"]) for span in timeline["slowest"]["spans"]]
    assert spans == [("data", 0, 0.25), ("forward", 0.25, 3.25), ("forward/field", 0.25, 3.25)]
    json.dumps(profiler.report(), allow_nan=False)


def test_spans_are_bounded(clock: Clock) -> None:
    with Profiler(clock=clock) as profiler:
        for step in range(KEPT_SPANS + 10):
            at_step(step)
            with section("part"):
                clock.wait(1.0)
    assert len(profiler._spans) == KEPT_SPANS


def test_an_empty_profile_is_a_report() -> None:
    assert Profiler().report() == {"sections": {}, "bottlenecks": [], "timeline": {}}


def test_memory_that_a_section_takes_is_its_peak_and_of_those_around_it() -> None:
    with Profiler() as profiler:
        with section("small"):
            pass
        with section("outer"), section("large"):
            taken = torch.ones(16_000_000)  # 64 MB
        del taken
    found = profiler.report()["sections"]
    assert found["outer/large"]["memory_count"] == 1
    assert found["outer/large"]["memory_peak"] > found["small"]["memory_peak"] + 50e6
    assert found["outer"]["memory_peak"] >= found["outer/large"]["memory_peak"]


def test_memory_that_was_given_back_before_the_end_still_counts_as_the_peak() -> None:
    with Profiler() as profiler, section("all"):
        with section("before"):
            pass
        with section("passing"):
            torch.ones(150_000_000).sum()  # 600 MB, the most that this process ever held
    found = profiler.report()["sections"]
    assert found["all/passing"]["memory_peak"] > found["all/before"]["memory_peak"] + 500e6


def test_a_section_costs_microseconds() -> None:
    def cost(times: int = 2000) -> float:
        started = time.perf_counter()
        for _ in range(times):
            with section("part"):
                pass
        return (time.perf_counter() - started) / times

    with Profiler():
        assert min(cost() for _ in range(5)) < 20e-6
    assert min(cost() for _ in range(5)) < 2e-6
