"""kNN classification against the published values, scikit-learn and its invariants."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from txeval.errors import InputError, NotComputable
from txeval.metrics import knn_accuracy
from txeval.metrics.knn import commonest_share, true_class_ranks

rng = np.random.default_rng(3)

GOLDEN = [f"knn/{post}/k{k}/pca{pca}" for post in ("raw", "tvn") for k in (25, 251) for pca in (0, 1)]


@pytest.mark.parametrize("key", GOLDEN)
def test_published_code_agrees(golden_dir, key):
    expected = json.loads((golden_dir / "norman.json").read_text())["answers"][key]
    arrays = np.load(golden_dir / "norman.npz")
    _, post, k, pca = key.split("/")
    X = arrays["embedding" if post == "raw" else f"post_{post}"]
    y, train, test = arrays["perturbation"], arrays["split_train"], arrays["split_test"]
    found = knn_accuracy(
        X[train], y[train], X[test], y[test], k=int(k.removeprefix("k")), components=32 if pca == "pca1" else None
    )
    # Counts of right answers, not just close shares.
    assert round(found["top1"] * len(test), 6) == round(expected["top1_percent"] / 100 * len(test), 6)
    assert round(found["top5"] * len(test), 6) == round(expected["top5_percent"] / 100 * len(test), 6)
    assert found["n_query"] == len(test)


def test_every_golden_answer_is_tested(golden_dir):
    answers = json.loads((golden_dir / "norman.json").read_text())["answers"]
    assert {key for key in answers if key.startswith("knn/")} == set(GOLDEN)


def problem(n=900, m=300, d=12, n_classes=9):
    centres = rng.normal(size=(n_classes, d))
    y, truth = rng.integers(0, n_classes, n), rng.integers(0, n_classes, m)
    return (
        (centres[y] + 1.5 * rng.normal(size=(n, d))).astype(np.float32),
        y,
        (centres[truth] + 1.5 * rng.normal(size=(m, d))).astype(np.float32),
        truth,
    )


@pytest.mark.parametrize(("k", "components"), [(1, None), (15, None), (251, None), (25, 4)])
def test_scikit_learn_agrees(k, components):
    X, y, queries, truth = problem()
    found = knn_accuracy(X, y, queries, truth, k=k, components=components)
    if components:
        reducer = PCA(components, svd_solver="full").fit(X.astype(np.float64))
        X, queries = reducer.transform(X.astype(np.float64)), reducer.transform(queries.astype(np.float64))
        assert found["components_used"] == components
    model = KNeighborsClassifier(n_neighbors=k, algorithm="brute", weights=lambda distance: 1 / (distance + 1e-5))
    shares = model.fit(X.astype(np.float64), y).predict_proba(queries.astype(np.float64))
    own = shares[np.arange(len(truth)), truth]
    rank = np.where(own > 0, (shares > own[:, None] + 1e-12).sum(axis=1), 9)
    np.testing.assert_array_equal(found["rank"], rank)
    assert found["top1"] == pytest.approx((rank < 1).mean())
    assert found["top5"] == pytest.approx((rank < 5).mean())
    assert found["top1_balanced"] == pytest.approx(np.mean([(rank[truth == c] < 1).mean() for c in range(9)]))
    assert found["k_used"] == k


def ranks(distances, labels, truth, n_classes, k=None):
    """Ranks for one query at 0 and reference samples at the given distances on a line."""
    X = np.asarray(distances, np.float32)[:, None]
    found = true_class_ranks(
        X, np.asarray(labels), np.zeros((1, 1)), np.asarray([truth]), n_classes=n_classes, k=k or len(X)
    )
    return int(found.rank[0])


@pytest.mark.parametrize("case", ["many classes", "one class", "ties and duplicates", "k of all"])
def test_ranks_are_those_of_one_hot_votes(case):
    X, y, queries, truth = problem(n_classes=1 if case == "one class" else 40)
    n_classes, k = 41, 25
    if case == "ties and duplicates":
        X, queries = np.round(X[:, :2]), np.round(queries[:, :2])
    if case == "k of all":
        k = len(X) + 50
    found = true_class_ranks(X, y, queries, truth, n_classes=n_classes, k=k)
    distances = np.sqrt(((queries[:, None].astype(np.float64) - X[None]) ** 2).sum(axis=2)).astype(np.float32)
    k = min(k, len(X))
    last = np.sort(distances, axis=1)[:, k - 1 : k]
    nearer, equal = distances < last, distances == last
    # What ties at the k-th distance shares the places that are left.
    places = nearer + equal * ((k - nearer.sum(axis=1)) / equal.sum(axis=1))[:, None]
    votes = (places / (distances.astype(np.float64) + 1e-5)) @ np.eye(n_classes)[y]
    own = votes[np.arange(len(truth)), truth][:, None]
    rank = (votes > own * (1 + 1e-12)).sum(axis=1)
    assert found.k == k
    np.testing.assert_array_equal(found.rank, np.where(own[:, 0] > 0, rank, n_classes))
    np.testing.assert_array_equal(
        found.tied, np.where(own[:, 0] > 0, np.isclose(votes, own, rtol=1e-12, atol=0).sum(axis=1) - 1, 0)
    )
    assert any("share the places" in note for note in found.notes) == (case == "ties and duplicates")


def test_votes_add_up_by_inverse_distance():
    # Class 0: one vote of 1; class 1: two votes of 0.6; class 2: 0.5.
    distances, labels = [1.0, 1 / 0.6, 1 / 0.6, 2.0], [0, 1, 1, 2]
    assert [ranks(distances, labels, c, 3) for c in range(3)] == [1, 0, 2]
    assert [ranks(distances, labels, c, 3, k=1) for c in range(3)] == [0, 5, 5]


def test_classes_with_equal_votes_share_the_places():
    assert [ranks([1.0, 1.0, 1.0], [2, 0, 1], c, 4) for c in range(3)] == [0, 0, 0]
    X, query = np.ones((6, 1)), np.zeros((3, 1))
    found = knn_accuracy(X, list("aabbcc"), query, list("abc"), k=6)
    assert found["tied"].tolist() == [2, 2, 2]
    assert (found["top1"], found["top5"]) == (pytest.approx(1 / 3), 1.0)


def test_a_class_without_a_vote_is_never_right():
    assert ranks([1.0, 2.0], [0, 0], 1, 3) == 5
    assert ranks([1.0, 2.0], [0, 0], 1, 300) == 300
    assert ranks([1.0, 2.0], [0, 0], -1, 3) == 5


def test_duplicates_have_a_finite_vote():
    assert ranks([0.0, 1e-6, 1e-6], [0, 1, 1], 1, 2) == 0


def test_labels_that_the_reference_lacks():
    X, y, queries, truth = problem()
    names = np.array([f"gene{i}" for i in range(20)], dtype=object)
    known = knn_accuracy(X, names[y], queries, names[truth], k=30)
    found = knn_accuracy(X, names[y], np.concatenate([queries, queries[:100]]), [*names[truth], *["new"] * 100], k=30)
    assert found["n_unknown"] == 100
    assert found["top1"] == pytest.approx(known["top1"] * 300 / 400)
    assert (found["rank"][300:] == 9).all()
    assert "100 queries" in found["notes"][0]
    with pytest.raises(NotComputable, match="no label in common"):
        knn_accuracy(X, names[y], queries, truth)


def test_fewer_reference_samples_than_neighbours():
    X, y, queries, truth = problem(n=100)
    found = knn_accuracy(X, y, queries, truth)
    assert found["k_used"] == 100
    assert "100 neighbours instead of 251" in found["notes"][0]
    few = knn_accuracy(X[:8], y[:8], queries[:, :12], truth, components=10)
    assert few["components_used"] == 8
    assert knn_accuracy(X, y, queries, truth, components=12)["components_used"] == 12


def test_majority_is_the_score_of_a_constant_answer():
    y = np.repeat(["a", "b", "c"], [50, 30, 20])
    truth = np.repeat(["a", "b", "c"], [10, 60, 30])
    found = knn_accuracy(rng.normal(size=(100, 3)), y, np.zeros((100, 3)), truth, k=100)
    assert found["majority"] == 0.1
    assert commonest_share(np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 2, 2, -1]), 3, top=2) == 0.6
    # Two classes are equally common: each is the answer half of the time.
    assert commonest_share(np.array([0, 0, 1, 2, 2]), np.array([0, 0, 0, 1]), 4) == 0.375
    assert commonest_share(np.array([0, 0, 1, 2, 2]), np.array([0, 0, 0, 3]), 4, top=5) == 0.75


def test_random_labels_score_at_chance():
    X, y, queries, _ = problem(n=2000, m=2000)
    found = knn_accuracy(X, y, queries, rng.integers(0, 9, 2000), k=51)
    assert found["top1"] == pytest.approx(1 / 9, abs=0.03)
    assert found["top5"] == pytest.approx(5 / 9, abs=0.05)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_order_names_translation_and_blocks_have_no_effect(seed):
    draw = np.random.default_rng(seed)
    X, queries = draw.normal(size=(150, 4)), draw.normal(size=(40, 4))
    y, truth = draw.integers(0, 7, 150), draw.integers(0, 7, 40)
    arguments = {"n_classes": 7, "k": 20}
    expected = true_class_ranks(X, y, queries, truth, **arguments).rank
    order, back = draw.permutation(150), draw.permutation(40)
    shuffled = true_class_ranks(X[order], y[order], queries[back], truth[back], **arguments).rank
    np.testing.assert_array_equal(shuffled, expected[back])
    small = true_class_ranks(X, y, queries, truth, max_elements=60, threads=2, **arguments).rank
    np.testing.assert_array_equal(small, expected)
    moved = true_class_ranks(X + 2, y, queries + 2, truth, **arguments).rank
    assert (moved == expected).mean() > 0.9
    renamed = (y + 3) % 7, (truth + 3) % 7
    np.testing.assert_array_equal(true_class_ranks(X, renamed[0], queries, renamed[1], **arguments).rank, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 0}, InputError, "k is 0"),
        ({"components": 0}, InputError, "components is 0"),
        ({"X_ref": np.full((4, 2), np.inf)}, InputError, "X_ref holds inf in row 0"),
        ({"X_query": np.array([[0, 0], [0, np.nan]])}, InputError, "X_query holds nan in row 1, column 1"),
        ({"X_query": np.zeros((2, 3))}, InputError, "X_ref has 2 columns, X_query 3"),
        ({"y_ref": ["a"]}, InputError, "y_ref has 1 entries for 4"),
        ({"y_query": ["a", "b", "a"]}, InputError, "y_query has 3 entries for 2"),
        ({"y_ref": ["a", None, "b", "b"]}, InputError, "y_ref is missing in row 1"),
        ({"X_ref": np.zeros((0, 2)), "y_ref": []}, NotComputable, "reference"),
        ({"X_query": np.zeros((0, 2)), "y_query": []}, NotComputable, "no query"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {
        "X_ref": rng.normal(size=(4, 2)),
        "y_ref": ["a", "a", "b", "b"],
        "X_query": np.zeros((2, 2)),
        "y_query": ["a", "b"],
    }
    with pytest.raises(error, match=message):
        knn_accuracy(**(arguments | change))


def test_codes_out_of_range():
    X = np.zeros((2, 1))
    with pytest.raises(InputError, match="not below the number of groups"):
        true_class_ranks(X, np.array([0, 2]), X, np.array([0, 1]), n_classes=2)
    with pytest.raises(InputError, match="negative"):
        true_class_ranks(X, np.array([0, -1]), X, np.array([0, 1]), n_classes=2)
