"""Several ranks are one process: the same gradients of shared and of owned nodes, and only the shared ones travel."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from inf_nerf.errors import InputError
from inf_nerf.octree.partition import Partition, make_partition
from inf_nerf.octree.routing import route
from inf_nerf.scene.cameras import Rays
from inf_nerf.train.loop import NotFiniteError, Work, forward, train
from inf_nerf.train.loss_scale import FIRST, LossScale
from inf_nerf.train.reservoir import RayBatch
from inf_nerf.train.shared_gradients import on_all_ranks
from tests.train.ranks import run_ranks
from tests.train.tiny import texture, tiny_config, tiny_octree, tiny_scene, tiny_work

LEAVES = ("tables", "density_weights", "colour_weights")
CONFIG = tiny_config(
    loss={f"lambda_{name}": 1.0 for name in ("rgb", "depth", "sparsity", "consistency", "regularization", "appearance")}
)
SHARED_LEVELS = {"root": 1, "two levels": 2}


@dataclass(frozen=True)
class FixedTracks:
    """Stands for `Tracks`: the same observations whatever is asked."""

    rays: Rays
    distance: Tensor
    weight: Tensor

    def sample(self, count: int, generator: torch.Generator) -> tuple[Rays, Tensor, Tensor]:
        return self.rays, self.distance, self.weight


def ranks_of_rays(rays: Rays, partition: Partition) -> Tensor:
    """The one rank that owns what a ray [R] can meet; alternating where all is shared, -1 where several ranks own."""
    octree = tiny_octree()
    t = torch.linspace(0.02, 3.5, 3000)
    xyz = rays.origin[:, None] + rays.direction[:, None] * t[:, None]
    node, _ = route(octree, xyz.view(-1, 3).clamp(-1, 1), torch.full((xyz.shape[0] * len(t),), 1e-4))
    owner = partition.owners_of(octree.keys[node]).view(len(rays), -1)  # [R, 3000]; -1: shared
    owner = torch.where((xyz.abs() <= 1).all(2), owner, -1)
    lowest = torch.where(owner < 0, 99, owner).amin(1)
    highest = owner.amax(1)
    alternating = torch.arange(len(rays)) % partition.num_ranks
    one = torch.where(lowest == highest, highest, -1)
    return torch.where(highest < 0, alternating, one)


def pixels(partition: Partition) -> list[tuple[RayBatch, FixedTracks]]:
    """For every rank the pixels and track rays that meet only shared nodes and its own."""
    scene = tiny_scene()
    width, height = scene.cameras.level_size(0, 0)
    generator = torch.Generator().manual_seed(5)
    photo = torch.tensor(scene.train)[torch.randint(len(scene.train), (160,), generator=generator)]
    xy = torch.stack([torch.randint(n, (160,), generator=generator) for n in (width, height)], dim=1)
    level, one = torch.zeros_like(photo), torch.ones(160)
    rank = ranks_of_rays(scene.cameras.rays(photo, level, xy), partition)
    seen = torch.arange(0, len(scene.points.track_photo), 11)
    track_rays = scene.cameras.rays_at(scene.points.track_photo[seen], scene.points.track_xy[seen])
    distance = (scene.points.xyz[scene.points.track_point[seen]] - track_rays.origin).norm(dim=1)
    track_rank = ranks_of_rays(track_rays, partition)
    result = []
    for r in range(partition.num_ranks):
        mine, track = rank == r, track_rank == r
        assert mine.sum() > 20
        assert track.sum() > 10
        batch = RayBatch(photo[mine], level[mine], xy[mine], texture(xy[mine] / 20))
        result.append((batch, FixedTracks(track_rays[track], distance[track], 0.5 + one[: int(track.sum())])))
    return result


def joined(parts: list[tuple[RayBatch, FixedTracks]]) -> tuple[RayBatch, FixedTracks]:
    batches, tracks = [part[0] for part in parts], [part[1] for part in parts]
    names = ("photo", "level", "xy", "rgb")
    return (
        RayBatch(*(torch.cat([getattr(batch, name) for batch in batches]) for name in names)),
        FixedTracks(
            Rays.cat([track.rays for track in tracks]),
            torch.cat([track.distance for track in tracks]),
            torch.cat([track.weight for track in tracks]),
        ),
    )


def prepare(work: Work, tracks: FixedTracks) -> None:
    """Clearly different densities, no randomness in rendering, and fixed tracks."""
    model = work.model
    model.field.tables.data.mul_(3000)
    model.appearance.data.normal_(generator=torch.Generator().manual_seed(3))
    render = model.render
    work.tracks = tracks  # type: ignore[assignment]
    work.model.render = lambda rays, generator, backdrop: render(rays, backdrop=torch.zeros(3))  # type: ignore[method-assign]


def gradients(work: Work, batch: RayBatch, clip: float) -> dict[str, Any]:
    """Gradients by node key as the optimiser would see them, and what was agreed on the way."""
    terms, seen, _ = forward(work, batch)
    assert bool((seen.weight == 1).all())  # nothing foreign
    sum(getattr(work.config.loss, f"lambda_{name}") * term for name, term in terms.items()).backward()  # type: ignore[union-attr]
    control = {"stop": float(work.rank == 1), "owned_norm2": work.gradients.owned_norm2()}
    agreed = work.gradients.agree(control, {f"loss_{name}": float(term.detach()) for name, term in terms.items()})
    work.gradients.start()
    work.gradients.finish()
    field, found = work.model.field, {}
    for node in torch.nonzero(field.touched).flatten().tolist():
        found[int(field.keys[node])] = {name: getattr(field, name).grad[node].clone() for name in LEAVES}
    assert work.model.appearance.grad is not None
    appearance = work.model.appearance.grad.clone()
    norm = work.gradients.clip(clip, agreed["owned_norm2"])
    touched = torch.nonzero(field.touched).flatten().tolist()
    return {
        "agreed": agreed,
        "nodes": found,
        "appearance": appearance,
        "norm": norm,
        "clipped": {int(field.keys[node]): field.tables.grad[node].clone() for node in touched},  # type: ignore[index]
        "bytes": work.gradients.traffic.bytes_sent,
    }


def as_rank(rank: int, num_ranks: int, shared_levels: int) -> dict[str, Any]:
    """What one of the ranks has to tell."""
    sent: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: Tensor, **named: Any) -> Any:
        sent.append(tensor.numel())
        return all_reduce(tensor, **named)

    tiny = tiny_work(CONFIG, num_ranks, rank, shared_levels)
    batch, tracks = pixels(tiny.partition)[rank]
    prepare(tiny.work, tracks)
    dist.all_reduce = counted
    result = gradients(tiny.work, batch, clip=1e-3)
    dist.all_reduce = all_reduce
    return result | {"sent": sent}


def poisoned(rank: int) -> tuple[str, bool]:
    """The message of a rank when the loss of rank 1 alone is NaN, and whether its values stayed as they were."""
    work = tiny_work(tiny_config(), 2, rank).work
    if rank == 1:
        work.model.field.tables.data[~work.shared] = torch.nan
    before = [getattr(work.model.field, name).detach().clone() for name in LEAVES] + [work.model.appearance.clone()]
    message = ""
    try:
        train(work, lambda row: None, lambda val: None, lambda: False)
    except NotFiniteError as error:
        message = str(error)
    after = [getattr(work.model.field, name).detach() for name in LEAVES] + [work.model.appearance]
    return message, all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(before, after, strict=True))


def overflowed(rank: int) -> tuple[float, bool, list[Tensor]]:
    """A float16 step that overflows on rank 1 alone, and one more: the loss scale and whether nothing has changed after
    the first, the values of shared nodes after the second."""
    work = tiny_work(tiny_config(train={"steps": 2, "log_every": 1}), 2, rank).work
    work.model.field.compute_heads_in(torch.float16)
    work.loss_scale = LossScale("float16")
    before = work.model.field.tables.detach().clone()
    seen: list[tuple[float, bool]] = []
    render, agree = work.model.render, work.gradients.agree

    def agreed(control: Any, metrics: Any) -> dict[str, float]:
        if control and work.progress.step == 1:  # what the first step left behind
            seen.append((work.loss_scale.value, torch.equal(work.model.field.tables.detach(), before)))
        return agree(control, metrics)

    def overflowing(*args: Any, **named: Any) -> Any:
        found = render(*args, **named)
        if rank == 1 and work.progress.step == 0:
            found.rgb.register_hook(lambda gradient: gradient * torch.inf)
        return found

    work.gradients.agree = agreed  # type: ignore[method-assign]
    work.model.render = overflowing  # type: ignore[method-assign]
    train(work, lambda row: None, lambda val: None, lambda: False)
    return *seen[0], [getattr(work.model.field, name).detach()[work.shared] for name in LEAVES]


def as_two_ranks(rank: int) -> dict[str, Any]:
    found = {name: as_rank(rank, 2, levels) for name, levels in SHARED_LEVELS.items()}
    return found | {"poisoned": poisoned(rank), "overflowed": overflowed(rank)}


def as_three_ranks(rank: int) -> dict[str, Any]:
    return {"root": as_rank(rank, 3, 1)}


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, Any]]:
    return run_ranks(2, as_two_ranks)


@pytest.fixture(scope="module")
def three_ranks() -> list[dict[str, Any]]:
    return run_ranks(3, as_three_ranks)


@pytest.fixture(scope="module", params=[(2, "root"), (2, "two levels"), (3, "root")], ids=str)
def both(request: pytest.FixtureRequest, two_ranks: list[Any], three_ranks: list[Any]) -> Any:
    """The partition, what its ranks found, and what one process finds on the joined batch."""
    num_ranks, levels = request.param
    partition = make_partition(tiny_octree(), num_ranks, SHARED_LEVELS[levels])
    batch, tracks = joined(pixels(partition))
    work = tiny_work(CONFIG).work
    prepare(work, tracks)
    ranks = two_ranks if num_ranks == 2 else three_ranks
    return partition, [found[levels] for found in ranks], gradients(work, batch, clip=1e-3)


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=float(expected.abs().max()) * 1e-5 + 1e-12)


def test_losses_of_all_ranks_add_up_to_those_of_one(both: Any) -> None:
    _, ranks, one = both
    for name, value in one["agreed"].items():
        if name.startswith("loss_"):
            assert ranks[0]["agreed"][name] == pytest.approx(value, rel=1e-5)
            assert value > 0


def test_shared_gradients_are_those_of_one_process(both: Any) -> None:
    partition, ranks, one = both
    shared = one["nodes"].keys() & partition.shared
    assert len(shared) >= 1
    for found in ranks:
        assert found["nodes"].keys() & partition.shared == shared
        for key in shared:
            for name in LEAVES:
                assert_same(found["nodes"][key][name], one["nodes"][key][name])
        assert_same(found["appearance"], one["appearance"])


def test_owned_gradients_are_those_of_one_process(both: Any) -> None:
    partition, ranks, one = both
    owned = 0
    for rank, found in enumerate(ranks):
        mine = one["nodes"].keys() & partition.owned[rank]
        assert found["nodes"].keys() - partition.shared == mine
        for key in mine:
            for name in LEAVES:
                assert_same(found["nodes"][key][name], one["nodes"][key][name])
        owned += len(mine)
    assert owned >= 4


def test_only_touched_shared_nodes_and_the_appearance_are_sent(both: Any) -> None:
    partition, ranks, one = both
    node = sum(gradient.numel() for gradient in next(iter(one["nodes"].values())).values())
    expected = node * len(one["nodes"].keys() & partition.shared) + one["appearance"].numel()
    for found in ranks:
        control, gradient = found["sent"]
        assert gradient == expected
        assert found["bytes"] == 4 * expected
        assert control < 100
    assert one["bytes"] == 0


def test_clipping_uses_the_joint_norm(both: Any) -> None:
    _, ranks, one = both
    assert one["norm"] > 1e-3
    for found in ranks:
        assert found["norm"] == pytest.approx(one["norm"], rel=1e-4)
        for key, gradient in found["clipped"].items():
            assert_same(gradient, one["nodes"][key]["tables"] * (1e-3 / one["norm"]))


def test_all_ranks_learn_that_one_wants_to_stop(both: Any) -> None:
    _, ranks, _ = both
    assert [found["agreed"]["stop"] for found in ranks] == [1] * len(ranks)


def test_loss_that_is_not_finite_on_one_rank_ends_all_of_them_with_nothing_changed(two_ranks: Any) -> None:
    for found in two_ranks:
        message, unchanged = found["poisoned"]
        assert "not a finite number in step 1;" in message
        assert unchanged


def test_float16_overflow_on_one_rank_skips_the_step_on_all_and_halves_their_scales(two_ranks: Any) -> None:
    scales, unchanged, shared = zip(*[found["overflowed"] for found in two_ranks], strict=True)
    assert scales == (FIRST / 2, FIRST / 2)
    assert unchanged == (True, True)
    assert all(torch.equal(a, b) for a, b in zip(*shared, strict=True))


def ready_or_problem(rank: int) -> tuple[str, str]:
    """What two ranks are told when both are ready, and when only the second has a problem."""

    def fail() -> str:
        if rank == 1:
            raise InputError("The file of rank 1 is damaged; replace it.")
        return "ready"

    try:
        return on_all_ranks(lambda: f"made by {rank}"), on_all_ranks(fail)
    except InputError as error:
        return f"made by {rank}", str(error)


def test_all_ranks_give_up_together_with_the_problem_of_one() -> None:
    problem = "The file of rank 1 is damaged; replace it."
    assert run_ranks(2, ready_or_problem) == [("made by 0", problem), ("made by 1", problem)]
    assert ready_or_problem(0) == ("made by 0", "ready")
    assert ready_or_problem(1) == ("made by 1", problem)
