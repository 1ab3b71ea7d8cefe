"""Matrix Market folders: matrix.mtx with barcodes.tsv and features.tsv (or genes.tsv), each gzipped or not.

Formats: https://math.nist.gov/MatrixMarket/formats.html and
https://www.10xgenomics.com/support/software/cell-ranger/latest/analysis/outputs/cr-outputs-mex-matrices
"""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from txeval.compute.arrays import BLOCK_ELEMENTS, Ints
from txeval.data.matrix import Block, CsrMatrix, Scratch, Store, reading, sort_by_row
from txeval.data.readers.tenx import feature_store
from txeval.errors import InputError

__all__ = ["MtxMatrix", "open_file", "open_folder"]

_ENDINGS = ("matrix.mtx", "matrix.mtx.gz")
_CUT = "the file was cut short or edited: copy or download it again"


def open_folder(path: Path) -> Store | None:
    """Open a folder that holds one matrix.mtx, also with a prefix; None where it holds none.

    Raises
    ------
    InputError
        There are several matrices, or files of a matrix are missing.
    """
    found = sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(_ENDINGS))
    if not found:
        below = [f"{path.name}/{child.name}" for child in _screens_below(path)]
        if below and not any((path / name).is_file() for name in (".zgroup", "zarr.json", ".zmetadata")):
            raise InputError(
                f"{path}: a folder that is no screen, but holds {' and '.join(below)}", remedy="name one of them"
            )
        return None
    distinct = {file.name.removesuffix(".gz") for file in found}
    if len(distinct) > 1:
        raise InputError(
            f"{path}: holds {len(distinct)} matrices ({', '.join(sorted(distinct)[:4])})",
            remedy=f"name the file of one of them, e.g. {found[0]}",
        )
    return open_file(found[0], given=path)


def _screens_below(path: Path) -> list[Path]:
    """What in an output folder of Cell Ranger is a screen."""
    names = ("filtered_feature_bc_matrix", "filtered_feature_bc_matrix.h5", "filtered_gene_bc_matrices", "outs")
    return [path / name for name in names if (path / name).exists()]


def open_file(path: Path, *, given: Path | None = None) -> Store:
    """Open a Matrix Market file by its name; the names of cells and genes lie beside it, with the same prefix.

    Parameters
    ----------
    given
        What the user named, where that is the folder.

    Raises
    ------
    InputError
        The names are missing or do not fit, or the header is not that of a sparse matrix.
    """
    prefix = next((path.name[: -len(end)] for end in _ENDINGS if path.name.endswith(end)), None)
    if prefix is None:
        prefix = path.name.removesuffix(".gz").removesuffix(".mtx")
    header = _Header(path)
    barcode_file = _beside(path, prefix, ("barcodes.tsv", "cells.tsv"))
    feature_file = _beside(path, prefix, ("features.tsv", "genes.tsv"))
    barcodes = _table(barcode_file)[0].astype(str).tolist()
    table = _table(feature_file)
    shape = (len(barcodes), len(table))
    if (header.n_rows, header.n_columns) == shape[::-1]:
        by_cells = False
    elif (header.n_rows, header.n_columns) == shape:
        by_cells = True  # as scipy.io.mmwrite(adata.X) leaves it
    else:
        raise InputError(
            f"{path}: the matrix is {header.n_rows:,} x {header.n_columns:,}, but {feature_file.name} has"
            f" {shape[1]:,} lines and {barcode_file.name} {shape[0]:,}",
            remedy="the three files must be of one matrix (a header line in one of the tables counts as a line)",
        )
    features: dict[str, Any] = {"name": table[1 if table.shape[1] > 1 else 0].astype(str).to_numpy()}
    if table.shape[1] > 1:
        features["gene_ids"] = table[0].astype(str).to_numpy()
    if table.shape[1] > 2:
        features["feature_types"] = table[2].astype(str).to_numpy()
    matrix = MtxMatrix(path, header, shape, by_cells)
    return feature_store(given or path, "Matrix Market", barcodes, features, matrix, lambda: None)


