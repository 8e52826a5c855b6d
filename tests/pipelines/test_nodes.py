"""Several Ray nodes on one machine: all of them cut photos, workers spread, and a node that is lost comes back."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from inf_nerf.train.manifest import latest_checkpoint, read_manifest
from pipelines import prepare, synth
from tests.pipelines.disturbed import CITY, ROOT, WORKER, Training, settings
from tests.pipelines.loopback import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
store = {"object_store_memory": 200 << 20}
head = {"num_cpus": 3, "include_dashboard": True, "dashboard_port": int(sys.argv[1]), **store}
cluster = Cluster(initialize_head=True, head_node_args=head)
node = cluster.add_node(num_cpus=2, **store)
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "lose":
        cluster.remove_node(node, allow_graceful=False)
    elif line.strip() == "add":
        node = cluster.add_node(num_cpus=2, **store)
    print("done", flush=True)
cluster.shutdown()
"""

# Ray Data begins with few tasks until it knows what they bring; then one node would have cut all these small photos
# before the other's processes are up.
INGEST = """
import sys
import time
from pathlib import Path
import ray
from inf_nerf.config import load_config
from pipelines import prepare
cut, folder = prepare.cut_and_write, Path(sys.argv[1])
def cut_and_note(row, **options):
    (folder / str(row["photo"])).write_text(ray.get_runtime_context().get_node_id())
    begun, until = list(folder.iterdir()), time.monotonic() + 120
    while len(begun) > 4 and time.monotonic() < until and len({file.read_text() for file in folder.iterdir()}) < 2:
        time.sleep(0.1)
    return cut(row, **options)
prepare.cut_and_write = cut_and_note
prepare.run(load_config(Path(sys.argv[2])), Path(sys.argv[3]), Path(sys.argv[4]))
"""


class Nodes:
    """A head with three CPUs and a node with two, in a process of their own; the node can be lost and added again."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, str(free_ports(1)[0])],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.address = self._answer()
        assert self.address

    def ask(self, what: str) -> None:
        assert self._process.stdin is not None
        print(what, file=self._process.stdin, flush=True)
        assert self._answer() == "done"

    def of_workers(self) -> list[int]:
        """For each Ray Train worker the process that is its node."""
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if WORKER in " ".join(process.cmdline()):
                    found.append(process.ppid())
            except psutil.Error:
                continue
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    started = Nodes()
    yield started
    started.close()


@pytest.fixture(scope="module")
def prepared(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was prepared on both nodes; beside it, in ``nodes``, a file a photo that names the one that cut it."""
    folder = tmp_path_factory.mktemp("prepared")
    synth.run(folder / "city", **CITY)
    (folder / "nodes").mkdir()
    (folder / "config.yaml").write_text(settings().to_yaml())
    paths = [str(folder / name) for name in ("nodes", "config.yaml", "city", "run")]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": nodes.address}
    done = subprocess.run(
        [sys.executable, "-c", INGEST, *paths], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_photos_are_cut_on_all_nodes(prepared: Path) -> None:
    read = prepare.read_prepared(prepared)
    cut = {int(file.name): file.read_text() for file in (prepared.parent / "nodes").iterdir()}
    assert sorted(cut) == list(range(len(read.scene.photos)))
    assert len(set(cut.values())) == 2


def test_workers_spread_over_nodes_go_on_without_one_that_is_lost_and_use_it_when_it_is_back(
    nodes: Nodes, prepared: Path, tmp_path: Path
) -> None:
    """Two workers of two CPUs each have no room on one node."""
    running = Training(
        tmp_path / "run",
        *("train.num_workers=[1,2]", "train.cpus_per_worker=2", "train.collective_timeout_seconds=15"),
        *("train.resize_seconds=5", "train.steps=100000", "train.keep_checkpoints=3"),
        prepared=prepared,
        RAY_ADDRESS=nodes.address,
    )

    def saved_by(num_workers: int) -> Callable[[], bool]:
        begun = running.saved()

        def saved() -> bool:
            newest = latest_checkpoint(running.run_dir)
            if newest is None or int(newest.name) <= begun:
                return False
            return read_manifest(newest)["num_workers"] == num_workers

        return saved

    try:
        running.wait_for(saved_by(2))
        assert len(set(nodes.of_workers())) == 2
        nodes.ask("lose")
        running.wait_for(saved_by(1))
        nodes.ask("add")
        running.wait_for(saved_by(2))
        assert len(set(nodes.of_workers())) == 2
        running.end(130, signal.SIGINT)
    finally:
        running.close()
    steps = [row["step"] for row in running.rows()]
    assert steps == sorted(set(steps))
    newest = latest_checkpoint(running.run_dir)
    assert newest is not None and read_manifest(newest)["num_workers"] == 2
