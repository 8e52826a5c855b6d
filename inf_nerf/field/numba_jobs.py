"""How compiled loops share out samples: runs of one node, and parts for threads; and when they are compiled anew.

Threads are Python threads around kernels that release the GIL, as many as torch uses.  Numba's own thread pools are
avoided: its OpenMP pool shares torch's runtime and silently resets torch's number of threads to all cores.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from numba import njit

from inf_nerf.field.vector_code import LANES
from inf_nerf.files import fingerprint

# Numba keeps compiled code on disk, and compiles a function anew when the one file that it stands in changes, or what
# its closure holds.  Kernels hold this number, lest a piece of them in another file changes and they do not.
_SOURCES = """
    field/hash_grid.py field/heads.py field/numba_*.py field/vector_*.py octree/topology.py render/compositing.py
    render/empty_space.py render/foreground.py render/numba_*.py render/sampling.py
""".split()
STAMP = fingerprint(path for pattern in _SOURCES for path in Path(__file__).parents[1].glob(pattern)) + LANES

# Options of loops that allocate nothing.  Otherwise numba counts, atomically, whoever reads an array out of a tuple, in
# the innermost loop too: a third of the time that it takes to follow a ray.
UNCOUNTED: dict[str, Any] = {"nogil": True, "_nrt": False}


def run(kernel: Callable[..., Any], jobs: Sequence[tuple[int, ...]], *arguments: Any) -> list[Any]:
    """``kernel(*job, *arguments)`` of every job, in their order, by as many threads as torch uses."""
    threads = min(torch.get_num_threads(), len(jobs))
    if threads == 1:
        return [kernel(*job, *arguments) for job in jobs]
    with ThreadPoolExecutor(threads) as pool:
        return [done.result() for done in [pool.submit(kernel, *job, *arguments) for job in jobs]]


def parts(total: int) -> list[tuple[int, int]]:
    """``range(total)`` in about equal parts (first, last), one a thread."""
    count = max(1, min(torch.get_num_threads(), total))
    return list(pairwise(total * part // count for part in range(count + 1)))


def ranges(total: int, size: int) -> list[tuple[int, int]]:
    """``range(total)`` in parts (first, last) of ``size``, whatever the number of threads."""
    return list(pairwise((*range(0, total, size), total))) or [(0, 0)]


@njit(nogil=True)
def run_end(node, start, last, most):
    """End of the run of one node that begins at ``start``, at most ``most`` samples on."""
    last = min(last, start + most)
    stop = start + 1
    while stop < last and node[stop] == node[start]:
        stop += 1
    return stop
