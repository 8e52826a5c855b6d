"""Checkpoint directories: nothing complete is lost, and nothing unreadable stops a save or goes unnamed."""

import os
import shutil
from pathlib import Path

import pytest

from inf_nerf.errors import InputError
from inf_nerf.train.checkpoint import save_checkpoint
from inf_nerf.train.loop import Work
from inf_nerf.train.manifest import (
    MANIFEST,
    clear_leftovers,
    config_of,
    latest_checkpoint,
    read_manifest,
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
    with pytest.raises(OSError, match="stopped here"):
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
