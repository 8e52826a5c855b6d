"""Whole training steps on the same fixed samples: sort, field, compositing, squared error, backward, Adam.

The row ``threads`` says what more threads gain.  Beside the step it times what no program can do better: the step's
matrix products and its random accesses to tables of its own sizes, and nothing else.  The gain of the step over the
gain of that is what the program itself loses.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.limits import CORNERS, gather, in_threads, places, update
from benchmarks.pairing import Candidate, Case
from benchmarks.rows.field import PASSES
from benchmarks.torch_loop import TorchLoop
from benchmarks.workload import TWIN_ROUNDS, Workload, make_field, make_workload
from inf_nerf.config import TrainConfig
from inf_nerf.field.field import Field
from inf_nerf.field.heads import CHUNK
from inf_nerf.render.compositing import along_rays, composite
from inf_nerf.train.optimiser import NodeAdam


class PackedStep:
    """The library's field and optimiser on fixed samples, put together as its renderer does."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.optimiser = NodeAdam(TrainConfig(), field, nn.Parameter(torch.zeros(0)))

    def loss(self, work: Workload) -> Tensor:
        """Mean squared error of the rays' colours, sorting included."""
        node, order = torch.sort(work.node, stable=True)
        back = torch.argsort(order)
        ray = work.ray[order]
        looks = work.direction.new_zeros(work.num_rays, 0)
        sigma, rgb = self.field.radiance(work.local[order], node, work.direction, looks, ray)
        weights, _ = composite(sigma[back], work.delta, work.ray, work.num_rays)
        return (along_rays(weights, rgb[back], work.ray, work.num_rays) - work.target).square().mean()

    def step(self, work: Workload) -> None:
        """One training step."""
        self.loss(work).backward()
        self.optimiser.step(1e-2)


def steps(nodes: Sequence[int], threads: Sequence[int], num_rays: int) -> Iterator[Case]:
    """Row ``step``."""
    for count in nodes:
        work = make_workload(count, num_rays)
        packed, twin = PackedStep(make_field(count)), PackedStep(make_field(count, "torch"))
        loop = TorchLoop.for_workload(packed.field, work)
        indexed = TorchLoop.for_workload(packed.field, work, "index")
        sliced = TorchLoop.for_workload(packed.field, work, "one table")
        for used in threads:
            yield Case(
                "step",
                count,
                used,
                [
                    Candidate("ours", lambda work=work, packed=packed: packed.step(work)),
                    Candidate("torch loop", lambda work=work, loop=loop: loop.step(work)),
                    Candidate("torch loop, table[index]", lambda work=work, loop=indexed: loop.step(work), rounds=3),
                    Candidate("torch loop, one table", lambda work=work, loop=sliced: loop.step(work), rounds=3),
                    Candidate("torch twin", lambda work=work, twin=twin: twin.step(work), rounds=TWIN_ROUNDS),
                ],
            )


def gains(nodes: Sequence[int], threads: Sequence[int], num_rays: int) -> Iterator[Case]:
    """Row ``threads``: the step and its GEMM + gather with every number of threads, all in one case."""
    for count in nodes:
        work = make_workload(count, num_rays)
        packed = PackedStep(make_field(count))
        floor = Floor(packed.field, work.num_samples)
        candidates = []
        for used in threads:
            candidates.append(Candidate("step", lambda work=work, packed=packed: packed.step(work), threads=used))
            candidates.append(Candidate("GEMM + gather", floor.run, threads=used))
        yield Case("threads", count, max(threads), candidates)


class Floor:
    """A step's matrix products and random accesses, at the machine's best."""

    def __init__(self, field: Field, samples: int) -> None:
        self.samples = samples
        self.tables = [np.ones(size) for size in field.spec.sizes]
        layers = [pair for sizes in (field.density_sizes, field.colour_sizes) for pair in pairwise(sizes)]
        self.products = [(torch.ones(CHUNK, wide), torch.ones(wide, out)) for wide, out in layers]

    def run(self) -> None:
        """Forward and backward with as many threads as torch uses."""
        for _ in range(0, PASSES * self.samples, CHUNK):
            for x, weights in self.products:
                torch.mm(x, weights)
        parts = torch.get_num_threads()
        each = CORNERS * self.samples // parts // 8 * 8
        for table in self.tables:
            in_threads(gather, [(table, places(len(table), part, each)) for part in range(parts)])
        levels = [self.tables[part::parts] for part in range(parts)]  # a level's gradient belongs to one thread
        in_threads(self._update, [(owned,) for owned in levels])

    def _update(self, tables: list[NDArray[np.float64]]) -> None:
        for table in tables:
            update(table, places(len(table), 0, CORNERS * self.samples))
