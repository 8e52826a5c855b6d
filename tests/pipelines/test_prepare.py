"""The prepare stage: what it writes, what it keeps, what it refuses.

Only the fixture goes through Ray; the other runs cut their photos in this process, by the same function.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from inf_nerf.octree.tiles import IDENTITY_KEY, tile_file
from inf_nerf.scene.photos import read_photo
from pipelines import prepare, synth, train

SETTINGS = [
    "field.max_res=16", "octree.num_levels=3", "octree.min_points=4", "data.tile_size=16",
    "scene.pyramid_levels=2", "scene.val_every=5",
]  # fmt: skip
CONFIG = load_config(None, SETTINGS)


def changed(*overrides: str) -> Config:
    return load_config(None, overrides, base=CONFIG.model_dump(mode="json"))


def cut_here(config: Config, photos: list[int], run_dir: Path, identity: str) -> Iterator[dict[str, Any]]:
    """What Ray does, without Ray."""
    for photo in photos:
        yield prepare.cut_and_write({"photo": photo}, config, str(run_dir), identity)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "city"
    synth.run(folder, blocks=1, photos=12, size=64, seed=0)
    return folder


@pytest.fixture(scope="module")
def made_by_ray(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "city"
    prepare.run(CONFIG, photos, run_dir)
    return run_dir


@pytest.fixture
def run_dir(made_by_ray: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the prepared run; preparing again happens in this process."""
    monkeypatch.setattr(prepare, "_cut_by_ray", cut_here)
    return Path(shutil.copytree(made_by_ray, tmp_path / "run"))


