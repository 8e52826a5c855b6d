"""A tileset obeys the specification: its rules, volumes that contain what is in them, bits that match the files."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest

from inf_nerf.errors import InputError
from inf_nerf.export.cloud import Cells, Grid, merged
from inf_nerf.export.georeference import Georeference, enu_to_ecef
from inf_nerf.export.gltf import linear
from inf_nerf.export.placement import Placement
from inf_nerf.export.subtrees import SUBTREE_LEVELS
from inf_nerf.export.tiles import TILE_BITS, tile_grid, write_tiles
from inf_nerf.scene.frame import WorldFrame
from tests.export.specification import Glb, read_glb, read_subtree, read_tileset

FRAME = WorldFrame.from_parts(1 / 30, np.eye(3)[[1, 2, 0]], np.array([5.0, 6.0, 7.0]))
PLACE = 52.8, 16.6, 80.0
Tile = tuple[int, int, int, int]  # level, x, y, z


def surface(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points [P, 3] on bumpy ground, denser in one corner, and their colours."""
    draw = np.random.default_rng(seed)
    xy = np.concatenate((draw.uniform(-1, 1, (count // 2, 2)), draw.uniform(0.5, 0.75, (count // 2, 2))))
    z = 0.1 + 0.05 * np.sin(5 * xy[:, 0])
    return np.concatenate((xy, z[:, None]), axis=1), np.stack((xy[:, 0] / 2 + 0.5, xy[:, 1] / 2 + 0.5, z), axis=1)


@pytest.fixture(scope="module")
def grid() -> Grid:
    return tile_grid(2 / 3000)


@pytest.fixture(scope="module")
def parts(grid: Grid) -> list[Cells]:
    return [grid.cells(*surface(6000, seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def placement() -> Placement:
    return Placement(FRAME, Georeference(enu_to_ecef(*PLACE), "EPSG:32633", "a test"))


@pytest.fixture(scope="module")
def written(grid: Grid, parts: list[Cells], placement: Placement, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiles") / "tileset"
    write_tiles(parts, grid, placement, out)
    return out


@pytest.fixture(scope="module")
def available(written: Path) -> dict[Tile, float]:
    """Every tile that the subtrees say is there, with its geometric error, found as a viewer finds them."""
    root = read_tileset(written)["root"]
    tiling = root["implicitTiling"]
    assert tiling["subtreeLevels"] == SUBTREE_LEVELS
    found: dict[Tile, float] = {}
    waiting: list[Tile] = [(0, 0, 0, 0)]
    while waiting:
        level, x, y, z = waiting.pop()
        subtree = read_subtree(_file(written, tiling["subtrees"]["uri"], (level, x, y, z)), SUBTREE_LEVELS)
        np.testing.assert_array_equal(subtree.tiles, subtree.contents)
        for depth in range(SUBTREE_LEVELS + 1):
            bits = subtree.tiles[(8**depth - 1) // 7 :] if depth < SUBTREE_LEVELS else subtree.children
            for index in itertools.product(range(2**depth), repeat=3):
                code = sum(((index[axis] >> bit) & 1) << (3 * bit + axis) for bit in range(depth) for axis in range(3))
                if bits[code]:
                    tile = (level + depth, (x << depth) + index[0], (y << depth) + index[1], (z << depth) + index[2])
                    if depth < SUBTREE_LEVELS:
                        found[tile] = root["geometricError"] / 2 ** tile[0]
                    else:
                        waiting.append(tile)
    assert max(tile[0] for tile in found) == tiling["availableLevels"] - 1
    return found


def _file(folder: Path, template: str, tile: Tile) -> Path:
    level, x, y, z = tile
    return folder / template.format(level=level, x=x, y=y, z=z)


def content(written: Path, tile: Tile) -> Glb:
    return read_glb(_file(written, "content/{level}/{x}/{y}/{z}.glb", tile).read_bytes())


def z_up(positions: np.ndarray) -> np.ndarray:
    """As a viewer turns glTF for a tileset: x, -z, y."""
    return np.stack((positions[:, 0], -positions[:, 2], positions[:, 1]), axis=-1)


def bounds(root: dict[str, Any], tile: Tile) -> tuple[np.ndarray, np.ndarray]:
    """The box of an implicit tile: the root's, halved as often as its level says."""
    box = np.array(root["boundingVolume"]["box"])
    half = box[[3, 7, 11]]
    assert np.count_nonzero(box[3:]) == 3
    size = 2 * half / 2 ** tile[0]
    low = box[:3] - half + np.array(tile[1:]) * size
    return low, low + size


def test_availability_is_that_of_the_files(written: Path, available: dict[Tile, float]) -> None:
    files = {tuple(map(int, path.with_suffix("").relative_to(written / "content").parts))
             for path in (written / "content").rglob("*.glb")}  # fmt: skip
    assert files == set(available)
    assert len(files) > 100
    roots = {tuple(map(int, path.with_suffix("").relative_to(written / "subtrees").parts))
             for path in (written / "subtrees").rglob("*.subtree")}  # fmt: skip
    assert roots == {tile for tile in available if tile[0] % SUBTREE_LEVELS == 0}


def test_every_tile_but_the_root_has_its_parent(available: dict[Tile, float]) -> None:
    for level, x, y, z in available:
        assert level == 0 or (level - 1, x // 2, y // 2, z // 2) in available


def test_volumes_contain_their_points_and_those_of_their_children(written: Path, available: dict[Tile, float]) -> None:
    root = read_tileset(written)["root"]
    for tile in available:
        low, high = bounds(root, tile)
        level, x, y, z = tile
        if level:
            outer_low, outer_high = bounds(root, (level - 1, x // 2, y // 2, z // 2))
            assert (low >= outer_low - 1e-9).all() and (high <= outer_high + 1e-9).all()
        points = content(written, tile)
        assert points.mode == 0
        positions = z_up(points.positions)
        assert (positions >= low - 1e-5).all() and (positions <= high + 1e-5).all()


def test_geometric_error_falls_and_is_the_distance_of_points(written: Path, available: dict[Tile, float]) -> None:
    tileset = read_tileset(written)
    errors = [tileset["geometricError"], *(tileset["root"]["geometricError"] / 2**level for level in range(5))]
    assert all(coarse > fine > 0 for coarse, fine in itertools.pairwise(errors))
    assert tileset["root"]["refine"] == "REPLACE"
    for tile, error in available.items():
        low, high = bounds(tileset["root"], tile)
        cell = (high - low)[0] / 2**TILE_BITS
        assert error == pytest.approx(cell)
        index = np.floor((z_up(content(written, tile).positions) - low) / cell * (1 - 1e-6)).astype(int)
        assert len(np.unique(index, axis=0)) > 0.95 * len(index)  # one point a cell, but for rounding at its faces


def test_leaves_are_the_points_and_parents_their_children_averaged(
    written: Path, available: dict[Tile, float], parts: list[Cells], grid: Grid, placement: Placement
) -> None:
    leaf = max(tile[0] for tile in available)
    found = np.concatenate([z_up(content(written, tile).positions) for tile in available if tile[0] == leaf])
    expected = grid.positions(merged(parts, 0, 8**grid.bits)) * placement.scale
    assert len(found) == len(expected)
    order = [np.lexsort(np.rint(xyz * 1e3).T) for xyz in (found, expected)]
    np.testing.assert_allclose(found[order[0]], expected[order[1]], atol=2e-3)
    xyz, rgb = (np.concatenate(arrays) for arrays in zip(*(surface(6000, seed) for seed in range(3)), strict=True))
    for level in (leaf - 1, 0):
        tile = next(tile for tile in available if tile[0] == level)
        low, high = bounds(read_tileset(written)["root"], tile)
        cell = (high - low)[0] / 2**TILE_BITS
        inside = ((xyz * placement.scale >= low) & (xyz * placement.scale < high)).all(axis=1)
        index = np.floor((xyz[inside] * placement.scale - low) / cell)
        _, inverse = np.unique(index, axis=0, return_inverse=True)
        mean = np.stack([np.bincount(inverse.ravel(), rgb[inside][:, k]) for k in range(3)], 1)
        mean = mean / np.bincount(inverse.ravel())[:, None]
        colours = content(written, tile).colours
        assert len(colours) == len(mean)
        np.testing.assert_allclose(np.sort(colours[:, 0]), np.sort(linear(mean[:, 0])), atol=1e-4)


def test_transform_brings_tiles_to_where_they_are_on_the_earth(
    written: Path, available: dict[Tile, float], placement: Placement
) -> None:
    matrix = np.array(read_tileset(written)["root"]["transform"]).reshape(4, 4).T
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-9)  # metres stay metres
    scene = z_up(content(written, (0, 0, 0, 0)).positions)
    there = scene @ matrix[:3, :3].T + matrix[:3, 3]
    lat, lon, height = pyproj.Transformer.from_crs("EPSG:4978", "EPSG:4979").transform(*there.T)
    enu = placement.frame.to_world(scene / placement.scale)  # the input's coordinates are east, north, up
    np.testing.assert_allclose(height - PLACE[2], enu[:, 2], atol=0.01)
    np.testing.assert_allclose((lat - PLACE[0]) * 111_275, enu[:, 1], atol=0.1)
    np.testing.assert_allclose((lon - PLACE[1]) * 67_400, enu[:, 0], atol=0.1)


def test_without_a_georeference_tiles_are_in_the_inputs_coordinates(
    grid: Grid, parts: list[Cells], tmp_path: Path
) -> None:
    write_tiles(parts, grid, Placement(FRAME), tmp_path / "tiles")
    matrix = np.array(read_tileset(tmp_path / "tiles")["root"]["transform"]).reshape(4, 4).T
    xyz = np.random.default_rng(0).uniform(-1, 1, (9, 3))
    there = xyz * 30 @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(there, FRAME.to_world(xyz), atol=1e-9)


def test_a_tileset_is_replaced_and_nothing_else_is(grid: Grid, parts: list[Cells], tmp_path: Path) -> None:
    out, few = tmp_path / "tiles", [grid.cells(*surface(40))]
    write_tiles(parts, grid, Placement(FRAME), out)
    write_tiles(few, grid, Placement(FRAME), out)
    write_tiles(few, grid, Placement(FRAME), tmp_path / "fresh")
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*.*")) for folder in (out, tmp_path / "fresh")]
    assert names[0] == names[1]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="no tileset"):
        write_tiles(few, grid, Placement(FRAME), tmp_path / "mine")
    with pytest.raises(InputError, match="nothing opaque"):
        write_tiles([parts[0][:0]], grid, Placement(FRAME), tmp_path / "none")


@pytest.mark.parametrize("gsd", [1.5, 2 / 100, 2 / 129, 2 / 3000])
def test_cells_are_a_power_of_two_and_no_coarser_than_asked(gsd: float) -> None:
    grid = tile_grid(gsd)
    assert grid.side == 2.0 / 2**grid.bits <= gsd
    assert grid.bits == TILE_BITS or 2 * grid.side > gsd
