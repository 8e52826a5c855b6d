"""Turns: ranks that cannot hold all nodes at once train them one part after the other.

The tree is dealt to W x G parts instead of W.  In turn g rank r holds the shared nodes and part g W + r, the rest waits
in the newest checkpoint, and all ranks change turns at the same steps.  A turn ends with a checkpoint, and the next one
starts from it just as a restarted worker would; so whatever a training can be resumed from, a turn can.  A node that
had no turn yet has no file: it starts from the values that its key gives it, and readers of the checkpoint let its
parent answer.

Letters: W ranks, G turns.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.octree.partition import Partition, branch, make_partition
from inf_nerf.octree.topology import Octree
from inf_nerf.train.memory import field_bytes, occupancy_bytes

MIB = 1 << 20


@dataclass(frozen=True)
class Turns:
    """Which part of the tree each rank trains when."""

    partition: Partition  # W x G parts
    num_ranks: int  # W
    steps: int  # of a turn

    @property
    def num_turns(self) -> int:
        """G; the turns follow each other round and round."""
        return self.partition.num_ranks // self.num_ranks

    def at(self, step: int) -> int:
        """The turn, 0 to G - 1, that ``step`` belongs to."""
        return step // self.steps % self.num_turns

    def end(self, step: int) -> int | None:
        """The step from which on another turn is on, or None if there is just one."""
        return (step // self.steps + 1) * self.steps if self.num_turns > 1 else None


def node_bytes(config: Config) -> int:
    """Memory that a node takes while it is trained."""
    return field_bytes(config, 1) + occupancy_bytes(config, 1)


def partition_in_turns(config: Config, octree: Octree, num_ranks: int, load: Tensor | None = None) -> Partition:
    """The tree, or the branch of it that ``train.subtree`` names, in as many parts for each rank as it takes turns.

    ``load`` [N] is the work that each node makes, as in :func:`inf_nerf.octree.partition.make_partition`.

    Raises :class:`InputError` as :func:`plan_turns` and :func:`inf_nerf.octree.partition.branch` do.
    """
    subtree, levels = config.train.subtree, config.train.shared_upper_levels

    def partition_into(num_parts: int) -> Partition:
        if subtree is None:
            return make_partition(octree, num_parts, levels, load)
        part, num_parts, upper = branch(octree, subtree, num_parts, levels)
        return make_partition(part, num_parts, upper, None if load is None else load[octree.index_of(part.keys)])

    return plan_turns(config, partition_into, num_ranks).partition


def plan_turns(config: Config, partition_into: Callable[[int], Partition], num_ranks: int) -> Turns:
    """The fewest turns in which the nodes of every rank fit under ``train.node_memory_mb``.

    ``partition_into`` deals the tree to a number of parts.  Raises :class:`InputError` naming the least cap that would
    do where no number of parts makes them small enough.
    """
    cap, each, least = config.train.node_memory_mb, node_bytes(config), float("inf")
    num_turns, num_nodes = 1, 1
    while num_turns == 1 or num_turns * num_ranks <= 2 * num_nodes:
        partition = partition_into(num_ranks * num_turns)
        num_nodes = len(partition.shared) + sum(map(len, partition.owned))
        held = (len(partition.shared) + max(map(len, partition.owned))) * each / MIB
        if cap is None or held <= cap:
            return Turns(partition, num_ranks, config.train.turn_steps)
        least = min(least, held)
        fewest = -(-num_nodes * each // int(num_ranks * cap * MIB))  # as if nothing was shared
        num_turns = max(num_turns + max(1, num_turns // 8), fewest)
    raise InputError(
        f"train.node_memory_mb is {cap:g}, but the shared nodes and the smallest parts of this tree take {least:.1f} "
        "MB on a worker; raise it above that, or lower train.shared_upper_levels or field.log2_table_size."
    )
