"""Every rank gets the tiles of its own nodes, each tile is somebody's, and the order never changes."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.train
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from inf_nerf.octree.partition import Partition, make_partition
from inf_nerf.octree.tiles import tile_file
from inf_nerf.octree.topology import BACKGROUND_KEY
from inf_nerf.train.reservoir import Reservoir
from pipelines import ingest, prepare, synth
from pipelines.ingest import RankTiles, datasets_for, read_tile_table, read_tiles, tile_batches, tile_ranks
from pipelines.ray_session import session_cpus, start_ray

CONFIG = load_config(
    None,
    ["field.max_res=16", "octree.num_levels=3", "octree.min_points=4", "data.tile_size=16", "scene.pyramid_levels=2",
     "scene.val_every=5", "train.num_workers=2"],
)  # fmt: skip


def cut_here(config: Config, photos: list[int], run_dir: Path, identity: str) -> Iterator[dict[str, Any]]:
    for photo in photos:
        yield prepare.cut_and_write({"photo": photo}, config, str(run_dir), identity)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared run, made without Ray."""
    folder = tmp_path_factory.mktemp("ingest")
    synth.run(folder / "city", blocks=1, photos=12, size=64, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_cut_by_ray", cut_here)
        prepare.run(CONFIG, folder / "city", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def prepared(run_dir: Path) -> prepare.Prepared:
    return prepare.read_prepared(run_dir)


def dealing(prepared: prepare.Prepared) -> Callable[[int], Partition]:
    return partial(make_partition, prepared.octree, shared_upper_levels=1)


def train_files(run_dir: Path, prepared: prepare.Prepared) -> list[Path]:
    return [tile_file(run_dir, photo) for photo in prepared.scene.train]


def test_a_tile_goes_to_every_owner_of_its_nodes_and_shared_ones_are_dealt_once() -> None:
    partition = Partition(
        frozenset({BACKGROUND_KEY, 1}), (frozenset({8, 64}), frozenset({9}), frozenset({10})), ((8,), (9,), (10,))
    )
    nodes = {50: [1, 8], 10: [1], 20: [8, 64], 30: [9, 64, 10, 81], 40: [0], 60: [1], 70: [10, 10], 80: [1], 90: [81]}
    table = pa.table({"tile": list(nodes), "nodes": pa.array(list(nodes.values()), pa.list_(pa.int64()))})
    found = [dict(zip(r.tile.tolist(), r.share.tolist(), strict=True)) for r in tile_ranks(table, partition)]
    # 10, 40, 60 and 80 see shared nodes only; 81 is a child of 10, grown after the partition was made
    assert found == [{10: 1, 20: 1, 30: 0.25, 50: 1, 80: 1}, {30: 0.25, 40: 1}, {30: 0.5, 60: 1, 70: 1, 90: 1}]


def test_no_tiles_give_every_rank_an_empty_share() -> None:
    partition = Partition(frozenset({BACKGROUND_KEY, 1}), (frozenset(), frozenset()), ((), ()))
    ranks = tile_ranks(ingest.TILE_TABLE.empty_table(), partition)
    assert [len(rank.tile) for rank in ranks] == [0, 0]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("shared_levels", [1, 2, 3])
def test_shares_count_every_tile_of_a_real_run_once(
    run_dir: Path, prepared: prepare.Prepared, num_ranks: int, shared_levels: int
) -> None:
    table = read_tile_table(train_files(run_dir, prepared), prepared.identity)
    partition = make_partition(prepared.octree, num_ranks, shared_levels)
    ranks = tile_ranks(table, partition)
    share: dict[int, float] = {}
    for rank, tiles in enumerate(ranks):
        assert (np.diff(tiles.tile) > 0).all()
        for tile, part in zip(tiles.tile.tolist(), tiles.share.tolist(), strict=True):
            share[tile] = share.get(tile, 0) + part
        held = set(tiles.tile.tolist())
        for tile, nodes in zip(table["tile"].to_pylist(), table["nodes"].to_pylist(), strict=True):
            owners = set(partition.owners_of(torch.tensor(nodes)).tolist()) - {-1}
            if rank in owners:
                assert tile in held
            elif owners:
                assert tile not in held
    assert set(share) == set(table["tile"].to_pylist())
    np.testing.assert_allclose(list(share.values()), 1.0, rtol=1e-6)


def test_reading_gives_just_the_wanted_tiles_with_their_share(run_dir: Path, prepared: prepare.Prepared) -> None:
    files = train_files(run_dir, prepared)
    every = read_tile_table(files, prepared.identity)["tile"].to_numpy()
    wanted = RankTiles(np.sort(every)[::3], np.arange(len(every[::3]), dtype=np.float32))
    batch = pa.table({"file": [str(file) for file in files]})
    read = pa.concat_tables(read_tiles(batch, wanted)).sort_by("tile")
    assert read["tile"].to_pylist() == wanted.tile.tolist()
    assert read["share"].to_pylist() == wanted.share.tolist()
    assert list(read_tiles(batch, RankTiles(np.empty(0, np.int64), np.empty(0, np.float32)))) == []


def test_tiles_of_another_octree_or_a_damaged_file_name_the_stage_to_run(
    run_dir: Path, prepared: prepare.Prepared, tmp_path: Path
) -> None:
    file = train_files(run_dir, prepared)[0]
    with pytest.raises(InputError, match=rf"{file.name} was made for another scene or octree; run inf-nerf prepare"):
        read_tile_table([file], "another identity")
    (tmp_path / "torn.parquet").write_bytes(file.read_bytes()[:-30])
    for name in ("torn.parquet", "absent.parquet"):
        with pytest.raises(InputError, match=rf"{name} cannot be read .*run inf-nerf prepare again"):
            read_tile_table([tmp_path / name], prepared.identity)


def test_shards_hold_each_ranks_tiles_in_an_order_that_never_changes(
    run_dir: Path, prepared: prepare.Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "BLOCK_BYTES", 1)  # a task per file, so that tasks can overtake each other
    start_ray(session_cpus(CONFIG))
    start_ray()  # a second time does nothing
    partition_of = dealing(prepared)
    datasets, owned = datasets_for(CONFIG, run_dir, partition_of)
    assert sorted(datasets) == ["train", "val"]
    for num_ranks in (2, 3):  # a worker was lost, or one came
        shards = owned.configure(datasets, num_ranks, None, None)  # type: ignore[arg-type]
        for split, photos in (("train", prepared.scene.train), ("val", prepared.scene.val)):
            table = read_tile_table([tile_file(run_dir, photo) for photo in photos], prepared.identity)
            for shard, tiles in zip(shards, tile_ranks(table, partition_of(num_ranks)), strict=True):
                passes = [pa.concat_tables(tile_batches(shard[split])()) for _ in range(2)]
                assert passes[0].equals(passes[1])
                assert sorted(passes[0]["tile"].to_pylist()) == tiles.tile.tolist()

    here = load_config(None, ["train.num_workers=0"], base=CONFIG.model_dump(mode="json"))
    local, _ = datasets_for(here, run_dir, partition_of)
    reservoir = Reservoir(tile_batches(local["train"]), 1 << 24, 2.0)  # type: ignore[arg-type]
    assert len(reservoir) == len(read_tile_table(train_files(run_dir, prepared), prepared.identity))
    capped = Reservoir(tile_batches(local["train"]), reservoir.nbytes // 3, 2.0)  # type: ignore[arg-type]
    for _ in range(20):
        capped.swap()
    restored = Reservoir(tile_batches(local["train"]), reservoir.nbytes // 3, 2.0, capped.state())  # type: ignore[arg-type]
    assert restored.state() == capped.state()
    drawn, again = (r.sample(50, torch.Generator().manual_seed(0)) for r in (capped, restored))
    assert torch.equal(drawn.rgb, again.rgb)

    every = frozenset(prepared.octree.keys.tolist()) | {BACKGROUND_KEY}
    lonely = Partition(every, (frozenset(),) * 40, ((),) * 40)
    datasets, owned = datasets_for(CONFIG, run_dir, lambda _: lonely)
    last = owned.configure(datasets, 40, None, None)[39]["val"]  # type: ignore[arg-type]
    assert len(Reservoir(tile_batches(last), 1 << 20, 2.0)) == 0


def test_a_run_without_val_photos_has_no_val_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def list_files(files: list[Path]) -> list[Path]:
        assert files
        return files

    monkeypatch.setattr(prepare, "_cut_by_ray", cut_here)
    monkeypatch.setattr(ingest, "start_ray", lambda num_cpus: None)
    monkeypatch.setattr(ingest, "check_workers_fit", lambda config: None)
    monkeypatch.setattr(ingest, "tile_files", list_files)
    synth.run(tmp_path / "city", blocks=1, photos=5, size=64, seed=0)
    config = load_config(None, ["scene.val_every=16"], base=CONFIG.model_dump(mode="json"))
    prepare.run(config, tmp_path / "city", tmp_path / "run")
    datasets, _ = datasets_for(config, tmp_path / "run", dealing(prepare.read_prepared(tmp_path / "run")))
    assert list(datasets) == ["train"]


def report_tiles(settings: dict[str, str]) -> None:
    """A Train worker that writes down which tiles it was given, in order."""
    rank = ray.train.get_context().get_world_rank()
    shard = ray.train.get_dataset_shard("train")
    assert shard is not None
    tiles = [tile for batch in tile_batches(shard)() for tile in batch["tile"].to_pylist()]
    Path(settings["out"], f"{rank}.txt").write_text(" ".join(map(str, tiles)))


@pytest.mark.slow
def test_train_workers_get_the_shards_of_their_ranks(run_dir: Path, prepared: prepare.Prepared, tmp_path: Path) -> None:
    start_ray(session_cpus(CONFIG))
    partition_of = dealing(prepared)
    datasets, owned = datasets_for(CONFIG, run_dir, partition_of)
    trainer = TorchTrainer(
        report_tiles,
        train_loop_config={"out": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(name="tiles", storage_path=str(tmp_path / "ray")),
        datasets=datasets,  # type: ignore[arg-type]
        dataset_config=owned,
    )
    trainer.fit()
    table = read_tile_table(train_files(run_dir, prepared), prepared.identity)
    for rank, tiles in enumerate(tile_ranks(table, partition_of(2))):
        given = [int(tile) for tile in (tmp_path / f"{rank}.txt").read_text().split()]
        assert sorted(given) == tiles.tile.tolist()
