"""A run directory as a training leaves it, made in a second, with three checkpoints."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from inf_nerf.config import Config
from inf_nerf.diagnose.profiler import Profiler, profile_file
from inf_nerf.scene.scene import Photo
from inf_nerf.train.checkpoint import save_checkpoint
from inf_nerf.train.loop import train
from tests.train.tiny import HEIGHT, WIDTH, tiny_config, tiny_octree, tiny_scene, tiny_work

SAVES = ("00000004", "00000008", "00000012")


def trained_config(**sections: dict[str, Any]) -> Config:
    small = {"appearance_steps": 3, "appearance_rays": 64}
    given: dict[str, dict[str, Any]] = {"eval": small, "render": {"width": 72, "height": 50, "frames": 6}}
    training = {"steps": 12, "log_every": 2, "save_every": 4, "keep_checkpoints": 9}
    return tiny_config(train=training, **(given | sections))


def trained_run(run_dir: Path) -> Path:
    """Scene, configuration, photos, metrics and the checkpoints ``SAVES``."""
    config = trained_config()
    work = tiny_work(config).work
    photos = tuple(
        Photo(photo.name, "test" if photo.split == "val" else photo.split, photo.file, None)
        for photo in tiny_scene().photos
    )
    scene = replace(tiny_scene(), photos=photos, root=str(run_dir / "photos"))
    (run_dir / "photos").mkdir(parents=True)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for index, photo in enumerate(photos):
        pixels = np.stack([3 * x, 5 * y, (x + y + 20 * index) % 256], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(run_dir / "photos" / photo.file)
    rows: list[dict[str, Any]] = []

    def on_save(val_psnr: float | None) -> None:
        save_checkpoint(run_dir, work, scene, tiny_octree(), "tiny", val_psnr, True)

    with Profiler() as profiler:
        train(work, rows.append, on_save, lambda: False)
    (run_dir / "profile").mkdir()
    (run_dir / profile_file(0)).write_text(json.dumps({"rank": 0, "num_ranks": 1, "step": 12, **profiler.report()}))
    assert tuple(sorted(path.name for path in (run_dir / "checkpoints").iterdir())) == SAVES
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scene.save(run_dir)
    (run_dir / "config.yaml").write_text(config.to_yaml())
    return run_dir
