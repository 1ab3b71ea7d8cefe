"""Products whose rows do not depend on each other."""

from __future__ import annotations

import numpy as np
import pytest

from txeval.compute.products import multiply, pack, product


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("m", "d", "k"), [(1, 1, 1), (5, 3, 31), (6, 64, 32), (7, 65, 33), (40, 200, 97), (0, 4, 4)])
def test_they_are_those_of_numpy(m, d, k, dtype):
    rng = np.random.default_rng(m + d + k)
    a, b = rng.standard_normal((m, d)).astype(dtype), rng.standard_normal((d, k)).astype(dtype)
    found = multiply(a, pack(b, dtype), k)
    assert found.dtype == dtype
    size = np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64))
    assert np.all(np.abs(found - a.astype(np.float64) @ b) <= (d + 2) * np.finfo(dtype).eps * size)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_row_has_the_same_digits_wherever_it_stands(dtype):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((50, 130)).astype(dtype), rng.standard_normal((130, 70)).astype(dtype)
    panels = pack(b, dtype)
    whole = multiply(a, panels, 70)
    for row in range(50):
        np.testing.assert_array_equal(multiply(a[row : row + 1], panels, 70)[0], whole[row])
    order = rng.permutation(50)
    np.testing.assert_array_equal(multiply(a[order], panels, 70), whole[order])
    # Nor does a column depend on the others.
    np.testing.assert_array_equal(product(a, b[:, 40:41])[:, 0], whole[:, 40])


def test_layouts_do_not_matter():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((9, 20)), rng.standard_normal((20, 11))
    np.testing.assert_array_equal(product(np.asfortranarray(a), np.asfortranarray(b)), product(a, b))
    np.testing.assert_array_equal(product(a[::2], b[:, ::3]), product(a, b)[::2, ::3])


def test_what_is_not_finite_stays_where_it_is():
    a, b = np.ones((7, 40)), np.ones((40, 35))
    a[3, 5] = np.nan
    found = product(a, b)
    assert np.isnan(found[3]).all()
    assert (np.delete(found, 3, axis=0) == 40).all()
