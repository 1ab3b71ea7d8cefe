"""AnnData files written block by block: HDF5 and Zarr v3, CSR and dense, whole or not at all, and resumable."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from txeval._version import __version__
from txeval.compute.arrays import Ints
from txeval.compute.machine import usable_cores
from txeval.destination import check_destination, require_suffix
from txeval.errors import InputError, unknown

__all__ = ["FORMATS", "LAYOUTS", "Format", "Layout", "ScreenWriter", "format_of", "open_writer", "smallest_type"]

Format = Literal["h5ad", "zarr"]
Layout = Literal["csr", "dense"]
FORMATS: tuple[Format, ...] = ("h5ad", "zarr")
SUFFIXES = tuple(f".{name}" for name in FORMATS)
LAYOUTS: tuple[Layout, ...] = ("csr", "dense")

#: Values of a chunk. Small ones in HDF5, where a read unpacks whole chunks; larger ones in Zarr, where each is a file.
_CHUNK = {"h5ad": 1 << 16, "zarr": 1 << 20}

#: Chunks are gathered in files of about this size until an HDF5 file is put together from them.
_SEGMENT_BYTES = 1 << 28

#: Level 1 packs counts nearly as well as level 9, several times as fast.
_GZIP_LEVEL = 1
_ZSTD_LEVEL = 3

#: Whole numbers up to here are exact in single precision.
_EXACT_IN_FLOAT32 = 1 << 24

_LADDER = tuple(np.dtype(kind) for kind in (np.uint8, np.uint16, np.uint32, np.float32, np.float64))
_JOURNAL = "journal.json"


def format_of(path: Path | str) -> Format:
    """Format that a file name asks for.

    Raises
    ------
    InputError
        For a suffix other than .h5ad and .zarr.
    """
    return "h5ad" if require_suffix(Path(path), SUFFIXES) == ".h5ad" else "zarr"


def smallest_type(values: npt.NDArray[Any]) -> np.dtype[Any]:
    """The smallest type that holds some values exactly: uint8, uint16, uint32; else float32, float64.

    Fractions are taken as float32, whatever precision they come in; whole numbers that are negative as float32, and
    above 2^24 (negative) or 2^32 as float64.

    Parameters
    ----------
    values
        Numbers of any type and shape, finite or not.
    """
    if not values.size or values.dtype.kind == "b":
        return _LADDER[0]
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and np.array_equal(values, np.floor(values))):
        return _LADDER[3]
    low, high = values.min(), values.max()
    if low >= 0:
        for kind in _LADDER[:3]:
            if int(high) < 1 << (8 * kind.itemsize):
                return kind
    return _LADDER[3] if max(-float(low), float(high)) <= _EXACT_IN_FLOAT32 else _LADDER[4]


class _Codec:
    """How a chunk becomes bytes, as the final file wants them."""

    def __init__(self, format: Format, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype.newbyteorder("<")
        self.zarr = format == "zarr"

    def encode(self, values: npt.NDArray[Any]) -> bytes:
        values = np.ascontiguousarray(values, dtype=self.dtype)
        size = self.dtype.itemsize
        if self.zarr:
            from numcodecs import Blosc

            packer = Blosc(cname="zstd", clevel=_ZSTD_LEVEL, shuffle=Blosc.SHUFFLE if size > 1 else Blosc.NOSHUFFLE)
            return bytes(packer.encode(values))
        raw = values.view(np.uint8)
        # The shuffle filter of HDF5: first bytes of all values, then second bytes, ...
        return zlib.compress(raw.reshape(-1, size).T.tobytes() if size > 1 else raw.tobytes(), _GZIP_LEVEL)

    def decode(self, packed: bytes) -> npt.NDArray[Any]:
        if self.zarr:
            from numcodecs import Blosc

            return np.frombuffer(Blosc().decode(packed), dtype=self.dtype)
        raw = np.frombuffer(zlib.decompress(packed), dtype=np.uint8)
        size = self.dtype.itemsize
        return np.ascontiguousarray(raw.reshape(size, -1).T).reshape(-1).view(self.dtype)


class _FilePerChunk:
    """Packed chunks as the files of a Zarr array."""

    def __init__(self, folder: Path, count: int = 0) -> None:
        self.folder = folder
        self.count = count
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, packed: bytes) -> None:
        (self.folder / str(self.count)).write_bytes(packed)
        self.count += 1

    def flush(self) -> None:
        pass

    def read(self, *, release: bool = False) -> Iterator[bytes]:
        for i in range(self.count):
            yield (self.folder / str(i)).read_bytes()


class _Segments:
    """Packed chunks one after the other, in files of bounded size."""

    def __init__(self, folder: Path, count: int = 0) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._sizes_file = folder / "sizes"
        known = np.fromfile(self._sizes_file, dtype=np.int64) if self._sizes_file.is_file() else np.empty(0, np.int64)
        if len(known) < count:
            raise EOFError(f"{folder} has lost chunks")
        self.sizes: list[int] = known[:count].tolist()
        self._known = count
        self._file: BinaryIO | None = None
        self._segment, self._filled = self._place()
        if count and not all(
            path.is_file() and path.stat().st_size >= size
            for path, size in zip(self._paths(), self._ends(), strict=True)
        ):
            raise EOFError(f"{folder} has lost bytes")

    @property
    def count(self) -> int:
        return len(self.sizes)

    def _ends(self) -> list[int]:
        """Bytes of each segment."""
        ends, filled = [], 0
        for size in self.sizes:
            if filled >= _SEGMENT_BYTES:
                ends.append(filled)
                filled = 0
            filled += size
        return [*ends, filled] if self.sizes else []

    def _paths(self) -> list[Path]:
        return [self.folder / f"{i:05d}" for i in range(len(self._ends()))]

    def _place(self) -> tuple[int, int]:
        ends = self._ends()
        return (len(ends) - 1, ends[-1]) if ends else (0, 0)

    def append(self, packed: bytes) -> None:
        if self._filled >= _SEGMENT_BYTES:
            self.flush()
            self._close()
            self._segment, self._filled = self._segment + 1, 0
        if self._file is None:
            path = self.folder / f"{self._segment:05d}"
            path.touch()
            self._file = path.open("r+b")
            self._file.seek(self._filled)
            self._file.truncate()
        self._file.write(packed)
        self._filled += len(packed)
        self.sizes.append(len(packed))

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        with self._sizes_file.open("r+b" if self._sizes_file.exists() else "wb") as out:
            out.seek(self._known * 8)
            out.truncate()
            np.array(self.sizes[self._known :], dtype=np.int64).tofile(out)
        self._known = len(self.sizes)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, *, release: bool = False) -> Iterator[bytes]:
        """All chunks in order; `release`: a file goes as soon as it has been read."""
        if self._file is not None:
            self._file.flush()
        ends, sizes = self._ends(), iter(self.sizes)
        for path, end in zip(self._paths(), ends, strict=True):
            done = 0
            with path.open("rb") as file:
                while done < end:
                    size = next(sizes)
                    yield file.read(size)
                    done += size
            if release:
                path.unlink()


class _Array:
    """A flat array that grows by chunks of a fixed number of values; the rest waits in memory."""

    def __init__(
        self, stage: Path, name: str, format: Format, dtype: np.dtype[Any], chunk: int, count: int = 0
    ) -> None:
        self.stage = stage
        self.name = name
        self.format = format
        self.chunk = chunk
        self._use(dtype, count)
        self.tail = np.empty(0, dtype=dtype)

    def _use(self, dtype: np.dtype[Any], count: int) -> None:
        self.dtype = dtype
        self.codec = _Codec(self.format, dtype)
        # One folder per type: a conversion that is cut short leaves the old one as it was.
        self.folder = self.stage / f"{self.name}.{dtype.name}"
        self.pile: _FilePerChunk | _Segments = (_FilePerChunk if self.format == "zarr" else _Segments)(
            self.folder, count
        )

    def push(self, values: npt.NDArray[Any], pool: ThreadPoolExecutor) -> None:
        values = values.astype(self.dtype, copy=False)
        if len(self.tail) + len(values) < self.chunk:
            self.tail = np.concatenate([self.tail, values])
            return
        head = self.chunk - len(self.tail)
        first = np.concatenate([self.tail, values[:head]])
        n = 1 + (len(values) - head) // self.chunk
        edges = range(head, head + (n - 1) * self.chunk, self.chunk)
        pieces = itertools.chain([first], (values[a : a + self.chunk] for a in edges))
        # A copy: a view would keep the whole block alive.
        self.tail = values[head + (n - 1) * self.chunk :].copy()
        for packed in pool.map(self.codec.encode, pieces):
            self.pile.append(packed)

    def convert(self, dtype: np.dtype[Any]) -> Path:
        """Take up another type; gives the folder of the old one, which is no longer wanted."""
        old, codec, pile = self.folder, self.codec, self.pile
        shutil.rmtree(self.stage / f"{self.name}.{dtype.name}", ignore_errors=True)
        self._use(dtype, 0)
        for packed in pile.read():
            self.pile.append(self.codec.encode(codec.decode(packed).astype(dtype)))
        self.tail = self.tail.astype(dtype)
        return old

    def pad(self) -> None:
        """Write what waits, filled up with zeros to a chunk."""
        if len(self.tail):
            whole = np.zeros(self.chunk, dtype=self.dtype)
            whole[: len(self.tail)] = self.tail
            self.pile.append(self.codec.encode(whole))
            self.tail = self.tail[:0]


class ScreenWriter:
    """Writes the matrix of an AnnData file row by row; made by `open_writer`, used as a context manager.

    Everything is gathered in a hidden folder beside the file, which appears under its name when the block ends, or not
    at all. With `resume`, that folder outlives a crash, and the next writer of the same `key` goes on at `rows`.

    Attributes
    ----------
    path
        The file (or folder) that is written.
    genes
        (g,) names of the columns.
    rows
        Rows written so far; not 0 at the start where an earlier attempt is gone on with.
    nnz
        Values stored so far (CSR: the non-zero ones).
    state
        Plain data that is kept with the rows: what the caller needs to go on.
    resumed, discarded
        Rows that an earlier attempt had written; whether there was one of another `key`, which is gone.
    obs, var, uns, obsm
        Written at the end; may be set at any time before.
    """

    def __init__(
        self,
        path: Path,
        stage: Path,
        *,
        genes: list[str],
        format: Format,
        layout: Layout,
        dtype: np.dtype[Any] | None,
        obs: pd.DataFrame | None,
        var: pd.DataFrame | None,
        uns: Mapping[str, Any] | None,
        obsm: Mapping[str, Any] | None,
        key: str,
        resume: bool,
        every: float,
        threads: int,
    ) -> None:
        self.path = path
        self.genes = genes
        self.format: Format = format
        self.layout: Layout = layout
        self.obs = obs
        self.var = var
        self.uns: dict[str, Any] = dict(uns or {})
        self.obsm: dict[str, Any] = dict(obsm or {})
        self.rows = 0
        self.nnz = 0
        self.state: dict[str, Any] = {}
        self.discarded = False
        self._stage = stage
        self._key = key
        self._resume = resume
        self._every = every
        self._fixed = dtype is not None
        self._highest = 0.0
        self._lengths: list[Ints] = []
        self._records: dict[str, list[Any]] = {}
        self._done = False
        # Whether rows are written in part: then only the latest checkpoint is sound.
        self._torn = False
        self._kept_lengths = 0
        self._step = 0
        self._stale: list[Path] = []
        g = len(genes)
        values = _CHUNK[format]
        self._chunk_rows = max(1, values // max(1, g))
        chunk = values if layout == "csr" else self._chunk_rows * max(1, g)
        known = self._read_journal()
        dtype = np.dtype(known["dtype"]) if known else (dtype or _LADDER[0])
        counts = known["chunks"] if known else {}
        try:
            self._data = _Array(stage, "data", format, dtype, chunk, counts.get("data", 0))
            self._indices = _Array(stage, "indices", format, np.dtype(np.int32), chunk, counts.get("indices", 0))
            if known:
                self._take_up(known)
        except (EOFError, OSError, KeyError, ValueError):
            if not known:
                raise
            # The remains of the earlier attempt are no longer whole.
            self._clear()
            self.discarded = True
            self._data = _Array(stage, "data", format, _LADDER[0] if not self._fixed else dtype, chunk)
            self._indices = _Array(stage, "indices", format, np.dtype(np.int32), chunk)
        self.resumed = self.rows
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pack")
        self._last = time.monotonic()

    # Going on after a crash

    def _read_journal(self) -> dict[str, Any] | None:
        path = self._stage / _JOURNAL
        if not self._resume or not path.is_file():
            return None
        with contextlib.suppress(OSError, ValueError):
            known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if known["key"] == self._key:
                return known
        self._clear()
        self.discarded = True
        return None

    def _clear(self) -> None:
        for item in self._stage.iterdir():
            if item.is_dir():
                shutil.rmtree(item)
            elif item.name != "lock":
                item.unlink()

    def _take_up(self, known: dict[str, Any]) -> None:
        rows = int(known["rows"])
        with np.load(self._stage / known["tail"], allow_pickle=False) as tail:
            data, indices = tail["data"], tail["indices"]
        lengths = np.fromfile(self._stage / "lengths", dtype=np.int64, count=rows) if rows else np.empty(0, np.int64)
        records = {name: self._read_record(name, dtype, rows) for name, dtype in known["records"].items()}
        if len(lengths) != rows or any(len(values) != rows for values in records.values()):
            raise EOFError("rows are missing")
        self._data.tail, self._indices.tail = data, indices
        self._lengths = [lengths]
        self._records = {name: [values] for name, values in records.items()}
        self.rows, self._kept_lengths = rows, rows
        self.nnz, self._highest = int(known["nnz"]), float(known["highest"])
        self.state = known["state"]
        self._step = int(known["step"])

    def _read_record(self, name: str, dtype: str, rows: int) -> npt.NDArray[Any]:
        return np.fromfile(self._stage / f"record.{name}", dtype=np.dtype(dtype), count=rows)

    def checkpoint(self) -> None:
        """Note how far it is, so that another writer can go on from here; costs a write of what waits in memory."""
        self._step += 1
        for array in (self._data, self._indices):
            array.pile.flush()
        self._append_rows("lengths", self._lengths)
        for name, values in self._records.items():
            self._append_rows(f"record.{name}", values)
        self._kept_lengths = self.rows
        tail = f"tail{self._step}.npz"
        np.savez(self._stage / tail, data=self._data.tail, indices=self._indices.tail)
        note = {
            "key": self._key,
            "rows": self.rows,
            "nnz": self.nnz,
            "highest": self._highest,
            "dtype": self._data.dtype.name,
            "chunks": {"data": self._data.pile.count, "indices": self._indices.pile.count},
            "records": {name: values[0].dtype.str for name, values in self._records.items()},
            "state": self.state,
            "step": self._step,
            "tail": tail,
        }
        part = self._stage / f"{_JOURNAL}.new"
        part.write_text(json.dumps(note), encoding="utf-8")
        part.replace(self._stage / _JOURNAL)
        for old in self._stage.glob("tail*.npz"):
            if old.name != tail:
                old.unlink()
        for folder in self._stale:
            shutil.rmtree(folder, ignore_errors=True)
        self._stale.clear()
        self._last = time.monotonic()

    def _append_rows(self, name: str, values: list[Any]) -> None:
        path = self._stage / name
        whole = np.concatenate(values) if values else np.empty(0, dtype=np.int64)
        values[:] = [whole] if values else []
        with path.open("r+b" if path.exists() else "wb") as out:
            out.seek(self._kept_lengths * whole.dtype.itemsize)
            out.truncate()
            whole[self._kept_lengths :].tofile(out)

    # Writing

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored values so far."""
        return self._data.dtype

    @property
    def lengths(self) -> Ints:
        """(rows,) int64, stored values of each row (CSR)."""
        self._lengths = [np.concatenate(self._lengths) if self._lengths else np.empty(0, dtype=np.int64)]
        return self._lengths[0]

    def record(self, name: str) -> npt.NDArray[Any]:
        """What `append` was given under a name, for all rows: (rows,)."""
        return np.concatenate(self._records[name]) if name in self._records else np.empty(0, dtype=np.int64)

    def append(self, block: Any, *, state: Mapping[str, Any] | None = None, **records: npt.NDArray[Any]) -> None:
        """Add rows.

        Parameters
        ----------
        block
            Sparse matrix or array (m, g) of numbers; zeros that a sparse matrix stores are dropped.
        state
            Replaces `state` together with these rows: after a crash both are there or neither.
        records
            (m,) numbers each, the same names in every call; kept with the rows, for `record`.

        Raises
        ------
        InputError
            The block has another number of columns, or the disk is full.
        """
        m, g = block.shape
        if g != len(self.genes):
            raise InputError(f"{self.path}: a block has {g:,} genes, the file {len(self.genes):,}")
        self._torn = True
        with self._writing():
            if self.layout == "csr":
                rows = sp.csr_matrix(block) if not isinstance(block, sp.csr_matrix) else block
                if not rows.has_canonical_format:
                    rows = rows.copy()
                    rows.sum_duplicates()
                if rows.nnz and np.count_nonzero(rows.data) < rows.nnz:
                    rows = rows.copy()
                    rows.eliminate_zeros()
                values, lengths = rows.data, np.diff(rows.indptr).astype(np.int64)
                self._fit(values)
                self._data.push(values, self._pool)
                self._indices.push(rows.indices, self._pool)
                self.nnz += len(values)
            else:
                dense = np.ascontiguousarray(block.toarray() if sp.issparse(block) else np.asarray(block))
                self._fit(dense)
                self._data.push(dense.reshape(-1), self._pool)
                self.nnz += dense.size
                lengths = np.full(m, g, dtype=np.int64)
            self._lengths.append(lengths)
            for name, given in records.items():
                self._records.setdefault(name, []).append(np.asarray(given))
            self.rows += m
            if state is not None:
                self.state = dict(state)
            self._torn = False
            if self._resume and time.monotonic() - self._last >= self._every:
                self.checkpoint()

    def _fit(self, values: npt.NDArray[Any]) -> None:
        """Take up a larger type where these values need one."""
        if self._fixed or not values.size:
            return
        wanted = smallest_type(values)
        if wanted.kind == "u":
            self._highest = max(self._highest, float(values.max()))
        if _LADDER.index(wanted) <= _LADDER.index(self.dtype):
            if wanted.kind == "u" and self.dtype == np.float32 and self._highest > _EXACT_IN_FLOAT32:
                self._stale.append(self._data.convert(_LADDER[4]))
            return
        if wanted == np.float32 and self._highest > _EXACT_IN_FLOAT32:
            wanted = _LADDER[4]
        self._stale.append(self._data.convert(wanted))
        if not self._resume:
            shutil.rmtree(self._stale.pop())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as why:
            full = why.errno in (errno.ENOSPC, errno.EDQUOT)
            kept = " (what is written stays, and the same command goes on from there)" if self._resume else ""
            raise InputError(
                f"cannot write {self.path} after {self.rows:,} rows: {why.strerror or why}",
                remedy=("make room on the disk" if full else "name another place") + kept,
            ) from why

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._done:
                self.finish()
            elif kind is not None and self._resume and self.rows > self.resumed and not self._torn:
                # Ctrl-C or bad input: what is written need not be done again.
                with contextlib.suppress(OSError, InputError):
                    self.checkpoint()
        finally:
            self._pool.shutdown()
            if not self._resume and self._stage.exists():
                shutil.rmtree(self._stage, ignore_errors=True)
            _unlock(self._stage)

    def finish(self) -> Path:
        """Put the file together under its name; gives its path.

        Raises
        ------
        InputError
            `obs` has another number of rows, something in obs, var or uns cannot be stored, or the disk is full.
        """
        n, g = self.rows, len(self.genes)
        obs = self.obs if self.obs is not None else pd.DataFrame(index=[str(i) for i in range(n)])
        var = self.var if self.var is not None else pd.DataFrame(index=pd.Index(self.genes))
        if len(obs) != n or len(var) != g:
            raise InputError(f"{self.path}: {n:,} x {g:,} values for {len(obs):,} samples and {len(var):,} genes")
        with self._writing():
            if self._resume:
                self.checkpoint()
            self._data.pad()
            self._indices.pad()
            put = self._finish_zarr if self.format == "zarr" else self._finish_hdf5
            part = put(obs, var)
            _remove(self.path)
            part.replace(self.path)
            self._done = True
            _unlock(self._stage)
            shutil.rmtree(self._stage, ignore_errors=True)
        return self.path

    def _pointers(self) -> Ints:
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    def _tables(self, root: Any, obs: pd.DataFrame, var: pd.DataFrame) -> None:
        """Everything but X, through anndata."""
        from anndata.io import write_elem

        uns = {**self.uns, "txeval": {"version": __version__, **self.uns.get("txeval", {})}}
        root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        with warnings.catch_warnings():
            # Zarr warns of text arrays, whose v3 specification is not final; anndata reads them.
            warnings.simplefilter("ignore")
            for name, value in (("obs", _storable(obs)), ("var", _storable(var)), ("uns", uns), ("obsm", self.obsm)):
                try:
                    write_elem(root, name, value)
                except OSError:
                    raise
                except Exception as why:
                    reason = str(why).splitlines()[0] if str(why) else type(why).__name__
                    raise InputError(f"{self.path}: cannot store {name} ({reason})") from why
            for name in ("layers", "obsp", "varm", "varp"):
                write_elem(root, name, {})

    def _finish_hdf5(self, obs: pd.DataFrame, var: pd.DataFrame) -> Path:
        part = self._stage / "file.h5ad"
        n, g = self.rows, len(self.genes)
        release = not self._resume
        with h5py.File(part, "w") as file:
            self._tables(file, obs, var)
            if self.layout == "dense":
                chunk = (self._chunk_rows, g)
                made = _dataset(file, "X", self._data, (n, g), chunk if n and g else None, release)
                made.attrs.update(_ARRAY)
                return part
            group = file.create_group("X")
            group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
            group.attrs["shape"] = np.array([n, g], dtype=np.int64)
            for name, array in (("data", self._data), ("indices", self._indices)):
                _dataset(group, name, array, (self.nnz,), (array.chunk,) if self.nnz else None, release)
            pointers = self._pointers()
            group.create_dataset("indptr", data=pointers, compression="gzip", compression_opts=1, shuffle=True)
            for name in ("data", "indices", "indptr"):
                group[name].attrs.update(_ARRAY)
        return part

    def _finish_zarr(self, obs: pd.DataFrame, var: pd.DataFrame) -> Path:
        import zarr

        part = self._stage / "store.zarr"
        shutil.rmtree(part, ignore_errors=True)
        n, g = self.rows, len(self.genes)
        root = zarr.open_group(str(part), mode="w", zarr_format=3)
        self._tables(root, obs, var)
        if self.layout == "dense":
            _zarr_array(root, "X", self._data, (n, g), (self._chunk_rows, g)).attrs.update(_ARRAY)
            # Chunks of a 2-d array are named ROW/COLUMN, and there is one column of them.
            for i in range(self._data.pile.count):
                (part / "X" / "c" / str(i)).mkdir(parents=True)
                _link(self._data.folder / str(i), part / "X" / "c" / str(i) / "0")
            return part
        group = root.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n, g]})
        for name, array in (("data", self._data), ("indices", self._indices)):
            _zarr_array(group, name, array, (self.nnz,), (array.chunk,))
            (part / "X" / name / "c").mkdir(parents=True, exist_ok=True)
            for i in range(array.pile.count):
                _link(array.folder / str(i), part / "X" / name / "c" / str(i))
        pointers = self._pointers()
        group.create_array("indptr", data=pointers, chunks=(min(len(pointers), _CHUNK["zarr"]),))
        for name in ("data", "indices", "indptr"):
            group[name].attrs.update(_ARRAY)
        return part


