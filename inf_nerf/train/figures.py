"""What rows of ``metrics.jsonl`` hold: figures of the steps since the row before, over all ranks."""

import math
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

from inf_nerf.diagnose.memory_use import device_busy, device_share, host_share
from inf_nerf.diagnose.profiler import own_seconds
from inf_nerf.octree.load import imbalance
from inf_nerf.render.model import Model
from inf_nerf.train.shared_gradients import Traffic

if TYPE_CHECKING:
    from inf_nerf.train.loop import Work

LOSSES = ("rgb", "depth", "sparsity", "consistency", "regularization", "appearance")
METRICS = ("squared_error", "weight", "rays", "samples", "anomalies", *(f"loss_{name}" for name in LOSSES))
# one of each rank, whose number follows: of work of its own in a step; of its machine, in the step before a log line
RANK_METRICS = ("samples@", "seconds@", "data@", "host_memory@", "device_memory@", "device_busy@")


class Figures:
    """What happened since the last log line, over all ranks; ``level_share``, ``memory_mb`` and what the
    exchange with other ranks cost are rank 0's alone."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(METRICS, 0.0)
        self._of_ranks: dict[str, float] = {}
        self._steps = 0
        self._not_finite = 0
        self._own_seconds = own_seconds()
        self.val_psnr: float | None = None  # the newest score of the val rays
        self._level_share: dict[int, float] = {}

    def add(self, agreed: dict[str, float], nodes: Tensor, model: Model) -> None:
        """Take in one step and the nodes [Q] of its samples; of one that is not finite, only what it cost."""
        for name, value in agreed.items():
            if name.startswith(RANK_METRICS):
                self._of_ranks[name] = self._of_ranks.get(name, 0.0) + value
        if agreed["not_finite"]:
            self._not_finite += 1
            return
        self._steps += 1
        for name in METRICS:
            self._sums[name] += agreed[name]
        levels = torch.bincount(model.octree.level[nodes], minlength=model.octree.num_levels)
        for level, count in enumerate(levels.tolist()):
            self._level_share[level] = self._level_share.get(level, 0.0) + count

    def row(self, work: "Work", rate: float, elapsed: float) -> dict[str, object]:
        """One line of metrics.jsonl, ``elapsed`` seconds after the one before."""
        progress = work.progress
        sums, steps = self._sums, max(1, self._steps)
        mean = {name: sums[f"loss_{name}"] / steps for name in LOSSES}
        total = max(1.0, sum(self._level_share.values()))
        traffic = work.gradients.traffic
        exchanged = work.exchange.traffic if work.exchange is not None else Traffic()
        of = {
            name: [value for key, value in self._of_ranks.items() if key.startswith(name)] or [0.0]
            for name in RANK_METRICS
        }
        seconds, device = of["seconds@"], {}
        if work.model.appearance.device.type == "cuda":
            device = {"device_memory": max(of["device_memory@"]), "device_busy": min(of["device_busy@"])}
        return {
            "step": progress.step,
            "seconds": round(progress.seconds, 3),
            **({"epoch": progress.step * work.config.train.batch_size / work.pixels} if work.pixels else {}),
            **({"turn": work.part // work.num_ranks} if work.num_parts > work.num_ranks else {}),
            "progress": progress.share(work.config),
            "loss": sum(getattr(work.config.loss, f"lambda_{name}") * value for name, value in mean.items()),
            **{f"loss_{name}": value for name, value in mean.items()},
            "psnr": psnr(sums["squared_error"], sums["weight"]),
            **({} if self.val_psnr is None else {"val_psnr": self.val_psnr}),
            "lr": rate,
            "rays_per_second": sums["weight"] / max(elapsed, 1e-9),
            "samples_per_ray": sums["samples"] / max(1.0, sums["rays"]),
            "nodes": work.adaptation.tree.num_nodes,
            "memory_mb": psutil.Process().memory_full_info().uss / 2**20,
            "host_memory": max(of["host_memory@"]),
            **device,
            "data_share": max(of["data@"]) / max(elapsed, 1e-9),
            "not_finite": self._not_finite,
            "anomalies": sums["anomalies"],
            "load_imbalance": imbalance(of["samples@"]),
            "seconds_imbalance": imbalance(seconds),
            "slowest_rank": seconds.index(max(seconds)),
            "shared_gradient_bytes": traffic.bytes_sent / steps,
            "shared_gradient_share": traffic.seconds / max(elapsed, 1e-9),
            "idle_share": traffic.idle_seconds / max(elapsed, 1e-9),
            "exchange_bytes": exchanged.bytes_sent / steps,
            "exchange_share": exchanged.seconds / max(elapsed, 1e-9),
            "level_share": {str(level): share / total for level, share in self._level_share.items()},
            "time_share": {
                name: spent / max(elapsed, 1e-9) for name, spent in by_section(self._own_seconds, own_seconds()).items()
            },
        }


def machine_use(work: "Work") -> dict[str, float]:
    """This rank's figures of how full the memory of its machine and of its GPU are, and how busy that is."""
    device = work.model.appearance.device
    found = {"host_memory": host_share(), "device_memory": device_share(device), "device_busy": device_busy(device)}
    return {f"{name}@{work.rank}": value for name, value in found.items() if value is not None}


def by_section(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Seconds that went by in each outermost section between two calls of :func:`own_seconds`."""
    spent: dict[str, float] = {}
    for path, seconds in after.items():
        if seconds > before.get(path, 0.0):
            outermost = path.partition("/")[0]
            spent[outermost] = spent.get(outermost, 0.0) + seconds - before.get(path, 0.0)
    return spent


def psnr(squared_error: float, weight: float) -> float:
    """PSNR in dB of colours in [0, 1] from a weighted sum of squared errors."""
    return -10 * math.log10(max(squared_error / max(weight, 1e-12), 1e-12))
