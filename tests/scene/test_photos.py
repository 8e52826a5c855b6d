"""Photos and masks arrive at level 0 undistorted in colour and place, and pyramid levels are in register."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inf_nerf.config import SceneConfig
from inf_nerf.errors import InputError
from inf_nerf.scene.photos import area_resize, pyramid, read_mask, read_photo
from inf_nerf.scene.scene import Scene, load_scene
from tests.scene.tiny_capture import HEIGHT, WIDTH, make_camera, write_capture


def ramp(width: int, height: int) -> np.ndarray:
    """A linear image: the value at any place is a linear function of its continuous pixel coordinates."""
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    return np.stack(np.broadcast_arrays(x[None, :], y[:, None], (x[None, :] + 2 * y[:, None])), axis=-1)


@pytest.mark.parametrize("size", [(101, 67), (119, 33), (64, 48), (5, 1)])
def test_levels_of_a_linear_image_show_it_at_the_places_their_rays_look_at(size: tuple[int, int]) -> None:
    width, height = size
    image = ramp(width, height)
    for level in range(5):
        level_width, level_height = max(1, width >> level), max(1, height >> level)
        smaller = area_resize(image, (level_width, level_height))
        x = (np.arange(level_width) + 0.5) * width / level_width
        y = (np.arange(level_height) + 0.5) * height / level_height
        # A photo's pixel is one value over its area, so a cut pixel moves the mean by up to an eighth of a pixel;
        # scales or centres that are wrong for odd sizes are off by up to a whole one.
        difference = smaller - np.stack(
            np.broadcast_arrays(x[None, :], y[:, None], x[None, :] + 2 * y[:, None]), axis=-1
        )
        assert np.abs(difference / [1, 1, 3]).max() < 0.13


@pytest.mark.parametrize("size", [(101, 67), (40, 30), (99, 13), (1, 1)])
def test_area_averaging_keeps_the_mean(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random((67, 101, 3))
    np.testing.assert_allclose(area_resize(image, size).mean(axis=(0, 1)), image.mean(axis=(0, 1)), rtol=1e-4)


def test_area_averaging_by_whole_factors_is_the_mean_of_blocks() -> None:
    image = np.random.default_rng(1).random((12, 20))
    blocks = image.reshape(4, 3, 5, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(area_resize(image, (5, 4)), blocks, rtol=1e-5)


def test_area_averaging_weights_pixels_by_overlap() -> None:
    np.testing.assert_allclose(area_resize(np.array([[0.0, 6.0, 12.0]]), (2, 1)), [[2.0, 10.0]], rtol=1e-6)


def test_every_level_is_averaged_from_level_0() -> None:
    image = np.random.default_rng(2).integers(0, 256, (67, 101, 3), dtype=np.uint8)
    levels = pyramid(image, 5)
    assert [level.shape[:2] for level in levels] == [(67, 101), (33, 50), (16, 25), (8, 12), (4, 6)]
    assert levels[0] is image
    np.testing.assert_array_equal(levels[4], np.rint(area_resize(image, (6, 4))))
    assert len(pyramid(image, 1)) == 1


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    write_capture(tmp_path)
    return load_scene(tmp_path, SceneConfig())


def replace_photo(scene: Scene, photo: int, image: Image.Image) -> None:
    image.save(Path(scene.root) / scene.photos[photo].file)


def test_grey_palette_and_transparent_photos_become_colour(scene: Scene) -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[:5] = 0
    replace_photo(scene, 0, Image.fromarray(np.concatenate([colour, alpha], axis=2)))
    np.testing.assert_array_equal(read_photo(scene, 0), colour)
    mask = read_mask(scene, 0)
    assert mask is not None
    assert not mask[:5].any()
    assert mask[5:].all()

    replace_photo(scene, 1, Image.fromarray(colour[:, :, 0]))
    np.testing.assert_array_equal(read_photo(scene, 1), np.repeat(colour[:, :, :1], 3, axis=2))
    assert read_mask(scene, 1) is None

    deep = (colour[:, :, 1].astype(np.uint16) << 8) + 17
    replace_photo(scene, 2, Image.fromarray(deep))
    np.testing.assert_array_equal(read_photo(scene, 2), np.repeat(colour[:, :, 1:2], 3, axis=2))

    replace_photo(scene, 3, Image.fromarray(colour).quantize(16))
    assert read_photo(scene, 3).shape == (HEIGHT, WIDTH, 3)


def test_orientation_in_exif_is_ignored(scene: Scene) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(Path(scene.root) / scene.photos[0].file, exif=exif)
    np.testing.assert_array_equal(read_photo(scene, 0), pixels)


def test_damaged_missing_and_wrong_photos_are_named(scene: Scene) -> None:
    path = Path(scene.root) / scene.photos[0].file
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(InputError, match=rf"{path.name} cannot be decoded"):
        read_photo(scene, 0)
    path.write_bytes(b"not a picture")
    with pytest.raises(InputError, match=rf"{path.name} cannot be opened"):
        read_photo(scene, 0)
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(path)
    with pytest.raises(InputError, match=rf"is {WIDTH} x {HEIGHT + 1} pixels but its camera has {WIDTH} x {HEIGHT}"):
        read_photo(scene, 0)
    path.unlink()
    with pytest.raises(InputError, match=rf"{path.name} is missing"):
        read_photo(scene, 0)


def test_photos_and_masks_shrink_to_level_0(tmp_path: Path) -> None:
    truth = write_capture(tmp_path)
    folder = tmp_path / "masks"
    for name in truth.names[1:]:
        mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
        mask[:, : WIDTH // 2] = 0
        file = folder / f"{name}.png" if "late" in name else (folder / name).with_suffix(".bmp")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(file)
    scene = load_scene(tmp_path, SceneConfig(max_side=40, masks_dir="masks"))
    assert scene.report["masks"] == len(truth.names) - 1
    assert scene.cameras.level_size(0, 0) == (40, 27)
    assert read_photo(scene, 0).shape == (27, 40, 3)
    assert read_mask(scene, 0) is None
    for photo in range(1, len(truth.names)):
        mask = read_mask(scene, photo)
        assert mask is not None
        assert not mask[:, :20].any()
        assert mask[:, 20:].all()


def test_masks_must_be_there_and_fit(tmp_path: Path) -> None:
    truth = write_capture(tmp_path)
    with pytest.raises(InputError, match=r"masks does not exist; correct scene.masks_dir"):
        load_scene(tmp_path, SceneConfig(masks_dir="masks"))
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match="has the name of a photo"):
        load_scene(tmp_path, SceneConfig(masks_dir="masks"))
    file = tmp_path / "masks" / truth.names[0]
    file.parent.mkdir(parents=True)
    Image.new("L", (10, 10)).save(file)
    scene = load_scene(tmp_path, SceneConfig(masks_dir="masks"))
    with pytest.raises(InputError, match="10 x 10 pixels but its camera has"):
        read_mask(scene, 0)


def test_pixels_without_ray_are_masked(tmp_path: Path) -> None:
    camera = make_camera("SIMPLE_FISHEYE")
    camera.params = [30.0, WIDTH / 2, HEIGHT / 2]
    write_capture(tmp_path, [camera])
    scene = load_scene(tmp_path, SceneConfig())
    mask = read_mask(scene, 0)
    assert mask is not None
    assert not mask[0, 0]
    assert mask[HEIGHT // 2, WIDTH // 2]
    with_ray = scene.cameras.pixels_with_ray(0)
    assert with_ray is not None
    assert torch.equal(torch.from_numpy(mask), with_ray)
