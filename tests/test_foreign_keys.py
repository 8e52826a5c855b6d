"""Files of general NeRF trainers: every key takes effect or is answered, and duplicates have one winner."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from inf_nerf.config import Config, load_config
from inf_nerf.config_file import known_keys
from inf_nerf.errors import InputError
from inf_nerf.foreign_keys import FOREIGN_KEYS, FOREIGN_SECTIONS, Outcome, translate

EXAMPLE = Path(__file__).parent / "foreign_example.yaml"
CONTENT = yaml.safe_load(EXAMPLE.read_text())


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def outcomes(content: Mapping[str, Any]) -> dict[str, Outcome]:
    return {outcome.key: outcome for outcome in translate(content, "a file")[1]}


def test_every_key_of_the_example_is_answered_in_its_order() -> None:
    assert list(outcomes(CONTENT)) == list(leaves(CONTENT))
    assert set(leaves(CONTENT)) == set(FOREIGN_KEYS)


def test_keys_of_others_are_none_of_ours() -> None:
    assert not FOREIGN_SECTIONS & {key.split(".")[0] for key in known_keys(Config)}


def test_every_answer_gives_a_reason_or_a_key_of_ours() -> None:
    known = known_keys(Config)
    for key, outcome in outcomes(CONTENT).items():
        if outcome.kind == "sets":
            assert all(part.split("=")[0] in known for part in outcome.text.split(" (")[0].split(" and ")), key
        else:
            assert len(outcome.text.split()) > 4, key


def test_the_example_is_a_configuration() -> None:
    config = load_config(EXAMPLE)
    train = config.train
    assert (train.epochs, train.batch_size, train.lr_init, train.lr_final) == (200, 4096, 0.01, 0.0001)
    assert (train.schedule, train.lr_decay_start, train.lr_decay_steps) == ("exponential", 50_000, 250_000)
    assert (train.weight_decay, train.grad_clip, train.accumulate, train.eps) == (1e-6, 1.0, 1, 1e-8)
    assert (train.save_every, train.eval_every, train.log_every, train.picture_every) == (5000, 1000, 100, 2000)
    assert (train.precision, train.num_workers, train.shared_upper_levels) == ("auto", 1, 2)
    assert (train.val_rays, train.deterministic, train.profiler) == (1024, False, False)
    assert (config.octree.num_levels, config.field.log2_table_size, config.field.max_res) == (12, 15, 512)
    assert (config.field.hidden_density, config.field.hidden_color) == (256, 256)
    assert (config.scene.max_side, config.scene.val_every, config.scene.format) == (1024, 10, "colmap")
    assert config.scene.val_images == ("val_001.jpg", "val_002.jpg", "val_003.jpg")
    assert config.loss.lambda_consistency == 0.01
    assert config.tracking.experiment == "inf_nerf" and config.tracking.run_name == "city_scene_exp1"
    assert config.tracking.labels == ("inf_nerf", "city_scene", "large_scale") and config.tracking.version == "1.0"


@pytest.mark.parametrize(
    ("key", "winner", "value"),
    [
        ("optimization.lr_scheduler.type", "trainer.lr_final", "exponential, and step is dropped"),
        ("optimization.lr_scheduler.gamma", "trainer.lr_final", "exponential, and step is dropped"),
        ("dataset.ray_sampling.batch_size", "trainer.rays_batch_size", "the same"),
        ("optimization.gradient_clipping.max_norm", "trainer.gradient_clip_val", "the same"),
        ("validation.eval_freq", "trainer.eval_freq", "the same"),
        ("optimization.mixed_precision.enabled", "trainer.mixed_precision", "the same"),
        ("experiment.name", "trainer.experiment_name", "city_scene_exp1, and inf_nerf_city_scene is dropped"),
    ],
)
def test_duplicates_name_the_winner_and_its_value(key: str, winner: str, value: str) -> None:
    outcome = outcomes(CONTENT)[key]
    assert outcome.kind == "loses"
    assert f"like {winner}, which wins with {value}" in outcome.text


def test_the_winner_does_not_depend_on_the_order_in_the_file() -> None:
    content = {"optimization": {"gradient_clipping": {"max_norm": 3.0}}, "trainer": {"gradient_clip_val": 2.0}}
    for values in (content, dict(reversed(content.items()))):
        assert translate(values, "a file")[0] == {"train": {"grad_clip": 2.0}}
        assert "wins with 2.0, and 3.0 is dropped" in outcomes(values)["optimization.gradient_clipping.max_norm"].text


def test_a_loser_counts_where_it_is_alone(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(
        "optimization: {lr_scheduler: {type: exponential, gamma: 0.9, step_size: 500}, "
        "gradient_clipping: {enabled: true, max_norm: 2.0}, mixed_precision: {enabled: false}}\n"
        "dataset: {ray_sampling: {batch_size: 512}}\nexperiment: {name: mine}\n"
    )
    train = load_config(file).train
    assert (train.schedule, train.lr_gamma, train.lr_every) == ("step", 0.9, 500)
    assert (train.grad_clip, train.precision, train.batch_size) == (2.0, "float32", 512)
    assert load_config(file).tracking.run_name == "mine"


def test_clipping_that_is_switched_off_stays_off() -> None:
    content = {"optimization": {"gradient_clipping": {"enabled": False, "max_norm": 1.0}}}
    assert translate(content, "a file")[0] == {"train": {"grad_clip": 0.0}}


def test_keys_of_ours_win_in_the_same_file_and_later_settings_over_a_file(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("trainer: {rays_batch_size: 512, lr_init: 1e-3}\ntrain: {batch_size: 256}\n")
    assert load_config(file).train.batch_size == 256
    assert load_config(file, ["train.batch_size=64"]).train.batch_size == 64
    assert load_config(file, ["trainer.lr_init=5e-3"]).train.lr_init == 0.005


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("model.network_config.position_encoding.type", "frequency", "only hash can be had"),
        ("model.network_config.mlp_config.activation", "gelu", "only relu can be had"),
        ("model.network_config.mlp_config.output_dim", 3, "only 4 can be had"),
        ("model.network_config.mlp_config.num_layers", 8, "one hidden layer and a colour head of two"),
        ("dataset.image_config.center_crop", True, "photos are used whole"),
        ("model.rendering_config.white_background", True, "only False can be had"),
        ("optimization.optimizer.type", "sgd", "only adam can be had"),
        ("optimization.gradient_clipping.norm_type", 1, "only 2 can be had"),
        ("dataset.image_config.normalize", False, "only True can be had"),
    ],
)
def test_what_cannot_be_had_is_said(key: str, value: Any, text: str) -> None:
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    outcome = outcomes(nested)[key]
    assert outcome.kind == "none" and text in outcome.text


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("validation: {metrics: [psnr, vmaf]}", "validation.metrics"),
        ("validation: {val_split: many}", "validation.val_split"),
        ("optimization: {optimizer: {betas: [0.9]}}", "optimization.optimizer.betas"),
        ("optimization: {optimizer: {betas: {beta1: 0.9}}}", "two numbers are expected"),
        ("validation: {val_split: .nan}", "a share of the photos from 0 to 0.5 is expected"),
        ("validation: {val_split: 0.9}", "a share of the photos from 0 to 0.5 is expected"),
        ("validation: {metrics: 5}", "a list of names is expected"),
        ("trainer: {chunk_size: many}", "a number is expected"),
        ("trainer: {lr_ini: 1e-2}", "did you mean 'trainer.lr_init'"),
        ("trainer: 5", "trainer"),
        ("trainer: {lr_init: fast}", "train.lr_init"),
    ],
)
def test_values_that_cannot_be_used_are_refused_by_key(tmp_path: Path, text: str, key: str) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=key):
        load_config(file)


def test_reading_such_a_file_says_once_what_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="inf_nerf"):
        load_config(EXAMPLE)
    (record,) = caplog.records
    message = record.getMessage()
    for key, outcome in outcomes(CONTENT).items():
        assert (key in message) == (outcome.kind in ("none", "loses")), key
    caplog.clear()
    load_config(overrides=["train.steps=3"])
    Config()
    assert not caplog.records
