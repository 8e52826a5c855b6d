"""The frame in which the octree lives, and how it is found from points and cameras.

The root cube of the octree is [-1, 1]^3 with z up.  A :class:`WorldFrame` is the similarity from the coordinates of the
input to it, in float64 so that georeferenced input (coordinates of millions of metres) survives the way there and back.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class WorldFrame:
    """Similarity transform from input coordinates to the scene frame."""

    matrix: Array  # [4, 4] float64: scale * rotation and translation

    def __post_init__(self) -> None:
        assert self.matrix.shape == (4, 4) and self.matrix.dtype == np.float64

    @property
    def scale(self) -> float:
        """Scene units per input unit."""
        return float(np.cbrt(np.linalg.det(self.matrix[:3, :3])))

    @property
    def rotation(self) -> Array:
        """Rotation part [3, 3]."""
        return self.matrix[:3, :3] / self.scale

    @property
    def up(self) -> Array:
        """The scene's z axis in input coordinates, a unit vector [3]."""
        return self.rotation[2]

    def to_scene(self, xyz: ArrayLike) -> Array:
        """Input coordinates [..., 3] in the scene frame."""
        return np.asarray(xyz, np.float64) @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def to_world(self, xyz: ArrayLike) -> Array:
        """Scene coordinates [..., 3] in the frame of the input."""
        return (np.asarray(xyz, np.float64) - self.matrix[:3, 3]) @ self.rotation / self.scale

    def camera_to_scene(self, cam_to_world: Array) -> Array:
        """Camera poses [V, 3, 4] of the input (rotation, centre) in the scene frame, rotations staying rotations."""
        rotation = self.rotation @ cam_to_world[:, :, :3]
        return np.concatenate([rotation, self.to_scene(cam_to_world[:, :, 3])[:, :, None]], axis=-1)

    @staticmethod
    def from_parts(scale: float, rotation: Array, centre: Array) -> "WorldFrame":
        """The frame that maps ``centre`` to the origin, then rotates, then scales."""
        matrix = np.eye(4)
        matrix[:3, :3] = scale * rotation
        matrix[:3, 3] = -scale * rotation @ centre
        return WorldFrame(matrix)
