"""Pieces of machine code that numba does not write by itself: products of small matrices, and exponentials.

Each is an intrinsic that says its loop in LLVM's own vectors of LANES numbers, which fit any processor, so that a
compiled loop multiplies at the rate of a tuned library without leaving it.  All arrays are contiguous float32 and given
flat, with the index of the first number; nothing checks that they are long enough.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from inf_nerf.field.heads import LEAK

# Numbers of one vector: what a register holds, at least eight (LLVM splits a vector where registers are shorter).
_IS_HOST = config.CPU_NAME in (None, "host")  # pyright: ignore[reportAttributeAccessIssue]
_TARGET = config.CPU_FEATURES or (get_host_cpu_features() if _IS_HOST else "")  # pyright: ignore[reportAttributeAccessIssue]
LANES = 16 if "+avx512f" in _TARGET else 8
ROWS, VECTORS = LANES // 2, 2  # of the result that are held in registers at once
SHORT = 8  # numbers of a narrower vector for what is left of a row
CHAINS = 8  # sums under way at once for a single row, to hide the time that one multiplication takes
INDEX, LANE, FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
WHOLE = ir.VectorType(FLOAT, LANES)


def _product(
    typing: Any,
    rows: Any,  # of the result
    columns: Any,  # of the result; fastest if a multiple of VECTORS * LANES, slow for what exceeds a multiple of SHORT
    inner: Any,
    a: Any,
    a_first: Any,
    a_row: Any,  # distance of two rows
    a_column: Any,  # distance of two columns, so that a transposed matrix can be read in place
    b: Any,  # columns follow each other
    b_first: Any,
    b_row: Any,
    c: Any,
    c_first: Any,
    c_row: Any,
    add: Any,  # whether the result is added to what is there
) -> Any:
    index = types.int64
    signature = types.void(index, index, index, a, index, index, index, b, index, index, c, index, index, types.boolean)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def start(position: int) -> Any:
            data = data_of(context, builder, signature, arguments, position)
            return builder.gep(data, [arguments[position + 1]])

        rows, columns, inner = arguments[:3]
        adds = builder.icmp_unsigned("!=", arguments[13], ir.Constant(arguments[13].type, 0))
        a = (start(3), arguments[5], arguments[6])
        code = _Product(builder, rows, inner, a, (start(7), arguments[9]), (start(10), arguments[12]), adds)
        done = i64(0)
        for vectors in dict.fromkeys(((LANES,) * VECTORS, (LANES,), (SHORT,), (1,))):
            panels = builder.udiv(builder.sub(columns, done), i64(sum(vectors)))
            with cgutils.for_range(builder, panels) as loop:
                code.panel(builder.add(done, builder.mul(loop.index, i64(sum(vectors)))), vectors)
            done = builder.add(done, builder.mul(panels, i64(sum(vectors))))
        return context.get_dummy_value()

    return signature, generate


class _Product:
    """Writes the code of one product: panels of some columns, tiles of some rows of them."""

    def __init__(
        self,
        builder: Any,
        rows: Any,
        inner: Any,
        a: tuple[Any, Any, Any],  # address, distance of rows, distance of columns
        b: tuple[Any, Any],  # address, distance of rows
        c: tuple[Any, Any],
        adds: Any,
    ) -> None:
        self.builder, self.rows, self.inner, self.adds = builder, rows, inner, adds
        self.a, self.a_row, self.a_column = a
        self.b, self.b_row = b
        self.c, self.c_row = c

    def panel(self, column: Any, lanes: Sequence[int]) -> None:
        """All rows of the columns from ``column`` on that vectors of these widths hold."""
        builder = self.builder
        blocks = builder.udiv(self.rows, i64(ROWS))
        with cgutils.for_range(builder, blocks) as loop:
            self._tile(builder.mul(loop.index, i64(ROWS)), ROWS, column, lanes)
        done = builder.mul(blocks, i64(ROWS))
        with cgutils.for_range(builder, builder.sub(self.rows, done)) as loop:
            self._tile(builder.add(done, loop.index), 1, column, lanes)

    def _tile(self, first_row: Any, rows: int, column: Any, lanes: Sequence[int]) -> None:
        builder = self.builder
        kinds = [(number * LANES, ir.VectorType(FLOAT, width)) for number, width in enumerate(lanes)]
        lines = [builder.add(first_row, i64(row)) for row in range(rows)]
        targets = [builder.gep(self.c, [builder.add(builder.mul(line, self.c_row), column)]) for line in lines]
        sums = [[cgutils.alloca_once(builder, kind) for _, kind in kinds] for _ in lines]
        with builder.if_else(self.adds) as (is_added, is_new):
            with is_added:
                for target, places in zip(targets, sums, strict=True):
                    for (offset, kind), place in zip(kinds, places, strict=True):
                        builder.store(load(builder, target, offset, kind), place)
            with is_new:
                for places in sums:
                    for (_, kind), place in zip(kinds, places, strict=True):
                        builder.store(constant(kind, 0.0), place)
        factors = [builder.gep(self.a, [builder.mul(line, self.a_row)]) for line in lines]
        with cgutils.for_range(builder, self.inner) as loop:
            line = builder.gep(self.b, [builder.add(builder.mul(loop.index, self.b_row), column)])
            entries = [load(builder, line, offset, kind) for offset, kind in kinds]
            at = builder.mul(loop.index, self.a_column)
            for factor, places in zip(factors, sums, strict=True):
                number = builder.load(builder.gep(factor, [at]))
                for entry, (_, kind), place in zip(entries, kinds, places, strict=True):
                    term = builder.fmul(entry, spread(builder, number, kind), flags=("contract",))
                    builder.store(builder.fadd(term, builder.load(place), flags=("contract",)), place)
        for target, places in zip(targets, sums, strict=True):
            for (offset, _), place in zip(kinds, places, strict=True):
                store(builder, builder.load(place), target, offset)


_product_here: Any = intrinsic(_product)


@njit(nogil=True, cache=True)
def product(rows, columns, inner, a, a_first, a_row, a_column, b, b_first, b_row, c, c_first, c_row, add):
    """``c[rows, columns] (+)= a[rows, inner] @ b[inner, columns]``; see :func:`_product` for the arguments."""
    _product_here(rows, columns, inner, a, a_first, a_row, a_column, b, b_first, b_row, c, c_first, c_row, add)


def _apply(typing: Any, wide: Any, columns: Any, weights: Any, first: Any, given: Any, result: Any) -> Any:
    """``result[:columns] = given[:wide] @ weights[first:].reshape(-1, columns)[:wide]``.

    Both widths have to be constants when the caller is compiled.
    A product for one row: several rows of the matrix are summed up side by side, to hide what a multiplication takes.
    """
    height, width = wide.literal_value, columns.literal_value
    signature = types.void(wide, columns, weights, types.int64, given, result)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weights, given, result = (data_of(context, builder, signature, arguments, place) for place in (2, 4, 5))
        matrix = builder.gep(weights, [arguments[3]])
        pieces = [(at, min(LANES, width - at)) for at in range(0, width, LANES)]
        for group in range(0, len(pieces), CHAINS):
            _one_row(builder, matrix, given, result, height, width, pieces[group : group + CHAINS])
        return context.get_dummy_value()

    return signature, generate


def _one_row(
    builder: Any, matrix: Any, vector: Any, target: Any, height: int, width: int, pieces: list[tuple[int, int]]
) -> None:
    kinds = [ir.VectorType(FLOAT, lanes) for _, lanes in pieces]
    together = min(max(1, CHAINS // len(pieces)), height)
    sums = [[cgutils.alloca_once(builder, kind) for kind in kinds] for _ in range(together)]
    for row_of_sums in sums:
        for kind, place in zip(kinds, row_of_sums, strict=True):
            builder.store(constant(kind, 0.0), place)

    def add(row: Any, into: list[Any]) -> None:
        number = builder.load(builder.gep(vector, [row]))
        line = builder.gep(matrix, [builder.mul(row, i64(width))])
        for (column, _), kind, place in zip(pieces, kinds, into, strict=True):
            term = builder.fmul(load(builder, line, column, kind), spread(builder, number, kind), flags=("contract",))
            builder.store(builder.fadd(term, builder.load(place), flags=("contract",)), place)

    turns = height // together
    with cgutils.for_range(builder, i64(turns)) as loop:
        base = builder.mul(loop.index, i64(together))
        for offset, into in enumerate(sums):
            add(builder.add(base, i64(offset)), into)
    for row in range(turns * together, height):
        add(i64(row), sums[row - turns * together])
    for number, (column, _) in enumerate(pieces):
        total = builder.load(sums[0][number])
        for more in sums[1:]:
            total = builder.fadd(total, builder.load(more[number]))
        store(builder, total, target, column)


def _elementwise(code: Callable[..., Any]) -> Any:
    """An intrinsic ``f(values, first, count)`` that replaces numbers by ``code`` of them, in whole vectors: up to
    LANES - 1 numbers behind the last are replaced too."""

    def replace(typing: Any, values: Any, first: Any, count: Any) -> Any:
        signature = types.void(values, types.int64, types.int64)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            start = builder.gep(data_of(context, builder, signature, arguments, 0), [arguments[1]])
            with vectors(builder, arguments[2]) as at:
                place = builder.gep(start, [at])
                store(builder, code(builder, load(builder, place, 0, WHOLE)), place, 0)
            return context.get_dummy_value()

        return signature, generate

    return intrinsic(replace)


def _gate(typing: Any, values: Any, gates: Any, count: Any) -> Any:
    """The gradient of :data:`leaky_relus`: ``values`` times LEAK where their result ``gates`` is not positive, both
    from their first number on, in whole vectors."""
    signature = types.void(values, gates, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, gates = (data_of(context, builder, signature, arguments, place) for place in (0, 1))
        zero = constant(WHOLE, 0.0)
        with vectors(builder, arguments[2]) as at:
            place = builder.gep(values, [at])
            is_open = builder.fcmp_ordered(">", load(builder, builder.gep(gates, [at]), 0, WHOLE), zero)
            value = load(builder, place, 0, WHOLE)
            store(builder, builder.select(is_open, value, builder.fmul(value, constant(WHOLE, LEAK))), place, 0)
        return context.get_dummy_value()

    return signature, generate


def _move(typing: Any, source: Any, source_first: Any, target: Any, target_first: Any, count: Any) -> Any:
    """Copy ``count`` numbers in whole vectors: up to LANES - 1 numbers behind the last are copied too."""
    index = types.int64
    signature = types.void(source, index, target, index, index)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (
            builder.gep(data_of(context, builder, signature, arguments, place), [arguments[place + 1]])
            for place in (0, 2)
        )
        with vectors(builder, arguments[4]) as at:
            store(builder, load(builder, builder.gep(source, [at]), 0, WHOLE), builder.gep(target, [at]), 0)
        return context.get_dummy_value()

    return signature, generate


@contextmanager
def vectors(builder: Any, count: Any) -> Iterator[Any]:
    """A loop over whole vectors that cover ``count`` numbers: the index of a vector's first."""
    turns = builder.udiv(builder.add(count, i64(LANES - 1)), i64(LANES))
    with cgutils.for_range(builder, turns) as loop:
        yield builder.mul(loop.index, i64(LANES))


