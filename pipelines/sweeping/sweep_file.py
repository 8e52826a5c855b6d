"""The file of a sweep: a configuration, or the name of one to build on, and the section ``sweep``."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from inf_nerf.config import Config, SweepConfig
from inf_nerf.config_file import in_own_keys, merge, read_yaml, set_keys, validated
from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from pipelines.resume import OPERATIONAL
from pipelines.sweeping.space import Space

SWEEP_FILE = "sweep.yaml"  # of a sweep's directory: what was begun there
OPERATIONAL_SETTINGS = ("sweep.max_concurrent", "sweep.trials", "sweep.num_samples")  # may differ when it continues


@dataclass(frozen=True)
class Sweep:
    """All that a sweep is made from."""

    config: Config  # of every trial, but for what it tries
    settings: SweepConfig
    space: Space

    def flat(self) -> dict[str, Any]:
        """Dotted key -> plain value."""
        settings = self.settings.model_dump(mode="json")
        return self.config.flat() | {f"sweep.{key}": value for key, value in settings.items()}

    def to_yaml(self) -> str:
        """All keys, readable by :func:`load_sweep`."""
        content = self.config.model_dump(mode="json") | {"sweep": self.settings.model_dump(mode="json")}
        return yaml.safe_dump(content, sort_keys=False)


def load_sweep(path: Path, overrides: Iterable[str] = ()) -> Sweep:
    """Read a sweep file; raises :class:`InputError` naming the file and the key.

    ``base`` in the file is the path, from the file's folder, of a configuration of which the file holds differences.
    """
    values = in_own_keys(read_yaml(path, Config.model_fields), str(path))
    base = values.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise InputError(f"In {path}, base is {base!r}; give the path of a config file, or leave it out.")
        below = path.parent / base
        differences, values = values, in_own_keys(read_yaml(below, Config.model_fields), str(below))
        merge(values, differences)
    set_keys(values, overrides)
    settings = values.pop("sweep", None)
    if not isinstance(settings, dict) or "space" not in settings:
        raise InputError(
            f"{path} says nothing to sweep; give it a section sweep with a space, as configs/sweep.yaml has."
        )
    config = validated(values, Config, str(path))
    wanted = validated(settings, SweepConfig, str(path), "sweep.")
    if config.scene.val_every == 0 and config.scene.val_list is None:
        raise InputError(f"In {path}, scene.val_every is 0, but trials are compared by val photos; set it, e.g. to 16.")
    return Sweep(config, wanted, Space(config, wanted, str(path)))


def keep(sweep: Sweep, sweep_dir: Path) -> None:
    """Write down what is swept in a directory; raises :class:`InputError` where that is another sweep already."""
    path = sweep_dir / SWEEP_FILE
    if path.exists():
        before = load_sweep(path).flat()
        for key, value in sweep.flat().items():
            if before[key] != value and not key.startswith((*OPERATIONAL, *OPERATIONAL_SETTINGS)):
                raise InputError(
                    f"{key} is {value!r}, but the sweep in {sweep_dir} was begun with {before[key]!r}; choose another "
                    "--output-dir."
                )
    write_atomic(path, sweep.to_yaml())
