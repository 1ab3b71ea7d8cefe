"""Level 4, retrieval: does a sample find the others of its perturbation first? (mean average precision)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from txeval.compute.arrays import BLOCK_ELEMENTS, F32, F64, Ints, Rows, Strings
from txeval.compute.groups import (
    SetDraws,
    as_codes,
    checked_matrix,
    distinct_rows,
    encode,
    read_rows,
    row_hashes,
)
from txeval.compute.jit import jit
from txeval.compute.random import stream
from txeval.errors import InputError, NotComputable, unknown
from txeval.metrics.consistency import adjust

__all__ = [
    "Retrieval",
    "RetrievalNull",
    "expected_average_precision",
    "joined_retrievals",
    "map_table",
    "mean_average_precision",
    "permutation_p",
    "rank_null_p",
    "retrieve",
]

RetrievalNull = Literal["samples", "ranks"]

#: Groups of classes that queries are put into for what other classes take from them.
MAX_GROUPS = 256

#: Mean precisions of drawn sets within rounding of the observed one count as reaching it.
TIE = 1e-9


@dataclass(frozen=True)
class Retrieval:
    """Average precision of every query.

    Attributes
    ----------
    values
        (m,) float64, 0 .. 1; NaN for a query without a positive or without a negative candidate.
    n_positive, n_total
        (m,) int64 candidates of the query's own class, and all candidates.
    by_class
        (n_classes, m) float32: the precision that each query would have if it were of that class, for the permutation
        of queries; NaN where the class has no candidate. None where it was not asked for.
    taken
        (g, n_classes): what the candidates of a class take from the weighted precisions of the queries of a group of
        classes, by standing before their positives, in the linear approximation. None where no weights were given.
    """

    values: F64
    n_positive: Ints
    n_total: Ints
    by_class: F32 | None = None
    taken: F64 | None = None


@jit
def _add_taken(
    keys: Any,
    bits: int,
    query_class: Any,
    query_block: Any,
    query_weight: Any,
    ref_class: Any,
    ref_block: Any,
    group: Any,
    n_positive: Any,
    n_total: Any,
    taken: Any,
) -> None:
    """Walk up each query's ranking; a candidate takes from every positive below it or equal: k / rank^2 of the k-th.

    The rank of what ties is that of the last of them, as in the precision.
    """
    mask = (1 << bits) - 1
    for q in range(keys.shape[0]):
        own = query_class[q]
        found, rank = n_positive[q], n_total[q]
        if found == 0 or found == rank:
            continue
        weight = query_weight[q] / found
        row = taken[group[own]]
        below = 0.0
        n = keys.shape[1]
        at = 0
        while at < n:
            r = keys[q, at] & mask
            candidate = query_block[q] < 0 or ref_block[r] != query_block[q]
            if at + 1 == n or keys[q, at + 1] >> bits != keys[q, at] >> bits:
                at += 1
                if not candidate:
                    continue
                if ref_class[r] == own:
                    below += found / rank**2
                    found -= 1
                else:
                    row[ref_class[r]] += weight * below
                rank -= 1
                continue
            # A run of ties: first all of its positives, then what its other candidates take from them.
            start, value = at, keys[q, at] >> bits
            positives, candidates = 0, 0
            while at < n and keys[q, at] >> bits == value:
                r = keys[q, at] & mask
                if query_block[q] < 0 or ref_block[r] != query_block[q]:
                    candidates += 1
                    positives += ref_class[r] == own
                at += 1
            if positives:
                below += positives * (found / rank**2)
            for tied in range(start, at):
                r = keys[q, tied] & mask
                if ref_class[r] != own and (query_block[q] < 0 or ref_block[r] != query_block[q]):
                    row[ref_class[r]] += weight * below
            found -= positives
            rank -= candidates


def joined_retrievals(parts: Sequence[Retrieval]) -> Retrieval:
    """The queries of all parts, one after another; classes are coded alike in all of them."""
    if len(parts) == 1:
        return parts[0]
    by_class = [part.by_class for part in parts if part.by_class is not None]
    taken = [part.taken for part in parts if part.taken is not None]
    return Retrieval(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.n_positive for part in parts]),
        np.concatenate([part.n_total for part in parts]),
        np.concatenate(by_class, axis=1) if len(by_class) == len(parts) else None,
        np.sum(taken, axis=0) if len(taken) == len(parts) else None,
    )


@jit
def _average_precisions(
    keys: Any,
    bits: int,
    query_class: Any,
    query_block: Any,
    ref_class: Any,
    ref_block: Any,
    class_size: Any,
    found: Any,
    pending: Any,
    touched: Any,
    sums: Any,
    values: Any,
    n_positive: Any,
    n_total: Any,
    by_class: Any,
    first: int,
) -> None:
    """Walk down each query's ranking once; every class collects its precision at the end of each run of ties."""
    b, n = keys.shape
    mask = (1 << bits) - 1
    n_classes = len(found)
    keep = by_class.shape[0] > 0
    for q in range(b):
        block = query_block[q]
        for c in range(n_classes):
            found[c] = 0
            sums[c] = 0.0
            class_size[c] = 0
        total = 0
        at = n - 1
        while at >= 0:
            # One run of equal similarities: all of it is found at once.
            value = keys[q, at] >> bits
            n_touched = 0
            while at >= 0 and keys[q, at] >> bits == value:
                r = keys[q, at] & mask
                at -= 1
                if block >= 0 and ref_block[r] == block:
                    continue
                total += 1
                c = ref_class[r]
                if pending[c] == 0:
                    touched[n_touched] = c
                    n_touched += 1
                pending[c] += 1
            for t in range(n_touched):
                c = touched[t]
                found[c] += pending[c]
                sums[c] += pending[c] * (found[c] / total)
                class_size[c] += pending[c]
                pending[c] = 0
        own = query_class[q]
        n_total[first + q] = total
        n_positive[first + q] = class_size[own]
        if 0 < class_size[own] < total:
            values[first + q] = sums[own] / class_size[own]
        if keep:
            for c in range(n_classes):
                if 0 < class_size[c] < total:
                    by_class[c, first + q] = sums[c] / class_size[c]


