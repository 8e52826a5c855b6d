"""Cities that grow: their trees, what views touch, the fits, the command."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import growth
from benchmarks.growth import (
    FINEST_GSD_M,
    City,
    Fit,
    build,
    builder,
    look,
    routed_samples,
    scattered,
    touched,
    working_sets,
)
from benchmarks.pairing import Effort
from benchmarks.street_grid import aerial_views, street_views
from inf_nerf.octree.build import build_octree
from inf_nerf.octree.routing import route, route_recursive
from inf_nerf.octree.topology import Octree


def tree_of(city: City) -> Octree:
    return build_octree(*city.points(), city.octree, growth.laptop().field.max_res)


@pytest.mark.parametrize("aspect", [0.5, 1.0])
def test_cities_grow_at_constant_finest_gsd_and_density_of_nodes(aspect: float) -> None:
    small, large = City.of(3, aspect), City.of(4, aspect)
    assert large.grid.width_m == 2 * small.grid.width_m
    trees = [tree_of(city) for city in (small, large)]
    for city, tree in zip((small, large), trees):
        assert tree.num_levels == city.levels + 1
        assert float(tree.gsd[-1]) * city.half_m == pytest.approx(FINEST_GSD_M)
        leaves = int((tree.level == city.levels).sum())
        assert leaves >= aspect * 4**city.levels  # at least one layer of them covers the ground
    assert trees[1].num_nodes == pytest.approx(4 * trees[0].num_nodes, rel=0.35)


def test_a_tree_built_in_a_process_of_its_own_is_the_tree_and_its_memory_is_counted() -> None:
    city = City.of(3, 0.5)
    with builder() as own_process:
        built = own_process.submit(build, city).result()
    assert built.tree.identity == tree_of(city).identity
    assert built.points == len(city.points()[0])
    assert built.build_peak_mb > 50 and built.build_peak_mb > built.build_grown_mb >= 0
    assert built.build_s > 0


def test_touched_nodes_answer_on_surfaces_at_the_level_of_the_pixel() -> None:
    city = City.of(3, 1.0)
    tree = tree_of(city)
    for seen in look(city, torch.cat([street_views(2), aerial_views(1)])):
        xyz, footprint = seen.surface
        some = torch.randperm(len(xyz), generator=torch.Generator().manual_seed(0))[:300]
        node, _ = route_recursive(tree, xyz[some], footprint[some])
        found = touched(tree, seen)
        assert set(node.tolist()) <= set(found.tolist())
        assert 1 < len(found) < tree.num_nodes / 2
        inside = (xyz[some] - tree.centre[node]).abs() <= tree.half[node, None] * (1 + 1e-5)
        assert inside.all()


def test_what_a_view_can_ask_holds_what_it_touches_and_grows_as_slowly() -> None:
    counts, poses = [], torch.cat([street_views(3), aerial_views(1)])
    for city in (City.of(3, 1.0), City.of(5, 1.0)):
        tree = tree_of(city)
        sets = working_sets(city, tree, poses)
        for seen, found in zip(look(city, poses), sets, strict=True):
            assert set(touched(tree, seen).tolist()) <= set(found.tolist())
        counts.append(sum(map(len, sets)))
    assert counts[0] < counts[1] < 4 * counts[0]


def test_touched_nodes_grow_much_more_slowly_than_the_tree() -> None:
    cities = [City.of(levels, 1.0) for levels in (3, 5)]
    trees = [tree_of(city) for city in cities]
    views = street_views(4)
    means = [sum(len(touched(tree, seen)) for seen in look(city, views)) / 4 for city, tree in zip(cities, trees)]
    assert trees[1].num_nodes > 12 * trees[0].num_nodes
    assert means[0] < means[1] < 2 * means[0]


def test_routed_samples_lie_between_the_eye_and_the_surface_and_scattered_ones_on_the_last_level() -> None:
    city = City.of(3, 1.0)
    tree, seen = tree_of(city), look(city, street_views(1))
    xyz, footprint = routed_samples(city, seen)
    eye = seen[0].rays.origin[0]
    away = (xyz - eye).norm(dim=1) * city.half_m
    assert xyz.shape == (growth.SAMPLES, 3) and (away > 0.9 * growth.NEAREST_M).all()
    assert (away <= float(seen[0].distance.max()) * city.half_m * 1.001).all()
    assert torch.allclose(footprint, away / city.half_m * (footprint / (away / city.half_m)).mean(), rtol=0.3)
    xyz, footprint = scattered(city)
    assert len(xyz) == growth.SAMPLES
    assert (tree.level[route(tree, xyz, footprint)[0]] == city.levels).double().mean() > 0.95


def test_fit_is_exact_for_a_line_and_poor_for_noise() -> None:
    fit = Fit.of([1.0, 2.0, 4.0], [3.0, 5.0, 9.0])
    assert (fit.intercept, fit.slope, fit.r2) == pytest.approx((1, 2, 1))
    assert Fit.of([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 0.0, 1.0]).r2 < 0.3


def test_the_command_prints_writes_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(growth, "QUICK_SIZES", ((2, 1.0), (3, 0.5), (3, 1.0)))
    monkeypatch.setattr(growth, "QUICK_VIEWS", 1)
    monkeypatch.setattr(growth, "QUICK_EFFORT", Effort(seconds=0, fewest=1, most=1))
    monkeypatch.setattr(growth, "SAMPLES", 500)
    monkeypatch.setattr(growth, "FITTED_FROM", 10)
    out, plot = tmp_path / "growth.json", tmp_path / "growth.svg"
    assert growth.main(["--quick", str(out), "--plot", str(plot)]) == 0
    content = json.loads(out.read_text())
    assert [row["levels"] for row in content["cities"]] == [3, 4, 4]
    assert set(content["fits"]) == set(growth.TITLES)
    printed = capsys.readouterr().out
    for row in content["cities"]:
        assert str(row["nodes"]) in printed and row["routing_ms"] > 0 and row["scattered_ms"] > 0
        assert 0 < row["drive"]["peak_mb"] <= growth.BUDGET / 2**20 and row["drive"]["parts"] >= 1
        assert row["street"]["most"] <= row["street_set"]["most"] <= row["nodes"]
        assert 0 < row["street"]["least"] <= row["street"]["mean"] <= row["street"]["most"] <= row["nodes"]
    assert "log10(n)" in printed and "R^2" in printed
    assert "log10 n" in plot.read_text()
