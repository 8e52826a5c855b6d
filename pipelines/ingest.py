"""Which worker gets which tiles, and how they reach it: the Ray Data shards of a training.

A tile goes to every rank that owns a node it sees, with the share of its draws that are made there; tiles that see only
shared nodes are dealt, each to one rank.  The default split of Ray Train hands blocks to whoever asks first;
:class:`OwnedTiles` gives each rank an iterator of its own, in an order that never changes.  How many ranks there are is
known when Ray has started them, anew after every failure: the partition is made then.

Letters: T tiles, W ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import ray.train
from ray.data import DataIterator, Dataset

from inf_nerf.config import Config
from inf_nerf.octree.load import RankTiles
from inf_nerf.octree.tiles import TILE_SCHEMA, tile_file
from pipelines.division import Dealing
from pipelines.prepare import read_prepared
from pipelines.ray_session import check_workers_fit, session_cpus, start_ray

PIXEL_COLUMNS = [name for name in TILE_SCHEMA.names if name not in ("split", "nodes")]
BLOCK_BYTES = 16 << 20  # tile files that one task reads


class OwnedTiles(ray.train.DataConfig):
    """A Ray Train data configuration that gives each rank the tiles it owns.

    The datasets it configures list tile files (:func:`tile_files`); the iterators yield tables of
    :data:`inf_nerf.octree.tiles.TILE_SCHEMA` without ``split`` and ``nodes`` and with ``share`` float32.
    """

    def __init__(self, dealing: Dealing) -> None:
        """The datasets are the splits of ``dealing``, once for each turn."""
        # Unsplit, or Ray Train makes all workers wait for each other before the first one may read.
        super().__init__(datasets_to_split=[])
        self._dealing = dealing

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
        ranks = self._dealing.tiles(world_size)
        for name, files in datasets.items():
            split, _, turn = name.partition("-")
            first = int(turn or 0) * world_size
            parts = ranks[split][first : first + world_size]
            for shard, tiles in zip(shards, parts, strict=False):  # none for a turn that so many ranks do without
                read = files.map_batches(partial(read_tiles, tiles=tiles), batch_format="pyarrow", batch_size=None)
                read.context.execution_options.preserve_order = True
                shard[name] = read.iterator()
        return shards


def datasets_for(
    config: Config, run_dir: Path, dealing: Dealing
) -> tuple[dict[str, Dataset | DataIterator], OwnedTiles]:
    """What a TorchTrainer needs to feed any number of ranks: its ``datasets`` and its ``dataset_config``.

    The datasets are ``train`` and, where there are val photos, ``val``, and once more for each further turn
    (:func:`shard_name`).  With 0 workers (local mode) Ray Train hands
    ``datasets`` to the training function as they are, so they are already the iterators of the one rank.
    """
    start_ray(session_cpus(config))
    check_workers_fit(config)
    counts = range(config.train.least_workers, config.train.most_workers + 1)
    num_turns = max(dealing.partition_of(count).num_ranks // count for count in counts)
    datasets: dict[str, Dataset] = {}
    scene = read_prepared(run_dir).scene
    for split in dealing.tables:
        listed = tile_files([tile_file(run_dir.resolve(), photo) for photo in getattr(scene, split)])
        datasets |= {shard_name(split, turn): listed for turn in range(num_turns)}
    owned = OwnedTiles(dealing)
    if config.train.num_workers == 0:
        return dict(owned.configure(datasets, 1, None, None)[0]), owned
    return dict(datasets), owned


def shard_name(split: str, turn: int) -> str:
    """Name of a rank's shard for a split and a turn."""
    return f"{split}-{turn}" if turn else split


def tile_batches(shard: DataIterator) -> Callable[[], Iterator[pa.Table]]:
    """How a reservoir opens a rank's shard."""
    # they stay in the object store; batches of any size would be put together in the worker's memory
    whole_blocks: Any = None
    return lambda: iter(shard.iter_batches(batch_size=whole_blocks, batch_format="pyarrow", prefetch_batches=1))


def tile_files(files: Sequence[Path]) -> Dataset:
    """Tile files in mixed order, several to a block."""
    num_blocks = -(-sum(file.stat().st_size for file in files) // BLOCK_BYTES)
    rows = [{"file": str(file)} for file in mixed(files)]
    return ray.data.from_items(rows, override_num_blocks=min(len(rows), max(1, num_blocks)))


def mixed(files: Sequence[Path]) -> list[Path]:
    """Tile files in an order that mixes photos taken one after the other."""
    return [files[index] for index in np.random.default_rng(0).permutation(len(files))]


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
