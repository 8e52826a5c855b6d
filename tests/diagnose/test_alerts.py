"""Planted faults are found by name, once, within the stated rows; a healthy training raises nothing."""

import time
from typing import Any

import pytest
import torch

from inf_nerf.config import MonitorConfig
from inf_nerf.diagnose import alerts
from inf_nerf.diagnose.alerts import Alert, Monitor
from inf_nerf.diagnose.debugger import Debugger
from inf_nerf.errors import NotFiniteError
from inf_nerf.octree.topology import key_name
from inf_nerf.train import figures, loop
from inf_nerf.train.loop import Work, train
from inf_nerf.train.reservoir import RayBatch
from tests.train.ranks import run_ranks
from tests.train.tiny import tiny_config, tiny_work

LOG_EVERY = 5
FAULT = 75  # step from which on a fault is planted: row 16 is the first with it
WINDOW = MonitorConfig().sustained * LOG_EVERY  # steps within which it has to be told
# rates of so short steps vary on a busy machine
PATIENT = MonitorConfig(throughput=0.1)


def row(step: int, **values: Any) -> dict[str, Any]:
    healthy = {"loss": 1 / step, "rays_per_second": 1e4, "data_share": 0.02, "seconds_imbalance": 0.05}
    return {"step": step, "seconds": step / 10, "host_memory": 0.5, "not_finite": 0, **healthy, **values}


def told(monitor: Monitor, rows: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(alert.step, alert.name) for each in rows for alert in monitor.take(each)]


def watched(work: Work, monitor: Monitor) -> list[Alert]:
    """Train to the end, judged row by row."""
    found: list[Alert] = []
    train(work, lambda each: found.extend(monitor.take(each)), lambda val: None, lambda: False)
    return found


def work_of(steps: int = 120, **train_keys: Any) -> Work:
    return tiny_work(tiny_config(train={"steps": steps, "log_every": LOG_EVERY, **train_keys})).work


