"""What the photos see at the vertices of a mesh: whether they see them at all, and in which colour.

Letters: V vertices, F faces, C cameras, R rays.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from inf_nerf.export.surface import Rendering
from inf_nerf.render.parallel import ordered_map
from inf_nerf.render.stored_model import StoredModel
from inf_nerf.scene.cameras import Cameras, Rays

Array = NDArray[np.float64]
Faces = NDArray[np.int64]

FACING = 3  # cameras that are asked what a vertex looks like
AT_VERTEX = 4.0  # gsds between a vertex and what a camera sees in its direction, within which it sees the vertex


@dataclass(frozen=True, eq=False)
class FacingCameras:
    """Places of cameras and the pinhole next to each, which tells about what is in the frame."""

    centre: Array  # [C, 3]
    rotation: Array  # [C, 3, 3] camera -> scene
    focal: Array  # [C, 2] pixels
    principal: Array  # [C, 2]
    size: Array  # [C, 2]

    def ranked(self, xyz: Array, normal: Array) -> NDArray[np.int64]:
        """The FACING cameras [V, FACING] that have points [V, 3] in the frame and see them least obliquely, best first;
        -1 where there are no more."""
        best, score = np.full((len(xyz), FACING), -1), np.zeros((len(xyz), FACING))
        for index in range(len(self.centre)):
            to = self.centre[index] - xyz
            local = -to @ self.rotation[index]
            pixel = local[:, :2] / local[:, 2:].clip(1e-9) * self.focal[index] + self.principal[index]
            there = (local[:, 2] > 0) & ((pixel >= 0) & (pixel <= self.size[index])).all(axis=1)
            cosine = (to * normal).sum(axis=1) / np.linalg.norm(to, axis=1).clip(1e-9)
            scores = np.column_stack((score, np.where(there, cosine, 0.0)))
            order = np.argsort(-scores, axis=1, kind="stable")[:, :FACING]
            score = np.take_along_axis(scores, order, 1)
            best = np.take_along_axis(np.column_stack((best, np.full(len(xyz), index))), order, 1)
        return np.where(score > 0, best, -1)


def cameras_at(cameras: Cameras, photos: list[int]) -> FacingCameras:
    """The cameras of photos."""
    which = torch.tensor(photos)
    camera = cameras.camera_id[which]
    pose = cameras.cam_to_world[which].double().numpy()
    focal, principal = cameras.intrinsics[camera].double().split(2, dim=1)
    numbers = (focal, principal, cameras.size[camera].double())
    return FacingCameras(pose[:, :, 3], pose[:, :, :3], *(number.numpy() for number in numbers))


def looks_of(
    rendering: Rendering, facing: FacingCameras, xyz: Array, faces: Faces, side: float
) -> tuple[Array, NDArray[np.bool_]]:
    """Mean colour [V, 3] that the facing cameras see at vertices [V, 3], and which of these [V] any of them sees."""
    total, count = np.zeros((len(xyz), 3)), np.zeros(len(xyz))
    if len(xyz) == 0:
        return total, count > 0
    ranked = facing.ranked(xyz, normals(xyz, faces))
    for turn in range(ranked.shape[1]):
        index = np.flatnonzero(ranked[:, turn] >= 0)
        camera = ranked[index, turn]
        to = xyz[index] - facing.centre[camera]
        distance = np.linalg.norm(to, axis=1)
        rays = Rays(
            origin=torch.from_numpy(facing.centre[camera]).float(),
            direction=torch.from_numpy(to / distance[:, None]).float(),
            radius=torch.from_numpy(np.maximum(side / distance, 1e-9)).float(),
            photo=torch.full((len(index),), -1),
        )
        rgb, depth = _seen(rendering, rays)
        visible = np.abs(depth - distance) < AT_VERTEX * side
        total[index[visible]] += rgb[visible]
        count[index[visible]] += 1
    return total / np.maximum(count, 1)[:, None], count > 0


@torch.no_grad()
def _seen(rendering: Rendering, rays: Rays) -> tuple[Array, Array]:
    """Colour [R, 3] and distance [R] of what rays see."""
    if len(rays) == 0:
        return np.zeros((0, 3)), np.zeros(0)
    model = rendering.model
    if isinstance(model, StoredModel):
        model = model.for_rays(rays)

    @torch.no_grad()
    def chunk(first: int) -> tuple[Array, Array]:
        seen = model.render(rays[slice(first, first + rendering.rays_per_chunk)])
        return seen.rgb.clamp(0, 1).double().cpu().numpy(), seen.depth.double().cpu().numpy()

    found = list(ordered_map(chunk, range(0, len(rays), rendering.rays_per_chunk), rendering.workers))
    return np.concatenate([rgb for rgb, _ in found]), np.concatenate([depth for _, depth in found])


def normals(xyz: Array, faces: Faces) -> Array:
    """Unit normals [V, 3] of vertices, the mean of their faces' by area."""
    a, b, c = (xyz[faces[:, corner]] for corner in range(3))
    across = np.cross(b - a, c - a)
    total = np.zeros_like(xyz)
    for corner in range(3):
        np.add.at(total, faces[:, corner], across)
    return total / np.linalg.norm(total, axis=1, keepdims=True).clip(np.finfo(float).tiny)
