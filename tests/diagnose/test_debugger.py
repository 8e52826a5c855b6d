"""The debugger names what is wrong and where, says nothing of a healthy training, and leaves no trace."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from inf_nerf.config import DebugConfig
from inf_nerf.diagnose.debugger import Debugger, nodes_not_finite
from inf_nerf.errors import NotFiniteError
from inf_nerf.field.heads import layers_of, trunc_exp
from inf_nerf.octree.topology import key_name
from inf_nerf.train.loop import Work, train
from inf_nerf.train.loss_scale import LossScale
from tests.train.ranks import run_ranks
from tests.train.tiny import tiny_config, tiny_work

EVERY = 4


def debugged(debugger: Debugger, **sections: dict[str, Any]) -> Work:
    work = tiny_work(tiny_config(**sections)).work
    work.debugger = debugger
    return work


def run(work: Work, until: int | None = None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    train(work, rows.append, lambda val: None, lambda: False, until)
    return rows


def multiply_gradients(work: Work, factor: float, begin: int, end: int = 10**9) -> None:
    """From step ``begin`` on colours pass on a gradient that is so much larger."""
    finite = work.model.render

    def render(*args: Any, **named: Any) -> Any:
        found = finite(*args, **named)
        if found.rgb.requires_grad and begin <= work.progress.step + 1 < end:
            found.rgb.register_hook(lambda gradient: gradient * factor)
        return found

    work.model.render = render  # type: ignore[method-assign]


def test_a_healthy_training_has_no_anomaly_and_counts_its_looks(tmp_path: Path) -> None:
    with Debugger(DebugConfig(every=EVERY), tmp_path / "debug.json") as debugger:
        work = debugged(debugger, train={"steps": 60})
        rows = run(work)
        assert debugger.looks == 15
    assert not debugger.anomalies and all(row["anomalies"] == 0 for row in rows)
    report = json.loads((tmp_path / "debug.json").read_text())
    names = {key_name(key) for key in work.model.field.keys.tolist()}
    assert names == set(report["nodes"]) and set(report["levels"]) == {"-1", "0", "1", "2"}
    root = report["nodes"]["r"]
    assert set(root["gradients"]) == {"table", "density", "colour"}
    assert {"features", "density.hidden", "density.raw", "colour.hidden1", "colour.hidden2"} < set(root["activations"])
    assert report["levels"]["0"]["table"]["norm"] == root["gradients"]["table"]["norm"] > 0


def test_the_report_says_how_far_gradients_came_above_what_is_usual() -> None:
    with Debugger(DebugConfig(every=1)) as debugger:
        work = debugged(debugger, train={"steps": 30, "lr_init": 1e-5, "lr_final": 1e-5})
        run(work, until=10)
        before = {part: found["times"] for part, found in debugger.report()["growth"].items()}
        multiply_gradients(work, 50, 12)
        run(work, until=12)
    growth = debugger.report()["growth"]
    assert growth.keys() == before.keys() == {"table", "density", "colour"} and not debugger.anomalies
    for part, found in growth.items():
        assert found["step"] == 12 and before[part] < 10 < found["times"] < 100, part


def test_gradients_that_were_zero_make_no_other_an_explosion() -> None:
    with Debugger(DebugConfig(every=1, gradient_growth=1e12)) as debugger:  # so that others than zero never are one
        work = debugged(debugger, train={"steps": 30, "lr_init": 1e-5, "lr_final": 1e-5})
        multiply_gradients(work, 0, 1, 20)
        run(work, until=25)
    assert not debugger.anomalies


def test_the_hook_is_gone_after_the_block() -> None:
    with Debugger(DebugConfig(every=1)) as debugger:
        work = debugged(debugger)
        run(work, until=2)
        assert work.model.field.watch is not None
    assert work.model.field.watch is None


def test_the_hook_is_gone_after_an_error() -> None:
    work = tiny_work().work
    work.model.field.tables.data[2] = torch.nan

    def fail() -> None:
        with Debugger(DebugConfig(every=1)) as work.debugger:
            run(work)

    with pytest.raises(NotFiniteError):
        fail()
    assert work.model.field.watch is None


def test_a_training_that_is_looked_into_is_the_same() -> None:
    plain = tiny_work(tiny_config()).work
    run(plain)
    with Debugger(DebugConfig(every=1)) as debugger:
        work = debugged(debugger)
        run(work)
    for name in ("tables", "density_weights", "colour_weights"):
        assert torch.equal(getattr(plain.model.field, name), getattr(work.model.field, name))


def test_gradient_figures_are_those_of_the_gradients() -> None:
    with Debugger(DebugConfig(every=1)) as debugger:
        work = debugged(debugger)
        wanted: dict[str, torch.Tensor] = {}
        step = work.optimiser.step

        def remember(*args: Any, **named: Any) -> None:  # before the update clears them
            for row in torch.nonzero(work.model.field.touched).squeeze(1).tolist():
                gradients = work.model.field.gradients_of(row)
                wanted.setdefault(key_name(int(work.model.field.keys[row])), gradients[0].clone())
            step(*args, **named)

        work.optimiser.step = remember  # type: ignore[method-assign]
        run(work, until=1)
    nodes = debugger.report()["nodes"]
    assert len(wanted) > 3
    for name, gradient in wanted.items():
        found = nodes[name]["gradients"]["table"]
        assert found["norm"] == pytest.approx(float(gradient.double().square().sum().sqrt()), rel=1e-4)
        assert (found["min"], found["max"]) == pytest.approx((float(gradient.min()), float(gradient.max())))
        assert found["nan"] == found["inf"] == 0


def test_activations_are_those_that_the_field_computes() -> None:
    work = tiny_work().work
    field = work.model.field
    field.tables.data.mul_(1000)
    node = torch.tensor([1] * 40 + [3] * 8)
    features = torch.randn(48, field.spec.num_features)
    direction = torch.nn.functional.normalize(torch.randn(5, 3), dim=1)
    appearance, ray = torch.randn(5, 4), torch.randint(0, 5, (48,))
    with Debugger(DebugConfig(every=1, samples=8)) as debugger:
        debugger.begin(1, field)
        sigma, rgb = field.radiance_of(features, node, direction, appearance, ray)
        picked = torch.cat((torch.arange(0, 40, 5), torch.arange(40, 48)))
        found = debugger._activations_of(
            field, torch.tensor([1, 3]), features[picked], direction, appearance, ray[picked]
        )
        debugger.look()
    raw = found["density.raw"].detach()
    assert torch.allclose(trunc_exp(raw[..., 0].reshape(-1) + field.density_bias), sigma[picked], rtol=1e-4)
    assert torch.allclose(torch.sigmoid(found["colour.raw"]).reshape(-1, 3), rgb[picked], atol=1e-5)
    stats = debugger.report()["nodes"][key_name(int(field.keys[1]))]["activations"]["density.raw"]
    assert stats["mean"] == pytest.approx(float(raw[0].mean()), abs=1e-5)
    assert stats["std"] == pytest.approx(float(raw[0].std()), rel=1e-4)
    assert (stats["min"], stats["max"]) == pytest.approx((float(raw[0].min()), float(raw[0].max())), abs=1e-5)


def test_units_that_never_answer_are_counted_as_dead() -> None:
    with Debugger(DebugConfig(every=1)) as debugger:
        work = debugged(debugger)
        inner, _ = layers_of(work.model.field.density_weights.data, work.model.field.density_sizes)
        inner[0, :, :5] = 0  # of the root
        run(work, until=1)
    stats = debugger.report()["nodes"]
    assert stats["r"]["activations"]["density.hidden"]["dead"] >= 5
    assert stats["r"]["activations"]["features"]["dead"] == 0


@pytest.mark.parametrize("row", [0, 3])
def test_nan_in_the_table_of_one_node_is_named_by_the_step_in_which_it_is_met(row: int) -> None:
    with Debugger(DebugConfig(every=EVERY)) as debugger:
        work = debugged(debugger, train={"steps": 40, "batch_size": 256})
        run(work, until=9)
        assert not debugger.anomalies
        work.model.field.tables.data[row] = torch.nan
        name = key_name(int(work.model.field.keys[row]))
        rows: list[dict[str, Any]] = []
        with pytest.raises(NotFiniteError, match=rf"in step 10; .* Not finite: {name}\.$"):
            train(work, rows.append, lambda val: None, lambda: False)
    values = [anomaly for anomaly in debugger.anomalies if anomaly.kind == "value_anomaly"]
    assert [(anomaly.step, anomaly.node, anomaly.part) for anomaly in values] == [(10, name, "table")]
    assert rows == [{"step": 10, "seconds": pytest.approx(work.progress.seconds, abs=60), "not_finite": 1,
                     "nodes": [name]}]  # fmt: skip


def test_features_that_are_not_finite_are_named_in_their_node_alone() -> None:
    with Debugger(DebugConfig(every=1)) as debugger:
        work = debugged(debugger, train={"batch_size": 256})
        work.model.field.tables.data[3] = torch.inf
        with pytest.raises(NotFiniteError):
            run(work)
    name = key_name(int(work.model.field.keys[3]))
    found = [anomaly for anomaly in debugger.anomalies if anomaly.part == "features"]
    assert [(anomaly.kind, anomaly.node) for anomaly in found] == [("activation_anomaly", name)]


def test_an_exploding_gradient_is_named_once_and_again_after_it_was_sound() -> None:
    with Debugger(DebugConfig(every=1)) as debugger:
        work = debugged(debugger, train={"steps": 30, "lr_init": 1e-5, "lr_final": 1e-5, "log_every": 1})
        multiply_gradients(work, 1e5, 12, 16)
        rows = run(work, until=20)
        first = list(debugger.anomalies)
        assert first and {anomaly.kind for anomaly in first} == {"gradient_explosion"}
        assert {anomaly.step for anomaly in first} <= {12, 13, 14, 15} and first[0].step == 12
        assert len({(anomaly.node, anomaly.part) for anomaly in first}) == len(first)  # each once
        assert all(anomaly.value > anomaly.limit for anomaly in first if anomaly.value and anomaly.limit)
        assert rows[11]["anomalies"] > 0 and rows[10]["anomalies"] == 0 == rows[17]["anomalies"]
        work.model.render = type(work.model).render.__get__(work.model)  # type: ignore[method-assign]
        multiply_gradients(work, 1e5, 22)
        run(work, until=23)
        assert len(debugger.anomalies) > len(first)


def test_an_explosion_that_lasts_is_told_within_the_steps_between_looks() -> None:
    with Debugger(DebugConfig(every=EVERY)) as debugger:
        work = debugged(debugger, train={"steps": 60, "lr_init": 1e-5, "lr_final": 1e-5})
        multiply_gradients(work, 1e5, 30)
        run(work)
    assert debugger.anomalies[0].step == 32


def test_an_absolute_limit_needs_no_history() -> None:
    with Debugger(DebugConfig(every=1, gradient_norm=1e-6)) as debugger:
        run(debugged(debugger), until=1)
    assert any(anomaly.kind == "gradient_explosion" for anomaly in debugger.anomalies)


def test_gradients_under_a_loss_scale_are_looked_at_unscaled_and_an_overflow_is_no_anomaly() -> None:
    norms = []
    for precision in ("float32", "float16"):
        with Debugger(DebugConfig(every=1)) as debugger:
            work = debugged(debugger)
            work.loss_scale = LossScale(precision)
            run(work, until=1)
            norms.append(debugger.report()["nodes"]["r"]["gradients"]["colour"]["norm"])
            if precision == "float16":
                multiply_gradients(work, torch.inf, 2, 3)
                run(work, until=3)
                assert work.loss_scale.value == 2.0**15
                assert not debugger.anomalies
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_large_activations_are_anomalies() -> None:
    with Debugger(DebugConfig(every=1, activation=100.0)) as debugger:
        work = debugged(debugger)
        work.model.field.tables.data[0] *= 1e7
        run(work, until=1)
    found = [anomaly for anomaly in debugger.anomalies if anomaly.kind == "activation_anomaly"]
    assert {anomaly.node for anomaly in found} == {"r"} and "features" in {anomaly.part for anomaly in found}
    assert all(anomaly.limit == 100 and anomaly.value is not None and anomaly.value > 100 for anomaly in found)


def test_nodes_that_are_not_finite_are_those_with_such_values_before_those_with_such_gradients() -> None:
    field = tiny_work().work.model.field
    assert nodes_not_finite(field) == []
    field.touched[:] = True
    field.gradients_of(1)[2][0] = torch.inf
    assert nodes_not_finite(field) == [key_name(int(field.keys[1]))]
    field.state_of(2)["density"][3] = torch.nan
    assert nodes_not_finite(field) == [key_name(int(field.keys[2]))]


def fail_on_one_rank(rank: int) -> str:
    work = tiny_work(tiny_config(train={"batch_size": 256}), 2, rank).work
    row = int(torch.nonzero(~work.shared)[0])
    if rank == 1:
        work.model.field.tables.data[row] = torch.nan
    try:
        run(work)
    except NotFiniteError as error:
        return f"{error} {key_name(int(work.model.field.keys[row]))}"
    return ""


def test_a_node_that_only_one_rank_holds_is_named_on_all_ranks() -> None:
    first, second = run_ranks(2, fail_on_one_rank)
    name = second.rpartition(" ")[2]
    assert f"Not finite: {name}." in first and f"Not finite: {name}." in second
