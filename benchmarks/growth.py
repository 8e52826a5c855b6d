"""What grows with a city and what does not: nodes that a view touches, memory, routing, building the tree.

    python -m benchmarks.growth                    ten to a hundred thousand nodes, some minutes
    python -m benchmarks.growth --quick OUT.json   a few hundred nodes; also as JSON
    python -m benchmarks.growth OUT.json --plot docs/images/growth.svg

Cities of `benchmarks.street_grid` grow while the finest gsd (5 cm), the height of houses and the density of points
stay as they are.  The root cube spans the city, so the tree gets a level with each doubling.  Every tree comes from
points through `build_octree`, in a process of its own whose memory is sampled.  Views are 800 x 600 pinholes around the
middle: pedestrians who look along their street to the horizon, and drones that see the horizon too.  Nodes hold the
fields of `configs/laptop.yaml`, untrained.  Everything runs on one thread.
"""

import argparse
import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import psutil
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.__main__ import describe_machine
from benchmarks.pairing import Candidate, Case, Effort, measure, torch_threads
from benchmarks.street_drive import Drive, drive
from benchmarks.street_grid import StreetGrid, aerial_views, drive_views, street_views
from inf_nerf.config import Config, OctreeConfig, load_config
from inf_nerf.field.field import Field
from inf_nerf.field.occupancy import Occupancy
from inf_nerf.files import write_atomic
from inf_nerf.octree.build import build_octree
from inf_nerf.octree.routing import route
from inf_nerf.octree.topology import ROOT_KEY, Octree
from inf_nerf.render.working_set import Bundles, working_set
from inf_nerf.scene.cameras import Cameras, Rays
from inf_nerf.scene.frame import GROUND_LIFT

FINEST_GSD_M = 0.05
LAPTOP = Path(__file__).parents[1] / "configs/laptop.yaml"
POINTS_PER_M2 = 0.12  # of ground, wall and roof: ten million points in the largest city
# levels below the root, depth of the city in parts of its width
SIZES = tuple((levels, aspect) for levels in range(2, 9) for aspect in (0.5, 1.0))
QUICK_SIZES = SIZES[1:6:2]
VIEWS, QUICK_VIEWS = 12, 4
WIDTH, HEIGHT, DEGREES = 800, 600, 60.0
STRIDE = 2  # every second pixel of a row and a column is followed
BUNDLED = 33  # pixels of a row and of a column whose rays say what a view can ask
SAMPLES = 200_000  # routed
NEAREST_M = 1.0  # of the samples that are routed
BUDGET = 128 << 20  # bytes of nodes that a renderer may hold
DRIVE_VIEWS, DRIVE_STEP_M = 4, 12.0
FITTED_FROM = 90  # nodes: the city of about a hundred is in
TITLES = {
    "street": "street, seen",
    "aerial": "from the air, seen",
    "street_set": "street, in view and hidden",
    "aerial_set": "from the air, in view and hidden",
}
EFFORT, QUICK_EFFORT = Effort(seconds=20, fewest=5, most=25), Effort(seconds=0.1, fewest=1, most=3)
SAMPLED_EVERY_S = 0.02


