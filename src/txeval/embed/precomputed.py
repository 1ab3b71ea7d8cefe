"""Embeddings that exist already: in the screen's file, in another AnnData file, or as an array or table."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from txeval.compute.arrays import F32, Bools, Ints, Strings, row_blocks
from txeval.data.matrix import open_store
from txeval.data.text_table import check_headings, identifier_text, names_column, open_table
from txeval.embed.base import EmbedderInfo, Embedding, EmbeddingContext
from txeval.embed.rows import NpyRows, write_npy
from txeval.embed.spec import SUFFIXES
from txeval.errors import InputError, nearest, unknown

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = ["Precomputed"]

Array = npt.NDArray[Any]

_NUMERIC = "use a table of numbers (float16, float32 or float64)"
_DAMAGED = "the file may be cut short: copy or make it again"


@dataclass
class _Opened:
    """An embedding where it lies.

    Attributes
    ----------
    n, d
        Its shape.
    blocks
        Gives (first row, rows) in the order of the file, each time from the start.
    names
        (n,) sample names that come with it, or None.
    own
        Whether its rows are the kept samples of the screen.
    mapped
        The .npy file, where its rows can be used in place.
    columns
        (d,) names for messages.
    """

    n: int
    d: int
    dtype: str
    blocks: Callable[[], Iterator[tuple[int, Array]]]
    names: Strings | None = None
    own: bool = False
    mapped: Path | None = None
    columns: Strings | None = None
    names_from: str = ""
    close: Callable[[], None] = field(default=lambda: None)


@dataclass
class _Aligned:
    """Which row of the embedding belongs to each kept sample, and how that was found."""

    index: Ints
    how: str
    notes: dict[str, Any]


class Precomputed:
    """An embedding that exists already.

    Parameters
    ----------
    source
        `obsm:KEY`, `X`, `layer:NAME`; `FILE.npy`, `.npz`, `.parquet`, `.csv`, `.tsv`;
        `FILE.h5ad#obsm/KEY` (or `#X`, `#layers/NAME`), likewise of a `.zarr` folder.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.info = EmbedderInfo(
            name=source,
            summary="A precomputed embedding.",
            options={
                "key": ("", ".npz: which array"),
                "names": ("", "where sample names are: a column, an array of the .npz, or a file beside the .npy"),
                "positional": (False, "allow rows to be matched by position where there are no names to match"),
                "nan": (None, "number to put in the place of NaN"),
            },
        )

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Digest of the values of the kept samples, as float32, in the order of the screen; reads them all."""
        # Rows are digested one by one, so that the file is read in its own order.
        rows = np.zeros((screen.n, 16), dtype=np.uint8)
        with ExitStack() as stack:
            opened, aligned = self._open(screen, options, stack)
            for positions, block in _checked(self.source, opened, aligned, screen, options, _Found(opened.d)):
                digests = b"".join(hashlib.blake2b(row, digest_size=16).digest() for row in block)
                rows[positions] = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 16)
            shape = (screen.n, opened.d)
        return {"shape": shape, "content": hashlib.sha256(rows.tobytes()).hexdigest()}

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Align and check; an .npy file of floating numbers is used in place, anything else copied by blocks."""
        with ExitStack() as stack:
            opened, aligned = self._open(screen, options, stack)
            found = _Found(opened.d)
            blocks = _checked(self.source, opened, aligned, screen, options, found)
            values: NpyRows | None = None
            if opened.mapped is not None:
                done = 0
                for positions, _ in blocks:
                    done += len(positions)
                    context.progress(done, screen.n, f"reading {self.source}")
                if not found.n_filled:
                    in_order = len(aligned.index) == opened.n and bool(
                        (aligned.index == np.arange(len(aligned.index))).all()
                    )
                    values = NpyRows(opened.mapped, None if in_order else aligned.index)
            if values is None:
                found = _Found(opened.d)
                blocks = _checked(self.source, opened, aligned, screen, options, found)
                path = context.folder / "precomputed.npy"
                done = 0
                with write_npy(path, (screen.n, opened.d)) as out:
                    for positions, block in blocks:
                        out[positions] = block
                        done += len(positions)
                        context.progress(done, screen.n, f"reading {self.source}")
                values = NpyRows(path)
        provenance: dict[str, Any] = {
            "method": "precomputed",
            "stored_as": opened.dtype,
            "aligned": aligned.how,
            **aligned.notes,
            "in_place": opened.mapped == values.path,
        }
        if found.n_filled:
            provenance["filled"] = {"value": options["nan"], "values": found.n_filled, "samples": found.n_filled_rows}
        warnings = found.warnings()
        if warnings:
            provenance["warnings"] = warnings
        return Embedding(values, provenance)

    def _open(self, screen: Screen, options: Mapping[str, Any], stack: ExitStack) -> tuple[_Opened, _Aligned]:
        fill = options["nan"]
        if fill is not None and (isinstance(fill, (bool, str)) or not np.isfinite(np.float32(fill))):
            raise InputError(f"{self.source}: option nan is {fill!r}", remedy="give a number, such as nan=0")
        opened = _open_source(self.source, screen, options)
        stack.callback(opened.close)
        if opened.d < 1:
            raise InputError(f"{self.source}: the embedding has no columns", remedy="give at least one dimension")
        return opened, _align(self.source, opened, screen, positional=options["positional"])


