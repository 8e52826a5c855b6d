"""Tags say which code, data and tree a training had, on any machine alike."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipelines import prepare, provenance
from pipelines.provenance import data_hash, git_commit
from tests.pipelines.small_city import CONFIG, changed


def test_all_tags_are_there(city_run: Path, city_prepared: prepare.Prepared) -> None:
    tags = provenance.provenance(changed("train.num_workers=[1,3]"), city_run, city_prepared)
    assert {"data.hash", "octree.hash", "workers", "backend", "device", "version.torch"} <= set(tags)
    assert (tags["workers"], tags["backend"], tags["device"]) == ("1-3", "numba", "cpu")
    assert tags["octree.hash"] == city_prepared.octree.identity
    assert provenance.provenance(CONFIG, city_run, city_prepared)["workers"] == "2"


def test_data_have_the_same_hash_wherever_they_lie_and_another_when_a_photo_changes(
    city_run: Path, city_prepared: prepare.Prepared, tmp_path: Path
) -> None:
    here = data_hash(city_run, city_prepared)
    stamps = json.loads((city_run / prepare.SOURCES_FILE).read_text())
    moved = {f"/elsewhere/{Path(file).name}": [stamp[0], stamp[1] + 5] for file, stamp in stamps.items()}
    (tmp_path / prepare.SOURCES_FILE).write_text(json.dumps(moved))
    assert data_hash(tmp_path, city_prepared) == here
    first = next(iter(moved))
    (tmp_path / prepare.SOURCES_FILE).write_text(json.dumps(moved | {first: [moved[first][0] + 1, 0]}))
    assert data_hash(tmp_path, city_prepared) != here


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_code_and_not_of_a_repository_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(provenance.COMMIT_VARIABLE, raising=False)
    code = tmp_path / "pipelines" / "provenance.py"
    code.parent.mkdir()
    code.write_text("1\n")
    monkeypatch.setattr(provenance, "__file__", str(code))
    assert git_commit() is None

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()

    git("init", "-q")
    (tmp_path / "other").touch()
    git("add", "other")
    git("commit", "-qm", "other")
    assert git_commit() is None  # the code is installed in somebody's repository
    git("add", ".")
    git("commit", "-qm", "code")
    commit = git("rev-parse", "HEAD")
    assert git_commit() == commit
    code.write_text("2\n")
    assert git_commit() == f"{commit}+"
    monkeypatch.setenv(provenance.COMMIT_VARIABLE, "0123abc")
    assert git_commit() == "0123abc"
