"""What every test shares: one thread per process, no telemetry, real photos where they are, a ready MLflow database."""

import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

# Before any test module loads a numeric library: several workers and tests share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

# A shell that starts a command in the background has it ignore Ctrl-C, and so would all that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

DATA_VARIABLE = "INF_NERF_DATA"


@pytest.fixture(autouse=True)
def _no_stray_tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the developer's own MLflow database."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture(scope="session")
def real_photos(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Unpacks one of the real photo sets, e.g. ``real_photos("boruszyn")``; skips where they are absent."""

    def unpack(name: str) -> Path:
        archive = Path(os.environ.get(DATA_VARIABLE, "")) / f"{name}.tar"
        if not archive.is_file():
            pytest.skip(f"real photos: {DATA_VARIABLE} names no folder with {name}.tar")
        target = tmp_path_factory.getbasetemp() / f"photos_{name}"
        if not target.exists():
            with tarfile.open(archive) as tar:
                tar.extractall(target, filter="data")
        (folder,) = target.iterdir()
        return folder

    return unpack


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's schema; making one takes seconds, copying it nothing."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "template.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_uri(mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a fresh store, which is also the process's default; artifacts go below ``tmp_path`` too."""
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    return uri
