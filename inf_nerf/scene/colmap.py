"""COLMAP sparse models, binary and text, read by pycolmap.

The model is looked for in ``sparse/0``, ``sparse`` and the data root itself.  Files are checked before pycolmap sees
them (`inf_nerf.scene.colmap_files`), because it reads a truncated file without a word or never comes back.
"""

from pathlib import Path, PurePosixPath

import numpy as np
import pycolmap

from inf_nerf.config import SceneConfig
from inf_nerf.errors import InputError
from inf_nerf.scene.capture import Capture, Tracks
from inf_nerf.scene.colmap_files import check_binary, check_text

FOLDERS = ("sparse/0", "sparse", ".")
FILES = ("cameras", "images", "points3D")
FURTHER_FILES = ("rigs", "frames")  # since COLMAP 3.12


def find_model(root: Path) -> tuple[Path, str] | None:
    """Folder of the sparse model and the suffix of its files, or None if there is no part of one."""
    started: tuple[Path, str] | None = None
    for folder in FOLDERS:
        for suffix in (".bin", ".txt"):
            present = [(root / folder / f"{name}{suffix}").is_file() for name in FILES]
            if all(present):
                return root / folder, suffix
            if any(present) and started is None:
                started = root / folder, suffix
    return started


def read_colmap(root: Path, folder: Path, suffix: str, images_dir: str) -> Capture:
    """Read the model in ``folder``; photos without a pose, and few that are not there, are left out and counted.

    ``images_dir`` is relative to ``root``; without a folder of the default name, photos lie in ``root`` itself.
    Raises :class:`InputError` naming the file that is missing, truncated or damaged.
    """
    for name in FILES:
        if not (folder / f"{name}{suffix}").is_file():
            raise InputError(f"{folder} holds a part of a sparse model but no {name}{suffix}; export all three files.")
    model = pycolmap.Reconstruction()
    if suffix == ".bin":
        check_binary(folder)
    else:
        check_text(folder)
    try:
        model.read_binary(str(folder)) if suffix == ".bin" else model.read_text(str(folder))
    except (ValueError, IndexError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"The sparse model in {folder} cannot be read ({reason}); export it from COLMAP again."
        ) from error
    if suffix == ".txt":
        _check_observations(folder / "points3D.txt", model)

    if images_dir == SceneConfig().images_dir and not (root / images_dir).is_dir():
        images_dir = "."
    images = sorted((image for image in model.images.values() if image.has_pose), key=lambda image: image.name)
    there = [image for image in images if (root / images_dir / image.name).is_file()]
    num_missing = len(images) - len(there)
    if num_missing < len(there):  # else they are looked for in the wrong folder, which is said later
        images = there
    camera_keys = sorted({image.camera_id for image in images})
    cameras = [model.cameras[key] for key in camera_keys]
    for camera in cameras:
        if camera.is_spherical():
            raise InputError(
                f"Camera {camera.camera_id} in {folder} is {camera.model_name}, and only perspective and fisheye "
                "cameras can be used; cut the panoramas into perspective photos."
            )
        if camera.width < 1 or camera.height < 1 or not np.isfinite(camera.params).all():
            raise InputError(
                f"Camera {camera.camera_id} in {folder} has no usable size or parameters; calibrate it again."
            )
    poses = [image.cam_from_world().inverse().matrix() for image in images]
    return Capture(
        source=folder,
        names=[image.name for image in images],
        files=[PurePosixPath(images_dir, image.name).as_posix() for image in images],
        masks=[None] * len(images),
        cameras=cameras,
        camera_id=np.array([camera_keys.index(image.camera_id) for image in images], np.int64),
        cam_to_world=np.array(poses, np.float64).reshape(-1, 3, 4),
        tracks=_tracks(model, images),
        sources=[
            (folder / f"{name}{suffix}").relative_to(root).as_posix()
            for name in FILES + FURTHER_FILES
            if (folder / f"{name}{suffix}").is_file()
        ],
        report={
            "format": f"colmap{suffix}",
            "missing_frames": num_missing,
            "photos_without_pose": len(model.images) - len(images),
            "photos_without_points": sum(image.num_points3D == 0 for image in images),
        },
    )


def _tracks(model: pycolmap.Reconstruction, images: list[pycolmap.Image]) -> Tracks:
    """All points of the model in ascending order of id."""
    row = {image.image_id: index for index, image in enumerate(images)}
    # A camera that changes nothing hands over the keypoints of a photo as one array, without a Python object each.
    identity = pycolmap.Camera(camera_id=1, model="SIMPLE_PINHOLE", width=1, height=1, params=[1.0, 0.0, 0.0])
    keypoints = [np.asarray(identity.cam_from_img(image.points2D)).reshape(-1, 2) for image in images]
    first = np.concatenate([[0], np.cumsum([len(xy) for xy in keypoints])]).astype(np.int64)
    ids = sorted(model.points3D)
    points = [model.points3D[key] for key in ids]
    photo: list[int] = []
    keypoint: list[int] = []
    length: list[int] = []
    for point in points:
        elements = [(row[e.image_id], e.point2D_idx) for e in point.track.elements if e.image_id in row]
        photo += [element[0] for element in elements]
        keypoint += [element[1] for element in elements]
        length.append(len(elements))
    photos = np.array(photo, np.int64)
    xy = np.concatenate([np.zeros((0, 2)), *keypoints])
    return Tracks(
        xyz=np.array([point.xyz for point in points], np.float64).reshape(-1, 3),
        rgb=np.array([point.color for point in points], np.uint8).reshape(-1, 3),
        error=np.array([point.error for point in points], np.float64),
        start=np.concatenate([[0], np.cumsum(length)]).astype(np.int64),
        photo=photos,
        xy=xy[first[photos] + np.array(keypoint, np.int64)],
    )


def _check_observations(path: Path, model: pycolmap.Reconstruction) -> None:
    """Refuse a points file that lacks observations that the images have: cut at the end of a line it looks whole."""
    observed = sum(point.track.length() for point in model.points3D.values())
    if observed < model.compute_num_observations():
        raise InputError(
            f"{path} holds {observed} of the {model.compute_num_observations()} observations in images.txt, so it is "
            "truncated or of another model; export the model from COLMAP again."
        )
