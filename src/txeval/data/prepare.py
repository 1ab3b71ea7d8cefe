"""Screens put together and rewritten block by block: parts, genes, quality filter, layout, in bounded memory."""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import scipy.sparse as sp

from txeval._version import __version__
from txeval.compute.arrays import Bools, Ints, Strings
from txeval.data.download import Progress
from txeval.data.matrix import Block, Matrix, Store, open_store, var_of
from txeval.data.scale import determine
from txeval.data.screen import look_at
from txeval.data.writing import SUFFIXES, Layout, ScreenWriter, open_writer
from txeval.destination import check_destination
from txeval.errors import InputError, unknown

__all__ = ["DEFAULT_MEMORY", "JOINS", "Prepared", "Recipe", "prepare_screen"]

#: Most memory that a preparation takes, in bytes.
DEFAULT_MEMORY = 4 * 2**30

#: Less than this does not hold the libraries and one block.
LEAST_MEMORY = 512 * 2**20

#: Genes of parts that differ: all of them, those of all parts, or none may differ.
JOINS = ("outer", "inner", "same")

#: Block bounds: a block takes about eight times its values at once (read, unpacked, converted, packed), of 8 bytes
#: each, and should be a small part of what is allowed.
_SHARE_OF_MEMORY = 256
_MOST_ELEMENTS = 16_000_000
_LEAST_ELEMENTS = 250_000

#: A part of the allowed memory above which blocks are made smaller.
_HIGH_TIDE = 0.8


@dataclass(frozen=True)
class Recipe:
    """What is done to the parts of a screen.

    Attributes
    ----------
    layer
        Layer to take instead of X.
    layout
        "csr" or "dense".
    join
        Genes of parts that differ: "outer" all, "inner" those of all parts, "same" is an error.
    genes
        These genes only, in this order; None: all. Those that no part has are filled with zeros, and said.
    gene_names
        `var` column by which genes are told apart; None: the names of `var`.
    min_counts
        Samples with a total at or below it are left out, where the values are counts.
    keep
        `obs` column -> labels: only such samples.
    leave_out
        `obs` column -> labels: no such samples.
    missing
        Number that stands for values that are missing or not finite; None: they are an error.
    """

    layer: str | None = None
    layout: Layout = "csr"
    join: str = "outer"
    genes: tuple[str, ...] | None = None
    gene_names: str | None = None
    min_counts: float = 0
    keep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    leave_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing: float | None = None


@dataclass(frozen=True)
class Prepared:
    """A prepared file and what was done.

    Attributes
    ----------
    shape
        (n, g).
    report
        Plain data: parts, what was left out and why, what is odd (`notes`).
    resumed
        Samples that an earlier attempt had written; 0 where there was none.
    seconds, peak_bytes
        Time of this attempt, and the most memory that the process has taken.
    reused
        Whether the file was there already, made from the same files in the same way.
    """

    path: Path
    shape: tuple[int, int]
    dtype: str
    report: dict[str, Any]
    resumed: int
    seconds: float
    peak_bytes: int
    reused: bool = False


