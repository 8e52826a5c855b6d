"""The camera path that one visitor lays out by views, plays and saves as the JSON that ``inf-nerf render`` reads."""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import viser
from numpy.typing import NDArray
from torch import Tensor

from inf_nerf.config import RenderConfig
from inf_nerf.files import write_atomic
from inf_nerf.render.camera_path import CameraPath, rendered_path
from inf_nerf.render.path_files import path_to_json
from inf_nerf.render.poses import between, travel
from inf_nerf.scene.scene import Scene

FOLDER = "paths"  # in the run directory
ALLOWED = r"[A-Za-z0-9_-]+"  # names of paths: they become names of files

Array = NDArray[np.float64]


class Keys:
    """Views that a path passes, each with the photo whose appearance it has there, or None for the mean."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.poses: list[Array] = []  # [3, 4] each
        self.photos: list[int | None] = []

    def __len__(self) -> int:
        return len(self.poses)

    def add(self, pose: Array, photo: int | None) -> None:
        """One more view at the end."""
        self.poses.append(pose)
        self.photos.append(photo)

    def drop(self) -> None:
        """Forget the last view, if there is one."""
        del self.poses[-1:], self.photos[-1:]

    def path(self, render: RenderConfig) -> CameraPath:
        """The smooth path through all keys, of which there is one at least."""
        poses, time = travel(np.stack(self.poses), render.frames)
        if all(photo is None for photo in self.photos):
            return rendered_path(poses, render)
        of_keys = np.zeros((len(self), len(self._scene.photos)))
        for key, photo in enumerate(self.photos):
            if photo is not None:
                of_keys[key, photo] = 1
        return rendered_path(poses, render, torch.from_numpy(between(of_keys, time)).float())


class PathEditor:
    """The controls of a path; ``current`` gives pose [3, 4], photo and horizontal field of view of what is seen now."""

    def __init__(
        self,
        client: viser.ClientHandle,
        scene: Scene,
        run_dir: Path | None,  # where paths are saved; None: they are downloaded
        render: RenderConfig,
        *,
        current: Callable[[], tuple[Tensor, int | None, float]],
        show: Callable[[Array, Array], None],  # eyes [F, 3] of the path, and of its keys [K, 3]
        go_to: Callable[[Tensor], None],
    ) -> None:
        self._client = client
        self._scene = scene
        self._run_dir = run_dir
        self._render = render
        self._keys = Keys(scene)
        self._fov = render.fov_degrees
        self._current, self._show, self._go_to = current, show, go_to
        self._playing: threading.Event | None = None  # set to stop
        gui = client.gui
        with gui.add_folder("Camera path", expand_by_default=False):
            self._text = gui.add_markdown("No views yet.")
            add, drop = gui.add_button("Add this view"), gui.add_button("Remove the last view")
            self._frames = gui.add_number("Frames", render.frames, min=1, max=100_000, step=1)
            self._fps = gui.add_number("Frames per second", render.fps, min=1, max=240, step=1)
            play = gui.add_button("Play or stop")
            self._name = gui.add_text("Name", "path")
            save, download = (
                gui.add_button("Save into the run", visible=run_dir is not None),
                gui.add_button("Download"),
            )
        add.on_click(lambda _: self._add())
        drop.on_click(lambda _: self._drop())
        play.on_click(lambda _: self._play())
        save.on_click(lambda _: self._save())
        download.on_click(lambda _: self._download())
        self._frames.on_update(lambda _: self._changed())

    def close(self) -> None:
        """The visitor is gone."""
        if self._playing is not None:
            self._playing.set()

    @property
    def _wanted(self) -> RenderConfig:
        return self._render.model_copy(
            update={"frames": int(self._frames.value), "fps": int(self._fps.value), "fov_degrees": self._fov}
        )

    def _add(self) -> None:
        pose, photo, self._fov = self._current()
        self._keys.add(pose.double().numpy(), photo)
        self._changed()

    def _drop(self) -> None:
        self._keys.drop()
        self._changed()

    def _changed(self) -> None:
        count = len(self._keys)
        self._text.content = f"{count} view{'s' * (count != 1)}, {int(self._frames.value)} frames."
        eyes = np.stack(self._keys.poses)[:, :, 3] if count else np.zeros((0, 3))
        path = self._keys.path(self._wanted).cameras.centre.double().numpy() if count > 1 else eyes
        self._show(path, eyes)

    def _play(self) -> None:
        if self._playing is not None and not self._playing.is_set():
            self._playing.set()
        elif len(self._keys):
            self._playing = threading.Event()
            path = self._keys.path(self._wanted)
            threading.Thread(target=self._run, args=(path, self._playing), daemon=True).start()

    def _run(self, path: CameraPath, over: threading.Event) -> None:
        started = time.monotonic()
        while not over.wait(1 / 30):
            frame = int((time.monotonic() - started) * path.fps)
            self._go_to(path.cameras.cam_to_world[min(frame, len(path) - 1)])
            if frame >= len(path):
                over.set()

    def _content(self) -> tuple[str, str] | None:
        """Name and content of the file; None, after saying why, where there is nothing to save."""
        name = str(self._name.value)
        if not re.fullmatch(ALLOWED, name):
            self._say("The path was not saved", "Name it by letters, digits, - and _ alone.")
        elif not len(self._keys):
            self._say("The path was not saved", "It has no views yet.")
        else:
            return f"{name}.json", path_to_json(self._keys.path(self._wanted), self._scene)
        return None

    def _save(self) -> None:
        if self._run_dir is None or (content := self._content()) is None:
            return
        file = self._run_dir / FOLDER / content[0]
        try:
            write_atomic(file, content[1])
        except OSError as error:
            self._say("The path was not saved", f"{file}: {error.strerror}.")
        else:
            self._say("Saved", f"inf-nerf render {self._run_dir} --path {file} --out {file.stem}.mp4")

    def _download(self) -> None:
        if (content := self._content()) is not None:
            self._client.send_file_download(content[0], content[1].encode(), save_immediately=True)

    def _say(self, title: str, text: str) -> None:
        self._client.add_notification(title, text, auto_close_seconds=20.0)
