"""Level 6: how well expression is decoded, gene by gene, and how much of the structure within a batch survives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from txeval.compute.arrays import F64, Bools, Ints, row_blocks
from txeval.compute.correlation import Spearman, columns_of, spearman_by_gene
from txeval.compute.groups import checked_matrix, encode, read_rows
from txeval.compute.jit import jit
from txeval.compute.spread import is_constant
from txeval.errors import InputError, NotComputable

__all__ = [
    "ConstantTruth",
    "GeneMoments",
    "IntegritySums",
    "StructuralIntegrity",
    "gene_mean",
    "reconstruction_scores",
    "spearman_scores",
    "structural_integrity",
]

ConstantTruth = Literal["leave_out", "zero"]


@partial(jit, no_nan=True)
def _add_moments(pred: Any, true: Any, shift_p: Any, shift_t: Any, sums: Any, limits: Any) -> None:
    """Add a block to per-gene sums (p, t, pp, tt, pt, error squared, absolute error) and to minima and maxima."""
    g = pred.shape[1]
    for i in range(pred.shape[0]):
        p = pred[i]
        t = true[i]
        for j in range(g):
            a = p[j] - shift_p[j]
            sums[0, j] += a
            sums[2, j] += a * a
        for j in range(g):
            b = t[j] - shift_t[j]
            sums[1, j] += b
            sums[3, j] += b * b
        for j in range(g):
            sums[4, j] += (p[j] - shift_p[j]) * (t[j] - shift_t[j])
        for j in range(g):
            error = np.float64(p[j]) - np.float64(t[j])
            sums[5, j] += error * error
            sums[6, j] += abs(error)
        for j in range(g):
            limits[0, j] = min(limits[0, j], p[j])
            limits[1, j] = max(limits[1, j], p[j])
        for j in range(g):
            limits[2, j] = min(limits[2, j], t[j])
            limits[3, j] = max(limits[3, j], t[j])


class GeneMoments:
    """Errors and linear correlations of every gene from one pass by blocks of samples.

    Sums are float64, about the mean of the first block, so that a large common offset does not cancel.

    Parameters
    ----------
    n_genes
        Number of genes.

    Attributes
    ----------
    n
        Samples added so far.
    """

    def __init__(self, n_genes: int) -> None:
        if n_genes < 1:
            raise InputError("there are no genes to score")
        self.n = 0
        self.n_genes = n_genes
        self._sums = np.zeros((7, n_genes))
        self._limits = np.empty((4, n_genes))
        self._limits[0::2], self._limits[1::2] = np.inf, -np.inf
        self._shift_p = self._shift_t = np.zeros(n_genes)
        self._dtypes = np.dtype(np.float32), np.dtype(np.float32)

    def add(self, pred: Any, true: Any) -> None:
        """Add samples: prediction and truth (m, g), finite."""
        p, t = _block_pair(pred, true, self.n_genes)
        if not len(p):
            return
        if self.n == 0:
            self._dtypes = p.dtype, t.dtype
            self._shift_p = p.mean(axis=0, dtype=np.float64)
            self._shift_t = t.mean(axis=0, dtype=np.float64)
        _add_moments(p, t, self._shift_p, self._shift_t, self._sums, self._limits)
        self.n += len(p)

    def _require(self, samples: int = 1) -> None:
        if self.n < samples:
            raise NotComputable(f"{self.n} sample(s) to score; at least {samples} needed")

    @property
    def constant_pred(self) -> Bools:
        """(g,) whether the prediction is the same for all samples, up to rounding."""
        return is_constant(self._limits[0], self._limits[1], self._dtypes[0]) | (self._squares(0) <= 0)

    @property
    def constant_true(self) -> Bools:
        """(g,) whether the truth is the same for all samples, up to rounding."""
        return is_constant(self._limits[2], self._limits[3], self._dtypes[1]) | (self._squares(1) <= 0)

    def _squares(self, side: int) -> F64:
        """(g,) sum of the squares of the prediction (0) or the truth (1) about its mean."""
        return np.asarray(self._sums[2 + side] - self._sums[side] ** 2 / max(1, self.n))

    @property
    def mean_true(self) -> F64:
        """(g,) mean of the truth."""
        return np.asarray(self._shift_t + self._sums[1] / max(1, self.n))

    @property
    def mse(self) -> F64:
        """(g,) mean squared error."""
        self._require()
        return np.asarray(self._sums[5] / self.n)

    @property
    def mae(self) -> F64:
        """(g,) mean absolute error."""
        self._require()
        return np.asarray(self._sums[6] / self.n)

    def _scatter(self) -> tuple[F64, F64, F64]:
        """Centred sums (pp, tt, pt), exactly zero where a side is constant."""
        live_p, live_t = ~self.constant_pred, ~self.constant_true
        product = self._sums[4] - self._sums[0] * self._sums[1] / self.n
        return self._squares(0) * live_p, self._squares(1) * live_t, product * (live_p & live_t)

    @property
    def pearson(self) -> F64:
        """(g,) Pearson correlation, NaN where truth or prediction is constant."""
        self._require(2)
        pp, tt, pt = self._scatter()
        size = np.sqrt(pp) * np.sqrt(tt)
        return np.clip(np.where(size > 0, pt, np.nan) / np.where(size > 0, size, 1.0), -1.0, 1.0)

    @property
    def r2_by_gene(self) -> F64:
        """(g,) share of the gene's variance that is explained; NaN where the truth is constant."""
        self._require(2)
        tt = self._scatter()[1]
        return 1 - np.where(tt > 0, self._sums[5], np.nan) / np.where(tt > 0, tt, 1.0)

    @property
    def r2(self) -> float:
        """Share explained of the variance of all values about their grand mean.

        Differences between genes count as variance: this is the coefficient over the flattened matrix, as in the
        published code. NaN where all values are equal.
        """
        self._require()
        means = self.mean_true
        total = float(self._scatter()[1].sum() + self.n * ((means - means.mean()) ** 2).sum())
        return 1 - float(self._sums[5].sum()) / total if total > 0 else float("nan")

    def scores(self, *, constant_truth: ConstantTruth = "leave_out") -> dict[str, float]:
        """`pearson` (mean over genes by the rule of `gene_mean`), `mse`, `mae`, `r2`."""
        pearson = (
            gene_mean(self.pearson, self.constant_true, self.constant_pred, constant_truth=constant_truth)
            if self.n >= 2
            else float("nan")
        )
        return {"pearson": pearson, "mse": float(self.mse.mean()), "mae": float(self.mae.mean()), "r2": self.r2}


