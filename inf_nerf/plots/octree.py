"""The octree in space: its cubes as wires in the colours of their levels, those that are too many as points."""

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from mpl_toolkits.mplot3d.art3d import Line3DCollection
from mpl_toolkits.mplot3d.axes3d import Axes3D
from numpy.typing import NDArray
from torch import Tensor

from inf_nerf.octree.topology import Octree
from inf_nerf.render.colourmap import level_colour

MOST_CUBES = 400  # drawn as wires, coarse levels first; more hide each other
MOST_POINTS = 20_000  # centres of other nodes; of more every second, third, ... is drawn
FEW_CUBES = 50  # of a level, which are drawn with thicker lines
OPACITY, FINEST_OPACITY = 0.3, 0.6  # of cubes
POINT_SIZE = 9.0  # square points, of the first level of points
ELEVATION, AZIMUTH = 32.0, -60.0  # degrees, of the eye

# corners of a cube as signs, and the pairs of them that its edges join
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)  # [8, 3]
EDGES = np.array([(a, b) for a in range(8) for b in range(a + 1, 8) if np.abs(CORNERS[a] - CORNERS[b]).sum() == 2])


def cube_edges(centre: Tensor, half: Tensor) -> NDArray[np.float64]:
    """The edges [K * 12, 2, 3] of cubes with centres [K, 3] and half sides [K]."""
    corners = centre.double().cpu().numpy()[:, None] + half.double().cpu().numpy()[:, None, None] * CORNERS  # [K, 8, 3]
    return corners[:, EDGES].reshape(-1, 2, 3)


def levels_as_cubes(octree: Octree) -> int:
    """How many levels, from the root on, are drawn as cubes: all of each, at most ``MOST_CUBES`` together."""
    counts = torch.bincount(octree.level.cpu(), minlength=octree.num_levels)
    return max(1, int((torch.cumsum(counts, 0) <= MOST_CUBES).sum()))


def octree_figure(octree: Octree, title: str = "") -> Figure:
    """The nodes in the scene frame, in which the root is the cube from -1 to 1."""
    figure = Figure(figsize=(10.0, 8.0), layout="constrained")
    axes = figure.add_subplot(projection="3d")
    assert isinstance(axes, Axes3D)
    cubes, marks = levels_as_cubes(octree), []
    for level in range(octree.num_levels):
        nodes = torch.nonzero(octree.level.cpu() == level).flatten()
        colour, name = level_colour(level), f"level {level}: {len(nodes):,} node{'s' * (len(nodes) != 1)}"
        if level < cubes:
            edges = cube_edges(octree.centre.cpu()[nodes], octree.half.cpu()[nodes])
            width = 2.0 if len(nodes) < FEW_CUBES else 1.0
            colours = [(*colour, OPACITY if level < cubes - 1 else FINEST_OPACITY)]
            axes.add_collection3d(Line3DCollection(list(edges), colors=colours, linewidths=width))
            marks.append(Line2D([], [], color=colour, label=name))
        else:
            every = -(-len(nodes) // MOST_POINTS)
            x, y, z = octree.centre.cpu()[nodes[::every]].double().numpy().T
            size = POINT_SIZE / (1 + level - cubes)
            axes.scatter(x, y, zs=z, s=size, color=colour, linewidths=0, depthshade=False)  # pyright: ignore[reportArgumentType]
            label = f"{name}, as points" + (f", one of {every}" if every > 1 else "")
            marks.append(Line2D([], [], color=colour, marker="o", linestyle="none", markersize=4, label=label))
    ticks = (-1, -0.5, 0, 0.5, 1)
    axes.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1), xlabel="x", ylabel="y", zlabel="z")
    axes.set(xticks=ticks, yticks=ticks, zticks=ticks)
    axes.grid(False)
    axes.set_box_aspect((1, 1, 1))
    axes.view_init(elev=ELEVATION, azim=AZIMUTH)
    axes.legend(handles=marks, loc="upper left", fontsize=8)
    if title:
        figure.suptitle(title)
    return figure