class _Found:
    """What was seen while the values were read."""

    def __init__(self, d: int) -> None:
        self.low = np.full(d, np.inf)
        self.high = np.full(d, -np.inf)
        self.n_filled = 0
        self.n_filled_rows = 0

    def warnings(self) -> list[str]:
        constant = int((self.low == self.high).sum())
        if constant == len(self.low):
            return ["the embedding is constant: every sample has the same values"]
        return [f"{constant} of {len(self.low)} columns are constant"] if constant else []


def _checked(
    source: str,
    opened: _Opened,
    aligned: _Aligned,
    screen: Screen,
    options: Mapping[str, Any],
    found: _Found,
) -> Iterator[tuple[Ints, F32]]:
    """Kept rows as finite float32 with their positions among the kept samples, in the order of the file."""
    position = np.full(opened.n, -1, dtype=np.int64)
    position[aligned.index] = np.arange(len(aligned.index))
    fill = options["nan"]
    n_read = 0
    for start, rows in opened.blocks():
        n_read += len(rows)
        if rows.dtype.kind not in "fiub":
            raise InputError(f"{source}: the embedding holds values of type {rows.dtype}", remedy=_NUMERIC)
        place = position[start : start + len(rows)]
        wanted = place >= 0
        if not wanted.all():
            rows, place = rows[wanted], place[wanted]
        if not len(rows):
            continue
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(rows, dtype=np.float32)
        bad = ~np.isfinite(block)
        if bad.any():
            block = _fill(source, opened, screen, np.asarray(rows), block, bad, place, fill, found)
        np.minimum(found.low, block.min(axis=0), out=found.low)
        np.maximum(found.high, block.max(axis=0), out=found.high)
        yield place, block
    if n_read != opened.n:
        raise InputError(f"{source}: {n_read:,} of {opened.n:,} rows could be read", remedy=_DAMAGED)


def _fill(
    source: str,
    opened: _Opened,
    screen: Screen,
    rows: Array,
    block: F32,
    bad: Bools,
    place: Ints,
    fill: float | None,
    found: _Found,
) -> F32:
    """Fill NaN where that was asked for; InputError with the first value that cannot be used otherwise."""
    nan = np.isnan(block)
    refused = bad if fill is None else bad & ~nan
    if refused.any():
        row, column = (int(i) for i in np.argwhere(refused)[0])
        value = rows[row, column]
        title = f" ({opened.columns[column]})" if opened.columns is not None else ""
        why = "too large for float32" if np.isfinite(value) else "not finite"
        raise InputError(
            f"{source}: sample {screen.sample_names[place[row]]!r}, column {column}{title} is {value}: {why}",
            remedy="option nan=0 puts 0 in the place of NaN" if nan.any() else "repair the embedding",
        )
    if np.shares_memory(block, rows) or not block.flags.writeable:
        block = block.copy()
    block[nan] = np.float32(fill)
    found.n_filled += int(nan.sum())
    found.n_filled_rows += int(nan.any(axis=1).sum())
    return block