class Delay:
    """From step FAULT on five steps long, on however busy a machine, and long enough that no hiccup of it counts."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._seconds: float | None = None

    def __call__(self) -> None:
        progress = self._work.progress
        if progress.step >= FAULT:
            self._seconds = self._seconds or max(0.1, 5 * progress.seconds / progress.step)
            time.sleep(self._seconds)


def only(found: list[Alert], name: str) -> Alert:
    assert [alert.name for alert in found] == [name]
    assert FAULT < found[0].step <= FAULT + WINDOW
    return found[0]


def test_a_healthy_training_raises_nothing() -> None:
    assert watched(work_of(), Monitor(PATIENT)) == []


def test_planted_loss_spike() -> None:
    work = work_of()
    sample = work.reservoir.sample

    def inverted(*given: Any) -> RayBatch:
        batch = sample(*given)
        return batch if work.progress.step < FAULT else RayBatch(batch.photo, batch.level, batch.xy, 1 - batch.rgb)

    work.reservoir.sample = inverted  # type: ignore[method-assign]
    alert = only(watched(work, Monitor(PATIENT)), "loss_spike")
    assert alert.step == FAULT + LOG_EVERY and alert.value > alert.limit


def test_planted_stalled_loader() -> None:
    work = work_of(steps=FAULT + WINDOW)
    sample, delay = work.reservoir.sample, Delay(work)

    def slow(*given: Any) -> RayBatch:
        delay()
        return sample(*given)

    work.reservoir.sample = slow  # type: ignore[method-assign]
    alert = only(watched(work, Monitor(PATIENT)), "data_stall")
    assert "waiting for data" in alert.message


def test_planted_loader_that_never_comes_back() -> None:
    monitor = Monitor(MonitorConfig(stall_seconds=60))
    assert told(monitor, [row(step) for step in range(10, 200, 10)]) == []
    assert monitor.waiting(59) == []
    (alert,) = monitor.waiting(61)
    assert (alert.name, alert.severity, alert.step) == ("stalled", "critical", 190)
    assert monitor.waiting(90) == []
    assert told(monitor, [row(200)]) == [] and monitor.active == set()


def test_planted_loader_that_never_begins() -> None:
    monitor = Monitor(MonitorConfig(stall_seconds=60))
    assert monitor.waiting(599) == []  # workers start, and compile
    (alert,) = monitor.waiting(601)
    assert (alert.name, alert.step) == ("stalled", 0) and "usual" not in alert.message
    assert monitor.waiting(700) == [] and told(monitor, [row(10)]) == [] and monitor.active == set()


def test_a_training_whose_rows_are_far_apart_is_not_called_stalled() -> None:
    monitor = Monitor(MonitorConfig(stall_seconds=60))
    told(monitor, [row(step, seconds=step * 3.0) for step in range(10, 100, 10)])  # every half minute
    assert monitor.waiting(299) == [] and len(monitor.waiting(301)) == 1


def test_planted_memory_pressure(monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of()
    monkeypatch.setattr(figures, "host_share", lambda: 0.97 if work.progress.step >= FAULT else 0.6)
    alert = only(watched(work, Monitor(PATIENT)), "host_memory")
    assert alert.step == FAULT + LOG_EVERY and alert.severity == "critical" and "97 %" in alert.message


def test_planted_nan_in_the_table_of_one_node() -> None:
    work, monitor, found = work_of(batch_size=256), Monitor(PATIENT), list[Alert]()
    sample = work.reservoir.sample

    def poison(*given: Any) -> RayBatch:
        if work.progress.step == FAULT:
            work.model.field.tables.data[3] = torch.nan
        return sample(*given)

    work.reservoir.sample = poison  # type: ignore[method-assign]
    with pytest.raises(NotFiniteError):
        train(work, lambda each: found.extend(monitor.take(each)), lambda val: None, lambda: False)
    alert = only(found, "not_finite")
    assert alert.step == FAULT + 1 and alert.severity == "critical"
    assert alert.message.endswith(f"in {key_name(int(work.model.field.keys[3]))}")


def test_planted_exploding_gradient() -> None:
    work, whole = work_of(), loop.forward
    with Debugger(tiny_config(debug={"every": LOG_EVERY}).debug) as work.debugger:
        render = work.model.render

        def exploding(*given: Any, **named: Any) -> Any:
            found = render(*given, **named)
            if work.progress.step == FAULT + LOG_EVERY - 1 and found.rgb.requires_grad:
                found.rgb.register_hook(lambda gradient: gradient * 1e6)
            return found

        work.model.render = exploding  # type: ignore[method-assign]
        alert = only(watched(work, Monitor(PATIENT.model_copy(update={"loss_spike": 1e9}))), "anomaly")
        kinds = {anomaly.kind for anomaly in work.debugger.anomalies}
    assert alert.step == FAULT + LOG_EVERY and kinds == {"gradient_explosion"}
    assert loop.forward is whole


def slow_rank(rank: int) -> list[tuple[str, int, str]]:
    config = tiny_config(train={"steps": FAULT + WINDOW, "log_every": LOG_EVERY})
    work, found = tiny_work(config, 2, rank).work, list[Alert]()
    render, monitor, delay = work.model.render, Monitor(MonitorConfig(imbalance=0.5)), Delay(work)

    def slow(*given: Any, **named: Any) -> Any:
        if rank == 1:
            delay()
        return render(*given, **named)

    work.model.render = slow  # type: ignore[method-assign]
    train(work, lambda each: found.extend(monitor.take(each)), lambda val: None, lambda: False)
    return [(alert.name, alert.step, alert.message) for alert in found if alert.name != "throughput"]


def test_planted_rank_that_is_slowed_down() -> None:
    first, second = run_ranks(2, slow_rank)
    assert second == []  # only rank 0 logs
    ((name, step, message),) = first
    assert name == "unbalanced" and FAULT < step <= FAULT + WINDOW and message.startswith("worker 1 takes")


def test_a_fall_of_the_throughput_is_told_unless_something_else_explains_it() -> None:
    rows = [row(10 * i, rays_per_second=1e4 if i < 20 else 3e3) for i in range(1, 40)]
    assert told(Monitor(MonitorConfig()), rows) == [(220, "throughput")]
    for each in rows[19:]:
        each["data_share"] = 0.8
    assert told(Monitor(MonitorConfig()), rows) == [(220, "data_stall")]


def test_one_slow_row_is_no_news() -> None:
    rows = [
        row(10 * i, rays_per_second=1e3 if i == 20 else 1e4, data_share=0.9 if i == 25 else 0.0) for i in range(1, 40)
    ]
    assert told(Monitor(MonitorConfig()), rows) == []


def test_a_gpu_is_idle_only_where_it_stays_so() -> None:
    busy = [0.0, 0.9, 0.0, 0.8, 0.0, 0.0, 0.0, 0.0]
    rows = [row(10 * i, device_busy=share) for i, share in enumerate(busy, start=1)]
    assert told(Monitor(MonitorConfig()), rows) == [(70, "device_idle")]


@pytest.mark.parametrize("key", ["host_memory", "device_memory"])
def test_memory_is_a_share_and_not_an_amount(key: str) -> None:
    assert told(Monitor(MonitorConfig()), [row(10, **{key: 0.94, "memory_mb": 60_000.0})]) == []
    assert told(Monitor(MonitorConfig()), [row(10, **{key: 0.96})]) == [(10, key)]


def test_a_loss_that_is_nan_is_not_overlooked() -> None:
    assert told(Monitor(MonitorConfig()), [row(10), row(20, not_finite=1)]) == [(20, "not_finite")]
    for loss in (float("nan"), float("inf")):
        rows = [row(step) for step in range(10, 200, 10)]
        assert told(Monitor(MonitorConfig()), [*rows, row(200, loss=loss), row(210)]) == [(200, "not_finite")]


@pytest.mark.parametrize("key", sorted(row(10)))
@pytest.mark.parametrize("value", [None, "text", [1], {}, float("nan")])
def test_a_value_that_is_none_raises_no_alert_and_no_error(key: str, value: Any) -> None:
    if key == "step" or (key == "loss" and isinstance(value, float)):
        return
    rows = [row(step, nodes=53, device_busy=0.9) | ({key: value} if step > 150 else {}) for step in range(10, 400, 10)]
    monitor = Monitor(MonitorConfig())
    assert told(monitor, rows) == [] and monitor.waiting(1.0) == []


@pytest.mark.parametrize("precision", ["float16", "auto"])  # auto is float16 on a GPU
def test_in_float16_some_overflows_are_usual_and_nothing_but_overflows_is_not(precision: str) -> None:
    rows = [row(20, not_finite=3, nodes=53), row(40, not_finite=1, nodes=53), row(60, not_finite=15, nodes=53)]
    assert told(Monitor(MonitorConfig(), precision), rows) == [(60, "not_finite")]


def test_what_lasts_is_told_once_and_what_comes_back_after_the_cooldown() -> None:
    config = MonitorConfig(cooldown_seconds=10)
    monitor = Monitor(config)
    full = {"host_memory": 0.99}
    assert told(monitor, [row(step, **full) for step in range(10, 400, 10)]) == [(10, "host_memory")]
    assert told(monitor, [row(400), row(410, **full)]) == [(410, "host_memory")]
    assert told(monitor, [row(420), row(430, **full), row(440, **full)]) == []  # 2 s after it was told
    assert told(monitor, [row(500, **full)]) == []  # 9 s
    assert told(monitor, [row(510, **full), row(520, **full)]) == [(510, "host_memory")]


def test_steps_that_are_trained_again_replace_their_rows() -> None:
    monitor = Monitor(MonitorConfig())
    told(monitor, [row(step) for step in (10, 20, 30, 20)])
    assert [each["step"] for each in monitor.rows] == [10, 20]


def test_nodes_that_take_turns_are_not_compared_with_each_other() -> None:
    rows = [row(step, turn=0) for step in range(10, 500, 10)]
    other = [row(step, turn=1, loss=1.0, rays_per_second=1e3) for step in range(500, 700, 10)]
    assert told(Monitor(MonitorConfig()), [*rows, *other]) == []
    assert told(Monitor(MonitorConfig()), [*rows, *other, row(700, turn=1, loss=9.0)]) == [(700, "loss_spike")]


def test_rows_are_bounded() -> None:
    monitor = Monitor(MonitorConfig(window=20))
    told(monitor, [row(step) for step in range(1, 100)])
    assert len(monitor.rows) == 20


def test_every_alert_has_a_rule() -> None:
    names = set(alerts.AlertName.__args__)  # type: ignore[attr-defined]
    assert set(Monitor(MonitorConfig())._rules) | {"stalled"} == names
