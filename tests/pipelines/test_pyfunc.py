"""What MLflow loads renders what the command line renders, and the registry's alias names the best."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from PIL import Image

from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from inf_nerf.render.poses import look_at
from inf_nerf.train.manifest import read_manifest
from pipelines import render
from pipelines.evaluate import find_checkpoint
from pipelines.mlflow_store import SPOOL_FILE
from pipelines.pyfunc import description
from pipelines.tracking import Tracker
from tests.pipelines.tiny_run import train_tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def client(mlflow_uri: str) -> MlflowClient:
    return MlflowClient(mlflow_uri)


def matrix(eye: tuple[float, float, float]) -> list[list[float]]:
    return [*look_at(eye, (0.0, 0.0, 0.1)).tolist(), [0.0, 0.0, 0.0, 1.0]]


CAMERAS: dict[str, Any] = {
    "width": 72,
    "height": 50,
    "fov_degrees": 55.0,
    "fps": 10,
    "frames": [
        {"camera_to_world": matrix((0.5, 0.2, 1.2)), "fov_degrees": 40.0},
        {"camera_to_world": matrix((-0.4, 0.1, 0.9))},
    ],
}


def record(run_dir: Path, *settings: str, psnr0: float | None = None, **changes: Any) -> str:
    """Record a trained run as a training does at its end; the id of its MLflow run."""
    checkpoint = find_checkpoint(run_dir)
    with Tracker(load_config(overrides=settings), run_dir) as tracker:
        tracker.log_model(checkpoint, read_manifest(checkpoint) | changes, psnr0)
    assert tracker.run_id is not None
    return tracker.run_id


def rendered(run_dir: Path, tmp_path: Path) -> np.ndarray:
    """The pictures of the command line."""
    path = tmp_path / "path.json"
    path.write_text(json.dumps(CAMERAS))
    render.run(run_dir, str(path), tmp_path / "stills")
    return np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / "stills").glob("*.png"))])


def test_a_loaded_model_renders_the_pixels_of_the_command_line(
    client: MlflowClient, run_dir: Path, tmp_path: Path
) -> None:
    run_id = record(run_dir)
    model = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    pictures = model.predict(CAMERAS)
    assert pictures.dtype == np.uint8 and pictures.shape == (2, 50, 72, 3)
    assert pictures.std() > 1 and not np.array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures, rendered(run_dir, tmp_path))
    table = pd.DataFrame(
        {
            "camera_to_world": [np.array(frame["camera_to_world"]) for frame in CAMERAS["frames"]],
            "fov_degrees": [40.0, 55.0],
            "width": 72,
            "height": 50,
        }
    )
    np.testing.assert_array_equal(model.predict(table), pictures)


def test_input_that_is_no_camera_is_one_sentence() -> None:
    row = {"camera_to_world": matrix((0.0, 0.1, 1.0)), "width": 8, "height": 6, "fov_degrees": 50.0}
    for given, said in (
        ([row], "The input is a list; give the content"),
        (pd.DataFrame([row]).drop(columns="height"), "a table without the column 'height'"),
        (pd.DataFrame([row])[:0], "a table without rows"),
        (pd.DataFrame([row, row | {"width": 9}]), "cameras with width 8 and 9"),
    ):
        with pytest.raises(InputError, match=said):
            description(given)


def test_a_model_holds_its_checkpoint_by_reference(client: MlflowClient, run_dir: Path) -> None:
    run_id = record(run_dir)
    checkpoint = find_checkpoint(run_dir)
    manifest = read_manifest(checkpoint)
    for name in ("nodes", "manifest.json"):
        assert not list(tree(client, run_id, name))
    shutil.rmtree(checkpoint)
    with pytest.raises(InputError, match="is not a complete checkpoint"):
        mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    train_tiny(run_dir.with_name("other"), steps=4)
    shutil.copytree(find_checkpoint(run_dir.with_name("other")), checkpoint)
    with pytest.raises(InputError, match=f"has another content than .*, not {manifest['digest'][:16]}"):
        mlflow.pyfunc.load_model(f"runs:/{run_id}/model")


def tree(client: MlflowClient, run_id: str, name: str) -> list[Path]:
    folder = Path(download_artifacts(f"runs:/{run_id}/model"))
    return list(folder.rglob(name))


def test_with_its_files_inside_a_model_needs_no_run(client: MlflowClient, run_dir: Path, tmp_path: Path) -> None:
    run_id = record(run_dir, "tracking.log_checkpoint=true")
    pictures = rendered(run_dir, tmp_path)
    shutil.rmtree(run_dir)
    assert tree(client, run_id, "nodes") and not tree(client, run_id, "optimiser")
    model = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    np.testing.assert_array_equal(model.predict(CAMERAS), pictures)


def test_the_alias_names_the_best_version_and_nothing_is_registered_twice(
    client: MlflowClient, run_dir: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(run_dir, other)
    register = "tracking.register_as=city"
    first = record(run_dir, register, psnr0=99.0)
    (version,) = client.search_model_versions("name = 'city'")
    assert (version.run_id, version.tags["eval_psnr0"]) == (first, "99.0")
    assert client.get_model_version_by_alias("city", "best").version == version.version
    second = record(other, register, val_psnr=20.0)  # val photos decide, not test photos
    assert client.get_model_version_by_alias("city", "best").run_id == second
    record(run_dir, register, psnr0=99.0)
    record(other, register, val_psnr=20.0)
    assert len(client.search_model_versions("name = 'city'")) == 2
    third = record(other, register, val_psnr=30.0, digest="longer")
    assert third == second
    best = client.get_model_version_by_alias("city", "best")
    assert best.tags["val_psnr"] == "30.0" and int(best.version) == 3
    record(other, register, val_psnr=40.0, digest="stopped", complete=False)
    assert len(client.search_model_versions("name = 'city'")) == 3
    (experiment,) = {client.get_run(first).info.experiment_id}
    assert len(client.search_logged_models([experiment])) == 4


def test_a_registered_model_is_loaded_by_its_alias(client: MlflowClient, run_dir: Path, tmp_path: Path) -> None:
    record(run_dir, "tracking.register_as=city", psnr0=10.0)
    model = mlflow.pyfunc.load_model("models:/city@best")
    np.testing.assert_array_equal(model.predict(CAMERAS), rendered(run_dir, tmp_path))


def test_files_that_are_gone_when_a_store_is_back_cost_only_the_model(
    client: MlflowClient, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Tracker(load_config(overrides=["tracking.log_checkpoint=true"]), run_dir) as tracker:
        manifest = read_manifest(find_checkpoint(run_dir))
        tracker.log_model(run_dir / "checkpoints/00000099", manifest)
        tracker.log_metrics([{"step": 1, "loss": 1.0}])
    assert "00000099 is gone" in caplog.text
    assert tracker.run_id is not None
    assert client.get_run(tracker.run_id).data.metrics == {"loss": 1.0}
    with pytest.raises(MlflowException):
        mlflow.pyfunc.load_model(f"runs:/{tracker.run_id}/model")
    assert "{" not in (run_dir / SPOOL_FILE).read_text().replace('{"step": 1}', "")


@pytest.mark.parametrize("name", ["a/b", "a:b", " ", "it's"])
def test_a_name_that_no_registry_takes_is_refused_at_once(name: str) -> None:
    with pytest.raises(InputError, match=r"'tracking\.register_as' is not usable"):
        load_config(base=Config().model_dump(mode="json") | {"tracking": {"register_as": name}})
