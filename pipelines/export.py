"""Stage ``export``: what other programs can use, made from a trained run.

Every kind of export goes on where it was interrupted, and holds no more than a memory budget of the model.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.export import mesh_files, point_files, raster_files
from inf_nerf.export.cloud import Cells, Grid
from inf_nerf.export.georeference import find_georeference
from inf_nerf.export.mesh import extract_mesh
from inf_nerf.export.mesh_files import write_mesh
from inf_nerf.export.ortho import MapGrid, write_ortho
from inf_nerf.export.placement import CropBox, Placement
from inf_nerf.export.points import write_points
from inf_nerf.export.pruned import write_pruned
from inf_nerf.export.surface import Rendering, surface_parts
from inf_nerf.export.tiles import tile_grid, write_tiles
from inf_nerf.export.unfinished import Progress, Unfinished
from inf_nerf.files import write_atomic
from inf_nerf.places import Place
from inf_nerf.render.budget import budget_bytes
from inf_nerf.render.images import chunk_rays
from inf_nerf.render.parallel import available_cores
from inf_nerf.scene.points import SparsePoints
from inf_nerf.scene.scene import Scene
from inf_nerf.train.opened import Checkpoint, StoredCheckpoint, open_checkpoint
from pipelines.evaluate import find_checkpoint, memory_figures, run_of

Array = NDArray[np.float64]

KINDS = ("points", "mesh", "tiles", "ortho", "checkpoint")
SUFFIXES = {
    "points": point_files.SUFFIXES,
    "mesh": mesh_files.SUFFIXES,
    "ortho": raster_files.SUFFIXES,
    "tiles": ("",),
    "checkpoint": ("",),
}
FORMAT = 2  # of parts; raised when they change their meaning, so that old ones are not used again
FINEST = 2.0  # default gsd over that of the finest nodes
WELL_SEEN = 4  # observations of a sparse point with which exported points are compared
EXTENT = 1.0  # percentile of the sparse points from which to its counterpart an orthophoto reaches by default


def run(
    run_dir: Place,
    kind: str,
    out: Path,
    *,
    gsd: float | None = None,
    crop: tuple[float, ...] | None = None,
    levels: int | None = None,
    crs: str | None = None,
    origin: tuple[float, ...] | None = None,
    config: Config | None = None,
    memory_budget: str | None = None,
) -> dict[str, Any]:
    """Export a run, or a checkpoint, as one of `KINDS` to ``out``; returns the figures that are written beside it.

    ``gsd`` is in metres where it is known where on the earth the scene is (from the input, or by ``crs`` or ``origin``:
    latitude, longitude, height), else in the input's unit; by default twice that of the finest nodes.  ``crop`` is
    x0, y0, z0, x1, y1, z1 in the input's coordinates.  ``levels`` are those that a checkpoint keeps.  Raises
    :class:`InputError` for input that cannot be used.
    """
    console = Console()
    _check(kind, out, gsd, crop, levels, crs, origin)
    opened = open_checkpoint(find_checkpoint(run_dir))
    if kind == "checkpoint":
        assert levels is not None
        with _bars(console) as progress:
            figures: dict[str, Any] = {"kind": kind, **asdict(write_pruned(opened, levels, out, progress))}
        return _finish(out, figures, console)
    budget = None if memory_budget is None else budget_bytes(memory_budget, opened.model_bytes)
    checkpoint: Checkpoint | StoredCheckpoint = opened.load() if budget is None else opened.within(budget)
    settings = config or checkpoint.config
    latitude = None if origin is None else (origin[0], origin[1], origin[2])
    placement = Placement(checkpoint.scene.frame, find_georeference(checkpoint.scene, crs, latitude))
    finest = float(checkpoint.octree.gsd.min()) / settings.octree.footprint_px
    gsd = FINEST * finest * placement.scale if gsd is None else gsd
    box = None if crop is None else CropBox(np.array(crop[:3]), np.array(crop[3:]), checkpoint.scene.frame)
    key = {"format": FORMAT, "digest": checkpoint.digest, "kind": kind, "gsd": gsd, "crop": crop, "budget": budget}
    key |= {
        "placement": placement.tiles_matrix.tolist(),
        "crs": placement.crs,
        "sampler": settings.sampler.model_dump(),
    }
    unfinished = Unfinished(out, json.loads(json.dumps(key)))
    folder = run_of(run_dir)
    points = checkpoint.scene.points if folder is None else Scene.load(folder).points
    work = _Work(out, checkpoint, settings, placement, gsd, box, points, unfinished)
    with _bars(console) as progress:
        figures = {"ortho": work.ortho, "mesh": work.mesh, "tiles": work.tiles, "points": work.points}[kind](progress)
    georeference = placement.georeference
    figures = {
        "kind": kind,
        "checkpoint": checkpoint.digest,
        "gsd": gsd,
        "unit": placement.unit,
        "crs": placement.crs,
        "georeference": georeference and georeference.source,
        "georeference_residual_m": georeference and georeference.residual_m,
        **figures,
    }
    if isinstance(checkpoint, StoredCheckpoint):
        figures["memory"] = memory_figures(checkpoint)
        checkpoint.model.cache.close()
    unfinished.done()
    return _finish(out, figures, console)


@dataclass(frozen=True)
class _Work:
    """One export: of what, where it lies, how fine it is, and into which file or folder it goes."""

    out: Path
    checkpoint: Checkpoint | StoredCheckpoint
    settings: Config
    placement: Placement
    gsd: float  # in the placement's unit
    crop: CropBox | None
    sparse: SparsePoints
    unfinished: Unfinished

    @property
    def side(self) -> float:
        """The gsd in scene units."""
        return self.gsd / self.placement.scale

    @property
    def rendering(self) -> Rendering:
        """How the photos' cameras see the model."""
        sampler = self.settings.sampler
        rays = chunk_rays(self.settings.eval.chunk_samples, sampler.max_samples)
        return Rendering(self.checkpoint.model, rays, available_cores(), sampler.near)

    def points(self, progress: Progress) -> dict[str, Any]:
        """Write a point cloud; its figures."""
        grid = Grid.of(self.side)
        parts, references = self._surface(grid, progress), _references(self.sparse, self.crop)
        figures = write_points(parts, grid, self.placement, self.out, references, progress)
        if figures.num_points == 0:
            raise InputError("The photos see nothing opaque there, so there are no points; train longer or crop less.")
        return asdict(figures)

    def tiles(self, progress: Progress) -> dict[str, Any]:
        """Write 3D Tiles; their figures."""
        grid = tile_grid(self.side)
        figures = write_tiles(self._surface(grid, progress), grid, self.placement, self.out, progress)
        return {"cell": grid.side * self.placement.scale, **asdict(figures)}

    def ortho(self, progress: Progress) -> dict[str, Any]:
        """Write an orthophoto; its figures."""
        low, high = np.full(3, -1.0), np.full(3, 1.0)
        if len(xyz := self.sparse.xyz[self.sparse.in_cube].double().numpy()):
            low, high = np.percentile(xyz, [EXTENT, 100 - EXTENT], axis=0)
        grid = MapGrid.over(self.placement, self.gsd, low, high, self.crop)
        octree, footprint_px = self.checkpoint.octree, self.settings.octree.footprint_px
        write_ortho(self.rendering, octree, footprint_px, self.placement, grid, self.out, self.unfinished, progress)
        size = {"width": grid.width, "height": grid.height}
        return {**size, "left": grid.left, "top": grid.top, "tiles": len(grid.tiles)}

    def mesh(self, progress: Progress) -> dict[str, Any]:
        """Write a mesh; its figures."""
        assert self.crop is not None
        scene = self.checkpoint.scene
        mesh = extract_mesh(self.rendering, scene.cameras, scene.train, self.side, self.crop, self.unfinished, progress)
        write_mesh(mesh, self.placement, self.out)
        return {"vertices": len(mesh.xyz), "faces": len(mesh.faces)}

    def _surface(self, grid: Grid, progress: Progress) -> Sequence[Cells]:
        """What each of the photos sees, on disk."""
        scene = self.checkpoint.scene
        return surface_parts(self.rendering, scene.cameras, scene.train, grid, self.crop, self.unfinished, progress)


