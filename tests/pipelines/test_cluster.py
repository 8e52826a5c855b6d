"""The cluster file is accepted by Ray's own validator and says nothing that the repository contradicts."""

import re
import shlex
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config

from inf_nerf.config import load_config
from pipelines.cli import app

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def validate(cluster: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare_config(deepcopy(cluster))
    validate_config(prepared)
    return prepared


def test_ray_accepts_the_cluster_file(cluster: dict[str, Any]) -> None:
    prepared = validate(cluster)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_the_cluster_grows_and_shrinks(cluster: dict[str, Any]) -> None:
    worker = cluster["available_node_types"]["worker"]
    assert worker["min_workers"] < worker["max_workers"] <= cluster["max_workers"]


@pytest.mark.parametrize(
    ("section", "right", "wrong"),
    [
        (None, "setup_commands", "setup_comands"),
        (None, "max_workers", "max_worker"),
        ("docker", "run_options", "run_option"),
    ],
)
def test_ray_refuses_a_typo(cluster: dict[str, Any], section: str | None, right: str, wrong: str) -> None:
    part = cluster if section is None else cluster[section]
    part[wrong] = part.pop(right)
    with pytest.raises(Exception, match=wrong):
        validate(cluster)


def test_nodes_install_from_the_constraints_file(cluster: dict[str, Any]) -> None:
    (target,) = (target for target, source in cluster["file_mounts"].items() if source == ".")
    commands = "\n".join(cluster["setup_commands"])
    assert f"-c {target}/constraints.txt" in commands
    assert f"-e {target}" in commands


def test_nodes_run_the_pinned_ray_on_a_supported_python(cluster: dict[str, Any]) -> None:
    found = re.search(r":(?P<ray>[\d.]+)-py(?P<major>3)(?P<minor>\d+)", cluster["docker"]["image"])
    assert found is not None
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert Version(found["ray"]) == Version(pinned[1])
    assert 11 <= int(found["minor"]) <= 13


def test_commands_to_start_ray_parse(cluster: dict[str, Any]) -> None:
    from ray.scripts.scripts import cli

    for line in (*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]):
        program, name, *arguments = line.split()
        assert program == "ray"
        cli.commands[name].make_context(name, arguments)  # raises where an option is unknown


def commands_of_the_comment() -> list[list[str]]:
    """The indented command lines above the first key, as words."""
    comment = re.match(r"(#.*\n)+", (ROOT / "cluster.yaml").read_text())
    assert comment is not None
    lines = comment[0].replace("\\\n#", "").splitlines()
    return [shlex.split(line[1:], comments=True) for line in lines if line.startswith("#   ")]


def test_commands_of_the_comment_parse() -> None:
    from ray.dashboard.modules.job.cli import submit
    from ray.scripts.scripts import cli

    found = commands_of_the_comment()
    assert [command[1] for command in found] == ["up", "rsync-up", "dashboard", "job", "rsync-down", "down"]
    for program, name, *arguments in found:
        assert program == "ray"
        if name == "job":
            submit.make_context("submit", arguments[1:])
        else:
            assert arguments[0] == "cluster.yaml"
            cli.commands[name].make_context(name, arguments)


def test_the_job_trains_on_storage_that_every_container_mounts(cluster: dict[str, Any]) -> None:
    (job,) = (command for command in commands_of_the_comment() if command[1] == "job")
    assert job[2] == "submit"
    assert job[job.index("--working-dir") + 1] == "."
    entrypoint = job[job.index("--") + 1 :]
    assert entrypoint[:3] == ["python", "-m", "pipelines.train"]
    stage: Any = typer.main.get_command(app)
    options = stage.commands["train"].make_context("train", entrypoint[3:]).params
    assert (ROOT / options["config"]).is_file()
    load_config(ROOT / options["config"], options["overrides"])
    (volume,) = (text for text in cluster["docker"]["run_options"] if text.startswith("--volume "))
    host, _, container = volume.removeprefix("--volume ").partition(":")
    assert any("mount -t nfs4 " in line and line.endswith(f" {host}") for line in cluster["initialization_commands"])
    database = options["overrides"][0].removeprefix("tracking.uri=sqlite:///")
    for path in (options["data_root"], options["output_dir"], Path(database)):
        assert path.is_relative_to(container), path


def test_what_a_job_uploads_leaves_out_runs_and_environments() -> None:
    ignored = set((ROOT / ".rayignore").read_text().split())
    assert {".venv/", "runs/", "mlruns/", "*.db", ".git/"} <= ignored
