"""Cosines of all pairs of rows, their order statistics and ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from txeval.compute.arrays import BLOCK_ELEMENTS, F64, Ints, Rows
from txeval.compute.groups import checked_matrix, read_rows

__all__ = [
    "lower_count",
    "pair_contributions",
    "pair_cosines",
    "pair_position",
    "ranking_scores",
    "tail_thresholds",
    "upper_count",
]

#: Up to so many pairs are kept as float64; more as float32, which halves the memory.
FLOAT64_PAIRS = 2**24

Array = npt.NDArray[Any]


def pair_position(first: Ints, second: Ints, n: int) -> Ints:
    """Position of the pair (first, second), first < second < n, in the row-wise upper triangle without diagonal."""
    return first * (2 * n - first - 1) // 2 + (second - first - 1)


def pair_cosines(X: Rows, *, max_elements: int | None = None) -> Array:
    """Cosine similarity of every pair of rows, by blocks.

    A zero row has cosine 0 with every row. Values are computed in float64 and rounded to 12 decimals, so that ties
    (rows that repeat) are ties in spite of rounding; above 2^24 pairs they are kept as float32.

    Parameters
    ----------
    X
        (n, d).
    max_elements
        Values per block of the n x n matrix.

    Returns
    -------
    (n (n - 1) / 2,) float64 or float32 in the order of `pair_position`.
    """
    matrix = checked_matrix(X)
    n = matrix.shape[0]
    units = read_rows(matrix).astype(np.float64)
    norms = np.linalg.norm(units, axis=1)
    units /= np.where(norms > 0, norms, 1.0)[:, None]
    total = n * (n - 1) // 2
    out: Array = np.empty(total, dtype=np.float64 if total <= FLOAT64_PAIRS else np.float32)
    step = max(1, (max_elements or BLOCK_ELEMENTS) // max(1, n))
    at = 0
    for start in range(0, n, step):
        block = units[start : start + step] @ units[start:].T
        np.clip(np.round(block, 12, out=block), -1.0, 1.0, out=block)
        for i in range(len(block)):
            values = block[i, i + 1 :]
            out[at : at + len(values)] = values
            at += len(values)
    return out


def lower_count(tail: float, total: int) -> int:
    """Largest k with k / total <= tail, in floating point as a rank divided by the total would compare."""
    k = min(total, math.floor(tail * total))
    while k < total and (k + 1) / total <= tail:
        k += 1
    while k > 0 and k / total > tail:
        k -= 1
    return k


def upper_count(tail: float, total: int) -> int:
    """Smallest k with k / total >= 1 - tail, in floating point as a rank divided by the total would compare."""
    k = min(total, math.ceil((1 - tail) * total))
    while k > 0 and (k - 1) / total >= 1 - tail:
        k -= 1
    while k < total and k / total < 1 - tail:
        k += 1
    return k


def tail_thresholds(values: Array, tail: float) -> tuple[float, float]:
    """Bounds outside of which a value lies in a tail of all values, without sorting them.

    With M values v sorted, right-side rank(q) / M <= tail means q < v[floor(tail M)], and left-side rank(q) / M >=
    1 - tail means q > v[ceil((1 - tail) M) - 1].

    Parameters
    ----------
    values
        (M,) at least one; not changed.
    tail
        In (0, 0.5].

    Returns
    -------
    (low, high)
        q is in a tail where q < low or q > high.
    """
    total = len(values)
    low, high = lower_count(tail, total), upper_count(tail, total) - 1
    part = np.partition(values, [low, high])
    return float(part[low]), float(part[high])


def _count_below(ordered: Array, doubled_rank: Ints) -> Ints:
    """Values whose doubled mid-rank (left rank + right rank) is below each bound."""
    total = len(ordered)
    # The run of ties around the bound: it counts as a whole or not at all.
    at = np.clip(doubled_rank // 2, 0, total - 1)
    left = np.searchsorted(ordered, ordered[at], side="left")
    right = np.searchsorted(ordered, ordered[at], side="right")
    below = np.where(left + right < doubled_rank, right, left)
    return np.where(doubled_rank <= 0, 0, np.where(doubled_rank >= 2 * total, total, below)).astype(np.int64)


def _extremes(ordered: Array, values: Array) -> tuple[Ints, Ints, Ints]:
    """How extreme values are (|doubled mid-rank - M|), and how many of all are less and at most as extreme."""
    total = len(ordered)
    left = np.searchsorted(ordered, values, side="left")
    right = np.searchsorted(ordered, values, side="right")
    extreme = np.abs(left + right - total)
    # Inside (less extreme) means total - e < doubled rank < total + e.
    less = _count_below(ordered, total + extreme) - _count_below(ordered, total - extreme + 1)
    less = np.where(extreme == 0, 0, less)
    upto = _count_below(ordered, total + extreme + 1) - _count_below(ordered, total - extreme)
    return extreme, less, upto


def pair_contributions(ordered: Array, values: Array) -> tuple[F64, F64]:
    r"""What each of the pairs contributes to the two scores of `ranking_scores`; their means are these scores.

    For the AUROC the share of the other pairs that are less extreme. For the average precision
    :math:`AP = rac1P \sum_{ij} 1(s_j \ge s_i) / N(s_i)`, N the number of all pairs at least as extreme, the
    linearised contribution :math:`\sum_j h_{ij} + \sum_j h_{ji} - AP`: its own precision and what it lends to those of
    others.

    Parameters
    ----------
    ordered, values
        As `ranking_scores`.

    Returns
    -------
    (auroc, average_precision)
        (P,) float64 each.
    """
    total, positives = len(ordered), len(values)
    extreme, less, upto = _extremes(ordered, values)
    distinct, place = np.unique(extreme, return_inverse=True)
    count = np.bincount(place, minlength=len(distinct))
    before = np.cumsum(count) - count
    # Of the pairs that are less extreme, and of half of those as extreme, the known ones do not count.
    wins = (less + upto) / 2 - (before + count / 2)[place]
    auroc = wins / (total - positives)
    reached = positives - before
    ahead = np.zeros(len(distinct))
    ahead[place] = total - less
    precision = reached / ahead
    lent = np.cumsum(count / ahead)
    average = float(count @ precision) / positives
    return np.asarray(auroc, dtype=np.float64), np.asarray(precision[place] + lent[place] - average, dtype=np.float64)


def ranking_scores(ordered: Array, values: Array) -> tuple[float, float]:
    r"""AUROC and average precision of some of the pairs against all others, ranked by how extreme they are.

    The score of a pair is :math:`|r - 1/2|`, r its mid-rank among all pairs as a fraction: both tails count, as they
    do for the recall. Ties share their place.

    Parameters
    ----------
    ordered
        (M,) all values, sorted.
    values
        (P,) the positive ones, each also in `ordered`; 0 < P < M.

    Returns
    -------
    (auroc, average_precision)
        Chance is 0.5 and P / M.
    """
    total, positives = len(ordered), len(values)
    extreme, less, upto = _extremes(ordered, values)
    wins = float((less + upto).sum()) / 2 - positives**2 / 2
    auroc = wins / (positives * (total - positives))

    order = np.argsort(-extreme, kind="stable")
    last = np.append(np.diff(extreme[order]) != 0, True)
    found = np.flatnonzero(last) + 1
    precision = found / (total - less[order][last])
    average = float(np.diff(found, prepend=0) @ precision) / positives
    return float(auroc), average
