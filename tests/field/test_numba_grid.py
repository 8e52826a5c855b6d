"""The compiled CPU grid against the torch twin.

Positions and weights round alike in both, so values differ only by the order of eight additions (1e-6 of a unit table)
and gradients by the order in which samples are added.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from inf_nerf.field import hash_grid, numba_grid
from inf_nerf.field.hash_grid import GridSpec

NUM_NODES = 5


def make_spec(num_features: int = 2) -> GridSpec:
    spec = GridSpec(
        num_levels=6, features_per_level=num_features, log2_table_size=12, base_res=4, max_res=256
    )  # levels 0 and 1 are dense, the others hashed
    assert spec.hashed == (False, False, True, True, True, True)
    return spec


def make_samples(spec: GridSpec, count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A unit table of several nodes, and sorted samples that leave node 2 empty."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(NUM_NODES, spec.num_entries, spec.features_per_level, generator=generator) * 2 - 1
    xyz = torch.rand(count, 3, generator=generator)
    node = torch.tensor([0, 1, 3, 4])[torch.randint(0, 4, (count,), generator=generator)].sort().values
    return table, xyz, node


@pytest.fixture
def torch_threads() -> Iterator[int]:
    count = torch.get_num_threads()
    yield count
    torch.set_num_threads(count)


@pytest.mark.parametrize("num_features", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 37, 9000])  # scattered reads only, and levels read ahead over several blocks
def test_values_and_gradients_equal_the_twin(num_features: int, count: int) -> None:
    spec = make_spec(num_features)
    table, xyz, node = make_samples(spec, count)
    theirs, ours = table.clone().requires_grad_(), table.clone().requires_grad_()
    upstream = torch.randn(count, spec.num_features, generator=torch.Generator().manual_seed(9))

    expected = hash_grid.encode(spec, theirs, xyz, node)
    expected.backward(upstream)
    found = numba_grid.encode(spec, ours, xyz, node)
    found.backward(upstream)

    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-5)
    assert torch.equal(ours.grad == 0, theirs.grad == 0)
    assert not ours.grad[2].any()


def test_faces_of_the_cube_and_positions_beyond_them_equal_the_twin() -> None:
    spec = make_spec()
    table, _, _ = make_samples(spec, 1)
    xyz = torch.cartesian_prod(*[torch.tensor([-0.5, 0.0, 0.3, 1.0, 7.0])] * 3)
    node = torch.zeros(len(xyz), dtype=torch.int64)

    found = numba_grid.encode(spec, table, xyz, node)

    torch.testing.assert_close(found, hash_grid.encode(spec, table, xyz, node), atol=1e-6, rtol=0)


def test_known_features_are_given_back_with_the_same_gradient() -> None:
    spec = make_spec()
    table, xyz, node = make_samples(spec, 300)
    ours, again = table.clone().requires_grad_(), table.clone().requires_grad_()
    first = numba_grid.encode(spec, ours, xyz, node)
    second = numba_grid.encode(spec, again, xyz[50:], node[50:], first.detach()[50:])
    assert torch.equal(second, first[50:])
    first[50:].square().sum().backward()
    second.square().sum().backward()
    assert ours.grad is not None and again.grad is not None
    torch.testing.assert_close(again.grad, ours.grad)


def test_samples_need_not_be_sorted() -> None:
    spec = make_spec()
    table, xyz, node = make_samples(spec, 500)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(4))

    found = numba_grid.encode(spec, table, xyz[order], node[order])

    assert torch.equal(found, numba_grid.encode(spec, table, xyz, node)[order])


def test_gradients_accumulate_in_the_same_buffer() -> None:
    spec = make_spec()
    table, xyz, node = make_samples(spec, 300)
    table.requires_grad_()
    table.grad = torch.zeros_like(table)
    buffer = table.grad.data_ptr()

    numba_grid.encode(spec, table, xyz, node).sum().backward()
    once = table.grad.clone()
    numba_grid.encode(spec, table, xyz, node).sum().backward()

    assert table.grad.data_ptr() == buffer
    torch.testing.assert_close(table.grad, 2 * once)


@pytest.mark.parametrize("is_sorted", [True, False])
def test_same_bits_for_any_number_of_threads(torch_threads: int, is_sorted: bool) -> None:
    spec = make_spec()
    table, xyz, node = make_samples(spec, 5000)
    node = node.sort().values if is_sorted else node[torch.randperm(len(node))]
    results = []
    for count in (1, 2, 3, 2 * spec.num_levels, 1):
        torch.set_num_threads(count)
        leaf = table.clone().requires_grad_()
        features = numba_grid.encode(spec, leaf, xyz, node)
        features.square().sum().backward()
        assert leaf.grad is not None
        results.append((features.detach(), leaf.grad))
        assert torch.get_num_threads() == count

    for features, gradient in results[1:]:
        assert torch.equal(features, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("counts", [[], [7], [300, 0, 1, 2, 250], [1, 1, 1, 1, 1]])
def test_parts_of_backward_cover_each_level_of_each_node_once(counts: list[int], threads: int) -> None:
    node = np.repeat(np.arange(len(counts)), np.array(counts, np.int64))
    owners: dict[tuple[int, int], set[int]] = {}
    seen = np.zeros((4, len(node)), np.int64)
    parts = numba_grid._owned_parts(node, 4, threads)
    for number, (first, last, start, stop) in enumerate(parts):
        seen[first:last, start:stop] += 1
        for level in range(first, last):
            for each in np.unique(node[start:stop]).tolist():
                owners.setdefault((level, each), set()).add(number)
    assert (seen == 1).all()
    assert all(len(numbers) == 1 for numbers in owners.values())
    if counts == [300, 0, 1, 2, 250] and threads == 16:
        assert len(parts) > 4  # more than a level each: nodes are dealt out too


def test_positions_get_no_gradient() -> None:
    spec = make_spec()
    table, xyz, node = make_samples(spec, 10)
    table.requires_grad_()
    xyz.requires_grad_()

    numba_grid.encode(spec, table, xyz, node).sum().backward()

    assert xyz.grad is None


def test_no_positions_give_no_features() -> None:
    spec = make_spec()
    table, _, _ = make_samples(spec, 1)
    table.requires_grad_()

    features = numba_grid.encode(spec, table, torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    features.sum().backward()

    assert features.shape == (0, spec.num_features)


def test_a_node_outside_the_table_is_refused_before_memory_is_touched() -> None:
    spec = make_spec()
    table, xyz, _ = make_samples(spec, 3)

    with pytest.raises(IndexError, match="sample nodes reach from 0 to 5, nodes are 5"):
        numba_grid.encode(spec, table, xyz, torch.tensor([0, 1, 5]))
    with pytest.raises(IndexError):
        numba_grid.encode(spec, table, xyz, torch.tensor([-1, 1, 4]))


def test_other_precisions_are_refused() -> None:
    spec = make_spec()
    table, xyz, node = make_samples(spec, 3)

    with pytest.raises(TypeError, match="float32 only"):
        numba_grid.encode(spec, table.double(), xyz, node)
