"""Nodes of a model in a store, with an account of what was asked of it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.field.field import Field
from inf_nerf.field.occupancy import Cells
from inf_nerf.octree.topology import BACKGROUND_KEY, Octree
from inf_nerf.render.model import Model, field_keys
from inf_nerf.render.node_cache import NodeCache
from inf_nerf.render.stored_model import StoredModel
from tests.train.tiny import MEAN_COLOUR, tiny_config

NUM_PHOTOS = 6
TRAINED = [0, 1, 2, 4, 5]


@dataclass
class MemorySource:
    """The nodes of a model that is all in memory."""

    model: Model
    reads: list[int] = field(default_factory=list)

    def read(self, key: int) -> dict[str, Tensor]:
        self.reads.append(key)
        index = self.model.field.keys.tolist().index(key)
        state = {name: value.clone() for name, value in self.model.field.state_of(index).items()}
        return state if key == BACKGROUND_KEY else state | {"occupied": self.model.cells.occupied[index].clone()}

    def nbytes(self, key: int) -> int:
        return self.model.field.node_bytes + self.model.cells.resolution**3


def whole_model(octree: Octree, config: Config | None = None) -> Model:
    """Clearly different densities and colours in every node, two thirds of the cells empty."""
    config = config or tiny_config()
    model = Model(config, octree, NUM_PHOTOS, TRAINED, torch.tensor(MEAN_COLOUR), True)
    model.field.tables.data.mul_(10_000)
    model.appearance.data.normal_(generator=torch.Generator().manual_seed(1))
    occupancy = model.occupancy
    random = torch.rand(occupancy.density.shape, generator=torch.Generator().manual_seed(3))
    occupancy.density = torch.where(random < 0.33, 1e3, 0.0)
    occupancy.enabled = True
    occupancy.refresh()
    model.occupancy_changed()
    return model


def stored(model: Model, budget: int) -> StoredModel:
    """The same model behind a cache of ``budget`` bytes."""
    cache = NodeCache(model.config, MemorySource(model), budget, model.octree.num_nodes + 1)
    root = model.octree.restrict({1})
    cells = Cells(torch.ones(1, model.cells.resolution**3, dtype=torch.bool), model.cells.resolution)
    answers = Field(model.config.field, field_keys(root), None)
    return StoredModel(model.over(root, answers, cells), model.octree, cache)
