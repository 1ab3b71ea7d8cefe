"""Blockwise moments against numpy in wide types."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from txeval.compute import moments
from txeval.compute.moments import Kernel, gram, group_moments, int8_gemm_is_exact
from txeval.errors import InputError

KERNELS: list[Kernel] = ["float32", *(["int8"] if int8_gemm_is_exact() else [])]


def in_blocks(x, size):
    return (x[start : start + size] for start in range(0, x.shape[0], size))


def exact(x):
    """Scatter from int64 sums, as n * scatter (whole numbers)."""
    wide = x.astype(np.int64)
    total = wide.sum(axis=0)
    return len(x) * (wide.T @ wide) - np.outer(total, total)


def counts(rng, n, g, large=0.0):
    x = rng.poisson(0.7, (n, g)) * rng.integers(1, 30, (1, g))
    bursts = rng.random((n, g)) < large
    return np.where(bursts, rng.integers(128, 5000, (n, g)), np.minimum(x, 127))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", ["csr", "dense"])
@pytest.mark.parametrize("large", [0.0, 0.01, 0.6])
@pytest.mark.parametrize("panel_rows", [None, 7])
def test_counts_are_exact(kernel, form, large, panel_rows):
    x = counts(np.random.default_rng(1), 203, 61, large)
    given_x = sparse.csr_matrix(x.astype(np.float32)) if form == "csr" else x.astype(np.float32)
    n, mean, scatter = gram(in_blocks(given_x, 40), 61, kernel=kernel, panel_rows=panel_rows)
    assert n == 203
    np.testing.assert_array_equal(mean, x.sum(axis=0) / 203)
    # n * scatter is a whole number below 2**53; only the subtraction of the mean's product is rounded.
    np.testing.assert_allclose(scatter * n, exact(x), rtol=1e-13, atol=1e-13 * np.abs(exact(x)).max())
    np.testing.assert_array_equal(scatter, scatter.T)


@pytest.mark.parametrize("kernel", KERNELS)
def test_more_columns_than_a_tile(kernel):
    x = counts(np.random.default_rng(2), 30, 1300)
    x[3, 5] = x[4, 1200] = 999
    n, _, scatter = gram(in_blocks(sparse.csr_matrix(x), 11), 1300, kernel=kernel)
    np.testing.assert_allclose(scatter * n, exact(x), rtol=1e-13, atol=1e-13 * 999**2 * n)


@pytest.mark.parametrize("kernel", KERNELS)
def test_extreme_small_counts_do_not_saturate(kernel):
    x = np.full((4100, 5), 127)
    x[::2, 1] = -127
    n, mean, scatter = gram(in_blocks(x, 1000), 5, kernel=kernel)
    np.testing.assert_array_equal(mean, [127, 0, 127, 127, 127])
    assert scatter[1, 1] == n * 127**2
    assert scatter[0, 0] == 0


def test_negative_and_duplicate_entries():
    rng = np.random.default_rng(3)
    x = rng.integers(-400, 400, (50, 9))
    twice = sparse.csr_matrix(
        (np.full(4, 100.0), np.array([1, 1, 2, 2]), np.array([0, 4])), shape=(1, 9)
    )  # 200 in columns 1 and 2, which no stored value shows
    assert not twice.has_canonical_format
    n, _, scatter = gram([x, twice], 9)
    whole = np.vstack([x, twice.toarray().astype(int)])
    np.testing.assert_allclose(scatter * n, exact(whole), rtol=1e-12)
    assert twice.nnz == 4  # the input is left alone


@pytest.mark.parametrize("form", ["csr", "dense"])
@pytest.mark.parametrize("mean", [0.0, 3.0, 3e4])
@pytest.mark.parametrize(("float64_columns", "tolerance"), [(2048, 1e-12), (0, 1e-6)])
def test_fractions(form, mean, float64_columns, tolerance, monkeypatch):
    monkeypatch.setattr(moments, "_FLOAT64_COLUMNS", float64_columns)
    rng = np.random.default_rng(4)
    x = (rng.lognormal(0, 1, (3000, 40)) @ rng.normal(0, 0.2, (40, 40)) + mean).astype(np.float32)
    blocks = in_blocks(sparse.csr_matrix(x) if form == "csr" else x, 700)
    n, found_mean, scatter = gram(blocks, 40)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=0)
    expected = centred.T @ centred
    size = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert np.abs((scatter - expected) / size).max() < tolerance
    np.testing.assert_allclose(found_mean, wide.mean(axis=0), rtol=tolerance, atol=tolerance)
    assert n == 3000


def test_large_whole_numbers_take_the_shifted_path():
    rng = np.random.default_rng(5)
    x = rng.integers(10**6, 10**6 + 500, (900, 6)).astype(np.float64)
    _, _, scatter = gram(in_blocks(x, 100), 6)
    expected = np.cov(x.T, ddof=0) * 900
    np.testing.assert_allclose(np.diag(scatter), np.diag(expected), rtol=1e-6)


def test_blocks_of_both_kinds_are_merged():
    rng = np.random.default_rng(6)
    whole = rng.poisson(3, (70, 8)).astype(np.float64)
    fractions = rng.normal(50, 2, (90, 8))
    n, mean, scatter = gram([whole, fractions, whole[:10]], 8)
    x = np.vstack([whole, fractions, whole[:10]])
    assert n == 170
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(scatter, np.cov(x.T, ddof=0) * 170, rtol=1e-5, atol=1e-5 * np.abs(scatter).max())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 50), panel=st.integers(1, 30))
def test_counts_do_not_depend_on_blocks_or_order(seed, size, panel):
    rng = np.random.default_rng(seed)
    x = counts(rng, 47, 13, 0.02)
    _, mean, scatter = gram([x], 13)
    shuffled = sparse.csr_matrix(x[rng.permutation(47)].astype(np.float64))
    _, other_mean, other = gram(in_blocks(shuffled, size), 13, panel_rows=panel)
    np.testing.assert_array_equal(other_mean, mean)
    np.testing.assert_array_equal(other, scatter)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", ["csr", "dense"])
def test_values_that_are_no_numbers(bad, form):
    x = np.ones((5, 3))
    x[4, 1] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        gram([sparse.csr_matrix(x) if form == "csr" else x], 3)


def test_no_rows():
    with pytest.raises(InputError, match="no sample"):
        gram([], 3)
    with pytest.raises(InputError, match="no sample"):
        gram([np.zeros((0, 3))], 3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 60), shift=st.sampled_from([0.0, 1.0, 1e5]))
def test_group_moments(seed, size, shift):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(60, 3)) + shift).astype(np.float32)
    rows = rng.permutation(60)[:40]
    codes = rng.integers(0, 5, 40)
    codes[codes == 3] = 2  # an empty group
    found = group_moments(x, rows, codes, 5, max_elements=size)
    wide = x.astype(np.float64)
    for group in range(5):
        part = wide[rows[codes == group]]
        assert found.count[group] == len(part)
        if len(part):
            np.testing.assert_allclose(found.mean[group], part.mean(axis=0), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(found.squares[group], part.var(axis=0) * len(part), rtol=1e-7, atol=1e-9)
        else:
            assert not found.mean[group].any()
    n, mean, squares = found.pooled()
    assert n == 40
    np.testing.assert_allclose(mean, wide[rows].mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(squares, wide[rows].var(axis=0) * 40, rtol=1e-7, atol=1e-9)
