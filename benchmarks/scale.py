"""What a city, a country and more would take: the parts that need no cluster, run at those sizes.

    python -m benchmarks.scale                     some minutes
    python -m benchmarks.scale --quick             small trees, few photos: a look
    python -m benchmarks.scale --rays-per-second 1e6 --network-mb-s 5000    other inputs

Partitions, the ranks that a photo's tiles go to, manifests, the arrays of a tree and positions in float32 are made and
measured here, on trees of `benchmarks.growth`.  The rest is arithmetic on the inputs, which are printed first: measured
rates, and assumptions about disks, networks and object stores.  Letters: N nodes, W ranks, T tiles.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.growth import FINEST_GSD_M, City, laptop, node_bytes, working_sets
from benchmarks.street_grid import StreetGrid, street_views
from inf_nerf.config import Config
from inf_nerf.octree.build import build_octree
from inf_nerf.octree.partition import SHARED, Partition, make_partition
from inf_nerf.octree.routing import route
from inf_nerf.octree.tiles import tile_boxes
from inf_nerf.octree.topology import BACKGROUND_KEY, Octree, key_name
from inf_nerf.render.poses import look_at

# levels below the root, depth in parts of the width, points per m^2, points that make a node
TREES = ((6, 1.0, 0.12, 6), (8, 0.5, 0.12, 6), (10, 0.5, 0.01, 1))  # about 10^4, 10^5 and 10^6 nodes
QUICK_TREES = ((4, 1.0, 0.12, 6), (5, 1.0, 0.12, 6))
RANKS, QUICK_RANKS = (10, 100, 1000), (4, 16)
PHOTOS, QUICK_PHOTOS = 20, 2
PHOTO_SIZE, PHOTO_DEGREES, FLIGHT_M = (4000, 3000), 80.0, 120.0  # a pixel covers about the finest gsd
STEEPEST, FLATTEST = 90.0, 45.0  # degrees below the horizon
PYRAMID = 5  # levels of a photo
MANIFESTS, QUICK_MANIFESTS = (10_000, 100_000, 1_000_000), (1000, 10_000)
PACKS = (1, 2, 3)  # levels that a file holds
EXTENTS = (8, 10, 12, 14, 16, 18, 19)  # levels below the root
RAYS = 200_000


@dataclass(frozen=True)
class Inputs:
    """What is taken for granted."""

    rays_per_second: float = 19_300.0  # of a worker with one CPU core: docs/performance.md, Boruszyn
    passes: float = 3.2  # rays of that training per level-0 pixel of its photos
    rays_per_step: float = 2048.0  # of a worker
    photo_megapixels: float = 20.0
    photos_per_node: float = 10.0
    shared_touched: float = 1.0  # share of the shared nodes whose gradients travel in a step
    workers_per_machine: float = 16.0
    disk_mb_s: float = 500.0  # of a machine
    network_mb_s: float = 1250.0  # of a machine: 10 Gbit/s
    request_ms: float = 30.0  # until an object store sends the first byte
    requests_at_once: float = 16.0
    store_mb_s: float = 100.0  # of one request from then on


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the inputs and every table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=str(__doc__).split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small trees and few photos")
    for field in fields(Inputs):
        parser.add_argument("--" + field.name.replace("_", "-"), type=float, default=field.default)
    wanted = vars(parser.parse_args(arguments))
    quick = wanted.pop("quick")
    inputs = Inputs(**wanted)
    show("inputs", [vars(inputs)])
    trees = [grown(*size) for size in (QUICK_TREES if quick else TREES)]
    ranks = QUICK_RANKS if quick else RANKS
    show("the tree in every process", [tree_row(tree) for _, tree in trees])
    parts = [(tree, made(tree, count)) for _, tree in trees for count in ranks if count < tree.num_nodes / 10]
    show("partition", [partition_row(tree, part) for tree, part in parts])
    show("shared gradients", [gradient_row(part.partition, inputs) for _, part in parts])
    seen = {tree: photographed(city, tree, QUICK_PHOTOS if quick else PHOTOS) for city, tree in trees}
    show("tiles", [tile_row(tree, seen[tree], part.partition) for tree, part in parts])
    show("manifest", [manifest_row(count) for count in (QUICK_MANIFESTS if quick else MANIFESTS)])
    show("a view from an object store", [row for city, tree in trees for row in request_rows(city, tree, inputs)])
    show("float32", [precision_row(levels) for levels in EXTENTS])
    show("whole trainings", list(totals(inputs)))
    return 0


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """A table of rows with the same columns."""
    text = [[str(name) for name in rows[0]]] + [[_text(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    print(f"\n{title}")
    if len(rows) == 1:
        print("\n".join(f"  {name}: {value}" for name, value in zip(*text, strict=True)), flush=True)
        return
    for line in text:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)), flush=True)


def grown(levels: int, aspect: float, per_m2: float, min_points: int) -> tuple[City, Octree]:
    """A city and its tree."""
    city = City.of(levels, aspect)
    config = city.octree.model_copy(update={"min_points": min_points})
    return city, build_octree(*city.points(per_m2), config, laptop().field.max_res)


def tree_row(tree: Octree) -> dict[str, Any]:
    """Bytes that the arrays of a tree take in every process that holds all of it."""
    arrays = sum(_bytes(getattr(tree, field.name)) for field in fields(Octree))
    table = sum(map(_bytes, tree.descent))
    return {
        "nodes": tree.num_nodes,
        "arrays MB": arrays / 1e6,
        "routing table MB": table / 1e6,
        "bytes/node": (arrays + table) / tree.num_nodes,
    }


@dataclass(frozen=True)
class Made:
    """A partition and the seconds that it took."""

    partition: Partition
    seconds: float


def made(tree: Octree, num_ranks: int) -> Made:
    """Partition a tree with one shared level at least."""
    started = time.perf_counter()
    partition = make_partition(tree, num_ranks, 1)
    return Made(partition, time.perf_counter() - started)


def partition_row(tree: Octree, part: Made) -> dict[str, Any]:
    """How even a partition is."""
    nodes = [len(owned) for owned in part.partition.owned]
    weight = dict(zip(tree.keys.tolist(), tree.num_points.tolist(), strict=True))
    loads = [sum(weight[key] for key in roots) for roots in part.partition.roots]
    started = time.perf_counter()
    part.partition.octree(tree, 0)
    return {
        "nodes": tree.num_nodes,
        "ranks": len(nodes),
        "seconds": part.seconds,
        "cut for a rank, s": time.perf_counter() - started,
        "shared nodes": len(part.partition.shared) - 1,
        "subtrees": sum(map(len, part.partition.roots)),
        "nodes of a rank": sum(nodes) / len(nodes),
        "most nodes / mean": max(nodes) * len(nodes) / sum(nodes),
        "most points / mean": max(loads) * len(loads) / sum(loads),
    }


def gradient_row(partition: Partition, inputs: Inputs) -> dict[str, Any]:
    """What averaging gradients sends in a step, if every shared node is touched, and beside the rest of the step.

    A ring sends 2 (W - 1) / W times what is averaged over every link; the workers of a machine share one.
    """
    shared = (len(partition.shared) - 1) * inputs.shared_touched + 1  # and the background
    megabytes = shared * parameters(laptop()) * 4 / 1e6
    ring = 2 * (partition.num_ranks - 1) / partition.num_ranks
    sent = megabytes * ring / inputs.network_mb_s
    step = inputs.rays_per_step / inputs.rays_per_second
    return {
        "ranks": partition.num_ranks,
        "shared": len(partition.shared) - 1,
        "MB averaged": megabytes,
        "ms on the network": 1e3 * sent,
        "ms of the step": 1e3 * step,
        "of the step": sent / step,
        "in bf16, every 8 steps": sent / step / 16,
    }


def tile_row(tree: Octree, seen: Sequence[Tensor], partition: Partition) -> dict[str, Any]:
    """To how many ranks the tiles of photos go; ``seen`` holds for each photo what :func:`nodes_seen` returns."""
    owner_of = torch.cat([partition.owners_of(tree.keys), torch.tensor([SHARED])])  # [N + 1]
    ranks, per_photo = [], []
    for node in seen:
        owner = owner_of[node]  # [T, 5]
        tile, place = torch.nonzero(owner != SHARED, as_tuple=True)
        pairs = torch.unique(tile * partition.num_ranks + owner[tile, place])
        ranks.append(torch.bincount(pairs // partition.num_ranks, minlength=len(node)))  # [T]
        per_photo.append(len(torch.unique(pairs % partition.num_ranks)))
    counts = torch.cat(ranks)
    copies, size = float(counts.clamp(min=1).double().mean()), laptop().data.tile_size
    tiles = len(counts) / len(seen)
    return {
        "nodes": tree.num_nodes,
        "ranks": partition.num_ranks,
        "tiles/photo": tiles,
        "ranks/photo": sum(per_photo) / len(seen),
        "ranks/tile": copies,
        "tiles of 2 and more": float((counts > 1).double().mean()),
        "of shared nodes alone": float((counts == 0).double().mean()),
        "MB/photo read": copies * tiles * 3 * size * size / 1e6,
    }


def photographed(city: City, tree: Octree, count: int) -> list[Tensor]:
    """What the tiles of ``count`` photos see, taken over random places of the city."""
    draw = np.random.default_rng(5)
    return [nodes_seen(city, tree, _flight(city.grid, draw)) for _ in range(count)]


def manifest_row(num_nodes: int) -> dict[str, Any]:
    """A manifest of two files a node: how large it is, how long it takes to write and to read."""
    keys = range(8**7, 8**7 + num_nodes)
    digest = "0" * 64
    files = {
        f"{folder}/{key_name(key)}.safetensors": {"bytes": 1_000_000, "sha256": digest}
        for folder in ("nodes", "optimiser")
        for key in keys
    }
    started = time.perf_counter()
    text = json.dumps({"files": files}, indent=1)
    written = time.perf_counter()
    json.loads(text)
    return {
        "nodes": num_nodes,
        "files": len(files),
        "manifest MB": len(text) / 1e6,
        "bytes/node": len(text) / num_nodes,
        "seconds to write": written - started,
        "seconds to read": time.perf_counter() - written,
    }


def request_rows(city: City, tree: Octree, inputs: Inputs) -> Iterator[dict[str, Any]]:
    """What the first view from a street costs if one file holds subtrees of so many levels, read whole or in ranges."""
    view = working_sets(city, tree, street_views(1))[0]
    megabytes = len(view) * node_bytes() / 1e6
    for levels in PACKS:
        # the node on top of the file that holds each node; the last level, which has most, is the last of its files
        pack = tree.keys >> 3 * ((tree.level - tree.num_levels) % levels)
        files, asked = torch.unique(pack), torch.unique(pack[view])
        whole = int(torch.isin(pack, asked).sum()) * node_bytes() / 1e6
        waits = math.ceil(len(asked) / inputs.requests_at_once) * inputs.request_ms / 1e3
        yield {
            "nodes": tree.num_nodes,
            "levels a file": levels,
            "files": len(files),
            "nodes of the view": len(view),
            "requests": len(asked),
            "MB of ranges": megabytes,
            "MB of whole files": whole,
            "seconds, ranges": waits + megabytes / (inputs.store_mb_s * inputs.requests_at_once),
            "seconds, whole": waits + whole / (inputs.store_mb_s * inputs.requests_at_once),
        }


def precision_row(levels: int) -> dict[str, Any]:
    """How far positions on rays lie from where they should, computed in float32 scene coordinates.

    Cameras stand anywhere in the cube; the error of the origin's own rounding is counted too.
    """
    generator = torch.Generator().manual_seed(levels)
    origin = torch.rand(RAYS, 3, generator=generator, dtype=torch.float64) * 2 - 1
    direction = torch.randn(RAYS, 3, generator=generator, dtype=torch.float64)
    direction /= direction.norm(dim=1, keepdim=True)
    distance = torch.rand(RAYS, 1, generator=generator, dtype=torch.float64) * 0.1
    exact = origin + direction * distance
    single = torch.addcmul(origin.float(), direction.float(), distance.float()).double()
    error = (single - exact).norm(dim=1)
    config = laptop()
    gsd = 2.0 / (config.field.max_res * config.octree.res_upsample) / 2**levels
    return {
        "levels": levels + 1,
        "extent km": 2 / gsd * FINEST_GSD_M / 1e3,
        "extent / gsd": 2 / gsd,
        "error / gsd": float(error.mean()) / gsd,
        "worst": float(error.max()) / gsd,
    }


def totals(inputs: Inputs) -> Iterator[dict[str, Any]]:
    """Whole trainings, with the nodes of configs/laptop.yaml and with those of the paper.

    A worker holds values, gradients and two moments of its nodes; a save writes all but the gradients.
    """
    for name, nodes in (("city", 1e4), ("country", 1e7), ("continent", 1e9)):
        for kind, config in (("laptop", laptop()), ("paper", Config())):
            values, days = 4 * parameters(config), 30
            leaf_km2 = (FINEST_GSD_M * config.field.max_res * config.octree.res_upsample / 1e3) ** 2
            pixels = nodes * inputs.photos_per_node * inputs.photo_megapixels * 1e6
            worker_hours = pixels * inputs.passes / inputs.rays_per_second / 3600
            workers = max(1.0, worker_hours / 24 / days)
            yield {
                "": name,
                "nodes": f"{nodes:.0e}",
                "of": kind,
                "km2": nodes * 0.5 * leaf_km2,  # half of a city's nodes are leaves on the ground
                "values TB": nodes * values / 1e12,
                "optimiser TB": nodes * 2 * values / 1e12,
                "tiles TB": pixels * 4 / 1e12,  # a third more for the pyramid, three bytes a pixel
                "worker hours": worker_hours,
                "workers for 30 days": workers,
                "GB a worker": 4 * values * nodes / workers / 1e9,
                "s for a save": 3 * nodes * values / 1e6 / (workers / inputs.workers_per_machine * inputs.disk_mb_s),
            }


def parameters(config: Config) -> int:
    """Numbers that one node trains."""
    from inf_nerf.field.field import Field

    return Field(config.field, torch.tensor([BACKGROUND_KEY]), seed=0).num_parameters


def nodes_seen(city: City, tree: Octree, pose: Tensor) -> Tensor:
    """Nodes [T, 5] that answer at the corners and the middle of each tile of each level of a photo, taken from ``pose``
    [3, 4] in metres; N where a ray meets nothing."""
    cameras = city.cameras(pose[None], *PHOTO_SIZE, PHOTO_DEGREES)
    places = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [1.0, 1.0]])
    found = []
    for level in range(PYRAMID):
        boxes = torch.from_numpy(tile_boxes(*cameras.level_size(0, level), laptop().data.tile_size))  # [T, 4]
        xy = (boxes[:, None, :2] + ((boxes[:, None, 2:] - 1) * places).long()).reshape(-1, 2)
        rays = cameras.rays(torch.zeros(len(xy), dtype=torch.int64), torch.full((len(xy),), level), xy)
        seen = city.surface(rays, pose[:, 3])
        node = torch.full((len(xy),), tree.num_nodes)
        node[seen.pixel], _ = route(tree, *seen.surface)
        found.append(node.view(-1, len(places)))
    return torch.cat(found)


def _flight(grid: StreetGrid, draw: np.random.Generator) -> Tensor:
    """Pose [3, 4] in metres of a drone somewhere over the city that looks down at 45 degrees or steeper."""
    half = np.array([grid.width_m, grid.depth_m]) / 2
    eye = np.array([*(draw.uniform(-0.9, 0.9, 2) * half), FLIGHT_M])
    angle, fall = draw.uniform(0, 2 * np.pi), np.radians(draw.uniform(FLATTEST, STEEPEST))
    way = np.array([np.cos(angle) * np.cos(fall), np.sin(angle) * np.cos(fall), -np.sin(fall)])
    return torch.from_numpy(look_at(eye, eye + way))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
