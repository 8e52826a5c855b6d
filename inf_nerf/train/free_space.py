"""What sparse points and their lines of sight say about occupancy before any training.

A point protects the cells around it, in every node on its path down the tree.  The line from a photo that saw it up to
a little before it is free, and so is what lies well below the lowest points of a neighbourhood where the scene stands
on solid ground.  Both only shape the start: a roof without texture has no points, so whatever is neither protected nor
plainly free stays occupied until the field says otherwise.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from inf_nerf.octree.routing import route
from inf_nerf.render.model import Model
from inf_nerf.scene.scene import Scene

SCENE_CELLS = 64  # per side of the grid on which free space is found
LINES = 65_536  # observations that carve, taken evenly from all
STEPS = 128  # places tested on each line, about two to a cell
REACH = 0.95  # share of a line that is taken as free
LEAST_CROSSINGS = 2  # tested places that a free cell holds, and each of its neighbours


def learn_from_points(model: Model, scene: Scene) -> None:
    """Protect cells around points and free those that are plainly empty."""
    octree, occupancy, points = model.octree, model.occupancy, scene.points
    inside = (points.xyz.abs() <= 1).all(1)
    xyz, footprint = points.xyz[inside].to(octree.gsd), points.footprint[inside].to(octree.gsd)
    node, _ = route(octree, xyz, footprint * model.config.octree.footprint_px)
    free = air(scene, model.config.sampler.near)
    if model.solid_ground:
        free |= underground(points.xyz[inside])
    occupancy.free = free_cells(model, free.to(octree.gsd.device))
    while len(node):
        occupancy.protect(octree.to_local(xyz, node), node)
        node = octree.parent[node]
        xyz, node = xyz[node >= 0], node[node >= 0]
    occupancy.refresh()
    model.occupancy_changed()


def air(scene: Scene, near: float) -> Tensor:
    """Cells [S, S, S] of the root cube that lines of sight cross, and all of whose neighbours they cross: a line that
    skims a surface must not cut it away.  Nothing is said of what is nearer to a camera than ``near``."""
    points, cameras = scene.points, scene.cameras
    count = torch.zeros(SCENE_CELLS**3, dtype=torch.int64)
    num_observations = len(points.track_photo)
    if num_observations:
        chosen = torch.linspace(0, num_observations - 1, min(LINES, num_observations)).long()
        point = points.track_point
        share = (torch.arange(STEPS) + 0.5) / STEPS * REACH
        for part in chosen.split(4096):
            camera = cameras.centre[points.track_photo[part]]
            line = points.xyz[point[part]] - camera
            # only the stretch inside the cube counts, and it is what the places are spread over
            inverse = 1 / torch.where(line.abs() < 1e-9, torch.full_like(line, 1e-9), line)
            enter = torch.minimum((-1 - camera) * inverse, (1 - camera) * inverse).amax(1).clamp(0, 1)
            t = enter[:, None] + (1 - enter[:, None]) * share
            xyz = (camera[:, None] + line[:, None] * t[..., None]).view(-1, 3)
            seen = (xyz.abs() < 1).all(1) & (t * line.norm(dim=1)[:, None] > near).view(-1)
            count += torch.bincount(_scene_cell(xyz[seen]), minlength=len(count))
    missing = (count < LEAST_CROSSINGS).view(1, 1, SCENE_CELLS, SCENE_CELLS, SCENE_CELLS)
    return F.max_pool3d(missing.float(), 3, stride=1, padding=1)[0, 0] == 0


def underground(
    xyz: Tensor,  # [P, 3] points inside the root cube
) -> Tensor:
    """Cells [S, S, S] more than a cell below the lowest point of their column and the eight around it.

    Columns without points nearby take the lowest of all.
    """
    cell = _scene_cell(xyz)
    column, height = cell // SCENE_CELLS, cell % SCENE_CELLS
    lowest = torch.full((SCENE_CELLS**2,), SCENE_CELLS, dtype=torch.int64)
    lowest.scatter_reduce_(0, column, height, "amin")
    grid = lowest.view(1, 1, SCENE_CELLS, SCENE_CELLS).float()
    nearby = -F.max_pool2d(-grid, 3, stride=1, padding=1)[0, 0]
    least = float(height.min()) if len(height) else 0.0
    nearby = torch.where(nearby >= SCENE_CELLS, torch.full_like(nearby, least), nearby)
    return torch.arange(SCENE_CELLS) < (nearby - 1)[..., None]


def free_cells(model: Model, free: Tensor) -> Tensor:
    """Cells [N, G^3] of the nodes' own grids that lie in free scene cells [S, S, S] with centre and corners."""
    octree, g = model.octree, model.occupancy.resolution
    steps = (torch.arange(g, device=free.device) + 0.5) / g
    centre = torch.cartesian_prod(steps, steps, steps)  # [G^3, 3] as in Occupancy.cell: x slowest
    flat = free.view(-1)
    result = torch.ones(octree.num_nodes, g**3, dtype=torch.bool, device=free.device)
    signs = torch.tensor([-0.45, 0.45], device=free.device) / g
    offsets = torch.cat((torch.zeros(1, 3, device=free.device), torch.cartesian_prod(signs, signs, signs)))
    for node in range(octree.num_nodes):
        corner, side = octree.centre[node] - octree.half[node], 2 * octree.half[node]
        for offset in offsets:
            result[node] &= flat[_scene_cell(corner + (centre + offset) * side)]
    return result


def _scene_cell(xyz: Tensor) -> Tensor:
    """Index [Q] of the scene cell of positions [Q, 3], z fastest."""
    i = ((xyz * 0.5 + 0.5) * SCENE_CELLS).long().clamp_(0, SCENE_CELLS - 1)
    return (i[:, 0] * SCENE_CELLS + i[:, 1]) * SCENE_CELLS + i[:, 2]
