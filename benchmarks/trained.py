"""``python -m benchmarks.trained RUN``: where a step of a trained run spends its time, and what its views take.

python -m benchmarks.trained runs/mine                    the step on one thread, views on all cores
python -m benchmarks.trained runs/mine --steps 40 --out FILE.json

The step is one rank's that owns the whole tree, with the run's own tiles, from its newest checkpoint, half of the
run's batch.  Nothing in the run directory changes.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.profiler import ProfilerActivity, profile

from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from inf_nerf.octree.tiles import tile_file
from inf_nerf.render.images import chunk_rays, render_image
from inf_nerf.render.parallel import available_cores
from inf_nerf.render.paths import zoom
from inf_nerf.render.poses import look_at
from inf_nerf.scene.cameras import Cameras
from inf_nerf.train.assembly import assemble
from inf_nerf.train.checkpoint import restore
from inf_nerf.train.loop import Work, forward
from inf_nerf.train.manifest import latest_checkpoint
from inf_nerf.train.opened import Checkpoint, load_checkpoint
from inf_nerf.train.reservoir import TileBatches
from pipelines.division import Dealing, tile_tables
from pipelines.ingest import read_tiles
from pipelines.prepare import CONFIG_FILE, Prepared, read_prepared
from pipelines.render import ZOOM_END

WARM_UP = 5  # steps
PROFILED = 8  # steps
OPERATIONS = 15  # listed
VIEWS = 3  # test photos
FAR_SIZE = (800, 600)
FARTHER = 1.1  # root gsds that a pixel of the far view covers


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a run and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trained", description="Time a trained run.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args(arguments)
    checkpoint = latest_checkpoint(wanted.run)
    if checkpoint is None:
        raise InputError(f"{wanted.run} holds no complete checkpoint; train it first.")
    torch.set_num_threads(1)
    work = work_of(wanted.run, checkpoint)
    found = {"step": time_steps(work, wanted.steps), "operations": operations(work)}
    opened = load_checkpoint(checkpoint)
    found["views"] = time_views(opened, read_prepared(wanted.run))
    for title, rows in found.items():
        print(f"\n{title}")
        for row in rows if isinstance(rows, list) else [rows]:
            print("  " + "  ".join(f"{name} {value}" for name, value in row.items()))
    if wanted.out is not None:
        write_atomic(wanted.out, json.dumps(found, indent=1) + "\n")
    return 0


def work_of(run_dir: Path, checkpoint: Path) -> Work:
    """The run's training on one rank, where the checkpoint left it."""
    saved = load_config(run_dir / CONFIG_FILE)
    train = saved.train.model_copy(update={"batch_size": max(1, saved.train.batch_size // 2)})
    config: Config = saved.model_copy(update={"train": train})
    prepared = read_prepared(run_dir)
    dealing = Dealing.of(config, prepared.octree, tile_tables(run_dir, prepared))
    files = [tile_file(run_dir, photo) for photo in prepared.scene.train]
    (tiles,) = dealing.tiles(1)["train"]
    names = pa.table({"file": [str(file) for file in files]})
    stream: TileBatches = lambda: read_tiles(names, tiles)  # noqa: E731
    work = assemble(
        config,
        prepared.scene,
        prepared.octree,
        dealing.partition_of(1),
        0,
        stream,
        None,
        prepared.mean_colour,
        device="cpu",
    )
    restore(work, checkpoint)
    return work


def step(work: Work) -> tuple[float, float, float, int]:
    """One step of :func:`inf_nerf.train.loop.train`: seconds forward, backward and updating, and samples marched."""
    times = [time.perf_counter()]
    terms, seen, _ = forward(work, work.reservoir.sample(work.num_rays, work.generator))
    total = torch.stack([getattr(work.config.loss, f"lambda_{name}") * term for name, term in terms.items()]).sum()
    times.append(time.perf_counter())
    total.backward()
    times.append(time.perf_counter())
    work.optimiser.step(1e-3)
    times.append(time.perf_counter())
    work.progress.step += 1
    ahead, back, update = (end - start for start, end in pairwise(times))
    return ahead, back, update, seen.num_samples


def time_steps(work: Work, count: int) -> dict[str, Any]:
    """Medians over ``count`` steps after a warm-up."""
    for _ in range(WARM_UP):
        step(work)
    ahead, back, update, samples = (median(column) for column in zip(*(step(work) for _ in range(count)), strict=True))
    seconds = ahead + back + update
    return {
        "rays": work.num_rays,
        "nodes": work.model.octree.num_nodes,
        "forward_ms": round(1e3 * ahead, 1),
        "backward_ms": round(1e3 * back, 1),
        "update_ms": round(1e3 * update, 1),
        "rays_per_second": round(work.num_rays / seconds),
        "samples_per_ray": round(samples / work.num_rays, 1),
        "us_per_sample": round(1e6 * seconds / samples, 2),
    }


def operations(work: Work) -> list[dict[str, Any]]:
    """The operations that take most of a step, by their own time."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(PROFILED):
            step(work)
    averages = recorded.key_averages()
    total = sum(entry.self_cpu_time_total for entry in averages)
    most = sorted(averages, key=lambda entry: -entry.self_cpu_time_total)[:OPERATIONS]
    return [{"share": f"{entry.self_cpu_time_total / total:6.1%}", "operation": entry.key} for entry in most]


def time_views(checkpoint: Checkpoint, prepared: Prepared) -> list[dict[str, Any]]:
    """Seconds of whole pictures on all cores: test photos at full size, and the far end of the zoom."""
    scene, render = checkpoint.scene, checkpoint.config.render
    named: list[tuple[str, Cameras, int]] = [
        (scene.photos[photo].name, scene.cameras, photo) for photo in scene.test[:VIEWS]
    ]
    finest = ZOOM_END * float(checkpoint.model.octree.gsd.min()) / checkpoint.config.octree.footprint_px
    width, height = FAR_SIZE
    far = zoom(prepared.scene, render.model_copy(update={"width": width, "height": height}), finest)
    named += [("far end of the zoom", far.cameras, 0), ("far view, root level", far_view(checkpoint), 0)]
    return [_view(checkpoint, *view) for view in named]


def far_view(checkpoint: Checkpoint) -> Cameras:
    """A camera so far away, looking down at 45 degrees, that the root answers everything."""
    config, fov = checkpoint.config, checkpoint.config.render.fov_degrees
    footprint = 2 * math.tan(math.radians(fov) / 2) / FAR_SIZE[0] * config.octree.footprint_px  # per unit of distance
    distance = FARTHER * float(checkpoint.model.octree.gsd[0]) / footprint + math.sqrt(3)  # beyond the whole cube
    eye = (0.0, -distance / math.sqrt(2), distance / math.sqrt(2))
    return Cameras.pinhole(torch.from_numpy(np.stack([look_at(eye, (0.0, 0.0, 0.0))])), *FAR_SIZE, fov)


def _view(checkpoint: Checkpoint, name: str, cameras: Cameras, photo: int) -> dict[str, Any]:
    config, cores = checkpoint.config, available_cores()
    rays = chunk_rays(config.eval.chunk_samples, config.sampler.max_samples)
    render = partial(render_image, checkpoint.model, cameras, photo, 0, rays_per_chunk=rays, workers=cores)
    render()  # which also compiles
    started = time.perf_counter()
    seen = render()
    seconds = time.perf_counter() - started
    width, height = cameras.level_size(photo, 0)
    return {
        "view": name,
        "pixels": f"{width}x{height}",
        "threads": cores,
        "seconds": round(seconds, 2),
        "samples_per_ray": round(seen.num_samples / seen.depth.numel(), 1),
        "nodes_touched": int(seen.touched.sum()),
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
