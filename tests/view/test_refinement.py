"""The order in which several clients get coarse and fine pictures."""

from dataclasses import dataclass

import pytest

from inf_nerf.view.refinement import FIRST_DIVISOR, FIRST_SECONDS, Frames, Job


@dataclass(frozen=True)
class View:
    name: str
    num_pixels: int = 640 * 480


def serve(frames: Frames[View], seconds: float | None = None) -> Job[View]:
    """Render what is next, by default at a speed that keeps the first pictures at an eighth."""
    job = frames.next()
    assert job is not None and frames.is_wanted(job)
    pixels = job.view.num_pixels / job.divisor**2
    frames.done(job, FIRST_SECONDS * pixels / (640 * 480 / 64) if seconds is None else seconds)
    return job


def test_nobody_looks_at_nothing() -> None:
    assert Frames[View]().next() is None


def test_view_is_refined_from_coarse_to_whole_and_then_rests() -> None:
    frames = Frames[View]()
    frames.look("a", View("tower"))
    assert [serve(frames).divisor for _ in range(4)] == [8, 4, 2, 1]
    assert frames.next() is None


def test_moving_begins_anew_and_gives_up_finer_pictures() -> None:
    frames = Frames[View]()
    frames.look("a", View("tower"))
    serve(frames)
    finer = frames.next()
    assert finer is not None and frames.is_wanted(finer)
    frames.look("a", View("bridge"))
    assert not frames.is_wanted(finer)
    assert (serve(frames).view.name, frames.next()) == ("bridge", Job("a", View("bridge"), 4, 2, False))


def test_first_picture_is_finished_for_one_who_keeps_moving() -> None:
    frames = Frames[View]()
    frames.look("a", View("tower"))
    first = frames.next()
    assert first is not None
    frames.look("a", View("bridge"))
    assert frames.is_wanted(first)
    frames.done(first, 0.1)
    job = frames.next()
    assert job is not None and job.view.name == "bridge" and job.is_first


def test_first_pictures_come_before_finer_ones_of_others() -> None:
    frames = Frames[View]()
    frames.look("a", View("tower"))
    serve(frames)
    frames.look("b", View("bridge"))
    order = [serve(frames) for _ in range(7)]
    assert [(job.client, job.divisor) for job in order[:5]] == [("b", 8), ("a", 4), ("b", 4), ("a", 2), ("b", 2)]
    assert {(job.client, job.divisor) for job in order[5:]} == {("a", 1), ("b", 1)}


def test_finer_picture_makes_way_for_a_first_one_but_not_twice() -> None:
    frames = Frames[View]()
    frames.look("a", View("tower"))
    serve(frames)
    finer = frames.next()
    assert finer is not None and frames.is_wanted(finer)
    frames.look("b", View("one"))
    assert not frames.is_wanted(finer)
    assert serve(frames).client == "b"
    again = frames.next()
    assert again is not None and again == finer
    frames.look("b", View("two"))
    assert frames.is_wanted(again)  # or one who keeps moving would keep others from ever seeing anything sharp
    frames.done(again, 0.1)
    assert serve(frames).view.name == "two"


def test_one_who_keeps_moving_gets_no_more_pictures_than_others() -> None:
    frames = Frames[View]()
    for client in "abc":
        frames.look(client, View("start"))
    served = dict.fromkeys("abc", 0)
    for turn in range(30):
        for client in "abc":
            frames.look(client, View(f"{client}{turn}"))
        served[str(serve(frames).client)] += 1
    assert served == {"a": 10, "b": 10, "c": 10}


@pytest.mark.parametrize("movers", [1, 3])
def test_those_who_move_faster_than_pictures_come_do_not_keep_another_from_refinement(movers: int) -> None:
    frames = Frames[View]()
    frames.look("rests", View("tower"))
    served: list[Job[View]] = []
    while not any(job.client == "rests" and job.divisor == 1 for job in served):
        for mover in range(movers):
            frames.look(mover, View("moving"))
        job = frames.next()
        assert job is not None
        for mover in range(movers):  # while it is rendered
            frames.look(mover, View("moving"))
        if frames.is_wanted(job):
            frames.done(job, 0.01)
            served.append(job)
        assert len(served) < 40
    counts = [sum(job.client == mover for job in served) for mover in range(movers)]
    assert min(counts) > 0 and max(counts) - min(counts) <= 1


def test_client_that_left_is_not_rendered_for() -> None:
    frames = Frames[View]()
    frames.look("a", View("tower"))
    job = frames.next()
    assert job is not None
    frames.leave("a")
    frames.leave("a")
    assert not frames.is_wanted(job) and frames.next() is None
    frames.done(job, 0.1)
    assert frames.next() is None


def test_changed_model_shows_all_views_again() -> None:
    frames = Frames[View]()
    frames.look("a", View("tower"))
    for _ in range(4):
        serve(frames)
    frames.look_again()
    assert serve(frames).divisor == 8


def test_failed_picture_is_not_tried_until_the_view_changes() -> None:
    frames = Frames[View]()
    frames.look("a", View("tower"))
    job = frames.next()
    assert job is not None
    frames.failed(job)
    assert frames.next() is None
    frames.look("a", View("bridge"))
    assert frames.next() is not None


@pytest.mark.parametrize(
    ("seconds_per_pixel", "divisor"), [(1e-9, 1), (FIRST_SECONDS / 640 / 480, 1), (1e-6, 2), (3e-5, 16), (1.0, 16)]
)
def test_first_picture_is_the_finest_that_is_soon_there(seconds_per_pixel: float, divisor: int) -> None:
    frames = Frames[View]()
    frames.look("a", View("tower"))
    job = frames.next()
    assert job is not None and job.divisor == FIRST_DIVISOR
    frames.done(job, seconds_per_pixel * (job.view.num_pixels // job.divisor**2))
    frames.look("a", View("bridge"))
    moved = frames.next()
    assert moved is not None and moved.divisor == divisor