def _align(source: str, opened: _Opened, screen: Screen, *, positional: bool) -> _Aligned:
    """Row of the embedding for each kept sample: by name where both have names, else by position if allowed."""
    if opened.own:
        return _Aligned(np.arange(screen.n), "same file", {})
    names = opened.names
    notes: dict[str, Any] = {"rows_in_source": opened.n}
    reason = "the embedding carries no sample names"
    if names is not None:
        if len(names) != opened.n:
            raise InputError(
                f"{source}: {len(names):,} names ({opened.names_from}) for {opened.n:,} rows",
                remedy="give one name for each row",
            )
        lookup = pd.Index(names)
        if not lookup.is_unique:
            twice = lookup[lookup.duplicated()].unique()
            raise InputError(
                f"{source}: {len(twice):,} sample names occur more than once, such as {_some(twice)}",
                remedy="make the names unique, or leave them out and use positional=true",
            )
        reason = f"sample names of {screen.path} are not unique"
        if screen.has_unique_names:
            index = lookup.get_indexer(pd.Index(screen.sample_names)).astype(np.int64)
            missing = np.flatnonzero(index < 0)
            if not len(missing):
                notes |= {
                    "names_from": opened.names_from,
                    "rows_left_out": opened.n - screen.n,
                    "reordered": bool((np.diff(index) < 0).any()),
                }
                return _Aligned(index, "by name", notes)
            # Names that disagree with the screen are no leave to go by position; the numbers of rows are no names.
            numbered = any((names == np.arange(first, first + opened.n).astype(str)).all() for first in (0, 1))
            if len(missing) < screen.n or not numbered:
                raise InputError(
                    f"{source}: {len(missing):,} of {screen.n:,} samples have no row in the embedding, such as"
                    f" {_some(screen.sample_names[missing])} (its names, {opened.names_from}: {_some(names)}, ...)",
                    remedy="use the same names in both, or embed these samples"
                    + ("; to match rows by position, take its names out" if len(missing) == screen.n else ""),
                )
            reason = f"the names in the embedding ({opened.names_from}) are the numbers of its rows"
    if opened.n != screen.n_file:
        kept = f" ({screen.n:,} of them kept by quality control)" if screen.n != screen.n_file else ""
        raise InputError(
            f"{source}: {opened.n:,} rows for the {screen.n_file:,} samples of {screen.path}{kept}, and {reason}",
            remedy="give a row for every sample of the file, or names to match rows by",
        )
    if not positional:
        raise InputError(
            f"{source}: {reason}, so that rows could only be matched by position",
            remedy="if the rows are in the order of the screen, say so: option positional=true (--positional)",
        )
    notes["rows_left_out"] = opened.n - screen.n
    return _Aligned(screen.kept, f"by position, as allowed ({reason})", notes)


def _some(names: Any) -> str:
    return ", ".join(repr(str(name)) for name in names[:3])


