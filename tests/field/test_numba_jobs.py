"""Ranges, parts and runs of samples, and when kernels are compiled anew."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba.core.event import install_recorder

from inf_nerf.field import numba_grid, numba_heads
from inf_nerf.field.numba_jobs import _SOURCES, STAMP, parts, ranges, run, run_end
from inf_nerf.render import numba_trace
from inf_nerf.train.loop import train
from tests.train.ranks import run_ranks
from tests.train.tiny import tiny_config, tiny_scene, tiny_work


@pytest.mark.parametrize("total", [0, 1, 69, 70, 71, 700])
def test_ranges_cover_everything_once_whatever_the_number_of_threads(total: int) -> None:
    found = ranges(total, 70)
    assert [at for first, last in found for at in range(first, last)] == list(range(total))
    assert all(last - first <= 70 for first, last in found)
    assert len(found) == max(1, -(-total // 70))


def test_parts_are_as_many_as_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert parts(100) == [(0, 25), (25, 50), (50, 75), (75, 100)]
    assert parts(2) == [(0, 1), (1, 2)]
    assert parts(0) == [(0, 0)]


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_the_order_of_the_jobs(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert run(lambda first, last, add: first + last + add, [(1, 2), (3, 4), (5, 6), (7, 8)], 10) == [13, 17, 21, 25]


def test_a_run_ends_where_the_node_changes() -> None:
    node = np.array([4, 4, 4, 5, 5])
    assert [run_end(node, 0, 5, 9), run_end(node, 0, 5, 2), run_end(node, 3, 5, 9), run_end(node, 0, 2, 9)] == [
        3,
        2,
        5,
        2,
    ]


def test_every_kernel_on_disk_is_compiled_anew_when_the_stamp_changes() -> None:
    heads = numba_trace._kernels(2, (8, 16, 4), (32, 16, 16, 3))
    kernels: list[Any] = [*numba_grid._kernels(2), *numba_heads._kernels(), *heads]
    for kernel in kernels:
        assert STAMP in [cell.cell_contents for cell in kernel.py_func.__closure__]


def test_the_stamp_takes_in_every_file_that_kernels_are_made_of() -> None:
    package = Path(numba_grid.__file__).parents[1]
    names = {str(path.relative_to(package)) for pattern in _SOURCES for path in package.glob(pattern)}
    for folder in ("field", "render"):
        compiled = [path for path in (package / folder).glob("*.py") if "from numba import" in path.read_text()]
        assert {str(path.relative_to(package)) for path in compiled} <= names
    assert all(list(package.glob(pattern)) for pattern in _SOURCES)


def compiled_by_a_process(rank: int) -> set[str]:
    """What a fresh process compiles, rather than reads from disk, to train a little and to render a picture."""
    config = tiny_config(field={"backend": "numba"}, train={"steps": 3, "log_every": 1})
    with install_recorder("numba:compile") as recorder:
        work = tiny_work(config).work
        train(work, lambda row: None, lambda psnr: None, lambda: False)
        work.model.render(tiny_scene().cameras.image_rays(0, 1))
    return {event.data["dispatcher"].py_func.__qualname__ for _, event in recorder.buffer if event.is_start}


def test_what_one_process_has_compiled_the_next_reads_from_disk() -> None:
    run_ranks(1, compiled_by_a_process)
    assert run_ranks(1, compiled_by_a_process) == [set()]
