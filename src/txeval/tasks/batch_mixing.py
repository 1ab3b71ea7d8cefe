"""Level 1: are batches mixed in the representation? (iLISI)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from txeval.compute.arrays import F64, Ints, Strings, take_rows
from txeval.compute.intervals import Units
from txeval.errors import NotComputable
from txeval.metrics.batch_mixing import ilisi_scores
from txeval.tasks.base import Metric, Score, Task, TaskInputs
from txeval.tasks.subsample import Downsample, stratified_draw

__all__ = ["TASK", "BatchMixingParams"]


@dataclass(frozen=True)
class BatchMixingParams:
    """Parameters of level 1.

    Attributes
    ----------
    perplexity
        Effective number of neighbours; 3 x perplexity are searched.
    include_self
        Whether the sample counts as one of them (it is left out afterwards in any case).
    min_components, variance
        The embedding is reduced by PCA to the larger of `min_components` and the number that reaches `variance`.
    max_samples
        At most this many samples, stratified by batch.
    downsample
        "complement" keeps what the draw leaves, as the published code does.
    """

    perplexity: int = 83
    include_self: bool = True
    min_components: int = 32
    variance: float = 0.9
    max_samples: int = 300_000
    downsample: Downsample = "drawn"

    def __post_init__(self) -> None:
        if self.perplexity < 2:
            raise ValueError(f"perplexity is {self.perplexity}; it must be 2 or more")
        if self.max_samples < 10:
            raise ValueError(f"max_samples is {self.max_samples}; it must be 10 or more")
        if not 0 < self.variance <= 1:
            raise ValueError(f"variance is {self.variance}; it must be above 0 and at most 1")


@dataclass(frozen=True)
class Mixing:
    """iLISI per sample of the test split, and what each batch lends to it as neighbours."""

    scores: F64
    lent: F64
    batch: Ints
    batches: Strings
    perturbation: Ints
    perturbations: Strings
    left_out: Mapping[str, int]
    notes: tuple[str, ...]


def prepare(inputs: TaskInputs) -> Mixing:
    """Find the neighbours of the test samples among themselves and score each of them."""
    params: BatchMixingParams = inputs.params
    rows = inputs.splits["test"]
    if len(rows) == 0:
        raise NotComputable("the test split is empty: whole batches are held out, and there is only one")
    codes = inputs.samples.batch
    left_out: dict[str, int] = {}
    if len(rows) > params.max_samples:
        kept = stratified_draw(codes[rows], params.max_samples, inputs.rng("batch_mixing"), params.downsample)
        left_out["samples beyond max_samples"] = len(rows) - len(kept)
        rows = rows[kept]
    present, local = np.unique(codes[rows], return_inverse=True)
    if len(present) < 2:
        name = inputs.samples.batches[present[0]]
        raise NotComputable(f"the test split holds one batch ({name}): mixing needs at least two")
    if len(rows) < 10:
        raise NotComputable(f"the test split holds {len(rows)} samples: too few for neighbourhoods")
    result = ilisi_scores(
        take_rows(inputs.embedding, rows),
        local,
        perplexity=params.perplexity,
        include_self=params.include_self,
        min_components=params.min_components,
        variance=params.variance,
    )
    return Mixing(
        scores=result.scores,
        lent=result.lent,
        batch=local.astype(np.int64),
        batches=inputs.samples.batches[present],
        perturbation=inputs.samples.perturbation[rows],
        perturbations=inputs.samples.perturbations,
        left_out=left_out,
        notes=result.notes,
    )


def _ilisi(mixing: Mixing) -> Score:
    n_batches = len(mixing.batches)
    per_sample = mixing.lent / np.bincount(mixing.batch, minlength=n_batches)
    return Score(
        value=float(mixing.scores.mean()),
        n_samples=len(mixing.scores),
        n_groups=n_batches,
        group="batch",
        left_out=mixing.left_out,
        notes=mixing.notes,
        units=Units.crossed(
            ("batch", "perturbation"),
            (mixing.batches, mixing.perturbations),
            (mixing.batch, mixing.perturbation),
            mixing.scores + per_sample[mixing.batch],
        ),
    )


def _details(mixing: Mixing) -> dict[str, pd.DataFrame]:
    frame = pd.DataFrame({"batch": mixing.batches[mixing.batch], "ilisi": mixing.scores})
    table = frame.groupby("batch", sort=True)["ilisi"].agg(["size", "mean"])
    return {"batches": table.rename(columns={"size": "n_samples", "mean": "ilisi"}).reset_index()}


def _normalized(scores: pd.DataFrame) -> pd.DataFrame:
    """Divide every iLISI by the one of the raw random baseline on the same samples."""
    mine = scores[(scores["task"] == "batch_mixing") & (scores["metric"] == "ilisi")]
    keys = ["screen_fingerprint", "protocol_fingerprint"]
    baseline = mine[(mine["source"] == "random") & (mine["post_processing"] == "raw") & mine["value"].notna()]
    divisors = baseline.groupby(keys, dropna=False)["value"].mean()
    rows = mine.copy()
    divisor = [divisors.get(key, np.nan) for key in rows[keys].itertuples(index=False, name=None)]
    rows["metric"] = "ilisi_normalized"
    for column in ("value", "low", "high"):
        rows[column] = rows[column].astype(float) / np.asarray(divisor, dtype=float)
    rows["chance"] = 1.0
    missing = rows["value"].isna() & (rows["reason"].fillna("") == "")
    rows.loc[missing, "reason"] = "no iLISI of the random baseline (raw) to divide by"
    return rows


TASK = Task(
    name="batch_mixing",
    level=1,
    title="Batch mixing",
    question="Do samples of different batches mix in the representation?",
    limits="A representation without any biology mixes perfectly: read it beside the other levels.",
    params=BatchMixingParams,
    prepare=prepare,
    metrics=(
        Metric(
            name="ilisi",
            task="batch_mixing",
            label="iLISI",
            summary="Mean effective number of batches among a sample's neighbours, from 1 to the number of batches.",
            compute=_ilisi,
            low=1.0,
            high=float("inf"),
        ),
        Metric(
            name="ilisi_normalized",
            task="batch_mixing",
            label="iLISI / random",
            summary="iLISI divided by that of the raw random baseline on the same samples, as the paper's Table 2.",
            derive=_normalized,
            multiple_of="ilisi",
            low=0.0,
            high=float("inf"),
            headline=True,
        ),
    ),
    stochastic=lambda params, n_samples: n_samples > params.max_samples,
    details=_details,
)
