"""Pictures of a fixed model that must not change: colour, depth and octree level, with every backend that runs here.

``python -m tests.render.test_golden`` writes them anew; look at the difference before it is committed.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inf_nerf.render.images import render_image
from inf_nerf.render.poses import look_at
from inf_nerf.scene.cameras import Cameras
from tests.render.test_numba_trace import pair

GOLDEN = Path(__file__).with_name("golden")
VIEWS = {"near": (1.3, -1.5, 1.1), "far": (3.0, 2.5, 3.5)}  # where the camera is; it looks at the middle
SIZE = (96, 72)


def picture(backend: str, view: str) -> np.ndarray:
    """Colour, depth and level of a view side by side, [h, 3 * w, 3] uint8."""
    numba, torch_twin = pair()
    model = numba if backend == "numba" else torch_twin
    cameras = Cameras.pinhole(torch.from_numpy(np.stack([look_at(VIEWS[view], (0.0, 0.0, 0.0))])), *SIZE, 50.0)
    seen = render_image(model, cameras, 0, 0, rays_per_chunk=1000, lod_blend=0.5)
    grey = (seen.depth / 7, seen.level / 2)
    parts = [seen.rgb, *(plane[..., None].expand(-1, -1, 3) for plane in grey)]
    return (torch.cat(parts, dim=1).clamp(0, 1) * 255).round().byte().numpy()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_pictures_have_not_changed(backend: str, view: str) -> None:
    expected = np.asarray(Image.open(GOLDEN / f"{view}.png"), np.int64)
    found = picture(backend, view).astype(np.int64)
    assert found.shape == expected.shape
    difference = np.abs(found - expected)
    # a step within rounding of a cell's or a level's border may fall to the other side
    assert (difference <= 1).mean() > 0.99
    assert difference.mean() < 0.1


@pytest.mark.parametrize("view", VIEWS)
def test_pictures_show_something(view: str) -> None:
    parts = np.split(np.asarray(Image.open(GOLDEN / f"{view}.png"), np.float64), 3, axis=1)
    assert all(part.std() > 5 for part in parts)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in VIEWS:
        Image.fromarray(picture("torch", name)).save(GOLDEN / f"{name}.png")
