"""The frame in which the octree lives, and how it is found from points and cameras.

The root cube of the octree is [-1, 1]^3 with z up.  A :class:`WorldFrame` is the similarity from the coordinates of the
input to it, in float64 so that georeferenced input (coordinates of millions of metres) survives the way there and back.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inf_nerf.errors import InputError

Array = NDArray[np.float64]

PCA_ROUNDS = 3
AGREED_UP = 0.6  # length of the mean of the photos' up vectors above which they agree
GROUND_LIFT = 0.02  # scene units between the cutting plane and the box of a flat scene, for points below the percentile
ALL_AROUND = 0.4  # length of the horizontal mean of viewing directions below which photos look all around


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


def find_frame(xyz: Array, cam_to_world: Array, percentile: float, margin: float, orient: bool) -> WorldFrame:
    """The frame that suits points [P, 3] and cameras [V, 3, 4] of the input.

    The box between the ``percentile`` and its counterpart on every axis, grown by ``margin`` of its extent on each
    side, spans the cube with its longest side; stray points do not shape it.  A box of at most half the cube's height
    rests just above z = 0, a higher one is centred.  Raises :class:`InputError` if the points span no volume.
    """
    rotation = find_rotation(xyz, cam_to_world, percentile) if orient else np.eye(3)
    low, high = np.percentile(xyz @ rotation.T, [percentile, 100 - percentile], axis=0)
    low, high = low - margin * (high - low), high + margin * (high - low)
    half = float((high - low).max()) / 2
    if not np.isfinite(half) or half <= np.finfo(np.float32).eps * np.abs(xyz).max():
        raise InputError(
            f"The {len(xyz)} sparse points span no volume, so no cube fits around them; reconstruct the scene again."
        )
    centre = (low + high) / 2
    if high[2] - low[2] <= half:
        # The octree's first horizontal cut is z = 0: a flat scene centred there would be cut along its ground, which
        # takes nearly twice the nodes and leaves a seam.
        centre[2] = low[2] - min(GROUND_LIFT * half, half - (high[2] - low[2]))
    return WorldFrame.from_parts(1 / half, rotation, centre @ rotation)


def find_rotation(xyz: Array, cam_to_world: Array, percentile: float) -> Array:
    """Rotation [3, 3] after which z is up and x the longest horizontal direction of the points.

    Up is the direction in which the points extend least, on the side of the cameras and of the photos' upper edges.
    Where the photos agree on what is up while they look all around (a tower, a room), that is up instead.
    """
    axes = _principal_axes(xyz, percentile)
    photo_up = -cam_to_world[:, :, 1].mean(axis=0)
    view = cam_to_world[:, :, 2].mean(axis=0)
    towards_cameras = cam_to_world[:, :, 3] - np.median(xyz, axis=0)
    towards_cameras /= np.linalg.norm(towards_cameras, axis=1, keepdims=True).clip(np.finfo(float).tiny)

    up = axes[2] * (1 if axes[2] @ (photo_up + towards_cameras.mean(axis=0)) >= 0 else -1)
    agreed = np.linalg.norm(photo_up)
    if agreed > AGREED_UP:
        upright = photo_up / agreed
        all_around = np.linalg.norm(view - (view @ upright) * upright) < ALL_AROUND
        if all_around and up @ upright < np.cos(np.pi / 4):
            up = upright
    across = axes - np.outer(axes @ up, up)  # what is horizontal of the principal axes, longest extent first
    x = across[0] if np.linalg.norm(across[0]) > 0.5 else across[1]
    x = x / np.linalg.norm(x)
    x = x * np.sign(x[np.abs(x).argmax()])
    return np.stack([x, np.cross(up, x), up])


def _principal_axes(xyz: Array, percentile: float) -> Array:
    """Principal axes [3, 3] (rows, longest extent first) of the points that lie between the percentiles on all axes."""
    axes = np.eye(3)
    for _ in range(PCA_ROUNDS):
        along = xyz @ axes.T
        low, high = np.percentile(along, [percentile, 100 - percentile], axis=0)
        inlier = xyz[((along >= low) & (along <= high)).all(axis=1)]
        centred = inlier - inlier.mean(axis=0)
        axes = np.linalg.eigh(centred.T @ centred)[1].T[::-1]
    return axes
