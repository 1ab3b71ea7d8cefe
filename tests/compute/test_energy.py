from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import energy_distance

from txeval.compute import energy
from txeval.compute.energy import Reference, distance_sums, group_energies, set_energies_reach, within_sum
from txeval.compute.groups import SetDraws


def direct(x: np.ndarray, y: np.ndarray) -> float:
    """Energy distance by three loops over pairs."""
    x, y = x.astype(float), y.astype(float)

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return sum(float(np.sqrt(((p - q) ** 2).sum())) for p in a for q in b) / (len(a) * len(b))

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_energy_is_the_direct_double_loop(dtype: type, rtol: float) -> None:
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((90, 5)) + 3).astype(dtype)
    codes = np.r_[np.full(40, -1), np.zeros(30, dtype=int), np.full(20, 2)]
    X[codes == 2] += 1
    reference = Reference.of_rows(X, np.arange(40))
    n, found = group_energies(X, codes, 4, reference)
    assert n.tolist() == [30, 0, 20, 0]
    assert np.isnan(found[[1, 3]]).all()
    for g in (0, 2):
        assert found[g] == pytest.approx(direct(X[codes == g], X[:40]), rel=rtol)


def test_energy_in_one_dimension_is_twice_the_square_of_scipys() -> None:
    rng = np.random.default_rng(1)
    X = rng.standard_normal((120, 1))
    X[60:] += 0.7
    codes = np.repeat([-1, 0], 60)
    found = group_energies(X, codes, 1, Reference.of_rows(X, np.arange(60)))[1][0]
    assert found == pytest.approx(energy_distance(X[:60, 0], X[60:, 0]) ** 2, rel=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distances_of_close_points_far_from_the_origin(dtype: type) -> None:
    rng = np.random.default_rng(2)
    x = (1000 + rng.standard_normal((40, 6)) * 0.01).astype(dtype)
    x[5] = x[6]
    y = np.vstack([x[:10], x[10:20] + dtype(0.25)])
    np.testing.assert_allclose(distance_sums(x, y), cdist(x.astype(float), y.astype(float)).sum(axis=1), rtol=1e-5)
    assert within_sum(x) == pytest.approx(cdist(x.astype(float), x.astype(float)).sum(), rel=1e-5)


def test_equal_points_have_distance_zero() -> None:
    x = np.full((300, 4), 3.3, dtype=np.float32)
    assert within_sum(x) == 0
    reference = Reference.of_rows(x, np.arange(100))
    assert group_energies(x, np.zeros(300, dtype=int), 1, reference)[1][0] == pytest.approx(0, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**32 - 1))
def test_no_block_size_changes_an_energy(max_elements: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((700, 4)).astype(np.float32)
    codes = np.r_[np.full(20, -1), np.zeros(600, dtype=int), rng.integers(1, 6, 80)]
    reference = Reference.of_rows(X, np.arange(20))
    whole = group_energies(X, codes, 6, reference, min_samples=5)[1]
    parts = group_energies(X, codes, 6, reference, min_samples=5, max_elements=max_elements)[1]
    np.testing.assert_allclose(parts, whole, rtol=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100))
def test_rotation_shift_and_scale(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((80, 4))
    codes = np.repeat([-1, 0, 1, 1], 20)
    rotation = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    before = group_energies(X, codes, 2, Reference.of_rows(X, np.arange(20)))[1]
    moved = scale * (X @ rotation) + rng.standard_normal(4)
    after = group_energies(moved, codes, 2, Reference.of_rows(moved, np.arange(20)))[1]
    np.testing.assert_allclose(after, scale * before, rtol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_drawn_sets_are_compared_as_a_direct_loop_would(dtype: type) -> None:
    rng = np.random.default_rng(3)
    X = rng.standard_normal((160, 3)).astype(dtype)
    codes = np.r_[np.full(30, -1), rng.integers(0, 8, 130)]
    batch = rng.integers(0, 3, 160)
    groups = np.array([1, 4, 6])
    reference = Reference.of_rows(X, np.arange(30))
    energies = group_energies(X, codes, 8, reference)[1]
    sets = SetDraws.of_groups(X, codes, batch, groups)
    expected = np.zeros(3, dtype=int)
    for chunk in sets.draw(25, 5, "magnitude"):
        for drawn in chunk:
            for i, g in enumerate(groups):
                expected[i] += direct(X[drawn[sets.slots(i)]], X[:30]) >= energies[g]
    for limit in (energy.SHARED_SLOTS, 0):
        found = set_energies_reach(X, sets, reference, energies[groups], draws=25, seed=5, shared_slots=limit)
        np.testing.assert_array_equal(found, expected)
    assert 0 < expected.sum() < 75
