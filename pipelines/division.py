"""How a training is divided: nodes and tiles of every rank, and what is said of it before it starts.

Letters: W ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.table import Table
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.field.field import node_parameters
from inf_nerf.octree.load import TILE_TABLE, RankTiles, imbalance, node_load, tile_ranks
from inf_nerf.octree.partition import Partition, branch
from inf_nerf.octree.tiles import IDENTITY_KEY, tile_file
from inf_nerf.octree.topology import Octree, is_below, key_of
from inf_nerf.train.turns import partition_in_turns
from pipelines.prepare import Prepared

READERS = 8  # threads that read tile tables
KEPT = 4  # partitions: those of a large tree are large, and an elastic training asks for one of each number of ranks


class Partitions:
    """The nodes dealt to any number of ranks; the latest answers are kept, for many ask for the same one."""

    def __init__(self, config: Config, octree: Octree, load: Tensor) -> None:
        """``load`` [N] is the work that each node makes."""
        self._dealt = config, octree, load
        self._kept = lru_cache(KEPT)(partial(partition_in_turns, config, octree, load=load))

    def __call__(self, num_ranks: int) -> Partition:
        """The partition for so many ranks, in turns where they need them; raises :class:`InputError` where none fits
        (:func:`inf_nerf.train.turns.partition_in_turns`)."""
        return self._kept(num_ranks)

    def __reduce__(self) -> tuple[type["Partitions"], tuple[Config, Octree, Tensor]]:
        return Partitions, self._dealt  # workers ask for one and make it themselves


@dataclass(frozen=True, eq=False)
class Dealing:
    """How nodes and tiles are dealt to any number of ranks, by the load that the train tiles make."""

    partition_of: Callable[[int], Partition]
    tables: dict[str, pa.Table]  # TILE_TABLE of each split: "train" and, where there are val photos, "val"
    level_boost: float

    @staticmethod
    def of(config: Config, octree: Octree, tables: dict[str, pa.Table]) -> "Dealing":
        """Deal the nodes of ``octree`` and the tiles in ``tables``.

        Raises :class:`InputError` where ``train.subtree`` names no node of the tree, or one that no photo sees.
        """
        boost = config.data.level_boost
        if config.train.subtree is not None:
            branch(octree, config.train.subtree, 1, 1)
        tables = {split: that_see(config.train.subtree, table) for split, table in tables.items()}
        if len(tables["train"]) == 0:
            raise InputError(f"No photo sees the subtree {config.train.subtree}; name another --subtree.")
        load = node_load(tables["train"], octree, boost)
        return Dealing(Partitions(config, octree, load), tables, boost)

    @property
    def pixels(self) -> int:
        """Pixels of all train tiles that no mask hides: what an epoch draws as many rays as."""
        return int(self.tables["train"]["used"].to_numpy().sum())

    def in_steps(self, config: Config) -> Config:
        """The same configuration with ``train.steps`` as many as ``train.epochs`` take."""
        train = config.train.model_copy(update={"steps": config.train.steps_for(self.pixels)})
        return config.model_copy(update={"train": train})

    def tiles(self, num_ranks: int) -> dict[str, list[RankTiles]]:
        """The tiles of every rank for each split."""
        partition = self.partition_of(num_ranks)
        return {split: tile_ranks(table, partition, self.level_boost) for split, table in self.tables.items()}

    def loads(self, num_ranks: int) -> dict[str, list[float]]:
        """The part of each split's draws that every rank makes."""
        return {split: [mine.load for mine in ranks] for split, ranks in self.tiles(num_ranks).items()}


