"""Cubes are where the nodes are, and thousands of nodes stay few lines."""

from typing import Any

import numpy as np
import torch
from mpl_toolkits.mplot3d.art3d import Line3DCollection

from inf_nerf.octree.topology import Octree
from inf_nerf.plots.octree import MOST_CUBES, cube_edges, levels_as_cubes, octree_figure
from inf_nerf.render.colourmap import level_colour


def full_tree(num_levels: int) -> Octree:
    keys = torch.cat([torch.arange(8**level, 2 * 8**level) for level in range(num_levels)])
    return Octree.from_keys(keys, torch.zeros(len(keys), dtype=torch.int64), 0.1)


def wires(octree: Octree) -> list[Any]:
    (axes,) = octree_figure(octree).axes
    return [each for each in axes.collections if isinstance(each, Line3DCollection)]


def test_edges_of_a_cube_are_its_twelve() -> None:
    edges = cube_edges(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0.5]))
    assert edges.shape == (12, 2, 3)
    np.testing.assert_allclose(np.linalg.norm(edges[:, 1] - edges[:, 0], axis=1), 1.0)
    np.testing.assert_allclose(edges.reshape(-1, 3).mean(0), [1, 2, 3])
    assert len(np.unique(edges.reshape(-1, 3), axis=0)) == 8


def test_each_level_has_its_colour_and_every_node_its_cube() -> None:
    octree = full_tree(3)
    drawn = wires(octree)
    assert [len(each._segments3d) // 12 for each in drawn] == [1, 8, 64]
    for level, each in enumerate(drawn):
        np.testing.assert_allclose(each.get_colors()[0][:3], level_colour(level))


def test_levels_with_too_many_nodes_are_points() -> None:
    octree = full_tree(5)  # 4681 nodes
    assert levels_as_cubes(octree) == 3
    (axes,) = octree_figure(octree, "many").axes
    assert sum(len(each._segments3d) // 12 for each in wires(octree)) <= MOST_CUBES
    legend = axes.get_legend()
    assert legend is not None
    named = [text.get_text() for text in legend.get_texts()]
    assert named[0] == "level 0: 1 node" and named[4] == "level 4: 4,096 nodes, as points"


def test_a_tree_of_its_root_alone_is_one_cube() -> None:
    assert len(wires(full_tree(1))) == 1
