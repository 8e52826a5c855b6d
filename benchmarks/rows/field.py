"""What the field costs: encoding, heads, optimiser."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.limits import Limits
from benchmarks.pairing import Candidate, Case
from benchmarks.torch_loop import TorchLoop
from benchmarks.workload import TWIN_ROUNDS, Workload, make_field, make_workload
from inf_nerf.config import TrainConfig
from inf_nerf.field.field import Field
from inf_nerf.train.optimiser import NodeAdam

ADAM_BYTES = 32  # per parameter: value, gradient and two moments are read and written (the gradient with zeros)
PASSES = 3  # of the heads' matrix products: forward, gradient of the weights, gradient of the input
UNTOUCHED = 8  # only every so many nodes was touched in the row adam_sparse


def encode(nodes: Sequence[int], threads: Sequence[int], num_rays: int, limits: Limits) -> Iterator[Case]:
    """Rows ``encode_forward`` and ``encode_backward``."""
    for count in nodes:
        work = make_workload(count, num_rays)
        xyz, node = work.by_node
        packed, twin = make_field(count), make_field(count, "torch")
        loop = TorchLoop.for_workload(packed, work)
        encoders: list[tuple[str, Callable[[], Tensor], int | None]] = [
            ("ours", lambda xyz=xyz, node=node, field=packed: _features(field, xyz, node), None),
            ("torch loop", lambda xyz=xyz, work=work, loop=loop: loop.encode(xyz, work.counts), None),
            ("torch twin", lambda xyz=xyz, node=node, field=twin: _features(field, xyz, node), TWIN_ROUNDS),
        ]
        upstream = torch.ones(work.num_samples, packed.spec.num_features)
        for used in threads:
            limit = limits.encode_ms(packed.spec, work.num_samples, used)
            forward = [Candidate(name, _without_gradients(run), rounds=rounds) for name, run, rounds in encoders]
            yield Case("encode_forward", count, used, forward, limit)
            limit = limits.encode_ms(packed.spec, work.num_samples, used, backward=True)
            backward = [_backward(name, run, upstream, loop, rounds) for name, run, rounds in encoders]
            yield Case("encode_backward", count, used, backward, limit)


def heads(nodes: Sequence[int], threads: Sequence[int], num_rays: int, limits: Limits) -> Iterator[Case]:
    """Row ``heads``: forward and backward, from features to density and colour."""
    for count in nodes:
        work = make_workload(count, num_rays)
        node, order = torch.sort(work.node, stable=True)
        direction = work.direction[work.ray[order]]
        features = torch.randn(len(node), 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        packed, chain, twin = make_field(count), make_field(count), make_field(count, "torch")
        chain.compute_heads_in(torch.float32)  # by torch operations instead of the compiled pass
        loop = TorchLoop.for_workload(packed, work)
        weights = sum(a * b for sizes in (packed.density_sizes, packed.colour_sizes) for a, b in pairwise(sizes))
        candidates = [
            Candidate("ours", _heads(packed, features, work, node, order)),
            Candidate("torch, packed", _heads(chain, features, work, node, order)),
            Candidate("torch loop", _loop_heads(loop, features, direction, work)),
            Candidate("torch twin", _heads(twin, features, work, node, order), rounds=TWIN_ROUNDS),
        ]
        for used in threads:
            limit = limits.multiply_ms(PASSES * 2.0 * weights * work.num_samples, used)
            yield Case("heads", count, used, candidates, limit)


def adam(nodes: Sequence[int], threads: Sequence[int], limits: Limits) -> Iterator[Case]:
    """Rows ``adam``, with gradients for all nodes, and ``adam_sparse``, with gradients for every eighth.

    A step updates the values and clears the gradients.
    """
    for count in nodes:
        field = make_field(count)
        optimiser = NodeAdam(TrainConfig(), field, nn.Parameter(torch.zeros(0)))
        candidates = [
            Candidate("ours", lambda optimiser=optimiser: optimiser.step(1e-2)),
            Candidate("torch fused, all nodes", _whole_adam(field, "fused")),
            Candidate("torch foreach, all nodes", _whole_adam(field, "foreach")),
        ]
        for row, every in (("adam", 1), ("adam_sparse", UNTOUCHED)):
            if count < every:
                continue
            first = Candidate(candidates[0].name, candidates[0].run, _touch(field, every))
            for used in threads:
                limit = limits.stream_ms(ADAM_BYTES * field.num_parameters / every, used)
                yield Case(row, count, used, [first, *candidates[1:]], limit)


def _features(field: Field, xyz: Tensor, node: Tensor) -> Tensor:
    return field.encoder(field.spec, field.tables, xyz, node)


def _without_gradients(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def inference() -> Tensor:
        with torch.no_grad():
            return run()

    return inference


def _backward(
    name: str, forward: Callable[[], Tensor], upstream: Tensor, loop: TorchLoop, rounds: int | None
) -> Candidate:
    features: list[Tensor] = []

    def prepare() -> None:
        features[:] = [forward()]
        loop.adam.zero_grad(set_to_none=True)  # packed fields keep their gradients, as in training

    def run() -> None:
        features.pop().backward(upstream)

    return Candidate(name, run, prepare, rounds=rounds)


def _heads(field: Field, features: Tensor, work: Workload, node: Tensor, order: Tensor) -> Callable[[], None]:
    ray, looks = work.ray[order], work.direction.new_zeros(work.num_rays, 0)

    def run() -> None:
        features.grad = None
        sigma, rgb = field.radiance_of(features, node, work.direction, looks, ray)
        (sigma.sum() + rgb.sum()).backward()

    return run


def _loop_heads(loop: TorchLoop, features: Tensor, direction: Tensor, work: Workload) -> Callable[[], None]:
    def run() -> None:
        features.grad = None
        loop.adam.zero_grad(set_to_none=True)
        sigma, rgb = loop.heads(features, direction, work.counts)
        (sigma.sum() + rgb.sum()).backward()

    return run


def _whole_adam(field: Field, kind: Literal["fused", "foreach"]) -> Callable[[], None]:
    leaves = (field.tables, field.density_weights, field.colour_weights)
    parameters = [nn.Parameter(leaf.detach().clone()) for leaf in leaves]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    adam = torch.optim.Adam(parameters, lr=1e-2, eps=1e-15, fused=kind == "fused", foreach=kind == "foreach")

    def run() -> None:
        adam.step()
        adam.zero_grad(set_to_none=False)

    return run


def _touch(field: Field, every: int) -> Callable[[], None]:
    def prepare() -> None:
        field.touched[::every] = True

    return prepare
