"""What a reader finds in a data folder, before it is brought into the scene frame.

Letters: V photos, C cameras, P points, O observations.  Coordinates are those of the input, pixels those of the photo
files.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pycolmap
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from inf_nerf.errors import InputError

MIN_PHOTOS = 3


@dataclass(frozen=True, eq=False)
class Tracks:
    """Points with their observations; `start` is all zero where the input knows points but no tracks."""

    xyz: NDArray[np.float64]  # [P, 3]
    rgb: NDArray[np.uint8]  # [P, 3]
    error: NDArray[np.float64]  # [P] pixels
    start: NDArray[np.int64]  # [P + 1]
    photo: NDArray[np.int64]  # [O]
    xy: NDArray[np.float64]  # [O, 2] pixels of the photo file

    def __post_init__(self) -> None:
        assert len(self.xyz) == len(self.rgb) == len(self.error) == len(self.start) - 1
        assert len(self.photo) == len(self.xy) == self.start[-1]

    @staticmethod
    def without_observations(xyz: NDArray[np.float64], rgb: NDArray[np.uint8]) -> "Tracks":
        """Points of which nothing but place and colour is known."""
        num_points = len(xyz)
        return Tracks(
            xyz, rgb, np.zeros(num_points), np.zeros(num_points + 1, np.int64), np.zeros(0, np.int64), np.zeros((0, 2))
        )

    def keep(self, chosen: NDArray[np.bool_]) -> "Tracks":
        """The chosen points [P] with their observations."""
        length = np.diff(self.start)
        seen = np.repeat(chosen, length)
        start = np.concatenate([[0], np.cumsum(length[chosen])]).astype(np.int64)
        return Tracks(self.xyz[chosen], self.rgb[chosen], self.error[chosen], start, self.photo[seen], self.xy[seen])


@dataclass(frozen=True, eq=False)
class Capture:
    """Photos sorted by name, their cameras and the sparse points."""

    source: Path  # the file or folder that was read, for messages
    names: list[str]  # [V]
    files: list[str]  # [V] relative to the data root
    masks: list[str | None]  # [V] relative to the data root, where the input itself names masks
    cameras: list[pycolmap.Camera]  # [C]
    camera_id: NDArray[np.int64]  # [V] index into `cameras`
    cam_to_world: NDArray[np.float64]  # [V, 3, 4]
    tracks: Tracks
    sources: list[str]  # files besides photos and masks that were read, relative to the data root
    report: dict[str, int | float | str] = field(default_factory=dict)


def check_photos(root: Path, capture: Capture) -> None:
    """Raise :class:`InputError` unless every photo exists and its header states the size of its camera."""
    if len(capture.names) < MIN_PHOTOS:
        raise InputError(
            f"{capture.source} has {len(capture.names)} usable photos, at least {MIN_PHOTOS} are needed; "
            "add photos with poses."
        )
    missing = [file for file in capture.files if not (root / file).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise InputError(
            f"The photo {root / missing[0]}{more} missing though {capture.source} refers to it; put the photos there "
            "or name their folder with --set scene.images_dir=FOLDER."
        )
    for file, camera in zip(capture.files, capture.camera_id, strict=True):
        expected = capture.cameras[camera].width, capture.cameras[camera].height
        check_size(root / file, header_size(root / file), expected)


def header_size(path: Path) -> tuple[int, int]:
    """Width and height that a photo's header states; nothing is decoded and EXIF orientation is ignored."""
    with open_image(path, "photo") as image:
        return image.size


def open_image(path: Path, what: str) -> Image.Image:
    """An image file with its header read; raises :class:`InputError` if it is missing or damaged."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # large aerial cameras exceed Pillow's guard against files from strangers
    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise InputError(f"The {what} {path} is missing; put it back or correct the path.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError(f"The {what} {path} cannot be opened ({reason}); replace the damaged file.") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def check_size(path: Path, size: tuple[int, int], expected: tuple[int, int]) -> None:
    """Raise :class:`InputError` if a photo has another size than its camera."""
    if size != expected:
        raise InputError(
            f"The photo {path} is {size[0]} x {size[1]} pixels but its camera has {expected[0]} x {expected[1]}; use "
            "the photos that the cameras were computed for (scene.max_side makes them smaller)."
        )


def find_masks(root: Path, masks_dir: str, names: Iterable[str]) -> list[str | None]:
    """The mask of each photo: the same relative name in ``masks_dir``, with any suffix or a further one."""
    folder = root / masks_dir
    if not folder.is_dir():
        raise InputError(f"The folder of masks {folder} does not exist; correct scene.masks_dir.")
    by_stem: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            relative = path.relative_to(folder).with_suffix("").as_posix()
            by_stem[relative] = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    masks = [by_stem.get(name) or by_stem.get(PurePosixPath(name).with_suffix("").as_posix()) for name in names]
    if not any(masks):
        raise InputError(f"No file in {folder} has the name of a photo; name masks like their photos.")
    return masks
