"""Export a mesh: the surface where a cell of the gsd stops a tenth of the light, as triangles with coloured vertices.

The crop is divided into blocks of cells that share one layer of grid points, so that the triangles of neighbours meet.
A field says nothing of what no photo saw, such as the inside of the ground; so only those triangles are kept whose
corners a training photo sees, and corners get the colour that the photos that face them best see there.

Letters: V vertices, F faces.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inf_nerf.errors import InputError
from inf_nerf.export.facing import cameras_at, looks_of
from inf_nerf.export.optional import needed_for
from inf_nerf.export.placement import CropBox
from inf_nerf.export.surface import Rendering
from inf_nerf.export.unfinished import Progress, Unfinished, no_progress
from inf_nerf.octree.routing import route
from inf_nerf.render.model import Model
from inf_nerf.render.parallel import ordered_map
from inf_nerf.render.stored_model import StoredModel
from inf_nerf.scene.cameras import Cameras

Array = NDArray[np.float64]
Faces = NDArray[np.int64]

BLOCK = 48  # cells to a side
# opacity of a cell of the gsd at the surface: that of trained ground is spread over some cells, that of air is less
OPAQUE = 0.1
WELD = 256  # places in a cell that vertices of neighbouring blocks are told apart by
SMALLEST = 200  # faces of a piece that is kept
VERTEX = np.dtype([("xyz", "<f8", 3), ("rgb", "<f4", 3)])


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles in the scene frame."""

    xyz: Array  # [V, 3]
    rgb: Array  # [V, 3] in [0, 1], sRGB-encoded
    faces: Faces  # [F, 3] vertices, anticlockwise from outside


