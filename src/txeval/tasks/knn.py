"""Level 4: do neighbours share the perturbation? (kNN classification)"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from txeval.compute.arrays import Ints, take_rows
from txeval.errors import NotComputable
from txeval.metrics.knn import true_class_ranks
from txeval.tasks.accuracy import Ranked, accuracy, balanced_accuracy, perturbation_table
from txeval.tasks.base import Metric, Score, Task, TaskInputs
from txeval.tasks.subsample import Downsample, stratified_draw

__all__ = ["TASK", "KnnParams"]


@dataclass(frozen=True)
class KnnParams:
    """Parameters of level 4.

    Attributes
    ----------
    k
        Number of neighbours.
    components
        Both sets are reduced by a PCA that is fitted on the reference set; embeddings with fewer dimensions stay.
    max_reference
        Reference sets above this size are down-sampled.
    downsample
        "complement" keeps what the draw leaves, as the published code does.
    """

    k: int = 251
    components: int = 32
    max_reference: int = 100_000
    downsample: Downsample = "drawn"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}; it must be 1 or more")
        if self.components < 1:
            raise ValueError(f"components is {self.components}; it must be 1 or more")
        if self.max_reference < 1:
            raise ValueError(f"max_reference is {self.max_reference}; it must be 1 or more")


@dataclass(frozen=True)
class Neighbourhoods:
    """Ranks with the controls as one more class, and without them on both sides."""

    everything: Ranked
    perturbed: Ranked | None
    why_not: str


def prepare(inputs: TaskInputs) -> Neighbourhoods:
    """Rank the true class of every test sample by the votes of its neighbours in the train split."""
    params: KnnParams = inputs.params
    samples = inputs.samples
    reference, queries = inputs.splits["train"], inputs.splits["test"]
    if len(reference) == 0 or len(queries) == 0:
        raise NotComputable("the train or the test split is empty: it takes at least two batches")
    left_out: dict[str, int] = {}
    if len(reference) > params.max_reference:
        strata = np.zeros(len(reference), dtype=np.int64)
        kept = stratified_draw(strata, params.max_reference, inputs.rng("knn"), params.downsample)
        left_out["reference samples beyond max_reference"] = len(reference) - len(kept)
        reference = reference[kept]

    # All controls are one class, whatever their labels.
    n_perturbations = len(samples.perturbations)
    control_labels = np.unique(samples.perturbation[samples.is_control])
    code = samples.perturbation.copy()
    if len(control_labels):
        code[samples.is_control] = control_labels[0]

    def ranked(ref: Ints, query: Ints) -> Ranked:
        result = true_class_ranks(
            take_rows(inputs.embedding, ref),
            code[ref],
            take_rows(inputs.embedding, query),
            code[query],
            k=params.k,
            components=params.components,
            n_classes=n_perturbations,
            threads=inputs.threads,
            device=inputs.device,
        )
        return Ranked(
            rank=result.rank,
            truth=code[query],
            classes=samples.perturbations,
            batch=samples.batch[query],
            batches=samples.batches,
            train_counts=np.bincount(code[ref], minlength=n_perturbations),
            left_out=left_out,
            notes=result.notes,
        )

    everything = ranked(reference, queries)
    ref, query = reference[~samples.is_control[reference]], queries[~samples.is_control[queries]]
    if len(ref) == 0 or len(query) == 0:
        return Neighbourhoods(everything, None, "no perturbed sample in the train or the test split")
    return Neighbourhoods(everything, ranked(ref, query), "")


def _perturbed(top: int, found: Neighbourhoods) -> Score:
    if found.perturbed is None:
        raise NotComputable(found.why_not)
    return accuracy(found.perturbed, top)


def _details(found: Neighbourhoods) -> dict[str, pd.DataFrame]:
    table = perturbation_table(found.everything)
    if found.perturbed is None:
        return {"perturbations": table}
    alone = perturbation_table(found.perturbed).rename(
        columns={"top1": "top1_perturbed", "top5": "top5_perturbed", "median_rank": "median_rank_perturbed"}
    )
    return {"perturbations": table.merge(alone.drop(columns="n_samples"), on="perturbation", how="left")}


TASK = Task(
    name="knn",
    level=4,
    title="Local organisation (kNN)",
    question="Do samples of one perturbation lie next to each other, across batches?",
    limits="Where controls are a class of their own and common, answering 'control' always scores well.",
    params=KnnParams,
    prepare=prepare,
    metrics=(
        Metric(
            name="top1",
            task="knn",
            label="kNN top 1",
            summary="Share of test samples whose perturbation (controls are one more) gets the most votes.",
            compute=lambda found: accuracy(found.everything, 1),
            headline=True,
        ),
        Metric(
            name="top5",
            task="knn",
            label="kNN top 5",
            summary="Share of test samples whose perturbation is among the five with the most votes.",
            compute=lambda found: accuracy(found.everything, 5),
            headline=True,
        ),
        Metric(
            name="top1_perturbed",
            task="knn",
            label="kNN top 1, controls out",
            summary="Top 1 with the controls left out of reference and queries.",
            compute=lambda found: _perturbed(1, found),
        ),
        Metric(
            name="top5_perturbed",
            task="knn",
            label="kNN top 5, controls out",
            summary="Top 5 with the controls left out of reference and queries.",
            compute=lambda found: _perturbed(5, found),
        ),
        Metric(
            name="top1_balanced",
            task="knn",
            label="kNN top 1, balanced",
            summary="Mean over perturbations (controls are one more) of the share of their samples that are right.",
            compute=lambda found: balanced_accuracy(found.everything, 1),
        ),
    ),
    stochastic=lambda params, n_samples: n_samples > params.max_reference,
    details=_details,
)
