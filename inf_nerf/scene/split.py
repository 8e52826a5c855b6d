"""Which photos are learned from, which score the checkpoints, and which are only reported."""

import logging
from collections.abc import Sequence
from pathlib import Path

from inf_nerf.config import SceneConfig
from inf_nerf.errors import InputError

log = logging.getLogger(__name__)


def split_photos(names: Sequence[str], config: SceneConfig) -> list[str]:
    """``train``, ``val`` or ``test`` for each photo; ``names`` are sorted.

    By default every ``test_every``-th photo is test, starting with the first, and of the others every ``val_every``-th
    is val, starting in the middle of the first ``val_every``.  A list file replaces the rule of its own split, and so
    do ``val_images``, which one configuration for several scenes may name: those that the scene has, if it has any.  A
    photo in no list is then train, or test if there is a train list.  Raises :class:`InputError` for a name in a list
    file that is no photo, or in two lists.
    """
    lists = {"train": config.train_list, "val": config.val_list, "test": config.test_list}
    chosen: dict[str, str] = {}
    for split, path in lists.items():
        for name in _read_list(path, set(names)) if path else []:
            if chosen.setdefault(name, split) != split:
                raise InputError(
                    f"{path} lists {name!r}, which scene.{chosen[name]}_list has too; keep it in one of them."
                )
    missing = missing_val_images(names, config)
    if missing:
        then = "the others are val" if len(missing) < len(config.val_images) else "the rule says what is val"
        log.warning("scene.val_images names %s, which the scene has not; %s.", ", ".join(missing), then)
    named = [name for name in config.val_images if name not in missing]
    for name in named:
        if chosen.setdefault(name, "val") != "val":
            raise InputError(f"scene.val_images names {name!r}, which a list file has too; keep it in one of them.")
    if config.test_list is None and config.train_list is None:
        for name in names[:: config.test_every]:
            chosen.setdefault(name, "test")
    if config.val_list is None and config.train_list is None and config.val_every and not named:
        others = [name for name in names if name not in chosen]
        for name in others[config.val_every // 2 :: config.val_every]:
            chosen[name] = "val"
    rest = "train" if config.train_list is None else "test"
    splits = [chosen.get(name, rest) for name in names]
    if "train" not in splits:
        raise InputError("The split leaves no photo to train on; change scene.test_every or the list files.")
    return splits


def missing_val_images(names: Sequence[str], config: SceneConfig) -> list[str]:
    """Names in ``scene.val_images`` that are no photos of the scene."""
    return [name for name in config.val_images if name not in set(names)]


def _read_list(path: Path, names: set[str]) -> list[str]:
    if not path.is_file():
        raise InputError(f"The list of photos {path} does not exist; correct the path or remove the key.")
    listed = [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    for name in listed:
        if name not in names:
            raise InputError(
                f"{path} lists {name!r}, which is not a photo of the scene; write names as {min(names)!r}."
            )
    return listed
