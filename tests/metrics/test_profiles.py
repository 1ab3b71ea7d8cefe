"""Correlation of centred profiles: the direct formula, what it must not see, and edges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txeval.errors import InputError, NotComputable
from txeval.metrics.profiles import LinearSums, ProfileCells, ProfileSums, ProfileTruth, pearson_delta, profile_parts


def made(seed: int = 0, n: int = 120, g: int = 15) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    label = np.array(["ctrl", "a", "b", "c", "d"])[rng.integers(5, size=n)]
    label[:5] = ["ctrl", "a", "b", "c", "d"]
    batch = rng.integers(3, size=n)
    batch[:5] = 0
    effect = {name: rng.normal(size=g) * (name != "ctrl") for name in set(label)}
    true = np.stack([effect[name] for name in label]) + rng.normal(size=(3, g))[batch] + rng.normal(size=(n, g))
    pred = 0.5 * true + rng.normal(size=(n, g))
    return pred.astype(np.float32), true.astype(np.float32), label, batch, label == "ctrl"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 100, 10**6]), st.sampled_from(["controls", "perturbed"]))
def test_is_the_direct_formula(seed: int, max_elements: int, reference: str) -> None:
    pred, true, label, batch, control = made(seed)
    found = pearson_delta(pred, true, label, batch, control, reference=reference, max_elements=max_elements)
    effects = {}
    for name in "abcd":
        rows = np.flatnonzero((label == name) & np.isin(batch, batch[control]))
        effects[name] = [
            np.mean(
                [m[i].astype(float) - m[control & (batch == batch[i])].mean(axis=0, dtype=float) for i in rows], axis=0
            )
            for m in (pred, true)
        ]
    common = np.mean(list(effects.values()), axis=0) if reference == "perturbed" else np.zeros((2, pred.shape[1]))
    for name, value in found.items():
        a, b = np.asarray(effects[name]) - common
        assert value == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-5)


def test_batches_shifts_and_scale_do_not_matter() -> None:
    pred, true, label, batch, control = made(1)
    rng = np.random.default_rng(0)
    one = pearson_delta(pred, true, label, batch, control)
    two = pearson_delta(
        3 * (pred + 10 * rng.normal(size=(3, 15))[batch]),
        true + 10 * rng.normal(size=(3, 15))[batch],
        label,
        batch,
        control,
    )
    assert two == pytest.approx(one, abs=1e-4)


def test_exact_is_one_and_what_knows_only_batches_is_zero() -> None:
    _, true, label, batch, control = made(2)
    assert pearson_delta(true, true, label, batch, control) == pytest.approx(dict.fromkeys("abcd", 1.0))
    by_batch = np.stack([true[batch == b].mean(axis=0) for b in range(3)])[batch]
    assert pearson_delta(by_batch, true, label, batch, control) == dict.fromkeys("abcd", 0.0)


def test_a_common_shift_counts_against_the_controls_alone() -> None:
    rng = np.random.default_rng(3)
    n, g = 4000, 60
    label = np.array(["ctrl", *[f"p{i}" for i in range(19)]])[rng.integers(20, size=n)]
    control, batch = label == "ctrl", rng.integers(2, size=n)
    shift = 3 * rng.normal(size=g)
    own = {name: rng.normal(size=g) for name in set(label)}
    true = np.where(control[:, None], 0, shift + np.stack([own[name] for name in label])) + 0.1 * rng.normal(
        size=(n, g)
    )
    # It knows that a sample is perturbed, not how.
    pred = np.where(control[:, None], 0, shift) + 0.1 * rng.normal(size=(n, g))
    plain = np.mean(list(pearson_delta(pred, true, label, batch, control).values()))
    systema = np.mean(list(pearson_delta(pred, true, label, batch, control, reference="perturbed").values()))
    assert plain > 0.8
    assert abs(systema) < 0.15


def test_edges() -> None:
    pred, true, label, batch, control = made(4)
    with pytest.raises(NotComputable, match="with controls"):
        pearson_delta(pred, true, label, batch, np.zeros(len(label), bool))
    with pytest.raises(InputError, match="match"):
        pearson_delta(pred[:, :3], true, label, batch, control)
    two = np.isin(label, ["ctrl", "a", "b"])
    with pytest.raises(NotComputable, match="too few"):
        pearson_delta(pred[two], true[two], label[two], batch[two], control[two], reference="perturbed")
    flat = pearson_delta(pred, np.zeros_like(true), label, batch, control)
    assert np.isnan(list(flat.values())).all()
    # A batch without controls does not count.
    lone = control & (batch != 2)
    keep = lone | ~control
    found = pearson_delta(pred[keep], true[keep], label[keep], batch[keep], lone[keep])
    kept = keep & (batch != 2)
    assert found == pytest.approx(pearson_delta(pred[kept], true[kept], label[kept], batch[kept], lone[kept]))


def test_the_mean_of_all_perturbations_is_that_of_the_block() -> None:
    pred, true, label, batch, control = made(6, n=400)
    codes, labels = np.unique(label, return_inverse=True)[::-1]
    group = np.where(control, -1, codes)
    # Two blocks of the same perturbations: groups 0-4 and 5-9, each with batches of its own.
    sums, one = ProfileSums(15, 10, 6), ProfileSums(15, 5, 3)
    sums.add(pred, true, group, batch)
    sums.add(pred + 1, true - 2, np.where(control, -1, codes + 5), batch + 3)
    one.add(pred, true, group, batch)
    both = sums.result("perturbed", block=np.repeat([0, 1], 5)).values
    np.testing.assert_allclose(both[:5], one.result("perturbed").values, atol=1e-5)
    np.testing.assert_allclose(both[5:], both[:5], atol=1e-4)
    assert len(labels) == 5


@pytest.mark.parametrize("reference", ["controls", "perturbed"])
def test_profiles_of_linear_decoders_follow_from_sums_of_what_they_read(reference: str, tmp_path: Path) -> None:
    _, true, label, batch, control = made(3)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(true), 4))
    codes = np.where(control, -1, np.searchsorted(["a", "b", "c", "d"], label))
    of = rng.integers(2, size=len(true))
    weights, biases = rng.normal(size=(2, 4, 15)).astype(np.float32), rng.normal(size=(2, 15)).astype(np.float32)
    pred = np.stack([x[i] @ weights[k] + biases[k] for i, k in enumerate(of)])
    direct = ProfileSums(15, 4, 3)
    direct.add(pred, true, codes, batch)

    truth = ProfileTruth.create(tmp_path / "sums.npy", 15, 4, 3)
    truth.add(true[:50], codes[:50], batch[:50])
    truth.add(true[50:], codes[50:], batch[50:])
    truth.close()
    parts = []
    for k in range(2):
        sums, references = np.zeros((4, 4)), np.zeros((3, 4))
        mine = of == k
        np.add.at(sums, codes[mine & ~control], x[mine & ~control])
        np.add.at(references, batch[mine & control], x[mine & control])
        n = np.bincount(codes[mine & ~control], minlength=4), np.bincount(batch[mine & control], minlength=3)
        parts.append(LinearSums(sums, references, *n, weights[k], biases[k]))
    found = ProfileSums.of_linear(parts, truth).result(reference)
    expected = direct.result(reference)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-6)
    np.testing.assert_array_equal(found.n, expected.n)


def effects_of_batches(g: int = 25) -> tuple[ProfileCells, Callable[[np.ndarray, str], np.ndarray]]:
    """Effects of 9 perturbations in 5 batches, and their correlations with the batches weighted."""
    rng = np.random.default_rng(4)
    n = 300
    batch, group = rng.integers(0, 5, n), rng.integers(-1, 9, n)
    true = rng.standard_normal((n, g)) + (group[:, None] + 1) * rng.standard_normal((10, g))[group + 1]
    pred = true + rng.standard_normal((n, g))
    cells = ProfileCells(group, batch, 5, g)
    for k in range(g):
        cells.add(pred[:, k], true[:, k])

    def correlations(weight: np.ndarray, reference: str) -> np.ndarray:
        w = cells.number * weight[cells.batch]
        effects = np.asarray(cells.effects).transpose(1, 2, 0)
        made = []
        for side in effects:
            sums = np.zeros((9, g))
            np.add.at(sums, cells.group, w[:, None] * side)
            sums /= np.bincount(cells.group, weights=w)[:, None]
            made.append(sums - (sums.mean(axis=0) if reference == "perturbed" else 0))
        return np.asarray([np.corrcoef(a, b)[0, 1] for a, b in zip(*made, strict=True)])

    return cells, correlations


@pytest.mark.parametrize("reference", ["controls", "perturbed"])
def test_contributions_of_batches_are_what_the_correlations_lose_without_them(reference: str) -> None:
    cells, correlations = effects_of_batches()
    whole = correlations(np.ones(5), reference)
    parts = profile_parts(cells, whole, reference=reference)
    np.testing.assert_allclose(np.bincount(parts.group, weights=parts.values), whole, atol=1e-8)
    np.testing.assert_allclose(np.bincount(parts.group, weights=parts.weight), 1)
    lost = np.zeros((5, 9))
    for b in range(5):
        share = np.zeros(9)
        share[parts.group[parts.batch == b]] = parts.weight[parts.batch == b]
        lost[b] = (1 - share) * (whole - correlations((np.arange(5) != b).astype(float), reference))
    weight = np.zeros((5, 9))
    weight[parts.batch, parts.group] = parts.weight
    expected = (weight * whole + lost - weight * lost.sum(axis=0)).sum(axis=1)
    # The common mean effect moves with the batch in the linear approximation.
    found = np.bincount(parts.batch, weights=parts.values)
    np.testing.assert_allclose(found, expected, atol=1e-8 if reference == "controls" else 0.02)


def test_contributions_of_a_batch_of_many_are_the_slope_of_the_correlations() -> None:
    """For small weights, deletion and derivative are the same."""
    rng = np.random.default_rng(5)
    g, n_batches = 30, 400
    base = rng.standard_normal((2, g))
    cells = ProfileCells(np.repeat([0, -1], n_batches), np.tile(np.arange(n_batches), 2), n_batches, g)
    values = base[:, None, :] + rng.standard_normal((2, n_batches, g))
    for k in range(g):
        cells.add(*(np.append(side[:, k], np.zeros(n_batches)) for side in values))
    whole = np.array([np.corrcoef(*values.mean(axis=1))[0, 1]])
    parts = profile_parts(cells, whole)

    def slope(b: int) -> float:
        weight = np.ones(n_batches)
        weight[b] += 1e-4
        mean = (weight[:, None] * values).sum(axis=1) / weight.sum()
        return float((np.corrcoef(*mean)[0, 1] - whole[0]) / 1e-4)

    found = parts.values - parts.weight * whole[0]
    np.testing.assert_allclose(found[:20], [slope(b) for b in range(20)], atol=2e-5)
