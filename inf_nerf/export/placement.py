"""The coordinates and units of what is exported.

Points and meshes are written in the input's coordinates, or in a projected system where it is known where on the earth
these are.  Rasters need axes of which the third is up: those of the projected system, else those of the input if its z
is up, else the scene's, in the input's unit.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inf_nerf.errors import InputError
from inf_nerf.export.georeference import Georeference
from inf_nerf.scene.frame import WorldFrame

Array = NDArray[np.float64]

UPRIGHT = math.cos(math.radians(10.0))  # of the angle between the input's z and the scene's up
CORNERS = np.stack(np.meshgrid([0.0, 1.0], [0.0, 1.0], [0.0, 1.0], indexing="ij"), axis=-1).reshape(-1, 3)


@dataclass(frozen=True, eq=False)
class Placement:
    """How the scene frame lies in the coordinates of exports."""

    frame: WorldFrame
    georeference: Georeference | None = None

    @property
    def unit(self) -> str:
        """Name of the unit of lengths."""
        return "units of the input" if self.georeference is None else "m"

    @property
    def scale(self) -> float:
        """That unit per scene unit."""
        metres = 1.0 if self.georeference is None else self.georeference.metres_per_unit
        return metres / self.frame.scale

    @property
    def crs(self) -> str | None:
        """The projected system, if there is one."""
        return None if self.georeference is None else self.georeference.crs

    def from_scene(self, xyz: ArrayLike) -> Array:
        """Scene positions [P, 3] in the coordinates of points and meshes."""
        world = self.frame.to_world(xyz)
        return world if self.georeference is None else self.georeference.to_crs(world)

    def map_from_scene(self, xyz: ArrayLike) -> Array:
        """Scene positions [P, 3] in the coordinates of rasters, the third up."""
        return self.from_scene(xyz) @ self.upright.T

    def map_to_scene(self, xyz: ArrayLike) -> Array:
        """Inverse of :meth:`map_from_scene`."""
        there = np.asarray(xyz, np.float64) @ self.upright
        return self.frame.to_scene(there if self.georeference is None else self.georeference.from_crs(there))

    @cached_property
    def upright(self) -> Array:
        """Rotation [3, 3] that makes the third coordinate up."""
        return np.eye(3) if self.georeference is not None or self.frame.up[2] >= UPRIGHT else self.frame.rotation

    @property
    def tiles_matrix(self) -> Array:
        """The map [4, 4] from scene axes with this unit to earth-centred coordinates, or to those of the input."""
        there = np.eye(4) if self.georeference is None else self.georeference.to_ecef
        return there @ np.linalg.inv(self.frame.matrix) @ np.diag([1 / self.scale] * 3 + [1.0])


@dataclass(frozen=True, eq=False)
class CropBox:
    """The box ``low`` to ``high`` [3] in the input's coordinates to which exports may be confined."""

    low: Array
    high: Array
    frame: WorldFrame

    def __post_init__(self) -> None:
        if not (self.low < self.high).all() or not np.isfinite([*self.low, *self.high]).all():
            raise InputError(
                f"The crop from {self.low.tolist()} to {self.high.tolist()} is no box; write x0,y0,z0,x1,y1,z1 with "
                "x0 < x1, y0 < y1 and z0 < z1."
            )
        low, high = self.scene_bounds
        if (low >= high).any():
            raise InputError(
                f"The crop from {self.low.tolist()} to {self.high.tolist()} lies outside the scene, whose cube is "
                f"around {self.frame.to_world(np.zeros(3)).round(3).tolist()} with a side of {2 / self.frame.scale:g}."
            )

    @property
    def corners(self) -> Array:
        """Scene positions [8, 3]."""
        return self.frame.to_scene(self.low + CORNERS * (self.high - self.low))

    @property
    def scene_bounds(self) -> tuple[Array, Array]:
        """Least and greatest scene coordinates [3], within the root cube."""
        return self.corners.min(axis=0).clip(-1, 1), self.corners.max(axis=0).clip(-1, 1)

    def holds(self, xyz: Array, margin: float = 0.0) -> NDArray[np.bool_]:
        """Which scene positions [P, 3] are in it, or within ``margin`` scene units."""
        world, wide = self.frame.to_world(xyz), margin / self.frame.scale
        inside: NDArray[np.bool_] = (world >= self.low - wide) & (world < self.high + wide)
        return np.asarray(inside.all(axis=1))
