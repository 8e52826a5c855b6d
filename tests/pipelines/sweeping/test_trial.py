"""A trial is an ordinary training on tiles that it only reads; it continues where it was, and says what went wrong."""

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from inf_nerf.train.manifest import latest_checkpoint, read_manifest
from pipelines import evaluate, prepare, synth
from pipelines.run_lock import run_lock
from pipelines.sweeping import trial
from pipelines.sweeping.journal import Report
from pipelines.sweeping.trial import make_run, run_trial, train_direct
from tests.pipelines.small_city import cut_here

CONFIG = load_config(overrides=[
    "field.num_levels=4", "field.log2_table_size=9", "field.max_res=16", "field.hidden_density=16",
    "field.hidden_color=16", "field.appearance_dim=4", "octree.num_levels=2", "octree.min_points=4",
    "scene.pyramid_levels=2", "scene.val_every=5", "data.tile_size=16", "sampler.max_samples=32",
    "sampler.occupancy_res=8", "train.num_workers=0", "train.batch_size=64", "train.steps=8", "train.log_every=1",
    "train.val_rays=32", "train.save_every=2", "train.keep_checkpoints=9", "eval.right_half=false",
    "tracking.enabled=false",
])  # fmt: skip


def changed(*overrides: str) -> Config:
    return load_config(None, overrides, base=CONFIG.model_dump(mode="json"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    synth.run(folder / "city", blocks=1, photos=12, size=48, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_cut_by_ray", cut_here)
        prepare.run(CONFIG, folder / "city", folder / "run")
    return folder / "run"


@pytest.fixture
def run_dir(prepared: Path, tmp_path: Path) -> Path:
    make_run(CONFIG, prepared, tmp_path / "trials" / "003")
    return tmp_path / "trials" / "003"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Tune hears."""
    heard: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "report", heard.append)
    return heard


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(run_dir: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "rays_per_second", "memory_mb", "shared_gradient_share", "idle_share", "seconds_imbalance")
    timed += ("data_share", "run", "time_share", "host_memory", "device_memory", "device_busy", "slowest_rank")
    return [{key: value for key, value in row.items() if key not in timed} for row in found]


def test_a_direct_trial_reports_at_every_save_and_is_a_run_to_be_evaluated(run_dir: Path, prepared: Path) -> None:
    before = content(prepared)
    reports: list[Report] = []
    train_direct(CONFIG, run_dir, reports.append)
    assert [(report.step, report.progress) for report in reports] == [(2, 0.25), (4, 0.5), (6, 0.75), (8, 1.0)]
    newest = latest_checkpoint(run_dir)
    assert newest is not None and read_manifest(newest)["complete"]
    assert read_manifest(newest)["val_psnr"] == reports[-1].val_psnr
    assert 5 < reports[-1].val_psnr < 40
    assert [row["step"] for row in rows(run_dir)] == [*range(1, 9)]
    assert evaluate.run(run_dir)["psnr"] > 5
    assert content(prepared) == before
    assert not (run_dir / "tiles").resolve().is_relative_to(run_dir)


def test_a_run_directory_with_its_links_may_be_moved(prepared: Path, tmp_path: Path) -> None:
    both = tmp_path / "sweep"
    both.mkdir()
    moved = both / "prepared"
    prepared.rename(moved)
    make_run(CONFIG, moved, both / "trials" / "000")
    both.rename(tmp_path / "elsewhere")
    try:
        assert prepare.read_prepared(tmp_path / "elsewhere" / "trials" / "000").num_tiles > 0
    finally:
        (tmp_path / "elsewhere" / "prepared").rename(prepared)


class Interrupted(Exception):
    pass


def test_an_interrupted_trial_goes_on_as_if_nothing_had_happened(run_dir: Path, prepared: Path, tmp_path: Path) -> None:
    def stop_at_four(report: Report) -> None:
        if report.step == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_direct(CONFIG, run_dir, stop_at_four)
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write('{"step": 5}\n')  # a step that was not saved
    make_run(CONFIG, prepared, run_dir)
    reports: list[Report] = []
    train_direct(CONFIG, run_dir, reports.append)
    assert [report.step for report in reports] == [6, 8]
    whole = tmp_path / "whole"
    make_run(CONFIG, prepared, whole)
    train_direct(CONFIG, whole, lambda report: None)
    assert rows(run_dir) == rows(whole)
    ends = [latest_checkpoint(folder) for folder in (run_dir, whole)]
    assert len({read_manifest(end)["digest"] for end in ends if end is not None}) == 1


def test_tune_hears_of_the_newest_checkpoint_first_and_a_complete_one_is_not_trained(
    run_dir: Path, said: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_trial({"trial": 3}, run_dir.parent, "direct")
    assert [row["step"] for row in said] == [2, 4, 6, 8]
    last = dict(said[-1])
    said.clear()
    monkeypatch.setattr(trial, "train_direct", lambda *given: pytest.fail("trained again"))
    run_trial({"trial": 3}, run_dir.parent, "direct")
    assert [(row["step"], row["progress"], row["val_psnr"]) for row in said] == [(8, 1.0, last["val_psnr"])]


def test_what_a_trial_cannot_do_is_said_in_a_sentence(
    run_dir: Path, prepared: Path, said: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(changed("train.lr_init=1e30", "train.grad_clip=0"), prepared, run_dir)
    run_trial({"trial": 3}, run_dir.parent, "direct")
    assert "not a finite number" in said[-1]["problem"]
    assert math.isnan(said[-1]["val_psnr"])

    def fault(*given: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(trial, "train_direct", fault)
    run_trial({"trial": 3}, run_dir.parent, "direct")
    assert said[-1]["problem"] == "RuntimeError: a fault"


def test_a_direct_trial_takes_no_turns(run_dir: Path, prepared: Path) -> None:
    with pytest.raises(InputError, match=r"a direct trial takes no turns; set sweep\.trials=trainer"):
        train_direct(changed("train.node_memory_mb=0.5"), run_dir, lambda report: None)


def test_a_trial_waits_for_the_process_of_an_interrupted_one(run_dir: Path, said: list[dict[str, Any]]) -> None:
    held, waited = threading.Event(), time.monotonic()

    def hold() -> None:
        with run_lock(run_dir):
            held.set()
            time.sleep(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    run_trial({"trial": 3}, run_dir.parent, "direct")
    thread.join()
    assert time.monotonic() - waited >= 0.5
    assert said[-1]["step"] == 8
