"""Sums per group of samples, read by blocks, and random sets of samples with a group's batch composition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from txeval.compute.arrays import F64, Bools, Ints, Rows, Strings, row_blocks
from txeval.compute.jit import jit, prefetch, prefetch_once
from txeval.compute.random import stream
from txeval.errors import InputError, NotComputable

__all__ = [
    "SetDraws",
    "add_to_groups",
    "as_codes",
    "canonical_order",
    "checked_matrix",
    "distinct_rows",
    "encode",
    "group_means",
    "group_sums",
    "group_unit_sums",
    "read_rows",
    "row_hashes",
]

#: Draws that share one random stream; fixed, so that no block size changes a draw.
DRAWS_PER_STREAM = 50

#: Rows before they are needed that a row and the sum of its group are asked for.
_AHEAD = 4


def checked_matrix(X: Any, name: str = "X") -> Rows:
    """Give a matrix as `Rows`: anything with two dimensions and row indexing stays as it is.

    Raises
    ------
    InputError
        For anything else, and for a matrix without columns.
    """
    matrix: Rows = (
        X if hasattr(X, "shape") and hasattr(X, "__getitem__") and not isinstance(X, pd.DataFrame) else _dense(X)
    )
    if len(matrix.shape) != 2 or matrix.shape[1] == 0:
        raise InputError(f"{name} has shape {tuple(matrix.shape)}", remedy="give a matrix: one row per sample")
    return matrix


def _dense(X: Any) -> Any:
    try:
        return np.asarray(X, dtype=np.float64)
    except (TypeError, ValueError) as why:
        raise InputError(f"the values are not a matrix of numbers: {why}", remedy="give a numeric matrix") from None


def _numbers(matrix: Rows, rows: Ints | slice | None, name: str) -> npt.NDArray[Any]:
    block = np.asarray(matrix[slice(None) if rows is None else rows])
    if block.dtype.kind not in "fiub":
        raise InputError(f"{name} holds {block.dtype} values", remedy="give real numbers")
    wide = block.dtype == np.float64 or block.dtype.kind != "f"
    return np.ascontiguousarray(block, dtype=np.float64 if wide else np.float32)


def read_rows(matrix: Rows, rows: Ints | slice | None = None, *, name: str = "X") -> npt.NDArray[Any]:
    """Rows of a matrix as a C-contiguous finite array (m, d).

    float64 and integers come as float64, every other number as float32.

    Raises
    ------
    InputError
        For NaN or infinite values, naming the first of them, and for values that are no numbers.
    """
    block = _numbers(matrix, rows, name)
    with np.errstate(over="ignore", invalid="ignore"):
        suspect = not np.isfinite(block.sum())
    if suspect and not np.isfinite(block).all():
        bad, column = np.argwhere(~np.isfinite(block))[0]
        row = bad if rows is None else (rows.start or 0) + bad if isinstance(rows, slice) else rows[bad]
        raise InputError(
            f"{name} has the value {block[bad, column]} in row {int(row)}, column {int(column)}",
            remedy="remove or fill missing and infinite values",
        )
    return block


def encode(labels: Any, n: int | None = None, *, name: str = "labels") -> tuple[Ints, Strings]:
    """Codes into the sorted distinct labels.

    Parameters
    ----------
    labels
        (n,) labels of any sortable kind; missing ones are an error.
    n
        Length that they must have.

    Returns
    -------
    (codes, distinct)
        (n,) int64 and the sorted distinct labels.
    """
    if isinstance(getattr(labels, "dtype", None), pd.CategoricalDtype):
        # Sorted by label, not by the order of the categories.
        labels = np.asarray(labels)
    elif not isinstance(labels, np.ndarray | pd.Series | pd.Index):
        labels = np.asarray(list(labels))
    if getattr(labels, "ndim", 1) != 1:
        raise InputError(f"{name} has shape {np.shape(labels)}", remedy="give one label per sample")
    if n is not None and len(labels) != n:
        raise InputError(f"{name} has {len(labels)} entries for {n} samples", remedy="give one label per sample")
    try:
        codes, distinct = pd.factorize(labels, sort=True)
    except TypeError:
        raise InputError(f"{name} mixes labels that cannot be sorted", remedy="make them all text") from None
    if len(codes) and codes.min() < 0:
        first = int(np.flatnonzero(codes < 0)[0])
        raise InputError(f"{name} is missing in row {first}", remedy="give every sample a label")
    return codes.astype(np.int64), np.asarray(distinct)


def as_codes(codes: Ints, n: int, n_groups: int) -> Ints:
    """Check group codes: (n,) integers below n_groups; negative ones leave a sample out."""
    codes = np.asarray(codes)
    if codes.shape != (n,):
        raise InputError(f"codes have shape {codes.shape} for {n} samples", remedy="give one code per sample")
    if codes.dtype.kind not in "iu":
        raise InputError(f"codes are {codes.dtype} values", remedy="give integers")
    if n and codes.max() >= n_groups:
        raise InputError(f"code {codes.max()} is not below the number of groups, {n_groups}")
    return codes.astype(np.int64)


@jit
def _add_rows(block: Any, codes: Any, sums: Any, counts: Any) -> None:
    d = block.shape[1]
    for i in range(block.shape[0]):
        group = codes[i]
        if group < 0:
            continue
        counts[group] += 1
        for j in range(d):
            sums[group, j] += block[i, j]


@jit
def _add_unit_rows(block: Any, codes: Any, sums: Any, counts: Any, nonzero: Any) -> bool:
    """Add rows divided by their norm; returns whether all squared norms, of rows in no group too, were finite."""
    m, d = block.shape
    total = 0.0
    for i in range(m):
        if i + _AHEAD < m:
            # The processor itself does not look beyond a page, which is a few rows.
            row = block.ctypes.data + block.itemsize * d * (i + _AHEAD)
            for line in range(0, block.itemsize * d, 64):
                prefetch_once(row + line)
            # Groups come in any order, and their sums are more than a core's cache holds.
            if codes[i + _AHEAD] >= 0:
                start = sums.ctypes.data + 8 * codes[i + _AHEAD] * d
                for line in range(0, 8 * d, 64):
                    prefetch(start + line)
        square = 0.0
        for j in range(d):
            value = np.float64(block[i, j])
            square += value * value
        total += square
        group = codes[i]
        if group < 0:
            continue
        counts[group] += 1
        if square > 0.0:
            nonzero[group] += 1
            scale = 1.0 / np.sqrt(square)
            for j in range(d):
                sums[group, j] += block[i, j] * scale
    return bool(np.isfinite(total))


def add_to_groups(sums: F64, counts: Ints, block: npt.NDArray[Any], codes: Ints) -> None:
    """Add rows (m, d) to the sums (n_groups, d) and numbers (n_groups,) of their groups (m,); negative: in no group."""
    _add_rows(np.ascontiguousarray(block), np.ascontiguousarray(codes, dtype=np.int64), sums, counts)


def group_sums(X: Rows, codes: Ints, n_groups: int, *, max_elements: int | None = None) -> tuple[Ints, F64]:
    """Sum of the rows of every group, in one pass by blocks.

    Parameters
    ----------
    X
        (n, d).
    codes
        (n,) group of each sample; negative: in no group.
    n_groups, max_elements
        Number of groups; values per block.

    Returns
    -------
    (n, sums)
        (n_groups,) int64 and (n_groups, d) float64.
    """
    matrix = checked_matrix(X)
    codes = as_codes(codes, matrix.shape[0], n_groups)
    counts = np.zeros(n_groups, dtype=np.int64)
    sums = np.zeros((n_groups, matrix.shape[1]))
    for rows in row_blocks(matrix.shape[0], matrix.shape[1], max_elements):
        _add_rows(read_rows(matrix, rows), codes[rows], sums, counts)
    return counts, sums


def group_means(X: Rows, codes: Ints, n_groups: int, *, max_elements: int | None = None) -> tuple[Ints, F64]:
    """Mean of the rows of every group; NaN for an empty one. See `group_sums`."""
    counts, sums = group_sums(X, codes, n_groups, max_elements=max_elements)
    with np.errstate(invalid="ignore"):
        return counts, sums / np.where(counts > 0, counts, np.nan)[:, None]


def group_unit_sums(X: Rows, codes: Ints, n_groups: int, *, max_elements: int | None = None) -> tuple[Ints, Ints, F64]:
    """Sum of the unit vectors of the rows of every group; a zero row adds nothing.

    Returns
    -------
    (n, nonzero, sums)
        (n_groups,) samples and samples that are not zero, (n_groups, d) float64. See `group_sums`.
    """
    matrix = checked_matrix(X)
    codes = as_codes(codes, matrix.shape[0], n_groups)
    counts = np.zeros(n_groups, dtype=np.int64)
    nonzero = np.zeros(n_groups, dtype=np.int64)
    sums = np.zeros((n_groups, matrix.shape[1]))
    for rows in row_blocks(matrix.shape[0], matrix.shape[1], max_elements):
        if not _add_unit_rows(_numbers(matrix, rows, "X"), codes[rows], sums, counts, nonzero):
            # Says which value it is; squares may also have been too large for float64.
            read_rows(matrix, rows)
    return counts, nonzero, sums


def canonical_order(X: Rows, rows: Ints, strata: Ints | None = None, *, columns: int = 4) -> Ints:
    """Rows sorted by stratum, then by the values of their first columns.

    A draw by position in this order does not depend on the order of the samples in the file: those that agree in the
    first columns are sorted by a hash of all their values, and only equal rows stay as they come.

    Parameters
    ----------
    X
        (n, d).
    rows
        (m,) row numbers.
    strata
        (m,) stratum of each of them.

    Returns
    -------
    (m,) the same row numbers, sorted.
    """
    columns = min(columns, X.shape[1])
    keys = np.empty((columns, len(rows)))
    for block in row_blocks(len(rows), X.shape[1]):
        keys[:, block] = read_rows(X, rows[block])[:, :columns].T
    stratum = np.zeros(len(rows), dtype=np.int64) if strata is None else strata
    order = np.lexsort([*keys[::-1], stratum])
    if columns == X.shape[1]:
        return rows[order]
    same = np.diff(stratum[order]) == 0
    for key in keys:
        same &= np.diff(key[order]) == 0
    if same.any():
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        hashes = np.empty(len(tied), np.uint64)
        for block in row_blocks(len(tied), X.shape[1]):
            hashes[block] = row_hashes(read_rows(X, rows[order[tied[block]]]))
        run = np.cumsum(np.append(True, ~same))[tied]
        order[tied] = order[tied[np.lexsort([hashes, run])]]
    return rows[order]


@jit
def _hash_rows(bits: Any, out: Any) -> None:
    for i in range(len(bits)):
        value = np.uint64(0xCBF29CE484222325)
        for j in range(bits.shape[1]):
            value = (value ^ np.uint64(bits[i, j])) * np.uint64(0x9E3779B97F4A7C15)
            value ^= value >> np.uint64(32)
        out[i] = value


def row_hashes(block: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """A number per row (m, d) of floats that depends on its values alone; equal for equal rows (0 equals -0)."""
    values = np.ascontiguousarray(block) + block.dtype.type(0)
    out = np.empty(len(values), np.uint64)
    _hash_rows(values.view(np.uint32 if values.itemsize == 4 else np.uint64), out)
    return out


def distinct_rows(hashes: npt.NDArray[np.uint64]) -> tuple[Ints, Ints] | None:
    """First row of each kind, and the kind of each row, from the hashes of all rows; None where no row repeats.

    Blocked matrix products may round the same row differently at different places. What is computed from the first
    row of each kind is the same for equal rows, to the last bit.
    """
    kind, distinct = pd.factorize(hashes)
    if len(distinct) == len(hashes):
        return None
    # Kinds are numbered as they first occur.
    first = np.flatnonzero(np.diff(np.maximum.accumulate(kind), prepend=-1))
    return first, kind.astype(np.int64)


@jit
def _partial_shuffle(pool: Any, uniforms: Any, out: Any) -> None:
    m = len(pool)
    k, draws = uniforms.shape
    swapped = np.empty(k, dtype=np.int64)
    for t in range(draws):
        for i in range(k):
            j = i + min(m - i - 1, int(uniforms[i, t] * (m - i)))
            swapped[i] = j
            pool[i], pool[j] = pool[j], pool[i]
            out[t, i] = pool[i]
        # Undone, so that the first samples of a draw do not depend on how many the draw before took.
        for i in range(k - 1, -1, -1):
            j = swapped[i]
            pool[i], pool[j] = pool[j], pool[i]


@dataclass(frozen=True)
class SetDraws:
    """Random sets of samples that have, per stratum, as many samples as given groups have.

    One draw shuffles every stratum once; a group with c samples in a stratum takes the first c of them. So the sets
    of one group are independent and uniform among all sets with its composition, the sets of different groups share
    samples, and the work of a draw does not grow with the number of groups.

    Attributes
    ----------
    pool, pool_starts
        Row numbers that may be drawn, by stratum; where each stratum starts (n_strata + 1).
    names
        Name of each stratum: its random stream is keyed on it.
    slot_starts
        (n_strata + 1,) a draw holds, per stratum, the largest count that any group has there.
    indptr, stratum, count
        Composition of group i: strata `stratum[indptr[i]:indptr[i + 1]]` with `count` samples each.
    own
        As `count`: how many samples the group has there, before it was thinned.
    """

    pool: Ints
    pool_starts: Ints
    names: tuple[str, ...]
    slot_starts: Ints
    indptr: Ints
    stratum: Ints
    count: Ints
    own: Ints

    @classmethod
    def of_groups(cls, X: Rows, codes: Ints, strata: Any, groups: Ints, *, max_samples: int | None = None) -> SetDraws:
        """Compose the draws of groups out of all samples that are in some group.

        Parameters
        ----------
        X
            (n, d); only orders the samples within their stratum.
        codes
            (n,) group of each sample; negative: never drawn.
        strata
            (n,) stratum (batch) of each sample, as codes or labels.
        groups
            (k,) codes of the groups.
        max_samples
            Larger groups count with so many samples, in the same proportions.
        """
        strata_codes, labels = encode(strata, len(codes), name="batch")
        rows = np.flatnonzero(codes >= 0)
        if not len(rows):
            raise NotComputable("there are no perturbed samples")
        pool = canonical_order(X, rows, strata_codes[rows])
        pool_starts = np.concatenate([[0], np.cumsum(np.bincount(strata_codes[rows], minlength=len(labels)))])
        position = np.full(int(codes.max()) + 1, -1, dtype=np.int64)
        position[groups] = np.arange(len(groups))
        mine = rows[position[codes[rows]] >= 0]
        cell, count = np.unique(position[codes[mine]] * len(labels) + strata_codes[mine], return_counts=True)
        group, stratum = np.divmod(cell, len(labels))
        own = count
        if max_samples is not None:
            count = _shrink(group, count, len(groups), max_samples)
            group, stratum, own, count = (each[count > 0] for each in (group, stratum, own, count))
        widest = np.zeros(len(labels), dtype=np.int64)
        np.maximum.at(widest, stratum, count)
        return cls(
            pool=pool,
            pool_starts=pool_starts.astype(np.int64),
            names=tuple(map(str, labels)),
            slot_starts=np.concatenate([[0], np.cumsum(widest)]).astype(np.int64),
            indptr=np.searchsorted(group, np.arange(len(groups) + 1)).astype(np.int64),
            stratum=stratum.astype(np.int64),
            count=count.astype(np.int64),
            own=own.astype(np.int64),
        )

    @property
    def n_slots(self) -> int:
        """Samples in one draw."""
        return int(self.slot_starts[-1])

    @property
    def sizes(self) -> Ints:
        """(k,) samples in the set of each group."""
        totals = np.concatenate([[0], np.cumsum(self.count)])
        return np.asarray(totals[self.indptr[1:]] - totals[self.indptr[:-1]], dtype=np.int64)

    @property
    def last_slots(self) -> Ints:
        """Slot of the last sample that each entry of the composition takes."""
        return self.slot_starts[self.stratum] + self.count - 1

    @property
    def testable(self) -> Bools:
        """(k,) whether a set can hold samples of other groups: some stratum of the group has them."""
        spare = np.diff(self.pool_starts)[self.stratum] > self.own
        return np.asarray(
            [spare[a:b].any() for a, b in zip(self.indptr[:-1], self.indptr[1:], strict=True)], dtype=bool
        )

    def slots(self, group: int) -> Ints:
        """All slots that the set of a group takes."""
        entries = range(self.indptr[group], self.indptr[group + 1])
        first = self.slot_starts[self.stratum]
        return np.concatenate([np.arange(first[e], first[e] + self.count[e]) for e in entries])

    def draw(self, draws: int, seed: int, *names: str) -> Iterator[Ints]:
        """Row numbers of the drawn samples, in chunks (at most `DRAWS_PER_STREAM`, n_slots)."""
        for chunk, start in enumerate(range(0, draws, DRAWS_PER_STREAM)):
            size = min(DRAWS_PER_STREAM, draws - start)
            out = np.empty((size, self.n_slots), dtype=np.int64)
            for s, name in enumerate(self.names):
                a, b = self.slot_starts[s : s + 2]
                if b > a:
                    pool = self.pool[self.pool_starts[s] : self.pool_starts[s + 1]].copy()
                    uniforms = stream(seed, *names, name, chunk).random((b - a, DRAWS_PER_STREAM))[:, :size]
                    _partial_shuffle(pool, uniforms, out[:, a:b])
            yield out


def _shrink(group: Ints, count: Ints, n_groups: int, limit: int) -> Ints:
    """Counts of each group scaled down to `limit` in total, largest remainders first."""
    total = np.bincount(group, weights=count, minlength=n_groups)
    out = count.copy()
    for g in np.flatnonzero(total > limit):
        mine = np.flatnonzero(group == g)
        exact = count[mine] * (limit / total[g])
        out[mine] = np.floor(exact)
        rest = np.argsort(out[mine] - exact, kind="stable")[: limit - int(out[mine].sum())]
        out[mine[rest]] += 1
    return out
