"""Trainings in processes of their own, on real Ray workers, for tests that kill, stop and interrupt them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from inf_nerf.config import Config, load_config
from inf_nerf.train.manifest import latest_checkpoint
from pipelines import prepare, synth

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 280
STEPS, SAVE_EVERY = 240, 30
WORKER = "RayTrainWorker"  # in the title of its process
# the demo's city in fewer and smaller photos, the demo's fields with smaller tables
CITY = {"blocks": 3, "photos": 24, "size": 64, "seed": 0}
SETTINGS = (
    *("scene.pyramid_levels=2", "octree.num_levels=3", "octree.min_points=4", "field.num_levels=4"),
    *("field.log2_table_size=10", "field.max_res=32", "field.hidden_density=16", "field.hidden_color=16"),
    *("field.appearance_dim=4", "sampler.max_samples=64", "sampler.occupancy_res=8", "data.tile_size=16"),
    *("loss.regularised_points=64", "loss.depth_rays=32", "train.batch_size=512", "train.val_rays=64"),
    *("train.lr_init=0.02", "train.lr_final=0.001", "train.num_workers=2", "train.cpus_per_worker=0.5"),
    *(f"train.steps={STEPS}", f"train.save_every={SAVE_EVERY}", "train.log_every=2", "train.keep_checkpoints=99"),
    *("eval.right_half=false", "tracking.enabled=false"),
)


def settings(*overrides: str) -> Config:
    return load_config(ROOT / "configs/demo.yaml", (*SETTINGS, *overrides))


def prepared_city(folder: Path) -> Path:
    """A run directory that is ready to be trained; made without Ray."""

    def cut_here(config: Config, photos: list[int], run_dir: Path, identity: str) -> Any:
        for photo in photos:
            yield prepare.cut_and_write({"photo": photo}, config, str(run_dir), identity)

    before, prepare._cut_by_ray = prepare._cut_by_ray, cut_here
    try:
        synth.run(folder / "city", **CITY)
        prepare.run(settings(), folder / "city", folder / "run")
    finally:
        prepare._cut_by_ray = before
    return folder / "run"


class Training:
    """``inf-nerf train`` on a copy of a prepared run, or again on the same one."""

    def __init__(
        self,
        run_dir: Path,
        *overrides: str,
        prepared: Path | None = None,
        resume: str | None = None,
        **environment: str,
    ) -> None:
        self.run_dir = run_dir
        if prepared is not None:
            shutil.copytree(prepared, run_dir)
        config = run_dir.with_name(f"{run_dir.name}.yaml")
        config.write_text(settings(*overrides).to_yaml())
        self._output = run_dir.with_name(f"{run_dir.name}-{time.monotonic_ns()}.txt")
        command = ["train", "--config", str(config), "--output-dir", str(run_dir)]
        command += ["--resume", resume] if resume is not None else []
        # Ray looks at its workers every two seconds by default, and waits a minute for those of a lost node
        quick = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}
        with open(self._output, "w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines", *command],
                cwd=run_dir.parent,
                env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **quick, **environment},
                stdout=output,
                stderr=output,
            )

    @property
    def said(self) -> str:
        return self._output.read_text()

    def rows(self) -> list[dict[str, Any]]:
        path = self.run_dir / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def step(self) -> int:
        """The last step that was logged; 0 before."""
        rows = self.rows()
        return rows[-1]["step"] if rows else 0

    def saved(self) -> int:
        """The step of the newest checkpoint; 0 before."""
        newest = latest_checkpoint(self.run_dir)
        return int(newest.name) if newest is not None else 0

    def psnr(self) -> float:
        return json.loads((self.run_dir / "eval.json").read_text())["psnr"]

    def workers(self) -> list[psutil.Process]:
        """The processes of this training's ranks on a Ray of its own."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if WORKER in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return sorted(found, key=lambda process: process.pid)

    def wait_for(self, what: Callable[[], Any]) -> Any:
        """The first true value of ``what``; fails where the training ends before, or after a while."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            found = what()
            if found:
                return found
            assert self.process.poll() is None, self.said
            time.sleep(0.02)
        raise AssertionError(self.said)

    def end(self, code: int, number: signal.Signals | None = None) -> str:
        """Send a signal if one is named, wait for the end and its exit code; what the training said."""
        if number is not None:
            self.process.send_signal(number)
        assert self.process.wait(WAIT_SECONDS) == code, self.said
        assert "Traceback" not in self.said
        return self.said

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
