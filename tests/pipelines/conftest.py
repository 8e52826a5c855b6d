"""What tests of stages share: logging as it was before each, and a prepared run, into which none may write."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import prepare, synth
from pipelines.options import PACKAGES
from tests.pipelines.small_city import CONFIG, cut_here


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """The command line sets up logging for its process; tests share one."""
    loggers = [logging.getLogger(name) for name in (None, *PACKAGES)]
    before = [(list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.fixture(scope="session")
def city_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory; the photos are beside it, in ``city``."""
    folder = tmp_path_factory.mktemp("prepared")
    synth.run(folder / "city", blocks=1, photos=12, size=64, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_cut_by_ray", cut_here)
        prepare.run(CONFIG, folder / "city", folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def city_prepared(city_run: Path) -> prepare.Prepared:
    return prepare.read_prepared(city_run)
