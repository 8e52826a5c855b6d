"""Scores of held-out photos at every pyramid level; repeatable to the last bit.

Two protocols (Liang et al. 2024, supplement 2.1; NeRF in the Wild, section 5):

* ``plain`` renders whole test photos with the mean appearance of the training photos.
* ``right_half`` fits a fresh appearance vector to the left half of each test photo, with everything else frozen, and
  scores the right half, cropped before SSIM.  Nothing of the fit is kept.

Both are also scored after a per-photo affine colour correction.  docs/evaluation.md documents the result.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.octree.topology import Octree
from inf_nerf.render.images import Crop, RayRenderer, RenderedImage, chunk_rays, render_image
from inf_nerf.scene.cameras import Cameras
from inf_nerf.scene.photos import area_resize
from inf_nerf.scene.scene import Scene
from inf_nerf.train.metrics import ImageScores, colour_corrected, image_scores, psnr

DIGITS = 6  # decimals kept in the result
FIT_SEED = 0  # order of the pixels that an appearance is fitted to
BACKGROUND = "background"  # the field outside the root cube, in shares of levels

PhotoReader = Callable[[int], tuple[NDArray[np.uint8], NDArray[np.bool_] | None]]


class Freezable(Protocol):
    """Fields that can stop collecting gradients."""

    def requires_grad_(self, flag: bool, /) -> Any: ...


class EvaluatedModel(RayRenderer, Protocol):
    """The parts of the model that evaluation uses."""

    @property
    def octree(self) -> Octree: ...
    @property
    def field(self) -> Freezable: ...
    @property
    def appearance(self) -> Tensor: ...  # [V, A]


class Evaluated(Protocol):
    """The parts of a loaded checkpoint that evaluation uses."""

    @property
    def model(self) -> EvaluatedModel: ...
    @property
    def scene(self) -> Scene: ...
    @property
    def mean_colour(self) -> Any: ...  # [3] in [0, 1]
    @property
    def node_bytes(self) -> Any: ...  # [M]


@dataclass(frozen=True)
class View:
    """One rendered test photo at level 0, for pictures."""

    name: str
    photo: Tensor  # [h, w, 3]
    rendered: RenderedImage
    scores: ImageScores


@dataclass
class _Tally:
    """Scores of one protocol, by pyramid level."""

    plain: list[list[ImageScores]] = field(default_factory=list)  # [level][photo]
    corrected: list[list[ImageScores]] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)  # level 0, by photo
    images: list[dict[str, Any]] = field(default_factory=list)

    def add(self, level: int, scores: ImageScores, corrected: ImageScores) -> None:
        while len(self.plain) <= level:
            self.plain.append([])
            self.corrected.append([])
        self.plain[level].append(scores)
        self.corrected[level].append(corrected)


def evaluate(
    checkpoint: Evaluated,
    config: Config,
    read: PhotoReader,
    *,
    on_rays: Callable[[int], None] | None = None,
    on_view: Callable[[View], None] | None = None,
) -> dict[str, Any]:
    """Score all test photos; the result is what ``eval.json`` holds.

    ``read`` gives a photo's level 0 [h, w, 3] and its mask [h, w] or None.  ``on_rays`` hears how many rays were
    finished (:func:`work` says how many there are), ``on_view`` each level-0 picture of the plain protocol.  Raises
    :class:`InputError` if the scene has no test photos.
    """
    scene, model = checkpoint.scene, checkpoint.model
    require_test_photos(scene)
    per_chunk = chunk_rays(config.eval.chunk_samples, config.sampler.max_samples)
    mean_appearance = model.appearance.detach()[scene.train].mean(dim=0)
    mean_colour = torch.as_tensor(checkpoint.mean_colour, dtype=torch.float32).reshape(1, 1, 3)
    node_bytes = torch.as_tensor(checkpoint.node_bytes, dtype=torch.int64)
    whole, right = _Tally(), _Tally()
    share = torch.zeros(len(node_bytes), dtype=torch.float64)
    every_level = range(config.scene.pyramid_levels)

    def view(photo: int, level: int, appearance: Tensor, crop: Crop | None) -> RenderedImage:
        return render_image(
            model,
            scene.cameras,
            photo,
            level,
            rays_per_chunk=per_chunk,
            appearance=appearance,
            crop=crop,
            on_rays=on_rays,
        )

    for photo in scene.test:
        name = scene.photos[photo].name
        pixels, mask = read(photo)
        levels = [level_target(pixels, mask, scene.cameras, photo, level) for level in every_level]
        for level, (target, counted) in enumerate(levels):
            if not bool(counted.any()):
                continue
            rendered = view(photo, level, mean_appearance, None)
            share += rendered.share.double()
            scores = _score(whole, level, rendered.rgb, target, counted)
            if level == 0:
                whole.images.append(_image(name, scores, rendered, node_bytes))
                whole.floor.append(_floor(target, counted, mean_colour))
                if on_view is not None:
                    on_view(View(name, target, rendered, scores))
        if not config.eval.right_half:
            continue
        target, counted = levels[0]
        appearance = fit_appearance(
            model, scene.cameras, photo, target, counted, config, start=mean_appearance, on_rays=on_rays
        )
        for level, (target, counted) in enumerate(levels):
            crop = right_half(scene.cameras, photo, level)
            if crop is None:
                continue
            target, counted = target[:, crop.left :], counted[:, crop.left :]
            if not bool(counted.any()):
                continue
            rendered = view(photo, level, appearance, crop)
            scores = _score(right, level, rendered.rgb, target, counted)
            if level == 0:
                right.images.append(_image(name, scores, rendered, node_bytes))
                right.floor.append(_floor(target, counted, mean_colour))

    result = _summary(whole, scene)
    result["num_nodes"] = model.octree.num_nodes
    result["model_bytes"] = int(node_bytes.sum())
    result["level_share"] = level_share(share, model.octree)
    if config.eval.right_half:
        result["right_half"] = _summary(right, scene)
    return _rounded(result)


def require_test_photos(scene: Scene) -> None:
    """Raises :class:`InputError` if there is nothing to score."""
    if not scene.test:
        raise InputError("The scene has no test photos; name some in scene.test_list or lower scene.test_every.")


def work(scene: Scene, config: Config) -> int:
    """Rays that :func:`evaluate` renders or fits to, for a progress bar."""
    total = 0
    for photo in scene.test:
        for level in range(config.scene.pyramid_levels):
            width, height = scene.cameras.level_size(photo, level)
            total += width * height
            crop = right_half(scene.cameras, photo, level) if config.eval.right_half else None
            total += crop.width * crop.height if crop is not None else 0
        total += config.eval.appearance_steps * config.eval.appearance_rays if config.eval.right_half else 0
    return total


def level_target(
    pixels: NDArray[np.uint8],  # [h, w, 3] level 0
    mask: NDArray[np.bool_] | None,  # [h, w]
    cameras: Cameras,
    photo: int,
    level: int,
) -> tuple[Tensor, Tensor]:  # [h_l, w_l, 3], [h_l, w_l] bool
    """A photo's pyramid level, area-averaged from level 0, and which of its pixels count.

    A pixel counts if the mask leaves no part of it out.
    """
    size = cameras.level_size(photo, level)
    target = torch.from_numpy(area_resize(pixels, size) / np.float32(255))
    if mask is None:
        return target, torch.ones(target.shape[:2], dtype=torch.bool)
    return target, torch.from_numpy(area_resize(mask, size) > 1 - 1e-4)


def right_half(cameras: Cameras, photo: int, level: int) -> Crop | None:
    """The pixels of a level that share nothing with the left half of level 0; None if there are none."""
    full_width, _ = cameras.level_size(photo, 0)
    width, height = cameras.level_size(photo, level)
    left = math.ceil((full_width // 2) * width / full_width)
    return Crop(left, 0, width, height) if left < width else None


def fit_appearance(
    model: EvaluatedModel,
    cameras: Cameras,
    photo: int,
    target: Tensor,  # [h, w, 3] level 0
    counted: Tensor,  # [h, w] bool
    config: Config,
    *,
    start: Tensor,  # [A]
    on_rays: Callable[[int], None] | None = None,
) -> Tensor:  # [A]
    """The appearance that explains the left half of a photo best, all else frozen.

    Adam with a rate that falls to a tenth, from ``start``, over ``eval.appearance_steps`` batches of
    ``eval.appearance_rays`` pixels in an order that depends on nothing but the size of the photo.
    """
    appearance = start.clone().requires_grad_()
    pixel = counted[:, : counted.shape[1] // 2].nonzero()  # [K, 2] y, x
    steps, batch = config.eval.appearance_steps, config.eval.appearance_rays
    if appearance.numel() == 0 or len(pixel) == 0 or steps == 0:
        return start
    generator = torch.Generator().manual_seed(FIT_SEED)
    optimiser = torch.optim.Adam([appearance], lr=config.eval.appearance_lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.1 ** (1 / steps))
    with _frozen(model.field), torch.enable_grad():
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


def level_share(share: Tensor, octree: Octree) -> dict[str, float]:
    """Which part of the compositing weight ``share`` [M] each octree level answered; the parts sum to 1."""
    share = share.double().cpu()
    by_level = torch.zeros(int(octree.level.max()) + 1, dtype=torch.float64)
    by_level.index_add_(0, octree.level.cpu(), share[: octree.num_nodes])
    total = max(float(share.sum()), 1e-12)
    shares = {str(level): float(value) / total for level, value in enumerate(by_level.tolist())}
    shares[BACKGROUND] = float(share[octree.num_nodes :].sum()) / total
    return shares


@contextmanager
def _frozen(fields: Freezable) -> Iterator[None]:
    fields.requires_grad_(False)
    try:
        yield
    finally:
        fields.requires_grad_(True)


def _batches(num_pixels: int, batch: int, count: int, generator: torch.Generator) -> Iterable[Tensor]:
    """``count`` batches of pixel indices [batch]; every pixel is used once before any is used again."""
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(count):
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(num_pixels, generator=generator)])
        chosen, order = order[:batch], order[batch:]
        yield chosen


def _score(tally: _Tally, level: int, rgb: Tensor, target: Tensor, counted: Tensor) -> ImageScores:
    scores = image_scores(rgb, target, counted)
    tally.add(level, scores, image_scores(colour_corrected(rgb, target, counted), target, counted))
    return scores


def _floor(target: Tensor, counted: Tensor, mean_colour: Tensor) -> float:
    return psnr(float((target - mean_colour)[counted].double().square().mean()))


def _image(name: str, scores: ImageScores, rendered: RenderedImage, node_bytes: Tensor) -> dict[str, Any]:
    return {
        "name": name,
        "psnr": scores.psnr,
        "ssim": scores.ssim,
        "nodes_touched": int(rendered.touched.sum()),
        "bytes_touched": int(node_bytes[rendered.touched].sum()),
    }


def _summary(tally: _Tally, scene: Scene) -> dict[str, Any]:
    """Means over the photos of each level, and over the levels; levels whose pixels are all masked are left out."""
    if not tally.plain or not tally.plain[0]:
        raise InputError("The masks leave no pixel of the test photos to score; name others in scene.test_list.")
    levels = []
    for level, scores in enumerate(tally.plain):
        width, height = scene.cameras.level_size(scene.test[0], level)
        if scores:
            levels.append({"level": level, "width": width, "height": height} | _mean(scores))
    corrected = [_mean(scores) for scores in tally.corrected if scores]
    return {
        **_over_levels(levels),
        "psnr0_floor": float(np.mean(tally.floor)),
        "levels": levels,
        "images": tally.images,
        "colour_corrected": _over_levels(corrected),
    }


def _mean(scores: list[ImageScores]) -> dict[str, float]:
    return {
        "psnr": float(np.mean([score.psnr for score in scores])),
        "ssim": float(np.mean([score.ssim for score in scores])),
    }


def _over_levels(levels: list[dict[str, Any]]) -> dict[str, float]:
    return {
        "psnr": float(np.mean([level["psnr"] for level in levels])),
        "ssim": float(np.mean([level["ssim"] for level in levels])),
        "psnr0": levels[0]["psnr"],
        "ssim0": levels[0]["ssim"],
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value
