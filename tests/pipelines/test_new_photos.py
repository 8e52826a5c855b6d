"""New photos of a block: a run is prepared like another one, and goes on from its model with the block alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from inf_nerf.errors import InputError
from inf_nerf.octree.tiles import tile_file
from inf_nerf.octree.topology import key_name
from inf_nerf.train.manifest import latest_checkpoint, read_manifest
from inf_nerf.train.opened import read_tensors
from pipelines import cli, evaluate, prepare, synth, train
from tests.pipelines.small_city import cut_here
from tests.pipelines.test_train import CONFIG, changed, fit_here

NEW = ("mid_001.jpg", "near_002.jpg", "near_003.jpg")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, in ``after``, and those that were there at first, in ``before``."""
    folder = tmp_path_factory.mktemp("data")
    synth.run(folder / "after", blocks=1, photos=12, size=48, seed=0)
    shutil.copytree(folder / "after", folder / "before")
    for name in NEW:
        (folder / "before/images" / name).unlink()
    return folder


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluated(run_dir: Path, config: Any, checkpoint: Path | None = None) -> dict[str, Any]:
        return {"psnr": 20.0}

    monkeypatch.setattr(prepare, "_cut_by_ray", cut_here)
    monkeypatch.setattr(train, "start_ray", lambda cpus: None)
    monkeypatch.setattr(train, "fit", fit_here)
    monkeypatch.setattr(evaluate, "run", evaluated)


@pytest.fixture
def first(photos: Path, tmp_path: Path) -> Path:
    """A run that was trained before there were new photos."""
    assert train.run(CONFIG, tmp_path / "first", data_root=photos / "before") == 0
    return tmp_path / "first"


def newest(run_dir: Path) -> Path:
    found = latest_checkpoint(run_dir)
    assert found is not None
    return found


def appearance(checkpoint: Path) -> dict[str, torch.Tensor]:
    manifest = read_manifest(checkpoint)
    rows = read_tensors(checkpoint, "shared.safetensors", manifest)["appearance"]
    return {photo["name"]: row for photo, row in zip(manifest["photos"], rows, strict=True)}


def test_a_run_is_prepared_like_another_on_more_photos(photos: Path, tmp_path: Path, capsys: Any) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    prepare.run(CONFIG, photos / "before", first)
    prepare.run(CONFIG, photos / "after", second, first)
    assert "3 photos are new to the 9 of" in capsys.readouterr().err
    known, more = prepare.read_prepared(first), prepare.read_prepared(second)
    assert more.octree.identity == known.octree.identity and more.identity != known.identity
    assert more.ancestors == (known.identity,)
    split = {photo.name: photo.split for photo in known.scene.photos} | dict.fromkeys(NEW, "train")
    assert {photo.name: photo.split for photo in more.scene.photos} == split
    with_tiles = [tile_file(second, photo) for photo in more.scene.train + more.scene.val]
    assert all(file.is_file() for file in with_tiles)
    prepare.run(CONFIG, photos / "after", second)  # it remembers
    assert "already prepared" in capsys.readouterr().err
    third = tmp_path / "third"
    prepare.run(CONFIG, photos / "after", third, second)
    assert prepare.read_prepared(third).ancestors == (more.identity, known.identity)
    assert prepare.read_prepared(third).identity == more.identity


def test_an_interrupted_preparation_goes_on_like_it_began(photos: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    prepare.run(CONFIG, photos / "before", first)
    prepare.run(CONFIG, photos / "after", second, first)
    identity = prepare.read_prepared(second).identity
    (second / "tiles/summary.json").unlink()
    prepare.run(CONFIG, photos / "after", second)
    assert prepare.read_prepared(second).identity == identity
    (second / "tiles/summary.json").unlink()
    shutil.rmtree(first)
    with pytest.raises(InputError, match=r"first holds no run\.json"):
        prepare.run(CONFIG, photos / "after", second)


def test_what_does_not_fit_the_other_run_is_one_sentence(photos: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(InputError, match=r"first holds no run\.json"):
        prepare.run(CONFIG, photos / "after", second, first)
    prepare.run(CONFIG, photos / "before", first)
    with pytest.raises(InputError, match=r"scene\.val_every=5, not 4; leave --config and --set out"):
        prepare.run(changed("scene.val_every=4"), photos / "after", second, first)
    with pytest.raises(InputError, match="is the run to be prepared itself"):
        prepare.run(CONFIG, photos / "after", first, first)
    with pytest.raises(InputError, match=r"first was prepared by itself, not like .*third; choose another"):
        prepare.run(CONFIG, photos / "before", first, tmp_path / "third")
    assert not second.exists()
    prepare.run(CONFIG, photos / "after", second, first)
    with pytest.raises(InputError, match=r"second was prepared like .*first, not like .*third; choose another"):
        prepare.run(CONFIG, photos / "after", second, tmp_path / "third")


def test_the_command_takes_the_settings_of_the_other_run(photos: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    prepare.run(CONFIG, photos / "before", first)
    given = ["--data-root", photos / "after", "--output-dir", second, "--like", first]
    assert cli.main(["prepare", *map(str, given)]) == 0
    assert prepare.read_prepared(second).config == CONFIG


def test_a_block_is_trained_again_with_its_new_photos_and_the_rest_is_the_same_to_the_byte(
    first: Path, photos: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    prepare.run(CONFIG, photos / "after", second, first)
    block = key_name(int(prepare.read_prepared(second).octree.keys[1]))
    config = changed(f"train.subtree={block}", "train.steps=3")
    with pytest.raises(InputError, match="holds none; name a checkpoint"):
        train.run(config, second)
    assert train.run(config, second, resume=str(first)) == 0
    before, after = newest(first), newest(second)
    assert (read_manifest(before)["step"], read_manifest(after)["step"]) == (4, 7)
    old, new = (read_manifest(path)["files"] for path in (before, after))
    nodes = {name for name in old if name.startswith(("nodes/", "optimiser/")) and "appearance" not in name}
    assert nodes <= new.keys()
    names = map(key_name, prepare.read_prepared(second).octree.keys.tolist())
    below = [name for name in names if name.startswith(block)]
    inside = {f"{kind}/{name}.safetensors" for name in below for kind in ("nodes", "optimiser")}
    assert {name for name in nodes if old[name] != new[name]} == inside & nodes
    light, lit = appearance(before), appearance(after)
    assert lit.keys() - light.keys() == set(NEW)
    assert all(torch.equal(lit[name], light[name]) for name in light)
    assert len({tuple(lit[name].tolist()) for name in NEW}) == 3  # each has learned its own
    assert train.run(config, second) == 0  # it is trained
    assert json.loads((second / "run.json").read_text())["like"] == str(first)
    assert train.run(config, second, resume="latest") == 0  # and can be again
    assert all(torch.equal(appearance(newest(second))[name], lit[name]) for name in lit)


def test_a_run_that_was_prepared_by_itself_cannot_go_on_from_another(first: Path, photos: Path, tmp_path: Path) -> None:
    prepare.run(CONFIG, photos / "after", tmp_path / "alone")
    with pytest.raises(InputError, match=r"other photos or another tree .* prepare another run with --like"):
        train.run(CONFIG, tmp_path / "alone", resume=str(first))
