"""The appearance of a photo that was not trained on, from a part of its pixels."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from inf_nerf.config import EvalConfig
from inf_nerf.render.images import RayRenderer
from inf_nerf.scene.cameras import Cameras

FIT_SEED = 0  # order of the pixels that an appearance is fitted to


def fit_appearance(
    model: RayRenderer,
    cameras: Cameras,
    photo: int,
    target: Tensor,  # [h, w, 3] level 0
    counted: Tensor,  # [h, w] bool
    config: EvalConfig,
    *,
    start: Tensor,  # [A]
    on_rays: Callable[[int], None] | None = None,
) -> Tensor:  # [A]
    """The appearance that explains the left half of a photo best, all else as it is; the field must be frozen.

    Adam with a rate that falls to a tenth, from ``start``, over ``eval.appearance_steps`` batches of
    ``eval.appearance_rays`` pixels in an order that depends on nothing but the size of the photo.
    """
    appearance = start.clone().requires_grad_()
    pixel = counted[:, : counted.shape[1] // 2].nonzero()  # [K, 2] y, x
    steps, batch = config.appearance_steps, config.appearance_rays
    if appearance.numel() == 0 or len(pixel) == 0 or steps == 0:
        return start
    generator = torch.Generator().manual_seed(FIT_SEED)
    optimiser = torch.optim.Adam([appearance], lr=config.appearance_lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.1 ** (1 / steps))
    with torch.enable_grad():
        for chosen in _batches(len(pixel), batch, steps, generator):
            y, x = pixel[chosen].unbind(-1)
            view = torch.full_like(x, photo)
            rays = cameras.rays(view, torch.zeros_like(x), torch.stack([x, y], dim=-1))
            rendered = model.render(replace(rays, photo=torch.full_like(x, -1)), appearance=appearance)
            loss = (rendered.rgb - target[y, x].to(rendered.rgb.device)).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if on_rays is not None:
                on_rays(batch)
    return appearance.detach()


def _batches(num_pixels: int, batch: int, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """``count`` batches of pixel indices [batch]; every pixel is used once before any is used again."""
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(count):
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(num_pixels, generator=generator)])
        chosen, order = order[:batch], order[batch:]
        yield chosen
