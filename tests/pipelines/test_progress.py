"""Following a growing metrics file: no row is lost, torn, or shown twice."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from inf_nerf.config import Config, load_config
from pipelines.progress import RowReader, TrainingProgress, describe, forget_rows_after, seconds_left, share_done


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def append(path: Path, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)


def row(step: int, **values: float) -> dict[str, Any]:
    return {"step": step, **values}


def test_a_line_being_written_waits_until_it_is_complete(metrics: Path) -> None:
    reader = RowReader(metrics)
    assert reader.read() == []
    append(metrics, '{"step": 1}\n{"ste')
    assert reader.read() == [row(1)]
    assert reader.read() == []
    append(metrics, 'p": 2}\n')
    assert reader.read() == [row(2)]


def test_a_broken_line_does_not_hide_the_next(metrics: Path) -> None:
    append(metrics, '{"step": 1}\nnonsense\n[1]\n{"loss": 3}\n{"step": 2}\n')
    assert RowReader(metrics).read() == [row(1), row(2)]


def test_reading_starts_at_the_offset(metrics: Path) -> None:
    append(metrics, '{"step": 1}\n')
    reader = RowReader(metrics, metrics.stat().st_size)
    append(metrics, '{"step": 2}\n')
    assert reader.read() == [row(2)]


def test_a_file_that_was_cut_back_is_followed_from_its_new_end(metrics: Path) -> None:
    append(metrics, '{"step": 1}\n{"step": 2}\n')
    reader = RowReader(metrics)
    assert len(reader.read()) == 2
    metrics.write_text('{"step": 1}\n')
    assert reader.read() == []
    append(metrics, '{"step": 2}\n')
    assert reader.read() == [row(2)]


def test_earlier_rows_are_not_handed_on_again_and_the_last_ones_always_are(metrics: Path) -> None:
    append(metrics, '{"step": 1}\n')
    taken: list[dict[str, Any]] = []
    with TrainingProgress(Config(), metrics, taken.extend, console=Console(file=io.StringIO())) as progress:
        append(metrics, '{"step": 2}\n')
        progress.update()
        assert taken == [row(2)]
        append(metrics, '{"step": 3}\n')
    assert taken == [row(2), row(3)]


def test_an_error_of_the_callback_does_not_end_the_training(metrics: Path, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(rows: list[dict[str, Any]]) -> None:
        raise RuntimeError("no more")

    with TrainingProgress(Config(), metrics, refuse, console=Console(file=io.StringIO())) as progress:
        append(metrics, '{"step": 2}\n')
        progress.update()
    assert progress.last == row(2)
    assert "no more" in caplog.text


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_shown_names_the_figures(metrics: Path, terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200)
    values = row(20, seconds=4.0, rays_per_second=51234.5, samples_per_ray=12.34, loss=0.0123, psnr=19.87)
    config = load_config(overrides=["train.steps=100"])
    with TrainingProgress(config, metrics, console=console, plain_seconds=0.0) as progress:
        progress.update()
        append(metrics, json.dumps(row(10, seconds=2.0)) + "\n" + json.dumps(values) + "\n")
        progress.update()
    shown = out.getvalue()
    for text in (
        "waiting for the first row of metrics (one every 20 steps)",
        "step 20/100",
        "51,23",
        "12.3",
        "0.0123",
        "19.87",
        "00:04",
        "00:16 left",
    ):
        assert text in shown, text


def test_plain_output_comes_at_intervals_and_once_at_the_end(metrics: Path) -> None:
    out = io.StringIO()
    with TrainingProgress(Config(), metrics, console=Console(file=out), plain_seconds=60.0) as progress:
        for step in range(5):
            append(metrics, json.dumps(row(step, seconds=step)) + "\n")
            progress.update()
    assert out.getvalue().count("step") == 1
    assert "step 4/" in out.getvalue()


def test_row_without_figures_is_described_by_its_step() -> None:
    assert describe(row(3), 10) == "step 3/10"
    assert describe({"step": 3, "psnr": None}, 10) == "step 3/10"


def test_the_earlier_of_steps_and_time_ends_the_training() -> None:
    rows = [row(10, seconds=10.0), row(20, seconds=20.0)]  # one step a second
    from collections import deque

    assert seconds_left(deque(rows), 100, None) == pytest.approx(80)
    assert seconds_left(deque(rows), 100, 50.0) == pytest.approx(30)
    assert seconds_left(deque(rows), 30, 50.0) == pytest.approx(10)
    assert seconds_left(deque(rows), 30, 15.0) == 0
    assert seconds_left(deque(rows[:1]), 100, None) is None
    assert seconds_left(deque(), 100, 50.0) is None
    assert share_done(rows[1], 100, 50.0) == pytest.approx(0.4)
    assert share_done(rows[1], 40, 50.0) == pytest.approx(0.5)
    assert share_done(row(200, seconds=1.0), 100, None) == 1


def test_rows_that_will_be_trained_again_are_dropped_with_lines_that_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    forget_rows_after(path, 4)
    assert not path.exists()
    path.write_bytes(b'{"step": 2}\n\x00\x00}\n{"step": 4}\n[1]\n{"loss": 1}\n{"step": "4"}\n{"step": 6}\n{"step": 3')
    forget_rows_after(path, 4)
    assert path.read_bytes() == b'{"step": 2}\n{"step": 4}\n'
