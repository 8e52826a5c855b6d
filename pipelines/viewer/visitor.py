"""One person at the viewer: a browser's camera and controls become a view, and pictures of it the background."""

import math
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import viser
import viser.transforms
from torch import Tensor

from inf_nerf.config import RenderConfig
from inf_nerf.octree.topology import Octree
from inf_nerf.scene.cameras import Rays
from inf_nerf.scene.scene import Scene
from inf_nerf.train.opened import StoredCheckpoint
from inf_nerf.view.followed import FollowedRun
from inf_nerf.view.pictures import Answered, Drawn, View, answer
from inf_nerf.view.refinement import Job
from pipelines.viewer.artist import Artist
from pipelines.viewer.overlays import Overlays
from pipelines.viewer.panel import OFF, Figures, Panel
from pipelines.viewer.path_editor import PathEditor

RECENT_SECONDS = 3.0  # over which pictures per second are counted
DEPTH_SIDE = 320  # px; what hides overlays need not be sharp, and its file is large
COARSE_QUALITY, FINE_QUALITY = 60, 88  # of JPEG


@dataclass(frozen=True)
class Shown:
    """What of the open checkpoint somebody who comes has to know."""

    octree: Octree
    budget: int  # bytes of nodes
    render: RenderConfig

    @staticmethod
    def of(checkpoint: StoredCheckpoint) -> "Shown":
        """Without the checkpoint itself, which nobody may keep."""
        return Shown(checkpoint.octree, checkpoint.model.cache.budget, checkpoint.config.render)


class Visitor:
    """What belongs to one browser; made in a thread of viser's when it connects."""

    def __init__(
        self,
        client: viser.ClientHandle,
        artist: Artist,
        shown: Shown,
        scene: Scene,
        run_dir: Path | None,
    ) -> None:
        self._client = client
        self._artist = artist
        self._octree = shown.octree
        self._recent: deque[float] = deque()
        self._last: Drawn | None = None
        self._said = ""
        self.panel = Panel(
            client,
            shown.octree.num_levels,
            shown.budget,
            [photo.name for photo in scene.photos],
            on_look=self.look,
            on_overlays=self._overlay,
            on_budget=lambda budget: artist.set_budget(budget, client.client_id),
        )
        self.overlays = Overlays(client, scene, self._visit)
        self.editor = PathEditor(
            client,
            scene,
            run_dir,
            shown.render,
            current=self._current,
            show=self._show_path,
            go_to=self._go_to,
        )
        client.camera.on_update(lambda _: self.look())
        client.scene.on_click()(lambda event: self._clicked(event.ray_origin, event.ray_direction))

    def look(self) -> None:
        """Something about the view changed."""
        self._artist.look(self._client.client_id, self._view())

    def drawn(self, job: Job[View], picture: Drawn, checkpoint: StoredCheckpoint) -> None:
        """Show a picture; called by the artist, who does not wait until it has arrived."""
        height, width = picture.depth.shape
        hidden = self.overlays.in_use and self.panel.hides.value
        step = -(-max(width, height) // DEPTH_SIDE)
        self._client.scene.set_background_image(
            picture.picture,
            format="jpeg",
            jpeg_quality=FINE_QUALITY if job.divisor == 1 else COARSE_QUALITY,
            depth=picture.depth[step // 2 :: step, step // 2 :: step] if hidden else None,
        )
        now = time.monotonic()
        self._recent.append(now)
        while self._recent[0] < now - RECENT_SECONDS:
            self._recent.popleft()
        self._last = picture
        rate = len(self._recent) / RECENT_SECONDS
        figures = Figures(width, height, picture.seconds, rate, int(picture.touched.sum()))
        self.panel.show_figures(figures, checkpoint)

    def advanced(self, shown: Shown) -> None:
        """Another checkpoint is shown from now on; its tree may have other nodes."""
        before, self._octree, self._last = self._octree, shown.octree, None
        self.panel.show_budget(shown.budget)
        if before.identity != shown.octree.identity:
            self.overlays.clear("node")
            self._overlay()

    def failed(self, sentence: str) -> None:
        """Say why nothing new is seen, once."""
        if sentence != self._said:
            self._client.add_notification("Not shown", sentence, color="red")
        self._said = sentence

    def close(self) -> None:
        """The browser is gone."""
        self._artist.leave(self._client.client_id)
        self.editor.close()

    def _view(self) -> View:
        camera = self._client.camera
        wide, high = max(1, camera.image_width), max(1, camera.image_height)
        scale = int(self.panel.side.value) / max(wide, high)
        width, height = max(1, round(wide * scale)), max(1, round(high * scale))
        fov = 2 * math.degrees(math.atan(math.tan(camera.fov / 2) * wide / high))
        return View(self._pose(), width, height, min(fov, 174.0), self.panel.look)

    def _pose(self) -> Tensor:
        camera = self._client.camera
        rotation = viser.transforms.SO3(camera.wxyz).as_matrix()
        return torch.from_numpy(np.concatenate([rotation, camera.position[:, None]], axis=1)).float()

    def _current(self) -> tuple[Tensor, int | None, float]:
        view = self._view()
        return view.pose, view.look.photo, view.fov_degrees

    def _go_to(self, pose: Tensor) -> None:
        matrix = pose.double().numpy()
        with self._client.atomic():
            self._client.camera.position = matrix[:, 3]
            self._client.camera.wxyz = viser.transforms.SO3.from_matrix(matrix[:, :3]).wxyz

    def _visit(self, pose: Tensor, name: str) -> None:
        self.panel.choose_photo(name)
        self._go_to(pose)

    def _show_path(self, eyes: np.ndarray, keys: np.ndarray) -> None:
        self.overlays.path(eyes, keys)
        self.look()

    def _overlay(self) -> None:
        panel, overlays = self.panel, self.overlays
        if panel.wireframe.value == OFF:
            overlays.clear("octree")
        else:
            overlays.octree(self._octree, panel.wireframe_level)
        if (box := panel.box) is None:
            overlays.clear("box")
        else:
            overlays.box(*(np.array(corner) for corner in box))
        for name, control, draw in (
            ("cameras", panel.cameras, overlays.cameras),
            ("points", panel.points, overlays.points),
        ):
            if not control.value:
                overlays.clear(name)
            elif not overlays.has(name):
                draw()
        self.look()  # whether depths are sent depends on what is drawn

    def _clicked(self, origin: tuple[float, ...], direction: tuple[float, ...]) -> None:
        view = self._view()
        pixel = 2 * math.tan(math.radians(view.fov_degrees) / 2) / view.width  # footprint per unit distance
        rays = Rays(
            torch.tensor([origin], dtype=torch.float32),
            torch.nn.functional.normalize(torch.tensor([direction], dtype=torch.float32)),
            torch.tensor([pixel]),
            torch.tensor([-1]),
        )

        def errand(run: FollowedRun) -> None:
            found = run.ask(lambda checkpoint: answer(checkpoint, rays, view.look))
            self._show_node(found, run.checkpoint)

        self._artist.errand(errand)

    def _show_node(self, found: Answered | None, checkpoint: StoredCheckpoint) -> None:
        share = 0.0
        if found is None:
            self.overlays.clear("node")
        else:
            self.overlays.node(checkpoint.octree, found.node)
            if self._last is not None:
                share = float(self._last.share[found.node])
        self.panel.show_node(found, checkpoint, share)
