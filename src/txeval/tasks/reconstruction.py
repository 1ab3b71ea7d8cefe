"""Level 6: can the expression be decoded from the representation? (reconstruction, Structural Integrity)"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from txeval.compute.arrays import F32, F64, Bools, Ints, Rows, Strings, row_blocks
from txeval.compute.correlation import GENE_TILE, Spearman, correlation_influence, spearman_of_ranks, twice_ranks
from txeval.compute.decoder import (
    CLOSED_FORM,
    PANEL_ELEMENTS,
    Decoder,
    DecoderKind,
    fit_closed_form,
    fit_decoder,
    hidden_widths,
)
from txeval.compute.deletion import correlation_gap
from txeval.compute.groups import add_to_groups
from txeval.compute.intervals import Units, with_margins
from txeval.compute.memory import bounded, held_rows, scratch_folder, working
from txeval.errors import NotComputable
from txeval.metrics.convergent_probe import validation_rows
from txeval.metrics.profiles import (
    LinearSums,
    ProfileCells,
    ProfileParts,
    ProfileReference,
    ProfileSums,
    ProfileTruth,
    profile_parts,
)
from txeval.metrics.reconstruction import (
    ConstantTruth,
    GeneMoments,
    IntegritySums,
    StructuralIntegrity,
    gene_mean,
)
from txeval.tasks.base import (
    Ceiling,
    Expression,
    Metric,
    Score,
    Sizes,
    Task,
    TaskInputs,
    batch_and_perturbation,
    crossed_units,
)
from txeval.tasks.blocks import Blocks, RowSubset
from txeval.tasks.ceiling import shared_split
from txeval.tasks.measured import Measured, Scored, expression_blocks, measured, scored_samples

__all__ = ["TASK", "ReconstructionParams"]

#: The published code scores minibatches of this size.
SCORED_BATCH = 512

#: Share of the train batches that the penalty of "ridge" is chosen on.
HELD_OUT = 0.3

#: The recipe was made for thousands of steps; with fewer than this its weights stay near their random start.
FEW_STEPS = 1000

#: What a correlation loses without a whole batch or perturbation is taken over every so many of the sampled genes.
GAP_STEP = 4


@dataclass(frozen=True)
class ReconstructionParams:
    """Parameters of level 6.

    Attributes
    ----------
    decoder
        "linear": two stacked linear layers (paper); "mlp": three hidden ReLU layers (published code);
        "least_squares": the optimum of the first in closed form; "ridge": the same with a penalty that is chosen on
        held-out train batches.
    hidden
        Width of the hidden layers; 0: interpolated between the embedding's and the number of genes.
    constant_truth
        A gene that is constant in the scored samples: "leave_out", or "zero" as the published code.
    score_every
        Score only every so many minibatches of 512 samples; 100 is what the published code does.
    blocks
        "cell_line": controls and perturbations of each cell line apart, where the screen names them; the decoder is
        one for all.
    """

    decoder: DecoderKind = "linear"
    hidden: int = 0
    epochs: int = 30
    batch_size: int = 512
    lr: float = 1e-4
    weight_decay: float = 1e-6
    warmup_epochs: int = 10
    warmup_lr: float = 3e-5
    constant_truth: ConstantTruth = "leave_out"
    score_every: int = 1
    blocks: Blocks = "none"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.score_every < 1 or self.hidden < 0:
            raise ValueError("epochs, batch_size and score_every must be 1 or more, hidden 0 or more")
        if self.lr <= 0 or self.warmup_lr <= 0 or self.weight_decay < 0 or self.warmup_epochs < 0:
            raise ValueError("lr and warmup_lr must be above 0, weight_decay and warmup_epochs 0 or more")


@dataclass(frozen=True)
class Contributions:
    """What every scored sample contributes to each score.

    Attributes
    ----------
    labels, codes
        Batches and perturbations of the samples as units; see `batch_and_perturbation`.
    squared, absolute
        (n,) mean over genes of the squared and of the absolute error.
    total
        (n,) mean over genes of the squared distance of the truth from its grand mean.
    pearson, spearman
        (n,) influence on the mean over genes.
    distance, maximum
        (n,) parts of the Structural Integrity's sums over batches; 0 in batches without controls.
    """

    labels: tuple[Strings, Strings]
    codes: tuple[Ints, Ints]
    squared: F64
    absolute: F64
    total: F64
    pearson: F64
    spearman: F64
    distance: F64
    maximum: F64

    def units(
        self, numerator: F64, denominator: F64 | None = None, *, offset: float = 0.0, scale: float = 1.0
    ) -> Units:
        """Contributions to one score by batch and perturbation."""
        used = slice(None) if denominator is None else denominator > 0
        return crossed_units(
            self.labels,
            (self.codes[0][used], self.codes[1][used]),
            numerator[used],
            None if denominator is None else denominator[used],
            offset=offset,
            scale=scale,
        )


@dataclass(frozen=True)
class ProfileScores:
    """Correlation of decoded and measured effects of perturbations, for both references.

    Attributes
    ----------
    table
        perturbation, cell_line ("" where there is one block), n_samples, pearson_delta, pearson_delta_perturbed_mean.
    constant
        Perturbations whose decoded effect is constant.
    reasons
        Column -> why it has no values.
    left_out
        Samples in batches without controls.
    parts
        Column -> contributions by batch, their groups as rows of `table`.
    batches
        Names of the batches of `parts`.
    """

    table: pd.DataFrame
    constant: int
    reasons: Mapping[str, str]
    left_out: int
    parts: Mapping[str, ProfileParts]
    batches: Strings


@dataclass(frozen=True)
class Decoded:
    """Sums over the scored samples; no matrix of predictions."""

    genes: Strings
    batches: Strings
    samples: Contributions
    moments: GeneMoments
    spearman: Spearman
    integrity: StructuralIntegrity | NotComputable
    profiles: ProfileScores
    params: ReconstructionParams
    notes: tuple[str, ...]

    @property
    def constant_true(self) -> Bools:
        """(g,) genes whose measured expression is the same in all samples."""
        return self.moments.constant_true | self.spearman.constant_true

    @property
    def constant_pred(self) -> Bools:
        """(g,) the same of the decoded one, made by rows or by columns: the two differ by rounding."""
        return self.moments.constant_pred | self.spearman.constant_pred


def _rows_of(expression: Expression, rows: Ints) -> F32:
    out = np.empty((len(rows), len(expression.genes)), dtype=np.float32)
    for part, block in expression.blocks(rows):
        out[part] = block
    return out


def prepare(inputs: TaskInputs) -> Decoded:
    """Train the decoder on train, decode heldout, and sum up how they differ."""
    found = prepare_together([inputs])[0]
    if isinstance(found, NotComputable):
        raise found
    return found


def prepare_together(several: Sequence[TaskInputs]) -> list[Decoded | NotComputable]:
    """Prepare embeddings and post-processings of one screen, split and parameters with one pass over its expression.

    Each comes out as it would alone: what they share is reading, and what follows from the measured expression.
    """
    first = several[0]
    try:
        expression, pairs, rows, notes = _asked(first)
    except NotComputable as why:
        return [why for _ in several]
    fitted = [_fitted(several, expression, train) for train, _ in pairs]
    scored = scored_samples(first, rows)
    truth = measured(first, expression, scored)
    made: list[_Scoring | NotComputable] = []
    with bounded(working() // len(several), scratch_folder()):
        for i, inputs in enumerate(several):
            mine = [each[i] for each in fitted]
            wrong = [decoder for decoder, _ in mine if isinstance(decoder, NotComputable)]
            if wrong:
                made.append(wrong[0])
                continue
            remarks = tuple(dict.fromkeys(remark for _, remark in mine if remark))
            asked = [
                (decoder, those)
                for (decoder, _), (_, those) in zip(mine, pairs, strict=True)
                if not isinstance(decoder, NotComputable)
            ]
            made.append(_Scoring(inputs, asked, scored, truth, (*notes, *remarks)))
    left = [scoring for scoring in made if isinstance(scoring, _Scoring)]
    for part, block in expression_blocks(expression, rows):
        for scoring in left:
            scoring.add(part, block)
    correlations = spearman_of_ranks([scoring.decoders.columns for scoring in left], truth.ranks) if left else []
    for scoring, found in zip(left, correlations, strict=True):
        scoring.spearman = found
    return [one if isinstance(one, NotComputable) else one.finish(expression.genes) for one in made]


def _asked(inputs: TaskInputs) -> tuple[Expression, list[tuple[Ints, Ints]], Ints, list[str]]:
    """Expression, rows to train on with those that are then decoded, rows to score, and notes."""
    params: ReconstructionParams = inputs.params
    expression = inputs.expression
    if expression is None:
        raise NotComputable("the screen has no expression matrix to reconstruct")
    pairs, rows = inputs.in_turn("heldout"), inputs.splits["heldout"]
    train = pairs[0][0] if pairs else inputs.splits["train"]
    if len(train) < 2:
        raise NotComputable(f"the train split has {len(train)} samples: a decoder needs at least two")
    if len(rows) < 2:
        raise NotComputable(f"the heldout split has {len(rows)} samples: correlations need at least two")
    steps = 0 if params.decoder in CLOSED_FORM else params.epochs * math.ceil(len(train) / params.batch_size)
    trained = f", {steps} training steps" if steps else ""
    notes = [f"decoder: {params.decoder}{trained}", expression.note]
    if 0 < steps < FEW_STEPS:
        notes.append(f"fewer than {FEW_STEPS} training steps: the decoder is undertrained on a screen of this size")
    if params.score_every > 1:
        rows = rows[(np.arange(len(rows)) // SCORED_BATCH) % params.score_every == 0]
        notes.append(f"every {params.score_every}th minibatch of {SCORED_BATCH} scored")
    return expression, pairs, rows, notes


def _fitted(
    several: Sequence[TaskInputs], expression: Expression, train: Ints
) -> list[tuple[Decoder | NotComputable, str]]:
    """Decoder of each embedding, and how its penalty was chosen; in closed form from one pass over the expression."""
    params: ReconstructionParams = several[0].params
    held: list[tuple[Bools | None, str]] = [(None, "") for _ in several]
    if params.decoder == "ridge":
        samples = several[0].samples
        held = [
            validation_rows(
                RowSubset(inputs.embedding, train),
                np.asarray(samples.batches)[samples.batch[train]],
                np.zeros(len(train), dtype=np.int64),
                HELD_OUT,
            )
            for inputs in several
        ]
    if params.decoder in CLOSED_FORM:
        fitted = fit_closed_form(
            [inputs.embedding for inputs in several],
            lambda rows: expression.blocks(rows, max_elements=PANEL_ELEMENTS),
            train,
            kind=params.decoder,
            held_out=[mask for mask, _ in held],
            device=several[0].device,
        )
        return [
            (
                decoder,
                "" if decoder.penalty is None else f"penalty {decoder.penalty:g}, chosen by the squared error on {how}",
            )
            for decoder, (_, how) in zip(fitted, held, strict=True)
        ]
    found: list[tuple[Decoder | NotComputable, str]] = []
    for inputs in several:
        try:
            decoder = fit_decoder(
                inputs.embedding,
                lambda chosen: _rows_of(expression, chosen),
                train,
                kind=params.decoder,
                hidden=params.hidden or None,
                epochs=params.epochs,
                batch_size=params.batch_size,
                lr=params.lr,
                weight_decay=params.weight_decay,
                warmup_epochs=params.warmup_epochs,
                warmup_lr=params.warmup_lr,
                seed=inputs.seed,
                device=inputs.device,
            )
        except NotComputable as why:
            found.append((why, ""))
            continue
        found.append((decoder, ""))
    return found


class _Decoders:
    """Predictions for the scored samples, each by the decoder that did not learn from it.

    Parameters
    ----------
    embedding
        (n, d) rows on demand.
    rows
        (m,) the scored samples.
    parts
        Decoders and the samples that each decodes.
    """

    def __init__(self, embedding: Rows, rows: Ints, parts: Sequence[tuple[Decoder, Ints]]) -> None:
        self.embedded = held_rows(embedding, rows)
        self.decoders = [decoder for decoder, _ in parts]
        of = np.zeros(int(embedding.shape[0]), dtype=np.int64)
        for i, (_, asked) in enumerate(parts):
            of[asked] = i
        self.of = of[rows]

    @property
    def linear(self) -> bool:
        """Whether they have no hidden layers."""
        return all(len(decoder.weights) == 1 for decoder in self.decoders)

    def predict(self, which: slice | Ints) -> F32:
        """(k, g) some of the samples, decoded."""
        x, of = self.embedded[which], self.of[which]
        if len(self.decoders) == 1:
            return self.decoders[0].predict(x)
        out = np.empty((len(x), self.decoders[0].widths[-1]), dtype=np.float32)
        for i, decoder in enumerate(self.decoders):
            out[of == i] = decoder.predict(x[of == i])
        return out

    def columns(self, genes: slice) -> F32:
        """(k, m) some genes of all samples, gene by gene."""
        if len(self.decoders) == 1:
            return self.decoders[0].predict_columns(self.embedded, genes)
        out = np.empty((len(range(*genes.indices(self.decoders[0].widths[-1]))), len(self.of)), dtype=np.float32)
        for i, decoder in enumerate(self.decoders):
            mine = np.flatnonzero(self.of == i)
            out[:, mine] = decoder.predict_columns(RowSubset(self.embedded, mine), genes)
        return out

    def profiles(self, scored: Scored, truth: ProfileTruth) -> ProfileSums:
        """Profiles of decoders without hidden layers, from sums of the embedding."""
        d = self.embedded.shape[1]
        parts = []
        for i, decoder in enumerate(self.decoders):
            sums = np.zeros((len(scored.groups), d)), np.zeros((scored.n_batches, d))
            counts = np.zeros(len(scored.groups), dtype=np.int64), np.zeros(scored.n_batches, dtype=np.int64)
            mine = np.flatnonzero(self.of == i)
            for block in row_blocks(len(mine), d):
                rows = mine[block]
                x = self.embedded[rows] - (0.0 if decoder.centre is None else decoder.centre.astype(np.float64))
                group, batch = scored.group[rows], scored.batch[rows]
                add_to_groups(sums[0], counts[0], x, group)
                add_to_groups(sums[1], counts[1], x, np.where(group == -1, batch, -1))
            parts.append(LinearSums(sums[0], sums[1], counts[0], counts[1], decoder.weights[0], decoder.biases[0]))
        return ProfileSums.of_linear(parts, truth)


class _Scoring:
    """One embedding's predictions held against the measured expression, block by block; no prediction is kept."""

    def __init__(
        self,
        inputs: TaskInputs,
        parts: Sequence[tuple[Decoder, Ints]],
        scored: Scored,
        truth: Measured,
        notes: tuple[str, ...],
    ) -> None:
        self.inputs, self.scored, self.truth, self.notes = inputs, scored, truth, notes
        n, g = truth.n, truth.g
        self.decoders = _Decoders(inputs.embedding, scored.rows, parts)
        self.moments = GeneMoments(g)
        self.sums = IntegritySums(g, scored.n_batches)
        self.squared, self.absolute, self.residual = np.zeros((3, n))
        self.linear = self.decoders.linear
        self.profiles = (
            self.decoders.profiles(scored, truth.profiles)
            if self.linear
            else ProfileSums(g, len(scored.groups), scored.n_batches, truth=truth.profiles)
        )
        self.centre = self._control_errors()
        self.spearman: Spearman | None = None

    def _control_errors(self) -> F32:
        """Mean over the controls of every batch of the decoder's error: (n_batches, g)."""
        scored, g = self.scored, self.truth.g
        total, count = np.zeros((scored.n_batches, g)), np.zeros(scored.n_batches, dtype=np.int64)
        rows = np.flatnonzero(scored.control)
        for part in row_blocks(len(rows), g):
            add_to_groups(total, count, self.decoders.predict(rows[part]), scored.batch[rows[part]])
        return np.asarray(total / np.maximum(1, count)[:, None] - self.truth.centre, dtype=np.float32)

    def add(self, part: slice, block: Any) -> None:
        """Score some samples."""
        scored, g = self.scored, self.truth.g
        predicted = self.decoders.predict(part)
        self.moments.add(predicted, block)
        self.sums.add(predicted, block, scored.batch[part], scored.control[part])
        if not self.linear:
            self.profiles.add(predicted, block, scored.group[part], scored.batch[part])
        error = predicted - block
        self.squared[part] = np.einsum("ij,ij->i", error, error, dtype=np.float64) / g
        self.absolute[part] = np.abs(error).mean(axis=1, dtype=np.float64)
        error -= self.centre[scored.batch[part]]
        self.residual[part] = np.einsum("ij,ij->i", error, error, dtype=np.float64)

    def finish(self, genes: Strings) -> Decoded:
        """Give the scores' parts."""
        assert self.spearman is not None  # given before
        scored, truth = self.scored, self.truth
        labels, units = batch_and_perturbation(self.inputs.samples, scored.rows)
        cells = ProfileCells(scored.group, scored.batch, scored.n_batches, len(truth.sampled))
        by_pearson, by_spearman = self._correlation_influence(self.spearman, units, cells)
        integrity: StructuralIntegrity | NotComputable
        try:
            integrity = self.sums.result()
        except NotComputable as why:
            integrity = why
        grand = truth.plain.mean()
        used = np.bincount(scored.batch, weights=scored.control, minlength=scored.n_batches) > 0
        contributions = Contributions(
            labels=labels,
            codes=units,
            squared=self.squared,
            absolute=self.absolute,
            total=truth.plain_squares - 2 * grand * truth.plain + grand**2,
            pearson=by_pearson,
            spearman=by_spearman,
            distance=_norm_parts(self.residual, scored.batch, units[1], scored.control, used),
            maximum=2 * _norm_parts(truth.structure, scored.batch, units[1], scored.control, used),
        )
        return Decoded(
            genes=genes,
            batches=scored.batches,
            samples=contributions,
            moments=self.moments,
            spearman=self.spearman,
            integrity=integrity,
            profiles=_profile_scores(self.profiles, scored, cells),
            params=self.inputs.params,
            notes=self.notes,
        )

    def _correlation_influence(
        self, spearman: Spearman, codes: tuple[Ints, Ints], cells: ProfileCells
    ) -> tuple[F64, F64]:
        """Influence of every sample on the means of Pearson and Spearman, over evenly spaced genes: (n,) each.

        The influences of a batch and of a perturbation (`codes`) add up to what the correlation loses without them.
        The same genes go into `cells`.
        """
        n, g, step = self.truth.n, self.truth.g, self.truth.step
        counted = np.ones(g, dtype=bool) if self.inputs.params.constant_truth == "zero" else ~spearman.constant_true
        counted = counted[::step]
        sides = [np.unique(side, return_inverse=True)[1].reshape(-1).astype(np.int64) for side in codes]
        gaps = [np.zeros((2, int(side.max()) + 1)) for side in sides]
        total, n_gaps = np.zeros((2, n)), 0
        for start in range(0, len(counted), GENE_TILE):
            genes = slice(start * step, min(g, (start + GENE_TILE) * step), step)
            predicted = self.decoders.columns(genes)
            for k in range(len(predicted)):
                columns = predicted[k], np.asarray(self.truth.sampled[start + k])
                if (start + k) % cells.step == 0:
                    cells.add(*columns)
                if not counted[start + k]:
                    continue
                total += correlation_influence(*columns)
                if (start + k) % GAP_STEP == 0:
                    n_gaps += 1
                    ranks = twice_ranks(np.ascontiguousarray(columns[0])), twice_ranks(columns[1])
                    for side, gap in zip(sides, gaps, strict=True):
                        gap[0] += correlation_gap(columns[0], columns[1], side, gap.shape[1])
                        gap[1] += correlation_gap(ranks[0], ranks[1], side, gap.shape[1])
        total /= max(1, int(counted.sum()))
        made = []
        for kind in (0, 1):
            sums = []
            for place, (side, gap) in enumerate(zip(sides, gaps, strict=True)):
                # Controls are no level that could be absent.
                control = np.bincount(side, weights=self.scored.control) > 0
                kept = np.ones(gap.shape[1]) if place == 0 else 1.0 - control
                number = np.bincount(side) * kept
                beyond = n * gap[kind] / max(1, n_gaps) * kept
                beyond -= number / max(1.0, number.sum()) * beyond.sum()
                sums.append(np.bincount(side, weights=total[kind]) + beyond)
            made.append(with_margins(total[kind], np.ones(n), sides, sums))
        return made[0], made[1]


