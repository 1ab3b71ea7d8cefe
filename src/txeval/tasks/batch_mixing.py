"""Level 1: are batches mixed in the representation? (iLISI)"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from txeval.compute.arrays import F64, Ints, Strings
from txeval.compute.memory import held_rows
from txeval.errors import NotComputable
from txeval.metrics.batch_mixing import ilisi_scores
from txeval.tasks.base import Ceiling, Metric, Score, Sizes, Task, TaskInputs, batch_and_perturbation, crossed_units
from txeval.tasks.blocks import Blocks, cell_lines
from txeval.tasks.ceiling import mixed_batches
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
    mixing_draws
        Random assignments of the samples to batches for the expectation under perfect mixing.
    biology
        Whether `mixing_and_biology` is given, which needs the retrieval precision of level 4.
    blocks
        "cell_line": neighbours within one cell line, where the screen names them.
    """

    perplexity: int = 83
    include_self: bool = True
    min_components: int = 32
    variance: float = 0.9
    max_samples: int = 300_000
    downsample: Downsample = "drawn"
    mixing_draws: int = 10
    biology: bool = False
    blocks: Blocks = "none"

    def __post_init__(self) -> None:
        if self.perplexity < 2:
            raise ValueError(f"perplexity is {self.perplexity}; it must be 2 or more")
        if self.mixing_draws < 1:
            raise ValueError(f"mixing_draws is {self.mixing_draws}; it must be 1 or more")
        if self.max_samples < 10:
            raise ValueError(f"max_samples is {self.max_samples}; it must be 10 or more")
        if not 0 < self.variance <= 1:
            raise ValueError(f"variance is {self.variance}; it must be above 0 and at most 1")


@dataclass(frozen=True)
class Mixing:
    """iLISI per sample of the test split, also under perfect mixing, and what each batch lends as neighbours.

    `lent` and `expected_lent` are per sample: the part of its batch, shared evenly.
    """

    scores: F64
    lent: F64
    expected: F64
    expected_lent: F64
    batch: Ints
    batches: Strings
    unit_labels: tuple[Strings, Strings]
    unit_codes: tuple[Ints, Ints]
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
        rows = inputs.by_name(rows)
        kept = stratified_draw(codes[rows], params.max_samples, inputs.rng("batch_mixing"), params.downsample)
        left_out["samples beyond max_samples"] = len(rows) - len(kept)
        rows = np.sort(rows[kept])
    parts = []
    notes: list[str] = []
    blocks = cell_lines(inputs.samples, params.blocks)
    for block in blocks:
        inside = block.within(rows)
        try:
            parts.append((inside, *_mixed(inputs, inside, notes, block.name)))
        except NotComputable as why:
            if len(blocks) == 1:
                raise
            left_out[f"samples of cell line {block.name}: {why}"] = len(inside)
    if not parts:
        raise NotComputable("no cell line has two batches and ten samples in the test split")
    if len(blocks) > 1:
        notes.insert(0, f"neighbours within each of {len(parts)} cell lines")
    used, scores, lent, expected, expected_lent = (np.concatenate(column) for column in zip(*parts, strict=True))
    present, local = np.unique(codes[used], return_inverse=True)
    labels, units = batch_and_perturbation(inputs.samples, used)
    return Mixing(
        scores=scores,
        lent=lent,
        expected=expected,
        expected_lent=expected_lent,
        batch=local.reshape(-1).astype(np.int64),
        batches=inputs.samples.batches[present],
        unit_labels=labels,
        unit_codes=units,
        left_out=left_out,
        notes=tuple(dict.fromkeys(notes)),
    )


def _mixed(inputs: TaskInputs, rows: Ints, notes: list[str], line: str) -> tuple[F64, F64, F64, F64]:
    """Scores, lent, expected and expected_lent of samples among themselves."""
    params: BatchMixingParams = inputs.params
    present, local = np.unique(inputs.samples.batch[rows], return_inverse=True)
    where = f"cell line {line}" if line else "the test split"
    if len(present) < 2:
        names = ", ".join(str(inputs.samples.batches[code]) for code in present)
        raise NotComputable(f"{where} holds one batch ({names}): mixing needs at least two")
    if len(rows) < 10:
        raise NotComputable(f"{where} holds {len(rows)} samples: too few for neighbourhoods")
    result = ilisi_scores(
        held_rows(inputs.embedding, rows),
        local,
        perplexity=params.perplexity,
        include_self=params.include_self,
        min_components=params.min_components,
        variance=params.variance,
        mixing_draws=params.mixing_draws,
        threads=inputs.threads,
        device=inputs.device,
    )
    notes += [f"{line}: {note}" if line else note for note in result.notes]
    sizes = np.bincount(local, minlength=len(present))
    return result.scores, (result.lent / sizes)[local], result.expected, (result.expected_lent / sizes)[local]


