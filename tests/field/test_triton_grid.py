"""The Triton grid against the torch twin: by Triton's interpreter on the CPU, and on a GPU where there is one.

Positions and weights round alike in both, so values differ only by the order of eight additions (1e-6 of a unit table)
and gradients by the order in which samples are added.  The interpreter says nothing about races, speed or the compiler;
that the kernels compile for real devices is tested apart.
"""

import importlib
import importlib.util
import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from inf_nerf.field import hash_grid
from inf_nerf.field.backends import resolve_backend
from inf_nerf.field.hash_grid import GridSpec

NUM_NODES = 5
NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which mmap names from Python 3.12 on
WITHOUT_TRITON = "Triton is not installed; it comes with CUDA builds of torch for Linux, or from the package index"


@dataclass(frozen=True)
class Grid:
    """A Triton grid that can run, and where its tensors live."""

    module: ModuleType
    device: str

    def encode(self, spec: GridSpec, table: Tensor, xyz: Tensor, node: Tensor, known: Tensor | None = None) -> Tensor:
        return self.module.encode(spec, table, xyz.to(self.device), node.to(self.device), known)

    def leaf(self, table: Tensor) -> Tensor:
        return table.to(self.device).clone().requires_grad_()


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def grid(request: pytest.FixtureRequest) -> Grid:
    triton = pytest.importorskip("triton", reason=WITHOUT_TRITON)
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        return Grid(importlib.import_module("inf_nerf.field.triton_grid"), "cuda")
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7):
        pytest.skip(f"the interpreter of Triton {triton.__version__} is not known to work; 3.7 is")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # read when a kernel is defined, so the module is loaded once more
        spec = importlib.util.find_spec("inf_nerf.field.triton_grid")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return Grid(module, "cpu")


def make_spec(num_features: int = 2, log2_table_size: int = 9) -> GridSpec:
    return GridSpec(
        num_levels=3,
        features_per_level=num_features,
        log2_table_size=log2_table_size,
        base_res=4,
        max_res=64,
    )


def make_samples(spec: GridSpec, count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A unit table of several nodes, and sorted samples that leave node 2 empty."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(NUM_NODES, spec.num_entries, spec.features_per_level, generator=generator) * 2 - 1
    xyz = torch.rand(count, 3, generator=generator)
    node = torch.tensor([0, 1, 3, 4])[torch.randint(0, 4, (count,), generator=generator)].sort().values
    return table, xyz, node


@pytest.mark.parametrize("num_features", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [1, 300])  # less than one block, and a second one that is not full
def test_values_and_gradients_equal_the_twin(grid: Grid, num_features: int, count: int) -> None:
    spec = make_spec(num_features)
    assert spec.hashed == (False, True, True)
    table, xyz, node = make_samples(spec, count)
    theirs, ours = table.clone().requires_grad_(), grid.leaf(table)
    upstream = torch.randn(count, spec.num_features, generator=torch.Generator().manual_seed(9))

    expected = hash_grid.encode(spec, theirs, xyz, node)
    expected.backward(upstream)
    found = grid.encode(spec, ours, xyz, node)
    found.backward(upstream.to(grid.device))

    torch.testing.assert_close(found.cpu(), expected, atol=1e-6, rtol=0)
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad.cpu(), theirs.grad, atol=1e-4, rtol=1e-5)
    assert torch.equal(ours.grad.cpu() == 0, theirs.grad == 0)
    assert not ours.grad[2].any()


@pytest.mark.parametrize("log2_table_size", [8, 13])  # all levels but the first hashed, and the second dense as well
def test_faces_of_the_cube_and_positions_beyond_them_equal_the_twin(grid: Grid, log2_table_size: int) -> None:
    spec = make_spec(log2_table_size=log2_table_size)
    assert spec.hashed == (False, log2_table_size == 8, True)
    table, _, _ = make_samples(spec, 1)
    xyz = torch.cartesian_prod(*[torch.tensor([-0.5, 0.0, 0.3, 1.0, 7.0])] * 3)
    node = torch.ones(len(xyz), dtype=torch.int64)

    found = grid.encode(spec, table.to(grid.device), xyz, node)

    torch.testing.assert_close(found.cpu(), hash_grid.encode(spec, table, xyz, node), atol=1e-6, rtol=0)


