"""Products of many points with many queries, of which only the small ones are kept: they are never in memory.

A block of the products stays in registers: `ROWS` queries times `WIDTH` points. Elsewhere a matrix product would be
written to memory and read again, which for short scalar products takes longer than making it.

Values are float32, or bfloat16 where the processor multiplies pairs of these: twice as fast, with 8 digits of the 24.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from txeval.compute.arrays import F32, F64
from txeval.compute.jit import jit

__all__ = ["ROWS", "WIDTH", "halved", "halves_pay", "pack", "pays", "scan"]

#: Queries and points of a block: with vectors of 16 values its 16 sums fit into the 32 registers of AVX-512.
ROWS, WIDTH = 8, 32
_LANES = 16
#: Panels that stay in the cache while all queries pass: at most so many values.
_CACHED = 2**16


@cache
def pays() -> bool:
    """Whether this processor has the registers, and no library that is made for it multiplies faster.

    Torch's matrix products come from MKL, which uses AVX-512 on Intel's own processors only.
    """
    try:
        if not binding.get_host_cpu_features().get("avx512f", False):
            return False
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except (OSError, RuntimeError):
        return False


@cache
def halves_pay() -> bool:
    """Whether, in addition, it multiplies pairs of bfloat16 values."""
    try:
        return pays() and bool(binding.get_host_cpu_features().get("avx512bf16", False))
    except RuntimeError:
        return False


def halved(values: F32) -> tuple[npt.NDArray[np.uint32], F64, F64]:
    """Round to bfloat16, two values to a word.

    Parameters
    ----------
    values
        (m, d) finite, below 1e38.

    Returns
    -------
    (pairs, norms, lost)
        (m, (d + 1) // 2) words, and per row the norm of what they hold and of what rounding took away.
    """
    m, d = values.shape
    # The processor takes what lies below the range of full precision for zero.
    normal = np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)
    rounded = torch.zeros((m, d + d % 2), dtype=torch.bfloat16)
    rounded[:, :d] = torch.from_numpy(normal)
    kept = rounded[:, :d].to(torch.float32).numpy()
    lost = values.astype(np.float64) - kept
    norms = np.sqrt(np.einsum("ij,ij->i", kept, kept, dtype=np.float64))
    pairs = rounded.view(torch.int16).numpy().view(np.uint32)
    return pairs, norms, np.sqrt(np.einsum("ij,ij->i", lost, lost))


@jit
def _spread_out(block: Any, at: int, panels: Any) -> None:
    for i in range(len(block)):
        for j in range(panels.shape[1]):
            panels[(at + i) // WIDTH, j, (at + i) % WIDTH] = block[i, j]


def pack(blocks: Iterable[tuple[npt.NDArray[Any], F32]], n: int, d: int) -> tuple[npt.NDArray[Any], F32]:
    """Points for `scan`: panels of `WIDTH` points, word by word, and what their sums begin with.

    Parameters
    ----------
    blocks
        n rows in all, in blocks of: -2 x (m, d) float32, or the pairs that `halved` makes of that; |x|^2 (m,).
    d
        Words of a point.

    Returns
    -------
    (panels, squares)
        (p, d, WIDTH) words and (p, WIDTH) float32; missing points are infinitely far.
    """
    count = -(-n // WIDTH)
    panels: npt.NDArray[Any] = np.zeros((0, d, WIDTH), np.float32)
    begin = np.full((count, WIDTH), np.inf, np.float32)
    at = 0
    for words, squares in blocks:
        if not at:
            panels = np.zeros((count, d, WIDTH), words.dtype)
        begin.reshape(-1)[at : at + len(words)] = squares
        _spread_out(np.ascontiguousarray(words), at, panels)
        at += len(words)
    return panels, begin


class _BFloat(ir.Type):  # type: ignore[misc]
    """The type that llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


@cast(Callable[[Any], Callable[..., Any]], intrinsic)
def _block(
    typing_context: Any,
    word: Any,
    panel: Any,
    begin: Any,
    queries: Any,
    d: Any,
    limits: Any,
    out: Any,
    masks: Any,
) -> Any:
    """Products of ROWS queries (ROWS, d) with a panel, into `out` (ROWS, WIDTH) where one is within its limit.

    `word` is any word, for its type: a float32 value, or a uint32 with two bfloat16 values. All other arguments but d
    are addresses. `masks` (ROWS,) gets a bit per point within the limit of the query; returns whether there is any.
    """
    signature = types.boolean(word, *[types.uintp] * 3, types.int64, *[types.uintp] * 3)
    pairs = word == types.uint32

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        single, index, mask = ir.FloatType(), ir.IntType(64), ir.IntType(32)
        vector = ir.VectorType(single, _LANES)
        words = ir.VectorType(mask, _LANES) if pairs else vector
        per_row = WIDTH // _LANES

        def load(address: Any, kind: Any) -> Any:
            return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)

        def store(value: Any, address: Any) -> None:
            builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=4)

        def constant(value: int) -> Any:
            return ir.Constant(index, value)

        def spread(value: Any) -> Any:
            undefined = ir.Constant(ir.VectorType(value.type, _LANES), ir.Undefined)
            one = builder.insert_element(undefined, value, ir.Constant(mask, 0))
            zeros = ir.Constant(ir.VectorType(mask, _LANES), [0] * _LANES)
            return builder.shuffle_vector(one, undefined, zeros)

        def added_to(total: Any, value: Any, point: Any) -> Any:
            if not pairs:
                term = builder.fmul(value, point, flags=("contract",))
                return builder.fadd(total, term, flags=("contract",))
            two = ir.VectorType(_BFloat(), 2 * _LANES)
            name = "llvm.x86.avx512bf16.dpbf16ps.512"
            product = builder.module.globals.get(name) or ir.Function(
                builder.module, ir.FunctionType(vector, [vector, two, two]), name
            )
            return builder.call(product, [total, builder.bitcast(point, two), builder.bitcast(value, two)])

        _word, panel, begin, queries, d, limits, out, masks = arguments
        row_bytes = builder.mul(d, constant(4))
        first = [load(builder.add(begin, constant(4 * _LANES * v)), vector) for v in range(per_row)]
        before, loop = builder.block, builder.append_basic_block("products")
        keep, done = builder.append_basic_block("keep"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        place = builder.phi(index)
        place.add_incoming(constant(0), before)
        sums = []
        for _row in range(ROWS):
            for v in range(per_row):
                phi = builder.phi(vector)
                phi.add_incoming(first[v], before)
                sums.append(phi)
        at = builder.add(panel, builder.mul(place, constant(4 * WIDTH)))
        points = [load(builder.add(at, constant(4 * _LANES * v)), words) for v in range(per_row)]
        address = builder.add(queries, builder.mul(place, constant(4)))
        added = []
        for row in range(ROWS):
            value = spread(load(address, mask if pairs else single))
            added += [added_to(sums[row * per_row + v], value, points[v]) for v in range(per_row)]
            address = builder.add(address, row_bytes)
        following = builder.add(place, constant(1))
        place.add_incoming(following, loop)
        for phi, value in zip(sums, added, strict=True):
            phi.add_incoming(value, loop)
        after = builder.append_basic_block("compare")
        builder.cbranch(builder.icmp_signed("<", following, d), loop, after)
        builder.position_at_end(after)
        found, every = [], ir.Constant(mask, 0)
        for row in range(ROWS):
            limit = spread(load(builder.add(limits, constant(4 * row)), single))
            bits = ir.Constant(mask, 0)
            for v in range(per_row):
                within = builder.fcmp_ordered("<=", added[row * per_row + v], limit)
                part = builder.zext(builder.bitcast(within, ir.IntType(_LANES)), mask)
                bits = builder.or_(bits, builder.shl(part, ir.Constant(mask, _LANES * v)))
            found.append(bits)
            every = builder.or_(every, bits)
        some = builder.icmp_unsigned("!=", every, ir.Constant(mask, 0))
        builder.cbranch(some, keep, done)
        builder.position_at_end(keep)
        for row in range(ROWS):
            store(found[row], builder.add(masks, constant(4 * row)))
            for v in range(per_row):
                store(added[row * per_row + v], builder.add(out, constant(4 * (row * WIDTH + _LANES * v))))
        builder.branch(done)
        builder.position_at_end(done)
        return some

    return signature, generate


@cast(Callable[[Any], Callable[..., Any]], intrinsic)
def _lowest(typing_context: Any, mask: Any) -> Any:
    """Number of the lowest bit that is set."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        return builder.zext(builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1)), ir.IntType(64))

    return types.int64(types.uint32), generate


@jit
def scan(panels: Any, begin: Any, queries: Any, limits: Any, rows: Any, values: Any, counts: Any) -> None:
    """Find the points whose |x|^2 - 2 q.x is at most the limit of a query.

    Parameters
    ----------
    panels, begin
        As `pack` gives them.
    queries
        (m, d) words of the same kind, C-contiguous, m a multiple of `ROWS` and not 0.
    limits
        (m,) float32; -inf for rows that are only there to fill up.
    rows, values
        (m, room) int32 and float32: numbers of the points found, ascending, and their values, as far as there is room.
    counts
        (m,) how many there are; set to 0 before.
    """
    n_panels, d = panels.shape[0], panels.shape[1]
    room = rows.shape[1]
    out = np.empty((ROWS, WIDTH), np.float32)
    masks = np.empty(ROWS, np.uint32)
    step = max(1, _CACHED // (d * WIDTH))
    panel_bytes, query_bytes = 4 * d * WIDTH, 4 * d * ROWS
    for first in range(0, n_panels, step):
        last = min(n_panels, first + step)
        for group in range(len(queries) // ROWS):
            for p in range(first, last):
                if not _block(
                    queries[0, 0],
                    panels.ctypes.data + p * panel_bytes,
                    begin.ctypes.data + 4 * p * WIDTH,
                    queries.ctypes.data + group * query_bytes,
                    d,
                    limits.ctypes.data + 4 * group * ROWS,
                    out.ctypes.data,
                    masks.ctypes.data,
                ):
                    continue
                for row in range(ROWS):
                    mask = masks[row]
                    if mask == 0:
                        continue
                    q = group * ROWS + row
                    count = counts[q]
                    while mask != 0:
                        a = _lowest(mask)
                        if count < room:
                            rows[q, count] = p * WIDTH + a
                            values[q, count] = out[row, a]
                        count += 1
                        mask &= mask - np.uint32(1)
                    counts[q] = count
