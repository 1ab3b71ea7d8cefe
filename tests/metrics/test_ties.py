"""Ties: no score depends on the order of the samples or on the names of labels, and shared places are expectations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from txeval.compute.groups import canonical_order
from txeval.compute.pca import principal_axes
from txeval.metrics import ilisi, knn_accuracy, mean_average_precision
from txeval.metrics.average_precision import retrieve
from txeval.metrics.batch_mixing import ilisi_scores
from txeval.metrics.convergent_probe import convergent_probe
from txeval.metrics.knn import accuracies, expected_hits, true_class_ranks
from txeval.tasks.accuracy import Ranked, contributions

N, BATCHES, CLASSES = 400, 4, 6
BATCH = np.repeat(np.arange(BATCHES), N // BATCHES)
LABEL = np.random.default_rng(1).integers(0, CLASSES, N)


def embeddings() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    spread = draw.normal(size=(N, 4))
    grid = draw.integers(0, 3, (N, 3))
    twice = np.repeat(draw.normal(size=(N // 2, 4)), 2, axis=0)
    return {
        "constant": np.full((N, 4), 0.3),
        "one-hot": np.eye(2)[draw.integers(0, 2, N)],
        "one-hot of classes": np.eye(CLASSES)[LABEL],
        "wide one-hot, equal sizes": np.eye(50)[draw.permutation(np.arange(N) % 50)],
        "40 % empty": np.where((draw.random(N) < 0.4)[:, None], 0, spread),
        "each twice": twice[draw.permutation(N)],
        "grid": grid.astype(float),
        "whole numbers in 40 dimensions": draw.integers(0, 2, (N, 40)).astype(float) * (np.arange(40) < 8),
    }


EMBEDDINGS = embeddings()


def mixing(X: np.ndarray, batch: np.ndarray, label: np.ndarray, test: np.ndarray) -> dict[str, float]:
    found = ilisi_scores(X, batch, perplexity=30, components="paper", mixing_draws=2)
    return {"ilisi": found.scores.mean(), "perfect": found.expected.mean()}


def mixing_of_others(X: np.ndarray, batch: np.ndarray, label: np.ndarray, test: np.ndarray) -> dict[str, float]:
    return {"ilisi": ilisi(X, batch, perplexity=15, include_self=False).mean()}


def votes(X: np.ndarray, batch: np.ndarray, label: np.ndarray, test: np.ndarray) -> dict[str, float]:
    found = knn_accuracy(X[~test], label[~test], X[test], label[test], k=51, components=32)
    return {name: found[name] for name in ("top1", "top5", "top1_balanced", "majority")}


def retrieval(X: np.ndarray, batch: np.ndarray, label: np.ndarray, test: np.ndarray) -> dict[str, float]:
    X = X.astype(np.float32)
    table = mean_average_precision(X[~test], label[~test], X[test], label[test], query_batch=batch[test], draws=20)
    return {"map": table["map"].mean(), "p": table["p_value"].mean()}


def probe(X: np.ndarray, batch: np.ndarray, label: np.ndarray, test: np.ndarray) -> dict[str, float]:
    found = convergent_probe(X[~test], label[~test], X[test], label[test], batch=batch[~test], weight_decays=(0.1,))
    return {name: found[name] for name in ("top1", "top5", "top1_balanced")}


SCORES = [mixing, mixing_of_others, votes, retrieval, probe]


@pytest.mark.parametrize("name", EMBEDDINGS)
@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.__name__)
def test_order_and_names_do_not_matter(score: Callable[..., dict[str, float]], name: str) -> None:
    draw = np.random.default_rng(2)
    X, test = EMBEDDINGS[name], np.random.default_rng(3).random(N) < 0.4
    expected = score(X, BATCH, LABEL, test)
    for order in (np.arange(N)[::-1], draw.permutation(N)):
        found = score(X[order], BATCH[order], LABEL[order], test[order])
        assert found == pytest.approx(expected, rel=1e-6), "order of the samples"
    names = np.array(["t", "f", "z", "a", "m", "c"])
    # Draws for a null or for perfect mixing are keyed by the names of batches, so these stay.
    found = score(X, BATCH, names[LABEL], test)
    assert found == pytest.approx(expected, rel=1e-6), "names of the labels"
    batches = np.array(["z", "k", "a", "m"])[BATCH]
    found, of_draws = score(X, batches, LABEL, test), {"perfect", "p"}
    for key in set(expected) - of_draws:
        assert found[key] == pytest.approx(expected[key], rel=1e-6), f"names of the batches: {key}"


@pytest.mark.parametrize("include_self", [True, False])
def test_a_constant_embedding_mixes_as_random_neighbours_do(include_self: bool) -> None:
    found = ilisi_scores(np.ones((N, 3)), BATCH, perplexity=30, include_self=include_self, mixing_draws=2)
    k = 89 if include_self else 90
    # Two different others share the sample's batch or one of the three others'.
    same = (99 * 98 + 3 * 100 * 99) / (399 * 398)
    np.testing.assert_allclose(found.scores, 1 / (1 / k + (k - 1) / k * same), rtol=1e-12)
    np.testing.assert_allclose(found.expected, found.scores, rtol=1e-12)
    assert "400 samples" in found.notes[0]
    # What batches add as neighbours sums to nothing, and equal batches add the same.
    np.testing.assert_allclose(found.lent, 0, atol=1e-9)


def weights(distances: np.ndarray, perplexity: int) -> np.ndarray:
    """exp(-beta d) / sum, by the definition of LISI."""
    away, beta, low, high = distances - distances.min(), 1.0, 0.0, np.inf
    for _ in range(51):
        p = np.exp(-beta * away)
        p /= p.sum()
        if -(p[p > 0] * np.log(p[p > 0])).sum() > np.log(perplexity):
            low, beta = beta, beta * 2 if np.isinf(high) else (beta + high) / 2
        else:
            high, beta = beta, (low + beta) / 2
    return p


TIED = ["constant", "one-hot", "40 % empty", "grid"]


@pytest.mark.parametrize("name", TIED)
def test_mixing_is_the_mean_over_ties_broken_at_random(name: str) -> None:
    draw = np.random.default_rng(4)
    X, some, k, perplexity = EMBEDDINGS[name], np.arange(0, N, 10), 29, 10
    distances = cdist(X[some], X)
    distances[np.arange(len(some)), some] = np.inf
    p = [weights(np.sort(row)[:k], perplexity) for row in distances]
    simpson = np.zeros((300, len(some)))
    for t in range(len(simpson)):
        near = np.lexsort([draw.random(distances.shape), distances], axis=1)[:, :k]
        simpson[t] = [(np.bincount(BATCH[row], weights=of) ** 2).sum() for row, of in zip(near, p, strict=True)]
    found = ilisi(X, BATCH, perplexity=perplexity)[some]
    error = simpson.std(axis=0) / np.sqrt(len(simpson))
    assert (np.abs(1 / found - simpson.mean(axis=0)) < 4.5 * error + 1e-5).all()
    # The mean of 1 over it is 1 over its mean, but for what its variance adds.
    relative = simpson.var(axis=0) / simpson.mean(axis=0) ** 2
    np.testing.assert_allclose((1 / simpson).mean(axis=0) / (1 + relative), found, rtol=0.02)


@pytest.mark.parametrize("name", TIED)
def test_votes_are_the_mean_over_ties_broken_at_random(name: str) -> None:
    draw = np.random.default_rng(5)
    reference, k = np.arange(N) % 3 > 0, 40
    X, y, queries, truth = EMBEDDINGS[name][reference], LABEL[reference], EMBEDDINGS[name][::3], LABEL[::3]
    distances = cdist(queries, X)
    votes = np.zeros((300, len(queries), CLASSES))
    for t in range(len(votes)):
        near = np.lexsort([draw.random(distances.shape), distances], axis=1)[:, :k]
        for i, row in enumerate(near):
            votes[t, i] = np.bincount(y[row], weights=1 / (distances[i, row] + 1e-5), minlength=CLASSES)
    mean, error = votes.mean(axis=0), votes.std(axis=0) / np.sqrt(len(votes)) + 1e-9
    found = true_class_ranks(X, y, queries, truth, n_classes=CLASSES, k=k)
    every = np.arange(len(truth))
    own, margin = mean[every, truth][:, None], 5 * (error + error[every, truth][:, None])
    known = own[:, 0] > 0
    # Classes that are clearly before the true one, and those that are clearly behind it.
    assert (found.rank >= (mean > own + margin).sum(axis=1))[known].all()
    assert (found.rank + found.tied < (mean >= own - margin).sum(axis=1))[known].all()
    assert (found.rank[~known] == CLASSES).all()


def test_a_constant_embedding_is_at_chance_whatever_the_names() -> None:
    y, truth = np.repeat(np.arange(4), 60), np.repeat(np.arange(4), [10, 60, 30, 100])
    batch = np.tile(np.arange(3), 80)
    X, queries = np.ones((240, 3)), np.ones((200, 3))
    for names in (np.array(list("abcd")), np.array(list("dbca"))):
        found = knn_accuracy(X, names[y], queries, names[truth], k=51)
        assert (found["top1"], found["top5"], found["majority"]) == (0.25, 1.0, 0.25)
        assert found["top1_balanced"] == 0.25
        assert "200 samples have more neighbours" in found["notes"][0]
        assert convergent_probe(X, names[y], queries, names[truth], batch=batch)["top1"] == pytest.approx(0.25)
    # Where one class is commoner, a vote that knows nothing answers it, as the best constant answer does.
    y[:90], y[90:] = 0, 1 + np.arange(150) % 3
    found = knn_accuracy(X, y, queries, truth, k=51)
    assert found["top1"] == found["majority"] == 0.05


def test_tied_classes_share_the_places_in_expectation() -> None:
    draw = np.random.default_rng(6)
    votes = draw.integers(0, 4, (200, 9)).astype(float)
    truth = draw.integers(0, 9, 200)
    own = votes[np.arange(200), truth][:, None]
    rank, tied = (votes > own).sum(axis=1), (votes == own).sum(axis=1) - 1
    placed = np.zeros((2, 200))
    for _ in range(4000):
        order = np.argsort(-votes + 0.5 * draw.random(votes.shape), axis=1)
        place = (order == truth[:, None]).argmax(axis=1)
        placed += [place < 1, place < 5]
    for top, found in zip((1, 5), placed / 4000, strict=True):
        np.testing.assert_allclose(expected_hits(rank, tied, top), found, atol=0.04)
        assert accuracies(rank, tied, truth)[f"top{top}"] == pytest.approx(found.mean(), abs=0.004)


def test_what_a_tied_class_takes_is_what_is_gained_without_it() -> None:
    # Of 30 samples of each of three classes a third are right, a third tie with another class, a third are behind one.
    kind = np.tile(np.arange(3), 30)
    truth = np.repeat(np.arange(3), 30)
    other = (truth + 1 + np.arange(90) // 3 % 2) % 3
    ahead = np.full((90, 5), -1)
    ahead[kind == 2, 0], ahead[kind == 1, 4] = other[kind == 2], other[kind == 1]
    other[truth == 2] = 0
    ahead[(truth == 2) & (kind == 2), 0] = 0
    ahead[(truth == 2) & (kind == 1), 4] = 0
    names = np.array(["a", "b", "c"])
    ranked = Ranked(
        rank=(kind == 2).astype(int),
        tied=(kind == 1).astype(int),
        truth=truth,
        classes=names,
        ahead=ahead,
        unit_labels=(np.array([f"b{i}" for i in range(15)]), names),
        unit_codes=(np.arange(90) % 15, truth),
        train_counts=np.full(3, 30),
    )
    units = contributions(ranked, 1)
    assert units.value == pytest.approx(0.5)
    hits = expected_hits(ranked.rank, ranked.tied, 1)
    lost = []
    for c in range(3):
        left, mine = truth != c, other == c
        without = hits + mine * np.select([kind == 2, kind == 1], [1.0, 0.5], 0.0)
        lost.append(0.5 - without[left].mean())
    sums = np.bincount(units.codes[1], weights=units.alone)
    assert np.corrcoef(lost, sums)[0, 1] > 1 - 1e-6


def test_what_equal_candidates_take_from_a_query_does_not_depend_on_their_order() -> None:
    draw = np.random.default_rng(7)
    X = np.eye(3)[draw.integers(0, 3, 60)].astype(np.float32)
    codes = draw.integers(0, 4, 60)

    def taken(order: np.ndarray) -> Any:
        weight = np.full(10, 0.1)
        return retrieve(X[order], codes[order], X[:10], codes[:10], n_classes=4, query_weight=weight).taken

    expected = taken(np.arange(60))
    np.testing.assert_allclose(taken(draw.permutation(60)), expected, rtol=1e-12)
    # Of one query and a constant reference: each of m positives is found at rank n with precision m / n.
    one = retrieve(
        np.ones((8, 2)), np.arange(8) % 2, np.ones((1, 2)), np.zeros(1, int), n_classes=2, query_weight=np.ones(1)
    )
    assert one.values[0] == 0.5
    assert one.taken is not None and one.taken[0].tolist() == [0.0, 4 * 4 / 8**2 / 4 * 4]


def test_equal_rows_stay_equal_in_principal_components_and_variances_are_not_split() -> None:
    draw = np.random.default_rng(8)
    X = draw.normal(size=(1003, 47)).astype(np.float32)
    X[500:] = X[draw.integers(0, 500, 503)]
    made = principal_axes(X).project(X, 11, max_elements=1000)
    _, first = np.unique(X, axis=0, return_index=True)
    _, of_made = np.unique(made, axis=0, return_index=True)
    np.testing.assert_array_equal(np.sort(of_made), np.sort(first))
    assert made.shape == (1003, 11)
    # 20 groups of equal size have 19 equal variances: any 5 of these axes are as good as any others.
    axes = principal_axes(np.eye(20)[np.arange(200) % 20])
    assert axes.project(np.eye(20), 5).shape == (20, 19)


def test_rows_that_agree_in_their_first_columns_are_sorted_by_the_others() -> None:
    draw = np.random.default_rng(9)
    X = np.hstack([np.zeros((300, 6)), draw.integers(0, 2, (300, 9))]).astype(np.float32)
    strata, order = draw.integers(0, 3, 300), draw.permutation(300)
    a = canonical_order(X, np.arange(300), strata)
    b = canonical_order(X[order], np.arange(300), strata[order])
    np.testing.assert_array_equal(X[a], X[order][b])
    np.testing.assert_array_equal(strata[a], strata[order][b])
    assert (np.diff(strata[a]) >= 0).all() and len(np.unique(a)) == 300
