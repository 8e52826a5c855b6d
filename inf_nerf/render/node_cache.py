"""Nodes held under a byte budget: those of the view at hand, and of what is left the most recently used.

Letters: m nodes of a view (the background among them, unless there is room for the root alone), K rows.  The packed
tensors of one :class:`Field` and one :class:`Cells` with K rows are the cache.  A view's nodes occupy rows 0 to m - 1
in the order of their keys, the background last, so that a model over them is an ordinary one; nodes of earlier views
lie in the rows behind, and the least recently used of them makes room.  Rows are moved when the view changes; nothing
is held twice.

A part of the budget is kept for nodes that threads read ahead.  Not in the budget are the tree, the scene grid (2.4 MB)
and the file that is being decoded.
"""

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.field.field import Field
from inf_nerf.field.occupancy import Cells
from inf_nerf.octree.topology import BACKGROUND_KEY, ROOT_KEY

AHEAD = 8  # one part in so many of the budget is for reading ahead, if a node fits into it
READERS = 3  # threads that read ahead
PIECE = 2**16  # bytes exchanged at once where two rows change places


class NodeSource(Protocol):
    """Where nodes come from; asked from several threads."""

    def read(self, key: int) -> dict[str, Tensor]:
        """``table`` [P, F], ``density`` [Wd], ``colour`` [Wc] and, but for the background, ``occupied`` [G^3] bool."""
        ...

    def nbytes(self, key: int) -> int:
        """Bytes that reading a node brings into memory, known without reading."""
        ...


@dataclass
class CacheFigures:
    """What holding nodes cost so far."""

    rows: int  # nodes that fit
    peak_bytes: int = 0  # most that were resident
    hits: int = 0  # nodes of views that were in their rows
    ahead: int = 0  # that were read, or being read, before the view asked
    misses: int = 0  # that the view had to wait for
    evicted: int = 0


