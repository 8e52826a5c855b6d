"""Trilinear look-ups in the hash grid, said in LLVM's own vectors: pieces for compiled loops.

A look-up has two halves.  Finding the entries and weights of a cell's eight corners is arithmetic, done for LANES
positions, or for LANES levels of one position, at once and left in a small table in the L1 cache.  Fetching the entries
is then eight loads with nothing between them but a product, so that the processor has the loads of many positions under
way.  Positions and weights round as in the torch twin; only the sum over corners is fused, in an order of its own.

All arrays are contiguous and given flat, with the index of the first number; nothing checks that they are long enough.
Corners are numbered x fastest.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from inf_nerf.field.hash_grid import PRIMES
from inf_nerf.field.vector_code import (
    FLOAT,
    INDEX,
    LANE,
    LANES,
    WHOLE,
    constant,
    data_of,
    i64,
    load,
    spread,
    store,
    vectors,
)

CORNERS = 8
PIECE = 128  # positions whose corners are found before their entries are fetched
INTS = ir.VectorType(LANE, LANES)
Vector = Any  # an LLVM value of LANES numbers


def _find_corners(
    typing: Any,
    columns: Any,  # coordinate ``axis`` of position q is columns[axis * room + first + q]
    room: Any,
    first: Any,
    count: Any,  # at most PIECE
    scale: Any,
    stride: Any,  # 0 in a hashed level
    size: Any,
    rows: Any,  # [CORNERS * PIECE] gets row [corner * PIECE + q]
    weights: Any,
) -> Any:
    """Corners of ``count`` positions in one level."""
    index = types.int64
    signature = types.void(columns, index, index, index, types.float32, types.uint32, types.uint32, rows, weights)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        room, first, count = arguments[1:4]
        columns, rows, weights = (data_of(context, builder, signature, arguments, place) for place in (0, 7, 8))
        starts = [builder.gep(columns, [builder.add(first, builder.mul(room, i64(axis)))]) for axis in range(3)]
        scale = spread(builder, arguments[4], WHOLE)
        stride, size = (spread(builder, value, INTS) for value in arguments[5:7])

        def of_all(rows_of: Callable[..., list[Vector]]) -> None:
            with vectors(builder, count) as at:
                axes = [_axis(builder, load(builder, builder.gep(start, [at]), 0, WHOLE), scale) for start in starts]
                _put(builder, rows, weights, at, rows_of(*(lower for lower, _ in axes)), _weights(builder, axes))

        hashed = builder.icmp_unsigned("==", arguments[5], ir.Constant(LANE, 0))
        with builder.if_else(hashed) as (is_hashed, is_dense):
            with is_hashed:
                of_all(lambda x, y, z: _hashed_rows(builder, x, y, z, size))
            with is_dense:
                of_all(lambda x, y, z: _dense_rows(builder, x, y, z, stride, size))
        return context.get_dummy_value()

    return signature, generate


def _find_level_corners(
    typing: Any, x: Any, y: Any, z: Any, num_levels: Any, scales: Any, strides: Any, sizes: Any, offsets: Any,
    rows: Any, weights: Any,
) -> Any:  # fmt: skip
    """Corners of one position in all levels: ``rows[corner * PIECE + level]``, counted from a node's first entry.

    Arrays of levels have to be readable in whole vectors.
    """
    number = types.float32
    signature = types.void(number, number, number, types.int64, scales, strides, sizes, offsets, rows, weights)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tables = [data_of(context, builder, signature, arguments, place) for place in range(4, 10)]
        position = [spread(builder, value, WHOLE) for value in arguments[:3]]
        with vectors(builder, arguments[3]) as at:
            scale, stride, size, offset = (
                load(builder, builder.gep(table, [at]), 0, kind)
                for table, kind in zip(tables[:4], (WHOLE, INTS, INTS, INTS), strict=True)
            )
            axes = [_axis(builder, value, scale) for value in position]
            (cx, _), (cy, _), (cz, _) = axes
            hashed = builder.icmp_unsigned("==", stride, ir.Constant(INTS, [0] * LANES))
            rows_of_both = _hashed_rows(builder, cx, cy, cz, size), _dense_rows(builder, cx, cy, cz, stride, size)
            pairs = zip(*rows_of_both, strict=True)
            found = [builder.add(offset, builder.select(hashed, one, other)) for one, other in pairs]
            _put(builder, tables[4], tables[5], at, found, _weights(builder, axes))
        return context.get_dummy_value()

    return signature, generate


def _fetch(
    typing: Any,
    num_features: Any,  # a constant
    count: Any,
    table: Any,
    table_first: Any,
    rows: Any,
    weights: Any,
    features: Any,  # of position (or level) q at [first + q * distance]
    first: Any,
    distance: Any,
) -> Any:
    """Weighted sums of the entries at ``rows``."""
    kind = ir.VectorType(FLOAT, num_features.literal_value)
    index = types.int64
    signature = types.void(num_features, index, table, index, rows, weights, features, index, index)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        with _each(context, builder, signature, arguments, kind) as (features, entries):
            sums: list[Any] = []  # of even and of odd corners, so that fewer products wait for each other
            for entry, weight in entries:
                term = builder.fmul(load(builder, entry, 0, kind), weight, flags=("contract",))
                sums.append(term if len(sums) < 2 else builder.fadd(term, sums[-2], flags=("contract",)))
            store(builder, builder.fadd(sums[-1], sums[-2]), features, 0)
        return context.get_dummy_value()

    return signature, generate


def _deposit(
    typing: Any, num_features: Any, count: Any, table: Any, table_first: Any, rows: Any, weights: Any, values: Any,
    first: Any, distance: Any,
) -> Any:  # fmt: skip
    """The gradient of :func:`_fetch`: adds weighted ``values`` to the entries at ``rows``, position by position."""
    kind = ir.VectorType(FLOAT, num_features.literal_value)
    index = types.int64
    signature = types.void(num_features, index, table, index, rows, weights, values, index, index)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        with _each(context, builder, signature, arguments, kind) as (values, entries):
            value = load(builder, values, 0, kind)
            for entry, weight in entries:
                term = builder.fmul(value, weight, flags=("contract",))
                store(builder, builder.fadd(term, load(builder, entry, 0, kind), flags=("contract",)), entry, 0)
        return context.get_dummy_value()

    return signature, generate


@contextmanager
def _each(
    context: Any, builder: Any, signature: Any, arguments: Any, kind: ir.VectorType
) -> Iterator[tuple[Any, Iterable[tuple[Any, Any]]]]:
    """A loop over positions: where a position's features are, and its corners' entries and weights."""
    table, rows, weights, values = (data_of(context, builder, signature, arguments, place) for place in (2, 4, 5, 6))
    table, values = builder.gep(table, [arguments[3]]), builder.gep(values, [arguments[7]])
    with cgutils.for_range(builder, arguments[1]) as turn:

        def corners() -> Iterable[tuple[Any, Any]]:
            for corner in range(CORNERS):
                place = builder.add(turn.index, i64(corner * PIECE))
                row = builder.zext(builder.load(builder.gep(rows, [place])), INDEX)
                weight = spread(builder, builder.load(builder.gep(weights, [place])), kind)
                yield builder.gep(table, [builder.mul(row, i64(kind.count))]), weight

        yield builder.gep(values, [builder.mul(turn.index, arguments[8])]), corners()


def _axis(builder: Any, x: Vector, scale: Vector) -> tuple[Vector, tuple[Vector, Vector]]:
    """The lower vertex of a coordinate's cell, and the weights of the lower and the upper one.

    The coordinate is clamped to [0, 1]; NaN becomes 0, so that no input can reach outside a table.
    """
    zero, one = constant(x.type, 0.0), constant(x.type, 1.0)
    x = builder.select(builder.fcmp_ordered(">", x, zero), x, zero)
    x = builder.select(builder.fcmp_ordered("<", x, one), x, one)
    place = builder.fadd(builder.fmul(x, scale), constant(x.type, 0.5))
    lower = builder.fptosi(place, INTS)
    share = builder.fsub(place, builder.sitofp(lower, WHOLE))
    return lower, (builder.fsub(one, share), share)


def _weights(builder: Any, axes: Sequence[tuple[Vector, tuple[Vector, Vector]]]) -> list[Vector]:
    (_, x), (_, y), (_, z) = axes
    planes = [builder.fmul(x[corner & 1], y[corner >> 1]) for corner in range(4)]
    return [builder.fmul(planes[corner & 3], z[corner >> 2]) for corner in range(CORNERS)]


def _hashed_rows(builder: Any, x: Vector, y: Vector, z: Vector, size: Vector) -> list[Vector]:
    mask = builder.sub(size, ir.Constant(INTS, [1] * LANES))
    axes = []
    for value, prime in zip((x, y, z), PRIMES, strict=True):
        factor = ir.Constant(INTS, [prime] * LANES)
        product = builder.mul(value, factor)
        axes.append((product, builder.add(product, factor)))
    planes = [builder.xor(axes[1][plane & 1], axes[2][plane >> 1]) for plane in range(4)]
    return [builder.and_(builder.xor(axes[0][corner & 1], planes[corner >> 1]), mask) for corner in range(CORNERS)]


def _dense_rows(builder: Any, x: Vector, y: Vector, z: Vector, stride: Vector, size: Vector) -> list[Vector]:
    steps = ir.Constant(INTS, [1] * LANES), stride, builder.mul(stride, stride)
    first = builder.add(x, builder.mul(stride, builder.add(y, builder.mul(stride, z))))
    rows = []
    for corner in range(CORNERS):
        row = first
        for axis, step in enumerate(steps):
            if corner >> axis & 1:
                row = builder.add(row, step)
        # modulo: a vertex one step outside the cube lies less than one table length behind its end
        beyond = builder.icmp_unsigned(">=", row, size)
        rows.append(builder.select(beyond, builder.sub(row, size), row))
    return rows


def _put(builder: Any, rows: Any, weights: Any, at: Any, found: Sequence[Vector], shares: Sequence[Vector]) -> None:
    for table, values in ((rows, found), (weights, shares)):
        for corner, value in enumerate(values):
            store(builder, value, builder.gep(table, [builder.add(at, i64(corner * PIECE))]), 0)


find_corners: Any = intrinsic(_find_corners)
find_level_corners: Any = intrinsic(_find_level_corners)
fetch: Any = intrinsic(prefer_literal=True)(_fetch)
deposit: Any = intrinsic(prefer_literal=True)(_deposit)
