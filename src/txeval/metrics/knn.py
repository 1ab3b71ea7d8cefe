"""Level 4: do the neighbours of a sample share its label? (weighted kNN classification)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from txeval.compute.arrays import Ints, Rows, Strings, row_blocks
from txeval.compute.groups import as_codes, checked_matrix, encode
from txeval.compute.jit import jit
from txeval.compute.neighbours import NeighbourIndex, at_least_one, finite_rows
from txeval.compute.pca import principal_axes
from txeval.errors import InputError, NotComputable

__all__ = [
    "MAX_AHEAD",
    "ClassRanks",
    "codes_in",
    "commonest_share",
    "constant_accuracy",
    "knn_accuracy",
    "true_class_ranks",
]

#: Classes before the true one are named where they are so many or fewer: what top 5 needs.
MAX_AHEAD = 5

#: Added to every distance before it divides 1, so that duplicates have a finite vote.
_SOFTENING = 1e-5


@dataclass(frozen=True)
class ClassRanks:
    """Rank of the true class of every query.

    Attributes
    ----------
    rank
        (m,) int64, 0 for the class with the largest vote. Where the true class has no vote at all it is max(n_classes,
        5), so that it is right in no top 1 or top 5.
    ahead
        (m, 5) int64: the classes before the true one, where these are 5 or fewer and it has a vote; -1 elsewhere.
    k
        Neighbours that voted.
    components
        Dimensions that distances were taken in.
    notes
        What differs from what was asked for.
    """

    rank: Ints
    ahead: Ints
    k: int
    components: int
    notes: tuple[str, ...] = ()


@jit
def _rank_by_votes(distances: Any, codes: Any, truth: Any, votes: Any, never: int, out: Any, ahead: Any) -> None:
    """Rank of the true class per row; `votes` (n_classes,) is zero before and after."""
    m, k = distances.shape
    for i in range(m):
        for j in range(k):
            votes[codes[i, j]] += 1.0 / (np.float64(distances[i, j]) + _SOFTENING)
        true = truth[i]
        own = votes[true] if true >= 0 else 0.0
        rank = 0
        for j in range(k):
            code = codes[i, j]
            # A class is counted at its first neighbour; clearing its vote keeps it from being counted again.
            if votes[code] > own or (votes[code] == own and code < true):
                if own > 0 and rank < ahead.shape[1]:
                    ahead[i, rank] = code
                rank += 1
            votes[code] = 0.0
        out[i] = rank if own > 0 else never
        if rank > ahead.shape[1]:
            ahead[i] = -1


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

    A neighbour at distance r gives its class the vote 1 / (r + 1e-5). The rank is the number of classes with a larger
    vote, plus those with an equal one and a lower code; a class without a neighbour is never right. So the share of
    ranks below t is the top-t accuracy.

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
        projected = np.empty((m, reference.shape[1]), np.float32)
        for rows in row_blocks(m, queries.shape[1], max_elements):
            projected[rows] = axes.project(finite_rows(queries, rows, name="X_query"), components)
        queries = projected

    index = NeighbourIndex(reference)
    rank = np.empty(m, np.int64)
    ahead = np.full((m, MAX_AHEAD), -1, dtype=np.int64)
    votes = np.zeros(n_classes)
    never = max(n_classes, 5)
    for rows, distances, indices in index.blocks(queries, k, threads=threads, device=device, max_elements=max_elements):
        _rank_by_votes(distances, ref_codes[indices], query_codes[rows], votes, never, rank[rows], ahead[rows])
    return ClassRanks(rank, ahead, min(k, n), int(reference.shape[1]), tuple(notes))


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
    """Top-`top` accuracy of always answering the classes with the most training samples; see `commonest_share`."""
    commonest = np.argsort(-train_counts, kind="stable")[:top]
    return float(np.isin(test_codes, commonest).mean())


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
        `top1`, `top5`: share of queries whose class has the largest vote, or one of the five largest (ties go to the
        label that sorts first; a class without a vote never counts). `top1_balanced`: mean over classes of their top 1.
        `majority`: top 1 of always answering the commonest reference label. `rank` (m,) int64, `n_ref`, `n_query`,
        `n_classes`, `n_unknown` (queries with a label that the reference set lacks), `k_used`, `components_used`,
        `notes`.

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
    right = found.rank < 1
    return {
        "top1": float(right.mean()),
        "top5": float((found.rank < 5).mean()),
        "top1_balanced": float(pd.Series(right).groupby(encode(y_query, name="y_query")[0]).mean().mean()),
        "majority": commonest_share(ref_codes, query_codes, len(classes)),
        "rank": found.rank,
        "n_ref": len(ref_codes),
        "n_query": len(query_codes),
        "n_classes": len(classes),
        "n_unknown": unknown,
        "k_used": found.k,
        "components_used": found.components,
        "notes": tuple(notes),
    }
