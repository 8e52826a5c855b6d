"""The cluster of `configs/cluster-local.yaml` on this machine alone, brought up by `ray up`, for tests that submit.

Its head is this machine with a home directory of its own, in which nothing lies but what `ray up` puts there.  Machines
that run tests have no SSH server, so ``ssh`` and ``rsync`` are stood in for by scripts that do what these would there:
run the command in a shell of that home, copy the file into it.  All else is real: Ray's launcher, its shells, the setup
commands, the head with its token and autoscaler.  Instead of making an environment, the first command links this one.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from getpass import getuser
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "configs" / "cluster-local.yaml"
TIMEOUT = 280
TOKEN = "0123456789abcdef" * 4

SSH = """#!/bin/bash
while true; do case "$1" in -tt) shift ;; -i|-o|-L) shift 2 ;; *) break ;; esac; done
shift # user and address
cd {home}
exec env -i HOME={home} USER={user} PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 RAY_TMPDIR={temp} bash -c "$*"
"""
RSYNC = """#!/bin/bash
source="${{@: -2:1}}" target="${{@: -1}}"
target="${{target#*:}}"
target="${{target/#\\~/{home}}}"
mkdir -p "$(dirname "$target")" && cp -rT "$source" "$target"
"""


class Loopback:
    """A head on loopback; ``close`` ends every process that it started."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self._temp = Path(tempfile.mkdtemp(prefix="ray-"))  # short: the names of sockets are limited
        self._file = folder / "cluster.yaml"
        self._token, self._bin = folder / "token", folder / "bin"
        self._token.write_text(TOKEN)
        self._bin.mkdir()
        for name, text in (("ssh", SSH), ("rsync", RSYNC)):
            program = self._bin / name
            program.write_text(text.format(home=self.home, user=getuser(), temp=self._temp))
            program.chmod(0o755)
        ports = free_ports(6)
        self.address = f"http://127.0.0.1:{ports[3]}"
        # what an installed package is; and Ray looks at its workers every two seconds by default
        installed = f"export PYTHONPATH={ROOT} RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.3\n"
        (self.home / ".bashrc").write_text(installed)
        self._file.write_text(yaml.safe_dump(self._cluster(folder, ports)))

    def _cluster(self, folder: Path, ports: list[int]) -> dict[str, Any]:
        """The file with this machine's address and ports, and without what would end others' Rays."""
        cluster = yaml.safe_load(FILE.read_text())
        cluster["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": []}
        key = folder / "key"
        key.write_text("")
        cluster["auth"] = {"ssh_user": getuser(), "ssh_private_key": str(key)}
        cluster["file_mounts"] = {"~/inf-nerf/configs": str(ROOT / "configs"), "~/auth_token": str(self._token)}
        cluster["setup_commands"][:2] = [f"ln -s {sys.prefix} ~/inf-nerf-env"]
        stop, start = cluster["head_start_ray_commands"]
        assert stop == "ray stop"
        names = ("port", "object-manager-port", "node-manager-port", "dashboard-port")
        for name, port in zip(names, ports[:4], strict=True):
            default = next(word for word in start.split() if word.startswith(f"--{name}="))
            start = start.replace(f" {default}", f" --{name}={port}")
        start += f" --dashboard-agent-listen-port={ports[4]} --ray-client-server-port={ports[5]}"
        start += " --min-worker-port=0 --max-worker-port=0"  # any that is free: other Rays may run here
        start += f" --num-cpus=4 --object-store-memory={200 << 20}"
        cluster["head_start_ray_commands"] = [start.replace("--dashboard-host=0.0.0.0 ", "")]
        return cluster

    def up(self) -> str:
        """Bring the head up; what Ray said."""
        made = self.ray("up", "-y", "--no-config-cache", "--disable-usage-stats", str(self._file))
        assert made.returncode == 0, made.stdout
        return made.stdout

    def submit(self, script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ray submit` of a script with arguments."""
        return self.ray("submit", "--no-config-cache", str(self._file), str(script), "--", *arguments)

    def job(self, verb: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`ray job` from the root of this repository."""
        return self.ray("job", verb, "--address", self.address, *arguments, **environment)

    def ray(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The `ray` command of somebody who has the token; its output and errors are joined."""
        variables = {
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "RAY_TMPDIR": str(self._temp),
            "TMPDIR": str(self._temp),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token),
            "COLUMNS": "200",
        }
        program = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
        return subprocess.run(
            program,
            cwd=ROOT,
            env={**os.environ, **variables, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )

    def close(self) -> None:
        deadline = time.monotonic() + 20
        while started := [process for process in psutil.process_iter() if self._is_ours(process)]:
            for process in started:
                with suppress(psutil.NoSuchProcess):
                    process.terminate() if time.monotonic() < deadline else process.kill()
            psutil.wait_procs(started, timeout=2)  # and look again: some may just have been started
        shutil.rmtree(self._temp, ignore_errors=True)

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("HOME") == str(self.home)
        except psutil.Error:
            return False


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(what: Any, seconds: float = TIMEOUT) -> Any:
    """The first true value of ``what``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(f"nothing for {seconds} s")
