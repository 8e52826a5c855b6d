"""How a training is divided: every draw is made once, and what is said of it adds up."""

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.field.field import node_parameters
from inf_nerf.octree.load import draws_of, imbalance, tile_ranks
from inf_nerf.octree.partition import Partition, make_partition
from inf_nerf.octree.tiles import tile_file
from inf_nerf.octree.topology import Octree
from inf_nerf.train.assembly import part_of
from inf_nerf.train.turns import partition_in_turns
from pipelines import division, prepare
from pipelines.division import Dealing, describe, division_table, read_tile_table, tile_tables
from pipelines.ingest import read_tiles
from tests.pipelines.small_city import CONFIG, changed


def train_files(city_run: Path, city_prepared: prepare.Prepared) -> list[Path]:
    return [tile_file(city_run, photo) for photo in city_prepared.scene.train]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("shared_levels", [1, 2, 3])
def test_shares_count_every_tile_of_a_real_run_once(
    city_run: Path, city_prepared: prepare.Prepared, num_ranks: int, shared_levels: int
) -> None:
    table = read_tile_table(train_files(city_run, city_prepared), city_prepared.identity)
    partition = make_partition(city_prepared.octree, num_ranks, shared_levels)
    ranks = tile_ranks(table, partition, 2.0)
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


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_how_often_a_pixel_is_drawn_does_not_depend_on_the_number_of_ranks(
    city_run: Path, city_prepared: prepare.Prepared, num_ranks: int
) -> None:
    dealing = Dealing.of(CONFIG, city_prepared.octree, tile_tables(city_run, city_prepared))
    loads, batch_size = dealing.loads(num_ranks)["train"], 10**9
    files = [tile_file(city_run, photo) for photo in city_prepared.scene.train]
    names, drawn = pa.table({"file": [str(file) for file in files]}), dict[int, float]()
    for rank, tiles in enumerate(dealing.tiles(num_ranks)["train"]):
        table = pa.concat_tables(read_tiles(names, tiles))
        size = np.array([len(pixels) for pixels in table["pixels"].to_pylist()]) / 3
        # with which probability a ray of the rank falls into each of its tiles (test_reservoir.py)
        weight = table["share"].to_numpy() * size * CONFIG.data.level_boost ** table["level"].to_numpy().astype(float)
        rays = part_of(batch_size, rank, loads)
        for tile, more in zip(table["tile"].to_pylist(), rays * weight / weight.sum(), strict=True):
            drawn[tile] = drawn.get(tile, 0.0) + more
    table = read_tile_table(files, city_prepared.identity)
    alone = dict(zip(table["tile"].to_pylist(), draws_of(table, CONFIG.data.level_boost), strict=True))
    assert drawn == pytest.approx({tile: batch_size * draws for tile, draws in alone.items()}, rel=1e-5)


