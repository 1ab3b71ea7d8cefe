"""p-values of perturbations under nulls where groups, controls and batches make it hard; planted effects are found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from txeval.compute.arrays import Ints
from txeval.metrics.average_precision import map_table, retrieve
from txeval.metrics.consistency import (
    consistency_permutation_p,
    group_consistency,
    group_energy,
    magnitude_permutation_p,
)

DRAWS = 99
BATCHES = 6
LABELS = np.asarray([f"p{i}" for i in range(8)])


def screen(rng: np.random.Generator, *, unequal: bool, controls: int, batch_sd: float, effect: float = 0.0):
    """Samples of eight perturbations and of controls: (X, codes with -1 for controls, batch)."""
    sizes = np.asarray([3, 3, 5, 5, 9, 12, 20, 30]) if unequal else np.full(8, 9)
    codes = np.concatenate([np.repeat(np.arange(8), sizes), np.full(controls, -1)])
    batch = rng.integers(0, BATCHES, len(codes))
    X = rng.standard_normal((len(codes), 4)) + batch_sd * rng.standard_normal((BATCHES, 4))[batch]
    X[codes == 4] += effect
    return X.astype(np.float32), codes.astype(np.int64), batch


def p_of(test: str, X: np.ndarray, codes: Ints, batch: Ints, group: int) -> float:
    groups = np.asarray([group])
    if test == "consistency":
        avg = group_consistency(X, codes, 8)[1]
        return float(consistency_permutation_p(X, codes, batch, LABELS, groups, avg, draws=DRAWS)[0])
    if test == "magnitude":
        control = codes < 0
        energy = group_energy(X, codes, 8, control, min_samples=2)
        return float(magnitude_permutation_p(X, codes, batch, control, LABELS, groups, energy, draws=DRAWS)[0])
    mine = codes >= 0
    reference = np.random.default_rng(int(1e6 * abs(float(X[0, 0])))).standard_normal((80, 4)).astype(np.float32)
    found = retrieve(reference, np.arange(80) % 8, X[mine], codes[mine], n_classes=8, by_class=True)
    table = map_table(found, X[mine], codes[mine], batch[mine], LABELS, null="samples", draws=DRAWS)
    return float(table.set_index("perturbation")["p_value"][LABELS[group]])


@pytest.mark.parametrize("test", ["consistency", "magnitude", "retrieval"])
@pytest.mark.parametrize(
    ("unequal", "controls", "batch_sd"),
    [(True, 30, 0.3), (False, 3, 0.3), (False, 30, 3.0)],
    ids=["unequal groups", "few controls", "strong batch effects"],
)
def test_p_values_are_uniform_under_the_null(test: str, unequal: bool, controls: int, batch_sd: float) -> None:
    rng = np.random.default_rng(7)
    p = np.asarray(
        [
            p_of(test, *screen(rng, unequal=unequal, controls=controls, batch_sd=batch_sd), int(rng.integers(8)))
            for _ in range(150)
        ]
    )
    p = p[np.isfinite(p)]
    # p-values are multiples of 1 / (draws + 1): made continuous by a draw within the step.
    assert kstest(p - rng.random(len(p)) / (DRAWS + 1), "uniform").pvalue > 0.005
    assert (p <= 0.05).mean() <= 0.11


@pytest.mark.parametrize("test", ["consistency", "magnitude"])
def test_planted_effects_are_found(test: str) -> None:
    rng = np.random.default_rng(8)
    p = [p_of(test, *screen(rng, unequal=True, controls=30, batch_sd=0.3, effect=1.5), 4) for _ in range(20)]
    assert np.mean(np.asarray(p) <= 0.05) > 0.9