def _open_source(source: str, screen: Screen, options: Mapping[str, Any]) -> _Opened:
    if options["key"] and not source.lower().endswith(".npz"):
        raise InputError(f"{source}: option key is for .npz files", remedy="leave it out")
    prefix, colon, key = source.partition(":")
    if source == "X" or (colon and prefix in ("obsm", "layer")):
        if options["names"]:
            raise InputError(f"{source}: it has the names of the screen, so that option names has no use")
        if colon and not key:
            raise InputError(f"{source!r} names nothing", remedy=f"write {prefix}:NAME")
        return _open_own_obsm(screen, key) if prefix == "obsm" else _open_own_matrix(screen, source)
    if colon and "/" not in prefix and "." not in prefix and not Path(source).exists():
        raise unknown("kind of source", f"{prefix}:", ("obsm:", "layer:"), where=repr(source))
    file, hash_, element = source.partition("#")
    path = Path(file).expanduser()
    if not path.exists():
        folder = path.parent
        close = nearest(path.name, (p.name for p in folder.iterdir())) if folder.is_dir() else []
        raise InputError(
            f"embedding file {path} does not exist",
            remedy=f"did you mean {' or '.join(close)}?" if close else "check it",
        )
    lowered = path.name.lower()
    if lowered.endswith((".h5ad", ".zarr")):
        return _open_anndata(path, element, source)
    if hash_:
        raise InputError(f"{source}: only .h5ad and .zarr have parts after '#'", remedy=f"write {path}")
    if path.is_dir() or not lowered.endswith(SUFFIXES):
        raise InputError(
            f"{source}: embeddings are not read from this kind of file",
            remedy=f"use one of {', '.join(SUFFIXES)}, .h5ad",
        )
    if path.stat().st_size == 0:
        raise InputError(f"{source}: the file is empty (0 bytes)", remedy=_DAMAGED)
    if lowered.endswith(".npy"):
        return _open_npy(path, options)
    if lowered.endswith(".npz"):
        return _open_npz(path, options)
    if lowered.endswith(".parquet"):
        return _open_parquet(path, options, _known(screen))
    return _open_text(path, options, _known(screen))


def _known(screen: Screen) -> pd.Index[Any]:
    return pd.Index(screen.sample_names, dtype=object)


def _array_blocks(values: Any, shape: tuple[int, ...]) -> Callable[[], Iterator[tuple[int, Array]]]:
    def blocks() -> Iterator[tuple[int, Array]]:
        for part in row_blocks(shape[0], shape[1]):
            yield part.start, np.asarray(values[part])

    return blocks


def _two_dimensional(source: str, values: Any) -> tuple[int, int]:
    if values.dtype.kind not in "fiub":
        raise InputError(f"{source}: the embedding holds values of type {values.dtype}", remedy=_NUMERIC)
    if len(values.shape) != 2:
        shape = " x ".join(map(str, values.shape)) or "a single number"
        raise InputError(f"{source}: the embedding is {shape}, not samples x dimensions", remedy="give a matrix (n, d)")
    return int(values.shape[0]), int(values.shape[1])


def _open_own_obsm(screen: Screen, key: str) -> _Opened:
    n, d = screen.obsm_shape(key)

    def blocks() -> Iterator[tuple[int, Array]]:
        for part in row_blocks(n, d):
            yield part.start, screen.read_obsm(key, part)

    first = screen.read_obsm(key, slice(0, min(1, n)))
    return _Opened(n, d, str(first.dtype), blocks, own=True)


def _open_own_matrix(screen: Screen, source: str) -> _Opened:
    values = screen.matrix(source)
    n, d = _two_dimensional(source, values)
    return _Opened(n, d, str(values.dtype), _array_blocks(values, (n, d)), own=True)


def _open_anndata(path: Path, element: str, source: str) -> _Opened:
    store = open_store(path)
    try:
        room, _, key = element.partition("/")
        keys = store.keys(room) if room in ("obsm", "layers") else []
        known = [f"{name}/{k}" for name in ("obsm", "layers") for k in store.keys(name)]
        if not element:
            listed = ", ".join(known) or "X"
            raise InputError(f"{source}: which part of the file?", remedy=f"write {path}#PART, PART one of: {listed}")
        if element != "X" and key not in keys:
            raise unknown("matrix", element, [*known, "X"], where=str(path))
        names: Strings = store.names("obs")
        columns: Strings | None = None
        frame = store.table(element)
        if frame is not None:
            columns = np.array([str(column) for column in frame.columns])
            for column in frame.columns:
                if not pd.api.types.is_numeric_dtype(frame[column].dtype):
                    raise InputError(f"{source}: column {column!r} does not hold numbers", remedy="take it out")
            values = frame.to_numpy(dtype=np.float64)
            n, d = values.shape
            blocks, dtype = _array_blocks(values, (n, d)), "table"
        else:
            matrix = store.matrix(element)
            (n, d), dtype = matrix.shape, matrix.stored

            def blocks() -> Iterator[tuple[int, Array]]:
                for part in row_blocks(n, d):
                    rows = matrix.rows(np.arange(part.start, part.stop))
                    yield part.start, rows.toarray() if sparse.issparse(rows) else rows

        return _Opened(n, d, dtype, blocks, names, columns=columns, names_from="obs_names", close=store.close)
    except BaseException:
        store.close()
        raise


