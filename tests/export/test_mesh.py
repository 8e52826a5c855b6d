"""A mesh is the surface of the field: closed across blocks, facing outwards, seen by photos, in their colours."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from inf_nerf.errors import InputError
from inf_nerf.export import mesh as module
from inf_nerf.export.facing import cameras_at, looks_of, normals
from inf_nerf.export.gltf import linear, y_up
from inf_nerf.export.mesh import Lattice, Mesh, extract_mesh, surface_of, welded, without_crumbs
from inf_nerf.export.mesh_files import write_mesh
from inf_nerf.export.placement import CropBox, Placement
from inf_nerf.export.surface import Rendering
from inf_nerf.export.unfinished import Unfinished
from inf_nerf.field.occupancy import Cells
from inf_nerf.octree.topology import Octree
from inf_nerf.render.poses import look_at
from inf_nerf.scene.cameras import Cameras, Rays
from inf_nerf.scene.frame import WorldFrame
from inf_nerf.scene.ply import read_ply
from tests.export.specification import read_glb

CENTRE, RADIUS = torch.tensor([0.05, -0.02, 0.1]), 0.3
SIDE = 0.02
FRAME = WorldFrame.from_parts(1 / 20, np.eye(3), np.array([600_000.0, 5_850_000.0, 90.0]))


def colour(xyz: Tensor) -> Tensor:
    return 0.5 + 0.4 * torch.sin(4 * xyz)


class Ball:
    """A ball that fades at its surface, as field and as what rays see."""

    def __init__(self) -> None:
        self.octree = Octree.from_keys(torch.tensor([1]), torch.tensor([1]), 0.01)
        self.cells = Cells(torch.ones(1, 8, dtype=torch.bool), 2)
        self.field = SimpleNamespace(density=self._density)
        self.rays = 0

    def _density(self, local: Tensor, node: Tensor) -> tuple[Tensor, None]:
        inside = RADIUS - ((local * 2 - 1) - CENTRE).norm(dim=1)
        return torch.exp((inside / SIDE * 2).clamp(-20, 5)) * -np.log1p(-module.OPAQUE) / SIDE, None

    def render(self, rays: Rays) -> Any:
        self.rays += len(rays)
        to = CENTRE - rays.origin
        along = (to * rays.direction).sum(1)
        chord = RADIUS**2 - (to.pow(2).sum(1) - along**2)
        depth = torch.where(chord > 0, along - chord.clamp_min(0).sqrt(), 10.0)
        return SimpleNamespace(rgb=colour(rays.origin + depth[:, None] * rays.direction), depth=depth)


def rendering(model: Any) -> Rendering:
    return Rendering(model, 5000, 1, 0.02)


def cameras(*eyes: tuple[float, float, float]) -> Cameras:
    poses = [look_at(eye, tuple(CENTRE.tolist())) for eye in eyes]
    return Cameras.pinhole(torch.from_numpy(np.stack(poses)), 100, 100, 60.0)


AROUND = ((1.5, 0.1, 0.2), (-1.5, 0.1, 0.2), (0.1, 1.5, 0.2), (0.1, -1.5, 0.2), (0.1, 0.1, 1.6), (0.1, 0.1, -1.4))


def crop(low: float = -0.5, high: float = 0.5) -> CropBox:
    return CropBox(FRAME.to_world([low] * 3), FRAME.to_world([high] * 3), FRAME)


def extract(out: Path, *eyes: tuple[float, float, float], box: CropBox | None = None, model: Any = None) -> Mesh:
    seen_by = cameras(*eyes)
    unfinished = Unfinished(out, {})
    photos = list(range(len(eyes)))
    return extract_mesh(rendering(model or Ball()), seen_by, photos, SIDE, box or crop(), 1.0, unfinished)


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "BLOCK", 9)
    with torch.no_grad():
        yield


def edges(faces: np.ndarray) -> Counter[tuple[int, int]]:
    return Counter(
        (int(a), int(b)) for face in faces for a, b in ((face[0], face[1]), (face[1], face[2]), (face[2], face[0]))
    )


@pytest.mark.usefixtures("_small_blocks")
def test_the_surface_is_closed_across_blocks_and_faces_outwards(tmp_path: Path) -> None:
    mesh = extract(tmp_path / "a.ply", *AROUND)
    away = np.linalg.norm(mesh.xyz - CENTRE.numpy(), axis=1)
    np.testing.assert_allclose(away, RADIUS, atol=SIDE / 4)
    directed = edges(mesh.faces)
    assert set(directed.values()) == {1}
    assert all((b, a) in directed for a, b in directed)  # each edge has a face on either side, turned the same way
    assert len(mesh.xyz) - len(directed) // 2 + len(mesh.faces) == 2  # Euler: one piece, like a ball
    outwards = ((mesh.xyz - CENTRE.numpy()) * normals(mesh.xyz, mesh.faces)).sum(axis=1)
    assert (outwards > 0.9 * RADIUS).all()
    off = np.abs(mesh.rgb - colour(torch.from_numpy(mesh.xyz)).numpy()).max(axis=1)
    assert np.quantile(off, 0.9) < 0.04  # rays that graze the ball meet it a little farther on


@pytest.mark.usefixtures("_small_blocks")
def test_the_size_of_blocks_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = extract(tmp_path / "small.ply", *AROUND)
    monkeypatch.setattr(module, "BLOCK", 100)
    large = extract(tmp_path / "large.ply", *AROUND)
    assert (len(small.xyz), len(small.faces)) == (len(large.xyz), len(large.faces))
    order = [np.lexsort(np.rint(mesh.xyz / SIDE * 64).T) for mesh in (small, large)]
    np.testing.assert_allclose(small.xyz[order[0]], large.xyz[order[1]], atol=1e-6)


@pytest.mark.usefixtures("_small_blocks")
def test_what_no_photo_sees_is_left_out(tmp_path: Path) -> None:
    mesh = extract(tmp_path / "a.ply", (0.1, 0.1, 1.6))
    z = (mesh.xyz - CENTRE.numpy())[:, 2]
    assert z.min() > -0.1 * RADIUS
    assert z.max() == pytest.approx(RADIUS, abs=SIDE)


@pytest.mark.usefixtures("_small_blocks")
def test_a_crop_cuts_the_mesh_and_one_without_a_surface_is_refused(tmp_path: Path) -> None:
    part = extract(tmp_path / "a.ply", *AROUND, box=crop(-0.1, 0.9))
    assert (part.xyz >= -0.1 - SIDE).all()
    assert len(part.faces) > 100
    with pytest.raises(InputError, match="No photo sees a surface"):
        extract(tmp_path / "b.ply", *AROUND, box=crop(0.6, 0.9))


@pytest.mark.usefixtures("_small_blocks")
def test_finished_blocks_are_not_made_again(tmp_path: Path) -> None:
    first, again = Ball(), Ball()
    extract(tmp_path / "a.ply", *AROUND, model=first)
    extract(tmp_path / "a.ply", *AROUND, model=again)
    assert first.rays > 0
    assert again.rays == 0


def test_empty_cells_hold_no_surface() -> None:
    model = Ball()
    model.cells.occupied[:] = False
    found, faces = surface_of(rendering(model), np.array([20.0, 20, 20]), (60, 60, 60), SIDE, 1.0)
    assert len(found) == len(faces) == 0


def test_vertices_behind_something_are_not_seen() -> None:
    xyz = np.array([[0.05, -0.02, 0.4], [0.05, -0.02, -0.2]])  # the ball's top and bottom
    faces = np.array([[0, 1, 0]])
    above = cameras_at(cameras((0.05, -0.02 + 1e-3, 1.6)), [0])
    _, seen = looks_of(rendering(Ball()), above, xyz, faces, SIDE)
    assert not seen.any()  # a face without an area faces nobody
    up = np.array([[0.05, -0.02, 0.4], [0.06, -0.02, 0.4], [0.05, -0.01, 0.4]])
    rgb, seen = looks_of(rendering(Ball()), above, up, np.array([[0, 1, 2]]), SIDE)
    assert seen.all()
    np.testing.assert_allclose(rgb, colour(torch.from_numpy(up)).numpy(), atol=0.05)
    down = up - [0, 0, 0.6]
    _, seen = looks_of(rendering(Ball()), above, down, np.array([[0, 1, 2]]), SIDE)
    assert not seen.any()


def test_lattice_covers_the_box_with_blocks_that_share_a_layer() -> None:
    lattice = Lattice.over(np.array([-1.0, -0.2, 0.0]), np.array([1.0, 0.3, 0.11]), 0.02)
    assert lattice.cells == (100, 25, 6)
    covered = np.zeros((100, 25, 6), int)
    for first, cells in lattice.blocks():
        start = (first - lattice.first).astype(int)
        covered[tuple(slice(a, a + n) for a, n in zip(start, cells, strict=True))] += 1
    assert (covered == 1).all()


def test_small_pieces_are_dropped() -> None:
    xyz = np.arange(24.0).reshape(8, 3) ** 2
    faces = np.array([[0, 1, 2], [2, 3, 0], [3, 4, 0], [5, 6, 7]])
    kept = without_crumbs(Mesh(xyz, np.zeros_like(xyz), faces), smallest=2)
    np.testing.assert_array_equal(kept.xyz, xyz[:5])
    np.testing.assert_array_equal(kept.faces, faces[:3])


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb"])
def test_files_hold_the_mesh_in_the_inputs_coordinates(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"ball{suffix}"
    mesh = extract(out, *AROUND)
    write_mesh(mesh, Placement(FRAME), out)
    there = FRAME.to_world(mesh.xyz)
    if suffix == ".ply":
        xyz, rgb = read_ply(out)
        data = out.read_bytes()
        records = np.frombuffer(
            data[data.index(b"end_header\n") + 11 + len(xyz) * 27 :], [("n", "u1"), ("v", "<i4", 3)]
        )
        assert (records["n"] == 3).all()
        faces, shade = records["v"], rgb / 255
    elif suffix == ".obj":
        rows = [line.split() for line in out.read_text().splitlines()]
        values = np.array([row[1:] for row in rows if row[0] == "v"], float)
        xyz, shade = values[:, :3], values[:, 3:]
        faces = np.array([row[1:] for row in rows if row[0] == "f"], int) - 1
    else:
        held = read_glb(out.read_bytes())
        assert held.indices is not None
        assert held.mode == 4
        there, xyz, faces, shade = y_up(there), held.positions, held.indices, held.colours[:, :3]
    np.testing.assert_allclose(xyz, there, atol=1e-4)
    np.testing.assert_array_equal(faces, mesh.faces)
    np.testing.assert_allclose(shade, linear(mesh.rgb) if suffix == ".glb" else mesh.rgb, atol=0.003)


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    mesh = Mesh(np.zeros((3, 3)), np.zeros((3, 3)), np.array([[0, 1, 2]]))
    with pytest.raises(InputError, match="no kind of mesh"):
        write_mesh(mesh, Placement(FRAME), tmp_path / "a.stl")


def test_vertices_of_neighbouring_blocks_become_one() -> None:
    kind = module.VERTEX
    one, two = np.zeros(3, kind), np.zeros(3, kind)
    one["xyz"] = [[0, 0, 0], [0.02, 0, 0], [0, 0.02, 0]]
    two["xyz"] = [[0.02, 1e-9, 0], [0, 0.02, 0], [0.02, 0.02, 0]]
    mesh = welded([(one, np.array([[0, 1, 2]])), (two, np.array([[0, 2, 1], [0, 0, 1]]))], SIDE)
    assert len(mesh.xyz) == 4
    assert len(mesh.faces) == 2
