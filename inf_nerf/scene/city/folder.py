"""The synthetic city as a folder that any reader of COLMAP models opens.

``DIR/images/*.jpg``, ``DIR/sparse/0/*.bin`` with points and tracks, and ``DIR/city.json`` with the parameters.
"""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray
from PIL import Image

from inf_nerf.errors import InputError
from inf_nerf.scene.city.capture import Flight, Tracks, find_tracks, plan_flight
from inf_nerf.scene.city.layout import build_city
from inf_nerf.scene.city.render import render

VERSION = 1  # of the generator: the same parameters and version give the same pictures
MAX_WORKERS = 2  # threads that render; the ray caster holds no lock
MIN_PHOTOS, MIN_SIZE = 3, 32


@dataclass(frozen=True)
class CityParameters:
    """What a city is made from; ``size`` is the longer side of its 4:3 photos in pixels."""

    blocks: int = 4
    photos: int = 60
    size: int = 480
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises InputError naming the first value that is out of range."""
        for name, least in (("blocks", 1), ("photos", MIN_PHOTOS), ("size", MIN_SIZE), ("seed", 0)):
            value = getattr(self, name)
            if value < least:
                raise InputError(f"The synthetic city got {name} = {value}; use {least} or more.")


def write_city(out: Path, parameters: CityParameters, on_photo: Callable[[], None] | None = None) -> bool:
    """Synthesise the city into ``out`` and tell whether that was done; False: the same city was there already.

    ``on_photo`` is called after each photo.  The folder appears complete or not at all.  Raises InputError when ``out``
    holds anything else.
    """
    content = json.dumps({"version": VERSION, **asdict(parameters)}, indent=1, sort_keys=True) + "\n"
    if _is_there(out, content):
        return False
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        (partial / "images").mkdir(parents=True)
        city = build_city(parameters.blocks, parameters.seed)
        flight = plan_flight(city, parameters.photos, parameters.size, parameters.seed)
        tracks = find_tracks(city, flight, parameters.seed)

        def photograph(photo: int) -> NDArray[np.uint8]:
            """Write a photo; return the colours [K, 3] of the points that were found in it."""
            image = render(city, flight.poses[photo], flight.focal, flight.width, flight.height)
            pixels = np.round(image * 255).astype(np.uint8)
            Image.fromarray(pixels).save(partial / "images" / flight.names[photo], quality=95, subsampling=0)
            column, row = tracks.source_xy[tracks.source == photo].astype(np.int64).T
            return pixels[row, column]

        colours = np.zeros((len(tracks.xyz), 3), dtype=np.uint8)
        pool = ThreadPoolExecutor(MAX_WORKERS)
        try:
            for photo, found in enumerate(pool.map(photograph, range(len(flight.names)))):
                colours[tracks.source == photo] = found
                if on_photo is not None:
                    on_photo()
        finally:
            pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the photos that are queued
        _write_model(partial / "sparse" / "0", flight, tracks, colours)
        (partial / "city.json").write_text(content)
        if out.is_dir():
            out.rmdir()  # empty, or it would have been refused
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _is_there(out: Path, content: str) -> bool:
    """Whether the same city is in ``out``; raises InputError when something else is."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise InputError(f"{out} is a file; name a new folder for the synthetic city.")
    if not any(out.iterdir()):
        return False
    stored = out / "city.json"
    if not stored.is_file():
        raise InputError(f"{out} is not empty and holds no synthetic city; name a new folder or remove this one.")
    if stored.read_text() != content:
        raise InputError(
            f"{out} holds a city made with other parameters (see {stored}); name a new folder or remove it."
        )
    return True


def _write_model(path: Path, flight: Flight, tracks: Tracks, colours: NDArray[np.uint8]) -> None:
    """COLMAP's binary model; ids start at 1."""
    path.mkdir(parents=True)
    model = pycolmap.Reconstruction()
    principal = [flight.width / 2, flight.height / 2]
    camera = pycolmap.Camera(
        camera_id=1,
        model="PINHOLE",
        width=flight.width,
        height=flight.height,
        params=[flight.focal, flight.focal, *principal],
    )
    model.add_camera_with_trivial_rig(camera)
    place = np.zeros(len(tracks.point), dtype=np.int64)  # index of an observation within its photo
    for photo, name in enumerate(flight.names):
        mine = np.nonzero(tracks.photo == photo)[0]
        place[mine] = np.arange(len(mine))
        image = pycolmap.Image(name=name, keypoints=tracks.xy[mine], camera_id=1, image_id=photo + 1)
        rotation = flight.poses[photo, :, :3].T
        shift = -rotation @ flight.poses[photo, :, 3:]
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.hstack([rotation, shift])))
    start = np.searchsorted(tracks.point, np.arange(len(tracks.xyz) + 1))
    for point, xyz in enumerate(tracks.xyz):
        track = pycolmap.Track()
        for observation in range(start[point], start[point + 1]):
            track.add_element(int(tracks.photo[observation]) + 1, int(place[observation]))
        added = model.add_point3D(xyz, track, colours[point])
        model.point3D(added).error = float(tracks.error[point])
    model.write_binary(str(path))
