"""Level 6, profiles: is the mean effect of a perturbation on expression decoded? (Pearson of centred profiles)"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from txeval.compute.arrays import F64, Bools, Ints, row_blocks
from txeval.compute.groups import checked_matrix, encode
from txeval.compute.intervals import with_margins
from txeval.compute.jit import jit
from txeval.compute.memory import allocate, release
from txeval.compute.spread import no_spread
from txeval.errors import InputError, NotComputable

__all__ = [
    "LinearSums",
    "ProfileCells",
    "ProfileParts",
    "ProfileReference",
    "ProfileSums",
    "ProfileTruth",
    "Profiles",
    "pearson_delta",
    "profile_parts",
]

ProfileReference = Literal["controls", "perturbed"]

#: Contributions of batches are taken over so many values: at most this / (perturbations in batches) of the genes.
PART_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class Profiles:
    """Correlation of the decoded with the measured effect of every perturbation.

    Attributes
    ----------
    values
        (n_groups,) float64, -1 .. 1; 0 where the decoded effect is constant over genes; NaN where the measured one is,
        or there is no sample with a reference.
    constant_pred
        (n_groups,) bool: the decoded effect is constant.
    n
        (n_groups,) samples used.
    n_samples_left_out
        Samples in batches without a reference.
    """

    values: F64
    constant_pred: Bools
    n: Ints
    n_samples_left_out: int


@jit
def _add_profiles(values: Any, group: Any, batch: Any, sums: Any, reference: Any) -> None:
    """Add a block to sums per group (group >= 0) or to the reference of the batch (group -1)."""
    g = values.shape[1]
    for i in range(values.shape[0]):
        if group[i] >= 0:
            out = sums[group[i]]
        elif group[i] == -1:
            out = reference[batch[i]]
        else:
            continue
        for j in range(g):
            out[j] += values[i, j]


class ProfileTruth:
    """Sums of the measured expression per perturbation and per batch's controls, and how many samples they hold.

    Attributes
    ----------
    sums
        (n_groups, g) float64, in memory or mapped from a file.
    reference
        (n_batches, g) float64 sums over the controls.
    n, n_reference
        (n_groups, n_batches) and (n_batches,) int64.
    """

    def __init__(self, sums: F64, reference: F64, n: Ints, n_reference: Ints) -> None:
        self.sums, self.reference, self.n, self.n_reference = sums, reference, n, n_reference

    @classmethod
    def create(cls, path: Path | None, n_genes: int, n_groups: int, n_batches: int) -> ProfileTruth:
        """Give empty sums, in an .npy file where a path is given."""
        shape = (n_groups, n_genes)
        sums = (
            np.zeros(shape)
            if path is None or not n_groups
            else np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=shape)
        )
        if path is not None:
            if n_groups:
                allocate(path, path.stat().st_size)
            else:
                np.save(path, sums)
        n = np.zeros((n_groups, n_batches), dtype=np.int64)
        return cls(sums, np.zeros((n_batches, n_genes)), n, np.zeros(n_batches, dtype=np.int64))

    def add(self, true: Any, group: Ints, batch: Ints) -> None:
        """Add samples: expression (m, g); group (m,), -1 for controls, below that for neither; batch (m,)."""
        group, batch = np.asarray(group, dtype=np.int64), np.asarray(batch, dtype=np.int64)
        np.add.at(self.n, (group[group >= 0], batch[group >= 0]), 1)
        np.add.at(self.n_reference, batch[group == -1], 1)
        _add_profiles(np.ascontiguousarray(true), group, batch, self.sums, self.reference)

    def close(self) -> None:
        """Write out what is mapped."""
        if isinstance(self.sums, np.memmap):
            self.sums.flush()
            release(self.sums)


@dataclass(frozen=True)
class LinearSums:
    """What the decoded sums of a linear decoder `x @ weight + bias` follow from.

    Attributes
    ----------
    embedded, reference
        (n_groups, d) and (n_batches, d) sums of x over the samples that it decodes.
    n, n_reference
        (n_groups,) and (n_batches,) their numbers.
    weight, bias
        (d, g) and (g,).
    """

    embedded: F64
    reference: F64
    n: Ints
    n_reference: Ints
    weight: Any
    bias: Any

    def decoded(self, groups: Ints) -> F64:
        """(m, g) decoded sums of some groups."""
        return np.asarray(self.embedded[groups] @ self.weight.astype(np.float64) + self.n[groups, None] * self.bias)

    def decoded_reference(self) -> F64:
        """(n_batches, g) decoded sums of the controls."""
        return np.asarray(self.reference @ self.weight.astype(np.float64) + self.n_reference[:, None] * self.bias)


class ProfileSums:
    r"""Effects of perturbations on expression, decoded and measured, from one pass by blocks of samples.

    The effect is the mean over the perturbation's samples of what they differ from the controls of their batch:
    :math:`\delta_g = \frac{1}{n_g}\left(\sum_{i \in g} y_i - \sum_b n_{gb} \bar y_b\right)`, so sums per perturbation
    and per batch suffice. In the decoded profile the controls' part is the mean of their decoded profiles: the noise of
    the measured controls, which all measured effects of a batch share, does not enter the decoded ones.

    Parameters
    ----------
    n_genes, n_groups, n_batches
        Number of genes, perturbations and batches.
    truth
        The measured sums, where they are known: only predictions are added then.
    """

    def __init__(self, n_genes: int, n_groups: int, n_batches: int, *, truth: ProfileTruth | None = None) -> None:
        self._known = truth is not None
        self._truth = ProfileTruth.create(None, n_genes, n_groups, n_batches) if truth is None else truth
        self._sums = np.zeros((n_groups, n_genes))
        self._reference = np.zeros((n_batches, n_genes))
        self._linear: Sequence[LinearSums] = ()

    @classmethod
    def of_linear(cls, parts: Sequence[LinearSums], truth: ProfileTruth) -> ProfileSums:
        """Decoded sums of linear decoders that share the samples of `truth` out: no prediction is added."""
        made = cls(truth.sums.shape[1], 0, 0, truth=truth)
        made._linear = parts
        made._reference = np.sum([part.decoded_reference() for part in parts], axis=0)
        return made

    def add(self, pred: Any, true: Any, group: Ints, batch: Ints) -> None:
        """Add samples: prediction and truth (m, g); group (m,), -1 for controls, below that for neither; batch (m,)."""
        if np.shape(pred) != np.shape(true) or np.shape(pred)[1:] != self._reference.shape[1:]:
            raise InputError(
                f"prediction {np.shape(pred)} and truth {np.shape(true)} do not match",
                remedy="give both as samples x genes",
            )
        group, batch = np.asarray(group, dtype=np.int64), np.asarray(batch, dtype=np.int64)
        if not self._known:
            self._truth.add(true, group, batch)
        _add_profiles(np.ascontiguousarray(pred), group, batch, self._sums, self._reference)

    def result(
        self, reference: ProfileReference = "controls", *, block: Ints | None = None, left_out: int = 0
    ) -> Profiles:
        """Correlations of all samples added.

        Parameters
        ----------
        reference
            "controls", as above; "perturbed": the mean effect of all perturbations is subtracted too, in decoded and
            measured effects each, so that what they have in common does not count (Systema).
        block
            (n_groups,) block of each group, such as its cell line: the mean is that of the block. None: one block.
        left_out
            Samples that were not added since their batch has no control; passed on.

        Raises
        ------
        NotComputable
            Where a sample is in a batch without a control, there is none at all, or for "perturbed" with fewer than
            three perturbations.
        """
        counts = self._truth.n
        without = self._truth.n_reference == 0
        if counts[:, without].any():
            raise NotComputable(f"{int(without.sum())} batch(es) have no control to take an effect from")
        n = counts.sum(axis=1)
        present = np.flatnonzero(n)
        if not len(present):
            raise NotComputable("no perturbed sample in a batch with controls")
        values, constant = np.full(len(n), np.nan), np.zeros(len(n), dtype=bool)
        codes = np.zeros(len(n), dtype=np.int64) if block is None or reference == "controls" else block
        for code in np.unique(codes[present]):
            mine = present[codes[present] == code]
            common = np.zeros((2, self._reference.shape[1]))
            if reference == "perturbed":
                if len(mine) < 3:
                    continue
                for rows in self._blocks(mine):
                    common += self._effects(rows).sum(axis=1) / len(mine)
            for rows in self._blocks(mine):
                decoded, measured = self._effects(rows) - common[:, None]
                values[rows], constant[rows] = _row_correlations(decoded, measured)
        release(self._truth.sums)
        if reference == "perturbed" and np.bincount(codes[present]).max() < 3:
            raise NotComputable(f"{len(present)} perturbation(s): too few to subtract their mean")
        return Profiles(values, constant, n, left_out)

    def _blocks(self, present: Ints) -> Iterator[Ints]:
        for rows in row_blocks(len(present), self._reference.shape[1]):
            yield present[rows]

    def _effects(self, groups: Ints) -> F64:
        """Decoded and measured effects of some groups: (2, m, g)."""
        truth = self._truth
        n = truth.n[groups].sum(axis=1)[:, None]
        decoded = self._sums[groups] if not self._linear else sum(part.decoded(groups) for part in self._linear)
        shares = truth.n[groups] / n
        controls = np.maximum(truth.n_reference, 1)[:, None]
        sides = (decoded, self._reference), (truth.sums[groups], truth.reference)
        return np.stack([sums / n - shares @ (reference / controls) for sums, reference in sides])


def _centred(rows: F64) -> tuple[F64, F64, Bools]:
    """Rows less their mean, the norm of each, and which are constant.

    An effect is a difference of values of about 1, so that what rounding leaves has a size of its own, too.
    """
    centred = rows - rows.mean(axis=1, keepdims=True)
    size = np.linalg.norm(centred, axis=1)
    largest = np.maximum(np.abs(rows).max(axis=1, initial=0), 1e-6)
    return centred, size, no_spread(size / np.sqrt(rows.shape[1]), largest)


def _row_correlations(a: F64, b: F64) -> tuple[F64, Bools]:
    """Pearson correlation of each pair of rows, and where the row of `a` is constant (then 0; NaN where `b` is)."""
    (x, size_x, flat_x), (y, size_y, flat_y) = _centred(a), _centred(b)
    product = np.einsum("ij,ij->i", x, y)
    values = product / np.where(flat_x | flat_y, 1.0, size_x * size_y)
    return np.where(flat_y, np.nan, np.where(flat_x, 0.0, np.clip(values, -1.0, 1.0))), flat_x


@dataclass(frozen=True)
class ProfileParts:
    """What each batch contributes to the correlation of each perturbation.

    Attributes
    ----------
    group, batch
        (m,) codes of the perturbations with a correlation, in the batches that have samples of them.
    values, weight
        (m,) float64: values of a group add up to its correlation, weights to 1.
    """

    group: Ints
    batch: Ints
    values: F64
    weight: F64


class ProfileCells:
    """Mean effects of every perturbation in every batch on some genes, decoded and measured, gene by gene.

    Parameters
    ----------
    group, batch
        (n,) codes of the samples as for `ProfileSums.add`.
    n_batches, n_genes
        Number of batches, and of the genes that could be added: some are passed over where they are too many.
    """

    def __init__(self, group: Ints, batch: Ints, n_batches: int, n_genes: int) -> None:
        self.used, self.controls = np.flatnonzero(group >= 0), np.flatnonzero(group == -1)
        cells, of_cell, number = np.unique(
            group[self.used] * n_batches + batch[self.used], return_inverse=True, return_counts=True
        )
        self.group, self.batch, self.number = cells // n_batches, cells % n_batches, number
        self.n_batches, self.step = n_batches, max(1, -(-len(cells) * n_genes // PART_ELEMENTS))
        self.effects: list[tuple[F64, F64]] = []
        self._cell, self._control = np.asarray(of_cell).reshape(-1), batch[self.controls]
        self._n_controls = np.maximum(np.bincount(self._control, minlength=n_batches), 1)

    def add(self, pred: Any, true: Any) -> None:
        """Add a gene: (n,) decoded and measured values of the samples."""

        def effect(values: Any) -> F64:
            means = np.bincount(self._control, weights=values[self.controls], minlength=self.n_batches)
            sums = np.bincount(self._cell, weights=values[self.used], minlength=len(self.number))
            return np.asarray(sums / self.number - (means / self._n_controls)[self.batch], dtype=np.float64)

        self.effects.append((effect(pred), effect(true)))


def profile_parts(
    cells: ProfileCells,
    correlations: F64,
    *,
    reference: ProfileReference = "controls",
    block: Ints | None = None,
) -> ProfileParts:
    r"""Contributions of batches to correlations of effects: what the correlations lose without them.

    A batch's controls are in the effects of all perturbations that it has, so that these are not independent. With
    :math:`w_{gb}` the share of a perturbation's samples that are in batch b, the batch contributes
    :math:`w_{gb} r_g + (1 - w_{gb}) (r_g - r_{g,-b})`, less the mean of the second term over the batches. The slope of
    the correlation would do for small changes, but a batch of few moves an effect by as much as its length, and the
    correlation, which is bounded, by less than the slope says.

    Parameters
    ----------
    cells
        Effects by batch on some genes.
    correlations
        (n_groups,) correlations over all genes, NaN where there is none; what the values add up to.
    reference, block
        As `ProfileSums.result`.
    """
    kept = np.isfinite(correlations[cells.group])
    of_group, of_batch, number = cells.group[kept], cells.batch[kept], cells.number[kept]
    present, place = np.unique(of_group, return_inverse=True)
    place = np.asarray(place, dtype=np.int64).reshape(-1)
    weight = number / np.bincount(place, weights=number)[place]
    effects = np.asarray(cells.effects, dtype=np.float64).reshape(-1, 2, len(cells.group)).transpose(1, 2, 0)[:, kept]
    means = np.zeros((2, len(present), effects.shape[2]))
    for side, effect in zip(means, effects, strict=True):
        np.add.at(side, place, weight[:, None] * effect)
    # A perturbation of one batch has no effect without it: that it would be absent is in the weights.
    rest = np.where(weight < 1 - 1e-9, 1 - weight, np.inf)
    without = means[:, place] + (weight / rest)[:, None] * (means[:, place] - effects)
    elsewhere = np.zeros(cells.n_batches)
    if reference == "perturbed":
        # The mean effect that is taken from all perturbations of a block moves with the batch too.
        blocks = np.zeros(len(present), dtype=np.int64) if block is None else np.asarray(block)[present]
        for code in np.unique(blocks):
            inside = np.flatnonzero(blocks == code)
            mine = np.flatnonzero(blocks[place] == code)
            moved = np.zeros((2, cells.n_batches, effects.shape[2]))
            for side, mean, effect in zip(moved, means, effects, strict=True):
                away = mean[place[mine]] - effect[mine]
                np.add.at(side, of_batch[mine], weight[mine, None] * away / len(inside))
            common = means[:, inside].mean(axis=1, keepdims=True)
            means[:, inside] -= common
            without[:, mine] -= common + moved[:, of_batch[mine]]
            # Those that the batch has not, of which there are many, by the slope.
            for side, slope in zip(moved, _slopes(*means[:, inside]), strict=True):
                absent = np.tile(slope.sum(axis=0), (cells.n_batches, 1))
                np.subtract.at(absent, of_batch[mine], slope[np.searchsorted(inside, place[mine])])
                elsewhere += np.einsum("ij,ij->i", absent, side)
    lost = (1 - weight) * (_row_correlations(*means)[0][place] - _row_correlations(*without)[0])
    lost = np.where(np.isfinite(lost), lost, 0.0)
    lost -= weight * np.bincount(place, weights=lost)[place]
    mean = correlations[present].astype(np.float64)
    values = np.asarray(weight * mean[place] + lost, dtype=np.float64)
    if elsewhere.any():
        share = np.bincount(of_batch, weights=weight, minlength=cells.n_batches) / weight.sum()
        of_batches = np.bincount(of_batch, weights=values, minlength=cells.n_batches)
        of_batches += elsewhere - share * elsewhere.sum()
        values = with_margins(values, weight, (of_batch, place), (of_batches, mean))
    return ProfileParts(of_group.astype(np.int64), of_batch.astype(np.int64), values, weight)


def _slopes(a: F64, b: F64) -> tuple[F64, F64]:
    """Derivative of the Pearson correlation of each pair of rows in either row; 0 where one is constant."""
    (a, size_a, flat_a), (b, size_b, flat_b) = _centred(a), _centred(b)
    size_a, size_b, flat = size_a[:, None], size_b[:, None], (flat_a | flat_b)[:, None]
    a, b = a / np.where(flat, 1.0, size_a), b / np.where(flat, 1.0, size_b)
    rho = np.einsum("ij,ij->i", a, b)[:, None]
    return (
        np.where(flat, 0.0, (b - rho * a) / np.where(flat, 1.0, size_a)),
        np.where(flat, 0.0, (a - rho * b) / np.where(flat, 1.0, size_b)),
    )


def pearson_delta(
    pred: Any,
    true: Any,
    perturbation: Any,
    batch: Any,
    is_control: Any,
    *,
    reference: ProfileReference = "controls",
    max_elements: int | None = None,
) -> dict[str, float]:
    """Pearson correlation over genes of the decoded and the measured effect of every perturbation.

    Parameters
    ----------
    pred, true
        (n, g) log-normalised expression: arrays or anything that gives rows.
    perturbation, batch
        (n,) labels. Samples of batches without controls do not count.
    is_control
        (n,) bool.
    reference
        "controls": the effect is the difference from the controls of the same batch; "perturbed": also from the mean
        effect of all perturbations.
    max_elements
        Values read at once.

    Returns
    -------
    dict
        Label -> -1 .. 1, sorted; 0 for a decoded effect that is the same for every gene, NaN for such a measured one.

    Raises
    ------
    InputError
        For shapes that differ.
    NotComputable
        Where no batch has both controls and perturbed samples, or for "perturbed" with fewer than three perturbations.

    Examples
    --------
    >>> import numpy as np
    >>> true = np.array([[0.0, 0, 0], [1, 2, 3]])
    >>> found = pearson_delta(true * 0.5, true, ["c", "a"], [0, 0], np.array([True, False]))
    >>> {label: round(value, 6) for label, value in found.items()}
    {'a': 1.0}
    """
    p, t = checked_matrix(pred, "pred"), checked_matrix(true, "true")
    n, g = p.shape
    control = np.asarray(is_control, dtype=bool)
    codes, labels = encode(perturbation, n, name="perturbation")
    strata, batches = encode(batch, n, name="batch")
    usable = np.bincount(strata, weights=control, minlength=len(batches))[strata] > 0
    group = np.where(usable, np.where(control, -1, codes), -2)
    sums = ProfileSums(g, len(labels), len(batches))
    for rows in row_blocks(n, g, max_elements):
        sums.add(p[rows], t[rows], group[rows], strata[rows])
    found = sums.result(reference, left_out=int((~usable).sum()))
    return {str(labels[i]): float(found.values[i]) for i in np.flatnonzero(found.n)}
