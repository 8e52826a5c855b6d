"""Ray's own validator and parsers accept the cluster files, which say nothing that the repository contradicts."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray.autoscaler
import typer
import yaml
from packaging.version import Version
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.util import prepare_config, validate_config

from inf_nerf.config import load_config
from pipelines.cli import app

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "configs/cluster-local.yaml")
COMMANDS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
            "head_start_ray_commands", "worker_start_ray_commands")  # fmt: skip


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest) -> Path:
    return ROOT / request.param


@pytest.fixture
def cluster(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


@pytest.fixture
def aws() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def validate(cluster: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare_config(deepcopy(cluster))
    validate_config(prepared)
    return prepared


def test_ray_accepts_the_cluster_file(cluster: dict[str, Any]) -> None:
    prepared = validate(cluster)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def parts(cluster: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every key whose name Ray knows."""
    found = []
    for key, value in cluster.items():
        if path != ("available_node_types",):
            found.append((*path, key))
        if isinstance(value, dict) and key not in ("provider", "file_mounts", "node_config", "resources"):
            found += parts(value, (*path, key))
    return found


def test_ray_refuses_a_typo_in_any_key(cluster: dict[str, Any]) -> None:
    for *path, key in parts(cluster):
        wrong = deepcopy(cluster)
        part = wrong
        for name in path:
            part = part[name]
        typo = f"{key}s"
        part[typo] = part.pop(key)
        with pytest.raises(Exception, match=f"'{typo}' was unexpected|'{key}' is a required|Must provide|^'provider'$"):
            validate(wrong)


def test_keys_of_the_provider_are_known(cluster: dict[str, Any]) -> None:
    """Ray takes any key there, for providers of one's own."""
    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    assert set(cluster["provider"]) <= set(schema["properties"]["provider"]["properties"])


def test_every_command_is_one_that_bash_can_read(cluster: dict[str, Any]) -> None:
    commands = [command for section in COMMANDS for command in cluster.get(section, [])]
    assert len(commands) > 5
    for command in commands:
        *shell, script = _with_interactive(command)  # what Ray makes of it: a here-document, for one, gets lost in it
        assert shell[0] == "bash"
        subprocess.run(["bash", "-n", "-c", *shlex.split(script)], check=True)


def test_ray_reads_the_commands_that_start_it(cluster: dict[str, Any]) -> None:
    from ray.scripts.scripts import cli

    ports = []
    for section in ("head_start_ray_commands", "worker_start_ray_commands"):
        for line in cluster[section]:
            program, name, *arguments = line.split()
            assert program == "ray"
            options = cli.commands[name].make_context(name, arguments).params  # raises where an option is unknown
            ports += [options["object_manager_port"], options["node_manager_port"]] if name == "start" else []
    assert ports == [8076, 8077, 8076, 8077]
    port = re.findall(r" --port=(\d+)", cluster["head_start_ray_commands"][-1])[0]
    assert f"--address=$RAY_HEAD_IP:{port} " in cluster["worker_start_ray_commands"][-1]


def test_one_token_reaches_every_node_and_is_asked_for(cluster: dict[str, Any], file: Path) -> None:
    assert cluster["file_mounts"]["~/auth_token"] == "~/.ray/auth_token"  # where `ray get-auth-token` writes it
    home = "/home/ray" if "docker" in cluster else "~"
    text = file.read_text()
    assert "RAY_AUTH_MODE=token" in text and f"RAY_AUTH_TOKEN_PATH={home}/auth_token" in text
    assert "disabled" not in text


