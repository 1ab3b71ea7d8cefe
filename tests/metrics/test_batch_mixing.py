"""iLISI against the published values, two other implementations, and its two ends."""

from __future__ import annotations

import json

import numpy as np
import pytest
from benchmarks.bench.steps.s1_neighbours import ilisi_by_definition
from hypothesis import given, settings
from hypothesis import strategies as st

from txeval.errors import InputError, NotComputable
from txeval.metrics import ilisi
from txeval.metrics.batch_mixing import ilisi_scores

rng = np.random.default_rng(2)


def by_definition(X, batch, perplexity, others):
    """The formula, sample by sample."""
    X = np.asarray(X, np.float64)
    scores = []
    for i in range(len(X)):
        distances = np.sqrt(((X - X[i]) ** 2).sum(axis=1))
        distances[i] = np.inf
        near = np.argsort(distances, kind="stable")[:others]
        d = distances[near]
        low, high, beta = 0.0, np.inf, 1.0
        for _ in range(200):
            p = np.exp(-beta * (d - d[0]))
            p /= p.sum()
            entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
            if entropy > np.log(perplexity):
                low, beta = beta, beta * 2 if np.isinf(high) else (beta + high) / 2
            else:
                high, beta = beta, (low + beta) / 2
        shares = [p[batch[near] == b].sum() for b in np.unique(batch)]
        scores.append(1 / np.sum(np.square(shares)))
    return np.asarray(scores)


GOLDEN = [
    f"ilisi/{post}/perplexity{p}/pca{pca}"
    for post in ("raw", "centering", "center_scaling", "tvn")
    for p, pca in ((83, 0), (83, 1), (30, 0))
]


@pytest.mark.parametrize("key", GOLDEN)
def test_published_code_agrees(golden_dir, key):
    expected = json.loads((golden_dir / "norman.json").read_text())["answers"][key]
    arrays = np.load(golden_dir / "norman.npz")
    _, post, perplexity, pca = key.split("/")
    scores = ilisi(
        arrays["embedding" if post == "raw" else f"post_{post}"],
        arrays["batch"],
        perplexity=int(perplexity.removeprefix("perplexity")),
        components="paper" if pca == "pca1" else None,
    )
    assert scores.dtype == np.float64
    assert scores.mean() == pytest.approx(expected, rel=1e-6)


def test_every_golden_answer_is_tested(golden_dir):
    answers = json.loads((golden_dir / "norman.json").read_text())["answers"]
    assert {key for key in answers if key.startswith("ilisi/")} == set(GOLDEN)


@pytest.mark.parametrize("include_self", [True, False])
def test_definition(include_self):
    X = rng.normal(size=(400, 6)).astype(np.float32)
    batch = rng.integers(0, 5, 400)
    X[:, 0] += batch
    found = ilisi_scores(X, batch, perplexity=20, include_self=include_self)
    others = 59 if include_self else 60
    assert found.n_neighbours == others
    np.testing.assert_allclose(found.scores, by_definition(X, batch, 20, others), rtol=1e-4)


def test_the_bisection_stops_where_that_of_the_published_code_does():
    """With its tolerance, on distances in float64: float32 would move one score in a hundred by 1e-5 and more."""
    draw = np.random.default_rng(11)
    X = (3 + draw.normal(size=(1500, 12))).astype(np.float32)
    batch = draw.integers(0, 6, 1500)
    expected = ilisi_by_definition(X, batch, len(X), 30)
    np.testing.assert_allclose(ilisi(X, batch, perplexity=30), expected, rtol=1e-10)


def test_scib_metrics_agrees():
    from scib_metrics import lisi_knn
    from scib_metrics.nearest_neighbors import NeighborsResults
    from sklearn.neighbors import NearestNeighbors

    X = rng.normal(size=(600, 8)).astype(np.float32)
    batch = rng.integers(0, 4, 600)
    distances, indices = NearestNeighbors(n_neighbors=90, algorithm="brute").fit(X).kneighbors(X)
    expected = lisi_knn(NeighborsResults(indices=indices, distances=distances), batch, perplexity=30)
    np.testing.assert_allclose(ilisi(X, batch, perplexity=30), expected, rtol=2e-3)


def test_perfectly_mixed_batches_reach_the_number_of_batches():
    # Every place holds one sample of each of four batches.
    X = np.repeat(rng.normal(size=(300, 5)), 4, axis=0)
    batch = np.tile(["a", "b", "c", "d"], 300)
    scores = ilisi(X, batch, perplexity=200)
    assert scores.max() <= 4
    # Short of it by what the sample itself, which is left out, would have weighed.
    assert scores.min() > 3.85


