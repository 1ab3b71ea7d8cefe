from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from sklearn.preprocessing import normalize

from txeval.compute.groups import (
    SetDraws,
    as_codes,
    canonical_order,
    checked_matrix,
    encode,
    group_means,
    group_sums,
    group_unit_sums,
    read_rows,
)
from txeval.errors import InputError, NotComputable


class OnDemand:
    """Rows without anything else that an array offers."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        self.shape = values.shape
        self.most = 0

    def __getitem__(self, rows: object) -> np.ndarray:
        block = self._values[rows]
        self.most = max(self.most, block.size)
        return block


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_sums_are_those_of_numpy(dtype: type) -> None:
    rng = np.random.default_rng(0)
    X = (100 * rng.standard_normal((300, 7))).astype(dtype)
    codes = rng.integers(-1, 12, 300)
    expected = np.zeros((13, 7))
    np.add.at(expected, codes[codes >= 0], X[codes >= 0].astype(float))
    n, sums = group_sums(X, codes, 13)
    np.testing.assert_array_equal(n, np.bincount(codes[codes >= 0], minlength=13))
    np.testing.assert_allclose(sums, expected, rtol=1e-12, atol=1e-9)
    n, means = group_means(X, codes, 13)
    assert np.isnan(means[12]).all()
    np.testing.assert_allclose(means[:12], expected[:12] / n[:12, None], rtol=1e-12, atol=1e-9)


def test_unit_sums_are_those_of_sklearn_and_a_zero_row_adds_nothing() -> None:
    rng = np.random.default_rng(1)
    X = rng.standard_normal((200, 9))
    X[::17] = 0
    codes = rng.integers(0, 4, 200)
    n, nonzero, sums = group_unit_sums(X, codes, 4)
    units = normalize(X)
    for g in range(4):
        np.testing.assert_allclose(sums[g], units[codes == g].sum(axis=0), rtol=1e-12, atol=1e-12)
        assert nonzero[g] == (np.abs(X[codes == g]).sum(axis=1) > 0).sum() < n[g]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_no_block_size_changes_a_sum(max_elements: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((50, 6)).astype(np.float32)
    codes = rng.integers(-1, 5, 50)
    rows = OnDemand(X)
    for function in (group_sums, group_unit_sums):
        whole, parts = function(X, codes, 5), function(rows, codes, 5, max_elements=max_elements)
        for a, b in zip(whole, parts, strict=True):
            np.testing.assert_array_equal(a, b)
    assert rows.most <= max(max_elements, 6)


def test_a_value_that_is_not_finite_is_named() -> None:
    X = np.zeros((10, 3), dtype=np.float32)
    X[7, 2] = np.nan
    with pytest.raises(InputError, match="row 7, column 2"):
        group_sums(X, np.zeros(10, dtype=int), 1, max_elements=6)
    X[7, 2] = np.inf
    with pytest.raises(InputError, match="row 7, column 2"):
        read_rows(X, np.array([1, 7]))


def test_large_finite_values_are_no_error() -> None:
    X = np.full((4, 3), 3e38, dtype=np.float32)
    assert group_sums(X, np.zeros(4, dtype=int), 1)[1][0, 0] == pytest.approx(1.2e39, rel=1e-6)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros(4), "shape"),
        (np.zeros((4, 0)), "shape"),
        ([["a", "b"]], "not a matrix of numbers"),
    ],
)
def test_what_is_no_matrix_is_refused(matrix: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked_matrix(matrix)


def test_text_in_an_array_is_refused() -> None:
    with pytest.raises(InputError, match="values"):
        read_rows(np.array([["1", "2"]]))


def test_frames_and_lists_are_read() -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": [3.0, 4.0]})
    np.testing.assert_array_equal(read_rows(checked_matrix(frame)), frame.to_numpy())
    np.testing.assert_array_equal(read_rows(checked_matrix([[1, 2], [3, 4]])), [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    "labels",
    [["b", "a", "b"], np.array(["b", "a", "b"]), pd.Series(pd.Categorical(["b", "a", "b"], categories=["b", "a"]))],
)
def test_labels_of_any_kind_are_encoded(labels: object) -> None:
    codes, distinct = encode(labels, 3)
    assert codes.tolist() == [1, 0, 1]
    assert distinct.tolist() == ["a", "b"]


def test_bad_labels_are_refused() -> None:
    with pytest.raises(InputError, match="2 entries for 3"):
        encode(["a", "b"], 3, name="batch")
    with pytest.raises(InputError, match="missing in row 1"):
        encode(pd.Series(["a", None]))
    with pytest.raises(InputError, match="one label per sample"):
        encode(np.zeros((2, 2)))


def test_bad_codes_are_refused() -> None:
    with pytest.raises(InputError, match="one code per sample"):
        as_codes(np.zeros(3, dtype=int), 4, 2)
    with pytest.raises(InputError, match="integers"):
        as_codes(np.zeros(3), 3, 2)
    with pytest.raises(InputError, match="number of groups"):
        as_codes(np.array([0, 2]), 2, 2)


def test_the_canonical_order_does_not_see_the_order_of_the_file() -> None:
    rng = np.random.default_rng(2)
    X = rng.integers(0, 3, (60, 5)).astype(np.float32)
    X = np.unique(X, axis=0)
    strata = rng.integers(0, 3, len(X))
    shuffled = rng.permutation(len(X))
    a = canonical_order(X, np.arange(len(X)), strata, columns=5)
    b = canonical_order(X[shuffled], np.arange(len(X)), strata[shuffled], columns=5)
    np.testing.assert_array_equal(X[a], X[shuffled][b])
    assert (np.diff(strata[a]) >= 0).all()


def composed(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((400, 3)), rng.integers(-1, 9, 400), rng.integers(0, 4, 400)


def test_a_drawn_set_has_the_composition_of_its_group() -> None:
    X, codes, strata = composed()
    groups = np.array([7, 0, 3])
    sets = SetDraws.of_groups(X, codes, np.array(["p", "q", "r", "s"])[strata], groups)
    assert sets.sizes.tolist() == [(codes == g).sum() for g in groups]
    for chunk in sets.draw(120, 0, "test"):
        for drawn in chunk:
            assert len(set(drawn)) == len(drawn)
            assert (codes[drawn] >= 0).all()
            for i, g in enumerate(groups):
                mine = drawn[sets.slots(i)]
                np.testing.assert_array_equal(
                    np.bincount(strata[mine], minlength=4), np.bincount(strata[codes == g], minlength=4)
                )


def test_every_sample_is_drawn_equally_often() -> None:
    rng = np.random.default_rng(3)
    X = rng.standard_normal((30, 2))
    codes = np.repeat(np.arange(5), 6)
    sets = SetDraws.of_groups(X, codes, np.zeros(30, dtype=int), np.array([2]))
    drawn = np.concatenate([chunk.ravel() for chunk in sets.draw(2000, 0, "test")])
    assert len(drawn) == 12000
    assert chisquare(np.bincount(drawn, minlength=30)).pvalue > 1e-3
    # Pairs too: whether 0 and 1 come together is hypergeometric, 6 x 5 / (30 x 29).
    both = sum(((chunk == 0).any(axis=1) & (chunk == 1).any(axis=1)).sum() for chunk in sets.draw(20000, 1, "test"))
    assert both / 20000 == pytest.approx(30 / 870, abs=0.006)


def test_other_groups_do_not_change_the_draws_of_a_group() -> None:
    X, codes, strata = composed(4)
    alone = SetDraws.of_groups(X, codes, strata, np.array([5]))
    together = SetDraws.of_groups(X, codes, strata, np.arange(9))
    for a, b in zip(alone.draw(70, 0, "t"), together.draw(70, 0, "t"), strict=True):
        np.testing.assert_array_equal(a[:, alone.slots(0)], b[:, together.slots(5)])


def test_fewer_draws_are_the_first_of_more() -> None:
    X, codes, strata = composed(5)
    sets = SetDraws.of_groups(X, codes, strata, np.arange(9))
    few, many = np.concatenate(list(sets.draw(60, 0, "t"))), np.concatenate(list(sets.draw(130, 0, "t")))
    np.testing.assert_array_equal(few, many[:60])
    assert len(many) == 130


def test_large_groups_are_thinned_in_proportion() -> None:
    X = np.random.default_rng(6).standard_normal((300, 2))
    codes = np.r_[np.zeros(200, dtype=int), np.ones(100, dtype=int)]
    strata = np.r_[np.zeros(120), np.ones(80), np.zeros(100)].astype(int)
    sets = SetDraws.of_groups(X, codes, strata, np.array([0, 1]), max_samples=101)
    assert sets.sizes.tolist() == [101, 100]
    assert sets.count[: sets.indptr[1]].tolist() == [61, 40]


def test_a_group_alone_in_its_batches_cannot_be_tested() -> None:
    X = np.random.default_rng(7).standard_normal((12, 2))
    codes = np.repeat([0, 1, 2], 4)
    sets = SetDraws.of_groups(X, codes, np.repeat([0, 1, 1], 4), np.arange(3))
    assert sets.testable.tolist() == [False, True, True]


def test_no_perturbed_samples_at_all() -> None:
    with pytest.raises(NotComputable, match="no perturbed samples"):
        SetDraws.of_groups(np.zeros((3, 2)), np.full(3, -1), np.zeros(3, dtype=int), np.array([], dtype=int))
