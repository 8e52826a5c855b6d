"""What travels between ranks in a step: the gradients of shared nodes and of the appearance table, and one small
control vector.

Losses are normalised by global counts, so gradients are added, not averaged.  The control vector goes first: it tells
which shared nodes anyone touched (only those are sent), and it makes every rank agree on stopping, saving, clipping and
on a loss that is not finite.  Before the first step, and in a save, :func:`on_all_ranks` lets them agree on whether
all have succeeded.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from inf_nerf.errors import InputError
from inf_nerf.field.field import Field

CONTROL = ("stop", "save", "not_finite", "seconds", "owned_norm2")

Made = TypeVar("Made")


class SharedGradients:
    """Reductions over all ranks; on one process they change nothing."""

    def __init__(self, field: Field, appearance: Tensor, shared: Tensor, metrics: tuple[str, ...]) -> None:
        self._field = field
        self._appearance = appearance
        self._shared = torch.nonzero(shared).squeeze(1)  # [S] indices of nodes that all ranks hold, in key order
        self._is_shared = shared
        self._metrics = metrics
        self.bytes_sent = 0

    def agree(self, control: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
        """Sum the control values and metrics over ranks, and mark as touched the shared nodes that any rank touched."""
        head = [control.get(name, 0.0) for name in CONTROL] + [metrics.get(name, 0.0) for name in self._metrics]
        touched = self._field.touched[self._shared].double()
        # on the field's device, because NCCL moves nothing else
        vector = torch.cat((torch.tensor(head, dtype=torch.float64, device=touched.device), touched))
        if distributed():
            dist.all_reduce(vector)
        self._field.touched[self._shared] = vector[len(head) :] > 0
        return dict(zip((*CONTROL, *self._metrics), vector.tolist(), strict=False))

    def add_up(self) -> None:
        """Add the gradients of touched shared nodes and of the appearance table over ranks."""
        if not distributed():
            return
        field = self._field
        touched = self._shared[field.touched[self._shared]].tolist()
        if self._appearance.grad is None and self._appearance.requires_grad:
            self._appearance.grad = torch.zeros_like(self._appearance)
        parts = [self._appearance.grad] if self._appearance.grad is not None else []
        for node in touched:
            parts += _gradients(field, node)
        flat = torch.cat([part.reshape(-1) for part in parts]) if parts else self._appearance.new_zeros(0)
        self.bytes_sent = flat.numel() * flat.element_size()
        dist.all_reduce(flat)
        for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.copy_(total.view_as(part))

    def finite(self) -> bool:
        """Whether the gradients of this rank are finite; only the heads' are looked at, since what reaches a table has
        passed through its head."""
        touched = self._field.touched
        heads = (self._field.density_weights.grad, self._field.colour_weights.grad)
        return all(bool(grad[touched].isfinite().all()) for grad in heads if grad is not None)

    def divide(self, scale: float) -> None:
        """Take a factor on the loss out of the gradients of this rank."""
        if scale == 1:
            return
        for node in torch.nonzero(self._field.touched).squeeze(1).tolist():
            for gradient in _gradients(self._field, node):
                gradient.div_(scale)
        if self._appearance.grad is not None:
            self._appearance.grad.div_(scale)

    def owned_norm2(self) -> float:
        """Squared gradient norm of the nodes that only this rank holds."""
        return self._norm2(self._field.touched & ~self._is_shared)

    def clip(self, largest: float, owned_norm2: float) -> float:
        """Scale all gradients so that the joint norm does not exceed ``largest`` (0: leave them); returns the norm."""
        norm2 = owned_norm2 + self._norm2(self._field.touched & self._is_shared)
        if self._appearance.grad is not None:
            norm2 += float(self._appearance.grad.double().square().sum())
        norm = norm2**0.5
        if largest > 0 and norm > largest:
            scale = largest / norm
            for node in torch.nonzero(self._field.touched).squeeze(1).tolist():
                for gradient in _gradients(self._field, node):
                    gradient.mul_(scale)
            if self._appearance.grad is not None:
                self._appearance.grad.mul_(scale)
        return norm

    def _norm2(self, nodes: Tensor) -> float:
        total = 0.0
        for node in torch.nonzero(nodes).squeeze(1).tolist():
            for gradient in _gradients(self._field, node):
                total += float(torch.dot(gradient.view(-1), gradient.view(-1)))
        return total


def _gradients(field: Field, node: int) -> list[Tensor]:
    """Views of one node's gradient buffers."""
    leaves = (field.tables, field.density_weights, field.colour_weights)
    return [leaf.grad[node] for leaf in leaves if leaf.grad is not None]


def distributed() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def on_all_ranks(make: Callable[[], Made]) -> Made:
    """What ``make`` returns if no rank has a problem; else the first rank's :class:`InputError` is raised on all.

    A rank that gave up alone would leave the others waiting until their collective times out.
    """
    made: Made | None = None
    problem: InputError | None = None
    try:
        made = make()
    except InputError as error:
        problem = error
    problems = [problem]
    if distributed():
        problems *= dist.get_world_size()
        dist.all_gather_object(problems, problem)
    for found in problems:
        if found is not None:
            raise found
    return cast(Made, made)


def of_first_rank(make: Callable[[], Made]) -> Made:
    """What ``make`` returns on rank 0, on all ranks."""
    if not distributed():
        return make()
    made = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(made)
    return cast(Made, made[0])
