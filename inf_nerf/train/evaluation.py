"""Scores of held-out photos at every pyramid level; repeatable to the last bit.

Two protocols (Liang et al. 2024, supplement 2.1; NeRF in the Wild, section 5):

* ``plain`` renders whole test photos with the mean appearance of the training photos.
* ``right_half`` fits a fresh appearance vector to the left half of each test photo, with everything else frozen, and
  scores the right half, cropped before SSIM.  Nothing of the fit is kept.

Both are also scored after a per-photo affine colour correction.  docs/evaluation.md documents the result.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.octree.borders import Borders
from inf_nerf.octree.topology import Octree
from inf_nerf.render.images import Crop, PartRenderer, RayRenderer, RenderedImage, chunk_rays, render_image
from inf_nerf.render.parallel import ordered_map
from inf_nerf.scene.cameras import Cameras
from inf_nerf.scene.photos import area_resize
from inf_nerf.scene.scene import Scene
from inf_nerf.train.appearance import fit_appearance
from inf_nerf.train.distances import BandSums, DepthErrors, PointsOfPhotos, band_sums
from inf_nerf.train.metrics import ImageScores, colour_corrected, compare_images, image_scores, psnr
from inf_nerf.train.perceptual import Lpips
from inf_nerf.train.seams import SeamErrors, seam_errors

DIGITS = 6  # decimals kept in the result
BACKGROUND = "background"  # the field outside the root cube, in shares of levels
SCORES = ("psnr", "ssim", "lpips")
NO_LPIPS = "eval.lpips_backbone names no weights of AlexNet or VGG-16"

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
    @property
    def subtrees(self) -> Mapping[int, int]: ...  # rank by key of the root


@dataclass(frozen=True)
class View:
    """One rendered test photo at level 0, for pictures."""

    name: str
    photo: Tensor  # [h, w, 3]
    rendered: RenderedImage
    scores: ImageScores


@dataclass(frozen=True)
class _Part:
    """What one photo scored under one protocol; levels without a pixel that counts are left out."""

    plain: dict[int, ImageScores]  # by pyramid level
    corrected: dict[int, ImageScores]
    floor: float | None  # of level 0
    image: dict[str, Any] | None  # level 0
    share: Tensor  # [M] compositing weight of each node over all levels
    seams: SeamErrors  # of level 0, colour-corrected
    bands: BandSums  # of level 0
    depth: DepthErrors  # of level 0
    view: View | None  # level 0


def evaluate(
    checkpoint: Evaluated,
    config: Config,
    read: PhotoReader,
    *,
    workers: int = 1,
    on_rays: Callable[[int], None] | None = None,
    on_view: Callable[[View], None] | None = None,
) -> dict[str, Any]:
    """Score all test photos; the result is what ``eval.json`` holds.

    ``read`` gives a photo's level 0 [h, w, 3] and its mask [h, w] or None.  ``workers`` photos are scored at the same
    time, or so many chunks of one photo where the model answers part by part.  ``on_rays`` hears how many rays were
    finished (:func:`work` says how many there are), ``on_view`` gets each level-0 picture of the plain protocol, in
    order; the former and ``read`` are called from the workers.  Raises :class:`InputError` if there is nothing to
    score, or no network where ``eval.lpips_backbone`` says.
    """
    scene, model = checkpoint.scene, checkpoint.model
    require_test_photos(scene)
    in_parts = isinstance(model, PartRenderer)
    scorer = _Scorer(checkpoint, config, read, on_rays, workers if in_parts else 1)
    whole: list[_Part] = []
    right: list[_Part] = []
    with _frozen(model.field), closing(ordered_map(scorer.score, scene.test, 1 if in_parts else workers)) as scored:
        for plain, half in scored:
            if on_view is not None and plain.view is not None:
                on_view(plain.view)
            whole.append(replace(plain, view=None))  # pictures of all photos would fill the memory
            if half is not None:
                right.append(replace(half, view=None))
    result = _summary(whole, scene)
    result["num_nodes"] = model.octree.num_nodes
    result["model_bytes"] = int(scorer.node_bytes.sum())
    result["level_share"] = level_share(torch.stack([part.share for part in whole]).sum(dim=0), model.octree)
    result["seams"] = sum((part.seams for part in whole), SeamErrors()).figures()
    result["distance_bands"] = sum((part.bands for part in whole), BandSums()).figures()
    result["depth"] = sum((part.depth for part in whole), DepthErrors()).figures()
    if config.eval.lpips_backbone is None:
        result["lpips_missing"] = NO_LPIPS
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


class _Scorer:
    """Scores one photo after the other; safe to call from several threads."""

    def __init__(
        self,
        checkpoint: Evaluated,
        config: Config,
        read: PhotoReader,
        on_rays: Callable[[int], None] | None,
        workers: int,  # chunks of a picture rendered at the same time
    ) -> None:
        self.model = checkpoint.model
        self.scene = checkpoint.scene
        self.config = config
        self.read = read
        self.on_rays = on_rays
        self.workers = workers
        self.mean_appearance = self.model.appearance.detach()[self.scene.train].mean(dim=0)  # [A]
        self.mean_colour = torch.as_tensor(checkpoint.mean_colour, dtype=torch.float32).cpu()  # [3]
        self.node_bytes = torch.as_tensor(checkpoint.node_bytes, dtype=torch.int64).cpu()  # [M]
        self.borders = Borders(self.model.octree.to("cpu"), checkpoint.subtrees)
        self.points = PointsOfPhotos(self.scene)
        backbone = config.eval.lpips_backbone
        self.lpips = Lpips.load(backbone) if backbone is not None else None

    def score(self, photo: int) -> tuple[_Part, _Part | None]:
        """The plain protocol, and the right-half one if it is switched on."""
        pixels, mask = self.read(photo)
        cameras = self.scene.cameras
        levels = range(self.config.scene.pyramid_levels)
        targets = [level_target(pixels, mask, cameras, photo, level) for level in levels]
        plain = self._part(photo, targets, [_whole(target) for target, _ in targets], self.mean_appearance)
        if not self.config.eval.right_half:
            return plain, None
        appearance = fit_appearance(
            self._left_half(photo),
            cameras,
            photo,
            *targets[0],
            self.config.eval,
            start=self.mean_appearance,
            on_rays=self.on_rays,
        )
        crops = [right_half(cameras, photo, level) for level in levels]
        return plain, self._part(photo, targets, crops, appearance)

    def _left_half(self, photo: int) -> RayRenderer:
        """What answers the rays that an appearance is fitted to: one set of nodes for all steps."""
        if not isinstance(self.model, PartRenderer):
            return self.model
        width, height = self.scene.cameras.level_size(photo, 0)
        return self.model.view(self.scene.cameras, photo, 0, Crop(0, 0, max(1, width // 2), height))

    def _part(
        self, photo: int, targets: list[tuple[Tensor, Tensor]], crops: Sequence[Crop | None], appearance: Tensor
    ) -> _Part:
        plain: dict[int, ImageScores] = {}
        corrected: dict[int, ImageScores] = {}
        share = torch.zeros(len(self.node_bytes), dtype=torch.float64)
        floor, image, view = None, None, None
        seams, bands, depth = SeamErrors(), BandSums(), DepthErrors()
        for level, ((target, counted), crop) in enumerate(zip(targets, crops, strict=True)):
            if crop is None:
                continue
            target, counted = target[:, crop.left :], counted[:, crop.left :]
            if not bool(counted.any()):
                continue
            rendered = self._render(photo, level, crop, appearance)
            share += rendered.share.double()
            plain[level], maps = compare_images(rendered.rgb, target, counted, self.lpips)
            in_its_colours = colour_corrected(rendered.rgb, target, counted)
            corrected[level] = image_scores(in_its_colours, target, counted, self.lpips)
            if level == 0:
                if crop.left == 0:
                    rays = self.scene.cameras.image_rays(photo, 0)
                    difference = in_its_colours - target
                    seams = seam_errors(self.borders, rays, rendered, difference, counted)
                    bands = band_sums(rendered, maps, difference.double().square().mean(-1), counted)
                    depth = self.points.errors(photo, rendered)
                name = self.scene.photos[photo].name
                floor = psnr(float((target - self.mean_colour)[counted].double().square().mean()))
                image = {
                    "name": name,
                    **asdict(plain[level]),
                    "psnr_corrected": corrected[level].psnr,
                    "nodes_touched": int(rendered.touched.sum()),
                    "bytes_touched": int(self.node_bytes[rendered.touched].sum()),
                }
                view = View(name, target, rendered, plain[level])
        return _Part(plain, corrected, floor, image, share, seams, bands, depth, view)

    def _render(self, photo: int, level: int, crop: Crop, appearance: Tensor) -> RenderedImage:
        return render_image(
            self.model,
            self.scene.cameras,
            photo,
            level,
            rays_per_chunk=chunk_rays(self.config.eval.chunk_samples, self.config.sampler.max_samples),
            appearance=appearance,
            crop=crop,
            workers=self.workers,
            on_rays=self.on_rays,
        )


def _whole(target: Tensor) -> Crop:
    height, width = target.shape[:2]
    return Crop(0, 0, width, height)


def _summary(parts: list[_Part], scene: Scene) -> dict[str, Any]:
    """Means over the photos of each level, and over the levels; levels whose pixels are all masked are left out."""
    if not any(0 in part.plain for part in parts):
        raise InputError("The masks leave no pixel of the test photos to score; name others in scene.test_list.")
    levels, corrected = [], []
    for level in sorted({level for part in parts for level in part.plain}):
        width, height = scene.cameras.level_size(scene.test[0], level)
        size = {"level": level, "width": width, "height": height}
        levels.append(size | _mean([part.plain[level] for part in parts if level in part.plain]))
        corrected.append({"level": level} | _mean([part.corrected[level] for part in parts if level in part.corrected]))
    return {
        **_over_levels(levels),
        "psnr0_floor": float(np.mean([part.floor for part in parts if part.floor is not None])),
        "levels": levels,
        "images": [part.image for part in parts if part.image is not None],
        "colour_corrected": {**_over_levels(corrected), "levels": corrected},
    }


def _mean(scores: Sequence[ImageScores]) -> dict[str, float | None]:
    """The mean of each score; None where one is missing."""
    return {name: _mean_of([getattr(score, name) for score in scores]) for name in SCORES}


def _over_levels(levels: list[dict[str, Any]]) -> dict[str, float | None]:
    means = {name: _mean_of([level[name] for level in levels]) for name in SCORES}
    return means | {f"{name}0": levels[0][name] for name in SCORES}


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value
