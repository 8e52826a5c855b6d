"""Values of trials: from the space and nowhere else, the same for the same seed, and refused in one sentence."""

import math
from typing import Any

import numpy as np
import pytest

from inf_nerf.config import Config, SweepConfig
from inf_nerf.errors import InputError
from pipelines.sweeping.space import Scored, Space, with_values

DEPTH, RGB, SPARSITY = "loss.lambda_depth", "loss.lambda_rgb", "loss.lambda_sparsity"


def space(axes: dict[str, Any], **settings: Any) -> Space:
    return Space(Config(), SweepConfig.model_validate({"space": axes, **settings}), "some.yaml")


def test_a_grid_is_tried_whole_with_the_same_draws_at_each_point() -> None:
    found = space(
        {RGB: {"grid": [1, 2]}, "train.beta1": {"uniform": [0.5, 0.9]}, DEPTH: {"grid": [0, 0.1, 0.2]}}, num_samples=2
    )
    assert found.num_trials == 12
    trials = [found.values(number) for number in range(12)]
    assert list(trials[0]) == [RGB, "train.beta1", DEPTH]
    points = [(trial[RGB], trial[DEPTH]) for trial in trials]
    assert points[:6] == points[6:] == [(1, 0), (1, 0.1), (1, 0.2), (2, 0), (2, 0.1), (2, 0.2)]
    assert [len({trial["train.beta1"] for trial in half}) for half in (trials[:6], trials[6:])] == [1, 1]
    assert trials[0]["train.beta1"] != trials[6]["train.beta1"]


def test_draws_spread_over_their_range_and_depend_on_seed_and_number_alone() -> None:
    axes = {
        DEPTH: {"loguniform": [1e-4, 1]},
        "train.eps": {"choice": [1e-8, 1e-15]},
        "data.swap_every": {"integer": [3, 6]},
        RGB: {"uniform": [1, 3]},
    }
    found = space(axes, num_samples=400)
    backwards = [found.values(number) for number in reversed(range(400))][::-1]
    trials = [found.values(number) for number in range(400)]
    assert trials == backwards
    assert space(axes, num_samples=400, seed=1).values(0) != trials[0]
    decades = np.bincount([math.floor(math.log10(trial[DEPTH])) + 4 for trial in trials])
    assert len(decades) == 4 and decades.min() > 60
    assert {trial["train.eps"] for trial in trials} == {1e-8, 1e-15}
    assert {trial["data.swap_every"] for trial in trials} == {3, 4, 5, 6}
    assert np.mean([trial[RGB] for trial in trials]) == pytest.approx(2, abs=0.1)
    assert all(1 <= trial[RGB] <= 3 for trial in trials)
    assert all(len(f"{trial[RGB]:g}") <= 5 for trial in trials), "numbers to be read"


def test_one_at_a_time_changes_one_key_of_the_base() -> None:
    base = {DEPTH: Config().loss.lambda_depth, SPARSITY: Config().loss.lambda_sparsity}
    found = space({DEPTH: {"grid": [0, 0.003, 0.1]}, SPARSITY: {"choice": [0.5]}}, searcher="one-at-a-time")
    assert [found.values(number) for number in range(found.num_trials)] == [
        base,
        base | {DEPTH: 0.0},
        base | {DEPTH: 0.1},
        base | {SPARSITY: 0.5},
    ]


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    found = space({DEPTH: {"loguniform": ["1e-4", "1e-1"]}, RGB: {"choice": ["1e0"]}})
    assert found.axes[0].values == (1e-4, 0.1)
    assert found.values(0)[RGB] == 1.0


