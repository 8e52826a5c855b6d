"""Checkpoints keyed by node, never by rank: one directory, one file per node, and a manifest that is written last.

    checkpoints/<step>/manifest.json           size and hash of every file, configuration, photos, frame, progress
                       nodes/<name>.safetensors     values and occupancy of a node ("r" root, "r05", "bg" background)
                       optimiser/<name>.safetensors  its moments; a viewer never reads them
                       shared.safetensors      appearance, cameras, octree, backdrop
                       ranks/<r>-of-<W>.json   generator and reservoir of a rank, for a bit-equal continuation
                       ranks/<r>-of-<W>-asked.safetensors  what its samples asked of a tree that adapts

Every rank writes the nodes that it holds, rank 0 also the shared ones; nodes that wait for their turn are taken over
from the checkpoint before, and those that had none yet have no file.  A file that did not change since the checkpoint
before is not written again but linked, so that every directory is whole and can be deleted or copied alone.  Files are
written into ``<step>.partial``; when all ranks have, rank 0 writes the manifest and renames the directory, so a
directory with a manifest is complete.  Where one of them cannot, all give up together, and what was there before is
untouched.  A run made on any number of workers continues on any other.
"""

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save as save_tensors
from torch import Tensor

from inf_nerf.errors import InputError, NotFiniteError
from inf_nerf.files import write_atomic
from inf_nerf.octree.partition import subtrees_after
from inf_nerf.octree.topology import Octree, key_name, key_of
from inf_nerf.scene.scene import Scene
from inf_nerf.train.assembly import density_before_warmup
from inf_nerf.train.loop import PROBE_SHARES, Work
from inf_nerf.train.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    checkpoints_dir,
    digest_of,
    forget_old,
    latest_checkpoint,
    put_in_place,
    read_manifest,
    read_verified,
)
from inf_nerf.train.opened import OCCUPANCY, load_nodes, node_file, read_tensors, without_prefix
from inf_nerf.train.other_photos import (
    added_photos,
    appearance_for,
    learn_appearance_of,
    look_anew,
    same_photos,
    still_unseen,
    unseen_nodes,
)
from inf_nerf.train.shared_gradients import distributed, on_all_ranks


def save_checkpoint(
    run_dir: Path, work: Work, scene: Scene, full: Octree, identity: str, val_psnr: float | None, complete: bool
) -> Path:
    """Write a checkpoint; all ranks call it together, and it returns when it is complete.

    Raises on all of them where one cannot write its part (:class:`InputError`) or holds a value that is not finite
    (:class:`NotFiniteError`).
    """
    final = checkpoints_dir(run_dir) / f"{work.progress.step:08d}"
    partial = final.with_name(final.name + ".partial")

    def on_all(part: Callable[[], None]) -> None:  # returns on no rank before all have done it
        on_all_ranks(lambda: _or_say_why(part, final))

    try:
        on_all(lambda: _make_folders(partial, work))
        on_all(lambda: _write_part(partial, latest_checkpoint(run_dir), work, scene, full))
        on_all(lambda: _commit(partial, final, work, scene, full, identity, val_psnr, complete))
    except InputError:
        if work.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    work.saved = final
    return final


def _or_say_why(part: Callable[[], None], final: Path) -> None:
    try:
        part()
    except OSError as error:
        raise InputError(
            f"The checkpoint of step {int(final.name)} could not be saved in {final.parent} "
            f"({error.strerror or error}); the one before it is untouched: put that right, for example make room, and "
            "give the same command again."
        ) from error


def _make_folders(partial: Path, work: Work) -> None:
    if work.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in ("nodes", "optimiser", "ranks"):
            (partial / folder).mkdir(parents=True)


