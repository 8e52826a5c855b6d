"""An orthophoto shows what lies straight below each pixel, seamless at any size, and goes on after a stop."""

import tracemalloc
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor

from inf_nerf.errors import InputError
from inf_nerf.export.georeference import Georeference, enu_to_ecef
from inf_nerf.export.ortho import (
    TILE,
    MapGrid,
    distance_above,
    map_rays,
    render_rays,
    settled_footprint,
    write_ortho,
)
from inf_nerf.export.placement import CropBox, Placement
from inf_nerf.export.raster_files import world_file, write_png
from inf_nerf.export.surface import Rendering
from inf_nerf.export.unfinished import Unfinished
from inf_nerf.octree.routing import route
from inf_nerf.octree.topology import Octree
from inf_nerf.render.stored_model import StoredModel
from inf_nerf.scene.cameras import Rays
from inf_nerf.scene.frame import WorldFrame
from tests.octree.conftest import grow
from tests.plane_scene import PlaneModel, Seen, texture
from tests.render.stored_nodes import stored, whole_model

FRAME = WorldFrame.from_parts(1 / 40, np.eye(3), np.array([600_000.0, 5_850_000.0, 90.0]))
SLANTED = WorldFrame.from_parts(
    0.3, np.linalg.qr(np.arange(9.0).reshape(3, 3) + np.eye(3))[0], np.array([3.0, 1.0, 2.0])
)
LOW, HIGH = np.array([-0.8, -0.6, -0.1]), np.array([0.8, 0.7, 0.3])
FOOTPRINT_PX = 1.0


class Interrupted(Exception):
    """What stops an export."""


def rendering(model: object) -> Rendering:
    return Rendering(model, 20_000, 1, 0.02)


def write(model: PlaneModel, placement: Placement, gsd: float, out: Path, crop: CropBox | None = None) -> MapGrid:
    grid = MapGrid.over(placement, gsd, LOW, HIGH, crop)
    unfinished = Unfinished(out, {"gsd": gsd})
    write_ortho(rendering(model), model.octree, FOOTPRINT_PX, placement, grid, out, unfinished)
    return grid


def centres(grid: MapGrid) -> np.ndarray:
    """Map coordinates [H, W, 2] of the pixels."""
    x = grid.left + (np.arange(grid.width) + 0.5) * grid.gsd
    y = grid.top - (np.arange(grid.height) + 0.5) * grid.gsd
    return np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1)


def plane_at(placement: Placement, grid: MapGrid) -> np.ndarray:
    """The plane's colours [H, W, 3] there; the plane is level in the scene."""
    xy = centres(grid).reshape(-1, 2)
    at = placement.map_to_scene(np.concatenate((xy, np.full((len(xy), 1), 0.0)), axis=1))
    return texture(torch.from_numpy(at)[:, :2]).numpy().reshape(grid.height, grid.width, 3)


@pytest.mark.parametrize("frame", [FRAME, SLANTED], ids=["z is up", "z is not up"])
def test_png_shows_what_is_below_each_pixel(frame: WorldFrame, tmp_path: Path) -> None:
    placement = Placement(frame)
    grid = write(PlaneModel(1), placement, 2 / frame.scale / 640, tmp_path / "map.png")
    pixels = np.asarray(Image.open(tmp_path / "map.png"))
    assert pixels.shape == (grid.height, grid.width, 4)
    assert min(grid.height, grid.width) > TILE
    assert (pixels[:, :, 3] == 255).all()
    np.testing.assert_allclose(pixels[:, :, :3] / 255, plane_at(placement, grid), atol=0.006)
    world = [float(line) for line in (tmp_path / "map.pgw").read_text().split()]
    assert world[:4] == pytest.approx([grid.gsd, 0, 0, -grid.gsd])
    assert world[4:] == pytest.approx(centres(grid)[0, 0].tolist(), abs=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".map.png.parts", "map.pgw", "map.png"]