def _references(points: SparsePoints, crop: CropBox | None) -> Array:
    """Scene positions [Q, 3] of sparse points that were seen well, all of them where observations are not known."""
    seen = points.track_start.diff()
    well = points.in_cube & ((seen >= WELL_SEEN) | (seen.sum() == 0))
    xyz = points.xyz[well].double().numpy()
    return xyz if crop is None else xyz[crop.holds(xyz)]


def _check(
    kind: str,
    out: Path,
    gsd: float | None,
    crop: tuple[float, ...] | None,
    levels: int | None,
    crs: str | None,
    origin: tuple[float, ...] | None,
) -> None:
    """Refuse what cannot be used before anything is read."""
    if kind not in KINDS:
        raise InputError(f"The export {kind!r} is unknown; choose one of {', '.join(KINDS)}.")
    if out.suffix not in SUFFIXES[kind] and SUFFIXES[kind] != ("",):
        raise InputError(f"{out} is no file of {kind} that is written; use {', '.join(SUFFIXES[kind])}.")
    if gsd is not None and not (np.isfinite(gsd) and gsd > 0):
        raise InputError(f"The gsd {gsd:g} is not greater than zero; correct --gsd.")
    if crs is not None and origin is not None:
        raise InputError("Both --crs and --origin say where the input lies; give one of them.")
    if origin is not None and not (len(origin) == 3 and abs(origin[0]) <= 90 and abs(origin[1]) <= 360):
        raise InputError(f"The origin {origin} is no latitude, longitude, height; write it as 52.8,16.6,80.")
    if crop is not None and len(crop) != 6:
        raise InputError(f"The crop has {len(crop)} numbers; write x0,y0,z0,x1,y1,z1 in the input's coordinates.")
    if kind == "mesh" and crop is None:
        raise InputError("A mesh is made of a crop; name it with --crop x0,y0,z0,x1,y1,z1 in the input's coordinates.")
    if (kind == "checkpoint") != (levels is not None):
        raise InputError("--levels says how many levels of the octree --to checkpoint keeps, and only that.")


def _finish(out: Path, figures: dict[str, Any], console: Console) -> dict[str, Any]:
    beside = out.with_name(f"{out.name}_export.json")  # with the suffix: a.ply and a.tif are two exports
    write_atomic(beside, json.dumps(figures, indent=1, sort_keys=True) + "\n")
    console.print(f"Wrote {out} and {beside}.", markup=False, highlight=False, soft_wrap=True)
    if (away := figures.get("median_distance")) is not None:
        console.print(
            f"Half of the {figures['references']} sparse points with {WELL_SEEN} or more observations lie within "
            f"{away:.3g} {figures['unit']} of a written point, {away / figures['gsd']:.2f} times the gsd.",
            markup=False,
            highlight=False,
        )
    if (source := figures.get("georeference")) is not None:
        residual = figures["georeference_residual_m"]
        off = "" if residual is None else f", from which half of the cameras are within {residual:.2f} m"
        console.print(f"Coordinates are in {figures['crs']}, known from {source}{off}.", markup=False, highlight=False)
    return figures


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    """A bar for each kind of part."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield progress


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("export")
