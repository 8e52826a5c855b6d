"""The earth is found in what the input says: registered coordinates, coords.txt, GPS in EXIF; some may be wrong."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyproj
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from inf_nerf.errors import InputError
from inf_nerf.export.georeference import (
    apply,
    enu_to_ecef,
    exif_position,
    find_georeference,
    fit_similarity,
    geodetic_to_ecef,
    read_coords,
    utm_zone,
)
from inf_nerf.scene.frame import WorldFrame
from inf_nerf.scene.scene import Scene
from tests.train.tiny import tiny_scene

PLACE = 52.8, 16.6, 80.0
DRAW = np.random.default_rng(3)


def turned(scale: float = 1.0, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> WorldFrame:
    """A frame whose input is turned, scaled and moved against the scene."""
    rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    return WorldFrame.from_parts(scale, rotation * np.sign(np.linalg.det(rotation)), np.array(centre))


def scene_in(root: Path, frame: WorldFrame) -> Scene:
    return replace(tiny_scene(), root=str(root), frame=frame)


def centres(scene: Scene) -> np.ndarray:
    """Of the cameras, in the scene frame."""
    return scene.cameras.centre.double().numpy()


def geodetic(ecef: np.ndarray) -> np.ndarray:
    return np.stack(pyproj.Transformer.from_crs("EPSG:4978", "EPSG:4979").transform(*ecef.T), axis=-1)


def save_gps(path: Path, lat: float, lon: float, height: float) -> None:
    def degrees(value: float) -> tuple[IFDRational, ...]:
        whole, rest = divmod(abs(value), 1)
        minutes, rest = divmod(rest * 60, 1)
        return IFDRational(int(whole)), IFDRational(int(minutes)), IFDRational(round(rest * 60 * 10**6), 10**6)

    exif = Image.Exif()
    exif[0x0131] = "a test"  # Pillow writes no PNG chunk for a GPS directory alone
    gps = exif.get_ifd(0x8825)
    gps[1], gps[2] = "N" if lat >= 0 else "S", degrees(lat)
    gps[3], gps[4] = "E" if lon >= 0 else "W", degrees(lon)
    gps[5], gps[6] = b"\x00" if height >= 0 else b"\x01", IFDRational(round(abs(height) * 1000), 1000)
    Image.new("RGB", (8, 6)).save(path, exif=exif)


@pytest.mark.parametrize("place", [PLACE, (-33.9, 151.2, 4.0), (40.0, -105.3, 1650.0), (31.5, 35.5, -420.0)])
def test_exif_is_read_as_it_was_written(tmp_path: Path, place: tuple[float, float, float]) -> None:
    save_gps(tmp_path / "photo.jpg", *place)
    assert exif_position(tmp_path / "photo.jpg") == pytest.approx(place, abs=1e-7)


def test_photos_without_gps_or_without_sense_have_no_position(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("no photo")
    save_gps(tmp_path / "zero.jpg", 0.0, 0.0, 0.0)
    assert [exif_position(tmp_path / name) for name in ("none.jpg", "text.jpg", "zero.jpg", "missing.jpg")] == [
        None
    ] * 4


def test_earth_centred_coordinates_are_those_of_pyproj() -> None:
    to_ecef = pyproj.Transformer.from_crs("EPSG:4979", "EPSG:4978")
    for place in (PLACE, (-33.9, 151.2, 4.0), (89.0, -170.0, 0.0)):
        np.testing.assert_allclose(geodetic_to_ecef(*place), to_ecef.transform(*place), atol=1e-6)
    matrix = enu_to_ecef(*PLACE)
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)
    north = geodetic(apply(matrix, np.array([[0.0, 100.0, 0.0]])))[0]
    assert north[0] - PLACE[0] == pytest.approx(100 / 111_267, rel=1e-3)
    assert north[1:] == pytest.approx([PLACE[1], PLACE[2]], abs=1e-2)


def test_fit_is_not_moved_by_a_third_of_wrong_positions() -> None:
    source = DRAW.uniform(-1, 1, (60, 3)) * [1, 1, 0.1]
    frame = turned(40.0, (3.0, -2.0, 7.0))
    target = frame.to_scene(source) + DRAW.normal(0, 0.05, (60, 3))
    target[::3] += DRAW.normal(0, 30, (20, 3))
    matrix = fit_similarity(source, target, np.array([0.0, 0.0, 1.0]))
    np.testing.assert_allclose(apply(matrix, source), frame.to_scene(source), atol=0.1)


def test_cameras_on_one_line_are_turned_so_that_up_is_up() -> None:
    line = np.array([[x, 2.0 * x, 0.0] for x in np.linspace(-1, 1, 9)])
    up = np.array([2.0, -1.0, 3.0]) / np.sqrt(14)
    target = np.stack([np.linspace(0, 100, 9), np.zeros(9), np.full(9, 50.0)], axis=-1)
    matrix = fit_similarity(line, target, up)
    np.testing.assert_allclose(apply(matrix, line), target, atol=1e-6)
    rotation = matrix[:3, :3] / np.cbrt(np.linalg.det(matrix[:3, :3]))
    np.testing.assert_allclose(rotation @ up, [0, 0, 1], atol=1e-9)


def test_gps_in_exif_places_the_scene(tmp_path: Path) -> None:
    scene = scene_in(tmp_path, turned(0.3, (11.0, 5.0, -4.0)))
    half = 40.0  # metres from the middle of the cube to its side
    truth = enu_to_ecef(*PLACE) @ np.diag([half, half, half, 1.0])
    for photo, place in zip(scene.photos, geodetic(apply(truth, centres(scene))), strict=True):
        save_gps(tmp_path / photo.file, *place)
    found = find_georeference(scene)
    assert found is not None
    assert found.crs == "EPSG:32633"
    assert found.residual_m == pytest.approx(0, abs=0.01)
    assert found.metres_per_unit == pytest.approx(half * scene.frame.scale, rel=1e-4)
    xyz = DRAW.uniform(-1, 1, (50, 3))
    expected = np.stack(pyproj.Transformer.from_crs("EPSG:4978", "EPSG:32633").transform(*apply(truth, xyz).T), axis=-1)
    world = scene.frame.to_world(xyz)
    np.testing.assert_allclose(found.to_crs(world), expected, atol=0.05)
    np.testing.assert_allclose(found.from_crs(found.to_crs(world)), world, atol=1e-5)


def test_photos_without_gps_leave_the_input_where_it_is(tmp_path: Path) -> None:
    scene = scene_in(tmp_path, turned())
    save_gps(tmp_path / scene.photos[0].file, *PLACE)  # one alone says nothing of the scale
    assert find_georeference(scene) is None


def test_coords_of_opendronemap_go_before_exif(tmp_path: Path) -> None:
    scene = scene_in(tmp_path, turned(2.0))
    there = np.array([500_100.0, 4_500_200.0, 300.0]) + 25 * centres(scene)
    lines = [" ".join(f"{value:.6f}" for value in row - [500_000, 4_500_000, 0]) for row in there]
    (tmp_path / "coords.txt").write_text("\n".join(["WGS84 UTM 16N", "500000 4500000", *lines]) + "\n")
    found = find_georeference(scene)
    assert found is not None
    assert (found.crs, found.source) == ("EPSG:32616", "coords.txt")
    world = scene.frame.to_world(centres(scene))
    np.testing.assert_allclose(found.to_crs(world), there, atol=0.02)  # UTM is a little less than true to scale


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("WGS84 UTM 16N\n0 0\n1 2 3\n", "1 photos where the input has 6"),
        ("WGS84 UTM 16N\n0 0\n" + "a b c\n" * 6, r"no coords\.txt of OpenDroneMap"),
        ("WGS84 UTM 16N\n", r"no coords\.txt of OpenDroneMap"),
        ("nowhere\n0 0\n" + "1 2 3\n" * 6, "'nowhere' is unknown"),
        ("EPSG:4326\n0 0\n" + "1 2 3\n" * 6, "is not projected"),
    ],
)
def test_coords_that_cannot_be_are_refused(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "coords.txt").write_text(text)
    with pytest.raises(InputError, match=match):
        read_coords(tmp_path / "coords.txt", 6)


def test_positions_of_other_photos_are_refused(tmp_path: Path) -> None:
    scene = scene_in(tmp_path, turned())
    for photo in scene.photos:  # all but one at the same place
        away = 1e-3 if photo is scene.photos[0] else 0.0
        save_gps(tmp_path / photo.file, PLACE[0] + away, *PLACE[1:])
    with pytest.raises(InputError, match="belong to other photos"):
        find_georeference(scene)


def test_earth_centred_input_stays_as_it_is(tmp_path: Path) -> None:
    matrix = np.linalg.inv(enu_to_ecef(*PLACE) @ np.diag([50.0, 50.0, 50.0, 1.0])).astype(np.float64)
    found = find_georeference(scene_in(tmp_path, WorldFrame(matrix)))
    assert found is not None
    np.testing.assert_array_equal(found.to_ecef, np.eye(4))
    assert found.crs == "EPSG:32633"


def test_origin_says_what_the_metres_of_the_input_are_about(tmp_path: Path) -> None:
    found = find_georeference(scene_in(tmp_path, turned()), origin=PLACE)
    assert found is not None
    np.testing.assert_allclose(apply(found.to_ecef, np.zeros((1, 3)))[0], geodetic_to_ecef(*PLACE))
    assert found.metres_per_unit == pytest.approx(1)


def test_coordinates_in_a_projected_system_are_written_as_they_are(tmp_path: Path) -> None:
    frame = WorldFrame.from_parts(1 / 60, np.eye(3), np.array([600_000.0, 5_850_000.0, 90.0]))
    scene = scene_in(tmp_path, frame)
    found = find_georeference(scene, crs="EPSG:32633")
    assert found is not None
    world = frame.to_world(DRAW.uniform(-1, 1, (20, 3)))
    np.testing.assert_array_equal(found.to_crs(world), world)
    expected = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4978").transform(*world.T)
    np.testing.assert_allclose(apply(found.to_ecef, world), np.stack(expected, axis=-1), atol=2e-3)


@pytest.mark.parametrize(("crs", "match"), [("EPSG:1", "unknown"), ("EPSG:4326", "projected"), ("EPSG:2263", "metres")])
def test_systems_that_cannot_be_the_inputs_are_refused(tmp_path: Path, crs: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        find_georeference(scene_in(tmp_path, turned()), crs=crs)


def test_coordinates_outside_the_system_are_refused(tmp_path: Path) -> None:
    scene = scene_in(tmp_path, WorldFrame.from_parts(1.0, np.eye(3), np.array([1e9, 1e9, 0.0])))
    with pytest.raises(InputError, match="not within"):
        find_georeference(scene, crs="EPSG:32633")


@pytest.mark.parametrize(
    ("lat", "lon", "zone"), [(52.8, 16.6, "EPSG:32633"), (-33.9, 151.2, "EPSG:32756"), (0.0, 180.0, "EPSG:32601")]
)
def test_utm_zone_of_a_place(lat: float, lon: float, zone: str) -> None:
    assert utm_zone(lat, lon) == zone
