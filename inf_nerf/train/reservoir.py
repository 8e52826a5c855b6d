"""A bounded store of decoded image tiles from which a worker draws its rays.

Tiles arrive as a stream of Arrow tables (:data:`inf_nerf.octree.tiles.TILE_SCHEMA` with a ``share`` column).  If
the stream fits under the cap it is loaded once; otherwise the reservoir is filled and :meth:`Reservoir.swap` replaces
its oldest part by the tiles that come next.  Drawing depends only on the state and on the generator that is passed, so
a resumed run continues bit for bit.

Letters: T resident tiles, B rays of a batch.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from inf_nerf.errors import InputError

TileBatches = Callable[[], Iterator[pa.Table]]

SWAPPED_SHARE = 0.125  # of the capacity that one swap replaces
ALIGNMENT = 4  # bytes; masked tiles store int32 indices
COLUMNS = ("tile", "photo", "level", "x", "y", "width", "height", "pixels", "mask", "share")


@dataclass(frozen=True)
class RayBatch:
    """Pixels drawn from the reservoir; rays are made of them by the cameras."""

    photo: Tensor  # [B] int64
    level: Tensor  # [B] int64 pyramid level
    xy: Tensor  # [B, 2] int64 pixel indices in that level
    rgb: Tensor  # [B, 3] float32 in [0, 1]

    def __len__(self) -> int:
        return len(self.photo)


@dataclass(frozen=True)
class _Arrival:
    """A tile as the stream gives it, reduced to its used pixels."""

    tile: int
    sampled: tuple[int, int, int, int, int]  # photo, level, x, y, width
    share: float  # of the tile's draws
    colours: NDArray[np.uint8]  # [num_pixels * 3]
    indices: NDArray[np.int32] | None  # [num_pixels] of the used pixels in the tile; None: all are used, in order

    @property
    def num_bytes(self) -> int:
        """Aligned bytes in the buffer: the indices, if any, then the colours."""
        exact = self.colours.nbytes + (0 if self.indices is None else self.indices.nbytes)
        return -(-exact // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class _Resident:
    """A tile in the buffer."""

    tile: int
    sampled: tuple[int, int, int, int, int]
    share: float
    num_pixels: int
    masked: bool
    offset: int  # bytes
    num_bytes: int


class Reservoir:
    """Decoded tiles under a cap of bytes, and pixels drawn from them."""

    def __init__(
        self,
        tile_batches: TileBatches,
        capacity_bytes: int,
        level_boost: float,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Fill from the start of the stream, or as ``state`` says (see :meth:`restore`).

        ``tile_batches`` opens the stream anew; each pass must give the same tiles in the same order.  A pixel of
        pyramid level l is drawn ``level_boost ** l`` times as often as one of level 0.  Raises :class:`InputError` if
        the cap is too small for a single tile.
        """
        self._tile_batches = tile_batches
        self._level_boost = level_boost
        # Pages are not touched before they are written, so a small shard costs only its own size.
        self._buffer = torch.from_numpy(np.empty(capacity_bytes // ALIGNMENT * ALIGNMENT, np.uint8))
        self._tiles: deque[_Resident] = deque()  # oldest first
        if state is None:
            self._fill()
        else:
            self.restore(state)

    def __len__(self) -> int:
        """Number of resident tiles."""
        return len(self._tiles)

    @property
    def nbytes(self) -> int:
        """Bytes that resident tiles occupy."""
        return sum(tile.num_bytes for tile in self._tiles)

    def sample(self, batch_size: int, generator: torch.Generator) -> RayBatch:
        """Draw pixels with replacement, with probability proportional to the tile's share and ``level_boost ** level``.

        Masked pixels are never drawn.  A reservoir without tiles gives an empty batch, whatever the size asked for.
        """
        if not self._tiles or batch_size == 0:
            none = torch.empty(0, dtype=torch.int64)
            return RayBatch(none, none, none.reshape(0, 2), torch.empty(0, 3))
        draw = torch.rand(2, batch_size, generator=generator, dtype=torch.float64)
        row = torch.searchsorted(self._cumulative, draw[0] * self._cumulative[-1], right=True)
        row.clamp_(max=len(self._tiles) - 1)  # [B]
        photo, level, x, y, width, count, colours, indices = self._table[:, row].unbind()
        pixel = torch.minimum((draw[1] * count).long(), count - 1)  # [B] among the used pixels of the tile
        rgb = self._buffer[(colours + 3 * pixel)[:, None] + torch.arange(3)].float().div_(255)  # [B, 3]
        masked = torch.nonzero(indices >= 0).squeeze(1)
        if len(masked):
            pixel[masked] = self._buffer.view(torch.int32)[indices[masked] + pixel[masked]].long()
        xy = torch.stack([x + pixel % width, y + pixel // width], dim=1)
        return RayBatch(photo, level, xy, rgb)

    def swap(self) -> int:
        """Replace the oldest part by the tiles that come next in the stream; returns how many tiles came in.

        At the end of the stream it starts again.  Nothing happens if everything is resident.
        """
        if self._complete:
            return 0
        arrived = num_tiles = 0
        while arrived < len(self._buffer) * SWAPPED_SHARE:
            arrival = self._next()
            if arrival is None:
                self._open(0)
                self._epoch += 1
                continue
            self._place(arrival, self._make_room(arrival.num_bytes))
            arrived += arrival.num_bytes
            num_tiles += 1
        self._tabulate()
        return num_tiles

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs: plain numbers, a few bytes a tile."""
        return {
            "tiles": [tile.tile for tile in self._tiles],
            "offsets": [tile.offset for tile in self._tiles],
            "head": self._head,
            "cursor": self._cursor,
            "epoch": self._epoch,
            "complete": self._complete,
        }

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Hold the same tiles at the same places and go on at the same point of the stream as when ``state`` was taken.

        The stream is read again: once if everything was resident, otherwise up to twice.  If it no longer has those
        tiles, or they no longer fit, because the number of workers or the cap changed, the reservoir is filled from the
        start and False is returned.
        """
        offsets: dict[int, int] = dict(zip(state["tiles"], state["offsets"], strict=True))
        self._open(0)
        found: dict[int, _Arrival] = {}
        while len(found) < len(offsets) and (arrival := self._next()) is not None:
            if arrival.tile in offsets:
                found[arrival.tile] = arrival
        complete = len(found) == len(offsets) and state["complete"] and self._next() is None
        fits = all(offsets[tile] + arrival.num_bytes <= len(self._buffer) for tile, arrival in found.items())
        if len(found) < len(offsets) or not fits or complete != state["complete"]:
            self._fill()
            return False
        self._tiles.clear()
        for tile, offset in offsets.items():
            self._place(found[tile], offset)
        self._head, self._epoch, self._complete = state["head"], state["epoch"], complete
        if complete:
            self._close()
        elif self._cursor != state["cursor"]:
            self._open(state["cursor"])
        self._cursor = state["cursor"]
        self._tabulate()
        return True

    def _fill(self) -> None:
        """Read the stream from its start until the buffer is full."""
        self._tiles.clear()
        self._head = 0  # where the next tile goes, bytes
        self._epoch = 0  # passes over the stream that are over
        self._open(0)
        while (arrival := self._next()) is not None:
            if self._head + arrival.num_bytes > len(self._buffer):
                _refuse_larger(arrival.num_bytes, len(self._buffer))
                self._row -= 1  # the first swap takes it
                self._cursor -= 1
                break
            self._place(arrival, self._head)
        self._complete = arrival is None
        if self._complete:
            self._close()
        self._tabulate()

    def _make_room(self, num_bytes: int) -> int:
        """Evict the oldest tiles from where the next one goes and return its offset."""
        _refuse_larger(num_bytes, len(self._buffer))
        if self._head + num_bytes > len(self._buffer):
            while self._tiles and self._tiles[0].offset >= self._head:
                self._tiles.popleft()
            self._head = 0
        while self._tiles and self._head <= self._tiles[0].offset < self._head + num_bytes:
            self._tiles.popleft()
        return self._head

    def _place(self, arrival: _Arrival, offset: int) -> None:
        buffer = self._buffer.numpy()
        colours = offset
        if arrival.indices is not None:
            colours += arrival.indices.nbytes
            buffer[offset:colours] = arrival.indices.view(np.uint8)
        buffer[colours : colours + arrival.colours.nbytes] = arrival.colours
        masked, num_pixels = arrival.indices is not None, len(arrival.colours) // 3
        resident = (arrival.tile, arrival.sampled, arrival.share, num_pixels, masked, offset, arrival.num_bytes)
        self._tiles.append(_Resident(*resident))
        self._head = offset + arrival.num_bytes

    def _tabulate(self) -> None:
        """Lay out what sampling reads: the columns of resident tiles and their cumulative weights."""
        rows = []
        for tile in self._tiles:
            indices = tile.offset // ALIGNMENT if tile.masked else -1
            colours = tile.offset + (tile.num_pixels * ALIGNMENT if tile.masked else 0)
            rows.append((*tile.sampled, tile.num_pixels, colours, indices))
        self._table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 8).T.contiguous()  # [8, T]
        level, num_pixels = self._table[1].double(), self._table[5].double()
        share = torch.tensor([tile.share for tile in self._tiles], dtype=torch.float64)
        self._cumulative = torch.cumsum(share * self._level_boost**level * num_pixels, 0)  # [T] float64

    def _open(self, cursor: int) -> None:
        """Open the stream behind its first ``cursor`` rows."""
        self._close()
        self._batches = self._tile_batches()
        self._cursor = cursor
        while cursor and (batch := next(self._batches, None)) is not None:
            if len(batch) > cursor:
                self._batch, self._row = batch.select(COLUMNS).to_pylist(), cursor
            cursor -= min(cursor, len(batch))

    def _close(self) -> None:
        """Let the stream go, with whatever it has prefetched."""
        self._batches: Iterator[pa.Table] = iter(())
        self._batch: list[dict[str, Any]] = []
        self._row = 0  # next one of the batch
        self._cursor = 0  # rows of this pass that were taken

    def _next(self) -> _Arrival | None:
        """The next tile of the stream that has used pixels, or None at the end."""
        while True:
            if self._row == len(self._batch):
                batch = next(self._batches, None)
                if batch is None:
                    return None
                self._batch, self._row = batch.select(COLUMNS).to_pylist(), 0
                continue
            row = self._batch[self._row]
            self._row += 1
            self._cursor += 1
            colours, indices = np.frombuffer(row["pixels"], np.uint8), None
            if row["mask"] is not None:
                indices = np.flatnonzero(np.frombuffer(row["mask"], np.uint8)).astype(np.int32)
                colours = colours.reshape(-1, 3)[indices].reshape(-1)
            if len(colours):
                photo, level, x, y, width = (int(row[name]) for name in ("photo", "level", "x", "y", "width"))
                return _Arrival(row["tile"], (photo, level, x, y, width), row["share"], colours, indices)


def _refuse_larger(num_bytes: int, capacity: int) -> None:
    if num_bytes > capacity:
        raise InputError(
            f"One tile takes {num_bytes} bytes but the reservoir holds {capacity}; raise data.reservoir_mb."
        )
