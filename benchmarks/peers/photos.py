"""Photos and rays of a prepared run in one file, so that a peer sees exactly what we see.

    python -m benchmarks.peers.photos RUN_DIR PHOTOS.npz

The file holds, for photo i: ``pixels_i`` [h, w, 3] uint8 (pyramid level 0, area-averaged) and ``counted_i`` [h, w]
bool (what its mask leaves); for camera c: ``directions_c`` [h, w, 3] float32 (unit rays of the pixels' centres in
camera axes, x right, y down, z forward, distortion undone); and ``pose`` [V, 3, 4], ``camera`` [V], ``split`` [V],
``name`` [V] and ``floor`` (the PSNR of the training photos' mean colour on the test photos).
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inf_nerf.files import write_atomic
from inf_nerf.scene.cameras import Cameras
from inf_nerf.scene.photos import read_mask, read_photo
from inf_nerf.scene.scene import Scene
from inf_nerf.train.metrics import psnr


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the photos of a run."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("run", type=Path, help="directory that inf-nerf prepare has written")
    parser.add_argument("out", type=Path, help="file to write, .npz")
    wanted = parser.parse_args(arguments)
    buffer = io.BytesIO()
    np.savez(buffer, **collect(Scene.load(wanted.run)))
    write_atomic(wanted.out, buffer.getvalue())


def collect(scene: Scene) -> dict[str, Any]:
    """All arrays of the file."""
    arrays: dict[str, Any] = {
        "pose": scene.cameras.cam_to_world.numpy(),
        "camera": scene.cameras.camera_id.numpy(),
        "split": np.array([photo.split for photo in scene.photos]),
        "name": np.array([photo.name for photo in scene.photos]),
    }
    for photo in range(len(scene.photos)):
        pixels, mask = read_photo(scene, photo), read_mask(scene, photo)
        arrays[f"pixels_{photo}"] = pixels
        arrays[f"counted_{photo}"] = np.ones(pixels.shape[:2], bool) if mask is None else mask
        camera = int(scene.cameras.camera_id[photo])
        if f"directions_{camera}" not in arrays:
            arrays[f"directions_{camera}"] = camera_directions(scene.cameras, photo)
    arrays["floor"] = floor(arrays, scene)
    return arrays


def camera_directions(cameras: Cameras, photo: int) -> np.ndarray:
    """Unit rays [h, w, 3] of the camera that took a photo, in camera axes."""
    width, height = cameras.level_size(photo, 0)
    rotation = cameras.cam_to_world[photo, :, :3]
    return (cameras.image_rays(photo, 0).direction @ rotation).view(height, width, 3).numpy()


def floor(arrays: dict[str, Any], scene: Scene) -> float:
    """PSNR in dB of the training photos' mean colour, averaged over the test photos."""
    colours = [np.float64(arrays[f"pixels_{i}"][arrays[f"counted_{i}"]]) / 255 for i in range(len(scene.photos))]
    mean = np.concatenate([colours[photo] for photo in scene.train]).mean(0)
    scores = [psnr(float(np.square(colours[photo] - mean).mean())) for photo in scene.test]
    return float(torch.tensor(scores).mean())


if __name__ == "__main__":
    main()
