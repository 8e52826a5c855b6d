"""A run directory with a tiny trained model and a photo to be scored, made in this process."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from inf_nerf.scene.scene import Photo, Scene
from inf_nerf.train.checkpoint import save_checkpoint
from inf_nerf.train.loop import train
from tests.train.tiny import HEIGHT, WIDTH, tiny_config, tiny_octree, tiny_scene, tiny_work


def train_tiny(run_dir: Path, steps: int = 10, **sections: Any) -> Path:
    """A run with a checkpoint at step ``steps``, its scene and its configuration, which ``sections`` change."""
    config = tiny_config(
        train={"steps": steps, **sections.pop("train", {})},
        eval={"appearance_steps": 3, "appearance_rays": 64},
        render={"width": 72, "height": 50, "frames": 3},
        **sections,
    )
    work = tiny_work(config).work
    split = [Photo(photo.name, "test" if photo.split == "val" else photo.split, photo.file, None) for photo in
             tiny_scene().photos]  # fmt: skip
    scene: Scene = replace(tiny_scene(), photos=tuple(split), root=str(run_dir / "photos"))
    (run_dir / "photos").mkdir(parents=True)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    Image.fromarray(np.stack([3 * x, 5 * y, x + y], axis=-1).astype(np.uint8)).save(run_dir / "photos/3.png")

    def on_save(val_psnr: float | None) -> None:
        save_checkpoint(run_dir, work, scene, tiny_octree(), "tiny", val_psnr, True)

    train(work, lambda row: None, on_save, lambda: False)
    scene.save(run_dir)
    (run_dir / "config.yaml").write_text(config.to_yaml())
    return run_dir
