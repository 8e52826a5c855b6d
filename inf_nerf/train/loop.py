"""The training loop of one rank, to be read from top to bottom.

Nothing here knows how many ranks there are: a rank trains the octree it is given, draws its share of the global batch
from its own tiles, and `SharedGradients` adds up what is shared.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import torch
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.errors import NotFiniteError
from inf_nerf.octree.load import imbalance
from inf_nerf.render.model import Model
from inf_nerf.scene.cameras import Cameras, Rays
from inf_nerf.train import losses
from inf_nerf.train.exchange import Exchange
from inf_nerf.train.loss_scale import LossScale
from inf_nerf.train.optimiser import NodeAdam
from inf_nerf.train.reservoir import RayBatch, Reservoir
from inf_nerf.train.shared_gradients import SharedGradients, Traffic
from inf_nerf.train.tracks import Tracks

OF_RAYS = ("rgb", "depth", "regularization")  # losses that need whole rays
LOSSES = ("rgb", "depth", "sparsity", "consistency", "regularization", "appearance")
METRICS = ("squared_error", "weight", "rays", "samples", *(f"loss_{name}" for name in LOSSES))
RANK_METRICS = ("samples@", "seconds@")  # one of each rank, whose number follows: of work of its own


MOST_DRAWS = 3.0  # pixels drawn at most for one that counts
DRAWS_RATE = 0.1  # how fast their number follows what was seen
PROBE_SHARES = 4  # a probe of occupancy looks at every fourth cell


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    seconds: float = 0.0  # of training, over all parts of an interrupted run
    budget_from: tuple[int, float] = (0, 0.0)  # step and seconds at which the budget begins

    def share(self, config: Config) -> float:
        """Share of the budget that is used, by steps or by time, whichever is larger."""
        limit, (step, seconds) = config.train.max_seconds, self.budget_from
        return min(
            1.0, max((self.step - step) / config.train.steps, (self.seconds - seconds) / limit if limit else 0.0)
        )


@dataclass
class Work:
    """All that one rank trains with."""

    config: Config
    model: Model
    cameras: Cameras
    reservoir: Reservoir
    tracks: Tracks
    node_losses: losses.NodeLosses
    gradients: SharedGradients
    exchange: Exchange | None  # None: this rank answers its rays alone
    optimiser: NodeAdam
    loss_scale: LossScale
    shared: Tensor  # [M] bool: nodes that every rank holds
    subtrees: dict[int, int]  # rank that trains each subtree below them, by the key of its root
    generator: torch.Generator
    rank: int
    num_rays: int  # of this rank in a step, counted by their weights
    num_tracks: int
    val: RayBatch | None
    part: int = 0  # of the partition: what this rank owns now
    num_parts: int = 1
    cursors: dict[int, int] = field(default_factory=dict)  # where the streams of other parts were left
    saved: Path | None = None  # checkpoint in which nodes wait that are not in memory
    stopped: bool = False  # by request
    progress: Progress = field(default_factory=Progress)
    to_probe: Tensor = field(init=False)  # [N] rounds of probing until a node's cells were all seen as it is now
    draws: float = 1.0  # pixels drawn for one that counts: some turn out to be answered by other ranks

    def __post_init__(self) -> None:
        self.to_probe = torch.full((self.model.octree.num_nodes,), PROBE_SHARES, device=self.shared.device)


def train(
    work: Work,
    on_log: Callable[[dict[str, object]], None],
    on_save: Callable[[float | None], None],
    stop_requested: Callable[[], bool],
    until: int | None = None,
) -> bool:
    """Train until the budget is used; returns False if it was stopped before, or came to the step ``until``.

    ``on_log`` gets a row of figures every ``train.log_every`` steps on rank 0.  ``on_save`` is called on all ranks
    together, with the PSNR of the val rays.  Raises :class:`NotFiniteError` on all ranks together.
    """
    config, progress, model = work.config, work.progress, work.model
    warm_up(work)
    forget_traffic(work)
    saved_at = logged_at = time.monotonic()
    started = saved_at - progress.seconds
    saved_step, figures, last = progress.step, Figures(), math.inf if until is None else until
    save, work.stopped = False, False
    while progress.share(config) < 1 and progress.step < last and not (work.stopped and not work.gradients.pending):
        begun = time.monotonic()
        update_occupancy(work)
        if progress.step % config.data.swap_every == 0 and progress.step:
            work.reservoir.swap()

        batch = work.reservoir.sample(round(work.num_rays * work.draws), work.generator)
        terms, seen, figures_now = forward(work, batch)
        work.draws = next_draws(work.draws, figures_now["weight"], figures_now["rays"])
        total = torch.stack([getattr(config.loss, f"lambda_{name}") * term for name, term in terms.items()]).sum()
        if total.requires_grad:
            (total * work.loss_scale.value).backward()
            work.gradients.divide(work.loss_scale.value)

        seconds = time.monotonic() - started
        figures_now[f"samples@{work.rank}"] = figures_now["samples"]
        figures_now[f"seconds@{work.rank}"] = time.monotonic() - begun
        agreed = work.gradients.agree(
            {
                "stop": stop_requested(),
                "save": work.rank == 0 and time.monotonic() - saved_at >= config.train.save_seconds,
                "not_finite": not (math.isfinite(float(total.detach())) and work.gradients.finite()),
                "seconds": seconds if work.rank == 0 else 0.0,
                "owned_norm2": work.gradients.owned_norm2() if config.train.grad_clip else 0.0,
            },
            figures_now,
        )
        if agreed["not_finite"] and not work.loss_scale.lower():
            raise NotFiniteError(
                f"The loss or its gradient is not a finite number in step {progress.step + 1}; nothing of it was "
                "kept: give --resume latest with a lower train.lr_init or train.grad_clip=1."
            )
        if agreed["not_finite"]:  # float16 overflowed: the step counts, but nothing is learned from it
            work.optimiser.clear()
            rate = work.optimiser.rate(progress.share(config))
        else:
            work.loss_scale.keep()
            rate = update(work, agreed, last)

        progress.step += 1
        progress.seconds = agreed["seconds"]
        work.stopped |= agreed["stop"] > 0
        save |= agreed["save"] > 0 or progress.step % config.train.save_every == 0
        if not agreed["not_finite"]:
            figures.add(agreed, seen.node, model)
        if progress.step % config.train.log_every == 0:
            if work.rank == 0:
                on_log(figures.row(progress, rate, time.monotonic() - logged_at, work))
            logged_at, figures = time.monotonic(), Figures()
            forget_traffic(work)
        if save and not work.gradients.pending:
            on_save(score_val(work))
            saved_at, saved_step, save = time.monotonic(), progress.step, False
    if saved_step != progress.step:
        on_save(score_val(work))
    return progress.share(config) >= 1


def update(work: Work, agreed: dict[str, float], last: float = math.inf) -> float:
    """Add up the gradients of what is shared, if it is their turn or the ``last`` step, and let the optimiser use all
    of them; returns the learning rate.

    A rank's own nodes are updated while the sums travel, unless clipping has to know the joint norm first.  Between
    their turns shared nodes and the appearance stay as they are, on all ranks; a run is only saved after a turn.
    """
    config, progress = work.config, work.progress
    share, after = progress.share(config), replace(progress, step=progress.step + 1, seconds=agreed["seconds"])
    waits = after.step % config.train.shared_every and after.share(config) < 1 and after.step < last
    if waits:
        work.gradients.set_aside()
    else:
        work.gradients.start()
    work.to_probe[work.model.field.touched[:-1]] = PROBE_SHARES
    if waits:
        return work.optimiser.step(share)
    if config.train.grad_clip:
        work.gradients.finish()
        work.gradients.clip(config.train.grad_clip, agreed["owned_norm2"])
    work.optimiser.step(share, ~work.shared, appearance=False)
    work.gradients.finish()
    return work.optimiser.step(share, work.shared)


def forget_traffic(work: Work) -> None:
    """Count anew what the exchange with other ranks costs."""
    work.gradients.traffic = Traffic()
    if work.exchange is not None:
        work.exchange.traffic = Traffic()


def warm_up(work: Work) -> None:
    """Do a step's work and forget it, so that code which is compiled at its first use is compiled before the clock
    starts; the step that follows is the same as without."""
    before, steps_across = work.generator.get_state(), work.model.steps_across
    terms, _, _ = forward(work, work.reservoir.sample(work.num_rays, work.generator))
    total = torch.stack(list(terms.values())).sum()
    if total.requires_grad:
        total.backward()
    work.optimiser.clear()
    work.generator.set_state(before)
    work.model.steps_across = steps_across


def forward(work: Work, batch: RayBatch) -> tuple[dict[str, Tensor], losses.Seen, dict[str, float]]:
    """Render a batch and some track rays together; unweighted losses and this rank's summed figures."""
    config, model = work.config, work.model
    rays = work.cameras.rays(batch.photo, batch.level, batch.xy)
    track_rays, distance, reliability = work.tracks.sample(work.num_tracks, work.generator)
    device = model.appearance.device
    rays, track_rays, target = rays.to(device), track_rays.to(device), batch.rgb.to(device)
    tracked = torch.stack((distance, reliability), dim=1).to(device)
    rank, generator, num_answering = None, work.generator, 1
    if work.exchange is not None:  # the rays of all ranks, which compute the same losses of them
        of_batch, of_tracks = work.exchange.rays((rays, target), (track_rays, tracked))
        rays, target, track_rays, tracked = of_batch.rays, of_batch.beside, of_tracks.rays, of_tracks.beside
        rank, num_answering = torch.cat((of_batch.rank, of_tracks.rank)), work.exchange.num_ranks
        generator = torch.Generator().manual_seed(config.train.seed * 1_000_003 + work.progress.step)
    joined, count = Rays.cat((rays, track_rays)), len(rays)
    # below the ground nothing answers: a random colour there makes only opaque ground explain the photos
    backdrop = torch.rand(3, generator=generator).to(device)
    if work.exchange is not None and rank is not None:
        seen = work.exchange.render(joined, rank, generator, backdrop)
    else:
        seen = losses.Seen.of(model.render(joined, generator=generator, backdrop=backdrop))
    colour_weight, track_weight = seen.weight[:count], seen.weight[count:] * tracked[:, 1]

    batch_size, tracks = config.train.batch_size, max(1, config.loss.depth_rays)
    footprint = tracked[:, 0] * track_rays.radius
    transparency, consistency = work.node_losses.draw(work.progress.step)
    terms = {
        "rgb": losses.photometric(seen.rgb[:count], target, colour_weight, batch_size),
        "depth": losses.depth(seen.depth[count:], tracked[:, 0], footprint, track_weight, tracks),
        "sparsity": work.node_losses.transparency(model, transparency),
        "consistency": work.node_losses.consistency(model, consistency),
        "regularization": losses.spread(seen.spread[:count], colour_weight, batch_size),
        "appearance": losses.appearance_prior(model.appearance, batch.photo.to(device), batch_size),
    }
    figures = {f"loss_{name}": float(term.detach()) for name, term in terms.items()}
    for name in OF_RAYS:
        figures[f"loss_{name}"] /= num_answering
    figures["squared_error"] = figures["loss_rgb"] * batch_size
    figures["weight"] = float(colour_weight.sum()) / num_answering
    figures["rays"], figures["samples"] = count / num_answering, float(seen.num_samples)
    return terms, seen, figures


