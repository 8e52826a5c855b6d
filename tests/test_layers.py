"""Imports between the rooms point down only, and only pipelines know Ray and MLflow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each room may import beside itself. A room that is missing here is an error, so that a new one is placed.
ROOMS: dict[str, set[str]] = {
    "config": {"config_file", "errors", "places"},
    "config_file": {"errors", "foreign_keys", "places"},
    "foreign_keys": {"errors"},
    "key_meaning": {"config", "config_file", "errors", "foreign_keys"},
    "errors": set(),
    "files": set(),
    "places": {"errors"},
    "scene": {"config", "errors", "files", "places"},
    "octree": {"config", "errors", "files", "scene"},
    "field": {"config", "errors", "files"},
    "diagnose": {"config", "errors", "files", "octree", "field"},
    "render": {"config", "diagnose", "errors", "files", "scene", "octree", "field"},
    "train": {"config", "diagnose", "errors", "files", "places", "scene", "octree", "field", "render"},
    "export": {"config", "errors", "files", "places", "scene", "octree", "field", "render", "train"},
    "view": {"config", "errors", "places", "scene", "octree", "render", "train"},
    "analysis": {"errors", "places"},
    "report": {"config", "errors", "places", "scene", "octree", "render", "train", "analysis", "diagnose"},
    "plots": {"scene", "octree", "render", "analysis", "report"},
}
FORBIDDEN_IN_LIBRARY = {"ray", "mlflow", "pipelines", "tests"}


def imported_modules(source: str) -> Iterator[str]:
    """Absolute names of everything a module imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def library_modules() -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in (ROOT / "inf_nerf").rglob("*.py"))


def violations(path: Path, source: str) -> list[str]:
    """Sentences about the imports of one library module that point up or out."""
    room = path.relative_to("inf_nerf").parts[0].removesuffix(".py")
    found = []
    for name in imported_modules(source):
        parts = name.split(".")
        if parts[0] in FORBIDDEN_IN_LIBRARY:
            found.append(f"{path} imports {name}: the library knows no {parts[0]}")
        elif parts[0] == "inf_nerf" and room != "__init__":
            other = parts[1]
            if other != room and other not in ROOMS[room]:
                found.append(f"{path} imports {name}: {room} may import only {sorted(ROOMS[room])}")
    return found


@pytest.mark.parametrize("path", library_modules(), ids=str)
def test_imports_point_down(path: Path) -> None:
    assert violations(path, (ROOT / path).read_text()) == []


def test_every_room_has_its_place_in_the_layers() -> None:
    entries = [
        path for path in (ROOT / "inf_nerf").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    assert {entry.stem for entry in entries} - {"__init__"} == set(ROOMS)


def test_layers_have_no_cycle() -> None:
    placed: set[str] = set()
    while remaining := set(ROOMS) - placed:
        ready = {room for room in remaining if ROOMS[room] <= placed}
        assert ready, f"a cycle among {sorted(remaining)}"
        placed |= ready


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("inf_nerf/field/heads.py", "from inf_nerf.octree.topology import Octree"),
        ("inf_nerf/field/heads.py", "from inf_nerf import scene"),
        ("inf_nerf/scene/cameras.py", "def f():\n    import inf_nerf.render.model"),
        ("inf_nerf/train/loop.py", "import ray.train"),
        ("inf_nerf/train/loop.py", "from mlflow import MlflowClient"),
        ("inf_nerf/render/model.py", "from pipelines.cli import app"),
    ],
)
def test_an_import_that_points_up_or_out_is_found(path: str, source: str) -> None:
    assert len(violations(Path(path), source)) == 1


def test_command_line_imports_no_heavy_library() -> None:
    program = "import sys, pipelines.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "mlflow", "numpy", "pydantic", "pycolmap", "numba"} & set(loaded.stdout.split())
