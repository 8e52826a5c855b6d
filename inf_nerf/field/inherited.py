"""A node that starts as what its parent is in one octant.

The child's cube is half as wide, and its grid has the same vertices a side, so each of its levels is twice as fine as
the same level of the parent.  It takes over the parent's heads, and on each level the features that the parent's same
level has at the child's vertices: where no vertices share an entry that is the parent's level read twice as densely.
In a hashed level entries are shared, and one takes the mean over those of its vertices that can be seen.  What this
leaves of error, mostly on surfaces, some steps of regression on the parent's density and colour bring down.

Letters: Q points in the child's cube, P entries and F features of a table, A appearance numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from inf_nerf.field.field import Field
from inf_nerf.field.hash_grid import GridSpec, corners_of

MOST_POINTS = 1 << 20
AT_ONCE = 1 << 15  # points whose corners are held at once
AIR = 0.02  # how much a point counts that is in empty space; one on a surface counts 1
FIT_STEPS, FIT_POINTS, FIT_RATE = 16, 2048, 2e-3


def inherited_table(
    spec: GridSpec,
    table: Tensor,  # [P, F] of the parent
    corner: Tensor,  # [3] of the child's cube in the parent's [0, 1]; it is half as wide
    xyz: Tensor,  # [Q, 3] in the child's [0, 1], which fill the hashed levels
    visible: Tensor,  # [Q] how much each counts there
) -> Tensor:  # [P, F]
    """The child's table.  Entries of hashed levels that no point comes near get the mean of their level."""
    levels = []
    for level in range(spec.num_levels):
        mine = table[spec.offsets[level] : spec.offsets[level + 1]]
        read = _Level(spec, level, mine, corner)
        if not spec.hashed[level]:
            res = spec.resolutions[level]
            steps = torch.arange(res, device=table.device)
            z, y, x = torch.cartesian_prod(steps, steps, steps).unbind(1)  # x fastest
            inherited = torch.zeros_like(mine)
            inherited[: res**3] = torch.cat([read.at(part) for part in torch.stack((x, y, z), 1).split(8 * AT_ONCE)])
            levels.append(inherited)
            continue
        total, count = torch.zeros_like(mine), mine.new_zeros(len(mine), 1)
        for points, seen in zip(xyz.split(AT_ONCE), visible.split(AT_ONCE), strict=True):
            vertex, weight, index = corners_of(spec, level, points)
            weight = (weight * seen[:, None]).view(-1, 1)
            total.index_add_(0, index.flatten(), weight * read.at(vertex.view(-1, 3)))
            count.index_add_(0, index.flatten(), weight)
        mean = total.sum(0) / count.sum().clamp_min(1e-12)
        levels.append(torch.where(count > 0, total / count.clamp_min(1e-12), mean))
    return torch.cat(levels)


def num_points(spec: GridSpec) -> int:
    """Q: points that fill the hashed levels, one for each entry."""
    return min(MOST_POINTS, max(spec.sizes))


class _Level:
    """One level of a parent, read at the vertices of the same level of its child."""

    def __init__(self, spec: GridSpec, level: int, entries: Tensor, corner: Tensor) -> None:
        self._spec, self._level, self._entries, self._corner = spec, level, entries, corner

    def at(self, vertex: Tensor) -> Tensor:
        """Features [V, F] at the child's vertices [V, 3]."""
        place = self._corner + (vertex - 0.5) / (2 * max(self._spec.scales[self._level], 1e-6))
        _, weight, index = corners_of(self._spec, self._level, place.clamp(0, 1))
        return (self._entries[index] * weight[..., None]).sum(1)


@torch.no_grad()
def inherit(
    field: Field,
    node: int,
    parent: int,
    corner: Tensor,  # [3] of the node's cube in the parent's [0, 1]; it is half as wide
    gsd: float,  # of the node, scene units
    xyz: Tensor,  # [Q, 3] points in the node's [0, 1] where anything may be
    moments: Tensor | None,  # [P, F] second moments of the parent's table
) -> Tensor | None:  # [P, F] second moments for the node's table
    """Give ``node`` of a field its parent's heads and features."""
    visible = AIR + opacity_at(field, parent, corner + xyz / 2, gsd)
    table = field.state_of(parent)["table"]
    both = table if moments is None else torch.cat((table, moments), dim=1)
    inherited = inherited_table(field.spec, both, corner, xyz, visible)
    field.load_state(node, {**field.state_of(parent), "table": inherited[:, : table.shape[1]]})
    return None if moments is None else inherited[:, table.shape[1] :].clamp_min(0)


def fit(
    field: Field,
    node: int,
    parent: int,
    corner: Tensor,  # [3]
    gsd: float,
    xyz: Tensor,  # [Q, 3] points in the node's [0, 1] where anything may be
    looks: Tensor,  # [A] appearance
    generator: torch.Generator,
    steps: int = FIT_STEPS,
) -> None:
    """Regress density, as opacity over a gsd, and colour of ``node`` on those of its parent at the points, by Adam; the
    field's gradients must be clear, and are again."""
    parameters = list(field.parameters_of(node).values())
    optimiser = torch.optim.Adam(parameters, lr=FIT_RATE, betas=(0.9, 0.99), eps=1e-15)
    count = min(FIT_POINTS, len(xyz))
    ray, appearance = torch.arange(count, device=corner.device), looks.expand(count, -1)
    for step in range(steps):
        chosen = torch.randint(len(xyz), (count,), generator=generator).to(xyz.device)
        direction = F.normalize(torch.randn(count, 3, generator=generator), dim=1).to(xyz.device)
        points = xyz[chosen]
        with torch.no_grad():
            of_parent = torch.full_like(ray, parent)
            density, colour = field.radiance(corner + points / 2, of_parent, direction, appearance, ray)
            opacity = -torch.expm1(-density * gsd)
        density, rgb = field.radiance(points, torch.full_like(ray, node), direction, appearance, ray)
        error = (-torch.expm1(-density * gsd) - opacity).square() + opacity * (rgb - colour).square().mean(1)
        error.mean().backward()
        for group in optimiser.param_groups:
            group["lr"] = FIT_RATE * (1 - step / steps)
        for parameter, gradient in zip(parameters, field.gradients_of(node), strict=True):
            parameter.grad = gradient
        optimiser.step()
        for parameter, gradient in zip(parameters, field.gradients_of(node), strict=True):
            parameter.grad = None
            gradient.zero_()
        field.touched[node] = False


@torch.no_grad()
def opacity_at(field: Field, node: int, xyz: Tensor, gsd: float) -> Tensor:
    """Share [Q] of light that a gsd of what is at node-local positions [Q, 3] stops."""
    sigma, _ = field.density(xyz, torch.full((len(xyz),), node, dtype=torch.int64, device=xyz.device))
    return -torch.expm1(-sigma * gsd)
