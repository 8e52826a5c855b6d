"""A prepared run that the tests of several stages read; none may write into it."""

from pathlib import Path

import pytest

from pipelines import prepare, synth
from tests.pipelines.small_city import CONFIG, cut_here


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
