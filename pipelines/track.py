"""Stage ``track``: send what a training could not, because its MLflow store was away, and say where its run is."""

from pathlib import Path

from rich.console import Console

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from pipelines.mlflow_store import (
    RUN_FILE,
    SPOOL_FILE,
    RunReference,
    StoredRun,
    open_client,
    tracking_uri,
    without_password,
)
from pipelines.run_lock import run_lock
from pipelines.spool import AwayError, Spool


def run(run_dir: Path, config: Config) -> int:
    """Send all that waits in ``RUN/mlflow-spool.jsonl`` and return the number of entries.

    The store is the one that recorded the run; if ``config`` names it too, with the user and password that it gives.
    Raises :class:`InputError` where there is no run or the store is away; what was sent until then is not sent again.
    """
    begun = RunReference.read(run_dir)
    if begun is None:
        raise InputError(f"{run_dir} holds no {RUN_FILE}, so no training in it was recorded in MLflow.")
    with run_lock(run_dir):
        spool, sent, refused = Spool(run_dir / SPOOL_FILE), 0, 0
        if len(spool):
            named = tracking_uri(config)
            address = named if without_password(named) == begun.uri else begun.uri
            stored = StoredRun(open_client(address), begun.run_id)
            while entries := spool.peek():
                try:
                    count = stored.send([entry for entry, _ in entries])
                except AwayError as error:
                    raise InputError(
                        f"The MLflow store {begun.uri} cannot be written to ({error}); {sent} entries were sent and "
                        f"{len(spool)} stay in {spool.path}: give the command again when it can."
                    ) from error
                spool.drop(entries[:count])
                sent += count
            refused = stored.left_out
    Console(soft_wrap=True).print(
        f"Sent {sent} entries to run {begun.run_id} in {begun.uri}"
        + (f", which refused {refused} of them." if refused else "."),
        markup=False,
        highlight=False,
    )
    return sent


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("track")
