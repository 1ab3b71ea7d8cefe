"""Ranks with intervals from scores with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from txeval.compute.arrays import F64

__all__ = ["METHOD", "Ranks", "rank_scores", "span"]

_NORMAL = float(scipy.stats.norm.ppf(0.975))

#: How rank intervals are made, in a sentence for people.
METHOD = (
    "A rank interval goes from 1 + the number of models that are better beyond chance to the number of models less "
    "those that are worse beyond chance: differences against their 95 % intervals, taken as independent (which is "
    "cautious, as all are scored on the same samples), p-values corrected for all pairs of the column (Holm, 5 %). A "
    "model without an interval cannot be told apart from any other."
)


@dataclass(frozen=True)
class Ranks:
    """Ranks of k scores.

    Attributes
    ----------
    rank
        1 for the best; equal scores share the lower number.
    low, high
        95 % interval, for all together.
    """

    rank: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]


def rank_scores(
    value: Sequence[float], low: Sequence[float], high: Sequence[float], *, higher_is_better: bool = True
) -> Ranks:
    """Rank scores, with intervals that hold for all of them together (see `METHOD`).

    Parameters
    ----------
    value
        (k,) scores, none NaN.
    low, high
        (k,) 95 % intervals; NaN where there is none.
    """
    values, lows, highs = (np.asarray(item, dtype=float) for item in (value, low, high))
    k = len(values)
    if not higher_is_better:
        values, lows, highs = -values, -highs, -lows
    p = _adjusted(_pairwise(values, lows, highs))
    better = (values[None, :] > values[:, None]) & (p < 0.05)
    worse = (values[None, :] < values[:, None]) & (p < 0.05)
    return Ranks(
        rank=tuple(int(1 + (values > item).sum()) for item in values),
        low=tuple(int(1 + row.sum()) for row in better),
        high=tuple(int(k - row.sum()) for row in worse),
    )


def _pairwise(values: F64, lows: F64, highs: F64) -> F64:
    """Two-sided p-values of all differences: (k, k), 1 where an interval is missing."""
    # Each score is as uncertain as the side of its interval that faces the other score.
    below, above = (values - lows) / _NORMAL, (highs - values) / _NORMAL
    difference = values[:, None] - values[None, :]
    spread = np.where(
        difference > 0,
        np.hypot(below[:, None], above[None, :]),
        np.hypot(above[:, None], below[None, :]),
    )
    p = np.ones((len(values), len(values)))
    known = np.isfinite(spread) & (difference != 0)
    with np.errstate(divide="ignore"):
        p[known] = 2 * scipy.stats.norm.sf(np.abs(difference[known]) / spread[known])
    return p


def _adjusted(p: F64) -> F64:
    """Holm's correction over all pairs: (k, k), symmetric."""
    k = len(p)
    first, second = np.triu_indices(k, 1)
    flat = p[first, second]
    made = np.ones_like(p)
    if not len(flat):
        return made
    order = np.argsort(flat, kind="stable")
    steps = flat[order] * np.arange(len(flat), 0, -1)
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    made[first, second] = made[second, first] = adjusted
    return made


def span(low: int, high: int) -> str:
    """An interval of ranks as text."""
    return str(low) if low == high else f"{low}–{high}"
