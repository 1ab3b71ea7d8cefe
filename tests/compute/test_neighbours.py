"""Exact neighbours: the unique answer, whatever the tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

import txeval.compute.neighbours as kernels
from txeval.compute.neighbours import NeighbourIndex, neighbours, self_neighbours
from txeval.compute.scan import halved, halves_pay, pack, scan
from txeval.errors import InputError


def by_definition(X_ref, X_query, k):
    """Distances from float64 differences, ordered by (float32 distance, row)."""
    X_ref, X_query = np.asarray(X_ref, np.float32), np.asarray(X_query, np.float32)
    differences = X_query[:, None, :].astype(np.float64) - X_ref[None].astype(np.float64)
    distances = np.sqrt((differences**2).sum(axis=2)).astype(np.float32)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), order


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-7, atol=0)
    # Sums in another order may move a distance by one unit in the last place: only then may neighbours swap.
    differ = found[1] != expected[1]
    assert np.all(np.abs(found[0][differ] - expected[0][differ]) <= 2e-7 * expected[0][differ])
    assert differ.mean() < 1e-3


rng = np.random.default_rng(0)
CLUSTERS = rng.normal(scale=5, size=(12, 32))
CASES = {
    "gaussian": (rng.normal(size=(3000, 32)), 60),
    "one dimension": (rng.normal(size=(3000, 1)), 60),
    "two dimensions": (rng.normal(size=(3000, 2)), 300),
    "wide": (rng.normal(size=(1500, 300)), 20),
    "clusters": (CLUSTERS[rng.integers(12, size=3000)] + 0.1 * rng.normal(size=(3000, 32)), 60),
    "grid with ties": (rng.integers(0, 4, size=(3000, 4)).astype(float), 100),
    "many duplicates": (np.repeat(rng.normal(size=(30, 8)), 100, axis=0), 60),
    "all equal": (np.full((1500, 3), 7.5), 20),
    "far from the origin": (1e4 + rng.normal(size=(3000, 8)), 60),
    "two far groups": (np.where(np.arange(3000)[:, None] % 2, 1e4, -1e4) + rng.normal(size=(3000, 8)), 60),
    "one outlier": (np.concatenate([rng.normal(size=(2999, 8)), np.full((1, 8), 1e9)]), 60),
    "tiny values": (1e-25 * rng.normal(size=(3000, 8)), 60),
    "huge values": (1e25 * rng.normal(size=(3000, 8)), 60),
    "few samples": (rng.normal(size=(70, 8)), 60),
}


@pytest.mark.parametrize("case", CASES)
def test_answer_is_that_of_the_definition(case):
    X, k = CASES[case]
    X = X.astype(np.float32)
    queries = np.concatenate([X[:40], X[100:140] + np.float32(0.01), X[-1:] * np.float32(1.5)])
    assert_same(neighbours(X, queries, k), by_definition(X, queries, k))


needs_halves = pytest.mark.skipif(not halves_pay(), reason="this processor does not multiply bfloat16")
WAYS = ["products", "scan", pytest.param("halves", marks=needs_halves)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_every_way_to_find_candidates_gives_the_same(case, way, monkeypatch):
    # Where a processor lacks the wide registers, the compiler makes the same of narrow ones.
    monkeypatch.setattr(kernels, "pays", lambda: way != "products")
    monkeypatch.setattr(kernels, "halves_pay", lambda: way == "halves")
    monkeypatch.setattr(kernels, "_HALVED_FROM", 1)
    X, k = CASES[case]
    X = X.astype(np.float32)
    assert_same(neighbours(X, X[:70], k), by_definition(X, X[:70], k))


def test_sorting_and_bounding_agree_with_numpy():
    draw = np.random.default_rng(4)
    bins = np.empty(256, np.int64)
    columns = {
        "spread": draw.gamma(2, 1, 700),
        "ties": draw.integers(0, 5, 700),
        "equal": np.full(700, 3.5),
        "zeros": np.zeros(40),
        "wide": 10.0 ** draw.uniform(-30, 30, 700),
        "two": np.array([2.0, 1.0]),
        "one": np.array([7.0]),
    }
    for name, column in columns.items():
        values = column.astype(np.float32)
        np.testing.assert_array_equal(kernels._sorted_by_value(values), np.argsort(values, kind="stable"), err_msg=name)
        for k in {1, (len(values) + 1) // 2, len(values)}:
            bound = kernels._reached_by(-values, k, bins)
            assert (-values <= bound).sum() >= k and bound in -values, name
    few = kernels._reached_by(columns["spread"].astype(np.float32), 251, bins)
    assert (columns["spread"].astype(np.float32) <= few).sum() < 300


@pytest.mark.parametrize("d", [1, 2, 31, 33, 300])
@pytest.mark.parametrize("n", [1, 32, 70, 999])
def test_a_scan_finds_what_is_within_the_limits(n, d):
    draw = np.random.default_rng(n + d)
    # Small whole numbers: products are exact, and ties with the limit are many.
    x, queries = draw.integers(-2, 3, (n, d)).astype(np.float32), draw.integers(-2, 3, (16, d)).astype(np.float32)
    squares = (x * x).sum(axis=1)
    panels, begin = pack([(-2 * x[: n // 2], squares[: n // 2]), (-2 * x[n // 2 :], squares[n // 2 :])], n, d)
    values = (x * x).sum(axis=1) - 2 * queries @ x.T
    limits = np.sort(values, axis=1)[:, n // 3].astype(np.float32)
    limits[3], limits[5] = -np.inf, np.inf
    rows, found, counts = (
        np.empty((16, n // 2 + 1), np.int32),
        np.empty((16, n // 2 + 1), np.float32),
        np.zeros(16, np.int64),
    )
    scan(panels, begin, queries, limits, rows, found, counts)
    for q in range(16):
        expected = np.flatnonzero(values[q] <= limits[q])
        assert counts[q] >= len(expected) and (q == 5 or counts[q] == len(expected))
        kept = expected[: rows.shape[1]]
        np.testing.assert_array_equal(rows[q, : len(kept)], kept)
        np.testing.assert_array_equal(found[q, : len(kept)], values[q, kept])


@pytest.mark.parametrize("d", [1, 2, 7, 300])
def test_rounding_to_pairs_says_what_it_keeps_and_loses(d):
    draw = np.random.default_rng(d)
    values = (draw.standard_normal((50, d)) * 10.0 ** draw.uniform(-42, 5, (50, d))).astype(np.float32)
    pairs, norms, lost = halved(values)
    words = pairs.view(np.uint16)
    assert words.shape == (50, d + d % 2)
    kept = (words.astype(np.uint32) << 16).view(np.float32)
    assert not kept[:, d:].any()
    kept = kept[:, :d].astype(np.float64)
    np.testing.assert_allclose(norms, np.linalg.norm(kept, axis=1), rtol=1e-12)
    np.testing.assert_allclose(lost, np.linalg.norm(values - kept, axis=1), rtol=1e-12)
    # 8 digits, and nothing below what processors keep in full.
    normal = np.abs(values) >= np.finfo(np.float32).tiny
    assert np.all(np.abs(values - kept)[normal] <= 2.0**-8 * np.abs(values)[normal])
    assert not kept[~normal].any()


@needs_halves
@pytest.mark.parametrize("d", [1, 2, 7, 300])
def test_a_scan_of_pairs_finds_the_same(d):
    draw = np.random.default_rng(d)
    # Whole numbers this small are exact in 8 digits.
    x, queries = draw.integers(-2, 3, (999, d)).astype(np.float32), draw.integers(-2, 3, (16, d)).astype(np.float32)
    values = (x * x).sum(axis=1) - 2 * queries @ x.T
    limits = np.sort(values, axis=1)[:, 333].astype(np.float32)
    panels, begin = pack([(halved(-2 * x)[0], (x * x).sum(axis=1))], 999, (d + 1) // 2)
    rows, found, counts = np.empty((16, 999), np.int32), np.empty((16, 999), np.float32), np.zeros(16, np.int64)
    scan(panels, begin, halved(queries)[0], limits, rows, found, counts)
    for q in range(16):
        expected = np.flatnonzero(values[q] <= limits[q])
        np.testing.assert_array_equal(rows[q, : counts[q]], expected)
        np.testing.assert_array_equal(found[q, : counts[q]], values[q, expected])


@needs_halves
def test_queries_that_rounding_would_confuse_are_told_apart_otherwise(monkeypatch):
    # Half of the queries lie in a tight group: there 8 digits do not say who is near whom.
    draw = np.random.default_rng(6)
    X = draw.standard_normal((6000, 64)).astype(np.float32)
    X[3000:] = X[0] * 3 + 0.1 * X[3000:]
    queries = np.concatenate([X[100:140], X[3100:3121] + np.float32(0.01)])
    asked = {}
    scans = kernels._scan
    monkeypatch.setattr(kernels, "_scan", lambda *args: (asked.update({str(args[2].dtype): args[3]}), scans(*args)))
    redone = []
    whole = kernels._whole_rows
    monkeypatch.setattr(kernels, "_whole_rows", lambda *args: (redone.append(len(args[2])), whole(*args)))
    assert_same(neighbours(X, queries, 20), by_definition(X, queries, 20))
    assert len(asked["uint32"]) >= 30 and asked["uint32"].max() < 40
    assert set(range(40, 61)) <= set(asked["float32"])
    assert sum(redone) <= 2


def test_a_number_of_queries_that_does_not_fill_the_registers_is_scanned_all_the_same(monkeypatch):
    X = np.random.default_rng(7).normal(size=(5000, 32)).astype(np.float32)
    monkeypatch.setattr(kernels, "pays", lambda: True)
    redone = []
    whole = kernels._whole_rows
    monkeypatch.setattr(kernels, "_whole_rows", lambda *args: (redone.append(len(args[2])), whole(*args)))
    assert_same(neighbours(X, X[:13], 20), by_definition(X, X[:13], 20))
    assert not redone


def test_a_level_is_reached_by_as_many_values_as_asked_and_few_more():
    values = np.random.default_rng(8).standard_normal((40, 5096)).astype(np.float32)
    values[:3] = np.round(values[:3])
    values[3] = 2.0
    for rank in (1, 39, 106):
        level, wider = np.empty((2, len(values)), np.float32)
        kernels._level(values, rank, level, wider)
        reached = (values <= level[:, None]).sum(axis=1)
        assert reached.min() >= rank
        assert np.median(reached) <= 1.4 * rank + 1
        assert np.all(wider >= level)


def test_integer_distances_are_exact_with_ties_in_row_order():
    X, k = CASES["grid with ties"]
    distances, indices = neighbours(X, X[:200], k)
    expected_distances, expected_indices = by_definition(X, X[:200], k)
    np.testing.assert_array_equal(distances, expected_distances)
    np.testing.assert_array_equal(indices, expected_indices)


def test_scikit_learn_agrees():
    X = rng.normal(size=(20_000, 32)).astype(np.float32)
    queries = rng.normal(size=(300, 32)).astype(np.float32)
    distances, indices = neighbours(X, queries, 251)
    reference = NearestNeighbors(n_neighbors=251, algorithm="brute").fit(X.astype(np.float64))
    expected, expected_indices = reference.kneighbors(queries.astype(np.float64))
    np.testing.assert_allclose(distances, expected, rtol=1e-6)
    assert (indices == expected_indices).mean() > 0.9999
    assert distances.dtype == np.float32
    assert indices.dtype == np.int64


@pytest.mark.parametrize("case", ["gaussian", "grid with ties", "far from the origin", "many duplicates"])
def test_tiles_threads_and_device_do_not_matter(case):
    X, k = CASES[case]
    queries = np.concatenate([X[:700], X[-100:]])
    expected = neighbours(X, queries, k)
    variants = [{"max_elements": 5_000}, {"max_elements": 100_000}, {"threads": 2}, {"device": "cpu:0"}]
    for settings_ in variants:
        found = neighbours(X, queries, k, **settings_)
        np.testing.assert_array_equal(found[0], expected[0], err_msg=str(settings_))
        np.testing.assert_array_equal(found[1], expected[1], err_msg=str(settings_))
    alone = [neighbours(X, queries[i : i + 1], k) for i in range(0, 800, 97)]
    np.testing.assert_array_equal(np.concatenate([a[1] for a in alone]), expected[1][::97])


def test_most_rows_need_no_second_look(monkeypatch):
    redone = []
    whole_rows = kernels._whole_rows
    monkeypatch.setattr(kernels, "_whole_rows", lambda *args: (redone.append(len(args[2])), whole_rows(*args))[1])
    X, k = CASES["gaussian"]
    neighbours(X, X, k)
    assert sum(redone) == 0
    X, k = CASES["two far groups"]
    neighbours(X, X[:50], k)
    assert sum(redone) == 50


def test_short_answers():
    X = rng.normal(size=(5, 3))
    distances, indices = neighbours(X, X, 9)
    assert distances.shape == indices.shape == (5, 5)
    np.testing.assert_array_equal(indices[:, 0], np.arange(5))
    np.testing.assert_array_equal(distances[:, 0], 0)
    assert neighbours(X[:1], X, 1)[1].tolist() == [[0]] * 5
    assert neighbours(X, X[:0], 2)[1].shape == (0, 2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_small_problems(data):
    n = data.draw(st.integers(1, 60))
    d = data.draw(st.integers(1, 4))
    k = data.draw(st.integers(1, 12))
    seed = data.draw(st.integers(0, 10_000))
    span = data.draw(st.sampled_from([2, 5, 1000]))
    draw = np.random.default_rng(seed)
    X = draw.integers(-span, span, size=(n, d)).astype(np.float32)
    queries = draw.integers(-span, span, size=(9, d)).astype(np.float32)
    before = kernels._SMALL
    kernels._SMALL = 4  # so that even these go through tiles
    try:
        found = neighbours(X, queries, k, max_elements=data.draw(st.sampled_from([None, 40, 400])))
    finally:
        kernels._SMALL = before
    expected = by_definition(X, queries, k)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_rotation_translation_and_order_of_rows(seed):
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(1200, 6))
    queries = draw.normal(size=(20, 6))
    distances, indices = neighbours(X, queries, 15)
    rotation = np.linalg.qr(draw.normal(size=(6, 6)))[0]
    moved, _ = neighbours(X @ rotation + 3, queries @ rotation + 3, 15)
    np.testing.assert_allclose(moved, distances, rtol=1e-4, atol=1e-5)
    order = draw.permutation(len(X))
    shuffled_distances, shuffled = neighbours(X[order], queries, 15)
    np.testing.assert_array_equal(shuffled_distances, distances)
    np.testing.assert_array_equal(order[shuffled], indices)


def test_self_is_left_out_by_its_row():
    X = np.concatenate([np.zeros((6, 2)), [[1.0, 0.0]], [[2.0, 0.0]]])
    (rows, distances, indices), *rest = self_neighbours(NeighbourIndex(X), 3)
    assert not rest
    assert rows == slice(0, 8)
    assert indices[0].tolist() == [1, 2, 3]
    assert indices[2].tolist() == [0, 1, 3]
    assert indices[5].tolist() == [0, 1, 2]
    assert indices[6].tolist() == [0, 1, 2]
    assert distances[7].tolist() == [1.0, 2.0, 2.0]
    (_, _, everybody), *_ = self_neighbours(NeighbourIndex(X), 100)
    assert everybody.shape == (8, 7)
    assert all(i not in row for i, row in enumerate(everybody))


def test_rows_on_demand():
    class OnDemand:
        def __init__(self, values):
            self.values, self.shape, self.largest = values, values.shape, 0

        def __getitem__(self, rows):
            out = self.values[rows]
            self.largest = max(self.largest, len(out))
            return out

    X = rng.normal(size=(2000, 5))
    queries = OnDemand(rng.normal(size=(500, 5)).astype(np.float16))
    found = neighbours(OnDemand(X), queries, 10, max_elements=1000)
    assert_same(found, by_definition(X, queries.values, 10))
    assert queries.largest <= 100


@pytest.mark.parametrize(
    ("X_ref", "X_query", "k", "message"),
    [
        (np.zeros((5, 2)), np.zeros((5, 2)), 0, "k is 0"),
        (np.zeros((5, 2)), np.zeros((5, 2)), -3, "k is -3"),
        (np.zeros((5, 2)), np.zeros((5, 2)), 2.5, "k is 2.5"),
        (np.zeros((5, 2)), np.zeros((5, 3)), 1, "3 columns"),
        (np.zeros((0, 2)), np.zeros((5, 2)), 1, "no rows"),
        (np.zeros((5, 0)), np.zeros((5, 0)), 1, "shape"),
        (np.zeros(5), np.zeros((5, 2)), 1, "shape"),
        (np.array([[1.0], [np.nan]]), np.zeros((5, 1)), 1, "nan in row 1, column 0"),
        (np.zeros((5, 2)), np.array([[0, 0], [0, -np.inf]]), 1, "X_query holds -inf in row 1, column 1"),
        (np.full((5, 2), 1e39), np.zeros((5, 2)), 1, "row 0"),
        (np.array([["a"], ["b"]]), np.zeros((5, 1)), 1, "number"),
    ],
)
def test_bad_input(X_ref, X_query, k, message):
    with pytest.raises(InputError, match=message):
        neighbours(X_ref, X_query, k)


def test_one_index_answers_many():
    X = rng.normal(size=(1500, 4))
    index = NeighbourIndex(X)
    for k in (1, 7):
        parts = list(index.blocks(X[:300], k, max_elements=200))
        assert len(parts) > 3
        np.testing.assert_array_equal(np.concatenate([part[2] for part in parts]), neighbours(X, X[:300], k)[1])