def _ilisi(mixing: Mixing) -> Score:
    return _score(mixing, float(mixing.scores.mean()), np.ones(len(mixing.scores)))


def _perfect(mixing: Mixing) -> Score:
    expected = float(mixing.expected.mean())
    score = _score(mixing, float(mixing.scores.mean()) / expected, mixing.expected + mixing.expected_lent)
    return replace(score, notes=(*score.notes, f"expected iLISI under perfect mixing: {expected:.4g}"))


def _score(mixing: Mixing, value: float, denominator: F64) -> Score:
    # Deviations about a mean over pairs of batches are too small by 1 - 2 / B, not only by the 1 - 1 / B of one mean.
    n = len(mixing.batches)
    raised = math.sqrt((n - 1) / (n - 2)) if n > 2 else 1.0
    around = value * denominator
    return Score(
        value=value,
        n_samples=len(mixing.scores),
        n_groups=len(mixing.batches),
        group="batch",
        left_out=mixing.left_out,
        notes=mixing.notes,
        units=crossed_units(
            mixing.unit_labels,
            mixing.unit_codes,
            mixing.scores + mixing.lent,
            denominator,
            alone=around + raised * (mixing.scores + mixing.lent - around),
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


#: Where the biology stands that mixing may have cost.
BIOLOGY = ("knn", "map")


def _with_biology(scores: pd.DataFrame) -> pd.DataFrame:
    """Mixing times the share of the retrieval precision that is not chance, a row where both are known."""
    keys = ["screen_fingerprint", "protocol_fingerprint", "model", "post_processing"]
    mixing = scores[(scores["task"] == "batch_mixing") & (scores["metric"] == "ilisi_perfect")]
    biology = scores[(scores["task"] == BIOLOGY[0]) & (scores["metric"] == BIOLOGY[1])]
    rows = []
    for _, row in mixing.iterrows():
        other = biology[(biology[keys] == row[keys]).all(axis=1)]
        if pd.notna(row["seed"]) and other["seed"].notna().any():
            other = other[other["seed"] == row["seed"]]
        rows.append({**row, **_joined(row, other)})
    return pd.DataFrame(rows, columns=mixing.columns)


def _joined(row: pd.Series[Any], other: pd.DataFrame) -> dict[str, object]:
    made: dict[str, object] = {
        "metric": "mixing_and_biology",
        "chance": 0.0,
        "chance_low": np.nan,
        "chance_high": np.nan,
        "low": np.nan,
        "high": np.nan,
        "interval_unit": "",
        "interval_method": "",
    }
    known = other[other["value"].notna()]
    if pd.isna(row["value"]) or not len(known):
        why = (
            row["reason"]
            if pd.isna(row["value"])
            else "it needs the retrieval precision of level 4 (knn/map), which was not computed"
        )
        return {**made, "value": np.nan, "status": "failed", "reason": why}
    precision, chance = float(known["value"].mean()), float(known["chance"].mean())
    kept = max(0.0, 1 - chance / precision) if precision > 0 else 0.0
    text = f"iLISI / perfect mixing {float(row['value']):.3g}; knn/map {precision:.3g}, by chance {chance:.3g}"
    return {
        **made,
        "value": float(row["value"]) * kept,
        "notes": " | ".join(filter(None, [row["notes"], text])),
        "interval_note": "no interval: it joins scores of two levels",
    }


def _memory(sizes: Sizes, params: BatchMixingParams) -> int:
    """The samples as they are searched (at most 2.5 times), at worst in all their dimensions, and the relabellings."""
    samples = min(sizes.test, params.max_samples)
    return samples * (4 * (4 * sizes.d + 1) + 8 * (params.mixing_draws + 1) + 100)


TASK = Task(
    name="batch_mixing",
    level=1,
    title="Batch mixing",
    question="Do samples of different batches mix in the representation?",
    limits="A representation without any biology mixes perfectly: mixing_and_biology shows what it cost.",
    params=BatchMixingParams,
    prepare=prepare,
    memory=_memory,
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
        Metric(
            name="ilisi_perfect",
            task="batch_mixing",
            label="iLISI / perfect mixing",
            summary="iLISI divided by its expectation if batches, in their real sizes, were assigned at random.",
            compute=_perfect,
            low=0.0,
            high=float("inf"),
        ),
        Metric(
            name="mixing_and_biology",
            task="batch_mixing",
            label="Mixing with biology",
            summary="iLISI / perfect mixing, times the share of the retrieval precision (knn/map) that is not chance.",
            derive=_with_biology,
            asked=lambda params: params.biology,
            low=0.0,
            high=float("inf"),
        ),
    ),
    stochastic=lambda params, n_samples: n_samples > params.max_samples,
    details=_details,
    ceiling=Ceiling(mixed_batches, "batches are dealt at random to the test samples: perfect mixing"),
    version=2,
)
