from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata, spearmanr

from txeval.compute.correlation import (
    ColumnStore,
    Ranks,
    columns_of,
    rank_columns,
    spearman_by_gene,
    spearman_of_ranks,
    twice_ranks,
)
from txeval.compute.memory import bounded
from txeval.errors import InputError, NotComputable

ANY_FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
FEW_VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 2.5, -2.5, 3e38, -3e38])


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 80).flatmap(lambda n: arrays(np.float32, n, elements=ANY_FLOAT32 | FEW_VALUES)),
    st.sampled_from([np.float32, np.float64]),
)
def test_ranks_are_those_of_scipy(values: np.ndarray, dtype: type) -> None:
    np.testing.assert_array_equal(twice_ranks(values.astype(dtype)), 2 * rankdata(values))


@pytest.mark.parametrize("n", [1999, 2000, 5001, 40_000])
def test_ranks_of_long_columns(n: int) -> None:
    rng = np.random.default_rng(n)
    for column in (
        rng.standard_normal(n),
        np.round(rng.standard_normal(n), 1),
        np.where(rng.random(n) < 0.8, 0, np.log1p(rng.poisson(3, n))),
        np.exp(15 * rng.standard_normal(n)) * rng.choice([-1, 1], n),
        np.zeros(n),
        np.full(n, 2.5),
    ):
        column = column.astype(np.float32)
        np.testing.assert_array_equal(twice_ranks(column), 2 * rankdata(column))


def oracle(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.array([spearmanr(pred[:, j], true[:, j]).statistic for j in range(true.shape[1])])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 3, 50, 2500])
def test_correlations_are_those_of_scipy(dtype: type, n: int) -> None:
    rng = np.random.default_rng(n)
    true = np.where(rng.random((n, 30)) < 0.7, 0, rng.poisson(2, (n, 30)) + rng.random((n, 30))).astype(dtype)
    pred = (rng.standard_normal((n, 30)) + true).astype(dtype)
    pred[:, 10:20] = np.round(pred[:, 10:20])
    true[:, 3], pred[:, 4], true[:, 5], pred[:, 5] = 1, 2, 0, 0
    found = spearman_by_gene(columns_of(pred), columns_of(true), n, 30)
    np.testing.assert_allclose(found.values, oracle(pred, true), atol=1e-12)
    np.testing.assert_array_equal(found.constant_true, np.ptp(true, axis=0) == 0)
    np.testing.assert_array_equal(found.constant_pred, np.ptp(pred, axis=0) == 0)


def test_float64_values_that_float32_cannot_tell_apart_are_told_apart() -> None:
    true = 1 + np.arange(20.0)[:, None] * 1e-12
    found = spearman_by_gene(columns_of(true), columns_of(true), 20, 1)
    assert found.values[0] == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2000), st.integers(0, 2**32 - 1))
def test_no_block_size_and_no_order_changes_a_correlation(max_elements: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    true, pred = rng.standard_normal((2, 30, 7)).astype(np.float32)
    whole = spearman_by_gene(columns_of(pred), columns_of(true), 30, 7).values
    order = rng.permutation(30)
    parts = spearman_by_gene(columns_of(pred[order]), columns_of(true[order]), 30, 7, max_elements=max_elements).values
    np.testing.assert_allclose(parts, whole, rtol=1e-12, atol=1e-14)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_monotone_map_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true, pred = np.round(rng.standard_normal((2, 60, 4)), 1).astype(np.float32)
    before = spearman_by_gene(columns_of(pred), columns_of(true), 60, 4).values
    after = spearman_by_gene(columns_of(np.exp(pred)), columns_of(-(true**3)), 60, 4).values
    np.testing.assert_allclose(after, -before, atol=1e-14)


def test_bad_columns_are_refused() -> None:
    good = np.arange(6.0).reshape(3, 2)
    bad = good.copy()
    bad[1, 1] = np.nan
    with pytest.raises(InputError, match="pred holds NaN"):
        spearman_by_gene(columns_of(bad), columns_of(good), 3, 2)
    with pytest.raises(InputError, match="for 4 samples"):
        spearman_by_gene(columns_of(good), columns_of(good), 4, 2)
    with pytest.raises(NotComputable, match="two samples"):
        spearman_by_gene(columns_of(good[:1]), columns_of(good[:1]), 1, 2)


@pytest.mark.parametrize("max_bytes", [0, 2**30])
def test_a_column_store_gives_back_what_was_written(tmp_path: Path, max_bytes: int) -> None:
    values = np.random.default_rng(0).standard_normal((23, 9)).astype(np.float32)
    with ColumnStore(23, 9, max_bytes=max_bytes, folder=tmp_path) as store:
        for start in (20, 0, 10):
            store.write(slice(start, min(23, start + 10)), values[start : start + 10])
        assert store.on_disk == (max_bytes == 0) == bool(list(tmp_path.iterdir()))
        np.testing.assert_array_equal(store(slice(2, 7)), values[:, 2:7])
        found = spearman_by_gene(store, columns_of(values), 23, 9)
    np.testing.assert_allclose(found.values, 1)
    assert not list(tmp_path.iterdir())


def test_rows_on_demand_give_columns() -> None:
    class Rows:
        shape = (11, 4)

        def __getitem__(self, rows: slice) -> np.ndarray:
            return np.arange(44.0).reshape(11, 4)[rows]

    np.testing.assert_array_equal(
        columns_of(Rows(), max_elements=9)(slice(1, 3)), np.arange(44.0).reshape(11, 4)[:, 1:3]
    )


@pytest.mark.parametrize("max_bytes", [0, 2**30])
def test_a_column_store_of_several_tiles(tmp_path: Path, max_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("txeval.compute.correlation._TILE_ROWS", 8)
    values = np.random.default_rng(0).standard_normal((45, 9)).astype(np.float32)
    with ColumnStore(45, 9, max_bytes=max_bytes, folder=tmp_path) as store:
        for start in (30, 0, 13):
            stop = min(45, start + 17)
            store.write(slice(start, stop), values[start:stop])
        np.testing.assert_array_equal(store(slice(2, 7)), values[:, 2:7])
        np.testing.assert_array_equal(store(slice(0, 9)), values)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([600, 60_000, 10**9]))
def test_correlations_from_kept_ranks_are_the_same(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 6, (50, 150)).astype(np.float32)
    true[:, 3] = 1
    several = [rng.integers(-3, 4, (50, 150)).astype(np.float32), rng.normal(size=(50, 150)).astype(np.float32)]
    several[0][:, 5] = 2
    with tempfile.TemporaryDirectory() as room, pytest.MonkeyPatch.context() as patch:
        patch.setattr("txeval.compute.memory.WORKING_LEAST", 1)
        path, squares = Path(room) / "ranks.npy", Path(room) / "squares.npy"
        with bounded(size):
            rank_columns(columns_of(true), 50, 150, path, squares)
            ranks = Ranks.open(path, squares)
            found = spearman_of_ranks([lambda genes, p=pred: p[:, genes].T.copy() for pred in several], ranks)
    for pred, one in zip(several, found, strict=True):
        expected = spearman_by_gene(columns_of(pred), columns_of(true), 50, 150)
        np.testing.assert_array_equal(one.values, expected.values)
        np.testing.assert_array_equal(one.constant_true, expected.constant_true)
        np.testing.assert_array_equal(one.constant_pred, expected.constant_pred)
