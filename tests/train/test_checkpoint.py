"""Checkpoints: a resumed run is the uninterrupted one, on any number of ranks, and damage is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from inf_nerf.errors import InputError
from inf_nerf.octree.topology import key_name
from inf_nerf.scene.cameras import Rays
from inf_nerf.train.checkpoint import restore, save_checkpoint
from inf_nerf.train.loop import Work, train
from inf_nerf.train.manifest import MANIFEST, latest_checkpoint, read_manifest
from inf_nerf.train.opened import load_checkpoint
from tests.train.ranks import run_ranks
from tests.train.tiny import tiny_config, tiny_octree, tiny_scene, tiny_work

HALF, FULL = 6, 12
LEAVES = ("tables", "density_weights", "colour_weights")


def run(work: Work, run_dir: Path, until: int = FULL) -> None:
    """Train to a step, and save there and wherever the settings say."""

    def on_save(val_psnr: float | None) -> None:
        complete = work.progress.share(work.config) >= 1
        save_checkpoint(run_dir, work, tiny_scene(), tiny_octree(), "tiny", val_psnr, complete)

    # asked inside a step, so one before the last
    train(work, lambda row: None, on_save, lambda: work.progress.step >= until - 1)


def folder(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"{step:08d}"


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor in a checkpoint's files."""
    return {
        f"{file.relative_to(checkpoint)}:{name}": tensor
        for file in sorted(checkpoint.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_equal_checkpoints(found: Path, expected: Path) -> None:
    """Bit-equal values, moments, occupancy, generators and reservoirs."""
    one, other = tensors(found), tensors(expected)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    for file in expected.glob("ranks/*.json"):
        assert json.loads((found / "ranks" / file.name).read_text()) == json.loads(file.read_text())


def straight_and_resumed(rank: int, num_ranks: int, where: Path) -> None:
    """Train 12 steps in one go, and 6, a restart from the saved file, and 6 more."""
    run(tiny_work(num_ranks=num_ranks, rank=rank).work, where / "straight")
    run(tiny_work(num_ranks=num_ranks, rank=rank).work, where / "resumed", until=HALF)
    again = tiny_work(num_ranks=num_ranks, rank=rank).work
    restore(again, folder(where / "resumed", HALF))
    run(again, where / "resumed")


def as_two_ranks(rank: int, where: Path) -> None:
    straight_and_resumed(rank, 2, where)


def as_three_ranks(rank: int, path: Path, where: Path) -> dict[str, Any]:
    """Restore in another partition, say what is there, and go on for a while."""
    work = tiny_work(num_ranks=3, rank=rank).work
    restore(work, path)
    model = work.model
    with torch.no_grad():
        rendered = model.render(downward())
    found = {
        "step": work.progress.step,
        "nodes": {
            key: {name: getattr(model.field, name).detach()[node].clone() for name in LEAVES}
            for node, key in enumerate(model.field.keys.tolist())
        },
        "moments": {
            key: {name: value.clone() for name, value in work.optimiser.state_of(node).items()}
            for node, key in enumerate(model.field.keys.tolist())
        },
        "rgb": rendered.rgb,
        "foreign": rendered.foreign,
    }
    run(work, where, until=HALF + 2)
    return found


def downward() -> Rays:
    """Rays straight down over the whole scene."""
    line = torch.linspace(-0.9, 0.9, 12)
    xy = torch.cartesian_prod(line, line)
    origin = torch.cat([xy, torch.full((len(xy), 1), 1.2)], dim=1)
    direction = torch.tensor([0.0, 0.0, -1.0]).expand(len(xy), 3)
    return Rays(origin, direction, torch.full((len(xy),), 0.018), torch.full((len(xy),), -1))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("two_ranks")
    run_ranks(2, as_two_ranks, where)
    return where


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with one checkpoint at step 2; copied by those who damage it."""
    run_dir = tmp_path_factory.mktemp("saved")
    run(tiny_work(tiny_config(train={"steps": 2})).work, run_dir)
    return run_dir


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "run")
    return folder(tmp_path / "run", 2)


def test_one_process_continues_as_if_never_stopped(tmp_path: Path) -> None:
    straight_and_resumed(0, 1, tmp_path)
    assert_equal_checkpoints(folder(tmp_path / "resumed", FULL), folder(tmp_path / "straight", FULL))


def test_two_ranks_continue_as_if_never_stopped(two_ranks: Path) -> None:
    assert len(list(folder(two_ranks / "straight", FULL).glob("ranks/*-of-2.json"))) == 2
    assert_equal_checkpoints(folder(two_ranks / "resumed", FULL), folder(two_ranks / "straight", FULL))


def test_training_changed_what_is_compared(two_ranks: Path) -> None:
    before, after = tensors(folder(two_ranks / "resumed", HALF)), tensors(folder(two_ranks / "resumed", FULL))
    changed = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    for name in ("nodes/bg", "nodes/r1", "optimiser/r1", "nodes/r."):
        assert any(entry.startswith(name) for entry in changed), name
    assert any("occupancy." in entry for entry in changed)


def test_checkpoint_of_two_ranks_is_whole_and_says_how_far_it_is(two_ranks: Path) -> None:
    path = folder(two_ranks / "resumed", HALF)
    names = {key_name(key) for key in tiny_octree().keys.tolist()} | {"bg"}
    assert {file.stem for file in path.glob("nodes/*")} == names
    assert {file.stem for file in path.glob("optimiser/*")} == names | {"appearance"}
    manifest = read_manifest(path)
    assert (manifest["step"], manifest["complete"], manifest["num_workers"]) == (HALF, False, 2)
    assert read_manifest(folder(two_ranks / "resumed", FULL))["complete"] is True
    assert latest_checkpoint(two_ranks / "resumed") == folder(two_ranks / "resumed", FULL)


def test_checkpoint_of_two_ranks_loads_in_one(two_ranks: Path) -> None:
    path = folder(two_ranks / "resumed", HALF)
    checkpoint = load_checkpoint(path)
    field = checkpoint.model.field
    for node, key in enumerate(field.keys.tolist()):
        values = load_file(path / "nodes" / f"{key_name(key)}.safetensors")
        for name, value in field.state_of(node).items():
            assert torch.equal(value, values[name])
        assert checkpoint.node_bytes[node] == (path / "nodes" / f"{key_name(key)}.safetensors").stat().st_size
    assert checkpoint.model.octree.identity == tiny_octree().identity
    assert checkpoint.scene.identity == tiny_scene().identity
    assert checkpoint.step == HALF
    assert checkpoint.config == tiny_config()
    torch.testing.assert_close(checkpoint.mean_colour, torch.tensor([0.5, 0.45, 0.4]))


def test_checkpoint_of_two_ranks_continues_in_three(two_ranks: Path, tmp_path: Path) -> None:
    path = folder(two_ranks / "resumed", HALF)
    checkpoint = load_checkpoint(path)
    ranks = run_ranks(3, as_three_ranks, path, tmp_path)
    field, seen = checkpoint.model.field, set()
    index = {key: node for node, key in enumerate(field.keys.tolist())}
    with torch.no_grad():
        expected = checkpoint.model.render(downward())
    own = torch.zeros(len(expected.rgb), dtype=torch.bool)
    for found in ranks:
        assert found["step"] == HALF
        for key, values in found["nodes"].items():
            assert all(torch.equal(values[name], getattr(field, name)[index[key]]) for name in LEAVES)
            saved = load_file(path / "optimiser" / f"{key_name(key)}.safetensors")
            assert saved.keys() == found["moments"][key].keys()
            assert all(torch.equal(found["moments"][key][name], saved[name]) for name in saved)
        seen |= found["nodes"].keys()
        mine = found["foreign"] == 0
        torch.testing.assert_close(found["rgb"][mine], expected.rgb[mine], rtol=0, atol=1e-6)
        own |= mine
    assert seen == set(index)
    assert own.float().mean() > 0.5
    after = load_checkpoint(folder(tmp_path, HALF + 2))
    assert after.manifest["num_workers"] == 3
    assert not torch.equal(after.model.field.tables, field.tables)


def test_loaded_model_renders_what_the_trained_one_did(tmp_path: Path) -> None:
    work = tiny_work().work
    run(work, tmp_path, until=HALF)
    with torch.no_grad():
        expected = work.model.render(downward())
        found = load_checkpoint(folder(tmp_path, HALF)).model.render(downward())
    assert torch.equal(found.rgb, expected.rgb)
    assert torch.equal(found.depth, expected.depth)
    assert torch.equal(found.share, expected.share)


def test_checkpoint_of_a_gpu_backend_renders_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tiny_work().work
    as_if = work.config.model_copy(update={"field": work.config.field.model_copy(update={"backend": "triton"})})
    monkeypatch.setattr(work, "config", as_if)
    run(work, tmp_path, until=1)

    checkpoint = load_checkpoint(folder(tmp_path, 1))

    assert checkpoint.config.field.backend == "triton"
    assert checkpoint.model.field.encoder.name == "numba"


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(bytes(data))


def version(manifest: Path) -> None:
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 99}))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("nodes/r1.safetensors", lambda file: file.write_bytes(file.read_bytes()[:-5]), "r1.safetensors is damaged"),
        ("nodes/bg.safetensors", flip, "bg.safetensors is damaged"),
        ("nodes/r.safetensors", Path.unlink, "r.safetensors is damaged"),
        ("shared.safetensors", flip, "shared.safetensors is damaged"),
        (MANIFEST, Path.unlink, "is not a complete checkpoint"),
        (MANIFEST, version, "has checkpoint format 99"),
        (MANIFEST, lambda file: file.write_text(file.read_text()[:200]), "manifest.json is damaged"),
        (MANIFEST, lambda file: file.write_text("[1, 2]"), "manifest.json is damaged"),
        (MANIFEST, lambda file: file.write_bytes(b"\xff" + file.read_bytes()), "manifest.json is damaged"),
        (MANIFEST, lambda file: file.write_text(file.read_text().replace("tiny", "tina")), "manifest.json is damaged"),
    ],
)
def test_damage_is_one_sentence_that_names_the_file(
    copied: Path, name: str, damage: Callable[[Path], Any], said: str
) -> None:
    damage(copied / name)
    with pytest.raises(InputError, match=said) as caught:
        load_checkpoint(copied)
    message = str(caught.value)
    assert str(copied) in message
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize("name", ["optimiser/r.safetensors", "nodes/r1.safetensors", "ranks/0-of-1.json"])
def test_training_does_not_continue_from_a_damaged_file(copied: Path, name: str) -> None:
    flip(copied / name)
    with pytest.raises(InputError, match=Path(name).name):
        restore(tiny_work().work, copied)


def test_training_does_not_continue_with_another_occupancy_grid(copied: Path) -> None:
    config = tiny_config(sampler={"occupancy_res": 4})
    with pytest.raises(InputError, match=r"512 cells .* where 64 are expected; .*sampler\.occupancy_res"):
        restore(tiny_work(config).work, copied)


def test_viewer_does_not_need_the_moments(copied: Path) -> None:
    expected = load_checkpoint(copied)
    shutil.rmtree(copied / "optimiser")
    found = load_checkpoint(copied)
    assert torch.equal(found.model.field.tables, expected.model.field.tables)
    assert found.digest == expected.digest


def test_interrupted_save_does_not_count(copied: Path) -> None:
    run_dir = copied.parent.parent
    shutil.copytree(copied, copied.with_name("00000004.partial"))
    shutil.copytree(copied, copied.with_name("00000003"))
    (copied.with_name("00000003") / MANIFEST).unlink()
    assert latest_checkpoint(run_dir) == copied


def test_there_may_be_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None


def test_left_over_of_an_interrupted_save_is_replaced(tmp_path: Path) -> None:
    partial = folder(tmp_path, 1).with_name("00000001.partial")
    partial.mkdir(parents=True)
    (partial / "stale").write_text("cut")
    run(tiny_work(tiny_config(train={"steps": 1})).work, tmp_path)
    assert [path.name for path in partial.parent.iterdir()] == ["00000001"]
    assert not (folder(tmp_path, 1) / "stale").exists()


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    work = tiny_work(tiny_config(train={"keep_checkpoints": 2})).work
    for step, val_psnr in enumerate([10.0, 14.0, 12.0, None, 13.0, 11.0], start=1):
        work.progress.step = step
        save_checkpoint(tmp_path, work, tiny_scene(), tiny_octree(), "tiny", val_psnr, False)
        left = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
        best = 1 if step == 1 else 2
        assert left == sorted({best, step, max(1, step - 1)})


def test_without_val_photos_the_newest_are_kept(tmp_path: Path) -> None:
    work = tiny_work(tiny_config(train={"keep_checkpoints": 1})).work
    for step in (1, 2, 3):
        work.progress.step = step
        save_checkpoint(tmp_path, work, tiny_scene(), tiny_octree(), "tiny", None, False)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000003"]


def test_digest_tells_checkpoints_apart(copied: Path, tmp_path: Path) -> None:
    run(tiny_work(tiny_config(train={"steps": 2, "lr_init": 0.02})).work, tmp_path / "other")
    run(tiny_work(tiny_config(train={"steps": 2})).work, tmp_path / "same")
    digest = read_manifest(copied)["digest"]
    assert read_manifest(folder(tmp_path / "same", 2))["digest"] == digest
    assert read_manifest(folder(tmp_path / "other", 2))["digest"] != digest
