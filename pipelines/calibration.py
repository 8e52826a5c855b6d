"""A short training in a process of its own, to learn what a step costs on this machine: seconds and memory.

It trains as a worker would, on a few of its tiles and on as many of its nodes as NODE_BYTES allow; nothing is kept.
"""

import multiprocessing
import statistics
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import psutil
import pyarrow as pa
import torch

from inf_nerf.config import Config
from inf_nerf.octree.partition import Partition
from inf_nerf.octree.topology import ABSENT, BACKGROUND_KEY, Octree
from inf_nerf.scene.scene import Scene
from inf_nerf.train.memory import field_bytes, occupancy_bytes

NODE_BYTES = 1 << 30  # of fields with gradients and moments that a calibration holds
SECONDS = 6.0
SAMPLE_SECONDS = 0.02  # between two looks at the memory


@dataclass(frozen=True)
class Calibration:
    """What was measured."""

    seconds_per_step: float  # of one worker alone on this machine, without exchange between workers
    program_bytes: int  # unique memory of a process that has loaded code and scene
    step_bytes: int  # what steps take beyond that, beside nodes and tiles: activations, compiled code
    rays: int  # of each step
    steps: int
    device: str = "cpu"  # or "cuda"


class PeakMemory:
    """The most unique memory (bytes) that this process has within a ``with`` block, looked at every 20 ms."""

    def __init__(self) -> None:
        self.peak = unique_memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, unique_memory())


def unique_memory(pid: int | None = None) -> int:
    """Bytes that only this process (or ``pid``) holds; the object store, which all share, is not counted."""
    return psutil.Process(pid).memory_full_info().uss


def calibrate(
    config: Config,
    scene: Scene,
    octree: Octree,
    partition: Partition,
    num_ranks: int,
    part: int,
    loads: Mapping[str, Sequence[float]],
    tiles: pa.Table,  # some of the part's, with the column share
    threads: int,
) -> Calibration:
    """Train ``part`` of a partition, one of ``num_ranks`` in its turn, for some seconds in a fresh process."""
    tree = first_nodes(
        octree.restrict(partition.shared | partition.owned[part]), max(1, NODE_BYTES // field_bytes(config, 1))
    )
    kept = frozenset(tree.keys.tolist())
    held = Partition(
        partition.shared & (kept | {BACKGROUND_KEY}),
        tuple(owned & kept for owned in partition.owned),
        tuple(tuple(key for key in roots if key in kept) for roots in partition.roots),
    )
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        whose = num_ranks, part, dict(loads)
        return pool.submit(_train, config, scene, tree, held, *whose, tiles, threads).result()


def first_nodes(octree: Octree, count: int) -> Octree:
    """The coarsest ``count`` nodes of a tree, as if no finer ones had ever been: as FOREIGN ones they would make pixels
    count for less, and more of them would be drawn."""
    kept = octree.restrict(octree.keys[:count].tolist())
    kept.children[octree.children[:count] >= count] = ABSENT
    return kept


def _train(
    config: Config,
    scene: Scene,
    octree: Octree,
    partition: Partition,
    num_ranks: int,
    part: int,
    loads: dict[str, Sequence[float]],
    tiles: pa.Table,
    threads: int,
) -> Calibration:
    import pipelines.train  # noqa: F401  what a worker has loaded
    from inf_nerf.train.assembly import assemble
    from inf_nerf.train.loop import train

    torch.set_num_threads(threads)
    program = unique_memory()
    endless = {"steps": 10**9, "max_seconds": SECONDS, "log_every": 1, "save_every": 10**9, "save_seconds": 1e9}
    alone = endless | {"foreign": "discount"}  # nobody is there to exchange with
    static = {"update_every": 0, "prune_every": 0}
    config = config.model_copy(
        update={"train": config.train.model_copy(update=alone), "octree": config.octree.model_copy(update=static)}
    )
    device = "cuda" if config.train.gpus_per_worker and torch.cuda.is_available() else "cpu"
    rows: list[Mapping[str, Any]] = []
    with PeakMemory() as memory:
        (turn, rank), num_turns = divmod(part, num_ranks), partition.num_ranks // num_ranks
        photos = (lambda: iter([tiles])), None, (0.5, 0.5, 0.5)
        work = assemble(config, scene, octree, partition, rank, *photos, device, turn, num_turns, loads)
        work.rank = 0  # the one that keeps time and log
        train(work, rows.append, lambda _: None, lambda: False)
    each = [after - before for before, after in pairwise([0.0, *(row["seconds"] for row in rows)])]
    nodes = len(work.model.field.keys)
    held = field_bytes(config, nodes) + occupancy_bytes(config, nodes - 1) + work.reservoir.nbytes
    return Calibration(
        seconds_per_step=statistics.median(each[len(each) // 4 :]),
        program_bytes=program,
        step_bytes=max(0, memory.peak - program - held),
        rays=work.num_rays,
        steps=len(rows),
        device=device,
    )
