"""Point clouds in PLY files: position and colour of the vertices, ASCII and both binary byte orders."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inf_nerf.errors import InputError

TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
GREY = 128
LONGEST_HEADER = 65_536


def read_ply(path: Path) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Positions [P, 3] and colours [P, 3] (grey if there are none); raises :class:`InputError` on a damaged file."""
    if not path.is_file():
        raise InputError(f"The point cloud {path} does not exist; correct ply_file_path or remove it.")
    with open(path, "rb") as file:
        head = file.read(LONGEST_HEADER)
    end = head.find(b"end_header")
    body = head.find(b"\n", end) + 1
    if not head.startswith(b"ply") or end < 0 or body == 0:
        raise InputError(f"{path} has no PLY header; export the point cloud again.")
    try:
        order, count, columns = _parse_header(head[:end].decode("ascii"))
        values = _read_vertices(path, body, order, count, columns)
        xyz = np.stack([values[name] for name in ("x", "y", "z")], axis=-1).astype(np.float64)
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"The point cloud {path} is damaged or truncated ({error}); export it again.") from error
    names = [name for name, _ in columns]
    for colours in (("red", "green", "blue"), ("r", "g", "b")):
        if set(colours) <= set(names):
            rgb = np.stack([values[name] for name in colours], axis=-1)
            if rgb.dtype.kind == "f":
                rgb = rgb.clip(0, 1) * 255
            return xyz, rgb.clip(0, 255).astype(np.uint8)
    return xyz, np.full(xyz.shape, GREY, np.uint8)


def _parse_header(header: str) -> tuple[str, int, list[tuple[str, str]]]:
    """Format, number of vertices, and name and type of their columns; vertices must be the first element."""
    order, count = "", 0
    columns: list[tuple[str, str]] = []
    element = None
    for line in header.splitlines():
        words = line.split()
        if words[:1] == ["format"]:
            order = words[1]
        elif words[:1] == ["element"]:
            if element is None and words[1] != "vertex":
                raise ValueError("its first element is not the vertices")
            element = words[1]
            count = int(words[2]) if element == "vertex" else count
        elif words[:1] == ["property"] and element == "vertex":
            if words[1] == "list":
                raise ValueError("its vertices have a list property")
            columns.append((words[2], TYPES[words[1]]))
    if order not in ORDERS or not columns:
        raise ValueError("its header is incomplete")
    return order, count, columns


def _read_vertices(
    path: Path, body: int, order: str, count: int, columns: list[tuple[str, str]]
) -> dict[str, NDArray[np.generic]]:
    if order == "ascii":
        with open(path, "rb") as file:
            file.seek(body)
            rows = np.loadtxt(file, max_rows=count, ndmin=2) if count else np.zeros((0, len(columns)))
        if len(rows) < count:
            raise ValueError(f"{len(rows)} of {count} vertices")
        return {name: rows[:, column].astype(kind) for column, (name, kind) in enumerate(columns)}
    layout = np.dtype([(name, ORDERS[order] + kind) for name, kind in columns])
    values = np.fromfile(path, layout, count, offset=body)
    if len(values) < count:
        raise ValueError(f"{len(values)} of {count} vertices")
    return {name: values[name] for name, _ in columns}
