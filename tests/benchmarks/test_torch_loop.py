"""The rival computes what we compute, or the comparison would mean nothing."""

from itertools import pairwise

import pytest
import torch

from benchmarks.rows.rays import complete_tree
from benchmarks.rows.step import PackedStep
from benchmarks.torch_loop import Lookup, TorchLoop, composite_padded, route_by_masks
from benchmarks.workload import Workload, make_workload
from inf_nerf.config import FieldConfig
from inf_nerf.field.field import Field
from inf_nerf.octree.routing import route
from inf_nerf.render.compositing import composite

SMALL = {"num_levels": 6, "log2_table_size": 9, "max_res": 64, "base_res": 4, "appearance_dim": 0, "hidden_color": 32}


def small_field(nodes: int) -> Field:
    field = Field(FieldConfig.model_validate(SMALL | {"backend": "numba"}), torch.arange(1, nodes + 1), seed=3)
    for index in range(nodes):
        field.state_of(index)["table"].mul_(1e4)
    return field


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("lookup", ["complex", "index", "one table"])
@pytest.mark.parametrize("nodes", [1, 8])
def test_loss_and_all_gradients_equal_ours(nodes: int, lookup: Lookup, together: bool) -> None:
    work, packed = make_workload(nodes, 40, 6), PackedStep(small_field(nodes))
    loop = TorchLoop(packed.field, together, lookup)
    assert any(packed.field.spec.hashed) and not all(packed.field.spec.hashed)
    loss, ours = loop.loss(work), packed.loss(work)
    assert float(loss.detach()) == pytest.approx(float(ours.detach()), rel=1e-5)
    loss.backward()
    ours.backward()
    field = packed.field
    for index, node in enumerate(loop.nodes):
        for name, parameters in (
            ("tables", node.tables),
            ("density_weights", node.density.parameters()),
            ("colour_weights", node.colour.parameters()),
        ):
            found = [parameter.grad for parameter in parameters if parameter.grad is not None]
            # torch stores a layer as [out, in], the library as [in, out]
            gradient = torch.cat([(part if name == "tables" else part.T).flatten() for part in found])
            wanted = getattr(field, name).grad[index].flatten()
            assert relative(gradient, wanted) < 1e-4, (index, name)


def test_training_steps_stay_together() -> None:
    work, packed = make_workload(8, 40, 6), PackedStep(small_field(8))
    loop = TorchLoop(packed.field, few_samples=True)
    for _ in range(3):
        loop.step(work)
        packed.step(work)
    assert float(loop.loss(work).detach()) == pytest.approx(float(packed.loss(work).detach()), rel=1e-3)


def test_chunks_do_not_change_features(monkeypatch: pytest.MonkeyPatch) -> None:
    work, loop = make_workload(8, 40, 6), TorchLoop(small_field(8), few_samples=False)
    xyz, _ = work.by_node
    whole = loop.encode(xyz, work.counts)
    monkeypatch.setattr("benchmarks.torch_loop.ENCODE_CHUNK", 7)
    torch.testing.assert_close(loop.encode(xyz, work.counts), whole)


def test_nodes_without_samples_get_no_gradients() -> None:
    one = make_workload(8, 1, 4)
    loop = TorchLoop(small_field(8), few_samples=False)
    loop.loss(one).backward()
    touched = [node.tables[0].grad is not None for node in loop.nodes]
    assert touched == [count > 0 for count in one.counts] and not all(touched)


def test_padded_compositing_equals_ours() -> None:
    work = make_workload(1, 20, 6)
    sigma = torch.rand(work.num_samples) * 30
    wanted, _ = composite(sigma, work.delta, work.ray, work.num_rays)
    torch.testing.assert_close(composite_padded(sigma.view(20, 6), work.delta.view(20, 6)).flatten(), wanted)


@pytest.mark.parametrize("nodes", [1, 8, 64])
def test_routing_by_masks_equals_ours(nodes: int) -> None:
    tree = complete_tree(nodes)
    generator = torch.Generator().manual_seed(1)
    xyz = torch.rand(500, 3, generator=generator) * 2 - 1
    footprint = float(tree.gsd[-1]) * torch.exp2(4 * torch.rand(500, generator=generator) - 2)
    wanted, _ = route(tree, xyz, footprint)
    assert torch.equal(route_by_masks(tree.children, tree.centre, tree.gsd, xyz, footprint), wanted)


@pytest.mark.parametrize("nodes", [1, 8, 64, 512])
def test_a_workload_fills_all_nodes_with_positions_of_their_own(nodes: int) -> None:
    work: Workload = make_workload(nodes, 2000, 8)
    xyz, node = work.by_node
    assert sum(work.counts) == len(xyz) == 16_000 and min(work.counts) > 0
    assert all(a <= b for a, b in pairwise(node.tolist()))
    assert float(xyz.min()) >= 0 and float(xyz.max()) < 1
