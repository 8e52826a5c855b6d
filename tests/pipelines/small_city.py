"""A tiny city that is prepared in this process, without Ray."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inf_nerf.config import Config, load_config
from pipelines import prepare

CONFIG = load_config(
    None,
    ["field.max_res=16", "octree.num_levels=3", "octree.min_points=4", "data.tile_size=16", "scene.pyramid_levels=2",
     "scene.val_every=5", "train.num_workers=2"],
)  # fmt: skip


def changed(*overrides: str) -> Config:
    """The configuration with some keys changed."""
    return load_config(None, overrides, base=CONFIG.model_dump(mode="json"))


def cut_here(config: Config, photos: list[int], run_dir: Path, identity: str) -> Iterator[dict[str, Any]]:
    """Stands for `prepare._cut_by_ray`."""
    for photo in photos:
        yield prepare.cut_and_write({"photo": photo}, config, str(run_dir), identity)
