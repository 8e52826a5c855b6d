"""Traces of some steps by torch's profiler: which operation took how long on which thread or stream.

A file ``RUN/profiler/rank<r>.<time>.pt.trace.json`` for every recorded stretch; chrome://tracing, Perfetto and
TensorBoard open it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

from inf_nerf.config import TrainConfig

FOLDER = "profiler"


@contextmanager
def traced(config: TrainConfig, run_dir: Path, rank: int) -> Iterator[Callable[[], None]]:
    """Records the steps of the block that ``profiler_schedule`` names; what it yields is called after every step.

    Without ``profiler`` it does nothing.  After the last repetition nothing is recorded any more.
    """
    if not config.profiler:
        yield lambda: None
        return
    wait, warmup, active, repeat = config.profiler_schedule
    with profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])],
        schedule=schedule(wait=wait, warmup=warmup, active=active, repeat=repeat),
        on_trace_ready=tensorboard_trace_handler(str(run_dir / FOLDER), f"rank{rank}"),
        record_shapes=True,
        with_stack=True,
    ) as profiler:
        yield profiler.step
