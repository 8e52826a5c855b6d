"""The training loop of one rank, to be read from top to bottom.

Nothing here knows how many ranks there are: a rank trains the octree it is given, draws its share of the global batch
from its own tiles, and `SharedGradients` adds up what is shared.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.errors import NotFiniteError
from inf_nerf.render.model import Model, Rendered
from inf_nerf.scene.cameras import Cameras, Rays
from inf_nerf.train import losses
from inf_nerf.train.loss_scale import LossScale
from inf_nerf.train.optimiser import NodeAdam
from inf_nerf.train.reservoir import RayBatch, Reservoir
from inf_nerf.train.shared_gradients import SharedGradients
from inf_nerf.train.tracks import Tracks

LOSSES = ("rgb", "depth", "sparsity", "consistency", "regularization", "appearance")
METRICS = ("squared_error", "weight", "rays", "samples", *(f"loss_{name}" for name in LOSSES))


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
    optimiser: NodeAdam
    loss_scale: LossScale
    shared: Tensor  # [M] bool: nodes that every rank holds
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
    saved_at = logged_at = time.monotonic()
    started = saved_at - progress.seconds
    saved_step, figures, last = progress.step, Figures(), math.inf if until is None else until
    work.stopped = False
    while progress.share(config) < 1 and progress.step < last and not work.stopped:
        update_occupancy(work)
        if progress.step % config.data.swap_every == 0 and progress.step:
            work.reservoir.swap()

        batch = work.reservoir.sample(round(work.num_rays * work.draws), work.generator)
        terms, rendered, figures_now = forward(work, batch)
        work.draws = next_draws(work.draws, figures_now["weight"], figures_now["rays"])
        total = torch.stack([getattr(config.loss, f"lambda_{name}") * term for name, term in terms.items()]).sum()
        if total.requires_grad:
            (total * work.loss_scale.value).backward()
            work.gradients.divide(work.loss_scale.value)

        seconds = time.monotonic() - started
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
            work.gradients.add_up()
            if config.train.grad_clip:
                work.gradients.clip(config.train.grad_clip, agreed["owned_norm2"])
            work.to_probe[model.field.touched[:-1]] = PROBE_SHARES
            rate = work.optimiser.step(progress.share(config))

        progress.step += 1
        progress.seconds = agreed["seconds"]
        work.stopped = agreed["stop"] > 0
        if not agreed["not_finite"]:
            figures.add(agreed, rendered, model)
        if progress.step % config.train.log_every == 0:
            if work.rank == 0:
                on_log(figures.row(progress, rate, time.monotonic() - logged_at, work))
            logged_at, figures = time.monotonic(), Figures()
        if agreed["save"] or progress.step % config.train.save_every == 0:
            on_save(score_val(work))
            saved_at, saved_step = time.monotonic(), progress.step
    if saved_step != progress.step:
        on_save(score_val(work))
    return progress.share(config) >= 1


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


def forward(work: Work, batch: RayBatch) -> tuple[dict[str, Tensor], Rendered, dict[str, float]]:
    """Render a batch and some track rays together; unweighted losses and this rank's summed figures."""
    config, model = work.config, work.model
    rays = work.cameras.rays(batch.photo, batch.level, batch.xy)
    track_rays, distance, reliability = work.tracks.sample(work.num_tracks, work.generator)
    device = model.appearance.device
    joined = Rays.cat((rays, track_rays)).to(device)
    target, count = batch.rgb.to(device), len(rays)
    # below the ground nothing answers: a random colour there makes only opaque ground explain the photos
    backdrop = torch.rand(3, generator=work.generator).to(device)
    rendered = model.render(joined, generator=work.generator, backdrop=backdrop)
    weight = losses.ray_weights(rendered)
    rgb, colour_weight = rendered.rgb[:count], weight[:count]
    rgb_weight = torch.cat((colour_weight, torch.zeros(len(track_rays), device=device)))

    batch_size, tracks = config.train.batch_size, max(1, config.loss.depth_rays)
    footprint = distance.to(device) * track_rays.radius.to(device)
    transparency, consistency = work.node_losses.draw(work.progress.step)
    terms = {
        "rgb": losses.photometric(rgb, target, colour_weight, batch_size),
        "depth": losses.depth(
            rendered.depth[count:], distance.to(device), footprint, weight[count:] * reliability.to(device), tracks
        ),
        "sparsity": work.node_losses.transparency(model, transparency),
        "consistency": work.node_losses.consistency(model, consistency),
        "regularization": losses.spread(rendered, rgb_weight, batch_size),
        "appearance": losses.appearance_prior(model.appearance, batch.photo.to(device), batch_size),
    }
    figures = {f"loss_{name}": float(term.detach()) for name, term in terms.items()}
    figures["squared_error"] = figures["loss_rgb"] * batch_size
    figures["weight"] = float(colour_weight.sum())
    figures["rays"], figures["samples"] = float(count), float(rendered.num_samples)
    return terms, rendered, figures


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
    """What happened since the last log line, over all ranks; ``level_share`` and ``memory_mb`` are rank 0's alone."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(METRICS, 0.0)
        self._steps = 0
        self._level_share: dict[int, float] = {}

    def add(self, agreed: dict[str, float], rendered: Rendered, model: Model) -> None:
        """Take in one step."""
        self._steps += 1
        for name in METRICS:
            self._sums[name] += agreed[name]
        nodes = rendered.samples.node if rendered.samples is not None else torch.zeros(0, dtype=torch.int64)
        levels = torch.bincount(model.octree.level[nodes], minlength=model.octree.num_levels)
        for level, count in enumerate(levels.tolist()):
            self._level_share[level] = self._level_share.get(level, 0.0) + count

    def row(self, progress: Progress, rate: float, elapsed: float, work: Work) -> dict[str, object]:
        """One line of metrics.jsonl."""
        sums, steps = self._sums, max(1, self._steps)
        mean = {name: sums[f"loss_{name}"] / steps for name in LOSSES}
        total = max(1.0, sum(self._level_share.values()))
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
            "shared_gradient_bytes": work.gradients.bytes_sent,
            "level_share": {str(level): share / total for level, share in self._level_share.items()},
        }


def psnr(squared_error: float, weight: float) -> float:
    """PSNR in dB of colours in [0, 1] from a weighted sum of squared errors."""
    return -10 * math.log10(max(squared_error / max(weight, 1e-12), 1e-12))
