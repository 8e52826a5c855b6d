import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inf_nerf.config import OctreeConfig
from inf_nerf.octree.build import build_octree, root_gsd
from inf_nerf.octree.routing import route


def build_recursively(
    xyz: Tensor, footprint: Tensor, config: OctreeConfig, max_res: int, key: int = 1, level: int = 0
) -> dict[int, int]:
    """Key -> number of points, by the definition."""
    centre = torch.zeros(3)
    for depth in range(1, level + 1):
        digit = key >> 3 * (level - depth) & 7
        centre += torch.tensor([digit >> 2, digit >> 1 & 1, digit & 1]).mul(2).sub(1) * 2.0**-depth
    nodes = {key: len(xyz)}
    finer = footprint * config.footprint_px < root_gsd(config, max_res) / 2**level
    if level + 1 < config.num_levels:
        for digit in range(8):
            above = torch.tensor([digit >> 2, digit >> 1 & 1, digit & 1], dtype=torch.bool)
            chosen = finer & ((xyz >= centre) == above).all(dim=1)
            if int(chosen.sum()) >= config.min_points:
                nodes |= build_recursively(xyz[chosen], footprint[chosen], config, max_res, key * 8 + digit, level + 1)
    return nodes


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0, 1, 7, 300]),
    st.integers(1, 5),
    st.integers(1, 8),
    st.sampled_from([0.5, 1.0, 1.7]),
)
def test_tree_equals_the_recursive_definition(
    seed: int, count: int, num_levels: int, min_points: int, footprint_px: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.rand(count, 3, generator=generator) * 2 - 1
    xyz[::3] = torch.round(xyz[::3] * 16) / 16  # on cutting planes
    footprint = 2.0 ** -(4 + 4 * torch.rand(count, generator=generator))
    config = OctreeConfig(num_levels=num_levels, min_points=min_points, footprint_px=footprint_px)
    tree = build_octree(xyz, footprint, config, 32)
    expected = build_recursively(xyz, footprint, config, 32)
    assert dict(zip(tree.keys.tolist(), tree.num_points.tolist())) == expected


def test_no_points_give_the_root_alone() -> None:
    tree = build_octree(torch.zeros(0, 3), torch.zeros(0), OctreeConfig(), 64)
    assert (tree.num_nodes, tree.num_levels, tree.num_points.tolist()) == (1, 1, [0])
    assert (tree.children == -1).all()


def test_one_fine_point_gives_one_chain_when_one_point_is_enough() -> None:
    point, footprint = torch.tensor([[0.1, 0.1, 0.1]]), torch.tensor([1e-6])
    tree = build_octree(point, footprint, OctreeConfig(num_levels=5, min_points=1), 64)
    assert tree.level.tolist() == [0, 1, 2, 3, 4]
    assert ((tree.centre - point).abs() <= tree.half[:, None]).all()
    assert build_octree(point, footprint, OctreeConfig(num_levels=5, min_points=2), 64).num_nodes == 1


def test_points_outside_the_root_cube_are_left_out() -> None:
    points = torch.tensor([[1.5, 0.0, 0.0], [0.0, -1.01, 0.0], [0.0, 0.0, 1.0]])
    tree = build_octree(points, torch.full((3,), 1e-6), OctreeConfig(num_levels=2, min_points=1), 64)
    assert tree.num_points.tolist() == [1, 1]


def test_points_that_are_not_finer_stay_with_the_node() -> None:
    config = OctreeConfig(num_levels=3, min_points=1)
    gsd = root_gsd(config, 64)
    points = torch.full((3, 3), 0.3)
    footprint = torch.tensor([gsd, gsd / 2, gsd / 4])
    assert build_octree(points, footprint, config, 64).num_points.tolist() == [3, 2, 1]


def test_gsd_is_the_side_over_grid_and_upsampling() -> None:
    tree = build_octree(torch.zeros(0, 3), torch.zeros(0), OctreeConfig(res_upsample=2.0), 2048)
    assert float(tree.gsd[0]) == 2 / 4096


def test_every_point_is_answered_by_the_level_of_its_footprint_or_a_coarser_one() -> None:
    generator = torch.Generator().manual_seed(1)
    xyz = torch.rand(2000, 3, generator=generator) * 2 - 1
    footprint = 2.0 ** -(4 + 4 * torch.rand(2000, generator=generator))
    complete = build_octree(xyz, footprint, OctreeConfig(num_levels=20, min_points=1), 32)
    node, _ = route(complete, xyz, footprint)
    assert (footprint >= complete.gsd[node]).all()
    assert (footprint < 2 * complete.gsd[node])[node > 0].all()


def test_points_without_footprints_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        build_octree(torch.zeros(3, 3), torch.zeros(2), OctreeConfig(), 64)
