"""Exported points lie on what the photos see, in the input's coordinates, whatever was interrupted or cut."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import laspy
import numpy as np
import pyproj
import pytest
import torch
from torch import Tensor

from inf_nerf.export.cloud import Cells, Grid, colours
from inf_nerf.export.georeference import Georeference, enu_to_ecef
from inf_nerf.export.placement import CropBox, Placement
from inf_nerf.export.points import write_points
from inf_nerf.export.surface import OPAQUE, Rendering, photo_cells, surface_parts
from inf_nerf.export.unfinished import Unfinished, no_progress
from inf_nerf.scene.cameras import Rays
from inf_nerf.scene.frame import WorldFrame
from inf_nerf.scene.ply import read_ply
from inf_nerf.scene.scene import Scene
from tests.plane_scene import PLANE_Z, PlaneModel, Seen, plane_scene, texture

FRAME = WorldFrame.from_parts(1 / 40, np.eye(3), np.array([600_000.0, 5_850_000.0, 90.0]))
SIDE = 0.01


class Interrupted(Exception):
    """What stops an export."""


class StepModel(PlaneModel):
    """The plane, 0.5 lower east of x = 0: seen obliquely, something near hides something far."""

    def render(self, rays: Rays, *, lod_blend: float = 0.0, appearance: Tensor | None = None) -> Seen:
        seen = super().render(rays, lod_blend=lod_blend, appearance=appearance)
        east = (rays.origin + seen.depth[:, None] * rays.direction)[:, 0] > 0
        low = (PLANE_Z - 0.5 - rays.origin[:, 2]) / rays.direction[:, 2]
        return replace(seen, depth=torch.where(east, low, seen.depth))


@pytest.fixture(scope="module")
def scene() -> Scene:
    return replace(plane_scene(num_photos=4, width=160, height=120, num_test=1), frame=FRAME)


def rendering(model: PlaneModel) -> Rendering:
    return Rendering(model, 5000, 1, 0.02)


@pytest.fixture
def parts(scene: Scene, tmp_path: Path) -> list[Cells]:
    unfinished = Unfinished(tmp_path / "plane.ply", {})
    return surface_parts(
        rendering(PlaneModel(4)), scene.cameras, scene.train, Grid.of(SIDE), None, unfinished, no_progress
    )


def test_points_of_a_photo_lie_on_the_plane_with_its_colours(scene: Scene) -> None:
    grid = Grid.of(SIDE)
    cells = photo_cells(rendering(PlaneModel(4)), scene.cameras, 0, grid, None)
    xyz = grid.positions(cells)
    assert len(cells) > 1000
    np.testing.assert_allclose(xyz[:, 2], PLANE_Z, atol=1e-4)
    np.testing.assert_allclose(colours(cells), texture(torch.from_numpy(xyz)[:, :2]).numpy(), atol=0.02)


def test_pixels_are_no_larger_than_cells(scene: Scene) -> None:
    """So cells in the middle of the photo have no holes."""
    for side in (0.03, 0.012):
        grid = Grid.of(side)
        cells = photo_cells(rendering(PlaneModel(4)), scene.cameras, 0, grid, None)
        xyz = grid.positions(cells)
        near = np.abs(xyz[:, :2] - [-0.45, -0.15]).max(axis=1) < 0.1
        assert near.sum() == pytest.approx((0.2 / side) ** 2, rel=0.15)


def test_edges_of_near_things_leave_no_points_in_the_air(scene: Scene) -> None:
    grid = Grid.of(SIDE)
    cells = photo_cells(rendering(StepModel(4)), scene.cameras, 2, grid, None)
    z = grid.positions(cells)[:, 2]
    assert (np.minimum(np.abs(z - PLANE_Z), np.abs(z - PLANE_Z + 0.5)) < 1e-3).all()
    assert (z < 0).any() and (z > 0).any()


def test_half_transparent_pixels_are_no_points_and_haze_does_not_move_the_others(scene: Scene) -> None:
    class Haze(PlaneModel):
        opacity = 0.95

        def render(self, rays: Rays, *, lod_blend: float = 0.0, appearance: Tensor | None = None) -> Seen:
            seen = super().render(rays, lod_blend=lod_blend, appearance=appearance)
            leave = ((torch.sign(rays.direction) - rays.origin) / rays.direction).amin(1)  # of the cube
            depth = self.opacity * seen.depth + (1 - self.opacity) * leave
            return replace(seen, depth=depth, opacity=torch.full_like(depth, self.opacity))

    model, grid = Haze(4), Grid.of(SIDE)
    z = grid.positions(photo_cells(rendering(model), scene.cameras, 1, grid, None))[:, 2]
    np.testing.assert_allclose(z, PLANE_Z, atol=1e-3)
    model.opacity = OPAQUE - 0.01
    assert len(photo_cells(rendering(model), scene.cameras, 1, grid, None)) == 0


def test_a_crop_is_part_of_the_whole_and_asks_fewer_rays(scene: Scene) -> None:
    grid, whole_model, crop_model = Grid.of(SIDE), PlaneModel(4), PlaneModel(4)
    low, high = FRAME.to_world([-0.5, -0.3, 0.0]), FRAME.to_world([-0.3, -0.1, 0.2])
    crop = CropBox(low, high, FRAME)
    whole = photo_cells(rendering(whole_model), scene.cameras, 0, grid, None)
    cropped = photo_cells(rendering(crop_model), scene.cameras, 0, grid, crop)
    inside = np.isin(whole["code"], cropped["code"])
    assert inside.sum() == len(cropped) > 100
    assert crop.holds(grid.positions(cropped)).all()
    middle = (np.abs(grid.positions(whole)[:, :2] - [-0.4, -0.2]) < 0.08).all(axis=1)
    assert inside[middle].all()
    assert sum(crop_model.calls) < 0.5 * sum(whole_model.calls)
    elsewhere = CropBox(FRAME.to_world([0.7, 0.7, 0.0]), FRAME.to_world([0.9, 0.9, 0.2]), FRAME)
    assert len(photo_cells(rendering(crop_model), scene.cameras, 0, grid, elsewhere)) == 0


def test_an_interrupted_export_goes_on_after_the_photos_that_are_finished(scene: Scene, tmp_path: Path) -> None:
    class Stops(PlaneModel):
        def render(self, rays: Rays, *, lod_blend: float = 0.0, appearance: Tensor | None = None) -> Seen:
            if sum(self.calls) > 30_000:
                raise Interrupted
            return super().render(rays, lod_blend=lod_blend, appearance=appearance)

    def parts_by(model: PlaneModel) -> list[Cells]:
        unfinished = Unfinished(tmp_path / "plane.ply", {"gsd": SIDE})
        return surface_parts(rendering(model), scene.cameras, scene.train, Grid.of(SIDE), None, unfinished, no_progress)

    with pytest.raises(Interrupted):
        parts_by(Stops(4))
    goes_on, again = PlaneModel(4), PlaneModel(4)
    found = parts_by(goes_on)
    assert 0 < sum(goes_on.calls) < 3 * 160 * 120
    parts_by(again)
    assert again.calls == []
    for photo, part in zip(scene.train, found, strict=True):
        expected = photo_cells(rendering(PlaneModel(4)), scene.cameras, photo, Grid.of(SIDE), None)
        np.testing.assert_array_equal(part, expected)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if path.suffix == ".ply":
        return read_ply(path)
    file = laspy.read(path)
    return file.xyz, np.stack([np.asarray(file[name]) for name in ("red", "green", "blue")], axis=-1) // 257


@pytest.mark.parametrize("suffix", [".ply", ".las", ".laz"])
def test_files_hold_the_points_in_the_inputs_coordinates(
    scene: Scene, parts: list[Cells], tmp_path: Path, suffix: str
) -> None:
    grid, references = Grid.of(SIDE), scene.points.xyz.double().numpy()
    seen = references[(np.abs(references[:, :2] - [-0.3, -0.1]) < 0.25).all(axis=1)]
    figures = write_points(parts, grid, Placement(FRAME), tmp_path / f"plane{suffix}", seen, no_progress, at_once=500)
    xyz, rgb = read(tmp_path / f"plane{suffix}")
    assert len(xyz) == figures.num_points > 3000
    np.testing.assert_allclose(xyz[:, 2], FRAME.to_world([0, 0, PLANE_Z])[2], atol=0.01)
    assert xyz[:, 0].min() == pytest.approx(figures.low[0], abs=1e-2)
    at = torch.from_numpy(FRAME.to_scene(xyz))[:, :2]
    np.testing.assert_allclose(rgb / 255, texture(at).numpy(), atol=0.03)
    assert figures.references == len(seen) > 20
    assert figures.median_distance is not None
    assert figures.median_distance < SIDE * 40  # cells of 0.4 input units
    assert [path.name for path in tmp_path.iterdir() if path.suffix == suffix] == [f"plane{suffix}"]


def test_what_is_written_does_not_depend_on_how_much_is_merged_at_once(parts: list[Cells], tmp_path: Path) -> None:
    for name, at_once in (("one", 10**7), ("many", 300)):
        write_points(
            parts, Grid.of(SIDE), Placement(FRAME), tmp_path / f"{name}.ply", np.zeros((0, 3)), at_once=at_once
        )
    assert (tmp_path / "one.ply").read_bytes() == (tmp_path / "many.ply").read_bytes()


def test_georeferenced_points_are_in_the_projected_system_which_the_file_names(
    parts: list[Cells], tmp_path: Path
) -> None:
    local = WorldFrame.from_parts(1 / 40, np.eye(3), np.array([5.0, 6.0, 7.0]))
    placement = Placement(local, Georeference(enu_to_ecef(52.8, 16.6, 80.0), "EPSG:32633", "a test"))
    grid = Grid.of(SIDE)
    write_points(parts, grid, placement, tmp_path / "there.laz", np.zeros((0, 3)))
    file = laspy.read(tmp_path / "there.laz")
    crs = file.header.parse_crs()
    assert crs is not None
    assert crs.to_epsg() == 32633
    east, north = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32633").transform(52.8, 16.6)
    assert np.abs(file.xyz - [east, north, 80]).max() < 60
    assert np.abs(file.xyz - [east, north, 80]).max() > 20


def test_a_failed_export_leaves_no_file(tmp_path: Path, parts: list[Cells]) -> None:
    def failing(what: str, done: int, total: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        write_points(parts, Grid.of(SIDE), Placement(FRAME), tmp_path / "a.ply", np.zeros((0, 3)), failing)
    assert list(tmp_path.glob("*.ply")) == []


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
