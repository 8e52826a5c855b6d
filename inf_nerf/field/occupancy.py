"""Which cells of a node are worth asking: one coarse grid of densities per node.

A cell holds a decaying maximum of the density found at random points inside it; it is empty when that falls under a
threshold, which is below the haze that a field starts with, so that what was never trained is not taken for empty.
Sparse points know more than a young field does: cells around them are protected and never empty, and cells that many
lines of sight to them cross are free and always empty.  All others count as occupied until ``enabled`` is set, because
density has to appear before it can be missed.
"""

import torch
from torch import Tensor

from inf_nerf.errors import InputError
from inf_nerf.field.field import Field

POINTS = 4  # probed in a cell at once


class Cells:
    """Which cells of N nodes may hold anything, G to a side: all that rendering asks."""

    def __init__(self, occupied: Tensor, resolution: int) -> None:
        self.occupied = occupied  # [N, G^3] bool, x slowest
        self.resolution = resolution

    @property
    def num_nodes(self) -> int:
        return self.occupied.shape[0]

    def cell(self, xyz: Tensor) -> Tensor:
        """Cell index [Q] of node-local positions [Q, 3] in [0, 1] (x slowest)."""
        i = (xyz * self.resolution).long().clamp_(0, self.resolution - 1)
        return (i[:, 0] * self.resolution + i[:, 1]) * self.resolution + i[:, 2]

    def cell_of(self, xyz: Tensor, node: Tensor) -> Tensor:
        """Index [Q] into the flat grids of all nodes, of node-local positions [Q, 3] in nodes [Q]."""
        return node * self.resolution**3 + self.cell(xyz)


class Occupancy(Cells):
    """Grids of N nodes with G cells per side, as training finds them out."""

    def __init__(
        self,
        threshold: Tensor,  # [N] density per scene unit below which a cell of the node is empty
        resolution: int,
        decay: float,
        device: torch.device | str = "cpu",
    ) -> None:
        num_nodes = len(threshold)
        super().__init__(torch.ones(num_nodes, resolution**3, dtype=torch.bool, device=device), resolution)
        self.threshold = threshold.to(device)
        self.decay = decay
        self.enabled = False
        self.density = torch.zeros(num_nodes, resolution**3, device=device)  # [N, G^3] per scene unit
        self.protected = torch.zeros(num_nodes, resolution**3, dtype=torch.bool, device=device)  # [N, G^3]
        self.free = torch.zeros(num_nodes, resolution**3, dtype=torch.bool, device=device)  # [N, G^3]

    def change_nodes(self, threshold: Tensor, source: Tensor) -> None:
        """Hold N' nodes of ``threshold`` [N'] from now on: those that ``source`` [N'] had as index before, -1 for new
        ones, whose cells hold nothing until they are filled.  Call :meth:`refresh` then."""
        kept = torch.nonzero(source >= 0).squeeze(1)
        for name in ("density", "protected", "free", "occupied"):
            before: Tensor = getattr(self, name)
            changed = before.new_zeros(len(source), before.shape[1])
            changed[kept] = before[source[kept]]
            setattr(self, name, changed)
        self.threshold = threshold.to(self.density.device)

    def inherit(self, node: int, parent: int, corner: Tensor) -> None:
        """Give the cells of ``node`` what its parent has where they lie: ``corner`` [3] is that of the node's cube in
        the parent's [0, 1], whose half it is wide.  Density is as much above the threshold as the parent's."""
        steps = (torch.arange(self.resolution, device=corner.device) + 0.5) / self.resolution
        above = self.cell(corner + torch.cartesian_prod(steps, steps, steps) / 2)
        self.density[node] = self.density[parent, above] * (self.threshold[node] / self.threshold[parent])
        for cells in (self.protected, self.free, self.occupied):
            cells[node] = cells[parent, above]

    def points_in(self, node: int, count: int, generator: torch.Generator) -> Tensor:
        """Random points [count, 3] in the node's [0, 1], in its occupied cells if there are any."""
        g, device = self.resolution, self.density.device
        cells = torch.nonzero(self.occupied[node]).squeeze(1)
        if len(cells) == 0:
            cells = torch.arange(g**3, device=device)
        chosen = cells[torch.randint(len(cells), (count,), generator=generator).to(device)]
        corner = torch.stack((chosen // g**2, chosen // g % g, chosen % g), 1)
        return (corner + torch.rand(count, 3, generator=generator).to(device)) / g

    def protect(self, xyz: Tensor, node: Tensor) -> None:
        """Keep the cells around node-local points [P, 3] of nodes [P] occupied whatever the field says."""
        offsets = torch.tensor([-1.0, 0.0, 1.0]) * (0.5 / self.resolution)
        for shift in torch.cartesian_prod(offsets, offsets, offsets).to(xyz):
            near = xyz + shift
            inside = ((near >= 0) & (near < 1)).all(1)
            self.protected[node[inside], self.cell(near[inside])] = True

    @torch.no_grad()
    def probe(self, field: Field, node: int, share: int, shares: int, generator: torch.Generator) -> None:
        """Measure every ``shares``-th cell of a node (starting at ``share``) that is not free, at a few random points:
        a surface is much thinner than a cell, and one that every probe misses would be culled.

        The generator must be the same on all ranks that hold the node.
        """
        g = self.resolution
        # a stride coprime to the grid spreads each share over the whole cube
        cells = torch.arange(share, g**3, shares, device=self.density.device) * 48_271 % g**3
        cells = cells[~self.free[node, cells]]
        corner = torch.stack((cells // g**2, cells // g % g, cells % g), 1)
        shift = torch.rand(POINTS, len(cells), 3, generator=generator).to(corner.device)
        index = torch.full((POINTS * len(cells),), node, dtype=torch.int64, device=corner.device)
        sigma, _ = field.density(((corner + shift) / g).view(-1, 3), index)
        found = sigma.view(POINTS, -1).amax(0)
        self.density[node, cells] = torch.maximum(self.density[node, cells] * self.decay, found)

    def refresh(self) -> None:
        """Recompute which cells are occupied."""
        threshold = self.threshold[:, None] if self.enabled else None
        self.occupied = occupied_cells(self.density, self.protected, self.free, threshold)

    def state_of(self, node: int) -> dict[str, Tensor]:
        """Tensors that rebuild one node's grid."""
        return {"density": self.density[node], "protected": self.protected[node], "free": self.free[node]}

    def load_state(self, node: int, state: dict[str, Tensor]) -> None:
        """Restore one node's grid; call :meth:`refresh` after the last node.

        Raises :class:`InputError` when it belongs to another resolution.
        """
        for name, target in self.state_of(node).items():
            found = state.get(name)
            if found is None or found.shape != target.shape:
                size = "nothing" if found is None else f"{found.numel()} cells"
                raise InputError(
                    f"The saved occupancy of a node holds {size} for {name!r} where {target.numel()} are expected; "
                    "use the sampler.occupancy_res of the run that it was saved by."
                )
            target.copy_(found)


def occupied_cells(density: Tensor, protected: Tensor, free: Tensor, threshold: Tensor | float | None) -> Tensor:
    """Which cells may hold anything, of any shape; ``threshold`` None: density does not count yet."""
    occupied = protected | ~free
    return occupied if threshold is None else occupied & ((density > threshold) | protected)
