"""A save that fails on one rank fails on all, in a sentence and not by a timeout; the one before it is untouched."""

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from inf_nerf.errors import InputError, NotFiniteError
from inf_nerf.train import checkpoint
from inf_nerf.train.checkpoint import restore, save_checkpoint
from inf_nerf.train.loop import Work
from inf_nerf.train.manifest import latest_checkpoint, verify_files
from tests.train.ranks import run_ranks
from tests.train.tiny import tiny_config, tiny_octree, tiny_scene, tiny_work

CONFIG = tiny_config(train={"keep_checkpoints": 9})
FAULTS = ("a node of rank 1", "the list of rank 1", "the folders", "the manifest", "the rename", "a value of rank 1")


def save(work: Work, run_dir: Path, step: int) -> Path:
    work.progress.step = step
    return save_checkpoint(run_dir, work, tiny_scene(), tiny_octree(), "tiny", None, False)


def learn(work: Work) -> None:
    """Change every node, or its file would be linked rather than written."""
    work.model.field.tables.detach().mul_(0.999)
    work.model.field.density_weights.detach().mul_(0.999)


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def fault(name: str, rank: int, work: Work) -> Iterator[None]:
    """Something of one rank alone goes wrong."""
    with pytest.MonkeyPatch.context() as patch:
        if name == "a node of rank 1" and rank == 1:
            written, sync = [], os.fsync

            def fill(descriptor: int) -> None:
                written.append(descriptor)
                if len(written) > 2:
                    full()
                sync(descriptor)

            patch.setattr(os, "fsync", fill)
        elif name == "the list of rank 1" and rank == 1:
            patch.setattr(checkpoint, "write_atomic", full)
        elif name == "the folders" and rank == 0:
            patch.setattr(Path, "mkdir", full)
        elif name == "the manifest" and rank == 0:
            whole = checkpoint.write_atomic
            patch.setattr(
                checkpoint,
                "write_atomic",
                lambda path, data: full() if path.name == "manifest.json" else whole(path, data),
            )
        elif name == "the rename" and rank == 0:
            patch.setattr(checkpoint, "put_in_place", full)
        elif name == "a value of rank 1" and rank == 1:
            own = int(torch.nonzero(~work.shared)[0])
            work.model.field.tables.detach()[own, 0] = torch.inf
        yield


def failing_saves(rank: int, where: Path) -> list[tuple[str, str, float]]:
    """A good checkpoint, a save with every fault, and a good one after each: kind, sentence, and seconds it took."""
    work = tiny_work(CONFIG, 2, rank).work
    found = []
    for index, name in enumerate(FAULTS):
        good = save(work, where / name, 2)
        started = time.monotonic()
        learn(work)
        with fault(name, rank, work):
            try:
                save(work, where / name, 4)
                found.append(("nothing", "", 0.0))
            except InputError as error:
                found.append((type(error).__name__, str(error), time.monotonic() - started))
        if rank == 0:
            assert [path.name for path in good.parent.iterdir()] == [good.name], index
            verify_files(good)
        restore(work, good)
        assert save(work, where / name, 6).is_dir()
    return found


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[tuple[str, str, float]]]:
    return run_ranks(2, failing_saves, tmp_path_factory.mktemp("failing"))


@pytest.mark.parametrize("name", FAULTS)
def test_all_ranks_give_up_together_and_the_checkpoint_before_is_untouched(two_ranks: Any, name: str) -> None:
    (kind, said, seconds), other = (rank[FAULTS.index(name)] for rank in two_ranks)
    assert (kind, said) == other[:2]
    assert max(seconds, other[2]) < 20  # a timeout takes 60
    assert said.endswith(".") and "\n" not in said
    if name == "a value of rank 1":
        assert kind == NotFiniteError.__name__
        assert "not a finite number after step 4, so nothing was saved; give --resume latest" in said
    else:
        assert "checkpoint of step 4 could not be saved" in said
        assert "(No space left on device); the one before it is untouched: " in said


def test_a_disk_that_is_really_full_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    work = tiny_work(CONFIG).work
    size = sum(file.stat().st_size for file in save(work, tmp_path / "measured", 2).rglob("*") if file.is_file())
    options = f"size={size // 1024 * 3 // 2 + 200}k"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        good = save(work, disk / "run", 2)
        learn(work)
        with pytest.raises(InputError, match=r"step 4 could not be saved .*\(No space left on device\)"):
            save(work, disk / "run", 4)
        assert latest_checkpoint(disk / "run") == good
        assert [path.name for path in good.parent.iterdir()] == [good.name]
        verify_files(good)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
