"""Opening checkpoints, here or behind a URI: the manifest and what all nodes share at once, nodes when they are asked.

A checkpoint can be loaded as a whole (:func:`load_checkpoint`) or answer within a budget of bytes
(:meth:`OpenCheckpoint.within`); either way each file is verified against the manifest when it is read.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.field.backends import portable_backend
from inf_nerf.field.field import Field
from inf_nerf.field.occupancy import Cells, occupied_cells
from inf_nerf.octree.partition import make_partition
from inf_nerf.octree.topology import BACKGROUND_KEY, ROOT_KEY, Octree, key_level, key_name, key_of
from inf_nerf.places import Place
from inf_nerf.render.model import Model, empty_density, field_keys
from inf_nerf.render.node_cache import NodeCache
from inf_nerf.render.stored_model import StoredModel
from inf_nerf.scene.cameras import Cameras
from inf_nerf.scene.frame import WorldFrame
from inf_nerf.scene.scene import Photo, Scene, SparsePoints
from inf_nerf.train.manifest import DamagedError, config_of, read_manifest, read_verified

OCCUPANCY = "occupancy."  # what the names of a node's grid begin with


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint of which no node was read yet."""

    path: Place
    config: Config
    scene: Scene  # without sparse points: photos, cameras and frame
    octree: Octree
    step: int
    manifest: dict[str, Any] = field(repr=False)
    mean_colour: Tensor  # [3] of the training photos
    appearance: Tensor  # [V, A]
    node_bytes: Tensor  # [M] bytes of each node's file
    subtrees: dict[int, int]  # part that trained each subtree below the shared nodes, by the key of its root

    @property
    def digest(self) -> str:
        """Hash that changes with any content of the checkpoint."""
        return self.manifest["digest"]

    @property
    def model_bytes(self) -> int:
        """Bytes of all nodes' files."""
        return int(self.node_bytes.sum())

    def within(self, budget: int, device: torch.device | str = "cpu") -> "StoredCheckpoint":
        """The checkpoint with a model that holds no more than ``budget`` bytes of nodes and reads them when asked.

        Raises :class:`InputError` for a budget that does not hold the root.
        """
        root = self.octree.restrict([ROOT_KEY])
        config = _for_device(self.config, device)
        res = config.sampler.occupancy_res
        cells = Cells(torch.ones(1, res**3, dtype=torch.bool, device=device), res)
        scenery = self._model(config, root, Field(config.field, field_keys(root), None, device), cells, device)
        cache = NodeCache(config, CheckpointNodes(self), budget, len(self.node_bytes), device)
        return StoredCheckpoint(**vars(self), model=StoredModel(scenery, self.octree, cache))

    def load(self, device: torch.device | str = "cpu") -> "Checkpoint":
        """The checkpoint with all of its nodes."""
        config = _for_device(self.config, device)
        model = self._model(
            config, self.octree, Field(config.field, field_keys(self.octree), None, device), None, device
        )
        load_nodes(model, self.path, self.manifest)
        return Checkpoint(**vars(self), model=model)

    def _model(
        self, config: Config, octree: Octree, values: Field, cells: Cells | None, device: torch.device | str
    ) -> Model:
        photos, train = len(self.scene.photos), self.scene.train
        solid_ground = self.manifest["solid_ground"]
        model = Model(config, octree, photos, train, self.mean_colour, solid_ground, device, values, cells)
        model.steps_across = self.manifest["steps_across"]
        with torch.no_grad():
            model.appearance.copy_(self.appearance)
        return model


@dataclass(frozen=True)
class Checkpoint(OpenCheckpoint):
    """An opened checkpoint with the model that it holds, ready to render."""

    model: Model


@dataclass(frozen=True)
class StoredCheckpoint(OpenCheckpoint):
    """An opened checkpoint with a model that reads nodes when a view needs them, ready to render."""

    model: StoredModel


class CheckpointNodes:
    """The nodes of a checkpoint for a :class:`NodeCache`."""

    def __init__(self, checkpoint: OpenCheckpoint) -> None:
        self._checkpoint = checkpoint

    def read(self, key: int) -> dict[str, Tensor]:
        """Verified values of a node, and which of its cells are occupied."""
        path, manifest, config = self._checkpoint.path, self._checkpoint.manifest, self._checkpoint.config
        values = read_tensors(path, node_file(key), manifest)
        if key == BACKGROUND_KEY:
            return values
        threshold = empty_density(config, torch.tensor(2.0 ** -key_level(key)))
        density, protected, free = (values.pop(OCCUPANCY + name) for name in ("density", "protected", "free"))
        occupied = occupied_cells(density, protected, free, threshold if manifest["occupancy_enabled"] else None)
        return values | {"occupied": occupied}

    def nbytes(self, key: int) -> int:
        """Size of a node's file."""
        return self._checkpoint.manifest["files"][node_file(key)]["bytes"]