def _write_part(partial: Path, before: Path | None, work: Work, scene: Scene, full: Octree) -> None:
    """The files of one rank, and a list of them for rank 0."""
    model, rank = work.model, work.rank
    files = _Files(partial, before)
    for node, key in enumerate(model.field.keys.tolist()):
        if bool(work.shared[node]) and rank != 0:
            continue
        values, moments = dict(model.field.state_of(node)), work.optimiser.state_of(node)
        if not all(bool(value.isfinite().all()) for value in (*values.values(), *moments.values())):
            raise NotFiniteError(
                f"Node {key_name(key)} holds a value that is not a finite number after step {work.progress.step}, so "
                "nothing was saved; give --resume latest with a lower train.lr_init or train.grad_clip=1."
            )
        if node < model.octree.num_nodes:
            values |= {OCCUPANCY + name: value for name, value in model.occupancy.state_of(node).items()}
        files.write(node_file(key), _to_bytes(values))
        files.write(f"optimiser/{key_name(key)}.safetensors", _to_bytes(moments))
    reservoir = work.reservoir.state()
    state = {
        "generator": base64.b64encode(bytes(work.generator.get_state().tolist())).decode(),
        "part": [work.part, work.num_parts],
        "reservoir": reservoir,
        "cursors": {**work.cursors, work.part: reservoir["cursor"]},
        "steps_across": model.steps_across,
        "draws": work.draws,
        "loss_scale": work.loss_scale.state(),
        "to_probe": dict(zip(map(str, model.octree.keys.tolist()), work.to_probe.tolist(), strict=True)),
    }
    files.write(f"ranks/{rank}-of-{_world_size()}.json", json.dumps(state).encode())
    if asked := work.adaptation.state():
        files.write(_asked_file(rank), _to_bytes(asked))
    if rank == 0:
        shared = {"appearance": model.appearance.detach(), "backdrop": model.backdrop}
        shared |= {f"cameras.{name}": value for name, value in scene.cameras.state().items()}
        shared["source_size"] = scene.source_size
        shared |= {f"octree.{name}": value for name, value in full.state().items()}
        files.write("shared.safetensors", _to_bytes(shared))
        files.write("optimiser/appearance.safetensors", _to_bytes(work.optimiser.appearance_state()))
    write_atomic(partial / f"files-{rank}.json", json.dumps(files.listing))


def _commit(
    partial: Path,
    final: Path,
    work: Work,
    scene: Scene,
    full: Octree,
    identity: str,
    val_psnr: float | None,
    complete: bool,
) -> None:
    """Rank 0 writes the manifest and renames the directory."""
    if work.rank != 0:
        return
    model, world = work.model, _world_size()
    listed: dict[str, dict[str, Any]] = {}
    for part in range(world):
        listing = partial / f"files-{part}.json"
        listed |= json.loads(listing.read_text())
        listing.unlink()
    unseen = still_unseen(work, {key for key in full.keys.tolist() if node_file(key) in listed})
    if work.saved is not None:
        listed |= _take_over(work.saved, partial, set(full.keys.tolist()), listed)
    manifest = {
        "format_version": FORMAT_VERSION,
        "step": work.progress.step,
        "seconds": work.progress.seconds,
        "complete": complete,
        "budget_from": work.progress.budget_from,
        "num_workers": world,
        "identity": identity,
        "subtrees": _subtrees(work, full),
        "val_psnr": val_psnr,
        "config": work.config.model_dump(mode="json"),
        "root": scene.root,
        "photos": [asdict(photo) for photo in scene.photos],
        "added": work.added,
        "unseen": unseen,
        "frame": scene.frame.matrix.tolist(),
        "solid_ground": model.solid_ground,
        "occupancy_enabled": model.occupancy.enabled,
        "steps_across": model.steps_across,
        "files": dict(sorted(listed.items())),
    }
    manifest["digest"] = digest_of(manifest)
    write_atomic(partial / MANIFEST, json.dumps(manifest, indent=1))
    put_in_place(partial, final)
    forget_old(final.parent.parent, work.config.train.keep_checkpoints)


def _subtrees(work: Work, full: Octree) -> dict[str, int]:
    """The part that trained each subtree, by the name of its root; of what was not trained again as it was before."""
    subtrees, subtree = dict(sorted(work.subtrees.items())), work.config.train.subtree
    if subtree is not None and work.saved is not None:
        before = {key_of(name): part for name, part in read_manifest(work.saved)["subtrees"].items()}
        subtrees = subtrees_after(full, before, subtree, subtrees)
    return {key_name(key): part for key, part in subtrees.items()}