def _open_npy(path: Path, options: Mapping[str, Any]) -> _Opened:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as why:
        raise InputError(f"{path}: cannot be read as .npy ({why})", remedy=_DAMAGED) from None
    if not isinstance(values, np.ndarray):
        raise InputError(f"{path}: it is an .npz archive", remedy="name it .npz")
    n, d = _two_dimensional(str(path), values)
    usable = values.dtype.kind == "f" and values.dtype.itemsize <= 8 and values.dtype.isnative
    names, names_from = _names_beside(path, options["names"])
    return _Opened(
        n,
        d,
        str(values.dtype),
        _array_blocks(values, (n, d)),
        names,
        mapped=path if usable and values.flags.c_contiguous else None,
        names_from=names_from,
    )


def _names_beside(path: Path, given: str) -> tuple[Strings | None, str]:
    """Names in a file beside an .npy file: one a line, or the first column of a .csv."""
    if given:
        candidates = [Path(given).expanduser(), path.parent / given]
    else:
        stems = (str(path), str(path.with_suffix("")))
        candidates = [Path(f"{stem}.names{ending}") for stem in stems for ending in (".txt", ".csv")]
    for file in candidates:
        if file.is_file():
            break
    else:
        if given:
            raise InputError(f"{path}: there is no file {given} with its sample names", remedy="check option names")
        return None, ""
    try:
        if file.suffix == ".csv":
            found = pd.read_csv(file, header=None, dtype=str, usecols=[0], keep_default_na=False)[0].to_numpy()
        else:
            found = np.array(file.read_text(encoding="utf-8").splitlines(), dtype=object)
    except (ValueError, OSError) as why:
        raise InputError(f"{file}: cannot be read as sample names ({why})", remedy="write one name a line") from None
    n = int(np.load(path, mmap_mode="r", allow_pickle=False).shape[0])
    if len(found) == n + 1 and file.suffix == ".csv":
        found = found[1:]  # its header
    return np.asarray(found, dtype=object), file.name


def _open_npz(path: Path, options: Mapping[str, Any]) -> _Opened:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise InputError(f"{path}: it is a single .npy array", remedy="name it .npy")
            arrays = list(archive.files)
            names_key = options["names"] or next((k for k in ("names", "obs_names") if k in arrays), "")
            if options["names"] and names_key not in arrays:
                raise unknown("array", names_key, arrays, where=str(path))
            names = np.asarray(archive[names_key]).astype(str).astype(object) if names_key else None
            key = options["key"]
            if key and key not in arrays:
                raise unknown("array", key, arrays, where=str(path))
            if not key:
                matrices = [k for k in arrays if k != names_key]
                if len(matrices) != 1:
                    raise InputError(
                        f"{path}: it holds {len(matrices)} arrays: {', '.join(matrices) or 'none'}",
                        remedy=f"say which: {path}@key={matrices[0] if matrices else 'NAME'}",
                    )
                key = matrices[0]
            values = archive[key]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as why:
        raise InputError(f"{path}: cannot be read as .npz ({why})", remedy=_DAMAGED) from None
    n, d = _two_dimensional(f"{path}, array {key}", values)
    if names is not None and names.ndim != 1:
        raise InputError(f"{path}: array {names_key} has shape {names.shape}, not one name for each row")
    return _Opened(
        n, d, str(values.dtype), _array_blocks(values, (n, d)), names, names_from=f"array {names_key}" * bool(names_key)
    )


