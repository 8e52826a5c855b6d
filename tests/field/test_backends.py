"""Choosing the code that encodes positions."""

import importlib.machinery
import importlib.util
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import inf_nerf.field
from inf_nerf.errors import InputError
from inf_nerf.field import hash_grid, numba_grid
from inf_nerf.field.backends import Encoder, portable_backend, resolve_backend
from inf_nerf.field.hash_grid import GridSpec


def test_backends_are_found_by_name() -> None:
    assert resolve_backend("torch", "cpu").encode is hash_grid.encode
    assert resolve_backend("numba", "cpu").encode is numba_grid.encode
    assert resolve_backend("torch", "cpu").name == "torch"


def test_every_backend_is_the_same_function() -> None:
    spec = GridSpec(num_levels=3, features_per_level=2, log2_table_size=9, base_res=4, max_res=16)
    table = torch.rand(2, spec.num_entries, 2, generator=torch.Generator().manual_seed(0))
    xyz = torch.rand(50, 3, generator=torch.Generator().manual_seed(1))
    node = torch.arange(50) // 25

    results = [resolve_backend(name, "cpu")(spec, table, xyz, node) for name in ("auto", "torch", "numba")]

    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-6, rtol=0)


def test_auto_takes_numba_on_the_cpu_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="inf_nerf.field.backends"):
        encoder = resolve_backend("auto", "cpu")

    assert encoder.name == "numba"
    assert "field backend: numba (chosen automatically for cpu)" in caplog.text


@pytest.mark.parametrize(("installed", "expected"), [(True, "triton"), (False, "torch")])
def test_auto_takes_triton_on_a_gpu_if_it_is_there_and_says_so(
    installed: bool, expected: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.machinery.ModuleSpec("triton", None) if installed else None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    monkeypatch.setattr(inf_nerf.field, "triton_grid", SimpleNamespace(encode=hash_grid.encode), raising=False)

    with caplog.at_level(logging.INFO, logger="inf_nerf.field.backends"):
        encoder = resolve_backend("auto", "cuda")

    assert encoder.name == expected
    assert f"field backend: {expected} (chosen automatically for cuda)" in caplog.text


def test_auto_takes_torch_on_other_devices() -> None:
    assert resolve_backend("auto", "meta").name == "torch"


def forget(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have ``inf_nerf.field.<name>`` imported anew, until the test ends."""
    monkeypatch.delattr(inf_nerf.field, name, raising=False)
    monkeypatch.delitem(sys.modules, f"inf_nerf.field.{name}", raising=False)


def test_missing_triton_is_an_error_that_names_the_build_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, "triton_grid")
    monkeypatch.setitem(sys.modules, "triton", None)

    with pytest.raises(InputError, match=r"cannot be imported here \(.*triton.*\); install a CUDA build of torch"):
        resolve_backend("triton", "cuda")


def test_missing_tinycudann_is_an_error_that_names_the_install_command() -> None:
    if importlib.util.find_spec("tinycudann") is not None:
        pytest.skip("tinycudann is installed")

    with pytest.raises(InputError, match=r"not installed.*pip install 'git\+https.*tiny-cuda-nn.*bindings/torch'"):
        resolve_backend("tinycudann", "cuda")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ('OSError("Unknown compute capability.")', r"does not start here \(Unknown compute capability\.\); build it"),
        (
            'ImportError("undefined symbol")',
            r"cannot be imported here \(undefined symbol\); build it again .*pip install",
        ),
    ],
)
def test_tinycudann_that_does_not_start_is_an_error_that_says_why(
    failure: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tinycudann.py").write_text(f"raise {failure}\n")  # the first: what it raises without a CUDA device
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tinycudann", raising=False)
    forget(monkeypatch, "tinycudann_grid")

    with pytest.raises(InputError, match=message):
        resolve_backend("tinycudann", "cuda")


def test_installed_tinycudann_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    monkeypatch.setattr(inf_nerf.field, "tinycudann_grid", SimpleNamespace(encode=hash_grid.encode), raising=False)

    assert resolve_backend("tinycudann", "cuda") == Encoder("tinycudann", hash_grid.encode)


@pytest.mark.parametrize("name", ["triton", "tinycudann"])
def test_cuda_backends_on_the_cpu_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))

    with pytest.raises(InputError, match=r"runs on CUDA devices only, but the field is on cpu; set train\.gpus_per"):
        resolve_backend(name, "cpu")


@pytest.mark.parametrize(
    ("trained_with", "device", "expected"),
    [
        ("triton", "cpu", "auto"),
        ("tinycudann", "cpu", "auto"),
        ("numba", "cuda", "auto"),
        ("numba", "cpu", "numba"),
        ("triton", "cuda:1", "triton"),
        ("torch", "cuda", "torch"),
        ("auto", "cpu", "auto"),
    ],
)
def test_a_checkpoint_is_read_by_a_backend_of_the_device_at_hand(trained_with: str, device: str, expected: str) -> None:
    assert portable_backend(trained_with, device) == expected


def test_missing_numba_is_an_error_that_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("inf_nerf.field.numba_grid")
    monkeypatch.setitem(sys.modules, "inf_nerf.field.numba_grid", None)

    with pytest.raises(InputError, match="pip install numba"):
        resolve_backend("numba", "cpu")


def test_numba_on_a_gpu_is_refused() -> None:
    with pytest.raises(InputError, match="runs on the CPU only, but the field is on cuda"):
        resolve_backend("numba", "cuda")


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(InputError, match="'warp', which is unknown; choose auto, torch, numba, triton or tinycudann"):
        resolve_backend("warp", "cpu")