@dataclass(frozen=True)
class City:
    """A street grid in the scene frame: the longer side spans the root cube, the ground lies where a frame puts it."""

    grid: StreetGrid
    levels: int  # below the root

    @staticmethod
    def of(levels: int, aspect: float) -> "City":
        """The city whose finest nodes, ``levels`` below the root, resolve the finest gsd."""
        leaf_m = FINEST_GSD_M * laptop().field.max_res * laptop().octree.res_upsample
        width = leaf_m * 2**levels
        return City(StreetGrid(width, width * aspect), levels)

    @property
    def half_m(self) -> float:
        """Half of the root cube's side in metres."""
        return self.grid.width_m / 2

    @property
    def near(self) -> float:
        """What is nearer to a camera is not sampled, in scene units."""
        return NEAREST_M / self.half_m

    @property
    def octree(self) -> OctreeConfig:
        """How the city is divided."""
        return laptop().octree.model_copy(update={"num_levels": self.levels + 1})

    def to_scene(self, xyz_m: Tensor) -> Tensor:
        """Positions [Q, 3] float64 in metres, in the scene frame, float32."""
        return (xyz_m / self.half_m + torch.tensor([0.0, 0.0, GROUND_LIFT], dtype=torch.float64)).float()

    def points(self, per_m2: float = POINTS_PER_M2) -> tuple[Tensor, Tensor]:
        """Points [P, 3] in the scene frame and their footprints [P], between one and two finest gsds: every octant with
        points has nodes down to the last level."""
        xyz = torch.cat([self.to_scene(part) for part in self.grid.points(per_m2, seed=0)])
        octaves = torch.rand(len(xyz), generator=torch.Generator().manual_seed(1))
        return xyz, (FINEST_GSD_M / self.half_m) * torch.exp2(0.99 * octaves)

    def cameras(self, poses_m: Tensor, width: int = WIDTH, height: int = HEIGHT, degrees: float = DEGREES) -> Cameras:
        """Pinholes at poses [V, 3, 4] in metres."""
        poses = poses_m.clone()
        poses[:, :, 3] = self.to_scene(poses_m[:, :, 3])
        return Cameras.pinhole(poses, width, height, degrees)

    def surface(self, rays: Rays, eye_m: Tensor) -> "Seen":
        """Where rays from a camera at ``eye_m`` [3] meet the city."""
        metres = self.grid.distance(eye_m.expand(len(rays), -1), rays.direction.double())
        met = torch.nonzero(metres.isfinite()).flatten()
        return Seen(met, rays[met], (metres[met] / self.half_m).float())


@dataclass(frozen=True)
class Built:
    """A tree and what it took to build it from its points."""

    tree: Octree
    points: int
    build_s: float
    build_cpu_s: float  # what of it the processor gave to this process
    build_peak_mb: float  # unique memory of the process: interpreter, imports, points and all
    build_grown_mb: float  # of it over what was there before


@dataclass(frozen=True)
class Seen:
    """The surfaces that a view sees, pixel by pixel."""

    pixel: Tensor  # [R] which of the rays that were followed meet a surface
    rays: Rays  # [R] these
    distance: Tensor  # [R] float32, scene units

    @property
    def surface(self) -> tuple[Tensor, Tensor]:
        """Where the rays end [R, 3], and their footprints there [R]."""
        return self.rays.origin + self.rays.direction * self.distance[:, None], self.distance * self.rays.radius


@dataclass(frozen=True)
class Count:
    """A number of nodes over views."""

    mean: float
    least: int
    most: int

    @staticmethod
    def of(counts: Sequence[int]) -> "Count":
        """Mean and range."""
        return Count(sum(counts) / len(counts), min(counts), max(counts))


@dataclass(frozen=True)
class Row:
    """One city."""

    nodes: int
    levels: int  # with the root
    width_m: float
    depth_m: float
    model_mb: float  # of all nodes
    points: int
    build_s: float
    build_cpu_s: float
    build_peak_mb: float
    build_grown_mb: float
    street: Count  # nodes that answer on the surfaces that a view from the street sees
    aerial: Count
    street_set: Count  # nodes that rays of the view can ask, hidden ones included: what a renderer loads
    aerial_set: Count
    drive: Drive  # of a camera in the street, within BUDGET
    routing_ms: float  # SAMPLES of these views
    scattered_ms: float  # as many points anywhere on the city's surfaces, all answered on the last level


