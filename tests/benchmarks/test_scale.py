"""The simulation of large trainings, on small ones."""

import json

import pytest
import torch

from benchmarks import scale
from benchmarks.growth import City
from benchmarks.scale import (
    Inputs,
    gradient_row,
    made,
    manifest_row,
    partition_row,
    photographed,
    precision_row,
    request_rows,
    tile_row,
    totals,
)
from inf_nerf.octree.topology import Octree, key_name


@pytest.fixture(scope="module")
def small() -> tuple[City, Octree]:
    return scale.grown(4, 1.0, 0.12, 6)


def test_a_partition_is_counted(small: tuple[City, Octree]) -> None:
    _, tree = small
    part = made(tree, 4)
    row = partition_row(tree, part)
    owned = [len(keys) for keys in part.partition.owned]
    assert sum(owned) + row["shared nodes"] == tree.num_nodes
    assert row["most nodes / mean"] == pytest.approx(max(owned) * 4 / sum(owned))
    assert row["most points / mean"] >= 1


def test_gradients_travel_around_a_ring(small: tuple[City, Octree]) -> None:
    _, tree = small
    part = made(tree, 4).partition
    row = gradient_row(part, Inputs(network_mb_s=100.0, rays_per_second=2048.0))
    megabytes = len(part.shared) * scale.parameters(scale.laptop()) * 4e-6
    assert row["MB averaged"] == pytest.approx(megabytes)
    assert row["ms on the network"] == pytest.approx(megabytes * 1.5 / 100 * 1e3)
    assert row["of the step"] == pytest.approx(megabytes * 1.5 / 100)


def test_tiles_of_one_rank_are_read_once(small: tuple[City, Octree]) -> None:
    city, tree = small
    seen = photographed(city, tree, 2)
    one, four = (tile_row(tree, seen, made(tree, count).partition) for count in (1, 4))
    assert one["ranks/tile"] == 1 and one["ranks/photo"] == 1 and one["tiles of 2 and more"] == 0
    assert 1 <= four["ranks/tile"] < 2 and 1 < four["ranks/photo"] <= 4
    assert one["tiles/photo"] == four["tiles/photo"] > 2500


def test_ranks_of_tiles_are_counted(small: tuple[City, Octree]) -> None:
    _, tree = small
    part = made(tree, 4).partition
    owned = [int(tree.index_of(torch.tensor(min(keys)))) for keys in part.owned]
    none = tree.num_nodes
    seen = torch.tensor([[0, 0, 0, 0, 0], [owned[0]] * 5, [0, owned[0], owned[1], none, owned[1]], [none] * 5])
    row = tile_row(tree, [seen], part)
    assert (row["tiles/photo"], row["ranks/photo"]) == (4, 2)
    assert row["ranks/tile"] == (1 + 1 + 2 + 1) / 4
    assert (row["tiles of 2 and more"], row["of shared nodes alone"]) == (0.25, 0.5)


def test_a_manifest_is_as_large_as_its_text() -> None:
    row = manifest_row(100)
    name = f"nodes/{key_name(8**7)}.safetensors"
    entry = json.dumps({"files": {name: {"bytes": 1_000_000, "sha256": "0" * 64}}}, indent=1)
    assert row["files"] == 200
    assert row["bytes/node"] == pytest.approx(2 * len(entry), rel=0.2)


def test_a_view_asks_fewer_and_larger_files_when_they_hold_subtrees(small: tuple[City, Octree]) -> None:
    city, tree = small
    one, two, three = request_rows(city, tree, Inputs(request_ms=1000.0, requests_at_once=1.0))
    assert one["files"] == tree.num_nodes and one["requests"] == one["nodes of the view"]
    assert one["MB of whole files"] == pytest.approx(one["MB of ranges"])
    assert one["files"] > two["files"] > three["files"] >= 1
    assert one["requests"] > two["requests"] > three["requests"]
    assert one["MB of ranges"] <= two["MB of whole files"] <= three["MB of whole files"]
    assert two["seconds, ranges"] == pytest.approx(two["requests"] + two["MB of ranges"] / 100)


def test_positions_lose_a_bit_of_the_gsd_with_every_level() -> None:
    eight, ten = precision_row(8), precision_row(10)
    assert ten["error / gsd"] == pytest.approx(4 * eight["error / gsd"], rel=0.05)
    assert ten["extent / gsd"] == 4 * eight["extent / gsd"]
    assert eight["worst"] < 0.1 < precision_row(19)["error / gsd"]


def test_whole_trainings_follow_from_the_inputs() -> None:
    rows = list(totals(Inputs(rays_per_second=1000.0, passes=2.0, photos_per_node=1.0, photo_megapixels=36.0)))
    assert rows[0]["worker hours"] == pytest.approx(1e4 * 36e6 * 2 / 1000 / 3600)
    assert all(row["optimiser TB"] == pytest.approx(2 * row["values TB"]) for row in rows)


def test_the_command_prints_every_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("QUICK_TREES", ((3, 1.0, 0.12, 6),)), ("QUICK_RANKS", (2,)), ("QUICK_PHOTOS", 1)):
        monkeypatch.setattr(scale, name, value)
    assert scale.main(["--quick", "--network-mb-s", "123"]) == 0
    printed = capsys.readouterr().out
    titles = (
        "inputs",
        "the tree in every process",
        "partition",
        "shared gradients",
        "tiles",
        "manifest",
        "float32",
        "a view from an object store",
    )
    assert all(f"\n{title}\n" in printed for title in (*titles, "whole trainings"))
    assert "network_mb_s: 123" in printed
    assert torch.get_default_dtype() == torch.float32
