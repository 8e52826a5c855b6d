"""What the tiles of a training ask of the tree, and how a partition deals it out.

A ray costs about the same wherever it goes, since training keeps the mean number of its samples at
``sampler.samples``: the load is the rays that are drawn.  A tile's part of them is its number of used pixels times
``level_boost ** level``, whoever draws them; so ranks that draw in proportion to their load draw every pixel as often
as one rank alone would.

Letters: T tiles, E entries (a tile and one node that it sees), N nodes, W ranks.
"""

import heapq
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from inf_nerf.octree.partition import Partition
from inf_nerf.octree.tiles import TILE_SCHEMA
from inf_nerf.octree.topology import ROOT_KEY, Octree

TILE_TABLE = pa.schema(
    [
        TILE_SCHEMA.field("tile"),
        TILE_SCHEMA.field("level"),
        pa.field("used", pa.int64(), nullable=False),  # pixels that no mask hides
        TILE_SCHEMA.field("nodes"),
    ]
)


@dataclass(frozen=True, eq=False)
class RankTiles:
    """The tiles of one rank."""

    tile: NDArray[np.int64]  # [T] ids, ascending
    share: NDArray[np.float32]  # [T] of the tile's draws; over all ranks the shares of a tile add up to 1
    load: float  # part of all draws that is made here; adds up to 1


def draws_of(tile_table: pa.Table, level_boost: float) -> NDArray[np.float64]:
    """Part of all draws that each tile of a :data:`TILE_TABLE` gets [T]; adds up to 1."""
    level = tile_table["level"].to_numpy().astype(np.float64)
    draws = tile_table["used"].to_numpy() * level_boost**level
    return draws / (draws.sum() or 1.0)


def node_load(tile_table: pa.Table, octree: Octree, level_boost: float) -> Tensor:
    """Part of all draws that each node answers [N] float64; adds up to 1.

    A tile's draws are divided among the finest of the nodes that it sees: those below which it sees no other.  What
    only the background answers counts for the root, which is shared like it.
    """
    row, keys = _entries(tile_table)
    index = octree.index_of(torch.from_numpy(np.maximum(keys, ROOT_KEY))).numpy()
    while (unknown := index < 0).any():  # a node that this tree has not: its nearest ancestor
        keys = np.where(unknown, keys >> 3, keys)
        index = octree.index_of(torch.from_numpy(np.maximum(keys, ROOT_KEY))).numpy()
    pairs = np.unique(row * octree.num_nodes + index)  # ascending
    parent = octree.parent.numpy()
    is_finest = np.ones(len(pairs), bool)
    row, above = np.divmod(pairs, octree.num_nodes)
    while len(row):
        above = parent[above]
        row, above = row[above >= 0], above[above >= 0]
        place = np.searchsorted(pairs, row * octree.num_nodes + above).clip(max=len(pairs) - 1)
        is_finest[place[pairs[place] == row * octree.num_nodes + above]] = False
    row, node = np.divmod(pairs[is_finest], octree.num_nodes)
    draws = draws_of(tile_table, level_boost) / np.bincount(row, minlength=len(tile_table)).clip(min=1)
    return torch.from_numpy(np.bincount(node, draws[row], octree.num_nodes))


def tile_ranks(tile_table: pa.Table, partition: Partition, level_boost: float) -> list[RankTiles]:
    """Give each rank its tiles; W entries.

    A tile of the :data:`TILE_TABLE` goes to every owner of nodes that it sees, and its share there is the part of its
    owned nodes that are that rank's: pixels are drawn where they are answered.  Tiles that see only shared nodes can
    go anywhere: the one with the most draws goes to the rank with the fewest, and so on.
    """
    tile_table, num_ranks = tile_table.sort_by("tile"), partition.num_ranks
    tile, draws = tile_table["tile"].to_numpy(), draws_of(tile_table, level_boost)
    row, keys = _entries(tile_table)
    owner = partition.owners_of(torch.from_numpy(keys)).numpy()  # [E]
    held, count = np.unique(row[owner >= 0] * num_ranks + owner[owner >= 0], return_counts=True)
    row, rank = np.divmod(held, num_ranks)
    num_owned = np.bincount(row, count, len(tile))  # [T] of the tile's nodes
    share = count / num_owned[row]
    load = np.bincount(rank, share * draws[row], num_ranks)
    shared = np.flatnonzero(num_owned == 0)
    shared = shared[np.argsort(-draws[shared], kind="stable")]
    taker, lightest = np.empty(len(shared), np.int64), [(each, index) for index, each in enumerate(load.tolist())]
    heapq.heapify(lightest)
    for place, more in enumerate(draws[shared].tolist()):
        each, taker[place] = lightest[0]
        heapq.heapreplace(lightest, (each + more, int(taker[place])))
    load = load + np.bincount(taker, draws[shared], num_ranks)  # int64 where there is nothing to count
    row, rank = np.concatenate((row, shared)), np.concatenate((rank, taker))
    share = np.concatenate((share, np.ones(len(shared)))).astype(np.float32)
    order = np.lexsort((row, rank))
    ends = np.searchsorted(rank[order], np.arange(1, num_ranks))
    return [
        RankTiles(tile[row[mine]], share[mine], each)
        for mine, each in zip(np.split(order, ends), load.tolist(), strict=True)
    ]


def imbalance(loads: NDArray[np.float64] | list[float]) -> float:
    """How much heavier the heaviest rank is than the mean: max / mean - 1, 0 if there is no load."""
    mean = float(np.mean(loads))
    return float(np.max(loads)) / mean - 1 if mean > 0 else 0.0


def _entries(tile_table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows [E] and keys [E] of all pairs of a tile and a node that it sees."""
    nodes = tile_table["nodes"].combine_chunks()
    return np.repeat(np.arange(len(tile_table)), nodes.value_lengths().to_numpy()), nodes.flatten().to_numpy().copy()
