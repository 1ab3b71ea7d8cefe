"""Counts have the distribution that is stated: against scipy's negative binomial, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from txeval.compute.sampling import CountModel, sample_counts

SEEDS = np.array([3, 1, 4, 1], dtype=np.uint64)
NONE = np.empty(0, np.int32)


def plain(share: np.ndarray, dispersion: float | np.ndarray) -> CountModel:
    g = len(share)
    return CountModel(
        share[None].astype(np.float32), NONE, NONE, NONE.astype(np.float32), np.broadcast_to(dispersion, g).copy()
    )


def draw(model: CountModel, n: int, library: float, seeds: np.ndarray = SEEDS) -> np.ndarray:
    counts, columns, indptr = sample_counts(
        model,
        np.zeros(n, np.int64),
        np.zeros((n, 1), np.float32),
        np.full(n, library),
        np.full(n, -1),
        np.ones(n),
        seeds,
    )
    out = np.zeros((n, model.base.shape[1]), np.int64)
    for i in range(n):
        row = slice(indptr[i], indptr[i + 1])
        assert (np.diff(columns[row]) > 0).all()
        assert (counts[row] > 0).all()
        out[i, columns[row]] = counts[row]
    return out


@pytest.mark.parametrize("dispersion", [1e-6, 0.1, 2.0])
def test_counts_are_negative_binomial(dispersion):
    """Chi-square of every gene against the exact probabilities, from means of 0.003 to 2,000."""
    means = np.array([0.003, 0.02, 0.15, 0.5, 1, 3, 11, 40, 130, 499, 501, 2000.0])
    n = 20_000
    counts = draw(plain(means, dispersion), n, means.sum())
    p_values = []
    for gene, mean in enumerate(means):
        law = stats.nbinom(1 / dispersion, 1 / (1 + mean * dispersion))
        edges = np.unique(law.ppf(np.linspace(0, 1, 13)[1:-1]).astype(int))
        edges = np.unique(np.concatenate([[0], edges, edges + 1]))
        cdf = np.concatenate([[0], law.cdf(edges), [1]])
        seen = np.bincount(np.searchsorted(edges, counts[:, gene], "left"), minlength=len(edges) + 1)
        wanted = np.diff(cdf) * n
        while len(wanted) > 2 and wanted[-1] < 5:
            wanted = np.append(wanted[:-2], wanted[-2:].sum())
            seen = np.append(seen[:-2], seen[-2:].sum())
        few = wanted < 1e-3
        p_values.append(stats.chisquare(seen[~few], wanted[~few] * seen[~few].sum() / wanted[~few].sum()).pvalue)
    assert min(p_values) > 1e-4, p_values
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_genes_are_independent():
    means = np.array([0.3, 0.3, 5.0, 0.1, 60.0, 0.2, 0.2, 0.2, 0.2, 0.4])
    counts = draw(plain(means, 0.3), 30_000, means.sum())
    correlation = np.corrcoef(counts.T)[np.triu_indices(len(means), 1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(30_000)


def test_programs_and_targets_multiply_the_share():
    g, n = 6, 40_000
    base = np.array([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]], np.float32)
    model = CountModel(
        base,
        np.array([1, 4], np.int32),
        np.array([0, 1], np.int32),
        np.array([1.0, -0.5], np.float32),
        np.full(g, 1e-6),
    )
    z = np.array([[0.7, 1.2]], np.float32)
    for b in (0, 1):
        counts, columns, _ = sample_counts(
            model, np.full(n, b), np.repeat(z, n, 0), np.full(n, 30.0), np.full(n, 2), np.full(n, 0.25), SEEDS
        )
        share = base[b].astype(float)
        share[1] *= np.exp(0.7)
        share[4] *= np.exp(-0.6)
        share[2] *= 0.25
        mean = 30 * share / share.sum()
        found = np.bincount(columns, counts, minlength=g) / n
        np.testing.assert_allclose(found, mean, atol=5 * np.sqrt(mean.max() / n))


@settings(max_examples=30, deadline=None)
@given(
    g=st.integers(1, 40),
    zeros=st.floats(0, 1),
    library=st.sampled_from([0.0, 1e-250, 1e-6, 0.1, 30.0, 4000.0]),
    seed=st.integers(0, 2**31),
)
def test_any_shares(g, zeros, library, seed):
    rng = np.random.default_rng(seed)
    share = rng.lognormal(0, 3, g) * (rng.random(g) >= zeros)
    counts = draw(plain(share, 0.5), 20, library, rng.integers(1, 2**63, 4).astype(np.uint64))
    assert (counts[:, share == 0] == 0).all()
    if library < 1e-3 or not share.any():
        assert not counts.any()


def test_same_seeds_same_counts():
    model = plain(np.array([0.1, 3.0, 20.0]), 0.2)
    one, same = draw(model, 50, 23.0), draw(model, 50, 23.0)
    other = draw(model, 50, 23.0, SEEDS + np.uint64(1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
