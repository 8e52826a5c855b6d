"""Export a smaller checkpoint: the upper levels of the octree, for viewers and for sending around.

What is left answers where finer nodes did, by the rule for missing children.  It holds no state of the optimiser, so it
is evaluated, rendered and exported like any checkpoint, but not trained further.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save as save_tensors

from inf_nerf.errors import InputError
from inf_nerf.export.unfinished import Progress, no_progress
from inf_nerf.files import write_atomic
from inf_nerf.octree.topology import Octree, key_of
from inf_nerf.render.model import field_keys
from inf_nerf.train.manifest import MANIFEST, digest_of, put_in_place, read_verified
from inf_nerf.train.opened import OpenCheckpoint, node_file, read_tensors

SHARED = "shared.safetensors"


@dataclass(frozen=True)
class PrunedFigures:
    """What was written."""

    levels: int
    nodes: int  # of the octree
    bytes: int  # of all files but the manifest


def write_pruned(checkpoint: OpenCheckpoint, levels: int, out: Path, progress: Progress = no_progress) -> PrunedFigures:
    """Write the upper ``levels`` of a checkpoint as the checkpoint ``out``, which appears when it is complete.

    Raises :class:`InputError` if ``out`` is there already, or for levels that the octree does not have.
    """
    octree = checkpoint.octree
    if not 1 <= levels <= octree.num_levels:
        raise InputError(
            f"The octree has {octree.num_levels} levels, so --levels is 1 to {octree.num_levels}, not {levels}."
        )
    if out.exists():
        raise InputError(f"{out} is there already; name a new folder for the checkpoint with --out.")
    kept = octree.level < levels
    upper = Octree.from_keys(octree.keys[kept], octree.num_points[kept], float(octree.gsd[0]))
    shared = read_tensors(checkpoint.path, SHARED, checkpoint.manifest)
    shared |= {f"octree.{name}": value for name, value in upper.state().items()}
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    files: dict[str, dict[str, int | str]] = {}

    def write(name: str, data: bytes) -> None:
        write_atomic(partial / name, data)
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    keys = field_keys(upper).tolist()
    for done, key in enumerate(keys):
        progress("nodes", done, len(keys))
        write(node_file(key), read_verified(checkpoint.path, node_file(key), checkpoint.manifest))
    write(SHARED, save_tensors({name: value.contiguous() for name, value in shared.items()}))
    progress("nodes", len(keys), len(keys))
    held = set(keys)
    subtrees = checkpoint.manifest.get("subtrees")
    manifest = {
        **checkpoint.manifest,
        **({} if subtrees is None else {"subtrees": {name: p for name, p in subtrees.items() if key_of(name) in held}}),
        "files": dict(sorted(files.items())),
    }
    manifest["digest"] = digest_of(manifest)
    write_atomic(partial / MANIFEST, json.dumps(manifest, indent=1))
    put_in_place(partial, out)
    return PrunedFigures(levels, upper.num_nodes, sum(int(entry["bytes"]) for entry in files.values()))
