"""The evaluation's image sheet: one row per photo, photo | render | error | octree level."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from inf_nerf.render.colourmap import Picture, as_picture, error_map, level_colour, level_map

COLUMNS = ("photo", "render", "error", "octree level")
CELL_WIDTH = 480  # px; four of them fit a wide screen and keep the file near a megabyte
GAP, MARGIN, TITLE, CAPTION = 8, 16, 34, 26  # px
PAPER, INK, FAINT = (250, 250, 248), (32, 34, 38), (112, 116, 124)


@dataclass(frozen=True)
class SheetRow:
    """One photo and its render."""

    caption: str
    photo: Tensor  # [h, w, 3]
    rgb: Tensor  # [h, w, 3]
    level: Tensor  # [h, w]


def evaluation_sheet(rows: Sequence[SheetRow], num_levels: int, error_white: float = 0.25) -> bytes:
    """A labelled PNG of all rows; ``num_levels`` octree levels appear in the legend."""
    cells = [[_fit(picture) for picture in _pictures(row, error_white)] for row in rows]
    width = 2 * MARGIN + len(COLUMNS) * CELL_WIDTH + (len(COLUMNS) - 1) * GAP
    height = 2 * MARGIN + TITLE + sum(line[0].height + CAPTION + GAP for line in cells)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(COLUMNS):
        left = MARGIN + column * (CELL_WIDTH + GAP)
        if title == "error":
            title = f"error (mean absolute, white: {error_white:g} and more)"
        draw.text((left, MARGIN), title, INK, _font(18))
        if title == COLUMNS[-1]:
            draw_legend(draw, left + 130, MARGIN + 3, num_levels)
    top = MARGIN + TITLE
    for row, line in zip(rows, cells, strict=True):
        draw.text((MARGIN, top), row.caption, FAINT, _font(15))
        top += CAPTION
        for column, cell in enumerate(line):
            sheet.paste(cell, (MARGIN + column * (CELL_WIDTH + GAP), top))
        top += line[0].height + GAP
    return png_bytes(np.asarray(sheet))


def draw_legend(
    draw: ImageDraw.ImageDraw, left: int, top: int, num_levels: int, ink: tuple[int, int, int] = INK
) -> None:
    """Numbered swatches of the octree levels, coarse to fine, from the corner (left, top) to the right."""
    for level in range(num_levels):
        colour = tuple(round(255 * channel) for channel in level_colour(level))
        x = left + level * 42
        draw.rectangle((x, top, x + 17, top + 15), fill=colour, outline=ink)
        draw.text((x + 22, top - 1), str(level), ink, _font(14))


def png_bytes(picture: Picture) -> bytes:
    """A picture [h, w, 3] as the content of a PNG file."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _pictures(row: SheetRow, error_white: float) -> tuple[Picture, ...]:
    return (
        as_picture(row.photo),
        as_picture(row.rgb),
        error_map(row.rgb, row.photo, error_white),
        level_map(row.level, row.rgb),
    )


def _fit(picture: Picture) -> Image.Image:
    image = Image.fromarray(picture)
    height = max(1, round(image.height * CELL_WIDTH / image.width))
    smaller = image.width > CELL_WIDTH
    return image.resize((CELL_WIDTH, height), Image.Resampling.BOX if smaller else Image.Resampling.NEAREST)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
