"""The training loop of one rank, to be read from top to bottom.

Nothing here knows how many ranks there are: a rank trains the octree it is given, draws its share of the global batch
from its own tiles, and `SharedGradients` adds up what is shared.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.diagnose.debugger import NAMED, Debugger, nodes_not_finite
from inf_nerf.diagnose.profiler import at_step, section
from inf_nerf.errors import NotFiniteError
from inf_nerf.render.model import Model
from inf_nerf.scene.cameras import Cameras, Rays
from inf_nerf.train import losses
from inf_nerf.train.exchange import Exchange
from inf_nerf.train.figures import Figures, machine_use, psnr
from inf_nerf.train.loss_scale import LossScale
from inf_nerf.train.optimiser import NodeAdam
from inf_nerf.train.reservoir import RayBatch, Reservoir
from inf_nerf.train.schedule import learning_rate
from inf_nerf.train.shared_gradients import SharedGradients, Traffic, of_all_ranks
from inf_nerf.train.tracks import Tracks

if TYPE_CHECKING:
    from inf_nerf.train.adaptation import Adaptation

OF_RAYS = ("rgb", "depth", "regularization")  # losses that need whole rays
MOST_DRAWS = 3.0  # pixels drawn at most for one that counts
DRAWS_RATE = 0.1  # how fast their number follows what was seen
PAUSE_SECONDS = 0.5  # between two looks whether a pause is over
VAL_RAYS = 4096  # scored at a time
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
    adaptation: "Adaptation"
    loss_scale: LossScale
    shared: Tensor  # [M] bool: nodes that every rank holds
    subtrees: dict[int, int]  # rank that trains each subtree below them, by the key of its root
    generator: torch.Generator
    rank: int
    num_rays: int  # of this rank in a step, counted by their weights
    num_tracks: int
    val: RayBatch | None
    pixels: int = 0  # of the training photos, over all pyramid levels and ranks; 0: not known
    part: int = 0  # of the partition: what this rank owns now
    num_parts: int = 1
    num_ranks: int = 1
    photos: tuple[str, ...] = ()  # their names, by their number
    added: tuple[str, ...] = ()  # of these, whose appearance is learned though the others' is not
    unseen: frozenset[int] = frozenset()  # keys of nodes that were trained before the newest of them were there
    cursors: dict[int, int] = field(default_factory=dict)  # where the streams of other parts were left
    saved: Path | None = None  # checkpoint in which nodes wait that are not in memory
    stopped: bool = False  # by request
    progress: Progress = field(default_factory=Progress)
    to_probe: Tensor = field(init=False)  # [N] rounds of probing until a node's cells were all seen as it is now
    debugger: Debugger | None = None  # looks into the numbers now and then
    draws: float = 1.0  # pixels drawn for one that counts: some turn out to be answered by other ranks

    def __post_init__(self) -> None:
        self.to_probe = torch.full((self.model.octree.num_nodes,), PROBE_SHARES, device=self.shared.device)


def train(
    work: Work,
    on_log: Callable[[dict[str, object]], None],
    on_save: Callable[[float | None], None],
    stop_requested: Callable[[], bool],
    until: int | None = None,
    on_step: Callable[[], None] = lambda: None,
    save_requested: Callable[[], bool] = bool,
    pause_requested: Callable[[], bool] = bool,
) -> bool:
    """Train until the budget is used; returns False if it was stopped before, or came to the step ``until``.

    ``on_log`` gets a row of figures every ``train.log_every`` steps on rank 0.  ``on_save`` is called on all ranks
    together, with the PSNR of the val rays, ``on_step`` on every rank after each step.  While any rank finds
    a pause requested, all wait, and the budget with them; a save is requested of rank 0.  Raises
    :class:`NotFiniteError` on all ranks together.
    """
    config, progress, model = work.config, work.progress, work.model
    with section("warm-up"):
        warm_up(work)
    forget_traffic(work)
    saved_at = logged_at = time.monotonic()
    started = saved_at - progress.seconds
    saved_step, figures, last = progress.step, Figures(), math.inf if until is None else until
    save, work.stopped, scored = False, False, None
    while progress.share(config) < 1 and progress.step < last and not (work.stopped and not work.gradients.pending):
        begun = time.monotonic()
        rate = learning_rate(config.train, progress.step - progress.budget_from[0], progress.share(config))
        at_step(progress.step + 1)
        if work.debugger is not None:
            work.debugger.begin(progress.step + 1, model.field)
        with section("occupancy"):
            update_occupancy(work)
        asked = time.monotonic()
        with section("data"):
            if progress.step % config.data.swap_every == 0 and progress.step:
                work.reservoir.swap()
            batch = work.reservoir.sample(round(work.num_rays * work.draws), work.generator)
        waited = time.monotonic() - asked
        total, nodes, figures_now = differentiate(work, batch)
        work.draws = next_draws(work.draws, figures_now["weight"], figures_now["rays"])
        not_finite = not (math.isfinite(total) and work.gradients.finite())
        if work.debugger is not None:
            scaled = work.loss_scale.value > 1
            with section("debug"):
                figures_now["anomalies"] = work.debugger.look(anyway=not_finite and not scaled, overflow=scaled)

        seconds = time.monotonic() - started
        figures_now[f"samples@{work.rank}"] = figures_now["samples"]
        figures_now[f"seconds@{work.rank}"] = time.monotonic() - begun
        figures_now[f"data@{work.rank}"] = waited
        logs = (progress.step + 1) % config.train.log_every == 0
        if logs:
            figures_now |= machine_use(work)
        with section("agree"):
            agreed = work.gradients.agree(
                {
                    "stop": stop_requested(),
                    "save": work.rank == 0
                    and (time.monotonic() - saved_at >= config.train.save_seconds or save_requested()),
                    "pause": pause_requested(),
                    "not_finite": not_finite,
                    "seconds": seconds if work.rank == 0 else 0.0,
                    "owned_norm2": work.gradients.owned_norm2() if config.train.grad_clip else 0.0,
                },
                figures_now,
            )
        if agreed["not_finite"] and not work.loss_scale.lower():
            raise not_finite_error(work, agreed["seconds"], on_log)
        if agreed["not_finite"]:  # float16 overflowed: the step counts, but nothing is learned from it
            work.optimiser.clear()
        else:
            work.loss_scale.keep()
            update(work, agreed, rate, last)
        figures.add(agreed, nodes, model)

        progress.step += 1
        progress.seconds = agreed["seconds"]
        work.stopped |= agreed["stop"] > 0
        save |= agreed["save"] > 0 or progress.step % config.train.save_every == 0
        work.adaptation.adapt(work)
        saves = save and not work.gradients.pending
        if saves or (config.train.eval_every and progress.step % config.train.eval_every == 0):
            with section("score"):
                figures.val_psnr = scored = score_val(work)
        if logs:
            if work.rank == 0:
                with section("log"):
                    on_log(figures.row(work, rate, time.monotonic() - logged_at))
            logged_at, figures = time.monotonic(), Figures()
            forget_traffic(work)
        if saves:
            with section("save"):
                on_save(scored)
            saved_at, saved_step, save = time.monotonic(), progress.step, False
        on_step()
        if agreed["pause"] and not work.stopped:
            paused = wait_while_paused(work, stop_requested, pause_requested)
            started, logged_at = started + paused, logged_at + paused
    if saved_step != progress.step:
        with section("save"):
            on_save(score_val(work))
    return progress.share(config) >= 1


def not_finite_error(work: Work, seconds: float, on_log: Callable[[dict[str, object]], None]) -> NotFiniteError:
    """Find out, on all ranks together, which nodes are not finite, and say it in a row and in an error."""
    named = sorted({name for names in of_all_ranks(nodes_not_finite(work.model.field)) for name in names})
    step = work.progress.step + 1
    if work.rank == 0:
        on_log({"step": step, "seconds": seconds, "not_finite": 1, "nodes": named})
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    where = f" Not finite: {', '.join(named[:NAMED])}{more}." if named else ""
    return NotFiniteError(
        f"The loss or its gradient is not a finite number in step {step}; nothing of it was kept: give --resume latest "
        f"with a lower train.lr_init or train.grad_clip=1.{where}"
    )


def differentiate(work: Work, batch: RayBatch) -> tuple[float, Tensor, dict[str, float]]:
    """Collect the gradients of the weighted loss of a rank's batch, which is returned, with the nodes [Q] of all
    samples and this rank's summed figures.

    The rays come in ``train.accumulate`` parts, of which one at a time is held; losses are sums over what is drawn,
    divided by counts of the whole batch, so the parts add up to it.
    """
    loss, parts = work.config.loss, work.config.train.accumulate
    whole, nodes, figures = 0.0, [], dict[str, float]()
    for number in range(parts):
        part = batch.part(number, parts)
        with section("forward"):
            terms, seen, figures_now = forward(work, part, number, parts)
        work.adaptation.watch(work.model, seen, part.rgb)
        total = torch.stack([getattr(loss, f"lambda_{name}") * term for name, term in terms.items()]).sum()
        if total.requires_grad:
            with section("backward"):
                (total * work.loss_scale.value).backward()
        whole += float(total.detach())
        nodes.append(seen.node)
        figures = {name: figures.get(name, 0.0) + value for name, value in figures_now.items()}
    work.gradients.divide(work.loss_scale.value)
    return whole, torch.cat(nodes), figures


def update(work: Work, agreed: dict[str, float], rate: float, last: float = math.inf) -> None:
    """Add up the gradients of what is shared, if it is their turn or the ``last`` step, and let the optimiser use all
    of them at this learning rate.

    A rank's own nodes are updated while the sums travel, unless clipping has to know the joint norm first.  Between
    their turns shared nodes and the appearance stay as they are, on all ranks; a run is only saved after a turn.
    """
    config, progress = work.config, work.progress
    after = replace(progress, step=progress.step + 1, seconds=agreed["seconds"])
    waits = after.step % config.train.shared_every and after.share(config) < 1 and after.step < last
    with section("exchange"):
        if waits:
            work.gradients.set_aside()
        else:
            work.gradients.start()
    work.to_probe[work.model.field.touched[:-1]] = PROBE_SHARES
    if waits:
        with section("optimiser"):
            work.optimiser.step(rate)
        return
    if config.train.grad_clip:
        with section("exchange"):
            work.gradients.finish()
        with section("clip"):
            work.gradients.clip(config.train.grad_clip, agreed["owned_norm2"])
    with section("optimiser"):
        work.optimiser.step(rate, ~work.shared, appearance=False)
    with section("exchange"):
        work.gradients.finish()
    with section("optimiser"):
        work.optimiser.step(rate, work.shared)


def wait_while_paused(work: Work, stop_requested: Callable[[], bool], pause_requested: Callable[[], bool]) -> float:
    """Do nothing until no rank is asked to pause or any is asked to stop; returns the seconds that it took."""
    began = time.monotonic()
    while not work.stopped:
        agreed = work.gradients.agree({"stop": stop_requested(), "pause": pause_requested()}, {})
        work.stopped |= agreed["stop"] > 0
        if not agreed["pause"]:
            break
        time.sleep(PAUSE_SECONDS)
    return time.monotonic() - began


def forget_traffic(work: Work) -> None:
    """Count anew what the exchange with other ranks costs."""
    work.gradients.traffic = Traffic()
    if work.exchange is not None:
        work.exchange.traffic = Traffic()


def warm_up(work: Work) -> None:
    """Do a step's work and forget it, so that code which is compiled at its first use is compiled before the clock
    starts; the step that follows is the same as without."""
    before, steps_across = work.generator.get_state(), work.model.steps_across
    parts = work.config.train.accumulate
    terms, _, _ = forward(work, work.reservoir.sample(work.num_rays, work.generator).part(0, parts), 0, parts)
    total = torch.stack(list(terms.values())).sum()
    if total.requires_grad:
        total.backward()
    work.optimiser.clear()
    work.generator.set_state(before)
    work.model.steps_across = steps_across


def forward(
    work: Work, batch: RayBatch, number: int = 0, parts: int = 1
) -> tuple[dict[str, Tensor], losses.Seen, dict[str, float]]:
    """Render a batch and some track rays together; unweighted losses and this rank's summed figures.

    Of a step in several ``parts`` the first one, ``number`` 0, has the losses of nodes.
    """
    config, model = work.config, work.model
    rays = work.cameras.rays(batch.photo, batch.level, batch.xy)
    num_tracks = work.num_tracks * (number + 1) // parts - work.num_tracks * number // parts
    track_rays, distance, reliability = work.tracks.sample(num_tracks, work.generator)
    device = model.appearance.device
    rays, track_rays, target = rays.to(device), track_rays.to(device), batch.rgb.to(device)
    tracked = torch.stack((distance, reliability), dim=1).to(device)
    rank, generator, num_answering = None, work.generator, 1
    if work.exchange is not None:  # the rays of all ranks, which compute the same losses of them
        of_batch, of_tracks = work.exchange.rays((rays, target), (track_rays, tracked))
        rays, target, track_rays, tracked = of_batch.rays, of_batch.beside, of_tracks.rays, of_tracks.beside
        rank, num_answering = torch.cat((of_batch.rank, of_tracks.rank)), work.exchange.num_ranks
        generator = torch.Generator().manual_seed(config.train.seed * 1_000_003 + work.progress.step + (number << 40))
    joined, count = Rays.cat((rays, track_rays)), len(rays)
    # below the ground nothing answers: a random colour there makes only opaque ground explain the photos
    backdrop = torch.rand(3, generator=generator).to(device)
    with section("render"):
        if work.exchange is not None and rank is not None:
            seen = work.exchange.render(joined, rank, generator, backdrop)
        else:
            seen = losses.Seen.of(model.render(joined, generator=generator, backdrop=backdrop))
    colour_weight, track_weight = seen.weight[:count], seen.weight[count:] * tracked[:, 1]

    batch_size, tracks = config.train.batch_size, max(1, config.loss.depth_rays)
    footprint = tracked[:, 0] * track_rays.radius
    transparency, consistency = work.node_losses.draw(work.progress.step) if number == 0 else ([], [])
    with section("losses"):
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
        parts = -(-len(work.val) // VAL_RAYS)
        for batch in (work.val.part(number, parts) for number in range(parts)):
            rays = work.cameras.rays(batch.photo, batch.level, batch.xy)
            rendered = work.model.render(rays.to(work.model.appearance.device))
            each = losses.ray_weights(rendered)
            error += float((each * (rendered.rgb - batch.rgb.to(rendered.rgb)).square().mean(1)).sum())
            weight += float(each.sum())
    agreed = work.gradients.agree({}, {"squared_error": error, "weight": weight})
    return psnr(agreed["squared_error"], agreed["weight"]) if agreed["weight"] else None
