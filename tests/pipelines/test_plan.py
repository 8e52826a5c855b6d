"""A plan says before a training what it takes; a real one then takes that."""

import dataclasses
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import torch

from inf_nerf.config import load_config
from inf_nerf.errors import InputError
from inf_nerf.octree.partition import make_partition
from inf_nerf.octree.tiles import tile_file
from inf_nerf.octree.topology import FOREIGN
from inf_nerf.train.memory import checkpoint_bytes, field_bytes
from inf_nerf.train.turns import MIB, node_bytes
from pipelines import calibration, cli, plan, prepare, synth
from pipelines.calibration import Calibration
from pipelines.division import Dealing, tile_tables
from pipelines.ingest import read_tiles
from tests.memory import unique_bytes
from tests.pipelines.small_city import CONFIG, changed
from tests.pipelines.test_cli import environment

ROOT = Path(__file__).parents[2]
MEASURED = Calibration(seconds_per_step=0.5, program_bytes=1000, step_bytes=200, rays=10, steps=4)


@pytest.fixture
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known figures in place of a training."""
    monkeypatch.setattr(plan, "calibrate", lambda *_: MEASURED)


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    stats = {str(path): path.stat() for path in folder.rglob("*")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


@pytest.mark.usefixtures("_measured")
def test_photos_and_the_run_prepared_from_them_are_planned_alike(
    city_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(city_run.parent)
    config = changed("train.num_workers=3")
    ahead, after = plan.run(config, city_run.parent / "city", None), plan.run(config, None, city_run)
    assert files_of(city_run.parent) == before
    for name in ("photos", "points", "octree", "tiles", "ranks", "shared_nodes", "imbalance"):
        assert ahead[name] == after[name], name
    assert ahead["disk_bytes"]["checkpoint"] == after["disk_bytes"]["checkpoint"]
    assert ahead["disk_bytes"]["tiles"] == pytest.approx(after["disk_bytes"]["tiles"], rel=0.2)
    written = sum(file.stat().st_size for file in (city_run / "tiles").glob("*.parquet"))
    assert after["disk_bytes"]["tiles"] == pytest.approx(written, rel=0.2)
    assert after["hours"]["prepare"] is None and ahead["hours"]["prepare"] > 0
    shown = capsys.readouterr().out
    assert "memory of each worker" in shown and "shared by all workers" in shown


@pytest.mark.usefixtures("_measured")
def test_the_figures_of_a_plan_add_up(city_run: Path, city_prepared: prepare.Prepared) -> None:
    found = plan.run(changed("train.num_workers=2", "train.steps=7200"), None, city_run)
    nodes = city_prepared.octree.num_nodes + 1
    assert sum(found["octree"]["nodes_per_level"]) + 1 == nodes
    assert found["octree"]["parameters"] * 16 == field_bytes(CONFIG, nodes)
    assert found["disk_bytes"]["checkpoint"] == checkpoint_bytes(CONFIG, nodes)
    assert found["tiles"]["count"] == city_prepared.num_tiles
    heaviest = max(found["ranks"], key=lambda rank: rank["load"])
    assert heaviest["memory_bytes"]["steps"] == MEASURED.step_bytes
    for rank in found["ranks"]:
        memory = rank["memory_bytes"]
        assert memory["total"] == sum(value for name, value in memory.items() if name != "total")
        assert memory["fields"] == field_bytes(CONFIG, found["shared_nodes"] + rank["owned_nodes"])
        assert memory["program"] == MEASURED.program_bytes
    hours = 7200 * MEASURED.seconds_per_step * max(1, 2 / found["calibration"]["cores"]) / 3600
    assert found["hours"]["train"] == pytest.approx(hours) and found["hours"]["limit"] == "train.steps"
    limited = plan.run(changed("train.max_seconds=18"), None, city_run)["hours"]
    assert limited["train"] == pytest.approx(0.005) and limited["limit"] == "train.max_seconds"


def test_hours_are_those_of_workers_that_share_the_cores_of_this_machine_or_have_their_own(
    city_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def hours(*overrides: str, device: str = "cpu") -> float:
        measured = dataclasses.replace(MEASURED, device=device)
        monkeypatch.setattr(plan, "calibrate", lambda *given: asked.append(given[-1]) or measured)
        config = changed("train.steps=7200", "train.cpus_per_worker=4", *overrides)
        return plan.run(config, None, city_run)["hours"]["train"]

    monkeypatch.setattr(plan, "available_cores", lambda: 2)
    assert hours("train.num_workers=1") == pytest.approx(1)
    assert hours("train.num_workers=3") == pytest.approx(3)
    assert asked == [2, 2]  # no more threads than there are cores
    assert capsys.readouterr().out.count("Workers that share the 2 cores take 3 times as long.") == 1
    assert hours("train.num_workers=3", "train.gpus_per_worker=1", device="cuda") == pytest.approx(1)
    assert hours("train.num_workers=4", "train.gpus_per_worker=0.5", device="cuda") == pytest.approx(2)
    assert "Workers that share a GPU take 2 times" in capsys.readouterr().out
    assert hours("train.num_workers=3", "train.gpus_per_worker=1") == pytest.approx(3)
    assert "There is no GPU here" in capsys.readouterr().out
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert hours("train.num_workers=3") == pytest.approx(1)


@pytest.mark.usefixtures("_measured")
def test_a_tree_that_may_grow_is_planned_at_its_largest(city_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    static, grows, capped = (
        plan.run(changed("train.num_workers=1", *more), None, city_run)
        for more in ((), ("octree.update_every=10",), ("octree.update_every=10", "octree.max_nodes=1"))
    )
    assert grows["octree"]["most_nodes"] == 2 * static["octree"]["nodes"] == 2 * grows["octree"]["nodes"]
    assert capped["octree"]["most_nodes"] == static["octree"]["most_nodes"] == static["octree"]["nodes"]
    assert capped["ranks"] == static["ranks"] and capped["disk_bytes"] == static["disk_bytes"]
    (before,), (after,) = (each["ranks"] for each in (static, grows))
    for part in ("fields", "occupancy"):
        assert after["memory_bytes"][part] > 1.9 * before["memory_bytes"][part], part
    assert grows["disk_bytes"]["checkpoint"] > 1.9 * static["disk_bytes"]["checkpoint"]
    assert capsys.readouterr().out.count("the tree may grow to") == 1


@pytest.fixture
def _calibrated_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The short training is shorter still, and in this process."""
    monkeypatch.setattr(calibration, "SECONDS", 0.2)
    monkeypatch.setattr(calibration, "ProcessPoolExecutor", lambda count, mp_context: ThreadPoolExecutor(count))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_calibrated_here")
