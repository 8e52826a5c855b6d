"""The web server of the viewer: visitors come and go, one artist renders for all of them."""

import math
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
import viser

from inf_nerf.config import RenderConfig
from inf_nerf.errors import InputError
from inf_nerf.render.paths import orbit
from inf_nerf.render.poses import look_at
from inf_nerf.scene.scene import Scene
from inf_nerf.train.opened import StoredCheckpoint
from inf_nerf.view.followed import FollowedRun
from inf_nerf.view.pictures import Drawn, Look, View, draw
from inf_nerf.view.refinement import Job
from pipelines.viewer.artist import Artist
from pipelines.viewer.visitor import Shown, Visitor

TITLE = "inf-nerf"
DISTANCE = 2.6  # from the middle of the cube to a first view of a scene without points


class Visitors:
    """Everybody who is there; the audience of the artist."""

    def __init__(self, checkpoint: StoredCheckpoint) -> None:
        self.shown = Shown.of(checkpoint)
        self._visitors: dict[Hashable, Visitor] = {}
        self._lock = threading.Lock()

    def add(self, client: Hashable, visitor: Visitor) -> None:
        """Somebody came."""
        with self._lock:
            self._visitors[client] = visitor
        visitor.look()

    def remove(self, client: Hashable) -> None:
        """Somebody left, perhaps before we knew of them."""
        with self._lock:
            visitor = self._visitors.pop(client, None)
        if visitor is not None:
            visitor.close()

    def all(self) -> list[Visitor]:
        """Who is there now."""
        with self._lock:
            return list(self._visitors.values())

    def drawn(self, job: Job[View], picture: Drawn, checkpoint: StoredCheckpoint) -> None:
        """As :class:`Audience` says."""
        if (visitor := self._of(job.client)) is not None:
            visitor.drawn(job, picture, checkpoint)

    def failed(self, client: Hashable, sentence: str) -> None:
        """As :class:`Audience` says."""
        if (visitor := self._of(client)) is not None:
            visitor.failed(sentence)

    def advanced(self, checkpoint: StoredCheckpoint) -> None:
        """As :class:`Audience` says."""
        self.shown = Shown.of(checkpoint)
        for visitor in self.all():
            visitor.advanced(self.shown)

    def _of(self, client: Hashable) -> Visitor | None:
        with self._lock:
            return self._visitors.get(client)


@contextmanager
def viewer(run: FollowedRun, scene: Scene, run_dir: Path | None, host: str, port: int) -> Iterator[Visitors]:
    """A viewer that answers on a free ``port`` within a ``with`` block."""
    first = first_view(scene, run.checkpoint.config.render)
    # what has to be compiled is compiled before anybody comes
    draw(run.checkpoint, View(torch.from_numpy(first).float(), 64, 48, 55.0, Look()), is_wanted=lambda: True)
    visitors = Visitors(run.checkpoint)
    with redirect_stdout(StringIO()):  # viser introduces itself, whatever one asks
        server = viser.ViserServer(host=host, port=port, label=TITLE, verbose=False)
    try:
        with Artist(run, visitors) as artist:
            server.initial_camera.position = first[:, 3]
            server.initial_camera.look_at = first[:, 3] + first[:, 2] * float(np.linalg.norm(first[:, 3]))
            server.initial_camera.fov = math.radians(45.0)

            @server.on_client_connect
            def _(client: viser.ClientHandle) -> None:
                visitors.add(client.client_id, Visitor(client, artist, visitors.shown, scene, run_dir))
                if client.client_id not in server.get_clients():  # it left while its controls were made
                    visitors.remove(client.client_id)

            @server.on_client_disconnect
            def _(client: viser.ClientHandle) -> None:
                visitors.remove(client.client_id)
                artist.leave(client.client_id)

            yield visitors
    finally:
        server.stop()


def first_view(scene: Scene, render: RenderConfig) -> np.ndarray:
    """The pose [3, 4] from which somebody who comes sees the scene."""
    try:
        return orbit(scene, render).cameras.cam_to_world[0].double().numpy()
    except InputError:  # a checkpoint that lies alone knows no points
        return look_at((0.0, -DISTANCE * math.cos(0.7), DISTANCE * math.sin(0.7)), (0.0, 0.0, 0.0))
