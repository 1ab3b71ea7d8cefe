"""How much memory a step may take: set for a whole worker, asked for where something can be held or cut up.

Blocks that sums are taken over have a fixed size (`txeval.compute.arrays.BLOCK_ELEMENTS`), so that no result depends on
the memory there is. What grows with it: how much is read ahead, how many columns are ranked together, what is kept in
memory and not in a file, and how many embeddings share one pass over the expression.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from txeval.compute.arrays import F32, Ints, Rows, row_blocks, take_rows

__all__ = [
    "WORKING_LEAST",
    "WORKING_MOST",
    "allocate",
    "allowed",
    "bounded",
    "column_elements",
    "held_array",
    "held_bytes",
    "held_rows",
    "is_mapped",
    "release",
    "scratch_folder",
    "working",
]

#: Beyond this, more memory makes nothing faster.
WORKING_MOST = 4 * 2**30

#: Blocks of the fixed size, in float32 and float64 at once, and what is made of them.
WORKING_LEAST = 256 * 2**20

_allowed: ContextVar[int] = ContextVar("allowed", default=2**62)
_working: ContextVar[int] = ContextVar("working", default=WORKING_MOST)
_scratch: ContextVar[Path | None] = ContextVar("scratch", default=None)


@contextmanager
def bounded(size: int, scratch: Path | None = None) -> Iterator[None]:
    """Let steps within the block take so many bytes, beyond what they need for their results.

    Parameters
    ----------
    size
        At most `WORKING_MOST` and at least `WORKING_LEAST` are used of it.
    scratch
        Where temporary files go; None: the system's temporary folder.
    """
    sized = _working.set(min(WORKING_MOST, max(WORKING_LEAST, size)))
    whole = _allowed.set(size)
    placed = _scratch.set(scratch)
    try:
        yield
    finally:
        _allowed.reset(whole)
        _working.reset(sized)
        _scratch.reset(placed)


def allowed() -> int:
    """Bytes that a step may take in all, for what it makes and for its blocks."""
    return _allowed.get()


def working() -> int:
    """Bytes that a step may take beyond what it needs for its result."""
    return _working.get()


def held_bytes() -> int:
    """Up to this size something is held in memory; larger things are read again, or lie in a file (at most 1 GiB)."""
    return working() // 4


def column_elements() -> int:
    """float32 values that are read ahead, or of columns that are ranked together (at most 32 M: 128 MiB)."""
    return min(32_000_000, working() // 32)


def scratch_folder() -> Path | None:
    """Where temporary files go; None: the system's temporary folder."""
    return _scratch.get()


def allocate(path: Path, size: int) -> None:
    """Reserve the disk space of a file that is going to be mapped.

    A write to a mapped file on a full disk kills the process; this raises OSError instead.
    """
    with path.open("ab") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _mapping(array: npt.NDArray[Any]) -> mmap.mmap | None:
    """The mapped file that an array lies in."""
    owner: Any = array
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = getattr(owner, "_mmap", None) or getattr(owner, "base", None)
    return owner


def is_mapped(array: npt.NDArray[Any]) -> bool:
    """Whether an array lies in a mapped file."""
    return _mapping(array) is not None


def release(array: npt.NDArray[Any]) -> None:
    """Give the pages of a mapped file that hold a contiguous array back to the system, if it lies in one.

    What was written stays, and what is read comes again.
    """
    mapping = _mapping(array)
    if mapping is not None and array.size and hasattr(mmap, "MADV_DONTNEED"):
        begin = array.ctypes.data - np.frombuffer(mapping, dtype=np.uint8).ctypes.data
        first = begin // mmap.PAGESIZE * mmap.PAGESIZE
        mapping.madvise(mmap.MADV_DONTNEED, first, begin - first + array.nbytes)


def held_array(shape: tuple[int, ...], dtype: npt.DTypeLike, most: int) -> npt.NDArray[Any]:
    """An array to be filled: in memory up to so many bytes, else in a temporary file, which is gone with the array."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= most:
        return np.empty(shape, dtype=dtype)
    with tempfile.NamedTemporaryFile(dir=scratch_folder(), prefix="txeval-rows-") as file:
        allocate(Path(file.name), size)
        # The mapping keeps the file, which has no name any more.
        return np.memmap(file.name, dtype=dtype, mode="r+", shape=shape)


def held_rows(matrix: Rows, rows: Ints | None = None) -> F32:
    """Rows of a matrix as a float32 array (m, d): in memory up to `held_bytes`, else mapped from a temporary file.

    They are read in blocks of one size, so that values are the same either way. The file is gone with the array.
    """
    m, d = len(rows) if rows is not None else int(matrix.shape[0]), int(matrix.shape[1])
    out = held_array((m, d), np.float32, held_bytes())
    for part in row_blocks(m, d):
        out[part] = take_rows(matrix, part if rows is None else rows[part])
    release(out)
    return out
