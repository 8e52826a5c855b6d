"""How many trials may run at a time so that each gets all it needs: Ray would let them wait for each other for ever.

A direct trial is one process.  A trial with Ray Train is a driver, which waits and needs no CPU, and its workers, which
hold theirs while Ray Data needs another one to bring them tiles.
"""

import logging
import math
from collections.abc import Mapping, Sequence

import ray

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.render.parallel import available_cores
from pipelines.ray_session import on_cluster

DRIVER_BYTES = 64 << 20  # that the driver of a trial with Ray Train asks for: Ray wants it to ask for something
READER_CPUS = 1.0

Node = Mapping[str, float]  # "CPU" and "GPU" that it has

log = logging.getLogger(__name__)


def resources_of(config: Config, kind: str) -> dict[str, float]:
    """What Ray Tune asks for each trial."""
    train = config.train
    if kind == "trainer":
        return {"memory": DRIVER_BYTES}
    return {"CPU": train.cpus_per_worker} | ({"GPU": train.gpus_per_worker} if train.gpus_per_worker else {})


def max_concurrent(config: Config, kind: str, nodes: Sequence[Node]) -> int:
    """The number of trials that ``nodes`` hold together.

    Where they hold not even one, a joined cluster may still grow, so there it is 1 and a warning; on a Ray of our own
    :class:`InputError`.
    """
    train = config.train
    processes = train.most_workers if kind == "trainer" else 1
    places = [_places_on(node, train.cpus_per_worker, train.gpus_per_worker) for node in nodes]
    left = _places_for_readers(nodes, places, train.cpus_per_worker) if kind == "trainer" else 0
    count = (sum(places) - left) // processes
    if count <= 0:
        has = " and ".join(f"{sum(node.get(name, 0.0) for node in nodes):g} {name}s" for name in ("CPU", "GPU"))
        found = (
            f"A trial needs {processes} processes with train.cpus_per_worker={train.cpus_per_worker:g} and "
            f"train.gpus_per_worker={train.gpus_per_worker:g}, more than {has} hold"
        )
        if not on_cluster():
            raise InputError(f"{found}; lower them or train.num_workers.")
        log.warning("%s now; trials run one by one and start when the cluster has grown.", found)
    return max(1, count)


def nodes_for_trials(config: Config, kind: str) -> list[Node]:
    """The nodes of the running Ray; one of our own declares more CPUs than there are cores, which do the work."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if on_cluster():
        return nodes
    cores = float(available_cores())
    if kind == "trainer":  # one trial may have more workers than there are cores, as one training may
        cores = max(cores, config.train.most_workers * config.train.cpus_per_worker) + READER_CPUS
    return [{**node, "CPU": min(node.get("CPU", 0.0), cores)} for node in nodes]


def _places_on(node: Node, cpus: float, gpus: float) -> int:
    """How many processes a node holds; a process never spans two."""
    counts = [node.get("CPU", 0.0) / cpus] + ([node.get("GPU", 0.0) / gpus] if gpus else [])
    return math.floor(min(counts) + 1e-9)


def _places_for_readers(nodes: Sequence[Node], places: Sequence[int], cpus: float) -> int:
    """Places that stay empty so that, however Ray fills the others, one node has a CPU for what brings tiles."""
    if any(node.get("CPU", 0.0) - count * cpus >= READER_CPUS for node, count in zip(nodes, places, strict=True)):
        return 0
    needed = math.ceil(READER_CPUS / cpus)  # on one node; with fewer empty than this they may be spread over all
    return len(nodes) * (needed - 1) + 1