def _exponential(builder: Any, x: Any) -> Any:
    """exp of a vector within 2 units in the last place, of values clamped to [-87, 88] (Cephes, expf)."""
    kind = x.type
    x = _limit(builder, _limit(builder, x, -87.0, "<"), 88.0, ">")
    shift = constant(kind, 12_582_912.0)  # adding 1.5 * 2^23 rounds to an integer
    turns = builder.fsub(builder.fadd(builder.fmul(x, constant(kind, 1.4426950408889634)), shift), shift)
    rest = builder.fsub(x, builder.fmul(turns, constant(kind, 0.693359375)))
    rest = builder.fsub(rest, builder.fmul(turns, constant(kind, -2.12194440e-4)))
    value = constant(kind, 1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0):
        value = builder.fadd(
            builder.fmul(value, rest, flags=("contract",)), constant(kind, factor), flags=("contract",)
        )
    bits = ir.VectorType(LANE, kind.count)
    exponent = builder.add(builder.fptosi(turns, bits), ir.Constant(bits, [127] * kind.count))
    power = builder.bitcast(builder.shl(exponent, ir.Constant(bits, [23] * kind.count)), kind)
    return builder.fmul(value, power)


def _logistic(builder: Any, x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    one = constant(x.type, 1.0)
    negative = builder.fsub(constant(x.type, 0.0), x)
    return builder.fdiv(one, builder.fadd(one, _exponential(builder, negative)))


def _leaky(builder: Any, x: Any) -> Any:
    """max(x, LEAK x)."""
    low = builder.fmul(x, constant(x.type, LEAK))
    return builder.select(builder.fcmp_ordered(">", x, low), x, low)


def _limit(builder: Any, x: Any, limit: float, beyond: str) -> Any:
    bound = constant(x.type, limit)
    return builder.select(builder.fcmp_ordered(beyond, x, bound), bound, x)


def load(builder: Any, base: Any, offset: int, kind: ir.VectorType) -> Any:
    """Read a vector behind an address of single numbers."""
    value = builder.load(_pointer(builder, base, offset, kind))
    value.align = 4
    return value


def store(builder: Any, value: Any, base: Any, offset: int) -> None:
    """Write a vector behind an address of single numbers."""
    builder.store(value, _pointer(builder, base, offset, value.type), align=4)


def _pointer(builder: Any, base: Any, offset: int, kind: ir.VectorType) -> Any:
    return builder.bitcast(builder.gep(base, [i64(offset)]), kind.as_pointer())


def data_of(context: Any, builder: Any, signature: Any, arguments: Any, place: int) -> Any:
    """The address of the first number of an intrinsic's argument that is an array."""
    return context.make_array(signature.args[place])(context, builder, arguments[place]).data


def spread(builder: Any, number: Any, kind: ir.VectorType) -> Any:
    """The number in every lane."""
    empty = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(empty, number, ir.Constant(LANE, 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(LANE, kind.count), [0] * kind.count))


def constant(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def i64(value: int) -> ir.Constant:
    return ir.Constant(INDEX, value)


apply: Any = intrinsic(prefer_literal=True)(_apply)
exponentials: Any = _elementwise(_exponential)
sigmoids: Any = _elementwise(_logistic)
leaky_relus: Any = _elementwise(_leaky)
gate: Any = intrinsic(_gate)
move: Any = intrinsic(_move)
