"""Level 6: can the expression be decoded from the representation? (reconstruction, Structural Integrity)"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from txeval.compute.arrays import F32, F64, Bools, Ints, Rows, Strings, row_blocks, take_rows
from txeval.compute.correlation import ColumnStore, Spearman, correlation_influence, spearman_by_gene
from txeval.compute.decoder import Decoder, DecoderKind, fit_decoder
from txeval.compute.intervals import Units
from txeval.errors import NotComputable
from txeval.metrics.convergent_probe import validation_rows
from txeval.metrics.profiles import ProfileReference, ProfileSums
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
    Task,
    TaskInputs,
    batch_and_perturbation,
    crossed_units,
)
from txeval.tasks.blocks import Blocks, RowSubset, cell_lines, crossed_batches
from txeval.tasks.ceiling import shared_split

__all__ = ["TASK", "ReconstructionParams"]

#: The published code scores minibatches of this size.
SCORED_BATCH = 512

#: Decoders without a seed, and the share of the train batches that the penalty of one of them is chosen on.
CLOSED_FORM = ("least_squares", "ridge")
HELD_OUT = 0.3

#: The recipe was made for thousands of steps; with fewer than this its weights stay near their random start.
FEW_STEPS = 1000


#: The influence of samples on the mean correlation is taken over so many values: at most this / samples of the genes.
INFLUENCE_ELEMENTS = 20_000_000


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
    """

    table: pd.DataFrame
    constant: int
    reasons: Mapping[str, str]
    left_out: int


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


def _rows_of(expression: Expression, rows: Ints) -> F32:
    out = np.empty((len(rows), len(expression.genes)), dtype=np.float32)
    for part, block in expression.blocks(rows):
        out[part] = block
    return out


def prepare(inputs: TaskInputs) -> Decoded:
    """Train the decoder on train, decode heldout, and sum up how they differ."""
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
    decoders = []
    for train, asked in pairs:
        decoder, chosen = _fitted(inputs, expression, train)
        decoders.append((decoder, asked))
        notes += [chosen] if chosen and chosen not in notes else []
    return _score(inputs, expression, _Decoders(inputs.embedding, decoders, inputs.samples.n), rows, tuple(notes))


def _fitted(inputs: TaskInputs, expression: Expression, train: Ints) -> tuple[Decoder, str]:
    """A decoder, and how its penalty was chosen."""
    params: ReconstructionParams = inputs.params
    held, how = None, ""
    if params.decoder == "ridge":
        held, how = validation_rows(
            RowSubset(inputs.embedding, train),
            np.asarray(inputs.samples.batches)[inputs.samples.batch[train]],
            np.zeros(len(train), dtype=np.int64),
            HELD_OUT,
        )
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
        held_out=held,
        device=inputs.device,
    )
    if decoder.penalty is None:
        return decoder, ""
    return decoder, f"penalty {decoder.penalty:g}, chosen by the squared error on {how}"


class _Decoders:
    """Predictions for samples by the decoder that did not learn from them.

    Parameters
    ----------
    embedding
        (n, d) rows on demand.
    parts
        Decoders and the samples that each decodes.
    """

    def __init__(self, embedding: Rows, parts: Sequence[tuple[Decoder, Ints]], n: int) -> None:
        self._embedding, self._decoders = embedding, [decoder for decoder, _ in parts]
        self._of = np.zeros(n, dtype=np.int64)
        for i, (_, rows) in enumerate(parts):
            self._of[rows] = i

    @property
    def width(self) -> int:
        """Columns of the embedding."""
        return self._decoders[0].widths[0]

    def predict(self, rows: Ints) -> F32:
        """(m, g) decoded samples."""
        return self._each(rows, lambda decoder, x: decoder.predict(x))

    def predict_genes(self, rows: Ints, genes: slice) -> F32:
        """(m, genes) some columns of the decoded samples."""
        return self._each(rows, lambda decoder, x: decoder.predict_genes(x, genes))

    def _each(self, rows: Ints, predict: Callable[[Decoder, F32], F32]) -> F32:
        of = self._of[rows]
        if len(self._decoders) == 1 or len(rows) == 0:
            return predict(self._decoders[0], take_rows(self._embedding, rows))
        parts = [
            predict(decoder, take_rows(self._embedding, rows[of == i])) for i, decoder in enumerate(self._decoders)
        ]
        out = np.empty((len(rows), parts[0].shape[1]), dtype=np.float32)
        for i, values in enumerate(parts):
            out[of == i] = values
        return out


