"""``python -m benchmarks.adaptive``: what an octree gains that adapts, where the sparse points have a hole.

python -m benchmarks.adaptive                        a static and an adaptive tree, as many steps each: some minutes
python -m benchmarks.adaptive --whole                the same where no point is missing
python -m benchmarks.adaptive --steps 400 --out FILE.json

A synthetic city is photographed, and the sparse points in one of its blocks are thrown away, as if the reconstruction
had found no features there: the one that test photos show most of.  The tree is built from the points that are left.
Two trainings in this process draw the same rays; their test photos are scored at pyramid level 0, the pixels that see
the block and the others apart.  One thread.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from inf_nerf.octree.build import build_octree
from inf_nerf.octree.partition import make_partition
from inf_nerf.octree.tiles import cut_photo
from inf_nerf.render.images import chunk_rays, render_image
from inf_nerf.scene.city.folder import CityParameters, write_city
from inf_nerf.scene.city.layout import build_city
from inf_nerf.scene.city.render import cast
from inf_nerf.scene.city.solids import City
from inf_nerf.scene.photos import read_photo
from inf_nerf.scene.points import SparsePoints
from inf_nerf.scene.scene import Scene, load_scene
from inf_nerf.train.assembly import assemble
from inf_nerf.train.loop import Work, train

CITY = CityParameters(blocks=2, photos=64, size=192, seed=0)
STEPS = 1200
UPDATES = 10  # times that the adaptive tree is looked at
# small nodes and photos: minutes on one core
SETTINGS = (
    "octree.num_levels=5", "octree.min_points=12", "octree.subdivision_threshold=0.3", "field.num_levels=4",
    "field.log2_table_size=12", "field.base_res=4", "field.max_res=10", "field.hidden_density=32",
    "field.hidden_color=32", "field.appearance_dim=0", "scene.val_every=0", "scene.pyramid_levels=3",
    "loss.regularised_points=128", "loss.depth_rays=128", "train.batch_size=2048", "train.lr_init=0.02",
    "train.lr_final=0.002", "train.save_every=1000000", "train.save_seconds=1e9",
)  # fmt: skip
THREADS = 1


@dataclass(frozen=True)
class Capture:
    """A photographed city."""

    city: City
    scene: Scene
    tiles: list[pa.Table]  # of the train photos, with the column share
    mean_colour: tuple[float, float, float]
    in_block: dict[int, Tensor]  # [h, w] bool for each test photo: pixels that see the block


def main(arguments: Sequence[str] | None = None) -> int:
    """Train both trees and print what they score."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptive", description=str(__doc__).split("\n")[0])
    parser.add_argument("--whole", action="store_true", help="keep all sparse points")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threshold", type=float, default=None, help="octree.subdivision_threshold")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    wanted = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    config = load_config(None, [*SETTINGS, f"train.steps={wanted.steps}", f"train.seed={wanted.seed}"])
    threshold = config.octree.subdivision_threshold if wanted.threshold is None else wanted.threshold
    adapts = {"update_every": max(1, wanted.steps // UPDATES), "subdivision_threshold": threshold}
    octree = config.octree.model_copy(update=adapts)
    with tempfile.TemporaryDirectory() as folder:
        capture = photograph(CITY, config, Path(folder) / "city", hole=not wanted.whole)
        rows = []
        for name, settings in (("static", config), ("adaptive", config.model_copy(update={"octree": octree}))):
            rows.append(run(name, settings, capture))
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    gains = {name: round(rows[1][name] - rows[0][name], 2) for name in ("block_psnr", "elsewhere_psnr")}
    print("  ".join(f"gain {name} {value:+.2f} dB" for name, value in gains.items()))
    if wanted.out is not None:
        write_atomic(wanted.out, json.dumps({"rows": rows, "gains": gains}, indent=1) + "\n")
    return 0


def photograph(parameters: CityParameters, config: Config, folder: Path, hole: bool) -> Capture:
    """Draw a city and cut its photos; with a ``hole`` the block that test photos show most of has no sparse points."""
    write_city(folder, parameters)
    city, scene = build_city(parameters.blocks, parameters.seed), load_scene(folder, config.scene)
    blocks = {photo: block_seen(city, scene, photo) for photo in scene.test}
    seen = torch.cat([block.flatten() for block in blocks.values()])
    chosen = int(torch.bincount(seen[seen >= 0]).argmax())
    if hole:
        xy = scene.frame.to_world(scene.points.xyz.numpy())[:, :2]
        scene = replace(scene, points=without(scene.points, torch.from_numpy(block_at(city, xy) == chosen)))
    tree = build_octree(scene.points.xyz, scene.points.footprint, config.octree, config.field.max_res)
    tiles, colours = [], []
    for photo in scene.train:
        image = read_photo(scene, photo)
        colours.append(image.reshape(-1, 3).mean(0) / 255)
        table, _ = cut_photo(scene, tree, photo, image, None, config, "")
        tiles.append(table.append_column("share", pa.array(np.ones(len(table)), pa.float32())))
    red, green, blue = np.mean(colours, axis=0).tolist()
    return Capture(city, scene, tiles, (red, green, blue), {photo: blocks[photo] == chosen for photo in scene.test})


def block_at(city: City, xy: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of the block that places [P, 2] in metres lie in, kerb to kerb; -1 in streets and outside."""
    which = [
        np.where((places[:, None] >= kerbs[:, 0]) & (places[:, None] <= kerbs[:, 1]), np.arange(len(kerbs)), -1).max(1)
        for places, kerbs in zip(xy.T, (city.block_x, city.block_y), strict=True)
    ]
    return np.where((which[0] >= 0) & (which[1] >= 0), which[0] * len(city.block_y) + which[1], -1)


def block_seen(city: City, scene: Scene, photo: int) -> Tensor:
    """The block that each pixel of a photo sees [h, w], -1 for none."""
    width, height = scene.cameras.level_size(photo, 0)
    rays = scene.cameras.image_rays(photo, 0)
    origin = scene.frame.to_world(rays.origin.numpy())
    direction = rays.direction.double().numpy() @ scene.frame.rotation
    distance, _ = cast(city, origin, direction / np.linalg.norm(direction, axis=1, keepdims=True))
    hit = np.isfinite(distance)
    xy = (origin + np.where(hit, distance, 0)[:, None] * direction)[:, :2]
    return torch.from_numpy(np.where(hit, block_at(city, xy), -1)).view(height, width)


def without(points: SparsePoints, gone: Tensor) -> SparsePoints:
    """The points but for those of ``gone`` [P] bool."""
    kept, observed = ~gone, ~gone[points.track_point]
    length = points.track_start.diff()[kept]
    return SparsePoints(
        points.xyz[kept],
        points.footprint[kept],
        points.rgb[kept],
        points.error[kept],
        torch.cat((length.new_zeros(1), length.cumsum(0))),
        points.track_photo[observed],
        points.track_xy[observed],
    )


def run(name: str, config: Config, capture: Capture) -> dict[str, Any]:
    """Train a tree on a city and score it."""
    scene = capture.scene
    tree = build_octree(scene.points.xyz, scene.points.footprint, config.octree, config.field.max_res)
    partition = make_partition(tree, 1, config.train.shared_upper_levels)

    def stream() -> Iterator[pa.Table]:
        return iter(capture.tiles)

    work = assemble(config, scene, tree, partition, 0, stream, None, capture.mean_colour)
    rows: list[dict[str, object]] = []
    train(work, rows.append, lambda _: None, lambda: False)
    nodes = work.adaptation.tree
    return {
        "tree": name,
        "nodes_before": tree.num_nodes,
        "nodes": nodes.num_nodes,
        "levels": "+".join(map(str, nodes.level.bincount().tolist())),
        "steps": work.progress.step,
        "seconds": round(work.progress.seconds),
        **score(work, capture),
    }


def score(work: Work, capture: Capture) -> dict[str, float]:
    """PSNR over all test pixels that see the block, and over the others, in dB."""
    config, sums = work.config, torch.zeros(2, 2, dtype=torch.float64)
    rays = chunk_rays(config.eval.chunk_samples, config.sampler.max_samples)
    for photo, inside in capture.in_block.items():
        seen = render_image(work.model, capture.scene.cameras, photo, 0, rays_per_chunk=rays, workers=THREADS)
        target = torch.from_numpy(read_photo(capture.scene, photo).astype(np.float32)) / 255
        error = (seen.rgb - target).square().mean(2).double()
        for place, which in enumerate((inside, ~inside)):
            sums[place] += torch.stack((error[which].sum(), which.sum().double()))
    block, elsewhere = (-10 * math.log10(float(total / count)) for total, count in sums)
    share = float(sums[0, 1] / sums[:, 1].sum())
    return {"block_psnr": round(block, 2), "elsewhere_psnr": round(elsewhere, 2), "block_share": round(share, 3)}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
