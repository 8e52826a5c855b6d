"""Which code encodes positions: every backend is the same function ``encode(spec, table, xyz, node)``.

A backend that was asked for by name and cannot run here is an error; only ``auto`` chooses, and it says what it chose.
"""

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inf_nerf.errors import InputError
from inf_nerf.field import hash_grid
from inf_nerf.field.hash_grid import GridSpec

logger = logging.getLogger(__name__)

RUNS_ON = {"numba": "cpu", "triton": "cuda", "tinycudann": "cuda"}  # torch runs everywhere
TINYCUDANN_INSTALL = "pip install 'git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch'"


@dataclass(frozen=True)
class Encoder:
    """A named implementation of :func:`inf_nerf.field.hash_grid.encode`."""

    name: str
    encode: Callable[[GridSpec, Tensor, Tensor, Tensor, Tensor | None], Tensor]

    def __call__(self, spec: GridSpec, table: Tensor, xyz: Tensor, node: Tensor, known: Tensor | None = None) -> Tensor:
        """Positions [Q, 3] in [0, 1] and their nodes [Q] -> features [Q, L * F], ``known`` if computed before."""
        return self.encode(spec, table, xyz, node, known)


def resolve_backend(name: str, device: str | torch.device) -> Encoder:
    """The encoder of that name for tables on ``device``; ``auto`` takes the fastest that runs there.

    Raises :class:`InputError` with the remedy when a backend named explicitly cannot run.
    """
    kind = torch.device(device).type
    if name == "auto":
        name = backend_name(name, device)
        logger.info("field backend: %s (chosen automatically for %s)", name, kind)
    if name == "torch":
        return Encoder("torch", hash_grid.encode)
    if name == "numba":
        return _numba(kind)
    if name == "triton":
        return _triton(kind)
    if name == "tinycudann":
        return _tinycudann(kind)
    raise InputError(f"field.backend is {name!r}, which is unknown; choose auto, torch, numba, triton or tinycudann.")


def backend_name(name: str, device: str | torch.device) -> str:
    """The backend that ``name`` stands for on that kind of device; only ``auto`` stands for another."""
    fastest = {"cpu": "numba", "cuda": "triton"}.get(torch.device(device).type)
    if name != "auto":
        return name
    return fastest if fastest is not None and importlib.util.find_spec(fastest) is not None else "torch"


def portable_backend(name: str, device: str | torch.device) -> str:
    """The named backend if it is made for that kind of device, else ``auto``.

    For tables that were trained elsewhere: all backends read the same tables, and give the same values within rounding.
    """
    kind = torch.device(device).type
    return name if RUNS_ON.get(name, kind) == kind else "auto"


def _numba(kind: str) -> Encoder:
    if kind != "cpu":
        raise InputError(
            f"field.backend 'numba' runs on the CPU only, but the field is on {kind}; choose torch or auto."
        )
    try:
        from inf_nerf.field import numba_grid
    except ImportError as error:
        raise InputError(
            f"field.backend is 'numba', which cannot be imported here ({error}); run pip install numba, or set "
            "field.backend=torch."
        ) from error
    return Encoder("numba", numba_grid.encode)


def _triton(kind: str) -> Encoder:
    _require_cuda("triton", kind)
    try:
        from inf_nerf.field import triton_grid
    except ImportError as error:
        raise InputError(
            f"field.backend is 'triton', which cannot be imported here ({error}); install a CUDA build of torch for "
            "Linux, which brings it along, or set field.backend=torch."
        ) from error
    return Encoder("triton", triton_grid.encode)


def _tinycudann(kind: str) -> Encoder:
    if importlib.util.find_spec("tinycudann") is None:
        raise InputError(
            "field.backend is 'tinycudann', which is not installed and on no package index; on a machine with a CUDA "
            f"compiler and a CUDA build of torch run {TINYCUDANN_INSTALL}, or set field.backend=auto."
        )
    _require_cuda("tinycudann", kind)
    try:
        from inf_nerf.field import tinycudann_grid
    except OSError as error:  # what tinycudann raises when it finds no CUDA device, or none that it was built for
        raise InputError(
            f"field.backend is 'tinycudann', which is installed but does not start here ({error}); build it again on "
            "this machine with its GPU visible, or set field.backend=auto."
        ) from error
    except ImportError as error:
        raise InputError(
            f"field.backend is 'tinycudann', which cannot be imported here ({error}); build it again for the torch "
            f"that is installed with {TINYCUDANN_INSTALL}, or set field.backend=auto."
        ) from error
    return Encoder("tinycudann", tinycudann_grid.encode)


def _require_cuda(name: str, kind: str) -> None:
    if kind != "cuda":
        raise InputError(
            f"field.backend {name!r} runs on CUDA devices only, but the field is on {kind}; set "
            "train.gpus_per_worker=1 on a machine with one, or choose auto."
        )
