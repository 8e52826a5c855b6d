"""The load that tiles make, against loops over tiles and nodes, and how it is dealt."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_nerf.octree.load import TILE_TABLE, RankTiles, draws_of, imbalance, node_load, tile_ranks
from inf_nerf.octree.partition import SHARED, Partition, make_partition
from inf_nerf.octree.topology import BACKGROUND_KEY, Octree

Trees = Callable[[int], Octree]
BOOST = 2.0


def tiles_of(nodes: dict[int, list[int]], level: list[int] | None = None, used: list[int] | None = None) -> pa.Table:
    count = len(nodes)
    columns = [list(nodes), level or [0] * count, used or [100] * count, list(nodes.values())]
    return pa.table(columns, schema=TILE_TABLE)


def random_tiles(tree: Octree, seed: int) -> pa.Table:
    """Tiles that see one to five random nodes of a tree, or the background, in no order of their ids."""
    generator = np.random.default_rng(seed)
    keys = np.array([BACKGROUND_KEY, *tree.keys.tolist()])
    nodes = {int(tile): np.unique(generator.choice(keys, generator.integers(1, 6))).tolist()
             for tile in generator.permutation(40)}  # fmt: skip
    return tiles_of(nodes, generator.integers(0, 4, 40).tolist(), generator.integers(1, 4096, 40).tolist())


def is_below(key: int, other: int) -> bool:
    return key > other > 0 and any(key >> 3 * depth == other for depth in range(1, 20))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_load_is_what_a_loop_over_the_finest_nodes_of_each_tile_finds(complete_tree: Trees, seed: int) -> None:
    tree = complete_tree(seed)
    table = random_tiles(tree, seed)
    draws = [row["used"] * BOOST ** row["level"] for row in table.to_pylist()]
    expected = dict.fromkeys(tree.keys.tolist(), 0.0)
    for part, row in zip(draws, table.to_pylist(), strict=True):
        nodes = {max(1, key) for key in row["nodes"]}
        finest = [key for key in nodes if not any(is_below(other, key) for other in nodes)]
        for key in finest:
            expected[key] += part / sum(draws) / len(finest)
    found = node_load(table, tree, BOOST)
    np.testing.assert_allclose(found.numpy(), list(expected.values()), rtol=1e-9, atol=1e-12)
    assert float(found.sum()) == pytest.approx(1)


def test_a_node_that_grew_later_loads_its_nearest_ancestor() -> None:
    tree = Octree.from_keys(torch.tensor([1, 8, 15, 64]), torch.zeros(4), 0.1)
    table = tiles_of({0: [8, 64 * 8 + 3], 1: [15 * 64 + 9, 1], 2: [14], 3: [0]})
    assert node_load(table, tree, BOOST).tolist() == [0.5, 0, 0.25, 0.25]


def test_no_tiles_make_no_load() -> None:
    tree = Octree.from_keys(torch.tensor([1, 8]), torch.zeros(2), 0.1)
    none = TILE_TABLE.empty_table()
    assert draws_of(none, BOOST).shape == (0,)
    assert node_load(none, tree, BOOST).tolist() == [0, 0]
    ranks = tile_ranks(none, make_partition(tree, 2, 1), BOOST)
    assert [(len(rank.tile), len(rank.share), rank.load) for rank in ranks] == [(0, 0, 0.0)] * 2


def test_a_tile_goes_to_every_owner_of_its_nodes_and_shared_ones_to_one_rank() -> None:
    partition = Partition(
        frozenset({BACKGROUND_KEY, 1}), (frozenset({8, 64}), frozenset({9}), frozenset({10})), ((8,), (9,), (10,))
    )
    nodes = {50: [1, 8], 10: [1], 20: [8, 64], 30: [9, 64, 10, 81], 40: [0], 60: [1], 70: [10, 10], 80: [1], 90: [81]}
    ranks = tile_ranks(tiles_of(nodes), partition, BOOST)
    found = [dict(zip(r.tile.tolist(), r.share.tolist(), strict=True)) for r in ranks]
    # 81 is a child of 10, grown after the partition was made; 10, 40, 60 and 80 go to whoever has the fewest draws
    assert found == [{20: 1, 30: 0.25, 50: 1, 60: 1}, {10: 1, 30: 0.25, 40: 1, 80: 1}, {30: 0.5, 70: 1, 90: 1}]
    assert [rank.load * 9 for rank in ranks] == pytest.approx([3.25, 3.25, 2.5])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 3))
def test_every_draw_is_made_once_and_shared_tiles_level_the_ranks(
    complete_tree: Trees, seed: int, num_ranks: int, upper: int
) -> None:
    tree = complete_tree(seed)
    table = random_tiles(tree, seed)
    partition = make_partition(tree, num_ranks, upper, node_load(table, tree, BOOST))
    ranks = tile_ranks(table, partition, BOOST)
    draws = dict(zip(table["tile"].to_pylist(), draws_of(table, BOOST).tolist(), strict=True))
    made = dict.fromkeys(draws, 0.0)
    for rank in ranks:
        assert (np.diff(rank.tile) > 0).all()
        shares = dict(zip(rank.tile.tolist(), rank.share.tolist(), strict=True))
        assert rank.load == pytest.approx(sum(draws[tile] * share for tile, share in shares.items()), abs=1e-6)
        for tile, share in shares.items():
            made[tile] += share
    assert made == pytest.approx(dict.fromkeys(draws, 1.0), rel=1e-6)
    owners = {row["tile"]: set(partition.owners_of(torch.tensor(row["nodes"])).tolist()) for row in table.to_pylist()}
    free = {tile for tile, found in owners.items() if found == {SHARED}}
    assert all(len([rank for rank in ranks if tile in rank.tile]) == 1 for tile in free)
    # a rank that got a shared tile had the least before: it leads the least loaded one by no more than its last tile
    least = min(rank.load for rank in ranks)
    for rank in ranks:
        mine = [draws[tile] for tile in rank.tile.tolist() if tile in free]
        assert not mine or rank.load - least <= min(mine) + 1e-9


def test_the_order_of_the_rows_does_not_matter(complete_tree: Trees) -> None:
    tree = complete_tree(8)
    table = random_tiles(tree, 1)
    partition = make_partition(tree, 3, 1, node_load(table, tree, BOOST))
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    np.testing.assert_allclose(node_load(shuffled, tree, BOOST), node_load(table, tree, BOOST), rtol=1e-12, atol=1e-15)

    def plain(ranks: list[RankTiles]) -> list[tuple[list[int], list[float]]]:
        return [(rank.tile.tolist(), rank.share.tolist()) for rank in ranks]

    assert plain(tile_ranks(shuffled, partition, BOOST)) == plain(tile_ranks(table, partition, BOOST))


def test_imbalance_is_how_much_heavier_the_heaviest_is() -> None:
    assert imbalance([1.0, 1.0, 4.0]) == pytest.approx(1.0)
    assert imbalance([2.0]) == imbalance([0.0, 0.0]) == 0.0