def test_nodes_wait_for_a_save_and_scripts_join_the_cluster(file: Path) -> None:
    text = file.read_text()
    assert int(re.findall(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", text)[0]) >= 60
    assert "RAY_ADDRESS=auto" in text


def test_nodes_install_from_the_constraints_file(cluster: dict[str, Any]) -> None:
    (target,) = (target for target, source in cluster["file_mounts"].items() if source == ".")
    commands = "\n".join(cluster["setup_commands"])
    assert f"-c {target}/constraints.txt" in commands
    assert f"-e {target}" in commands


def test_the_cluster_grows_and_shrinks_in_two_kinds_of_workers(aws: dict[str, Any]) -> None:
    workers = {name: kind for name, kind in aws["available_node_types"].items() if name != aws["head_node_type"]}
    assert set(workers) == {"gpu_worker", "data_worker"}
    for kind in workers.values():
        assert kind["min_workers"] < kind["max_workers"]
    assert sum(kind["max_workers"] for kind in workers.values()) == aws["max_workers"]


def test_a_cluster_of_own_machines_has_all_of_them() -> None:
    cluster = yaml.safe_load((ROOT / "configs/cluster-local.yaml").read_text())
    (kind,) = validate(cluster)["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(cluster["provider"]["worker_ips"])


def pinned_ray() -> Version:
    found = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return Version(found[1])


def test_nodes_run_the_pinned_ray_on_a_supported_python(aws: dict[str, Any]) -> None:
    found = re.search(r":(?P<ray>[\d.]+)-py(?P<major>3)(?P<minor>\d+)", aws["docker"]["image"])
    assert found is not None
    assert Version(found["ray"]) == pinned_ray()
    assert 11 <= int(found["minor"]) <= 13


def commands_of_the_comment(file: Path) -> list[list[str]]:
    """The indented command lines above the first key, as words."""
    comment = re.match(r"(#.*\n)+", file.read_text())
    assert comment is not None
    lines = comment[0].replace("\\\n#", "").splitlines()
    return [shlex.split(line[1:], comments=True) for line in lines if line.startswith("#   ")]


def test_commands_of_the_comment_parse(file: Path) -> None:
    from ray.dashboard.modules.job.cli import submit
    from ray.scripts.scripts import cli

    found = commands_of_the_comment(file)
    assert [command[1] for command in found][:2] == ["get-auth-token", "up"]
    assert {"dashboard", "job", "down"} <= {command[1] for command in found}
    for program, name, *arguments in found:
        assert program == "ray"
        if name == "job":
            submit.make_context("submit", arguments[1:])
        else:
            assert name == "get-auth-token" or ROOT / arguments[0] == file
            cli.commands[name].make_context(name, arguments)


def trainings_of_the_comment(file: Path) -> list[dict[str, Any]]:
    """The options of every training that the comment starts."""
    stage: Any = typer.main.get_command(app)
    found = []
    for command in commands_of_the_comment(file):
        if "--" not in command:
            continue
        program = command[: command.index("--")]
        entrypoint = command[command.index("--") + 1 :]
        if command[1] == "job":
            assert program[2] == "submit" and program[program.index("--working-dir") + 1] == "."
            assert entrypoint[:3] == ["python", "-m", "pipelines.train"]
            entrypoint = entrypoint[3:]
        else:
            assert program[-1] == "pipelines/train.py" and (ROOT / program[-1]).is_file()
        found.append(stage.commands["train"].make_context("train", entrypoint).params)
    return found


def test_trainings_of_the_comment_use_storage_that_every_node_mounts(file: Path) -> None:
    trainings = trainings_of_the_comment(file)
    assert len(trainings) == (1 if file.name == "cluster.yaml" else 2)
    for options in trainings:
        config = ROOT / Path(options["config"]).relative_to("inf-nerf" if "inf-nerf" in str(options["config"]) else ".")
        load_config(config, options["overrides"])
        database = options["overrides"][0].removeprefix("tracking.uri=sqlite:///")
        for path in (options["data_root"], options["output_dir"], Path(database)):
            assert path is None or path.is_relative_to("/mnt/inf-nerf"), path


def test_containers_see_the_storage_that_machines_mount(aws: dict[str, Any]) -> None:
    (volume,) = (text for text in aws["docker"]["run_options"] if text.startswith("--volume "))
    host, _, container = volume.removeprefix("--volume ").partition(":")
    assert host == container == "/mnt/inf-nerf"
    assert any("mount -t nfs4 " in line and line.endswith(f" {host}") for line in aws["initialization_commands"])


def test_every_command_of_the_guide_parses() -> None:
    from ray.dashboard.modules.job.cli import job_cli_group
    from ray.scripts.scripts import cli

    stages: Any = typer.main.get_command(app)
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [words for line in lines if (words := shlex.split(line, comments=True))]
    assert len(commands) > 10
    for words in commands:
        if "-m" in words:
            _, _, _, module, *options = words[words.index("--") :]
            name = module.removeprefix("pipelines.")
            stages.commands[name].make_context(name, [*options])
            assert (ROOT / options[options.index("--config") + 1]).is_file()
        if words[0] == "inf-nerf":
            stages.commands[words[1]].make_context(words[1], words[2:])
        elif words[:2] == ["ray", "job"]:
            job_cli_group.commands[words[2]].make_context(words[2], words[3:])
        elif words[0] == "ray":
            cli.commands[words[1]].make_context(words[1], words[2:])
        else:
            assert words[0] in ("make", "export"), words


def uploaded(folder: Path, target: Path) -> set[str]:
    """What Ray uploads of a working directory, whose .gitignore does not count."""
    create_package(str(folder), target, include_gitignore=False)
    with zipfile.ZipFile(target) as package:
        return set(package.namelist())


def test_what_a_job_uploads_leaves_out_runs_and_environments(tmp_path: Path) -> None:
    kept = ("pipelines/train.py", "configs/demo.yaml", "inf_nerf/octree/build.py", "constraints.txt")
    left = (".venv/bin/python", "runs/city/checkpoints/00000010/r.safetensors", "mlflow.db", "mlflow.db-wal",
            "mlruns/0/a/artifacts/b.json", "mlartifacts/c", ".git/HEAD", "inf_nerf/__pycache__/x.pyc", "build/lib/y.py",
            "inf_nerf.egg-info/PKG-INFO", "benchmarks/runs/z", ".pytest_cache/v")  # fmt: skip
    folder = tmp_path / "clone"
    for name in (*kept, *left):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / ".rayignore").write_text((ROOT / ".rayignore").read_text())
    names = uploaded(folder, tmp_path / "package.zip")
    assert set(kept) <= names
    for name in left:
        assert name not in names
        assert name.split("/")[0] in ("inf_nerf", "benchmarks") or name.split("/")[0] not in names


def test_this_repository_is_small_enough_to_upload_and_holds_all_that_a_job_needs(tmp_path: Path) -> None:
    names = uploaded(ROOT, tmp_path / "package.zip")
    assert {"pipelines/train.py", "inf_nerf/config.py", "configs/city.yaml"} <= names
    assert not any(name.startswith((".venv/", ".git/", "runs/", "mlruns/")) for name in names)
    assert (tmp_path / "package.zip").stat().st_size < 20 << 20  # Ray takes up to 512 MiB


DOCKERFILE = ROOT / "configs/docker/Dockerfile"


def image_steps(**arguments: str) -> list[tuple[str, list[str]]]:
    """Instructions of the Dockerfile with their words, arguments of the build put in."""
    values: dict[str, str] = {}
    steps = []
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    for line in (line for line in text.splitlines() if line.strip() and not line.startswith("#")):
        name, _, rest = line.partition(" ")
        for key, value in values.items():
            rest = rest.replace(f"${{{key}}}", value)
        assert "${" not in rest, line
        if name == "ARG":
            key, _, value = rest.partition("=")
            values[key] = arguments.get(key, value)
        steps.append((name, shlex.split(rest)))
    return steps


def test_the_images_have_the_pinned_ray_with_and_without_cuda(aws: dict[str, Any]) -> None:
    for variant in ("gpu", "cpu"):
        (base,) = (words for name, words in image_steps(VARIANT=variant) if name == "FROM")
        assert base == [f"rayproject/ray:{pinned_ray()}-py311-{variant}"]
    assert base[0].replace("-cpu", "-gpu") == aws["docker"]["image"]
    index = "https://download.pytorch.org/whl/cpu"
    installs = [words for name, words in image_steps(TORCH_INDEX=index) if name == "RUN"]
    assert index in installs[0] and "torch" in installs[0]


def test_commands_above_the_dockerfile_set_arguments_that_it_has() -> None:
    commands = commands_of_the_comment(DOCKERFILE)
    assert len(commands) == 2
    declared = {words[0].partition("=")[0] for name, words in image_steps() if name == "ARG"}
    for program, verb, *words in commands:
        assert (program, verb) == ("docker", "build")
        assert ROOT / words[words.index("-f") + 1] == DOCKERFILE
        given = {after.partition("=")[0] for word, after in pairwise(words) if word == "--build-arg"}
        assert given <= declared


@pytest.mark.slow
def test_the_steps_of_the_image_can_be_done_with_what_it_copies(tmp_path: Path) -> None:
    """Copies what the image copies and asks pip what it would install; the engine and the base image are missing."""
    sent = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().split()
    for name, words in image_steps():
        if name == "COPY":
            *sources, target = (word for word in words if not word.startswith("--"))
            for source in sources:
                assert f"!{source}" in sent, source
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, tmp_path / target)
                else:
                    shutil.copy(ROOT / source, tmp_path / target)
        elif name == "RUN":
            assert words[:2] == ["pip", "install"]
            subprocess.run(["bash", "-n", "-c", shlex.join(words)], check=True)
            # what is installed here serves as the index
            program = [sys.executable, "-m", *words, "--dry-run", "--no-index", "--no-build-isolation"]
            done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
