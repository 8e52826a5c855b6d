"""The bytes that settings promise are those that a training holds and a checkpoint writes."""

from pathlib import Path

import pytest
import torch

from inf_nerf.train.checkpoint import save_checkpoint
from inf_nerf.train.memory import checkpoint_bytes, field_bytes, occupancy_bytes
from tests.train.tiny import tiny_config, tiny_octree, tiny_scene, tiny_work

HEADER_BYTES = 700  # at most, of a safetensors file
GRIDS = ("density", "protected", "free", "occupied")


def bytes_of(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("features", [1, 4])
def test_nodes_take_the_promised_bytes_in_memory_and_in_a_checkpoint(tmp_path: Path, features: int) -> None:
    config = tiny_config(field={"features_per_level": features, "log2_table_size": 11, "max_res": 64})
    work = tiny_work(config).work
    model, nodes = work.model, len(work.model.field.keys)
    model.field.touched[:] = True
    work.optimiser.step(1e-2)  # moments come with the first update
    leaves = (model.field.tables, model.field.density_weights, model.field.colour_weights)
    held = sum(bytes_of(leaf, leaf.grad) for leaf in leaves if leaf.grad is not None)
    moments = [value for node in range(nodes) for value in work.optimiser.state_of(node).values() if value.dim()]
    assert held + bytes_of(*moments) == field_bytes(config, nodes)
    assert bytes_of(*(getattr(model.occupancy, name) for name in GRIDS)) == occupancy_bytes(config, nodes - 1)

    path = save_checkpoint(tmp_path, work, tiny_scene(), tiny_octree(), "tiny", None, False)
    files = [*(path / "nodes").iterdir(), *(path / "optimiser").glob("[rb]*")]
    assert len(files) == 2 * nodes
    written, promised = sum(file.stat().st_size for file in files), checkpoint_bytes(config, nodes)
    assert promised < written < promised + HEADER_BYTES * len(files)
