"""Going on from a checkpoint with photos that it does not know.

Photos are told by their names.  What a checkpoint says of tiles and draws is left behind, and nodes look at all of
their space anew when they are trained, because the photos may show what was not there before.

Letters: V photos at hand, U photos of the checkpoint, A appearance numbers, N octree nodes, G^3 cells of a node.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inf_nerf.octree.topology import is_below, key_name, key_of
from inf_nerf.train.assembly import probes_of_warmup
from inf_nerf.train.loop import Work
from inf_nerf.train.manifest import config_of


def same_photos(work: Work, manifest: Mapping[str, Any]) -> bool:
    """Whether a checkpoint knows just the photos at hand, in the same order."""
    return [photo["name"] for photo in manifest["photos"]] == list(work.photos)


def appearance_for(
    photos: Sequence[str],  # V names
    saved: Tensor,  # [U, A]
    manifest: Mapping[str, Any],
) -> Tensor:  # [V, A]
    """The appearance of each photo as a checkpoint has it; of those that it does not know the mean of the training
    photos', by which they are rendered until they have one."""
    rows = {photo["name"]: row for row, photo in enumerate(manifest["photos"])}
    trained = [row for row, photo in enumerate(manifest["photos"]) if photo["split"] == "train"]
    with_mean = torch.cat((saved, saved[trained].mean(0, keepdim=True)))
    return with_mean[[rows.get(name, -1) for name in photos]]


def added_photos(work: Work, path: Path, manifest: dict[str, Any]) -> tuple[str, ...]:
    """Photos whose appearance is still to be learned after a checkpoint: those that it does not know, and those that
    it was learning while it trained the same subtree."""
    known = {photo["name"] for photo in manifest["photos"]}
    added = {name for name in work.photos if name not in known}
    if not manifest["complete"] and config_of(path, manifest).train.subtree == work.config.train.subtree:
        added.update(manifest.get("added", ()))
    return tuple(name for name in work.photos if name in added)


def learn_appearance_of(work: Work, added: Sequence[str]) -> None:
    """Where a subtree is trained, whose photos keep their appearance, let the ``added`` ones have theirs learned."""
    work.added = tuple(added)
    if work.config.train.subtree is None or not added:
        return
    appearance = work.model.appearance
    chosen = torch.tensor([name in set(added) for name in work.photos], device=appearance.device)[:, None]  # [V, 1]
    appearance.requires_grad_(True)
    # without moments, which start anew with other photos, no gradient is no change
    appearance.register_hook(lambda gradient: torch.where(chosen, gradient, 0.0))


def unseen_nodes(work: Work, manifest: Mapping[str, Any]) -> frozenset[int]:
    """Keys of the nodes that were not trained with the photos at hand before a checkpoint, but with fewer."""
    if not same_photos(work, manifest):
        return frozenset(work.adaptation.tree.keys.tolist())
    return frozenset(map(key_of, manifest.get("unseen", ())))


def still_unseen(work: Work, held: set[int]) -> list[str]:
    """Names of the unseen nodes that the training of the nodes ``held`` by all ranks leaves unseen."""
    trained = held
    if work.config.train.subtree is not None:
        keys = torch.tensor(sorted(held))
        trained = set(keys[is_below(keys, key_of(work.config.train.subtree))].tolist())
    return [key_name(key) for key in sorted(work.unseen - trained)]


@torch.no_grad()
def look_anew(
    work: Work,
    protected: Tensor,  # [N, G^3] by the points of the photos at hand
    free: Tensor,  # [N, G^3]
) -> None:
    """Let cells of the unseen nodes that are trained now be occupied for as long as a warm-up lasts, but for those that
    lines of sight have free."""
    occupancy, keys = work.model.occupancy, work.model.octree.keys.tolist()
    anew = torch.tensor([key in work.unseen for key in keys], device=free.device) & ~work.model.field.frozen[:-1]
    if not bool(anew.any()):
        return
    open_for = occupancy.threshold[:, None] / occupancy.decay ** probes_of_warmup(work.config)
    occupancy.density[anew] = torch.maximum(occupancy.density, open_for)[anew]
    occupancy.protected[anew], occupancy.free[anew] = protected[anew], free[anew]
    occupancy.refresh()
    work.model.occupancy_changed()
