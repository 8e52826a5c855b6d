"""What is drawn into the pictures of one visitor: the octree's cubes, one chosen node, cameras with their photos,
sparse points, the crop box, a camera path.

Nothing is sent before it is switched on, and no more of it than a browser draws with ease.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import viser
import viser.transforms
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from inf_nerf.octree.topology import Octree
from inf_nerf.render.colourmap import level_colour
from inf_nerf.scene.scene import Scene

MOST_CUBES = 4000
MOST_CAMERAS = 400
MOST_POINTS = 100_000
THUMBNAIL = 160  # px
CHOSEN = (255, 255, 255)
SPLIT_COLOURS = {"train": (70, 130, 200), "val": (230, 160, 40), "test": (220, 70, 70)}
# corners of a cube by the bits of their number; an edge joins two that differ in one of them
CORNERS = np.array([[number >> 2 & 1, number >> 1 & 1, number & 1] for number in range(8)]) * 2.0 - 1
EDGES = np.array([(a, a | 1 << bit) for a in range(8) for bit in range(3) if not a >> bit & 1])

Array = NDArray[np.float64]


def cube_edges(centre: Array, half: Array) -> Array:
    """The twelve edges of each of N cubes, or boxes, with ``centre`` [N, 3] and ``half`` [N, 1] or [N, 3], as
    [12 N, 2, 3]."""
    corners = centre[:, None] + half[:, None] * CORNERS  # [N, 8, 3]
    return corners[:, EDGES].reshape(-1, 2, 3)


def nearest_nodes(octree: Octree, level: int | None, eye: Array, most: int) -> Tensor:
    """Nodes [n] of a level, or of all; if there are more than ``most``, those whose cubes look largest from ``eye``."""
    nodes = torch.arange(octree.num_nodes) if level is None else torch.nonzero(octree.level == level).squeeze(1)
    if len(nodes) <= most:
        return nodes
    away = (octree.centre[nodes].double() - torch.from_numpy(eye)).norm(dim=1)
    return torch.sort(nodes[torch.topk(octree.half[nodes].double() / away, most).indices]).values


class Overlays:
    """The scene nodes of one visitor; :attr:`in_use` says whether something is on that the picture may hide."""

    def __init__(self, client: viser.ClientHandle, scene: Scene, go_to: Callable[[Tensor, str], None]) -> None:
        """``go_to`` hears the pose [3, 4] and the name of a photo whose camera was clicked."""
        self._client = client
        self._scene = scene
        self._go_to = go_to
        self._drawn: dict[str, list[viser.SceneNodeHandle]] = {}

    @property
    def in_use(self) -> bool:
        """Whether anything is drawn."""
        return bool(self._drawn)

    def has(self, what: str) -> bool:
        """Whether something is drawn under a name."""
        return what in self._drawn

    def clear(self, what: str) -> None:
        """Take away what was drawn under a name."""
        for handle in self._drawn.pop(what, []):
            handle.remove()

    def octree(self, octree: Octree, level: int | None) -> None:
        """The cubes of a level, or of all, in the colours of their levels."""
        self.clear("octree")
        nodes = nearest_nodes(octree, level, np.asarray(self._client.camera.position), MOST_CUBES)
        if len(nodes) == 0:
            return
        edges = cube_edges(octree.centre[nodes].double().numpy(), octree.half[nodes, None].double().numpy())
        colours = np.array([level_colour(int(index)) for index in octree.level[nodes]]) * 255
        colours = np.repeat(colours, len(EDGES), axis=0)[:, None].repeat(2, axis=1).astype(np.uint8)
        self._keep("octree", self._lines("/octree", edges, colours, 1.5))

    def node(self, octree: Octree, node: int) -> None:
        """One node's cube, in strong lines."""
        self.clear("node")
        centre, half = octree.centre[node, None].double().numpy(), octree.half[node, None, None].double().numpy()
        self._keep("node", self._lines("/node", cube_edges(centre, half), np.array(CHOSEN, np.uint8), 4.0))

    def box(self, low: Array, high: Array) -> None:
        """The crop box."""
        self.clear("box")
        edges = cube_edges((low + high)[None] / 2, (high - low)[None] / 2)
        self._keep("box", self._lines("/box", edges, np.array((255, 190, 60), np.uint8), 1.5))

    def path(self, eyes: Array, keys: Array) -> None:
        """A camera path through ``eyes`` [F, 3], with marks at its keys [K, 3]."""
        self.clear("path")
        if len(eyes) > 1:
            line = np.stack([eyes[:-1], eyes[1:]], axis=1)
            self._keep("path", self._lines("/path/line", line, np.array((255, 80, 160), np.uint8), 3.0))
        if len(keys):
            marks = np.asarray(keys, np.float32)
            point = {"point_size": 0.02, "point_shape": "circle", "precision": "float32"}
            self._keep("path", self._client.scene.add_point_cloud("/path/keys", marks, (255, 80, 160), **point))

    def points(self) -> None:
        """The sparse points within the cube, evenly thinned."""
        self.clear("points")
        points = self._scene.points
        inside = torch.nonzero((points.xyz.abs() <= 1).all(dim=1)).squeeze(1)
        chosen = inside[:: max(1, math.ceil(len(inside) / MOST_POINTS))]
        if len(chosen):
            xyz, rgb = points.xyz[chosen].numpy().astype(np.float32), points.rgb[chosen].numpy()
            point = {"point_size": 0.004, "point_shape": "circle", "precision": "float32"}
            self._keep("points", self._client.scene.add_point_cloud("/points", xyz, rgb, **point))

    def cameras(self) -> None:
        """Frustums of the photos' cameras with the photos in them, evenly thinned; a click goes there."""
        self.clear("cameras")
        cameras = self._scene.cameras
        count = len(self._scene.photos)
        shown = sorted({round(place) for place in np.linspace(0, count - 1, min(count, MOST_CAMERAS))})
        size = frustum_size(cameras.centre[shown])
        for index in shown:
            photo = self._scene.photos[index]
            width, height = cameras.level_size(index, 0)
            focal = float(cameras.intrinsics[cameras.camera_id[index], 1])
            pose = cameras.cam_to_world[index].double().numpy()
            handle = self._client.scene.add_camera_frustum(
                f"/cameras/{index}",
                fov=2 * math.atan(height / 2 / focal),
                aspect=width / height,
                scale=size,
                thickness=1.5,
                thickness_units="screen",
                color=SPLIT_COLOURS[photo.split],
                image=thumbnail(Path(self._scene.root) / photo.file),
                wxyz=viser.transforms.SO3.from_matrix(pose[:, :3]).wxyz,
                position=pose[:, 3],
                cast_shadow=False,
                receive_shadow=False,
            )
            go_there = self._arrival(index)
            handle.on_click(lambda _, go_there=go_there: go_there())
            self._keep("cameras", handle)

    def _arrival(self, index: int) -> Callable[[], None]:
        return lambda: self._go_to(self._scene.cameras.cam_to_world[index], self._scene.photos[index].name)

    def _lines(self, name: str, edges: Array, colours: NDArray[np.uint8], px: float) -> viser.SceneNodeHandle:
        style = {"thickness": px, "thickness_units": "screen"}
        return self._client.scene.add_line_segments(name, edges.astype(np.float32), colours, **style)

    def _keep(self, what: str, handle: viser.SceneNodeHandle) -> None:
        self._drawn.setdefault(what, []).append(handle)


def frustum_size(centres: Tensor) -> float:
    """Depth of frustums, in scene units, at which those of neighbouring cameras [V, 3] hardly overlap."""
    if len(centres) < 2:
        return 0.1
    apart = torch.cdist(centres.double(), centres.double()).fill_diagonal_(math.inf).amin(dim=1)
    return float(apart.median().clamp(0.02, 0.15)) / 2


def thumbnail(file: Path) -> NDArray[np.uint8] | None:
    """A small version of a photo; None where it is not here or cannot be read."""
    try:
        with Image.open(file) as image:
            image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))  # a JPEG decodes to little more than is asked
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            return np.asarray(image.convert("RGB"))
    except OSError:
        return None