def test_a_step_of_any_worker_is_measured_without_the_others(city_run: Path, city_prepared: prepare.Prepared) -> None:
    config = changed("train.num_workers=3", "train.foreign=exchange", "train.batch_size=60")
    scene, octree = city_prepared.scene, city_prepared.octree
    dealing = Dealing.of(config, octree, tile_tables(city_run, city_prepared))
    partition, loads = dealing.partition_of(3), dealing.loads(3)
    files = pa.table({"file": [str(tile_file(city_run, photo)) for photo in scene.train]})
    found = []
    for part, mine in enumerate(dealing.tiles(3)["train"]):
        tiles = pa.concat_tables(read_tiles(files, mine))
        found.append(calibration.calibrate(config, scene, octree, partition, 3, part, loads, tiles, 1))
    assert all(each.steps > 0 and each.seconds_per_step > 0 for each in found)
    assert sum(each.rays for each in found) == 60


def test_nodes_that_a_short_training_cannot_hold_are_not_taken_for_those_of_others(
    city_prepared: prepare.Prepared,
) -> None:
    octree = city_prepared.octree
    partition = make_partition(octree, 2, 1)
    own = octree.restrict(partition.shared | partition.owned[1])
    foreign = own.children == FOREIGN
    assert foreign.any()
    for count in (1, 3, own.num_nodes):
        kept = calibration.first_nodes(own, count)
        assert torch.equal(kept.keys, own.keys[:count])
        assert torch.equal(kept.children == FOREIGN, foreign[:count])
        assert torch.equal(kept.children >= 0, (own.children[:count] >= 0) & (own.children[:count] < count))


