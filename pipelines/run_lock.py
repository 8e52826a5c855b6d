"""One training at a time in a run directory, its workers included.

The system lets go of a lock when its process ends, however it ends, so none is ever left behind.
"""

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inf_nerf.errors import InputError

LOCK_FILE = ".lock"
WORKERS_FILE = ".workers"
WAIT_SECONDS = 60.0  # for workers whose driver was killed: Ray ends them within seconds

log = logging.getLogger(__name__)


@contextmanager
def run_lock(run_dir: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the run directory's lock; raises :class:`InputError` while another driver or a worker of one holds it.

    ``patience`` are seconds that another driver is given to end.
    """
    deadline = time.monotonic() + patience
    with open(run_dir / LOCK_FILE, "a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                raise InputError(
                    f"Another process is training in {run_dir}; wait until it ends or choose another --output-dir."
                ) from None
            except OSError as error:
                log.warning("%s cannot be locked (%s); train only one run in it at a time.", run_dir, error.strerror)
            break
        _await_workers(run_dir)
        yield


@contextmanager
def at_work(run_dir: Path) -> Iterator[None]:
    """Held by every worker while it may write into the run directory."""
    with open(run_dir / WORKERS_FILE, "a+") as file:
        with suppress(OSError):  # the driver has said that this storage has no locks
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def is_held(run_dir: Path) -> bool:
    """Whether a driver is at work in a run, or nobody can say."""
    try:
        with open(run_dir / LOCK_FILE) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # held, or a storage without locks
        return True
    return False


def _await_workers(run_dir: Path) -> None:
    """Wait until no worker of a driver that was killed is left."""
    deadline = time.monotonic() + WAIT_SECONDS
    with open(run_dir / WORKERS_FILE, "a+") as file:
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"Workers of an earlier training are still at work in {run_dir}; end them or choose another "
                        "--output-dir."
                    ) from None
                time.sleep(0.1)
            except OSError:
                return  # the lock above has said so
