"""Which worker gets which tiles, and how they reach it: the Ray Data shards of a training.

A tile goes to every rank that owns a node it sees, with the share of its draws that are made there; tiles that see only
shared nodes are dealt, each to one rank.  The default split of Ray Train hands blocks to whoever asks first;
:class:`OwnedTiles` gives each rank an iterator of its own, in an order that never changes.  How many ranks there are is
known when Ray has started them, anew after every failure: the partition is made then.

Letters: T tiles, W ranks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import ray.train
import torch
from numpy.typing import NDArray
from ray.data import DataIterator, Dataset

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.octree.partition import Partition
from inf_nerf.octree.tiles import IDENTITY_KEY, TILE_SCHEMA, tile_file
from inf_nerf.octree.topology import is_below, key_of
from pipelines.prepare import read_prepared
from pipelines.ray_session import check_workers_fit, session_cpus, start_ray

PIXEL_COLUMNS = [name for name in TILE_SCHEMA.names if name not in ("split", "nodes")]
TILE_TABLE = pa.schema([TILE_SCHEMA.field("tile"), TILE_SCHEMA.field("nodes")])
BLOCK_BYTES = 16 << 20  # tile files that one task reads
READERS = 8  # threads that read tile tables on the driver


@dataclass(frozen=True, eq=False)
class RankTiles:
    """The tiles of one rank."""

    tile: NDArray[np.int64]  # [T] ids, ascending
    share: NDArray[np.float32]  # [T] of the tile's draws; over all ranks the shares of a tile add up to 1


def tile_ranks(tile_table: pa.Table, partition: Partition) -> list[RankTiles]:
    """Give each rank its tiles; W entries.

    ``tile_table`` has the columns ``tile`` and ``nodes``.  A tile goes to every owner of its nodes, and its share there
    is the part of its owned nodes that are that rank's: pixels are drawn where they are answered.  Tiles that see only
    shared nodes are dealt round-robin in the order of their ids.
    """
    tile_table = tile_table.sort_by("tile")
    tile = tile_table["tile"].to_numpy()
    nodes = tile_table["nodes"].combine_chunks()
    row = np.repeat(np.arange(len(tile)), nodes.value_lengths().to_numpy())  # [E] one entry per tile and node
    owner = partition.owners_of(torch.from_numpy(nodes.flatten().to_numpy().copy())).numpy()  # [E]
    num_ranks = partition.num_ranks
    num_nodes = np.zeros((len(tile), num_ranks), np.float32)  # of the tile that belong to the rank
    np.add.at(num_nodes, (row[owner >= 0], owner[owner >= 0]), 1)
    shared = np.flatnonzero(num_nodes.sum(1) == 0)
    num_nodes[shared, np.arange(len(shared)) % num_ranks] = 1
    share = num_nodes / num_nodes.sum(1, keepdims=True)
    held = [np.flatnonzero(share[:, rank]) for rank in range(num_ranks)]
    return [RankTiles(tile[rows], share[rows, rank]) for rank, rows in enumerate(held)]


class OwnedTiles(ray.train.DataConfig):
    """A Ray Train data configuration that gives each rank the tiles it owns.

    The datasets it configures list tile files (:func:`tile_files`); the iterators yield tables of
    :data:`inf_nerf.octree.tiles.TILE_SCHEMA` without ``split`` and ``nodes`` and with ``share`` float32.
    """

    def __init__(self, tables: Mapping[str, pa.Table], partition_of: Callable[[int], Partition]) -> None:
        """``tables`` holds the :data:`TILE_TABLE` of each dataset, ``partition_of`` makes a partition for W ranks."""
        # Unsplit, or Ray Train makes all workers wait for each other before the first one may read.
        super().__init__(datasets_to_split=[])
        self._tables = tables
        self._partition_of = partition_of

    def configure(
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        worker_handles: list[Any] | None,
        worker_node_ids: list[Any] | None,
        **kwargs: Any,
    ) -> list[dict[str, DataIterator]]:
        """One iterator per rank and dataset; each pass over it reads the same tiles in the same order."""
        shards: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        partition = self._partition_of(world_size)
        for name, files in datasets.items():
            split, _, turn = name.partition("-")
            first = int(turn or 0) * world_size
            parts = tile_ranks(self._tables[split], partition)[first : first + world_size]
            for shard, tiles in zip(shards, parts, strict=False):  # none for a turn that so many ranks do without
                read = files.map_batches(partial(read_tiles, tiles=tiles), batch_format="pyarrow", batch_size=None)
                read.context.execution_options.preserve_order = True
                shard[name] = read.iterator()
        return shards


def datasets_for(
    config: Config, run_dir: Path, partition_of: Callable[[int], Partition]
) -> tuple[dict[str, Dataset | DataIterator], OwnedTiles]:
    """What a TorchTrainer needs to feed any number of ranks: its ``datasets`` and its ``dataset_config``.

    The datasets are ``train`` and, where there are val photos, ``val``, and once more for each further turn
    (:func:`shard_name`).  With 0 workers (local mode) Ray Train hands
    ``datasets`` to the training function as they are, so they are already the iterators of the one rank.
    """
    prepared = read_prepared(run_dir)
    start_ray(session_cpus(config))
    check_workers_fit(config)
    num_ranks = config.train.least_workers
    num_turns = partition_of(num_ranks).num_ranks // num_ranks  # with more workers there are fewer
    datasets: dict[str, Dataset] = {}
    tables: dict[str, pa.Table] = {}
    for split, photos in (("train", prepared.scene.train), ("val", prepared.scene.val)):
        if not photos:
            continue  # Ray Data makes no dataset of nothing
        files = [tile_file(run_dir.resolve(), photo) for photo in photos]
        tables[split] = that_see(config.train.subtree, read_tile_table(files, prepared.identity))
        listed = tile_files(files)
        datasets |= {shard_name(split, turn): listed for turn in range(num_turns)}
    if len(tables["train"]) == 0:
        raise InputError(f"No photo sees the subtree {config.train.subtree}; name another --subtree.")
    owned = OwnedTiles(tables, partition_of)
    if config.train.num_workers == 0:
        return dict(owned.configure(datasets, 1, None, None)[0]), owned
    return dict(datasets), owned


def shard_name(split: str, turn: int) -> str:
    """Name of a rank's shard for a split and a turn."""
    return f"{split}-{turn}" if turn else split


