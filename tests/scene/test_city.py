import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from numpy.typing import NDArray
from PIL import Image

from inf_nerf.errors import InputError
from inf_nerf.scene.city import folder as city_folder
from inf_nerf.scene.city.capture import plan_flight
from inf_nerf.scene.city.folder import CityParameters, write_city
from inf_nerf.scene.city.layout import build_city
from inf_nerf.scene.city.render import GROUND, SKY, cast, render
from inf_nerf.scene.city.solids import BOX, ELLIPSOID, HIP, PARK, PLAIN, City, Solids, index_solids

SMALL = CityParameters(blocks=2, photos=8, size=64, seed=3)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _one_solid(shape: int, bounds: tuple[float, ...]) -> City:
    """A city of a single solid around the origin."""
    solids = Solids(np.random.default_rng(0))
    solids.add(shape, (bounds[0], bounds[1], bounds[3], bounds[4]), bounds[2], bounds[5], PLAIN, (0.5, 0.5, 0.5))
    kerbs = np.array([[-30.0, 30.0]])
    return index_solids(solids, kerbs, kerbs, np.full((1, 1), PARK), np.array([35.0, 35.0]), 30.0)


def _rays(eye: NDArray[np.float64], targets: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    direction = targets - eye
    return np.tile(eye, (len(targets), 1)), direction / np.linalg.norm(direction, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "city"
    assert write_city(out, SMALL)
    return out


def test_same_seed_gives_the_same_bytes_and_another_seed_another_city(folder: Path, tmp_path: Path) -> None:
    write_city(tmp_path / "again", SMALL)
    assert _digests(folder) == _digests(tmp_path / "again")
    assert len(build_city(2, 3).shape) != len(build_city(2, 4).shape)


def test_folder_opens_as_a_colmap_model_with_every_photo_in_its_size(folder: Path) -> None:
    model = pycolmap.Reconstruction(str(folder / "sparse" / "0"))
    assert model.num_images() == SMALL.photos
    camera = model.camera(1)
    assert (camera.model.name, camera.width, camera.height) == ("PINHOLE", 64, 48)
    names = {image.name for image in model.images.values()}
    assert names == {path.name for path in (folder / "images").iterdir()}
    assert {name.split("_")[0] for name in names} == {"far", "mid", "near"}
    for name in names:
        with Image.open(folder / "images" / name) as photo:
            assert photo.size == (64, 48)


def test_tracks_agree_with_reprojection_and_with_the_recorded_error(folder: Path) -> None:
    model = pycolmap.Reconstruction(str(folder / "sparse" / "0"))
    assert model.num_points3D() > 100
    for point in model.points3D.values():
        assert len({element.image_id for element in point.track.elements}) >= 3
        distances = []
        for element in point.track.elements:
            image = model.image(element.image_id)
            projected = image.project_point(point.xyz)
            assert projected is not None
            distances.append(np.linalg.norm(projected - image.points2D[element.point2D_idx].xy))
        assert max(distances) < 6 * 0.3
        assert point.error == pytest.approx(np.mean(distances), abs=1e-6)


def test_points_are_on_surfaces_and_seen_unoccluded(folder: Path) -> None:
    model = pycolmap.Reconstruction(str(folder / "sparse" / "0"))
    city = build_city(SMALL.blocks, SMALL.seed)
    for image in model.images.values():
        xyz = np.array([model.point3D(p.point3D_id).xyz for p in image.points2D if p.has_point3D()])
        eye = image.projection_center()
        distance, _ = cast(city, *_rays(eye, xyz))
        np.testing.assert_allclose(distance, np.linalg.norm(xyz - eye, axis=1), rtol=1e-5)


def test_point_colours_are_those_of_the_photos(folder: Path) -> None:
    model = pycolmap.Reconstruction(str(folder / "sparse" / "0"))
    best = []
    photos = {i: np.asarray(Image.open(folder / "images" / image.name)) for i, image in model.images.items()}
    for point in model.points3D.values():
        differences = []
        for element in point.track.elements:
            x, y = model.image(element.image_id).points2D[element.point2D_idx].xy
            differences.append(np.abs(photos[element.image_id][int(y), int(x)].astype(float) - point.color).mean())
        best.append(min(differences))
    assert np.median(best) < 8


def test_ray_meets_a_box_where_the_slabs_say() -> None:
    city = _one_solid(BOX, (-4, -3, 0, 5, 6, 10))
    origin = np.array([[-20.0, 1, 5], [1, 2, 50], [1, -30, 4], [-20, 0, 25], [-20, 0, 30], [40, 40, 1], [0, 0, 20]])
    direction = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0], [0.8, 0, -0.6], [0.8, 0, -0.6], [0.6, 0.8, 0], [0, 0, 1]])
    distance, solid = cast(city, origin, direction)
    np.testing.assert_allclose(distance, [16, 40, 27, 25, 50, np.inf, np.inf], atol=1e-9)
    assert solid.tolist() == [0, 0, 0, 0, GROUND, SKY, SKY]