@pytest.mark.usefixtures("_calibrated_here")
def test_a_training_in_turns_is_planned_for_the_workers_of_a_turn(
    city_run: Path, city_prepared: prepare.Prepared
) -> None:
    tables = tile_tables(city_run, city_prepared)
    whole = Dealing.of(CONFIG, city_prepared.octree, tables).partition_of(2)
    held = len(whole.shared) + max(map(len, whole.owned))
    cap = node_bytes(CONFIG) * (held - 1) / MIB
    config = changed(f"train.node_memory_mb={cap}", "train.batch_size=60", "train.steps=7200")
    found = plan.run(config, None, city_run)
    assert found["workers"] == 2 and found["turns"] > 1
    assert len(found["ranks"]) == 2 * found["turns"]
    each = found["calibration"]
    heaviest = max(found["ranks"], key=lambda rank: rank["load"])
    beside = sum(rank["load"] for rank in found["ranks"] if rank["turn"] == heaviest["turn"])
    assert each["rays"] == pytest.approx(60 * heaviest["load"] / beside, abs=1)
    hours = 7200 * each["seconds_per_step"] * max(1, 2 / each["cores"]) / 3600
    assert found["hours"]["train"] == pytest.approx(hours)
    for rank in found["ranks"]:
        assert rank["memory_bytes"]["fields"] + rank["memory_bytes"]["occupancy"] <= cap * MIB


@pytest.mark.usefixtures("_measured")
def test_only_two_photos_are_decoded_and_some_stand_for_many(city_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    read_photo = plan.read_photo
    monkeypatch.setattr(plan, "read_photo", lambda scene, photo: decoded.append(photo) or read_photo(scene, photo))
    whole = plan.run(CONFIG, city_run.parent / "city", None)
    assert len(decoded) == 2
    monkeypatch.setattr(plan, "LOOKED_AT", 3)
    part = plan.run(CONFIG, city_run.parent / "city", None)
    assert part["tiles"] == whole["tiles"] and part["octree"] == whole["octree"]
    tiles = [sum(rank["tiles"] for rank in found["ranks"]) for found in (whole, part)]
    assert tiles[1] == pytest.approx(tiles[0], rel=0.25)


@pytest.mark.usefixtures("_measured")
def test_the_command_prints_json_and_refuses_what_cannot_be_planned(
    city_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--output-dir", str(city_run), "--workers", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["workers"] == 2
    with pytest.raises(InputError, match="name the photos with --data-root, or a prepared run"):
        plan.run(CONFIG, None, tmp_path)
    assert cli.main(["plan", "--data-root", str(tmp_path / "absent")]) == 2
    assert cli.main(["plan", "--output-dir", str(city_run), "--set", "data.tile_size=8"]) == 2
    assert "was prepared with data.tile_size=16" in capsys.readouterr().err


def workers_of(process: psutil.Process) -> Iterator[psutil.Process]:
    """Ray Train's workers below a process."""
    for child in process.children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                yield child
        except psutil.Error:
            continue


def peaks_of(command: list[str], folder: Path) -> list[int]:
    """Most unique memory that each Train worker of a command had, in bytes, looked at ten times a second."""
    peaks: dict[int, int] = {}
    with open(folder / "output.txt", "w") as output:
        training = subprocess.Popen(
            [sys.executable, "-m", "pipelines", *command], cwd=folder, env=environment(), stdout=output, stderr=output
        )
        while training.poll() is None:
            for worker in workers_of(psutil.Process(training.pid)):
                try:
                    peaks[worker.pid] = max(peaks.get(worker.pid, 0), unique_bytes(worker))
                except psutil.Error:
                    continue
            time.sleep(0.1)
    assert training.returncode == 0, (folder / "output.txt").read_text()
    return list(peaks.values())


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 2])
def test_workers_on_the_demo_city_use_the_memory_that_was_planned(tmp_path: Path, workers: int) -> None:
    synth.run(tmp_path / "city", blocks=3, photos=24, size=320)
    shared = ["--config", str(ROOT / "configs/demo.yaml"), "--data-root", "city", "--workers", str(workers)]
    quick = (
        "tracking.enabled=false",
        "train.max_seconds=12",
        "train.log_every=1",
        "eval.right_half=false",
        "scene.test_every=24",
    )
    shared += ["--output-dir", "run", *(part for key in quick for part in ("--set", key))]
    planned = subprocess.run(
        [sys.executable, "-m", "pipelines", "plan", *shared, "--json"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert planned.returncode == 0, planned.stderr
    found: dict[str, Any] = json.loads(planned.stdout)
    peaks = peaks_of(["train", *shared], tmp_path)
    assert len(peaks) == workers
    predicted = sorted(rank["memory_bytes"]["total"] for rank in found["ranks"])
    print("planned", [value >> 20 for value in predicted], "used", [value >> 20 for value in sorted(peaks)], "MB")
    assert sorted(peaks) == pytest.approx(predicted, rel=0.25)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["load_imbalance"]) for row in rows)
    if workers == 1:
        assert rows[-1]["load_imbalance"] == 0
    assert load_config(tmp_path / "run/config.yaml").train.num_workers == workers