def retrieve(
    X_ref: Rows,
    ref_codes: Ints,
    X_query: Rows,
    query_codes: Ints,
    *,
    n_classes: int,
    ref_block: Ints | None = None,
    query_block: Ints | None = None,
    by_class: bool = False,
    query_weight: F64 | None = None,
    max_elements: int | None = None,
) -> Retrieval:
    r"""Average precision of the reference samples of a query's class in the ranking by cosine.

    .. math:: AP = \sum_t (R_t - R_{t-1}) P_t

    over the distinct similarities t in decreasing order, R_t and P_t the recall and the precision of the candidates at
    least that similar: the definition of scikit-learn, and without ties that of copairs (Kalinin et al., Nat. Commun.
    2025). Ties are found all at once, so that equal rows score the share of positives and no more. Cosines are rounded
    (float32 input: 6 decimals, float64: 12 up to 4 million references), so that ties are ties in spite of rounding; a
    zero row has cosine 0.

    Parameters
    ----------
    X_ref, X_query
        (n, d) and (m, d), finite.
    ref_codes, query_codes
        (n,) and (m,) classes, 0 to n_classes - 1.
    ref_block, query_block
        (n,) and (m,) int codes: a reference sample of the query's block (such as its batch, or the sample itself) is
        no candidate. Negative: no block.
    by_class
        Whether to keep the precision of every query for every class, n_classes x m values.
    query_weight
        (m,) weights of the queries, for `taken`.
    max_elements
        Values of one block of similarities; it does not change the result.

    Raises
    ------
    InputError
        For NaN, codes out of range, lengths or widths that differ.
    NotComputable
        For no reference sample or no query.
    """
    reference, queries = checked_matrix(X_ref, "X_ref"), checked_matrix(X_query, "X_query")
    n, m = reference.shape[0], queries.shape[0]
    if n == 0 or m == 0:
        raise NotComputable(f"there is no {'reference sample' if n == 0 else 'query'}")
    if reference.shape[1] != queries.shape[1]:
        raise InputError(
            f"X_ref has {reference.shape[1]} columns, X_query {queries.shape[1]}", remedy="embed both in the same space"
        )
    ref_codes, query_codes = as_codes(ref_codes, n, n_classes), as_codes(query_codes, m, n_classes)
    for name, codes in (("ref_codes", ref_codes), ("query_codes", query_codes)):
        if codes.min() < 0:
            raise InputError(f"{name} has a negative class", remedy="leave samples without a class out")
    ref_block, query_block = _blocks(ref_block, n, "ref_block"), _blocks(query_block, m, "query_block")

    units = _unit_rows(read_rows(reference, name="X_ref"))
    repeated = distinct_rows(row_hashes(units))
    if repeated is not None:
        units = units[repeated[0]]
    # 10^12 in 41 bits with its sign leave 22 for the row.
    bits = max(1, (n - 1).bit_length())
    decimals = 12 if units.dtype == np.float64 and bits <= 22 else 6
    values = np.full(m, np.nan)
    n_positive, n_total = np.zeros(m, np.int64), np.zeros(m, np.int64)
    table = np.full((n_classes if by_class else 0, m), np.nan, dtype=np.float32)
    counts, found, pending = (np.zeros(n_classes, np.int64) for _ in range(3))
    touched, sums = np.zeros(n_classes, np.int64), np.zeros(n_classes)
    group = np.arange(n_classes) % MAX_GROUPS
    taken = None if query_weight is None else np.zeros((min(n_classes, MAX_GROUPS), n_classes))
    step = max(1, (max_elements or BLOCK_ELEMENTS) // max(n, reference.shape[1]))
    for start in range(0, m, step):
        rows = slice(start, min(start + step, m))
        block = _unit_rows(read_rows(queries, rows, name="X_query")).astype(units.dtype, copy=False)
        # Rounded cosine and row in one integer: sorting these is several times faster than an argsort.
        keys = np.rint(block @ units.T * 10**decimals).astype(np.int64) << bits
        if repeated is not None:
            keys = keys[:, repeated[1]]
        keys |= np.arange(n)
        keys.sort(axis=1)
        _average_precisions(
            keys,
            bits,
            query_codes[rows],
            query_block[rows],
            ref_codes,
            ref_block,
            counts,
            found,
            pending,
            touched,
            sums,
            values,
            n_positive,
            n_total,
            table,
            start,
        )
        if taken is not None and query_weight is not None:
            _add_taken(
                keys,
                bits,
                query_codes[rows],
                query_block[rows],
                query_weight[rows],
                ref_codes,
                ref_block,
                group,
                n_positive[rows],
                n_total[rows],
                taken,
            )
    return Retrieval(values, n_positive, n_total, table if by_class else None, taken)


def _blocks(codes: Ints | None, n: int, name: str) -> Ints:
    if codes is None:
        return np.full(n, -1, dtype=np.int64)
    if np.shape(codes) != (n,):
        raise InputError(f"{name} has shape {np.shape(codes)} for {n} samples", remedy="give one code per sample")
    return np.asarray(codes, dtype=np.int64)


def _unit_rows(block: Any) -> Any:
    norms = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float64))
    return (block / np.where(norms > 0, norms, 1.0)[:, None]).astype(block.dtype)


