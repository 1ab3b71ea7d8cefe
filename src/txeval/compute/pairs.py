"""Cosines of all pairs of rows, their order statistics and ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from txeval.compute.arrays import F64, Ints, Rows
from txeval.compute.groups import checked_matrix, read_rows
from txeval.compute.jit import jit
from txeval.compute.products import CACHED, ROWS, WIDTH, pack, tile

__all__ = [
    "Extremes",
    "extremes",
    "lower_count",
    "order_statistic",
    "pair_contributions",
    "pair_cosines",
    "pair_position",
    "ranking_scores",
    "tail_thresholds",
    "upper_count",
]

#: Up to so many pairs are float64; more are float32, in half of the time and memory.
FLOAT64_PAIRS = 2**24

#: Above so many values order statistics are found by counting first.
COUNTED = 2**20

Array = npt.NDArray[Any]


def pair_position(first: Ints, second: Ints, n: int) -> Ints:
    """Position of the pair (first, second), first < second < n, in the row-wise upper triangle without diagonal."""
    return first * (2 * n - first - 1) // 2 + (second - first - 1)


@jit
def _write_cosines(units: Any, panels: Any, n: Any, out: Any) -> None:
    """Cosine of each of n rows with every row after it, in the order of the pairs; float64 rounded to 12 decimals.

    `units` are filled up to a multiple of ROWS; `panels` hold them as columns, in the same type.
    """
    block = np.empty((ROWS, WIDTH), units.dtype)
    step = max(1, CACHED // (units.itemsize * panels.shape[1] * WIDTH))
    for begin in range(0, panels.shape[0], step):
        end = min(panels.shape[0], begin + step)
        for first in range(0, min(n, end * WIDTH), ROWS):
            for p in range(max(begin, first // WIDTH), end):
                tile(units, first, panels, p, block)
                for i in range(first, min(first + ROWS, n)):
                    low = max(p * WIDTH, i + 1)
                    at = i * (2 * n - i - 1) // 2 + low - i - 1
                    for j in range(low, min(n, (p + 1) * WIDTH)):
                        value = block[i - first, j - p * WIDTH]
                        if units.itemsize == 8:
                            value = np.rint(value * 1e12) / 1e12
                        out[at + j - low] = max(-1.0, min(1.0, value))


def pair_cosines(X: Rows) -> Array:
    """Cosine similarity of every pair of rows.

    A zero row has cosine 0 with every row, and rows that repeat have the same cosines, bit for bit. Up to 2^24 pairs
    are computed in float64 and rounded to 12 decimals, so that what is a tie by arithmetic is one in spite of
    rounding; more (5,794 rows) in float32 from rows normalised in float64, within 5e-7.

    Parameters
    ----------
    X
        (n, d).

    Returns
    -------
    (n (n - 1) / 2,) float64 or float32 in the order of `pair_position`.
    """
    rows = read_rows(checked_matrix(X))
    n, d = rows.shape
    units = np.zeros((-(-n // ROWS) * ROWS, d))
    units[:n] = rows
    norms = np.linalg.norm(units, axis=1)
    units /= np.where(norms > 0, norms, 1.0)[:, None]
    total = n * (n - 1) // 2
    out: Array = np.empty(total, dtype=np.float64 if total <= FLOAT64_PAIRS else np.float32)
    units = units.astype(out.dtype, copy=False)
    _write_cosines(units, pack(units[:n].T, out.dtype), n, out)
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


@jit
def _count_by_leading_bits(values: Any, counts: Any) -> None:
    for i in range(len(values)):
        counts[_bin(values[i], len(counts))] += 1


@jit
def _take_bin(values: Any, n_bins: int, number: int, out: Any) -> None:
    at = 0
    for i in range(len(values)):
        if _bin(values[i], n_bins) == number:
            out[at] = values[i]
            at += 1


@jit
def _bin(value: Any, n_bins: int) -> int:
    """Bin of a value of -1 .. 1; the larger value is never in the lower bin."""
    return int((np.float64(value) + 1.0) * 0.5 * (n_bins - 1))


def order_statistic(values: Array, ranks: list[int]) -> list[float]:
    """Values of given ranks (from 0) among values of -1 .. 1, without sorting or copying them.

    They are counted in equal bins; only the bins that hold a rank are looked at further.
    """
    if len(values) <= COUNTED:
        part = np.partition(values, ranks)
        return [float(part[rank]) for rank in ranks]
    counts = np.zeros(2**14, dtype=np.int64)
    _count_by_leading_bits(values, counts)
    ends = np.cumsum(counts)
    found = []
    for rank in ranks:
        number = int(np.searchsorted(ends, rank, side="right"))
        inside = np.empty(int(counts[number]), dtype=values.dtype)
        _take_bin(values, len(counts), number, inside)
        place = rank - int(ends[number] - counts[number])
        found.append(float(np.partition(inside, place)[place]))
    return found


def tail_thresholds(values: Array, tail: float) -> tuple[float, float]:
    """Bounds outside of which a value lies in a tail of all values, without sorting them.

    With M values v sorted, right-side rank(q) / M <= tail means q < v[floor(tail M)], and left-side rank(q) / M >=
    1 - tail means q > v[ceil((1 - tail) M) - 1].

    Parameters
    ----------
    values
        (M,) of -1 .. 1, at least one; not changed.
    tail
        In (0, 0.5].

    Returns
    -------
    (low, high)
        q is in a tail where q < low or q > high.
    """
    total = len(values)
    low, high = lower_count(tail, total), upper_count(tail, total) - 1
    below, above = order_statistic(values, [low, high])
    return below, above


def _count_below(ordered: Array, doubled_rank: Ints) -> Ints:
    """Values whose doubled mid-rank (left rank + right rank) is below each bound."""
    total = len(ordered)
    order = np.argsort(doubled_rank, kind="stable")
    out = np.empty(len(order), dtype=np.int64)
    out[order] = _count_below_sorted(ordered, doubled_rank[order], total)
    return out


def _count_below_sorted(ordered: Array, doubled_rank: Ints, total: int) -> Ints:
    # The run of ties around the bound: it counts as a whole or not at all.
    at = np.clip(doubled_rank // 2, 0, total - 1)
    left = np.searchsorted(ordered, ordered[at], side="left")
    right = np.searchsorted(ordered, ordered[at], side="right")
    below = np.where(left + right < doubled_rank, right, left)
    return np.where(doubled_rank <= 0, 0, np.where(doubled_rank >= 2 * total, total, below)).astype(np.int64)


@dataclass(frozen=True)
class Extremes:
    """How extreme some of the pairs are among all: |doubled mid-rank - M|.

    Attributes
    ----------
    total
        M, number of all pairs.
    extreme
        (P,) for each of the pairs.
    less, upto
        (P,) how many of all pairs are less extreme, and at most as extreme.
    """

    total: int
    extreme: Ints
    less: Ints
    upto: Ints


def extremes(ordered: Array, values: Array) -> Extremes:
    """How extreme values are among all.

    Parameters
    ----------
    ordered
        (M,) all values, sorted.
    values
        (P,) some of them.
    """
    total = len(ordered)
    # Looked up in their order, neighbouring look-ups read the same memory.
    order = np.argsort(values, kind="stable")
    left, right = np.empty((2, len(values)), dtype=np.int64)
    left[order] = np.searchsorted(ordered, values[order], side="left")
    right[order] = np.searchsorted(ordered, values[order], side="right")
    extreme = np.abs(left + right - total)
    # Inside (less extreme) means total - e < doubled rank < total + e.
    less = _count_below(ordered, total + extreme) - _count_below(ordered, total - extreme + 1)
    less = np.where(extreme == 0, 0, less)
    upto = _count_below(ordered, total + extreme + 1) - _count_below(ordered, total - extreme)
    return Extremes(total, extreme, less, upto)


def pair_contributions(found: Extremes) -> tuple[F64, F64]:
    r"""What each of the pairs contributes to the two scores of `ranking_scores`; their means are these scores.

    For the AUROC the share of the other pairs that are less extreme. For the average precision
    :math:`AP = \frac1P \sum_{ij} 1(s_j \ge s_i) / N(s_i)`, N the number of all pairs at least as extreme, the
    linearised contribution :math:`\sum_j h_{ij} + \sum_j h_{ji} - AP`: its own precision and what it lends to those of
    others.

    Parameters
    ----------
    found
        As `ranking_scores`.

    Returns
    -------
    (auroc, average_precision)
        (P,) float64 each.
    """
    total, positives = found.total, len(found.extreme)
    extreme, less, upto = found.extreme, found.less, found.upto
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


def ranking_scores(found: Extremes) -> tuple[float, float]:
    r"""AUROC and average precision of some of the pairs against all others, ranked by how extreme they are.

    The score of a pair is :math:`|r - 1/2|`, r its mid-rank among all pairs as a fraction: both tails count, as they
    do for the recall. Ties share their place.

    Parameters
    ----------
    found
        Of the positive pairs, 0 < P < M; see `extremes`.

    Returns
    -------
    (auroc, average_precision)
        Chance is 0.5 and P / M.
    """
    total, positives = found.total, len(found.extreme)
    extreme, less, upto = found.extreme, found.less, found.upto
    wins = float((less + upto).sum()) / 2 - positives**2 / 2
    auroc = wins / (positives * (total - positives))

    order = np.argsort(-extreme, kind="stable")
    last = np.append(np.diff(extreme[order]) != 0, True)
    reached = np.flatnonzero(last) + 1
    precision = reached / (total - less[order][last])
    average = float(np.diff(reached, prepend=0) @ precision) / positives
    return float(auroc), average