def prepare_screen(
    parts: Sequence[Path | str],
    out: Path | str,
    recipe: Recipe | None = None,
    *,
    max_memory: int = DEFAULT_MEMORY,
    uns: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    checkpoint_seconds: float = 10.0,
    threads: int | None = None,
    progress: Progress = lambda done, total, text: None,
) -> Prepared:
    """Put the parts of a screen together into one file, block by block.

    Rows come in the order of the parts; `obs` and `var` are kept, the columns of all parts. Whole numbers are stored in
    the smallest type that holds them, fractions in single precision. A process that dies leaves what it wrote in a
    hidden folder beside `out`; the same call goes on from there, and the result is the same to the byte.

    Parameters
    ----------
    parts
        Files or folders of any format that txeval reads.
    out
        .h5ad file, or .zarr folder (Zarr v3).
    max_memory
        Bound on the memory of the process, in bytes. The labels in `obs` must fit in it.
    uns
        Kept in the file.
    overwrite
        Whether a file that is there may be replaced. One that was made from the same files in the same way is left
        as it is.
    checkpoint_seconds, threads
        See `txeval.data.writing.open_writer`.
    progress
        Called with (samples done, samples, text).

    Raises
    ------
    InputError
        A part cannot be used, the parts do not fit together, nothing is left, a value is not finite, or the file
        cannot be written.
    """
    recipe = recipe or Recipe()
    out = Path(out).expanduser()
    _check(recipe, parts, out, max_memory)
    begun = time.monotonic()
    paths = [Path(part).expanduser() for part in parts]
    key = _key(paths, out, recipe)
    if out.exists():
        before = _made_before(out, key)
        if before is not None:
            return before
        if any(out.resolve() == path.resolve() for path in paths):
            raise InputError(f"{out} is one of the parts", remedy="write to another file")
    check_destination(out, overwrite=overwrite)
    with ExitStack() as stack:
        opened = [stack.enter_context(_Part.open(path, recipe)) for path in paths]
        plan = _plan(opened, recipe)
        writer = stack.enter_context(
            open_writer(
                out,
                genes=plan.names,
                layout=recipe.layout,
                resume=True,
                key=key,
                checkpoint_seconds=checkpoint_seconds,
                threads=threads,
            )
        )
        if writer.discarded:
            plan.notes.append("the remains of an earlier attempt with other files or settings were removed")
        memory = _Memory(max_memory)
        counts = _copy(opened, plan, recipe, writer, memory, progress)
        if not writer.rows:
            raise InputError(
                f"{out}: no sample is left of {sum(part.n for part in opened):,}: {_why_empty(counts)}",
                remedy="loosen --keep, --leave-out or --min-counts",
            )
        progress(writer.rows, writer.rows, "labels")
        writer.obs = _obs(opened, writer.record("part"), writer.record("row"), plan)
        writer.var = plan.var
        report = _report(opened, plan, recipe, counts, writer)
        writer.uns = {**(uns or {}), "txeval": {"preparation": {"key": key, "report": json.dumps(report)}}}
        memory.look()
        progress(writer.rows, writer.rows, f"writing {out.name}")
        writer.finish()
        memory.look()
        return Prepared(
            path=out,
            shape=(writer.rows, len(plan.names)),
            dtype=writer.dtype.name,
            report=report,
            resumed=writer.resumed,
            seconds=time.monotonic() - begun,
            peak_bytes=memory.peak,
        )


def _check(recipe: Recipe, parts: Sequence[Path | str], out: Path, max_memory: int) -> None:
    if not parts:
        raise InputError("no file to prepare is named", remedy="name one or several")
    if recipe.join not in JOINS:
        raise unknown("join", recipe.join, JOINS)
    if max_memory < LEAST_MEMORY:
        raise InputError(
            f"max_memory is {max_memory / 2**20:,.0f} MiB", remedy=f"give {LEAST_MEMORY / 2**20:,.0f} MiB or more"
        )
    if recipe.genes is not None:
        repeated = [name for name, count in Counter(recipe.genes).items() if count > 1]
        if not recipe.genes or repeated:
            what = f"names {repeated[0]!r} several times" if repeated else "is empty"
            raise InputError(f"the list of genes {what}", remedy="name each gene once")
    if not 0 <= recipe.min_counts < float("inf"):
        raise InputError(f"min_counts is {recipe.min_counts}", remedy="give 0 or a number above")
    check_destination(out, suffixes=SUFFIXES)


