"""The configuration: one set of dotted keys for files, flags and sweeps, and messages that name the way out."""

from pathlib import Path

import pytest
import yaml

from inf_nerf.config import Config, load_config
from inf_nerf.config_file import known_keys
from inf_nerf.errors import InputError


def write(folder: Path, text: str) -> Path:
    path = folder / "some.yaml"
    path.write_text(text)
    return path


def test_defaults_need_no_file() -> None:
    assert load_config() == Config()


def test_an_empty_file_holds_no_difference(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "# nothing\n")) == Config()


def test_a_file_holds_only_differences(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "octree: {num_levels: 3}\n"))
    assert config.octree.num_levels == 3
    assert config.octree.min_points == Config().octree.min_points
    assert config.train == Config().train


@pytest.mark.parametrize(
    ("text", "unknown", "nearest"),
    [
        ("train: {step: 3}", "train.step", "train.steps"),
        ("field: {hidden_colour: 3}", "field.hidden_colour", "field.hidden_color"),
        ("octre: {num_levels: 3}", "octre.num_levels", "octree.num_levels"),
        ("loss: {lambda_regularisation: 0}", "loss.lambda_regularisation", "loss.lambda_regularization"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    tmp_path: Path, text: str, unknown: str, nearest: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as error:
        load_config(path)
    message = str(error.value)
    assert str(path) in message
    assert f"{unknown!r}" in message
    assert nearest in message


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    for text in ("train: {steps: 5}\ndata: {}\ntrain: {lr_init: 0.1}\n", "train:\n  steps: 5\n  steps: 6\n"):
        with pytest.raises(InputError, match=r"the key '(train|steps)' stands twice, in line 3 again"):
            load_config(write(tmp_path, text))


def test_a_section_without_keys_changes_nothing(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "train:\n#  steps: 5\ntrainer:\nmodel: {octree_config: }\n")) == Config()
    for text in ("train: 5\n", "trainer: 5\n", "model: {octree_config: 5}\n"):
        with pytest.raises(InputError, match="is a section of keys, but a int was found"):
            load_config(write(tmp_path, text))


@pytest.mark.parametrize("key", ["train.steps", "train.lr_init", "train.num_workers", "sweep"])
def test_yes_is_no_number(key: str) -> None:
    with pytest.raises(InputError, match=key):
        load_config(overrides=[f"{key}=yes"])


@pytest.mark.parametrize(("text", "value"), [("1e-2", 0.01), ("1.e-2", 0.01), ("5e-3", 0.005), ("0.01", 0.01)])
def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path: Path, text: str, value: float) -> None:
    from_file = load_config(write(tmp_path, f"train: {{lr_init: {text}, lr_final: 1e-4}}\n"))
    from_flag = load_config(overrides=[f"train.lr_init={text}"])
    assert from_file.train.lr_init == from_flag.train.lr_init == value
    assert from_file.train.lr_final == 1e-4


def test_a_whole_number_in_exponent_form_serves_a_count() -> None:
    config = load_config(overrides=["train.steps=3e4", "train.max_seconds=9e2"])
    assert config.train.steps == 30_000
    assert config.train.max_seconds == 900


def test_numbers_in_a_list_may_be_in_exponent_form() -> None:
    assert load_config(overrides=["sampler.tree_samples=[1e2, 5e1, 2e1]"]).sampler.tree_samples == (100, 50, 20)


@pytest.mark.parametrize(("value", "least", "most"), [("0", 1, 1), ("3", 3, 3), ("[1, 4]", 1, 4), ("[2e0, 2]", 2, 2)])
def test_workers_are_a_number_or_the_least_and_the_most(value: str, least: int, most: int) -> None:
    config = load_config(overrides=[f"train.num_workers={value}"])
    assert (config.train.least_workers, config.train.most_workers) == (least, most)
    assert load_config(base=config.model_dump(mode="json")) == config


def test_a_name_that_looks_like_a_number_stays_a_name(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "tracking: {experiment: '1e3'}")).tracking.experiment == "1e3"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train.steps=many", "train.steps"),
        ("train.steps=0", "train.steps"),
        ("train.steps=1.5", "train.steps"),
        ("train.lr_init=-1", "train.lr_init"),
        ("train.lr_init=.inf", "train.lr_init"),
        ("eval.right_half=perhaps", "eval.right_half"),
        ("field.backend=cuda", "field.backend"),
        ("sampler.tree_samples=[1, 2]", "sampler.tree_samples"),
        ("train.num_workers=-1", "train.num_workers"),
        ("train.num_workers=many", "train.num_workers"),
        ("train.num_workers=1.5", "train.num_workers"),
        ("train.num_workers=[0, 2]", "train.num_workers"),
        ("train.num_workers=[3, 2]", "train.num_workers"),
        ("train.num_workers=[1, 2, 3]", "train.num_workers"),
        ("train.collective_timeout_seconds=0.9", "train.collective_timeout_seconds"),
        ("train.node_memory_mb=1e-7", "train.node_memory_mb"),
        ("tracking.experiment=[a]", "tracking.experiment"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused_by_key(override: str, key: str) -> None:
    with pytest.raises(InputError, match=key):
        load_config(overrides=[override])


def test_values_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="lr_final"):
        load_config(overrides=["train.lr_init=1e-3", "train.lr_final=1e-2"])
    with pytest.raises(InputError, match="shared_upper_levels"):
        load_config(overrides=["octree.num_levels=2", "train.shared_upper_levels=3"])
    with pytest.raises(InputError, match=r"'train'.*grad_clip \(1\) needs .* shared_every must be 1, not 4"):
        load_config(overrides=["train.grad_clip=1", "train.shared_every=4"])
    with pytest.raises(InputError, match=r"train.foreign 'exchange' needs sampler.kind 'occupancy', not 'tree'"):
        load_config(overrides=["train.foreign=exchange", "sampler.kind=tree"])
    for webhook in ("example.org/alerts", "ftp://example.org"):
        with pytest.raises(InputError, match=r"'monitor.webhook' is not usable: expected an address that begins"):
            load_config(overrides=[f"monitor.webhook={webhook}"])
    with pytest.raises(InputError, match=r"'monitor.command' is not usable: No closing quotation"):
        load_config(overrides=['monitor.command="say \'alert"'])
    with pytest.raises(InputError, match=r"'field'.*base_res \(64\) must not exceed max_res \(32\)"):
        load_config(overrides=["field.base_res=64", "field.max_res=32"])


