"""Checkpoints keyed by node, never by rank: one directory, one file per node, and a manifest that is written last.

    checkpoints/<step>/manifest.json           size and hash of every file, configuration, photos, frame, progress
                       nodes/<name>.safetensors     values and occupancy of a node ("r" root, "r05", "bg" background)
                       optimiser/<name>.safetensors  its moments; a viewer never reads them
                       shared.safetensors      appearance, cameras, octree, backdrop
                       ranks/<r>-of-<W>.json   generator and reservoir of a rank, for a bit-equal continuation

Every rank writes the nodes that it holds, rank 0 also the shared ones; nodes that wait for their turn are taken over
from the checkpoint before, and those that had none yet have no file.  They are written into ``<step>.partial``; after
a barrier rank 0 writes the manifest and renames the directory, so a directory with a manifest is complete.  A run made
on any number of workers continues on any other.
"""

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.field.backends import portable_backend
from inf_nerf.files import write_atomic
from inf_nerf.octree.topology import Octree, key_name
from inf_nerf.render.model import Model
from inf_nerf.scene.cameras import Cameras
from inf_nerf.scene.frame import WorldFrame
from inf_nerf.scene.scene import Photo, Scene, SparsePoints
from inf_nerf.train.loop import Work
from inf_nerf.train.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    checkpoints_dir,
    config_of,
    digest_of,
    forget_old,
    put_in_place,
    read_manifest,
    read_verified,
)
from inf_nerf.train.shared_gradients import distributed


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint with the model that it holds, ready to render."""

    path: Path
    model: Model
    config: Config
    scene: Scene  # without sparse points: photos, cameras and frame
    step: int
    manifest: dict[str, Any]
    mean_colour: Tensor  # [3] of the training photos
    node_bytes: Tensor  # [M] bytes of each node's file

    @property
    def digest(self) -> str:
        """Hash that changes with any content of the checkpoint."""
        return self.manifest["digest"]


def save_checkpoint(
    run_dir: Path, work: Work, scene: Scene, full: Octree, identity: str, val_psnr: float | None, complete: bool
) -> Path:
    """Write a checkpoint; all ranks call it together, and it returns when it is complete."""
    model, rank = work.model, work.rank
    world = dist.get_world_size() if distributed() else 1
    final = checkpoints_dir(run_dir) / f"{work.progress.step:08d}"
    partial = final.with_name(final.name + ".partial")
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in ("nodes", "optimiser", "ranks"):
            (partial / folder).mkdir(parents=True)
    _barrier()
    written: dict[str, dict[str, Any]] = {}
    for node, key in enumerate(model.field.keys.tolist()):
        if bool(work.shared[node]) and rank != 0:
            continue
        values = dict(model.field.state_of(node))
        if node < model.octree.num_nodes:
            values |= {f"occupancy.{name}": value for name, value in model.occupancy.state_of(node).items()}
        _write(partial, _node_file(key), _to_bytes(values), written)
        _write(partial, f"optimiser/{key_name(key)}.safetensors", _to_bytes(work.optimiser.state_of(node)), written)
    reservoir = work.reservoir.state()
    state = {
        "generator": base64.b64encode(bytes(work.generator.get_state().tolist())).decode(),
        "part": [work.part, work.num_parts],
        "reservoir": reservoir,
        "cursors": {**work.cursors, work.part: reservoir["cursor"]},
        "steps_across": model.steps_across,
        "draws": work.draws,
        "loss_scale": work.loss_scale.state(),
    }
    _write(partial, f"ranks/{rank}-of-{world}.json", json.dumps(state).encode(), written)
    if rank == 0:
        shared = {"appearance": model.appearance.detach(), "backdrop": model.backdrop}
        shared |= {f"cameras.{name}": value for name, value in scene.cameras.state().items()}
        shared["source_size"] = scene.source_size
        shared |= {f"octree.{name}": value for name, value in full.state().items()}
        _write(partial, "shared.safetensors", _to_bytes(shared), written)
        _write(partial, "optimiser/appearance.safetensors", _to_bytes(work.optimiser.appearance_state()), written)
    write_atomic(partial / f"files-{rank}.json", json.dumps(written))
    _barrier()
    if rank == 0:
        files: dict[str, dict[str, Any]] = {}
        for part in range(world):
            listing = partial / f"files-{part}.json"
            files |= json.loads(listing.read_text())
            listing.unlink()
        if work.saved is not None:
            files |= _take_over(work.saved, partial, set(full.keys.tolist()), files)
        manifest = {
            "format_version": FORMAT_VERSION,
            "step": work.progress.step,
            "seconds": work.progress.seconds,
            "complete": complete,
            "budget_from": work.progress.budget_from,
            "num_workers": world,
            "identity": identity,
            "val_psnr": val_psnr,
            "config": work.config.model_dump(mode="json"),
            "root": scene.root,
            "photos": [asdict(photo) for photo in scene.photos],
            "frame": scene.frame.matrix.tolist(),
            "solid_ground": model.solid_ground,
            "occupancy_enabled": model.occupancy.enabled,
            "steps_across": model.steps_across,
            "files": dict(sorted(files.items())),
        }
        manifest["digest"] = digest_of(manifest)
        write_atomic(partial / MANIFEST, json.dumps(manifest, indent=1))
        put_in_place(partial, final)
        forget_old(run_dir, work.config.train.keep_checkpoints)
    _barrier()
    work.saved = final
    return final


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Rebuild the whole model from a checkpoint directory; raises :class:`InputError` naming a damaged file.

    Where a training in turns was saved before all nodes had one, parents answer for the others.
    A field that was trained by a backend for another kind of device is evaluated by the best one of this device.
    """
    manifest = read_manifest(path)
    config = config_of(path, manifest)
    scene, full, shared = _open_shared(path, manifest)
    backend = portable_backend(config.field.backend, device)
    model = Model(
        config.model_copy(update={"field": config.field.model_copy(update={"backend": backend})}),
        full,
        len(scene.photos),
        scene.train,
        shared["backdrop"],
        manifest["solid_ground"],
        device,
    )
    _load_nodes(model, path, manifest)
    with torch.no_grad():
        model.appearance.copy_(shared["appearance"])
    node_bytes = torch.tensor([manifest["files"][_node_file(key)]["bytes"] for key in model.field.keys.tolist()])
    return Checkpoint(path, model, config, scene, manifest["step"], manifest, shared["backdrop"], node_bytes)