@dataclass(frozen=True)
class Lattice:
    """Grid points at multiples of ``side`` from the corner (-1, -1, -1), those of a box of them divided into blocks."""

    side: float  # scene units
    first: tuple[int, int, int]  # grid point
    cells: tuple[int, int, int]  # along each axis

    @staticmethod
    def over(low: Array, high: Array, side: float) -> "Lattice":
        """The cells that cover the box ``low`` to ``high`` [3]."""
        first = np.floor((low + 1) / side + 1e-9).astype(int)
        last = np.ceil((high + 1) / side - 1e-9).astype(int)
        return Lattice(side, tuple(first.tolist()), tuple((last - first).tolist()))

    def blocks(self) -> Iterator[tuple[Array, tuple[int, int, int]]]:
        """First grid point [3] and cells of each block."""
        for corner in np.ndindex(*(-(-count // BLOCK) for count in self.cells)):
            start = [index * BLOCK for index in corner]
            cells = [min(BLOCK, count - at) for count, at in zip(self.cells, start, strict=True)]
            yield np.add(self.first, start).astype(float), (cells[0], cells[1], cells[2])


def extract_mesh(
    rendering: Rendering,
    cameras: Cameras,
    photos: list[int],
    side: float,
    crop: CropBox,
    footprint_px: float,
    unfinished: Unfinished,
    progress: Progress = no_progress,
) -> Mesh:
    """The mesh of a crop at a gsd of ``side`` scene units; blocks that are on disk are not made again.

    Raises :class:`InputError` if there is no surface.
    """
    lattice = Lattice.over(*crop.scene_bounds, side)
    blocks = list(lattice.blocks())
    facing = cameras_at(cameras, photos)
    for done, (first, cells) in enumerate(blocks):
        progress("blocks", done, len(blocks))
        name = f"blocks/{done:06d}"
        if unfinished.has(name + ".faces.npy"):
            continue
        found, faces = surface_of(rendering, first, cells, side, footprint_px)
        rgb, seen = looks_of(rendering, facing, found, faces, side)
        faces = faces[seen[faces].all(axis=1)]
        vertices = np.empty(len(found), VERTEX)
        vertices["xyz"], vertices["rgb"] = found, rgb
        unfinished.save(name + ".vertices.npy", vertices)
        unfinished.save(name + ".faces.npy", faces)  # last: says that both are there
    progress("blocks", len(blocks), len(blocks))
    parts = [
        (unfinished.load(f"blocks/{index:06d}.vertices.npy"), unfinished.load(f"blocks/{index:06d}.faces.npy"))
        for index in range(len(blocks))
    ]
    mesh = without_crumbs(welded(parts, side))
    inside = crop.holds(mesh.xyz, side)
    mesh = used(Mesh(mesh.xyz, mesh.rgb, mesh.faces[inside[mesh.faces].all(axis=1)]))
    if len(mesh.faces) == 0:
        raise InputError("No photo sees a surface in the crop; correct --crop, or train longer.")
    return mesh


def opacity_of(model: Model, xyz: Tensor, side: float, footprint_px: float) -> Tensor:
    """Opacity [Q] of a cell of ``side`` around scene positions [Q, 3]; none outside the cube and in empty cells."""
    result = torch.zeros(len(xyz))
    index = torch.nonzero((xyz.abs() <= 1).all(dim=1)).squeeze(1)
    inside = xyz[index]
    node, _ = route(model.octree, inside, torch.full((len(inside),), side * footprint_px))
    node, order = torch.sort(node, stable=True)
    local = model.octree.to_local(inside[order], node)
    held = torch.nonzero(model.cells.occupied.view(-1)[model.cells.cell_of(local, node)]).squeeze(1)
    if len(held):
        sigma, _ = model.field.density(local[held], node[held])
        result[index[order[held]]] = -torch.expm1(-sigma * side)
    return result


@torch.no_grad()
def surface_of(
    rendering: Rendering, first: Array, cells: tuple[int, int, int], side: float, footprint_px: float
) -> tuple[Array, Faces]:
    """Vertices [V, 3] in the scene frame and faces [F, 3] of a block."""
    with needed_for("A mesh"):
        from skimage.measure import marching_cubes
    none = np.zeros((0, 3)), np.zeros((0, 3), np.int64)
    shape = [count + 1 for count in cells]
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3) + first
    xyz = torch.from_numpy(points * side - 1).float()
    model = rendering.model
    if isinstance(model, StoredModel):
        model = model.for_box(xyz.amin(0), xyz.amax(0), side * footprint_px)
    slabs = xyz.split(1 << 16)
    opacity = torch.cat(
        list(
            ordered_map(
                torch.no_grad()(lambda slab: opacity_of(model, slab, side, footprint_px)), slabs, rendering.workers
            )
        )
    )
    volume = opacity.view(*shape).numpy()
    if not volume.min() < OPAQUE < volume.max():
        return none
    # from where opacity is low, faces are seen anticlockwise
    vertices, faces, _, _ = marching_cubes(volume, OPAQUE, gradient_direction="ascent", allow_degenerate=True)
    return (vertices.astype(np.float64) + first) * side - 1, faces.astype(np.int64)


def welded(parts: list[tuple[NDArray[np.void], Faces]], side: float) -> Mesh:
    """One mesh of all blocks: vertices at the same place are one, and faces without an area are gone."""
    first = np.cumsum([0] + [len(vertices) for vertices, _ in parts])
    vertices = np.concatenate([vertices for vertices, _ in parts])
    faces = np.concatenate([faces + start for (_, faces), start in zip(parts, first[:-1], strict=True)])
    place = np.rint((vertices["xyz"] + 1) / side * WELD).astype(np.int64)
    _, index, inverse = np.unique(place, axis=0, return_index=True, return_inverse=True)
    faces = inverse.reshape(-1)[faces]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (a != c)]
    return used(Mesh(vertices["xyz"][index], vertices["rgb"][index].astype(np.float64), faces))


def without_crumbs(mesh: Mesh, smallest: int = SMALLEST) -> Mesh:
    """The mesh without connected pieces of fewer than ``smallest`` faces."""
    with needed_for("A mesh"):
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
    count = len(mesh.xyz)
    edges = np.concatenate((mesh.faces[:, :2], mesh.faces[:, 1:]))
    graph = coo_array((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=(count, count))
    _, piece = connected_components(graph, directed=False)
    of_face = piece[mesh.faces[:, 0]]
    return used(Mesh(mesh.xyz, mesh.rgb, mesh.faces[np.bincount(of_face, minlength=1)[of_face] >= smallest]))


def used(mesh: Mesh) -> Mesh:
    """The mesh without vertices that no face has."""
    kept = np.zeros(len(mesh.xyz), np.bool_)
    kept[mesh.faces] = True
    return Mesh(mesh.xyz[kept], mesh.rgb[kept], (np.cumsum(kept) - 1)[mesh.faces])
