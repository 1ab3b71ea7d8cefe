"""What a correlation loses without a level: against computing it without that level."""

from __future__ import annotations

import numpy as np
import pytest

from txeval.compute.correlation import correlation_influence
from txeval.compute.deletion import correlation_gap


def test_influence_and_gap_are_the_correlation_without_the_level() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 7, 200)
    shift = 2 * rng.standard_normal(7)
    x = rng.standard_normal(200) + shift[codes]
    y = x + rng.standard_normal(200)
    whole = np.corrcoef(x, y)[0, 1]
    made = np.bincount(codes, weights=correlation_influence(x, y)[0]) / 200 + correlation_gap(x, y, codes, 7)
    for level in range(7):
        left = codes != level
        share = (~left).mean()
        assert made[level] == pytest.approx((1 - share) * (whole - np.corrcoef(x[left], y[left])[0, 1]))


def test_the_scatter_of_influences_of_few_levels_is_too_small_and_the_gap_mends_it() -> None:
    rng = np.random.default_rng(1)
    codes = np.repeat(np.arange(6), 40)
    values, plain, mended = [], [], []
    for _ in range(300):
        x = rng.standard_normal(240) + 2 * rng.standard_normal(6)[codes]
        y = x + rng.standard_normal(240)
        moved = np.bincount(codes, weights=correlation_influence(x, y)[0]) / 240
        values.append(np.corrcoef(x, y)[0, 1])
        plain.append(6 / 5 * (moved**2).sum())
        gap = correlation_gap(x, y, codes, 6)
        mended.append(6 / 5 * ((moved + gap - gap.mean()) ** 2).sum())
    assert np.mean(plain) < 0.75 * np.var(values)
    # A jackknife errs on the safe side.
    assert 0.9 < np.mean(mended) / np.var(values) < 1.9


def test_a_constant_column_or_a_level_that_is_everything_has_no_gap() -> None:
    rng = np.random.default_rng(2)
    y = rng.standard_normal(20)
    assert not correlation_gap(np.ones(20), y, np.arange(20) % 4, 4).any()
    assert not correlation_gap(y, 2 * y + 1, np.zeros(20, dtype=np.int64), 1).any()
