"""Independent pieces of work on all cores.

One torch operation on small batches scales badly to several threads, and worse when cores are shared; whole pieces
(a chunk of rays, a photo) on one thread each scale almost perfectly, since torch and the kernels release the GIL.
"""

import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """``function`` of each item, in order, computed by ``workers`` threads in which torch uses one thread each.

    With one worker, everything happens in the caller's thread and with its number of torch threads.  When the caller
    stops early or an item fails, items that were not begun are dropped.  Gradients are recorded or not as ``function``
    itself says: torch's mode does not reach other threads.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that start from here on take this over
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