#: Column of the table of profiles -> what the effects are relative to.
REFERENCES: Mapping[str, ProfileReference] = {
    "pearson_delta": "controls",
    "pearson_delta_perturbed_mean": "perturbed",
}


def _profile_scores(profiles: ProfileSums, scored: Scored, cells: ProfileCells) -> ProfileScores:
    groups, constant, reasons = scored.groups, 0, {}
    table, parts = groups.copy(), {}
    block = np.unique(groups["cell_line"], return_inverse=True)[1].reshape(-1)
    for column, reference in REFERENCES.items():
        try:
            found = profiles.result(reference, block=block)
        except NotComputable as why:
            reasons[column] = str(why)
            table[column] = np.nan
            continue
        table["n_samples"] = found.n
        table[column] = found.values
        constant = max(constant, int(found.constant_pred.sum())) if reference == "controls" else constant
        parts[column] = profile_parts(cells, found.values, reference=reference, block=block)
    if "n_samples" in table:
        kept = np.asarray(table["n_samples"] > 0)
        table = table[kept].reset_index(drop=True)
        row = np.cumsum(kept) - 1
        parts = {column: replace(part, group=row[part.group]) for column, part in parts.items()}
    return ProfileScores(table, constant, reasons, int((scored.group < -1).sum()), parts, scored.batches)