def test_geotiff_names_its_system_and_place(tmp_path: Path) -> None:
    local = WorldFrame.from_parts(1 / 40, np.eye(3), np.array([5.0, 6.0, 7.0]))
    placement = Placement(local, Georeference(enu_to_ecef(52.8, 16.6, 80.0), "EPSG:32633", "a test"))
    grid = write(PlaneModel(1), placement, 0.2, tmp_path / "map.tif")
    with tifffile.TiffFile(tmp_path / "map.tif") as file:
        page = file.pages[0]
        assert page.tile == (TILE, TILE) and not file.is_bigtiff
        geo = file.geotiff_metadata
        assert geo is not None
        pixels = file.asarray()
    assert int(geo["ProjectedCSTypeGeoKey"]) == 32633
    assert geo["ModelPixelScale"][:2] == [0.2, 0.2]
    assert geo["ModelTiepoint"][3:5] == pytest.approx([grid.left, grid.top])
    assert pixels.shape == (grid.height, grid.width, 4)
    np.testing.assert_allclose(pixels[:, :, :3] / 255, plane_at(placement, grid), atol=0.006)


def test_tiff_without_a_georeference_has_a_world_file_and_no_keys(tmp_path: Path) -> None:
    write(PlaneModel(1), Placement(FRAME), 0.3, tmp_path / "map.tif")
    with tifffile.TiffFile(tmp_path / "map.tif") as file:
        assert file.geotiff_metadata is None
    assert (tmp_path / "map.tfw").is_file()


def test_a_crop_is_that_part_of_the_whole_picture(tmp_path: Path) -> None:
    placement, gsd = Placement(FRAME), 0.15
    whole = write(PlaneModel(1), placement, gsd, tmp_path / "whole.png")
    crop = CropBox(FRAME.to_world([-0.3, -0.2, -0.5]), FRAME.to_world([0.4, 0.1, 0.5]), FRAME)
    part = write(PlaneModel(1), placement, gsd, tmp_path / "part.png", crop)
    left, top = round((part.left - whole.left) / gsd), round((whole.top - part.top) / gsd)
    pictures = [np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("whole", "part")]
    np.testing.assert_array_equal(pictures[0][top : top + part.height, left : left + part.width], pictures[1])


def test_what_is_not_opaque_is_transparent(tmp_path: Path) -> None:
    class Hole(PlaneModel):
        def render(self, rays: Rays, *, lod_blend: float = 0.0, appearance: Tensor | None = None) -> Seen:
            seen = super().render(rays, lod_blend=lod_blend, appearance=appearance)
            return replace(seen, opacity=torch.where(rays.origin[:, 0] > 0, seen.opacity, 0.3))

    grid = write(Hole(1), Placement(FRAME), 0.3, tmp_path / "map.png")
    pixels = np.asarray(Image.open(tmp_path / "map.png"))
    east = centres(grid)[:, :, 0] > 600_000
    assert (pixels[east][:, 3] == 255).all()
    assert not pixels[~east].any()


def test_after_a_stop_only_missing_tiles_are_rendered(tmp_path: Path) -> None:
    class Stops(PlaneModel):
        def render(self, rays: Rays, *, lod_blend: float = 0.0, appearance: Tensor | None = None) -> Seen:
            if sum(self.calls) >= 3 * TILE**2:
                raise Interrupted
            return super().render(rays, lod_blend=lod_blend, appearance=appearance)

    out, gsd = tmp_path / "map.png", 80 / 1000
    with pytest.raises(Interrupted):
        write(Stops(1), Placement(FRAME), gsd, out)
    assert not out.exists()
    goes_on = PlaneModel(1)
    grid = write(goes_on, Placement(FRAME), gsd, out)
    assert sum(goes_on.calls) == grid.width * grid.height - 3 * TILE**2
    write(PlaneModel(1), Placement(FRAME), gsd, tmp_path / "at_once.png")
    assert out.read_bytes() == (tmp_path / "at_once.png").read_bytes()


def test_peak_memory_does_not_grow_with_the_picture(tmp_path: Path) -> None:
    def peak(gsd: float, name: str) -> int:
        tracemalloc.start()
        write(PlaneModel(1), Placement(FRAME), gsd, tmp_path / name)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(0.1, "imports.png")
    for suffix in ("png", "tif"):
        assert peak(0.05, f"double.{suffix}") < 1.1 * peak(0.1, f"single.{suffix}")