@pytest.mark.parametrize("override", ["train.steps", "=3", "train.steps:3"])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    with pytest.raises(InputError, match="key=value"):
        load_config(overrides=[override])


def test_an_override_that_is_no_yaml_is_refused() -> None:
    with pytest.raises(InputError, match="quote"):
        load_config(overrides=["scene.images_dir='open"])


def test_a_section_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train"):
        load_config(write(tmp_path, "train: 5\n"))


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n", "a: [unclosed\n"])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=r"some\.yaml"):
        load_config(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.yaml"):
        load_config(tmp_path / "absent.yaml")


def test_the_later_and_nearer_setting_wins(tmp_path: Path) -> None:
    base = load_config(overrides=["train.steps=1", "train.batch_size=8", "train.seed=5"]).model_dump(mode="json")
    path = write(tmp_path, "train: {steps: 2, batch_size: 16}")
    config = load_config(path, ["train.steps=3", "train.steps=4"], base=base)
    assert (config.train.steps, config.train.batch_size, config.train.seed) == (4, 16, 5)


def test_reading_leaves_the_base_as_it_was() -> None:
    base = Config().model_dump(mode="json")
    load_config(overrides=["train.steps=3"], base=base)
    assert base == Config().model_dump(mode="json")


def test_flat_and_known_keys_agree() -> None:
    assert list(Config().flat()) == known_keys(Config)


def test_every_flat_key_can_be_set() -> None:
    import json

    for key, value in Config().flat().items():
        assert load_config(overrides=[f"{key}={json.dumps(value)}"]) == Config(), key


def test_written_yaml_reads_back_equal(tmp_path: Path) -> None:
    changes = ["train.lr_init=3e-3", "scene.test_list=lists/test.txt", "sampler.tree_samples=[8, 4, 2]"]
    config = load_config(overrides=changes)
    assert load_config(write(tmp_path, config.to_yaml())) == config


def test_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().train.steps = 3


def test_digest_depends_on_the_named_sections_only() -> None:
    default, changed = Config(), load_config(overrides=["train.steps=3"])
    assert default.digest() != changed.digest()
    assert default.digest("train") != changed.digest("train")
    assert default.digest("scene", "octree") == changed.digest("scene", "octree")


@pytest.mark.parametrize(("name", "needs_gpus"), [("demo", False), ("laptop", False), ("city", True)])
def test_configs_of_the_repository_say_what_they_hold(name: str, needs_gpus: bool) -> None:
    path = Path(__file__).parents[1] / "configs" / f"{name}.yaml"
    config = load_config(path)
    found = config.flat()
    for section, keys in yaml.safe_load(path.read_text()).items():
        for key, value in keys.items():
            assert found[f"{section}.{key}"] == value
    assert (config.train.gpus_per_worker > 0) == needs_gpus
