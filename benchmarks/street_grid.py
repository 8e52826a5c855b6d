"""A city of any extent by a rule: streets on a regular grid, on each lot a box of its own size and height or nothing.

What stands on a lot follows from the lot's number alone.  So nothing is stored, the middle of a city is the same
however far the city goes on, points come in chunks, and rays meet surfaces exactly.  Metres, z = 0 on the ground, the
city's middle at the origin.  Letters: P points, R rays, K lots, V views.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inf_nerf.render.poses import look_at
from inf_nerf.scene.city.texture import compiled, hashed

LOT_M = 34.0
STREET_M = 12.0  # from box to box across a street
SETBACK_M = 3.0  # at most, of each wall
LOWEST_M, HIGHEST_M = 6.0, 36.0
OPEN = 0.15  # share of the lots on which nothing stands
PHASE_M = (9.3, 5.1)  # of the first streets' middles: no street runs along a cutting plane of the octree
EYE_M, FLIGHT_M = 1.7, 60.0  # heights of a pedestrian's and of a drone's eye
AROUND_M = 20.0  # views are taken no farther than this from the middle
LOTS_AT_ONCE = 1 << 14
GROUND_AT_ONCE = 1 << 20  # points


@dataclass(frozen=True)
class StreetGrid:
    """The city between -width / 2 and width / 2 along x, -depth / 2 and depth / 2 along y."""

    width_m: float
    depth_m: float

    @property
    def half_m(self) -> Tensor:
        """Half of both sides, [2] float64."""
        return torch.tensor([self.width_m / 2, self.depth_m / 2], dtype=torch.float64)

    def boxes(self, lot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What stands on lots [K, 2] int64: lower corner [K, 2], upper corner [K, 2], height [K]; 0 is an open lot."""
        box = np.empty((len(lot), 5))
        _fill(lot.numpy(), self.width_m / 2, self.depth_m / 2, box)
        low, high, height = torch.from_numpy(box).split((2, 2, 1), dim=1)
        return low, high, height[:, 0]

    def points(self, per_m2: float, seed: int) -> Iterator[Tensor]:
        """Points [*, 3] float64 spread evenly over ground, walls and roofs, in chunks."""
        generator = torch.Generator().manual_seed(seed)
        wanted = round(per_m2 * self.width_m * self.depth_m)
        for start in range(0, wanted, GROUND_AT_ONCE):
            count = min(GROUND_AT_ONCE, wanted - start)
            xy = (torch.rand(count, 2, generator=generator, dtype=torch.float64) * 2 - 1) * self.half_m
            low, high, height = self.boxes(_lot_at(xy))
            open_air = (height == 0) | (xy < low).any(dim=1) | (xy > high).any(dim=1)
            yield torch.cat([xy[open_air], torch.zeros(int(open_air.sum()), 1, dtype=torch.float64)], dim=1)
        first, last = (_lot_at(side[None])[0].tolist() for side in (-self.half_m, self.half_m))
        rows = last[1] - first[1] + 1
        total = (last[0] - first[0] + 1) * rows
        for start in range(0, total, LOTS_AT_ONCE):
            index = torch.arange(start, min(start + LOTS_AT_ONCE, total))
            lot = torch.stack([first[0] + index // rows, first[1] + index % rows], dim=1)
            yield _on_boxes(*self.boxes(lot), per_m2, generator)

    def distance(self, origin: Tensor, direction: Tensor) -> Tensor:
        """Distance [R] at which rays (origin [R, 3] in the city, outside all boxes, direction [R, 3], float64) meet a
        surface, in lengths of their directions; infinite for those that leave the city without."""
        found = np.empty(len(origin))
        _follow(origin.numpy(), direction.numpy(), self.width_m / 2, self.depth_m / 2, found)
        return torch.from_numpy(found)


def street_views(count: int) -> Tensor:
    """Poses [V, 3, 4] of pedestrians in the streets around the middle, who look along their street to the horizon."""
    draw = np.random.default_rng(0)
    poses = []
    for view in range(count):
        along = view % 2  # the axis that the street follows
        middle = PHASE_M[1 - along] - LOT_M * (view // 2 % 2)
        eye = np.full(3, EYE_M)
        eye[along], eye[1 - along] = draw.uniform(-AROUND_M, AROUND_M), middle + draw.uniform(-3, 3)
        way = np.zeros(3)
        way[along], way[1 - along] = (1 if view // 4 % 2 else -1), math.tan(math.radians(draw.uniform(-8, 8)))
        poses.append(look_at(eye, eye + way))
    return torch.from_numpy(np.stack(poses))


def drive_views(count: int, metres: float) -> Tensor:
    """Poses [V, 3, 4] of a camera that moves along its street through the middle, ``metres`` from view to view."""
    pose = street_views(1)[0]
    poses = pose.repeat(count, 1, 1)
    steps = (torch.arange(count, dtype=torch.float64) - (count - 1) / 2) * metres
    along = torch.where(pose[:2, 2].abs() > 0.5, torch.sign(pose[:2, 2]), 0.0)
    poses[:, :2, 3] += steps[:, None] * along
    return poses


def aerial_views(count: int) -> Tensor:
    """Poses [V, 3, 4] of drones around the middle that look 20 degrees below the horizon, which they see."""
    draw = np.random.default_rng(1)
    poses = []
    for view in range(count):
        eye = np.array([*draw.uniform(-AROUND_M, AROUND_M, 2), FLIGHT_M])
        angle = 2 * math.pi * (view + draw.uniform()) / count
        way = np.array([math.cos(angle), math.sin(angle), -math.tan(math.radians(20))])
        poses.append(look_at(eye, eye + way))
    return torch.from_numpy(np.stack(poses))


def _on_boxes(low: Tensor, high: Tensor, height: Tensor, per_m2: float, generator: torch.Generator) -> Tensor:
    """Points [*, 3] on the roof and the four walls of each box."""
    side = high - low  # [K, 2]
    area = torch.stack([side.prod(1), *(side[:, axis] * height for axis in (0, 0, 1, 1))], dim=1)  # [K, 5]
    area = torch.where(height[:, None] > 0, area, 0.0)
    count = (area * per_m2 + torch.rand(area.shape, generator=generator, dtype=torch.float64)).long().flatten()
    face = torch.repeat_interleave(torch.arange(len(count)), count)
    box, face = face // 5, face % 5
    u, v = torch.rand(2, len(face), generator=generator, dtype=torch.float64)
    x, y = u, torch.where(face == 0, v, u)
    x = torch.where(face == 3, 0.0, torch.where(face == 4, 1.0, x))
    y = torch.where(face == 1, 0.0, torch.where(face == 2, 1.0, y))
    z = torch.where(face == 0, 1.0, v) * height[box]
    return torch.cat([low[box] + side[box] * torch.stack([x, y], dim=1), z[:, None]], dim=1)


def _lot_at(xy: Tensor) -> Tensor:
    """Lot [*, 2] in which positions [*, 2] lie."""
    return ((xy - torch.tensor(PHASE_M, dtype=torch.float64)) / LOT_M).floor().long()


@compiled
def _box(i: int, j: int, half_x: float, half_y: float) -> tuple[float, float, float, float, float]:
    """Lower x and y, upper x and y and height of what stands on a lot."""
    x, y = PHASE_M[0] + i * LOT_M, PHASE_M[1] + j * LOT_M  # where two streets' middles cross
    inside = abs(x + LOT_M / 2) < half_x and abs(y + LOT_M / 2) < half_y
    height = LOWEST_M + (HIGHEST_M - LOWEST_M) * hashed(i, j, 0) ** 2 if inside and hashed(i, j, 1) >= OPEN else 0.0
    near, far = STREET_M / 2, LOT_M - STREET_M / 2
    return (
        max(x + near + SETBACK_M * hashed(i, j, 2), -half_x),
        max(y + near + SETBACK_M * hashed(i, j, 3), -half_y),
        min(x + far - SETBACK_M * hashed(i, j, 4), half_x),
        min(y + far - SETBACK_M * hashed(i, j, 5), half_y),
        height,
    )


@compiled
def _fill(lots: Any, half_x: float, half_y: float, boxes: Any) -> None:
    for k in range(len(lots)):
        boxes[k] = _box(lots[k, 0], lots[k, 1], half_x, half_y)


@compiled
def _follow(origins: Any, directions: Any, half_x: float, half_y: float, found: Any) -> None:
    """Each ray from lot to lot until it meets a box or the ground, leaves the city, or is above all roofs."""
    for ray in range(len(origins)):
        x, y, z = origins[ray]
        u, v, w = directions[ray]
        found[ray] = math.inf
        ground = -z / w if w < 0 else math.inf
        _, end = _between(x, y, u, v, -half_x, -half_y, half_x, half_y)
        i, j = math.floor((x - PHASE_M[0]) / LOT_M), math.floor((y - PHASE_M[1]) / LOT_M)
        while True:
            low_x, low_y, high_x, high_y, height = _box(i, j, half_x, half_y)
            if height > 0:
                enter, leave = _between(x, y, u, v, low_x, low_y, high_x, high_y)
                if w != 0:
                    roof = (height - z) / w  # distance at which the ray is as high as the roof
                    enter, leave = (max(enter, roof), leave) if w < 0 else (enter, min(leave, roof))
                elif z > height:
                    leave = -math.inf
                if 0 <= enter <= leave and enter <= ground:
                    found[ray] = enter
                    break
            to_x = (PHASE_M[0] + (i + (u > 0)) * LOT_M - x) / u if u != 0 else math.inf
            to_y = (PHASE_M[1] + (j + (v > 0)) * LOT_M - y) / v if v != 0 else math.inf
            t = min(to_x, to_y)
            if ground <= min(t, end):
                found[ray] = ground
            if t >= min(ground, end) or (w >= 0 and z + t * w > HIGHEST_M):
                break
            if to_x < to_y:
                i += 1 if u > 0 else -1
            else:
                j += 1 if v > 0 else -1


@compiled
def _between(
    x: float, y: float, u: float, v: float, low_x: float, low_y: float, high_x: float, high_y: float
) -> tuple[float, float]:
    """Distances at which a ray in the plane enters and leaves a rectangle; enter > leave where it misses."""
    enter, leave = -math.inf, math.inf
    for start, step, low, high in ((x, u, low_x, high_x), (y, v, low_y, high_y)):
        if step != 0:
            first, second = (low - start) / step, (high - start) / step
            enter, leave = max(enter, min(first, second)), min(leave, max(first, second))
        elif not low <= start <= high:
            leave = -math.inf
    return enter, leave
