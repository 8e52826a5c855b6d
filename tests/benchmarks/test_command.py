"""The command line of the benchmarks, on the smallest sizes."""

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks.limits import Limits
from benchmarks.pairing import Effort
from benchmarks.rows import rays
from benchmarks.workload import TABLES

KEYS = {"name", "nodes", "threads", "candidate", "median_ms", "ratio", "limit_fraction", "rounds"}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small round and no measuring of limits."""
    monkeypatch.setattr(command, "QUICK_RAYS", 8)
    monkeypatch.setattr(command, "QUICK_EFFORT", Effort(seconds=0, fewest=1, most=1))
    monkeypatch.setattr(rays, "QUICK_VIEW", (8, 6))
    monkeypatch.setitem(TABLES, 8, 8)
    for name in ("_measure_gather", "_measure_update"):
        monkeypatch.setattr(Limits, name, lambda _, size, threads: 1e9)
    for name in ("_measure_stream", "_measure_multiply"):
        monkeypatch.setattr(Limits, name, lambda _, threads: 1e11)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_every_row_is_timed_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.json"
    assert command.main(["--quick", "--nodes", "8", "--threads", "1", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert {"machine", "limits", "rows"} == set(content)
    names = {row["name"] for row in content["rows"]}
    assert names >= {"encode_forward", "encode_backward", "heads", "adam", "routing", "compositing", "step", "render"}
    assert names >= {"lit_samples", "occupancy_probe", "adam_sparse", "threads", "diagnosis"}
    printed = capsys.readouterr().out
    for row in content["rows"]:
        assert set(row) == KEYS and row["median_ms"] > 0
        assert row["name"] in printed and row["candidate"] in printed
    first = [row for row in content["rows"] if row["candidate"] == "ours"]
    assert first and all(row["ratio"] == 1 for row in first)


def test_an_unknown_row_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--rows", "coffee"])
    assert stopped.value.code == 2 and "coffee" in capsys.readouterr().err
