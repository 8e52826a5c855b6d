"""How many bytes a training holds and writes, from its settings alone."""

from inf_nerf.config import Config
from inf_nerf.field.field import node_parameters

FLOAT_BYTES = 4
COPIES = 4  # of a parameter while training: value, gradient and two moments
OCCUPANCY_BYTES = 7  # of a cell: density, protected, free, occupied
SAVED_OCCUPANCY_BYTES = 6  # of a cell in a checkpoint, which leaves out what can be computed


def field_bytes(config: Config, num_nodes: int) -> int:
    """Values, gradients and moments of nodes in memory."""
    return num_nodes * node_parameters(config.field) * FLOAT_BYTES * COPIES


def occupancy_bytes(config: Config, num_nodes: int) -> int:
    """Occupancy grids of nodes in memory; the background has none."""
    return num_nodes * config.sampler.occupancy_res**3 * OCCUPANCY_BYTES


def checkpoint_bytes(config: Config, num_nodes: int) -> int:
    """Node and optimiser files of a checkpoint; ``num_nodes`` counts the background."""
    values_and_moments = node_parameters(config.field) * FLOAT_BYTES * (COPIES - 1)
    return num_nodes * values_and_moments + (num_nodes - 1) * config.sampler.occupancy_res**3 * SAVED_OCCUPANCY_BYTES
