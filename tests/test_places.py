"""Places: paths stay paths, URIs are read through fsspec, and what is missing is named."""

import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from inf_nerf.errors import InputError
from inf_nerf.places import RemotePath, place


def test_paths_and_local_uris_are_paths(tmp_path: Path) -> None:
    assert place("runs/mine") == Path("runs/mine")
    assert place(f"file://{tmp_path}") == tmp_path
    assert place(tmp_path) is tmp_path


def test_a_folder_of_another_filesystem_reads_like_a_path() -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file("/places/run/config.yaml", b"a: 1\n")
    system.pipe_file("/places/run/checkpoints/00000002/manifest.json", b"{}")
    run = place("memory://places/run")
    assert isinstance(run, RemotePath)
    assert run.is_dir() and not run.is_file()
    assert (run / "config.yaml").read_text() == "a: 1\n"
    assert {path.name for path in run.iterdir()} == {"config.yaml", "checkpoints"}
    manifest = run / "checkpoints" / "00000002" / "manifest.json"
    assert manifest.is_file()
    assert manifest.parent.parent.parent == run
    assert place(str(manifest)) == manifest
    assert not (run / "none").is_file() and not (run / "none").is_dir()
    with pytest.raises(FileNotFoundError):
        (run / "none").read_bytes()


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match=r"s3://bucket/run needs the package s3fs, .* pip install s3fs\."):
        place("s3://bucket/run")


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(InputError, match=r"nowhere://run is on no filesystem"):
        place("nowhere://run")


def test_what_a_driver_cannot_do_is_one_sentence() -> None:
    class NoCredentials(Exception):
        pass

    class Refusing:
        def cat_file(self, path: str) -> Any:
            raise NoCredentials("unable to locate credentials\nsecond line")

        def unstrip_protocol(self, path: str) -> str:
            return f"s3://{path}"

    with pytest.raises(InputError, match=r"s3://bucket/x cannot be read \(NoCredentials: unable .*\); check") as caught:
        RemotePath(Refusing(), "bucket/x").read_bytes()
    assert "\n" not in str(caught.value)
