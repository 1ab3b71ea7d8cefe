"""Post-processing against the golden values, scikit-learn with scipy, closed forms and invariants."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from txeval import postprocess
from txeval.compute.arrays import BLOCK_ELEMENTS, row_blocks
from txeval.compute.memory import is_mapped
from txeval.errors import InputError, NotComputable
from txeval.postprocess import POST_PROCESSINGS, Fitted, PostProcessed, center_scaling, centering, fit, tvn

FUNCTIONS = {"centering": centering, "center_scaling": center_scaling, "tvn": tvn}


def make(n=240, d=6, n_batches=4, *, seed=0, mean=0.0, controls=0.4):
    """(X, is_control, codes) with correlated features and batch shifts, and controls in every batch."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, n_batches, n)
    codes[: 4 * n_batches] = np.repeat(np.arange(n_batches), 4)
    is_control = rng.random(n) < controls
    is_control[: 4 * n_batches] = True
    mixing = rng.normal(size=(d, d))
    x = rng.normal(size=(n, d)) @ mixing + rng.normal(0, 2, (n_batches, d))[codes] + mean
    x[~is_control] += rng.normal(0, 0.5, d)
    return x.astype(np.float32), is_control, codes


def oracle_tvn(x, is_control, codes, coral=True, shrinkage=0.5):
    """As EFAAR does it, with scikit-learn and scipy, in float64."""
    x = x.astype(np.float64)
    x = StandardScaler().fit(x[is_control]).transform(x)
    x = PCA(svd_solver="full").fit(x[is_control]).transform(x)
    x = StandardScaler().fit(x[is_control]).transform(x)
    if coral:
        for batch in np.unique(codes):
            of = codes == batch
            covariance = np.cov(x[of & is_control], rowvar=False, ddof=1) + shrinkage * np.eye(x.shape[1])
            x[of] = x[of] @ np.real(scipy.linalg.fractional_matrix_power(covariance, -0.5))
    return x


def distances(y):
    """Squared distances, which do not depend on the signs or the rotation of the axes."""
    y = y.astype(np.float64)
    size = (y**2).sum(axis=1)
    return size[:, None] + size - 2 * y @ y.T


