from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity

from txeval.compute import pairs
from txeval.compute.pairs import (
    COUNTED,
    extremes,
    lower_count,
    order_statistic,
    pair_cosines,
    pair_position,
    ranking_scores,
    tail_thresholds,
    upper_count,
)


@pytest.mark.parametrize("n", [2, 5, 6, 7, 31, 32, 33, 40, 65, 200])
@pytest.mark.parametrize("d", [1, 6, 70])
def test_cosines_are_those_of_sklearn(n: int, d: int) -> None:
    X = np.random.default_rng(0).standard_normal((n, d))
    X[-1] = 0
    found = pair_cosines(X)
    first, second = np.triu_indices(n, 1)
    np.testing.assert_allclose(found, cosine_similarity(X)[first, second], atol=1e-12)
    np.testing.assert_array_equal(pair_position(first, second, n), np.arange(len(found)))
    assert not found[pair_position(np.arange(n - 1), np.full(n - 1, n - 1), n)].any()


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_many_pairs_are_float32_near_those_of_sklearn(monkeypatch: pytest.MonkeyPatch, shift: float) -> None:
    X = np.random.default_rng(1).standard_normal((300, 500)) + shift
    X[7] = 0
    monkeypatch.setattr(pairs, "FLOAT64_PAIRS", 100)
    found = pair_cosines(X)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, cosine_similarity(X)[np.triu_indices(300, 1)], rtol=0, atol=5e-7)


@pytest.mark.parametrize("most", [100, 2**24])
@pytest.mark.parametrize("d", [1, 50, 300])
def test_rows_that_repeat_give_ties(monkeypatch: pytest.MonkeyPatch, most: int, d: int) -> None:
    monkeypatch.setattr(pairs, "FLOAT64_PAIRS", most)
    X = np.random.default_rng(2).standard_normal((95, d))
    full = np.zeros((97, 97))
    full[np.triu_indices(97, 1)] = pair_cosines(np.vstack([X, 7.3 * X[0] if most > 100 else X[0], X[40]]))
    full += full.T
    others = np.r_[1:40, 41:95]
    np.testing.assert_array_equal(full[0, others], full[95, others])
    np.testing.assert_array_equal(full[40, others], full[96, others])


def brute(values: np.ndarray, tail: float) -> np.ndarray:
    """Predicted links by the definition: ranks in the sorted list of all pairs."""
    ordered = np.sort(values)
    left = np.searchsorted(ordered, values, side="left") / len(values)
    right = np.searchsorted(ordered, values, side="right") / len(values)
    return (left >= 1 - tail) | (right <= tail)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(-6, 6), min_size=1, max_size=60),
    st.sampled_from([0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 1 / 3, 0.45, 0.5]),
)
def test_order_statistics_are_the_definition_with_ties_and_few_pairs(values: list[int], tail: float) -> None:
    v = np.asarray(values, dtype=np.float64)
    low, high = tail_thresholds(v, tail)
    np.testing.assert_array_equal((v < low) | (v > high), brute(v, tail))


def test_order_statistics_are_the_definition_for_every_number_of_pairs() -> None:
    for total in [*range(1, 300), 1000, 44253]:
        v = np.random.default_rng(total).permutation(total).astype(np.float64)
        for tail in (0.05, 0.1, 0.15, 0.35):
            low, high = tail_thresholds(v, tail)
            np.testing.assert_array_equal((v < low) | (v > high), brute(v, tail))


@pytest.mark.parametrize("total", [1, 3, 7, 20, 60, 100, 1999])
def test_counts_compare_as_fractions_do(total: int) -> None:
    for tail in np.linspace(0.001, 0.5, 97):
        k = np.arange(total + 1)
        assert lower_count(tail, total) == k[k / total <= tail].max()
        assert upper_count(tail, total) == k[k / total >= 1 - tail].min()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_ranking_is_that_of_sklearn(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 60))
    if data.draw(st.booleans()):
        values = np.asarray(data.draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n)), dtype=float)
    else:
        values = np.random.default_rng(data.draw(st.integers(0, 1000))).standard_normal(n)
    positive = np.asarray(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    positive[0], positive[1] = True, False
    score = np.abs((rankdata(values, "average") - 0.5) / n - 0.5)
    # Compared as integers, so that the oracle sees ties where there are ties.
    score = np.round(score * 2 * n).astype(int)
    auroc, precision = ranking_scores(extremes(np.sort(values), values[positive]))
    assert auroc == pytest.approx(roc_auc_score(positive, score), abs=1e-12)
    assert precision == pytest.approx(average_precision_score(positive, score), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_order_statistics_of_many_values_are_those_of_the_sorted_list(dtype):
    rng = np.random.default_rng(3)
    n = COUNTED + 1000
    many = {
        "spread": rng.uniform(-1, 1, n),
        "narrow": np.clip(1e-3 * rng.standard_normal(n), -1, 1),
        "ties": rng.integers(-3, 4, n) / 3,
        "constant": np.full(n, 1.0),
    }
    for name, values in many.items():
        values = values.astype(dtype)
        ordered = np.sort(values)
        ranks = [0, 1, n // 20, n // 2, n - n // 20 - 1, n - 1]
        assert order_statistic(values, ranks) == [float(ordered[rank]) for rank in ranks], name
