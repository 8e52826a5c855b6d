"""A tree that is trained part by part on real Ray workers: in turns under a cap, then one subtree again."""

import json
from pathlib import Path

import pytest

from inf_nerf.octree.topology import key_name
from inf_nerf.train.manifest import latest_checkpoint, read_manifest
from inf_nerf.train.turns import MIB, node_bytes, partition_in_turns
from pipelines import prepare
from tests.pipelines.disturbed import Training, prepared_city, settings

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

STEPS, TURN_STEPS, MORE_STEPS = 120, 30, 12


def trained(run_dir: Path, *overrides: str, prepared: Path | None = None, resume: str | None = None) -> Training:
    """A training that has come to its end."""
    training = Training(run_dir, *overrides, prepared=prepared, resume=resume)
    try:
        training.end(0)
    finally:
        training.close()
    return training


def hashes(run_dir: Path) -> dict[str, str]:
    """Of every file of the newest checkpoint."""
    newest = latest_checkpoint(run_dir)
    assert newest is not None
    return {name: entry["sha256"] for name, entry in read_manifest(newest)["files"].items()}


def test_workers_take_turns_and_then_train_one_subtree_while_the_rest_stays_the_same_to_the_byte(
    tmp_path: Path,
) -> None:
    prepared = prepared_city(tmp_path / "prepared")
    octree = prepare.read_prepared(prepared).octree
    cap = 0.45 * octree.num_nodes * node_bytes(settings()) / MIB  # two ranks hold less than all between them
    limits = (f"train.node_memory_mb={cap}", f"train.turn_steps={TURN_STEPS}", f"train.steps={STEPS}")
    assert partition_in_turns(settings(*limits), octree, 2).num_ranks > 2
    training = trained(tmp_path / "run", *limits, prepared=prepared)
    before = hashes(training.run_dir)
    assert sum(name.startswith("nodes/") for name in before) == octree.num_nodes + 1
    scores = json.loads((training.run_dir / "eval.json").read_text())
    print(f"in turns {scores['psnr0']:.2f} dB, one colour {scores['psnr0_floor']:.2f} dB")
    assert scores["psnr0"] > scores["psnr0_floor"] + 0.5
    assert [row["step"] for row in training.rows()] == list(range(2, STEPS + 1, 2))

    subtree = key_name(int(octree.keys[octree.level == 1][0]))
    again = (f"train.subtree={subtree}", f"train.steps={MORE_STEPS}")
    again_trained = trained(training.run_dir, *again, resume="latest")
    assert again_trained.step() == STEPS + MORE_STEPS
    after = hashes(training.run_dir)
    assert before.keys() - {name for name in before if name.startswith("ranks/")} <= after.keys()
    changed = {name for name in after if name.startswith(("nodes/", "optimiser/")) and before[name] != after[name]}
    assert {Path(name).stem for name in changed} <= {
        name for name in map(key_name, octree.keys.tolist()) if name.startswith(subtree)
    }
    assert f"nodes/{subtree}.safetensors" in changed