def next_draws(draws: float, weight: float, rays: float) -> float:
    """How many pixels to draw for one that counts, after ``rays`` counted ``weight``, so that the weights of all ranks
    add up to the batch size."""
    wanted = min(MOST_DRAWS, rays / weight) if weight > 0 else MOST_DRAWS
    return draws + (wanted - draws) * DRAWS_RATE


def update_occupancy(work: Work) -> None:
    """Probe a share of the cells of nodes that changed, now and then; shared nodes are probed alike on all ranks.

    A node that nothing touched is left alone once all of its cells were seen: its file does not change either.
    """
    sampler, model, step = work.config.sampler, work.model, work.progress.step
    if sampler.kind != "occupancy" or step % sampler.occupancy_every or step == 0:
        return
    occupancy, octree = model.occupancy, model.octree
    for node in torch.nonzero((work.to_probe > 0) & ~model.field.frozen[:-1]).flatten().tolist():
        work.to_probe[node] -= 1
        seed = (int(octree.keys[node]) * 1_000_003 + step) * 31 + work.config.train.seed
        generator = torch.Generator().manual_seed(seed % 2**63)
        share = step // sampler.occupancy_every % PROBE_SHARES
        occupancy.probe(model.field, node, share, PROBE_SHARES, generator)
    # a cell that was never probed must not be taken for empty
    if step >= max(sampler.occupancy_warmup, PROBE_SHARES * sampler.occupancy_every):
        occupancy.enabled = True
        occupancy.refresh()
        model.occupancy_changed()


