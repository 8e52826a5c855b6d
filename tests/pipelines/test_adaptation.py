"""A tree that adapts, on real Ray workers and by the command line; what follows a tree is tested in tests/train."""

from pathlib import Path

import pytest
import torch

from inf_nerf.octree.topology import key_name
from inf_nerf.train.manifest import latest_checkpoint, read_manifest
from inf_nerf.train.opened import load_checkpoint
from pipelines import cli, prepare, synth
from tests.pipelines.disturbed import CITY, Training, settings
from tests.pipelines.small_city import cut_here

STEPS = 60
ADAPTIVE = (
    *("octree.num_levels=4", "octree.min_points=40", "field.max_res=16", "octree.subdivision_threshold=0.2"),
    *("octree.update_every=20", "octree.prune_every=30", f"train.steps={STEPS}", "train.save_every=25"),
)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_tree_grows_on_two_workers_and_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_cut_by_ray", cut_here)
    synth.run(tmp_path / "city", **CITY)
    prepare.run(settings(*ADAPTIVE), tmp_path / "city", tmp_path / "prepared")
    before = prepare.read_prepared(tmp_path / "prepared").octree
    running = Training(tmp_path / "run", *ADAPTIVE, prepared=tmp_path / "prepared")
    try:
        running.end(0)
    finally:
        running.close()
    nodes = {row["step"]: row["nodes"] for row in running.rows()}
    assert nodes[18] == before.num_nodes < nodes[STEPS] <= 2 * before.num_nodes
    newest = latest_checkpoint(running.run_dir)
    assert newest is not None
    manifest, opened = read_manifest(newest), load_checkpoint(newest)
    assert (manifest["step"], manifest["num_workers"], manifest["complete"]) == (STEPS, 2, True)
    assert opened.octree.num_nodes == nodes[STEPS]
    new = opened.octree.keys[~torch.isin(opened.octree.keys, before.keys)].tolist()
    owners = {opened.subtrees[key >> 3 * up] for key in new for up in range(1, 20) if key >> 3 * up in opened.subtrees}
    print(f"{before.num_nodes} nodes, then {nodes[STEPS]}; {len(new)} new ones, below subtrees of workers {owners}")
    assert new and all(f"optimiser/{key_name(key)}.safetensors" in manifest["files"] for key in new)
    assert running.psnr() > 10  # of the evaluation that a training ends with
    assert not (running.run_dir / "alerts.jsonl").exists()


@pytest.mark.parametrize(
    ("also", "named"),
    [
        ("train.node_memory_mb=100", "train.node_memory_mb must be null"),
        ("train.foreign=exchange", "train.foreign must be 'discount'"),
        ("train.subtree=r0", "train.subtree must be null"),
        ("sampler.kind=tree", "sampler.kind 'occupancy'"),
    ],
)
def test_what_does_not_go_with_it_is_one_sentence_before_anything_is_written(
    also: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--data-root", str(tmp_path / "city"), "--output-dir", str(tmp_path / "run")]
    assert cli.main([*command, "--set", "octree.prune_every=5", "--set", also]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1 and named in shown[0]
    assert not list(tmp_path.iterdir())
