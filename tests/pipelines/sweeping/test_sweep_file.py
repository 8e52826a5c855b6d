"""Sweep files: a configuration with a section more, and sentences for what they cannot say."""

from pathlib import Path

import pytest

from inf_nerf.config import load_config
from inf_nerf.errors import InputError
from pipelines.sweeping.sweep_file import keep, load_sweep

ROOT = Path(__file__).parents[3]
SPACE = "space: {loss.lambda_depth: {grid: [0.1, 0.2]}}"


def write(folder: Path, text: str) -> Path:
    path = folder / "some.yaml"
    path.write_text(text)
    return path


def test_a_file_is_a_configuration_and_a_sweep(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, f"train: {{steps: 30}}\nsweep: {{{SPACE}, seed: 4}}\n"), ["train.lr_init=0.5"])
    assert sweep.config == load_config(overrides=["train.steps=30", "train.lr_init=0.5"])
    assert (sweep.settings.seed, sweep.space.num_trials) == (4, 2)
    assert load_sweep(write(tmp_path, sweep.to_yaml())).flat() == sweep.flat()


def test_a_file_may_build_on_another(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.yaml").write_text("train: {steps: 30, lr_init: 0.5}\noctree: {num_levels: 3}\n")
    sweep = load_sweep(write(tmp_path, f"base: configs/base.yaml\ntrain: {{steps: 40}}\nsweep: {{{SPACE}}}\n"))
    assert sweep.config == load_config(overrides=["train.steps=40", "train.lr_init=0.5", "octree.num_levels=3"])


def test_keys_of_the_sweep_are_set_like_others(tmp_path: Path) -> None:
    path = write(tmp_path, f"sweep: {{{SPACE}, grace: 0.5}}\n")
    assert load_sweep(path, ["sweep.grace=null", "sweep.city.blocks=1"]).settings.grace is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: {steps: 3}", "says nothing to sweep; give it a section sweep with a space"),
        ("sweep: {seed: 3}", "says nothing to sweep"),
        (f"sweep: {{{SPACE}, sead: 3}}", "the key 'sweep.sead' is unknown; did you mean 'sweep.seed'?"),
        (f"sweep: {{{SPACE}, metric: eval_psnr}}", "key 'sweep.metric' is not usable: Input should be 'val_psnr'"),
        (f"sweep: {{{SPACE}, searcher: grid}}", "key 'sweep.searcher' is not usable"),
        (f"sweep: {{{SPACE}, grace: 2}}", "key 'sweep.grace' is not usable"),
        (f"sweep: {{{SPACE}, city: {{bloks: 1}}}}", "key 'sweep.city.bloks' is not usable"),
        ("sweep: {space: {loss.lambda_depth: 3}}", "key 'sweep.space.loss.lambda_depth' is not usable"),
        (f"train: {{step: 3}}\nsweep: {{{SPACE}}}", "the key 'train.step' is unknown; did you mean 'train.steps'?"),
        (f"base: 3\nsweep: {{{SPACE}}}", "base is 3; give the path of a config file"),
        (f"base: absent.yaml\nsweep: {{{SPACE}}}", "absent.yaml does not exist"),
        (f"scene: {{val_every: 0}}\nsweep: {{{SPACE}}}", "trials are compared by val photos"),
    ],
)
def test_what_a_file_cannot_say_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        load_sweep(write(tmp_path, text))
    assert sentence in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_an_absent_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_sweep(tmp_path / "absent.yaml")


def test_a_directory_holds_one_sweep_that_may_grow(tmp_path: Path) -> None:
    path = write(tmp_path, "sweep: {space: {loss.lambda_depth: {uniform: [0, 1]}}, num_samples: 4}\n")
    keep(load_sweep(path), tmp_path)
    keep(load_sweep(path, ["sweep.num_samples=6", "sweep.max_concurrent=1", "train.log_every=3"]), tmp_path)
    assert load_sweep(tmp_path / "sweep.yaml").settings.num_samples == 6
    with pytest.raises(InputError, match=r"sweep.seed is 1, but the sweep in .* was begun with 0; choose another"):
        keep(load_sweep(path, ["sweep.seed=1"]), tmp_path)
    with pytest.raises(InputError, match=r"train.steps is 3, but"):
        keep(load_sweep(path, ["train.steps=3"]), tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("sweep*.yaml")), ids=lambda path: path.name)
def test_the_files_in_configs_are_usable(path: Path) -> None:
    sweep = load_sweep(path)
    weights = {key for key in sweep.config.flat() if key.startswith("loss.lambda_")}
    assert {axis.key for axis in sweep.space.axes} <= weights
    assert sweep.space.num_trials == {"sweep.yaml": 8, "sweep-regularisers.yaml": 10}[path.name]
