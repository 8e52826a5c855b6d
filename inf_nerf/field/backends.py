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
        name = "numba" if kind == "cpu" and importlib.util.find_spec("numba") is not None else "torch"
        logger.info("field backend: %s (chosen automatically for %s)", name, kind)
    if name == "torch":
        return Encoder("torch", hash_grid.encode)
    if name == "numba":
        return _numba(kind)
    if name == "tinycudann":
        raise _tinycudann()
    raise InputError(f"field.backend is {name!r}, which is unknown; choose auto, torch, numba or tinycudann.")


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


def _tinycudann() -> InputError:
    if importlib.util.find_spec("tinycudann") is None:
        return InputError(
            "field.backend is 'tinycudann', which is not installed and on no package index; on a machine with a CUDA "
            f"compiler and a CUDA build of torch run {TINYCUDANN_INSTALL}, or set field.backend=auto."
        )
    return InputError(
        "field.backend is 'tinycudann', which is installed, but this version has no encoder that runs it; set "
        "field.backend=auto (the table keeps tinycudann's layout)."
    )
