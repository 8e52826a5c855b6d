"""Stage ``view``: a web viewer of a run or a checkpoint, also while the run is being trained."""

import logging
import socket
import threading
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from inf_nerf.errors import InputError
from inf_nerf.places import Place
from inf_nerf.view.followed import FollowedRun
from pipelines.evaluate import run_of, with_points

INSTALL = 'pip install "inf-nerf[view]"'


def run(run_dir: Place, budget: str = "1GB", host: str = "127.0.0.1", port: int = 8080) -> None:
    """Serve the viewer until it is interrupted.

    ``run_dir`` may also be a checkpoint, and either a URI.  Raises :class:`InputError` where there is nothing to show,
    where the address cannot be used, or where viser is not installed.
    """
    _require_viser()
    from pipelines.viewer.server import viewer

    if not run_dir.is_dir():
        raise InputError(f"The run directory {run_dir} does not exist; make it with inf-nerf prepare and train.")
    followed = FollowedRun(run_dir, budget)
    folder, scene = run_of(run_dir), with_points(followed.checkpoint.scene, run_dir)
    _require_free(host, port)
    console = Console()
    with viewer(followed, scene, folder if isinstance(folder, Path) else None, host, port):
        cache = followed.checkpoint.model.cache
        console.print(
            f"Step {followed.checkpoint.step} of {run_dir}, at most {cache.budget / 1e6:.0f} MB of its nodes in memory."
            f"\nOpen http://{host}:{port} in a browser; Ctrl-C ends.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


def _require_viser() -> None:
    try:
        import viser  # noqa: F401
    except ImportError as error:
        raise InputError(f"The viewer needs the package {error.name}, which is not installed; {INSTALL}.") from error
    logging.getLogger("websockets").setLevel(logging.ERROR)  # a browser that leaves in the middle is no news


def _require_free(host: str, port: int) -> None:
    """viser takes the next free port on its own, which nobody who named one expects."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise InputError(
            f"The viewer cannot answer on {host}:{port} ({error.strerror}); choose others with --host and --port."
        ) from error


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("view")
