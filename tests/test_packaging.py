"""The package can be installed by the two commands: pins fit the ranges, and nothing asks an index for tinycudann."""

import re
import subprocess
import tomllib
from importlib.metadata import distribution, entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import inf_nerf
from inf_nerf.config import Config
from inf_nerf.config_file import known_keys

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
EXTRAS = PROJECT["optional-dependencies"]
LISTED = [Requirement(text) for texts in (PROJECT["dependencies"], *EXTRAS.values()) for text in texts]
# an extra may name another one of this package
REQUIREMENTS = [requirement for requirement in LISTED if requirement.name != PROJECT["name"]]


def pins() -> dict[str, Version]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines if line)}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_every_requirement_is_pinned_within_its_range(requirement: Requirement) -> None:
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_everything_a_requirement_needs_is_pinned(requirement: Requirement) -> None:
    pinned = pins()
    for text in distribution(requirement.name).requires or []:
        needed = Requirement(text)
        extras = requirement.extras or {""}
        if needed.name.startswith(("nvidia-", "cuda-", "triton")):
            continue  # torch's CUDA builds pin these themselves, CPU builds do not have them
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
            assert canonicalize_name(needed.name) in pinned, f"{requirement.name} needs {needed}"


def test_no_pin_names_one_build_of_a_package() -> None:
    assert [name for name, version in pins().items() if version.local] == []


def test_nothing_asks_an_index_for_tinycudann() -> None:
    named = [Requirement(text).name for texts in (PROJECT["dependencies"], *EXTRAS.values()) for text in texts]
    assert "tinycudann" not in {name.lower() for name in named}
    assert "tinycudann" not in pins()


def test_readme_says_how_to_install_tinycudann_and_choose_torch() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "--no-build-isolation" in readme
    assert "make install TORCH=" in readme


def test_readme_activates_the_environment_before_its_first_bare_command() -> None:
    commands = re.findall(r"^(?!#)\S.*$", "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)), re.MULTILINE)
    first = next(index for index, command in enumerate(commands) if command.startswith(("inf-nerf", "mlflow")))
    assert any("source .venv/bin/activate" in command for command in commands[:first])


FILES_LIKE_KEYS = {"eval.json", "eval.csv", "octree.safetensors", "octree.json", "octree.hash", "data.hash"}


def test_config_keys_and_links_of_the_documents_exist() -> None:
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text()
        named = re.findall(rf"`(?:--set )?((?:{'|'.join(Config.model_fields)})\.\w+)", text)
        assert set(named) <= {*known_keys(Config), *FILES_LIKE_KEYS}, path
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (path.parent / target).exists(), (path, target)


def test_readme_gives_a_reason_for_every_dependency() -> None:
    readme = (ROOT / "README.md").read_text()
    for requirement in REQUIREMENTS:
        assert re.search(rf"^\| `{re.escape(requirement.name)}[`\[]", readme, re.MULTILINE), requirement.name


def test_supported_pythons_are_the_same_everywhere() -> None:
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    assert "(3, 11) <= sys.version_info[:2] < (3, 14)" in (ROOT / "Makefile").read_text()


def test_console_script_is_the_command_line() -> None:
    (script,) = (point for point in entry_points(group="console_scripts") if point.name == "inf-nerf")
    assert script.value == "pipelines.cli:main"


def test_version_is_said_once() -> None:
    assert PROJECT["version"] == inf_nerf.__version__


def test_shell_scripts_parse() -> None:
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_make_refuses_to_install_without_a_supported_python(tmp_path: Path) -> None:
    made = subprocess.run(
        ["make", "-C", str(ROOT), "install", f"VENV={tmp_path / 'venv'}", "PYTHON="],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode != 0
    assert "Python 3.11" in made.stderr
    assert not (tmp_path / "venv").exists()


def test_licence_is_apache() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