def _norm_parts(squares: F64, batch: Ints, level: Ints, control: Bools, scored: Bools) -> F64:
    """Parts of sqrt(sum of squares) / n of every batch; 0 where not scored.

    A perturbation's part is what the batch loses without it. The controls, which no screen lacks, have the linear part
    of that. What the parts of all leave is shared out by number.
    """
    total = np.bincount(batch, weights=squares, minlength=len(scored))
    n = np.bincount(batch, minlength=len(scored))
    norm = np.sqrt(total) / np.maximum(n, 1) * scored
    cells, cell = np.unique(batch * (int(level.max(initial=0)) + 1) + level, return_inverse=True)
    cell = np.asarray(cell).reshape(-1)
    number = np.bincount(cell, minlength=len(cells))
    inside = np.zeros(len(cells), dtype=np.int64)
    inside[cell] = batch
    rest = np.maximum(total[inside] - np.bincount(cell, weights=squares, minlength=len(cells)), 0.0)
    without = np.sqrt(rest) / np.maximum(n[inside] - number, 1) * scored[inside]
    linear = 1 - rest / np.where(total > 0, total, 1.0)[inside]
    linear = norm[inside] * (linear / 2 - number / np.maximum(n, 1)[inside])
    apart = np.zeros(len(cells), dtype=bool)
    apart[cell] = control
    part = np.where(apart, linear, norm[inside] - without)
    left = norm - np.bincount(inside, weights=part, minlength=len(scored))
    return np.asarray((part / number)[cell] + (left / np.maximum(n, 1))[batch])