@dataclass(frozen=True)
class Fit:
    """y = intercept + slope * x."""

    intercept: float
    slope: float
    r2: float

    @staticmethod
    def of(x: Sequence[float], y: Sequence[float]) -> "Fit":
        """Least squares."""
        slope, intercept = np.polyfit(x, y, 1)
        found = np.asarray(y)
        residual = found - (intercept + slope * np.asarray(x))
        return Fit(float(intercept), float(slope), float(1 - (residual**2).sum() / ((found - found.mean()) ** 2).sum()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the cities, look at them, print the table and the fits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=str(__doc__).split("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT.json")
    parser.add_argument("--quick", action="store_true", help="a few small cities: a look, not a measurement")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    wanted = parser.parse_args(arguments)
    machine = describe_machine()
    print(", ".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    cities = [City.of(*size) for size in (QUICK_SIZES if wanted.quick else SIZES)]
    views, effort = (QUICK_VIEWS, QUICK_EFFORT) if wanted.quick else (VIEWS, EFFORT)
    with torch_threads(1), builder() as own_process:
        result = measured(cities, views, effort, own_process)
    fits = fitted(result)
    print(table(result))
    print(fit_lines(fits))
    if wanted.out is not None:
        content = {"machine": machine, "cities": [asdict(row) for row in result]}
        content["fits"] = {name: {kind: asdict(fit) for kind, fit in kinds.items()} for name, kinds in fits.items()}
        write_atomic(wanted.out, json.dumps(content, indent=1) + "\n")
    if wanted.plot is not None:
        plot(result, fits, wanted.plot)
    return 0


def measured(cities: Sequence[City], num_views: int, effort: Effort, own_process: Executor) -> list[Row]:
    """All figures of all cities; trees are built in ``own_process``, routing is timed at the end, all by turns."""
    trees: list[Octree] = []
    samples: dict[str, list[Candidate]] = {"view": [], "scattered": []}
    found: list[dict[str, Any]] = []
    for city in cities:
        built = own_process.submit(build, city).result()
        trees.append(built.tree)
        street, aerial = (look(city, poses(num_views)) for poses in (street_views, aerial_views))
        for name, drawn in (("view", routed_samples(city, [*street, *aerial])), ("scattered", scattered(city))):
            samples[name].append(Candidate(str(city), partial(route, built.tree, *drawn)))
        counts: dict[str, Any] = {
            name: Count.of([len(touched(built.tree, view)) for view in views])
            for name, views in (("street", street), ("aerial", aerial))
        }
        counts |= {
            f"{name}_set": Count.of([len(found) for found in working_sets(city, built.tree, poses(num_views))])
            for name, poses in (("street", street_views), ("aerial", aerial_views))
        }
        config = laptop().model_copy(update={"sampler": laptop().sampler.model_copy(update={"near": city.near})})
        cameras = city.cameras(drive_views(DRIVE_VIEWS, DRIVE_STEP_M))
        counts["drive"] = drive(config, built.tree, cameras, BUDGET)
        measures = {
            name: getattr(built, name)
            for name in ("points", "build_s", "build_cpu_s", "build_peak_mb", "build_grown_mb")
        }
        found.append(measures | counts)
        print(f"{built.tree.num_nodes} nodes: built and looked at", file=sys.stderr)
    times = {
        name: [result.median_ms for result in measure(Case("routing", 0, 1, candidates), effort)]
        for name, candidates in samples.items()
    }
    return [
        Row(
            nodes=tree.num_nodes,
            levels=tree.num_levels,
            width_m=city.grid.width_m,
            depth_m=city.grid.depth_m,
            model_mb=tree.num_nodes * node_bytes() / 2**20,
            routing_ms=routing_ms,
            scattered_ms=scattered_ms,
            **figures,
        )
        for tree, city, figures, routing_ms, scattered_ms in zip(
            trees, cities, found, times["view"], times["scattered"], strict=True
        )
    ]


def builder() -> ProcessPoolExecutor:
    """A process of its own for :func:`build`."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


@cache
def laptop() -> Config:
    """The settings of the nodes."""
    return load_config(LAPTOP)


@cache
def node_bytes() -> int:
    """What the values of one node take, occupancy included."""
    config = laptop()
    field = Field(config.field, torch.tensor([ROOT_KEY]), seed=0)
    grid = Occupancy(torch.zeros(1), config.sampler.occupancy_res, config.sampler.occupancy_decay)
    values = [*field.state_of(0).values(), *grid.state_of(0).values()]
    return sum(value.numel() * value.element_size() for value in values)


def build(city: City) -> Built:
    """Make a city's points and its tree, on one thread; the memory is that of the process that it runs in."""
    torch.set_num_threads(1)
    xyz, footprint = city.points()
    build_octree(xyz[:1], footprint[:1], city.octree, laptop().field.max_res)  # loads what building needs
    with PeakMemory() as memory:
        started, cpu = time.perf_counter(), time.process_time()
        tree = build_octree(xyz, footprint, city.octree, laptop().field.max_res)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return Built(tree, len(xyz), seconds, cpu, memory.peak_mb, memory.peak_mb - memory.start_mb)


def look(city: City, poses_m: Tensor) -> list[Seen]:
    """What views at poses [V, 3, 4] see, by following every second pixel's ray to the surface."""
    cameras = city.cameras(poses_m)
    y, x = torch.meshgrid(torch.arange(0, HEIGHT, STRIDE), torch.arange(0, WIDTH, STRIDE), indexing="ij")
    xy = torch.stack([x.flatten(), y.flatten()], dim=1)
    seen = []
    for view, pose in enumerate(poses_m):
        rays = cameras.rays(torch.full((len(xy),), view), torch.zeros(len(xy), dtype=torch.int64), xy)
        seen.append(city.surface(rays, pose[:, 3]))
    return seen


def touched(tree: Octree, seen: Seen) -> Tensor:
    """Indices of the nodes that answer on the surfaces seen, ascending."""
    xyz = seen.rays.origin + seen.rays.direction * seen.distance[:, None]
    node, _ = route(tree, xyz, seen.distance * seen.rays.radius)
    return torch.unique(node)


def working_sets(city: City, tree: Octree, poses_m: Tensor) -> list[Tensor]:
    """Nodes [n] of each view at poses [V, 3, 4] that its rays can ask, were there no surface; ascending."""
    cameras = city.cameras(poses_m)
    y, x = torch.meshgrid(_spread(HEIGHT), _spread(WIDTH), indexing="ij")
    xy = torch.stack([x.flatten(), y.flatten()], dim=1)
    found = []
    for view in range(len(poses_m)):
        rays = cameras.rays(torch.full((len(xy),), view), torch.zeros(len(xy), dtype=torch.int64), xy)
        found.append(working_set(tree, Bundles.of(rays, laptop().octree.footprint_px), near=city.near))
    return found


def routed_samples(city: City, seen: Sequence[Seen]) -> tuple[Tensor, Tensor]:
    """SAMPLES positions [Q, 3] on the rays of views and their footprints [Q].

    A renderer's steps grow with the distance, so the logarithm of the distance is uniform from near to the surface.
    """
    generator = torch.Generator().manual_seed(2)
    rays, far = Rays.cat(view.rays for view in seen), torch.cat([view.distance for view in seen])
    ray = torch.randint(0, len(far), (SAMPLES,), generator=generator)
    rays, far = rays[ray], far[ray]
    near = (city.near / far).clamp(max=1)
    distance = far * near ** torch.rand(SAMPLES, generator=generator)
    return rays.origin + rays.direction * distance[:, None], distance * rays.radius


def scattered(city: City) -> tuple[Tensor, Tensor]:
    """SAMPLES positions [Q, 3] anywhere on a city's surfaces, in random order, and the finest footprint [Q]."""
    ground = city.grid.width_m * city.grid.depth_m
    xyz = torch.cat([city.to_scene(part) for part in city.grid.points(1.2 * SAMPLES / ground, seed=3)])
    order = torch.randperm(len(xyz), generator=torch.Generator().manual_seed(4))[:SAMPLES]
    return xyz[order], torch.full((len(order),), FINEST_GSD_M / city.half_m)


def fitted(rows: Sequence[Row]) -> dict[str, dict[str, Fit]]:
    """Touched nodes against log10(n), and against n for contrast, from FITTED_FROM nodes on."""
    large = [row for row in rows if row.nodes >= FITTED_FROM]
    nodes = [row.nodes for row in large]
    curves = {name: [getattr(row, name).mean for row in large] for name in TITLES}
    return {
        name: {"log": Fit.of(np.log10(nodes).tolist(), touched_nodes), "linear": Fit.of(nodes, touched_nodes)}
        for name, touched_nodes in curves.items()
    }


def table(rows: Sequence[Row]) -> str:
    """All rows as text."""
    lines = [
        f"{'nodes':>8}{'levels':>7}{'city, m':>13}{'model MiB':>11}{'street':>8}{'aerial':>8}{'can ask':>13}"
        f"{'held MiB':>10}{'evicted':>9}{'routing ms':>12}{'scattered':>11}{'points':>12}{'build s':>9}{'of CPU':>8}"
        f"{'peak MiB':>10}{'growth':>8}"
    ]
    for row in rows:
        size = f"{row.width_m:.0f} x {row.depth_m:.0f}"
        lines.append(
            f"{row.nodes:>8}{row.levels:>7}{size:>13}{row.model_mb:>11.0f}{row.street.mean:>8.1f}{row.aerial.mean:>8.1f}"
            f"{row.street_set.mean:>7.0f}{row.aerial_set.mean:>6.0f}{row.drive.peak_mb:>10.0f}{row.drive.evicted:>9}"
            f"{row.routing_ms:>12.2f}{row.scattered_ms:>11.2f}{row.points:>12}{row.build_s:>9.2f}{row.build_cpu_s:>8.2f}"
            f"{row.build_peak_mb:>10.0f}{row.build_grown_mb:>8.0f}"
        )
    return "\n".join(lines)


def fit_lines(fits: dict[str, dict[str, Fit]]) -> str:
    """The fits as text."""
    return "\n".join(
        f"{TITLES[name]}: {fit['log'].intercept:.1f} + {fit['log'].slope:.1f} log10(n), R^2 {fit['log'].r2:.3f}; "
        f"a straight line in n has R^2 {fit['linear'].r2:.3f}"
        for name, fit in fits.items()
    )


def plot(rows: Sequence[Row], fits: dict[str, dict[str, Fit]], path: Path) -> None:
    """Touched nodes, memory, routing and building against the number of nodes."""
    nodes = [row.nodes for row in rows]
    with matplotlib.rc_context({"svg.hashsalt": "inf-nerf", "svg.fonttype": "none"}):
        figure = Figure(figsize=(11, 9), layout="constrained")
        views, memory, routing, building = figure.subplots(2, 2).flat
        for name, title in TITLES.items():
            counts: list[Count] = [getattr(row, name) for row in rows]
            line = views.errorbar(
                nodes,
                [count.mean for count in counts],
                [[c.mean - c.least for c in counts], [c.most - c.mean for c in counts]],
                fmt="o",
                capsize=3,
                label=title,
            )
            fit, ends = fits[name]["log"], np.array([FITTED_FROM, max(nodes)])
            label = f"{fit.intercept:.0f} + {fit.slope:.1f} log10 n, R² = {fit.r2:.3f}"
            views.plot(ends, fit.intercept + fit.slope * np.log10(ends), "--", color=line[0].get_color(), label=label)
        views.set(title="nodes of a view, 800 x 600", ylim=(0, None))
        memory.plot(nodes, [row.model_mb for row in rows], marker="o", label="whole model")
        for name, title in TITLES.items():
            share = [getattr(row, name).mean * row.model_mb / row.nodes for row in rows]
            memory.plot(nodes, share, marker="o", label=title)
        memory.plot(nodes, [row.drive.peak_mb for row in rows], "k--", label=f"held, budget {BUDGET >> 20} MiB")
        memory.set(title="MiB of node values", yscale="log")
        routing.plot(nodes, [row.routing_ms for row in rows], marker="o", label="of views")
        routing.plot(nodes, [row.scattered_ms for row in rows], marker="o", label="anywhere, on the last level")
        routing.set(title=f"routing {SAMPLES:,} samples, ms", ylim=(0, None))
        building.plot(
            [row.points for row in rows], [row.build_cpu_s for row in rows], marker="o", label="seconds of one thread"
        )
        peak = [row.build_peak_mb / 1024 for row in rows]
        building.plot([row.points for row in rows], peak, marker="o", label="GiB of memory, all told")
        building.set(title="building the tree", xlabel="points", xscale="log", ylim=(0, None))
        for axes in (views, memory, routing):
            axes.set(xlabel="nodes", xscale="log")
        for axes in figure.axes:
            axes.grid(alpha=0.3)
            axes.legend(loc="upper left", fontsize="small")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _spread(length: int) -> Tensor:
    """Some pixels of a row or column, the first and the last among them."""
    return torch.linspace(0, length - 1, BUNDLED).long()


class PeakMemory:
    """Samples the unique memory of this process while a block runs."""

    def __enter__(self) -> "PeakMemory":
        self._process, self._done = psutil.Process(), threading.Event()
        self.start_mb = self.peak_mb = self._now()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _now(self) -> float:
        return self._process.memory_full_info().uss / 2**20

    def _watch(self) -> None:
        while not self._done.wait(SAMPLED_EVERY_S):
            self.peak_mb = max(self.peak_mb, self._now())


if __name__ == "__main__":
    sys.exit(main())
