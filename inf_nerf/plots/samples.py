"""What a model is asked, in four panels: how far away, how dense, of which colour, at which level.

Letters: R rays, Q samples.
"""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from inf_nerf.plots.progress import FIGURE_SIZE
from inf_nerf.render.colourmap import level_colour
from inf_nerf.render.compositing import composite
from inf_nerf.render.foreground import radiance
from inf_nerf.render.model import Model
from inf_nerf.scene.cameras import Cameras, Rays

BINS = 50
RAYS = 2048
EMPTY = 1e-3  # densities below it, per scene unit, are drawn at it


@dataclass(frozen=True)
class AskedSamples:
    """Samples of some rays that light reaches."""

    distance: Tensor  # [Q] scene units
    density: Tensor  # [Q] per scene unit
    rgb: Tensor  # [Q, 3] in [0, 1]
    level: Tensor  # [Q] int64 of the node that answered
    weight: Tensor  # [Q] part of its pixel's colour that a sample makes
    num_rays: int

    @staticmethod
    def cat(parts: "list[AskedSamples]") -> "AskedSamples":
        """All samples of several sets of rays."""
        names = ("distance", "density", "rgb", "level", "weight")
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return AskedSamples(**joined, num_rays=sum(part.num_rays for part in parts))


@torch.no_grad()
def asked_samples(model: Model, rays: Rays) -> AskedSamples:
    """The samples of rays, as in a picture: without jitter, so that the same model gives the same ones."""
    rays = rays.to(model.appearance.device)
    lit = model.lit_samples(rays, None)
    sigma, rgb = radiance(lit, model.octree, model.field, rays.direction, model.looks(rays))
    weight, _ = composite(sigma, lit.delta, lit.samples.ray, len(rays))
    level = model.octree.level.to(lit.samples.node.device)[lit.samples.node]
    return AskedSamples(*(part.cpu() for part in (lit.samples.t, sigma, rgb, level, weight)), num_rays=len(rays))


def spread_rays(cameras: Cameras, photos: list[int], count: int = RAYS) -> list[Rays]:
    """About ``count`` rays of full-size pixels in all, spread evenly over each of the photos; one set a photo."""
    result = []
    for photo in photos:
        width, height = cameras.level_size(photo, 0)
        across = max(1, min(width, round((count / len(photos) * width / height) ** 0.5)))
        down = max(1, min(height, round(across * height / width)))
        x = ((torch.arange(across) + 0.5) * width / across).long()
        y = ((torch.arange(down) + 0.5) * height / down).long()
        xy = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
        index = torch.full((len(xy),), photo)
        result.append(cameras.rays(index, torch.zeros_like(index), xy))
    return result


def samples_figure(samples: AskedSamples, title: str = "") -> Figure:
    """Histograms of distance, density, colour and level; where there are no samples, the panels say so."""
    figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
    (distance, density), (colour, level) = figure.subplots(2, 2)
    panels = ((distance, "distance, half sides of the cube"), (density, "density, per half side of the cube"),
              (colour, "colour"), (level, "octree level"))  # fmt: skip
    for axes, label in panels:
        axes.set(xlabel=label, ylabel="samples")
        axes.grid(alpha=0.3)
        if len(samples.distance) == 0:
            axes.text(0.5, 0.5, "no samples", ha="center", va="center", transform=axes.transAxes, color="grey")
    if len(samples.distance):
        _weighted(distance, samples.distance.double().numpy(), samples.weight.double().numpy())
        _densities(density, samples.density.double().numpy())
        for channel, name in enumerate(("red", "green", "blue")):
            values = samples.rgb[:, channel].clamp(0, 1).double().numpy()
            colour.hist(values, bins=BINS, range=(0, 1), histtype="step", color=name, label=name)
        colour.legend(fontsize=8)
        _levels(level, samples)
    each = len(samples.distance) / max(1, samples.num_rays)
    about = f"{len(samples.distance):,} samples of {samples.num_rays:,} rays, {each:.1f} each"
    figure.suptitle(f"{title}: {about}" if title else about)
    return figure


def _weighted(axes: Axes, distance: np.ndarray, weight: np.ndarray) -> None:
    """All samples, and those that pixels are made of, scaled to the same area."""
    axes.hist(distance, bins=BINS, color="#9db8d8", label="asked")
    seen = weight * (len(weight) / max(weight.sum(), 1e-12))
    axes.hist(distance, bins=BINS, weights=seen, histtype="step", color="#d9663f", label="seen (same area)")
    axes.legend(fontsize=8)


def _densities(axes: Axes, density: np.ndarray) -> None:
    high = max(float(density.max()), 10 * EMPTY)
    bins = np.geomspace(EMPTY, high, BINS + 1)
    axes.hist(np.clip(density, EMPTY, high), bins=bins.tolist(), color="#3a9a5f")
    axes.set_xscale("log")


def _levels(axes: Axes, samples: AskedSamples) -> None:
    counts = torch.bincount(samples.level)
    seen = torch.zeros(len(counts)).index_add_(0, samples.level, samples.weight.float())
    seen = seen / seen.sum().clamp_min(1e-12)
    axes.bar(range(len(counts)), counts.tolist(), color=[level_colour(level) for level in range(len(counts))])
    for level, (count, share) in enumerate(zip(counts.tolist(), seen.tolist(), strict=True)):
        axes.annotate(f"{share:.0%} of the light", (level, count), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(counts)))
    axes.margins(y=0.12)
