"""AnnData files on disk, read by blocks of rows: HDF5 and Zarr, CSR, CSC and dense."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata.io import read_elem

from txeval.compute.arrays import BLOCK_ELEMENTS, Ints, Strings
from txeval.errors import InputError, nearest, unknown

__all__ = ["Block", "CsrMatrix", "DenseMatrix", "Matrix", "Store", "open_matrix", "open_store"]

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
_NOT_ANNDATA = "txeval reads AnnData as .h5ad files or .zarr folders: write one with AnnData.write_h5ad()"


@contextlib.contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a storage library raises while reading into an InputError."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    # The storage libraries and their codecs raise almost anything on damaged bytes.
    except Exception as why:
        reason = (str(why).strip().strip("\"'") or type(why).__name__).splitlines()[0]
        raise InputError(f"{path}: cannot read {what} ({reason})", remedy=_DAMAGED) from why


class Store:
    """An AnnData file or folder, open for reading.

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
        self.path = path
        self.root = root
        self._close = close
        self._frames: dict[str, pd.DataFrame] = {}

    def close(self) -> None:
        """Let go of the file."""
        self._close()

    def keys(self, group: str) -> list[str]:
        """Names inside a group such as `layers` or `obsm`; empty where there is no such group."""
        with _reading(self.path, group):
            return [str(key) for key in self.root[group]] if group in self.root else []

    def _frame(self, frame: str) -> pd.DataFrame | None:
        """A table of one of the older layouts as a whole; None for the present one, which is read by columns."""
        with _reading(self.path, frame):
            group = self.root[frame]
            attributes = dict(group.attrs)
            if str(attributes.get("encoding-version")) == "0.2.0" and "_index" in attributes:
                return None
            if frame not in self._frames:
                if isinstance(group, h5py.Dataset):
                    import anndata

                    backed = anndata.read_h5ad(self.path, backed="r")
                    try:
                        self._frames["obs"], self._frames["var"] = backed.obs, backed.var
                    finally:
                        backed.file.close()
                else:
                    self._frames[frame] = read_elem(group)
            return self._frames[frame]

    def columns(self, frame: str) -> list[str]:
        """Column names of `obs` or `var`."""
        whole = self._frame(frame)
        with _reading(self.path, f"the columns of {frame}"):
            if whole is not None:
                return [str(name) for name in whole.columns]
            group = self.root[frame]
            order = group.attrs.get("column-order")
            names = [str(name) for name in ([] if order is None else list(order))]
            return [name for name in names if name in group]

    def column(self, frame: str, name: str, *, role: str = "column") -> pd.Series[Any]:
        """One column of `obs` or `var`.

        Raises
        ------
        InputError
            The column does not exist; the nearest names are given.
        """
        names = self.columns(frame)
        if name not in names:
            error = unknown(f"{frame} column", name, names, where=str(self.path))
            listed = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
            raise InputError(
                f"{error.problem} (wanted as the {role})",
                remedy=error.remedy + (f" The columns of {frame} are: {listed}" if nearest(name, names) else ""),
            )
        whole = self._frame(frame)
        if whole is not None:
            return pd.Series(whole[name]).reset_index(drop=True)
        with _reading(self.path, f"{frame}[{name!r}]"):
            return pd.Series(read_elem(self.root[frame][name]))

    def names(self, frame: str) -> Strings:
        """Index of `obs` or `var` as text: (n,) object."""
        whole = self._frame(frame)
        with _reading(self.path, f"the names in {frame}"):
            if whole is not None:
                values = whole.index
            else:
                group = self.root[frame]
                values = pd.Index(np.asarray(read_elem(group[group.attrs["_index"]])))
            out = np.empty(len(values), dtype=object)
            out[:] = [name.decode() if isinstance(name, bytes) else str(name) for name in values]
            return out

    def matrix(self, where: str) -> Matrix:
        """Open `X`, `layers/NAME` or `obsm/KEY` without reading it.

        Raises
        ------
        InputError
            It does not exist, is not a matrix of numbers, or its parts do not fit together.
        """
        with _reading(self.path, where):
            element = self.root.get(where)
            if element is not None and _encoding(element) == "null":
                element = None
        if element is None:
            raise InputError(f"{self.path}: there is no {where}", remedy="name a matrix that exists")
        return open_matrix(element, self.path, where)


