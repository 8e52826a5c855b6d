"""A small capture with known truth, written as a COLMAP folder: bumpy ground seen by tilted cameras from above.

The ground lies in its own frame (z up); `TURN` and `SHIFT` bring it into the frame of the input, where up is no axis.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 101, 67
TURN = pycolmap.Rotation3d(np.array([0.3, -0.5, 0.2, 0.78]) / np.linalg.norm([0.3, -0.5, 0.2, 0.78])).matrix()
SHIFT = np.array([430.0, -210.0, 75.0])

# Parameters of every perspective model for photos of about 800 x 600; focal lengths scale with the photo.
CAMERA_PARAMS: dict[str, list[float]] = {
    "SIMPLE_PINHOLE": [480, 398, 305],
    "PINHOLE": [480, 500, 398, 305],
    "SIMPLE_RADIAL": [480, 398, 305, -0.12],
    "RADIAL": [480, 398, 305, -0.15, 0.05],
    "OPENCV": [480, 500, 398, 305, -0.2, 0.06, 0.002, -0.003],
    "OPENCV_FISHEYE": [380, 385, 398, 305, -0.02, 0.01, -0.003, 0.001],
    "FULL_OPENCV": [480, 500, 398, 305, -0.2, 0.06, 0.002, -0.003, 0.01, 0.02, 0.01, 0.002],
    "FOV": [480, 500, 398, 305, 0.7],
    "SIMPLE_RADIAL_FISHEYE": [380, 398, 305, -0.03],
    "RADIAL_FISHEYE": [380, 398, 305, -0.03, 0.01],
    "THIN_PRISM_FISHEYE": [380, 385, 398, 305, -0.03, 0.01, 0.001, -0.001, 0.001, -0.0005, 0.001, 0.001],
    "RAD_TAN_THIN_PRISM_FISHEYE": [
        380,
        385,
        398,
        305,
        -0.03,
        0.01,
        1e-3,
        -1e-3,
        1e-3,
        -5e-4,
        1e-3,
        1e-3,
        1e-3,
        0,
        0,
        0,
    ],
    "DIVISION": [480, 500, 398, 305, -0.15],
    "SIMPLE_DIVISION": [480, 398, 305, -0.15],
    "FISHEYE": [380, 385, 398, 305],
    "SIMPLE_FISHEYE": [380, 398, 305],
    "EUCM": [400, 405, 398, 305, 0.5, 1.1],
}


def make_camera(model: str = "PINHOLE", width: int = WIDTH, height: int = HEIGHT, key: int = 1) -> pycolmap.Camera:
    """A camera of any perspective model, scaled from the parameters above."""
    camera = pycolmap.Camera(camera_id=key, model=model, width=800, height=600, params=CAMERA_PARAMS[model])
    camera.rescale(width, height)
    return camera


@dataclass(frozen=True, eq=False)
class Truth:
    """What was written."""

    root: Path
    model: pycolmap.Reconstruction
    cameras: list[pycolmap.Camera]  # of each photo, in order of name
    names: list[str]
    poses: NDArray[np.float64]  # [V, 3, 4] camera to world, input frame
    xyz: NDArray[np.float64]  # [P, 3] input frame
    up: NDArray[np.float64]  # [3] input frame


def write_capture(
    root: Path,
    cameras: list[pycolmap.Camera] | None = None,
    num_photos: int = 12,
    num_points: int = 300,
    folder: str = "sparse/0",
    text: bool = False,
    tilt: float = 0.4,
) -> Truth:
    """Write photos in nested folders and a sparse model; the last photo sees no point."""
    rng = np.random.default_rng(7)
    cameras = cameras or [make_camera()]
    ground = rng.uniform([-5, -3, 0], [5, 3, 0.4], (num_points, 3))
    xyz = ground @ TURN.T + SHIFT
    model = pycolmap.Reconstruction()
    for camera in cameras:
        model.add_camera_with_trivial_rig(camera)
    names, poses, used = [], [], []
    seen: list[list[tuple[int, int]]] = [[] for _ in xyz]
    for photo in range(num_photos):
        camera = cameras[photo % len(cameras)]
        name = f"flight_{photo % 2}/{'late/' if photo > 8 else ''}img_{photo:03d}.png"
        centre = np.array([*rng.uniform([-4, -2], [4, 2]), rng.uniform(3, 6)])
        forward = np.array([tilt * np.cos(photo), tilt * np.sin(photo), -1.0])
        rotation = _look_along(forward / np.linalg.norm(forward))
        pose = np.concatenate([TURN @ rotation, (TURN @ centre + SHIFT)[:, None]], axis=1)
        in_camera = (xyz - pose[:, 3]) @ pose[:, :3]
        pixel = np.asarray(camera.img_from_cam(in_camera))
        visible = ((pixel > 0) & (pixel < [camera.width, camera.height])).all(axis=1) & (photo < num_photos - 1)
        # Distortion folds points far outside the photo back into it; those are not seen.
        sight = in_camera / np.linalg.norm(in_camera, axis=1, keepdims=True)
        visible &= (camera.cam_ray_from_img(pixel) * sight).sum(axis=1) > 1 - 1e-9
        index = np.flatnonzero(visible)
        for row, point in enumerate(index):
            seen[point].append((photo + 1, row))
        image = pycolmap.Image(name=name, keypoints=pixel[index], camera_id=camera.camera_id, image_id=photo + 1)
        inverse = pose[:, :3].T
        cam_from_world = pycolmap.Rigid3d(np.concatenate([inverse, -(inverse @ pose[:, 3])[:, None]], axis=1))
        model.add_image_with_trivial_frame(image, cam_from_world)
        names.append(name)
        poses.append(pose)
        used.append(camera)
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        shade = np.full((camera.height, camera.width, 3), (40 + 10 * photo) % 256, np.uint8)
        Image.fromarray(shade).save(root / "images" / name)
    for point, observations in enumerate(seen):
        track = pycolmap.Track()
        for image_id, row in observations:
            track.add_element(image_id, row)
        model.add_point3D(xyz[point], track, np.array([10, 20, 30], np.uint8))
    (root / folder).mkdir(parents=True, exist_ok=True)
    model.write_text(str(root / folder)) if text else model.write_binary(str(root / folder))
    order = np.argsort(names)
    return Truth(
        root, model, [used[i] for i in order], [names[i] for i in order], np.array(poses)[order], xyz, TURN[:, 2].copy()
    )


def _look_along(forward: NDArray[np.float64]) -> NDArray[np.float64]:
    """Camera axes (columns x right, y down, z forward) in the ground's frame, upper edge towards the sky."""
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right = right / np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward], axis=1)
