"""Which photos are train, val and test."""

import logging
from pathlib import Path

import pytest

from inf_nerf.config import SceneConfig
from inf_nerf.errors import InputError
from inf_nerf.scene.split import split_photos

NAMES = [f"img_{number:03d}.jpg" for number in range(40)]


def positions(splits: list[str], split: str) -> list[int]:
    return [index for index, value in enumerate(splits) if value == split]


def test_every_eighth_photo_is_test_and_val_comes_from_the_others() -> None:
    splits = split_photos(NAMES, SceneConfig())
    assert positions(splits, "test") == [0, 8, 16, 24, 32]
    others = [index for index in range(40) if index % 8]
    assert positions(splits, "val") == [others[8], others[24]]
    assert len(positions(splits, "train")) == 33


def test_no_val_photos_if_none_are_asked_for() -> None:
    assert "val" not in split_photos(NAMES, SceneConfig(val_every=0))


def test_lists_replace_the_rules(tmp_path: Path) -> None:
    tests, vals, trains = (tmp_path / f"{name}.txt" for name in ("test", "val", "train"))
    tests.write_text("# held out\nimg_003.jpg\n\nimg_004.jpg\n")
    vals.write_text("img_000.jpg\n")
    trains.write_text("img_010.jpg\nimg_011.jpg\n")
    splits = split_photos(NAMES, SceneConfig(test_list=tests, val_every=0))
    assert positions(splits, "test") == [3, 4]
    assert positions(splits, "train") == [i for i in range(40) if i not in (3, 4)]
    splits = split_photos(NAMES, SceneConfig(val_list=vals))
    assert positions(splits, "val") == [0]
    assert positions(splits, "test") == [8, 16, 24, 32]
    splits = split_photos(NAMES, SceneConfig(train_list=trains, val_list=vals))
    assert positions(splits, "train") == [10, 11]
    assert positions(splits, "val") == [0]
    assert len(positions(splits, "test")) == 37


def test_names_in_lists_must_be_photos_of_one_split(tmp_path: Path) -> None:
    listed, other = tmp_path / "test.txt", tmp_path / "val.txt"
    listed.write_text("img_999.jpg\n")
    with pytest.raises(InputError, match=r"test.txt lists 'img_999.jpg', which is not a photo"):
        split_photos(NAMES, SceneConfig(test_list=listed))
    listed.write_text("img_001.jpg\n")
    other.write_text("img_001.jpg\n")
    with pytest.raises(InputError, match="keep it in one of them"):
        split_photos(NAMES, SceneConfig(test_list=listed, val_list=other))
    with pytest.raises(InputError, match="does not exist"):
        split_photos(NAMES, SceneConfig(test_list=tmp_path / "none.txt"))


def test_some_photo_must_be_left_to_train_on(tmp_path: Path) -> None:
    listed = tmp_path / "test.txt"
    listed.write_text("\n".join(NAMES))
    with pytest.raises(InputError, match="no photo to train on"):
        split_photos(NAMES, SceneConfig(test_list=listed))


def test_val_images_that_the_scene_has_replace_the_rule(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="inf_nerf"):
        splits = split_photos(NAMES, SceneConfig(val_images=("img_002.jpg", "img_008.jpg", "other.jpg")))
    assert positions(splits, "val") == [2, 8]
    assert positions(splits, "test") == [0, 16, 24, 32], "a photo that is named is none of the rule's"
    assert "other.jpg" in caplog.text and "img_002.jpg" not in caplog.text


def test_val_images_that_the_scene_lacks_leave_the_rule() -> None:
    assert split_photos(NAMES, SceneConfig(val_images=("other.jpg",))) == split_photos(NAMES, SceneConfig())


def test_val_images_in_a_list_of_another_split_are_refused(tmp_path: Path) -> None:
    (tests := tmp_path / "test.txt").write_text("img_003.jpg\n")
    with pytest.raises(InputError, match=r"img_003\.jpg"):
        split_photos(NAMES, SceneConfig(test_list=tests, val_images=("img_003.jpg",)))
