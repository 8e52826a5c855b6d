"""Whole pictures: the rays of one camera at one pyramid level, rendered in chunks.

h, w: size of the picture; M: nodes of the field (octree nodes, then the background); colours are sRGB-encoded in
[0, 1]; depths are distances along the unit ray in the scene frame.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from inf_nerf.octree.topology import Octree
from inf_nerf.render.parallel import ordered_map
from inf_nerf.scene.cameras import Cameras, Rays

SMALLEST_CHUNK = 256  # rays; fewer only waste time in overhead
LARGEST_CHUNK = 16_384
PER_PIXEL = ("rgb", "depth", "opacity", "level")
PER_NODE = ("touched", "share")


class ChunkOfRays(Protocol):
    """What rendering a batch of R rays yields."""

    @property
    def rgb(self) -> Tensor: ...  # [R, 3]
    @property
    def depth(self) -> Tensor: ...  # [R]
    @property
    def opacity(self) -> Tensor: ...  # [R]
    @property
    def level(self) -> Tensor: ...  # [R] mean octree level, weighted by contribution
    @property
    def touched(self) -> Tensor: ...  # [M] bool
    @property
    def share(self) -> Tensor: ...  # [M] compositing weight answered by each node
    @property
    def num_samples(self) -> int: ...


class RayRenderer(Protocol):
    """Anything that answers rays; the model of the library does."""

    def render(self, rays: Rays, *, lod_blend: float = ..., appearance: Tensor | None = ...) -> ChunkOfRays: ...


@dataclass(frozen=True)
class Crop:
    """The pixels ``top <= y < bottom`` and ``left <= x < right`` of a picture."""

    left: int
    top: int
    right: int
    bottom: int

    def __post_init__(self) -> None:
        if not (0 <= self.left < self.right and 0 <= self.top < self.bottom):
            raise ValueError(f"a crop needs at least one pixel, got {self}")

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


@dataclass(frozen=True)
class PicturePart:
    """A part of a picture and what answers its rays."""

    crop: Crop
    model: RayRenderer
    nodes: Tensor  # [m] which of the whole model's M nodes those of `model` are


@runtime_checkable
class PartRenderer(Protocol):
    """Anything that answers a picture part by part, each by other nodes."""

    @property
    def octree(self) -> Octree: ...  # of all nodes
    def view(self, cameras: Cameras, photo: int, level: int, crop: Crop) -> RayRenderer: ...
    def parts(
        self, cameras: Cameras, photo: int, level: int, crop: Crop, lod_blend: float
    ) -> Iterator[PicturePart]: ...


@dataclass(frozen=True)
class RenderedImage:
    """A rendered picture and what rendering it took."""

    rgb: Tensor  # [h, w, 3]
    depth: Tensor  # [h, w]
    opacity: Tensor  # [h, w]
    level: Tensor  # [h, w] mean octree level behind each pixel
    touched: Tensor  # [M] bool, nodes that were asked
    share: Tensor  # [M] compositing weight answered by each node, summed over the pixels
    num_samples: int


def chunk_rays(chunk_samples: int, samples_per_ray: int) -> int:
    """Rays in a chunk such that their candidate samples stay within ``chunk_samples``, but at least 256."""
    return min(max(chunk_samples // samples_per_ray, SMALLEST_CHUNK), LARGEST_CHUNK)


def render_image(
    model: RayRenderer | PartRenderer,
    cameras: Cameras,
    photo: int,
    level: int,
    *,
    rays_per_chunk: int,
    appearance: Tensor | None = None,
    crop: Crop | None = None,
    lod_blend: float = 0.0,
    workers: int = 1,
    on_rays: Callable[[int], None] | None = None,
) -> RenderedImage:
    """The picture that camera ``photo`` takes at pyramid ``level``, with rays of that level's own pixel size.

    ``appearance`` [A] is the appearance of every pixel; None takes the mean over the training photos, also where the
    camera belongs to a training photo.  ``crop`` restricts the picture to a rectangle of that level's pixels.
    ``workers`` threads render chunks at the same time.  ``on_rays`` hears the number of rays of each finished chunk.
    """
    width, height = cameras.level_size(photo, level)
    crop = crop or Crop(0, 0, width, height)
    if crop.right > width or crop.bottom > height:
        raise ValueError(f"{crop} does not lie in the {width} x {height} pixels of level {level}")
    chunks = partial(_in_chunks, cameras, photo, level, rays_per_chunk, appearance, lod_blend, workers, on_rays)
    if not isinstance(model, PartRenderer):
        return chunks(model, crop)
    picture = _blank(crop, model.octree.num_nodes + 1)
    num_samples = 0
    for part in model.parts(cameras, photo, level, crop, lod_blend):
        seen = chunks(part.model, part.crop)
        rows = slice(part.crop.top - crop.top, part.crop.bottom - crop.top)
        columns = slice(part.crop.left - crop.left, part.crop.right - crop.left)
        for name in PER_PIXEL:
            getattr(picture, name)[rows, columns] = getattr(seen, name)
        picture.touched[part.nodes] |= seen.touched
        picture.share[part.nodes] += seen.share
        num_samples += seen.num_samples
    return replace(picture, num_samples=num_samples)


def _in_chunks(
    cameras: Cameras,
    photo: int,
    level: int,
    rays_per_chunk: int,
    appearance: Tensor | None,
    lod_blend: float,
    workers: int,
    on_rays: Callable[[int], None] | None,
    model: RayRenderer,
    crop: Crop,
) -> RenderedImage:
    num_pixels = crop.width * crop.height

    @torch.no_grad()
    def chunk(start: int) -> tuple[dict[str, Tensor], int]:
        index = torch.arange(start, min(start + rays_per_chunk, num_pixels))
        xy = torch.stack([crop.left + index % crop.width, crop.top + index // crop.width], dim=-1)  # [R, 2]
        rays = cameras.rays(torch.full_like(index, photo), torch.full_like(index, level), xy)
        rays = replace(rays, photo=torch.full_like(index, -1))
        seen = model.render(rays, lod_blend=lod_blend, appearance=appearance)
        # Only what the picture needs: a chunk also holds its samples, and all of them together would fill the memory.
        return {name: getattr(seen, name).cpu() for name in (*PER_PIXEL, *PER_NODE)}, seen.num_samples

    chunks: list[dict[str, Tensor]] = []
    num_samples = 0
    for seen, asked in ordered_map(chunk, range(0, num_pixels, rays_per_chunk), workers):
        chunks.append(seen)
        num_samples += asked
        if on_rays is not None:
            on_rays(len(seen["depth"]))
    shape = (crop.height, crop.width)
    pixels = {name: torch.cat([seen[name] for seen in chunks]) for name in PER_PIXEL}
    return RenderedImage(
        rgb=pixels["rgb"].clamp(0.0, 1.0).reshape(*shape, 3),
        depth=pixels["depth"].reshape(shape),
        opacity=pixels["opacity"].reshape(shape),
        level=pixels["level"].reshape(shape),
        touched=torch.stack([seen["touched"] for seen in chunks]).any(dim=0),
        share=torch.stack([seen["share"] for seen in chunks]).sum(dim=0),
        num_samples=num_samples,
    )


def _blank(crop: Crop, num_nodes: int) -> RenderedImage:
    """A picture to be filled part by part."""
    shape = (crop.height, crop.width)
    return RenderedImage(
        rgb=torch.zeros(*shape, 3),
        depth=torch.zeros(shape),
        opacity=torch.zeros(shape),
        level=torch.zeros(shape),
        touched=torch.zeros(num_nodes, dtype=torch.bool),
        share=torch.zeros(num_nodes),
        num_samples=0,
    )