def _gene_score(decoded: Decoded, values: F64, by_sample: F64, *, correlation: bool) -> Score:
    """Mean over genes; it varies with the samples, by batch and perturbation."""
    constant_true, constant_pred = decoded.constant_true, decoded.constant_pred
    left_out = {}
    if correlation:
        rule = decoded.params.constant_truth
        value = gene_mean(values, constant_true, constant_pred, constant_truth=rule)
        counted = np.where(constant_true | constant_pred, 0.0, values)
        if rule == "leave_out":
            counted = counted[~constant_true]
            left_out = {"genes of constant truth": int(constant_true.sum())}
        if constant_pred.any():
            left_out["genes of constant prediction (count as 0)"] = int((constant_pred & ~constant_true).sum())
        if len(counted) == 0:
            raise NotComputable("every gene is constant in the scored samples")
    else:
        value, counted = float(values.mean()), values
    return Score(
        value=value,
        chance=0.0 if correlation else None,
        n_samples=decoded.moments.n,
        n_groups=len(counted),
        group="gene",
        left_out={reason: count for reason, count in left_out.items() if count},
        notes=decoded.notes,
        units=decoded.samples.units(by_sample + value if correlation else by_sample),
    )


def _r2(decoded: Decoded) -> Score:
    return Score(
        value=decoded.moments.r2,
        n_samples=decoded.moments.n,
        n_groups=len(decoded.genes),
        group="gene",
        notes=decoded.notes,
        units=decoded.samples.units(decoded.samples.squared, decoded.samples.total, offset=1.0, scale=-1.0),
    )