def restore(work: Work, path: Path) -> None:
    """Continue from a checkpoint: this rank's nodes, optimiser, progress, and, on the same number of workers, the
    generator and the reservoir, which makes the continuation bit-equal.  With other photos than it knows
    (:mod:`inf_nerf.train.other_photos`) it is the nodes, their optimiser and the appearance of the photos in common."""
    manifest = read_manifest(path)
    shared = read_tensors(path, "shared.safetensors", manifest)
    tree = Octree.from_state(without_prefix(shared, "octree."))
    if tree.identity != work.adaptation.tree.identity:
        work.adaptation.become(work, tree)
    saved = [node_file(key) in manifest["files"] for key in work.model.field.keys.tolist()]
    trained = [node for node, has_file in enumerate(saved) if has_file]
    late = ~torch.tensor(saved[:-1], device=work.shared.device)  # their turn had not come
    work.model.occupancy.density[late] = density_before_warmup(work.config)
    protected, free = work.model.occupancy.protected.clone(), work.model.occupancy.free.clone()
    load_nodes(work.model, path, manifest, trained)
    same = same_photos(work, manifest)
    if not same:  # what is not trained again answers as it did
        work.model.solid_ground = manifest["solid_ground"]
        work.model.backdrop = shared["backdrop"].to(work.model.backdrop)
    work.unseen = unseen_nodes(work, manifest)
    with torch.no_grad():
        work.model.appearance.copy_(appearance_for(work.photos, shared["appearance"], manifest))
    learn_appearance_of(work, added_photos(work, path, manifest))
    for node in trained:
        key = int(work.model.field.keys[node])
        work.optimiser.load_state(node, read_tensors(path, f"optimiser/{key_name(key)}.safetensors", manifest))
    if same:
        work.optimiser.load_appearance_state(read_tensors(path, "optimiser/appearance.safetensors", manifest))
    work.progress.step, work.progress.seconds = manifest["step"], manifest["seconds"]
    name = f"ranks/{work.rank}-of-{_world_size()}.json"
    if same and name in manifest["files"]:
        state = json.loads(read_verified(path, name, manifest))
        work.generator.set_state(torch.tensor(list(base64.b64decode(state["generator"])), dtype=torch.uint8))
        part, num_parts = state["part"]
        if num_parts == work.num_parts:
            work.cursors = {int(part): cursor for part, cursor in state["cursors"].items()}
            if part == work.part:
                work.reservoir.restore(state["reservoir"])
        if work.exchange is None:  # else all ranks step alike: as the manifest says
            work.model.steps_across = state["steps_across"]
        work.draws = state["draws"]
        work.loss_scale.restore(state["loss_scale"])
        rounds = state.get("to_probe", {})
        for node, key in enumerate(work.model.octree.keys.tolist()):
            work.to_probe[node] = rounds.get(str(key), PROBE_SHARES)
        if _asked_file(work.rank) in manifest["files"]:
            work.adaptation.restore(read_tensors(path, _asked_file(work.rank), manifest))
    else:
        work.generator.manual_seed(work.generator.initial_seed() + manifest["step"])
    look_anew(work, protected, free)
    work.reservoir.fill(work.cursors.get(work.part, 0))
    work.saved = path


def _take_over(source: Path, target: Path, keys: set[int], files: dict[str, Any]) -> dict[str, Any]:
    """Put the files of nodes that nobody wrote, because nobody holds them, into ``target`` from the checkpoint
    ``source``; returns what its manifest says of them."""
    names = {f"{folder}/{key_name(key)}.safetensors" for key in keys for folder in ("nodes", "optimiser")}
    missing = names - files.keys()
    if not missing:
        return {}
    waiting = {name: entry for name, entry in read_manifest(source)["files"].items() if name in missing}
    for name in waiting:
        try:
            os.link(source / name, target / name)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source / name, target / name)
    return waiting


def _to_bytes(tensors: dict[str, Tensor]) -> bytes:
    return save_tensors({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


class _Files:
    """Files of a checkpoint that is being written, each with its size and hash."""

    def __init__(self, folder: Path, before: Path | None) -> None:
        """``before``: the checkpoint whose unchanged files are linked."""
        self.listing: dict[str, dict[str, Any]] = {}
        self._folder = folder
        self._before = before
        try:
            self._known: dict[str, Any] = read_manifest(before)["files"] if before is not None else {}
        except InputError:  # a damaged one has nothing to offer
            self._known = {}

    def write(self, name: str, data: bytes) -> None:
        self.listing[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if self._known.get(name) == self.listing[name] and self._link(name, data):
            return
        with open(self._folder / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _link(self, name: str, data: bytes) -> bool:
        """Take the file of the checkpoint before, if it is as it was saved, lest damage be inherited, and the
        filesystem has links."""
        assert self._before is not None
        try:
            if (self._before / name).read_bytes() != data:
                return False
            os.link(self._before / name, self._folder / name)
        except OSError:
            return False
        return True


def _asked_file(rank: int) -> str:
    return f"ranks/{rank}-of-{_world_size()}-asked.safetensors"


def _world_size() -> int:
    return dist.get_world_size() if distributed() else 1
