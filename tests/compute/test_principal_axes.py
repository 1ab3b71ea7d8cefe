"""Principal components by blocks against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from txeval.compute.pca import principal_axes
from txeval.errors import InputError

rng = np.random.default_rng(1)
SPECTRUM = rng.normal(size=(700, 20)) @ np.diag(np.arange(1, 21) ** -0.7) @ rng.normal(size=(20, 20)) + 3


@pytest.mark.parametrize("X", [SPECTRUM, SPECTRUM[:12], 100 + SPECTRUM], ids=["tall", "wide", "far"])
def test_scikit_learn_agrees(X):
    X = X.astype(np.float32)
    axes = principal_axes(X, max_elements=997)
    expected = PCA(svd_solver="full").fit(X.astype(np.float64))
    kept = expected.explained_variance_ > 1e-10
    np.testing.assert_allclose(axes.variance[kept], expected.explained_variance_[kept], rtol=1e-9)
    np.testing.assert_allclose(axes.mean, expected.mean_, rtol=1e-12)
    projected, wanted = axes.project(X, 5, max_elements=100), expected.transform(X.astype(np.float64))[:, :5]
    assert projected.dtype == np.float32
    signs = np.sign((projected * wanted).sum(axis=0))
    np.testing.assert_allclose(projected * signs, wanted, atol=1e-5)
    np.testing.assert_allclose(axes.axes @ axes.axes.T, np.eye(len(axes.axes)), atol=1e-10)
    assert (np.take_along_axis(axes.axes, np.abs(axes.axes).argmax(axis=1)[:, None], axis=1) > 0).all()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999, 1.0])
def test_number_of_components_for_a_share(share):
    expected = np.cumsum(PCA(svd_solver="full").fit(SPECTRUM).explained_variance_ratio_)
    axes = principal_axes(SPECTRUM)
    if share < 1:
        assert axes.reaching(share) == np.flatnonzero(expected >= share)[0] + 1
    assert 1 <= axes.reaching(share) <= 20


def test_blocks_do_not_matter():
    whole, parts = principal_axes(SPECTRUM), principal_axes(SPECTRUM, max_elements=60)
    np.testing.assert_allclose(whole.variance, parts.variance, rtol=1e-10)
    np.testing.assert_allclose(whole.project(SPECTRUM, 4), parts.project(SPECTRUM, 4, max_elements=30), atol=1e-5)


def test_a_constant_matrix_has_no_variance():
    axes = principal_axes(np.full((50, 3), 2.0))
    np.testing.assert_array_equal(axes.variance, 0)
    assert axes.reaching(0.9) == 1
    np.testing.assert_array_equal(axes.project(np.full((4, 3), 2.0), 2), 0)


def test_bad_input():
    with pytest.raises(InputError, match="no rows"):
        principal_axes(np.zeros((0, 3)))
    with pytest.raises(InputError, match="nan in row 1"):
        principal_axes(np.array([[1.0, 2.0], [np.nan, 1.0], [0.0, 1.0]]))
    with pytest.raises(InputError, match="2 columns"):
        principal_axes(SPECTRUM).project(np.zeros((3, 2)), 1)
