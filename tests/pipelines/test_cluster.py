"""The cluster file is accepted by Ray's own validator and says nothing that the repository contradicts."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config

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


def test_what_a_job_uploads_leaves_out_runs_and_environments() -> None:
    ignored = set((ROOT / ".rayignore").read_text().split())
    assert {".venv/", "runs/", "mlruns/", "*.db", ".git/"} <= ignored
