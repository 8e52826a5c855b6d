"""The newest checkpoint is shown, also when what was open is deleted, and never two in memory."""

import gc
import shutil
import weakref
from pathlib import Path

import fsspec
import pytest
import torch

from inf_nerf.errors import InputError
from inf_nerf.places import place
from inf_nerf.scene.cameras import Rays
from inf_nerf.train.manifest import DamagedError
from inf_nerf.train.opened import StoredCheckpoint
from inf_nerf.view.followed import FollowedRun
from tests.view.trained_run import SAVES, trained_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("followed") / "run")


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    """A run whose training has only made its first checkpoint."""
    shutil.copytree(trained, tmp_path / "run")
    for name in SAVES[1:]:
        shutil.move(tmp_path / "run/checkpoints" / name, tmp_path / name)
    return tmp_path / "run"


def save(run_dir: Path, name: str) -> None:
    shutil.move(run_dir.parent / name, run_dir / "checkpoints" / name)


def colour(checkpoint: StoredCheckpoint) -> torch.Tensor:
    """Of one ray that looks down; reads nodes."""
    ray = Rays(torch.tensor([[0.1, 0.1, 0.9]]), torch.tensor([[0.0, 0, -1]]), torch.tensor([1e-3]), torch.tensor([-1]))
    with torch.no_grad():
        return checkpoint.model.render(ray).rgb


def test_new_checkpoints_are_opened_as_they_come(run_dir: Path) -> None:
    run = FollowedRun(run_dir, "100%")
    assert (run.checkpoint.step, run.advance()) == (4, False)
    before = run.ask(colour)
    save(run_dir, SAVES[1])
    assert run.advance() and run.checkpoint.step == 8
    assert not torch.equal(run.ask(colour), before)
    save(run_dir, SAVES[2])
    assert run.advance() and run.checkpoint.step == 12 and not run.advance()
    run.close()


def test_what_was_deleted_meanwhile_is_answered_by_the_newest(run_dir: Path) -> None:
    run = FollowedRun(run_dir, "100%")
    save(run_dir, SAVES[1])
    shutil.rmtree(run_dir / "checkpoints" / SAVES[0])
    answered = run.ask(colour)
    assert run.checkpoint.step == 8
    assert torch.equal(answered, FollowedRun(run_dir, "100%").ask(colour))


def test_damaged_file_is_an_error_and_a_later_checkpoint_helps(run_dir: Path) -> None:
    run = FollowedRun(run_dir, "100%")
    for file in (run_dir / "checkpoints" / SAVES[0] / "nodes").iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(DamagedError, match="is damaged"):
        run.ask(colour)
    save(run_dir, SAVES[1])
    assert run.advance()
    run.ask(colour)


def test_damaged_new_checkpoint_is_passed_over(run_dir: Path) -> None:
    run = FollowedRun(run_dir, "100%")
    before = run.ask(colour)
    save(run_dir, SAVES[1])
    (run_dir / "checkpoints" / SAVES[1] / "manifest.json").write_text("{}")
    assert not run.advance() and run.checkpoint.step == 4
    assert torch.equal(run.ask(colour), before)


def test_nodes_of_the_checkpoint_before_are_gone_before_new_ones_come(run_dir: Path) -> None:
    run = FollowedRun(run_dir, "100%")
    run.ask(colour)
    cache = weakref.ref(run.checkpoint.model.cache)
    save(run_dir, SAVES[1])
    gc.disable()
    try:
        run.advance()
        assert cache() is None
    finally:
        gc.enable()


def test_budget_changes_and_one_that_holds_nothing_changes_nothing(run_dir: Path) -> None:
    run = FollowedRun(run_dir, "100%")
    size = run.checkpoint.model_bytes
    before = run.ask(colour)
    run.set_budget("50%")
    assert run.checkpoint.model.cache.budget == size // 2
    run.ask(colour)
    assert run.checkpoint.model.cache.resident_bytes <= size // 2
    for wrong, said in (("10B", "does not hold the root"), ("much", "no number of bytes")):
        with pytest.raises(InputError, match=said):
            run.set_budget(wrong)
        assert run.checkpoint.model.cache.budget == size // 2
    run.set_budget("100%")
    assert torch.equal(run.ask(colour), before)


def test_a_checkpoint_that_is_named_is_never_left(run_dir: Path) -> None:
    run = FollowedRun(run_dir / "checkpoints" / SAVES[0], "100%")
    save(run_dir, SAVES[1])
    assert not run.advance() and run.checkpoint.step == 4


def test_run_without_a_checkpoint_is_refused(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    with pytest.raises(InputError, match="no complete checkpoint yet"):
        FollowedRun(run_dir, "100%")


def test_run_behind_a_uri_is_followed_too(run_dir: Path) -> None:
    system = fsspec.filesystem("memory")

    def upload(name: str, folder: Path) -> None:
        for file in folder.rglob("*"):
            if file.is_file():
                system.pipe_file(f"/followed/run/checkpoints/{name}/{file.relative_to(folder)}", file.read_bytes())

    try:
        upload(SAVES[0], run_dir / "checkpoints" / SAVES[0])
        run = FollowedRun(place("memory://followed/run"), "100%")
        assert run.checkpoint.step == 4
        upload(SAVES[1], run_dir.parent / SAVES[1])
        assert run.advance() and run.checkpoint.step == 8
    finally:
        system.rm("/followed", recursive=True)
