"""Level 4: do the neighbours of a sample share its label? (weighted kNN classification)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from txeval.compute.arrays import F32, F64, Ints, Rows, Strings, row_blocks
from txeval.compute.groups import as_codes, checked_matrix, encode
from txeval.compute.jit import jit
from txeval.compute.neighbours import NeighbourIndex, at_least_one, equal_rows, finite_rows, tie_remark, tied_at
from txeval.compute.pca import principal_axes
from txeval.errors import InputError, NotComputable

__all__ = [
    "MAX_AHEAD",
    "ClassRanks",
    "accuracies",
    "codes_in",
    "commonest_share",
    "constant_accuracy",
    "expected_hits",
    "knn_accuracy",
    "true_class_ranks",
]

#: Classes before the true one, or equal to it, are named where they are so many or fewer: what top 5 needs.
MAX_AHEAD = 5

#: Added to every distance before it divides 1, so that duplicates have a finite vote.
_SOFTENING = 1e-5


@dataclass(frozen=True)
class ClassRanks:
    """Rank of the true class of every query.

    Attributes
    ----------
    rank
        (m,) int64, the number of classes with a larger vote. Where the true class has no vote at all it is
        max(n_classes, 5), so that it is right in no top 1 or top 5.
    tied
        (m,) int64, the number of other classes with the same vote; see `expected_hits`.
    ahead
        (m, 5) int64, where the classes with a larger or the same vote are 5 or fewer: the former from the front, the
        latter from the back; -1 elsewhere.
    k
        Neighbours that voted.
    components
        Dimensions that distances were taken in.
    notes
        What differs from what was asked for.
    """

    rank: Ints
    tied: Ints
    ahead: Ints
    k: int
    components: int
    notes: tuple[str, ...] = ()


def expected_hits(rank: Ints, tied: Ints, top: int) -> F64:
    """Probability that each sample's class is among the `top` first, if ties between classes are broken at random.

    With r classes before it and e others equal to it: (top - r) / (1 + e), at least 0 and at most 1.

    Examples
    --------
    >>> expected_hits(np.array([0, 0, 4, 5]), np.array([0, 3, 1, 0]), 1).tolist()
    [1.0, 0.25, 0.0, 0.0]
    >>> expected_hits(np.array([0, 0, 4, 5]), np.array([0, 3, 1, 0]), 5).tolist()
    [1.0, 1.0, 0.5, 0.0]
    """
    return np.asarray(np.clip((top - rank) / (1.0 + tied), 0.0, 1.0), dtype=np.float64)


def accuracies(rank: Ints, tied: Ints, labels: Any) -> dict[str, float]:
    """`top1`, `top5` and `top1_balanced` (mean over labels (m,) of their top 1); see `expected_hits`."""
    first = expected_hits(rank, tied, 1)
    own, _ = encode(labels, len(rank), name="labels")
    return {
        "top1": float(first.mean()),
        "top5": float(expected_hits(rank, tied, 5).mean()),
        "top1_balanced": float(pd.Series(first).groupby(own).mean().mean()),
    }


@jit
def _rank_by_votes(
    distances: Any, codes: Any, k: int, truth: Any, votes: Any, never: int, out: Any, tied: Any, ahead: Any
) -> None:
    """Rank of the true class per row, by its first k neighbours; `votes` (n_classes,) is zero before and after."""
    m = len(distances)
    for i in range(m):
        for j in range(k):
            votes[codes[i, j]] += 1.0 / (np.float64(distances[i, j]) + _SOFTENING)
        true = truth[i]
        own = votes[true] if true >= 0 else 0.0
        rank, equal = 0, 0
        for j in range(k):
            code = codes[i, j]
            # A class is counted at its first neighbour; clearing its vote keeps it from being counted again.
            if own > 0 and code != true and votes[code] >= own:
                larger = votes[code] > own
                if rank + equal < ahead.shape[1]:
                    ahead[i, rank if larger else ahead.shape[1] - 1 - equal] = code
                rank += larger
                equal += not larger
            votes[code] = 0.0
        out[i] = rank if own > 0 else never
        tied[i] = equal
        if rank + equal > ahead.shape[1]:
            ahead[i] = -1


def _rank_tied(
    index: NeighbourIndex,
    query: F32,
    k: int,
    ref_codes: Ints,
    truth: Ints,
    n_classes: int,
    never: int,
) -> tuple[Ints, Ints, Ints]:
    """Rank, number of equal classes and `ahead` of the true classes (m,) of equal queries whose k-th distance ties."""
    found = index.neighbourhood(query, k)
    near = 1.0 / (found.distances.astype(np.float64) + _SOFTENING)
    share = (k - len(found.rows)) / len(found.tied)
    votes: F64 = np.bincount(ref_codes[found.rows], weights=near, minlength=n_classes).astype(np.float64)
    votes = votes + np.bincount(ref_codes[found.tied], minlength=n_classes) * share / (found.distance + _SOFTENING)
    classes = np.unique(truth)
    rank, tied = np.full(len(classes), never), np.zeros(len(classes), np.int64)
    ahead = np.full((len(classes), MAX_AHEAD), -1, dtype=np.int64)
    ascending = np.sort(votes)
    for i, true in enumerate(classes):
        if true >= 0 and votes[true] > 0:
            rank[i] = n_classes - np.searchsorted(ascending, votes[true], side="right")
            tied[i] = n_classes - np.searchsorted(ascending, votes[true], side="left") - rank[i] - 1
            if rank[i] + tied[i] <= MAX_AHEAD:
                equal = np.flatnonzero(votes == votes[true])
                ahead[i, : rank[i]] = np.flatnonzero(votes > votes[true])
                ahead[i, MAX_AHEAD - tied[i] :] = equal[equal != true]
    which = np.searchsorted(classes, truth)
    return rank[which], tied[which], ahead[which]


def true_class_ranks(
    X_ref: Rows,
    ref_codes: Ints,
    X_query: Rows,
    query_codes: Ints,
    *,
    n_classes: int,
    k: int = 251,
    components: int | None = None,
    threads: int = 1,
    device: str = "cpu",
    max_elements: int | None = None,
) -> ClassRanks:
    """Rank of every query's true class by the votes of its k nearest reference samples.

    A neighbour at distance r gives its class the vote 1 / (r + 1e-5). Where more samples are at the distance of the
    k-th (equal in float32) than there are places left, the votes are their expectation over ties broken at random:
    each of the t tied samples has s / t of its vote for s places left. The rank is the number of classes with a larger
    vote; a class without a neighbour is never right. The top-t accuracy is the mean of `expected_hits`. So neither the
    order of the samples nor the codes of the classes matter. (The classes are ranked by the expected votes: that is not
    the expectation of their ranks.)

    Parameters
    ----------
    X_ref, X_query
        (n, d) and (m, d), finite; used as float32.
    ref_codes
        (n,) class of each reference sample, 0 to n_classes - 1.
    query_codes
        (m,) true class of each query; negative for one that the reference set does not know.
    k
        Number of neighbours; all n where it is larger.
    components
        Reduce both sets to so many components of a PCA fitted on the reference set; sets with fewer dimensions stay
        as they are.
    threads, device, max_elements
        As `txeval.compute.neighbours.neighbours`; they do not change the ranks.

    Raises
    ------
    InputError
        For NaN or infinity, codes out of range, lengths or widths that differ, k < 1.
    NotComputable
        For an empty reference set or no query.
    """
    reference, queries = checked_matrix(X_ref, "X_ref"), checked_matrix(X_query, "X_query")
    n, m = reference.shape[0], queries.shape[0]
    k = at_least_one("k", k)
    _check_not_empty(n, m)
    if reference.shape[1] != queries.shape[1]:
        raise InputError(
            f"X_ref has {reference.shape[1]} columns, X_query {queries.shape[1]}", remedy="embed both in the same space"
        )
    ref_codes, query_codes = as_codes(ref_codes, n, n_classes), as_codes(query_codes, m, n_classes)
    if ref_codes.min() < 0:
        raise InputError("a reference sample has a negative class code", remedy="leave samples without a class out")

    notes = []
    if k > n:
        notes.append(f"{n} neighbours instead of {k}: the reference set has no more")
    if components is not None and at_least_one("components", components) < reference.shape[1]:
        axes = principal_axes(reference, name="X_ref", max_elements=max_elements)
        if len(axes.variance) < components:
            notes.append(f"{len(axes.variance)} components instead of {components}: the reference set has no more")
        reference = axes.project(reference, components, max_elements=max_elements)
        if reference.shape[1] > components:
            notes.append(f"{reference.shape[1]} components instead of {components}: the last ones have equal variances")
        projected = np.empty((m, reference.shape[1]), np.float32)
        for rows in row_blocks(m, queries.shape[1], max_elements):
            projected[rows] = axes.project(finite_rows(queries, rows, name="X_query"), components)
        queries = projected

    index = NeighbourIndex(reference)
    rank, tied = np.empty(m, np.int64), np.empty(m, np.int64)
    ahead = np.full((m, MAX_AHEAD), -1, dtype=np.int64)
    votes = np.zeros(n_classes)
    never = max(n_classes, 5)
    n_tied = 0
    k = min(k, n)
    # One more than votes shows whether the last one ties with others.
    around = index.blocks(queries, k + 1, threads=threads, device=device, max_elements=max_elements)
    for rows, distances, indices in around:
        _rank_by_votes(
            distances, ref_codes[indices], k, query_codes[rows], votes, never, rank[rows], tied[rows], ahead[rows]
        )
        last_ties = rows.start + tied_at(distances, k)
        for query, members in equal_rows(queries, last_ties):
            rank[members], tied[members], ahead[members] = _rank_tied(
                index, query, k, ref_codes, query_codes[members], n_classes, never
            )
        n_tied += len(last_ties)
    if n_tied:
        notes.append(tie_remark(n_tied))
    return ClassRanks(rank, tied, ahead, k, int(reference.shape[1]), tuple(notes))


def _check_not_empty(n: int, m: int) -> None:
    if n == 0 or m == 0:
        raise NotComputable(f"there is no {'reference sample' if n == 0 else 'query'}")


def codes_in(labels: Any, classes: Strings, n: int, *, name: str) -> tuple[Ints, int]:
    """Codes of labels into given classes.

    Returns
    -------
    (codes, unknown)
        (n,) int64, -1 for labels that are none of the classes, and the number of those.
    """
    own, distinct = encode(labels, n, name=name)
    codes = pd.Index(classes).get_indexer(pd.Index(distinct))[own].astype(np.int64)
    return codes, int((codes < 0).sum())


def commonest_share(train_codes: Ints, test_codes: Ints, n_classes: int, top: int = 1) -> float:
    """Share of test samples in the `top` commonest classes of the training set.

    That is the accuracy of the best constant answer.
    """
    return constant_accuracy(np.bincount(train_codes, minlength=n_classes), test_codes, top)


def constant_accuracy(train_counts: Ints, test_codes: Ints, top: int = 1) -> float:
    """Top-`top` accuracy of always answering the classes with the most training samples; see `commonest_share`.

    Of equally common classes some are answered at random: the accuracy is its expectation.
    """
    counts = np.asarray(train_counts)
    last = np.sort(counts)[::-1][: max(1, top)][-1]
    commoner, equal = counts > last, (counts == last) & (counts > 0)
    # Equally common classes share the answers that are left; one that training lacks is never an answer.
    given = commoner + equal * min(1.0, (top - int(commoner.sum())) / max(1, int(equal.sum())))
    return float(given[test_codes[test_codes >= 0]].sum() / len(test_codes))


def knn_accuracy(
    X_ref: Rows,
    y_ref: Any,
    X_query: Rows,
    y_query: Any,
    *,
    k: int = 251,
    components: int | None = None,
    threads: int = 1,
    device: str = "cpu",
) -> dict[str, Any]:
    """Accuracy of a kNN classifier with votes 1 / (distance + 1e-5), euclidean.

    Parameters
    ----------
    X_ref
        (n, d) reference set (train split), finite; used as float32.
    y_ref
        (n,) labels.
    X_query
        (m, d) queries (test split).
    y_query
        (m,) their true labels. One that the reference set does not have is never found and counts as wrong.
    k
        Number of neighbours; all n where it is larger.
    components
        Reduce both sets to so many components of a PCA fitted on the reference set (paper: 32); None: as they are.
    threads, device
        As `txeval.compute.neighbours.neighbours`.

    Returns
    -------
    dict
        `top1`, `top5`: share of queries whose class has the largest vote, or one of the five largest (classes with
        equal votes share the places: see `expected_hits`; a class without a vote never counts). `top1_balanced`: mean
        over classes of their top 1. `majority`: top 1 of always answering the commonest reference label. `rank` (m,)
        int64, classes with a larger vote than the true one, `tied` (m,) int64, others with the same, `n_ref`,
        `n_query`, `n_classes`, `n_unknown` (queries with a label that the reference set lacks), `k_used`,
        `components_used`, `notes`.

    Raises
    ------
    InputError
        For NaN or infinity, missing labels, lengths or widths that differ, k < 1.
    NotComputable
        For an empty reference set, no query, or no label in common.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[0.0], [0.1], [5.0], [5.1]])
    >>> found = knn_accuracy(X, ["a", "a", "b", "b"], X + 0.02, ["a", "a", "b", "a"], k=2)
    >>> found["top1"], found["k_used"]
    (0.75, 2)
    """
    reference, queries = checked_matrix(X_ref, "X_ref"), checked_matrix(X_query, "X_query")
    _check_not_empty(reference.shape[0], queries.shape[0])
    ref_codes, classes = encode(y_ref, reference.shape[0], name="y_ref")
    query_codes, unknown = codes_in(y_query, classes, queries.shape[0], name="y_query")
    if unknown and unknown == len(query_codes):
        raise NotComputable(f"y_query and y_ref have no label in common (y_ref has {classes[0]!r}, ...)")
    found = true_class_ranks(
        reference,
        ref_codes,
        queries,
        query_codes,
        n_classes=len(classes),
        k=k,
        components=components,
        threads=threads,
        device=device,
    )
    notes = list(found.notes)
    if unknown:
        notes.append(f"{unknown} queries have a label that the reference set lacks: they count as wrong")
    return {
        **accuracies(found.rank, found.tied, y_query),
        "majority": commonest_share(ref_codes, query_codes, len(classes)),
        "rank": found.rank,
        "tied": found.tied,
        "n_ref": len(ref_codes),
        "n_query": len(query_codes),
        "n_classes": len(classes),
        "n_unknown": unknown,
        "k_used": found.k,
        "components_used": found.components,
        "notes": tuple(notes),
    }
