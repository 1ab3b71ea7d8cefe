"""Intervals by resampling the units of a question, from stored contributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from txeval.compute.arrays import F64, Ints
from txeval.compute.random import stream

__all__ = ["MIN_UNITS", "PairUnits", "RatioUnits", "Units", "bootstrap_interval"]

#: Below this number of units a bootstrap interval says more about luck than about the score.
MIN_UNITS = 5


class Units(Protocol):
    """What each resampling unit contributed to a score."""

    @property
    def unit(self) -> str:
        """What is resampled: batch, perturbation, gene, ..."""
        ...

    @property
    def n_units(self) -> int:
        """Number of units."""
        ...

    def replicates(self, weights: F64) -> F64:
        """Scores (r,) for r rows of unit weights (r, n_units)."""
        ...


@dataclass(frozen=True)
class RatioUnits:
    """A score that is `offset + scale * sum(numerator) / sum(denominator)` over units.

    Parameters
    ----------
    unit
        What is resampled.
    numerator, denominator
        (n_units,) float64 contributions.
    """

    unit: str
    numerator: F64
    denominator: F64
    offset: float = 0.0
    scale: float = 1.0

    @property
    def n_units(self) -> int:
        """Number of units."""
        return len(self.numerator)

    def replicates(self, weights: F64) -> F64:
        """Scores (r,) for unit weights (r, n_units)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.offset + self.scale * (weights @ self.numerator) / (weights @ self.denominator))


@dataclass(frozen=True)
class PairUnits:
    """A share of hits among pairs of units, each pair weighted by the product of its units' weights.

    Parameters
    ----------
    first, second
        (m,) unit numbers of each pair.
    hit
        (m,) 0 or 1.
    """

    unit: str
    n_units: int
    first: Ints
    second: Ints
    hit: F64

    def replicates(self, weights: F64) -> F64:
        """Shares (r,) for unit weights (r, n_units)."""
        out = np.empty(len(weights))
        with np.errstate(invalid="ignore", divide="ignore"):
            for i, w in enumerate(weights):
                pair = w[self.first] * w[self.second]
                out[i] = (pair @ self.hit) / pair.sum()
        return out


def bootstrap_interval(
    units: Units, *, seed: int = 0, draws: int = 1000, level: float = 0.95
) -> tuple[float, float, str]:
    """Percentile interval of a score over resampled units.

    Parameters
    ----------
    units
        Contributions per unit.
    seed, draws, level
        Stream, number of resamples, coverage aimed at.

    Returns
    -------
    (low, high, note)
        NaN, NaN and the reason where there are fewer than `MIN_UNITS` units.
    """
    n = units.n_units
    if n < MIN_UNITS:
        return float("nan"), float("nan"), f"no interval: {n} {units.unit} unit(s), {MIN_UNITS} needed"
    rng = stream(seed, "bootstrap", units.unit, n)
    chunks = []
    step = max(1, 4_000_000 // n)
    for start in range(0, draws, step):
        r = min(step, draws - start)
        weights = rng.multinomial(n, np.full(n, 1.0 / n), size=r).astype(np.float64)
        chunks.append(units.replicates(weights))
    values = np.concatenate(chunks)
    values = values[np.isfinite(values)]
    if len(values) < draws / 2:
        return float("nan"), float("nan"), "no interval: most resamples have no score"
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high), ""
