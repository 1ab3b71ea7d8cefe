"""Level 2: can a linear layer tell the perturbation? (linear probing)"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from txeval.compute.arrays import Ints
from txeval.compute.memory import held_rows
from txeval.errors import NotComputable
from txeval.metrics.convergent_probe import WEIGHT_DECAYS, convergent_probe
from txeval.metrics.linear_probe import linear_probe
from txeval.tasks.accuracy import Ranked, accuracy, balanced_accuracy, joined, perturbation_table
from txeval.tasks.base import Ceiling, Metric, Sizes, Task, TaskInputs, batch_and_perturbation
from txeval.tasks.blocks import Blocks, cell_lines
from txeval.tasks.ceiling import HALVES_OF_TEST, shared_split
from txeval.tasks.subsample import stratified_draw

__all__ = ["TASK", "LinearProbeParams"]


@dataclass(frozen=True)
class LinearProbeParams:
    """Parameters of level 2.

    Attributes
    ----------
    solver
        "adamw" is the paper's recipe; "convergent" standardises the inputs and is solved until it converges, with the
        weight decay chosen on held-out train batches (nothing of the recipe is used, the seed neither);
        "softmax-short" and "lda" are other, cheaper probes, and say so in every row.
    drop_last
        Whether the last partial minibatch of an epoch is left out, as in the published code.
    weight_decays, validation, tolerance, max_iterations
        Of "convergent": penalties to choose from, share of the train batches to choose on, when it has converged.
    max_train
        Training samples above this number are drawn by class; 0: all.
    blocks
        "cell_line": a probe for each cell line, where the screen names them.
    """

    solver: Literal["adamw", "convergent", "softmax-short", "lda"] = "adamw"
    epochs: int = 250
    batch_size: int = 2048
    lr: float = 1e-3
    weight_decay: float = 1e-6
    warmup_epochs: int = 10
    warmup_lr: float = 3e-5
    drop_last: bool = False
    weight_decays: tuple[float, ...] = WEIGHT_DECAYS
    validation: float = 0.3
    tolerance: float = 1e-6
    max_iterations: int = 300
    max_train: int = 0
    blocks: Blocks = "none"

    def __post_init__(self) -> None:
        if not self.weight_decays or min(self.weight_decays) <= 0 or not 0 < self.validation < 1:
            raise ValueError("weight_decays must be above 0 and validation between 0 and 1")
        if self.tolerance <= 0 or self.max_iterations < 1 or self.max_train < 0:
            raise ValueError("tolerance must be above 0, max_iterations 1 or more, max_train 0 or more")
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
    pairs = [
        (train[~samples.is_control[train]], test[~samples.is_control[test]]) for train, test in inputs.in_turn("test")
    ]
    if not pairs or min(map(len, pairs[0])) == 0:
        raise NotComputable("the train or the test split holds no perturbed sample: it takes at least two batches")
    classes = np.unique(samples.perturbation[np.concatenate([train for train, _ in pairs])])
    if len(classes) < 2:
        raise NotComputable("the train split holds one perturbation: there is nothing to tell apart")
    left_out: dict[str, int] = {}
    blocks = cell_lines(samples, params.blocks)
    parts = []
    for train, test in pairs:
        if params.max_train and len(train) > params.max_train:
            train = inputs.by_name(train)
            kept = stratified_draw(samples.perturbation[train], params.max_train, inputs.rng("linear_probe", "train"))
            left_out["train samples beyond max_train"] = len(train) - len(kept)
            train = np.sort(train[kept])
        for block in blocks:
            inside = block.within(train), block.within(test)
            try:
                parts.append(_probe(inputs, *inside, classes, block.name))
            except NotComputable as why:
                if len(blocks) == 1 and len(pairs) == 1:
                    raise
                reason = f"test samples of cell line {block.name}: {why}" if block.name else f"test samples: {why}"
                left_out[reason] = left_out.get(reason, 0) + len(inside[1])
    if not parts:
        raise NotComputable("no cell line has two perturbations in train and one of them in test")
    many = (f"a probe for each of {len(blocks)} cell lines",) if len(blocks) > 1 else ()
    ranked = joined(parts, many)
    return replace(ranked, left_out=left_out)


def _probe(inputs: TaskInputs, train: Ints, test: Ints, classes: Ints, line: str) -> Ranked:
    params: LinearProbeParams = inputs.params
    samples = inputs.samples
    y_train = np.searchsorted(classes, samples.perturbation[train])
    y_test = np.searchsorted(classes, samples.perturbation[test])
    X_train, X_test = held_rows(inputs.embedding, train), held_rows(inputs.embedding, test)
    if params.solver == "convergent":
        result = convergent_probe(
            X_train,
            y_train,
            X_test,
            y_test,
            batch=np.asarray(samples.batches)[samples.batch[train]],
            weight_decays=params.weight_decays,
            validation=params.validation,
            tolerance=params.tolerance,
            max_iterations=params.max_iterations,
            device=inputs.device,
            threads=inputs.threads,
        )
    else:
        result = linear_probe(
            X_train,
            y_train,
            X_test,
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
    notes = (f"solver: {params.solver}, {result['steps']} training steps", *result["notes"])
    labels, units = batch_and_perturbation(samples, test)
    return Ranked(
        rank=result["rank"],
        tied=result["tied"],
        ahead=np.where(result["ahead"] < 0, -1, np.unique(y_train)[result["ahead"]]),
        truth=y_test.astype(np.int64),
        classes=samples.perturbations[classes],
        unit_labels=labels,
        unit_codes=units,
        train_counts=np.bincount(y_train, minlength=len(classes)),
        notes=tuple(f"{line}: {note}" for note in notes) if line else notes,
    )


def _details(ranked: Ranked) -> dict[str, pd.DataFrame]:
    return {"perturbations": perturbation_table(ranked)}


def _memory(sizes: Sizes, params: LinearProbeParams) -> int:
    """Weights of all classes: as they are trained, or with the memory of L-BFGS; codes and ranks of the samples."""
    weights = sizes.perturbations * (sizes.d + 1)
    copies = 8 * (2 * 10 + 6) if params.solver == "convergent" else 4 * 6
    return copies * weights + 60 * (sizes.train + sizes.test)


TASK = Task(
    name="linear_probe",
    level=2,
    title="Linear separability",
    question="Can one linear layer on the frozen representation tell which perturbation a sample got?",
    limits="Trained by the paper's recipe it measures the scale of the embedding as much as what is in it.",
    params=LinearProbeParams,
    prepare=prepare,
    memory=_memory,
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
    stochastic=lambda params, n_samples: params.solver not in ("lda", "convergent") or 0 < params.max_train < n_samples,
    details=_details,
    ceiling=Ceiling(
        shared_split("test"),
        HALVES_OF_TEST,
    ),
    version=4,
)
