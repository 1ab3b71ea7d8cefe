"""AnnData files on disk, read by blocks of rows: HDF5 and Zarr, CSR, CSC and dense."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata.io import read_elem

from txeval.compute.arrays import BLOCK_ELEMENTS, Ints, Strings
from txeval.errors import InputError, nearest, unknown

__all__ = [
    "RAW",
    "AnnDataStore",
    "Block",
    "CsrMatrix",
    "DenseMatrix",
    "Matrix",
    "Scratch",
    "Store",
    "digest_array",
    "numeric_type",
    "open_matrix",
    "open_store",
    "reading",
    "sort_by_row",
    "spans",
    "stored_as",
    "var_of",
]

# Registers the filters that other programs compress with, where it is installed.
with contextlib.suppress(ImportError):
    import hdf5plugin  # noqa: F401

#: Place of the values that AnnData keeps beside X, with genes of their own.
RAW = "raw/X"

#: Rows of a matrix: `scipy.sparse.csr_matrix` or `numpy.ndarray`, (m, g).
Block: TypeAlias = Any

#: Stored values between two wanted rows that are read along rather than skipped: one larger read is
#: cheaper than two small ones, and compressed chunks have to be unpacked whole anyway.
GAP_ELEMENTS = 65_536

#: Memory for unpacked chunks of one HDF5 array, so that neighbouring blocks do not unpack a chunk twice.
CHUNK_CACHE_BYTES = 32 * 2**20

#: Matrices up to this size are digested whole; larger ones by a sample (see `Matrix.digest`).
FULL_DIGEST_BYTES = 200_000_000

_DAMAGED = "the file is damaged or was cut short: copy or download it again and compare its size or checksum"
_NOT_ANNDATA = (
    "txeval reads AnnData (.h5ad files, .zarr folders), 10x Genomics .h5, GCT, GCTX, loom, and folders with matrix.mtx:"
    " write one with AnnData.write_h5ad()"
)


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a storage library raises while reading into an InputError."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    # The storage libraries and their codecs raise almost anything on damaged bytes.
    except Exception as why:
        reason, remedy = _cause(why)
        raise InputError(f"{path}: cannot read {what} ({reason})", remedy=remedy) from why


def _cause(why: Exception) -> tuple[str, str]:
    """What an exception of a storage library says, and what to do about it."""
    chain: list[BaseException] = [why]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    for link in chain:
        text = " ".join(str(link).split())
        if isinstance(link, UnicodeDecodeError):
            shown = link.object[max(0, link.start - 20) : link.end + 20]
            return f"text that is not {link.encoding.upper()}: {shown!r}", "write its text as UTF-8"
        if re.search(r"filter.* is not registered|can't open directory|filter.* plugin", text):
            return (
                f"it is compressed with a filter of HDF5 that is not installed here: {text}",
                "pip install hdf5plugin, which brings the common ones, or write the file again with gzip",
            )
        if type(link).__name__ == "UnknownCodecError" or "codec not available" in text:
            return (
                f"it is compressed with a codec that is not installed here: {text}",
                "install it, or write it with zstd",
            )
        found = re.search(r"encoding_type='([^']*)', encoding_version='([^']*)'", text)
        if type(link).__name__ == "IORegistryError" and found:
            return (
                f"its encoding is {found[1]!r} {found[2]!r}, which anndata {version('anndata')} does not know",
                "upgrade anndata, or write the file again with an older one",
            )
    return (str(why).strip().strip("\"'") or type(why).__name__).splitlines()[0], _DAMAGED


def var_of(where: str) -> str:
    """Table of the genes of a matrix: `var`, or that of `raw`."""
    return "raw/var" if where == RAW else "var"


class Store:
    """An open file of a screen, in whatever format: names, labels and matrices, read only.

    Attributes
    ----------
    path
        As the user gave it.
    kind
        Name of the format, for people.
    notes
        What the reader had to do or to leave out, for people.
    """

    kind = "AnnData"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self._joined: pd.DataFrame | None = None

    def close(self) -> None:
        """Let go of the file."""

    def keys(self, group: str) -> list[str]:
        """Names inside a group such as `layers` or `obsm`; empty where there is no such group."""
        raise NotImplementedError

    def layers(self) -> list[str]:
        """Names that `--layer` takes."""
        return self.keys("layers")

    def place(self, layer: str | None) -> str:
        """Place of a layer in the file, X by default.

        Raises
        ------
        InputError
            There is no such layer; the nearest names are given.
        """
        if layer in (None, "X"):
            return "X"
        if layer not in self.layers():
            raise unknown("layer", str(layer), self.layers(), where=str(self.path))
        return RAW if layer == "raw" and layer not in self.keys("layers") else f"layers/{layer}"

    def names(self, frame: str) -> Strings:
        """Index of `obs`, `var` or `raw/var` as text: (n,) object."""
        raise NotImplementedError

    def _columns(self, frame: str) -> list[str]:
        raise NotImplementedError

    def _column(self, frame: str, name: str) -> pd.Series[Any]:
        raise NotImplementedError

    def _element(self, where: str) -> Any:
        """What lies at a place of the file, None where nothing does: a matrix, or an array or group on disk."""
        raise NotImplementedError

    def columns(self, frame: str) -> list[str]:
        """Column names of `obs`, `var` or `raw/var`; those of joined labels come last."""
        own = self._columns(frame)
        if frame != "obs" or self._joined is None:
            return own
        return [*own, *(str(name) for name in self._joined.columns)]

    def column(self, frame: str, name: str, *, role: str = "column") -> pd.Series[Any]:
        """One column of `obs`, `var` or `raw/var`.

        `COLUMN~PATTERN`, where there is no column of that very name, gives what the first group of a regular
        expression (the whole match where it has none) finds in the column's text; `names~PATTERN` searches the
        names of the samples. Where nothing is found the label is missing.

        Raises
        ------
        InputError
            The column does not exist; the nearest names are given. Or the pattern is no regular expression, or
            matches nothing.
        """
        names = self.columns(frame)
        if name not in names:
            base, tilde, pattern = name.partition("~")
            if tilde and (base in names or base == "names"):
                return self._extracted(frame, base, pattern, role)
            error = unknown(f"{frame} column", name, names, where=str(self.path))
            listed = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
            raise InputError(
                f"{error.problem} (wanted as the {role})",
                remedy=error.remedy + (f" The columns of {frame} are: {listed}" if nearest(name, names) else ""),
            )
        if frame == "obs" and self._joined is not None and name in self._joined.columns:
            return pd.Series(self._joined[name])
        return self._column(frame, name).reset_index(drop=True)

    def _extracted(self, frame: str, base: str, pattern: str, role: str) -> pd.Series[Any]:
        try:
            compiled = re.compile(pattern)
        except re.error as why:
            raise InputError(
                f"{base}~{pattern} (the {role}): {pattern!r} is no regular expression: {why}",
                remedy="write COLUMN~PATTERN, such as names~-([0-9]+)$ for the number at the end of a barcode",
            ) from None
        source = pd.Series(self.names(frame)) if base == "names" else self.column(frame, base, role=role)
        codes, values = pd.factorize(source.astype(object), use_na_sentinel=True)
        found: list[str | None] = []
        for value in values:
            match = compiled.search(value.decode() if isinstance(value, bytes) else str(value))
            found.append(None if match is None else match.group(1 if compiled.groups else 0))
        if not any(found):
            shown = ", ".join(repr(str(value)) for value in list(values)[:3])
            raise InputError(
                f"{self.path}: the pattern {pattern!r} (the {role}) finds nothing in {base}: it holds {shown}, ...",
                remedy="check the pattern: its first group is the label",
            )
        return pd.Series(np.array([*found, None], dtype=object)[codes])

    def optional_column(self, frame: str, name: str) -> pd.Series[Any] | None:
        """A column that nobody asked for by name: None, and a note, where it cannot be read."""
        try:
            return self.column(frame, name)
        except InputError as why:
            note = f"left out: {why.problem.removeprefix(f'{self.path}: ')}; {why.remedy}"
            self.notes += [note] if note not in self.notes else []
            return None

    def frame(self, frame: str) -> pd.DataFrame:
        """All of `obs` or `var` that can be read, indexed by the names."""
        columns = {name: self.optional_column(frame, name) for name in self.columns(frame)}
        made = {name: column.array for name, column in columns.items() if column is not None}
        return pd.DataFrame(made, index=pd.Index(self.names(frame), dtype=object))

    def join(self, labels: pd.DataFrame, *, source: str) -> None:
        """Add columns of labels to `obs`, matched by the names of the samples.

        Raises
        ------
        InputError
            No name matches, names repeat, or a column exists already.
        """
        names = pd.Index(self.names("obs"))
        remedy = "its first column must hold the names of the samples, as the screen has them"
        repeated = labels.index[labels.index.duplicated()]
        if len(repeated):
            raise InputError(f"{source}: the sample {repeated[0]!r} has several lines", remedy=remedy)
        if names.has_duplicates:
            raise InputError(
                f"{self.path}: samples share a name (such as {names[names.duplicated()][0]!r}), so that {source}"
                " cannot be matched to them",
                remedy="make the names unique",
            )
        there = names.isin(labels.index)
        if not there.any():
            raise InputError(
                f"{source}: none of its {len(labels):,} samples (such as {', '.join(map(repr, labels.index[:2]))}) is"
                f" in {self.path} (such as {', '.join(map(repr, names[:2]))})",
                remedy=remedy,
            )
        taken = [str(name) for name in labels.columns if str(name) in self.columns("obs")]
        if taken:
            raise InputError(
                f"{source}: the column {taken[0]!r} is in {self.path} already", remedy="rename it in the table"
            )
        if not there.all():
            self.notes.append(f"{int((~there).sum()):,} of {len(names):,} samples are not in {source}: no labels")
        extra = int((~labels.index.isin(names)).sum())
        if extra:
            self.notes.append(f"{extra:,} of {len(labels):,} lines of {source} are no samples of the screen")
        self._joined = labels.reindex(names).reset_index(drop=True)

    def table(self, where: str) -> pd.DataFrame | None:
        """An element of `obsm` that is a table of named columns; None for a matrix."""
        return None

    def matrix(self, where: str) -> Matrix:
        """Open `X`, `layers/NAME`, `raw/X` or `obsm/KEY` without reading it.

        Raises
        ------
        InputError
            It does not exist, is not a matrix of numbers, or its parts do not fit together.
        """
        with reading(self.path, where):
            element = self._element(where)
        if element is None:
            raise InputError(f"{self.path}: there is no {where}", remedy="name a matrix that exists")
        if hasattr(element, "by_columns"):
            found: Matrix = element
            return found
        return open_matrix(element, self.path, where)


class AnnDataStore(Store):
    """An AnnData file or folder.

    Parameters
    ----------
    path
        As the user gave it.
    root
        Its root group.
    close
        Called once, to let go of the file.
    """

    def __init__(self, path: Path, root: Any, close: Callable[[], None]) -> None:
        super().__init__(path)
        self.root = root
        self._close = close
        self._frames: dict[str, pd.DataFrame] = {}

    def close(self) -> None:
        """Let go of the file."""
        self._close()

    def layers(self) -> list[str]:
        """See `Store.layers`; `raw` is that of AnnData, unless a layer has its name."""
        names = self.keys("layers")
        with reading(self.path, "raw"):
            return [*names, *(["raw"] if "raw" not in names and RAW in self.root and "raw/var" in self.root else [])]

    def keys(self, group: str) -> list[str]:
        """See `Store.keys`."""
        with reading(self.path, group):
            found = self.root.get(group, [])
            # AnnData before 0.7: one dataset with a field for each.
            fields = found.dtype.names if isinstance(found, h5py.Dataset) else None
            return [str(key) for key in (found if fields is None else fields)]

    def _frame(self, frame: str) -> pd.DataFrame | None:
        """A table of one of the older layouts as a whole; None for the present one, which is read by columns."""
        with reading(self.path, frame):
            group = self.root[frame]
            attributes = dict(group.attrs)
            if str(attributes.get("encoding-version")) == "0.2.0" and "_index" in attributes:
                return None
            if frame not in self._frames:
                if isinstance(group, h5py.Dataset):
                    backed = anndata.read_h5ad(self.path, backed="r")
                    try:
                        self._frames["obs"], self._frames["var"] = backed.obs, backed.var
                    finally:
                        backed.file.close()
                elif "encoding-type" in attributes:
                    self._frames[frame] = read_elem(group)
                else:
                    self._frames[frame] = _frame_of_07(group)
            return self._frames[frame]

    def _columns(self, frame: str) -> list[str]:
        whole = self._frame(frame)
        with reading(self.path, f"the columns of {frame}"):
            if whole is not None:
                return [str(name) for name in whole.columns]
            group = self.root[frame]
            order = group.attrs.get("column-order")
            names = [str(name) for name in ([] if order is None else list(order))]
            return [name for name in names if name in group]

    def _column(self, frame: str, name: str) -> pd.Series[Any]:
        whole = self._frame(frame)
        if whole is not None:
            return pd.Series(whole[name])
        with reading(self.path, f"{frame}[{name!r}]"):
            return pd.Series(read_elem(self.root[frame][name]))

    def names(self, frame: str) -> Strings:
        """See `Store.names`."""
        whole = self._frame(frame)
        with reading(self.path, f"the names in {frame}"):
            if whole is not None:
                values = whole.index
            else:
                group = self.root[frame]
                values = pd.Index(np.asarray(read_elem(group[group.attrs["_index"]])))
            out = np.empty(len(values), dtype=object)
            out[:] = [name.decode() if isinstance(name, bytes) else str(name) for name in values]
            return out

    def _element(self, where: str) -> Any:
        group, _, name = where.partition("/")
        whole = self.root.get(group)
        if name and isinstance(whole, h5py.Dataset):
            if name not in (whole.dtype.names or ()):
                return None
            values = whole[name]
            numeric_type(values.dtype, self.path, where)
            return DenseMatrix(values.reshape(len(values), -1), self.path, where)
        element = self.root.get(where)
        return None if element is None or _encoding(element) == "null" else element

    def table(self, where: str) -> pd.DataFrame | None:
        """See `Store.table`."""
        with reading(self.path, where):
            element = None if isinstance(self.root.get(where.partition("/")[0]), h5py.Dataset) else self.root.get(where)
            if element is None or _encoding(element) != "dataframe":
                return None
            found: pd.DataFrame = read_elem(element)
            return found


def _frame_of_07(group: Any) -> pd.DataFrame:
    """A table in the layout of AnnData 0.7 whose writer left out `encoding-type`: codes, and categories beside them."""

    def text(values: Any) -> Any:
        return (
            [value.decode() if isinstance(value, bytes) else value for value in values]
            if values.dtype.kind in "SO"
            else values
        )

    index = group.attrs.get("_index", "_index")
    index = index.decode() if isinstance(index, bytes) else str(index)
    lists = group.get("__categories", {})
    order = [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs.get("column-order", ())]
    made: dict[str, Any] = {}
    for name in [*order, *(key for key in group if key not in (*order, index, "__categories"))]:
        values = np.asarray(group[name])
        if name in lists:
            made[name] = pd.Categorical.from_codes(values, pd.Index(text(np.asarray(lists[name]))))
        else:
            made[name] = text(values)
    return pd.DataFrame(made, index=pd.Index(text(np.asarray(group[index])), dtype=object))


def open_store(path: Path, *, labels: Path | None = None) -> Store:
    """Open a screen, read only: AnnData (.h5ad, .zarr), or one of the formats of `txeval.data.readers`.

    Parameters
    ----------
    labels
        Table (.csv or .tsv) whose first column holds names of samples: its other columns are joined to `obs`.

    Raises
    ------
    InputError
        There is no such file, or it is of no known format, or it is damaged.
    """
    from txeval.data.readers import open_foreign, read_label_table

    path = Path(path)
    try:
        there = path.exists()
    except OSError as why:  # a name that the file system does not allow
        raise InputError(f"{path}: {why.strerror}", remedy="check the path") from None
    if not there:
        folder = path.parent
        close = nearest(path.name, (p.name for p in folder.iterdir())) if folder.is_dir() else []
        remedy = f"did you mean {' or '.join(close)}?" if close else "check the path"
        raise InputError(f"{path}: no such file", remedy=remedy)
    store: Store | None = open_foreign(path)
    if store is None:
        store = _open_anndata(path)
    if labels is not None:
        try:
            store.join(read_label_table(labels, store.names("obs")), source=str(labels))
        except BaseException:
            store.close()
            raise
    return store


def _open_anndata(path: Path) -> AnnDataStore:
    store = _open_zarr(path) if path.is_dir() else _open_hdf5(path)
    try:
        with reading(path, "its contents"):
            present = set(store.root)
        lacks = [f"it has no {name}" for name in ("obs", "var") if name not in present]
        if lacks or "mod" in present:
            why = "; ".join([*lacks, _guess(present)])
            raise InputError(f"{path}: not an AnnData file: {why}", remedy=_NOT_ANNDATA)
    except BaseException:
        store.close()
        raise
    return store


def _open_zarr(path: Path) -> AnnDataStore:
    if not any((path / name).is_file() for name in (".zgroup", "zarr.json", ".zmetadata")):
        raise InputError(
            f"{path}: a folder, but not a Zarr store (no .zgroup and no zarr.json in it)", remedy=_NOT_ANNDATA
        )
    with reading(path, "the Zarr store"):
        root = zarr.open_group(str(path), mode="r")
    return AnnDataStore(path, root, lambda: None)


def _open_hdf5(path: Path) -> AnnDataStore:
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes)", remedy="copy or download it again")
    try:
        file = h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)
    except PermissionError as why:
        raise InputError(f"{path}: no permission to read it", remedy="ask its owner for read access") from why
    except OSError as why:
        with path.open("rb") as raw:
            head = raw.read(64)
        if head.startswith(b"\x89HDF"):
            sizes = re.search(r"truncated file: eof = (\d+).*stored_eof = (\d+)", str(why))
            reason = f"it has {int(sizes[1]):,} bytes, but should have {int(sizes[2]):,}" if sizes else str(why)
            raise InputError(f"{path}: cannot be opened as HDF5 ({reason})", remedy=_DAMAGED) from why
        if head.startswith(b"version https://git-lfs"):
            raise InputError(f"{path}: a Git LFS pointer, not the data", remedy="fetch it with: git lfs pull") from why
        kind = {b"PK": "a zip archive", b"\x1f\x8b": "a gzip archive"}.get(head[:2], "another kind of file")
        raise InputError(f"{path}: not an HDF5 file, so no .h5ad ({kind})", remedy=_NOT_ANNDATA) from why
    return AnnDataStore(path, file, file.close)


def _guess(present: set[str]) -> str:
    """What a file that is not AnnData seems to be."""
    if "mod" in present:
        return "it looks like MuData, of which one modality would do"
    if "molecule_info" in present or {"barcode_idx", "umi"} <= present:
        return "it looks like molecule_info.h5 of Cell Ranger; filtered_feature_bc_matrix.h5 beside it would do"
    if {"assays", "cell.names"} <= present:
        return "it looks like h5Seurat: convert it in R with SeuratDisk::Convert(FILE, dest = 'h5ad')"
    return f"it holds: {', '.join(sorted(present)[:10]) or 'nothing'}"


class Matrix(Protocol):
    """A matrix on disk that gives rows."""

    #: (n, g).
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    #: How it lies on disk, for people: "csr float32, gzip".
    stored: str
    #: What is odd about it; "" where nothing is.
    oddity: str
    #: Whether rows cost one pass over the whole matrix first.
    by_columns: bool

    def rows(self, rows: Ints) -> Block:
        """Rows of strictly increasing numbers, in the type of the file: CSR matrix or array (m, g)."""
        ...

    def columns(self, start: int, stop: int) -> Block:
        """Stored values of adjacent columns, for a matrix stored by columns: CSC matrix (n, m)."""
        ...

    def digest(self) -> str:
        """SHA-256 of the content.

        Up to 200 MB (unpacked) all of it; above, the row (column) pointers, 256 pieces of 65,536 values spread
        evenly over the arrays, and their stored sizes. Times and paths do not enter: a copy has the same digest.
        """
        ...


def open_matrix(element: Any, path: Path, where: str) -> Matrix:
    """Open a matrix in one of AnnData's layouts without reading its values.

    Parameters
    ----------
    element
        HDF5 or Zarr group (sparse) or array (dense).
    path, where
        Named in errors.
    """
    with reading(path, where):
        encoding = _encoding(element)
        if encoding in ("csr_matrix", "csc_matrix"):
            data, indices, indptr = element["data"], element["indices"], element["indptr"]
            found = element.attrs.get("shape", element.attrs.get("h5sparse_shape"))
            shape = (int(found[0]), int(found[1]))
            numeric_type(data.dtype, path, where)
            pointers = np.asarray(indptr[:], dtype=np.int64)
            major = shape[0] if encoding == "csr_matrix" else shape[1]
            if (
                len(pointers) != major + 1
                or pointers[0] != 0
                or np.any(np.diff(pointers) < 0)
                or pointers[-1] != data.shape[0]
                or data.shape != indices.shape
            ):
                raise InputError(f"{path}: the parts of the sparse matrix {where} do not fit together", remedy=_DAMAGED)
            kind = CsrMatrix if encoding == "csr_matrix" else CscMatrix
            return kind(pointers, indices, data, shape, path, where)
        if hasattr(element, "dtype") and getattr(element, "ndim", len(getattr(element, "shape", ()))) == 2:
            numeric_type(element.dtype, path, where)
            return DenseMatrix(element, path, where)
    raise InputError(
        f"{path}: {where} is not a matrix of numbers ({encoding or 'of no known layout'}"
        f"{'' if getattr(element, 'shape', None) is None else f', shape {tuple(element.shape)}'})",
        remedy="store it as a dense array or a CSR matrix",
    )


def _encoding(element: Any) -> str:
    attributes = element.attrs
    old = attributes.get("h5sparse_format")  # AnnData before 0.7
    if old is not None:
        old = old.decode() if isinstance(old, bytes) else str(old)
        return f"{old}_matrix"
    return str(attributes.get("encoding-type", ""))


def numeric_type(dtype: Any, path: Path, where: str) -> None:
    """Refuse values that are no numbers."""
    if getattr(np.dtype(dtype), "kind", "O") not in "biuf":
        raise InputError(
            f"{path}: {where} holds values of type {dtype}, not numbers",
            remedy="store it as numbers (float32 or int32)",
        )


def _unstored(array: Any, path: Path, what: str) -> str:
    """What to say of chunks that a Zarr array does not store; "" where all are there, and for HDF5.

    They are read as 0. A store leaves out chunks of nothing but 0, and so does a copy that was cut short.
    """
    if not isinstance(array, zarr.Array):
        return ""
    step = getattr(array, "shards", None) or array.chunks
    files = _chunk_files(array, path)
    missing = int(np.prod([-(-n // by) for n, by in zip(array.shape, step, strict=True)])) - len(files)
    if missing <= 0:
        return ""
    return (
        f"{missing:,} of {missing + len(files):,} pieces of {what} are not stored and read as 0, which is right where"
        " they held nothing else: check the copy if that is not expected"
    )


def _chunk_files(array: Any, path: Path) -> list[Path]:
    files = (path / str(array.path)).rglob("*")
    return [file for file in files if file.is_file() and not file.name.startswith(".z") and file.name != "zarr.json"]


def stored_as(layout: str, array: Any) -> str:
    """How an array lies on disk, for people: "csr float32, gzip"."""
    packing = getattr(array, "compression", None)  # HDF5 only; Zarr's codecs have no short common name
    return f"{layout} {array.dtype}" + (f", {packing}" if isinstance(packing, str) else "")


def spans(start: Ints, stop: Ints, gap: int, cap: int) -> Iterator[tuple[int, int]]:
    """Group stretches [start, stop) of increasing position into reads of at most `cap` (or one stretch)."""
    edges = [0, *(np.flatnonzero(start[1:] - stop[:-1] > gap) + 1).tolist(), len(start)]
    for first, last in itertools.pairwise(edges):
        i = first
        while i < last:
            j = i + int(np.searchsorted(stop[i:last], start[i] + cap, side="right"))
            j = min(max(j, i + 1), last)
            yield i, j
            i = j


class _Sparse:
    """What CSR and CSC share: three arrays on disk, the pointers in memory."""

    by_columns = False

    def __init__(self, indptr: Ints, indices: Any, data: Any, shape: tuple[int, int], path: Path, where: str) -> None:
        self.indptr = indptr
        self.indices = indices
        self.data = data
        self.shape = shape
        # scipy's sparse kernels know neither half precision nor foreign byte order.
        native = np.dtype(data.dtype).newbyteorder("=")
        self.dtype = np.dtype(np.float32) if native == np.float16 else native
        self.path = path
        self.where = where
        self.stored = stored_as("csc" if self.by_columns else "csr", data)
        # What one read may carry along unused: about a chunk.
        chunks = getattr(data, "chunks", None)
        self._gap = max(GAP_ELEMENTS, int(chunks[0]) if chunks else 0)
        self._minor = shape[0] if self.by_columns else shape[1]
        odd = _unstored(data, path, f"the values of {where}"), _unstored(indices, path, f"the indices of {where}")
        self.oddity = "; ".join(filter(None, odd))

    def _indices(self, start: int, stop: int) -> Any:
        """Indices of stored elements [start, stop), int32 where they fit."""
        with reading(self.path, f"{self.where}, indices {start:,} to {stop:,}"):
            indices = np.asarray(self.indices[start:stop])
        # An index outside the matrix would make scipy read foreign memory.
        if len(indices) != stop - start or (
            len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= self._minor)
        ):
            raise InputError(f"{self.path}: {self.where} has an index outside the matrix", remedy=_DAMAGED)
        indices = indices.astype(np.int32 if self._minor <= np.iinfo(np.int32).max else np.int64, copy=False)
        # A view of a read-only memory map cannot be put into canonical order in place.
        return indices if indices.flags.writeable else indices.copy()

    def _read(self, start: int, stop: int) -> tuple[Any, Any]:
        """Indices and values of stored elements [start, stop)."""
        with reading(self.path, f"{self.where}, values {start:,} to {stop:,}"):
            data = np.asarray(self.data[start:stop]).astype(self.dtype, copy=False)
        return self._indices(start, stop), data if data.flags.writeable else data.copy()

    def digest(self) -> str:
        """See `Matrix.digest`."""
        digest = hashlib.sha256(f"{self.stored.split(',')[0]}{self.shape}".encode())
        digest.update(self.indptr.tobytes())
        size = len(self.indptr) * 8 + self.data.shape[0] * (self.dtype.itemsize + self.indices.dtype.itemsize)
        for array in (self.indices, self.data):
            digest_array(digest, array, size, self.path, self.where)
        return digest.hexdigest()

    def _pick(self, majors: Ints) -> Any:
        """Stored rows (CSR) or columns (CSC) of strictly increasing numbers, as a CSR matrix over them."""
        start, stop = self.indptr[majors], self.indptr[majors + 1]
        parts: list[Any] = []
        for i, j in spans(start, stop, self._gap, BLOCK_ELEMENTS):
            first, last = int(start[i]), int(stop[j - 1])
            indices, data = self._read(first, last)
            wanted = majors[i:j]
            pointers = self.indptr[wanted[0] : wanted[-1] + 2] - first
            if len(data) <= np.iinfo(np.int32).max:
                pointers = pointers.astype(np.int32)
            part = sp.csr_matrix((data, indices, pointers), shape=(len(pointers) - 1, self._minor), copy=False)
            parts.append(part if len(wanted) == part.shape[0] else part[wanted - wanted[0]])
        if not parts:
            return sp.csr_matrix((0, self._minor), dtype=self.dtype)
        block = parts[0] if len(parts) == 1 else sp.vstack(parts, format="csr")
        block.sum_duplicates()
        return block


class CsrMatrix(_Sparse):
    """A CSR matrix on disk."""

    def rows(self, rows: Ints) -> Block:
        """See `Matrix.rows`."""
        return self._pick(rows)

    def columns(self, start: int, stop: int) -> Block:
        """Not offered: the matrix is stored by rows."""
        raise NotImplementedError


class CscMatrix(_Sparse):
    """A CSC matrix on disk. The first rows asked for cost a row-wise copy in temporary files."""

    by_columns = True

    def __init__(self, indptr: Ints, indices: Any, data: Any, shape: tuple[int, int], path: Path, where: str) -> None:
        super().__init__(indptr, indices, data, shape, path, where)
        self._by_rows: CsrMatrix | None = None

    def rows(self, rows: Ints) -> Block:
        """See `Matrix.rows`."""
        if self._by_rows is None:
            self._by_rows = self._turn()
        return self._by_rows.rows(rows)

    def columns(self, start: int, stop: int) -> Block:
        """See `Matrix.columns`."""
        return self._pick(np.arange(start, stop)).T

    def _turn(self) -> CsrMatrix:
        """Copy row-wise into temporary files (see `sort_by_row`)."""
        n, nnz = self.shape[0], int(self.data.shape[0])
        counts = np.zeros(n, dtype=np.int64)
        for a in range(0, nnz, BLOCK_ELEMENTS):
            counts += np.bincount(self._indices(a, min(nnz, a + BLOCK_ELEMENTS)), minlength=n)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        remedy = "store it as CSR (adata.X = adata.X.tocsr()), or set TMPDIR to a folder with more space"
        what = f"{self.path}: {self.where} is stored by columns (CSC)"
        arrays = sort_by_row(indptr, self._triplets(), self.dtype, what=what, remedy=remedy)
        return CsrMatrix(indptr, *arrays, self.shape, self.path, self.where)

    def _triplets(self) -> Iterator[tuple[Any, Any, Any]]:
        """Row, column and value of every stored element, in the order of the file."""
        nnz = int(self.data.shape[0])
        step = max(1, BLOCK_ELEMENTS // 2)
        for a in range(0, nnz, step):
            b = min(nnz, a + step)
            row, value = self._read(a, b)
            first = int(np.searchsorted(self.indptr, a, "right")) - 1
            last = int(np.searchsorted(self.indptr, b, "left"))
            ends: Ints = np.clip(self.indptr[first : last + 1], a, b)
            yield row, np.repeat(np.arange(first, last, dtype=np.int32), ends[1:] - ends[:-1]), value


def sort_by_row(
    indptr: Ints, triplets: Iterator[tuple[Any, Any, Any]], dtype: np.dtype[Any], *, what: str, remedy: str
) -> tuple[Any, Any]:
    """Sort the elements of a sparse matrix by row, in temporary files, about `BLOCK_ELEMENTS` at a time in memory.

    Rows are grouped into bands of at most so many values. Every value is appended to its band, in sequential
    writes; then each band is sorted by row in memory. The files have no name, so that they vanish with the process
    however it ends.

    Parameters
    ----------
    indptr
        (n + 1,) int64 pointers of the rows of the result.
    triplets
        Row numbers, column numbers and values of pieces of the matrix, in any order.
    what, remedy
        Begin of the message, and advice, where there is no room for the files.

    Returns
    -------
    (nnz,) int32 column numbers and (nnz,) values, on disk; in the order given within each row
    """
    n, nnz = len(indptr) - 1, int(indptr[-1])
    folder = tempfile.gettempdir()
    size, free = nnz * (4 + 4 + dtype.itemsize), shutil.disk_usage(folder).free
    if size > free:
        raise InputError(
            f"{what}; reading it by rows needs {size / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free",
            remedy=remedy,
        )
    edges = [0]
    while edges[-1] < n:
        full = int(np.searchsorted(indptr, indptr[edges[-1]] + BLOCK_ELEMENTS, "right")) - 1
        edges.append(max(edges[-1] + 1, full))
    try:
        with contextlib.ExitStack() as stack:
            rows, columns, values = (
                Scratch(stack.enter_context(tempfile.TemporaryFile()), kind)
                for kind in (np.dtype(np.int32), np.dtype(np.int32), dtype)
            )
            _distribute(indptr, edges, triplets, rows, columns, values)
            for first, last in itertools.pairwise(indptr[edges].tolist()):
                order = np.argsort(rows.read(first, last), kind="stable")
                for scratch in (columns, values):
                    scratch.write(first, scratch.read(first, last)[order])
            return columns.kept(nnz), values.kept(nnz)
    except OSError as why:
        raise InputError(
            f"{what}, and its row-wise copy could not be written to {folder} ({why})", remedy=remedy
        ) from why


def _distribute(
    indptr: Ints,
    edges: list[int],
    triplets: Iterator[tuple[Any, Any, Any]],
    rows: Scratch,
    columns: Scratch,
    values: Scratch,
) -> None:
    """Append every value to the band of its row."""
    band_of_row = np.repeat(np.arange(len(edges) - 1, dtype=np.int32), np.diff(edges))
    cursor = indptr[edges[:-1]].copy()
    for row, column, value in triplets:
        band = band_of_row[row]
        order = np.argsort(band, kind="stable")
        sizes = np.bincount(band, minlength=len(cursor))
        stops = np.cumsum(sizes)
        pieces = ((rows, row[order]), (columns, column[order]), (values, value[order]))
        for k in np.flatnonzero(sizes).tolist():
            for scratch, piece in pieces:
                scratch.write(int(cursor[k]), piece[stops[k] - sizes[k] : stops[k]])
        cursor += sizes


class Scratch:
    """An array in a temporary file, written and read by pieces."""

    def __init__(self, file: Any, dtype: np.dtype[Any]) -> None:
        self.file = file
        self.dtype = dtype

    def write(self, start: int, piece: Any) -> None:
        """Write elements from `start` on."""
        self.file.seek(start * self.dtype.itemsize)
        self.file.write(np.ascontiguousarray(piece, dtype=self.dtype).data)

    def read(self, start: int, stop: int) -> Any:
        """Elements [start, stop)."""
        self.file.seek(start * self.dtype.itemsize)
        return np.frombuffer(self.file.read((stop - start) * self.dtype.itemsize), dtype=self.dtype)

    def kept(self, length: int) -> Any:
        """All of it, to be read by slices; it outlives the file object."""
        self.file.flush()
        return _Kept(os.dup(self.file.fileno()), self.dtype, length)


class _Kept:
    """An array in a file without a name, read by slices.

    Not a memory map: the pages of one count as memory of the process, up to the size of the file.
    """

    def __init__(self, handle: int, dtype: np.dtype[Any], length: int) -> None:
        self._file = os.fdopen(handle, "rb", buffering=0)
        self.dtype = dtype
        self.shape = (length,)

    def __getitem__(self, where: slice) -> Any:
        start, stop, _ = where.indices(self.shape[0])
        out = np.empty(max(0, stop - start), dtype=self.dtype)
        view, at = out.view(np.uint8), start * self.dtype.itemsize
        done = 0
        while done < len(view):
            # Without a seek, so that forked processes and threads do not move each other's place.
            piece = os.pread(self._file.fileno(), min(len(view) - done, 1 << 30), at + done)
            if not piece:
                raise OSError("a temporary file was cut short")
            view[done : done + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
            done += len(piece)
        return out


class DenseMatrix:
    """A dense matrix on disk."""

    by_columns = False

    def __init__(self, array: Any, path: Path, where: str) -> None:
        self.array = array
        self.shape: tuple[int, int] = (int(array.shape[0]), int(array.shape[1]))
        self.dtype = np.dtype(array.dtype).newbyteorder("=")
        self.stored = stored_as("dense", array)
        self.path = path
        self.where = where
        chunks = getattr(array, "chunks", None)
        self._gap = max(GAP_ELEMENTS, int(chunks[0]) * self.shape[1] if chunks else 0)
        self.oddity = _unstored(array, path, where)

    def rows(self, rows: Ints) -> Block:
        """See `Matrix.rows`."""
        g = max(1, self.shape[1])
        out: Any = np.empty((len(rows), self.shape[1]), dtype=self.dtype)
        for i, j in spans(rows * g, (rows + 1) * g, self._gap, BLOCK_ELEMENTS):
            first, last = int(rows[i]), int(rows[j - 1]) + 1
            with reading(self.path, f"{self.where}, rows {first:,} to {last:,}"):
                part = np.asarray(self.array[first:last])
            out[i:j] = part if last - first == j - i else part[rows[i:j] - first]
        return out

    def columns(self, start: int, stop: int) -> Block:
        """Not offered: the matrix is stored by rows."""
        raise NotImplementedError

    def digest(self) -> str:
        """See `Matrix.digest`."""
        digest = hashlib.sha256(f"dense{self.dtype}{self.shape}".encode())
        size = self.shape[0] * self.shape[1] * self.dtype.itemsize
        digest_array(digest, self.array, size, self.path, self.where)
        return digest.hexdigest()


def digest_array(digest: Any, array: Any, size: int, path: Path, where: str) -> None:
    """Add an array to a digest, by blocks along its first axis: all of it, or a sample where `size` bytes are many."""
    length = int(array.shape[0])
    width = int(np.prod(array.shape[1:])) or 1
    with reading(path, where):
        if size <= FULL_DIGEST_BYTES:
            step = max(1, BLOCK_ELEMENTS // width)
            starts = list(range(0, length, step))
        else:
            step = max(1, 65_536 // width)
            starts = [int(a) for a in np.unique(np.linspace(0, max(0, length - step), 256).astype(np.int64))]
            digest.update(str(_stored_bytes(array, path)).encode())
        for a in starts:
            digest.update(np.ascontiguousarray(array[a : a + step]).tobytes())


def _stored_bytes(array: Any, path: Path) -> int:
    """Bytes that an array takes on disk."""
    if isinstance(array, h5py.Dataset):
        return int(array.id.get_storage_size())
    if isinstance(array, np.ndarray):  # made from text, and of no size on disk of its own
        return int(array.nbytes)
    return sum(file.stat().st_size for file in _chunk_files(array, path))
