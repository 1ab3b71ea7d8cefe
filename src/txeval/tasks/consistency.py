"""Level 3: does a perturbation move its samples the same way? (consistency and magnitude)"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from txeval.compute.arrays import F64, Ints
from txeval.compute.energy import SHARED_SLOTS
from txeval.compute.intervals import Interval, Units, adjusted_share_interval
from txeval.errors import NotComputable
from txeval.metrics.consistency import (
    MAX_SET,
    PValue,
    adjust,
    consistency_permutation_p,
    group_consistency,
    group_energy,
    magnitude_permutation_p,
    tail_p,
)
from txeval.tasks.base import Ceiling, Expression, Metric, Score, Sizes, Task, TaskInputs
from txeval.tasks.blocks import Blocks, RowSubset, cell_lines, subset
from txeval.tasks.ceiling import every_halving

__all__ = ["TASK", "ConsistencyParams"]

Null = Literal["auto", "unexpressed", "permutation"]


@dataclass(frozen=True)
class ConsistencyParams:
    """Parameters of level 3.

    Attributes
    ----------
    null
        "unexpressed": perturbations whose target gene is not expressed; "permutation": random sets of perturbed
        samples; "auto": the first where there are `min_null` of them, else the second.
    threshold_counts, threshold_lognorm
        A target is unexpressed when its mean expression is below: on counts, and on values log-normalised to 10,000
        where the screen holds no counts. Values of another scale have no such threshold.
    p_value
        Against unexpressed targets. "paper": max(#{null >= x}, 1) / K and p < alpha; "reference": #{null >= x} / K and
        p <= alpha; "exact": (1 + #{null >= x}) / (1 + K) and p < alpha.
    draws
        Random sets per perturbation of the permutation null.
    max_controls, min_samples
        Magnitude: at most so many controls; groups of at least so many samples.
    across_batches
        Consistency: only pairs of samples of different batches count.
    blocks
        "cell_line": perturbations are tested within each cell line, where the screen names them, against the null and
        the controls of that line.
    """

    null: Null = "auto"
    threshold_counts: float = 0.15
    threshold_lognorm: float = 0.43
    min_null: int = 20
    wanted_null: int = 1000
    p_value: PValue = "paper"
    alpha: float = 0.05
    draws: int = 1000
    max_controls: int = 1000
    min_samples: int = 5
    across_batches: bool = False
    blocks: Blocks = "none"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}; it must lie between 0 and 1")
        if self.draws < 20 or self.min_null < 2 or self.max_controls < 2 or self.min_samples < 2:
            raise ValueError("draws must be 20 or more; min_null, max_controls and min_samples 2 or more")


@dataclass(frozen=True)
class Consistency:
    """One row per perturbation, and how the null was made.

    Attributes
    ----------
    table
        perturbation, n_samples, in_null, avg_cosine, p_value, p_adjusted, energy_distance, magnitude_p_value,
        magnitude_p_adjusted; NaN where there is none. With several cell lines also cell_line: one row per both.
    """

    table: pd.DataFrame
    params: ConsistencyParams
    notes: tuple[str, ...]
    magnitude_notes: tuple[str, ...]
    magnitude_reason: str


def _gene_means(inputs: TaskInputs, expression: Expression, rows: Ints, scale: str) -> F64:
    """Mean of each gene, from one pass over the expression for all cells and workers of a run."""
    if inputs.kept is None:
        return np.asarray(expression.gene_means(rows, scale=scale))

    def make(folder: Path) -> None:
        np.save(folder / "means.npy", expression.gene_means(rows, scale=scale))

    digest = hashlib.sha256(np.ascontiguousarray(rows).astype("<i8").tobytes()).hexdigest()[:32]
    return np.asarray(np.load(inputs.kept(f"means-{scale}-{digest}", make) / "means.npy"))


def unexpressed_targets(inputs: TaskInputs, rows: Ints | None = None) -> tuple[Ints, str]:
    """Codes of the perturbations whose target gene is measured and not expressed, and how that was decided.

    Parameters
    ----------
    rows
        Samples whose mean expression counts; None: all.
    """
    params: ConsistencyParams = inputs.params
    samples, expression = inputs.samples, inputs.expression
    none = np.empty(0, dtype=np.int64)
    if expression is None:
        return none, "the screen has no expression matrix"
    genes = {gene: i for i, gene in reversed(list(enumerate(expression.genes)))}
    target = np.asarray([genes.get(gene, -1) if gene else -1 for gene in samples.target_genes], dtype=np.int64)
    if not (target >= 0).any():
        return none, "no perturbation targets a measured gene"
    rows = np.arange(samples.n) if rows is None else rows
    try:
        means, scale, threshold = _gene_means(inputs, expression, rows, "counts"), "counts", params.threshold_counts
    except NotComputable:
        try:
            means, scale = _gene_means(inputs, expression, rows, "lognorm"), "log-normalised values"
        except NotComputable as why:
            return none, str(why)
        threshold = params.threshold_lognorm
    low = (target >= 0) & (means[np.maximum(target, 0)] < threshold)
    return np.flatnonzero(low), f"mean expression of the target below {threshold:g} ({scale})"


def prepare(inputs: TaskInputs) -> Consistency:
    """Mean cosine and energy distance of every perturbation, against the null."""
    params: ConsistencyParams = inputs.params
    blocks = cell_lines(inputs.samples, params.blocks)
    if len(blocks) == 1:
        return _within(inputs, None)
    parts, notes = [], [f"{len(blocks)} cell lines, each on its own"]
    magnitude_notes: list[str] = []
    reasons: list[str] = []
    lost: list[str] = []
    for block in blocks:
        inside = replace(
            inputs,
            samples=subset(inputs.samples, block.rows),
            embedding=RowSubset(inputs.embedding, block.rows),
        )
        try:
            part = _within(inside, block.rows)
        except NotComputable as why:
            lost.append(f"{block.name}: {why}")
            continue
        part.table.insert(1, "cell_line", block.name)
        parts.append(part.table)
        notes += [f"{block.name}: {note}" for note in part.notes]
        magnitude_notes += [f"{block.name}: {note}" for note in part.magnitude_notes]
        if part.magnitude_reason:
            reasons.append(f"{block.name}: {part.magnitude_reason}")
    if not parts:
        raise NotComputable("; ".join(lost))
    table = pd.concat(parts, ignore_index=True)
    for column in ("p", "magnitude_p"):
        table[f"{column}_adjusted"] = adjust(table[f"{column}_value"].to_numpy())
    reason = "; ".join(reasons) if len(reasons) == len(parts) else ""
    return Consistency(table, params, (*notes, *lost), (*magnitude_notes, *(() if reason else reasons)), reason)


def _within(inputs: TaskInputs, rows: Ints | None) -> Consistency:
    """Test the perturbations of one block; `rows` are its samples among all."""
    params: ConsistencyParams = inputs.params
    samples = inputs.samples
    n_groups = len(samples.perturbations)
    codes = np.where(samples.is_control, -1, samples.perturbation)
    batch = samples.batch if params.across_batches else None
    n, avg = group_consistency(inputs.embedding, codes, n_groups, batch=batch)
    groups = np.flatnonzero(n > 0)
    if not (n >= 2).any():
        raise NotComputable("no perturbation has two samples")
    paired = np.isfinite(avg)
    if not paired.any():
        raise NotComputable("no perturbation has samples in two batches")

    in_null = np.zeros(n_groups, dtype=bool)
    notes: list[str] = []
    if params.null != "permutation":
        found, how = unexpressed_targets(inputs, rows)
        usable = found[paired[found]]
        if len(usable) >= params.min_null:
            in_null[usable] = True
            notes.append(f"null: {len(usable)} perturbations of unexpressed targets ({how})")
            if len(usable) < params.wanted_null:
                notes.append(f"{params.wanted_null} null perturbations are wanted; p-values are coarse")
        elif params.null == "unexpressed":
            raise NotComputable(
                f"{len(usable)} perturbations have an unexpressed target ({how}); {params.min_null} are needed"
            )
        else:
            notes.append(
                f"null: {params.draws} random sets of perturbed samples per perturbation, stratified by batch, "
                f"because {len(usable)} perturbations have an unexpressed target ({how}; {params.min_null} needed)"
            )
    else:
        notes.append(f"null: {params.draws} random sets of perturbed samples per perturbation, stratified by batch")
    by_permutation = not in_null.any()

    labels = samples.perturbations
    table = pd.DataFrame({"perturbation": labels[groups], "n_samples": n[groups], "in_null": in_null[groups]})
    table["avg_cosine"] = avg[groups]
    p = np.full(n_groups, np.nan)
    scored = paired & ~in_null
    if by_permutation:
        p[scored] = consistency_permutation_p(
            inputs.embedding,
            codes,
            samples.batch,
            labels,
            np.flatnonzero(scored),
            avg,
            draws=params.draws,
            across_batches=params.across_batches,
        )
    else:
        p[scored] = tail_p(avg[scored], avg[in_null], params.p_value)
    table["p_value"] = p[groups]
    table["p_adjusted"] = adjust(table["p_value"].to_numpy())

    energy, reason = np.full(n_groups, np.nan), ""
    q = np.full(n_groups, np.nan)
    magnitude_notes = []
    n_controls = int(samples.is_control.sum())
    if n_controls > params.max_controls:
        magnitude_notes.append(f"{params.max_controls} of {n_controls} controls drawn as reference")
    if not samples.is_control.any():
        reason = "the screen has no controls"
    else:
        energy = group_energy(
            inputs.embedding,
            codes,
            n_groups,
            samples.is_control,
            max_controls=params.max_controls,
            min_samples=params.min_samples,
            device=inputs.device,
        )
        measured = np.isfinite(energy)
        null_energy = energy[measured & in_null]
        others = measured & ~in_null
        if not others.any():
            reason = f"no perturbation has {params.min_samples} samples"
        elif by_permutation:
            thinned = int((n[others] > MAX_SET).sum())
            if thinned:
                magnitude_notes.append(f"{thinned} perturbations thinned to {MAX_SET} samples for the test")
            q[others] = magnitude_permutation_p(
                inputs.embedding,
                codes,
                samples.batch,
                samples.is_control,
                labels,
                np.flatnonzero(others),
                energy,
                draws=params.draws,
                max_controls=params.max_controls,
                device=inputs.device,
            )
        elif len(null_energy) < params.min_null:
            reason = (
                f"{len(null_energy)} null perturbations have {params.min_samples} samples; {params.min_null} needed"
            )
        else:
            q[others] = tail_p(energy[others], null_energy, params.p_value)
    table["energy_distance"] = energy[groups]
    table["magnitude_p_value"] = q[groups]
    table["magnitude_p_adjusted"] = adjust(table["magnitude_p_value"].to_numpy())
    if params.across_batches:
        notes.insert(0, "pairs of different batches")
    return Consistency(table, params, tuple(notes), tuple(magnitude_notes), reason)


def _share(found: Consistency, column: str, chance: float) -> Score:
    if column.startswith("magnitude") and found.magnitude_reason:
        raise NotComputable(found.magnitude_reason)
    table, params = found.table, found.params
    p = table[column].to_numpy(dtype=float)
    scored = np.isfinite(p)
    smallest = params.min_samples if column.startswith("magnitude") else 2
    large = table["n_samples"] >= smallest
    hits = (p[scored] <= params.alpha if params.p_value == "reference" else p[scored] < params.alpha).astype(float)
    # In one batch: no pair across batches. The magnitude has no pairs.
    single = large & table["avg_cosine"].isna() & (smallest == 2)
    left_out = {
        f"perturbations with fewer than {smallest} samples": int((~large).sum()),
        "perturbations in one batch": int(single.sum()),
        "perturbations that are the null": int(table["in_null"].sum()),
        "perturbations without another one in their batches, from which the null is drawn": int(
            (large & ~single & ~table["in_null"] & ~scored).sum()
        ),
    }
    if not scored.any():
        why = "; ".join(f"{reason}: {count}" for reason, count in left_out.items() if count)
        raise NotComputable(f"no perturbation can be tested: {why}")
    n_null = int(table["in_null"].sum())
    resolution = 1.0 / n_null if n_null else 1.0 / (params.draws + 1)
    return Score(
        value=float(hits.mean()),
        chance=chance,
        n_samples=int(table.loc[scored, "n_samples"].sum()),
        n_groups=int(scored.sum()),
        group="perturbation",
        left_out={reason: count for reason, count in left_out.items() if count},
        notes=(*found.notes, *(found.magnitude_notes if column.startswith("magnitude") else ())),
        units=_units(table[scored], hits),
        interval=_interval(table[scored], column, params.alpha, resolution),
    )


def _interval(table: pd.DataFrame, column: str, alpha: float, resolution: float) -> Interval | None:
    """Interval of an adjusted share; None where it is that of its units."""
    if not column.endswith("p_adjusted") or "cell_line" in table:
        return None
    p = table[column.replace("p_adjusted", "p_value")]
    return adjusted_share_interval(p, alpha, "perturbation", resolution=resolution)


def _units(table: pd.DataFrame, hits: F64) -> Units:
    if "cell_line" not in table:
        return Units.single("perturbation", table["perturbation"].to_numpy(), hits)
    (lines, line), (names, name) = (
        np.unique(table[column].astype(str), return_inverse=True) for column in ("cell_line", "perturbation")
    )
    return Units.crossed(("cell_line", "perturbation"), (lines, names), (line, name), hits)


def _memory(sizes: Sizes, params: ConsistencyParams) -> int:
    """Sums of every perturbation, the order of the samples, and what all drawn sets share."""
    shared = 2 * 8 * min(sizes.n, SHARED_SLOTS) ** 2 if params.null != "unexpressed" else 0
    return 3 * 8 * sizes.perturbations * sizes.d + 80 * sizes.n + shared + 4 * params.max_controls * sizes.d


TASK = Task(
    name="consistency",
    level=3,
    title="Perturbation consistency",
    question="Does a perturbation move its samples in one direction, more than a perturbation without effect?",
    limits="A shift common to all perturbed samples looks consistent, and so does a batch of one perturbation.",
    params=ConsistencyParams,
    prepare=prepare,
    memory=_memory,
    metrics=(
        Metric(
            name="consistent",
            task="consistency",
            label="Consistent",
            summary="Share of perturbations whose mean cosine between samples exceeds the null's (p < 0.05).",
            compute=lambda found: _share(found, "p_value", found.params.alpha),
            headline=True,
        ),
        Metric(
            name="consistent_adjusted",
            task="consistency",
            label="Consistent (BH)",
            summary="The same with p-values adjusted by Benjamini-Hochberg.",
            compute=lambda found: _share(found, "p_adjusted", 0.0),
        ),
        Metric(
            name="magnitude",
            task="consistency",
            label="Strong",
            summary="Share of perturbations whose energy distance to the controls exceeds the null's (p < 0.05).",
            compute=lambda found: _share(found, "magnitude_p_value", found.params.alpha),
        ),
        Metric(
            name="magnitude_adjusted",
            task="consistency",
            label="Strong (BH)",
            summary="The same with p-values adjusted by Benjamini-Hochberg.",
            compute=lambda found: _share(found, "magnitude_p_adjusted", 0.0),
        ),
    ),
    stochastic=lambda params, n_samples: False,
    details=lambda found: {"perturbations": found.table},
    # The null reads the mean expression of the target genes.
    needs_expression=True,
    version=2,
    ceiling=Ceiling(
        every_halving,
        "each perturbation's halves against each other, averaged over all ways to halve it: all pairs of its samples, "
        "also those that share a batch. Where the level counts these pairs itself (across_batches: false) it equals "
        "the score of what it is built on, and the magnitude, which holds samples against controls, always does",
    ),
)
