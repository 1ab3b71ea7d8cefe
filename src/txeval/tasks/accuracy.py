"""Scores of a classifier from the rank that it gave to the true class of every sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from txeval.compute.arrays import F64, Ints, Strings
from txeval.compute.intervals import CONTROLS, Units, once_of_pairs, with_margins
from txeval.errors import NotComputable
from txeval.metrics.knn import constant_accuracy, expected_hits
from txeval.tasks.base import Score, crossed_units

__all__ = ["Ranked", "accuracy", "balanced_accuracy", "contributions", "joined", "perturbation_table"]


@dataclass(frozen=True)
class Ranked:
    """Ranks of the true class, 0 for the best.

    Attributes
    ----------
    rank, tied, truth
        (m,) per test sample: number of classes before its own, number of others equal to it, code of its class into
        `classes`.
    ahead
        (m, 5) codes of these other classes; see `txeval.metrics.knn.ClassRanks`.
    unit_labels, unit_codes
        Batches and perturbations of the test samples as units; see `batch_and_perturbation`.
    train_counts
        (n_classes,) samples of each class in the training or reference set; (n_blocks, n_classes) where samples were
        compared within blocks.
    block
        (m,) block of each test sample, where there are several.
    """

    rank: Ints
    tied: Ints
    truth: Ints
    classes: Strings
    ahead: Ints
    unit_labels: tuple[Strings, Strings]
    unit_codes: tuple[Ints, Ints]
    train_counts: Ints
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    block: Ints | None = None

    def constant(self, top: int) -> float:
        """Accuracy of the best constant answer (in every block)."""
        if self.block is None:
            return constant_accuracy(self.train_counts, self.truth, top)
        hits = 0.0
        for block, counts in enumerate(self.train_counts):
            mine = self.block == block
            hits += constant_accuracy(counts, self.truth[mine], top) * int(mine.sum()) if mine.any() else 0.0
        return hits / len(self.truth)

    def guess(self, top: int) -> float:
        """Mean over classes of the accuracy of a blind guess among the classes (of the block)."""
        sizes = np.maximum(1, (self.train_counts > 0).sum(axis=-1))
        if self.block is None:
            return min(1.0, top / max(1, int(sizes)))
        chance = np.minimum(1.0, top / sizes)[self.block]
        counts = np.bincount(self.truth, minlength=len(self.classes))
        sums = np.bincount(self.truth, weights=chance, minlength=len(self.classes))
        return float((sums[counts > 0] / counts[counts > 0]).mean())


def joined(parts: Sequence[Ranked], notes: tuple[str, ...]) -> Ranked:
    """Ranks of all blocks together; a single part stays as it is."""
    first = parts[0]
    if len(parts) == 1:
        return first
    return replace(
        first,
        rank=np.concatenate([part.rank for part in parts]),
        tied=np.concatenate([part.tied for part in parts]),
        truth=np.concatenate([part.truth for part in parts]),
        ahead=np.concatenate([part.ahead for part in parts]),
        unit_codes=(
            np.concatenate([part.unit_codes[0] for part in parts]),
            np.concatenate([part.unit_codes[1] for part in parts]),
        ),
        train_counts=np.stack([part.train_counts for part in parts]),
        block=np.repeat(np.arange(len(parts)), [len(part.rank) for part in parts]),
        notes=tuple(dict.fromkeys([*notes, *(note for part in parts for note in part.notes)])),
    )


def accuracy(ranked: Ranked, top: int) -> Score:
    """Share of test samples whose class is among the `top` best; see `txeval.metrics.knn.expected_hits`.

    Chance is the score of the best constant answer: always the `top` classes that are commonest in the
    training set.
    """
    if len(ranked.rank) == 0:
        raise NotComputable("no sample to score: the test split is empty")
    hits = expected_hits(ranked.rank, ranked.tied, top)
    return Score(
        value=float(hits.mean()),
        chance=ranked.constant(top),
        n_samples=len(hits),
        n_groups=len(np.unique(ranked.truth)),
        group="perturbation",
        left_out=ranked.left_out,
        notes=ranked.notes,
        units=contributions(ranked, top),
    )


def balanced_accuracy(ranked: Ranked, top: int = 1) -> Score:
    """Mean over classes of the share of their test samples whose class is among the `top` best; chance 1 / classes."""
    if len(ranked.rank) == 0:
        raise NotComputable("no sample to score: the test split is empty")
    table = perturbation_table(ranked)
    shares = table["top1" if top == 1 else "top5"].to_numpy(dtype=float)
    return Score(
        value=float(shares.mean()),
        chance=ranked.guess(top),
        n_samples=len(ranked.rank),
        n_groups=len(shares),
        group="perturbation",
        left_out=ranked.left_out,
        notes=ranked.notes,
        units=contributions(ranked, top, balanced=True),
    )


def contributions(ranked: Ranked, top: int, *, balanced: bool = False) -> Units:
    """Contributions by batch and class: hits; balanced: every class weighs the same.

    For the interval of the score by itself a class is in it twice: by its own samples, and by those of others that it
    takes. Without it, the samples that are just not right because it is among the classes before theirs would be, and
    those whose class shares a place with it would be so more often. So the sum over a class is its hits less what it
    takes, as in a jackknife; sums over batches are those of the hits. (What a class takes by a tie of more than six
    classes is little, and left out.)
    What two classes take from each other is in the sums of both: these are scaled about their mean so that their
    squares count it once (see `once_of_pairs`).
    """
    weight = np.ones(len(ranked.rank))
    if balanced:
        weight /= np.bincount(ranked.truth, minlength=len(ranked.classes))[ranked.truth]
    plain = expected_hits(ranked.rank, ranked.tied, top)
    hits = plain * weight
    labels, codes = ranked.unit_labels, ranked.unit_codes
    levels, level = np.unique(codes[1], return_inverse=True)
    level = np.asarray(level, dtype=np.int64).reshape(-1)
    # Controls as competitors are no class that is drawn.
    drawn = ~np.char.startswith(labels[1].astype(str), CONTROLS)[levels]
    of_class = np.full(len(ranked.classes), -1, dtype=np.int64)
    mine = drawn[level]
    of_class[ranked.truth[mine]] = level[mine]
    # What a sample would gain without a class before its own, and without one equal to it.
    gains = np.stack(
        [
            expected_hits(ranked.rank - 1, ranked.tied, top) - plain,
            expected_hits(ranked.rank, np.maximum(ranked.tied - 1, 0), top) - plain,
        ]
    )
    before = np.arange(ranked.ahead.shape[1]) < ranked.rank[:, None]
    gain = np.where(before, gains[0][:, None], gains[1][:, None])
    just, place = np.nonzero((gain > 0) & (ranked.ahead >= 0))
    taker = of_class[ranked.ahead[just, place]]
    just, place, taker = just[taker >= 0], place[taker >= 0], taker[taker >= 0]
    lost = weight[just] * gain[just, place]

    def per_level(values: F64, at: Ints = level) -> F64:
        return np.asarray(np.bincount(at, weights=values, minlength=len(levels)), dtype=np.float64)

    own, below, taken = per_level(hits), per_level(weight), per_level(lost, taker)
    moved = np.where(drawn, own - taken, 0.0)
    even = np.where(drawn, below, 0.0) / max(1e-300, float(below[drawn].sum()))
    moved -= even * moved.sum()
    ratio = float(hits.sum() / weight.sum())
    cells = np.unique(codes[0] * len(levels) + level, return_inverse=True)[1].reshape(-1)
    noise = float((np.bincount(cells, weights=hits - ratio * weight) ** 2).sum())
    moved *= once_of_pairs(moved, level[just], taker, lost, at_least=noise)
    sums = np.where(drawn, even * own[drawn].sum() + moved, own)
    batch = np.unique(codes[0], return_inverse=True)[1].reshape(-1)
    values = with_margins(hits, weight, (level, batch), (sums, np.bincount(batch, weights=hits)))
    return crossed_units(labels, codes, hits, weight, alone=values)


def perturbation_table(ranked: Ranked) -> pd.DataFrame:
    """One row per class of the test set: perturbation, n_samples, top1, top5, median_rank."""
    codes, place = np.unique(ranked.truth, return_inverse=True)
    number = np.bincount(place, minlength=len(codes))
    right = [
        np.bincount(place, weights=expected_hits(ranked.rank, ranked.tied, top), minlength=len(codes)) / number
        for top in (1, 5)
    ]
    return pd.DataFrame(
        {
            "perturbation": ranked.classes[codes],
            "n_samples": number,
            "top1": right[0],
            "top5": right[1],
            "median_rank": pd.Series(ranked.rank + ranked.tied / 2).groupby(place).median().to_numpy(dtype=float),
        }
    )