def _score(
    inputs: TaskInputs, expression: Expression, decoders: _Decoders, rows: Ints, notes: tuple[str, ...]
) -> Decoded:
    samples = inputs.samples
    genes = expression.genes
    moments = GeneMoments(len(genes))
    strata, names = crossed_batches(samples, inputs.params.blocks)
    present, batch = np.unique(strata[rows], return_inverse=True)
    sums = IntegritySums(len(genes), len(present))
    n, g = len(rows), len(genes)
    batch = batch.astype(np.int64)
    control = samples.is_control[rows]
    groups, profiles, group = _profile_groups(inputs, rows, batch, len(present), g)
    centres = _control_means(expression, decoders, rows[control], batch[control], len(present))
    squared, absolute, plain, plain_squares, residual, structure = np.zeros((6, n))
    with ColumnStore(n, g) as truth:
        for part, block in expression.blocks(rows):
            predicted = decoders.predict(rows[part])
            moments.add(predicted, block)
            sums.add(predicted, block, batch[part], control[part])
            profiles.add(predicted, block, group[part], batch[part])
            truth.write(part, block)
            error = predicted - block
            squared[part] = np.einsum("ij,ij->i", error, error, dtype=np.float64) / g
            absolute[part] = np.abs(error).mean(axis=1, dtype=np.float64)
            plain[part] = block.mean(axis=1, dtype=np.float64)
            plain_squares[part] = np.einsum("ij,ij->i", block, block, dtype=np.float64) / g
            for values, centre, out in ((error, centres[0], residual), (block, centres[1], structure)):
                away = values - centre[batch[part]]
                out[part] = np.einsum("ij,ij->i", away, away, dtype=np.float64)

        def predicted_columns(chosen: slice) -> F32:
            out = np.empty((n, len(range(*chosen.indices(g)))), dtype=np.float32)
            for part in row_blocks(n, decoders.width):
                out[part] = decoders.predict_genes(rows[part], chosen)
            return out

        spearman = spearman_by_gene(predicted_columns, truth, n, g)
        by_pearson, by_spearman = _correlation_influence(inputs.params, predicted_columns, truth, spearman, n, g)
    integrity: StructuralIntegrity | NotComputable
    try:
        integrity = sums.result()
    except NotComputable as why:
        integrity = why
    grand = plain.mean()
    scored = np.bincount(batch, weights=control, minlength=len(present)) > 0
    labels, units = batch_and_perturbation(samples, rows)
    contributions = Contributions(
        labels=labels,
        codes=units,
        squared=squared,
        absolute=absolute,
        total=plain_squares - 2 * grand * plain + grand**2,
        pearson=by_pearson,
        spearman=by_spearman,
        distance=_norm_parts(residual, batch, units[1], control, scored),
        maximum=2 * _norm_parts(structure, batch, units[1], control, scored),
    )
    return Decoded(
        genes=genes,
        batches=names[present],
        samples=contributions,
        moments=moments,
        spearman=spearman,
        integrity=integrity,
        profiles=_profile_scores(profiles, groups, int((group < -1).sum())),
        params=inputs.params,
        notes=notes,
    )


#: Column of the table of profiles -> what the effects are relative to.
REFERENCES: Mapping[str, ProfileReference] = {
    "pearson_delta": "controls",
    "pearson_delta_perturbed_mean": "perturbed",
}


