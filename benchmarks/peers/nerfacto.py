"""PSNR against training seconds of nerfstudio's nerfacto, in pure torch on a CPU, on the photos of one of our runs.

    PEER/bin/python -m benchmarks.peers.nerfacto PHOTOS.npz CURVE.json --rays 1024

Model, losses, optimisers, schedules, annealing and camera optimiser are those of the method ``nerfacto`` of nerfstudio
1.1.5; training draws pixels uniformly over all training photos, as its data manager does.  Only the loop around them is
ours, because theirs brings a viewer, trackers and checkpoints along.  Poses are oriented, centred and scaled by
nerfstudio's own rules.  Evaluation, which is not counted as training, renders every ``--stride``-th pixel of the test
photos in both directions with the mean appearance and scores them with our own metrics.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchmetrics.image.lpip
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig  # pyright: ignore[reportMissingImports]
from nerfstudio.cameras.camera_utils import auto_orient_and_center_poses  # pyright: ignore[reportMissingImports]
from nerfstudio.cameras.rays import RayBundle  # pyright: ignore[reportMissingImports]
from nerfstudio.data.scene_box import SceneBox  # pyright: ignore[reportMissingImports]
from nerfstudio.engine.optimizers import AdamOptimizerConfig  # pyright: ignore[reportMissingImports]
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig  # pyright: ignore[reportMissingImports]
from nerfstudio.models.nerfacto import NerfactoModelConfig  # pyright: ignore[reportMissingImports]
from torch import Tensor

from inf_nerf.files import write_atomic
from inf_nerf.train.metrics import colour_corrected, image_scores

MARKS = (1.0, 2.0, 5.0, 10.0, 15.0)  # minutes of training
EVALUATED = 4096  # rays rendered at once
# learning rate, final learning rate, steps until then
SCHEDULES = {
    "proposal_networks": (1e-2, 1e-4, 200_000),
    "fields": (1e-2, 1e-4, 200_000),
    "camera_opt": (1e-3, 1e-4, 5000),
}


@dataclass(frozen=True)
class Photos:
    """Photos and rays in nerfstudio's frame."""

    rotation: Tensor  # [V, 3, 3]
    centre: Tensor  # [V, 3]
    directions: list[Tensor]  # of each photo, [h, w, 3] unit, camera axes
    pixels: list[Tensor]  # [h, w, 3] uint8
    counted: list[Tensor]  # [h, w] bool
    train: list[int]
    test: list[int]
    floor: float

    def bundle(self, photo: Tensor, direction: Tensor, camera: Tensor) -> Any:
        """Rays [R] through camera-axis ``direction`` [R, 3] of photos [R]; ``camera`` [R] is what is optimised."""
        turned = (self.rotation[photo] @ direction[..., None])[..., 0]
        area = torch.ones(len(photo), 1)  # nerfacto does not look at it
        return RayBundle(self.centre[photo], turned, area, camera_indices=camera[:, None])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score at every mark, and write the curve after each."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("photos", type=Path, help="file written by benchmarks.peers.photos")
    parser.add_argument("out", type=Path, help="curve to write, .json")
    parser.add_argument("--rays", type=int, default=4096, help="rays of a step (default: nerfacto's 4096)")
    parser.add_argument("--minutes", type=float, nargs="+", default=list(MARKS), help="marks of training time")
    parser.add_argument("--stride", type=int, default=2, help="evaluate every so many pixels of a row and a column")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cameras", choices=("SO3xR3", "off"), default="SO3xR3", help="nerfacto's camera optimiser")
    wanted = parser.parse_args(arguments)
    torch.set_num_threads(wanted.threads)
    torch.manual_seed(0)
    photos = load(wanted.photos)
    curve: dict[str, Any] = {
        "label": f"nerfacto, {wanted.rays} rays a step",
        "photos": wanted.photos.stem,
        "floor": photos.floor,
        "stride": wanted.stride,
        "threads": wanted.threads,
        "cameras": wanted.cameras,
        "points": [],
    }
    training = Training(photos, wanted.rays, wanted.cameras)
    for minutes in sorted(wanted.minutes):
        training.until(60 * minutes)
        rate = training.step * wanted.rays / training.seconds
        point = {"seconds": training.seconds, "steps": training.step, "rays_per_second": rate}
        curve["points"].append(point | score(training.model, photos, wanted.stride))
        print(json.dumps(curve["points"][-1]), flush=True)
        write_atomic(wanted.out, json.dumps(curve, indent=1) + "\n")


