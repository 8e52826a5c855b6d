"""Curves of our runs and of peers in one file and one plot."""

import json
from pathlib import Path

import pytest

from benchmarks import quality
from benchmarks.quality import Curve, Point, joined

RESULT = {"psnr0": 19.5, "psnr0_floor": 13.1, "colour_corrected": {"psnr0": 21.5}}
PEER = {"label": "peer", "floor": 13.1, "points": [{"seconds": 60, "psnr": 15.0, "psnr_corrected": 16.0}]}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with what is read of it."""
    checkpoint = tmp_path / "run/checkpoints/00000100"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text(json.dumps({"format_version": 1, "seconds": 300.0}))
    (tmp_path / "run/eval.json").write_text(json.dumps(RESULT))
    return tmp_path / "run"


@pytest.fixture
def peer_file(tmp_path: Path) -> Path:
    path = tmp_path / "peer.json"
    path.write_text(json.dumps(PEER))
    return path


@pytest.fixture
def known_checkpoint(monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> None:
    checkpoint = run_dir / "checkpoints/00000100"
    monkeypatch.setattr(quality, "latest_checkpoint", lambda _: checkpoint)
    monkeypatch.setattr(quality, "read_manifest", lambda path: json.loads((path / "manifest.json").read_text()))


@pytest.mark.usefixtures("known_checkpoint")
def test_runs_and_peers_are_written_and_drawn_with_the_floor(tmp_path: Path, run_dir: Path, peer_file: Path) -> None:
    out = tmp_path / "quality.json"
    assert quality.main([str(out), "--run", f"ours={run_dir}", "--peer", str(peer_file)]) == 0
    ours, peer = json.loads(out.read_text())
    assert ours["points"] == [{"seconds": 300.0, "psnr": 19.5, "psnr_corrected": 21.5}] and ours["floor"] == 13.1
    assert peer["label"] == "peer"
    drawn = out.with_suffix(".svg").read_text()
    assert all(text in drawn for text in ("ours", "peer", "constant colour", "minutes of training"))


@pytest.mark.usefixtures("known_checkpoint")
def test_the_same_curves_give_the_same_plot(tmp_path: Path, run_dir: Path) -> None:
    for name in ("a", "b"):
        quality.main([str(tmp_path / f"{name}.json"), "--run", f"ours={run_dir}"])
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_points_of_one_label_are_one_curve_in_order_of_time() -> None:
    late, early = Point(300, 19, 20), Point(60, 17, 18)
    (curve,) = joined([Curve("ours", (late,), 13.0), Curve("ours", (early,), 13.0)])
    assert curve.points == (early, late)


@pytest.mark.usefixtures("known_checkpoint")
def test_other_photos_are_refused(
    tmp_path: Path, run_dir: Path, peer_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer_file.write_text(json.dumps(PEER | {"floor": 20.9}))
    out = tmp_path / "quality.json"
    assert quality.main([str(out), "--run", f"ours={run_dir}", "--peer", str(peer_file)]) == 2
    assert "20.90" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to plot"),
        (["--run", "no-label"], "LABEL=DIR"),
        (["--run", "ours=nowhere"], "nowhere holds no checkpoint"),
        (["--checkpoints", "ours=nowhere"], "nowhere holds no complete checkpoint"),
        (["--peer", "nowhere.json"], "nowhere.json is not the curve of a peer"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quality.main([str(tmp_path / "q.json"), *arguments]) == 2
    assert message in capsys.readouterr().err
