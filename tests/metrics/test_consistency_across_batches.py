"""Consistency over pairs of different batches: by its definition, blind to what batches share, calibrated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from sklearn.metrics.pairwise import cosine_similarity

from txeval.errors import InputError
from txeval.metrics.consistency import consistency_permutation_p, group_consistency, tail_p


def direct(X: np.ndarray, batch: np.ndarray) -> float:
    if not len(X):
        return float("nan")
    similarity, other = cosine_similarity(X), batch[:, None] != batch[None, :]
    return float(similarity[other].mean()) if other.any() else float("nan")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([7, 10**6]))
def test_mean_cosine_across_batches_is_the_direct_one(seed: int, max_elements: int) -> None:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(40, 3)) * (rng.random(40) > 0.1)[:, None]
    codes, batch = rng.integers(-1, 5, size=40), rng.integers(3, size=40)
    n, avg = group_consistency(X, codes, 6, batch=batch, max_elements=max_elements)
    assert n.tolist() == np.bincount(codes[codes >= 0], minlength=6).tolist()
    for g in range(6):
        assert avg[g] == pytest.approx(direct(X[codes == g], batch[codes == g]), abs=1e-12, nan_ok=True)


def test_one_batch_has_no_pair_and_a_batch_each_has_them_all() -> None:
    X = np.random.default_rng(0).normal(size=(12, 4))
    codes = np.repeat([0, 1], 6)
    assert np.isnan(group_consistency(X, codes, 2, batch=np.zeros(12, int))[1]).all()
    np.testing.assert_allclose(
        group_consistency(X, codes, 2, batch=np.arange(12))[1], group_consistency(X, codes, 2)[1]
    )


def test_what_the_samples_of_a_batch_share_does_not_count() -> None:
    rng = np.random.default_rng(1)
    batch = np.tile(np.arange(6), 10)
    # A direction for every (perturbation, batch): technical, since no other batch repeats it.
    X = rng.normal(size=(60, 30)) + 20 * rng.normal(size=(6, 30))[batch]
    codes = np.zeros(60, int)
    assert group_consistency(X, codes, 1)[1][0] > group_consistency(X, codes, 1, batch=batch)[1][0] + 0.1


def test_p_is_the_share_of_direct_draws() -> None:
    rng = np.random.default_rng(2)
    X, batch = rng.normal(size=(60, 3)), np.repeat([0, 1, 2], 20)
    codes = rng.permutation(np.repeat(np.arange(4), 15))
    avg = group_consistency(X, codes, 4, batch=batch)[1]
    labels = np.array(list("abcd"))
    p = consistency_permutation_p(X, codes, batch, labels, np.arange(4), avg, draws=4000, across_batches=True)
    for g in range(4):
        sizes = [int(((codes == g) & (batch == b)).sum()) for b in range(3)]
        null = []
        for _ in range(1500):
            rows = np.concatenate(
                [rng.choice(np.flatnonzero(batch == b), size, replace=False) for b, size in enumerate(sizes)]
            )
            null.append(direct(X[rows], batch[rows]))
        expected = np.mean(np.asarray(null) >= avg[g])
        assert abs(p[g] - expected) < 5 * np.sqrt(0.25 / 1500) + 1e-3


def test_p_values_are_uniform_with_strong_batches_and_unequal_groups() -> None:
    rng = np.random.default_rng(3)
    p = []
    for _ in range(60):
        codes = np.repeat(np.arange(5), [2, 4, 8, 16, 30])
        batch = rng.integers(3, size=60)
        # The small groups are in two batches at least.
        batch[:2], batch[2:4] = [0, 1], [1, 2]
        X = rng.normal(size=(60, 5)) + 5 * rng.normal(size=(3, 5))[batch]
        avg = group_consistency(X, codes, 5, batch=batch)[1]
        p += consistency_permutation_p(
            X, codes, batch, np.array(list("abcde")), np.arange(5), avg, draws=199, across_batches=True
        ).tolist()
    assert kstest(np.asarray(p) - 0.5 / 200, "uniform").pvalue > 0.001


def test_one_batch_is_refused_and_the_exact_p_is_never_zero() -> None:
    X = np.random.default_rng(0).normal(size=(6, 2))
    codes = np.repeat([0, 1], 3)
    with pytest.raises(InputError, match="one batch"):
        consistency_permutation_p(
            X, codes, np.zeros(6, int), np.array(["a", "b"]), np.arange(2), np.zeros(2), across_batches=True
        )
    assert tail_p([5.0, 0.5, 2.0], [1.0, 2.0, 3.0], "exact").tolist() == [0.25, 1.0, 0.75]
