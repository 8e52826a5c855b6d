"""Export a mesh: the surface that the training photos' cameras see of the model, as triangles with coloured vertices.

The crop is divided into blocks of cells that share one layer of grid points, so that the triangles of neighbours meet.
Marching cubes find where the fused distance to the surface (`inf_nerf.export.fusion`) is zero.  Nothing is known of
what no camera sees, such as the inside of the ground, so there are no triangles.

Letters: V vertices, F faces.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inf_nerf.errors import InputError
from inf_nerf.export.fusion import Outlook, fused, outlooks
from inf_nerf.export.optional import needed_for
from inf_nerf.export.placement import CropBox
from inf_nerf.export.surface import Rendering
from inf_nerf.export.unfinished import Progress, Unfinished, no_progress
from inf_nerf.scene.cameras import Cameras

Array = NDArray[np.float64]
Faces = NDArray[np.int64]

BLOCK = 48  # cells to a side
REACH = 6.0  # cells around the surface within which distances to it are averaged
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
    unfinished: Unfinished,
    progress: Progress = no_progress,
) -> Mesh:
    """The mesh of a crop at a gsd of ``side`` scene units; blocks that are on disk are not made again.

    Raises :class:`InputError` if there is no surface.
    """
    lattice = Lattice.over(*crop.scene_bounds, side)
    blocks = list(lattice.blocks())
    views = outlooks(rendering, cameras, photos, side, crop, unfinished, progress)
    for done, (first, cells) in enumerate(blocks):
        progress("blocks", done, len(blocks))
        name = f"blocks/{done:06d}"
        if unfinished.has(name + ".faces.npy"):
            continue
        vertices, faces = surface_of(views, first, cells, side)
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


def surface_of(
    views: Sequence[Outlook], first: Array, cells: tuple[int, int, int], side: float
) -> tuple[NDArray[np.void], Faces]:
    """Vertices [V] of VERTEX, in the scene frame, and faces [F, 3] of a block from grid point ``first`` [3]."""
    with needed_for("A mesh"):
        from skimage.measure import marching_cubes
    none = np.zeros(0, VERTEX), np.zeros((0, 3), np.int64)
    shape = [count + 1 for count in cells]
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3) + first
    there = fused(views, points * side - 1, REACH * side)
    ahead, known = there.ahead.reshape(shape), there.known.reshape(shape)
    if not ahead.min() < 0 < ahead.max():
        return none
    # from where nothing is, faces are seen anticlockwise
    found, faces, _, _ = marching_cubes(-ahead, 0.0, gradient_direction="ascent", allow_degenerate=True)
    between = [tuple(end(found).astype(int).T) for end in (np.floor, np.ceil)]  # the grid points of a vertex's edge
    seen = known[between[0]] & known[between[1]]
    vertices = np.empty(len(found), VERTEX)
    vertices["xyz"] = (found.astype(np.float64) + first) * side - 1
    vertices["rgb"] = fused(views, vertices["xyz"], REACH * side).rgb
    return vertices, faces[seen[faces].all(axis=1)].astype(np.int64)


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
