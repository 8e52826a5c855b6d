"""What an export has finished so far, so that the same command goes on after an interruption.

Parts lie beside the result in ``.NAME.parts`` and are removed when it is there.  Each appears under its name only when
it is complete; parts of another checkpoint or of other settings are removed before anything is written.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inf_nerf.files import write_atomic

KEY = "export.json"

Progress = Callable[[str, int, int], None]  # what is being made, how many parts of it are there, of how many


def no_progress(what: str, done: int, total: int) -> None:
    """Says nothing."""


class Unfinished:
    """The folder of parts of one export."""

    def __init__(self, out: Path, key: dict[str, Any]) -> None:
        """``key``: everything that the parts depend on; plain values."""
        self.folder = out.with_name(f".{out.name}.parts")
        self._key = json.dumps(key, sort_keys=True)
        known = self.folder / KEY
        if not known.is_file() or known.read_text() != self._key:
            shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, name: str) -> Path:
        """Where a part is, or will be."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether a part is finished."""
        return self.path(name).is_file()

    def save(self, name: str, values: NDArray[Any]) -> None:
        """Finish a part."""
        if not (self.folder / KEY).is_file():
            write_atomic(self.folder / KEY, self._key)
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with open(partial, "wb") as file:
            np.save(file, values)
        partial.replace(path)

    def load(self, name: str) -> NDArray[Any]:
        """A finished part, read as far as it is looked at."""
        return np.load(self.path(name), mmap_mode="r")

    def done(self) -> None:
        """The result is there: forget the parts."""
        shutil.rmtree(self.folder, ignore_errors=True)
