"""Matrix products whose rows do not depend on each other, or on how many there are.

Every element is a sum over short runs of its terms, each of them in order and kept in a register: a row has the same
digits alone, among others and at any place, which the products of BLAS libraries do not promise. A matrix that rows are
multiplied with is packed into panels of `WIDTH` columns.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from txeval.compute.jit import jit

__all__ = ["CACHED", "ROWS", "WIDTH", "multiply", "pack", "panel_count", "product", "tile"]

Array = npt.NDArray[np.floating[Any]]

#: Columns of a panel.
WIDTH = 32

#: Rows of a tile.
ROWS = 6

#: Terms of a run: in float32 shorter runs round less, by the square root of their length.
_RUN = 64

#: Bytes of panels that stay in the cache while all rows pass.
CACHED = 2**19


def _registers() -> tuple[int, int]:
    """Bytes of a vector register, and how many of them hold the sums of a row of a block."""
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:
        features = {}
    if features.get("avx512f", False):
        return 64, 4
    if features.get("avx", False):
        return 32, 2
    return 16, 4 if platform.machine().lower() in ("aarch64", "arm64") else 2


_VECTOR, _VECTORS = _registers()


def _block(item: int) -> tuple[Callable[..., Any], int]:
    """Products of ROWS rows with some columns of a panel, added to what is there, and how many columns these are.

    `item` is the size of a value: 8 for float64, 4 for float32.
    """
    lanes = _VECTOR // item
    vectors = min(_VECTORS, WIDTH // lanes)

    @cast(Callable[[Any], Callable[..., Any]], intrinsic)
    def block(typing_context: Any, rows: Any, panel: Any, row_bytes: Any, terms: Any, out: Any) -> Any:
        """`rows`, `panel` and `out` are addresses of the first row, of the first column and of (ROWS, WIDTH) values."""
        signature = types.void(types.uintp, types.uintp, types.int64, types.int64, types.uintp)

        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            index, position = ir.IntType(64), ir.IntType(32)
            number = ir.DoubleType() if item == 8 else ir.FloatType()
            vector = ir.VectorType(number, lanes)

            def address(start: Any, offset: int, kind: Any) -> Any:
                return builder.inttoptr(builder.add(start, ir.Constant(index, offset)), kind.as_pointer())

            def spread(value: Any) -> Any:
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(position, 0))
                zeros = ir.Constant(ir.VectorType(position, lanes), [0] * lanes)
                return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)

            rows, panel, row_bytes, terms, out = arguments
            before, loop = builder.block, builder.append_basic_block("products")
            builder.branch(loop)
            builder.position_at_end(loop)
            place = builder.phi(index)
            place.add_incoming(ir.Constant(index, 0), before)
            sums = [builder.phi(vector) for _ in range(ROWS * vectors)]
            at = builder.add(panel, builder.mul(place, ir.Constant(index, item * WIDTH)))
            columns = [builder.load(address(at, item * lanes * v, vector), align=item) for v in range(vectors)]
            start = builder.add(rows, builder.mul(place, ir.Constant(index, item)))
            added = []
            for row in range(ROWS):
                value = spread(builder.load(address(start, 0, number), align=item))
                for v in range(vectors):
                    term = builder.fmul(value, columns[v], flags=("contract",))
                    added.append(builder.fadd(sums[row * vectors + v], term, flags=("contract",)))
                start = builder.add(start, row_bytes)
            following = builder.add(place, ir.Constant(index, 1))
            place.add_incoming(following, loop)
            for total, value in zip(sums, added, strict=True):
                total.add_incoming(ir.Constant(vector, [0.0] * lanes), before)
                total.add_incoming(value, loop)
            done = builder.append_basic_block("done")
            builder.cbranch(builder.icmp_signed("<", following, terms), loop, done)
            builder.position_at_end(done)
            for row in range(ROWS):
                for v in range(vectors):
                    target = address(out, item * (row * WIDTH + lanes * v), vector)
                    total = builder.fadd(builder.load(target, align=item), added[row * vectors + v])
                    builder.store(total, target, align=item)
            return context.get_dummy_value()

        return signature, generate

    return block, lanes * vectors


_block_of_float64, _COLUMNS_OF_FLOAT64 = _block(8)
_block_of_float32, _COLUMNS_OF_FLOAT32 = _block(4)


@jit
def tile(rows: Any, first: Any, panels: Any, p: Any, out: Any) -> None:
    """Products of the rows first to first + ROWS - 1 of (m, d) with panel p, into (ROWS, WIDTH); all of one type."""
    d, item = panels.shape[1], panels.itemsize
    row_bytes = item * d
    out[:] = 0
    for run in range(0, d, _RUN):
        terms = min(_RUN, d - run)
        row = rows.ctypes.data + first * row_bytes + item * run
        panel = panels.ctypes.data + item * (p * d + run) * WIDTH
        if item == 8:
            for column in range(0, WIDTH, _COLUMNS_OF_FLOAT64):
                _block_of_float64(row, panel + 8 * column, row_bytes, terms, out.ctypes.data + 8 * column)
        else:
            for column in range(0, WIDTH, _COLUMNS_OF_FLOAT32):
                _block_of_float32(row, panel + 4 * column, row_bytes, terms, out.ctypes.data + 4 * column)


@jit
def _pack(matrix: Any, panels: Any) -> None:
    for p in range(panels.shape[0]):
        for i in range(panels.shape[1]):
            for j in range(min(WIDTH, matrix.shape[1] - p * WIDTH)):
                panels[p, i, j] = matrix[i, p * WIDTH + j]


def panel_count(columns: int) -> int:
    """Number of panels of a matrix."""
    return -(-columns // WIDTH)


def pack(matrix: Array, dtype: npt.DTypeLike = np.float64) -> Array:
    """Panels of a matrix (d, k), to multiply with: (panel_count(k), d, WIDTH) float64 or float32."""
    panels = np.zeros((panel_count(matrix.shape[1]), matrix.shape[0], WIDTH), dtype=dtype)
    _pack(matrix, panels)
    return panels


@jit
def _multiply(rows: Any, panels: Any, columns: Any, out: Any) -> None:
    m, d = rows.shape
    whole = m - m % ROWS
    # What is left is filled up.
    rest = np.zeros((ROWS, d), rows.dtype)
    rest[: m - whole] = rows[whole:]
    block = np.empty((ROWS, WIDTH), rows.dtype)
    step = max(1, CACHED // (panels.itemsize * d * WIDTH))
    for begin in range(0, panels.shape[0], step):
        for first in range(0, m, ROWS):
            for p in range(begin, min(panels.shape[0], begin + step)):
                if first < whole:
                    tile(rows, first, panels, p, block)
                else:
                    tile(rest, 0, panels, p, block)
                for row in range(min(ROWS, m - first)):
                    for j in range(min(WIDTH, columns - p * WIDTH)):
                        out[first + row, p * WIDTH + j] = block[row, j]


def multiply(rows: Array, panels: Array, columns: int) -> Array:
    """Product of rows (m, d), C-contiguous, with a packed matrix (d, columns) of the same type: (m, columns)."""
    out = np.empty((len(rows), columns), dtype=rows.dtype)
    _multiply(rows, panels, columns, out)
    return out


def product(a: Array, b: Array) -> Array:
    """Product of two matrices (m, d) and (d, k) of any layout, in the type of the first: (m, k)."""
    return multiply(np.ascontiguousarray(a), pack(b, a.dtype), b.shape[1])
