"""What a process may name that Ray runs as a job (``ray job submit``).

A job's working directory is a copy of what was uploaded: no other job has it, it is deleted some time after the job,
and nodes have copies of their own.  What is kept, or found again by the next job, needs an absolute path on storage
that all nodes share.
"""

import os
import re
from pathlib import Path

from inf_nerf.errors import InputError

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # so it is called; Ray sets it for the driver of a job and nowhere else
URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):/")  # `Path` has made one slash of two


def in_job() -> bool:
    """Whether Ray's job manager started this process."""
    return JOB_VARIABLE in os.environ


def folder(option: str, path: Path) -> Path:
    """The folder that a command-line option names.

    Raises :class:`InputError` for the URI of anything but a folder, and for a relative path in a job.
    """
    uri = URI.match(str(path))
    if uri is not None and uri["scheme"] == "file":
        return Path(str(path).removeprefix("file:"))
    if uri is not None:
        raise InputError(
            f"{option} is {uri['scheme']}://{str(path)[uri.end() :]}, but what is read again and locked while it is "
            "written has to be a folder; mount the store on every node and name the folder."
        )
    if in_job() and not path.is_absolute():
        raise InputError(
            f"{option} is {path}, relative to the working directory of this job, which is temporary; give an absolute "
            "path on storage that all nodes share."
        )
    return path


def refuse_temporary_store(uri: str, is_default: bool) -> None:
    """Raise :class:`InputError` in a job for an MLflow database in its working directory."""
    scheme, _, path = uri.partition("://")
    if not in_job() or not scheme.startswith("sqlite") or not (is_default or not path.startswith("//")):
        return
    found = "is not set, and its default database" if is_default else f"is {uri}, which"
    raise InputError(
        f"tracking.uri {found} lies in the working directory of this job, which is temporary; set it to a tracking "
        "server or to an absolute path on storage that all nodes share (sqlite:////mnt/...), or train with --set "
        "tracking.enabled=false."
    )