@pytest.mark.parametrize(
    ("axes", "settings", "sentence"),
    [
        ({}, {}, "sweep.space is empty; name a key"),
        ({"loss.lambda_deph": {"grid": [1]}}, {}, "unknown key 'loss.lambda_deph'; did you mean 'loss.lambda_depth'?"),
        ({"octree.num_levels": {"grid": [2, 3]}}, {}, "'octree.num_levels': it shapes the scene, the tree"),
        ({"field.max_res": {"grid": [64]}}, {}, "prepared once for all trials"),
        ({"tracking.run_name": {"choice": ["a"]}}, {}, "'tracking.run_name': it does not change what is learned"),
        ({"train.val_rays": {"grid": [1, 2]}}, {}, "it changes what the trials are compared by"),
        ({RGB: {"grid": [1], "choice": [2]}}, {}, "give one of grid, choice, uniform, loguniform, integer"),
        ({RGB: {"normal": [0, 1]}}, {}, "give one of grid"),
        ({RGB: {"grid": []}}, {}, "sweep.space.loss.lambda_rgb.grid is []; give a list of at least one value"),
        ({RGB: {"uniform": [1]}}, {}, "give a list of two ends of a range"),
        ({RGB: {"uniform": [2, 1]}}, {}, "the first end must be below the second"),
        ({RGB: {"loguniform": [0, 1]}}, {}, "begins at 0.0; logarithms need more than zero"),
        ({RGB: {"grid": [1, -2]}}, {}, "key 'loss.lambda_rgb' is not usable: Input should be greater than"),
        ({RGB: {"grid": [1, 1.0]}}, {}, "has a value twice"),
        ({RGB: {"integer": [1, 2]}}, {}, "give whole numbers, or use uniform"),
        ({"data.swap_every": {"uniform": [1, 9]}}, {}, "takes whole numbers, so use integer"),
        ({"train.precision": {"uniform": ["float32", "bfloat16"]}}, {}, "takes no numbers, so use choice"),
        ({RGB: {"grid": [1, 2]}}, {"searcher": "optuna"}, "optuna tries no grids; write choice instead of grid"),
        ({RGB: {"uniform": [1, 2]}}, {"searcher": "one-at-a-time"}, "write grid instead of uniform"),
        ({RGB: {"grid": [1, 2]}}, {"num_samples": 3}, "trials would repeat each other; leave it out"),
    ],
)
def test_a_space_that_cannot_be_tried_is_refused(axes: dict[str, Any], settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        space(axes, **settings)
    assert sentence in str(error.value)
    assert "some.yaml" in str(error.value)
    assert str(error.value).count("\n") == 0


def test_optuna_goes_where_trials_scored_well_and_asks_the_same_again() -> None:
    found = space({DEPTH: {"loguniform": [1e-4, 1]}, "train.precision": {"choice": ["float32", "bfloat16"]}},
                  searcher="optuna", num_samples=40)  # fmt: skip
    trials: list[Scored] = []
    for number in range(40):
        values = found.values(number, trials)
        assert values == found.values(number, list(trials))
        score = -abs(math.log10(values[DEPTH]) + 1) - 2 * (values["train.precision"] == "bfloat16")
        trials.append(Scored(values, {50: score - 1, 100: score}, complete=True))
    late = [trial.values for trial in trials[20:]]
    distance = np.median([abs(math.log10(values[DEPTH]) + 1) for values in late])
    assert distance < 0.6  # at random: 1.2
    assert np.mean([values["train.precision"] == "float32" for values in late]) > 0.7
    assert len({values[DEPTH] for values in late}) > 10


def test_optuna_takes_trials_that_were_stopped_and_ones_without_a_score() -> None:
    found = space({DEPTH: {"uniform": [0, 1]}}, searcher="optuna", num_samples=20)
    before = [Scored({DEPTH: 0.1 * k}, {25: float(-k)}, complete=False) for k in range(10)]
    before.append(Scored({DEPTH: 0.9}, {}, complete=False))
    assert np.mean([found.values(number, before)[DEPTH] for number in range(10, 20)]) < 0.4


def test_values_that_do_not_go_together_are_refused() -> None:
    assert with_values(Config(), {"train.lr_init": 0.5, RGB: 2}, "here").train.lr_init == 0.5
    with pytest.raises(InputError, match=r"In here, .*lr_final .* must not exceed lr_init"):
        with_values(Config(), {"train.lr_init": 1e-6}, "here")
