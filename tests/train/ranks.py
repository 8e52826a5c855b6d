"""Runs a function as several ranks of a gloo group: real processes, a file to meet, no Ray."""

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

TIMEOUT = timedelta(seconds=120)


def run_ranks(num_ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call ``function(rank, *args)`` in ``num_ranks`` fresh processes that can talk; returns what they returned.

    ``function`` must be importable by name.  An exception in any of them is raised here.
    """
    # Processes are copies of one that has imported what takes seconds and has done nothing else.
    multiprocessing.set_forkserver_preload(["pytest", "torch._dynamo", "tests.train.tiny"])
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(  # type: ignore[attr-defined]
            _enter, (num_ranks, folder, function, args), nprocs=num_ranks, start_method="forkserver"
        )
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(num_ranks)]


def _enter(rank: int, num_ranks: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=num_ranks, timeout=TIMEOUT)
    try:
        torch.save(function(rank, *args), Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()
