"""The MLflow flavour of a checkpoint: what ``mlflow.pyfunc.load_model`` gives renders cameras.

    model = mlflow.pyfunc.load_model("runs:/<run id>/model")
    pictures = model.predict({"width": 640, "height": 480, "fov_degrees": 55, "frames": [{"camera_to_world": ...}]})

The input is what a camera path's JSON file holds (docs/camera-paths.md), or a table with a row per camera and the
columns ``camera_to_world`` (4 x 4), ``width``, ``height`` and ``fov_degrees``.  The result is an array of pictures,
[F, h, w, 3] uint8, with the same pixels as those of ``inf-nerf render``.

A model holds where its checkpoint lies and which hash it has, and the files themselves if they were logged with it.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
from numpy.typing import NDArray

from inf_nerf.errors import InputError
from inf_nerf.places import place
from inf_nerf.render.colourmap import as_picture
from inf_nerf.render.path_files import path_from_description
from inf_nerf.train.manifest import MANIFEST, read_manifest
from inf_nerf.train.opened import Checkpoint, load_checkpoint
from pipelines.frames import render_frame

DATA = "checkpoint"  # folder of the model's data
REFERENCE = "reference.json"
INSIDE = "files"  # folder with the checkpoint, if it is in the model
COLUMNS = ("width", "height", "fov_degrees")  # of a table, the same in all of its rows but for the last


def save(folder: Path, checkpoint: str, digest: str) -> str:
    """Write the model of a checkpoint by reference into the new folder ``folder``.

    Returns the path within it at which the checkpoint's own files may be put.
    """
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / DATA
        data.mkdir()
        (data / REFERENCE).write_text(json.dumps({"checkpoint": checkpoint, "digest": digest}, indent=1) + "\n")
        mlflow.pyfunc.save_model(
            folder,
            loader_module=__name__,
            data_path=str(data),
            pip_requirements=["inf-nerf"],
        )
    return f"data/{DATA}/{INSIDE}"


class CameraRenderer:
    """A checkpoint that renders what cameras see."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> NDArray[np.uint8]:  # [F, h, w, 3]
        """Pictures of all cameras of the input; raises :class:`InputError` naming what of it cannot be used."""
        loaded = self._checkpoint
        path = path_from_description({"fps": 24} | description(model_input), loaded.scene, "The input")
        frames = (render_frame(loaded, path, frame, loaded.config) for frame in range(len(path)))
        return np.stack([as_picture(rendered.rgb) for rendered in frames])


def description(model_input: Any) -> dict[str, Any]:
    """The input as the content of a camera path's file."""
    if isinstance(model_input, Mapping):
        return dict(model_input)
    if not hasattr(model_input, "to_dict"):
        raise InputError(
            f"The input is a {type(model_input).__name__}; give the content of a camera path's JSON file or a table."
        )
    rows = model_input.to_dict("records")
    lacking = [name for name in ("camera_to_world", *COLUMNS) if rows and name not in rows[0]]
    if not rows or lacking:
        raise InputError(
            "The input is a table " + (f"without the column {lacking[0]!r}" if lacking else "without rows") + "; give "
            "a row per camera with camera_to_world, width, height and fov_degrees."
        )
    shared = {name: _plain(rows[0][name]) for name in COLUMNS}
    for row in rows:
        for name in ("width", "height"):
            if _plain(row[name]) != shared[name]:
                raise InputError(
                    f"The input has cameras with {name} {shared[name]} and {row[name]}; give pictures of one size at "
                    "a time."
                )
    frames = [
        {"camera_to_world": _plain(row["camera_to_world"]), "fov_degrees": _plain(row["fov_degrees"])} for row in rows
    ]
    return shared | {"frames": frames}


def _load_pyfunc(data_path: str | os.PathLike[str]) -> CameraRenderer:
    """What MLflow calls; raises :class:`InputError` where the checkpoint is gone or is another one."""
    data = Path(data_path)
    reference = json.loads((data / REFERENCE).read_text())
    checkpoint = data / INSIDE if (data / INSIDE / MANIFEST).is_file() else place(reference["checkpoint"])
    digest = read_manifest(checkpoint)["digest"]
    if digest != reference["digest"]:
        raise InputError(
            f"{checkpoint} has another content than the model was logged with (hash {digest[:16]}, not "
            f"{reference['digest'][:16]}); load the model of the run that trained it."
        )
    return CameraRenderer(load_checkpoint(checkpoint))


def _plain(value: Any) -> Any:
    """A number or matrix without the types of an array library."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