def open_store(path: Path) -> Store:
    """Open an AnnData file (.h5ad) or folder (.zarr), read only.

    Raises
    ------
    InputError
        There is no such file, or it is not AnnData, or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        folder = path.parent
        close = nearest(path.name, (p.name for p in folder.iterdir())) if folder.is_dir() else []
        remedy = f"did you mean {' or '.join(close)}?" if close else "check the path"
        raise InputError(f"{path}: no such file", remedy=remedy)
    store = _open_zarr(path) if path.is_dir() else _open_hdf5(path)
    try:
        with _reading(path, "its contents"):
            present = set(store.root)
        lacks = [f"it has no {name}" for name in ("obs", "var") if name not in present]
        if lacks or "mod" in present:
            why = "; ".join([*lacks, _guess(present)])
            raise InputError(f"{path}: not an AnnData file: {why}", remedy=_NOT_ANNDATA)
    except BaseException:
        store.close()
        raise
    return store


def _open_zarr(path: Path) -> Store:
    if not any((path / name).is_file() for name in (".zgroup", "zarr.json", ".zmetadata")):
        raise InputError(
            f"{path}: a folder, but not a Zarr store (no .zgroup and no zarr.json in it)", remedy=_NOT_ANNDATA
        )
    with _reading(path, "the Zarr store"):
        root = zarr.open_group(str(path), mode="r")
    return Store(path, root, lambda: None)


def _open_hdf5(path: Path) -> Store:
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
    return Store(path, file, file.close)


def _guess(present: set[str]) -> str:
    """What a file that is not AnnData seems to be."""
    if "mod" in present:
        return "it looks like MuData, of which one modality would do"
    if "matrix" in present and "row_attrs" in present:
        return "it looks like a loom file"
    if "matrix" in present:
        return "it looks like a 10x Genomics file, which scanpy.read_10x_h5 reads"
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
    with _reading(path, where):
        encoding = _encoding(element)
        if encoding in ("csr_matrix", "csc_matrix"):
            data, indices, indptr = element["data"], element["indices"], element["indptr"]
            found = element.attrs.get("shape", element.attrs.get("h5sparse_shape"))
            shape = (int(found[0]), int(found[1]))
            _check_numeric(data.dtype, path, where)
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
            missing = _missing_chunks(data)
            if missing:
                raise InputError(f"{path}: {missing} pieces of the values of {where} are missing", remedy=_DAMAGED)
            kind = CsrMatrix if encoding == "csr_matrix" else CscMatrix
            return kind(pointers, indices, data, shape, path, where)
        if hasattr(element, "dtype") and getattr(element, "ndim", len(getattr(element, "shape", ()))) == 2:
            _check_numeric(element.dtype, path, where)
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


def _check_numeric(dtype: Any, path: Path, where: str) -> None:
    if getattr(np.dtype(dtype), "kind", "O") not in "biuf":
        raise InputError(
            f"{path}: {where} holds values of type {dtype}, not numbers",
            remedy="store it as numbers (float32 or int32)",
        )


def _missing_chunks(array: Any) -> int:
    """Number of chunks that a Zarr array lacks (it would read them as zeros); 0 for HDF5."""
    done = getattr(array, "nchunks_initialized", None)
    return 0 if done is None else int(array.nchunks) - int(done)


def _stored(layout: str, array: Any) -> str:
    packing = getattr(array, "compression", None)  # HDF5 only; Zarr's codecs have no short common name
    return f"{layout} {array.dtype}" + (f", {packing}" if isinstance(packing, str) else "")


def _spans(start: Ints, stop: Ints, gap: int, cap: int) -> Iterator[tuple[int, int]]:
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
    oddity = ""

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
        self.stored = _stored("csc" if self.by_columns else "csr", data)
        # What one read may carry along unused: about a chunk.
        chunks = getattr(data, "chunks", None)
        self._gap = max(GAP_ELEMENTS, int(chunks[0]) if chunks else 0)
        self._minor = shape[0] if self.by_columns else shape[1]
        if _missing_chunks(indices):
            self.oddity = f"{_missing_chunks(indices)} pieces of the indices of {where} are not stored and read as 0"

    def _indices(self, start: int, stop: int) -> Any:
        """Indices of stored elements [start, stop), int32 where they fit."""
        with _reading(self.path, f"{self.where}, indices {start:,} to {stop:,}"):
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
        with _reading(self.path, f"{self.where}, values {start:,} to {stop:,}"):
            data = np.asarray(self.data[start:stop]).astype(self.dtype, copy=False)
        return self._indices(start, stop), data if data.flags.writeable else data.copy()

    def digest(self) -> str:
        """See `Matrix.digest`."""
        digest = hashlib.sha256(f"{self.stored.split(',')[0]}{self.shape}".encode())
        digest.update(self.indptr.tobytes())
        size = len(self.indptr) * 8 + self.data.shape[0] * (self.dtype.itemsize + self.indices.dtype.itemsize)
        for array in (self.indices, self.data):
            _digest_array(digest, array, self.path, self.where, whole=size <= FULL_DIGEST_BYTES)
        return digest.hexdigest()

    def _pick(self, majors: Ints) -> Any:
        """Stored rows (CSR) or columns (CSC) of strictly increasing numbers, as a CSR matrix over them."""
        start, stop = self.indptr[majors], self.indptr[majors + 1]
        parts: list[Any] = []
        for i, j in _spans(start, stop, self._gap, BLOCK_ELEMENTS):
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
    """A CSR matrix on disk (or in memory-mapped arrays)."""

    def rows(self, rows: Ints) -> Block:
        """See `Matrix.rows`."""
        return self._pick(rows)

    def columns(self, start: int, stop: int) -> Block:
        """Not offered: the matrix is stored by rows."""
        raise NotImplementedError


class CscMatrix(_Sparse):
    """A CSC matrix on disk. The first rows asked for cost a row-wise copy in temporary files."""

    by_columns = True
    oddity = ""

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
        """Copy row-wise into temporary files, holding about `BLOCK_ELEMENTS` stored values at a time.

        Rows are grouped into bands of at most so many values. One pass over the indices counts the values of each
        row; a second pass appends every value to its band, in sequential writes; then each band is sorted by row
        in memory. The files have no name, so that they vanish with the process however it ends.
        """
        n, nnz = self.shape[0], int(self.data.shape[0])
        folder = tempfile.gettempdir()
        remedy = "store it as CSR (adata.X = adata.X.tocsr()), or set TMPDIR to a folder with more space"
        size, free = nnz * (4 + 4 + self.dtype.itemsize), shutil.disk_usage(folder).free
        if size > free:
            raise InputError(
                f"{self.path}: {self.where} is stored by columns (CSC); reading it by rows needs {size / 1e9:.1f} GB"
                f" in {folder}, where {free / 1e9:.1f} GB are free",
                remedy=remedy,
            )
        counts = np.zeros(n, dtype=np.int64)
        for a in range(0, nnz, BLOCK_ELEMENTS):
            counts += np.bincount(self._indices(a, min(nnz, a + BLOCK_ELEMENTS)), minlength=n)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        edges = [0]
        while edges[-1] < n:
            full = int(np.searchsorted(indptr, indptr[edges[-1]] + BLOCK_ELEMENTS, "right")) - 1
            edges.append(max(edges[-1] + 1, full))
        try:
            with contextlib.ExitStack() as stack:
                rows, columns, values = (
                    _Scratch(stack.enter_context(tempfile.TemporaryFile()), dtype)
                    for dtype in (np.dtype(np.int32), np.dtype(np.int32), self.dtype)
                )
                self._distribute(indptr, edges, rows, columns, values)
                for first, last in itertools.pairwise(indptr[edges].tolist()):
                    order = np.argsort(rows.read(first, last), kind="stable")
                    for scratch in (columns, values):
                        scratch.write(first, scratch.read(first, last)[order])
                arrays = columns.mapped(nnz), values.mapped(nnz)
        except OSError as why:
            raise InputError(
                f"{self.path}: {self.where} is stored by columns (CSC), and its row-wise copy could not be written"
                f" to {folder} ({why})",
                remedy=remedy,
            ) from why
        return CsrMatrix(indptr, *arrays, self.shape, self.path, self.where)

    def _distribute(self, indptr: Ints, edges: list[int], rows: _Scratch, columns: _Scratch, values: _Scratch) -> None:
        """Append every stored value to the band of its row, in the order of the file."""
        nnz = int(self.data.shape[0])
        band_of_row = np.repeat(np.arange(len(edges) - 1, dtype=np.int32), np.diff(edges))
        cursor = indptr[edges[:-1]].copy()
        step = max(1, BLOCK_ELEMENTS // 2)
        for a in range(0, nnz, step):
            b = min(nnz, a + step)
            row, value = self._read(a, b)
            first = int(np.searchsorted(self.indptr, a, "right")) - 1
            last = int(np.searchsorted(self.indptr, b, "left"))
            ends: Ints = np.clip(self.indptr[first : last + 1], a, b)
            column = np.repeat(np.arange(first, last, dtype=np.int32), ends[1:] - ends[:-1])
            band = band_of_row[row]
            order = np.argsort(band, kind="stable")
            sizes = np.bincount(band, minlength=len(cursor))
            stops = np.cumsum(sizes)
            pieces = ((rows, row[order]), (columns, column[order]), (values, value[order]))
            for k in np.flatnonzero(sizes).tolist():
                for scratch, piece in pieces:
                    scratch.write(int(cursor[k]), piece[stops[k] - sizes[k] : stops[k]])
            cursor += sizes


class _Scratch:
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

    def mapped(self, length: int) -> Any:
        """All of it, memory-mapped; it outlives the file object."""
        self.file.flush()
        return np.memmap(self.file, dtype=self.dtype, mode="r", shape=(length,)) if length else np.empty(0, self.dtype)


class DenseMatrix:
    """A dense matrix on disk."""

    by_columns = False

    def __init__(self, array: Any, path: Path, where: str) -> None:
        self.array = array
        self.shape: tuple[int, int] = (int(array.shape[0]), int(array.shape[1]))
        self.dtype = np.dtype(array.dtype).newbyteorder("=")
        self.stored = _stored("dense", array)
        self.path = path
        self.where = where
        chunks = getattr(array, "chunks", None)
        self._gap = max(GAP_ELEMENTS, int(chunks[0]) * self.shape[1] if chunks else 0)
        missing = _missing_chunks(array)
        self.oddity = f"{missing} pieces of {where} are not stored and read as 0" if missing else ""

    def rows(self, rows: Ints) -> Block:
        """See `Matrix.rows`."""
        g = max(1, self.shape[1])
        out: Any = np.empty((len(rows), self.shape[1]), dtype=self.dtype)
        for i, j in _spans(rows * g, (rows + 1) * g, self._gap, BLOCK_ELEMENTS):
            first, last = int(rows[i]), int(rows[j - 1]) + 1
            with _reading(self.path, f"{self.where}, rows {first:,} to {last:,}"):
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
        _digest_array(digest, self.array, self.path, self.where, whole=size <= FULL_DIGEST_BYTES)
        return digest.hexdigest()


def _digest_array(digest: Any, array: Any, path: Path, where: str, *, whole: bool) -> None:
    """Add an array to a digest, by blocks along its first axis."""
    length = int(array.shape[0])
    width = int(np.prod(array.shape[1:])) or 1
    with _reading(path, where):
        if whole:
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
    folder = path / str(array.path)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
