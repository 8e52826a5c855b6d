"""LPIPS: how different two pictures look to a network that was trained to recognise things (Zhang et al. 2018).

The features of both pictures after each block of AlexNet or VGG-16 are scaled to unit length, and their squared
differences weighted by heads that were fitted to the judgement of people.  The heads come with torchmetrics; the
network's own weights are never downloaded, but read from a file that the user names, in the layout of torchvision
(``alexnet-owt-7be5be79.pth``, ``vgg16-397923af.pth``, or such a state as safetensors).
"""

import pickle
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from inf_nerf.errors import InputError

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in [-1, 1], part of the measure
SMALLEST_SIDE = 64  # pixels; the networks halve a picture up to five times
EPSILON = 1e-8


@dataclass(frozen=True)
class Convolution:
    """One convolution and the ReLU after it."""

    index: int  # in torchvision's `features`
    stride: int = 1
    padding: int = 1
    pooled: int = 0  # window of the maximum taken before it with a stride of 2; 0: none
    is_feature: bool = False  # whether pictures are compared after it


@dataclass(frozen=True)
class Architecture:
    """A network's convolutions, and the shape of the first one's weights, by which it is recognised."""

    name: str
    first: tuple[int, ...]
    convolutions: tuple[Convolution, ...]
    heads: str  # file that comes with torchmetrics


ALEXNET = Architecture(
    "AlexNet",
    (64, 3, 11, 11),
    (
        Convolution(0, stride=4, padding=2, is_feature=True),
        Convolution(3, padding=2, pooled=3, is_feature=True),
        Convolution(6, pooled=3, is_feature=True),
        Convolution(8, is_feature=True),
        Convolution(10, is_feature=True),
    ),
    "alex.pth",
)
VGG16 = Architecture(
    "VGG-16",
    (64, 3, 3, 3),
    tuple(
        Convolution(index, pooled=2 if index in (5, 10, 17, 24) else 0, is_feature=index in (2, 7, 14, 21, 28))
        for index in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    ),
    "vgg.pth",
)


@dataclass(frozen=True, eq=False)
class Lpips:
    """The measure with the weights of one network."""

    architecture: Architecture
    weights: dict[str, Tensor]  # of the convolutions, by torchvision's names
    heads: list[Tensor]  # [1, C, 1, 1] for each layer that is compared

    @staticmethod
    def load(path: Path) -> "Lpips":
        """Read a network's weights; :class:`InputError` where the file is none that is known."""
        weights = _read_weights(path)
        first = weights.get("features.0.weight")
        shape = tuple(first.shape) if first is not None else None
        architecture = next((known for known in (ALEXNET, VGG16) if known.first == shape), None)
        layers = architecture.convolutions if architecture is not None else ()
        names = [f"features.{layer.index}.{part}" for layer in layers for part in ("weight", "bias")]
        if architecture is None or any(name not in weights for name in names):
            raise InputError(
                f"eval.lpips_backbone: {path} holds no weights of AlexNet or VGG-16 as torchvision names them "
                "(features.0.weight and so on); name such a file."
            )
        return Lpips(architecture, {name: weights[name].float() for name in names}, _read_heads(architecture))

    @torch.no_grad()
    def compare(self, pred: Tensor, target: Tensor) -> tuple[float, Tensor]:
        """LPIPS of two pictures [h, w, 3] of colours in [0, 1], and a map [h, w] of where it comes from.

        The value is the mean over each layer, summed over layers, as published; the map is the layers' differences
        enlarged to the picture's size, whose mean is the value but for what enlarging does at borders.  A picture with
        a side below 64 px is extended to 64 px by repeating its last row or column, in both pictures alike; its value
        is the mean of the map over its own pixels.
        """
        height, width = pred.shape[:2]
        pair = torch.stack((pred, target)).permute(0, 3, 1, 2).float() * 2 - 1  # [2, 3, h, w]
        missing = (0, max(0, SMALLEST_SIDE - width), 0, max(0, SMALLEST_SIDE - height))
        pair = functional.pad(pair, missing, mode="replicate")
        size = pair.shape[-2:]
        value, where = torch.zeros((), dtype=torch.float64), torch.zeros(size)
        features = self._features((pair - _channels(SHIFT)) / _channels(SCALE))
        for both, head in zip(features, self.heads, strict=True):
            unit = both / (both.square().sum(1, keepdim=True).sqrt() + EPSILON)
            difference = functional.conv2d((unit[:1] - unit[1:]).square(), head)  # [1, 1, h', w']
            value += difference.double().mean()
            where += functional.interpolate(difference, size=size, mode="bilinear", align_corners=False)[0, 0]
        where = where[:height, :width]
        return float(where.double().mean() if any(missing) else value), where

    def _features(self, pictures: Tensor) -> list[Tensor]:
        found = []
        for convolution in self.architecture.convolutions:
            if convolution.pooled:
                pictures = functional.max_pool2d(pictures, convolution.pooled, stride=2)
            name = f"features.{convolution.index}"
            pictures = functional.conv2d(
                pictures,
                self.weights[f"{name}.weight"],
                self.weights[f"{name}.bias"],
                stride=convolution.stride,
                padding=convolution.padding,
            ).relu()
            if convolution.is_feature:
                found.append(pictures)
        return found


def _channels(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(
            f"eval.lpips_backbone: {path} does not exist; name a file with torchvision's weights of AlexNet or VGG-16, "
            "or leave the key out to go without LPIPS."
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"eval.lpips_backbone: {path} cannot be read as weights ({reason}); name another.") from error
    return found if isinstance(found, dict) else {}


def _read_heads(architecture: Architecture) -> list[Tensor]:
    path = files("torchmetrics.functional.image") / "lpips_models" / architecture.heads
    try:
        with path.open("rb") as file:
            found = torch.load(file, map_location="cpu", weights_only=True)
        layers = sum(convolution.is_feature for convolution in architecture.convolutions)
        return [found[f"lin{layer}.model.1.weight"].float() for layer in range(layers)]
    except (OSError, KeyError) as error:
        raise InputError(
            f"The installed torchmetrics does not hold the LPIPS heads of {architecture.name} ({error}); install the "
            "version in constraints.txt."
        ) from error