@pytest.fixture(scope="module")
def golden(golden_dir):
    with np.load(golden_dir / "norman.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files if not key.startswith(("recon", "split"))}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_golden(golden, name):
    found = FUNCTIONS[name](golden["embedding"], golden["is_control"], golden["batch"])
    expected = golden[f"post_{name}"]
    assert found.dtype == np.float32
    if name == "tvn":
        found = found * np.sign((found.astype(np.float64) * expected).sum(axis=0)).astype(np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mean", [0.0, 3e3])
def test_closed_forms(mean):
    x, is_control, codes = make(mean=mean)
    wide = x.astype(np.float64)
    for batch in range(4):
        of = codes == batch
        mu, sd = wide[of & is_control].mean(axis=0), wide[of & is_control].std(axis=0)
        np.testing.assert_allclose(centering(x, is_control, codes)[of], wide[of] - mu, atol=1e-5)
        np.testing.assert_allclose(center_scaling(x, is_control, codes)[of], (wide[of] - mu) / sd, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("coral", [True, False])
@pytest.mark.parametrize("mean", [0.0, 3e3])
def test_tvn_equals_sklearn_and_scipy(coral, mean):
    x, is_control, codes = make(mean=mean)
    found = tvn(x, is_control, codes, coral=coral)
    # The signs of sklearn's axes are others, which the last step mixes: compare what does not depend on them.
    expected = oracle_tvn(x, is_control, codes, coral)
    np.testing.assert_allclose(distances(found), distances(expected), rtol=1e-4, atol=1e-4 * distances(expected).max())
    for column in range(x.shape[1]):
        sign = np.sign(found[:, column] @ expected[:, column])
        np.testing.assert_allclose(found[:, column] * sign, expected[:, column], atol=2e-4)


def test_tvn_without_coral_whitens_the_controls():
    x, is_control, codes = make(n=2000, d=8)
    white = tvn(x, is_control, codes, coral=False)[is_control].astype(np.float64)
    np.testing.assert_allclose(np.cov(white.T, ddof=0), np.eye(8), atol=1e-5)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-5)


def test_coral_with_much_data_makes_batches_alike():
    x, is_control, codes = make(n=4000, d=5, n_batches=2)
    x[codes == 1] *= np.array([1, 5, 1, 1, 0.2], dtype=np.float32)
    y = tvn(x, is_control, codes, shrinkage=1e-9)
    for batch in (0, 1):
        np.testing.assert_allclose(np.cov(y[is_control & (codes == batch)].T), np.eye(5), atol=1e-3)


@pytest.mark.parametrize("d", [7, 30])
def test_factors_equal_matrices(d):
    """Batches with few controls keep a factor in place of a matrix, with the same result."""
    x, is_control, codes = make(n=300, d=d, n_batches=5)
    is_control[codes == 0] = False
    is_control[np.flatnonzero(codes == 0)[:3]] = True
    fitted = fit("tvn", x, is_control, codes, 5)
    assert fitted.matrix_of[0] == -1
    assert fitted.matrix_of[1:].max() >= 0 or d == 30
    expected = oracle_tvn(x, is_control, codes)
    found = fitted.apply(x, codes)
    np.testing.assert_allclose(distances(found), distances(expected), rtol=1e-4, atol=1e-4 * distances(expected).max())


def test_large_maps_are_kept_in_float32(monkeypatch):
    x, is_control, codes = make(n=300, d=20, n_batches=3)
    exact = fit("tvn", x, is_control, codes, 3)
    monkeypatch.setattr(postprocess, "_FLOAT64_MAP_BYTES", 1)
    small = fit("tvn", x, is_control, codes, 3)
    assert exact.matrices.dtype == np.float64
    assert small.matrices.dtype == np.float32
    np.testing.assert_allclose(small.apply(x, codes), exact.apply(x, codes), atol=1e-4)


def test_where_whitening_amplifies_rounding_large_maps_stay_in_float64(monkeypatch):
    monkeypatch.setattr(postprocess, "_FLOAT64_MAP_BYTES", 1)
    x, is_control, codes = make(n=300, d=20, n_batches=3)
    # All features are nearly the same one: what tells them apart has a 20,000th of their deviation.
    alike = (x[:, :1] + 5e-5 * x).astype(np.float32)
    fitted = fit("tvn", alike, is_control, codes, 3)
    assert fitted.matrices.dtype == np.float64
    expected = oracle_tvn(alike, is_control, codes)
    found = fitted.apply(alike, codes)
    np.testing.assert_allclose(distances(found), distances(expected), rtol=1e-3, atol=1e-3 * distances(expected).max())


@pytest.mark.parametrize("d", [9, 40])
def test_maps_in_a_file_are_those_in_memory(d, monkeypatch, tmp_path):
    x, is_control, codes = make(n=300, d=d, n_batches=5)
    is_control[codes == 1] = False
    is_control[np.flatnonzero(codes == 1)[:3]] = True
    held = fit("tvn", x, is_control, codes, 5)
    held.save(tmp_path / "held")
    monkeypatch.setattr(postprocess, "_HELD_BYTES", 0)
    filed = fit("tvn", x, is_control, codes, 5)
    filed.save(tmp_path / "filed")
    assert (tmp_path / "held").read_bytes() == (tmp_path / "filed").read_bytes()
    loaded = Fitted.load(tmp_path / "filed")
    for fitted in (filed, loaded):
        assert is_mapped(fitted.matrices)
        assert fitted.nbytes < held.nbytes - held.matrices.nbytes + 1
        assert fitted.fingerprint == held.fingerprint
        for _ in range(2):
            np.testing.assert_array_equal(fitted.apply(x, codes), held.apply(x, codes))
    with np.load(tmp_path / "filed") as file:
        np.testing.assert_array_equal(file["matrices"], held.matrices)


def test_beside_the_mapped_rows_less_than_a_block_of_memory_is_taken():
    rng = np.random.default_rng(9)
    n, d, n_batches = 24_000, 512, 20
    x = rng.standard_normal((n, d), dtype=np.float32)
    batch, is_control = np.arange(n) % n_batches, np.arange(n) < 12_000
    fit("tvn", x[:2000], np.ones(2000, dtype=bool), batch[:2000] // 10, 2)
    block = 4 * BLOCK_ELEMENTS
    tracemalloc.start()
    try:
        fitted = fit("tvn", x, is_control, batch, n_batches)
        fitting = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        rows = next(row_blocks(n, d))
        result = fitted.apply(x[rows], batch[rows])
        applying = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert is_mapped(fitted.matrices) and fitted.matrices.nbytes > 2 * block
    assert fitting < block
    assert applying < result.nbytes + block


def test_no_row_depends_on_those_mapped_with_it():
    x, is_control, codes = make(n=300, d=33, n_batches=4)
    fitted = fit("tvn", x, is_control, codes, 4)
    whole = fitted.apply(x, codes)
    order = np.random.default_rng(3).permutation(len(x))
    for size in (1, 7, 64):
        for start in range(0, len(x), size):
            rows = order[start : start + size]
            np.testing.assert_array_equal(fitted.apply(x[rows], codes[rows]), whole[rows])


class TestFewControls:
    def setup_method(self):
        self.x, self.is_control, self.codes = make(n=200, d=4, n_batches=4)
        self.is_control[self.codes == 1] = False
        self.is_control[self.codes == 2] = False
        self.is_control[np.flatnonzero(self.codes == 2)[0]] = True
        self.wide = self.x.astype(np.float64)
        self.controls = self.wide[self.is_control]

    def test_centering(self):
        fitted = fit("centering", self.x, self.is_control, self.codes, 4)
        assert fitted.fallback_batches.tolist() == [1]
        of = self.codes == 1
        np.testing.assert_allclose(
            fitted.apply(self.x[of], self.codes[of]), self.wide[of] - self.controls.mean(axis=0), atol=1e-5
        )
        one = np.flatnonzero((self.codes == 2) & self.is_control)
        np.testing.assert_array_equal(fitted.apply(self.x[one], self.codes[one]), 0)

    def test_center_scaling(self):
        fitted = fit("center_scaling", self.x, self.is_control, self.codes, 4)
        assert fitted.fallback_batches.tolist() == [1, 2]
        of = np.isin(self.codes, (1, 2))
        expected = (self.wide[of] - self.controls.mean(axis=0)) / self.controls.std(axis=0)
        np.testing.assert_allclose(fitted.apply(self.x[of], self.codes[of]), expected, atol=1e-5)

    def test_tvn(self):
        fitted = fit("tvn", self.x, self.is_control, self.codes, 4)
        assert fitted.fallback_batches.tolist() == [1, 2]
        of = np.isin(self.codes, (1, 2))
        white = oracle_tvn(self.x, self.is_control, self.codes, coral=False)
        covariance = np.cov(white[self.is_control].T, ddof=1) + 0.5 * np.eye(4)
        expected = white[of] @ scipy.linalg.fractional_matrix_power(covariance, -0.5)
        found = fitted.apply(self.x[of], self.codes[of])
        np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)

    def test_tvn_without_coral_needs_no_fallback(self):
        assert not len(fit("tvn", self.x, self.is_control, self.codes, 4, coral=False).fallback_batches)

    def test_a_batch_without_samples_is_no_fallback(self):
        fitted = fit("centering", self.x, self.is_control, self.codes, 9)
        assert fitted.fallback_batches.tolist() == [1]

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_no_control_at_all(self, name):
        with pytest.raises(NotComputable, match="0 there"):
            fit(name, self.x, np.zeros(200, dtype=bool), self.codes, 4)
        assert fit("raw", self.x, np.zeros(200, dtype=bool), self.codes, 4).n_controls == 0

    @pytest.mark.parametrize("name", ["center_scaling", "tvn"])
    def test_one_control_has_no_deviation(self, name):
        with pytest.raises(NotComputable, match="1 there, at least 2 needed"):
            fit(name, self.x, np.arange(200) == 7, self.codes, 4)


class TestNoSpread:
    """Features and axes along which the controls do not vary are divided by 1."""

    @pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
    @pytest.mark.parametrize("name", ["center_scaling", "tvn"])
    def test_constant_feature(self, name, value):
        x, is_control, codes = make(d=5)
        x[:, 2] = value
        x[np.flatnonzero(~is_control)[0], 2] += 3
        found = FUNCTIONS[name](x, is_control, codes)
        assert np.isfinite(found).all()
        assert np.abs(found).max() < 100
        if name == "center_scaling":
            np.testing.assert_allclose(found[np.flatnonzero(~is_control)[0], 2], 3, atol=2e-3)
            assert not found[is_control, 2].any()

    def test_identical_features(self):
        x, is_control, codes = make(d=5)
        doubled = np.hstack([x, x[:, :2]])
        found = tvn(doubled, is_control, codes, coral=False)
        assert np.abs(found).max() < 30
        # Two axes carry nothing, the others are white.
        spread = np.sort(found[is_control].std(axis=0))
        np.testing.assert_allclose(spread[:2], 0, atol=1e-4)
        np.testing.assert_allclose(spread[2:], 1, atol=1e-4)

    def test_more_features_than_controls(self):
        x, is_control, codes = make(n=60, d=100, n_batches=2)
        is_control[:] = False
        is_control[:12] = True
        found = tvn(x, is_control, codes)
        assert np.isfinite(found).all()
        assert np.abs(found).max() < 100
        white = tvn(x, is_control, codes, coral=False)[is_control]
        spread = np.sort(white.std(axis=0))
        np.testing.assert_allclose(spread[-11:], 1, atol=1e-4)  # 12 controls span 11 directions
        np.testing.assert_allclose(spread[:-11], 0, atol=1e-4)

    def test_a_small_but_real_axis_is_whitened(self):
        x, is_control, codes = make(n=3000, d=4)
        noise = np.random.default_rng(1).normal(0, 1e-3, 3000).astype(np.float32)
        x[:, 3] = x[:, 0] * 2 + noise
        white = tvn(x, is_control, codes, coral=False)[is_control]
        np.testing.assert_allclose(np.cov(white.T, ddof=0), np.eye(4), atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(POST_PROCESSINGS),
    seed=st.integers(0, 10**6),
    size=st.integers(1, 400),
    mean=st.sampled_from([0.0, 100.0]),
)
def test_invariants(name, seed, size, mean):
    x, is_control, codes = make(n=90, d=5, n_batches=3, seed=seed, mean=mean)
    rng = np.random.default_rng(seed)
    base = fit(name, x, is_control, codes, 3)
    expected = base.apply(x, codes)
    scale = 1e-4 * np.abs(expected).max()

    blockwise = fit(name, x, is_control, codes, 3, max_elements=size)
    np.testing.assert_allclose(distances(blockwise.apply(x, codes)), distances(expected), atol=20 * scale, rtol=1e-3)
    # One row and all rows at a time.
    rows = rng.integers(0, 90, 7)
    lazy = PostProcessed(x, base, codes)
    np.testing.assert_allclose(np.vstack([lazy[row : row + 1] for row in rows]), expected[rows], atol=scale)

    order = rng.permutation(90)
    names = np.array(["z", "a", "m"])[rng.permutation(3)]
    if name != "raw":
        shuffled = FUNCTIONS[name](x[order], is_control[order], names[codes[order]])
        np.testing.assert_allclose(distances(shuffled), distances(expected[order]), atol=20 * scale, rtol=1e-3)
        np.testing.assert_array_equal(FUNCTIONS[name](x, is_control, codes), expected)


@pytest.mark.parametrize("name", POST_PROCESSINGS)
class TestObjects:
    def fitted(self, name):
        x, is_control, codes = make(n=120, d=9, n_batches=3)
        is_control[codes == 2] = False
        is_control[np.flatnonzero(codes == 2)[:3]] = True  # one batch with factors
        return x, codes, fit(name, x, is_control, codes, 3)

    def test_save_and_load(self, name, tmp_path):
        x, codes, fitted = self.fitted(name)
        path = tmp_path / "maps"
        fitted.save(path)
        loaded = Fitted.load(path)
        np.testing.assert_array_equal(loaded.apply(x, codes), fitted.apply(x, codes))
        assert loaded.fingerprint == fitted.fingerprint
        assert loaded.params == fitted.params
        assert loaded.fallback_batches.tolist() == fitted.fallback_batches.tolist()
        assert [item.name for item in tmp_path.iterdir()] == ["maps"]

    def test_pickle(self, name):
        x, codes, fitted = self.fitted(name)
        again = pickle.loads(pickle.dumps(PostProcessed(x, fitted, codes)))
        np.testing.assert_array_equal(again[:], fitted.apply(x, codes))
        assert again.fitted.fingerprint == fitted.fingerprint

    def test_fingerprint_depends_on_the_maps(self, name):
        x, _, fitted = self.fitted(name)
        _, is_control, codes = make(n=120, d=9, n_batches=3)
        other = fit(name, x + np.float32(1) * (x > 0), is_control, codes, 3)
        assert (other.fingerprint != fitted.fingerprint) or name == "raw"

    def test_rows_on_demand(self, name):
        x, codes, fitted = self.fitted(name)
        lazy = PostProcessed(x.astype(np.float64), fitted, codes)
        expected = fitted.apply(x, codes)
        assert lazy.shape == (120, 9)
        assert len(lazy) == 120
        rows = np.array([5, 119, 0, 5])
        for picked in (slice(10, 50), slice(None), rows, slice(3, 3), np.zeros(0, dtype=int)):
            found = lazy[picked]
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected[picked], atol=1e-4)
        assert x.flags.writeable
        np.testing.assert_array_equal(x, make(n=120, d=9, n_batches=3)[0])  # the input is left alone

    def test_wrong_shapes(self, name):
        x, codes, fitted = self.fitted(name)
        with pytest.raises(InputError, match="features"):
            fitted.apply(x[:, :4], codes)
        with pytest.raises(InputError, match="batch labels"):
            PostProcessed(x, fitted, codes[:-1])
        if name != "raw":
            with pytest.raises(InputError, match="outside"):
                fitted.apply(x, codes + 1)
            with pytest.raises(InputError, match="batch labels"):
                fitted.apply(x, codes[1:])


def test_large_means_do_not_cost_precision():
    """Counts can have means of 1e5 and deviations of 10."""
    x, is_control, codes = make(n=2000, d=3)
    shifted = (x.astype(np.float64) * 10 + 1e5).astype(np.float32)
    wide = shifted.astype(np.float64)
    of = codes == 1
    expected = (wide[of] - wide[of & is_control].mean(axis=0)) / wide[of & is_control].std(axis=0)
    np.testing.assert_allclose(center_scaling(shifted, is_control, codes)[of], expected, rtol=1e-5, atol=1e-5)
    white = tvn(shifted, is_control, codes, coral=False)[is_control]
    np.testing.assert_allclose(np.cov(white.T, ddof=0), np.eye(3), atol=1e-4)


X, IS_CONTROL, CODES = make(n=30, d=3, n_batches=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": X[:, 0]}, "shape"),
        ({"X": X[:, :0]}, "shape"),
        ({"X": np.array([["a"] * 3] * 30)}, "type"),
        ({"X": np.where(np.arange(90).reshape(30, 3) == 31, np.nan, X)}, "row 10, column 1"),
        ({"X": np.where(np.arange(90).reshape(30, 3) == 31, np.inf, X)}, "row 10, column 1"),
        ({"is_control": IS_CONTROL[:-1]}, "control flags of shape"),
        ({"is_control": np.where(IS_CONTROL, "yes", "no")}, "control flags of type"),
        ({"is_control": np.arange(30)}, "control flags of type"),
        ({"is_control": np.zeros(30, dtype=bool)}, "controls"),
        ({"batch": CODES[:-1]}, "batch labels"),
        ({"batch": np.array([None, *CODES[1:]], dtype=object)}, "missing"),
    ],
)
def test_bad_input(change, message):
    arguments = {"X": X, "is_control": IS_CONTROL, "batch": CODES} | change
    for function in FUNCTIONS.values():
        with pytest.raises((InputError, NotComputable), match=message):
            function(**arguments)


