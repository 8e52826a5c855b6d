"""The cache gives the nodes that were asked for, never holds more than its budget, and forgets the oldest first."""

import random
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inf_nerf.errors import InputError
from inf_nerf.octree.topology import BACKGROUND_KEY
from inf_nerf.render.node_cache import NodeCache
from tests.octree.conftest import grow
from tests.render.stored_nodes import MemorySource, whole_model
from tests.train.tiny import tiny_config, tiny_octree

MODEL = whole_model(next(tree for tree in map(grow, range(50)) if 20 < tree.num_nodes < 60))
ROW = MODEL.field.node_bytes + MODEL.cells.resolution**3
KEYS = MODEL.octree.keys


def make(rows: float, source: MemorySource | None = None) -> NodeCache:
    """A cache whose budget is that of ``rows`` nodes."""
    return NodeCache(MODEL.config, source or MemorySource(MODEL), int(rows * ROW), len(KEYS) + 1)


def assert_holds(cache: NodeCache, index: Tensor) -> None:
    """What the cache gives for nodes ``index`` is what the model has."""
    field, cells = cache.hold(KEYS[index])
    rows = torch.cat((index, torch.tensor([len(KEYS)])))
    assert torch.equal(field.keys, MODEL.field.keys[rows])
    for found, expected in zip(field.values(), MODEL.field.values(), strict=True):
        assert torch.equal(found, expected[rows])
    assert torch.equal(cells.occupied, MODEL.cells.occupied[index])


def draw_index(draw: random.Random, most: int) -> Tensor:
    return torch.tensor(sorted(draw.sample(range(len(KEYS)), draw.randint(0, min(most, len(KEYS))))), dtype=torch.int64)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(2, 40))
def test_views_get_their_nodes_and_the_budget_holds(seed: int, rows: float) -> None:
    draw = random.Random(seed)
    resident: list[int] = []

    class Watched(MemorySource):
        def read(self, key: int) -> dict[str, Tensor]:
            resident.append(cache.resident_bytes)
            return super().read(key)

    source = Watched(MODEL)
    cache = make(rows, source)
    with closing(cache):
        assert sum(len(part) for part in (cache.hold(KEYS[:0])[0].keys,)) == 1
        for _ in range(12):
            index = draw_index(draw, cache.num_rows - 1)
            assert_holds(cache, index)
            resident.append(cache.resident_bytes)
            if draw.random() < 0.5:
                cache.prefetch(KEYS[draw_index(draw, 10)])
        figures = cache.figures
        assert figures.hits + figures.ahead + figures.misses > 0
        assert max(resident) <= int(rows * ROW)
        assert figures.peak_bytes <= int(rows * ROW)
    assert cache.bytes_read == len(source.reads) * ROW


def test_what_is_there_is_not_read_again_and_the_oldest_goes_first() -> None:
    source = MemorySource(MODEL)
    cache = make(5.5, source)  # room for four nodes and the background
    assert cache.num_rows == 5
    for view in ([0, 1], [0, 2], [0, 3], [0, 1]):
        assert_holds(cache, torch.tensor(view))
    assert source.reads == [*KEYS[[0, 1]].tolist(), BACKGROUND_KEY, *KEYS[[2, 3]].tolist()]
    assert_holds(cache, torch.tensor([0, 4]))  # 2 was used longest ago
    assert_holds(cache, torch.tensor([0, 1, 3]))
    assert source.reads[5:] == KEYS[[4]].tolist()
    assert_holds(cache, torch.tensor([0, 2]))
    assert source.reads[6:] == KEYS[[2]].tolist()
    figures = cache.figures
    assert (figures.misses, figures.ahead, figures.evicted) == (7, 0, 2)
    assert figures.hits == 3 * 7 + 1 - 7
    assert figures.peak_bytes == 5 * ROW


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_reading_ahead_goes_on_beside_and_saves_the_wait(gate: threading.Event) -> None:
    class Slow(MemorySource):
        def read(self, key: int) -> dict[str, Tensor]:
            if key != BACKGROUND_KEY and len(self.reads) >= 3:
                assert gate.wait(10)
            return super().read(key)

    source = Slow(MODEL)
    cache = make(24, source)  # an eighth of it is room for three
    with closing(cache):
        assert_holds(cache, torch.tensor([0, 1]))
        held = cache.resident_bytes
        cache.prefetch(KEYS[[0, 2, 3, 4, 5]])  # returns although reading waits
        assert cache.resident_bytes == held + 3 * ROW
        gate.set()
        assert_holds(cache, torch.tensor([0, 2, 3, 4, 5]))
        assert cache.figures.ahead == 3
        assert sorted(source.reads) == sorted([*KEYS[:6].tolist(), BACKGROUND_KEY])
        cache.prefetch(KEYS[[6, 7]])
        assert_holds(cache, torch.tensor([0, 8]))  # what was read in vain is forgotten
        assert_holds(cache, torch.tensor([0, 1]))
        assert cache.resident_bytes <= 24 * ROW


def test_a_read_that_fails_is_told_and_spoils_nothing() -> None:
    class Broken(MemorySource):
        def read(self, key: int) -> dict[str, Tensor]:
            if key == int(KEYS[2]) and broken:
                raise InputError("node 2 is damaged.")
            return super().read(key)

    broken = True
    cache = make(30, Broken(MODEL))
    with closing(cache):
        for _ in range(2):
            with pytest.raises(InputError, match="node 2"):
                cache.hold(KEYS[[0, 1, 2, 3]])
        assert_holds(cache, torch.tensor([0, 1, 3]))
        broken = False
        assert_holds(cache, torch.tensor([0, 1, 2, 3]))


def test_values_of_other_settings_are_refused() -> None:
    other = whole_model(MODEL.octree, tiny_config(sampler={"occupancy_res": 4}))
    with pytest.raises(InputError, match=r"has 64 cells where 512 are expected; use the sampler\.occupancy_res"):
        make(30, MemorySource(other)).hold(KEYS[:1])


def test_the_least_budget_is_named() -> None:
    with pytest.raises(InputError, match=rf"does not hold the root, which takes {ROW:,}; allow at least 1MB"):
        make(0.99)
    assert (make(2.0).num_rows, make(2.0).room) == (2, 1)


def test_the_root_alone_is_held_without_the_background() -> None:
    with closing(make(1.99)) as cache:
        assert (cache.num_rows, cache.room) == (1, 1)
        field, cells = cache.hold(KEYS[:1])
        assert field.keys.tolist() == [int(KEYS[0])] and len(cells.occupied) == 1
        with pytest.raises(ValueError, match="2 nodes do not fit into 1 rows"):
            cache.hold(KEYS[:2])


def test_more_nodes_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="4 nodes do not fit into 3 rows"):
        make(3).hold(KEYS[:3])


def test_a_cache_has_no_more_rows_than_there_are_nodes() -> None:
    model = whole_model(tiny_octree())
    source = MemorySource(model)
    cache = NodeCache(model.config, source, 10**9, model.octree.num_nodes + 1)
    with closing(cache):
        assert cache.num_rows == model.octree.num_nodes + 1
        cache.hold(model.octree.keys)
        assert cache.resident_bytes == cache.num_rows * cache.row_bytes
