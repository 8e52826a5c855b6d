"""Frames as a video file or as numbered stills.

A file appears under its name only when it is complete.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from imageio_ffmpeg import write_frames

from inf_nerf.files import write_atomic
from inf_nerf.render.colourmap import Picture
from inf_nerf.render.sheet import png_bytes

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".gif")
QUALITY = 7  # of 10; x264's constant rate factor 15
GIF_PALETTE = "split[frames][look];[look]palettegen[palette];[frames][palette]paletteuse"


class FrameSink(Protocol):
    """Takes the frames of a path in order."""

    def __call__(self, frame: Picture, /) -> None: ...


@contextmanager
def video_writer(out: Path, width: int, height: int, fps: int) -> Iterator[FrameSink]:
    """Encodes frames [height, width, 3] uint8 into ``out``, H.264 or GIF by its suffix.

    H.264 in its common pixel format has even sizes only, so an odd last row or column is repeated once.  If the body
    raises, nothing is left.
    """
    even_width, even_height = width + width % 2, height + height % 2
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.stem}.{os.getpid()}.partial{out.suffix}")
    if out.suffix == ".gif":
        encoder = write_frames(
            str(partial),
            (even_width, even_height),
            fps=fps,
            codec="gif",
            pix_fmt_out="rgb8",
            macro_block_size=1,
            output_params=["-filter_complex", GIF_PALETTE],
        )
    else:
        encoder = write_frames(
            str(partial),
            (even_width, even_height),
            fps=fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            macro_block_size=1,
            quality=QUALITY,
            output_params=["-movflags", "+faststart"],
        )

    def take(frame: Picture) -> None:
        padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        encoder.send(np.ascontiguousarray(padded))

    try:
        encoder.send(None)
        try:
            yield take
        finally:
            encoder.close()
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def still_writer(folder: Path) -> Iterator[FrameSink]:
    """Writes frames into ``folder`` as 00000.png, 00001.png and so on."""
    count = 0

    def take(frame: Picture) -> None:
        nonlocal count
        write_atomic(folder / f"{count:05d}.png", png_bytes(frame))
        count += 1

    yield take