def _key(paths: Sequence[Path], out: Path, recipe: Recipe) -> str:
    """Says what is made from what: sizes and times of the parts, and the recipe."""
    files = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file", remedy="check the path")
        newest = max((item.stat() for item in (path.rglob("*") if path.is_dir() else [path])), key=_changed)
        size = sum(item.stat().st_size for item in path.rglob("*")) if path.is_dir() else newest.st_size
        files.append([str(path.resolve()), size, newest.st_mtime_ns])
    content = json.dumps([__version__, files, out.suffix, asdict(recipe)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _changed(state: Any) -> int:
    return int(state.st_mtime_ns)


def _made_before(out: Path, key: str) -> Prepared | None:
    """The file as it is, where it was made from the same files in the same way."""
    from anndata.io import read_elem

    try:
        store = open_store(out)
    except InputError:
        return None
    try:
        note = read_elem(store.root["uns/txeval/preparation"])  # type: ignore[attr-defined]
        if str(note["key"]) != key:
            return None
        matrix = store.matrix("X")
        report = json.loads(str(note["report"]))
        return Prepared(out, matrix.shape, matrix.dtype.name, report, matrix.shape[0], 0.0, _rss(), reused=True)
    except (InputError, KeyError, ValueError, AttributeError, TypeError):
        return None
    finally:
        store.close()


# Memory


def _rss() -> int:
    return int(psutil.Process().memory_info().rss)


class _Memory:
    """Watches what the process takes, and bounds the next block."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.elements = int(np.clip(allowed // _SHARE_OF_MEMORY, _LEAST_ELEMENTS, _MOST_ELEMENTS))
        self.peak = _rss()

    def look(self) -> None:
        now = _rss()
        self.peak = max(self.peak, now)
        if now > _HIGH_TIDE * self.allowed and self.elements > _LEAST_ELEMENTS:
            gc.collect()
            self.elements = max(_LEAST_ELEMENTS, self.elements // 2)


# Parts


class _Part:
    """One file, open."""

    def __init__(self, store: Store, matrix: Matrix, where: str, recipe: Recipe) -> None:
        self.store = store
        self.path = store.path
        self.matrix = matrix
        self.where = where
        self.n = matrix.shape[0]
        names = store.names(var_of(where))
        if recipe.gene_names is not None:
            column = store.column(var_of(where), recipe.gene_names, role="names of the genes")
            names = np.array([str(value) for value in column], dtype=object)
        self.genes = names
        for length, axis, what in (
            (self.n, len(store.names("obs")), "samples in obs"),
            (matrix.shape[1], len(names), "genes in var"),
        ):
            if length != axis:
                raise InputError(
                    f"{self.path}: {where} has shape {self.n:,} x {matrix.shape[1]:,}, but there are {axis:,} {what}",
                    remedy="write the file again with AnnData.write_h5ad(): its parts do not fit together",
                )
        evidence, looked = look_at(matrix, need_rows=True)
        self.scale, why = ("unknown", "") if evidence.nonfinite is not None else determine(evidence)
        self.scale_note = f"{why}; looked at {looked}" if why else "some values are not finite"
        self.wanted, self.left_out = self._wanted(recipe)

    @classmethod
    def open(cls, path: Path, recipe: Recipe) -> _Part:
        store = open_store(path)
        try:
            where = store.place(recipe.layer)
            return cls(store, store.matrix(where), where, recipe)
        except BaseException:
            store.close()
            raise

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def _wanted(self, recipe: Recipe) -> tuple[Bools, dict[str, int]]:
        """Samples that labels ask for, and how many are left out for which reason."""
        wanted = np.ones(self.n, dtype=bool)
        left_out: dict[str, int] = {}
        for choice, keeps in ((recipe.keep, True), (recipe.leave_out, False)):
            for name, labels in choice.items():
                column = self.store.column("obs", name, role="column to choose samples by")
                texts = column.astype(str)
                found = texts.isin([str(label) for label in labels]).to_numpy()
                absent = [label for label in labels if not (texts == str(label)).any()]
                if absent and len(absent) == len(labels):
                    raise unknown("label", absent[0], texts.unique()[:200], where=f"{self.path}, obs column {name!r}")
                drop = wanted & (~found if keeps else found)
                reason = f"{name} is {'not ' if keeps else ''}{' or '.join(map(str, labels))}"
                if drop.any():
                    left_out[reason] = int(drop.sum())
                wanted &= ~drop
        return wanted, left_out

    def check_pieces(self, allowed: int) -> None:
        """Refuse a matrix that is packed in pieces that do not fit into memory."""
        for array in (getattr(self.matrix, "data", None), getattr(self.matrix, "array", None)):
            chunks = getattr(array, "chunks", None)
            if array is None or not chunks:
                continue
            size = int(np.prod(chunks, dtype=np.float64)) * np.dtype(array.dtype).itemsize
            if size > allowed / 4:
                raise InputError(
                    f"{self.path}: {self.where} is packed in pieces of {size / 2**30:,.1f} GiB, each of which has to be"
                    f" unpacked as a whole: too much for {allowed / 2**30:,.1f} GiB of memory",
                    remedy=f"allow --max-memory {max(1, -(-size * 6 // 2**30))}G, or repack the file with h5repack",
                )


# Genes


@dataclass
class _Plan:
    """How the genes of the parts become the columns of the file.

    Attributes
    ----------
    names
        (g,) names of the columns.
    maps
        For each part (its g,) column of the file for each of its genes, -1 for none; None: as they are.
    """

    names: list[str]
    maps: list[Ints | None]
    var: pd.DataFrame
    filled: dict[str, int]
    unknown_genes: list[str]
    notes: list[str]


def _keys(names: Strings) -> list[tuple[str, int]]:
    """Names with the number of their occurrence, so that genes of one name stay apart."""
    seen: Counter[str] = Counter()
    out = []
    for name in names.tolist():
        out.append((str(name), seen[str(name)]))
        seen[str(name)] += 1
    return out


def _plan(parts: Sequence[_Part], recipe: Recipe) -> _Plan:
    notes: list[str] = []
    keys = [_keys(part.genes) for part in parts]
    same = all(other == keys[0] for other in keys[1:])
    for part in parts:
        repeated = len(part.genes) - len(set(part.genes.tolist()))
        if repeated:
            notes.append(f"{part.path.name}: {repeated:,} genes have the name of another gene: kept apart")
    scales = {part.scale for part in parts if part.n}
    if len(scales) > 1:
        listed = ", ".join(f"{part.path.name} {part.scale} ({part.scale_note})" for part in parts)
        raise InputError(
            f"the parts hold values of different scales: {listed}", remedy="prepare them apart, or name a --layer"
        )
    if not same and recipe.join == "same":
        first = next(i for i, other in enumerate(keys) if other != keys[0])
        lacking = [name for name, _ in keys[0] if name not in set(parts[first].genes.tolist())]
        why = f"{len(lacking):,} are missing, such as {lacking[0]!r}" if lacking else "more, or in another order"
        raise InputError(
            f"{parts[first].path} has not the genes of {parts[0].path}: {why}",
            remedy="use --join outer or --join inner",
        )
    if recipe.genes is not None:
        wanted = [(name, 0) for name in recipe.genes]
    elif same:
        wanted = keys[0]
    elif recipe.join == "inner":
        everywhere = set.intersection(*(set(other) for other in keys))
        wanted = [key for key in keys[0] if key in everywhere]
        notes.append(f"{len(wanted):,} of {len(set().union(*keys)):,} genes are in all parts: the others are left out")
    else:
        wanted = list(dict.fromkeys(key for other in keys for key in other))
    if not wanted:
        raise InputError("the parts have no gene in common", remedy="check which names their genes have (--gene-names)")
    place = {key: i for i, key in enumerate(wanted)}
    maps: list[Ints | None] = []
    filled: dict[str, int] = {}
    for part, own in zip(parts, keys, strict=True):
        maps.append(None if own == wanted else np.array([place.get(key, -1) for key in own], dtype=np.int64))
        absent = len(wanted) - len(set(own) & set(wanted))
        if absent:
            filled[part.path.name] = absent
    if filled:
        if scales - {"counts", "normalized", "log1p"}:
            raise InputError(
                f"{next(iter(filled))} lacks {next(iter(filled.values())):,} genes, and 0 does not mean 'not expressed'"
                f" in {'/'.join(scales)} values",
                remedy="use --join inner, or a list of genes that all parts have",
            )
        notes += [f"{name}: {count:,} genes that it does not have are 0" for name, count in filled.items()]
    anywhere = set().union(*keys)
    nowhere = [name for name, i in wanted if (name, i) not in anywhere]
    if len(nowhere) == len(wanted):
        raise InputError(
            f"none of the {len(wanted):,} genes asked for (such as {wanted[0][0]!r}) is in {parts[0].path}"
            f" (such as {str(parts[0].genes[0])!r})",
            remedy="give the names that the file uses, or the column that has them (--gene-names)",
        )
    return _Plan([name for name, _ in wanted], maps, _var(parts, keys, wanted, notes), filled, nowhere, notes)


def _var(
    parts: Sequence[_Part], keys: Sequence[list[tuple[str, int]]], wanted: list[tuple[str, int]], notes: list[str]
) -> pd.DataFrame:
    """`var` of the file: each gene as the first part that has it describes it."""
    frame: pd.DataFrame | None = None
    for part, own in zip(parts, keys, strict=True):
        table = part.store.frame(var_of(part.where))
        table.index = pd.MultiIndex.from_tuples(own) if own else table.index
        if frame is None:
            frame = table
            continue
        new = table[~table.index.isin(frame.index)]
        if len(new):
            frame = pd.concat([_plain(frame), _plain(new)])
    assert frame is not None
    made = frame.reindex(pd.MultiIndex.from_tuples(wanted))
    made.index = pd.Index([name for name, _ in wanted], dtype=object)
    return made


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """A table whose categories are texts, so that those of another can join them."""
    return frame.astype({name: object for name in frame.columns if isinstance(frame[name].dtype, pd.CategoricalDtype)})


def _align(block: Block, columns: Ints | None, g: int) -> Block:
    """Columns of a part as columns of the file."""
    if columns is None:
        return block
    if not sp.issparse(block):
        out = np.zeros((block.shape[0], g), dtype=block.dtype)
        own = np.flatnonzero(columns >= 0)
        out[:, columns[own]] = block[:, own]
        return out
    moved = columns[block.indices]
    kept = moved >= 0
    rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))[kept]
    sizes = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=block.shape[0]))])
    out = sp.csr_matrix((block.data[kept], moved[kept].astype(np.int32), sizes), shape=(block.shape[0], g))
    out.sort_indices()
    return out


# Rows


def _copy(
    parts: Sequence[_Part], plan: _Plan, recipe: Recipe, writer: ScreenWriter, memory: _Memory, progress: Progress
) -> dict[str, int]:
    """Copy what is not there yet; gives how many samples and values were left out or replaced, by reason."""
    counts: dict[str, int] = dict(writer.state.get("counts", {}))
    start, row = int(writer.state.get("part", 0)), int(writer.state.get("row", 0))
    total = sum(part.n for part in parts)
    before = sum(part.n for part in parts[:start])
    g = len(plan.names)
    for number in range(start, len(parts)):
        part = parts[number]
        part.check_pieces(memory.allowed)
        filters = recipe.min_counts > 0 and part.scale == "counts"
        if row < part.n:
            progress(before + row, total, part.path.name)
        while row < part.n:
            step = max(1, memory.elements // max(1, part.matrix.shape[1]))
            stop = min(part.n, row + step)
            wanted = row + np.flatnonzero(part.wanted[row:stop])
            block = part.matrix.rows(wanted)
            block = _finite(part, block, wanted, recipe, counts)
            totals = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
            if filters:
                passed = totals > recipe.min_counts
                if not passed.all():
                    reason = f"total count not above {recipe.min_counts:g}"
                    counts[reason] = counts.get(reason, 0) + int(np.sum(~passed))
                    block, wanted = block[passed], wanted[passed]
            state = {"part": number, "row": stop, "counts": dict(counts)}
            block = _align(block, plan.maps[number], g)
            writer.append(block, state=state, part=np.full(len(wanted), number, dtype=np.int32), row=wanted)
            memory.look()
            del block
            row = stop
            progress(before + row, total, part.path.name)
        before, row = before + part.n, 0
    return dict(Counter(counts) + Counter(_by_label(parts)))


def _by_label(parts: Sequence[_Part]) -> dict[str, int]:
    """Samples that their labels leave out, by reason."""
    return dict(sum((Counter(part.left_out) for part in parts), Counter()))


def _finite(part: _Part, block: Block, rows: Ints, recipe: Recipe, counts: dict[str, int]) -> Block:
    """A block whose values are all finite."""
    values = block.data if sp.issparse(block) else block
    if values.dtype.kind != "f":
        return block
    bad = ~np.isfinite(values)
    if not bad.any():
        return block
    if recipe.missing is None:
        if sp.issparse(block):
            i = int(np.flatnonzero(bad)[0])
            r, c = int(np.searchsorted(block.indptr, i, side="right")) - 1, int(block.indices[i])
        else:
            r, c = (int(axis[0]) for axis in np.nonzero(bad))
        sample = part.store.names("obs")[rows[r]]
        raise InputError(
            f"{part.path}: {part.where} holds {values[bad][0]:g} for sample {str(sample)!r} (row {int(rows[r]):,}) and"
            f" gene {str(part.genes[c])!r}: it is not a finite number",
            remedy="say what stands for missing values: --missing 0 (as the paper's code does)",
        )
    if not values.flags.writeable:
        block = block.copy()
        values = block.data if sp.issparse(block) else block
    values[bad] = recipe.missing
    reason = f"values that are not finite, replaced by {recipe.missing:g}"
    counts[reason] = counts.get(reason, 0) + int(bad.sum())
    return block


def _why_empty(counts: Mapping[str, int]) -> str:
    return "; ".join(f"{count:,} left out: {reason}" for reason, count in counts.items()) or "the parts are empty"


def _obs(parts: Sequence[_Part], part_of: Ints, row_of: Ints, plan: _Plan) -> pd.DataFrame:
    """Labels of the rows that were written."""
    rows = [row_of[part_of == i] for i in range(len(parts))]
    columns = list(dict.fromkeys(name for part in parts for name in part.store.columns("obs")))
    made: dict[str, Any] = {}
    for name in columns:
        pieces = []
        for part, own in zip(parts, rows, strict=True):
            column = part.store.optional_column("obs", name) if name in part.store.columns("obs") else None
            if column is not None:
                if column.dtype == object:
                    # Text that repeats itself takes a fraction of the memory as categories.
                    column = pd.Series(pd.Categorical(column.map(lambda v: v if v is None or v != v else str(v))))
                pieces.append(column.iloc[own].reset_index(drop=True))
            else:
                pieces.append(pd.Series(np.full(len(own), np.nan)))
                if name not in part.store.columns("obs"):
                    plan.notes.append(f"{part.path.name} has no obs column {name!r}: missing for its samples")
        if len(parts) > 1 or column is not None:
            made[name] = pieces[0] if len(pieces) == 1 else _join(pieces)
        del pieces
    names = np.concatenate([part.store.names("obs")[own] for part, own in zip(parts, rows, strict=True)])
    index = pd.Index(names, dtype=object)
    repeated = len(index) - index.nunique()
    if repeated:
        plan.notes.append(f"{repeated:,} samples have the name of another sample: kept as they are")
    frame = pd.DataFrame({name: column.array for name, column in made.items()}, index=index)
    for name in frame.columns:
        if isinstance(frame[name].dtype, pd.CategoricalDtype):
            frame[name] = frame[name].cat.remove_unused_categories()
    return frame


def _join(pieces: list[pd.Series[Any]]) -> pd.Series[Any]:
    kinds = {str(piece.dtype) if not isinstance(piece.dtype, pd.CategoricalDtype) else "category" for piece in pieces}
    if "category" in kinds:
        from pandas.api.types import union_categoricals

        texts = [
            piece
            if isinstance(piece.dtype, pd.CategoricalDtype) and piece.cat.categories.dtype == object
            else pd.Series(pd.Categorical(piece.astype(object).map(lambda v: v if v is None or v != v else str(v))))
            for piece in pieces
        ]
        return pd.Series(union_categoricals([piece.array for piece in texts], sort_categories=True, ignore_order=True))
    return pd.concat(pieces, ignore_index=True)


def _report(
    parts: Sequence[_Part], plan: _Plan, recipe: Recipe, counts: Mapping[str, int], writer: ScreenWriter
) -> dict[str, Any]:
    part_of = writer.record("part")
    notes = list(plan.notes)
    if recipe.min_counts > 0 and any(part.scale != "counts" for part in parts):
        scale = next(part.scale for part in parts if part.scale != "counts")
        notes.append(
            f"the filter for more than {recipe.min_counts:g} counts was not applied: the values are {scale}, not counts"
        )
    for part in parts:
        notes += [f"{part.path.name}: {note}" for note in getattr(part.store, "notes", [])]
        if part.matrix.oddity:
            notes.append(f"{part.path.name}: {part.matrix.oddity}")
    return {
        "parts": [
            {
                "file": part.path.name,
                "matrix": part.where,
                "stored": part.matrix.stored,
                "samples": part.n,
                "kept": int(np.sum(part_of == i)),
                "genes": len(part.genes),
                "scale": part.scale,
                "scale_note": part.scale_note,
            }
            for i, part in enumerate(parts)
        ],
        "samples": writer.rows,
        "genes": len(plan.names),
        "genes_not_found": plan.unknown_genes,
        "left_out": dict(counts),
        "values": {"stored": writer.nnz, "type": writer.dtype.name, "layout": recipe.layout},
        "notes": notes,
    }
