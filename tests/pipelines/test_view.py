"""The stage view says in one sentence what keeps it from being of use."""

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from inf_nerf.errors import InputError
from pipelines import cli, view
from tests.view.trained_run import trained_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("view") / "run")


def test_absent_viser_is_named_with_its_remedy(run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    assert cli.main(["view", str(run_dir)]) == 2
    assert 'pip install "inf-nerf[view]"' in capsys.readouterr().err


def test_what_cannot_be_shown_is_refused(run_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("viser", minversion="1.0")
    with pytest.raises(InputError, match="does not exist"):
        view.run(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no complete checkpoint yet"):
        view.run(tmp_path / "empty")
    with pytest.raises(InputError, match="does not hold the root"):
        view.run(run_dir, "10B")


def test_address_in_use_is_refused_and_not_evaded(run_dir: Path) -> None:
    pytest.importorskip("viser", minversion="1.0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="cannot answer on 127"):
            view.run(run_dir, port=taken.getsockname()[1])
