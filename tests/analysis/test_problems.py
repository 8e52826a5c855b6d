"""Equal sentences are one problem, with its first occurrence and what to do."""

from typing import Any

import pytest

from inf_nerf.analysis.problems import pattern_of, problems, remedy_of


def said(level: str, message: str, **facts: Any) -> dict[str, Any]:
    return {"level": level, "message": message, "time": "2026-05-04T10:00:00.000Z", "rank": 0, **facts}


def test_sentences_that_differ_in_numbers_and_paths_are_one() -> None:
    found = problems(
        [
            said("WARNING", "/a/b/00000020 misses 3 entries", time="1", rank=1, step=20),
            said("INFO", "Saved step 40."),
            said("WARNING", "/c/00000040 misses 7 entries", time="2", rank=None, step=40),
            said("WARNING", "another thing", time="3"),
        ]
    )
    assert [problem.count for problem in found] == [2, 1]
    first = found[0]
    assert first.message == "/a/b/00000020 misses 3 entries"
    assert (first.first_time, first.last_time, first.first_step, first.ranks) == ("1", "2", 20, (None, 1))


def test_errors_come_before_warnings_and_the_first_before_what_follows_from_it() -> None:
    found = problems(
        [
            said("WARNING", "slow"),
            said("ERROR", "RuntimeError: a worker's own fault", rank=1),
            said("ERROR", "RuntimeError: [gloo] Connection closed by peer [10.0.0.3]:4711", rank=0),
        ]
    )
    assert [problem.level for problem in found] == ["ERROR", "ERROR", "WARNING"]
    assert found[0].ranks == (1,)
    assert "first error of the other ranks" in found[1].remedy


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "train.batch_size"),
        ("Worker died with exit code -9", "data.reservoir_mb"),
        ("OSError: [Errno 28] No space left on device", "Make room"),
        ("The loss or its gradient is not a finite number in step 4; nothing of it was kept: give --resume latest.",
         "Nothing of it was kept: give --resume latest."),
        ("The tiles in /x are not complete; run inf-nerf prepare again to finish them.",
         "Run inf-nerf prepare again to finish them."),
        ("ZeroDivisionError: division by zero", "traceback"),
        ("Something odd", ""),
    ],
)  # fmt: skip
def test_remedy_is_known_or_said_by_the_sentence(message: str, remedy: str) -> None:
    assert remedy in remedy_of(message)
    assert bool(remedy_of(message)) == bool(remedy)


def test_step_is_read_from_the_sentence_where_no_key_says_it() -> None:
    (found,) = problems([said("ERROR", "not finite in step 47; go on")])
    assert found.first_step == 47


def test_pattern_keeps_words() -> None:
    assert pattern_of("step 12 of 'a b' in /x/y.z took 1.5e-3 s\nmore") == "step # of # in # took # s"


def test_nothing_said_is_no_problem() -> None:
    assert problems([]) == [] and problems([{"odd": 1}]) == []
