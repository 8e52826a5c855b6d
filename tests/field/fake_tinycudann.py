"""Stands in for tinycudann on the CPU: what its torch module demands and does, around the torch twin.

The demands (batches of 256, contiguous float32, the exact number of parameters, a dense gradient, and only if the
parameters asked for one before) are those of ``modules.py`` and ``bindings.cpp`` in tiny-cuda-nn's ``bindings/torch``.
The numbers are the twin's, so that only the bookkeeping around an encoding is tested by it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from inf_nerf.field import hash_grid
from inf_nerf.field.hash_grid import GridSpec

GRANULARITY = 256


class Encoding(nn.Module):
    """A hash grid of one node with parameters of its own."""

    def __init__(
        self, n_input_dims: int, encoding_config: dict[str, Any], seed: int = 1337, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        assert n_input_dims == 3 and dtype == torch.float32
        assert encoding_config["otype"] == "HashGrid" and encoding_config["interpolation"] == "Linear"
        levels, base = encoding_config["n_levels"], encoding_config["base_resolution"]
        self.spec = GridSpec(
            levels,
            encoding_config["n_features_per_level"],
            encoding_config["log2_hashmap_size"],
            base,
            round(base * encoding_config["per_level_scale"] ** (levels - 1)),
        )
        self.calls = 0
        self.params = nn.Parameter(torch.full((self.spec.num_entries * self.spec.features_per_level,), torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, [0, 0, 0, -len(x) % GRANULARITY])
        self.calls += 1
        return _Native.apply(self.spec, padded, self.params)[: len(x)]  # pyright: ignore[reportOptionalSubscript]


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spec: GridSpec, x: Tensor, params: Tensor) -> Tensor:
        assert len(x) and len(x) % GRANULARITY == 0
        assert params.is_contiguous() and params.dtype == x.dtype == torch.float32
        assert params.shape == (spec.num_entries * spec.features_per_level,)
        ctx.save_for_backward(x, params)
        ctx.spec = spec
        return _twin(spec, x, params)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None, Tensor]:
        x, params = ctx.saved_tensors
        assert grad_outputs[0].is_contiguous() and params.requires_grad
        leaf = params.detach().clone().requires_grad_()
        with torch.enable_grad():
            _twin(ctx.spec, x, leaf).backward(grad_outputs[0])
        assert leaf.grad is not None
        return None, None, leaf.grad


def _twin(spec: GridSpec, x: Tensor, params: Tensor) -> Tensor:
    # tinycudann does not clamp: whoever calls it with other positions gets other features than the twin's
    assert bool(((x >= 0) & (x <= 1)).all())
    table = params.view(1, spec.num_entries, spec.features_per_level)
    return hash_grid.encode(spec, table, x, torch.zeros(len(x), dtype=torch.int64))
