"""A perturbation screen on disk: opened lazily, checked at the door, read by blocks of rows."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp

from txeval.compute.arrays import BLOCK_ELEMENTS, F32, F64, Ints, Strings, row_blocks
from txeval.compute.random import stream
from txeval.data.matrix import Block, Matrix, Store, open_store, var_of
from txeval.data.readers import stem
from txeval.data.roles import Roles, assign, summarise
from txeval.data.samples import Samples
from txeval.data.scale import SCALES, Evidence, check_declared, determine, first_fault
from txeval.errors import InputError, unknown

__all__ = ["Screen", "holds_counts", "look_at", "open_screen"]

#: Stretches of rows, spread over the file, that the scale is determined from, and rows in each.
SCALE_WINDOWS = 32
SCALE_WINDOW_ROWS = 64

#: A dense copy above this size goes to a temporary memory-mapped file.
MATRIX_IN_MEMORY_BYTES = 2**30

Progress = Callable[[int, int, str], None]


class Screen:
    """A perturbation screen: a matrix on disk, and the roles of its kept samples.

    Made by `open_screen`. It can be pickled: the file is opened again on first use, and neither the matrix nor
    the names of the samples travel. Use it as a context manager, or call `close`, to let go of the file.

    Attributes
    ----------
    path, name, roles, layer, labels
        As given; `name` defaults to the file name without its suffix.
    where
        Place of the matrix in the file: "X", "layers/NAME" or "raw/X".
    scale
        "counts", "normalized", "log1p" or "continuous" (see `txeval.data.scale.SCALES`).
    scale_declared, scale_note
        Whether the user declared it, and what it rests on.
    samples
        Roles of the kept samples.
    kept
        (n,) int64, row number in the file of each kept sample, increasing.
    n_file
        Number of samples in the file.
    genes
        (g,) gene names.
    has_unique_names
        Whether no two samples of the file have the same name.
    report
        Plain data: what was read, what was dropped for which reason (`dropped`), what is odd (`warnings`).
    """

    def __init__(
        self,
        *,
        store: Store,
        matrix: Matrix,
        where: str,
        name: str,
        roles: Roles,
        layer: str | None,
        scale: str,
        scale_declared: bool,
        scale_note: str,
        samples: Samples,
        kept: Ints,
        genes: Strings,
        has_unique_names: bool,
        totals: F64 | None,
        totals_in_fingerprint: bool,
        report: dict[str, Any],
        max_elements: int | None,
        labels: Path | None = None,
    ) -> None:
        self.path = store.path
        self.labels = labels
        self.name = name
        self.roles = roles
        self.layer = layer
        self.where = where
        self.scale = scale
        self.scale_declared = scale_declared
        self.scale_note = scale_note
        self.samples = samples
        self.kept = kept
        self.n_file = matrix.shape[0]
        self.genes = genes
        self.has_unique_names = has_unique_names
        self.report = report
        self.max_elements = max_elements
        self._totals = totals
        self._totals_in_fingerprint = totals_in_fingerprint
        self._fingerprint: str | None = None
        self._sample_names: Strings | None = None
        self._store: Store | None = store
        self._matrix: Matrix | None = matrix
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"Screen({self.name!r}, {self.n:,} samples x {self.n_genes:,} genes, {self.scale})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None, "_matrix": None, "_sample_names": None}

    def close(self) -> None:
        """Let go of the file; it is opened again when something is read."""
        if self._store is not None:
            self._store.close()
        self._store = self._matrix = None

    def _open(self) -> Store:
        # An HDF5 handle does not survive a fork.
        if self._store is None or self._pid != os.getpid():
            self._store, self._matrix, self._pid = open_store(self.path, labels=self.labels), None, os.getpid()
        return self._store

    def _source(self) -> Matrix:
        store = self._open()
        if self._matrix is None:
            self._matrix = store.matrix(self.where)
            if self._matrix.shape != (self.n_file, self.n_genes):
                raise InputError(f"{self.path}: the file has changed since it was opened", remedy="start again")
        return self._matrix

    @property
    def n(self) -> int:
        """Number of kept samples."""
        return len(self.kept)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return len(self.genes)

    @property
    def sample_names(self) -> Strings:
        """(n,) object, names of the kept samples."""
        if self._sample_names is None:
            self._sample_names = self._open().names("obs")[self.kept]
        return self._sample_names

    @property
    def totals(self) -> F64:
        """(n,) float64, total of each kept sample over all genes; costs one pass over the matrix, once."""
        if self._totals is None:
            self._totals = np.empty(self.n)
            for rows, block in self.blocks():
                self._totals[rows] = _row_totals(block)
        return self._totals

    def blocks(self, rows: Ints | None = None, *, max_elements: int | None = None) -> Iterator[tuple[slice, Block]]:
        """Read rows of the matrix block by block.

        The file is read in its own order within each block, and rows that are near to each other in one piece;
        so rows in increasing order are the fastest.

        Parameters
        ----------
        rows
            (m,) numbers of kept samples, in any order, repeats allowed; None: all.
        max_elements
            Largest rows x genes of a block, zeros counted.

        Yields
        ------
        (slice into `rows`, float32 CSR matrix or float32 array (b, g)), in the order of `rows`

        Raises
        ------
        InputError
            The file is damaged, or holds a value that its scale does not allow (NaN, infinite, a negative or
            fractional count), with the place of the first.
        """
        rows = np.arange(self.n) if rows is None else np.asarray(rows, dtype=np.int64)
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= self.n):
            raise IndexError(f"row numbers must be in 0 .. {self.n - 1}")
        for part in row_blocks(len(rows), self.n_genes, max_elements or self.max_elements):
            block = _read(self._source(), self.kept[rows[part]])
            self._check(block, self.kept[rows[part]], self.scale, self.where)
            yield part, self._float32(block, self.kept[rows[part]], self.where)

    def _check(self, block: Block, file_rows: Ints, scale: str | None, where: str) -> None:
        fault = first_fault(block, scale)
        if fault is not None:
            row, column, value, wrong = fault
            raise _bad_value(
                self._open(), where, self.genes, int(file_rows[row]), column, value, wrong, self._remedy(wrong)
            )

    def _remedy(self, wrong: str) -> str:
        if "finite" in wrong:
            return "take the samples or genes with missing values out of the file, or fill them in"
        layers = [name for name in self.layers_of_counts() if name != self.layer]
        if layers:
            return f"name a layer that holds counts: --layer {layers[0]}"
        declared = "was declared" if self.scale_declared else f"was determined from a sample ({self.scale_note})"
        return f"the scale {declared}: declare the right one with --scale {'|'.join(SCALES)}"

    def _float32(self, block: Block, file_rows: Ints, where: str) -> Block:
        with np.errstate(over="ignore"):
            out = block.astype(np.float32, copy=False)
        if block.dtype.kind == "f" and block.dtype.itemsize > 4:
            fault = first_fault(out, None)
            if fault is not None:
                row, column, _, _ = fault
                value = float(block[row, column])
                wrong = "is too large for single precision"
                raise _bad_value(self._open(), where, self.genes, int(file_rows[row]), column, value, wrong, "rescale")
        return out

    def obsm_keys(self) -> list[str]:
        """Names of the embeddings in the file."""
        return self._open().keys("obsm")

    def _obsm(self, key: str) -> Any:
        keys = self.obsm_keys()
        if key not in keys:
            raise unknown("embedding in obsm", key, keys, where=str(self.path))
        store = self._open()
        where = f"obsm/{key}"
        frame = store.table(where)
        if frame is not None:
            for column in frame.columns:
                if not pd.api.types.is_numeric_dtype(frame[column].dtype):
                    raise InputError(
                        f"{self.path}: column {column!r} of {where} does not hold numbers",
                        remedy="take that column out of the embedding",
                    )
            found: Any = frame.to_numpy(dtype=np.float64)
        else:
            found = store.matrix(where)
        if found.shape[0] != self.n_file:
            raise InputError(
                f"{self.path}: {where} has {found.shape[0]:,} rows, but the file has {self.n_file:,} samples",
                remedy="make the embedding again for all samples of this file",
            )
        return found

    def obsm_shape(self, key: str) -> tuple[int, int]:
        """(n, d) of an embedding over the kept samples, without reading it."""
        return self.n, int(self._obsm(key).shape[1])

    def read_obsm(self, key: str, rows: Ints | slice | None = None) -> Any:
        """Embedding of the kept samples that lies in the file.

        Parameters
        ----------
        key
            Name in `obsm`.
        rows
            Numbers of kept samples, in any order; None: all. Lets a caller copy a large embedding by pieces.

        Returns
        -------
        (m, d) array in the type of the file; sparse ones are made dense, tables become their values
        """
        found = self._obsm(key)
        file_rows = self.kept if rows is None else self.kept[rows]
        return found[file_rows] if isinstance(found, np.ndarray) else _dense(_read(found, file_rows))

    def matrix(self, key: str = "X") -> F32:
        """Expression values as an embedding: dense float32 (n, g) of the kept samples.

        For maps, whose features are themselves the representation. Above 1 GiB it lies in a temporary memory-mapped
        file, which vanishes with the process.

        Parameters
        ----------
        key
            "X" or "layer:NAME".
        """
        if key != "X" and not key.startswith("layer:"):
            raise InputError(f"{key!r} is no matrix of a screen", remedy="write X or layer:NAME")
        where = self._open().place(key.removeprefix("layer:"))
        source = self._source() if where == self.where else _matrix(self._open(), where)
        if source.shape != (self.n_file, self.n_genes):
            raise InputError(f"{self.path}: {where} has shape {source.shape}, not that of the screen", remedy="")
        shape = (self.n, self.n_genes)
        if 4 * self.n * self.n_genes > MATRIX_IN_MEMORY_BYTES:
            with tempfile.TemporaryFile() as file:
                out: F32 = np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
        else:
            out = np.empty(shape, dtype=np.float32)
        for part in row_blocks(self.n, self.n_genes, self.max_elements):
            block = _read(source, self.kept[part])
            self._check(block, self.kept[part], None, where)
            out[part] = _dense(self._float32(block, self.kept[part], where))
        return out

    def layers_of_counts(self) -> list[str]:
        """Layers whose values, as far as a sample shows, are counts."""
        store = self._open()
        return [name for name in store.layers() if holds_counts(store, name, need_rows=False, windows=4)]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything of the screen that a score can depend on.

        Shape, sample and gene names, labels of the kept samples, scale, kept row numbers and the matrix. A matrix of
        up to 200 MB (unpacked) enters whole. Of a larger one enter its row pointers, 256 pieces spread evenly over
        it, the size that it takes on disk, and the totals of the samples where quality control has read them; a
        change elsewhere that keeps all of these is not noticed. Path, name and times do not enter: a copy of the
        file has the same fingerprint.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256()

            def add(what: str, value: bytes) -> None:
                digest.update(f"{what}:{len(value)}:".encode())
                digest.update(value)

            add("shape", f"{self.n_file},{self.n_genes},{self.where},{self.scale}".encode())
            add("samples", "\x1f".join(self.sample_names.tolist()).encode())
            add("genes", "\x1f".join(self.genes.tolist()).encode())
            add("kept", self.kept.tobytes())
            s = self.samples
            for labels in (s.perturbations, s.batches, s.target_genes, s.cell_lines):
                add("labels", b"" if labels is None else "\x1f".join(labels.tolist()).encode())
            for codes in (s.perturbation, s.is_control, s.batch, s.cell_line):
                add("codes", b"" if codes is None else codes.tobytes())
            if self._totals_in_fingerprint and self._totals is not None:
                add("totals", self._totals.tobytes())
            add("matrix", self._source().digest().encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def open_screen(
    path: str | Path,
    roles: Roles,
    *,
    layer: str | None = None,
    scale: str | None = None,
    min_counts: float | None = 0,
    name: str | None = None,
    max_elements: int | None = None,
    progress: Progress | None = None,
    labels: str | Path | None = None,
) -> Screen:
    """Open a screen, check it, and drop the samples that quality control drops.

    Parameters
    ----------
    path
        .h5ad file, .zarr folder, or a file or folder of one of the formats of `txeval.data.readers`.
    roles
        Which column says what.
    layer
        Layer to read in place of X.
    scale
        Scale of the values, where the user knows it; None: determined from a sample of the rows.
    min_counts
        Keep samples whose total is above it; only where the scale is counts. None or 0: keep all, without reading
        the matrix.
    name
        Name of the dataset in every output.
    max_elements
        Largest rows x genes of a block; default `BLOCK_ELEMENTS`.
    progress
        Called with (done, total, text) while quality control reads the matrix.
    labels
        Table (.csv or .tsv) of labels of the samples, by their names in the first column: joined to `obs`.

    Raises
    ------
    InputError
        Anything that makes the screen unusable, with the file, column and value, and what to do.
    """
    path = Path(path)
    labels = None if labels is None else Path(labels)
    if scale is not None and scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    if min_counts is not None and not (math.isfinite(min_counts) and min_counts >= 0):
        raise InputError(
            f"min_counts is {min_counts}, not a number from 0 up", remedy="--min-counts 0 keeps all samples"
        )
    if max_elements is not None and max_elements < 1:
        raise InputError(f"max_elements is {max_elements}, not a number from 1 up", remedy="leave it out")
    store = open_store(path, labels=labels)
    try:
        return _open_screen(store, roles, layer, scale, min_counts, name, max_elements, progress, labels)
    except BaseException:
        store.close()
        raise


def _open_screen(
    store: Store,
    roles: Roles,
    layer: str | None,
    scale: str | None,
    min_counts: float | None,
    name: str | None,
    max_elements: int | None,
    progress: Progress | None,
    labels: Path | None,
) -> Screen:
    path = store.path
    layer = None if layer == "X" else layer
    where = store.place(layer)
    matrix = _matrix(store, where)
    names = store.names("obs")
    genes, warnings = _genes(store, roles, var_of(where))
    n, g = matrix.shape
    for length, axis, what in ((n, len(names), "samples in obs"), (g, len(genes), "genes in var")):
        if length != axis:
            raise InputError(
                f"{path}: {where} has shape {n:,} x {g:,}, but there are {axis:,} {what}",
                remedy="write the file again with AnnData.write_h5ad(): its parts do not fit together",
            )
    if n == 0 or g == 0:
        raise InputError(
            f"{path}: {where} has {n:,} samples and {g:,} genes: nothing to evaluate",
            remedy="check how the file was made; a filter may have removed everything",
        )
    n_same = len(names) - pd.Index(names).nunique()
    if n_same:
        warnings.append(f"{n_same:,} samples have the name of another sample: nothing can be aligned by name")
    warnings += store.notes
    if matrix.oddity:
        warnings.append(matrix.oddity)
    if matrix.by_columns:
        warnings.append(
            f"{where} is stored by columns (CSC): each process that reads it first makes a row-wise copy in"
            f" {tempfile.gettempdir()}; store it as CSR to save that"
        )

    assignment = assign(store, roles)
    warnings += assignment.warnings
    keep = np.ones(n, dtype=bool)
    dropped: dict[str, int] = {}
    for reason, rows in assignment.dropped.items():
        keep &= ~rows
        dropped[reason] = int(rows.sum())
    if not keep.any():
        raise InputError(f"{path}: every sample lacks a label ({_counted(dropped)})", remedy="check the columns named")

    found, note, odd = _scale(store, matrix, where, genes, scale)
    warnings += odd
    draft = partial(
        Screen,
        store=store,
        matrix=matrix,
        where=where,
        name=name or stem(path),
        labels=labels,
        roles=roles,
        layer=layer,
        scale=found,
        scale_declared=scale is not None,
        scale_note=note,
        genes=genes,
        has_unique_names=n_same == 0,
        max_elements=max_elements,
    )
    kept = np.flatnonzero(keep)
    totals = None
    if not min_counts:
        control = "not asked for (min_counts 0): no sample is dropped for its total"
    elif found != "counts":
        control = f"not applied: min_counts {min_counts:g} is for counts, and the values are {found}"
        warnings.append(f"quality control {control}")
    else:
        everyone, _ = summarise(assignment, kept, roles, genes, path)
        before = draft(samples=everyone, kept=kept, totals=None, totals_in_fingerprint=False, report={})
        totals = np.empty(len(kept))
        for part, block in before.blocks():
            totals[part] = _row_totals(block)
            if progress is not None:
                progress(part.stop, len(kept), "quality control")
        passed = totals > min_counts
        _check_passed(passed, totals, assignment.is_control[kept], min_counts, path)
        reason = f"total count not above {min_counts:g}"
        dropped[reason] = int(np.sum(~passed))
        control = f"{dropped[reason]:,} of {len(kept):,} samples dropped: {reason}"
        if dropped[reason]:
            warnings.append(f"quality control: {control} (median total {np.median(totals):,.0f})")
        kept, totals = kept[passed], totals[passed]
    samples, odd = summarise(assignment, kept, roles, genes, path)
    warnings += odd
    report = {
        "file": str(path),
        "matrix": where,
        "stored": matrix.stored,
        "scale": found,
        "scale_declared": scale is not None,
        "scale_note": note,
        "quality_control": control,
        "n_file": n,
        "n_kept": len(kept),
        "n_genes": g,
        "n_controls": int(samples.is_control.sum()),
        "n_perturbations": len(np.unique(samples.perturbation[~samples.is_control])),
        "n_batches": len(samples.batches),
        "dropped": {reason: count for reason, count in dropped.items() if count},
        "warnings": warnings,
    }
    screen = draft(samples=samples, kept=kept, totals=totals, totals_in_fingerprint=totals is not None, report=report)
    screen._sample_names = names[kept]
    return screen


def _matrix(store: Store, where: str) -> Matrix:
    """X or a layer, with an error that says which layers there are."""
    layers = store.layers()
    if where == "X":
        try:
            return store.matrix("X")
        except InputError as why:
            if "there is no X" not in why.problem:
                raise
            remedy = (
                f"name a layer: --layer {' or '.join(layers)}"
                if layers
                else "there are no layers either: add the values"
            )
            raise InputError(f"{store.path}: the file has no X, so no expression values", remedy=remedy) from why
    return store.matrix(where)


def _genes(store: Store, roles: Roles, var: str) -> tuple[Strings, list[str]]:
    """Gene names as text (g,), and what is odd about them."""
    names = store.names(var)
    warnings = []
    if roles.gene_symbol is not None:
        column = store.column(var, roles.gene_symbol, role="gene symbol column")
        missing = np.asarray(column.isna(), dtype=bool) | (column.astype(str).str.strip() == "").to_numpy()
        names = np.where(missing, names, column.astype(str).to_numpy())
        if missing.any():
            warnings.append(f"{int(missing.sum()):,} genes have no {roles.gene_symbol!r}: their names in var are used")
    genes = np.array(names.tolist(), dtype=str)
    n_same = len(genes) - len(np.unique(genes))
    if n_same:
        warnings.append(f"{n_same:,} genes have the name of another gene")
    return genes, warnings


def _scale(
    store: Store, matrix: Matrix, where: str, genes: Strings, declared: str | None
) -> tuple[str, str, list[str]]:
    """Scale of a matrix, what it rests on, and what is odd about it."""
    evidence, looked = look_at(matrix, need_rows=declared is None)
    if evidence.nonfinite is not None:
        p = evidence.nonfinite
        remedy = "take the samples or genes with missing values out of the file, or fill them in"
        raise _bad_value(store, where, genes, p.row, p.column, p.value, "is not a finite number", remedy)
    found, why = determine(evidence)
    counts = (
        [
            name
            for name in store.layers()
            if store.place(name) != where and holds_counts(store, name, need_rows=False, windows=4)
        ]
        if found != "counts"
        else []
    )
    warnings = [f"{where} does not hold counts, but layer {counts[0]!r} does (--layer {counts[0]})"] if counts else []
    if declared is None:
        return found, f"determined: {why}; looked at {looked}", warnings
    place, wrong = check_declared(declared, evidence)
    if place is not None:
        if declared == "counts" and counts:
            remedy = f"name a layer that holds counts: --layer {counts[0]}"
        else:
            remedy = f"leave out --scale {declared}: as the values are, their scale is {found} ({why})"
        raise _bad_value(
            store,
            where,
            genes,
            place.row,
            place.column,
            place.value,
            f"{wrong}: these are no {declared} values",
            remedy,
        )
    if found == "counts" and declared != "counts" and evidence.n_nonzero:
        warnings.append(f"the scale is declared {declared}, but all values looked at are whole numbers, as counts are")
    return declared, f"declared; nothing against it in {looked}", warnings


def look_at(
    matrix: Matrix, *, need_rows: bool = True, windows: int = SCALE_WINDOWS, seed: int = 0
) -> tuple[Evidence, str]:
    """Look at a sample of the values, spread over the whole file."""
    n, g = matrix.shape
    rng = stream(seed, "scale", n, g)
    if matrix.by_columns and n * g > BLOCK_ELEMENTS:
        # Rows would cost a pass over the whole matrix; a few genes often tell enough.
        evidence = Evidence()
        chosen = np.unique(np.linspace(0, g - 1, windows).astype(np.int64))
        for column in chosen.tolist():
            evidence.add(matrix.columns(column, column + 1), column=column, whole_rows=False)
        clear = evidence.negative is not None or evidence.fractional is None or evidence.nonfinite is not None
        if clear or not need_rows:
            return evidence, f"{len(chosen):,} of {g:,} genes"
    evidence = Evidence()
    length = max(1, min(SCALE_WINDOW_ROWS, BLOCK_ELEMENTS // max(1, g) // windows))
    if n <= windows * length:
        parts = list(row_blocks(n, g))
    else:
        edges = np.linspace(0, n - length, windows + 1).astype(np.int64)
        starts = [int(rng.integers(a, max(a + 1, b - length + 1))) for a, b in itertools.pairwise(edges)]
        starts[-1] = n - length  # the end of a file is where a bad copy shows
        parts = [slice(a, a + length) for a in starts]
    for part in parts:
        evidence.add(matrix.rows(np.arange(part.start, part.stop)), row=part.start)
    return evidence, f"{evidence.n_rows:,} of {n:,} samples"


def holds_counts(store: Store, layer: str, *, need_rows: bool = True, windows: int = SCALE_WINDOWS) -> bool:
    """Whether what `look_at` sees of a layer is counts. Serves hints only: one that cannot be read is not hinted at."""
    try:
        evidence, _ = look_at(store.matrix(store.place(layer)), need_rows=need_rows, windows=windows)
    except InputError:
        return False
    return evidence.nonfinite is None and evidence.n_nonzero > 0 and determine(evidence)[0] == "counts"


def _read(matrix: Matrix, file_rows: Ints) -> Block:
    """Rows of a matrix in any order: read in the order of the file, then put in order."""
    if len(file_rows) < 2 or bool(np.all(np.diff(file_rows) > 0)):
        return matrix.rows(file_rows)
    sorted_rows, inverse = np.unique(file_rows, return_inverse=True)
    return matrix.rows(sorted_rows)[inverse.reshape(-1)]


def _dense(block: Block) -> Any:
    return block.toarray() if sp.issparse(block) else block


def _row_totals(block: Block) -> F64:
    return np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()


def _bad_value(
    store: Store, where: str, genes: Strings, row: int, column: int, value: float, wrong: str, remedy: str
) -> InputError:
    sample = store.names("obs")[row]
    return InputError(
        f"{store.path}: {where} holds {value:g} for sample {sample!r} (row {row:,}) and gene {str(genes[column])!r}:"
        f" it {wrong}",
        remedy=remedy,
    )


#: A threshold that keeps a smaller share of the samples was meant for another kind of screen.
MIN_KEPT = 0.05


def _counted(dropped: dict[str, int]) -> str:
    return "; ".join(f"{count:,}: {reason}" for reason, count in dropped.items())


def _check_passed(passed: Any, totals: F64, is_control: Any, min_counts: float, path: Path) -> None:
    for group, what in (
        (np.ones(len(passed), bool), "samples"),
        (is_control, "controls"),
        (~is_control, "perturbed samples"),
    ):
        if not passed[group].any():
            low, median, high = np.quantile(totals[group], [0.05, 0.5, 0.95])
            raise InputError(
                f"{path}: quality control drops all {int(group.sum()):,} {what}: none has a total count above"
                f" {min_counts:g} (their median is {median:,.0f}; 5 % are below {low:,.0f}, 5 % above {high:,.0f})",
                remedy=f"lower the threshold, e.g. --min-counts {math.floor(low):g}, or --min-counts 0 to keep all",
            )
    if passed.mean() < MIN_KEPT:
        low, median = np.quantile(totals, [0.05, 0.5])
        raise InputError(
            f"{path}: quality control would keep {int(passed.sum()):,} of {len(passed):,} samples: the others have a"
            f" total count of at most {min_counts:g} (median {median:,.0f})",
            remedy="the threshold is for whole transcriptomes; for a panel of genes lower it, e.g. --min-counts"
            f" {math.floor(low):g}, or --min-counts 0 to keep all",
        )
