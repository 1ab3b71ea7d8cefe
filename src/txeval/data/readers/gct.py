"""GCT 1.2 and 1.3 (text) and GCTX 1 (HDF5), the formats of the Connectivity Map and GenePattern.

Layout: https://clue.io/connectopedia/gct_format and https://clue.io/connectopedia/gctx_format
"""

from __future__ import annotations

import gzip
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from txeval.compute.arrays import BLOCK_ELEMENTS, Ints
from txeval.data.matrix import Block, DenseMatrix, Matrix, Store, reading
from txeval.data.readers.tables import CMAP_MISSING, TableStore, decoded, labels_frame, without_missing
from txeval.errors import InputError

__all__ = ["GctMatrix", "open_hdf5", "open_text"]

#: Texts in the place of a value that is not there (those that cmapPy accepts).
_NO_VALUE = {"", "na", "#n/a", "n/a", "#na", "null", "nan", "-nan", "#n/a!", "none", "#value!"}

_CUT = "the file was cut short or edited: copy or download it again"
_MISSING_NOTE = "-666 among the labels is the Connectivity Map's mark of a missing value: read as missing"


def open_text(path: Path) -> Store:
    """Open a GCT file, gzipped or not; samples are its columns.

    Raises
    ------
    InputError
        Another version, counts on line 2 that are not those of the table, or a line of another length.
    """
    source = _Lines(path)
    header = _Header(path, source)
    matrix = GctMatrix(source, header.offsets, header.n_row_fields + 1, header.names, header.genes, path)
    missing = any(value in CMAP_MISSING for values in header.obs.values() for value in values)
    return TableStore(
        path,
        f"GCT {header.version}",
        labels_frame(header.names, {name: without_missing(v) for name, v in header.obs.items()}, path, "sample label"),
        labels_frame(header.genes, {name: without_missing(v) for name, v in header.var.items()}, path, "gene label"),
        {"X": matrix},
        notes=[_MISSING_NOTE] if missing else [],
        close=source.close,
    )


