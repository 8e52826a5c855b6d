"""Pictures of any size as files that are written piece by piece: PNG, TIFF, world files, keys of a GeoTIFF.

Letters: H, W: height and width in pixels; T: side of a tile.  Pixels are red, green, blue, alpha, uint8.
"""

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inf_nerf.errors import InputError
from inf_nerf.export.optional import needed_for

SUFFIXES = (".png", ".tif", ".tiff")
WORLD_SUFFIXES = {".png": ".pgw", ".tif": ".tfw", ".tiff": ".tfw"}
MOST_PNG = 2**31 - 1  # pixels along a side
SUB = 1  # the PNG filter that stores the difference from the pixel before
BIG_TIFF = 2**31  # bytes of pixels from which on a TIFF is a BigTIFF
PIXEL_SCALE, TIE_POINT, GEO_KEYS = 33550, 33922, 34735  # tags of a GeoTIFF
MODEL_TYPE, RASTER_TYPE, PROJECTED_CRS = 1024, 1025, 3072  # its keys
PROJECTED, PIXEL_IS_AREA = 1, 1

Pixels = NDArray[np.uint8]


def write_png(path: Path, width: int, height: int, bands: Iterable[Pixels]) -> None:
    """Write rows that come in bands [h, W, 4] from the top; no more than a band is in memory."""
    if max(width, height) > MOST_PNG:
        raise InputError(f"A PNG has at most {MOST_PNG} pixels along a side, not {max(width, height)}; use .tif.")
    with open(path, "wb") as file:

        def chunk(kind: bytes, data: bytes) -> None:
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

        file.write(b"\x89PNG\r\n\x1a\n")
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
        packer = zlib.compressobj(6)
        for band in bands:
            rows = np.empty((len(band), 1 + width * 4), np.uint8)
            rows[:, 0] = SUB
            rows[:, 1:] = np.diff(band, axis=1, prepend=np.uint8(0)).reshape(len(band), -1)
            if packed := packer.compress(rows.tobytes()):
                chunk(b"IDAT", packed)
        chunk(b"IDAT", packer.flush())
        chunk(b"IEND", b"")


def write_tiff(
    path: Path, width: int, height: int, side: int, tiles: Iterable[Pixels], geo: list[tuple[Any, ...]]
) -> None:
    """Write tiles [T, T, 4], row by row from the top left, those at the right and lower side filled up; ``geo`` are
    further tags."""
    with needed_for("A TIFF file"):
        import tifffile
    with tifffile.TiffWriter(path, bigtiff=width * height * 4 >= BIG_TIFF) as file:
        file.write(
            iter(tiles),
            shape=(height, width, 4),
            dtype=np.uint8,
            tile=(side, side),
            photometric="rgb",
            extrasamples=["unassalpha"],
            compression="zlib",
            extratags=geo,
            metadata=None,
            software="inf-nerf",
        )


def geo_tags(left: float, top: float, gsd: float, epsg: int) -> list[tuple[Any, ...]]:
    """Tags of a GeoTIFF (OGC 19-008r4) whose first pixel's outer corner is at ``left``, ``top``."""
    keys = [(MODEL_TYPE, PROJECTED), (RASTER_TYPE, PIXEL_IS_AREA), (PROJECTED_CRS, epsg)]
    directory = [1, 1, 0, len(keys), *(number for key, value in keys for number in (key, 0, 1, value))]
    return [
        (PIXEL_SCALE, "d", 3, (gsd, gsd, 0.0), True),
        (TIE_POINT, "d", 6, (0.0, 0.0, 0.0, left, top, 0.0), True),
        (GEO_KEYS, "H", len(directory), tuple(directory), True),
    ]


def epsg_code(crs: str) -> int:
    """The number of a projected system in the EPSG register; :class:`InputError` if it has none."""
    with needed_for("A GeoTIFF"):
        import pyproj
    code = pyproj.CRS.from_user_input(crs).to_epsg()
    if code is None:
        raise InputError(
            f"The system {crs!r} has no EPSG code, which a GeoTIFF needs; write a .png with its world file."
        )
    return code


def world_file(left: float, top: float, gsd: float) -> str:
    """The six lines that place a picture on a map: the last two are the centre of its first pixel."""
    values = (gsd, 0.0, 0.0, -gsd, left + gsd / 2, top - gsd / 2)
    return "".join(f"{value:.12g}\n" if abs(value) < 1e6 else f"{value:.6f}\n" for value in values)