def test_bad_parameters(tmp_path):
    with pytest.raises(InputError, match="did you mean 'centering'"):
        fit("centring", X, IS_CONTROL, CODES, 2)
    for shrinkage in (0, -1, np.nan):
        with pytest.raises(InputError, match="shrinkage"):
            tvn(X, IS_CONTROL, CODES, shrinkage=shrinkage)
    with pytest.raises(InputError, match="outside"):
        fit("centering", X, IS_CONTROL, CODES, 1)
    (tmp_path / "other.npz").write_bytes(b"PK not a zip")
    with pytest.raises(InputError, match="no fitted post-processing"):
        Fitted.load(tmp_path / "other.npz")
    np.savez(tmp_path / "array.npz", a=X)
    with pytest.raises(InputError, match="no fitted post-processing"):
        Fitted.load(tmp_path / "array.npz")
    with pytest.raises(InputError, match="no fitted post-processing"):
        Fitted.load(tmp_path / "missing.npz")


def test_labels_of_any_kind_and_flags_as_numbers():
    expected = centering(X, IS_CONTROL, CODES)
    np.testing.assert_array_equal(centering(X.tolist(), IS_CONTROL.astype(int), [f"b{c}" for c in CODES]), expected)
    np.testing.assert_array_equal(centering(X.astype(np.float64), IS_CONTROL, CODES.astype(object)), expected)
