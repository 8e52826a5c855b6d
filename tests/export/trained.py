"""A run with a checkpoint after a few steps, which costs a second."""

from pathlib import Path

from inf_nerf.train.checkpoint import save_checkpoint
from inf_nerf.train.loop import train
from tests.train.tiny import tiny_config, tiny_octree, tiny_scene, tiny_work


def save_trained_run(run_dir: Path, steps: int = 10) -> None:
    """Train the tiny scene and save scene and checkpoint: opaque around the sparse points, and empty elsewhere."""
    work = tiny_work(tiny_config(train={"steps": steps}, field={"initial_density": 40.0})).work
    train(work, lambda row: None, lambda val_psnr: None, lambda: False)
    work.model.occupancy.density.mul_(work.model.occupancy.protected)
    save_checkpoint(run_dir, work, tiny_scene(), tiny_octree(), "tiny", None, True)
    tiny_scene().save(run_dir)