@pytest.mark.parametrize("seed", range(6))
def test_one_level_answers_however_high_the_ground_is(seed: int) -> None:
    tree = grow(seed)
    draw = np.random.default_rng(seed)
    gsds = tree.gsd.unique().tolist()
    for footprint in [*gsds, *(gsd * factor for gsd in gsds for factor in (0.97, 0.999, 1.001, 1.4))]:
        start = distance_above(footprint)
        radius = np.float32(settled_footprint(tree, footprint, start, FOOTPRINT_PX) / start)
        assert footprint <= radius * start <= footprint * 1.7
        xy = torch.from_numpy(draw.uniform(-1, 1, (40, 2))).float()
        levels = []
        for z in (-1.0, -0.4, 0.1, 0.99):
            xyz = torch.cat((xy, torch.full((40, 1), z)), dim=1)
            at = torch.full((40,), start + 1 - z) * float(radius)
            levels.append(wanted_level(tree, at))
            route(tree, xyz, at)
        assert len(set(levels)) == 1, (footprint, levels)


def wanted_level(tree: Octree, footprint: Tensor) -> int:
    """The level that would answer if the tree were complete."""
    return int((footprint[:, None] < tree.gsd.unique().flip(0)[None, :-1]).sum(1).unique().item())


@pytest.mark.parametrize("footprint", [1e-2, 1e-4, 1e-5])
def test_rays_start_where_float32_still_tells_footprints_apart(footprint: float) -> None:
    start = np.float32(distance_above(footprint))
    assert np.spacing(np.float32(start + 2)) < max(footprint / 8, 1e-6)


def test_rays_are_parallel_and_meet_the_ground_under_their_pixels() -> None:
    placement = Placement(FRAME)
    grid = MapGrid.over(placement, 0.1, LOW, HIGH, None)
    rays = map_rays(placement, grid, 0, 1, 32.0, 0.0025)
    assert torch.allclose(rays.direction, torch.tensor([0.0, 0.0, -1.0]))
    ground = rays.origin + rays.direction * (rays.origin[:, 2:] - 0.1)
    at = FRAME.to_world(ground.double().numpy())[:, :2]
    np.testing.assert_allclose(at.reshape(TILE, TILE, 2), centres(grid)[:TILE, TILE : 2 * TILE], atol=1e-3)


def test_a_picture_under_a_budget_is_the_one_of_the_whole_model() -> None:
    tree = next(tree for tree in map(grow, range(200)) if 40 < tree.num_nodes < 120 and tree.num_levels > 3)
    model = whole_model(tree)
    row = model.field.node_bytes + model.cells.resolution**3
    placement = Placement(WorldFrame(np.eye(4)))
    grid = MapGrid(-1.0, 1.0, 2 / 200, 200, 200, -1.0, 1.0)
    start = distance_above(grid.gsd)
    rays = map_rays(placement, grid, 0, 0, start, settled_footprint(tree, grid.gsd, start, FOOTPRINT_PX))
    expected = render_rays(rendering(model), rays, (200, 200))
    assert expected[:, :, 3].any()
    with closing(stored(model, 16 * row).cache) as cache:
        small = StoredModel(model, tree, cache)
        assert not small.fits(rays)
        found = render_rays(rendering(small), rays, (200, 200))
        assert cache.figures.peak_bytes <= cache.budget
        np.testing.assert_array_equal(found, expected)


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no kind of orthophoto"):
        write(PlaneModel(1), Placement(FRAME), 0.3, tmp_path / "map.bmp")


def test_png_rows_may_come_in_any_bands(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 23, 4), np.uint8)
    write_png(tmp_path / "a.png", 23, 37, [pixels[:1], pixels[1:20], pixels[20:]])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), pixels)


def test_world_files_keep_centimetres_of_large_coordinates() -> None:
    values = [float(line) for line in world_file(600_000.25, 5_850_000.75, 0.5).split()]
    assert values == [0.5, 0, 0, -0.5, 600_000.5, 5_850_000.5]