def load(path: Path) -> Photos:
    """Read the photos and bring the poses into nerfstudio's frame."""
    arrays = np.load(path)
    views = range(len(arrays["pose"]))
    pose = torch.eye(4).repeat(len(views), 1, 1)
    pose[:, :3] = torch.from_numpy(arrays["pose"])
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0]))  # nerfstudio's camera axes: y up, z back
    pose[:, :3, :3] = pose[:, :3, :3] @ flip
    pose, _ = auto_orient_and_center_poses(pose, method="up", center_method="poses")
    centre = pose[:, :3, 3] / pose[:, :3, 3].abs().max()
    directions = {camera: torch.from_numpy(arrays[f"directions_{camera}"]) @ flip for camera in set(arrays["camera"])}
    split = arrays["split"].tolist()
    return Photos(
        rotation=pose[:, :3, :3].contiguous(),
        centre=centre.contiguous(),
        directions=[directions[camera] for camera in arrays["camera"]],
        pixels=[torch.from_numpy(arrays[f"pixels_{view}"]) for view in views],
        counted=[torch.from_numpy(arrays[f"counted_{view}"]) for view in views],
        train=[view for view in views if split[view] == "train"],
        test=[view for view in views if split[view] == "test"],
        floor=float(arrays["floor"]),
    )


class Training:
    """Nerfacto and its optimisers, trained for as long as one asks."""

    def __init__(self, photos: Photos, num_rays: int, cameras: str) -> None:
        self.photos = photos
        self.num_rays = num_rays
        self.step, self.seconds = 0, 0.0
        self.model = make_model(len(photos.train), cameras)
        self.groups = []
        for name, parameters in self.model.get_param_groups().items():
            rate, final, steps = SCHEDULES[name]
            adam = AdamOptimizerConfig(lr=rate, eps=1e-15).setup(params=parameters)
            schedule = ExponentialDecaySchedulerConfig(lr_final=final, max_steps=steps).setup()
            self.groups.append((adam, schedule.get_scheduler(optimizer=adam, lr_init=rate)))
        before, after = self.model.get_training_callbacks(None)  # annealing; when proposals are trained
        self.before, self.after = before.func, after.func
        kept = [photos.counted[photo].flatten().nonzero()[:, 0] for photo in photos.train]
        self.pixel = torch.cat(kept)
        self.camera = torch.repeat_interleave(torch.arange(len(kept)), torch.tensor([len(each) for each in kept]))
        self.rgb = torch.cat([photos.pixels[i].view(-1, 3)[each] for i, each in zip(photos.train, kept)])
        shapes = {id(photos.directions[i]): photos.directions[i] for i in photos.train}
        self.directions = torch.cat([each.reshape(-1, 3) for each in shapes.values()])
        starts = dict(zip(shapes, np.cumsum([0, *(each[..., 0].numel() for each in shapes.values())]).tolist()))
        self.start = torch.tensor([starts[id(photos.directions[i])] for i in photos.train])

    def until(self, seconds: float) -> None:
        """Train until so many seconds of training have passed in all."""
        self.model.train()
        while self.seconds < seconds:
            started = time.perf_counter()
            self._step()
            self.seconds += time.perf_counter() - started

    def _step(self) -> None:
        self.before(self.step)
        chosen = torch.randint(0, len(self.pixel), (self.num_rays,))
        camera = self.camera[chosen]
        direction = self.directions[self.start[camera] + self.pixel[chosen]]
        rays = self.photos.bundle(torch.tensor(self.photos.train)[camera], direction, camera)
        batch = {"image": self.rgb[chosen].float() / 255}
        for adam, _ in self.groups:
            adam.zero_grad()
        outputs = self.model(rays)
        metrics = self.model.get_metrics_dict(outputs, batch)
        torch.stack(list(self.model.get_loss_dict(outputs, batch, metrics).values())).sum().backward()
        for adam, schedule in self.groups:
            adam.step()
            schedule.step()
        self.after(self.step)
        self.step += 1


def make_model(num_photos: int, cameras: str) -> Any:
    """The model with the settings of the method ``nerfacto``, in its torch implementation."""
    config = NerfactoModelConfig(
        implementation="torch",
        average_init_density=0.01,
        camera_optimizer=CameraOptimizerConfig(mode=cameras),
    )
    # LPIPS, which is not asked for, would download a network
    torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity = lambda **_: torch.nn.Identity()
    box = SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
    return config.setup(scene_box=box, num_train_data=num_photos, metadata={}, device="cpu", grad_scaler=None)


@torch.no_grad()
def score(model: Any, photos: Photos, stride: int) -> dict[str, float]:
    """Mean PSNR of the test photos, plain and after the per-photo affine colour correction."""
    model.eval()
    plain, corrected = [], []
    for photo in photos.test:
        directions = photos.directions[photo][::stride, ::stride]
        counted = photos.counted[photo][::stride, ::stride]
        target = photos.pixels[photo][::stride, ::stride].float() / 255
        flat = directions.reshape(-1, 3)
        parts = []
        for start in range(0, len(flat), EVALUATED):
            part = flat[start : start + EVALUATED]
            index = torch.zeros(len(part), dtype=torch.int64)
            parts.append(model(photos.bundle(index + photo, part, index))["rgb"])
        rendered = torch.cat(parts).view(target.shape)
        plain.append(image_scores(rendered, target, counted).psnr)
        corrected.append(image_scores(colour_corrected(rendered, target, counted), target, counted).psnr)
    return {"psnr": float(np.mean(plain)), "psnr_corrected": float(np.mean(corrected))}


if __name__ == "__main__":
    main()