def test_a_partition_is_made_once_and_workers_make_their_own(
    city_run: Path, city_prepared: prepare.Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(config: Config, octree: Octree, num_ranks: int, load: torch.Tensor | None = None) -> Partition:
        made.append(num_ranks)
        return partition_in_turns(config, octree, num_ranks, load)

    monkeypatch.setattr(division, "partition_in_turns", counted)
    dealing = Dealing.of(CONFIG, city_prepared.octree, tile_tables(city_run, city_prepared))
    assert dealing.partition_of(2) is dealing.partition_of(2)
    assert dealing.loads(2) and dealing.tiles(2) and made == [2]
    sent = pickle.loads(pickle.dumps(dealing.partition_of))
    assert sent(2) == dealing.partition_of(2) and made == [2, 2]
    for num_ranks in range(1, 20):
        dealing.partition_of(num_ranks)
    assert len(made) == 20  # 2 was at hand
    dealing.partition_of(2)
    assert len(made) == 21  # the latest alone are kept


def test_masked_pixels_make_no_load(city_run: Path, city_prepared: prepare.Prepared, tmp_path: Path) -> None:
    table = pq.read_table(train_files(city_run, city_prepared)[0])
    masks = [None, *(bytes([1, 0, 1]) + bytes(row["width"] * row["height"] - 3) for row in table.to_pylist()[1:])]
    place = table.schema.get_field_index("mask")
    pq.write_table(table.set_column(place, table.schema.field("mask"), pa.array(masks)), tmp_path / "masked.parquet")
    read = read_tile_table([tmp_path / "masked.parquet"], city_prepared.identity)
    first = table.slice(0, 1).to_pylist()[0]
    assert read["used"].to_pylist() == [first["width"] * first["height"], *[2] * (len(table) - 1)]


def test_tiles_of_another_octree_or_a_damaged_file_name_the_stage_to_run(
    city_run: Path, city_prepared: prepare.Prepared, tmp_path: Path
) -> None:
    file = train_files(city_run, city_prepared)[0]
    with pytest.raises(InputError, match=rf"{file.name} was made for another scene or octree; run inf-nerf prepare"):
        read_tile_table([file], "another identity")
    (tmp_path / "torn.parquet").write_bytes(file.read_bytes()[:-30])
    for name in ("torn.parquet", "absent.parquet"):
        with pytest.raises(InputError, match=rf"{name} cannot be read .*run inf-nerf prepare again"):
            read_tile_table([tmp_path / name], city_prepared.identity)


def test_the_description_counts_every_node_and_tile(city_run: Path, city_prepared: prepare.Prepared) -> None:
    dealing = Dealing.of(CONFIG, city_prepared.octree, tile_tables(city_run, city_prepared))
    tiles, each = dealing.tiles(3)["train"], node_parameters(CONFIG.field)
    found = describe(CONFIG, dealing.partition_of(3), tiles, 3)
    assert found["shared_nodes"] + found["owned_nodes"] == city_prepared.octree.num_nodes + 1
    assert found["owned_nodes"] == sum(rank["owned_nodes"] for rank in found["ranks"])
    assert found["shared_parameters"] == each * found["shared_nodes"]
    assert found["most_owned"] == max(rank["owned_nodes"] for rank in found["ranks"]) / found["owned_nodes"]
    loads = [rank["load"] for rank in found["ranks"]]
    assert sum(loads) == pytest.approx(1) and found["imbalance"] == pytest.approx(max(loads) * 3 - 1)
    assert [rank["tiles"] for rank in found["ranks"]] == [len(mine.tile) for mine in tiles]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(division_table(found))
    shown = console.export_text()
    assert f"shared by all workers: {found['shared_nodes']} nodes" in shown
    assert f"{found['imbalance']:.1%}" in shown


def test_turns_are_told_apart_and_each_is_balanced_by_itself(city_run: Path, city_prepared: prepare.Prepared) -> None:
    dealing = Dealing.of(CONFIG, city_prepared.octree, tile_tables(city_run, city_prepared))
    tiles = dealing.tiles(4)["train"]
    found = describe(CONFIG, dealing.partition_of(4), tiles, 2)
    assert [(rank["turn"], rank["rank"]) for rank in found["ranks"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    loads = [mine.load for mine in tiles]
    assert found["turns"] == 2
    assert found["imbalance"] == max(imbalance(loads[:2]), imbalance(loads[2:])) < imbalance(loads)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(division_table(found))
    assert "1, turn 0" in console.export_text()


@pytest.mark.parametrize(
    ("name", "said"), [("x05", "names no node"), ("r0777", "has no node r0777"), ("bg", "names no node")]
)
def test_a_subtree_that_the_tree_has_not_is_one_sentence(
    city_run: Path, city_prepared: prepare.Prepared, name: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        Dealing.of(changed(f"train.subtree={name}"), city_prepared.octree, tile_tables(city_run, city_prepared))


def test_epochs_become_steps_by_the_pixels_of_train_tiles(city_run: Path, city_prepared: prepare.Prepared) -> None:
    dealing = Dealing.of(CONFIG, city_prepared.octree, tile_tables(city_run, city_prepared))
    scene, levels = city_prepared.scene, range(CONFIG.scene.pyramid_levels)
    sizes = [scene.cameras.level_size(photo, level) for photo in scene.train for level in levels]
    assert dealing.pixels == sum(width * height for width, height in sizes)
    batch = CONFIG.train.batch_size
    assert dealing.in_steps(changed("train.epochs=1.5")).train.steps == -(-1.5 * dealing.pixels // batch)
    assert dealing.in_steps(CONFIG) == CONFIG
