"""Rays that all ranks answer together: ranks trade colour and transmittance per segment, and the result is that of one
process that holds the whole tree.

Letters: W ranks; R rays of all ranks, Q samples of this rank, S segments of all ranks.

Every rank gets the rays that all ranks drew, and answers of each the samples in its own nodes; those in shared nodes,
and what lies beyond the cube, are answered by the rank that drew the ray.  First the ranks tell each other the optical
depths of their segments (:mod:`inf_nerf.render.segments`), so that each knows which of its samples light reaches, then
what their segments look like.  Every rank composites whole rays from all segments and computes the same losses; it
keeps the gradients of its own segments alone, so these are exact, and nothing has to travel back.
"""

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from inf_nerf.render.compositing import DARK, OPAQUE_DEPTH, sum_before
from inf_nerf.render.foreground import radiance
from inf_nerf.render.model import Model
from inf_nerf.render.sampling import Part, cube_span
from inf_nerf.render.segments import join, segments_of, subtree_roots, summed
from inf_nerf.scene.cameras import Rays
from inf_nerf.train.losses import Seen
from inf_nerf.train.shared_gradients import Traffic, distributed


@dataclass(frozen=True)
class JoinedRays:
    """The rays of all ranks, in the order of the ranks, with whatever numbers belong to them."""

    rays: Rays  # R
    beside: Tensor  # [R, C] float32
    rank: Tensor  # [R] int64 that drew each


