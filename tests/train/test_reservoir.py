"""Properties of the tile reservoir on hand-made tables."""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pytest
import torch

from inf_nerf.errors import InputError
from inf_nerf.train.reservoir import RayBatch, Reservoir

SIZE = 8  # pixels of a tile's side
TILE_BYTES = SIZE * SIZE * 3


def colour(photo: int, level: int, x: int, y: int) -> tuple[int, int, int]:
    """A colour that names its pixel."""
    return (photo * 16 + level, x, y)


def tile(
    number: int, level: int = 0, mask: np.ndarray | None = None, width: int = SIZE, share: float = 1.0
) -> dict[str, object]:
    """Tile ``number`` of photo ``number % 8``, at column number * 8."""
    photo, x, y = number % 8, (number * SIZE) % 200, 3
    pixels = [colour(photo, level, x + i, y + j) for j in range(SIZE) for i in range(width)]
    return {
        "tile": number, "photo": photo, "level": level, "x": x, "y": y, "width": width, "height": SIZE,
        "pixels": np.array(pixels, np.uint8).tobytes(),
        "mask": None if mask is None else mask.astype(np.uint8).tobytes(), "share": share,
    }  # fmt: skip


SCHEMA = pa.schema(
    [pa.field(name, pa.int64()) for name in ("tile", "photo", "level", "x", "y", "width", "height")]
    + [pa.field("pixels", pa.binary()), pa.field("mask", pa.binary()), pa.field("share", pa.float32())]
)


def stream(tiles: list[dict[str, object]], batch: int = 3) -> Callable[[], Iterator[pa.Table]]:
    """A stream of tables of ``batch`` rows."""
    table = pa.Table.from_pylist(tiles, schema=SCHEMA)
    return lambda: iter([table.slice(start, batch) for start in range(0, len(table), batch)])


def check_colours(batch: RayBatch) -> None:
    """Every colour belongs to the pixel it is said to come from."""
    expected = torch.stack([batch.photo * 16 + batch.level, *batch.xy.unbind(1)], dim=1) / 255
    torch.testing.assert_close(batch.rgb, expected)


def numbers(reservoir: Reservoir) -> list[int]:
    return reservoir.state()["tiles"]


def test_drawn_colours_belong_to_the_drawn_pixels() -> None:
    masked = np.random.default_rng(0).random((SIZE, SIZE)) < 0.3
    tiles = [tile(n, level=n % 3, mask=masked if n % 2 else None, width=SIZE - n % 3) for n in range(7)]
    tiles = [t if t["width"] == SIZE else {**t, "mask": None} for t in tiles]
    batch = Reservoir(stream(tiles), 1 << 20, 2.0).sample(2000, torch.Generator().manual_seed(1))
    check_colours(batch)
    assert batch.photo.unique().tolist() == list(range(7))


def test_masked_pixels_are_never_drawn_and_all_others_are() -> None:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[2, 3] = mask[7, 0] = True
    batch = Reservoir(stream([tile(0, mask=mask)]), 1 << 20, 1.0).sample(300, torch.Generator().manual_seed(0))
    check_colours(batch)
    assert set(map(tuple, batch.xy.tolist())) == {(3, 5), (0, 10)}


def test_pixels_are_drawn_in_proportion_to_their_levels_boost_and_their_tiles_share() -> None:
    half = np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 2 == 0
    tiles = [tile(0, level=0), tile(1, level=2, share=0.5), tile(2, level=1, mask=half)]
    reservoir = Reservoir(stream(tiles), 1 << 20, 3.0)
    batch = reservoir.sample(40_000, torch.Generator().manual_seed(0))
    share = batch.photo.bincount(minlength=3) / len(batch)
    torch.testing.assert_close(share, torch.tensor([1.0, 4.5, 1.5]) / 7, atol=0.01, rtol=0)
    first = batch.xy[batch.photo == 1]
    per_pixel = (first[:, 0] + 1000 * first[:, 1]).unique(return_counts=True)[1]
    assert len(per_pixel) == 64
    assert per_pixel.min() > 0.8 * per_pixel.float().mean()


def test_small_shard_is_loaded_once_and_never_swapped() -> None:
    reservoir = Reservoir(stream([tile(n) for n in range(5)]), 5 * TILE_BYTES, 2.0)
    assert reservoir.state()["complete"]
    assert numbers(reservoir) == list(range(5))
    assert reservoir.nbytes == 5 * TILE_BYTES
    assert reservoir.swap() == 0


