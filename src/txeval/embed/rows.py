"""Rows that lie in files: memory-mapped, reordered without a copy, cheap to send to another process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from txeval.compute.arrays import F32, Ints, Rows
from txeval.errors import InputError

__all__ = ["NpyRows", "PickedRows", "pick_rows", "write_npy"]


class NpyRows:
    """Rows of an .npy file, memory-mapped; pickled as its path.

    Parameters
    ----------
    path
        .npy file of a matrix (m, d).
    index
        (n,) row of the file for each row here; None: all, in their order.
    """

    def __init__(self, path: str | Path, index: Ints | None = None) -> None:
        self.path = Path(path)
        self.index = index
        self._map: npt.NDArray[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "index": self.index, "_map": None}

    @property
    def mapped(self) -> npt.NDArray[Any]:
        """The whole file as a read-only array (m, d)."""
        if self._map is None:
            self._map = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return self._map

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        m, d = self.mapped.shape
        return (int(m) if self.index is None else len(self.index)), int(d)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.mapped.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> Any:
        """Rows of a slice or of an array of row numbers, (m, d) in the type of the file."""
        return self.mapped[rows if self.index is None else self.index[rows]]


class PickedRows:
    """Some rows of a matrix, in any order, picked as they are read.

    Parameters
    ----------
    values
        (m, d) rows on demand.
    index
        (n,) row of `values` for each row here.
    """

    def __init__(self, values: Rows, index: Ints) -> None:
        self.values = values
        self.index = index

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        return len(self.index), int(self.values.shape[1])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Any, /) -> Any:
        """Rows of a slice or of an array of row numbers."""
        return self.values[self.index[rows]]


def pick_rows(values: Rows, index: Ints) -> Rows:
    """Rows `index` of a matrix without a copy, wrapped once however often it was picked from before."""
    if isinstance(values, NpyRows):
        return NpyRows(values.path, index if values.index is None else values.index[index])
    if isinstance(values, PickedRows):
        return PickedRows(values.values, values.index[index])
    return PickedRows(values, index)


@contextmanager
def write_npy(path: Path, shape: tuple[int, int]) -> Iterator[F32]:
    """Fill a float32 .npy file (n, d) in any order; it appears under its name when it is complete.

    Raises
    ------
    InputError
        Where the folder cannot be written to or has no room.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        if hasattr(os, "posix_fallocate"):
            # A full disk is an error here; met while writing to the map, it would kill the process.
            with partial.open("r+b") as handle:
                os.posix_fallocate(handle.fileno(), 0, partial.stat().st_size)
    except OSError as why:
        with suppress(OSError):
            partial.unlink()
        raise InputError(
            f"cannot write {path} ({why.strerror or why})", remedy="free some space or choose another output folder"
        ) from None
    try:
        yield out
        out.flush()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