def open_checkpoint(path: Place) -> OpenCheckpoint:
    """Read the manifest of a checkpoint and what its nodes share; :class:`InputError` names a damaged file.

    Where a training in turns was saved before all nodes had one, parents answer for the others.
    """
    manifest = read_manifest(path)
    shared = read_tensors(path, "shared.safetensors", manifest)
    full = Octree.from_state(without_prefix(shared, "octree."))
    octree = full.restrict(key for key in full.keys.tolist() if node_file(key) in manifest["files"])
    names = [node_file(key) for key in field_keys(octree).tolist()]
    config = config_of(path, manifest)
    return OpenCheckpoint(
        path=path,
        config=config,
        scene=_scene(shared, manifest),
        octree=octree,
        step=manifest["step"],
        manifest=manifest,
        mean_colour=shared["backdrop"],
        appearance=shared["appearance"],
        node_bytes=torch.tensor([manifest["files"][name]["bytes"] for name in names]),
        subtrees=_subtrees(manifest, config, octree),
    )


def _subtrees(manifest: dict[str, Any], config: Config, octree: Octree) -> dict[int, int]:
    """As saved; of a checkpoint that does not say, those below the shared levels, as one worker trains them."""
    saved = manifest.get("subtrees")
    if saved is None:
        return make_partition(octree, 1, config.train.shared_upper_levels).subtrees
    return {key_of(name): part for name, part in saved.items()}


def load_checkpoint(path: Place, device: torch.device | str = "cpu") -> Checkpoint:
    """Rebuild the whole model from a checkpoint; raises :class:`InputError` naming a damaged file.

    A field that was trained by a backend for another kind of device is evaluated by the best one of this device.
    """
    return open_checkpoint(path).load(device)


def load_nodes(model: Model, path: Place, manifest: dict[str, Any], nodes: Iterable[int] | None = None) -> None:
    """Read values and occupancy of ``nodes``, or all nodes, of a model."""
    for node in range(model.field.num_nodes) if nodes is None else nodes:
        values = read_tensors(path, node_file(int(model.field.keys[node])), manifest)
        model.field.load_state(node, values)
        if node < model.octree.num_nodes:
            model.occupancy.load_state(node, without_prefix(values, OCCUPANCY))
    model.occupancy.enabled = manifest["occupancy_enabled"]
    model.steps_across = manifest["steps_across"]
    model.occupancy.refresh()
    model.occupancy_changed()


def node_file(key: int) -> str:
    """Name of the file with a node's values and occupancy."""
    return f"nodes/{key_name(key)}.safetensors"


def read_tensors(path: Place, name: str, manifest: dict[str, Any]) -> dict[str, Tensor]:
    """A verified file of tensors."""
    data = read_verified(path, name, manifest)
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise DamagedError(
            f"{path / name} cannot be read ({error}); delete {path} to use the checkpoint before it."
        ) from error


def without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those tensors whose names begin with the prefix, named without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _for_device(config: Config, device: torch.device | str) -> Config:
    backend = portable_backend(config.field.backend, device)
    return config.model_copy(update={"field": config.field.model_copy(update={"backend": backend})})


def _scene(shared: dict[str, Tensor], manifest: dict[str, Any]) -> Scene:
    return Scene(
        photos=tuple(Photo(**photo) for photo in manifest["photos"]),
        cameras=Cameras.from_state(without_prefix(shared, "cameras.")),
        points=_no_points(),
        frame=WorldFrame(np.array(manifest["frame"], dtype=np.float64)),
        root=manifest["root"],
        report={},
        source_size=shared["source_size"],
    )


def _no_points() -> SparsePoints:
    none = torch.zeros(0)
    return SparsePoints(
        xyz=none.view(0, 3),
        footprint=none,
        rgb=none.view(0, 3).byte(),
        error=none,
        track_start=torch.zeros(1, dtype=torch.int64),
        track_photo=none.long(),
        track_xy=none.view(0, 2),
    )
