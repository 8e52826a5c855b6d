"""A model whose nodes lie in a store: each picture is rendered by a model of the nodes that it can ask.

Where these do not fit into memory, the picture is split into halves until those of a part do; where not even the
smallest part's do, those are taken in or above which most of its surface lies, and parents answer for the others.
Where the surface lies is seen by asking the root alone, for one ray in PROBE x PROBE.  Where there is room for the root
alone, the backdrop is seen beyond the cube.  What is rendered depends on the view and the budget alone, never on what
was held before.

Letters: N nodes of the whole octree, m field nodes of a view, B blocks of a picture, R rays.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from inf_nerf.octree.routing import route
from inf_nerf.octree.topology import Octree
from inf_nerf.render.images import Crop, PicturePart, chunk_rays
from inf_nerf.render.model import Model, Rendered
from inf_nerf.render.node_cache import NodeCache
from inf_nerf.render.working_set import Bundles, working_set
from inf_nerf.scene.cameras import Cameras, Rays

BLOCK = 32  # pixels along a side of the smallest part
PROBE = 8  # one ray in so many along a side tells where the surface is
MOST_PROBES = 1024  # of any rays

View = tuple[Cameras, int, int, Crop, float]  # a picture: cameras, photo, level, crop, octaves mixed
Plan = list[tuple[Crop, Tensor]]  # the parts of a picture and the nodes of each, ascending


@dataclass(frozen=True)
class Surface:
    """Where rays meet something, as far as the root can tell."""

    key: Tensor  # [R] int64, of the node that the whole octree would ask there
    level: Tensor  # [R] its level
    opacity: Tensor  # [R] int64, in 255ths, so that sums are exact

    def __getitem__(self, index: Tensor) -> "Surface":
        return Surface(self.key[index], self.level[index], self.opacity[index])

    def below(self, octree: Octree, nodes: Tensor) -> Tensor:
        """How much of it [n] lies in each of ``nodes`` [n], ascending, or below; never more than in its parent."""
        keys = octree.keys[nodes].cpu()
        held = torch.zeros_like(keys)
        for level in octree.level[nodes].unique().tolist():
            deep = self.level >= level
            ancestor = self.key[deep] >> 3 * (self.level[deep] - level)
            place = torch.searchsorted(keys, ancestor).clamp_max(len(keys) - 1)
            held.index_add_(0, place, torch.where(keys[place] == ancestor, self.opacity[deep], 0))
        return held


class StoredModel:
    """Answers pictures like :class:`Model`, holding no more nodes than its cache has rows."""

    def __init__(self, scenery: Model, octree: Octree, cache: NodeCache) -> None:
        """``scenery`` is a model over any part of ``octree``, of which all but the nodes is used."""
        self.octree = octree
        self.cache = cache
        self._scenery = scenery if cache.holds_background else scenery.without_background()
        self._next: tuple[View, Plan] | None = None  # what the next picture will be, and after it, if anybody said
        self._after: tuple[View, Plan] | None = None

    def seen(self, octaves: float, box: Tensor | None, around: Tensor) -> "StoredModel":
        """As :meth:`Model.seen`, on the same cache."""
        return StoredModel(self._scenery.seen(octaves, box, around), self.octree, self.cache)

    @property
    def field(self) -> Any:
        """The values that are held; they only answer."""
        return self._scenery.field

    @property
    def appearance(self) -> Tensor:
        """Appearance vectors [V, A]."""
        return self._scenery.appearance

    def render(self, rays: Rays, *, lod_blend: float = 0.0, appearance: Tensor | None = None) -> Rendered:
        """What rays see, coarser where their nodes do not fit; ``touched`` and ``share`` [m] are of the nodes held."""
        return self.for_rays(rays, lod_blend).render(rays, lod_blend=lod_blend, appearance=appearance)

    def fits(self, rays: Rays, lod_blend: float = 0.0) -> bool:
        """Whether all nodes that rays can ask fit, so that nothing has to be coarser."""
        return len(self._asked(Bundles.of(rays, self._footprint_px), lod_blend)) <= self.cache.room

    def for_rays(self, rays: Rays, lod_blend: float = 0.0) -> Model:
        """A model for rays, until the next one is asked for; coarser where their nodes do not fit."""
        bundle = Bundles.of(rays, self._footprint_px)
        some = torch.arange(0, len(rays), -(-len(rays) // MOST_PROBES))
        nodes = self._asked(bundle, lod_blend)
        return self._hold(self._fitting(bundle.centre, nodes, lambda: self._surface(rays[some])))

    def view(self, cameras: Cameras, photo: int, level: int, crop: Crop) -> Model:
        """A model for any rays of a part of a picture, until the next view; coarser where its nodes do not fit."""
        bundle = block_bundles(cameras, photo, level, crop, self._footprint_px).joined()
        nodes = self._asked(bundle, 0.0)
        return self._hold(
            self._fitting(bundle.centre, nodes, lambda: self._surface(probes(cameras, photo, level, crop)[0]))
        )

    def parts(self, cameras: Cameras, photo: int, level: int, crop: Crop, lod_blend: float) -> Iterator[PicturePart]:
        """Parts of a picture, each with a model for it that answers until the next one is asked for."""
        view = (cameras, photo, level, crop, lod_blend)
        plan = self._next[1] if self._next is not None and self._next[0] == view else self._plan(*view)
        self._next, self._after = self._after, None
        model = self._hold(plan[0][1])
        for place, (part, nodes) in enumerate(plan):
            if place and not torch.equal(nodes, plan[place - 1][1]):
                model = self._hold(nodes)
            if place + 1 < len(plan):
                self.cache.prefetch(self.octree.keys[plan[place + 1][1]])
            elif self._next is not None:
                self.cache.prefetch(self.octree.keys[self._next[1][0][1]])
            yield PicturePart(part, model, torch.cat((nodes, torch.tensor([self.octree.num_nodes]))))

    def expect(self, cameras: Cameras, photo: int, level: int, lod_blend: float) -> None:
        """Say which picture comes after the next one, so that its nodes are read while that is rendered."""
        view = (cameras, photo, level, Crop(0, 0, *cameras.level_size(photo, level)), lod_blend)
        self._after = view, self._plan(*view)

    @property
    def _footprint_px(self) -> float:
        return self._scenery.config.octree.footprint_px

    def _hold(self, nodes: Tensor) -> Model:
        keys = self.octree.keys[nodes]
        return self._scenery.over(self.octree.restrict(keys.tolist()), *self.cache.hold(keys))

    def _asked(self, bundle: Bundles, lod_blend: float) -> Tensor:
        return working_set(self.octree, bundle, lod_blend, near=self._scenery.config.sampler.near)

    def _surface(self, rays: Rays) -> Surface:
        """What the root alone sees of the surface; it is held from here on."""
        root, config, octree = self._hold(torch.zeros(1, dtype=torch.int64)), self._scenery.config, self.octree
        found, opacity = [], []
        size = chunk_rays(config.eval.chunk_samples, config.sampler.max_samples)
        for start in range(0, len(rays), size):
            chunk = rays[start : start + size].to(self.appearance.device)
            with torch.no_grad():
                seen = root.render(chunk)
            xyz = chunk.origin + seen.depth[:, None] * chunk.direction
            found.append(route(octree, xyz, seen.depth * chunk.radius * self._footprint_px)[0])
            opacity.append(seen.opacity)
        node = torch.cat(found)
        return Surface(
            octree.keys[node].cpu(), octree.level[node].cpu(), (torch.cat(opacity) * 255).round().long().cpu()
        )

    def _plan(self, cameras: Cameras, photo: int, level: int, crop: Crop, lod_blend: float) -> Plan:
        """The parts of a picture and the nodes of each, ascending; parts with much in common follow each other."""
        blocks = block_bundles(cameras, photo, level, crop, self._footprint_px)
        across = -(-crop.width // BLOCK)

        @cache
        def surface() -> tuple[Surface, Tensor]:  # and the block of each of its rays
            rays, xy = probes(cameras, photo, level, crop)
            return self._surface(rays), xy[:, 1] // BLOCK * across + xy[:, 0] // BLOCK

        def surface_of(block: Tensor) -> Surface:
            seen, of_block = surface()
            return seen[of_block == block]

        def split(left: int, top: int, right: int, bottom: int) -> Plan:  # in blocks
            index = torch.arange(top, bottom)[:, None] * across + torch.arange(left, right)
            bundle = blocks[index.flatten()].joined()
            nodes = self._asked(bundle, lod_blend)
            wide, high = right - left, bottom - top
            part = Crop(
                crop.left + left * BLOCK,
                crop.top + top * BLOCK,
                min(crop.right, crop.left + right * BLOCK),
                min(crop.bottom, crop.top + bottom * BLOCK),
            )
            if len(nodes) <= self.cache.room or wide == high == 1:
                return [(part, self._fitting(bundle.centre, nodes, lambda: surface_of(index[0, 0])))]
            if wide >= high:
                middle = left + wide // 2
                halves = split(left, top, middle, bottom), split(middle, top, right, bottom)
            else:
                middle = top + high // 2
                halves = split(left, top, right, middle), split(left, middle, right, bottom)
            first, second = halves[0][0][1], halves[1][0][1]
            if len(halves[0]) == len(halves[1]) == 1 and torch.equal(first, second):
                return [(part, first)]  # what was coarsened to the same nodes
            return [*halves[0], *halves[1]]

        return sorted(split(0, 0, across, -(-crop.height // BLOCK)), key=lambda part: part[1].tolist())

    def _fitting(self, centre: Tensor, nodes: Tensor, surface: Callable[[], Surface]) -> Tensor:
        """``nodes`` [n] if they and the background fit; else those with most of the surface, which is not looked for
        before, in or below them; among equals the coarsest, then the largest from ``centre`` [1, 3]."""
        room = self.cache.room
        if len(nodes) <= room:
            return nodes
        level = self.octree.level[nodes].cpu()
        away = (self.octree.centre[nodes].double().cpu() - centre).norm(dim=1)
        order = torch.argsort(away / self.octree.half[nodes].double().cpu(), stable=True)
        order = order[torch.argsort(level[order], stable=True)]
        held = surface().below(self.octree, nodes)
        order = order[torch.argsort(held[order], descending=True, stable=True)]
        return torch.sort(nodes[order[:room]]).values


def probes(cameras: Cameras, photo: int, level: int, crop: Crop) -> tuple[Rays, Tensor]:
    """One ray in PROBE x PROBE of a picture's part, and its pixel [R, 2] counted from the part's corner."""
    y, x = torch.meshgrid(torch.arange(0, crop.height, PROBE), torch.arange(0, crop.width, PROBE), indexing="ij")
    xy = torch.stack((x, y), dim=-1).reshape(-1, 2)
    view = torch.full((len(xy),), photo)
    rays = cameras.rays(view, torch.full_like(view, level), xy + torch.tensor([crop.left, crop.top]))
    return replace(rays, photo=torch.full_like(view, -1)), xy


def block_bundles(cameras: Cameras, photo: int, level: int, crop: Crop, footprint_px: float) -> Bundles:
    """The bundle of each block [B] of BLOCK x BLOCK pixels (fewer at the right and lower side), row by row."""
    rows = []
    for top in range(crop.top, crop.bottom, BLOCK):
        y, x = torch.meshgrid(
            torch.arange(top, min(top + BLOCK, crop.bottom)), torch.arange(crop.left, crop.right), indexing="ij"
        )
        xy = torch.stack((x, y), dim=-1).reshape(-1, 2)
        view = torch.full((len(xy),), photo)
        rays = cameras.rays(view, torch.full_like(view, level), xy)
        rows.append(Bundles.of(rays, footprint_px, (xy[:, 0] - crop.left) // BLOCK))
    return Bundles.cat(rows)
