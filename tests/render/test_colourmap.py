"""Maps tell apart what differs, and keep what is equal equal."""

from io import BytesIO

import numpy as np
import torch
from PIL import Image

from inf_nerf.render.colourmap import as_picture, depth_map, depth_range, error_map, level_colour, level_map
from inf_nerf.render.sheet import SheetRow, evaluation_sheet


def test_bytes_are_rounded_and_clipped() -> None:
    assert as_picture(torch.tensor([[-1.0, 0.5, 2.0]])).tolist() == [[0, 128, 255]]
    assert as_picture(torch.tensor([[1 / 255, 2 / 255, 254 / 255]])).tolist() == [[1, 2, 254]]


def test_levels_have_distinct_colours_also_beyond_the_palette() -> None:
    colours = np.array([level_colour(level) for level in range(14)])
    gaps = np.abs(colours[:, None] - colours[None]).sum(axis=-1) + 9 * np.eye(14)
    assert gaps.min() > 0.1


def test_level_map_is_flat_on_one_level_and_blends_between_two() -> None:
    grey = torch.full((2, 3, 3), 0.5)
    assert len(np.unique(level_map(torch.full((2, 3), 2.0), grey).reshape(-1, 3), axis=0)) == 1
    low, middle, high = (level_map(torch.full((1, 1), value), grey[:1, :1])[0, 0] for value in (1.0, 1.5, 2.0))
    assert np.abs((low.astype(float) + high) / 2 - middle).max() <= 1


def test_depth_is_red_near_and_blue_far_and_dark_where_nothing_is() -> None:
    depth, opacity = torch.tensor([[1.0, 10.0, 5.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    near, far, empty = depth_map(depth, opacity, 1.0, 10.0)[0].astype(int)
    assert near[0] > near[2] + 50
    assert far[2] > far[0]
    assert empty.sum() == 0


def test_depth_range_ignores_empty_pixels_and_never_collapses() -> None:
    depth = torch.cat([torch.full((90,), 2.0), torch.full((10,), 900.0)])[None]
    opacity = torch.cat([torch.ones(90), torch.zeros(10)])[None]
    near, far = depth_range(depth, opacity)
    assert near == 2.0
    assert 2.0 < far < 3.0
    assert depth_range(depth, torch.zeros_like(depth))[0] < depth_range(depth, torch.zeros_like(depth))[1]


def test_error_is_black_where_equal() -> None:
    photo = torch.full((1, 2, 3), 0.5)
    render = photo.clone()
    render[0, 1] += 0.4
    error = error_map(render, photo)
    assert error[0, 0].max() < 10
    assert error[0, 1].min() > 100


def test_sheet_holds_a_row_per_photo_of_any_size() -> None:
    rows = [
        SheetRow(f"{width}.png", torch.rand(20, width, 3), torch.rand(20, width, 3), torch.rand(20, width) * 3)
        for width in (30, 700)
    ]
    one, two = (Image.open(BytesIO(evaluation_sheet(rows[:count], 4))) for count in (1, 2))
    assert one.width == two.width
    assert two.height > one.height
    assert evaluation_sheet(rows, 4) == evaluation_sheet(rows, 4)
