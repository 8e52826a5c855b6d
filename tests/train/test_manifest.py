"""Checkpoint directories: nothing complete is lost, and nothing unreadable stops a save or goes unnamed."""

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from inf_nerf.errors import InputError
from inf_nerf.train.checkpoint import save_checkpoint
from inf_nerf.train.loop import Work
from inf_nerf.train.manifest import (
    MANIFEST,
    DamagedError,
    clear_leftovers,
    config_of,
    latest_checkpoint,
    read_manifest,
    read_verified,
    set_aside_damaged,
    verify_files,
)
from tests.train.tiny import tiny_config, tiny_octree, tiny_scene, tiny_work


def save(work: Work, run_dir: Path, step: int, val_psnr: float | None = None) -> Path:
    work.progress.step = step
    return save_checkpoint(run_dir, work, tiny_scene(), tiny_octree(), "tiny", val_psnr, False)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint at step 2."""
    return save(tiny_work().work, tmp_path, 2)


def test_every_file_of_a_checkpoint_can_be_verified_beforehand(saved: Path) -> None:
    verify_files(saved)
    file = saved / "optimiser" / "r1.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"optimiser/r1\.safetensors is damaged"):
        verify_files(saved)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    replace(file, bytes(data))


def truncate(file: Path) -> None:
    replace(file, file.read_bytes()[:-9])


def replace(file: Path, data: bytes) -> None:
    """Change one file and not those that are linked with it."""
    file.unlink()
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["nodes/r1.safetensors", "optimiser/bg.safetensors", "ranks/0-of-1.json"])
def test_a_damaged_checkpoint_is_kept_aside_and_the_newest_sound_one_counts(
    tmp_path: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)  # whatever the tests before this one left
    work = tiny_work(tiny_config(train={"keep_checkpoints": 9})).work
    first, second, third = (save(work, tmp_path, step) for step in (1, 2, 3))
    set_aside_damaged(tmp_path)
    assert latest_checkpoint(tmp_path) == third and not caplog.records
    damage(second / name)
    flip(third / MANIFEST)
    damaged = {str(file.relative_to(second)): file.read_bytes() for file in second.rglob("*") if file.is_file()}
    set_aside_damaged(tmp_path)
    assert latest_checkpoint(tmp_path) == first
    aside = {path.name.partition("-")[0]: path for path in first.parent.iterdir()}
    assert aside.keys() == {"00000001", "00000002.damaged", "00000003.damaged"}
    kept = aside["00000002.damaged"]
    assert damaged == {str(file.relative_to(kept)): file.read_bytes() for file in kept.rglob("*") if file.is_file()}
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert MANIFEST in said[0] and f"training goes on from {second}." in said[0]
    assert name in said[1] and kept.name in said[1] and f"training goes on from {first}." in said[1]


def test_with_every_checkpoint_damaged_training_starts_anew_and_says_so(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truncate(saved / "shared.safetensors")
    set_aside_damaged(saved.parent.parent)
    assert latest_checkpoint(saved.parent.parent) is None
    assert "training goes on from the start, because there is no checkpoint before it." in caplog.text


def test_a_file_that_the_disk_cannot_read_is_damaged_and_one_that_may_not_be_read_is_not(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, expected in ((errno.EIO, InputError), (errno.EACCES, PermissionError)):

        def refuse(path: Path, number: int = number) -> bytes:
            raise OSError(number, os.strerror(number), str(path))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", refuse)
            with pytest.raises(expected):
                verify_files(saved)


def test_a_checkpoint_that_a_training_removes_while_it_is_read_is_not_called_damaged(saved: Path) -> None:
    manifest = read_manifest(saved)
    shutil.rmtree(saved)
    with pytest.raises(InputError, match=r"was removed while it was read, .*; give the same command again") as caught:
        read_verified(saved, "nodes/r.safetensors", manifest)
    assert not isinstance(caught.value, DamagedError)


def test_a_checkpoint_of_another_version_is_not_taken_for_a_damaged_one(saved: Path) -> None:
    (saved / MANIFEST).write_text('{"format_version": 99}')
    with pytest.raises(InputError, match="format 99"):
        set_aside_damaged(saved.parent.parent)
    assert saved.is_dir()


def test_a_setting_of_another_version_is_named(saved: Path) -> None:
    manifest = read_manifest(saved)
    assert config_of(saved, manifest) == tiny_config()
    manifest["config"]["sampler"]["tree_depth"] = 7
    with pytest.raises(InputError, match=r"another version of inf-nerf, whose setting 'sampler\.tree_depth'"):
        config_of(saved, manifest)


def test_left_overs_are_cleared_and_no_complete_checkpoint_is_lost(saved: Path) -> None:
    folders = saved.parent
    shutil.copytree(saved, folders / "00000004.partial")
    shutil.copytree(saved, folders / "00000002.replaced")
    shutil.copytree(saved, folders / "00000003.replaced")  # the save of step 3 ended between its two renames
    shutil.copytree(saved, folders / "00000005.superseded-1")
    clear_leftovers(folders.parent)
    assert {path.name for path in folders.iterdir()} == {"00000002", "00000003", "00000005.superseded-1"}
    assert latest_checkpoint(folders.parent) == folders / "00000003"


def test_a_save_of_the_same_step_replaces_the_earlier_one_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, rename = tiny_work().work, os.replace
    final = save(work, tmp_path, 2, 10.0)

    def fail(source: Path, target: Path) -> None:
        if target == final:
            raise OSError("the machine stopped here")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match="stopped here"):
        save(work, tmp_path, 2, 11.0)
    monkeypatch.undo()
    clear_leftovers(tmp_path)
    assert read_manifest(final)["val_psnr"] == 10
    save(work, tmp_path, 2, 12.0)
    assert read_manifest(final)["val_psnr"] == 12
    assert [path.name for path in final.parent.iterdir()] == [final.name]


@pytest.mark.parametrize("damaged", ["{", "[1]", '{"format_version": 99}'])
def test_an_unreadable_older_manifest_is_reported_and_does_not_stop_a_save(
    tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    work = tiny_work(tiny_config(train={"keep_checkpoints": 2})).work
    first = save(work, tmp_path, 1, 10.0)
    (first / MANIFEST).write_text(damaged)
    save(work, tmp_path, 2, 9.0)
    save(work, tmp_path, 3, 8.0)
    assert str(first) in caplog.text
    assert sorted(path.name for path in first.parent.iterdir()) == ["00000002", "00000003"]
