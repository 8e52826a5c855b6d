"""A bounded store of decoded image tiles from which a worker draws its rays.

Tiles arrive as a stream of Arrow tables (:data:`inf_nerf.octree.tiles.TILE_SCHEMA` with a ``share`` column), of which
one tile at a time is copied, straight to its place.  If the stream fits under the cap it is loaded once; otherwise the
reservoir is filled and :meth:`Reservoir.swap` replaces its oldest part by the tiles that come next.  Drawing depends
only on the state and on the generator that is passed, so a resumed run continues bit for bit.

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
NUMBERS = ("tile", "photo", "level", "x", "y", "width", "share")  # columns of a tile beside its pixels


@dataclass(frozen=True)
class RayBatch:
    """Pixels drawn from the reservoir; rays are made of them by the cameras."""

    photo: Tensor  # [B] int64
    level: Tensor  # [B] int64 pyramid level
    xy: Tensor  # [B, 2] int64 pixel indices in that level
    rgb: Tensor  # [B, 3] float32 in [0, 1]

    def __len__(self) -> int:
        return len(self.photo)

    def part(self, number: int, parts: int) -> "RayBatch":
        """Part ``number`` of so many of about the same size."""
        start, end = (len(self) * place // parts for place in (number, number + 1))
        return RayBatch(self.photo[start:end], self.level[start:end], self.xy[start:end], self.rgb[start:end])


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


@dataclass(frozen=True, slots=True)  # there are many of them
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
        """Nothing is read before the first use or :meth:`fill`; with a ``state``, that is restored (see
        :meth:`restore`).

        ``tile_batches`` opens the stream anew; each pass must give the same tiles in the same order.  A pixel of
        pyramid level l is drawn ``level_boost ** l`` times as often as one of level 0.
        """
        self._tile_batches = tile_batches
        self._level_boost = level_boost
        # Pages are not touched before they are written, so a small shard costs only its own size.
        self._buffer = torch.from_numpy(np.empty(capacity_bytes // ALIGNMENT * ALIGNMENT, np.uint8))
        self._tiles: deque[_Resident] = deque()  # oldest first
        self._filled = False
        if state is not None:
            self.restore(state)

    def __len__(self) -> int:
        """Number of resident tiles."""
        self.fill()
        return len(self._tiles)

    @property
    def nbytes(self) -> int:
        """Bytes that resident tiles occupy."""
        self.fill()
        return sum(tile.num_bytes for tile in self._tiles)

    def fill(self, cursor: int = 0) -> None:
        """Read the stream from its row ``cursor`` on, and around its end, until the buffer is full; nothing happens if
        that was done before.

        Raises :class:`InputError` if the cap is too small for a single tile.
        """
        if not self._filled:
            self._fill(cursor)

    def sample(self, batch_size: int, generator: torch.Generator) -> RayBatch:
        """Draw pixels with replacement, with probability proportional to the tile's share and ``level_boost ** level``.

        Masked pixels are never drawn.  A reservoir without tiles gives an empty batch, whatever the size asked for.
        """
        self.fill()
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
        self.fill()
        if self._complete:
            return 0
        arrived = num_tiles = 0
        while arrived < len(self._buffer) * SWAPPED_SHARE:
            arrival = self._next()
            if arrival is None:
                self._open(0)
                self._epoch += 1
                continue
            self._tiles.append(self._write(arrival, self._make_room(arrival.num_bytes)))
            self._head += arrival.num_bytes
            arrived += arrival.num_bytes
            num_tiles += 1
        self._tabulate()
        return num_tiles

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs: plain numbers, a few bytes a tile."""
        self.fill()
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
        self._tiles.clear()
        self._open(0)
        found: dict[int, _Resident] = {}
        while len(found) < len(offsets) and (arrival := self._next()) is not None:
            if (offset := offsets.get(arrival.tile)) is not None:
                if offset + arrival.num_bytes > len(self._buffer):
                    break
                found[arrival.tile] = self._write(arrival, offset)
        complete = len(found) == len(offsets) and state["complete"] and self._next() is None
        if len(found) < len(offsets) or complete != state["complete"]:
            self._fill(0)
            return False
        self._tiles.extend(found[tile] for tile in offsets)
        self._head, self._epoch, self._complete, self._filled = state["head"], state["epoch"], complete, True
        if complete:
            self._close()
        elif self._cursor != state["cursor"]:
            self._open(state["cursor"])
        self._cursor = state["cursor"]
        self._tabulate()
        return True

    def _fill(self, cursor: int) -> None:
        self._tiles.clear()
        self._head = 0  # where the next tile goes, bytes
        self._epoch = 0  # passes over the stream that are over
        self._complete, around = False, cursor == 0
        self._open(cursor)
        while not self._complete:
            arrival = self._next()
            if arrival is None and not around:
                self._open(0)
                around = True
            elif arrival is None or (self._tiles and arrival.tile == self._tiles[0].tile):
                self._complete = True
            elif self._head + arrival.num_bytes > len(self._buffer):
                _refuse_larger(arrival.num_bytes, len(self._buffer))
                self._row -= 1  # the first swap takes it
                self._cursor -= 1
                break
            else:
                self._tiles.append(self._write(arrival, self._head))
                self._head += arrival.num_bytes
        if self._complete:
            self._close()
        self._filled = True
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

    def _write(self, arrival: _Arrival, offset: int) -> _Resident:
        buffer = self._buffer.numpy()
        colours = offset
        if arrival.indices is not None:
            colours += arrival.indices.nbytes
            buffer[offset:colours] = arrival.indices.view(np.uint8)
        buffer[colours : colours + arrival.colours.nbytes] = arrival.colours
        masked, num_pixels = arrival.indices is not None, len(arrival.colours) // 3
        return _Resident(arrival.tile, arrival.sampled, arrival.share, num_pixels, masked, offset, arrival.num_bytes)

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
        self._batches = (batch for table in self._tile_batches() for batch in table.to_batches())
        self._cursor = cursor
        while cursor and (batch := next(self._batches, None)) is not None:
            if len(batch) > cursor:
                self._take(batch)
                self._row = cursor
            cursor -= min(cursor, len(batch))

    def _close(self) -> None:
        """Let the stream go, with whatever it has prefetched."""
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._numbers: list[tuple[Any, ...]] = []  # the columns NUMBERS of the batch, by row
        self._row = 0  # next one of the batch
        self._cursor = 0  # rows of this pass that were taken

    def _take(self, batch: pa.RecordBatch) -> None:
        self._batch, self._row = batch, 0
        self._numbers = list(zip(*(batch.column(name).to_pylist() for name in NUMBERS), strict=True))

    def _next(self) -> _Arrival | None:
        """The next tile of the stream that has used pixels, or None at the end."""
        while True:
            if self._batch is None or self._row == len(self._numbers):
                batch = next(self._batches, None)
                if batch is None:
                    return None
                self._take(batch)
                continue
            # a tile at a time: the batch itself is in Ray's shared memory, and as large as Ray likes
            pixels, mask = (self._batch.column(name)[self._row].as_buffer() for name in ("pixels", "mask"))
            tile, photo, level, x, y, width, share = self._numbers[self._row]
            self._row += 1
            self._cursor += 1
            colours, indices = np.frombuffer(pixels, np.uint8), None
            if mask is not None:
                indices = np.flatnonzero(np.frombuffer(mask, np.uint8)).astype(np.int32)
                colours = colours.reshape(-1, 3)[indices].reshape(-1)
            if len(colours):
                return _Arrival(tile, (photo, level, x, y, width), share, colours, indices)


def _refuse_larger(num_bytes: int, capacity: int) -> None:
    if num_bytes > capacity:
        raise InputError(
            f"One tile takes {num_bytes} bytes but the reservoir holds {capacity}; raise data.reservoir_mb."
        )
