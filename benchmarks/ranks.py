"""One worker against several: what splitting a training over ranks costs in quality, bytes and time, as JSON.

    python -m benchmarks.ranks OUT_DIR --prepared RUN_DIR --config configs/laptop.yaml --steps 2000

Trains a prepared run anew for every case, all with the same steps, global batch and schedule: one worker with several
seeds, then several workers with ``train.foreign`` discount and exchange.  Each training has its directory in OUT_DIR
and is not repeated if it is there, so the command can be given again.  Workers share the cores of the machine (CPUs
per worker are scaled down to fit), so on a small machine steps per second say what the exchange costs and nothing about
scaling.  Photos are held-out ones at pyramid level 0, mean appearance, plain and after the colour correction.  Seams
are measured at the same places in all runs, the borders of the largest number of workers; what is near them less the
interior is, for one worker, what is inherent to these places.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.quality import score
from inf_nerf.files import write_atomic
from inf_nerf.render.parallel import available_cores
from inf_nerf.train.manifest import latest_checkpoint
from inf_nerf.train.opened import Checkpoint, load_checkpoint

PREPARED = ("config.yaml", "octree.safetensors", "run.json", "scene.json", "scene.safetensors", "sources.json", "tiles")
LEAST_TOLERANCE = 0.15  # dB
FOREIGN = ("discount", "exchange")


@dataclass(frozen=True)
class Case:
    """One training."""

    workers: int
    seed: int
    foreign: str

    @property
    def name(self) -> str:
        """For its directory and its row."""
        return f"workers{self.workers}-seed{self.seed}" + (f"-{self.foreign}" if self.workers > 1 else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train all cases, compare them, write JSON and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=str(__doc__).split("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--prepared", type=Path, required=True, metavar="RUN_DIR", help="made by inf-nerf prepare")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE.yaml", help="that it was prepared with")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="trainings on one worker")
    parser.add_argument("--workers", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--foreign", nargs="+", choices=FOREIGN, default=list(FOREIGN))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides")
    wanted = parser.parse_args(arguments)
    cases = [Case(1, seed, "discount") for seed in range(wanted.seeds)]
    cases += [Case(workers, 0, foreign) for workers in wanted.workers for foreign in wanted.foreign]
    for case in cases:
        train(case, wanted)
    places = opened(wanted.out / cases[-1].name).subtrees
    rows = {case.name: figures(wanted.out / case.name, places) for case in cases}
    summary = compare([rows[case.name] for case in cases[: wanted.seeds]])
    write_atomic(wanted.out / "ranks.json", json.dumps({"summary": summary, "runs": rows}, indent=1) + "\n")
    print(table(rows, summary))
    return 0


def train(case: Case, wanted: argparse.Namespace) -> None:
    """Train one case in a directory of its own, or finish it; ends the program if that fails."""
    run_dir: Path = wanted.out / case.name
    for name in PREPARED:
        if not (run_dir / name).exists():
            run_dir.mkdir(parents=True, exist_ok=True)
            source = wanted.prepared / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, run_dir / name)
    settings = {
        "train.seed": case.seed,
        "train.foreign": case.foreign,
        "train.cpus_per_worker": min(1.0, available_cores() / case.workers),
        "train.max_seconds": "null",
        "train.save_seconds": 1e9,
        "eval.right_half": "false",
        "tracking.enabled": "false",
    }
    command = [sys.executable, "-m", "pipelines", "train", "--config", str(wanted.config), "--output-dir", str(run_dir)]
    command += ["--workers", str(case.workers), "--steps", str(wanted.steps)]
    for override in (*(f"{key}={value}" for key, value in settings.items()), *wanted.overrides):
        command += ["--set", override]
    print(f"-- {case.name}", flush=True)
    subprocess.run(command, check=True)


def opened(run_dir: Path) -> Checkpoint:
    """The trained model of a case."""
    path = latest_checkpoint(run_dir)
    assert path is not None, f"{run_dir} was trained and has no checkpoint"
    return load_checkpoint(path)


def figures(run_dir: Path, places: Mapping[int, int]) -> dict[str, Any]:
    """What a training reached and what it cost; seams at the borders of the subtrees ``places``."""
    result = score(replace(opened(run_dir), subtrees=dict(places)))
    log = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        "psnr": result["psnr0"],
        "psnr_corrected": result["colour_corrected"]["psnr0"],
        "seams": result["seams"],
        "steps_per_second": log[-1]["step"] / log[-1]["seconds"],
        **{
            name: statistics.fmean(row[name] for row in log)
            for name in (
                "shared_gradient_bytes",
                "shared_gradient_share",
                "exchange_bytes",
                "exchange_share",
                "idle_share",
            )
        },
    }


def compare(one_worker: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What one worker reaches over its seeds, and how far others may be from it."""
    summary = {}
    for name in ("psnr", "psnr_corrected"):
        values = [row[name] for row in one_worker]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        summary[name] = statistics.fmean(values)
        summary[f"{name}_tolerance"] = max(LEAST_TOLERANCE, 2 * spread)
    return summary


def table(rows: Mapping[str, Mapping[str, Any]], summary: Mapping[str, float]) -> str:
    """All cases as text."""
    names = ("plain dB", "corrected dB", "to one", "near dB", "near-inner", "kB/step", "wait %", "steps/s")
    lines = [f"{'case':<28}" + "".join(f"{name:>13}" for name in names)]
    for case, row in rows.items():
        seams = {place: row["seams"][place]["psnr"] for place in ("near", "interior") if place in row["seams"]}
        near = seams.get("near", float("nan"))
        kilobytes = (row["shared_gradient_bytes"] + row["exchange_bytes"]) / 1e3
        waited = 100 * (row["shared_gradient_share"] + row["exchange_share"])
        values = (
            f"{row['psnr']:.2f}",
            f"{row['psnr_corrected']:.2f}",
            f"{row['psnr_corrected'] - summary['psnr_corrected']:+.2f}",
            f"{near:.2f}",
            f"{near - seams.get('interior', float('nan')):+.2f}",
            f"{kilobytes:.0f}",
            f"{waited:.1f}",
            f"{row['steps_per_second']:.2f}",
        )
        lines.append(f"{case:<28}" + "".join(f"{value:>13}" for value in values))
    lines.append(
        f"one worker: plain {summary['psnr']:.2f} +- {summary['psnr_tolerance']:.2f} dB, corrected "
        f"{summary['psnr_corrected']:.2f} +- {summary['psnr_corrected_tolerance']:.2f} dB (the larger of "
        f"{LEAST_TOLERANCE} dB and two standard deviations)"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