def gene_mean(
    values: F64, constant_true: Bools, constant_pred: Bools, *, constant_truth: ConstantTruth = "leave_out"
) -> float:
    """Mean of a correlation over genes.

    Parameters
    ----------
    values
        (g,) correlations; what they hold for constant genes is not read.
    constant_true, constant_pred
        (g,) genes that are constant in truth or prediction. A constant prediction counts as 0.
    constant_truth
        "leave_out": a gene of constant truth does not count. "zero": it counts as 0, as the published code has it for
        the rank correlation.

    Returns
    -------
    -1 .. 1, or NaN where no gene is left.
    """
    if constant_truth not in ("leave_out", "zero"):
        raise InputError(f"constant_truth is {constant_truth!r}", remedy="use 'leave_out' or 'zero'")
    filled = np.where(constant_true | constant_pred, 0.0, values)
    if constant_truth == "leave_out":
        filled = filled[~constant_true]
    return float(filled.mean()) if len(filled) else float("nan")


def spearman_scores(found: Spearman, *, constant_truth: ConstantTruth = "leave_out") -> float:
    """Mean rank correlation over genes, by the rule of `gene_mean`."""
    return gene_mean(found.values, found.constant_true, found.constant_pred, constant_truth=constant_truth)


def _block_pair(pred: Any, true: Any, n_genes: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    p = read_rows(np.asarray(pred), name="pred")
    t = read_rows(np.asarray(true), name="true")
    if p.shape != t.shape or p.ndim != 2 or p.shape[1] != n_genes:
        raise InputError(
            f"prediction {p.shape} and truth {t.shape} do not match for {n_genes} genes",
            remedy="give both as samples x genes",
        )
    return p, t


def _matrices(pred: Any, true: Any) -> tuple[Any, Any]:
    p, t = checked_matrix(pred, "pred"), checked_matrix(true, "true")
    if tuple(p.shape) != tuple(t.shape):
        raise InputError(
            f"pred has shape {tuple(p.shape)}, true {tuple(t.shape)}", remedy="give both as samples x genes"
        )
    if p.shape[0] == 0:
        raise NotComputable("there are no samples to score")
    return p, t


def reconstruction_scores(
    pred: Any, true: Any, *, constant_truth: ConstantTruth = "leave_out", max_elements: int | None = None
) -> dict[str, Any]:
    """Agreement of decoded and measured expression.

    Parameters
    ----------
    pred, true
        (n, g) log-normalised expression: arrays or anything that gives rows.
    constant_truth
        "leave_out" or "zero" (the published code's rank correlation); see `gene_mean`.
    max_elements
        Values read at once.

    Returns
    -------
    dict
        `spearman`, `pearson`: per gene over samples, mean over genes (-1 .. 1; a constant prediction counts as 0, a
        gene of constant truth does not count; NaN for fewer than two samples or where no gene is left); `mse`, `mae`:
        mean over all values (>= 0); `r2`: over all values about their grand mean (<= 1; differences between genes
        count as variance); `n_constant_true`, `n_constant_pred`: genes concerned; `n_genes_scored`: genes in the
        means of the correlations.

    Raises
    ------
    InputError
        For shapes that differ and NaN.
    NotComputable
        Without samples.

    Examples
    --------
    >>> import numpy as np
    >>> true = np.array([[0.0, 1], [1, 1], [2, 1]])
    >>> found = reconstruction_scores(true + 0.5, true)
    >>> round(found["spearman"], 9), found["mse"], found["n_constant_true"]
    (1.0, 0.25, 1)
    """
    p, t = _matrices(pred, true)
    n, g = p.shape
    moments = GeneMoments(g)
    for rows in row_blocks(n, g, max_elements):
        moments.add(p[rows], t[rows])
    scores: dict[str, Any] = {"spearman": float("nan")}
    if n >= 2:
        found = spearman_by_gene(columns_of(p), columns_of(t), n, g, max_elements=max_elements)
        scores["spearman"] = spearman_scores(found, constant_truth=constant_truth)
    scores.update(moments.scores(constant_truth=constant_truth))
    left_out = int(moments.constant_true.sum())
    scores["n_constant_true"] = left_out
    scores["n_constant_pred"] = int(moments.constant_pred.sum())
    scores["n_genes_scored"] = g - left_out if constant_truth == "leave_out" else g
    return scores


@jit
def _add_integrity(
    pred: Any, true: Any, batch: Any, control: Any, error_sums: Any, true_sums: Any, n: Any, squares: Any
) -> None:
    """Add a block to sums per batch: all samples (index 0) and controls (index 1), and squared norms."""
    g = pred.shape[1]
    for i in range(pred.shape[0]):
        b = batch[i]
        n[0, b] += 1
        error_square = 0.0
        true_square = 0.0
        for j in range(g):
            error = np.float64(pred[i, j]) - np.float64(true[i, j])
            error_sums[0, b, j] += error
            error_square += error * error
        for j in range(g):
            value = np.float64(true[i, j])
            true_sums[0, b, j] += value
            true_square += value * value
        squares[0, b] += error_square
        squares[1, b] += true_square
        if control[i]:
            n[1, b] += 1
            for j in range(g):
                error_sums[1, b, j] += np.float64(pred[i, j]) - np.float64(true[i, j])
            for j in range(g):
                true_sums[1, b, j] += np.float64(true[i, j])


@dataclass(frozen=True)
class StructuralIntegrity:
    """Structural Integrity and what each batch gave to it.

    Attributes
    ----------
    score
        1 for an exact prediction, 0.5 for one that is constant within batches; can be negative.
    batches
        (b,) codes of the batches that count.
    distance, maximum
        (b,) float64 distance_b and max_b.
    n_samples
        Samples in these batches.
    n_batches_left_out, n_samples_left_out
        Batches without a control, and their samples.
    """

    score: float
    batches: Ints
    distance: F64
    maximum: F64
    n_samples: int
    n_batches_left_out: int
    n_samples_left_out: int


class IntegritySums:
    r"""Structural Integrity from one pass by blocks of samples.

    With :math:`e_i` = prediction minus truth and :math:`\bar e_b` its mean over the controls of batch b, the distance
    of the centred matrices is :math:`\sum_i |e_i - \bar e_b|^2 = \sum_i |e_i|^2 - 2 \bar e_b \cdot \sum_i e_i + n_b
    |\bar e_b|^2`, so sums per batch suffice; likewise for the truth.

    Parameters
    ----------
    n_genes, n_batches
        Number of genes, and of batch codes.
    """

    def __init__(self, n_genes: int, n_batches: int) -> None:
        self.n_genes, self.n_batches = n_genes, n_batches
        self._errors = np.zeros((2, n_batches, n_genes))
        self._truth = np.zeros((2, n_batches, n_genes))
        self._n = np.zeros((2, n_batches), dtype=np.int64)
        self._squares = np.zeros((2, n_batches))

    def add(self, pred: Any, true: Any, batch: Ints, is_control: Bools) -> None:
        """Add samples: prediction and truth (m, g), batch codes (m,), control flags (m,)."""
        p, t = _block_pair(pred, true, self.n_genes)
        batch = np.asarray(batch)
        control = np.asarray(is_control)
        if batch.shape != (len(p),) or control.shape != (len(p),) or control.dtype != np.bool_:
            raise InputError(
                f"{len(p)} samples with batches {batch.shape} and control flags {control.shape} ({control.dtype})",
                remedy="give one batch and one boolean per sample",
            )
        if len(batch) and (batch.min() < 0 or batch.max() >= self.n_batches):
            raise InputError(f"batch codes go from {batch.min()} to {batch.max()}; there are {self.n_batches} batches")
        _add_integrity(p, t, batch.astype(np.int64), control, self._errors, self._truth, self._n, self._squares)

    def result(self) -> StructuralIntegrity:
        """Score of all samples added.

        Raises
        ------
        NotComputable
            Where no batch has a control, or the truth does not vary about the controls.
        """
        n, controls = self._n
        used = np.flatnonzero(controls > 0)
        without = (n > 0) & (controls == 0)
        if not len(used):
            raise NotComputable(f"none of the {int((n > 0).sum())} batch(es) has a control to compare with")
        distance = _centred_norm(self._errors, self._squares[0], n, controls, used) / n[used]
        maximum = 2 * _centred_norm(self._truth, self._squares[1], n, controls, used) / n[used]
        if not maximum.sum() > 0:
            raise NotComputable("every sample equals the mean of its batch's controls: there is no structure to keep")
        return StructuralIntegrity(
            score=float(1 - distance.mean() / maximum.mean()),
            batches=used.astype(np.int64),
            distance=distance,
            maximum=maximum,
            n_samples=int(n[used].sum()),
            n_batches_left_out=int(without.sum()),
            n_samples_left_out=int(n[without].sum()),
        )


def _centred_norm(sums: F64, squares: F64, n: Ints, controls: Ints, used: Ints) -> F64:
    """Frobenius norm per batch after subtracting the mean of the batch's controls."""
    centre = sums[1, used] / controls[used, None]
    cross = np.einsum("bj,bj->b", centre, sums[0, used])
    square = squares[used] - 2 * cross + n[used] * np.einsum("bj,bj->b", centre, centre)
    # What is left below the resolution of the sums is rounding.
    return np.sqrt(np.where(square > 1e-14 * squares[used], square, 0.0))


def structural_integrity(
    pred: Any, true: Any, batch: Any, is_control: Any, *, max_elements: int | None = None
) -> float:
    r"""How much of the structure within batches a prediction keeps.

    Per batch the mean of its controls is subtracted from every row, in prediction and truth each; then

    .. math:: 1 - \frac{\overline{d_b}}{\overline{m_b}}, \qquad
        d_b = \frac{\|\hat Y_b - Y_b\|_F}{n_b}, \quad m_b = \frac{2 \|Y_b\|_F}{n_b}

    with means over batches. Bendidi et al. 2024.

    Parameters
    ----------
    pred, true
        (n, g) expression: arrays or anything that gives rows.
    batch
        (n,) labels. Batches without controls are left out.
    is_control
        (n,) bool.
    max_elements
        Values read at once.

    Returns
    -------
    1 for an exact prediction, 0.5 for one that is constant within batches; can be negative.

    Raises
    ------
    InputError
        For lengths that differ and NaN.
    NotComputable
        Where no batch has a control.
    """
    p, t = _matrices(pred, true)
    codes, labels = encode(batch, p.shape[0], name="batch")
    control = np.asarray(is_control)
    if control.shape != (p.shape[0],) or control.dtype != np.bool_:
        raise InputError(
            f"is_control has shape {control.shape} and type {control.dtype} for {p.shape[0]} samples",
            remedy="give one boolean per sample",
        )
    sums = IntegritySums(p.shape[1], len(labels))
    for rows in row_blocks(p.shape[0], p.shape[1], max_elements):
        sums.add(p[rows], t[rows], codes[rows], control[rows])
    return sums.result().score
