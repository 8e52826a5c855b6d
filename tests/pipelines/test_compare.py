"""What differs between runs is shown side by side, from their directories and from MLflow alike."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from mlflow import MlflowClient

from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from pipelines import cli, compare
from pipelines.mlflow_store import RunReference
from pipelines.tracking import Tracker


def evaluation(psnr: float) -> dict[str, Any]:
    levels = [{"level": level, "psnr": psnr + level, "ssim": 0.5 + psnr / 100} for level in range(2)]
    corrected = {"psnr": psnr + 2.5, "psnr0": psnr + 2, "levels": [row | {"psnr": row["psnr"] + 2} for row in levels]}
    scores = {"psnr": psnr + 0.5, "ssim": 0.5 + psnr / 100, "psnr0": psnr, "ssim0": 0.5 + psnr / 100}
    return scores | {"levels": levels, "images": [], "colour_corrected": corrected, "num_nodes": 5, "model_bytes": 1000}


def rows(rate: float, peak: float) -> list[dict[str, Any]]:
    """Three rows; the highest memory and an odd rate are not in the last one."""
    return [
        {"step": 20 * index, "seconds": 10.0 * index, "rays_per_second": rate * factor, "memory_mb": peak - index}
        for index, factor in ((1, 1.0), (2, 9.0), (3, 1.0))
    ]


def trained(run_dir: Path, *settings: str, psnr: float | None = 20.0, rate: float = 100.0, peak: float = 50.0) -> Path:
    """A run directory as a training leaves it, and its MLflow run."""
    config = load_config(overrides=settings)
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(config.to_yaml())
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(rate, peak)))
    with Tracker(config, run_dir) as tracker:
        tracker.set_tags({"workers": "2", "backend": "numba", "data.hash": "d1", "octree.hash": "o1"})
        tracker.log_metrics(rows(rate, peak))
        if psnr is not None:
            (run_dir / "eval.json").write_text(json.dumps(evaluation(psnr)))
            tracker.log_evaluation(evaluation(psnr), 60)
    return run_dir


@pytest.fixture
def three(mlflow_uri: str, tmp_path: Path) -> list[str]:
    return [
        str(trained(tmp_path / "first", "train.lr_init=1e-3", "tracking.run_name=x")),
        str(trained(tmp_path / "second", "train.lr_init=2e-3", psnr=22.0, peak=80.0)),
        str(trained(tmp_path / "third", "train.lr_init=1e-3", "loss.lambda_depth=0", psnr=None, rate=200.0)),
    ]


def ids(runs: list[str]) -> list[str]:
    references = [RunReference.read(Path(name)) for name in runs]
    return [reference.run_id for reference in references if reference is not None]


def test_three_runs_show_what_differs_and_which_is_best(three: list[str]) -> None:
    found = compare.run(three)
    assert found["settings"] == {
        "loss.lambda_depth": ["0.003", "0.003", "0.0"],
        "train.lr_init": ["0.001", "0.002", "0.001"],
    }
    figures, best = found["figures"], found["best"]
    assert figures["eval/level0/psnr"] == [20.0, 22.0, None] and best["eval/level0/psnr"] == [1]
    assert figures["eval/level1/psnr"] == [21.0, 23.0, None]
    assert figures["eval/colour_corrected/level1/psnr"] == [23.0, 25.0, None]
    assert figures["eval/psnr"] == [20.5, 22.5, None]
    assert figures["memory_mb"] == [49.0, 79.0, 49.0] and best["memory_mb"] == [0, 2]
    assert figures["rays_per_second"] == [100.0, 100.0, 200.0] and best["rays_per_second"] == [2]
    assert figures["seconds"] == [30.0] * 3 and best["seconds"] == []
    assert figures["step"] == [60.0] * 3
    assert figures["workers"] == ["2"] * 3 and figures["backend"] == ["numba"] * 3
    assert "data.hash" not in figures  # which is the same


def test_directories_and_mlflow_runs_say_the_same(three: list[str]) -> None:
    local, stored = compare.run(three), compare.run(ids(three))
    assert stored["figures"] == local["figures"]
    assert stored["settings"] == local["settings"]
    assert stored["open"] == local["open"]
    assert [run["name"] for run in stored["runs"]] == ["x", "second", "third"]
    mixed = compare.run([three[0], *ids(three)[1:]])
    assert mixed["figures"] == local["figures"]


def test_it_ends_with_the_way_to_mlflows_own_comparison(three: list[str], mlflow_uri: str) -> None:
    (way,) = compare.run(three)["open"]
    assert way["command"].endswith(f"mlflow ui --backend-store-uri {mlflow_uri}")
    experiment = MlflowClient(mlflow_uri).get_run(ids(three)[0]).info.experiment_id
    asked = unquote(way["url"].partition("compare-runs?")[2])
    assert asked == f'runs={json.dumps(ids(three), separators=(",", ":"))}&experiments=["{experiment}"]'


def test_a_server_is_opened_where_it_is() -> None:
    runs = [
        compare.RecordedRun(name, {}, {}, {}, (uri, "1", name))
        for name, uri in (("a", "http://host:5000"), ("b", "http://host:5000"), ("c", "sqlite:////some where/m.db"))
    ]
    server, database = compare.opening(runs)
    assert server["command"] is None
    assert server["url"] == "http://host:5000/#/compare-runs?runs=%5B%22a%22%2C%22b%22%5D&experiments=%5B%221%22%5D"
    assert str(database["command"]).endswith("--backend-store-uri 'sqlite:////some where/m.db'")


def test_the_table_marks_the_best_and_what_is_missing(three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", *three]) == 0
    shown = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): line for line in shown.splitlines() if line.count("│") > 3}
    assert "22.00*" in lines["PSNR, level 0"] and lines["PSNR, level 0"].split("│")[4].strip() == "-"
    assert "train.lr_init" in lines and "train.steps" not in lines and "tracking.run_name" not in lines
    assert "mlflow ui --backend-store-uri" in shown


def test_json_is_all_that_is_printed(three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "--json", *three]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"runs", "settings", "figures", "best", "open"}


def test_other_data_are_shown(mlflow_uri: str, tmp_path: Path) -> None:
    runs = [trained(tmp_path / name) for name in ("a", "b")]
    reference = RunReference.read(runs[0])
    assert reference is not None
    (runs[0] / "mlflow_run.json").unlink()
    found = compare.run([str(name) for name in runs])
    assert found["figures"]["data.hash"] == [None, "d1"]
    assert found["settings"] == {}
    assert found["figures"]["backend"] == [Config().field.backend, "numba"]


def test_what_is_no_run_is_refused(mlflow_uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a run directory that exists nor the id"):
        compare.run([str(tmp_path / "absent")])
    with pytest.raises(InputError, match=r"holds no config\.yaml"):
        compare.run([str(tmp_path)])
    with pytest.raises(InputError, match="cannot show run " + "0" * 32):
        compare.run(["0" * 32])
    with pytest.raises(InputError, match=r"absent\.db does not exist; name the one of run"):
        compare.run(["0" * 32], f"sqlite:///{tmp_path}/absent.db")
    assert not (tmp_path / "absent.db").exists()