def describe(config: Config, partition: Partition, tiles: Sequence[RankTiles], num_ranks: int) -> dict[str, Any]:
    """Shared and owned nodes and parameters, train tiles and load of every rank in every turn; plain numbers."""
    each, loads = node_parameters(config.field), [mine.load for mine in tiles]
    turns = range(0, partition.num_ranks, num_ranks)
    num_owned = sum(map(len, partition.owned))
    return {
        "shared_nodes": len(partition.shared),  # the background among them
        "shared_parameters": len(partition.shared) * each,
        "owned_nodes": num_owned,
        "most_owned": max(map(len, partition.owned)) / max(1, num_owned),  # by one rank, part of all owned
        "turns": len(turns),
        "imbalance": max(imbalance(loads[first : first + num_ranks]) for first in turns),
        "ranks": [
            {
                "rank": part % num_ranks,
                "turn": part // num_ranks,
                "owned_nodes": len(owned),
                "owned_parameters": len(owned) * each,
                "tiles": len(mine.tile),
                "load": mine.load,
            }
            for part, (owned, mine) in enumerate(zip(partition.owned, tiles, strict=True))
        ],
    }


def division_table(description: dict[str, Any]) -> Table:
    """What :func:`describe` found, to be printed."""
    shared = f"{description['shared_nodes']} nodes, {description['shared_parameters'] / 1e6:.2f} M parameters"
    table = Table(
        title=f"shared by all workers: {shared}",
        caption=f"expected load imbalance {description['imbalance']:.1%} (heaviest over mean)",
    )
    for name in ("worker", "own nodes", "of all owned", "own parameters", "tiles", "load"):
        table.add_column(name, justify="right")
    whole = max(1, description["owned_nodes"])
    for rank in description["ranks"]:
        table.add_row(
            worker_name(rank, description["turns"]),
            str(rank["owned_nodes"]),
            f"{rank['owned_nodes'] / whole:.1%}",
            f"{rank['owned_parameters'] / 1e6:.2f} M",
            f"{rank['tiles']:,}",
            f"{rank['load']:.1%}",
        )
    return table


def worker_name(rank: Mapping[str, Any], num_turns: int) -> str:
    """A rank of :func:`describe`, with its turn if there are several."""
    return str(rank["rank"]) + (f", turn {rank['turn']}" if num_turns > 1 else "")


def tile_tables(run_dir: Path, prepared: Prepared) -> dict[str, pa.Table]:
    """The :data:`TILE_TABLE` of the splits that have tiles: ``train`` and, where there are val photos, ``val``."""
    photos = {"train": prepared.scene.train, "val": prepared.scene.val}
    return {
        split: read_tile_table([tile_file(run_dir, photo) for photo in mine], prepared.identity)
        for split, mine in photos.items()
        if mine  # Ray Data makes no dataset of nothing
    }


def that_see(subtree: str | None, tile_table: pa.Table) -> pa.Table:
    """The tiles that see a node of the subtree with this name; all of them if there is none."""
    if subtree is None:
        return tile_table
    nodes = tile_table["nodes"].combine_chunks()
    row = np.repeat(np.arange(len(tile_table)), nodes.value_lengths().to_numpy())
    inside = is_below(torch.from_numpy(nodes.flatten().to_numpy().copy()), key_of(subtree)).numpy()
    return tile_table.take(pa.array(np.unique(row[inside])))


def read_tile_table(files: Sequence[Path], identity: str) -> pa.Table:
    """The :data:`TILE_TABLE` of all files; :class:`InputError` names a file that is missing or foreign."""
    with ThreadPoolExecutor(READERS) as pool:
        tables = pool.map(lambda file: _tile_table(file, identity), files)
        return pa.concat_tables([TILE_TABLE.empty_table(), *tables])


def _tile_table(file: Path, identity: str) -> pa.Table:
    try:
        with pq.ParquetFile(file) as parquet:
            if (parquet.schema_arrow.metadata or {}).get(IDENTITY_KEY) != identity.encode():
                raise InputError(f"{file} was made for another scene or octree; run inf-nerf prepare again.")
            table = parquet.read(columns=["tile", "level", "width", "height", "mask", "nodes"])
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{file} cannot be read ({error}); run inf-nerf prepare again.") from error
    used = np.multiply(table["width"].to_numpy(), table["height"].to_numpy(), dtype=np.int64)
    for row in np.flatnonzero(table["mask"].is_valid().to_numpy()):
        used[row] = np.count_nonzero(np.frombuffer(table["mask"][int(row)].as_buffer(), np.uint8))
    return pa.table([table["tile"], table["level"], used, table["nodes"]], schema=TILE_TABLE)
