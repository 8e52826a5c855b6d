"""One worker against several: what is run, and how it is compared."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import ranks
from benchmarks.ranks import PREPARED, compare


def row(psnr: float, near: float | None = None) -> dict[str, Any]:
    seams = {"width": 0.03, "interior": {"psnr": 20.0, "share": 0.9}}
    if near is not None:
        seams["near"] = {"psnr": near, "share": 0.1}
    cost = dict.fromkeys(("shared_gradient_bytes", "shared_gradient_share", "exchange_bytes", "exchange_share"), 0.25)
    return {
        "psnr": psnr,
        "psnr_corrected": psnr + 2,
        "seams": seams,
        "steps_per_second": 3.0,
        "idle_share": 0.0,
        **cost,
    }


def test_others_may_differ_by_two_deviations_or_a_little() -> None:
    summary = compare([row(20.0), row(20.3), row(20.6)])
    assert summary["psnr"] == pytest.approx(20.3)
    assert summary["psnr_tolerance"] == pytest.approx(0.6)
    assert compare([row(20.0), row(20.01)])["psnr_corrected_tolerance"] == ranks.LEAST_TOLERANCE
    assert compare([row(20.0)])["psnr_tolerance"] == ranks.LEAST_TOLERANCE


def test_table_names_every_case_and_its_difference() -> None:
    rows = {"workers1-seed0": row(20.0, 19.0), "workers2-seed0-exchange": row(19.8)}
    first, one, two, last = ranks.table(rows, compare([rows["workers1-seed0"]])).splitlines()
    assert "near-inner" in first
    assert one.startswith("workers1-seed0") and "-1.00" in one
    assert two.startswith("workers2-seed0-exchange") and "-0.20" in two and "nan" in two
    assert "0.15" in last


def test_every_case_is_trained_in_its_own_copy_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, commands = tmp_path / "prepared", list[list[str]]()
    (prepared / "tiles").mkdir(parents=True)
    for name in PREPARED[:-1]:
        (prepared / name).write_text(name)
    (prepared / "tiles" / "0.parquet").write_text("tile")
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.setattr(ranks, "opened", lambda run_dir: SimpleNamespace(subtrees={8: 0}))
    monkeypatch.setattr(ranks, "figures", lambda run_dir, places: row(20.0) | {"places": sorted(places)})
    out = tmp_path / "out"
    arguments = [str(out), "--prepared", str(prepared), "--config", "c.yaml", "--steps", "7"]
    assert ranks.main([*arguments, "--seeds", "2", "--workers", "2", "--set", "field.max_res=64"]) == 0
    names = ["workers1-seed0", "workers1-seed1", "workers2-seed0-discount", "workers2-seed0-exchange"]
    assert list(json.loads((out / "ranks.json").read_text())["runs"]) == names
    for name, command in zip(names, commands, strict=True):
        assert (out / name / "tiles" / "0.parquet").read_text() == "tile"
        assert str(out / name) in command
        assert command[command.index("--steps") + 1] == "7"
        assert "field.max_res=64" in command
    assert "train.foreign=exchange" in commands[3] and "train.seed=1" in commands[1]
