"""What a renderer holds and reads while a camera moves through a model that is much larger than its memory.

Nodes come from no disk: all have the values that a training of the root begins with.  Pictures are not drawn; their
nodes are loaded and evicted as if they were.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.field.field import Field
from inf_nerf.field.occupancy import Cells
from inf_nerf.octree.topology import BACKGROUND_KEY, ROOT_KEY, Octree
from inf_nerf.render.images import Crop
from inf_nerf.render.model import Model, field_keys
from inf_nerf.render.node_cache import NodeCache
from inf_nerf.render.stored_model import StoredModel
from inf_nerf.scene.cameras import Cameras


class UntrainedNodes:
    """A source of as many nodes as are asked for."""

    def __init__(self, config: Config) -> None:
        field = Field(config.field, torch.tensor([ROOT_KEY]), seed=0)
        self._values = {name: value.clone() for name, value in field.state_of(0).items()}
        self._occupied = torch.ones(config.sampler.occupancy_res**3, dtype=torch.bool)

    def read(self, key: int) -> dict[str, Tensor]:
        """A node's values, and which of its cells are occupied: all."""
        values = {name: value.clone() for name, value in self._values.items()}
        return values if key == BACKGROUND_KEY else values | {"occupied": self._occupied.clone()}

    def nbytes(self, key: int) -> int:
        """Bytes of a node."""
        tensors = (*self._values.values(), self._occupied)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class Drive:
    """What a drive cost."""

    peak_mb: float  # of nodes held at once
    read_mb: float
    evicted: int  # nodes
    parts: float  # that a picture was split into, mean


def drive(config: Config, tree: Octree, cameras: Cameras, budget: int) -> Drive:
    """Load what the pictures [V] of ``cameras`` need, one after the other, within ``budget`` bytes of nodes."""
    root = tree.restrict([ROOT_KEY])
    cells = Cells(torch.ones(1, config.sampler.occupancy_res**3, dtype=torch.bool), config.sampler.occupancy_res)
    answers = Field(config.field, field_keys(root), None)
    scenery = Model(config, root, 1, [0], torch.zeros(3), solid_ground=True, field=answers, cells=cells)
    cache = NodeCache(config, UntrainedNodes(config), budget, tree.num_nodes + 1)
    model = StoredModel(scenery, tree, cache)
    parts = 0
    try:
        for view in range(len(cameras)):
            for _ in model.parts(cameras, view, 0, Crop(0, 0, *cameras.level_size(view, 0)), 0.0):
                parts += 1
                assert cache.resident_bytes <= budget, f"{cache.resident_bytes:,} bytes are held, {budget:,} allowed"
    finally:
        cache.close()
    figures = cache.figures
    return Drive(figures.peak_bytes / 2**20, cache.bytes_read / 2**20, figures.evicted, parts / len(cameras))
