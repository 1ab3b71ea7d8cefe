"""What the readers share: stores whose labels are in memory and whose matrices are on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from txeval.compute.arrays import BLOCK_ELEMENTS, Ints, Strings
from txeval.data.matrix import Block, Matrix, Store, digest_array, numeric_type, reading, spans, stored_as
from txeval.errors import InputError

__all__ = ["ByColumns", "SomeColumns", "TableStore", "decoded", "labels_frame", "without_missing"]

#: How the Connectivity Map writes a missing value in metadata.
CMAP_MISSING = ("-666", "-666.0")


class TableStore(Store):
    """An open file whose labels were read when it was opened.

    Parameters
    ----------
    obs, var
        Labels of samples and genes, indexed by their names.
    matrices
        Place ("X", "layers/NAME", "obsm/KEY") -> matrix.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        obs: pd.DataFrame,
        var: pd.DataFrame,
        matrices: Mapping[str, Matrix],
        *,
        notes: Sequence[str] = (),
        close: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(path)
        self.kind = kind
        self.notes = list(notes)
        self._frames = {"obs": obs, "var": var}
        self._matrices = dict(matrices)
        self._close = close

    def close(self) -> None:
        """Let go of the file."""
        self._close()

    def keys(self, group: str) -> list[str]:
        """See `Store.keys`."""
        return [place.partition("/")[2] for place in self._matrices if place.startswith(f"{group}/")]

    def names(self, frame: str) -> Strings:
        """See `Store.names`."""
        out = np.empty(len(self._frames[frame]), dtype=object)
        out[:] = [str(name) for name in self._frames[frame].index]
        return out

    def _columns(self, frame: str) -> list[str]:
        return [str(name) for name in self._frames[frame].columns]

    def _column(self, frame: str, name: str) -> pd.Series[Any]:
        return pd.Series(self._frames[frame][name])

    def _element(self, where: str) -> Any:
        return self._matrices.get(where)


class SomeColumns:
    """Some columns of a matrix on disk.

    Parameters
    ----------
    columns
        (m,) increasing column numbers.
    """

    by_columns = False

    def __init__(self, whole: Matrix, columns: Ints) -> None:
        self._whole = whole
        self._columns = columns
        self.shape = (whole.shape[0], len(columns))
        self.dtype = whole.dtype
        self.stored = whole.stored
        self.oddity = whole.oddity

    def rows(self, rows: Ints) -> Block:
        """See `Matrix.rows`."""
        return self._whole.rows(rows)[:, self._columns]

    def columns(self, start: int, stop: int) -> Block:
        """Not offered."""
        raise NotImplementedError

    def digest(self) -> str:
        """See `Matrix.digest`."""
        return hashlib.sha256(self._whole.digest().encode() + self._columns.tobytes()).hexdigest()


class ByColumns:
    """A dense matrix that lies on disk as (genes, samples)."""

    by_columns = False
    oddity = ""

    def __init__(self, array: Any, path: Path, where: str) -> None:
        numeric_type(array.dtype, path, where)
        self.array = array
        self.shape: tuple[int, int] = (int(array.shape[1]), int(array.shape[0]))
        self.dtype = np.dtype(array.dtype).newbyteorder("=")
        self.stored = stored_as("dense by genes,", array)
        self.path = path
        self.where = where
        chunks = getattr(array, "chunks", None)
        # Chunks span many samples: whatever lies in those of a wanted one is unpacked with it.
        self._gap = max(1, int(chunks[1]) if chunks else 1) * self.shape[1]

    def rows(self, rows: Ints) -> Block:
        """See `Matrix.rows`."""
        g = max(1, self.shape[1])
        out: Any = np.empty((len(rows), self.shape[1]), dtype=self.dtype)
        for i, j in spans(rows * g, (rows + 1) * g, self._gap, BLOCK_ELEMENTS):
            first, last = int(rows[i]), int(rows[j - 1]) + 1
            with reading(self.path, f"{self.where}, samples {first:,} to {last:,}"):
                part = np.asarray(self.array[:, first:last]).T
            out[i:j] = part[rows[i:j] - first]
        return out

    def columns(self, start: int, stop: int) -> Block:
        """Not offered: rows can be read as they are."""
        raise NotImplementedError

    def digest(self) -> str:
        """See `Matrix.digest`."""
        digest = hashlib.sha256(f"dense.T{self.dtype}{self.shape}".encode())
        digest_array(digest, self.array, self.dtype.itemsize * self.shape[0] * self.shape[1], self.path, self.where)
        return digest.hexdigest()


def decoded(values: Any) -> Any:
    """Texts of an HDF5 array as str, numbers as they are: (n,) or (n, m)."""
    found = np.asarray(values)
    if found.dtype.kind in "SO":
        texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in found.ravel()]
        out = np.empty(len(texts), dtype=object)
        out[:] = [str(text) for text in texts]
        return out.reshape(found.shape)
    return found


def without_missing(values: Any) -> Any:
    """Labels of the Connectivity Map with its missing value, -666, as missing; numbers where all are numbers."""
    column = pd.Series(values)
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.where(column != -666) if (column == -666).any() else column
    texts = column.astype(object)
    texts = texts.where(~texts.isin(CMAP_MISSING), None)
    known = texts.dropna()
    numbers = pd.to_numeric(known, errors="coerce")
    # Well names, plates and ids such as "007" are labels, though they may look like numbers.
    if len(known) and numbers.notna().all() and not any(str(v)[:1] == "0" and str(v)[1:2].isdigit() for v in known):
        return pd.to_numeric(texts)
    return texts


def labels_frame(names: Any, columns: Mapping[str, Any], path: Path, what: str) -> pd.DataFrame:
    """Labels by the names of samples or genes.

    Raises
    ------
    InputError
        A column is not as long as there are names.
    """
    for name, values in columns.items():
        if len(values) != len(names):
            raise InputError(
                f"{path}: {what} {name!r} has {len(values):,} values for {len(names):,} names",
                remedy="the file is damaged or was put together wrongly: make it again",
            )
    made = {str(name): pd.Series(values).array for name, values in columns.items()}
    return pd.DataFrame(made, index=pd.Index(names, dtype=object))
