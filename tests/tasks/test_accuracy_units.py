"""Contributions to accuracies: classes compete for the same samples."""

from __future__ import annotations

import numpy as np
import pytest

from txeval.tasks.accuracy import Ranked, accuracy, balanced_accuracy

CLASSES, PER_CLASS, BATCHES = 40, 12, 60


def guessed(rng: np.random.Generator) -> Ranked:
    """A classifier that knows nothing, and prefers some classes by far."""
    preference = rng.dirichlet(np.full(CLASSES, 0.7))
    truth = np.repeat(np.arange(CLASSES), PER_CLASS)
    batch = rng.integers(0, BATCHES, len(truth))
    # The largest of noisy logits, and the class behind it.
    logits = np.log(preference + 1e-9) + rng.gumbel(size=(len(truth), CLASSES))
    order = np.argsort(-logits, axis=1)
    rank = np.argmax(order == truth[:, None], axis=1)
    ahead = np.where(np.arange(5) < np.minimum(rank, 6)[:, None], order[:, :5], -1)
    ahead[rank > 5] = -1
    names = np.asarray([f"p{i:02d}" for i in range(CLASSES)])
    return Ranked(
        rank=rank,
        tied=np.zeros_like(rank),
        truth=truth,
        classes=names,
        ahead=ahead,
        unit_labels=(np.asarray([f"b{i}" for i in range(BATCHES)]), names),
        unit_codes=(batch, truth),
        train_counts=np.full(CLASSES, PER_CLASS),
    )


@pytest.mark.parametrize("score", [lambda ranked: accuracy(ranked, 1), balanced_accuracy])
def test_sums_over_batches_are_hits_and_over_classes_what_these_take_away(score) -> None:
    ranked = guessed(np.random.default_rng(0))
    made = score(ranked)
    units = made.units
    assert units.value == pytest.approx(made.value)
    assert units.alone.sum() == pytest.approx(units.numerator.sum())
    np.testing.assert_allclose(
        np.bincount(units.codes[0], weights=units.alone),
        np.bincount(units.codes[0], weights=units.numerator),
        atol=1e-6,
    )
    # Without a class: its samples are gone, and those that it alone stood before are right.
    without = []
    for c in range(CLASSES):
        left = ranked.truth != c
        won = (ranked.rank == 1) & (ranked.ahead[:, 0] == c)
        without.append(((ranked.rank == 0) | won)[left].mean())
    lost = np.asarray(made.value) - without
    sums = np.bincount(units.codes[1], weights=units.alone)
    assert np.corrcoef(lost, sums)[0, 1] > 1 - 1e-6


def test_classes_that_are_preferred_by_chance_are_no_spread() -> None:
    rng = np.random.default_rng(1)
    values, alone, plain = [], [], []
    for _ in range(150):
        units = accuracy(guessed(rng), 1).units
        values.append(units.value)
        for found, influence in ((alone, units.influence_alone), (plain, units.influence)):
            found.append((np.bincount(units.codes[1], weights=influence) ** 2).sum())
    # What a preferred class has more, the others have less: its hits vary between classes, the score does not.
    assert np.mean(plain) > 1.5 * np.var(values)
    assert np.var(values) < np.mean(alone) < 0.92 * np.mean(plain)
