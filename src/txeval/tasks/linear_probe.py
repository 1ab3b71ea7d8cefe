"""Level 2: can a linear layer tell the perturbation? (linear probing)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from txeval.compute.arrays import take_rows
from txeval.errors import NotComputable
from txeval.metrics.linear_probe import linear_probe
from txeval.tasks.accuracy import Ranked, accuracy, balanced_accuracy, perturbation_table
from txeval.tasks.base import Metric, Task, TaskInputs

__all__ = ["TASK", "LinearProbeParams"]


@dataclass(frozen=True)
class LinearProbeParams:
    """Parameters of level 2.

    Attributes
    ----------
    solver
        "adamw" is the paper's recipe; "softmax-short" and "lda" are other, cheaper probes, and say so in every row.
    drop_last
        Whether the last partial minibatch of an epoch is left out, as in the published code.
    """

    solver: Literal["adamw", "softmax-short", "lda"] = "adamw"
    epochs: int = 250
    batch_size: int = 2048
    lr: float = 1e-3
    weight_decay: float = 1e-6
    warmup_epochs: int = 10
    warmup_lr: float = 3e-5
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs is {self.epochs} and batch_size {self.batch_size}; both must be 1 or more")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}; it must be below epochs ({self.epochs})")
        if self.lr <= 0 or self.warmup_lr <= 0 or self.weight_decay < 0:
            raise ValueError("lr and warmup_lr must be above 0, weight_decay 0 or more")


def prepare(inputs: TaskInputs) -> Ranked:
    """Train the probe on the perturbed samples of train and rank the classes of those of test."""
    params: LinearProbeParams = inputs.params
    samples = inputs.samples
    train, test = (rows[~samples.is_control[rows]] for rows in (inputs.splits["train"], inputs.splits["test"]))
    if len(train) == 0 or len(test) == 0:
        raise NotComputable("the train or the test split holds no perturbed sample: it takes at least two batches")
    classes, y_train = np.unique(samples.perturbation[train], return_inverse=True)
    if len(classes) < 2:
        raise NotComputable("the train split holds one perturbation: there is nothing to tell apart")
    y_test = np.searchsorted(classes, samples.perturbation[test])
    result = linear_probe(
        take_rows(inputs.embedding, train),
        y_train,
        take_rows(inputs.embedding, test),
        y_test,
        seed=inputs.seed,
        solver=params.solver,
        device=inputs.device,
        epochs=params.epochs,
        batch_size=params.batch_size,
        lr=params.lr,
        weight_decay=params.weight_decay,
        warmup_epochs=params.warmup_epochs,
        warmup_lr=params.warmup_lr,
        drop_last=params.drop_last,
    )
    return Ranked(
        rank=result["rank"],
        truth=y_test.astype(np.int64),
        classes=samples.perturbations[classes],
        batch=samples.batch[test],
        batches=samples.batches,
        train_counts=np.bincount(y_train, minlength=len(classes)),
        notes=(f"solver: {params.solver}, {result['steps']} training steps", *result["notes"]),
    )


def _details(ranked: Ranked) -> dict[str, pd.DataFrame]:
    return {"perturbations": perturbation_table(ranked)}


TASK = Task(
    name="linear_probe",
    level=2,
    title="Linear separability",
    question="Can one linear layer on the frozen representation tell which perturbation a sample got?",
    limits="With few training steps it measures the scale of the embedding as much as what is in it.",
    params=LinearProbeParams,
    prepare=prepare,
    metrics=(
        Metric(
            name="top1",
            task="linear_probe",
            label="Linear top 1",
            summary="Share of perturbed test samples whose perturbation gets the highest score.",
            compute=lambda ranked: accuracy(ranked, 1),
            headline=True,
        ),
        Metric(
            name="top5",
            task="linear_probe",
            label="Linear top 5",
            summary="Share of perturbed test samples whose perturbation is among the five highest scores.",
            compute=lambda ranked: accuracy(ranked, 5),
            headline=True,
        ),
        Metric(
            name="top1_balanced",
            task="linear_probe",
            label="Linear top 1, balanced",
            summary="Mean over perturbations of the share of their samples that are right.",
            compute=lambda ranked: balanced_accuracy(ranked, 1),
        ),
    ),
    stochastic=lambda params, n_samples: params.solver != "lda",
    details=_details,
)