def _integrity(decoded: Decoded) -> Score:
    found = decoded.integrity
    if isinstance(found, NotComputable):
        raise found
    left_out = {
        "batches without controls": found.n_batches_left_out,
        "samples of batches without controls": found.n_samples_left_out,
    }
    return Score(
        value=found.score,
        chance=0.5,
        n_samples=found.n_samples,
        n_groups=len(found.batches),
        group="batch",
        left_out={reason: count for reason, count in left_out.items() if count},
        notes=decoded.notes,
        units=decoded.samples.units(decoded.samples.distance, decoded.samples.maximum, offset=1.0, scale=-1.0),
    )


def _rescaled(decoded: Decoded) -> Score:
    """Structural Integrity s as 2 s - 1: the distance relative to that of a prediction without effect."""
    score = _integrity(decoded)
    assert score.value is not None  # _integrity raises where there is none
    parts = decoded.samples
    units = parts.units(parts.distance, parts.maximum, offset=1.0, scale=-2.0)
    return replace(score, value=2 * score.value - 1, chance=0.0, units=units)


def _profile(decoded: Decoded, column: str) -> Score:
    """Mean over perturbations of the correlation of decoded and measured effects."""
    found = decoded.profiles
    if column in found.reasons:
        raise NotComputable(found.reasons[column])
    table = found.table[found.table[column].notna()]
    if not len(table):
        raise NotComputable("the measured effect of every perturbation is the same for all genes")
    values = table[column].to_numpy(dtype=float)
    names, name = np.unique(table["perturbation"].astype(str), return_inverse=True)
    part = found.parts[column]
    of_row = pd.Index(table.index).get_indexer(pd.Index(part.group))
    left_out = {
        "samples of batches without controls": found.left_out,
        "perturbations of constant decoded effect (count as 0)": found.constant,
        "perturbations of constant measured effect": len(found.table) - len(table),
    }
    return Score(
        value=float(values.mean()),
        chance=0.0,
        n_samples=int(table["n_samples"].sum()),
        n_groups=len(table),
        group="perturbation",
        left_out={reason: count for reason, count in left_out.items() if count},
        notes=decoded.notes,
        units=Units.crossed(
            ("batch", "perturbation"),
            (found.batches, names),
            (part.batch, np.asarray(name).reshape(-1)[of_row]),
            part.values,
            part.weight,
        ),
    )


