"""A scene with a closed form: a textured plane seen by pinhole cameras, and a model that renders it exactly."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inf_nerf.octree.topology import Octree
from inf_nerf.render.poses import look_at
from inf_nerf.scene.cameras import Cameras, Rays
from inf_nerf.scene.frame import WorldFrame
from inf_nerf.scene.scene import Photo, Scene, SparsePoints

PLANE_Z = 0.1
APPEARANCE = 3


def texture(xy: Tensor) -> Tensor:
    """Smooth colours [R, 3] in [0.2, 0.8] at places [R, 2] of the plane."""
    x, y = xy.unbind(-1)
    return 0.5 + 0.3 * torch.stack([torch.sin(5 * x), torch.cos(4 * y), torch.sin(3 * (x + y))], dim=-1)


@dataclass
class Seen:
    """What the plane's model answers."""

    rgb: Tensor
    depth: Tensor
    opacity: Tensor
    level: Tensor
    touched: Tensor
    share: Tensor
    num_samples: int


class Switch:
    """Stands for fields that can be frozen."""

    def __init__(self) -> None:
        self.flags: list[bool] = []

    def requires_grad_(self, flag: bool) -> "Switch":
        self.flags.append(flag)
        return self


class PlaneModel:
    """Renders the plane exactly; the first numbers of the appearance are added to the colour.

    Rays that meet the plane east of x = 0 are answered by node 1, the others by the root; rays that miss it by the
    background.
    """

    def __init__(self, num_photos: int) -> None:
        self.octree = Octree.from_keys(torch.tensor([1, 8]), torch.tensor([10, 5]), root_gsd=0.02)
        self.field = Switch()
        self.appearance = torch.zeros(num_photos, APPEARANCE)
        self.calls: list[int] = []
        self.grad_enabled: list[bool] = []

    def render(self, rays: Rays, *, lod_blend: float = 0.0, appearance: Tensor | None = None) -> Seen:
        assert bool((rays.photo == -1).all()), "pictures are of the mean or of a given appearance"
        self.calls.append(len(rays))
        self.grad_enabled.append(torch.is_grad_enabled())
        look = self.appearance.mean(dim=0) if appearance is None else appearance
        depth = (PLANE_Z - rays.origin[:, 2]) / rays.direction[:, 2]
        hit = depth > 0
        xy = (rays.origin + depth[:, None] * rays.direction)[:, :2]
        rgb = torch.where(hit[:, None], texture(xy) + look, torch.zeros(3))
        node = torch.where(hit, (xy[:, 0] > 0).long(), 2)
        share = torch.bincount(node, minlength=3).float()
        return Seen(rgb, depth, hit.float(), (node == 1).float(), share > 0, share, len(rays))


def plane_points(side: int = 40, footprint: float = 0.004) -> SparsePoints:
    """Points [side * side] on the plane, finest near (0.3, -0.2), with no tracks."""
    line = torch.linspace(-0.9, 0.9, side)
    x, y = torch.meshgrid(line, line, indexing="ij")
    xyz = torch.stack([x, y, torch.full_like(x, PLANE_Z)], dim=-1).reshape(-1, 3)
    away = (xyz[:, :2] - torch.tensor([0.3, -0.2])).norm(dim=-1)
    return SparsePoints(
        xyz=xyz,
        footprint=footprint * (1 + away),
        rgb=torch.full((len(xyz), 3), 128, dtype=torch.uint8),
        error=torch.full((len(xyz),), 0.5),
        track_start=torch.zeros(len(xyz) + 1, dtype=torch.int64),
        track_photo=torch.zeros(0, dtype=torch.int64),
        track_xy=torch.zeros(0, 2),
    )


def plane_scene(num_photos: int = 6, width: int = 40, height: int = 30, num_test: int = 2) -> Scene:
    """Photos from above on a straight flight; the last ``num_test`` are test photos."""
    poses = [look_at((-0.5 + 0.2 * index, -0.4, 1.2), (-0.4 + 0.2 * index, 0.0, 0.1)) for index in range(num_photos)]
    state = Cameras.pinhole(torch.from_numpy(np.stack(poses)), width, height, 60.0).state()
    cameras = Cameras.from_state(state | {"appearance": torch.arange(num_photos)})
    photos = tuple(
        Photo(f"flight/{index:03d}.png", "test" if index >= num_photos - num_test else "train", f"{index}.png", None)
        for index in range(num_photos)
    )
    return Scene(photos, cameras, plane_points(), WorldFrame(np.eye(4)), "", {}, torch.tensor([[width, height]]))


def plane_photo(scene: Scene, photo: int, offset: Tensor | None = None) -> Tensor:
    """The exact level 0 [h, w, 3] of a photo, ``offset`` [3] added to its colours."""
    width, height = scene.cameras.level_size(photo, 0)
    rays = scene.cameras.image_rays(photo, 0)
    rgb = PlaneModel(1).render(
        Rays(rays.origin, rays.direction, rays.radius, torch.full_like(rays.photo, -1)),
        appearance=torch.zeros(3) if offset is None else offset,
    )
    return rgb.rgb.reshape(height, width, 3)


def as_checkpoint(scene: Scene, model: PlaneModel) -> Any:
    """What evaluation needs of a loaded checkpoint."""
    return SimpleNamespace(
        scene=scene,
        model=model,
        octree=model.octree,
        mean_colour=torch.tensor([0.5, 0.5, 0.5]),
        node_bytes=torch.tensor([100, 40, 7]),
        appearance=torch.zeros(len(scene.photos), 0),
        subtrees={},
    )