def expected_average_precision(n_positive: Any, n_total: Any) -> F64:
    r"""Expected average precision of a random ranking without ties.

    .. math:: E = \frac{1}{L}\left(H_L + \frac{M - 1}{L - 1} (L - H_L)\right)

    for M positives among L candidates, H_L the L-th harmonic number; 1 where all are positive, NaN where none is.
    """
    positive, total = np.asarray(n_positive, dtype=np.int64), np.asarray(n_total, dtype=np.int64)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, int(total.max(initial=1)) + 1))])[total]
    pairs = np.maximum(total - 1, 1)
    expected = (harmonic + (positive - 1) / pairs * (total - harmonic)) / np.maximum(total, 1)
    return np.where(positive > 0, np.where(positive == total, 1.0, expected), np.nan)


def permutation_p(
    retrieval: Retrieval,
    X: Rows,
    query_codes: Ints,
    strata: Any,
    groups: Ints,
    n_classes: int,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> F64:
    """p-values of mean average precisions against random sets of queries with the same batches.

    The null of a class: sets of queries of all classes (its own included) that have, in each batch, as many queries as
    the class has there, every one scored as if it were of that class. p = (1 + #{null >= mean}) / (draws + 1), which is
    exactly valid where queries are exchangeable within batches, however their rankings depend on each other. Draws and
    streams: `txeval.compute.groups.SetDraws`.

    Parameters
    ----------
    retrieval
        Result of `retrieve` with `by_class=True`.
    X
        (m, d) queries: they order the samples within a batch.
    query_codes, strata
        (m,) classes and batches of the queries.
    groups
        (k,) classes to test.
    n_classes, draws, seed
        Number of classes; random sets per class; their stream.

    Returns
    -------
    (k,) float64; NaN for a class whose batches hold no query of another class.
    """
    table = retrieval.by_class
    if table is None:
        raise InputError("the precision of every class was not kept", remedy="call retrieve with by_class=True")
    if draws < 1:
        raise InputError(f"draws is {draws}", remedy="use at least 20")
    codes = as_codes(query_codes, table.shape[1], n_classes)
    sets = SetDraws.of_groups(X, codes, strata, groups)
    starts, slots = _slot_lists(sets, len(groups))
    observed = np.asarray([_mean(table[g, np.flatnonzero(codes == g)]) for g in groups])
    reached = np.zeros(len(groups), dtype=np.int64)
    for chunk in sets.draw(draws, seed, "retrieval"):
        _count_means(table, groups, chunk, starts, slots, observed, TIE, reached)
    return np.where(sets.testable & np.isfinite(observed), (1 + reached) / (draws + 1), np.nan)


def _mean(values: Any) -> float:
    known = values[np.isfinite(values)].astype(np.float64)
    return float(known.mean()) if len(known) else float("nan")


def _slot_lists(sets: SetDraws, k: int) -> tuple[Ints, Ints]:
    """All slots that the set of each group takes, one list after the other."""
    lists = [sets.slots(i) for i in range(k)]
    starts = np.concatenate([[0], np.cumsum([len(slots) for slots in lists])]).astype(np.int64)
    return starts, np.concatenate(lists).astype(np.int64)


@jit
def _count_means(
    table: Any, groups: Any, drawn: Any, starts: Any, slots: Any, observed: Any, tie: float, reached: Any
) -> None:
    for t in range(len(drawn)):
        for i in range(len(groups)):
            row = table[groups[i]]
            total = 0.0
            count = 0
            for s in range(starts[i], starts[i + 1]):
                value = np.float64(row[drawn[t, slots[s]]])
                # A query without a candidate of the class has no precision for it.
                if value == value:
                    total += value
                    count += 1
            if count > 0 and total / count >= observed[i] - tie:
                reached[i] += 1


def rank_null_p(
    values: F64, n_positive: Ints, n_total: Ints, codes: Ints, groups: Ints, *, draws: int = 1000, seed: int = 0
) -> F64:
    """p-values of mean average precisions against random rankings, as copairs has them.

    The null of a class is the mean, over its queries, of the average precision of random rankings with as many
    positives and candidates; queries that agree in both numbers share their draws, so that the null of a class of
    equal queries is as wide as that of one query. p = (1 + #{null > mean}) / (draws + 1). Rankings of queries that
    look at the same references depend on each other, which this null does not know: see `permutation_p`.

    Parameters
    ----------
    values, n_positive, n_total, codes
        (m,) of each query; NaN values do not count.
    groups
        (k,) classes to test.

    Returns
    -------
    (k,) float64; NaN for a class without a query that has a value.
    """
    known = np.isfinite(values)
    shapes, which = np.unique(np.column_stack([n_positive, n_total])[known], axis=0, return_inverse=True)
    nulls = np.empty((len(shapes), draws))
    for i, (positive, total) in enumerate(shapes):
        rng = stream(seed, "retrieval", "ranks", int(positive), int(total))
        nulls[i] = _random_precisions(int(positive), int(total), draws, rng)
    out = np.full(len(groups), np.nan)
    own = codes[known]
    for i, group in enumerate(groups):
        mine = np.flatnonzero(own == group)
        if len(mine):
            null = nulls[which.ravel()[mine]].mean(axis=0)
            out[i] = (1 + int((null > values[known][mine].mean()).sum())) / (draws + 1)
    return out


def _random_precisions(positive: int, total: int, draws: int, rng: np.random.Generator) -> F64:
    """Average precisions of random rankings: `positive` ranks drawn without replacement out of `total`."""
    out = np.empty(draws)
    for i in range(draws):
        ranks = np.sort(rng.choice(total, size=positive, replace=False)) + 1
        out[i] = float((np.arange(1, positive + 1) / ranks).mean())
    return out


def mean_average_precision(
    X_ref: Any,
    y_ref: Any,
    X_query: Any,
    y_query: Any,
    *,
    query_batch: Any = None,
    null: RetrievalNull = "samples",
    draws: int = 1000,
    seed: int = 0,
    max_elements: int | None = None,
) -> pd.DataFrame:
    """Mean average precision of every perturbation: queries rank a reference set of other batches by cosine.

    Parameters
    ----------
    X_ref, X_query
        (n, d) and (m, d) samples, controls left out, such as the train and the test split; no sample in both.
    y_ref, y_query
        (n,) and (m,) labels. A query whose label the reference set lacks has no precision.
    query_batch
        (m,) batches of the queries, for the null "samples".
    null
        "samples": random sets of queries with the same batches, see `permutation_p`; "ranks": random rankings, see
        `rank_null_p`.
    draws, seed
        Of the null.
    max_elements
        Values of one block of similarities.

    Returns
    -------
    pandas.DataFrame
        One row per label of a query that the reference set has, sorted: perturbation, n (queries), map (0 .. 1),
        expected (of random rankings), p_value, p_adjusted (Benjamini-Hochberg).

    Raises
    ------
    InputError
        For lengths that differ, NaN, missing labels.
    NotComputable
        Where no query has both a positive and a negative candidate.

    References
    ----------
    Kalinin et al., Nature Communications 16 (2025), copairs.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[1.0, 0], [0, 1]])
    >>> found = mean_average_precision(X, ["a", "b"], X + 0.1, ["a", "b"], draws=20)
    >>> found["map"].tolist()
    [1.0, 1.0]
    """
    if null not in ("samples", "ranks"):
        raise unknown("null", str(null), ("samples", "ranks"))
    reference, queries = checked_matrix(X_ref, "X_ref"), checked_matrix(X_query, "X_query")
    m = queries.shape[0]
    ref_codes, classes = encode(y_ref, reference.shape[0], name="y_ref")
    codes, labels = encode(y_query, m, name="y_query")
    everything = np.unique(np.concatenate([classes.astype(str), labels.astype(str)]))
    ref_codes = np.searchsorted(everything, classes.astype(str))[ref_codes]
    codes = np.searchsorted(everything, labels.astype(str))[codes]
    found = retrieve(
        reference,
        ref_codes,
        queries,
        codes,
        n_classes=len(everything),
        by_class=null == "samples",
        max_elements=max_elements,
    )
    strata = np.zeros(m, dtype=np.int64) if query_batch is None else encode(query_batch, m, name="query_batch")[0]
    table = map_table(found, queries, codes, strata, everything, null=null, draws=draws, seed=seed)
    return table[table["n"] > 0].reset_index(drop=True)


def map_table(
    found: Retrieval,
    X: Rows,
    codes: Ints,
    strata: Ints,
    labels: Strings,
    *,
    null: RetrievalNull,
    draws: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Table of `mean_average_precision`, a row for every label, from the precisions of the queries X.

    Raises
    ------
    NotComputable
        Where no query has both a positive and a negative candidate.
    """
    known = np.isfinite(found.values)
    if not known.any():
        raise NotComputable("no query has both a positive and a negative candidate")
    n = np.bincount(codes[known], minlength=len(labels))
    tested = np.flatnonzero(n)
    chance = expected_average_precision(found.n_positive, found.n_total)

    def mean(values: F64) -> F64:
        sums = np.bincount(codes[known], weights=values[known], minlength=len(labels))
        return np.where(n > 0, sums / np.maximum(n, 1), np.nan)

    p = np.full(len(labels), np.nan)
    if null == "samples":
        p[tested] = permutation_p(found, X, codes, strata, tested, len(labels), draws=draws, seed=seed)
    else:
        p[tested] = rank_null_p(found.values, found.n_positive, found.n_total, codes, tested, draws=draws, seed=seed)
    return pd.DataFrame(
        {
            "perturbation": labels,
            "n": n,
            "map": mean(found.values),
            "expected": mean(chance),
            "p_value": p,
            "p_adjusted": adjust(p),
        }
    )
