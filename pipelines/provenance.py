"""Where a training comes from, as tags that runs are found by: code, data, tree, machine."""

import hashlib
import json
import os
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

from inf_nerf.config import Config
from inf_nerf.field.backends import backend_name
from pipelines.prepare import SOURCES_FILE, Prepared

COMMIT_VARIABLE = "INF_NERF_COMMIT"  # says the commit where a copy of the code has no repository
GIT_SECONDS = 10.0


def provenance(config: Config, run_dir: Path, prepared: Prepared) -> dict[str, str]:
    """Tags of a training on a prepared run."""
    device = "cuda" if config.train.gpus_per_worker else "cpu"
    least, most = config.train.least_workers, config.train.most_workers
    tags = {
        "data.hash": data_hash(run_dir, prepared),
        "octree.hash": prepared.octree.identity,
        "workers": str(config.train.num_workers) if least == most else f"{least}-{most}",
        "backend": backend_name(config.field.backend, device),
        "device": device,
        "version.torch": torch.__version__,
    }
    with suppress(metadata.PackageNotFoundError):
        tags["version.inf_nerf"] = metadata.version("inf-nerf")
    commit = git_commit()
    # the name under which MLflow itself shows a commit
    return tags | ({"git.commit": commit, "mlflow.source.git.commit": commit.removesuffix("+")} if commit else {})


def data_hash(run_dir: Path, prepared: Prepared) -> str:
    """Hash of cameras, split, size of each file, and mean colour of the training photos; equal on any machine."""
    try:
        stamps = json.loads((run_dir / SOURCES_FILE).read_text())
    except (OSError, ValueError):
        stamps = {}
    sizes = sorted((Path(file).name, stamp[0]) for file, stamp in stamps.items() if stamp)
    content = {"scene": prepared.scene.identity, "sizes": sizes, "mean_colour": prepared.mean_colour}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def git_commit() -> str | None:
    """The commit of the code that runs, with a ``+`` if files differ from it; None where no repository tracks it."""
    if os.environ.get(COMMIT_VARIABLE):
        return os.environ[COMMIT_VARIABLE]
    here = Path(__file__)
    if _git(here, "ls-files", "--error-unmatch", here.name) is None:  # installed, perhaps within another repository
        return None
    commit = _git(here, "rev-parse", "HEAD")
    changed = _git(here, "status", "--porcelain", "--untracked-files=no", ":/")
    return commit + ("+" if changed else "") if commit else None


def _git(file: Path, *arguments: str) -> str | None:
    """What git answers about the repository of a file, or None."""
    try:
        done = subprocess.run(
            ["git", "-C", str(file.parent), *arguments], capture_output=True, text=True, timeout=GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
