"""Where the photos were taken from, and the rays of their pixels.

Letters: V views (photos), C cameras (a camera may have taken many photos), R rays, G control points of all lookups.
Camera axes are those of OpenCV and COLMAP (x right, y down, z forward); positions are in the scene frame, whose root
cube is [-1, 1]^3 with z up.  Pixel coordinates are continuous, the centre of the top-left pixel is (0.5, 0.5).

Lens distortion is undone for rays and never for photos: a camera with distortion carries a lookup of ray directions at
control points spread evenly over its image, interpolated by Catmull-Rom splines (`inf_nerf.scene.undistortion` builds
it).  A camera without distortion has no lookup and uses its intrinsics.

Level ``l`` of a photo's pyramid is ``max(1, w >> l)`` by ``max(1, h >> l)`` pixels and has its own x and y scale, so
that odd sizes stay in register.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from math import radians, tan

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rays:
    """Rays with the size of their pixel."""

    origin: Tensor  # [R, 3] scene frame
    direction: Tensor  # [R, 3] unit
    radius: Tensor  # [R] pixel side per unit distance: the footprint at distance t is t * radius * footprint_px
    photo: Tensor  # [R] int64, index of the appearance vector; -1: the mean appearance

    def __len__(self) -> int:
        return self.origin.shape[0]

    def __getitem__(self, index: slice | Tensor) -> "Rays":
        """Rays chosen by a slice, a mask or an index tensor."""
        return Rays(self.origin[index], self.direction[index], self.radius[index], self.photo[index])

    def to(self, device: torch.device | str) -> "Rays":
        """The same rays on another device."""
        return Rays(*(getattr(self, field.name).to(device) for field in fields(self)))

    @staticmethod
    def cat(parts: Iterable["Rays"]) -> "Rays":
        """The rays of all parts, in order."""
        listed = list(parts)
        return Rays(*(torch.cat([getattr(part, field.name) for part in listed]) for field in fields(Rays)))


@dataclass(frozen=True, eq=False)
class Cameras:
    """All views and the cameras that took them; tensors only, so that a checkpoint can hold it."""

    camera_id: Tensor  # [V] int64, row of `size`, `intrinsics` and the lookups
    cam_to_world: Tensor  # [V, 3, 4] float32, rotation and centre in the scene frame
    appearance: Tensor  # [V] int64, what `Rays.photo` becomes; -1 for virtual views
    size: Tensor  # [C, 2] int64, width and height of pyramid level 0
    intrinsics: Tensor  # [C, 4] float32, fx fy cx cy at level 0
    grid_shape: Tensor  # [C, 2] int64, rows and columns of the camera's lookup; 0 0 without distortion
    grid_start: Tensor  # [C] int64, its first row in `grid_table`
    grid_table: Tensor  # [G, 3] float32, directions in camera axes, one ring of control points outside the image
    grid_valid: Tensor  # [G] bool, false at control points where the camera model has no ray

    def __post_init__(self) -> None:
        num_views, num_cameras = self.camera_id.shape[0], self.size.shape[0]
        assert self.cam_to_world.shape == (num_views, 3, 4) and self.appearance.shape == (num_views,)
        assert self.size.shape == self.grid_shape.shape == (num_cameras, 2) and self.grid_start.shape == (num_cameras,)
        assert self.intrinsics.shape == (num_cameras, 4) and self.grid_table.shape == (len(self.grid_valid), 3)

    def __len__(self) -> int:
        return self.camera_id.shape[0]

    @property
    def centre(self) -> Tensor:
        """Camera centres, [V, 3]."""
        return self.cam_to_world[:, :, 3]

    def level_size(self, photo: int, level: int) -> tuple[int, int]:
        """Width and height in pixels of a pyramid level of a photo."""
        width, height = self.size[self.camera_id[photo]].tolist()
        return max(1, width >> level), max(1, height >> level)

    def rays(self, photo: Tensor, level: Tensor, xy: Tensor) -> Rays:
        """Rays through the centres of pixels ``xy`` [R, 2] of level ``level`` [R] of photos ``photo`` [R]."""
        size = self.size[self.camera_id[photo]]  # [R, 2]
        level_size = (size >> level[:, None]).clamp_min(1)
        pixel = size.float() / level_size.float()  # [R, 2] level-0 pixels per pixel of the level
        return self.rays_at(photo, (xy.float() + 0.5) * pixel, pixel)

    def rays_at(self, photo: Tensor, xy: Tensor, pixel: Tensor | None = None) -> Rays:
        """Rays through any point ``xy`` [R, 2] (level-0 pixel coordinates) of photos ``photo`` [R].

        ``pixel`` [R, 2] is the size of the pixel whose footprint is meant, in level-0 pixels (default one by one).
        """
        camera = self.camera_id[photo]
        focal, principal = self.intrinsics[camera].split(2, dim=-1)
        image_plane = (xy - principal) / focal  # [R, 2]
        ray = torch.cat([image_plane, torch.ones_like(image_plane[:, :1])], dim=-1)  # [R, 3] camera axes
        density = 1 / focal.prod(dim=-1)  # [R] D . (dD/du x dD/dv), see below
        distorted = torch.nonzero(self.grid_shape[camera, 0] > 0)[:, 0]
        if len(distorted):
            ray[distorted], density[distorted] = self._look_up(camera[distorted], xy[distorted])
        # For a smooth map D(u, v) to directions of any length, a pixel du x dv covers the area
        # D . (dD/du x dD/dv) / |D|^3 du dv of the unit sphere.
        length = ray.norm(dim=-1)
        area = density.abs() / length**3
        if pixel is not None:
            area = area * pixel.prod(dim=-1)
        rotation, origin = self.cam_to_world[photo].split([3, 1], dim=-1)
        direction = (rotation @ (ray / length[:, None])[:, :, None])[:, :, 0]
        return Rays(origin[:, :, 0], direction, area.sqrt(), self.appearance[photo])

    def image_rays(self, photo: int, level: int, rows: slice | None = None) -> Rays:
        """Rays of a whole level of a photo, or of some of its rows, in row-major order."""
        width, height = self.level_size(photo, level)
        device = self.camera_id.device
        y = torch.arange(height, device=device)[rows if rows is not None else slice(None)]
        x = torch.arange(width, device=device)
        xy = torch.stack([x.expand(len(y), width), y[:, None].expand(len(y), width)], dim=-1).reshape(-1, 2)
        full = torch.full((len(xy),), photo, device=device)
        return self.rays(full, torch.full_like(full, level), xy)

    def to(self, device: torch.device | str) -> "Cameras":
        """The same cameras on another device."""
        return Cameras(**{name: tensor.to(device) for name, tensor in self.state().items()})

    def state(self) -> dict[str, Tensor]:
        """All tensors by name, for safetensors."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def from_state(state: dict[str, Tensor]) -> "Cameras":
        """Inverse of :meth:`state`."""
        return Cameras(**{field.name: state[field.name] for field in fields(Cameras)})

    @staticmethod
    def pinhole(cam_to_world: Tensor, width: int, height: int, fov_degrees: float) -> "Cameras":
        """Virtual views [V, 3, 4] that share one distortion-free camera; ``fov_degrees`` is horizontal."""
        focal = width / 2 / tan(radians(fov_degrees) / 2)
        num_views = cam_to_world.shape[0]
        return Cameras(
            camera_id=torch.zeros(num_views, dtype=torch.int64),
            cam_to_world=cam_to_world.float(),
            appearance=torch.full((num_views,), -1),
            size=torch.tensor([[width, height]]),
            intrinsics=torch.tensor([[focal, focal, width / 2, height / 2]]),
            grid_shape=torch.zeros(1, 2, dtype=torch.int64),
            grid_start=torch.zeros(1, dtype=torch.int64),
            grid_table=torch.zeros(0, 3),
            grid_valid=torch.zeros(0, dtype=torch.bool),
        )

    def has_ray(self, photo: Tensor, xy: Tensor) -> Tensor:
        """Whether the camera model has a ray for level-0 pixel coordinates ``xy`` [R, 2]; [R] bool.

        It may not in the corners of very wide lenses, where the fitted distortion folds back.
        """
        camera = self.camera_id[photo]
        result = torch.ones(len(xy), dtype=torch.bool, device=xy.device)
        distorted = torch.nonzero(self.grid_shape[camera, 0] > 0)[:, 0]
        if len(distorted) and not self.grid_valid.all():
            first, columns, _, _ = self._cell(camera[distorted], xy[distorted])
            across = torch.arange(4, device=xy.device)
            corners = first[:, None, None] + columns[:, None, None] * across[:, None] + across  # [Q, 4, 4]
            result[distorted] = self.grid_valid[corners].flatten(1).all(dim=1)
        return result

    def pixels_with_ray(self, photo: int) -> Tensor | None:
        """Level-0 pixels [h, w] of a photo for which :meth:`has_ray` holds; None if it holds for all."""
        if self.grid_valid.all():
            return None
        width, height = self.level_size(photo, 0)
        x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
        xy = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).reshape(-1, 2)
        inside = self.has_ray(torch.full((len(xy),), photo), xy)
        return None if inside.all() else inside.reshape(height, width)

    def _cell(self, camera: Tensor, xy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where level-0 pixels lie in their camera's lookup.

        Returns the table row of the first of the 4 x 4 control points around them [Q], the number of columns of the
        lookup [Q], the position within the cell [Q, 2] and the cells per pixel [Q, 2].
        """
        rows, columns = self.grid_shape[camera].unbind(-1)
        cells = torch.stack([columns, rows], dim=-1) - 3  # [Q, 2] cells that cover the image
        per_pixel = cells / self.size[camera]
        position = xy * per_pixel
        cell = torch.minimum(position.floor().clamp_min(0).long(), cells - 1)
        return self.grid_start[camera] + cell[:, 1] * columns + cell[:, 0], columns, position - cell, per_pixel

    def _look_up(self, camera: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
        """Interpolated directions [Q, 3] and the triple product D . (dD/du x dD/dv) [Q] at level-0 pixels."""
        first, columns, within, per_pixel = self._cell(camera, xy)
        (weight_x, slope_x), (weight_y, slope_y) = (catmull_rom(t) for t in within.unbind(-1))  # [Q, 4] each
        across = torch.arange(4, device=xy.device)
        ray, along_x, along_y = (torch.zeros(len(xy), 3, device=xy.device) for _ in range(3))
        for row in range(4):
            corners = self.grid_table[(first + row * columns)[:, None] + across]  # [Q, 4, 3]
            line = (weight_x[:, :, None] * corners).sum(1)
            ray += weight_y[:, row, None] * line
            along_y += slope_y[:, row, None] * line
            along_x += weight_y[:, row, None] * (slope_x[:, :, None] * corners).sum(1)
        triple = (ray * torch.linalg.cross(along_x, along_y)).sum(-1)
        return ray, triple * per_pixel.prod(-1)


def catmull_rom(t: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of four neighbouring control points at ``t`` [Q] in [0, 1] between the middle two, and their slopes."""
    t2, t3 = t * t, t * t * t
    weight = torch.stack(
        [-t + 2 * t2 - t3, 2 - 5 * t2 + 3 * t3, t + 4 * t2 - 3 * t3, t3 - t2],
        dim=-1,
    )
    slope = torch.stack(
        [-1 + 4 * t - 3 * t2, -10 * t + 9 * t2, 1 + 8 * t - 9 * t2, 3 * t2 - 2 * t],
        dim=-1,
    )
    return weight / 2, slope / 2  # [Q, 4] each