class NodeCache:
    """K rows of nodes; one view at a time."""

    def __init__(
        self,
        config: Config,
        source: NodeSource,
        budget: int,  # bytes
        num_nodes: int,  # of the whole model with the background; more rows are never needed
        device: torch.device | str = "cpu",
    ) -> None:
        """Raises :class:`InputError` for a budget that does not hold the root."""
        none, res = torch.zeros(0, dtype=torch.int64), config.sampler.occupancy_res
        self.row_bytes = Field(config.field, none, None, device).node_bytes + res**3
        ahead = budget // AHEAD if source.nbytes(ROOT_KEY) <= budget // AHEAD else 0
        num_rows = min(num_nodes, (budget - ahead) // self.row_bytes)
        if num_rows < 1:
            raise InputError(
                f"The memory budget of {budget:,} bytes does not hold the root, which takes {self.row_bytes:,}; allow "
                f"at least {-(-self.row_bytes // 10**6)}MB."
            )
        self.budget = budget
        self.holds_background = num_rows > 1
        self._source = source
        self._keys: list[int | None] = [None] * num_rows  # of the node in each row
        self._used: dict[int, int] = {}  # resident key -> the last view that it was of
        self._view = 0
        self._field = Field(config.field, torch.zeros(num_rows, dtype=torch.int64), None, device)
        self._cells = Cells(torch.zeros(num_rows, res**3, dtype=torch.bool, device=device), res)
        self._rows = [*self._field.values(), self._cells.occupied]
        self._ahead = _ReadAhead(source, ahead)
        self.figures = CacheFigures(num_rows)

    @property
    def num_rows(self) -> int:
        """Nodes that fit, the background among them."""
        return len(self._keys)

    @property
    def room(self) -> int:
        """Octree nodes that fit."""
        return self.num_rows - self.holds_background

    @property
    def resident_bytes(self) -> int:
        """Of nodes in rows, read ahead, or being read ahead; never more than the budget."""
        return len(self._used) * self.row_bytes + self._ahead.held

    def holds(self, key: int) -> bool:
        """Whether a node is in a row now."""
        return key in self._used

    @property
    def bytes_read(self) -> int:
        """From the source so far."""
        return self._ahead.bytes_read

    def hold(self, keys: Tensor) -> tuple[Field, Cells]:
        """The values of the octree nodes ``keys`` [m - 1], ascending, and of the background, if it is held at all,
        until the next call.

        Nodes that are not there are read; raises what the source raises, after which nothing of the view counts as
        held but what was.  ValueError if they are more than fit.
        """
        wanted = [*keys.tolist(), *([BACKGROUND_KEY] if self.holds_background else [])]
        if len(wanted) > self.num_rows:
            raise ValueError(f"{len(wanted)} nodes do not fit into {self.num_rows} rows")
        self._view += 1
        missing = [key for key in wanted if key not in self._used]
        self._evict(len(missing), set(wanted))
        ahead = self._ahead.begin(missing)
        self.figures.hits += len(wanted) - len(missing)
        self.figures.ahead += ahead
        self.figures.misses += len(missing) - ahead
        for row, key in enumerate(wanted):
            self._clear_the_way(row, key)
        field = self._field.first(torch.tensor(wanted))
        for row, key in enumerate(wanted):
            if key not in self._used:
                self._load(field, row, key)
            self._used[key] = self._view
            self.figures.peak_bytes = max(self.figures.peak_bytes, self.resident_bytes)
        return field, Cells(self._cells.occupied[: len(keys)], self._cells.resolution)

    def prefetch(self, keys: Tensor) -> None:
        """Read octree nodes ``keys`` that the next view will ask, as many as there is room for, while others go on."""
        self._ahead.begin([key for key in keys.tolist() if key not in self._used])

    def close(self) -> None:
        """Stop reading."""
        self._ahead.close()

    def _evict(self, count: int, wanted: set[int]) -> None:
        """Forget the least recently used nodes that are not ``wanted`` until ``count`` rows are free."""
        count -= self._keys.count(None)
        old = sorted((view, key) for key, view in self._used.items() if key not in wanted)[: max(0, count)]
        for _, key in old:
            self._keys[self._keys.index(key)] = None
            del self._used[key]
        self.figures.evicted += len(old)

    def _clear_the_way(self, row: int, key: int) -> None:
        """Let the row hold the node ``key``, or nothing if that has to be read; rows before it are as they should be.

        Its row may hold nothing yet because a node that is going to be read has one of the free rows as its own.
        """
        there = self._keys[row]
        if there == key:
            return
        if key in self._used:
            self._exchange(row, self._keys.index(key))
        elif there is not None:  # rows that are free in front of this one wait for their nodes
            self._exchange(row, next(r for r in range(row + 1, self.num_rows) if self._keys[r] is None))

    def _exchange(self, one: int, other: int) -> None:
        for rows in self._rows:
            a, b = rows[one].view(-1), rows[other].view(-1)
            step = max(1, PIECE // rows.element_size())
            for start in range(0, len(a), step):
                piece = a[start : start + step].clone()
                a[start : start + step] = b[start : start + step]
                b[start : start + step] = piece
        self._keys[one], self._keys[other] = self._keys[other], self._keys[one]

    def _load(self, field: Field, row: int, key: int) -> None:
        state = self._ahead.take(key)
        field.load_state(row, state)
        if key != BACKGROUND_KEY:
            found, cells = state["occupied"], self._cells.occupied[row]
            if found.shape != cells.shape:
                raise InputError(
                    f"The occupancy of node {key} has {found.numel()} cells where {cells.numel()} are expected; use "
                    "the sampler.occupancy_res of the run that it was saved by."
                )
            cells.copy_(found)
        self._keys[row], self._used[key] = key, self._view


class _ReadAhead:
    """Nodes that threads read before they are taken, in the order in which they were asked for."""

    def __init__(self, source: NodeSource, room: int) -> None:
        """``room``: most bytes of nodes that are being read or wait to be taken; 0 reads nothing ahead."""
        self.held = 0
        self.bytes_read = 0
        self._source = source
        self._room = room
        self._waiting: deque[int] = deque()
        self._reads: dict[int, Future[dict[str, Tensor]]] = {}
        self._lock = threading.RLock()
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="nodes")

    def begin(self, keys: Sequence[int]) -> int:
        """Read these next and forget others; returns how many of them were begun before."""
        with self._lock:
            known = [key for key in keys if key in self._reads]
            self._waiting = deque(key for key in keys if key not in self._reads)
            for key in self._reads.keys() - known:
                read = self._reads.pop(key)
                read.cancel()
                read.add_done_callback(lambda _, key=key: self._free(key))
            self._fill()
        return len(known)

    def take(self, key: int) -> dict[str, Tensor]:
        """The node's tensors, waited for or read now; raises what the source raises."""
        with self._lock:
            read = self._reads.pop(key, None)
            if read is None and key in self._waiting:
                self._waiting.remove(key)
        if read is None:
            return self._read(key)
        try:
            return read.result()
        finally:
            self._free(key)

    def close(self) -> None:
        """Stop reading."""
        self.begin([])
        self._pool.shutdown(cancel_futures=True)

    def _read(self, key: int) -> dict[str, Tensor]:
        state = self._source.read(key)
        with self._lock:
            self.bytes_read += self._source.nbytes(key)
        return state

    def _free(self, key: int) -> None:
        with self._lock:
            self.held -= self._source.nbytes(key)
            self._fill()

    def _fill(self) -> None:
        while self._waiting and self.held + self._source.nbytes(self._waiting[0]) <= self._room:
            key = self._waiting.popleft()
            self.held += self._source.nbytes(key)
            self._reads[key] = self._pool.submit(self._read, key)
