"""LPIPS agrees with its definition on networks with random weights, and says what is wrong with a file."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from inf_nerf.errors import InputError
from inf_nerf.train.metrics import compare_images, image_scores
from inf_nerf.train.perceptual import ALEXNET, VGG16, Lpips

VGG_WIDTHS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")


def alexnet() -> nn.Sequential:
    """The layers of torchvision's `alexnet().features`."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


def vgg16() -> nn.Sequential:
    """The layers of torchvision's `vgg16().features`."""
    layers: list[nn.Module] = []
    width = 3
    for each in VGG_WIDTHS:
        if isinstance(each, str):
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(width, each, 3, padding=1), nn.ReLU()]
            width = each
    return nn.Sequential(*layers)


NETWORKS = {"alexnet": (alexnet, (1, 4, 7, 9, 11)), "vgg16": (vgg16, (3, 8, 15, 22, 29))}


def saved(folder: Path, name: str) -> tuple[Path, nn.Sequential]:
    torch.manual_seed(0)
    network = NETWORKS[name][0]()
    state = {f"features.{key}": value for key, value in network.state_dict().items()}
    torch.save({**state, "classifier.1.weight": torch.zeros(3, 3)}, folder / f"{name}.pth")
    return folder / f"{name}.pth", network


def picture(height: int, width: int, seed: int) -> Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def by_definition(network: nn.Sequential, after: tuple[int, ...], heads: list[Tensor], a: Tensor, b: Tensor) -> float:
    """Layer by layer and pixel by pixel."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    both = [((picture * 2 - 1 - shift) / scale).permute(2, 0, 1)[None] for picture in (a, b)]
    total = 0.0
    for index, layer in enumerate(network):
        both = [layer(x) for x in both]
        if index in after:
            head = heads[after.index(index)].flatten()
            first, second = (x[0] / (x[0].norm(dim=0) + 1e-8) for x in both)
            total += float(((first - second) ** 2 * head[:, None, None]).sum(0).mean())
    return total


@pytest.mark.parametrize("name", NETWORKS)
def test_value_is_that_of_the_definition_and_the_mean_of_the_map(name: str, tmp_path: Path) -> None:
    path, network = saved(tmp_path, name)
    lpips = Lpips.load(path)
    assert lpips.architecture is {"alexnet": ALEXNET, "vgg16": VGG16}[name]
    a, b = picture(80, 96, 0), picture(80, 96, 1)
    value, where = lpips.compare(a, b)
    assert value == pytest.approx(by_definition(network, NETWORKS[name][1], lpips.heads, a, b), rel=1e-4)
    assert where.shape == (80, 96)
    assert float(where.mean()) == pytest.approx(value, rel=0.05)
    assert lpips.compare(a, a)[0] == 0
    nearer, _ = lpips.compare(a, 0.9 * a + 0.1 * b)
    assert 0 < nearer < value


def test_the_map_shows_where_pictures_differ(tmp_path: Path) -> None:
    lpips = Lpips.load(saved(tmp_path, "alexnet")[0])
    a = picture(128, 128, 0)
    b = a.clone()
    b[:, 96:] = picture(128, 32, 1)
    _, where = lpips.compare(a, b)
    assert float(where[:, 100:].mean()) > 5 * float(where[:, :40].mean())


def test_masked_pixels_and_small_pictures(tmp_path: Path) -> None:
    lpips = Lpips.load(saved(tmp_path, "alexnet")[0])
    a, b = picture(70, 90, 0), picture(70, 90, 1)
    mask = torch.ones(70, 90, dtype=torch.bool)
    mask[:, 60:] = False
    disturbed = b.clone()
    disturbed[:, 60:] = 0
    scores, maps = compare_images(b, a, mask, lpips)
    assert scores == image_scores(disturbed, a, mask, lpips)
    assert maps.lpips is not None
    assert scores.lpips == pytest.approx(float(maps.lpips[mask].mean()), rel=1e-5)
    assert image_scores(a, a).lpips is None
    small = image_scores(picture(3, 20, 0), picture(3, 20, 1), None, lpips)
    assert small.lpips is not None and small.lpips > 0


def test_files_that_hold_no_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lpips_backbone: .*absent\.pth does not exist"):
        Lpips.load(tmp_path / "absent.pth")
    path, _ = saved(tmp_path, "alexnet")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=re.escape(f"{path} cannot be read as weights (")):
        Lpips.load(path)
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "half.safetensors")
    with pytest.raises(InputError, match=r"half\.safetensors holds no weights of AlexNet or VGG-16"):
        Lpips.load(tmp_path / "half.safetensors")
