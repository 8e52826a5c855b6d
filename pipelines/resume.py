"""What a training continues from, and what may be different when it does.

Without ``--resume`` a run goes on from its own newest checkpoint, with the configuration that it was begun with.
``--resume`` allows another training on the same photos, tree and fields, from the newest checkpoint, the best or an
earlier one (later ones are kept as ``<step>.superseded-<time>``), or one of another run of which this directory has
none yet.  A run that was prepared like another one, on more photos, may begin from a checkpoint of that.
"""

import os
import time
from pathlib import Path

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.train.manifest import (
    best_checkpoint,
    checkpoints_dir,
    config_of,
    latest_checkpoint,
    read_manifest,
    verify_files,
)
from pipelines import prepare

# keys that may differ between the parts of one run: they do not change what is learned
OPERATIONAL = ("tracking.", "render.", "eval.", "debug.", "monitor.", "profile.")
OPERATIONAL += (
    "train.num_workers",
    "train.cpus_per_worker",
    "train.gpus_per_worker",
    "train.node_memory_mb",
    "train.turn_steps",
    "field.backend",
    "train.log_every",
    "train.save_",
    "train.keep_",
    "train.eval_",
    "train.picture_",
    "train.profiler",
    "train.max_failures",
    "train.collective_",
    "train.resize_",
)
# keys that --resume may change on purpose, for example to train longer, but for those that shape tiles or checkpoints
RESUMABLE = ("train.", "loss.", "data.", "sampler.", "octree.")
FIXED = (*prepare.TILE_KEYS, "sampler.occupancy_res")
REMEDY = (
    "on --resume train, loss, data and sampler keys and those by which the octree adapts may change, but not "
    "data.tile_size and sampler.occupancy_res"
)


def starting_point(config: Config, run_dir: Path, resume: str | None) -> Path | None:
    """The checkpoint to continue from, or None to start; changes nothing.

    Raises :class:`InputError` where ``resume`` names none that fits or one that is damaged, or ``config`` is not the
    checkpoint's.
    """
    newest = latest_checkpoint(run_dir)
    if resume is None:
        if newest is not None:
            _refuse_change(config, newest, (), "use another --output-dir, or --resume latest to change the training")
        return newest
    if newest is None and resume in ("latest", "best"):
        raise InputError(f"{run_dir} holds no complete checkpoint to resume; leave --resume out to start.")
    start = newest if resume == "latest" else best_checkpoint(run_dir) if resume == "best" else Path(resume).resolve()
    assert start is not None
    if not (start / "manifest.json").exists():
        nested = latest_checkpoint(start)
        if nested is None:
            raise InputError(f"{start} is neither a checkpoint nor a run directory with one; correct --resume.")
        start = nested
    if not _is_own(start, run_dir):
        if newest is not None:
            raise InputError(
                f"{run_dir} has checkpoints of its own up to {newest.name}, so it cannot start from {start}; "
                "leave --resume out to continue it, or choose another --output-dir."
            )
    elif not start.name.isdigit():
        step = f"{read_manifest(start)['step']:08d}"
        raise InputError(f"{start} does not count as a checkpoint of the run; rename it to {step} to resume it.")
    _refuse_change(config, start, RESUMABLE, REMEDY)
    if resume != "latest":
        verify_files(start)
    return start


def budget_from(config: Config, start: Path | None) -> tuple[int, float]:
    """Step and seconds at which the budget of a training begins that goes on from ``start``: at 0, but for a subtree
    that is trained again at ``start``, unless ``start`` is in the middle of doing that."""
    if start is None or config.train.subtree is None:
        return 0, 0.0
    manifest = read_manifest(start)
    if config_of(start, manifest).train.subtree == config.train.subtree and not manifest["complete"]:
        step, seconds = manifest["budget_from"]
        return step, seconds
    return manifest["step"], manifest["seconds"]


def refuse_unfit(start: Path, prepared: prepare.Prepared, run_dir: Path) -> None:
    """Raise :class:`InputError` where a checkpoint is of other photos or another tree than the run has, and than those
    that it was prepared like."""
    if read_manifest(start)["identity"] not in (prepared.identity, *prepared.ancestors):
        raise InputError(
            f"{start} belongs to other photos or another tree than {run_dir}; resume a checkpoint of it, or prepare "
            "another run with --like."
        )


def set_aside_later(start: Path, run_dir: Path) -> None:
    """Keep under another name what was trained after ``start``, so that ``start`` is the newest of the run."""
    if _is_own(start, run_dir):
        for later in checkpoints_dir(run_dir).iterdir():
            if later.name.isdigit() and int(later.name) > int(start.name):
                os.replace(later, later.with_name(f"{later.name}.superseded-{int(time.time())}"))


def _is_own(start: Path, run_dir: Path) -> bool:
    return start.resolve().parent == checkpoints_dir(run_dir).resolve()


def _refuse_change(config: Config, checkpoint: Path, allowed: tuple[str, ...], remedy: str) -> None:
    before, now = config_of(checkpoint, read_manifest(checkpoint)).flat(), config.flat()
    if now["train.epochs"] is not None and before["train.epochs"] == now["train.epochs"]:
        allowed = (*allowed, "train.steps")  # which the epochs of the photos will say
    for key, value in now.items():
        may_change = key.startswith(OPERATIONAL + allowed) and not key.startswith(FIXED)
        if before[key] != value and not may_change:
            raise InputError(
                f"{key} is {value!r}, but the run in {checkpoint.parent.parent} was made with {before[key]!r}; "
                f"{remedy}."
            )
