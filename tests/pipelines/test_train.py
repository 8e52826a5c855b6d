"""What the parts of one run may differ in."""

from pathlib import Path

import pytest

from inf_nerf.config import load_config
from inf_nerf.errors import InputError
from pipelines import train


@pytest.fixture
def _checkpoint_of_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "read_manifest", lambda path: {"config": load_config().model_dump()})


@pytest.mark.usefixtures("_checkpoint_of_the_defaults")
def test_a_run_may_go_on_with_another_backend_but_not_with_another_field() -> None:
    train._refuse_change(load_config(overrides=["field.backend=torch"]), Path("run/checkpoints/1"), (), "")

    with pytest.raises(InputError, match=r"field\.max_res is 99, but the run in run was made with 2048; start another"):
        train._refuse_change(
            load_config(overrides=["field.max_res=99"]), Path("run/checkpoints/1"), (), "start another"
        )
