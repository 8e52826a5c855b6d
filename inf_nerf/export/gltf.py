"""Binary glTF 2.0: coloured points, and triangles with coloured vertices.

glTF has y up where everything here has z up, so (x, y, z) becomes (x, z, -y); its vertex colours are linear where ours
are sRGB-encoded.  Positions are float32 about a centre that is the translation of the only node.
"""

import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FLOAT, UNSIGNED_SHORT, UNSIGNED_INT = 5126, 5123, 5125
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
POINTS, TRIANGLES = 0, 4
ALIGNED = 4  # bytes
UNLIT = "KHR_materials_unlit"


def glb(xyz: Array, rgb: Array, centre: Array, faces: NDArray[np.uint32] | None = None) -> bytes:
    """Points [P, 3] about ``centre`` [3] with sRGB-encoded colours [P, 3] in [0, 1], or the triangles [F, 3] of them.

    Colours are drawn as they are, without lights.  At least one point is needed.
    """
    position = y_up(xyz - centre).astype("<f4")
    colour = np.empty((len(xyz), 4), "<u2")
    colour[:, :3], colour[:, 3] = np.rint(linear(rgb) * 65535), 65535
    blobs = [(position.tobytes(), ARRAY_BUFFER), (colour.tobytes(), ARRAY_BUFFER)]
    least, greatest = (bound.astype(float).tolist() for bound in (position.min(axis=0), position.max(axis=0)))
    accessors: list[dict[str, Any]] = [
        {"bufferView": 0, "componentType": FLOAT, "count": len(xyz), "type": "VEC3", "min": least, "max": greatest},
        {"bufferView": 1, "componentType": UNSIGNED_SHORT, "count": len(xyz), "type": "VEC4", "normalized": True},
    ]
    primitive: dict[str, Any] = {
        "attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": POINTS if faces is None else TRIANGLES, "material": 0
    }  # fmt: skip
    if faces is not None:
        blobs.append((faces.astype("<u4").tobytes(), ELEMENT_ARRAY_BUFFER))
        accessors.append({"bufferView": 2, "componentType": UNSIGNED_INT, "count": faces.size, "type": "SCALAR"})
        primitive["indices"] = 2
    views, binary = [], b""
    for blob, target in blobs:
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(blob), "target": target})
        binary += padded(blob, ALIGNED, b"\0")
    content = {
        "asset": {"version": "2.0", "generator": "inf-nerf"},
        "extensionsUsed": [UNLIT],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "translation": y_up(centre).tolist()}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [
            {"extensions": {UNLIT: {}}, "pbrMetallicRoughness": {"metallicFactor": 0.0}, "doubleSided": True}
        ],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    text = padded(json.dumps(content, separators=(",", ":")).encode(), ALIGNED, b" ")
    length = 12 + 8 + len(text) + 8 + len(binary)
    return b"".join(
        (
            struct.pack("<4sII", b"glTF", 2, length),
            struct.pack("<I4s", len(text), b"JSON"), text,
            struct.pack("<I4s", len(binary), b"BIN\0"), binary,
        )
    )  # fmt: skip


def y_up(xyz: Array) -> Array:
    """Positions [..., 3] with z up in axes with y up."""
    return np.stack((xyz[..., 0], xyz[..., 2], -xyz[..., 1]), axis=-1)


def linear(rgb: Array) -> Array:
    """Light of sRGB-encoded colours (IEC 61966-2-1)."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def padded(data: bytes, multiple: int, by: bytes) -> bytes:
    """``data`` with as many ``by`` behind as make its length a multiple."""
    return data + by * (-len(data) % multiple)
