"""What ends one rank alone is said once and ends the others at once; what Ray may try again is left to Ray."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from inf_nerf.errors import InputError
from inf_nerf.train.checkpoint import restore, save_checkpoint
from inf_nerf.train.loop import Work
from inf_nerf.train.manifest import DamagedError
from pipelines import worker
from tests.train.ranks import run_ranks
from tests.train.tiny import tiny_config, tiny_octree, tiny_scene, tiny_work

PROBLEMS = {
    "bad input": InputError("The tiles of rank 1 are damaged; run inf-nerf prepare again."),
    "a full disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "a fault": RuntimeError("a fault of the program"),
}


def meet_alone(rank: int, where: Path) -> dict[str, tuple[str | None, str, float]]:
    """Rank 1 meets each problem while rank 0 waits in a collective: what each returns and raises, and its seconds."""
    found: dict[str, tuple[str | None, str, float]] = {}
    for number, (name, problem) in enumerate(PROBLEMS.items()):
        if number:  # the problem before has ended the group
            meet = f"file://{where}/meet-{number}"
            dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
        run_dir = where / name
        run_dir.mkdir(exist_ok=True)

        def train(settings: dict[str, Any], problem: Exception = problem) -> None:
            dist.barrier()
            if rank == 1:
                raise problem
            dist.all_reduce(torch.zeros(1))

        worker._train = train
        started, returned, raised = time.monotonic(), None, ""
        try:
            returned = worker.train_worker({"run_dir": run_dir})
        except Exception as error:
            raised = type(error).__name__
            if dist.is_initialized():
                dist.destroy_process_group()  # Ray ends the process
        found[name] = returned, raised, time.monotonic() - started
        if rank == 0 and dist.is_initialized():
            dist.destroy_process_group()
    meet = f"file://{where}/meet-last"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    return found


def test_the_sentence_of_one_rank_reaches_all_and_a_fault_is_left_to_ray(tmp_path: Path) -> None:
    ranks = run_ranks(2, meet_alone, tmp_path)
    for found in ranks:
        assert found["bad input"][:2] == (str(PROBLEMS["bad input"]), "")
        said, raised, _ = found["a full disk"]
        assert said is not None and "no room left (No space left on device)" in said and raised == ""
        assert found["a fault"][0] is None
        assert all(seconds < 20 for _, _, seconds in found.values())
    assert ranks[0]["a full disk"][0] == ranks[1]["a full disk"][0]
    assert ranks[1]["a fault"][1] == "RuntimeError" and ranks[0]["a fault"][1]


def test_a_worker_that_is_started_again_after_a_problem_for_good_repeats_its_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_train", lambda settings: pytest.fail("nothing is trained"))
    (tmp_path / worker.PROBLEM_FILE).write_text("The disk is full; make room.")
    assert worker.train_worker({"run_dir": tmp_path}) == "The disk is full; make room."


def damaged_for_one(rank: int, where: Path) -> tuple[int, list[str]]:
    """A file that only rank 1 reads is damaged in the newest checkpoint: the step that each continues from."""
    work = tiny_work(tiny_config(train={"keep_checkpoints": 9}), 2, rank).work
    for step in (2, 4):
        work.progress.step = step
        newest = save_checkpoint(where, work, tiny_scene(), tiny_octree(), "tiny", None, False)
    if rank == 1:
        (newest / "ranks/1-of-2.json").unlink()  # it may be linked with the one before
        (newest / "ranks/1-of-2.json").write_bytes(b"{")

    def ready(start: Path | None) -> Work:
        assert start is not None
        restore(work, start)
        return work

    worker._from_newest(where, None, rank, ready)
    return work.progress.step, sorted(path.name.partition("-")[0] for path in newest.parent.iterdir())


def test_a_checkpoint_that_is_damaged_for_one_rank_is_set_aside_by_all(tmp_path: Path) -> None:
    assert run_ranks(2, damaged_for_one, tmp_path) == [(2, ["00000002", "00000004.damaged"])] * 2


def test_a_checkpoint_that_training_began_from_and_that_is_gone_is_no_reason_to_start_anew(tmp_path: Path) -> None:
    begun = tmp_path / "other/checkpoints/00000004"
    with pytest.raises(InputError, match=r"00000004, from which the training began, is gone, and .*run holds no"):
        worker._from_newest(tmp_path / "run", begun, 0, lambda start: tiny_work().work)


@pytest.mark.parametrize("subtree", [None, "r0"])
def test_without_a_sound_checkpoint_a_whole_tree_starts_anew_and_a_subtree_does_not(
    tmp_path: Path, subtree: str | None
) -> None:
    whole = tiny_work().work
    begun = save_checkpoint(tmp_path, whole, tiny_scene(), tiny_octree(), "tiny", None, False)
    config, started = tiny_config(train={"subtree": subtree}), []

    def ready(start: Path | None) -> Work:
        if start is not None:
            raise DamagedError("r.safetensors is damaged; delete it.")
        if subtree is not None:
            return worker._ready({"config": config, "start": begun}, *[None] * 4, start)  # type: ignore[arg-type]
        started.append(start)
        return whole

    if subtree is None:
        assert worker._from_newest(tmp_path, begun, 0, ready) is whole and started == [None]
    else:
        with pytest.raises(InputError, match="subtree r0 is trained again is damaged, and the run holds no"):
            worker._from_newest(tmp_path, begun, 0, ready)
    assert [path.name.partition("-")[0] for path in begun.parent.iterdir()] == ["00000000.damaged"]


def test_a_worker_holds_no_library_that_only_draws() -> None:
    listed = "import sys, pipelines.worker; print({name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True).stdout
    assert "'torch'" in loaded
    assert "'matplotlib'" not in loaded and "'mlflow'" not in loaded
