"""How a training is going, to be looked at: a val photo beside what the fields make of it, every so many steps.

Rank 0 draws them from the nodes that it holds; where other workers own finer ones, their parents answer.
"""

from pathlib import Path

import torch

from inf_nerf.config import Config
from inf_nerf.files import write_atomic
from inf_nerf.render.images import chunk_rays, render_image
from inf_nerf.scene.photos import area_resize, read_photo
from inf_nerf.scene.scene import Scene
from inf_nerf.train.loop import Work
from inf_nerf.train.metrics import psnr

FOLDER = "pictures/training"
LARGEST_SIDE = 480  # pixels, as wide as a cell of the sheet


class TrainingPictures:
    """Draws the first val photo, or the first training photo where there is none, at a pyramid level that is quick."""

    def __init__(self, config: Config, scene: Scene, run_dir: Path) -> None:
        self._config = config
        self._scene = scene
        self._folder = run_dir / FOLDER
        self._photo = [*scene.val, *scene.train][0]
        sizes = [max(scene.cameras.level_size(self._photo, level)) for level in range(config.scene.pyramid_levels)]
        self._level = next((level for level, side in enumerate(sizes) if side <= LARGEST_SIDE), len(sizes) - 1)
        self._target: torch.Tensor | None = None  # [h, w, 3]

    def draw_if_due(self, work: Work) -> None:
        """Write ``<step>.png`` if it is the turn of a picture."""
        every = self._config.train.picture_every
        if every and work.rank == 0 and work.progress.step % every == 0:
            self._draw(work)

    def _draw(self, work: Work) -> None:
        from inf_nerf.render.sheet import SheetRow, evaluation_sheet  # brings matplotlib, which few workers need

        cameras, model = self._scene.cameras, work.model
        if self._target is None:
            pixels = area_resize(read_photo(self._scene, self._photo), cameras.level_size(self._photo, self._level))
            self._target = torch.from_numpy(pixels) / 255
        rays = chunk_rays(self._config.eval.chunk_samples, self._config.sampler.max_samples)
        seen = render_image(model, cameras, self._photo, self._level, rays_per_chunk=rays)
        score = psnr(float((seen.rgb - self._target).square().mean()))
        caption = f"{self._scene.photos[self._photo].name}, step {work.progress.step}, PSNR {score:.2f} dB"
        sheet = evaluation_sheet([SheetRow(caption, self._target, seen.rgb, seen.level)], model.octree.num_levels)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._folder / f"{work.progress.step:08d}.png", sheet)
