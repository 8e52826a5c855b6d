"""Choosing the code that encodes positions."""

import importlib.machinery
import logging
import sys

import pytest
import torch

from inf_nerf.errors import InputError
from inf_nerf.field import hash_grid, numba_grid
from inf_nerf.field.backends import resolve_backend
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


def test_auto_takes_torch_elsewhere_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="inf_nerf.field.backends"):
        encoder = resolve_backend("auto", "cuda")

    assert encoder.name == "torch"
    assert "field backend: torch (chosen automatically for cuda)" in caplog.text


def test_missing_tinycudann_is_an_error_that_names_the_install_command() -> None:
    with pytest.raises(InputError, match=r"not installed.*pip install 'git\+https.*tiny-cuda-nn.*bindings/torch'"):
        resolve_backend("tinycudann", "cuda")


def test_installed_tinycudann_is_refused_rather_than_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.machinery.ModuleSpec("tinycudann", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)

    with pytest.raises(InputError, match=r"is installed, but .* set field\.backend=auto"):
        resolve_backend("tinycudann", "cuda")


def test_missing_numba_is_an_error_that_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("inf_nerf.field.numba_grid")
    monkeypatch.setitem(sys.modules, "inf_nerf.field.numba_grid", None)

    with pytest.raises(InputError, match="pip install numba"):
        resolve_backend("numba", "cpu")


def test_numba_on_a_gpu_is_refused() -> None:
    with pytest.raises(InputError, match="runs on the CPU only, but the field is on cuda"):
        resolve_backend("numba", "cuda")


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(InputError, match="'warp', which is unknown; choose auto, torch, numba or tinycudann"):
        resolve_backend("warp", "cpu")