def test_positions_that_are_no_numbers_stay_inside_the_table(grid: Grid) -> None:
    spec = make_spec()
    table, _, _ = make_samples(spec, 1)
    nan, infinity = float("nan"), float("inf")
    xyz = torch.tensor([[nan, 0.3, nan], [infinity, -infinity, 0.5], [0.1, 1e30, -1e30]])
    node = torch.tensor([0, 4, 4])
    leaf = grid.leaf(table)

    found = grid.encode(spec, leaf, xyz, node)
    found.sum().backward()

    expected = hash_grid.encode(spec, table, xyz.nan_to_num(0.0, infinity, -infinity), node)
    torch.testing.assert_close(found.detach().cpu(), expected, atol=1e-6, rtol=0)
    assert leaf.grad is not None and bool(leaf.grad.isfinite().all())


def test_known_features_are_given_back_with_the_same_gradient(grid: Grid) -> None:
    spec = make_spec()
    table, xyz, node = make_samples(spec, 60)
    ours, again = grid.leaf(table), grid.leaf(table)

    first = grid.encode(spec, ours, xyz, node)
    second = grid.encode(spec, again, xyz[20:], node[20:], first.detach()[20:] + 1)
    first[20:].sum().backward()
    second.sum().backward()

    assert torch.equal(second, first[20:] + 1)
    assert ours.grad is not None and again.grad is not None
    torch.testing.assert_close(again.grad, ours.grad)


def test_samples_need_not_be_sorted(grid: Grid) -> None:
    spec = make_spec()
    table, xyz, node = make_samples(spec, 60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(4))

    found = grid.encode(spec, table.to(grid.device), xyz[order], node[order])

    assert torch.equal(found, grid.encode(spec, table.to(grid.device), xyz, node)[order.to(grid.device)])


def test_gradients_accumulate_in_the_same_buffer_and_positions_get_none(grid: Grid) -> None:
    spec = make_spec()
    table, xyz, node = make_samples(spec, 50)
    leaf, xyz = grid.leaf(table), xyz.to(grid.device).requires_grad_()
    leaf.grad = torch.zeros_like(leaf)
    buffer = leaf.grad.data_ptr()

    grid.encode(spec, leaf, xyz, node).sum().backward()
    once = leaf.grad.clone()
    grid.encode(spec, leaf, xyz, node).sum().backward()

    assert leaf.grad.data_ptr() == buffer
    torch.testing.assert_close(leaf.grad, 2 * once)
    assert xyz.grad is None


def test_frozen_tables_and_transposed_inputs_are_read(grid: Grid) -> None:
    spec = make_spec()
    table, xyz, node = make_samples(spec, 20)
    columns = xyz.T.contiguous().T

    found = grid.encode(spec, table.to(grid.device), columns, node)

    assert not found.requires_grad
    torch.testing.assert_close(found.cpu(), hash_grid.encode(spec, table, xyz, node), atol=1e-6, rtol=0)


