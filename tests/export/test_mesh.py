"""A mesh is the surface of the field: closed across blocks, facing outwards, seen by photos, in their colours."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from inf_nerf.errors import InputError
from inf_nerf.export import mesh as module
from inf_nerf.export.fusion import Outlook, fused, outlooks
from inf_nerf.export.gltf import linear, y_up
from inf_nerf.export.mesh import Lattice, Mesh, extract_mesh, welded, without_crumbs
from inf_nerf.export.mesh_files import write_mesh
from inf_nerf.export.placement import CropBox, Placement
from inf_nerf.export.surface import Rendering
from inf_nerf.export.unfinished import Unfinished, no_progress
from inf_nerf.render.poses import look_at
from inf_nerf.scene.cameras import Cameras, Rays
from inf_nerf.scene.frame import WorldFrame
from inf_nerf.scene.ply import read_ply
from tests.export.specification import read_glb
from tests.plane_scene import Seen

CENTRE, RADIUS = torch.tensor([0.05, -0.02, 0.1]), 0.3
SIDE = 0.02
FRAME = WorldFrame.from_parts(1 / 20, np.eye(3), np.array([600_000.0, 5_850_000.0, 90.0]))


def colour(xyz: Tensor) -> Tensor:
    return 0.5 + 0.4 * torch.sin(4 * xyz)


class Ball:
    """What rays see of an opaque ball."""

    def __init__(self) -> None:
        self.rays = 0

    def render(self, rays: Rays, *, lod_blend: float = 0.0, appearance: Tensor | None = None) -> Seen:
        self.rays += len(rays)
        to = CENTRE - rays.origin
        along = (to * rays.direction).sum(1)
        chord = RADIUS**2 - (to.pow(2).sum(1) - along**2)
        depth = torch.where(chord > 0, along - chord.clamp_min(0).sqrt(), 10.0)
        rgb = colour(rays.origin + depth[:, None] * rays.direction)
        return Seen(rgb, depth, (chord > 0).float(), depth, torch.ones(1) > 0, torch.ones(1), len(rays))


def rendering(model: Any) -> Rendering:
    return Rendering(model, 5000, 1, 0.02)


def cameras(*eyes: tuple[float, float, float]) -> Cameras:
    poses = [look_at(eye, tuple(CENTRE.tolist())) for eye in eyes]
    return Cameras.pinhole(torch.from_numpy(np.stack(poses)), 150, 150, 60.0)


SIDES = ((1.5, 0.1, 0.2), (-1.5, 0.1, 0.2), (0.1, 1.5, 0.2), (0.1, -1.5, 0.2), (0.1, 0.1, 1.6), (0.1, 0.1, -1.4))
AROUND = (*SIDES, *((x, y, 0.1 + z) for x in (-0.9, 0.9) for y in (-0.9, 0.9) for z in (-0.9, 0.9)))


def crop(low: float = -0.5, high: float = 0.5) -> CropBox:
    return CropBox(FRAME.to_world([low] * 3), FRAME.to_world([high] * 3), FRAME)


def extract(out: Path, *eyes: tuple[float, float, float], box: CropBox | None = None, model: Any = None) -> Mesh:
    seen_by = cameras(*eyes)
    unfinished = Unfinished(out, {})
    photos = list(range(len(eyes)))
    return extract_mesh(rendering(model or Ball()), seen_by, photos, SIDE, box or crop(), unfinished)


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "BLOCK", 9)
    with torch.no_grad():
        yield


def edges(faces: np.ndarray) -> Counter[tuple[int, int]]:
    return Counter(
        (int(a), int(b)) for face in faces for a, b in ((face[0], face[1]), (face[1], face[2]), (face[2], face[0]))
    )


def normals(xyz: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals [V, 3] of vertices, the mean of their faces' by area."""
    a, b, c = (xyz[faces[:, corner]] for corner in range(3))
    total = np.zeros_like(xyz)
    for corner in range(3):
        np.add.at(total, faces[:, corner], np.cross(b - a, c - a))
    return total / np.linalg.norm(total, axis=1, keepdims=True)


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


def looks_at_the_ball(folder: Path, *eyes: tuple[float, float, float]) -> list[Outlook]:
    unfinished = Unfinished(folder / "x.ply", {})
    return outlooks(rendering(Ball()), cameras(*eyes), list(range(len(eyes))), SIDE, crop(), unfinished, no_progress)


def test_distances_of_one_camera_are_those_along_its_rays(tmp_path: Path) -> None:
    eye = torch.tensor([0.05, -0.02 + 1e-3, 1.6])
    above = looks_at_the_ball(tmp_path, tuple(eye.tolist()))
    xyz = CENTRE + torch.tensor([0.5, 0.5, 0.7]) * (
        torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    )
    to = xyz - eye
    away = to.norm(dim=1)
    rays = Rays(eye.expand(len(xyz), 3), to / away[:, None], torch.full((len(xyz),), 0.01), torch.full((len(xyz),), -1))
    ahead = (Ball().render(rays).depth - away).double().numpy()
    found = fused(above, xyz.double().numpy(), 0.1)
    clear = np.abs(np.abs(ahead) - 0.1) > 0.02  # the pictures' pixels are this large
    passes = torch.linalg.cross(rays.direction, (CENTRE - eye)[None]).norm(dim=1).numpy()  # the centre, so far away
    flat = passes < 0.25  # where the ball is not seen too obliquely
    np.testing.assert_array_equal(found.known[clear & flat], (ahead > -0.1)[clear & flat])
    assert not found.known[passes > RADIUS].any()
    assert 500 < found.known.sum() < 3500
    where = found.known & clear & flat
    np.testing.assert_allclose(found.ahead[where], np.minimum(ahead, 0.1)[where], atol=0.005)
    assert (found.ahead[~found.known] == 0.1).all()
    on = where & (np.abs(ahead) < 0.1)
    np.testing.assert_allclose(
        found.rgb[on], colour(eye + (away + torch.from_numpy(ahead))[:, None] * rays.direction)[on], atol=0.05
    )


def test_cameras_count_by_how_sharply_they_see(tmp_path: Path) -> None:
    near, far = looks_at_the_ball(tmp_path, (0.05, -0.02, 0.9), (0.05, -0.02, 1.7))
    place = np.array([[0.05, -0.02, 0.42]])
    off = replace(far, pixels=far.pixels.copy())
    off.pixels["distance"] += 0.03
    one, other = (fused([view], place, 0.1).ahead[0] for view in (near, off))
    assert other - one == pytest.approx(0.03, abs=0.002)
    weights = np.array([1 / 0.48**2, 1 / 1.28**2])
    both = fused([near, off], place, 0.1).ahead[0]
    assert both == pytest.approx((weights * [one, other]).sum() / weights.sum())


def test_nothing_is_known_beside_the_pictures_and_behind_the_cameras(tmp_path: Path) -> None:
    above = looks_at_the_ball(tmp_path, (0.05, -0.02, 1.6))
    found = fused(above, np.array([[0.05, -0.02, 1.7], [-0.9, -0.9, 0.0], [0.05, -0.02, 0.41]]), 0.1)
    np.testing.assert_array_equal(found.known, [False, False, True])


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