def _open_parquet(path: Path, options: Mapping[str, Any], known: pd.Index[Any]) -> _Opened:
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError) as why:
        raise InputError(f"{path}: cannot be read as Parquet ({why})", remedy=_DAMAGED) from None
    fields = list(schema.names)
    check_headings(fields, path)
    try:
        described: Mapping[str, Any] = schema.pandas_metadata or {}
    except ValueError:
        described = {}
    listed = described.get("index_columns", []) if isinstance(described, dict) else []
    index = [name for name in listed if isinstance(name, str) and name in fields]
    wanted = options["names"]
    if wanted and wanted not in fields:
        raise unknown("column", wanted, fields, where=str(path))
    if not wanted and len(index) > 1:
        raise InputError(
            f"{path}: its index has {len(index)} levels: {', '.join(index)}", remedy="choose one: names=COLUMN"
        )
    titled = wanted or (index[0] if index else "")
    if not titled:
        head = next(file.iter_batches(batch_size=1000), None)
        number = names_column(head.to_pandas(), fields, known, path) if head is not None else None
        titled = "" if number is None else fields[number]
    columns = [name for name in fields if name != titled and name not in index]
    for name in columns:
        kind = schema.field(name).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            raise InputError(
                f"{path}: column {name!r} holds {kind}, not numbers",
                remedy=f"if it holds the sample names: {path}@names={name}; else take it out",
            )

    def read(chosen: list[str]) -> Iterator[Any]:
        try:
            yield from file.iter_batches(batch_size=_table_rows(len(chosen)), columns=chosen)
        except (pa.ArrowException, OSError) as why:
            raise InputError(f"{path}: cannot be read as Parquet ({why})", remedy=_DAMAGED) from None

    def blocks() -> Iterator[tuple[int, Array]]:
        start = 0
        for batch in read(columns):
            # A missing value of an integer column comes as NaN too.
            parts = [batch.column(i).to_numpy(zero_copy_only=False) for i in range(len(columns))]
            yield start, np.stack(parts, axis=1)
            start += batch.num_rows

    names: Strings | None = None
    if titled:
        parts = [batch.column(0).to_pandas() for batch in read([titled])]
        names = _as_names(pd.concat(parts) if parts else pd.Series([], dtype=str), f"{path}: column {titled}")
    n = int(file.metadata.num_rows)
    title = "index" if titled in index else f"column {titled}"
    return _Opened(
        n, len(columns), "table", blocks, names, columns=np.array(columns), names_from=title, close=file.close
    )


def _table_rows(width: int) -> int:
    return max(1, 4_000_000 // max(1, width))


def _as_names(values: pd.Series[Any], where: str) -> Strings:
    if bool(values.isna().any()):
        raise InputError(f"{where} lacks {int(values.isna().sum())} sample names", remedy="name every row")
    return np.array([identifier_text(value) for value in values], dtype=object)


def _open_text(path: Path, options: Mapping[str, Any], known: pd.Index[Any]) -> _Opened:
    table = open_table(path)
    fields, wanted = list(table.fields), options["names"]
    if wanted and wanted not in fields:
        raise unknown("column", wanted, fields, where=str(path))
    number = fields.index(wanted) if wanted else names_column(table.head(), fields, known, path)
    columns = [i for i in range(len(fields)) if i != number]
    names: Strings | None = None
    if number is not None:
        named = pd.Series(table.column(number)).map(lambda name: name or None)
        names = _as_names(named, f"{path}: column {fields[number]}")

    def blocks() -> Iterator[tuple[int, Array]]:
        start = 0
        for block in table.numbers(columns, _table_rows(len(fields))):
            yield start, block
            start += len(block)

    title = "" if number is None else f"column {fields[number]}" if fields[number] else "row names"
    return _Opened(table.n, len(columns), "table", blocks, names, columns=np.array(fields)[columns], names_from=title)
