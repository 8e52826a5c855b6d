"""What a sweep may try: a kind of values for each config key, and which of them a trial gets.

A trial's values depend on the seed, its number and, for Optuna, on what trials before it scored; on nothing that a
process remembers.  So a sweep that continues after its driver died tries what it would have tried.

Letters: G points of the grid.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from inf_nerf.config import Config, SweepConfig
from inf_nerf.config_file import known_keys, nearest_key, validated
from inf_nerf.errors import InputError
from pipelines.prepare import TILE_KEYS
from pipelines.resume import OPERATIONAL

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LISTS, RANGES = ("grid", "choice"), ("uniform", "loguniform", "integer")
SCORING = ("train.val_rays", "train.subtree")  # keys that change what trials are compared by
DIGITS = 4  # significant ones of a number that is drawn

Values = dict[str, Any]  # of a trial: config key -> value


@dataclass(frozen=True)
class Axis:
    """Where the values of one config key come from: a list of them, or the two ends of a range."""

    key: str
    kind: str  # one of LISTS or RANGES
    values: tuple[Any, ...]

    @property
    def is_log(self) -> bool:
        return self.kind == "loguniform"


@dataclass(frozen=True)
class Scored:
    """What a trial before has come to, for a search that learns from it."""

    values: Values
    scores: Mapping[int, float]  # percent of the budget -> val PSNR
    complete: bool  # used its budget, rather than being stopped


class Space:
    """The trials of a sweep around the configuration ``base``."""

    def __init__(self, base: Config, settings: SweepConfig, source: str) -> None:
        """Raises :class:`InputError`, which names ``source`` and the key, for a space that cannot be tried."""
        self._settings = settings
        self._source = source
        self._base = base.flat()
        if not settings.space:
            raise InputError(
                f"In {source}, sweep.space is empty; name a key, for example loss.lambda_depth: {{loguniform: [1e-4, "
                "1e-1]}."
            )
        self.axes = tuple(self._axis(base, key, kinds) for key, kinds in settings.space.items())
        self._refuse_pointless()
        self.num_trials = settings.num_samples * self._num_points()

    def values(self, number: int, before: Sequence[Scored] = ()) -> Values:
        """What trial ``number``, from 0 on, tries; ``before`` are the trials that a search may learn from."""
        if self._settings.searcher == "one-at-a-time":
            return self._one_at_a_time()[number]
        if self._settings.searcher == "optuna":
            return self._suggested(number, before)
        grids = [axis for axis in self.axes if axis.kind == "grid"]
        points = list(product(*(axis.values for axis in grids)))  # [G]
        sample, point = divmod(number, len(points))
        chosen = dict(zip((axis.key for axis in grids), points[point], strict=True))
        generator = np.random.default_rng([self._settings.seed, sample])  # the same draws for every point of the grid
        drawn = {axis.key: _draw(axis, generator) for axis in self.axes if axis.kind != "grid"}
        return {axis.key: chosen[axis.key] if axis.kind == "grid" else drawn[axis.key] for axis in self.axes}

    def _axis(self, base: Config, key: str, kinds: Mapping[str, Any]) -> Axis:
        if key not in known_keys(Config):
            raise InputError(
                f"In {self._source}, sweep.space has the unknown key {key!r}; did you mean "
                f"{nearest_key(key, known_keys(Config))!r}?"
            )
        self._refuse_key(key)
        name = f"sweep.space.{key}"
        if len(kinds) != 1 or next(iter(kinds)) not in (*LISTS, *RANGES):
            raise InputError(
                f"In {self._source}, {name} is {dict(kinds)}; give one of {', '.join((*LISTS, *RANGES))}, for example "
                f"{key}: {{grid: [1, 2]}}."
            )
        (kind, given) = next(iter(kinds.items()))
        if not isinstance(given, list) or not given or (kind in RANGES and len(given) != 2):
            wanted = "two ends of a range" if kind in RANGES else "at least one value"
            raise InputError(f"In {self._source}, {name}.{kind} is {given!r}; give a list of {wanted}.")
        # as the configuration takes them: 1e-2, which YAML reads as text, is a number
        values = tuple(with_values(base, {key: value}, self._source).flat()[key] for value in given)
        if kind in RANGES:
            self._refuse_range(f"{name}.{kind}", kind, values)
        elif len(set(map(repr, values))) < len(values):
            raise InputError(f"In {self._source}, {name}.{kind} has a value twice: {list(values)}; name each once.")
        return Axis(key, kind, values)

    def _refuse_key(self, key: str) -> None:
        why = None
        if key.startswith(TILE_KEYS):
            why = "shapes the scene, the tree or the tiles, which are prepared once for all trials"
        elif key in SCORING:
            why = "changes what the trials are compared by"
        elif key.startswith(OPERATIONAL):
            why = "does not change what is learned"
        if why is not None:
            raise InputError(f"In {self._source}, sweep.space cannot hold {key!r}: it {why}; set it for all trials.")

    def _refuse_range(self, name: str, kind: str, ends: tuple[Any, ...]) -> None:
        if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
            raise InputError(f"In {self._source}, {name} is {list(ends)}; the key takes no numbers, so use choice.")
        if kind == "integer" and not all(isinstance(end, int) for end in ends):
            raise InputError(f"In {self._source}, {name} is {list(ends)}; give whole numbers, or use uniform.")
        if kind != "integer" and not any(isinstance(end, float) for end in ends):
            raise InputError(f"In {self._source}, {name} is {list(ends)}; the key takes whole numbers, so use integer.")
        if not ends[0] < ends[1]:
            raise InputError(f"In {self._source}, {name} is {list(ends)}; the first end must be below the second.")
        if kind == "loguniform" and ends[0] <= 0:
            raise InputError(f"In {self._source}, {name} begins at {ends[0]}; logarithms need more than zero.")

    def _refuse_pointless(self) -> None:
        settings = self._settings
        kinds = {axis.kind for axis in self.axes}
        if settings.searcher == "optuna" and "grid" in kinds:
            raise InputError(f"In {self._source}, the searcher optuna tries no grids; write choice instead of grid.")
        if settings.searcher == "one-at-a-time" and not kinds <= set(LISTS):
            raise InputError(
                f"In {self._source}, the searcher one-at-a-time tries the values of lists; write grid instead of "
                f"{next(kind for kind in sorted(kinds) if kind not in LISTS)}."
            )
        if settings.num_samples > 1 and (kinds == {"grid"} or settings.searcher == "one-at-a-time"):
            raise InputError(
                f"In {self._source}, sweep.num_samples is {settings.num_samples}, but nothing in sweep.space is drawn "
                "at random, so trials would repeat each other; leave it out."
            )

    def _num_points(self) -> int:
        if self._settings.searcher == "one-at-a-time":
            return len(self._one_at_a_time())
        return math.prod(len(axis.values) for axis in self.axes if axis.kind == "grid")

    def _one_at_a_time(self) -> list[Values]:
        """The base, then each key's values with all other keys as in the base."""
        base = {axis.key: self._base[axis.key] for axis in self.axes}
        changed = [base | {axis.key: value} for axis in self.axes for value in axis.values if value != base[axis.key]]
        return [base, *changed]

    def _suggested(self, number: int, before: Sequence[Scored]) -> Values:
        """What the tree-structured Parzen estimator of Optuna makes of the trials before."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        distributions = {axis.key: _distribution(axis) for axis in self.axes}
        # seeded anew for each trial: a continued sweep would else draw its first random trials once more
        seed = int(np.random.default_rng([self._settings.seed, number]).integers(2**32))
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        for trial in before:
            if trial.scores:
                study.add_trial(
                    optuna.trial.create_trial(
                        state=optuna.trial.TrialState.COMPLETE if trial.complete else optuna.trial.TrialState.PRUNED,
                        value=trial.scores[max(trial.scores)],
                        params=trial.values,
                        distributions=distributions,
                        intermediate_values=dict(trial.scores),
                    )
                )
        asked = study.ask(distributions).params
        return {axis.key: _rounded(axis, asked[axis.key]) for axis in self.axes}


def with_values(base: Config, values: Mapping[str, Any], source: str) -> Config:
    """``base`` with the values of some keys; raises :class:`InputError`, which names ``source``, for unusable ones."""
    dump = base.model_dump(mode="json")
    for key, value in values.items():
        *sections, last = key.split(".")
        inner = dump
        for section in sections:
            inner = inner[section]
        inner[last] = value
    return validated(dump, Config, source)


def _draw(axis: Axis, generator: np.random.Generator) -> Any:
    if axis.kind == "choice":
        return axis.values[int(generator.integers(len(axis.values)))]
    least, most = axis.values
    if axis.kind == "integer":
        return int(generator.integers(least, most, endpoint=True))
    if axis.is_log:
        return _rounded(axis, math.exp(generator.uniform(math.log(least), math.log(most))))
    return _rounded(axis, generator.uniform(least, most))


def _rounded(axis: Axis, value: Any) -> Any:
    """A number that is drawn, short enough to be read, and within its range."""
    if axis.kind not in ("uniform", "loguniform"):
        return value
    least, most = axis.values
    return min(max(float(f"{value:.{DIGITS}g}"), float(least)), float(most))


def _distribution(axis: Axis) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.kind in LISTS:
        return CategoricalDistribution(axis.values)
    least, most = axis.values
    return IntDistribution(least, most) if axis.kind == "integer" else FloatDistribution(least, most, log=axis.is_log)
