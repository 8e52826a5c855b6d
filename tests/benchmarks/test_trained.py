"""Timing a trained run; a whole one is timed with the demo's slow test."""

from pathlib import Path

import pytest

from benchmarks import trained
from inf_nerf.errors import InputError


def test_a_run_without_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no complete checkpoint; train it first"):
        trained.main([str(tmp_path)])