class _Lines:
    """A text file that is read at places; a gzip archive is first unpacked to a nameless temporary file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        if packed:
            with reading(path, "the gzip archive"), gzip.open(path) as archive:
                self.file: Any = tempfile.TemporaryFile()  # noqa: SIM115
                shutil.copyfileobj(archive, self.file, 1 << 20)
            self.file.seek(0)
        else:
            self.file = path.open("rb")

    def fields(self) -> list[str]:
        """Fields of the next line; [] at the end of the file."""
        return self.split(self.file.readline())

    def split(self, line: bytes) -> list[str]:
        try:
            return line.decode("utf-8-sig").rstrip("\r\n").split("\t") if line else []
        except UnicodeDecodeError as why:
            raise InputError(f"{self.path}: not a text file in UTF-8 ({why.reason})", remedy=_CUT) from why

    def close(self) -> None:
        self.file.close()


class _Header:
    """Everything of a GCT file but its values, from one pass over its lines."""

    def __init__(self, path: Path, source: _Lines) -> None:
        first = source.fields()[0].strip().lstrip("#")
        if first not in ("1.2", "1.3"):
            raise InputError(
                f"{path}: GCT version {first!r}", remedy="txeval reads GCT 1.2 and 1.3: convert it, e.g. with cmapPy"
            )
        self.version = first
        dims = [field.strip() for field in source.fields() if field.strip()]
        wanted = 2 if first == "1.2" else 4
        if len(dims) != wanted or not all(field.isascii() and field.isdigit() for field in dims):
            raise InputError(
                f"{path}: line 2 is {' '.join(dims)!r}, not {wanted} whole numbers",
                remedy="it gives the number of genes and of samples"
                + ("" if first == "1.2" else ", and of the label columns of genes and label lines of samples"),
            )
        g, n = int(dims[0]), int(dims[1])
        self.n_row_fields, n_col_fields = (1, 0) if first == "1.2" else (int(dims[2]), int(dims[3]))
        width = 1 + self.n_row_fields + n
        head = source.fields()
        if len(head) != width:
            raise InputError(
                f"{path}: line 3 has {len(head):,} fields; by line 2 it should have {width:,}"
                f" (1 id, {self.n_row_fields} gene labels, {n:,} samples)",
                remedy="correct line 2 or the table",
            )
        self.names = head[1 + self.n_row_fields :]
        row_labels = head[1 : 1 + self.n_row_fields]
        self.obs: dict[str, list[str]] = {}
        for number in range(n_col_fields):
            fields = source.fields()
            self._check(path, fields, width, 4 + number)
            self.obs[_unused(fields[0], self.obs)] = fields[1 + self.n_row_fields :]
        self.genes: list[str] = []
        offsets = []
        columns: list[list[str]] = [[] for _ in row_labels]
        position, number = source.file.tell(), 4 + n_col_fields
        for line in source.file:
            if line.strip():
                if line.count(b"\t") != width - 1:
                    self._check(path, source.split(line), width, number)
                fields = source.split(line) if len(line) < 1 << 16 else _first(line, 1 + self.n_row_fields)
                self.genes.append(fields[0])
                for column, field in zip(columns, fields[1:], strict=False):
                    column.append(field)
                offsets.append(position)
            position += len(line)
            number += 1
        if len(self.genes) != g:
            raise InputError(
                f"{path}: line 2 promises {g:,} genes, but there are {len(self.genes):,}",
                remedy=_CUT if len(self.genes) < g else "correct line 2",
            )
        self.var: dict[str, list[str]] = {}
        for name, column in zip(row_labels, columns, strict=True):
            self.var[_unused(name, self.var)] = column
        self.offsets = np.array([*offsets, position], dtype=np.int64)

    @staticmethod
    def _check(path: Path, fields: list[str], width: int, number: int) -> None:
        if len(fields) != width:
            problem = f"has {len(fields):,} fields, not {width:,}" if fields else "is not there"
            raise InputError(f"{path}: line {number:,} {problem}", remedy=_CUT)


def _first(line: bytes, count: int) -> list[str]:
    return [field.decode("utf-8", "replace").rstrip("\r\n") for field in line.split(b"\t", count)[:count]]


def _unused(name: str, taken: Any) -> str:
    made, number = name or "unnamed", 2
    while made in taken:
        made, number = f"{name or 'unnamed'}_{number}", number + 1
    return made


class GctMatrix:
    """Values of a GCT file. The first rows asked for cost one pass over the text, into a temporary file.

    Parameters
    ----------
    offsets
        (g + 1,) int64: where in the file the line of each gene begins.
    skip
        Fields before the first value.
    """

    by_columns = True
    oddity = ""
    stored = "text by genes"

    def __init__(
        self, source: _Lines, offsets: Ints, skip: int, samples: list[str], genes: list[str], path: Path
    ) -> None:
        self.shape = (len(samples), len(genes))
        self.dtype = np.dtype(np.float32)
        self._source = source
        self._offsets = offsets
        self._skip = skip
        self._samples = samples
        self._genes = genes
        self._path = path
        self._by_rows: DenseMatrix | None = None

    def _values(self, start: int, stop: int) -> Any:
        """Values of adjacent genes: (genes, n) float32."""
        out = np.empty((stop - start, self.shape[0]), dtype=np.float32)
        with reading(self._path, f"genes {start:,} to {stop:,}"):
            for i in range(start, stop):
                self._source.file.seek(int(self._offsets[i]))
                fields = self._source.fields()[self._skip :]
                try:
                    out[i - start] = np.array(fields, dtype=np.float32)
                except ValueError:
                    out[i - start] = [self._value(field, i, j) for j, field in enumerate(fields)]
        return out

    def _value(self, field: str, gene: int, sample: int) -> float:
        if field.strip().lower() in _NO_VALUE:
            return math.nan
        try:
            return float(field)
        except ValueError:
            raise InputError(
                f"{self._path}: the value of gene {self._genes[gene]!r} and sample {self._samples[sample]!r} is"
                f" {field[:40]!r}, not a number",
                remedy="correct the value, or the numbers of label columns and lines on line 2",
            ) from None

    def rows(self, rows: Ints) -> Block:
        """See `Matrix.rows`."""
        if self._by_rows is None:
            self._by_rows = self._turn()
        return self._by_rows.rows(rows)

    def columns(self, start: int, stop: int) -> Block:
        """Values of adjacent genes: array (n, m)."""
        return self._values(start, stop).T

    def _blocks(self) -> Iterator[tuple[int, int]]:
        step = max(1, BLOCK_ELEMENTS // max(1, self.shape[0]))
        for start in range(0, self.shape[1], step):
            yield start, min(self.shape[1], start + step)

    def _turn(self) -> DenseMatrix:
        n, g = self.shape
        size, folder = 4 * n * g, tempfile.gettempdir()
        remedy = "set TMPDIR to a folder with more space, or convert the file once with txeval data prepare"
        if size > shutil.disk_usage(folder).free:
            raise InputError(
                f"{self._path}: reading a GCT file by samples needs {size / 1e9:.1f} GB in {folder}, which is not free",
                remedy=remedy,
            )
        with tempfile.TemporaryFile() as file:
            out: Any = np.memmap(file, dtype=np.float32, mode="w+", shape=(n, g)) if n * g else np.empty((n, g), "f4")
        for start, stop in self._blocks():
            out[:, start:stop] = self._values(start, stop).T
        return DenseMatrix(out, self._path, "X")

    def digest(self) -> str:
        """See `Matrix.digest`."""
        if self._by_rows is None:
            self._by_rows = self._turn()
        return self._by_rows.digest()


def open_hdf5(path: Path, file: h5py.File) -> Store:
    """Open a GCTX file; samples are its columns, which HDF5 stores as rows.

    Raises
    ------
    InputError
        A part is missing, or the parts do not fit together.
    """
    places = {"samples": "0/META/COL/id", "genes": "0/META/ROW/id", "values": "0/DATA/0/matrix"}
    absent = [f"/{place}" for place in places.values() if place not in file]
    if absent:
        raise InputError(f"{path}: looks like GCTX, but has no {', '.join(absent)}", remedy=_CUT)
    with reading(path, "the labels"):
        version = decoded(file.attrs.get("version", "GCTX1.0"))
        version = str(np.ravel(version)[0])
        if not version.startswith("GCTX1"):
            raise InputError(f"{path}: of version {version!r}", remedy="txeval reads GCTX1.0: convert it with cmapPy")
        names, genes = (decoded(file[places[axis]][:]) for axis in ("samples", "genes"))
        frames, marked = [], False
        for group, ids, what in (("COL", names, "sample label"), ("ROW", genes, "gene label")):
            columns = {}
            for name, element in file[f"0/META/{group}"].items():
                if name != "id" and isinstance(element, h5py.Dataset):
                    values = decoded(element[:])
                    marked = marked or any(str(value) in CMAP_MISSING for value in values[:100_000])
                    columns[name] = without_missing(values)
            frames.append(labels_frame([str(i) for i in ids], columns, path, what))
        array = file[places["values"]]
    if array.shape != (len(names), len(genes)):
        turned = " (it is stored the other way round)" if array.shape == (len(genes), len(names)) else ""
        raise InputError(
            f"{path}: the matrix is {' x '.join(f'{size:,}' for size in array.shape)}, for {len(names):,} samples and"
            f" {len(genes):,} genes{turned}",
            remedy="write it again with cmapPy or cmapR: HDF5 must see samples x genes",
        )
    matrix: Matrix = DenseMatrix(array, path, "X")
    notes = [_MISSING_NOTE] if marked else []
    return TableStore(path, "GCTX 1.0", frames[0], frames[1], {"X": matrix}, notes=notes, close=file.close)
