"""Everything that was captured, in the scene frame: photos, cameras, sparse points, the world frame.

Letters: V photos, C cameras.  :func:`load_scene` reads a data folder; nothing is decoded but the headers of the photos.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor

from inf_nerf.config import SceneConfig
from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from inf_nerf.places import Place
from inf_nerf.scene.cameras import Cameras
from inf_nerf.scene.capture import Capture, check_photos, find_masks
from inf_nerf.scene.colmap import find_model, read_colmap
from inf_nerf.scene.frame import WorldFrame, find_frame
from inf_nerf.scene.more_photos import refuse_moved, splits_with
from inf_nerf.scene.points import SparsePoints, place_points
from inf_nerf.scene.split import split_photos
from inf_nerf.scene.transforms import FILE, read_transforms
from inf_nerf.scene.undistortion import assemble, is_pinhole, make_lookup

DESCRIPTION, TENSORS = "scene.json", "scene.safetensors"


@dataclass(frozen=True)
class Photo:
    """One photo; names and paths use forward slashes."""

    name: str  # as in the sparse model, with folders
    split: str  # "train", "val" or "test"
    file: str  # relative to the data root
    mask: str | None  # relative to the data root


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
    sources: tuple[str, ...] = ()  # files besides photos and masks that it was made from, relative to `root`

    def __post_init__(self) -> None:
        assert len(self.photos) == len(self.cameras) and self.source_size.shape == self.cameras.size.shape

    @property
    def train(self) -> list[int]:
        """Photos to learn from."""
        return self._of("train")

    @property
    def val(self) -> list[int]:
        """Photos that every checkpoint is scored on: the best one is kept, the latest one is evaluated and rendered."""
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
            "sources": self.sources,
            "photos": [asdict(photo) for photo in self.photos],
        }
        write_atomic(path / TENSORS, save(tensors))
        write_atomic(path / DESCRIPTION, json.dumps(description, indent=1) + "\n")

    @staticmethod
    def load(path: Place) -> "Scene":
        """Read what :meth:`save` wrote; raises :class:`InputError` if the files are missing or damaged."""
        for name in (DESCRIPTION, TENSORS):
            if not (path / name).is_file():
                raise InputError(f"{path} holds no {name}; run the prepare stage on it first.")
        try:
            description = json.loads((path / DESCRIPTION).read_text())
            tensors = _read_tensors(path / TENSORS)
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
                sources=tuple(description["sources"]),
            )
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise InputError(f"The scene in {path} cannot be read ({error}); run the prepare stage again.") from error

    def _of(self, split: str) -> list[int]:
        return [index for index, photo in enumerate(self.photos) if photo.split == split]


def _read_tensors(file: Place) -> dict[str, Tensor]:
    return load_file(file) if isinstance(file, Path) else load(file.read_bytes())


def load_scene(data_root: Path, config: SceneConfig, known: Scene | None = None) -> Scene:
    """Read a data folder: a COLMAP sparse model, or ``transforms.json``, with the photos that it names.

    With a ``known`` scene it is one of more photos of it, in the same frame and, for the photos that are known, in the
    same split; the input must have the coordinates of that one's.

    Raises :class:`InputError` for everything that is missing, damaged or does not fit together.
    """
    capture = _read_capture(data_root, config)
    check_photos(data_root, capture)
    tracks = capture.tracks
    num_read = len(tracks.xyz)
    usable = np.asarray(np.isfinite(tracks.xyz).all(axis=1))
    if len(tracks.photo):
        usable &= np.diff(tracks.start) >= config.min_observations
    capture = replace(capture, tracks=tracks.keep(usable))
    if not usable.any():
        raise InputError(
            f"None of the {num_read} points in {capture.source} has {config.min_observations} or more observations, so "
            "the cube stays empty; reconstruct with more overlap or lower scene.min_observations."
        )
    if known is None:
        xyz, orient = capture.tracks.xyz, config.orientation == "auto"
        frame = find_frame(xyz, capture.cam_to_world, config.percentile, config.margin, orient)
    else:
        frame = known.frame
    source_size = np.array([[camera.width, camera.height] for camera in capture.cameras])
    cameras = assemble(
        capture.cameras,
        [None if is_pinhole(camera) else make_lookup(camera) for camera in capture.cameras],
        _level0_size(source_size, config.max_side),
        capture.camera_id,
        frame.camera_to_scene(capture.cam_to_world),
    )
    if known is not None:
        refuse_moved(known, capture.names, cameras, capture.source)
    points = place_points(capture, cameras, frame)
    num_inside = int(points.in_cube.sum())
    if num_inside == 0:
        raise InputError(
            f"No point of {capture.source} lies inside the scene's cube and within a photo; check that points and "
            "poses belong together."
        )
    splits = split_photos(capture.names, config) if known is None else splits_with(known, capture.names)
    masks = capture.masks if config.masks_dir is None else find_masks(data_root, config.masks_dir, capture.names)
    read = (config.train_list, config.val_list, config.test_list) if known is None else ()
    lists = [str(path.absolute()) for path in read if path]
    report = capture.report | {
        "photos": len(capture.names),
        "cameras": len(capture.cameras),
        "distorted_cameras": int((cameras.grid_shape[:, 0] > 0).sum()),
        "masks": sum(mask is not None for mask in masks),
        **{split: splits.count(split) for split in ("train", "val", "test")},
        "points_read": num_read,
        "dropped_points": num_read - len(points),
        "points_in_cube": num_inside,
        "observations": len(points.track_photo),
        "level0_width": int(cameras.size[:, 0].max()),
        "level0_height": int(cameras.size[:, 1].max()),
        "cube_side": 2 / frame.scale,
        "up": " ".join(f"{value:.3f}" for value in frame.up),
    }
    return Scene(
        photos=tuple(Photo(*photo) for photo in zip(capture.names, splits, capture.files, masks, strict=True)),
        cameras=cameras,
        points=points,
        frame=frame,
        root=str(data_root.absolute()),  # workers may have another working directory
        report=report,
        source_size=torch.from_numpy(source_size),
        sources=(*capture.sources, *lists),
    )


def _read_capture(root: Path, config: SceneConfig) -> Capture:
    if not root.is_dir():
        raise InputError(f"The data folder {root} does not exist; name a folder with photos and a sparse model.")
    if not any(root.iterdir()):
        raise InputError(f"The data folder {root} is empty; name a folder with photos and a sparse model.")
    model = find_model(root) if config.format != "transforms" else None
    if model:
        return read_colmap(root, *model, config.images_dir)
    if config.format != "colmap" and (root / FILE).is_file():
        return read_transforms(root)
    wanted = {"colmap": "no COLMAP model", "transforms": f"no {FILE}", "auto": f"neither a COLMAP model nor {FILE}"}
    raise InputError(
        f"{root} holds {wanted[config.format]}; put cameras, images and points3D (.bin or .txt) into "
        f"{root / 'sparse/0'}, or a {FILE} into {root}."
    )


def _level0_size(source: NDArray[np.int_], max_side: int | None) -> NDArray[np.int_]:
    """Width and height [C, 2] after the longer side was limited."""
    if max_side is None:
        return source
    scale = np.minimum(1.0, max_side / source.max(axis=1, keepdims=True))
    return np.maximum(1, np.rint(source * scale).astype(np.int64))
