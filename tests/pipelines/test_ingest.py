"""Every rank gets the tiles of its own nodes, each tile is somebody's, and the order never changes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray.train
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from inf_nerf.octree.load import RankTiles, tile_ranks
from inf_nerf.octree.partition import Partition
from inf_nerf.octree.tiles import tile_file
from inf_nerf.octree.topology import BACKGROUND_KEY
from inf_nerf.train.reservoir import Reservoir
from pipelines import ingest, prepare, synth
from pipelines.division import Dealing, read_tile_table, tile_tables
from pipelines.ingest import datasets_for, read_tiles, tile_batches
from pipelines.ray_session import session_cpus, start_ray
from tests.pipelines.small_city import CONFIG, changed, cut_here


def train_files(city_run: Path, city_prepared: prepare.Prepared) -> list[Path]:
    return [tile_file(city_run, photo) for photo in city_prepared.scene.train]


def test_reading_gives_just_the_wanted_tiles_with_their_share(city_run: Path, city_prepared: prepare.Prepared) -> None:
    files = train_files(city_run, city_prepared)
    every = read_tile_table(files, city_prepared.identity)["tile"].to_numpy()
    wanted = RankTiles(np.sort(every)[::3], np.arange(len(every[::3]), dtype=np.float32), 1.0)
    batch = pa.table({"file": [str(file) for file in files]})
    read = pa.concat_tables(read_tiles(batch, wanted)).sort_by("tile")
    assert read["tile"].to_pylist() == wanted.tile.tolist()
    assert read["share"].to_pylist() == wanted.share.tolist()
    assert list(read_tiles(batch, RankTiles(np.empty(0, np.int64), np.empty(0, np.float32), 0.0))) == []


def test_shards_hold_each_ranks_tiles_in_an_order_that_never_changes(
    city_run: Path, city_prepared: prepare.Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "BLOCK_BYTES", 1)  # a task per file, so that tasks can overtake each other
    start_ray(session_cpus(CONFIG))
    start_ray()  # a second time does nothing
    dealing = Dealing.of(CONFIG, city_prepared.octree, tile_tables(city_run, city_prepared))
    datasets, owned = datasets_for(CONFIG, city_run, dealing)
    assert sorted(datasets) == ["train", "val"]
    for num_ranks in (2, 3):  # a worker was lost, or one came
        shards = owned.configure(datasets, num_ranks, None, None)  # type: ignore[arg-type]
        for split, photos in (("train", city_prepared.scene.train), ("val", city_prepared.scene.val)):
            table = read_tile_table([tile_file(city_run, photo) for photo in photos], city_prepared.identity)
            for shard, tiles in zip(shards, tile_ranks(table, dealing.partition_of(num_ranks), 2.0), strict=True):
                passes = [pa.concat_tables(tile_batches(shard[split])()) for _ in range(2)]
                assert passes[0].equals(passes[1])
                assert sorted(passes[0]["tile"].to_pylist()) == tiles.tile.tolist()

    local, _ = datasets_for(changed("train.num_workers=0"), city_run, dealing)
    reservoir = Reservoir(tile_batches(local["train"]), 1 << 24, 2.0)  # type: ignore[arg-type]
    assert len(reservoir) == len(read_tile_table(train_files(city_run, city_prepared), city_prepared.identity))
    capped = Reservoir(tile_batches(local["train"]), reservoir.nbytes // 3, 2.0)  # type: ignore[arg-type]
    for _ in range(20):
        capped.swap()
    restored = Reservoir(tile_batches(local["train"]), reservoir.nbytes // 3, 2.0, capped.state())  # type: ignore[arg-type]
    assert restored.state() == capped.state()
    drawn, again = (r.sample(50, torch.Generator().manual_seed(0)) for r in (capped, restored))
    assert torch.equal(drawn.rgb, again.rgb)

    count = len(dealing.tables["val"]) + 1
    all_shared = frozenset({BACKGROUND_KEY, *city_prepared.octree.keys.tolist()})
    lonely = Partition(all_shared, (frozenset(),) * count, ((),) * count)
    datasets, owned = datasets_for(CONFIG, city_run, Dealing(lambda _: lonely, dealing.tables, 2.0))
    last = owned.configure(datasets, count, None, None)[-1]["val"]  # type: ignore[arg-type]
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
    config = changed("scene.val_every=16")
    prepare.run(config, tmp_path / "city", tmp_path / "run")
    prepared = prepare.read_prepared(tmp_path / "run")
    dealing = Dealing.of(config, prepared.octree, tile_tables(tmp_path / "run", prepared))
    datasets, _ = datasets_for(config, tmp_path / "run", dealing)
    assert list(datasets) == ["train"]


def report_tiles(settings: dict[str, str]) -> None:
    """A Train worker that writes down which tiles it was given, in order."""
    rank = ray.train.get_context().get_world_rank()
    shard = ray.train.get_dataset_shard("train")
    assert shard is not None
    tiles = [tile for batch in tile_batches(shard)() for tile in batch["tile"].to_pylist()]
    Path(settings["out"], f"{rank}.txt").write_text(" ".join(map(str, tiles)))


@pytest.mark.slow
def test_train_workers_get_the_shards_of_their_ranks(
    city_run: Path, city_prepared: prepare.Prepared, tmp_path: Path
) -> None:
    start_ray(session_cpus(CONFIG))
    dealing = Dealing.of(CONFIG, city_prepared.octree, tile_tables(city_run, city_prepared))
    datasets, owned = datasets_for(CONFIG, city_run, dealing)
    trainer = TorchTrainer(
        report_tiles,
        train_loop_config={"out": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(name="tiles", storage_path=str(tmp_path / "ray")),
        datasets=datasets,  # type: ignore[arg-type]
        dataset_config=owned,
    )
    trainer.fit()
    for rank, tiles in enumerate(dealing.tiles(2)["train"]):
        given = [int(tile) for tile in (tmp_path / f"{rank}.txt").read_text().split()]
        assert sorted(given) == tiles.tile.tolist()