def written(run_dir: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file."""
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    return {str(path.relative_to(run_dir)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_prepared_run_holds_tiles_of_train_and_val_photos_and_their_mean_colour(made_by_ray: Path) -> None:
    prepared = prepare.read_prepared(made_by_ray)
    scene = prepared.scene
    assert scene.val
    assert scene.test
    files = {path.name for path in (made_by_ray / "tiles").glob("*.parquet")}
    assert files == {f"{photo:06d}.parquet" for photo in scene.train + scene.val}
    rows = 0
    for photo in scene.train + scene.val:
        table = pq.read_table(tile_file(made_by_ray, photo))
        assert table.schema.metadata[IDENTITY_KEY] == prepared.identity.encode()
        assert set(table["split"].to_pylist()) == {scene.photos[photo].split}
        rows += len(table)
    assert prepared.num_tiles == rows
    mean = np.mean([read_photo(scene, photo).reshape(-1, 3).mean(axis=0) for photo in scene.train], axis=0) / 255
    np.testing.assert_allclose(prepared.mean_colour, mean, rtol=1e-6)
    assert prepared.octree.num_nodes > 3
    assert prepared.config == CONFIG
    assert not list(made_by_ray.rglob("*.partial"))


def test_preparing_a_prepared_run_says_so_and_writes_nothing(
    run_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written(run_dir)
    prepare.run(changed("train.steps=77"), photos, run_dir)  # training settings do not matter here
    assert "already prepared" in capsys.readouterr().err
    assert written(run_dir) == before


def test_interrupted_run_is_finished_and_files_that_fit_are_kept(run_dir: Path, photos: Path) -> None:
    first, second, third, *_ = prepare.read_prepared(run_dir).scene.train
    before = written(run_dir)
    (run_dir / "tiles/summary.json").unlink()
    tile_file(run_dir, first).unlink()
    tile_file(run_dir, second).write_bytes(b"PAR1 torn")
    prepare.run(CONFIG, photos, run_dir)
    after = written(run_dir)
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }
    kept = str(tile_file(run_dir, third).relative_to(run_dir))
    assert after[kept] == before[kept]


def test_missing_tile_file_is_noticed_although_the_summary_is_there(run_dir: Path, photos: Path) -> None:
    missing = tile_file(run_dir, prepare.read_prepared(run_dir).scene.val[0])
    missing.unlink()
    prepare.run(CONFIG, photos, run_dir)
    assert missing.is_file()


@pytest.mark.parametrize(
    ("key", "value", "stored"),
    [("data.tile_size", "32", "16"), ("scene.test_every", "4", "8"), ("field.max_res", "32", "16")],
)
def test_run_prepared_with_another_configuration_is_refused_by_key(
    run_dir: Path, photos: Path, key: str, value: str, stored: str
) -> None:
    before = written(run_dir)
    with pytest.raises(InputError, match=rf"{key}={stored}, not {value}; choose another --output-dir"):
        prepare.run(changed(f"{key}={value}"), photos, run_dir)
    assert written(run_dir) == before


def test_run_prepared_from_other_photos_is_refused(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"was prepared from .*city, not .*elsewhere; choose another --output-dir"):
        prepare.run(CONFIG, tmp_path / "elsewhere", run_dir)


def test_run_of_another_format_version_is_refused(run_dir: Path, photos: Path) -> None:
    path = run_dir / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    for attempt in (lambda: prepare.run(CONFIG, photos, run_dir), lambda: prepare.read_prepared(run_dir)):
        with pytest.raises(InputError, match=r"format version 99, but this program reads version 1; choose another"):
            attempt()


@pytest.mark.parametrize("split", ["train", "test"])
def test_corrupt_photo_is_one_sentence_and_the_next_run_finishes(
    made_by_ray: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.setattr(prepare, "_cut_by_ray", cut_here)
    data, run_dir = Path(shutil.copytree(photos, tmp_path / "data")), tmp_path / "run"
    scene = prepare.read_prepared(made_by_ray).scene
    file = data / scene.photos[getattr(scene, split)[1]].file
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=file.name):
        prepare.run(CONFIG, data, run_dir)
    with pytest.raises(InputError, match=r"not complete; run inf-nerf prepare again"):
        prepare.read_prepared(run_dir)
    assert not list(run_dir.rglob("*.partial"))
    finished = written(run_dir / "tiles")
    assert finished
    file.write_bytes(whole)
    prepare.run(CONFIG, data, run_dir)
    assert finished.items() <= written(run_dir / "tiles").items()
    assert prepare.read_prepared(run_dir).num_tiles == prepare.read_prepared(made_by_ray).num_tiles


def test_corrupt_photo_that_was_removed_is_left_out_by_the_next_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "_cut_by_ray", cut_here)
    run_dir, file = tmp_path / "run", sorted((data / "images").iterdir())[4]
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(InputError, match=file.name):
        prepare.run(CONFIG, data, run_dir)
    file.unlink()
    prepare.run(CONFIG, data, run_dir)
    assert f"1 photos of the model are not in {data} and are left out" in capsys.readouterr().err
    assert len(prepare.read_prepared(run_dir).scene.photos) == 11


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> Path:
    """A copy of the photos that a test may change."""
    return Path(shutil.copytree(photos, tmp_path / "data"))


@pytest.mark.parametrize("file", ["sparse/0/points3D.bin", "images/{photo}", "masks/{photo}.png", "test.txt"])
def test_file_that_changed_after_preparing_is_refused_by_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.setattr(prepare, "_cut_by_ray", cut_here)
    run_dir, names = tmp_path / "run", sorted(path.name for path in (data / "images").iterdir())
    (data / "masks").mkdir()
    for name in names:
        Image.new("L", Image.open(data / "images" / name).size, 255).save(data / "masks" / f"{name}.png")
    (data / "test.txt").write_text(names[0] + "\n")
    config = changed("scene.masks_dir=masks", f"scene.test_list={data / 'test.txt'}")
    prepare.run(config, data, run_dir)
    prepare.run(config, data, run_dir)
    path = data / file.format(photo=names[3])
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    before = written(run_dir)
    with pytest.raises(InputError, match=rf"{path.name} has changed since .*choose another --output-dir"):
        prepare.run(config, data, run_dir)
    assert written(run_dir) == before


def test_photo_that_changed_before_preparing_was_finished_is_cut_again_and_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "_cut_by_ray", cut_here)
    run_dir = tmp_path / "run"
    prepare.run(CONFIG, data, run_dir)
    scene, before = prepare.read_prepared(run_dir).scene, written(run_dir)
    (run_dir / "tiles/summary.json").unlink()
    photo = data / scene.photos[scene.train[2]].file
    Image.new("RGB", Image.open(photo).size, (200, 0, 0)).save(photo)
    prepare.run(CONFIG, data, run_dir)
    after = written(run_dir)
    tiles = {name for name in after if name.endswith(".parquet") and after[name] != before[name]}
    assert tiles == {str(tile_file(run_dir, scene.train[2]).relative_to(run_dir))}


def test_damaged_mask_of_a_test_photo_is_found(
    made_by_ray: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "_cut_by_ray", cut_here)
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    scene = prepare.read_prepared(made_by_ray).scene
    for photo in scene.photos:
        mask = data / "masks" / f"{photo.name}.png"
        mask.parent.mkdir(exist_ok=True)
        Image.new("L", Image.open(data / photo.file).size, 255).save(mask)
    damaged = data / "masks" / f"{scene.photos[scene.test[0]].name}.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(InputError, match=damaged.name):
        prepare.run(changed("scene.masks_dir=masks"), data, tmp_path / "run")


def test_split_without_test_photos_is_refused_before_anything_is_written(
    made_by_ray: Path, photos: Path, tmp_path: Path
) -> None:
    every = tmp_path / "train.txt"
    every.write_text("\n".join(photo.name for photo in prepare.read_prepared(made_by_ray).scene.photos))
    with pytest.raises(InputError, match=r"no test photos; name some in scene\.test_list"):
        prepare.run(changed(f"scene.train_list={every}"), photos, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_a_run_without_test_photos_is_refused_before_it_starts(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare.read_prepared(run_dir)
    photos = tuple(replace(photo, split="train") for photo in prepared.scene.photos)
    without = replace(prepared, scene=replace(prepared.scene, photos=photos))
    monkeypatch.setattr(prepare, "read_prepared", lambda path: without)
    before = written(run_dir)
    with pytest.raises(InputError, match="no test photos"):
        train.run(CONFIG, run_dir)
    locks = {".lock", ".workers"}
    assert {name: file for name, file in written(run_dir).items() if name not in locks} == before


def test_tiles_of_another_octree_are_refused_and_made_anew(
    run_dir: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    prepare.run(changed("octree.min_points=20"), photos, other)
    shutil.copy(other / "octree.safetensors", run_dir)
    with pytest.raises(InputError, match=r"another scene cube, octree .*run inf-nerf prepare again"):
        prepare.read_prepared(run_dir)
    prepare.run(CONFIG, photos, run_dir)
    assert prepare.read_prepared(run_dir).octree.num_nodes > prepare.read_prepared(other).octree.num_nodes


def test_directory_that_is_no_run_names_the_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run inf-nerf prepare first"):
        prepare.read_prepared(tmp_path)


@pytest.mark.slow
def test_corrupt_photo_in_a_ray_task_is_one_sentence(photos: Path, made_by_ray: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    scene = prepare.read_prepared(made_by_ray).scene
    file = data / scene.photos[scene.train[0]].file
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(InputError, match=file.name):
        prepare.run(CONFIG, data, tmp_path / "run")
