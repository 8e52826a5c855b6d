"""Numbers as colours: depth, error and octree level, as uint8 pictures [h, w, 3]."""

import colorsys

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Picture = NDArray[np.uint8]

DEPTH_COLOURS, ERROR_COLOURS = "turbo", "inferno"
# Neighbouring levels must be told apart at a glance, so the palette alternates in hue instead of running along a ramp.
LEVEL_COLOURS = (
    (0.27, 0.30, 0.62),
    (0.20, 0.63, 0.79),
    (0.36, 0.72, 0.36),
    (0.96, 0.80, 0.27),
    (0.93, 0.49, 0.22),
    (0.82, 0.24, 0.31),
    (0.64, 0.33, 0.68),
)
GOLDEN_ANGLE = 0.381966  # of a turn; hues for levels beyond the palette
LEVEL_PART = 0.75  # of a level map's colour; the rest is the picture's brightness, so that one sees where one is


def as_picture(rgb: Tensor) -> Picture:
    """Colours in [0, 1] (any shape ending in 3) as bytes."""
    return (rgb.detach().float().clamp(0.0, 1.0) * 255.0 + 0.5).to(torch.uint8).cpu().numpy()


def level_colour(level: int) -> tuple[float, float, float]:
    """The colour in [0, 1] that stands for one octree level."""
    if level < len(LEVEL_COLOURS):
        return LEVEL_COLOURS[level]
    return colorsys.hsv_to_rgb((level * GOLDEN_ANGLE) % 1.0, 0.6, 0.9)


def level_map(level: Tensor, rgb: Tensor) -> Picture:
    """Octree levels [h, w] (fractions blend two colours) over the brightness of the picture ``rgb`` [h, w, 3]."""
    level = level.float().clamp_min(0.0)
    palette = torch.tensor([level_colour(index) for index in range(int(level.max()) + 2)])  # [K, 3]
    lower = level.floor().long()
    blend = (level - lower)[..., None]
    return _over_brightness(palette[lower] * (1 - blend) + palette[lower + 1] * blend, rgb)


def node_colour(key: int) -> tuple[float, float, float]:
    """A colour in [0, 1] for a node; siblings, whose keys follow each other, are far apart in hue."""
    return colorsys.hsv_to_rgb((key * GOLDEN_ANGLE) % 1.0, 0.45 + 0.4 * ((key * 7 % 8) / 7), 0.95)


def node_map(key: Tensor, rgb: Tensor) -> Picture:
    """Keys of nodes [h, w] as colours over the brightness of the picture ``rgb`` [h, w, 3]; -1 is left grey."""
    keys, place = torch.unique(key, return_inverse=True)
    palette = torch.tensor([node_colour(index) if index >= 0 else (0.5, 0.5, 0.5) for index in keys.tolist()])
    return _over_brightness(palette[place], rgb)


def opacity_map(opacity: Tensor) -> Picture:
    """Opacities [h, w] from black to white."""
    return as_picture(opacity[..., None].expand(*opacity.shape, 3))


def _over_brightness(colour: Tensor, rgb: Tensor) -> Picture:
    brightness = rgb.float().mean(dim=-1, keepdim=True)
    return as_picture(LEVEL_PART * colour * (0.5 + 0.5 * brightness) + (1 - LEVEL_PART) * brightness)


def depth_range(depth: Tensor, opacity: Tensor) -> tuple[float, float]:
    """Robust nearest and farthest depth (2nd and 98th percentile) of the pixels that are mostly opaque."""
    solid = depth[(opacity > 0.5) & (depth > 0)].float()
    if solid.numel() == 0:
        return 1.0, 2.0
    near, far = np.percentile(solid.cpu().numpy(), (2, 98)).tolist()
    return near, max(far, near * 1.01)


def depth_map(depth: Tensor, opacity: Tensor, near: float, far: float) -> Picture:
    """Distances [h, w] on a logarithmic scale from ``near`` (red) to ``far`` (blue); empty pixels are dark."""
    position = (depth.float().clamp_min(1e-9) / near).log() / torch.tensor(far / near).log()  # [h, w]
    colour = torch.from_numpy(matplotlib.colormaps[DEPTH_COLOURS](1 - position.clamp(0, 1).cpu().numpy())[..., :3])
    return as_picture(colour * opacity.clamp(0, 1).cpu()[..., None])


def error_map(rgb: Tensor, photo: Tensor, largest: float = 0.25) -> Picture:
    """Mean absolute colour error of each pixel of two pictures [h, w, 3]; white from ``largest`` on."""
    error = (rgb - photo).abs().mean(dim=-1) / largest
    return as_picture(torch.from_numpy(matplotlib.colormaps[ERROR_COLOURS](error.clamp(0, 1).cpu().numpy())[..., :3]))
