"""What config keys mean: every key says so, with its type, default and unit."""

import re

import pytest

from inf_nerf.config import load_config
from inf_nerf.errors import InputError
from inf_nerf.key_meaning import all_keys, explain


@pytest.mark.parametrize("key", all_keys())
def test_every_key_says_what_it_means(key: str) -> None:
    (found,) = explain(key)
    assert found.key == key
    assert found.meaning.endswith((".", ")"))
    assert found.type and found.default


@pytest.mark.parametrize(
    ("key", "kind", "default", "unit"),
    [
        ("train.save_seconds", "number above 0", "300.0", "seconds"),
        ("scene.max_side", "whole number from 16 on or null", "null", "pixels"),
        ("render.fov_degrees", "number above 0 below 175", "55.0", "degrees"),
        ("sampler.kind", "occupancy | tree", "occupancy", ""),
        ("train.eps", "number above 0", "1e-15", ""),
        ("eval.right_half", "true or false", "true", ""),
        ("eval.lpips_backbone", "path or null", "null", ""),
        ("sweep.space", "mapping", "(must be given)", ""),
        ("sweep.city", "section or null", "null", ""),
    ],
)
def test_type_default_and_unit_are_those_of_the_configuration(key: str, kind: str, default: str, unit: str) -> None:
    (found,) = explain(key)
    assert (found.type, found.default, found.unit) == (kind, default, unit)
    assert "[" not in found.meaning or key == "sweep.space"


def test_a_default_can_be_given_back() -> None:
    for key in all_keys():
        if not key.startswith("sweep."):
            assert load_config(overrides=[f"{key}={explain(key)[0].default}"]) == load_config(), key


def test_a_section_explains_its_keys() -> None:
    assert [found.key for found in explain("octree")] == [key for key in all_keys() if key.startswith("octree.")]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.step", "train.steps"),
        ("lr_init", "train.lr_init"),
        ("hardware.pin_memory", "is a key of other trainers (pixels are drawn"),
    ],
)
def test_a_key_that_is_not_there_is_answered_with_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(InputError, match=re.escape(nearest)):
        explain(key)
