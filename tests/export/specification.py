"""Rules of 3D Tiles 1.1 and glTF 2.0 for the files that are written here, after the schemas of the specifications
(OGC 22-025r4, ISO/IEC 12113), and readers that know nothing of the writers."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

TYPES = {5126: "<f4", 5123: "<u2", 5125: "<u4"}
WIDTH = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


def object_of(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


NUMBERS = {"type": "array", "items": {"type": "number"}}
ERROR = {"type": "number", "minimum": 0}
INDEX = {"type": "integer", "minimum": 0}
CONTENT = object_of(["uri"], uri={"type": "string"})
TILESET = object_of(
    ["asset", "geometricError", "root"],
    asset=object_of(["version"], version={"const": "1.1"}, generator={"type": "string"}),
    geometricError=ERROR,
    root=object_of(
        ["boundingVolume", "geometricError", "refine"],  # a root must say how it is refined
        boundingVolume=object_of(["box"], box={**NUMBERS, "minItems": 12, "maxItems": 12}),
        transform={**NUMBERS, "minItems": 16, "maxItems": 16},
        geometricError=ERROR,
        refine={"enum": ["ADD", "REPLACE"]},
        content=CONTENT,
        implicitTiling=object_of(
            ["subdivisionScheme", "availableLevels", "subtreeLevels", "subtrees"],
            subdivisionScheme={"enum": ["QUADTREE", "OCTREE"]},
            availableLevels={"type": "integer", "minimum": 1},
            subtreeLevels={"type": "integer", "minimum": 1},
            subtrees=CONTENT,
        ),
    ),
)
AVAILABILITY = {
    "oneOf": [
        object_of(["bitstream"], bitstream=INDEX, availableCount=INDEX),
        object_of(["constant"], constant={"enum": [0, 1]}),
    ]
}
SUBTREE = object_of(
    ["tileAvailability", "childSubtreeAvailability"],
    buffers={"type": "array", "minItems": 1, "items": object_of(["byteLength"], byteLength={**INDEX, "minimum": 1})},
    bufferViews={
        "type": "array",
        "minItems": 1,
        "items": object_of(
            ["buffer", "byteOffset", "byteLength"], buffer=INDEX, byteOffset=INDEX, byteLength={**INDEX, "minimum": 1}
        ),
    },
    tileAvailability=AVAILABILITY,
    contentAvailability={"type": "array", "minItems": 1, "items": AVAILABILITY},
    childSubtreeAvailability=AVAILABILITY,
)


@dataclass
class Glb:
    """What a binary glTF holds, in its own axes."""

    positions: np.ndarray  # [P, 3] float64, the node's translation included
    colours: np.ndarray  # [P, 4] in [0, 1]
    indices: np.ndarray | None
    mode: int


@dataclass
class Subtree:
    """Availability bits of a subtree."""

    tiles: np.ndarray
    contents: np.ndarray
    children: np.ndarray


def read_tileset(folder: Path) -> dict[str, Any]:
    """``tileset.json``, checked."""
    content = json.loads((folder / "tileset.json").read_text())
    jsonschema.validate(content, TILESET)
    return content


def read_subtree(path: Path, levels: int) -> Subtree:
    """An octree's subtree file, checked."""
    data = path.read_bytes()
    magic, version, text, binary = struct.unpack_from("<4sIQQ", data)
    assert (magic, version, text % 8, binary % 8) == (b"subt", 1, 0, 0)
    assert len(data) == 24 + text + binary
    content = json.loads(data[24 : 24 + text])
    jsonschema.validate(content, SUBTREE)
    if "buffers" in content:
        assert content["buffers"] == [{"byteLength": binary}]
    else:
        assert binary == 0

    def bits(availability: dict[str, int], count: int) -> np.ndarray:
        if "constant" in availability:
            return np.full(count, availability["constant"], np.uint8)
        view = content["bufferViews"][availability["bitstream"]]
        assert view["byteOffset"] % 8 == 0
        assert view["byteLength"] == -(-count // 8)
        start = 24 + text + view["byteOffset"]
        packed = np.frombuffer(data[start : start + view["byteLength"]], np.uint8)
        found = np.unpackbits(packed, bitorder="little")
        assert not found[count:].any()
        assert found.sum() == availability["availableCount"]
        return found[:count]

    inside = (8**levels - 1) // 7
    return Subtree(
        bits(content["tileAvailability"], inside),
        bits(content["contentAvailability"][0], inside),
        bits(content["childSubtreeAvailability"], 8**levels),
    )


def read_glb(data: bytes) -> Glb:
    """A binary glTF of one node and one primitive, checked."""
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert (kind, size % 4) == (b"JSON", 0)
    content = json.loads(data[20 : 20 + size])
    binary_size, kind = struct.unpack_from("<I4s", data, 20 + size)
    assert (kind, binary_size % 4) == (b"BIN\0", 0)
    binary = data[28 + size :]
    assert content["asset"]["version"] == "2.0"
    assert len(binary) == binary_size == content["buffers"][0]["byteLength"]

    def array(index: int) -> np.ndarray:
        accessor = content["accessors"][index]
        view = content["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0
        count = accessor["count"] * WIDTH[accessor["type"]]
        values = np.frombuffer(binary, TYPES[accessor["componentType"]], count, view["byteOffset"])
        values = values.reshape(accessor["count"], -1)
        assert values.nbytes == view["byteLength"]
        if "min" in accessor:
            np.testing.assert_array_equal(values.min(axis=0), np.array(accessor["min"], np.float32))
            np.testing.assert_array_equal(values.max(axis=0), np.array(accessor["max"], np.float32))
        return values

    (node,) = content["nodes"]
    (primitive,) = content["meshes"][node["mesh"]]["primitives"]
    attributes = primitive["attributes"]
    assert "min" in content["accessors"][attributes["POSITION"]]
    return Glb(
        array(attributes["POSITION"]).astype(np.float64) + node["translation"],
        array(attributes["COLOR_0"]) / 65535,
        array(primitive["indices"]).reshape(-1, 3) if "indices" in primitive else None,
        primitive["mode"],
    )
