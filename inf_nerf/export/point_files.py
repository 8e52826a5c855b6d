"""Coloured points as files that are written piece by piece: PLY, LAS and LAZ.

Every file appears under its name only when it is complete.  Letter: P points.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inf_nerf.export.optional import needed_for

SUFFIXES = (".ply", ".las", ".laz")
COUNT_DIGITS = 12  # of the number of points in a PLY header, which is filled in at the end
PLY_POINT = np.dtype([("xyz", "<f8", 3), ("rgb", "u1", 3)])
LAS_FINER = 100  # times the gsd: the step of coordinates in a LAS file
LAS_RGB = 7  # point format of LAS 1.4 with colours, of 16 bits


class PointSink(Protocol):
    """Takes points [P, 3] float64 and their colours [P, 3] uint8."""

    def __call__(self, xyz: NDArray[np.float64], rgb: NDArray[np.uint8], /) -> None: ...


@contextmanager
def point_writer(out: Path, gsd: float, origin: NDArray[np.float64], crs: str | None) -> Iterator[PointSink]:
    """Writes into ``out``; LAS counts steps of about ``gsd`` / 100 from about ``origin`` [3] and names the system."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.stem}.{os.getpid()}.partial{out.suffix}")
    try:
        with _ply(partial) if out.suffix == ".ply" else _las(partial, gsd, origin, crs) as take:
            yield take
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _ply(path: Path) -> Iterator[PointSink]:
    head = (
        "ply\nformat binary_little_endian 1.0\ncomment inf-nerf\nelement vertex {}\nproperty double x\n"
        "property double y\nproperty double z\nproperty uchar red\nproperty uchar green\nproperty uchar blue\n"
        "end_header\n"
    )
    count = 0
    with open(path, "wb") as file:
        file.write(head.format("0" * COUNT_DIGITS).encode())

        def take(xyz: NDArray[np.float64], rgb: NDArray[np.uint8]) -> None:
            nonlocal count
            points = np.empty(len(xyz), PLY_POINT)
            points["xyz"], points["rgb"] = xyz, rgb
            file.write(points.tobytes())
            count += len(xyz)

        yield take
        file.seek(0)
        file.write(head.format(f"{count:0{COUNT_DIGITS}d}").encode())


@contextmanager
def _las(path: Path, gsd: float, origin: NDArray[np.float64], crs: str | None) -> Iterator[PointSink]:
    with needed_for("A LAS or LAZ file"):
        import laspy
        import lazrs  # noqa: F401  (laspy finds it by itself, and says less clearly that it is missing)

    header = laspy.LasHeader(version="1.4", point_format=LAS_RGB)
    header.scales = np.full(3, 10.0 ** math.floor(math.log10(gsd / LAS_FINER) + 1e-9))
    header.offsets = np.floor(origin)
    header.generating_software = "inf-nerf"
    if crs is not None:
        with needed_for("A georeference"):
            import pyproj
        header.add_crs(pyproj.CRS.from_user_input(crs))
    with laspy.open(path, mode="w", header=header) as file:

        def take(xyz: NDArray[np.float64], rgb: NDArray[np.uint8]) -> None:
            points = laspy.ScaleAwarePointRecord.zeros(len(xyz), header=header)
            points.x, points.y, points.z = xyz.T
            points.red, points.green, points.blue = (rgb.astype(np.uint16) * 257).T
            file.write_points(points)

        yield take
