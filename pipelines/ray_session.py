"""The one place where Ray is started, so that every stage starts it alike and once per process."""

import logging
import os
import signal
import threading

import psutil
import ray

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.render.parallel import available_cores

log = logging.getLogger(__name__)

# Ray counts promises, not load: Train workers hold their CPUs while they wait for Ray Data, which then gets none and
# hangs without a word. Declaring every core twice leaves room for the readers.
CPUS_PER_CORE = 2
OBJECT_STORE_SHARE = 0.15  # of the machine's memory
OBJECT_STORE_BYTES = (200 << 20, 4 << 30)  # least and most


def on_cluster() -> bool:
    """Whether there is a cluster to join (``ray job submit`` sets RAY_ADDRESS) rather than a Ray of our own."""
    return bool(os.environ.get("RAY_ADDRESS"))


def session_cpus(config: Config) -> int:
    """CPUs to declare so that the configured workers and their readers fit; more than that are never asked for."""
    workers = config.train.most_workers * config.train.cpus_per_worker
    return max(CPUS_PER_CORE * available_cores(), int(workers) + available_cores() + 1)


def check_workers_fit(config: Config) -> None:
    """Raise :class:`InputError` if the running Ray of our own lacks what the least configured workers hold.

    Ray would wait for ever without a word.  A joined cluster may still grow, so there a warning says what it has now.
    """
    train, available = config.train, ray.cluster_resources()
    if train.num_workers == 0:
        return
    for resource, key in (("CPU", "cpus_per_worker"), ("GPU", "gpus_per_worker")):
        each, have = getattr(train, key), available.get(resource, 0.0)
        if train.least_workers * each <= have:
            continue
        found = f"{train.least_workers} workers with train.{key}={each:g} need more than the {have:g} {resource}s"
        if not on_cluster():
            raise InputError(f"{found} of this machine; lower train.num_workers or train.{key}.")
        log.warning("%s that the cluster has now; training starts when it has grown.", found)


def object_store_bytes() -> int:
    """Most shared memory that a Ray of our own takes for its object store."""
    least, most = OBJECT_STORE_BYTES
    return min(max(int(psutil.virtual_memory().total * OBJECT_STORE_SHARE), least), most)


def start_ray(num_cpus: int | None = None) -> None:
    """Join the cluster named by RAY_ADDRESS or start a quiet Ray on this machine; does nothing if one is running.

    ``num_cpus`` are declared to a Ray of our own; None: each core twice.
    """
    if not ray.is_initialized():
        on_sigterm = signal.getsignal(signal.SIGTERM)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if on_cluster():
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
        else:
            ray.init(
                address="local",
                num_cpus=num_cpus or CPUS_PER_CORE * available_cores(),
                # Without the dashboard's agent Ray Train prints an error every second.
                include_dashboard=True,
                object_store_memory=object_store_bytes(),
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put one of its own in its place
    from ray.data import DataContext  # takes a second, which most that render or plan need not wait

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
