"""What processes say is kept as lines that name run and rank, from the chosen level on."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from inf_nerf.errors import InputError
from pipelines.run_log import facts, run_id, run_log

log = logging.getLogger("inf_nerf.somewhere")


def lines(run_dir: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "logs" / f"{name}.jsonl").read_text().splitlines()]


def test_run_is_named_once(tmp_path: Path) -> None:
    assert run_id(tmp_path) == run_id(tmp_path) and len(run_id(tmp_path)) == 12
    (tmp_path / "other").mkdir()
    assert run_id(tmp_path / "other") != run_id(tmp_path)


def test_lines_name_run_rank_and_facts(tmp_path: Path) -> None:
    with run_log(tmp_path, "abc", 3, logging.INFO):
        log.info("Saved step %d.", 20, extra=facts(step=20, val_psnr=None))
    (line,) = lines(tmp_path, "rank3")
    assert line.pop("time").endswith("Z")
    assert line == {"level": "INFO", "run": "abc", "rank": 3, "logger": "inf_nerf.somewhere",
                    "message": "Saved step 20.", "step": 20, "val_psnr": None}  # fmt: skip


@pytest.mark.parametrize(("level", "kept"), [(logging.DEBUG, 3), (logging.INFO, 2), (logging.WARNING, 1)])
def test_level_decides_what_is_kept(tmp_path: Path, level: int, kept: int) -> None:
    before, talkative = logging.getLogger("inf_nerf").level, logging.getLogger("third.talkative")
    talkative.setLevel(logging.INFO)
    with run_log(tmp_path, "abc", 0, level):
        for say in (log.debug, log.info, log.warning):
            say("one")
        logging.getLogger("third.party").info("never")
        talkative.info("nor what a third party lets through by itself")
    log.warning("after")
    assert logging.getLogger("inf_nerf").level == before
    assert len(lines(tmp_path, "rank0")) == kept


def test_rank_in_the_drivers_process_writes_into_its_file(tmp_path: Path) -> None:
    with run_log(tmp_path, "abc", None, logging.INFO):
        log.info("driver")
        with run_log(tmp_path, "abc", 0):
            log.info("rank")
        log.info("driver again")
    assert [line["rank"] for line in lines(tmp_path, "driver")] == [None, 0, None]
    assert not (tmp_path / "logs" / "rank0.jsonl").exists()


def test_exception_is_kept_and_goes_on(tmp_path: Path) -> None:
    with pytest.raises(InputError), run_log(tmp_path, "abc", 0):
        raise InputError("A tile is damaged; run inf-nerf prepare again.")
    with pytest.raises(ZeroDivisionError), run_log(tmp_path, "abc", 0):
        _ = 1 / 0
    with pytest.raises(SystemExit), run_log(tmp_path, "abc", 0):
        raise SystemExit(143)
    expected, fault, stop = lines(tmp_path, "rank0")
    assert expected["level"] == "ERROR" and expected["message"].startswith("A tile") and "traceback" not in expected
    assert fault["message"] == "ZeroDivisionError: division by zero" and "_ = 1 / 0" in fault["traceback"]
    assert (stop["level"], stop["message"], stop["ended"]) == ("WARNING", "SystemExit: 143", True)


def test_line_of_a_killed_process_spoils_none_after_it(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    file = tmp_path / "logs" / "rank0.jsonl"
    file.write_bytes(b'{"level": "INFO"}\n{"lev')
    with run_log(tmp_path, "abc", 0, logging.INFO):
        log.info("whole")
    _, torn, after = file.read_text().splitlines()
    assert torn == '{"lev' and json.loads(after)["message"] == "whole"


def test_log_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "logs").write_text("in the way")
    with run_log(tmp_path, "abc", 0):
        pass
    assert "training goes on without" in caplog.text
