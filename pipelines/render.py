"""Stage ``render``: pictures and videos along a camera path, with figures on how steady and how sparse they are."""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from inf_nerf.places import Place
from inf_nerf.render.colourmap import Picture, as_picture, depth_map, depth_range, level_map
from inf_nerf.render.images import RenderedImage
from inf_nerf.render.paths import named_path
from inf_nerf.render.sheet import draw_legend, png_bytes
from inf_nerf.render.video import VIDEO_SUFFIXES, FrameSink, still_writer, video_writer
from inf_nerf.train.evaluation import level_share
from inf_nerf.train.opened import open_checkpoint
from pipelines.evaluate import find_checkpoint, with_points
from pipelines.frames import Frames, RayFrames, open_to_render

MODES = ("colour", "depth", "level")
DEPTH_MEMORY = 0.85  # part of the depth scale kept from frame to frame, so that its colours do not flicker
ZOOM_END = 1.25  # footprint of a zoom's last frame in gsds of the finest level, which answers below 2
DIGITS = 6


def run(
    run_dir: Place,
    path: str,
    out: Path,
    mode: str = "colour",
    config: Config | None = None,
    memory_budget: str | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Render ``path`` (orbit, spiral, zoom, photos or a JSON file) to ``out`` and return the figures written beside it.

    ``out`` with a video suffix becomes a video, ``.png`` a still of the first frame, and a directory (or a name without
    suffix) numbered stills.  ``mode`` is colour, depth or level.  ``config`` defaults to the checkpoint's; only
    ``render`` and ``eval.chunk_samples`` matter.  ``run_dir`` may also be a checkpoint.  Under a ``memory_budget`` such
    as ``64MB`` or ``25%`` of the model, nodes are read when a frame needs them.  With ``workers``, so many Ray workers
    render frames, each within that budget; the pixels are the same.  Raises :class:`InputError` for input that cannot
    be used.
    """
    console = Console()
    if mode not in MODES:
        raise InputError(f"The mode {mode!r} is unknown; choose one of {', '.join(MODES)}.")
    is_folder = out.is_dir() or not out.suffix
    if not is_folder and out.suffix != ".png" and out.suffix not in VIDEO_SUFFIXES:
        raise InputError(f"{out} is no kind of picture that is written; use {', '.join(VIDEO_SUFFIXES)} or .png.")
    place = find_checkpoint(run_dir)
    whole = open_to_render(place, memory_budget) if workers is None else None
    checkpoint = whole or open_checkpoint(place)
    settings = config or checkpoint.config
    octree = checkpoint.octree
    finest_footprint = ZOOM_END * float(octree.gsd.min()) / settings.octree.footprint_px
    cameras = named_path(path, with_points(checkpoint.scene, run_dir), settings.render, finest_footprint)
    width, height = cameras.cameras.level_size(0, 0)
    num_frames = 1 if out.suffix == ".png" and not is_folder else len(cameras)
    sink: AbstractContextManager[FrameSink]
    if is_folder:
        sink = still_writer(out)
    elif out.suffix == ".png":
        sink = nullcontext(lambda frame: write_atomic(out, png_bytes(frame)))
    else:
        sink = video_writer(out, width, height, cameras.fps)
    frames: Frames | RayFrames
    if whole is not None:
        frames = Frames(whole, cameras, settings, num_frames)
    else:
        frames = RayFrames(place, memory_budget, cameras, settings, num_frames, workers or 1)
    figures = FrameFigures(checkpoint.node_bytes)
    painter = Painter(mode, octree.num_levels)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress, sink as take:
        task = progress.add_task(escape(f"render {path} ({mode})"), total=num_frames)
        for rendered in frames:
            take(painter(rendered))
            figures.add(rendered, level_share(rendered.share, octree))
            progress.advance(task)
    summary = figures.summary()
    if (memory := frames.memory()) is not None:
        summary["memory"] = memory
    beside = out / "frames.json" if is_folder else out.with_name(f"{out.stem}_frames.json")
    write_atomic(beside, json.dumps(summary, indent=1, sort_keys=True) + "\n")
    kind = f"{num_frames} frames of {width} x {height}" if num_frames > 1 else f"{width} x {height}"
    console.print(f"Wrote {out} ({kind}) and {beside}.", markup=False, highlight=False, soft_wrap=True)
    if num_frames > 1:
        console.print(
            f"Mean absolute difference of consecutive frames: median {summary['median_difference']:.4f}, largest "
            f"{summary['max_difference']:.4f} ({summary['max_to_median']:.2f} times the median); nodes touched: "
            f"{min(summary['nodes_touched'])} to {max(summary['nodes_touched'])} of {octree.num_nodes + 1}.",
            highlight=False,
        )
    if memory is not None:
        console.print(
            f"At most {memory['peak_bytes'] / 1e6:.1f} MB of nodes were held of {memory['budget_bytes'] / 1e6:.1f} MB "
            f"allowed; {memory['bytes_read'] / 1e6:.1f} MB of the model's {int(checkpoint.node_bytes.sum()) / 1e6:.1f} "
            "MB were read.",
            highlight=False,
        )
    return summary


class Painter:
    """Turns rendered frames into pictures of one mode; remembers the depth scale of the frames before."""

    def __init__(self, mode: str, num_levels: int) -> None:
        self._mode = mode
        self._num_levels = num_levels
        self._scale: tuple[float, float] | None = None  # logarithms of the nearest and farthest depth

    def __call__(self, rendered: RenderedImage) -> Picture:
        if self._mode == "level":
            return self._with_legend(level_map(rendered.level, rendered.rgb))
        if self._mode == "colour":
            return as_picture(rendered.rgb)
        near, far = np.log(depth_range(rendered.depth, rendered.opacity)).tolist()
        if self._scale is not None:
            near = DEPTH_MEMORY * self._scale[0] + (1 - DEPTH_MEMORY) * near
            far = DEPTH_MEMORY * self._scale[1] + (1 - DEPTH_MEMORY) * far
        self._scale = near, far
        return depth_map(rendered.depth, rendered.opacity, float(np.exp(near)), float(np.exp(far)))

    def _with_legend(self, picture: Picture) -> Picture:
        image = Image.fromarray(picture)
        draw_legend(ImageDraw.Draw(image), 8, image.height - 24, self._num_levels, ink=(255, 255, 255))
        return np.asarray(image)


class FrameFigures:
    """How much consecutive frames differ, and what part of the model each one asks."""

    def __init__(self, node_bytes: Tensor) -> None:
        """``node_bytes`` [M] of each node's file."""
        self._node_bytes = node_bytes
        self._before: RenderedImage | None = None
        self._differences: list[float] = []
        self._nodes: list[int] = []
        self._bytes: list[int] = []
        self._shares: list[dict[str, float]] = []

    def add(self, rendered: RenderedImage, share: dict[str, float]) -> None:
        """Account for the next frame; ``share`` is the part that each octree level answered."""
        if self._before is not None and self._before.rgb.shape == rendered.rgb.shape:
            self._differences.append(float((rendered.rgb - self._before.rgb).abs().double().mean()))
        self._nodes.append(int(rendered.touched.sum()))
        self._bytes.append(int(self._node_bytes[rendered.touched].sum()))
        self._shares.append({level: round(value, DIGITS) for level, value in share.items()})
        self._before = rendered

    def summary(self) -> dict[str, Any]:
        """Differences are of colours in [0, 1], averaged over pixels and channels."""
        largest = max(self._differences, default=0.0)
        median = float(np.median(self._differences)) if self._differences else 0.0
        return {
            "frames": len(self._nodes),
            "differences": [round(value, DIGITS) for value in self._differences],
            "max_difference": round(largest, DIGITS),
            "median_difference": round(median, DIGITS),
            "max_to_median": round(largest / median, 4) if median > 0 else 0.0,
            "nodes_touched": self._nodes,
            "bytes_touched": self._bytes,
            "level_share": self._shares,
        }


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("render")
