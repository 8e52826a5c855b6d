"""The table of requirements names only what is there."""

import re
from pathlib import Path

import pytest

from inf_nerf.key_meaning import all_keys

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (\d+) \| (.+) \| (.+) \| (.+) \|$")
NAMED = re.compile(r"`([^`]+)`")
PROMISES = re.compile(r"\b(later|todo|tbd|planned|not yet|soon)\b", re.IGNORECASE)


def rows() -> list[tuple[int, str, str, str]]:
    lines = (ROOT / "docs" / "requirements.md").read_text().splitlines()
    return [(int(row[1]), row[2], row[3], row[4]) for line in lines if (row := ROW.match(line))]


def test_every_row_stands_in_its_place_once() -> None:
    assert [row[0] for row in rows()] == list(range(1, 104))


@pytest.mark.parametrize("row", rows(), ids=lambda row: str(row[0]))
def test_what_a_row_names_is_there(row: tuple[int, str, str, str]) -> None:
    _, item, where, shown = row
    assert not PROMISES.search(" ".join((item, where, shown)))
    sections = {key.split(".")[0] for key in all_keys()}
    for name in NAMED.findall(where):
        if name.startswith(("inf_nerf/", "pipelines/", "tests/", "docs/", "configs/", "benchmarks/")):
            assert (ROOT / name).exists(), name
        elif re.fullmatch(r"[a-z]+\.[a-z_0-9]+", name) and name.split(".")[0] in sections:
            assert name in all_keys(), name
    tests = NAMED.findall(shown)
    assert tests
    for test in tests:
        file, _, function = test.partition("::")
        assert file.startswith("tests/") and (ROOT / file).is_file(), file
        assert not function or f"def {function}(" in (ROOT / file).read_text(), test