def test_swapping_replaces_the_oldest_under_the_cap_and_comes_round_to_every_tile() -> None:
    mask = np.ones((SIZE, SIZE), bool)
    mask[0] = False
    tiles = [tile(n, mask=mask if n % 3 == 0 else None, width=SIZE) for n in range(23)]
    capacity = 6 * TILE_BYTES + 50
    reservoir = Reservoir(stream(tiles), capacity, 2.0)
    assert not reservoir.state()["complete"]
    seen = set(numbers(reservoir))
    for _ in range(60):
        before = numbers(reservoir)
        arrived = reservoir.swap()
        after = numbers(reservoir)
        assert 0 < arrived <= 2
        assert after[-arrived:] == [(before[-1] + 1 + i) % 23 for i in range(arrived)]
        assert before[len(before) - (len(after) - arrived) :] == after[:-arrived]
        assert 3 * TILE_BYTES < reservoir.nbytes <= capacity
        check_colours(reservoir.sample(300, torch.Generator().manual_seed(0)))
        seen |= set(after)
    assert seen == set(range(23))


@pytest.mark.parametrize("swaps", [0, 1, 7, 12, 40])
@pytest.mark.parametrize("capacity", [5 * TILE_BYTES + 20, 1 << 20])
def test_restored_reservoir_continues_bit_for_bit(swaps: int, capacity: int) -> None:
    mask = np.random.default_rng(3).random((SIZE, SIZE)) < 0.6
    tiles = [tile(n, level=n % 2, mask=mask if n % 4 == 1 else None) for n in range(17)]
    generator = torch.Generator().manual_seed(5)
    original = Reservoir(stream(tiles), capacity, 2.0)
    for _ in range(swaps):
        original.swap()
    restored = Reservoir(stream(tiles, batch=4), capacity, 2.0, original.state())
    again = Reservoir(stream(tiles), capacity, 2.0)
    assert again.restore(original.state())
    for _ in range(25):
        state = generator.get_state()
        expected = original.sample(64, generator)
        for other in (restored, again):
            generator.set_state(state)
            drawn = other.sample(64, generator)
            for name in ("photo", "level", "xy", "rgb"):
                assert torch.equal(getattr(drawn, name), getattr(expected, name))
            other.swap()
        original.swap()
        assert original.state() == restored.state() == again.state()


def test_state_of_another_shard_is_refused_and_the_reservoir_filled_anew() -> None:
    state = Reservoir(stream([tile(n) for n in range(6)]), 1 << 20, 2.0).state()
    for other in ([2, 3, 4], [0, 1, 2, 3, 4, 5, 6]):
        reservoir = Reservoir(stream([tile(9)]), 1 << 20, 2.0)
        reservoir._tile_batches = stream([tile(n) for n in other])
        assert not reservoir.restore(state)
        assert numbers(reservoir) == other
        assert reservoir.state()["complete"]


def test_empty_shard_gives_empty_batches() -> None:
    for tiles in ([], [tile(0, mask=np.zeros((SIZE, SIZE), bool))]):
        reservoir = Reservoir(stream(tiles), 1000, 2.0)
        batch = reservoir.sample(100, torch.Generator())
        assert len(batch) == len(reservoir) == reservoir.swap() == reservoir.nbytes == 0
        assert batch.xy.shape == (0, 2)
        assert batch.rgb.shape == (0, 3)
        assert Reservoir(stream(tiles), 1000, 2.0, reservoir.state()).state() == reservoir.state()


def test_cap_below_one_tile_names_the_key_to_raise() -> None:
    with pytest.raises(InputError, match=r"data\.reservoir_mb"):
        Reservoir(stream([tile(0)]), TILE_BYTES - 4, 2.0).fill()


def test_nothing_is_read_before_it_is_needed() -> None:
    opened: list[int] = []

    def batches() -> Iterator[pa.Table]:
        opened.append(1)
        return stream([tile(n) for n in range(5)])()

    state = Reservoir(stream([tile(n) for n in range(5)]), 1 << 20, 2.0).state()
    reservoir = Reservoir(batches, 1 << 20, 2.0)
    assert not opened
    assert reservoir.restore(state)
    reservoir.fill()
    assert opened == [1]


@pytest.mark.parametrize("capacity", [5, 16, 17, 99])
@pytest.mark.parametrize("cursor", [0, 1, 4, 15, 16, 17, 40])
def test_filling_may_begin_anywhere_and_goes_around_the_end(capacity: int, cursor: int) -> None:
    reservoir = Reservoir(stream([tile(n) for n in range(17)], batch=4), capacity * TILE_BYTES, 2.0)
    reservoir.fill(cursor)
    begin = cursor if cursor < 17 else 0
    assert numbers(reservoir) == [(begin + n) % 17 for n in range(min(17, capacity))]
    assert reservoir.state()["complete"] == (capacity >= 17)
    reservoir.swap()
    if capacity < 17:
        assert numbers(reservoir)[-1] == (begin + capacity + max(1, -(-capacity // 8)) - 1) % 17
    check_colours(reservoir.sample(300, torch.Generator().manual_seed(0)))
