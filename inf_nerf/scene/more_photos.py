"""More photos of a scene that is known already: they join it in its frame, and known ones keep their split.

Letters: B photos that both scenes have.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from inf_nerf.errors import InputError
from inf_nerf.scene.cameras import Cameras
from inf_nerf.scene.capture import MIN_PHOTOS

if TYPE_CHECKING:
    from inf_nerf.scene.scene import Scene

MOVED_PX = 1.0  # pixels of level 0 by which a known photo may be off where it was
PLACES = ((0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))  # in a photo, of its width and height


def splits_with(known: "Scene", names: Sequence[str]) -> list[str]:
    """The split of photos that join a known scene: its own stay where they were, all others are to be learned from."""
    split = {photo.name: photo.split for photo in known.photos}
    return [split.get(name, "train") for name in names]


def refuse_moved(known: "Scene", names: Sequence[str], cameras: Cameras, source: Path) -> None:
    """Raise :class:`InputError` unless ``cameras`` took the photos ``names``, as far as they are known, from where the
    known scene has them: else ``source`` is a model in other coordinates.

    Photos are compared as a whole, with their intrinsics: by how far, in pixels of level 0, a place in them looks off,
    at the footprint that the scene's points have in the middle.
    """
    rows = {photo.name: row for row, photo in enumerate(known.photos)}
    both = [name for name in names if name in rows]
    if len(both) < MIN_PHOTOS:
        raise InputError(
            f"{source} has {len(both)} of the {len(rows)} photos that {known.root} was known by, and {MIN_PHOTOS} are "
            "needed to see that both are in the same coordinates; add photos to the model of those, under their names."
        )
    before = torch.tensor([rows[name] for name in both])
    after = torch.tensor([row for row, name in enumerate(names) if name in rows])
    footprint = known.points.footprint.median()
    off = torch.zeros(len(both))  # [B]
    for place in PLACES:
        was, now = (
            scene.rays_at(photo, torch.tensor(place) * scene.size[scene.camera_id[photo]])
            for scene, photo in ((known.cameras, before), (cameras, after))
        )
        turned = (was.direction - now.direction).norm(dim=1) / was.radius
        off = torch.maximum(off, turned + (was.origin - now.origin).norm(dim=1) / footprint)
    worst = int(off.nan_to_num(torch.inf).argmax())
    if not bool(off[worst] <= MOVED_PX):
        raise InputError(
            f"{source} has {both[worst]} {float(off[worst]):,.1f} pixels off where {known.root} had it, so the two are "
            "in different coordinates; register new photos in the model that the known ones have, and leave its poses "
            "as they are."
        )