def test_randomly_mixed_batches_come_near_it():
    X = rng.normal(size=(2000, 10))
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    batch = rng.choice(4, size=2000, p=shares)
    scores = ilisi(X, batch)
    # Weights p of perplexity 83 on random labels: E sum_c (sum p)^2 = s + (1 - s) sum f^2 with s = sum p^2 about 1/83.
    expected = 1 / (1 / 83 + (1 - 1 / 83) * (shares**2).sum())
    assert scores.mean() == pytest.approx(expected, rel=0.03)


def test_separated_batches_score_one():
    X = rng.normal(size=(900, 4))
    batch = np.repeat([0, 1, 2], 300)
    X[:, 0] += 100 * batch
    np.testing.assert_allclose(ilisi(X, batch, perplexity=60), 1.0, atol=1e-12)


def test_one_batch_scores_one():
    scores = ilisi(rng.normal(size=(300, 4)), ["only"] * 300)
    np.testing.assert_allclose(scores, 1.0, atol=1e-12)
    assert (scores >= 1).all()


@pytest.mark.parametrize("n", [3, 4, 40, 700])
def test_duplicates_have_scores(n):
    batch = np.arange(n) % 3
    found = ilisi_scores(np.ones((n, 4)), batch)
    assert np.isfinite(found.scores).all()
    assert (found.scores >= 1).all()
    assert (found.scores <= 3 + 1e-9).all()
    if n == 700:
        assert "700 samples have more neighbours at the distance of the last one" in " ".join(found.notes)
        # As of 248 of the others, drawn at random: pairs of different neighbours share a batch as all pairs do.
        same = [((batch == c).sum() - (batch[i] == c)) for i in range(3) for c in range(3)]
        same = (np.reshape(same, (3, 3)) * (np.reshape(same, (3, 3)) - 1)).sum(axis=1) / (699 * 698)
        np.testing.assert_allclose(found.scores[:3], 1 / (1 / 248 + 247 / 248 * same), rtol=1e-12)
    partly = np.zeros((n, 2))
    partly[: n // 2] = rng.normal(size=(n // 2, 2))
    assert np.isfinite(ilisi(partly, batch)).all()


@pytest.mark.parametrize("spread", [1e-20, 1e-6, 1e6, 1e20])
def test_scale_has_no_effect(spread):
    X = rng.normal(size=(300, 4))
    batch = rng.integers(0, 3, 300)
    reference = ilisi(X, batch, perplexity=30)
    # Beta starts at 1 and moves by at most 2^50; beyond that the weights are the limits.
    if 1e-10 < spread < 1e10:
        np.testing.assert_allclose(ilisi(X * spread, batch, perplexity=30), reference, rtol=1e-3)
    else:
        assert np.isfinite(ilisi(X * spread, batch, perplexity=30)).all()


def test_fewer_samples_than_neighbours():
    X = rng.normal(size=(101, 4))
    batch = rng.integers(0, 3, 101)
    found = ilisi_scores(X, batch)
    assert (found.n_neighbours, found.perplexity) == (100, 33)
    assert "101 neighbours instead of 249, perplexity 33 instead of 83" in found.notes[0]
    np.testing.assert_allclose(found.scores, by_definition(X, batch, 33, 100), rtol=1e-4)
    without = ilisi_scores(X, batch, include_self=False)
    assert (without.n_neighbours, without.perplexity) == (100, 33)
    assert "100 neighbours instead of 249" in without.notes[0]
    assert ilisi_scores(X[:3], batch[:3]).perplexity == 1
    assert not ilisi_scores(rng.normal(size=(249, 4)), np.arange(249) % 2).notes


def test_reduction():
    X = rng.normal(size=(400, 50)) * np.where(np.arange(50) < 2, 100, 1)
    batch = rng.integers(0, 3, 400)
    assert ilisi_scores(X, batch).components == 50
    assert ilisi_scores(X, batch, components=3).components == 3
    assert ilisi_scores(X, batch, components="paper").components == 32
    assert ilisi_scores(X[:, :20], batch, components="paper").components == 20
    assert ilisi_scores(rng.normal(size=(900, 60)), np.arange(900) % 2, components="paper").components > 40
    assert ilisi_scores(X, batch, min_components=1, variance=0.9).components == 2
    full = ilisi(X[:, :20], batch, perplexity=20)
    np.testing.assert_allclose(ilisi(X[:, :20], batch, perplexity=20, components=20), full, rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), include_self=st.booleans())
