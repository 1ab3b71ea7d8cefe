"""The one array type that the levels read: rows on demand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK_ELEMENTS", "Bools", "F32", "F64", "Ints", "Rows", "Strings", "row_blocks", "take_rows"]

F32: TypeAlias = npt.NDArray[np.float32]
F64: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Strings: TypeAlias = npt.NDArray[Any]

#: Blocks are bounded by elements, not rows: 4 M float32 values are 16 MiB.
BLOCK_ELEMENTS = 4_000_000


@runtime_checkable
class Rows(Protocol):
    """A matrix (n, d) that gives rows on demand.

    A numpy array, a memory map and a post-processed embedding all satisfy it.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        ...

    def __getitem__(self, rows: Any, /) -> Any:
        """Rows of a slice or of an array of row numbers, as an array (m, d)."""
        ...


def row_blocks(n: int, d: int, max_elements: int | None = None) -> Iterator[slice]:
    """Slices that cover n rows of d values, each at most `max_elements` (default `BLOCK_ELEMENTS`) values."""
    step = max(1, (max_elements or BLOCK_ELEMENTS) // max(1, d))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def take_rows(matrix: Rows, rows: Ints | slice | None = None) -> F32:
    """Rows of a matrix as a C-contiguous float32 array (m, d)."""
    picked = matrix[slice(None) if rows is None else rows]
    return np.ascontiguousarray(np.asarray(picked), dtype=np.float32)
