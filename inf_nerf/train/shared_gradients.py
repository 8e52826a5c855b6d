"""What travels between ranks in a step: the gradients of shared nodes and of the appearance table, and one small
control vector.

Losses are normalised by global counts, so gradients are added, not averaged.  The control vector goes first: it tells
which shared nodes anyone touched (only those are sent), and it makes every rank agree on stopping, saving, clipping and
on a loss that is not finite.  The gradients follow in one flat bucket while the caller updates its own nodes.  Before
the first step, and in a save, :func:`on_all_ranks` lets the ranks agree on whether all have succeeded.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from inf_nerf.errors import InputError
from inf_nerf.field.field import Field

CONTROL = ("stop", "save", "pause", "not_finite", "seconds", "owned_norm2")

Made = TypeVar("Made")


@dataclass
class Traffic:
    """What the exchange with other ranks has cost this rank since it was last asked."""

    bytes_sent: int = 0  # gradients, as they were given to the reduction
    seconds: float = 0.0  # spent packing them, waiting for their sums and unpacking these
    idle_seconds: float = 0.0  # waited for slower ranks before


class SharedGradients:
    """Reductions over all ranks; on one process they change nothing."""

    def __init__(
        self,
        field: Field,
        appearance: Tensor,
        shared: Tensor,  # [M] bool
        metrics: tuple[str, ...],
        dtype: str = "float32",  # in which gradients travel
    ) -> None:
        self._field = field
        self._appearance = appearance
        self.change_nodes(shared)
        self._metrics = metrics
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._aside: dict[int, list[Tensor]] = {}  # node -> sum of its gradients in earlier steps
        self._appearance_aside: Tensor | None = None
        self._travelling: tuple[list[Tensor], Tensor, dist.Work] | None = None
        self.traffic = Traffic()

    def change_nodes(self, shared: Tensor) -> None:
        """Reduce over the nodes ``shared`` [M] of the field from now on; nothing may be pending."""
        self._shared = torch.nonzero(shared).squeeze(1)  # [S] indices of nodes that all ranks hold, in key order
        self._is_shared = shared

    def agree(self, control: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
        """Sum the control values and metrics over ranks, and mark as touched the shared nodes that any rank touched."""
        head = [control.get(name, 0.0) for name in CONTROL] + [metrics.get(name, 0.0) for name in self._metrics]
        touched = self._field.touched[self._shared].double()
        # on the field's device, because NCCL moves nothing else
        vector = torch.cat((torch.tensor(head, dtype=torch.float64, device=touched.device), touched))
        if distributed():
            began = time.perf_counter()
            dist.all_reduce(vector)
            self.traffic.idle_seconds += time.perf_counter() - began
        self._field.touched[self._shared] = vector[len(head) :] > 0
        return dict(zip((*CONTROL, *self._metrics), vector.tolist(), strict=False))

    @property
    def pending(self) -> bool:
        """Whether gradients were set aside and not added up yet; the same on all ranks."""
        return bool(self._aside) or self._appearance_aside is not None

    def set_aside(self) -> None:
        """Keep this step's gradients of touched shared nodes and of the appearance for :meth:`start` in a later one."""
        for node in self._touched():
            gradients = self._field.gradients_of(node)
            if node in self._aside:
                for total, gradient in zip(self._aside[node], gradients, strict=True):
                    total.add_(gradient)
            else:
                self._aside[node] = [gradient.clone() for gradient in gradients]
        self._field.clear_gradients(self._is_shared)
        if self._appearance.requires_grad:
            kept, gradient = self._appearance_aside, self._appearance.grad
            gradient = torch.zeros_like(self._appearance) if gradient is None else gradient
            self._appearance_aside = gradient if kept is None else kept.add_(gradient)
            self._appearance.grad = None

    def start(self) -> None:
        """Begin to add up, over ranks, the gradients of touched shared nodes and of the appearance table, this step's
        and those that were set aside; nobody may use them before :meth:`finish`."""
        for node, totals in self._aside.items():
            for gradient, total in zip(self._field.gradients_of(node), totals, strict=True):
                gradient.add_(total)
            self._field.touched[node] = True
        if self._appearance_aside is not None:
            kept = self._appearance_aside
            self._appearance.grad = kept if self._appearance.grad is None else kept.add_(self._appearance.grad)
        self._aside, self._appearance_aside = {}, None
        if not distributed():
            return
        began = time.perf_counter()
        if self._appearance.grad is None and self._appearance.requires_grad:
            self._appearance.grad = torch.zeros_like(self._appearance)
        parts = [self._appearance.grad] if self._appearance.grad is not None else []
        for node in self._touched():
            parts += self._field.gradients_of(node)
        flat = torch.cat([self._appearance.new_zeros(0), *(part.reshape(-1) for part in parts)]).to(self._dtype)
        travelling = dist.all_reduce(flat, async_op=True)
        assert travelling is not None
        self._travelling = parts, flat, travelling
        self.traffic.bytes_sent += flat.numel() * flat.element_size()
        self.traffic.seconds += time.perf_counter() - began

    def finish(self) -> None:
        """Wait until what was started has arrived; without anything under way it does nothing."""
        if self._travelling is None:
            return
        began = time.perf_counter()
        parts, flat, travelling = self._travelling
        travelling.wait()
        for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.copy_(total.view_as(part))
        self._travelling = None
        self.traffic.seconds += time.perf_counter() - began

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
            for gradient in self._field.gradients_of(node):
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
                for gradient in self._field.gradients_of(node):
                    gradient.mul_(scale)
            if self._appearance.grad is not None:
                self._appearance.grad.mul_(scale)
        return norm

    def _touched(self) -> list[int]:
        """Shared nodes that have gradients, in key order."""
        return self._shared[self._field.touched[self._shared]].tolist()

    def _norm2(self, nodes: Tensor) -> float:
        total = 0.0
        for node in torch.nonzero(nodes).squeeze(1).tolist():
            for gradient in self._field.gradients_of(node):
                total += float(torch.dot(gradient.view(-1), gradient.view(-1)))
        return total


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


def of_all_ranks(value: Made) -> list[Made]:
    """What every rank gives, in their order, on all ranks."""
    if not distributed():
        return [value]
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def of_first_rank(make: Callable[[], Made]) -> Made:
    """What ``make`` returns on rank 0, on all ranks."""
    if not distributed():
        return make()
    made = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(made)
    return cast(Made, made[0])
