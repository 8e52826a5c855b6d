"""Ranks that trade segments are one process on the joined batch: losses, gradients of every node, pixels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.octree.partition import Partition, make_partition
from inf_nerf.octree.topology import BACKGROUND_KEY
from inf_nerf.scene.cameras import Rays
from inf_nerf.train.assembly import assemble
from inf_nerf.train.checkpoint import restore, save_checkpoint
from inf_nerf.train.exchange import Exchange
from inf_nerf.train.figures import LOSSES
from inf_nerf.train.loop import Work, forward, train
from inf_nerf.train.losses import Seen
from inf_nerf.train.reservoir import RayBatch
from tests.render.test_segments import grazing
from tests.train.ranks import run_ranks
from tests.train.test_shared_gradients import LEAVES, FixedTracks, joined
from tests.train.tiny import MEAN_COLOUR, texture, tiles_of, tiny_config, tiny_octree, tiny_scene, tiny_work

ALL_LOSSES = {f"lambda_{name}": 1.0 for name in LOSSES}
NUM_RAYS = 90
BACKDROP = torch.tensor([0.3, 0.1, 0.6])
CASES = [(2, 1, "numba"), (2, 2, "numba"), (3, 2, "numba"), (3, 2, "torch"), (2, 3, "torch")]


def config_for(backend: str, **train: Any) -> Config:
    field = tiny_config().field.model_dump() | {"backend": backend}
    return tiny_config(field=field, loss=ALL_LOSSES | {"depth_rays": 24}, train={"foreign": "exchange", **train})


def dealt(num_ranks: int, levels: int) -> Partition:
    """Neighbouring subtrees go to different ranks, so that rays change hands often."""
    octree = tiny_octree()
    whole = make_partition(octree, 1, levels)
    roots = tuple(tuple(whole.roots[0][rank::num_ranks]) for rank in range(num_ranks))
    owned = tuple(frozenset[int]().union(*(octree.subtree_keys(key) for key in keys)) for keys in roots)
    return Partition(whole.shared, owned, roots)


def work_of(config: Config, partition: Partition, rank: int) -> Work:
    """A rank of this partition with clearly different densities and looks."""
    train_tiles, val_tiles = (tiles_of(partition, rank, split) for split in ("train", "val"))
    work = assemble(config, tiny_scene(), tiny_octree(), partition, rank, train_tiles, val_tiles, MEAN_COLOUR)
    work.model.field.tables.data.mul_(3000)
    work.model.appearance.data.normal_(generator=torch.Generator().manual_seed(3))
    return work


def rays_of(rank: int) -> Rays:
    """The rays that a rank draws, some of photos with an appearance of their own."""
    rays = grazing(NUM_RAYS + 10 * rank, 20 + rank)
    return Rays(rays.origin, rays.direction, rays.radius, torch.arange(len(rays)) % 4 - 1)


def pull(seen: Seen) -> Tensor:
    """A number that depends on all that is seen."""
    generator = torch.Generator().manual_seed(8)
    parts = [seen.rgb, seen.depth, seen.spread]
    return torch.stack([(part * torch.randn(part.shape, generator=generator)).sum() for part in parts]).sum()


def gradients(work: Work) -> dict[Any, Any]:
    """Gradients by node key, and of the appearance under "looks"."""
    work.gradients.agree({}, {})
    work.gradients.start()
    work.gradients.finish()
    field, found = work.model.field, {}
    for node in torch.nonzero(field.touched).flatten().tolist():
        found[int(field.keys[node])] = {name: getattr(field, name).grad[node].clone() for name in LEAVES}
    assert work.model.appearance.grad is not None
    return found | {"looks": {"looks": work.model.appearance.grad.clone()}}


def batch_of(rank: int) -> tuple[RayBatch, FixedTracks]:
    """Pixels and track rays of a rank, wherever they lead."""
    scene, generator = tiny_scene(), torch.Generator().manual_seed(50 + rank)
    count = 40 + rank
    photo = torch.tensor(scene.train)[torch.randint(len(scene.train), (count,), generator=generator)]
    width, height = scene.cameras.level_size(0, 0)
    xy = torch.stack([torch.randint(n, (count,), generator=generator) for n in (width, height)], dim=1)
    chosen = torch.arange(rank, len(scene.points.track_photo), 97)
    rays = scene.cameras.rays_at(scene.points.track_photo[chosen], scene.points.track_xy[chosen])
    distance = (scene.points.xyz[scene.points.track_point[chosen]] - rays.origin).norm(dim=1)
    return RayBatch(photo, torch.zeros_like(photo), xy, texture(xy / 20)), FixedTracks(rays, distance, distance / 2)


def step_of(work: Work, batch: RayBatch, tracks: FixedTracks) -> dict[str, Any]:
    """Losses and gradients of a training step, with all its randomness."""
    work.tracks = tracks  # type: ignore[assignment]
    work.generator.manual_seed(work.config.train.seed * 1_000_003 + work.progress.step)
    terms, _, figures = forward(work, batch)
    torch.stack(list(terms.values())).sum().backward()
    agreed = work.gradients.agree({}, figures)
    return {"agreed": agreed, "gradients": gradients(work), "steps_across": work.model.steps_across}


def as_rank(rank: int, case: tuple[int, int, str]) -> dict[str, Any]:
    num_ranks, levels, backend = case
    partition = dealt(num_ranks, levels)
    work = work_of(config_for(backend), partition, rank)
    assert work.exchange is not None
    (all_rays,) = work.exchange.rays((rays_of(rank), torch.zeros(len(rays_of(rank)), 0)))
    seen = work.exchange.render(all_rays.rays, all_rays.rank, None, BACKDROP)
    loss = pull(seen)
    loss.backward()
    found = {
        "loss": float(loss.detach()),
        "rgb": seen.rgb.detach(),
        "gradients": gradients(work),
        "asked": seen.num_samples,
    }
    found["bytes"] = work.exchange.traffic.bytes_sent
    return found | {"step": step_of(work_of(config_for(backend), partition, rank), *batch_of(rank))}


def all_cases(rank: int, num_ranks: int) -> dict[Any, Any]:
    return {case: as_rank(rank, case) for case in CASES if case[0] == num_ranks}


@pytest.fixture(scope="module")
def found() -> dict[Any, Any]:
    """By case what each rank found."""
    runs = {ranks: run_ranks(ranks, all_cases, ranks) for ranks in (2, 3)}
    return {case: [each[case] for each in runs[case[0]]] for case in CASES}


@pytest.fixture(scope="module", params=CASES, ids=str)
def both(request: pytest.FixtureRequest, found: dict[Any, Any]) -> tuple[Partition, list[Any], dict[str, Any]]:
    """The partition, what the ranks found, and what one process finds."""
    num_ranks, levels, backend = request.param
    one = make_partition(tiny_octree(), 1, levels)
    work = work_of(config_for(backend), one, 0)
    assert work.exchange is None
    rays = Rays.cat([rays_of(rank) for rank in range(num_ranks)])
    rendered = work.model.render(rays, backdrop=BACKDROP)
    loss = pull(Seen.of(rendered))
    loss.backward()
    wanted = {"loss": float(loss.detach()), "rgb": rendered.rgb.detach(), "gradients": gradients(work)}
    batches = joined([batch_of(rank) for rank in range(num_ranks)])
    wanted["step"] = step_of(work_of(config_for(backend), one, 0), *batches)
    return dealt(num_ranks, levels), found[request.param], wanted


def assert_same_gradients(partition: Partition, ranks: list[dict[Any, Any]], wanted: dict[Any, Any]) -> None:
    shared = {*partition.shared, "looks"}
    for rank, found in enumerate(ranks):
        assert found.keys() - shared == wanted.keys() & partition.owned[rank]
        assert found.keys() & shared == wanted.keys() & shared
        for key, parts in found.items():
            for name, part in parts.items():
                largest = float(wanted[key][name].abs().max())
                torch.testing.assert_close(part, wanted[key][name], rtol=1e-3, atol=largest * 2e-5 + 1e-12)


def test_ranks_see_what_one_process_sees(both: Any) -> None:
    _, ranks, one = both
    for found in ranks:
        torch.testing.assert_close(found["rgb"], one["rgb"], rtol=1e-5, atol=1e-5)
        assert found["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert torch.equal(found["rgb"], ranks[0]["rgb"])


def test_gradients_of_every_node_are_those_of_one_process(both: Any) -> None:
    partition, ranks, one = both
    assert_same_gradients(partition, [found["gradients"] for found in ranks], one["gradients"])
    assert len(one["gradients"]) > 8
    assert BACKGROUND_KEY in one["gradients"]


def test_training_step_is_that_of_one_process_on_the_joined_batch(both: Any) -> None:
    partition, ranks, one = both
    for found in ranks:
        for name in (*(f"loss_{name}" for name in LOSSES), "squared_error", "weight", "rays"):
            assert found["step"]["agreed"][name] == pytest.approx(one["step"]["agreed"][name], rel=1e-5), name
            assert one["step"]["agreed"][name] > 0
        assert found["step"]["steps_across"] == one["step"]["steps_across"]
    assert_same_gradients(partition, [found["step"]["gradients"] for found in ranks], one["step"]["gradients"])


def test_work_is_divided_and_bytes_are_counted(both: Any) -> None:
    _, ranks, _ = both
    asked = [found["asked"] for found in ranks]
    assert max(asked) < 0.85 * sum(asked)
    for rank, found in enumerate(ranks):
        assert found["bytes"] > 32 * (NUM_RAYS + 10 * rank)


def as_trained(rank: int) -> tuple[list[dict[str, Any]], list[Tensor]]:
    work = tiny_work(tiny_config(train={"steps": 12, "log_every": 6, "foreign": "exchange"}), 2, rank).work
    rows: list[dict[str, Any]] = []
    train(work, rows.append, lambda val: None, lambda: False)
    return rows, [getattr(work.model.field, name).detach()[work.shared] for name in LEAVES] + [
        work.model.occupancy.density[work.shared[:-1]]
    ]


def test_training_by_exchange_learns_and_keeps_shared_nodes_equal() -> None:
    (rows, first), (_, second) = run_ranks(2, as_trained)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert rows[-1]["loss_rgb"] < rows[0]["loss_rgb"]
    for row in rows:
        assert row["exchange_bytes"] > 0
        assert 0 < row["exchange_share"] < 1
        assert row["rays_per_second"] > 0


def test_one_process_alone_can_trade_with_itself() -> None:
    work = work_of(config_for("numba"), make_partition(tiny_octree(), 1, 2), 0)
    rays = rays_of(1)
    rendered = work.model.render(rays, backdrop=BACKDROP)
    seen = Exchange(work.model, work.shared[:-1], 0).render(
        rays, torch.zeros(len(rays), dtype=torch.int64), None, BACKDROP
    )
    torch.testing.assert_close(seen.rgb, rendered.rgb, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen.depth, rendered.depth, rtol=1e-4, atol=1e-4)


def as_resumed(rank: int, run_dir: Path) -> float:
    """Steps across of a rank that goes on by exchange where ranks stepped each as it liked."""
    before = tiny_work(num_ranks=2, rank=rank).work
    before.model.steps_across = 70.0 + rank
    path = save_checkpoint(run_dir, before, tiny_scene(), tiny_octree(), "tiny", None, False)
    work = tiny_work(tiny_config(train={"foreign": "exchange"}), 2, rank).work
    restore(work, path)
    return work.model.steps_across


def test_ranks_that_begin_to_exchange_step_alike(tmp_path: Path) -> None:
    assert run_ranks(2, as_resumed, tmp_path) == [70.0, 70.0]
