"""Everything that was captured, in the scene frame: photos, cameras, sparse points, the world frame.

Letters: V photos, P points, O observations (a track lists the observations of one point).
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from inf_nerf.scene.cameras import Cameras
from inf_nerf.scene.frame import WorldFrame

DESCRIPTION, TENSORS = "scene.json", "scene.safetensors"


@dataclass(frozen=True)
class Photo:
    """One photo; names and paths use forward slashes."""

    name: str  # as in the sparse model, with folders
    split: str  # "train", "val" or "test"
    file: str  # relative to the data root
    mask: str | None  # relative to the data root


@dataclass(frozen=True, eq=False)
class SparsePoints:
    """Structure-from-motion points and the places in photos where they were seen."""

    xyz: Tensor  # [P, 3] float32, scene frame
    footprint: Tensor  # [P] float32, pixel side at the point, least over its observations, scene units, level 0
    rgb: Tensor  # [P, 3] uint8
    error: Tensor  # [P] float32, reprojection error in pixels
    track_start: Tensor  # [P + 1] int64, observations of point p are track_start[p] : track_start[p + 1]
    track_photo: Tensor  # [O] int64
    track_xy: Tensor  # [O, 2] float32, level-0 pixel coordinates

    def __post_init__(self) -> None:
        num_points, num_observations = self.xyz.shape[0], self.track_photo.shape[0]
        assert self.xyz.shape == self.rgb.shape == (num_points, 3)
        assert self.footprint.shape == self.error.shape == (num_points,)
        assert self.track_start.shape == (num_points + 1,) and self.track_xy.shape == (num_observations, 2)

    def __len__(self) -> int:
        return self.xyz.shape[0]

    @property
    def track_point(self) -> Tensor:
        """The point of each observation, [O] int64."""
        return torch.repeat_interleave(torch.arange(len(self)), self.track_start.diff())


@dataclass(frozen=True, eq=False)
class Scene:
    """What was captured; written once by `prepare` and carried by every checkpoint."""

    photos: tuple[Photo, ...]
    cameras: Cameras  # view v is photo v
    points: SparsePoints
    frame: WorldFrame
    root: str  # the data root that photo files are relative to
    report: dict[str, int | float | str]  # what was read, skipped and dropped
    source_size: Tensor  # [C, 2] int64, width and height of the photo files of each camera

    def __post_init__(self) -> None:
        assert len(self.photos) == len(self.cameras) and self.source_size.shape == self.cameras.size.shape

    @property
    def train(self) -> list[int]:
        """Photos to learn from."""
        return self._of("train")

    @property
    def val(self) -> list[int]:
        """Photos that choose the best checkpoint."""
        return self._of("val")

    @property
    def test(self) -> list[int]:
        """Photos that are only reported."""
        return self._of("test")

    @cached_property
    def identity(self) -> str:
        """Hash of cube, cameras and photo names; equal for scenes whose tiles are interchangeable."""
        digest = hashlib.sha256(self.frame.matrix.tobytes())
        for name, tensor in sorted(self.cameras.state().items()):
            digest.update(name.encode() + str(tuple(tensor.shape)).encode())
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
        digest.update(json.dumps([[photo.name, photo.split] for photo in self.photos]).encode())
        return digest.hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write ``scene.safetensors`` and, after it, ``scene.json`` into the directory ``path``."""
        tensors = {f"cameras.{name}": tensor.contiguous() for name, tensor in self.cameras.state().items()}
        for field in fields(SparsePoints):
            tensors[f"points.{field.name}"] = getattr(self.points, field.name).contiguous()
        tensors["source_size"] = self.source_size
        description = {
            "identity": self.identity,
            "root": self.root,
            "frame": self.frame.matrix.tolist(),
            "report": self.report,
            "photos": [asdict(photo) for photo in self.photos],
        }
        write_atomic(path / TENSORS, save(tensors))
        write_atomic(path / DESCRIPTION, json.dumps(description, indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> "Scene":
        """Read what :meth:`save` wrote; raises :class:`InputError` if the files are missing or damaged."""
        for name in (DESCRIPTION, TENSORS):
            if not (path / name).is_file():
                raise InputError(f"{path} holds no {name}; run the prepare stage on it first.")
        try:
            description = json.loads((path / DESCRIPTION).read_text())
            tensors = load_file(path / TENSORS)
            cameras = {field.name: tensors[f"cameras.{field.name}"] for field in fields(Cameras)}
            points = {field.name: tensors[f"points.{field.name}"] for field in fields(SparsePoints)}
            return Scene(
                photos=tuple(Photo(**photo) for photo in description["photos"]),
                cameras=Cameras(**cameras),
                points=SparsePoints(**points),
                frame=WorldFrame(np.array(description["frame"], np.float64)),
                root=description["root"],
                report=description["report"],
                source_size=tensors["source_size"],
            )
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise InputError(f"The scene in {path} cannot be read ({error}); run the prepare stage again.") from error

    def _of(self, split: str) -> list[int]:
        return [index for index, photo in enumerate(self.photos) if photo.split == split]