def test_order_rotation_labels_and_blocks_have_no_effect(seed, include_self):
    draw = np.random.default_rng(seed)
    n = int(draw.integers(60, 200))
    X = draw.normal(size=(n, 5))
    batch = draw.integers(0, 4, n)
    scores = ilisi(X, batch, perplexity=12, include_self=include_self)
    assert ((scores >= 1) & (scores <= 4 + 1e-9)).all()
    order = draw.permutation(n)
    names = np.array(["w", "z", "x", "y"], dtype=object)
    shuffled = ilisi(X[order], names[batch[order]], perplexity=12, include_self=include_self)
    np.testing.assert_allclose(shuffled, scores[order], rtol=1e-9)
    rotation = np.linalg.qr(draw.normal(size=(5, 5)))[0]
    rotated = ilisi(X @ rotation - 2, batch, perplexity=12, include_self=include_self)
    assert np.isclose(rotated, scores, rtol=2e-3, atol=0).sum() >= n - 1
    small = ilisi_scores(X, batch, perplexity=12, include_self=include_self, max_elements=64, threads=2)
    np.testing.assert_array_equal(small.scores, scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.full((30, 2), np.nan)}, "nan in row 0"),
        ({"X": np.zeros(30)}, "shape"),
        ({"batch": ["a"] * 29}, "29 entries for 30"),
        ({"batch": ["a"] * 29 + [None]}, "missing in row 29"),
        ({"perplexity": 0}, "perplexity is 0"),
        ({"perplexity": 8.5}, "perplexity is 8.5"),
        ({"components": 0}, "components is 0"),
        ({"components": "most"}, "components is 'most'"),
    ],
)
def test_bad_input(change, message):
    arguments = {"X": rng.normal(size=(30, 2)), "batch": ["a", "b"] * 15, "perplexity": 5} | change
    with pytest.raises(InputError, match=message):
        ilisi(**arguments)


def test_too_few_samples():
    with pytest.raises(NotComputable, match="2 samples"):
        ilisi(np.zeros((2, 2)), ["a", "b"])
    with pytest.raises(NotComputable, match="3 samples"):
        ilisi(np.zeros((3, 2)), ["a", "b", "a"], include_self=False)
    with pytest.raises(InputError, match="variance is 2"):
        ilisi_scores(np.zeros((30, 2)), ["a", "b"] * 15, variance=2)


def test_without_the_sample_itself_it_is_that_of_scib_metrics():
    from scib_metrics import lisi_knn
    from scib_metrics.nearest_neighbors import NeighborsResults
    from sklearn.neighbors import NearestNeighbors

    draw = np.random.default_rng(11)
    X = draw.normal(size=(260, 5)).astype(np.float32)
    batch = draw.integers(4, size=260)
    # scib-metrics leaves out the first column, the sample itself: 61 neighbours with it are 60 without.
    distances, indices = NearestNeighbors(n_neighbors=61).fit(X).kneighbors(X)
    theirs = lisi_knn(NeighborsResults(indices=indices, distances=distances), batch, perplexity=20)
    np.testing.assert_allclose(ilisi(X, batch, perplexity=20, include_self=False), theirs, rtol=1e-4)


def test_perfect_mixing_scores_its_own_expectation_whatever_the_sizes():
    draw = np.random.default_rng(12)
    X = draw.normal(size=(900, 4)).astype(np.float32)
    batch = np.repeat([0, 1, 2, 3], [30, 70, 200, 600])
    draw.shuffle(batch)
    found = ilisi_scores(X, batch, perplexity=20, include_self=False, mixing_draws=20)
    assert found.scores.mean() / found.expected.mean() == pytest.approx(1, abs=0.02)
    # The expectation lies below that of an infinite sample, 1 / sum of squared shares.
    assert found.expected.mean() < 1 / ((np.bincount(batch) / 900) ** 2).sum()
    apart = ilisi_scores(X + 50 * batch[:, None], batch, perplexity=20, include_self=False, mixing_draws=20)
    assert apart.scores.mean() < 0.6 * apart.expected.mean()
    np.testing.assert_allclose(apart.expected.mean(), found.expected.mean(), rtol=0.02)


def test_a_collapsed_embedding_mixes_perfectly():
    draw = np.random.default_rng(13)
    batch = draw.integers(5, size=600)
    blob = 0.5 + 1e-6 * draw.normal(size=(600, 3))
    found = ilisi_scores(blob, batch, perplexity=20, include_self=False, mixing_draws=20)
    assert found.scores.mean() / found.expected.mean() == pytest.approx(1, abs=0.05)
    constant = ilisi_scores(np.full((600, 3), 0.5), batch, perplexity=20, include_self=False, mixing_draws=20)
    assert constant.scores.mean() / constant.expected.mean() == pytest.approx(1, abs=0.01)


def test_the_expectation_does_not_depend_on_the_order_of_the_samples():
    draw = np.random.default_rng(14)
    X, batch, order = draw.normal(size=(200, 3)), draw.integers(3, size=200), draw.permutation(200)
    one = ilisi_scores(X, batch, perplexity=10, mixing_draws=3)
    two = ilisi_scores(X[order], batch[order], perplexity=10, mixing_draws=3)
    np.testing.assert_allclose(one.expected[order], two.expected, rtol=1e-9)
    plain = ilisi_scores(X, batch, perplexity=10)
    np.testing.assert_array_equal(plain.scores, one.scores)
    assert len(plain.expected) == 0
