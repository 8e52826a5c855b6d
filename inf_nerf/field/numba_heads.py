"""Heads inside compiled loops: one vector times one matrix, as fast as a core multiplies.

A sample's own product is worth it where samples come one at a time, as along a ray that stops at a surface; weights of
a head stay in the cache.  Numba does not turn such loops into vector instructions by itself, so :func:`apply` says them
in LLVM's terms, which fit any processor: a layer's outputs are vectors of LANES numbers that collect input times row.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8  # numbers of one vector; LLVM splits it where registers are shorter
CHAINS = 8  # sums that are under way at once, to hide the time that one multiplication takes


def _apply(typing: Any, wide: Any, out: Any, weights: Any, first: Any, given: Any, result: Any) -> Any:
    """``result[:out] = given[:wide] @ weights[first:].reshape(-1, out)[:wide]``, all float32 and contiguous.

    ``wide`` and ``out`` are constants when the caller is compiled; nothing checks that the arrays are long enough.
    """
    rows, columns = wide.literal_value, out.literal_value
    signature = types.void(wide, out, weights, types.int64, given, result)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def start(position: int) -> Any:
            return context.make_array(signature.args[position])(context, builder, arguments[position]).data

        matrix = builder.gep(start(2), [arguments[3]])
        vector, target = start(4), start(5)
        pieces = [(at, min(LANES, columns - at)) for at in range(0, columns, LANES)]
        for block in range(0, len(pieces), CHAINS):
            _columns(builder, matrix, vector, target, rows, columns, pieces[block : block + CHAINS])
        return context.get_dummy_value()

    return signature, generate


apply: Any = intrinsic(prefer_literal=True)(_apply)


def _columns(
    builder: Any, matrix: Any, vector: Any, target: Any, rows: int, columns: int, pieces: list[tuple[int, int]]
) -> None:
    """Write the code for some vectors of outputs, each (first column, lanes)."""
    index = ir.IntType(64)
    together = max(1, CHAINS // len(pieces))  # rows in one turn of the loop, each with sums of its own
    kinds = [ir.VectorType(ir.FloatType(), lanes) for _, lanes in pieces]
    sums = [[cgutils.alloca_once(builder, kind) for kind in kinds] for _ in range(min(together, rows))]
    for row_of_sums in sums:
        for kind, place in zip(kinds, row_of_sums, strict=True):
            builder.store(ir.Constant(kind, [0.0] * kind.count), place)

    def add(row: Any, into: list[Any]) -> None:
        factor = builder.load(builder.gep(vector, [row]))
        line = builder.gep(matrix, [builder.mul(row, ir.Constant(index, columns))])
        for (column, _), kind, place in zip(pieces, kinds, into, strict=True):
            entries = builder.load(_pointer(builder, line, column, kind))
            entries.align = 4
            product = builder.fmul(entries, _spread(builder, factor, kind), flags=("contract",))
            builder.store(builder.fadd(product, builder.load(place), flags=("contract",)), place)

    turns = rows // len(sums)
    with cgutils.for_range(builder, ir.Constant(index, turns)) as loop:
        base = builder.mul(loop.index, ir.Constant(index, len(sums)))
        for offset, into in enumerate(sums):
            add(builder.add(base, ir.Constant(index, offset)), into)
    for row in range(turns * len(sums), rows):
        add(ir.Constant(index, row), sums[row - turns * len(sums)])
    for number, ((column, _), kind) in enumerate(zip(pieces, kinds, strict=True)):
        total = builder.load(sums[0][number])
        for more in sums[1:]:
            total = builder.fadd(total, builder.load(more[number]))
        builder.store(total, _pointer(builder, target, column, kind), align=4)


def _pointer(builder: Any, base: Any, offset: int, kind: ir.VectorType) -> Any:
    return builder.bitcast(builder.gep(base, [ir.Constant(ir.IntType(64), offset)]), kind.as_pointer())


def _spread(builder: Any, number: Any, kind: ir.VectorType) -> Any:
    """The number in every lane."""
    lane = ir.IntType(32)
    empty = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(empty, number, ir.Constant(lane, 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(lane, kind.count), [0] * kind.count))


@njit(inline="always")
def relu(values, count):
    """Negative values become 0, in place."""
    for i in range(count):
        values[i] = max(values[i], np.float32(0))


@njit(inline="always")
def sigmoid(x):
    """1 / (1 + exp(-x)) in float32."""
    return np.float32(1) / (np.float32(1) + np.exp(-x))