def restore(work: Work, path: Path) -> None:
    """Continue from a checkpoint: this rank's nodes, optimiser, progress, and, on the same number of workers, the
    generator and the reservoir, which makes the continuation bit-equal."""
    manifest = read_manifest(path)
    shared = _read(path, "shared.safetensors", manifest)
    trained = [node for node, key in enumerate(work.model.field.keys.tolist()) if _node_file(key) in manifest["files"]]
    _load_nodes(work.model, path, manifest, trained)
    with torch.no_grad():
        work.model.appearance.copy_(shared["appearance"])
    for node in trained:
        key = int(work.model.field.keys[node])
        work.optimiser.load_state(node, _read(path, f"optimiser/{key_name(key)}.safetensors", manifest))
    work.optimiser.load_appearance_state(_read(path, "optimiser/appearance.safetensors", manifest))
    work.progress.step, work.progress.seconds = manifest["step"], manifest["seconds"]
    world = dist.get_world_size() if distributed() else 1
    name = f"ranks/{work.rank}-of-{world}.json"
    if name in manifest["files"]:
        state = json.loads(read_verified(path, name, manifest))
        work.generator.set_state(torch.tensor(list(base64.b64decode(state["generator"])), dtype=torch.uint8))
        part, num_parts = state["part"]
        if num_parts == work.num_parts:
            work.cursors = {int(part): cursor for part, cursor in state["cursors"].items()}
            if part == work.part:
                work.reservoir.restore(state["reservoir"])
        work.model.steps_across = state["steps_across"]
        work.draws = state["draws"]
        work.loss_scale.restore(state["loss_scale"])
    else:
        work.generator.manual_seed(work.generator.initial_seed() + manifest["step"])
    work.reservoir.fill(work.cursors.get(work.part, 0))
    work.saved = path


def _open_shared(path: Path, manifest: dict[str, Any]) -> tuple[Scene, Octree, dict[str, Tensor]]:
    shared = _read(path, "shared.safetensors", manifest)
    cameras = Cameras.from_state(_without_prefix(shared, "cameras."))
    scene = Scene(
        photos=tuple(Photo(**photo) for photo in manifest["photos"]),
        cameras=cameras,
        points=_no_points(),
        frame=WorldFrame(np.array(manifest["frame"], dtype=np.float64)),
        root=manifest["root"],
        report={},
        source_size=shared["source_size"],
    )
    full = Octree.from_state(_without_prefix(shared, "octree."))
    return scene, full.restrict(key for key in full.keys.tolist() if _node_file(key) in manifest["files"]), shared


def _no_points() -> SparsePoints:
    none = torch.zeros(0)
    return SparsePoints(
        xyz=none.view(0, 3),
        footprint=none,
        rgb=none.view(0, 3).byte(),
        error=none,
        track_start=torch.zeros(1, dtype=torch.int64),
        track_photo=none.long(),
        track_xy=none.view(0, 2),
    )


def _take_over(source: Path, target: Path, keys: set[int], files: dict[str, Any]) -> dict[str, Any]:
    """Put the files of nodes that nobody wrote, because nobody holds them, into ``target`` from the checkpoint
    ``source``; returns what its manifest says of them."""
    names = {f"{folder}/{key_name(key)}.safetensors" for key in keys for folder in ("nodes", "optimiser")}
    missing = names - files.keys()
    waiting = {name: entry for name, entry in read_manifest(source)["files"].items() if name in missing}
    for name in waiting:
        try:
            os.link(source / name, target / name)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source / name, target / name)
    return waiting


def _node_file(key: int) -> str:
    return f"nodes/{key_name(key)}.safetensors"


def _load_nodes(model: Model, path: Path, manifest: dict[str, Any], nodes: Iterable[int] | None = None) -> None:
    for node in range(model.field.num_nodes) if nodes is None else nodes:
        values = _read(path, _node_file(int(model.field.keys[node])), manifest)
        model.field.load_state(node, values)
        if node < model.octree.num_nodes:
            model.occupancy.load_state(node, _without_prefix(values, "occupancy."))
    model.occupancy.enabled = manifest["occupancy_enabled"]
    model.steps_across = manifest["steps_across"]
    model.occupancy.refresh()
    model.occupancy_changed()


def _to_bytes(tensors: dict[str, Tensor]) -> bytes:
    return save_tensors({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def _write(folder: Path, name: str, data: bytes, written: dict[str, dict[str, Any]]) -> None:
    with open(folder / name, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    written[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _read(path: Path, name: str, manifest: dict[str, Any]) -> dict[str, Tensor]:
    data = read_verified(path, name, manifest)
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise InputError(
            f"{path / name} cannot be read ({error}); delete {path} to use the checkpoint before it."
        ) from error


def _without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _barrier() -> None:
    if distributed():
        dist.barrier()