def _beside(path: Path, prefix: str, names: tuple[str, ...]) -> Path:
    for name in names:
        for ending in ("", ".gz"):
            candidate = path.parent / f"{prefix}{name}{ending}"
            if candidate.is_file():
                return candidate
    raise InputError(
        f"{path}: there is no {' or '.join(prefix + name for name in names)} (or .gz) beside it",
        remedy="put the table of names there: it is part of the format",
    )


def _table(path: Path) -> pd.DataFrame:
    """A table without a header line."""
    with reading(path, "the names"):
        try:
            return pd.read_csv(path, sep="\t", header=None, dtype=str, keep_default_na=False, quoting=3)
        except pd.errors.EmptyDataError:
            raise InputError(f"{path}: the file is empty", remedy=_CUT) from None


class _Header:
    """First lines of a Matrix Market file."""

    def __init__(self, path: Path) -> None:
        with reading(path, "the header"), _opened(path) as file:
            words = file.readline(1000).decode("latin-1").lower().split()
            self.n_lines = 1
            while True:
                line = file.readline()
                self.n_lines += 1
                if not line or (line.strip() and not line.startswith(b"%")):
                    break
        if len(words) != 5 or words[:2] != ["%%matrixmarket", "matrix"]:
            raise InputError(
                f"{path}: the first line is {' '.join(words)[:80]!r}, not that of a Matrix Market file",
                remedy="it must read %%MatrixMarket matrix coordinate integer general (or real)",
            )
        layout, field, symmetry = words[2:]
        if layout != "coordinate" or field not in ("integer", "real", "pattern") or symmetry != "general":
            raise InputError(
                f"{path}: a Matrix Market file of kind {layout} {field} {symmetry}",
                remedy="txeval reads coordinate integer general and coordinate real general",
            )
        sizes = line.split()
        if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
            shown = line.decode("latin-1").strip()[:60]
            raise InputError(
                f"{path}: line {self.n_lines} is {shown!r}, not the numbers of rows, columns and values", remedy=_CUT
            )
        self.n_rows, self.n_columns, self.nnz = (int(size) for size in sizes)
        if max(self.n_rows, self.n_columns) >= 2**31:
            raise InputError(f"{path}: the matrix is {self.n_rows:,} x {self.n_columns:,}", remedy="check the header")
        self.field = field


def _opened(path: Path) -> Any:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


