"""Meshes with coloured vertices as files: PLY, OBJ, GLB.  Letters: V vertices, F faces."""

from pathlib import Path

import numpy as np

from inf_nerf.errors import InputError
from inf_nerf.export.gltf import glb
from inf_nerf.export.mesh import Mesh
from inf_nerf.export.placement import Placement
from inf_nerf.export.point_files import PLY_POINT
from inf_nerf.files import write_atomic

SUFFIXES = (".glb", ".obj", ".ply")
FACE = np.dtype([("count", "u1"), ("vertices", "<i4", 3)])


def write_mesh(mesh: Mesh, placement: Placement, out: Path) -> None:
    """Write a mesh by the suffix of ``out``, in the coordinates of exports.

    A GLB counts from its middle, which is the translation of its node: viewers compute with float32.
    """
    xyz, rgb = placement.from_scene(mesh.xyz), np.rint(mesh.rgb * 255).astype(np.uint8)
    if out.suffix == ".glb":
        middle = np.rint((xyz.min(axis=0) + xyz.max(axis=0)) / 2)
        write_atomic(out, glb(xyz, mesh.rgb, middle, mesh.faces.astype(np.uint32)))
    elif out.suffix == ".ply":
        points, faces = np.empty(len(xyz), PLY_POINT), np.empty(len(mesh.faces), FACE)
        points["xyz"], points["rgb"], faces["count"], faces["vertices"] = xyz, rgb, 3, mesh.faces
        head = (
            f"ply\nformat binary_little_endian 1.0\ncomment inf-nerf\nelement vertex {len(xyz)}\n"
            "property double x\nproperty double y\nproperty double z\n"
            "property uchar red\nproperty uchar green\nproperty uchar blue\n"
            f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
        )
        write_atomic(out, head.encode() + points.tobytes() + faces.tobytes())
    elif out.suffix == ".obj":  # colours behind the coordinates, as most programs read them
        lines = [f"v {x:.12g} {y:.12g} {z:.12g} {r:.4f} {g:.4f} {b:.4f}" for (x, y, z), (r, g, b) in zip(xyz, mesh.rgb)]
        lines += [f"f {a} {b} {c}" for a, b, c in (mesh.faces + 1).tolist()]
        write_atomic(out, "\n".join(["# inf-nerf", *lines, ""]))
    else:
        raise InputError(f"{out} is no kind of mesh that is written; use {', '.join(SUFFIXES)}.")