def that_see(subtree: str | None, tile_table: pa.Table) -> pa.Table:
    """The tiles that see a node of the subtree with this name; all of them if there is none."""
    if subtree is None:
        return tile_table
    nodes = tile_table["nodes"].combine_chunks()
    row = np.repeat(np.arange(len(tile_table)), nodes.value_lengths().to_numpy())
    inside = is_below(torch.from_numpy(nodes.flatten().to_numpy().copy()), key_of(subtree)).numpy()
    return tile_table.take(pa.array(np.unique(row[inside])))


def tile_batches(shard: DataIterator) -> Callable[[], Iterator[pa.Table]]:
    """How a reservoir opens a rank's shard."""
    # they stay in the object store; batches of any size would be put together in the worker's memory
    whole_blocks: Any = None
    return lambda: iter(shard.iter_batches(batch_size=whole_blocks, batch_format="pyarrow", prefetch_batches=1))


def read_tile_table(files: Sequence[Path], identity: str) -> pa.Table:
    """The columns ``tile`` and ``nodes`` of all files; :class:`InputError` names a file that is missing or foreign."""
    with ThreadPoolExecutor(READERS) as pool:
        tables = pool.map(lambda file: _tile_table(file, identity), files)
        return pa.concat_tables([TILE_TABLE.empty_table(), *tables])


def tile_files(files: Sequence[Path]) -> Dataset:
    """Tile files in an order that mixes photos taken one after the other, several to a block."""
    order = np.random.default_rng(0).permutation(len(files))
    num_blocks = -(-sum(file.stat().st_size for file in files) // BLOCK_BYTES)
    rows = [{"file": str(files[index])} for index in order]
    return ray.data.from_items(rows, override_num_blocks=min(len(rows), max(1, num_blocks)))


def read_tiles(batch: pa.Table, tiles: RankTiles) -> Iterator[pa.Table]:
    """Read the wanted ones of the tiles in the files that ``batch`` names, a row group at a time."""
    for name in batch["file"].to_pylist():
        first = int(Path(name).stem) << 32
        if np.searchsorted(tiles.tile, first) == np.searchsorted(tiles.tile, first + (1 << 32)):
            continue
        with pq.ParquetFile(name) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=PIXEL_COLUMNS).replace_schema_metadata(None)
                tile = table["tile"].to_numpy()
                place = np.minimum(np.searchsorted(tiles.tile, tile), len(tiles.tile) - 1)  # [T]
                wanted = tiles.tile[place] == tile
                if wanted.any():
                    share = pa.array(tiles.share[place[wanted]])
                    yield table.filter(pa.array(wanted)).append_column("share", share)


def _tile_table(file: Path, identity: str) -> pa.Table:
    try:
        with pq.ParquetFile(file) as parquet:
            if (parquet.schema_arrow.metadata or {}).get(IDENTITY_KEY) != identity.encode():
                raise InputError(f"{file} was made for another scene or octree; run inf-nerf prepare again.")
            return parquet.read(columns=TILE_TABLE.names).replace_schema_metadata(None)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{file} cannot be read ({error}); run inf-nerf prepare again.") from error