def test_no_positions_give_no_features(grid: Grid) -> None:
    spec = make_spec()
    leaf = grid.leaf(make_samples(spec, 1)[0])

    features = grid.encode(spec, leaf, torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    features.sum().backward()

    assert features.shape == (0, spec.num_features)


def test_a_node_outside_the_table_is_refused_before_memory_is_touched(grid: Grid) -> None:
    spec = make_spec()
    table, xyz, _ = make_samples(spec, 3)

    with pytest.raises(IndexError, match="sample nodes reach from 0 to 5, nodes are 5"):
        grid.encode(spec, table.to(grid.device), xyz, torch.tensor([0, 1, 5]))
    with pytest.raises(IndexError):
        grid.encode(spec, table.to(grid.device), xyz, torch.tensor([-1, 1, 4]))


def test_other_precisions_and_scattered_tables_are_refused(grid: Grid) -> None:
    spec = make_spec()
    table, xyz, node = make_samples(spec, 3)

    with pytest.raises(TypeError, match="float32 only"):
        grid.encode(spec, table.double().to(grid.device), xyz, node)
    with pytest.raises(ValueError, match="one piece of memory"):
        grid.encode(spec, table.to(grid.device).transpose(0, 1).contiguous().transpose(0, 1), xyz, node)


def test_tables_beyond_32_bit_offsets_are_addressed(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(num_features=1, log2_table_size=13)  # rows, too, are more than 32 bits count
    per_node = spec.num_entries
    num_nodes = 2**31 // per_node + 2
    shape = (num_nodes, spec.num_entries, spec.features_per_level)
    if grid.device == "cuda":
        if torch.cuda.mem_get_info()[0] < 20 * 2**30:
            pytest.skip("less than 20 GiB of free GPU memory")
        table, gradient = torch.zeros(shape, device="cuda"), torch.zeros(shape, device="cuda")
    else:
        # address space only: the system gives memory to the pages that are touched
        table, gradient = (
            torch.frombuffer(
                mmap.mmap(-1, 4 * per_node * num_nodes, mmap.MAP_PRIVATE | NO_RESERVE), dtype=torch.float32
            )
            for _ in range(2)
        )
        table, gradient = table.view(shape), gradient.view(shape)
        # the interpreter would write every argument back, which CPU tensors do not need
        monkeypatch.setattr(
            "triton.runtime.interpreter.GridExecutor._restore_args_dev", lambda *arguments: None, raising=False
        )
    small, xyz, _ = make_samples(spec, 40)
    last = num_nodes - 1
    table[last] = small[0]
    leaf = table.requires_grad_()
    leaf.grad = gradient
    twin = small[:1].clone().requires_grad_()

    found = grid.encode(spec, leaf, xyz, torch.full((40,), last))
    found.sum().backward()
    expected = hash_grid.encode(spec, twin, xyz, torch.zeros(40, dtype=torch.int64))
    expected.sum().backward()

    torch.testing.assert_close(found.detach().cpu(), expected.detach(), atol=1e-6, rtol=0)
    assert twin.grad is not None
    torch.testing.assert_close(gradient[last].cpu(), twin.grad[0], atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("num_nodes", "log2_table_size", "num_features"), [(1, 19, 2), (8, 17, 2), (64, 14, 4), (512, 11, 2), (3, 16, 8)]
)
def test_full_size_on_a_gpu_equals_the_twin(num_nodes: int, log2_table_size: int, num_features: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    spec = GridSpec(16, num_features, log2_table_size, 16, 2048)
    generator = torch.Generator("cuda").manual_seed(0)
    table = torch.rand(num_nodes, spec.num_entries, num_features, device="cuda", generator=generator) * 2 - 1
    xyz = torch.rand(100_003, 3, device="cuda", generator=generator)
    node = torch.randint(0, num_nodes, (len(xyz),), device="cuda", generator=generator).sort().values
    theirs, ours = table.clone().requires_grad_(), table.clone().requires_grad_()
    upstream = torch.randn(len(xyz), spec.num_features, device="cuda", generator=generator)

    expected = hash_grid.encode(spec, theirs, xyz, node)
    expected.backward(upstream)
    found = resolve_backend("triton", "cuda")(spec, ours, xyz, node)
    found.backward(upstream)

    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert ours.grad is not None and theirs.grad is not None
    # thousands of samples meet in an entry of the coarse levels, and either side adds them in another order
    torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["_forward", "_backward"])
@pytest.mark.parametrize("capability", [75, 90])
def test_kernels_compile_for_gpus_that_are_not_there(
    kernel: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton", reason=WITHOUT_TRITON)
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7):
        pytest.skip("the compiler's own interface is another one before Triton 3.7")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module = importlib.import_module("inf_nerf.field.triton_grid")
    function, constants = getattr(module, kernel), {"NUM_LEVELS": 16, "NUM_FEATURES": 2, "BLOCK": module.BLOCK}
    types = ["*fp32", "*fp32", "*i64", "*fp32", "*fp32", "*i32", "*i32", "*i64", "i32", "i32"]
    signature = dict(zip(function.arg_names, types + ["constexpr"] * len(constants), strict=True))
    aligned = {(index,): [["tt.divisibility", 16]] for index in range(8)}

    compiled = triton.compile(
        triton.compiler.ASTSource(function, signature, constants, aligned),
        target=triton.backends.compiler.GPUTarget("cuda", capability, 32),
        options={"num_warps": module.NUM_WARPS, "enable_fp_fusion": False},
    )

    code = compiled.asm["ptx"]
    assert "fma.rn" not in code  # rounds as the twin
    assert "ld.global.v2.b32" in code  # both features of an entry at once
    added = re.findall(r"(?:atom|red)[.\w:]*\.add[.\w]*f32", code)
    assert bool(added) == (kernel == "_backward")
