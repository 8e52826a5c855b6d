"""tinycudann node by node: the bookkeeping around it with a stand-in, its numbers on a GPU where it is installed."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

import inf_nerf.field
from inf_nerf.errors import InputError
from inf_nerf.field import hash_grid
from inf_nerf.field.backends import resolve_backend
from inf_nerf.field.hash_grid import GridSpec
from tests.field import fake_tinycudann

NUM_NODES = 5
MODULE = "inf_nerf.field.tinycudann_grid"


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module on top of the stand-in; afterwards it is as if it had never been imported."""
    monkeypatch.setitem(sys.modules, "tinycudann", fake_tinycudann)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE)
    del sys.modules[MODULE]
    delattr(inf_nerf.field, "tinycudann_grid")


def make_spec(num_features: int = 2) -> GridSpec:
    return GridSpec(num_levels=3, features_per_level=num_features, log2_table_size=9, base_res=4, max_res=64)


def make_samples(spec: GridSpec, count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A unit table of several nodes, and sorted samples that leave node 2 empty."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(NUM_NODES, spec.num_entries, spec.features_per_level, generator=generator) * 2 - 1
    xyz = torch.rand(count, 3, generator=generator)
    node = torch.tensor([0, 1, 3, 4])[torch.randint(0, 4, (count,), generator=generator)].sort().values
    return table, xyz, node


@pytest.mark.parametrize("num_features", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [1, 256, 3000])
def test_segments_and_gradients_equal_the_twin(grid: ModuleType, num_features: int, count: int) -> None:
    spec = make_spec(num_features)
    table, xyz, node = make_samples(spec, count)
    theirs, ours = table.clone().requires_grad_(), table.clone().requires_grad_()
    upstream = torch.randn(spec.num_features, count, generator=torch.Generator().manual_seed(9)).T

    expected = hash_grid.encode(spec, theirs, xyz, node)
    expected.backward(upstream)
    found = grid.encode(spec, ours, xyz, node)
    found.backward(upstream)

    assert torch.equal(found, expected)
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)
    assert not ours.grad[2].any()


def test_one_call_for_each_node_with_samples(grid: ModuleType) -> None:
    spec = make_spec()
    table, xyz, node = make_samples(spec, 600)
    encoding = grid._encoding(spec)

    grid.encode(spec, table, xyz, node)

    assert encoding.calls == 4
    assert encoding.spec == spec and bool(encoding.params.isnan().all())


def test_gradients_accumulate_in_the_same_buffer_and_positions_get_none(grid: ModuleType) -> None:
    spec = make_spec()
    table, xyz, node = make_samples(spec, 300)
    table.requires_grad_()
    xyz.requires_grad_()
    table.grad = torch.zeros_like(table)
    buffer = table.grad.data_ptr()

    grid.encode(spec, table, xyz, node).sum().backward()
    once = table.grad.clone()
    grid.encode(spec, table, xyz, node).sum().backward()

    assert table.grad.data_ptr() == buffer
    torch.testing.assert_close(table.grad, 2 * once)
    assert xyz.grad is None


def test_known_features_change_nothing(grid: ModuleType) -> None:
    spec = make_spec()
    table, xyz, node = make_samples(spec, 300)
    ours, again = table.clone().requires_grad_(), table.clone().requires_grad_()

    first = grid.encode(spec, ours, xyz, node)
    second = grid.encode(spec, again, xyz, node, first.detach())
    first.square().sum().backward()
    second.square().sum().backward()

    assert torch.equal(second, first)
    assert ours.grad is not None and again.grad is not None
    assert torch.equal(again.grad, ours.grad)


def test_positions_beyond_the_cube_read_its_border(grid: ModuleType) -> None:
    spec = make_spec()
    table, _, _ = make_samples(spec, 1)
    xyz = torch.tensor([[-0.5, 0.3, 7.0], [float("nan"), 0.0, float("inf")]])
    node = torch.tensor([1, 3])

    found = grid.encode(spec, table, xyz, node)

    assert torch.equal(found, hash_grid.encode(spec, table, xyz.nan_to_num(0.0), node))


def test_without_gradients_nothing_is_kept(grid: ModuleType) -> None:
    spec = make_spec()
    table, xyz, node = make_samples(spec, 300)

    with torch.no_grad():
        found = grid.encode(spec, table.requires_grad_(), xyz, node)

    assert found.grad_fn is None and table.grad is None


def test_no_positions_give_no_features(grid: ModuleType) -> None:
    spec = make_spec()
    table, _, _ = make_samples(spec, 1)

    features = grid.encode(spec, table.requires_grad_(), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    features.sum().backward()

    assert features.shape == (0, spec.num_features)


def test_samples_that_tinycudann_cannot_take_are_refused(grid: ModuleType) -> None:
    spec = make_spec()
    table, xyz, _ = make_samples(spec, 3)

    with pytest.raises(ValueError, match="sort the samples by node"):
        grid.encode(spec, table, xyz, torch.tensor([0, 2, 1]))
    with pytest.raises(IndexError, match="sample nodes reach from 0 to 5, nodes are 5"):
        grid.encode(spec, table, xyz, torch.tensor([0, 1, 5]))
    with pytest.raises(IndexError):
        grid.encode(spec, table, xyz, torch.tensor([-1, 1, 4]))
    with pytest.raises(TypeError, match="in float32"):
        grid.encode(spec, table.double(), xyz, torch.tensor([0, 1, 4]))


def test_another_layout_of_the_numbers_is_refused(grid: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec()
    table, xyz, node = make_samples(spec, 3)
    original = fake_tinycudann.Encoding.__init__

    def one_entry_more(self, *arguments, **options) -> None:
        original(self, *arguments, **options)
        self.params = torch.nn.Parameter(torch.zeros(self.params.numel() + 2))

    monkeypatch.setattr(fake_tinycudann.Encoding, "__init__", one_entry_more)

    with pytest.raises(InputError, match=r"numbers a node where \d+ are expected; set field\.backend=triton"):
        grid.encode(spec, table, xyz, node)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("num_nodes", "log2_table_size", "num_features"), [(1, 19, 2), (8, 17, 2), (64, 14, 4), (3, 16, 8), (3, 16, 1)]
)
def test_real_tinycudann_equals_the_twin(num_nodes: int, log2_table_size: int, num_features: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if importlib.util.find_spec("tinycudann") is None:
        pytest.skip("tinycudann is not installed (README, Installation)")
    spec = GridSpec(16, num_features, log2_table_size, 16, 512)
    generator = torch.Generator("cuda").manual_seed(0)
    table = torch.rand(num_nodes, spec.num_entries, num_features, device="cuda", generator=generator) * 2 - 1
    xyz = torch.rand(100_003, 3, device="cuda", generator=generator)
    node = torch.randint(0, num_nodes, (len(xyz),), device="cuda", generator=generator).sort().values
    theirs, ours = table.clone().requires_grad_(), table.clone().requires_grad_()
    upstream = torch.randn(len(xyz), spec.num_features, device="cuda", generator=generator)

    expected = hash_grid.encode(spec, theirs, xyz, node)
    expected.backward(upstream)
    found = resolve_backend("tinycudann", "cuda")(spec, ours, xyz, node)
    found.backward(upstream)

    # 512 cells times 2e-7 of position, times a slope of at most 2 a cell and axis
    torch.testing.assert_close(found, expected, atol=6e-4, rtol=0)
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, atol=5e-3, rtol=1e-3)