def test_ray_meets_pyramid_and_ball_where_the_formula_says() -> None:
    pyramid = _one_solid(HIP, (-6, -6, 0, 6, 6, 12))  # slopes of 2: |x| <= 6 - z / 2
    distance, _ = cast(
        pyramid, np.array([[-20.0, 0, 4], [0, 0, 30], [2, 1, 30]]), np.array([[1.0, 0, 0], [0, 0, -1], [0, 0, -1]])
    )
    np.testing.assert_allclose(distance, [16, 18, 22], atol=1e-9)
    ball = _one_solid(ELLIPSOID, (-2, -2, 3, 2, 2, 7))
    distance, _ = cast(ball, np.array([[-20.0, 0, 5], [1, 0, 30]]), np.array([[1.0, 0, 0], [0, 0, -1]]))
    np.testing.assert_allclose(distance, [18, 25 - np.sqrt(3)], atol=1e-9)


def test_grid_finds_the_same_hits_as_all_solids_one_by_one() -> None:
    city = build_city(2, 1)
    rng = np.random.default_rng(0)
    eye = np.array([70.0, -90.0, 80.0])
    rays = _rays(eye, np.column_stack([rng.uniform(-60, 60, (400, 2)), rng.uniform(0, 20, 400)]))
    one_cell = city._replace(
        cell_start=np.array([0, len(city.shape)]),
        cell_item=np.arange(len(city.shape)),
        cell_top=np.array([city.top]),
        grid_shape=np.array([1, 1]),
        cell_size=float(city.grid_shape.max()) * city.cell_size,
    )
    np.testing.assert_array_equal(cast(city, *rays)[0], cast(one_cell, *rays)[0])


def test_photo_is_the_area_average_of_a_finer_photo() -> None:
    city = build_city(2, 0)
    flight = plan_flight(city, 6, 64, 0)
    for pose in flight.poses[[0, 3]]:
        coarse = render(city, pose, flight.focal, 64, 48)
        fine = render(city, pose, flight.focal * 8, 512, 384).reshape(48, 8, 64, 8, 3).mean(axis=(1, 3))
        difference = np.abs(coarse - fine)
        point_sampled = render(city, pose, flight.focal * 8, 512, 384)[4::8, 4::8]
        assert difference.mean() < 0.02
        assert abs((coarse - fine).mean()) < 0.004
        assert difference.mean() < 0.4 * np.abs(point_sampled - fine).mean()


def test_distances_to_a_place_span_a_factor_of_six() -> None:
    city = build_city(4, 0)
    flight = plan_flight(city, 60, 64, 0)
    distance, _ = cast(city, flight.poses[:, :, 3], flight.poses[:, :, 2])
    assert distance.max() / distance.min() > 6
    assert np.isfinite(distance).all()


def test_the_same_city_is_left_alone_and_anything_else_is_refused(folder: Path, tmp_path: Path) -> None:
    assert not write_city(folder, SMALL)
    with pytest.raises(InputError, match="other parameters"):
        write_city(folder, CityParameters(2, 8, 64, 4))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(InputError, match="no synthetic city"):
        write_city(tmp_path / "notes", SMALL)
    with pytest.raises(InputError, match="is a file"):
        write_city(tmp_path / "notes" / "a.txt", SMALL)
    with pytest.raises(InputError, match="photos = 2"):
        CityParameters(photos=2)


def test_an_interrupted_city_stops_at_once_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[int] = []

    def counted(*args: Any) -> NDArray[np.float32]:
        rendered.append(1)
        return render(*args)

    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(city_folder, "render", counted)
    with pytest.raises(KeyboardInterrupt):
        write_city(tmp_path / "city", CityParameters(2, 60, 64, 0), on_photo=stop)
    assert list(tmp_path.iterdir()) == []
    assert len(rendered) < 15


def test_smallest_city_and_three_photos_work(tmp_path: Path) -> None:
    write_city(tmp_path / "city", CityParameters(1, 3, 32, 0))
    assert pycolmap.Reconstruction(str(tmp_path / "city" / "sparse" / "0")).num_images() == 3
