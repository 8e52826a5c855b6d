"""An opened checkpoint has read no node, wherever it lies; what it then answers is what the loaded one answers."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from inf_nerf.errors import InputError
from inf_nerf.octree.topology import BACKGROUND_KEY
from inf_nerf.places import Place, RemotePath, place
from inf_nerf.render.images import RenderedImage, render_image
from inf_nerf.scene.scene import Scene
from inf_nerf.train.checkpoint import save_checkpoint
from inf_nerf.train.loop import train
from inf_nerf.train.manifest import latest_checkpoint
from inf_nerf.train.opened import (
    Checkpoint,
    CheckpointNodes,
    StoredCheckpoint,
    load_checkpoint,
    node_file,
    open_checkpoint,
)
from tests.train.tiny import tiny_config, tiny_octree, tiny_scene, tiny_work

STEP = 10


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one checkpoint; its occupancy is in use."""
    run_dir = tmp_path_factory.mktemp("trained")
    work = tiny_work(tiny_config(train={"steps": STEP})).work

    def on_save(val_psnr: float | None) -> None:
        save_checkpoint(run_dir, work, tiny_scene(), tiny_octree(), "tiny", val_psnr, True)

    train(work, lambda row: None, on_save, lambda: False)
    assert work.model.occupancy.enabled
    tiny_scene().save(run_dir)
    return run_dir


@pytest.fixture(params=["path", "file", "memory"])
def run(request: pytest.FixtureRequest, trained: Path, tmp_path: Path) -> Iterator[Place]:
    """The run as a folder, by a local URI, and in memory."""
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    if request.param != "memory":
        yield place(f"file://{copy}" if request.param == "file" else copy)
        return
    system = fsspec.filesystem("memory")
    for file in copy.rglob("*"):
        if file.is_file():
            system.pipe_file(f"/bucket/run/{file.relative_to(copy)}", file.read_bytes())
    yield place("memory://bucket/run")
    system.rm("/bucket", recursive=True)


def picture(checkpoint: Checkpoint | StoredCheckpoint, photo: int = 1) -> RenderedImage:
    return render_image(checkpoint.model, checkpoint.scene.cameras, photo, 0, rays_per_chunk=700, lod_blend=0.5)


def test_the_newest_checkpoint_is_found_and_answers_like_the_loaded_one(run: Place) -> None:
    path = latest_checkpoint(run)
    assert path is not None
    assert path.name == f"{STEP:08d}"
    opened = open_checkpoint(path)
    loaded, stored = load_checkpoint(path), opened.within(10**9)
    expected, found = picture(loaded), picture(stored)
    for name in ("rgb", "depth", "opacity", "level", "touched"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    stored.model.cache.close()
    assert stored.digest == loaded.digest
    assert stored.model_bytes == int(loaded.node_bytes.sum())
    assert 0 < stored.model.cache.bytes_read <= stored.model_bytes
    assert Scene.load(run).identity == tiny_scene().identity


def test_other_directories_do_not_count(run: Place) -> None:
    path = latest_checkpoint(run)
    assert path is not None
    for name in ("00000099", "00000012.partial", "00000011.superseded-1"):
        other = path.parent / name
        if isinstance(other, RemotePath):
            other.system.pipe_file((other / ("x" if name == "00000099" else "manifest.json")).path, b"{}")
        else:
            other.mkdir()
            (other / ("x" if name == "00000099" else "manifest.json")).write_bytes(b"{}")
    assert latest_checkpoint(run) == path


class Counting(MemoryFileSystem):
    """Says which files were read."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: object) -> bytes:
        self.read.append(path.rpartition("/")[2])
        return super().cat_file(path, start, end, **options)


@pytest.fixture
def counted(trained: Path) -> Iterator[RemotePath]:
    """The checkpoint on a filesystem that counts."""
    system, path = Counting(), latest_checkpoint(trained)
    assert path is not None
    for file in path.rglob("*"):
        if file.is_file():
            system.pipe_file(f"/counted/{file.relative_to(path)}", file.read_bytes())
    yield RemotePath(system, "/counted")
    system.rm("/counted", recursive=True)


def test_opening_reads_the_manifest_and_what_nodes_share(counted: RemotePath) -> None:
    opened = open_checkpoint(counted)
    assert counted.system.read == ["manifest.json", "shared.safetensors"]
    stored = opened.within(opened.model_bytes)
    assert len(counted.system.read) == 2
    touched = picture(stored).touched
    read = counted.system.read[2:]
    assert len(read) == len(set(read)) >= int(touched.sum())
    nodes = [node_file(key).rpartition("/")[2] for key in [*opened.octree.keys.tolist(), BACKGROUND_KEY]]
    assert set(read) <= set(nodes)
    picture(stored)
    assert counted.system.read[2:] == read
    stored.model.cache.close()


def test_damage_is_named_when_the_node_is_needed(counted: RemotePath) -> None:
    file = counted / "nodes" / "r.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    counted.system.pipe_file(file.path, bytes(data))
    stored = open_checkpoint(counted).within(10**9)
    with pytest.raises(InputError, match=r"nodes/r\.safetensors is damaged"):
        picture(stored)
    stored.model.cache.close()
    counted.system.rm(file.path)
    with pytest.raises(InputError, match=r"nodes/r\.safetensors is damaged \(0 bytes"):
        picture(open_checkpoint(counted).within(10**9))


def test_a_node_is_read_as_the_loaded_model_has_it(counted: RemotePath) -> None:
    model, source = load_checkpoint(counted).model, CheckpointNodes(open_checkpoint(counted))
    for node, key in enumerate(model.field.keys.tolist()):
        values = source.read(key)
        for name, expected in model.field.state_of(node).items():
            assert torch.equal(values[name], expected)
        if key == BACKGROUND_KEY:
            assert "occupied" not in values
        else:
            assert torch.equal(values["occupied"], model.occupancy.occupied[node])
    assert not bool(model.occupancy.occupied.all())


def test_a_small_budget_still_gives_a_picture_and_the_least_is_named(counted: RemotePath) -> None:
    opened = open_checkpoint(counted)
    row = opened.within(10**9).model.cache.row_bytes
    for rows in (1, 2, 4):
        stored = opened.within(rows * row)
        found = picture(stored)
        assert bool(found.rgb.isfinite().all())
        assert stored.model.cache.figures.peak_bytes <= rows * row
    with pytest.raises(InputError, match=f"takes {row:,}"):
        opened.within(row - 1)


def test_a_node_that_was_not_saved_is_answered_by_its_parent(
    counted: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inf_nerf.train import opened

    manifest = opened.read_manifest(counted)
    gone = int(tiny_octree().keys[-1])
    del manifest["files"][node_file(gone)]
    monkeypatch.setattr(opened, "read_manifest", lambda path: manifest)
    stored = open_checkpoint(counted).within(10**9)
    assert gone not in stored.octree.keys.tolist()
    assert torch.equal(picture(stored).rgb, picture(load_checkpoint(counted)).rgb)
    stored.model.cache.close()
