"""Tiles cover the pyramid exactly and name every node that their pixels ask."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from inf_nerf.config import Config, load_config
from inf_nerf.octree.build import build_octree
from inf_nerf.octree.routing import route
from inf_nerf.octree.tiles import (
    TILE_SCHEMA,
    cut_photo,
    nodes_of_tiles,
    read_counts,
    tile_boxes,
    tile_file,
    tile_identity,
    write_tiles,
)
from inf_nerf.octree.topology import BACKGROUND_KEY, ROOT_KEY, Octree
from inf_nerf.scene.cameras import Cameras
from inf_nerf.scene.frame import WorldFrame
from inf_nerf.scene.photos import area_resize, pyramid
from inf_nerf.scene.points import SparsePoints
from inf_nerf.scene.scene import Photo, Scene

WIDTH, HEIGHT, GROUND = 71, 53, -0.3
CONFIG = load_config(
    None,
    ["data.tile_size=16", "scene.pyramid_levels=3", "octree.num_levels=5", "octree.min_points=3", "field.max_res=16"],
)


def look(eye: tuple[float, float, float], at: tuple[float, float, float]) -> torch.Tensor:
    """Pose [3, 4] with OpenCV axes."""
    forward = torch.nn.functional.normalize(torch.tensor(at) - torch.tensor(eye), dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, torch.tensor([0.03, 0.0, 1.0])), dim=0)
    down = torch.linalg.cross(forward, right)
    return torch.stack([right, down, forward, torch.tensor(eye)], dim=1)


def ground_distance(scene: Scene, photo: int, level: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For every pixel of a level: where it sees the ground [R, 3], at which distance [R], its radius [R]."""
    rays = scene.cameras.image_rays(photo, level)
    distance = (GROUND - rays.origin[:, 2]) / rays.direction[:, 2]
    return rays.origin + rays.direction * distance[:, None], distance, rays.radius


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A textured ground plane: two photos that see it, one that has no keypoints, one that looks away."""
    poses = [
        look((-0.2, -0.1, 0.5), (0.1, 0.2, GROUND)),
        look((0.3, -1.4, 1.2), (0.0, 0.0, GROUND)),
        look((0.1, 0.1, 0.4), (0.0, 0.0, GROUND)),
        look((0.0, 0.0, 3.0), (0.5, 0.0, 9.0)),
    ]
    virtual = Cameras.pinhole(torch.stack(poses), WIDTH, HEIGHT, 60.0)
    cameras = replace(virtual, appearance=torch.arange(4))
    xyz, footprint, photos, places = [], [], [], []
    generator = torch.Generator().manual_seed(0)
    for photo in (0, 1):
        xy = torch.rand(400, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
        rays = cameras.rays_at(torch.full((400,), photo), xy)
        distance = (GROUND - rays.origin[:, 2]) / rays.direction[:, 2]
        xyz.append(rays.origin + rays.direction * distance[:, None])
        footprint.append(rays.radius * distance)
        places.append(xy)
        photos += [photo] * 400
    count = len(photos)
    points = SparsePoints(
        xyz=torch.cat(xyz), footprint=torch.cat(footprint), rgb=torch.zeros(count, 3, dtype=torch.uint8),
        error=torch.zeros(count), track_start=torch.arange(count + 1), track_photo=torch.tensor(photos),
        track_xy=torch.cat(places),
    )  # fmt: skip
    listed = tuple(
        Photo(f"{name}.png", split, f"{name}.png", None) for name, split in zip("abcd", ["train", "val"] * 2)
    )
    return Scene(listed, cameras, points, WorldFrame(np.eye(4)), "nowhere", {}, cameras.size)


@pytest.fixture(scope="module")
def octree(scene: Scene) -> Octree:
    tree = build_octree(scene.points.xyz, scene.points.footprint, CONFIG.octree, CONFIG.field.max_res)
    assert tree.num_levels >= 4
    return tree


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def rows_of(table: pa.Table, level: int) -> list[dict]:
    return [row for row in table.to_pylist() if row["level"] == level]


@pytest.mark.parametrize(("width", "height", "tile_size"), [(71, 53, 16), (64, 32, 32), (1, 1, 8), (9, 200, 64)])
def test_tiles_cover_every_pixel_once(width: int, height: int, tile_size: int) -> None:
    covered = np.zeros((height, width), int)
    for x, y, w, h in tile_boxes(width, height, tile_size):
        assert 0 < w <= tile_size
        assert 0 < h <= tile_size
        covered[y : y + h, x : x + w] += 1
    assert (covered == 1).all()


def test_tiles_hold_the_pyramid_and_round_trip_through_their_file(scene: Scene, octree: Octree, tmp_path: Path) -> None:
    photo = image()
    table, counts = cut_photo(scene, octree, 1, photo, None, CONFIG, "some identity")
    file = tile_file(tmp_path, 1)
    write_tiles(file, table)
    assert file.name == "000001.parquet"
    read = pq.read_table(file)
    assert read.schema.equals(TILE_SCHEMA, check_metadata=False)
    assert read.equals(table)
    for level, expected in enumerate(pyramid(photo, 3)):
        found = np.zeros_like(expected)
        for row in rows_of(read, level):
            box = (slice(row["y"], row["y"] + row["height"]), slice(row["x"], row["x"] + row["width"]))
            found[box] = np.frombuffer(row["pixels"], np.uint8).reshape(row["height"], row["width"], 3)
            assert row["tile"] >> 24 == (1 << 8) + level
            assert row["mask"] is None
        np.testing.assert_array_equal(found, expected)
    assert len(set(read["tile"].to_pylist())) == counts.tiles == len(read)
    assert set(read["split"].to_pylist()) == {"val"}
    assert counts.pixels == WIDTH * HEIGHT
    np.testing.assert_allclose(counts.colour_sum, photo.sum(axis=(0, 1)))
    assert read_counts(file, "some identity") == counts


def test_masked_pixels_stay_masked_in_every_level_and_empty_tiles_are_left_out(scene: Scene, octree: Octree) -> None:
    photo, mask = image(), np.ones((HEIGHT, WIDTH), bool)
    mask[:, :33] = False
    mask[20, 60] = False
    table, counts = cut_photo(scene, octree, 0, photo, mask, CONFIG, "")
    for level, pixels in enumerate(pyramid(photo, 3)):
        height, width = pixels.shape[:2]
        used = np.zeros((height, width), bool)
        for row in rows_of(table, level):
            part = np.ones((row["height"], row["width"]), bool)
            if row["mask"] is not None:
                part = np.frombuffer(row["mask"], np.uint8).reshape(part.shape).astype(bool)
            assert part.any()
            used[row["y"] : row["y"] + row["height"], row["x"] : row["x"] + row["width"]] = part
        np.testing.assert_array_equal(used, area_resize(mask, (width, height)) > 0.9999)
    assert len(rows_of(table, 0)) == 3 * 4  # of 5 columns, two are hidden
    assert any(row["mask"] is None for row in rows_of(table, 0))
    assert counts.pixels == mask.sum()
    np.testing.assert_allclose(counts.colour_sum, photo[mask].sum(axis=0))


@pytest.mark.parametrize("photo", [0, 1, 2])  # 2 has no keypoints: its whole rays are followed
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_tile_names_every_node_that_answers_on_the_surface_it_sees(
    scene: Scene, octree: Octree, photo: int, level: int
) -> None:
    width, height = scene.cameras.level_size(photo, level)
    boxes = tile_boxes(width, height, 16)
    nodes = nodes_of_tiles(scene, octree, photo, level, boxes, 1.0)
    xyz, distance, radius = ground_distance(scene, photo, level)
    missed = asked = 0
    for jitter in (2**-0.5, 1.0, 2**0.4999):
        answer, _ = route(octree, xyz, radius * distance * jitter)
        keys = octree.keys[answer].reshape(height, width).numpy()
        inside = (xyz.abs() <= 1).all(dim=1).reshape(height, width).numpy()
        for (x, y, w, h), seen in zip(boxes, nodes, strict=True):
            with_ancestors = {key >> (3 * up) for key in seen.tolist() for up in range(8)}
            wanted = keys[y : y + h, x : x + w][inside[y : y + h, x : x + w]]
            asked += len(wanted)
            missed += sum(key not in with_ancestors for key in wanted.tolist())
    assert asked > 0.5 * width * height
    assert missed <= 0.01 * asked  # 3 x 3 rays may pass a node that only a corner of the tile touches


def test_a_tile_names_only_nodes_that_it_can_see(scene: Scene, octree: Octree) -> None:
    boxes = tile_boxes(WIDTH, HEIGHT, 16)
    nodes = nodes_of_tiles(scene, octree, 0, 0, boxes, 1.0)
    xyz, _, _ = ground_distance(scene, 0, 0)
    xyz = xyz.reshape(HEIGHT, WIDTH, 3)
    for (x, y, w, h), seen in zip(boxes, nodes, strict=True):
        patch = xyz[y : y + h, x : x + w].reshape(-1, 3)
        index = torch.searchsorted(octree.keys, torch.from_numpy(seen))
        low = octree.centre[index] - octree.half[index, None]
        high = octree.centre[index] + octree.half[index, None]
        apart = torch.maximum(low - patch.amax(0), patch.amin(0) - high).amax(dim=1)  # [nodes] gap between boxes
        assert apart.max() < 0.25
        assert len(seen) < octree.num_nodes / 3


def test_without_keypoints_nearer_and_farther_nodes_are_named_too(scene: Scene, octree: Octree) -> None:
    boxes = tile_boxes(WIDTH, HEIGHT, 16)
    points = scene.points
    without = replace(points, track_photo=torch.full_like(points.track_photo, 3))
    blind = replace(scene, points=without)
    narrow = nodes_of_tiles(scene, octree, 0, 0, boxes, 1.0)
    wide = nodes_of_tiles(blind, octree, 0, 0, boxes, 1.0)
    lost = sum(len(set(a.tolist()) - set(b.tolist())) for a, b in zip(narrow, wide, strict=True))
    assert lost <= 0.1 * sum(map(len, narrow))  # steps fall elsewhere and may skip a corner
    assert sum(map(len, wide)) > 1.3 * sum(map(len, narrow))


def test_a_tile_without_keypoints_takes_its_depth_from_the_nearest_ones(scene: Scene, octree: Octree) -> None:
    points = scene.points
    left = (points.track_photo == 0) & (points.track_xy[:, 0] < 16)
    sparse = replace(points, track_photo=torch.where(left, 0, 3))
    box = np.array([[32, 16, 16, 16]])
    few = nodes_of_tiles(replace(scene, points=sparse), octree, 0, 0, box, 1.0)[0]
    every = nodes_of_tiles(scene, octree, 0, 0, box, 1.0)[0]
    assert BACKGROUND_KEY not in few
    assert set(few.tolist()) & set(every.tolist())


def test_a_photo_that_misses_the_cube_sees_the_background(scene: Scene, octree: Octree) -> None:
    nodes = nodes_of_tiles(scene, octree, 3, 0, tile_boxes(WIDTH, HEIGHT, 16), 1.0)
    assert len(nodes) == 20
    assert all(keys.tolist() == [BACKGROUND_KEY] for keys in nodes)


def test_identity_names_what_tiles_depend_on_and_nothing_else(scene: Scene, octree: Octree) -> None:
    def identity(*overrides: str, of: Scene = scene, tree: Octree = octree) -> str:
        config: Config = load_config(None, overrides, base=CONFIG.model_dump(mode="json"))
        return tile_identity(of, tree, config)

    first = identity()
    assert identity("train.lr_init=1e-3", "data.reservoir_mb=5", "data.level_boost=3") == first
    moved = replace(scene.cameras, cam_to_world=scene.cameras.cam_to_world + 0.1)
    others = [
        identity("data.tile_size=32"),
        identity("scene.pyramid_levels=2"),
        identity("octree.footprint_px=2"),
        identity(of=replace(scene, cameras=moved)),
        identity(of=replace(scene, photos=(replace(scene.photos[0], split="val"), *scene.photos[1:]))),
        identity(of=replace(scene, photos=(replace(scene.photos[0], mask="a.mask.png"), *scene.photos[1:]))),
        identity(tree=octree.restrict({ROOT_KEY, BACKGROUND_KEY})),
    ]
    assert len({first, *others}) == 8


def test_file_of_another_identity_or_a_damaged_one_has_no_counts(scene: Scene, octree: Octree, tmp_path: Path) -> None:
    table, _ = cut_photo(scene, octree, 0, image(), None, CONFIG, "this")
    file = tmp_path / "a.parquet"
    assert read_counts(file, "this") is None
    write_tiles(file, table)
    assert read_counts(file, "this") is not None
    assert read_counts(file, "that") is None
    file.write_bytes(file.read_bytes()[:-20])
    assert read_counts(file, "this") is None
