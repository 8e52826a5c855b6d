"""The rival: the same fields as a loop over nodes in plain torch, as the authors' code has it, tuned as far as it goes.

Every node is a module of its own, with autograd and a fused Adam that skips nodes without gradients.  What was tried,
and is used here because it was faster: samples sorted by node once instead of a mask for every node; the eight corners
of a cell as rows of long vectors instead of columns of short ones; indices computed in int32; one parameter per level
(autograd makes a dense gradient of whatever a look-up reads from), or one for all dense and one for all hashed levels
where nodes have so few samples that calls cost more than work; pairs of features looked up as one complex number, which
beats ``table[index]``, ``embedding`` and ``embedding_bag`` forward and, by more, backward; heads in chunks.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.workload import Workload
from inf_nerf.config import TrainConfig
from inf_nerf.field.field import Field
from inf_nerf.field.hash_grid import PRIMES, GridSpec
from inf_nerf.field.heads import LEAK, layers_of, spherical_harmonics

# "index" looks up table[row] in a parameter for each level; "one table" is how one writes it at first: a node's levels
# are slices of one parameter, and the gradient of each is as long as the parameter
Lookup = Literal["complex", "index", "one table"]
ENCODE_CHUNK = 65_536  # samples; each chunk costs a dense gradient of what it read from
HEADS_CHUNK = 8192  # samples; activations of more leave the cache
FEW = 8192  # samples of a node below which all dense and all hashed levels are looked up at once


@dataclass(frozen=True)
class LevelGroup:
    """Levels that are encoded together: all dense or all hashed."""

    levels: slice
    hashed: bool
    scale: Tensor  # [G, 1]
    stride: Tensor  # [3, G, 1] int32: what a step along an axis adds to an index, or the primes
    size: Tensor  # [G, 1] int32 entries
    first: Tensor  # [G, 1] int32 first entry in the group's table

    def rows(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """Entries [8, G, n] int64 of the corners around positions [n, 3], and their weights [8, G, n]."""
        position = torch.addcmul(torch.tensor(0.5), xyz.t().contiguous()[:, None], self.scale)  # [3, G, n]
        cell = position.floor()
        upper = position - cell
        shares = torch.stack((1 - upper, upper))  # [2, 3, G, n]
        low = cell.int() * self.stride
        x, y, z = torch.stack((low, low + self.stride), 1)  # [2, G, n] each
        if self.hashed:
            index = ((z[:, None] ^ y).flatten(0, 1)[:, None] ^ x).bitwise_and_(self.size - 1)
        else:
            index = (z[:, None] + y).flatten(0, 1)[:, None] + x
            index = torch.where(index >= self.size, index - self.size, index)
        weight = (shares[:, None, 2] * shares[:, 1]).flatten(0, 1)[:, None] * shares[:, 0]
        return (index + self.first).flatten(0, 1).long(), weight.flatten(0, 1)


def level_groups(spec: GridSpec, together: bool) -> list[LevelGroup]:
    """One group per level, or one of the dense and one of the hashed levels."""
    dense = spec.hashed.index(True) if any(spec.hashed) else spec.num_levels
    cuts = sorted({0, dense, spec.num_levels}) if together else range(spec.num_levels + 1)
    return [_group(spec, slice(first, last)) for first, last in pairwise(cuts)]


def _group(spec: GridSpec, levels: slice) -> LevelGroup:
    hashed = spec.hashed[levels.start]
    if hashed:
        wrapped = torch.tensor(PRIMES).to(torch.int32)  # modulo 2^32, as the hash wants it
        stride = wrapped[:, None, None].expand(3, levels.stop - levels.start, 1)
    else:
        res = torch.tensor(spec.resolutions[levels])
        stride = torch.stack((torch.ones_like(res), res, res * res)).int()[..., None]
    first = torch.tensor(spec.offsets[levels]) - spec.offsets[levels.start]
    return LevelGroup(
        levels,
        hashed,
        torch.tensor(spec.scales[levels])[:, None],
        stride.contiguous(),
        torch.tensor(spec.sizes[levels]).int()[:, None],
        first.int()[:, None],
    )


class Node(nn.Module):
    """The field of one node."""

    def __init__(self, field: Field, index: int, groups: list[LevelGroup], lookup: Lookup) -> None:
        super().__init__()
        state, offsets = field.state_of(index), field.spec.offsets
        self.groups = groups
        self.lookup = lookup
        self.parts = [slice(offsets[group.levels.start], offsets[group.levels.stop]) for group in groups]
        owned = [slice(None)] if lookup == "one table" else self.parts
        self.tables = nn.ParameterList(state["table"][part].clone() for part in owned)
        self.density = _head(state["density"], field.density_sizes)
        self.colour = _head(state["colour"], field.colour_sizes)
        self.bias = math.log(field.config.initial_density)
        self.padding = field.colour_sizes[0] - field.config.geo_features - 16

    def encode(self, xyz: Tensor) -> Tensor:
        """Features [n, L * 2] of positions [n, 3] in the node's own [0, 1]."""
        parts = []
        tables = [self.tables[0][part] for part in self.parts] if self.lookup == "one table" else self.tables
        for group, table in zip(self.groups, tables, strict=True):
            row, weight = group.rows(xyz)
            if self.lookup == "complex":
                entries = torch.view_as_complex(table).index_select(0, row.view(-1)).view(row.shape)
                parts.append(torch.view_as_real((entries * weight).sum(0)).transpose(0, 1).flatten(1))
            else:
                parts.append((table[row] * weight[..., None]).sum(0).transpose(0, 1).flatten(1))
        return torch.cat(parts, dim=1)

    def heads(self, features: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Density [n] and colour [n, 3]."""
        raw = self.density(features)
        ones = raw.new_ones(len(raw), self.padding)
        given = torch.cat((torch.sigmoid(raw[:, 1:]), spherical_harmonics(direction), ones), dim=1)
        return torch.exp(raw[:, 0] + self.bias), torch.sigmoid(self.colour(given))


def _head(weights: Tensor, sizes: tuple[int, ...]) -> nn.Sequential:
    modules: list[nn.Module] = []
    for (wide, out), layer in zip(pairwise(sizes), layers_of(weights[None], sizes), strict=True):
        linear = nn.Linear(wide, out, bias=False)
        linear.weight = nn.Parameter(layer[0].T.clone())
        modules += [linear, nn.LeakyReLU(LEAK)]
    return nn.Sequential(*modules[:-1])


class TorchLoop:
    """M nodes with the values of a packed field, and their optimiser."""

    def __init__(self, field: Field, few_samples: bool, lookup: Lookup = "complex") -> None:
        groups = level_groups(field.spec, together=few_samples)
        self.nodes = [Node(field, index, groups, lookup) for index in range(field.num_nodes)]
        settings = TrainConfig()
        parameters = [parameter for node in self.nodes for parameter in node.parameters()]
        self.adam = torch.optim.Adam(
            parameters,
            lr=settings.lr_init,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            fused=True,
        )

    @staticmethod
    def for_workload(field: Field, work: Workload, lookup: Lookup = "complex") -> "TorchLoop":
        """Levels one by one, or together where a node has few samples."""
        return TorchLoop(field, work.num_samples < FEW * work.nodes, lookup)

    def encode(self, xyz: Tensor, counts: list[int]) -> Tensor:
        """Features [Q, L * 2] of positions [Q, 3] that are sorted by node, ``counts`` of each."""
        return torch.cat([node.encode(part) for node, (part,) in self._parts(counts, ENCODE_CHUNK, xyz)])

    def heads(self, features: Tensor, direction: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
        """Density [Q] and colour [Q, 3] from features [Q, L * 2] and directions [Q, 3], sorted by node."""
        parts = self._parts(counts, HEADS_CHUNK, features, direction)
        sigma, rgb = zip(*(node.heads(*given) for node, given in parts), strict=True)
        return torch.cat(sigma), torch.cat(rgb)

    def loss(self, work: Workload) -> Tensor:
        """Mean squared error of the rays' colours, sorting included."""
        node, order = torch.sort(work.node, stable=True)
        counts = torch.bincount(node, minlength=work.nodes).tolist()
        features = self.encode(work.local[order], counts)
        sigma, rgb = self.heads(features, work.direction[work.ray[order]], counts)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        sigma, rgb = sigma[back].view(work.num_rays, -1), rgb[back].view(work.num_rays, -1, 3)
        weights = composite_padded(sigma, work.delta.view(work.num_rays, -1))
        return ((weights[..., None] * rgb).sum(1) - work.target).square().mean()

    def step(self, work: Workload) -> None:
        """One training step."""
        self.loss(work).backward()
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def _parts(self, counts: list[int], most: int, *values: Tensor) -> Iterator[tuple[Node, list[Tensor]]]:
        """Each node that has samples with its slices of ``values`` [Q, ...], at most ``most`` samples at a time."""
        first = 0
        for node, count in zip(self.nodes, counts, strict=True):
            for start in range(first, first + count, most):
                last = min(start + most, first + count)
                yield node, [value[start:last] for value in values]
            first += count


def composite_padded(sigma: Tensor, delta: Tensor) -> Tensor:
    """Weights [R, S] of samples in blocks of the same number for every ray."""
    tau = sigma * delta
    return torch.exp(tau - torch.cumsum(tau, 1)) * -torch.expm1(-tau)


def route_by_masks(
    children: Tensor,  # [N, 8] int64, negative where there is none
    centre: Tensor,  # [N, 3]
    gsd: Tensor,  # [N]
    xyz: Tensor,  # [Q, 3]
    footprint: Tensor,  # [Q]
) -> Tensor:
    """Nodes [Q] by the authors' recursion: every node sorts the samples that reach it into its children's."""
    answer = torch.zeros(len(xyz), dtype=torch.int64)

    def descend(node: int, samples: Tensor) -> None:
        answer[samples] = node
        samples = samples[footprint[samples] < gsd[node]]
        if len(samples) == 0:
            return
        x, y, z = (xyz[samples] >= centre[node]).long().unbind(1)
        octant = 4 * x + 2 * y + z
        for which, child in enumerate(children[node].tolist()):
            inside = samples[octant == which]
            if child >= 0 and len(inside):
                descend(child, inside)

    descend(0, torch.arange(len(xyz)))
    return answer