def _details(decoded: Decoded) -> dict[str, pd.DataFrame]:
    moments = decoded.moments
    tables = {
        "genes": pd.DataFrame(
            {
                "gene": decoded.genes,
                "spearman": decoded.spearman.values,
                "pearson": moments.pearson,
                "mse": moments.mse,
                "mae": moments.mae,
                "constant_true": decoded.constant_true,
                "constant_pred": decoded.constant_pred,
            }
        )
    }
    if len(decoded.profiles.table):
        tables["perturbations"] = decoded.profiles.table
    if isinstance(decoded.integrity, StructuralIntegrity):
        tables["batches"] = pd.DataFrame(
            {
                "batch": decoded.batches[decoded.integrity.batches],
                "distance": decoded.integrity.distance,
                "maximum": decoded.integrity.maximum,
            }
        )
    return tables


def _memory(sizes: Sizes, params: ReconstructionParams) -> int:
    """Sums per batch, products of embedding and expression or a trained decoder's layers, sums per sample."""
    d, g = sizes.d, sizes.genes
    per_batch = 8 * 4 * sizes.batches * g
    if params.decoder in CLOSED_FORM:
        decoder = 8 * (3 if params.decoder == "least_squares" else 5) * d * g
        profiles = 8 * sizes.perturbations * d
    else:
        widths = (d, *hidden_widths(params.decoder, d, g, params.hidden or None), g)
        decoder = 16 * sum((a + 1) * b for a, b in itertools.pairwise(widths))
        profiles = 0 if params.decoder == "linear" else 8 * sizes.perturbations * g
    return per_batch + decoder + profiles + 200 * sizes.heldout + 4 * sizes.batches * g


