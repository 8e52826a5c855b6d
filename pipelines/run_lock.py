"""One training at a time in a run directory."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inf_nerf.errors import InputError

LOCK_FILE = ".lock"

log = logging.getLogger(__name__)


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold the run directory's lock; raises :class:`InputError` while another process holds it.

    The system lets go of it when the process ends, however it ends, so a lock is never left behind.
    """
    with open(run_dir / LOCK_FILE, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"Another process is training in {run_dir}; wait until it ends or choose another --output-dir."
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s); train only one run in it at a time.", run_dir, error.strerror)
        yield