class Exchange:
    """This rank's end of the trade."""

    def __init__(self, model: Model, shared: Tensor, rank: int) -> None:
        """``shared`` [N] bool: the octree's nodes that all ranks hold."""
        self._model = model
        self._shared = shared
        self._root = subtree_roots(model.octree, shared)
        self._rank = rank
        self.traffic = Traffic()

    @property
    def num_ranks(self) -> int:
        """Number of ranks W."""
        return dist.get_world_size() if distributed() else 1

    def rays(self, *sets: tuple[Rays, Tensor]) -> list[JoinedRays]:
        """Join several sets of rays, each with numbers [R', C] beside, over all ranks."""
        tables = [
            torch.cat(
                (rays.origin, rays.direction, rays.radius[:, None], _as_float(rays.photo)[:, None], beside), dim=1
            )
            for rays, beside in sets
        ]
        joined = []
        for parts in self._gather(*tables):
            rank = torch.repeat_interleave(
                torch.arange(len(parts), device=parts[0].device),
                torch.tensor([len(part) for part in parts], device=parts[0].device),
            )
            whole = torch.cat(parts)
            rays = Rays(whole[:, :3], whole[:, 3:6], whole[:, 6], _as_int(whole[:, 7]))
            joined.append(JoinedRays(rays, whole[:, 8:], rank))
        return joined

    def render(
        self,
        rays: Rays,  # R, the same on all ranks
        rank: Tensor,  # [R] that drew each
        generator: torch.Generator | None,  # in the same state on all ranks
        backdrop: Tensor,  # [3]
    ) -> Seen:
        """What the rays see, as :meth:`Model.render` of the whole tree finds it; gradients reach this rank's part."""
        model, num_rays, drawn = self._model, len(rays), rank == self._rank
        span = cube_span(rays, model.config.sampler.near)
        looks, leave = model.looks(rays), torch.where(span[1] > span[0], span[1], 0.0)
        lit = model.lit_samples(rays, generator, Part(self._shared, drawn))
        segments = segments_of(lit.samples, model.octree, self._root)

        # what hides what: the optical depths of all segments
        tau = (lit.density * lit.samples.delta).double().clamp_max(OPAQUE_DEPTH)
        depth = tau.new_zeros(len(segments)).index_add(0, segments.of_sample, tau)
        (parts,) = self._gather(
            torch.cat(
                (_as_float(segments.ray)[:, None], segments.start[:, None], depth[:, None].view(torch.float32)), 1
            )
        )
        first = sum(len(part) for part in parts[: self._rank])  # of this rank's segments
        mine = slice(first, first + len(segments))
        table = torch.cat(parts)
        ray, start, depths = _as_int(table[:, 0]), table[:, 1], table[:, 2:].contiguous().view(torch.float64)[:, 0]
        order = torch.argsort(start, stable=True)
        order = order[torch.argsort(ray[order], stable=True)]
        in_front = torch.empty_like(depths)
        in_front[order] = sum_before(depths[order], ray[order], num_rays)
        reached = in_front < DARK

        # the samples that light reaches
        inside = sum_before(tau, segments.of_sample, len(segments)).clamp_min(0)  # rounding must not reach anything
        before = in_front[mine][segments.of_sample] + inside
        kept = torch.nonzero(before < DARK).squeeze(1)
        lit = lit.keep(kept, (before + tau >= DARK)[kept])
        segments = segments_of(lit.samples, model.octree, self._root)
        sigma, rgb = radiance(lit, model.octree, model.field, rays.direction, looks)
        values = summed(sigma, rgb, lit.delta, lit.samples, segments, span)
        remaining = torch.exp(-depths.new_zeros(num_rays).index_add(0, ray, depths)).float()
        behind, beyond = model.behind(rays, looks, leave, remaining, generator, drawn)
        behind = behind[drawn]
        count = torch.full((1, 1), float(len(lit.samples)), device=values.device)

        values_of, behind_of, counts = self._gather(values.detach(), behind.detach(), count)
        values_of[self._rank], behind_of[self._rank] = values, behind
        places = torch.nonzero(reached).squeeze(1)  # in the order of the ranks, as the values are
        place_in_ray = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        which = torch.argsort(place_in_ray[places])
        joined = join(torch.cat(values_of)[which], ray[places[which]], span)
        by_rank = torch.argsort(rank, stable=True)
        behind = torch.zeros_like(joined.rgb).index_copy(0, by_rank, torch.cat(behind_of))
        behind = torch.where(beyond[:, None], behind, backdrop)
        if generator is not None:
            model.adapt_steps(int(sum(float(part) for part in counts)), num_rays)
        return Seen(
            rgb=joined.rgb + joined.light[:, None] * behind,
            depth=joined.distance + joined.light * leave,
            spread=joined.spread,
            weight=torch.ones(num_rays, device=span[0].device),
            node=lit.samples.node,
            num_samples=lit.num_asked,
        )

    def _gather(self, *tables: Tensor) -> list[list[Tensor]]:
        """For each table [n, C] of float32, where n may differ from rank to rank, those of all ranks."""
        if not distributed():
            return [[table] for table in tables]
        began = time.perf_counter()
        device, num_ranks = tables[0].device, self.num_ranks
        rows = torch.tensor([len(table) for table in tables], device=device)
        rows_of = [torch.empty_like(rows) for _ in range(num_ranks)]
        dist.all_gather(rows_of, rows)
        widths = [table.shape[1] for table in tables]
        sizes = [[n * width for n, width in zip(each.tolist(), widths, strict=True)] for each in rows_of]
        flat = torch.zeros(max(1, *(sum(each) for each in sizes)), device=device)
        own = torch.cat([table.reshape(-1) for table in tables])
        flat[: len(own)] = own
        found = [torch.empty_like(flat) for _ in range(num_ranks)]
        dist.all_gather(found, flat)
        self.traffic.bytes_sent += own.numel() * own.element_size()
        self.traffic.seconds += time.perf_counter() - began
        split = [each[: sum(size)].split(size) for each, size in zip(found, sizes, strict=True)]
        return [[part[i].view(-1, width) for part in split] for i, width in enumerate(widths)]


def _as_float(whole: Tensor) -> Tensor:
    """Whole numbers as float32 of the same bits, to travel in a table."""
    return whole.to(torch.int32).view(torch.float32)


def _as_int(bits: Tensor) -> Tensor:
    """int64 numbers from what :func:`_as_float` made of them."""
    return bits.contiguous().view(torch.int32).to(torch.int64)
