"""Poses between poses: smooth ways of a camera through places that it must pass.

Letters: K keys, F frames.  A pose [3, 4] is a rotation and a centre, camera to scene, with camera axes x right, y down,
z forward.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

TURN_LENGTH = 0.5  # scene units of movement that count as much as a turn by one radian


def look_at(eye: ArrayLike, target: ArrayLike) -> Array:
    """Pose [3, 4] of a camera at ``eye`` that looks at ``target`` with the horizon level."""
    position = np.asarray(eye, np.float64)
    forward = np.asarray(target, np.float64) - position
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    if np.linalg.norm(right) < 1e-9:  # straight down: any horizon will do
        right = np.array((1.0, 0.0, 0.0))
    right = right / np.linalg.norm(right)
    down = np.cross(forward, right)
    return np.stack([right, down, forward, position], axis=-1)


def travel(keys: Array, num_frames: int) -> tuple[Array, Array]:
    """Poses [F, 3, 4] on a smooth way through ``keys`` [K, 3, 4], and the times [F] in [0, K - 1] at which they are
    passed: equal amounts of movement and turn from frame to frame."""
    time = steady_time(keys, num_frames)
    return np.concatenate([slerp(keys[:, :, :3], time), spline(keys[:, :, 3], time)[:, :, None]], axis=-1), time


def between(keys: Array, time: Array) -> Array:
    """Values [F, ...] at times in [0, K - 1] on straight lines between ``keys`` [K, ...]."""
    first = np.clip(time.astype(np.int64), 0, max(0, len(keys) - 2))
    part = (time - first).reshape(-1, *[1] * (keys.ndim - 1))
    return keys[first] * (1 - part) + keys[np.minimum(first + 1, len(keys) - 1)] * part


def steady_time(pose: Array, num_frames: int) -> Array:
    """Times [F] in [0, K - 1] at which a path through poses [K, 3, 4] moves and turns by equal amounts."""
    if len(pose) == 1 or num_frames == 1:
        return np.zeros(num_frames)
    fine = np.linspace(0, len(pose) - 1, 40 * (len(pose) - 1) + 1)
    moved = np.linalg.norm(np.diff(spline(pose[:, :, 3], fine), axis=0), axis=1)
    forward = slerp(pose[:, :, :3], fine)[:, :, 2]
    amount = moved + TURN_LENGTH * np.linalg.norm(np.diff(forward, axis=0), axis=1) + 1e-9
    reached = np.concatenate([[0.0], np.cumsum(amount)])
    return np.interp(np.linspace(0, reached[-1], num_frames), reached, fine)


def spline(keys: Array, time: Array) -> Array:
    """Catmull-Rom curve [F, 3] through ``keys`` [K, 3] at times in [0, K - 1]; the ends are continued straight."""
    if len(keys) == 1:
        return np.repeat(keys, len(time), axis=0)
    padded = np.concatenate([2 * keys[:1] - keys[1:2], keys, 2 * keys[-1:] - keys[-2:-1]])
    first = np.minimum(time.astype(np.int64), len(keys) - 2)
    t = (time - first)[:, None]
    a, b, c, d = (padded[first + offset] for offset in range(4))
    return b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


def slerp(keys: Array, time: Array) -> Array:
    """Rotations [F, 3, 3] between ``keys`` [K, 3, 3] at times in [0, K - 1], at constant speed between two keys."""
    if len(keys) == 1:
        return np.repeat(keys, len(time), axis=0)
    first = np.minimum(time.astype(np.int64), len(keys) - 2)
    rotations = []
    for index, moment in zip(first, time):
        start, end = keys[index], keys[index + 1]
        rotations.append(start @ _turn(start.T @ end, moment - index))
    return np.stack(rotations)


def _turn(rotation: Array, part: float) -> Array:
    """A part of a rotation [3, 3], about the same axis."""
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine, cosine = np.linalg.norm(axis) / 2, (np.trace(rotation) - 1) / 2
    angle = math.atan2(sine, cosine)
    if angle < 1e-9:
        return np.eye(3)
    if sine < 1e-6:  # half a turn: the axis is in the symmetric part
        axis = (rotation + np.eye(3))[:, int(np.argmax(np.diag(rotation)))]
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(part * angle) * cross + (1 - math.cos(part * angle)) * cross @ cross