def _profile_groups(
    inputs: TaskInputs, rows: Ints, batch: Ints, n_batches: int, n_genes: int
) -> tuple[pd.DataFrame, ProfileSums, Ints]:
    """Perturbations (within cell lines) of the scored samples, empty sums, and the group of each sample.

    Groups: -1 for controls, -2 for samples in batches without one.
    """
    samples = inputs.samples
    control = samples.is_control[rows]
    lines = samples.cell_lines if samples.cell_lines is not None else np.asarray([""])
    blocks = cell_lines(samples, inputs.params.blocks)
    line = samples.cell_line[rows] if len(blocks) > 1 and samples.cell_line is not None else np.zeros_like(rows)
    cells, group = np.unique(samples.perturbation[rows] * len(lines) + line, return_inverse=True)
    usable = np.bincount(batch, weights=control, minlength=n_batches)[batch] > 0
    table = pd.DataFrame({"perturbation": samples.perturbations[cells // len(lines)]})
    table["cell_line"] = lines[cells % len(lines)] if len(blocks) > 1 else ""
    codes = np.where(usable, np.where(control, -1, group.reshape(-1)), -2)
    return table, ProfileSums(n_genes, len(cells), n_batches), codes.astype(np.int64)


def _profile_scores(profiles: ProfileSums, groups: pd.DataFrame, left_out: int) -> ProfileScores:
    table, constant, reasons = groups.copy(), 0, {}
    for column, reference in REFERENCES.items():
        try:
            found = profiles.result(reference, block=np.unique(groups["cell_line"], return_inverse=True)[1])
        except NotComputable as why:
            reasons[column] = str(why)
            table[column] = np.nan
            continue
        table["n_samples"] = found.n
        table[column] = found.values
        constant = max(constant, int(found.constant_pred.sum())) if reference == "controls" else constant
    if "n_samples" in table:
        table = table[table["n_samples"] > 0].reset_index(drop=True)
    return ProfileScores(table, constant, reasons, left_out)


def _control_means(
    expression: Expression, decoders: _Decoders, rows: Ints, batch: Ints, n_batches: int
) -> tuple[F32, F32]:
    """Mean over the controls of every batch of the decoder's error and of the truth: (n_batches, g) each."""
    error, truth = np.zeros((2, n_batches, len(expression.genes)))
    for part, block in expression.blocks(rows):
        predicted = decoders.predict(rows[part])
        np.add.at(error, batch[part], predicted - block)
        np.add.at(truth, batch[part], block)
    n = np.maximum(1, np.bincount(batch, minlength=n_batches))[:, None]
    return (error / n).astype(np.float32), (truth / n).astype(np.float32)


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


def _correlation_influence(
    params: ReconstructionParams,
    predicted_columns: Callable[[slice], F32],
    truth: ColumnStore,
    spearman: Spearman,
    n: int,
    g: int,
) -> tuple[F64, F64]:
    """Influence of every sample on the means of Pearson and Spearman, over evenly spaced genes: (n,) each."""
    step = max(1, math.ceil(n * g / INFLUENCE_ELEMENTS))
    genes = slice(0, g, step)
    counted = np.ones(g, dtype=bool) if params.constant_truth == "zero" else ~spearman.constant_true
    predicted, true = predicted_columns(genes), truth(genes)
    total = np.zeros((2, n))
    for k in np.flatnonzero(counted[genes]):
        total += correlation_influence(predicted[:, k], true[:, k])
    total /= max(1, int(counted[genes].sum()))
    return total[0], total[1]


def _gene_score(decoded: Decoded, values: F64, by_sample: F64, *, correlation: bool) -> Score:
    """Mean over genes; it varies with the samples, by batch and perturbation."""
    constant_true, constant_pred = decoded.moments.constant_true, decoded.moments.constant_pred
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
    (lines, line), (names, name) = (
        np.unique(table[key].astype(str), return_inverse=True) for key in ("cell_line", "perturbation")
    )
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
        units=Units.single("perturbation", names, values)
        if len(lines) == 1
        else Units.crossed(("cell_line", "perturbation"), (lines, names), (line, name), values),
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
                "constant_true": moments.constant_true,
                "constant_pred": moments.constant_pred,
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


TASK = Task(
    name="reconstruction",
    level=6,
    title="Reconstruction",
    question="Can expression be decoded from the representation, and does its structure within batches survive?",
    limits="Predicting every gene's mean has a low error; the noise of the scored samples is in their embedding too.",
    params=ReconstructionParams,
    prepare=prepare,
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