@torch.no_grad()
def score_val(work: Work) -> float | None:
    """PSNR of the fixed val rays over all ranks, or None without val photos."""
    error = weight = 0.0
    if work.val is not None:
        for start in range(0, len(work.val.photo), 4096):
            part = slice(start, start + 4096)
            batch = work.val
            rays = work.cameras.rays(batch.photo[part], batch.level[part], batch.xy[part]).to(
                work.model.appearance.device
            )
            rendered = work.model.render(rays)
            each = losses.ray_weights(rendered)
            error += float((each * (rendered.rgb - batch.rgb[part].to(rendered.rgb)).square().mean(1)).sum())
            weight += float(each.sum())
    agreed = work.gradients.agree({}, {"squared_error": error, "weight": weight})
    return psnr(agreed["squared_error"], agreed["weight"]) if agreed["weight"] else None


class Figures:
    """What happened since the last log line, over all ranks; ``level_share``, ``memory_mb`` and what the
    exchange with other ranks cost are rank 0's alone."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(METRICS, 0.0)
        self._of_ranks: dict[str, float] = {}
        self._steps = 0
        self._level_share: dict[int, float] = {}

    def add(self, agreed: dict[str, float], nodes: Tensor, model: Model) -> None:
        """Take in one step and the nodes [Q] of its samples."""
        self._steps += 1
        for name in METRICS:
            self._sums[name] += agreed[name]
        for name, value in agreed.items():
            if name.startswith(RANK_METRICS):
                self._of_ranks[name] = self._of_ranks.get(name, 0.0) + value
        levels = torch.bincount(model.octree.level[nodes], minlength=model.octree.num_levels)
        for level, count in enumerate(levels.tolist()):
            self._level_share[level] = self._level_share.get(level, 0.0) + count

    def row(self, progress: Progress, rate: float, elapsed: float, work: Work) -> dict[str, object]:
        """One line of metrics.jsonl."""
        sums, steps = self._sums, max(1, self._steps)
        mean = {name: sums[f"loss_{name}"] / steps for name in LOSSES}
        total = max(1.0, sum(self._level_share.values()))
        traffic = work.gradients.traffic
        exchanged = work.exchange.traffic if work.exchange is not None else Traffic()
        uneven = {
            name: imbalance([value for key, value in self._of_ranks.items() if key.startswith(name)])
            for name in RANK_METRICS
        }
        return {
            "step": progress.step,
            "seconds": round(progress.seconds, 3),
            "progress": progress.share(work.config),
            "loss": sum(getattr(work.config.loss, f"lambda_{name}") * value for name, value in mean.items()),
            **{f"loss_{name}": value for name, value in mean.items()},
            "psnr": psnr(sums["squared_error"], sums["weight"]),
            "lr": rate,
            "rays_per_second": sums["weight"] / max(elapsed, 1e-9),
            "samples_per_ray": sums["samples"] / max(1.0, sums["rays"]),
            "memory_mb": psutil.Process().memory_full_info().uss / 2**20,
            "load_imbalance": uneven["samples@"],
            "seconds_imbalance": uneven["seconds@"],
            "shared_gradient_bytes": traffic.bytes_sent / steps,
            "shared_gradient_share": traffic.seconds / max(elapsed, 1e-9),
            "idle_share": traffic.idle_seconds / max(elapsed, 1e-9),
            "exchange_bytes": exchanged.bytes_sent / steps,
            "exchange_share": exchanged.seconds / max(elapsed, 1e-9),
            "level_share": {str(level): share / total for level, share in self._level_share.items()},
        }


def psnr(squared_error: float, weight: float) -> float:
    """PSNR in dB of colours in [0, 1] from a weighted sum of squared errors."""
    return -10 * math.log10(max(squared_error / max(weight, 1e-12), 1e-12))
