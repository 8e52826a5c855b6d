"""Completeness of the files of a COLMAP model.

The layout of the binary files is that of COLMAP's ``reconstruction_io_binary.cc``.  Only lengths are followed here; the
content is pycolmap's business.
"""

import re
import struct
from collections.abc import Callable, Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path

import pycolmap

from inf_nerf.errors import InputError

Step = Callable[[mmap, int], int]  # content, offset of a record -> offset of the next; raises struct.error at the end


def check_binary(folder: Path) -> None:
    """Raise :class:`InputError` naming the first ``.bin`` file that is shorter or longer than its records."""
    for name, step in RECORDS.items():
        path = folder / name
        if path.is_file():
            _follow(path, step)


def check_text(folder: Path) -> None:
    """Raise :class:`InputError` naming the first ``.txt`` file with fewer entries than its header announces."""
    for name, what in (("cameras", "cameras"), ("images", "images"), ("points3D", "points")):
        path = folder / f"{name}.txt"
        announced = None
        lines = 0
        line = "\n"
        try:
            for line in _lines(path):
                if line.startswith("#"):
                    match = re.match(rf"#\s*Number of {what}:\s*(\d+)", line)
                    announced = int(match[1]) if match else announced
                else:
                    lines += bool(line.strip()) or name == "images"
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not a text file; export the model from COLMAP again.") from error
        found = (lines + 1) // 2 if name == "images" else lines  # a photo's keypoints are its second, maybe empty, line
        if not lines and name != "points3D":
            raise InputError(f"{path} lists no {what}; export the model from COLMAP again.")
        if announced is not None and (found < announced or not line.endswith("\n")):
            raise InputError(
                f"{path} is truncated: it announces {announced} {what}, holds {found} and ends with {line[-20:]!r}; "
                "export the model from COLMAP again."
            )


def _lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8") as file:
        yield from file


def _follow(path: Path, step: Step) -> None:
    size = path.stat().st_size
    if size < 8:
        raise InputError(f"{path} is truncated: it has {size} bytes; export the model from COLMAP again.")
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        (count,) = struct.unpack_from("<Q", content)
        offset = 8
        for record in range(count):
            try:
                offset = step(content, offset)
            except struct.error:
                offset = size + 1
            if offset > size:
                raise InputError(
                    f"{path} is truncated: it announces {count} records and ends within number {record + 1}; export "
                    "the model from COLMAP again."
                )
        if offset < size:
            raise InputError(
                f"{path} has {size - offset} bytes after its {count} records, so it is damaged; export the model from "
                "COLMAP again."
            )


def _camera(content: mmap, offset: int) -> int:
    camera, model, _, _ = struct.unpack_from("<IiQQ", content, offset)
    known = {value.value: value for value in pycolmap.CameraModelId.__members__.values() if value.value >= 0}
    if model not in known:
        raise InputError(
            f"Camera {camera} has the unknown camera model number {model}; export the model from COLMAP again."
        )
    num_params = len(pycolmap.Camera.create_from_model_id(camera, known[model], 1.0, 1, 1).params)
    return offset + 24 + 8 * num_params


def _image(content: mmap, offset: int) -> int:
    end = content.find(b"\0", offset + 64)  # id, quaternion, translation, camera id, then the name
    if end < 0:
        raise struct.error("unterminated name")
    (num_keypoints,) = struct.unpack_from("<Q", content, end + 1)
    return end + 9 + 24 * num_keypoints


def _point(content: mmap, offset: int) -> int:
    (length,) = struct.unpack_from("<Q", content, offset + 43)  # id, position, colour, error, then the track
    return offset + 51 + 8 * length


def _rig(content: mmap, offset: int) -> int:
    _, num_sensors = struct.unpack_from("<II", content, offset)
    offset += 8 + 8 * (num_sensors > 0)  # the reference sensor has no pose
    for _ in range(num_sensors - 1):
        *_, has_pose = struct.unpack_from("<iIB", content, offset)
        offset += 9 + 56 * bool(has_pose)
    return offset


def _frame(content: mmap, offset: int) -> int:
    (num_data,) = struct.unpack_from("<I", content, offset + 64)  # frame and rig id, quaternion, translation
    return offset + 68 + 16 * num_data


RECORDS: dict[str, Step] = {
    "cameras.bin": _camera,
    "images.bin": _image,
    "points3D.bin": _point,
    "rigs.bin": _rig,
    "frames.bin": _frame,
}
