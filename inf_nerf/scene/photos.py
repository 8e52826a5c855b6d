"""Pixels of photos and masks at pyramid level 0, and the levels below it.

Sizes change by exact area averaging of sRGB-encoded values, the one colour space of the program: a level-0 pixel is
the mean of the area that it covers in the photo, and a pixel of any other level the mean of the area that it covers in
level 0.  EXIF orientation is ignored, as COLMAP ignores it.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inf_nerf.errors import InputError
from inf_nerf.scene.capture import check_size, open_image
from inf_nerf.scene.scene import Scene

BAND_VALUES = 1 << 20  # source values that are averaged at once
OPAQUE = 0.5  # least alpha, and least brightness of a mask, that counts


def read_photo(scene: Scene, photo: int) -> NDArray[np.uint8]:
    """Decoded photo at level 0, [h, w, 3]; alpha is left to :func:`read_mask`, grey becomes colour.

    Raises :class:`InputError` if the file is missing, damaged or of another size than its camera.
    """
    path = Path(scene.root) / scene.photos[photo].file
    with open_image(path, "photo") as image:
        check_size(path, image.size, _source_size(scene, photo))
        pixels = _colour(image, path)
    size = scene.cameras.level_size(photo, 0)
    return pixels if image.size == size else np.rint(area_resize(pixels, size)).astype(np.uint8)


def read_mask(scene: Scene, photo: int) -> NDArray[np.bool_] | None:
    """Pixels of level 0 that may be used, [h, w]; None if all of them may.

    Unusable are pixels that touch black in the photo's mask, transparent ones, and those for which the camera model has
    no ray (`Cameras.has_ray`).
    """
    size = scene.cameras.level_size(photo, 0)
    parts: list[NDArray[np.bool_]] = []
    mask = scene.photos[photo].mask
    if mask is not None:
        path = Path(scene.root) / mask
        with open_image(path, "mask") as image:
            check_size(path, image.size, _source_size(scene, photo))
            parts.append(_all_white(_decode(image, path, "L"), size))
    path = Path(scene.root) / scene.photos[photo].file
    with open_image(path, "photo") as image:
        if image.has_transparency_data:
            parts.append(_all_white(_decode(image, path, "RGBA")[:, :, 3], size))
    has_ray = scene.cameras.pixels_with_ray(photo)
    if has_ray is not None:
        parts.append(has_ray.numpy())
    return np.logical_and.reduce(parts) if parts else None


def pyramid(image: NDArray[np.uint8], levels: int) -> list[NDArray[np.uint8]]:
    """The first ``levels`` levels of ``image`` [h, w, 3], each averaged from level 0."""
    height, width = image.shape[:2]
    sizes = [(max(1, width >> level), max(1, height >> level)) for level in range(1, levels)]
    return [image, *(np.rint(area_resize(image, size)).astype(np.uint8) for size in sizes)]


def area_resize(image: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.float32]:
    """``image`` [h, w] or [h, w, c] at ``size`` (width, height), each pixel the mean of the area that it covers.

    Rows are made a band at a time, so that beside the result only a few megabytes are needed.
    """
    width, height = size
    source_height, source_width = image.shape[:2]
    if (source_height, source_width) == (height, width):
        return image.astype(np.float32)
    columns_first = source_width / width > source_height / height  # the stronger reduction first is the cheaper way
    result = np.empty((height, width, *image.shape[2:]), np.float32)
    values_per_row = source_width * math.prod(image.shape[2:]) * max(1, source_height // height)
    band = max(1, BAND_VALUES // values_per_row)
    for top in range(0, height, band):
        bottom = min(height, top + band)
        first = top * source_height // height  # source row
        part: NDArray[Any] = image[first : -(-bottom * source_height // height)]
        if columns_first:
            part = _average(part, 1, source_width, width, 0, width)
        part = _average(part, 0, source_height, height, top, bottom, first)
        result[top:bottom] = part if columns_first else _average(part, 1, source_width, width, 0, width)
    return result


def _average(
    image: NDArray[Any], axis: int, source: int, length: int, start: int, stop: int, offset: int = 0
) -> NDArray[np.float32]:
    """Pixels ``start`` to ``stop`` of the ``length`` along an axis of which the whole has ``source`` pixels, and
    ``image`` those from ``offset`` on; overlaps are counted in integers, so that weights are exact."""
    if source == length:
        return image.astype(np.float32, copy=False)
    begin = np.arange(start, stop, dtype=np.int64) * source  # in units of 1 / length of a source pixel
    first = begin // length
    shape = [1] * image.ndim
    shape[axis] = stop - start
    result = np.zeros((*image.shape[:axis], stop - start, *image.shape[axis + 1 :]), np.float32)
    for tap in range(-(-source // length) + 1):
        cell = first + tap
        overlap = np.minimum(begin + source, (cell + 1) * length) - np.maximum(begin, cell * length)
        weight = (overlap.clip(0) / source).astype(np.float32).reshape(shape)
        result += weight * np.take(image, (cell - offset).clip(max=image.shape[axis] - 1), axis=axis)
    return result


def _all_white(values: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels of ``size`` that cover nothing but values of at least `OPAQUE`."""
    return area_resize((values >= 255 * OPAQUE).astype(np.float32), size) > 1 - 1e-4


def _source_size(scene: Scene, photo: int) -> tuple[int, int]:
    width, height = scene.source_size[scene.cameras.camera_id[photo]].tolist()
    return width, height


def _colour(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        grey = (_decode(image, path).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    _decode(image, path)
    return np.asarray(image.convert("RGBA").convert("RGB") if image.mode in ("P", "PA", "LA") else image.convert("RGB"))


def _decode(image: Image.Image, path: Path, mode: str | None = None) -> NDArray[np.uint8]:
    """Pixels in ``mode``, or in the file's own."""
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"The file {path} cannot be decoded ({error}); replace the damaged file.") from error
    return np.asarray(image if mode is None else image.convert(mode))