TASK = Task(
    name="reconstruction",
    level=6,
    title="Reconstruction",
    question="Can expression be decoded from the representation, and does its structure within batches survive?",
    limits="Predicting every gene's mean has a low error; the noise of the scored samples is in their embedding too.",
    params=ReconstructionParams,
    prepare=prepare,
    together=prepare_together,
    shares=lambda params: params.decoder in CLOSED_FORM,
    memory=_memory,
    version=4,
    metrics=(
        Metric(
            name="spearman",
            task="reconstruction",
            label="Spearman",
            summary="Rank correlation of decoded and measured expression over samples, mean over genes.",
            compute=lambda decoded: _gene_score(
                decoded, decoded.spearman.values, decoded.samples.spearman, correlation=True
            ),
            low=-1.0,
            headline=True,
        ),
        Metric(
            name="structural_integrity",
            task="reconstruction",
            label="Structural Integrity",
            summary="How much of the distance from a batch's controls survives: 1 exact, 0.5 no effect at all.",
            compute=_integrity,
            low=float("-inf"),
            headline=True,
        ),
        Metric(
            name="structural_integrity_rescaled",
            task="reconstruction",
            label="Structural Integrity, 0 to 1",
            summary="The same on a scale of its own: 1 exact, 0 no effect at all, below 0 worse than none.",
            compute=_rescaled,
            low=float("-inf"),
        ),
        Metric(
            name="pearson_delta",
            task="reconstruction",
            label="Pearson delta",
            summary="Correlation over genes of the decoded and the measured mean effect, mean over perturbations.",
            compute=lambda decoded: _profile(decoded, "pearson_delta"),
            low=-1.0,
        ),
        Metric(
            name="pearson_delta_perturbed_mean",
            task="reconstruction",
            label="Pearson delta, perturbed mean",
            summary="The same after subtracting the mean effect of all perturbations from every effect.",
            compute=lambda decoded: _profile(decoded, "pearson_delta_perturbed_mean"),
            low=-1.0,
        ),
        Metric(
            name="pearson",
            task="reconstruction",
            label="Pearson",
            summary="Linear correlation over samples, mean over genes.",
            compute=lambda decoded: _gene_score(
                decoded, decoded.moments.pearson, decoded.samples.pearson, correlation=True
            ),
            low=-1.0,
        ),
        Metric(
            name="mse",
            task="reconstruction",
            label="MSE",
            summary="Mean squared error of log-normalised expression.",
            compute=lambda decoded: _gene_score(
                decoded, decoded.moments.mse, decoded.samples.squared, correlation=False
            ),
            higher_is_better=False,
            high=float("inf"),
        ),
        Metric(
            name="mae",
            task="reconstruction",
            label="MAE",
            summary="Mean absolute error of log-normalised expression.",
            compute=lambda decoded: _gene_score(
                decoded, decoded.moments.mae, decoded.samples.absolute, correlation=False
            ),
            higher_is_better=False,
            high=float("inf"),
        ),
        Metric(
            name="r2",
            task="reconstruction",
            label="R2",
            summary="Share of the variance of all values about their grand mean that is explained.",
            compute=_r2,
            low=float("-inf"),
        ),
    ),
    stochastic=lambda params, n_samples: params.decoder not in CLOSED_FORM,
    details=_details,
    needs_expression=True,
    ceiling=Ceiling(
        shared_split("heldout"),
        "each half of a perturbation's heldout samples joins train in turn and the other half is decoded, so that the "
        "decoder has seen replicates; all heldout samples are decoded, as of a model",
    ),
)