_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}


def _dataset(group: Any, name: str, array: _Array, shape: tuple[int, ...], chunk: Any, release: bool) -> Any:
    """An HDF5 dataset of packed chunks, which are copied as they are."""
    if chunk is None:
        return group.create_dataset(name, shape, dtype=array.dtype)
    made = group.create_dataset(
        name,
        shape,
        dtype=array.codec.dtype,
        chunks=chunk,
        maxshape=(None, *shape[1:]),
        shuffle=array.dtype.itemsize > 1,
        compression="gzip",
        compression_opts=_GZIP_LEVEL,
    )
    for i, packed in enumerate(array.pile.read(release=release)):
        made.id.write_direct_chunk((i * chunk[0], *[0] * (len(shape) - 1)), packed)
    return made


def _zarr_array(group: Any, name: str, array: _Array, shape: tuple[int, ...], chunk: tuple[int, ...]) -> Any:
    from zarr.codecs import BloscCodec, BloscShuffle

    size = array.dtype.itemsize
    packer = BloscCodec(
        typesize=size,
        cname="zstd",
        clevel=_ZSTD_LEVEL,
        shuffle=BloscShuffle.shuffle if size > 1 else BloscShuffle.noshuffle,
    )
    return group.create_array(
        name, shape=shape, dtype=array.dtype, chunks=tuple(max(1, c) for c in chunk), compressors=packer, fill_value=0
    )


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, so that the first attempt to put a store together does not use it up."""
    try:
        os.link(source, target)
    except OSError as why:
        if why.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        shutil.copyfile(source, target)  # a file system without hard links


def _storable(frame: pd.DataFrame) -> pd.DataFrame:
    """A table with text columns that repeat themselves as categories, as anndata stores them."""
    made = frame.copy(deep=False)
    for name in made.columns:
        column = made[name]
        if column.dtype == object and pd.api.types.infer_dtype(column, skipna=True) in ("string", "empty"):
            if column.isna().any() or column.nunique() < len(column):
                made[name] = pd.Categorical(column)
        elif column.dtype == object:
            made[name] = pd.Categorical(column.map(lambda value: value if value is None else str(value)))
        elif isinstance(column.dtype, pd.StringDtype):
            made[name] = pd.Categorical(column.astype(object))
    made.index = pd.Index(made.index.astype(str), dtype=object, name=frame.index.name)
    made.columns = [str(name) for name in made.columns]
    return made


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


_locks: dict[Path, Any] = {}


def _lock(stage: Path, path: Path) -> None:
    """Keep other processes from writing the same file."""
    try:
        import fcntl
    except ImportError:  # no such locks here
        return
    handle = (stage / "lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise InputError(f"{path} is being written by another process", remedy="wait for it, or stop it") from None
    _locks[stage] = handle


def _unlock(stage: Path) -> None:
    handle = _locks.pop(stage, None)
    if handle is not None:
        handle.close()


def open_writer(
    path: Path | str,
    *,
    genes: Any,
    obs: pd.DataFrame | None = None,
    var: pd.DataFrame | None = None,
    uns: Mapping[str, Any] | None = None,
    obsm: Mapping[str, Any] | None = None,
    format: Format | None = None,
    layout: Layout = "csr",
    dtype: npt.DTypeLike | None = None,
    resume: bool = False,
    key: str = "",
    checkpoint_seconds: float = 10.0,
    threads: int | None = None,
) -> ScreenWriter:
    """Begin an AnnData file that is written row by row.

    Values are packed (HDF5: shuffle and gzip; Zarr v3: zstd) and never held: memory does not grow with the number of
    rows but for a few bytes each.

    Parameters
    ----------
    path
        .h5ad file or .zarr folder; an existing one stays until it is replaced.
    genes
        (g,) names of the columns.
    obs, var, uns, obsm
        As in AnnData; may be set on the writer later. `uns["txeval"]["version"]` is added.
    format
        None: as the suffix says.
    dtype
        Type to store the values in; None: the smallest that holds them (see `smallest_type`), which grows as needed.
    resume
        Keep what is written when the process dies, and go on with it.
    key
        Says what is written; the remains of another key are not gone on with.
    checkpoint_seconds
        With `resume`: time between two notes of how far it is.
    threads
        Threads that pack; None: up to 4, no more than the cores.

    Raises
    ------
    InputError
        The place cannot be written to, another process is writing it, or a name is unknown.

    Examples
    --------
    >>> import tempfile, numpy as np, anndata
    >>> out = tempfile.mkdtemp() + "/small.h5ad"
    >>> with open_writer(out, genes=["A", "B"]) as writer:
    ...     writer.append(np.array([[0, 300], [1, 0]]))
    >>> anndata.read_h5ad(out).X.dtype
    dtype('uint16')
    """
    path = Path(path).expanduser()
    chosen: Format = format if format is not None else format_of(path)
    if chosen not in FORMATS:
        raise unknown("format", chosen, FORMATS)
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    if chosen == "zarr":
        _require_zarr3()
    check_destination(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume:
            stage = path.with_name(f".{path.name}.partial")
            stage.mkdir(exist_ok=True)
        else:
            stage = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    except OSError as why:
        raise InputError(f"cannot write {path}: {why.strerror or why}", remedy="name another folder") from why
    _lock(stage, path)
    return ScreenWriter(
        path,
        stage,
        genes=[str(name) for name in genes],
        format=chosen,
        layout=layout,
        dtype=None if dtype is None else np.dtype(dtype),
        obs=obs,
        var=var,
        uns=uns,
        obsm=obsm,
        key=key,
        resume=resume,
        every=checkpoint_seconds,
        threads=threads or min(4, usable_cores()),
    )


def _require_zarr3() -> None:
    import zarr

    if int(zarr.__version__.split(".")[0]) < 3:
        raise InputError(
            f"zarr {zarr.__version__} cannot write Zarr v3", remedy="pip install 'zarr>=3', or write .h5ad"
        )
