"""Scores of a classifier from the rank that it gave to the true class of every sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from txeval.compute.arrays import F64, Ints, Strings
from txeval.compute.intervals import Units
from txeval.errors import NotComputable
from txeval.metrics.knn import constant_accuracy
from txeval.tasks.base import Score

__all__ = ["Ranked", "accuracy", "balanced_accuracy", "perturbation_table"]


@dataclass(frozen=True)
class Ranked:
    """Ranks of the true class, 0 for the best.

    Attributes
    ----------
    rank, truth
        (m,) per test sample: rank of its class, code of its class into `classes`.
    batch
        (m,) code of the batch of each test sample into `batches`.
    train_counts
        (n_classes,) samples of each class in the training or reference set.
    """

    rank: Ints
    truth: Ints
    classes: Strings
    batch: Ints
    batches: Strings
    train_counts: Ints
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def accuracy(ranked: Ranked, top: int) -> Score:
    """Share of test samples whose class is among the `top` best.

    Chance is the score of the best constant answer: always the `top` classes that are commonest in the
    training set.
    """
    if len(ranked.rank) == 0:
        raise NotComputable("no sample to score: the test split is empty")
    hits = (ranked.rank < top).astype(np.float64)
    return Score(
        value=float(hits.mean()),
        chance=constant_accuracy(ranked.train_counts, ranked.truth, top),
        n_samples=len(hits),
        n_groups=len(np.unique(ranked.truth)),
        group="perturbation",
        left_out=ranked.left_out,
        notes=ranked.notes,
        units=_crossed(ranked, hits),
    )


def balanced_accuracy(ranked: Ranked, top: int = 1) -> Score:
    """Mean over classes of the share of their test samples whose class is among the `top` best; chance 1 / classes."""
    if len(ranked.rank) == 0:
        raise NotComputable("no sample to score: the test split is empty")
    table = perturbation_table(ranked)
    shares = table["top1" if top == 1 else "top5"].to_numpy(dtype=float)
    return Score(
        value=float(shares.mean()),
        chance=min(1.0, top / max(1, int((ranked.train_counts > 0).sum()))),
        n_samples=len(ranked.rank),
        n_groups=len(shares),
        group="perturbation",
        left_out=ranked.left_out,
        notes=ranked.notes,
        units=_crossed(ranked, (ranked.rank < top).astype(np.float64), balanced=True),
    )


def _crossed(ranked: Ranked, hits: F64, *, balanced: bool = False) -> Units:
    """Hits by batch and class; balanced: every class weighs the same."""
    weight = np.ones(len(hits))
    if balanced:
        weight /= np.bincount(ranked.truth, minlength=len(ranked.classes))[ranked.truth]
    return Units.crossed(
        ("batch", "perturbation"),
        (ranked.batches, ranked.classes),
        (ranked.batch, ranked.truth),
        hits * weight,
        weight,
    )


def perturbation_table(ranked: Ranked) -> pd.DataFrame:
    """One row per class of the test set: perturbation, n_samples, top1, top5, median_rank."""
    frame = pd.DataFrame({"code": ranked.truth, "rank": ranked.rank})
    grouped = frame.groupby("code", sort=True)["rank"]
    return pd.DataFrame(
        {
            "perturbation": ranked.classes[np.unique(ranked.truth)],
            "n_samples": grouped.size().to_numpy(),
            "top1": grouped.apply(lambda rank: float((rank < 1).mean())).to_numpy(),
            "top5": grouped.apply(lambda rank: float((rank < 5).mean())).to_numpy(),
            "median_rank": grouped.median().to_numpy(dtype=float),
        }
    )
