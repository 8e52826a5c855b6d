"""What a training continues from: nothing is ignored, nothing is changed before it is known to fit."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from inf_nerf.errors import InputError
from inf_nerf.train.checkpoint import save_checkpoint
from inf_nerf.train.manifest import MANIFEST, digest_of, latest_checkpoint
from pipelines.options import chosen
from pipelines.prepare import Prepared
from pipelines.resume import refuse_unfit, set_aside_later, starting_point
from tests.train.tiny import tiny_config, tiny_octree, tiny_scene, tiny_work

STEPS = (2, 4, 6)
CONFIG = tiny_config(train={"keep_checkpoints": 9})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir, work = tmp_path_factory.mktemp("resume") / "run", tiny_work(CONFIG).work
    for step in STEPS:
        work.progress.step = step
        save_checkpoint(run_dir, work, tiny_scene(), tiny_octree(), "tiny", None, False)
    return run_dir


@pytest.fixture
def run_dir(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def folder(run_dir: Path, name: int | str) -> Path:
    return run_dir / "checkpoints" / (f"{name:08d}" if isinstance(name, int) else name)


def names(run_dir: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in (run_dir / "checkpoints").iterdir()}


def rewrite(checkpoint: Path, change: dict[str, Any]) -> None:
    """Save a manifest again with some of its content replaced and a hash that fits."""
    manifest = json.loads((checkpoint / MANIFEST).read_text()) | change
    manifest["digest"] = digest_of(manifest)
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


def prepared(identity: str) -> Prepared:
    return cast(Prepared, SimpleNamespace(identity=identity, ancestors=()))


def test_a_run_starts_from_nothing_and_continues_from_its_newest(run_dir: Path, tmp_path: Path) -> None:
    assert starting_point(CONFIG, tmp_path / "new", None) is None
    for resume in (None, "latest", str(run_dir)):
        start = starting_point(CONFIG, run_dir, resume)
        assert start is not None and start.samefile(folder(run_dir, 6))
    with pytest.raises(InputError, match="no complete checkpoint to resume"):
        starting_point(CONFIG, tmp_path / "new", "latest")


def test_operational_keys_may_change_and_others_only_on_resume(run_dir: Path) -> None:
    operational = tiny_config(
        train={"num_workers": 3, "log_every": 1}, eval={"right_half": False}, field={"backend": "torch"}
    )
    assert starting_point(operational, run_dir, None) == folder(run_dir, 6)
    longer = tiny_config(train={"steps": 99}, data={"swap_every": 5})
    with pytest.raises(InputError, match=r"data\.swap_every is 5, but .* was made with 3; use another --output-dir"):
        starting_point(longer, run_dir, None)
    assert starting_point(longer, run_dir, "latest") == folder(run_dir, 6)


def test_looking_closer_is_no_other_training(run_dir: Path) -> None:
    closer = tiny_config(
        train={"keep_checkpoints": 9}, debug={"enabled": True}, monitor={"loss_spike": 9.0}, profile={"sections": False}
    )
    assert starting_point(closer, run_dir, None) == folder(run_dir, 6)


def test_the_best_is_that_of_the_val_photos(run_dir: Path, tmp_path: Path) -> None:
    for resume, missing in (("best", "no complete checkpoint to resume"), ("latest", "no complete checkpoint")):
        with pytest.raises(InputError, match=missing):
            starting_point(CONFIG, tmp_path / "new", resume)
    with pytest.raises(InputError, match=r"No checkpoint in .* was scored by val photos"):
        starting_point(CONFIG, run_dir, "best")
    for step, score in ((2, 20.0), (4, 22.0), (6, 21.0)):
        rewrite(folder(run_dir, step), {"val_psnr": score})
    assert starting_point(CONFIG, run_dir, "best") == folder(run_dir, 4)
    assert chosen(str(run_dir), "best") == folder(run_dir, 4)
    assert chosen(str(run_dir), "6") == chosen(str(run_dir), str(folder(run_dir, 6))) == folder(run_dir, 6)
    assert chosen(str(run_dir), None) == chosen(str(run_dir), "latest") == run_dir
    for other in ("5", str(tmp_path)):
        with pytest.raises(InputError, match="is not a complete checkpoint"):
            chosen(str(run_dir), other)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("data", "tile_size", 8),
        ("sampler", "occupancy_res", 4),
        ("scene", "pyramid_levels", 3),
        ("field", "hidden_density", 8),
    ],
)
def test_keys_that_shape_tiles_or_checkpoints_never_change(run_dir: Path, section: str, key: str, value: int) -> None:
    for resume in (None, "latest", str(folder(run_dir, 2))):
        with pytest.raises(InputError, match=rf"{section}\.{key} is {value}, but the run in .* was made with"):
            starting_point(tiny_config(**{section: {key: value}}), run_dir, resume)


def test_a_configuration_of_another_version_is_one_sentence(run_dir: Path) -> None:
    config = CONFIG.model_dump(mode="json")
    config["train"]["warmup"] = 3
    rewrite(folder(run_dir, 6), {"config": config})
    with pytest.raises(InputError, match=r"another version of inf-nerf, whose setting 'train\.warmup'"):
        starting_point(CONFIG, run_dir, None)


@pytest.mark.parametrize(
    "spelled", ["{run}/checkpoints/00000004", "{run}/checkpoints/../checkpoints/00000004/.", "{link}"]
)
def test_going_back_keeps_later_checkpoints_aside_however_the_path_is_spelled(
    run_dir: Path, tmp_path: Path, spelled: str
) -> None:
    (tmp_path / "linked").symlink_to(run_dir)
    resume = spelled.format(run=run_dir, link=tmp_path / "linked/checkpoints/00000004")
    start = starting_point(CONFIG, run_dir, resume)
    assert start is not None
    assert names(run_dir) == {"00000002", "00000004", "00000006"}  # nothing is renamed before the run is known to fit
    set_aside_later(start, run_dir)
    assert names(run_dir) == {"00000002", "00000004", "00000006.superseded"}
    assert latest_checkpoint(run_dir) == folder(run_dir, 4)


def test_a_checkpoint_of_another_run_starts_a_new_one_but_replaces_none(run_dir: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run_dir, tmp_path / "other"))
    start = starting_point(CONFIG, tmp_path / "new", str(folder(other, 4)))
    assert start is not None and start == folder(other, 4)
    set_aside_later(start, tmp_path / "new")
    assert names(other) == {"00000002", "00000004", "00000006"}
    with pytest.raises(InputError, match="has checkpoints of its own up to 00000006, so it cannot start from"):
        starting_point(CONFIG, run_dir, str(folder(other, 4)))


def test_a_checkpoint_that_was_set_aside_is_resumed_by_its_step(run_dir: Path) -> None:
    aside = folder(run_dir, "00000006.superseded-17")
    folder(run_dir, 6).rename(aside)
    with pytest.raises(InputError, match="rename it to 00000006 to resume it"):
        starting_point(CONFIG, run_dir, str(aside))
    with pytest.raises(InputError, match="neither a checkpoint nor a run directory"):
        starting_point(CONFIG, run_dir, str(folder(run_dir, "00000008.partial")))


def test_another_tree_is_found_before_training(run_dir: Path) -> None:
    start = folder(run_dir, 6)
    refuse_unfit(start, prepared("tiny"), run_dir)
    with pytest.raises(InputError, match="belongs to other photos or another tree"):
        refuse_unfit(start, prepared("other"), run_dir)


def test_a_damaged_checkpoint_that_was_named_is_refused_and_left_alone(run_dir: Path) -> None:
    file = folder(run_dir, 6) / "nodes" / "r1.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    for resume in (str(run_dir), str(folder(run_dir, 6))):
        with pytest.raises(InputError, match=r"r1\.safetensors is damaged"):
            starting_point(CONFIG, run_dir, resume)
    assert names(run_dir) == {"00000002", "00000004", "00000006"}
    assert starting_point(CONFIG, run_dir, str(folder(run_dir, 4))) is not None


def test_epochs_say_the_same_steps_again(run_dir: Path) -> None:
    epochs = {"train": CONFIG.train.model_copy(update={"epochs": 2.0, "steps": 77}).model_dump(mode="json")}
    rewrite(folder(run_dir, 6), {"config": CONFIG.model_dump(mode="json") | epochs})
    asked = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"epochs": 2.0})})
    assert starting_point(asked, run_dir, None) is not None
    for other in (CONFIG, CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"epochs": 3.0})})):
        with pytest.raises(InputError, match=r"train\.(steps|epochs) is"):
            starting_point(other, run_dir, None)
