"""Retrieval: equal to copairs and scikit-learn, ties, and p-values that are uniform where nothing is to be found."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from txeval.errors import InputError, NotComputable
from txeval.metrics.average_precision import (
    expected_average_precision,
    mean_average_precision,
    rank_null_p,
    retrieve,
)


def made(n: int, d: int = 6, classes: int = 5, batches: int = 3, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(classes), rng.integers(classes, size=n - classes)]
    return rng.normal(size=(n, d)) + 0.7 * rng.normal(size=(classes, d))[y], y, rng.integers(batches, size=n)


def test_equals_copairs_all_against_all_across_batches(tmp_path) -> None:
    copairs = pytest.importorskip("copairs.map")
    X, y, batch = made(90)
    meta = pd.DataFrame({"pert": y.astype(str), "batch": batch.astype(str)})
    theirs = copairs.average_precision(meta, X, ["pert"], ["batch"], [], ["pert", "batch"], progress_bar=False)
    ours = retrieve(X, y, X, y, n_classes=5, ref_block=batch, query_block=batch)
    np.testing.assert_allclose(ours.values, theirs["average_precision"], rtol=1e-6)
    np.testing.assert_array_equal(ours.n_positive, theirs["n_pos_pairs"])
    np.testing.assert_array_equal(ours.n_total, theirs["n_total_pairs"])
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = expected_average_precision(ours.n_positive, ours.n_total)
    np.testing.assert_allclose(
        (ours.values - chance) / (1 - chance), theirs["normalized_average_precision"], rtol=1e-5, atol=1e-7
    )
    groups = copairs.mean_average_precision(
        theirs, ["pert"], null_size=4000, threshold=0.05, seed=1, progress_bar=False, cache_dir=tmp_path
    )
    own = np.bincount(y, weights=ours.values) / np.bincount(y)
    np.testing.assert_allclose(own, groups["mean_average_precision"], rtol=1e-6)
    p = rank_null_p(ours.values, ours.n_positive, ours.n_total, y, np.arange(5), draws=4000)
    spread = np.sqrt(np.maximum(groups["p_value"] * (1 - groups["p_value"]), 1e-4) * 2 / 4000)
    assert (np.abs(p - groups["p_value"]) < 5 * spread).all(), (p, groups["p_value"])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_equals_scikit_learn_ties_included_for_every_class(data: st.DataObject) -> None:
    n, m = data.draw(st.integers(2, 25)), data.draw(st.integers(1, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    # Small whole numbers: many equal cosines, and zero rows.
    R, Q = rng.integers(-1, 2, size=(n, 2)).astype(float), rng.integers(-1, 2, size=(m, 2)).astype(float)
    yr, yq = rng.integers(3, size=n), rng.integers(3, size=m)
    found = retrieve(R, yr, Q, yq, n_classes=3, by_class=True, max_elements=data.draw(st.sampled_from([1, 40, 10**6])))
    assert found.by_class is not None
    similarity = np.round(cosine_similarity(Q, R), 12)
    for i in range(m):
        for c in range(3):
            positive = yr == c
            if 0 < positive.sum() < n:
                expected = average_precision_score(positive, similarity[i])
                assert found.by_class[c, i] == pytest.approx(expected, rel=1e-6)
                if c == yq[i]:
                    assert found.values[i] == pytest.approx(expected, rel=1e-12)
            else:
                assert np.isnan(found.by_class[c, i])


def test_a_collapsed_embedding_scores_the_share_of_positives() -> None:
    y = made(60)[1]
    flat = np.full((60, 3), 0.37, dtype=np.float32)
    found = retrieve(flat, y, flat[:7], y[:7], n_classes=5)
    np.testing.assert_allclose(found.values, (np.bincount(y) / 60)[y[:7]])


@pytest.mark.parametrize(("positive", "total"), [(1, 2), (1, 9), (3, 7), (8, 9), (4, 4)])
def test_expected_precision_is_the_mean_over_all_rankings(positive: int, total: int) -> None:
    from itertools import combinations

    values = [
        np.mean(np.arange(1, positive + 1) / (np.array(places) + 1)) for places in combinations(range(total), positive)
    ]
    assert expected_average_precision([positive], [total])[0] == pytest.approx(np.mean(values), rel=1e-12)


def test_scale_rotation_and_order_of_the_references_do_not_matter() -> None:
    X, y, _ = made(80)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    order = np.random.default_rng(2).permutation(50)
    one = retrieve(X[:50], y[:50], X[50:], y[50:], n_classes=5)
    two = retrieve(3 * (X[:50] @ rotation)[order], y[:50][order], X[50:] @ rotation, y[50:], n_classes=5)
    np.testing.assert_allclose(one.values, two.values, rtol=1e-9)


def test_p_values_are_uniform_with_unequal_groups_batches_and_dependent_rankings() -> None:
    rng = np.random.default_rng(0)
    p, ranks = [], []
    sizes = np.array([2, 3, 5, 9, 20, 40])
    for _ in range(60):
        y = np.repeat(np.arange(6), sizes)
        batch = rng.integers(3, size=len(y))
        # Clusters that have nothing to do with the perturbations, and shifted batches.
        X = rng.normal(size=(len(y), 4)) + 4 * rng.normal(size=(3, 4))[rng.integers(3, size=len(y))]
        X += 3 * rng.normal(size=(3, 4))[batch]
        ref_y = rng.integers(6, size=60)
        R = rng.normal(size=(60, 4)) + 4 * rng.normal(size=(3, 4))[rng.integers(3, size=60)]
        p += mean_average_precision(R, ref_y, X, y, query_batch=batch, draws=199)["p_value"].tolist()
        ranks += mean_average_precision(R, ref_y, X, y, null="ranks", draws=199)["p_value"].tolist()
    p = np.asarray(p)
    # p is uniform on the multiples of 1/200: half a step aside it is compared with the continuous law.
    assert kstest(p - 0.5 / 200, "uniform").pvalue > 0.001
    assert abs(np.mean(p <= 0.05) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / len(p))
    # The null of random rankings does not know that rankings depend on each other.
    assert kstest(np.asarray(ranks), "uniform").pvalue < 1e-6


def test_planted_effects_are_found() -> None:
    X, y, batch = made(400, seed=3)
    table = mean_average_precision(X[:200], y[:200], X[200:], y[200:], query_batch=batch[200:], draws=499)
    assert (table["p_adjusted"] < 0.05).all() and (table["map"] > table["expected"]).all()


def test_edges() -> None:
    X = np.eye(4)
    with pytest.raises(NotComputable, match="positive and a negative"):
        mean_average_precision(X, ["a"] * 4, X, ["a"] * 4)
    with pytest.raises(NotComputable, match="positive and a negative"):
        mean_average_precision(X, ["a"] * 4, X, ["b"] * 4)
    with pytest.raises(NotComputable, match="no query"):
        retrieve(X, np.zeros(4, int), X[:0], np.zeros(0, int), n_classes=1)
    with pytest.raises(InputError, match="columns"):
        retrieve(X, np.zeros(4, int), X[:, :2], np.zeros(4, int), n_classes=1)
    with pytest.raises(InputError, match="nan"):
        retrieve(X * np.nan, np.zeros(4, int), X, np.zeros(4, int), n_classes=1)
    # A class whose batches hold no other class has no null.
    table = mean_average_precision(np.r_[X, X], list("abababab"), X, list("aabb"), query_batch=[0, 0, 1, 1], draws=20)
    assert table["p_value"].isna().all() and table["map"].notna().all()


def test_what_classes_take_is_the_slope_of_the_precision() -> None:
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((400, 5)), rng.integers(0, 8, 400)
    Q, yq = rng.standard_normal((30, 5)), rng.integers(0, 8, 30)
    weight = rng.random(30)
    taken = retrieve(X, y, Q, yq, n_classes=8, query_weight=weight).taken
    assert taken is not None
    assert taken.shape == (8, 8)
    # A copy of a class takes what the class takes, to first order: of every query, rank by rank.
    order = np.argsort(-(Q @ X.T) / np.linalg.norm(X, axis=1), axis=1)
    expected = np.zeros((8, 8))
    for q in range(30):
        own = y[order[q]] == yq[q]
        rank, found = np.flatnonzero(own) + 1, np.arange(1, own.sum() + 1)
        for c in set(range(8)) - {yq[q]}:
            before = np.cumsum(y[order[q]] == c)[rank - 1]
            expected[yq[q], c] += weight[q] * (found / rank**2 * before).sum() / own.sum()
    np.testing.assert_allclose(taken, expected, rtol=1e-5)
    assert retrieve(X, y, Q, yq, n_classes=8).taken is None
