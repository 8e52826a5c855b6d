"""The checkpoint directories of a run: which are complete, what a manifest says, whether files are as they were saved.

A directory named ``<step>`` with a manifest is complete.  Other names are not counted: ``<step>.partial`` is a save
that never ended, ``<step>.replaced`` what an interrupted save was about to replace (:func:`clear_leftovers` puts both
right); ``<step>.superseded-<time>`` is what was trained after the checkpoint that a run went back to, and
``<step>.damaged-<time>`` one with a file that is not as it was saved.  They are kept until somebody deletes them;
renamed to ``<step>`` they count again.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.places import AnyPlace, Place

FORMAT_VERSION = 3  # 3: heads leak below zero
MANIFEST = "manifest.json"
READERS = 8  # threads that verify files

log = logging.getLogger(__name__)


class DamagedError(InputError):
    """A file of a checkpoint is not as it was saved."""


def checkpoints_dir(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def latest_checkpoint(run_dir: AnyPlace) -> AnyPlace | None:
    """The newest complete checkpoint of a run, or None."""
    return next(reversed(_complete(run_dir)), None)


def checkpoint_of_step(run_dir: Place, step: int) -> Place:
    """Where the checkpoint of a step lies, if there is one."""
    return run_dir / "checkpoints" / f"{step:08d}"


def best_checkpoint(run_dir: AnyPlace) -> AnyPlace:
    """The complete checkpoint of a run that val photos like best; :class:`InputError` where none was scored."""
    best = max(_scores(run_dir).items(), key=lambda found: found[1], default=None)
    if best is None:
        raise InputError(
            f"No checkpoint in {run_dir} was scored by val photos, so none is the best; take the latest, or give the "
            "next training val photos (scene.val_every)."
        )
    return best[0]


def read_manifest(path: Place) -> dict[str, Any]:
    """The manifest of a checkpoint directory, checked for its version and its own hash; files are checked when read."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if not isinstance(manifest, dict):
            raise ValueError(f"a {type(manifest).__name__} where an object was saved")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} is not a complete checkpoint (it has no {MANIFEST}); name another one.") from None
    except ValueError:
        raise DamagedError(
            f"{path / MANIFEST} is damaged (not a JSON object); delete {path} to use the checkpoint before it."
        ) from None
    if manifest.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path} has checkpoint format {manifest.get('format_version')}, this version reads {FORMAT_VERSION}; "
            "use the version of inf-nerf that wrote it or train again in another --output-dir."
        )
    if manifest.get("digest") != digest_of(manifest):
        raise DamagedError(
            f"{path / MANIFEST} is damaged (another hash was saved); delete {path} to use the checkpoint before it."
        )
    return manifest


def config_of(path: Place, manifest: dict[str, Any]) -> Config:
    """The configuration in a checkpoint's manifest; :class:`InputError` where this version cannot use it."""
    try:
        return Config.model_validate(manifest["config"])
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise InputError(
            f"{path} was saved by another version of inf-nerf, whose setting {key!r} this one cannot use; "
            "use that version or train again in another --output-dir."
        ) from error


def verify_files(path: Path) -> None:
    """Read every file of a checkpoint; raises :class:`DamagedError` naming the first that is not as it was saved."""
    manifest = read_manifest(path)
    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(lambda name: len(read_verified(path, name, manifest)), manifest["files"]):
            pass


def set_aside_damaged(run_dir: Path) -> None:
    """Verify the newest checkpoint, and rename it and go on to the one before it until one is as it was saved."""
    while (newest := latest_checkpoint(run_dir)) is not None:
        try:
            return verify_files(newest)
        except DamagedError as error:
            set_aside(newest, error)


def set_aside(path: Path, error: DamagedError) -> None:
    """Keep a damaged checkpoint under a name that does not count, and say so."""
    aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
    os.replace(path, aside)
    before = latest_checkpoint(path.parent.parent)
    log.warning(
        "%s; it is kept as %s, and training goes on from %s.",
        str(error).rpartition("; ")[0],
        aside.name,
        before or "the start, because there is no checkpoint before it",
    )


def clear_leftovers(run_dir: Path) -> None:
    """Remove what interrupted saves left behind; nobody may be saving meanwhile."""
    for replaced in checkpoints_dir(run_dir).glob("*.replaced"):
        final = replaced.with_suffix("")
        if final.exists():
            shutil.rmtree(replaced)
        else:
            os.replace(replaced, final)  # the save ended between its two renames
    for partial in checkpoints_dir(run_dir).glob("*.partial"):
        shutil.rmtree(partial)


def read_verified(path: Place, name: str, manifest: dict[str, Any]) -> bytes:
    """Content of a file whose size and hash agree with the manifest."""
    expected = manifest["files"].get(name)
    if expected is None:
        raise InputError(
            f"{path / MANIFEST} does not list {name}; the checkpoint belongs to another tree, name another."
        )
    file = path / name
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        if not (path / MANIFEST).is_file():
            raise InputError(
                f"{path} was removed while it was read, as a training removes checkpoints when it has saved newer "
                "ones; give the same command again, or copy the directory first."
            ) from None
        data = b""
    except OSError as error:
        if error.errno != errno.EIO:  # which is how a disk says that it cannot read what is there
            raise
        data = b""
    if len(data) != expected["bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise DamagedError(
            f"{file} is damaged ({len(data)} bytes where {expected['bytes']} with another hash were saved); "
            f"delete {path} to use the checkpoint before it."
        )
    return data


def digest_of(manifest: dict[str, Any]) -> str:
    """Hash of all that a manifest says but the time taken and where the photos are, which may move."""
    content = {key: value for key, value in manifest.items() if key not in ("seconds", "root", "digest")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def put_in_place(partial: Path, final: Path) -> None:
    """Rename a finished save; an earlier one of the same step is gone only when the new one is there."""
    replaced = final.with_name(final.name + ".replaced")
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(final, replaced)
    try:
        os.replace(partial, final)
    except OSError:
        if replaced.exists():
            os.replace(replaced, final)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _complete(run_dir: Place) -> list[Any]:
    """Complete checkpoints in the order of their steps, places of the kind that ``run_dir`` is."""
    folder = run_dir / "checkpoints"
    paths = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return sorted((path for path in paths if (path / MANIFEST).is_file()), key=lambda path: int(path.name))


def forget_old(run_dir: Path, keep: int) -> None:
    """Delete all but the newest checkpoints and the one that val photos like best."""
    scores = _scores(run_dir)
    best = max(scores, key=lambda path: scores[path], default=None)
    for path in _complete(run_dir)[:-keep]:
        if path != best:
            dropped = path.with_name(path.name + ".partial")  # what is half deleted must not count
            os.replace(path, dropped)
            shutil.rmtree(dropped, ignore_errors=True)


def _scores(run_dir: Place) -> dict[Any, float]:
    """PSNR of the val rays of the complete checkpoints that have one, in the order of their steps."""
    return {path: score for path in _complete(run_dir) if (score := _val_psnr(path)) is not None}


def _val_psnr(path: Place) -> float | None:
    """The score of a checkpoint, or None where it has none or cannot be read, which must not stop a save."""
    try:
        return read_manifest(path)["val_psnr"]
    except InputError as error:
        log.warning("%s", error)
        return None