class MtxMatrix:
    """Values of a Matrix Market file. The first rows asked for cost one pass over the text, into temporary files.

    Parameters
    ----------
    shape
        (cells, genes).
    by_cells
        Whether the rows of the file are cells rather than genes.
    """

    by_columns = False

    def __init__(self, path: Path, header: _Header, shape: tuple[int, int], by_cells: bool) -> None:
        self.shape = shape
        self.dtype = np.dtype(np.float32 if header.field == "real" else np.int32)
        self.stored = f"text of {header.nnz:,} values"
        self.oddity = (
            f"{path.name} is text: each process that reads it first makes a copy in {tempfile.gettempdir()};"
            " convert it once with txeval data prepare to save that"
            if header.nnz > BLOCK_ELEMENTS
            else ""
        )
        self._path = path
        self._header = header
        self._by_cells = by_cells
        self._by_rows: CsrMatrix | None = None

    def rows(self, rows: Ints) -> Block:
        """See `Matrix.rows`."""
        return self._csr().rows(rows)

    def columns(self, start: int, stop: int) -> Block:
        """Not offered: the text has no order that could be relied upon."""
        raise NotImplementedError

    def digest(self) -> str:
        """See `Matrix.digest`."""
        return self._csr().digest()

    def _csr(self) -> CsrMatrix:
        if self._by_rows is None:
            self._by_rows = self._read()
        return self._by_rows

    def _read(self) -> CsrMatrix:
        n, nnz = self.shape[0], self._header.nnz
        counts = np.zeros(n, dtype=np.int64)
        in_order, last, filled = True, -1, 0
        remedy = "set TMPDIR to a folder with more space"
        try:
            with tempfile.TemporaryFile() as f, tempfile.TemporaryFile() as h, tempfile.TemporaryFile() as k:
                rows, columns = Scratch(f, np.dtype(np.int32)), Scratch(h, np.dtype(np.int32))
                values = Scratch(k, self.dtype)
                for row, column, value in self._pieces():
                    counts += np.bincount(row, minlength=n)
                    in_order = in_order and int(row[0]) >= last and bool(np.all(row[1:] >= row[:-1]))
                    last = int(row[-1])
                    for scratch, piece in ((rows, row), (columns, column), (values, value)):
                        scratch.write(filled, piece)
                    filled += len(row)
                if filled != nnz:
                    raise InputError(
                        f"{self._path}: the header promises {nnz:,} values, but there are {filled:,}", remedy=_CUT
                    )
                indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
                if in_order:
                    arrays = columns.kept(nnz), values.kept(nnz)
                else:
                    arrays = sort_by_row(
                        indptr,
                        _again(rows, columns, values, nnz),
                        self.dtype,
                        what=f"{self._path}: the values are not sorted by cells",
                        remedy=remedy,
                    )
        except OSError as why:
            raise InputError(f"{self._path}: could not be copied to temporary files ({why})", remedy=remedy) from why
        return CsrMatrix(indptr, *arrays, self.shape, self._path, "X")

    def _pieces(self) -> Iterator[tuple[Any, Any, Any]]:
        """Cell numbers, gene numbers and values, in the order of the file."""
        header = self._header
        names = ["row", "column"] if header.field == "pattern" else ["row", "column", "value"]
        kinds: Any = {"row": np.int64, "column": np.int64, "value": np.float64 if header.field == "real" else np.int64}
        # The archive may end anywhere: whatever its reader raises then is a damaged file.
        with _opened(self._path) as file:
            try:
                for _ in range(header.n_lines):
                    file.readline()
                if header.nnz == 0:
                    return
                chunks = pd.read_csv(
                    file,
                    sep=r"\s+",
                    header=None,
                    names=names,
                    dtype={name: kinds[name] for name in names},
                    comment="%",
                    chunksize=BLOCK_ELEMENTS // 2,
                    index_col=False,
                )
                for chunk in chunks:
                    yield self._checked(chunk)
            except (ValueError, EOFError, zlib.error, pd.errors.ParserError, gzip.BadGzipFile) as why:
                reason = (str(why).strip() or type(why).__name__).splitlines()[0]
                raise InputError(f"{self._path}: cannot read the values ({reason})", remedy=_CUT) from why

    def _checked(self, chunk: pd.DataFrame) -> tuple[Any, Any, Any]:
        row, column = chunk["row"].to_numpy(), chunk["column"].to_numpy()
        value = chunk["value"].to_numpy() if "value" in chunk else np.ones(len(chunk), dtype=np.int64)
        header = self._header
        for numbers, limit, what in ((row, header.n_rows, "row"), (column, header.n_columns, "column")):
            if len(numbers) and (numbers.min() < 1 or numbers.max() > limit):
                wrong = int(numbers.min()) if numbers.min() < 1 else int(numbers.max())
                raise InputError(
                    f"{self._path}: a value is in {what} {wrong:,}, but the {what}s are 1 to {limit:,}", remedy=_CUT
                )
        if value.dtype.kind == "i" and len(value) and np.abs(value).max() > np.iinfo(np.int32).max:
            raise InputError(f"{self._path}: holds the value {int(value.max()):,}", remedy="counts are not that large")
        cell, gene = (row, column) if self._by_cells else (column, row)
        return (cell - 1).astype(np.int32), (gene - 1).astype(np.int32), value.astype(self.dtype)


def _again(rows: Scratch, columns: Scratch, values: Scratch, nnz: int) -> Iterator[tuple[Any, Any, Any]]:
    step = BLOCK_ELEMENTS // 2
    for start in range(0, nnz, step):
        stop = min(nnz, start + step)
        yield rows.read(start, stop), columns.read(start, stop), values.read(start, stop)
