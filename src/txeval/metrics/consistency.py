"""Level 3: mean cosine of the samples of a perturbation, its energy distance to the controls, and their nulls."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import false_discovery_control

from txeval.compute.arrays import F64, Bools, Ints, Rows, Strings
from txeval.compute.energy import Reference, group_energies, set_energies_reach
from txeval.compute.groups import (
    SetDraws,
    as_codes,
    canonical_order,
    checked_matrix,
    encode,
    group_unit_sums,
    read_rows,
)
from txeval.compute.jit import jit
from txeval.compute.random import stream
from txeval.errors import InputError, NotComputable, unknown

__all__ = [
    "PValue",
    "adjust",
    "choose_controls",
    "consistency_permutation_p",
    "group_consistency",
    "group_energy",
    "magnitude_permutation_p",
    "perturbation_consistency",
    "perturbation_magnitude",
    "tail_p",
]

PValue = Literal["paper", "reference", "exact"]

#: Null values within rounding of the observed one count as reaching it: so much of a cosine, or of the largest value.
TIE = 1e-9

#: The permutation test of the magnitude needs all distances within a set: larger groups are thinned to this size.
MAX_SET = 1000


def adjust(p: npt.ArrayLike) -> F64:
    """p-values adjusted by Benjamini-Hochberg; NaN stays NaN and is not counted."""
    values = np.asarray(p, dtype=np.float64)
    out = np.full(values.shape, np.nan)
    known = np.isfinite(values)
    if known.any():
        out[known] = false_discovery_control(values[known])
    return out


def tail_p(values: npt.ArrayLike, null: npt.ArrayLike, p_value: PValue = "paper") -> F64:
    """p-values of values against a null: the share of the null at or above each.

    Parameters
    ----------
    values
        (m,); NaN gives NaN.
    null
        (K,) null values; NaN ones are not counted.
    p_value
        "paper": max(#{null >= x}, 1) / K. "reference": #{null >= x} / K, which can be 0. "exact": (1 + #{null >= x}) /
        (1 + K), which is valid where x and the null are exchangeable: the paper's is too small by as much as 1 / K.

    Raises
    ------
    NotComputable
        For fewer than two null values.
    """
    if p_value not in get_args(PValue):
        raise unknown("p_value", str(p_value), get_args(PValue))
    x = np.asarray(values, dtype=np.float64)
    known = np.asarray(null, dtype=np.float64)
    known = np.sort(known[np.isfinite(known)])
    if len(known) < 2:
        raise NotComputable(f"the null has {len(known)} group(s) of sufficient size; at least 2 are needed")
    rank = np.searchsorted(known, x - TIE * np.abs(known).max(), side="left")
    if p_value == "paper":
        p = np.maximum(len(known) - rank, 1) / len(known)
    elif p_value == "exact":
        p = (1 + len(known) - rank) / (1 + len(known))
    else:
        # Written as the published code has it, so that rounding agrees where p is compared with a limit.
        p = 1 - rank / len(known)
    return np.where(np.isfinite(x), p, np.nan)


def group_consistency(
    X: Rows, codes: Ints, n_groups: int, *, batch: Any = None, max_elements: int | None = None
) -> tuple[Ints, F64]:
    r"""Mean cosine similarity over all pairs of different samples of every group, in one pass.

    .. math:: \bar c_g = \frac{|\sum_i u_i|^2 - n}{n (n - 1)}, \qquad u_i = x_i / |x_i|

    A zero vector has cosine 0 with every sample. Celik et al. 2024; a sample is not paired with itself. With `batch`
    only pairs of samples of different batches count:

    .. math:: \bar c_g = \frac{|\sum_b s_b|^2 - \sum_b |s_b|^2}{n^2 - \sum_b n_b^2}, \qquad s_b = \sum_{i \in b} u_i

    Parameters
    ----------
    X
        (n, d).
    codes
        (n,) group of each sample; negative: in no group.
    n_groups
        Number of groups.
    batch
        (n,) labels or codes: only pairs across batches. None: all pairs.
    max_elements
        Values of X read at once.

    Returns
    -------
    (n, avg)
        (n_groups,) int64 sizes; (n_groups,) float64 in -1 .. 1, NaN for groups without a pair.
    """
    if batch is not None:
        return _across_batches(X, codes, n_groups, batch, max_elements)
    n, nonzero, sums = group_unit_sums(X, codes, n_groups, max_elements=max_elements)
    squares = np.einsum("ij,ij->i", sums, sums)
    pairs = (n * (n - 1)).astype(np.float64)
    avg = np.where(n >= 2, (squares - nonzero) / np.maximum(pairs, 1.0), np.nan)
    return n, np.clip(avg, -1.0, 1.0)


def _across_batches(X: Rows, codes: Ints, n_groups: int, batch: Any, max_elements: int | None) -> tuple[Ints, F64]:
    matrix = checked_matrix(X)
    codes = as_codes(codes, matrix.shape[0], n_groups)
    strata, labels = encode(batch, matrix.shape[0], name="batch")
    cells, cell = np.unique(np.where(codes >= 0, codes * len(labels) + strata, -1), return_inverse=True)
    outside = int(len(cells) > 0 and cells[0] < 0)
    n_cell, _, sums = group_unit_sums(matrix, cell.ravel() - outside, len(cells) - outside, max_elements=max_elements)
    group = cells[outside:] // len(labels)
    n = np.bincount(group, weights=n_cell, minlength=n_groups).astype(np.int64)
    total = np.zeros((n_groups, matrix.shape[1]))
    np.add.at(total, group, sums)
    within = np.bincount(group, weights=np.einsum("ij,ij->i", sums, sums), minlength=n_groups)
    pairs = n.astype(np.float64) ** 2 - np.bincount(group, weights=n_cell.astype(np.float64) ** 2, minlength=n_groups)
    avg = (np.einsum("ij,ij->i", total, total) - within) / np.maximum(pairs, 1.0)
    return n, np.where(pairs > 0, np.clip(avg, -1.0, 1.0), np.nan)


@jit
def _prefix_units(block: Any, starts: Any, out: Any) -> None:
    """Running sums of unit vectors within each stratum; the last column counts those that are not zero."""
    d = block.shape[1]
    for s in range(len(starts) - 1):
        for i in range(starts[s], starts[s + 1]):
            square = 0.0
            for j in range(d):
                value = np.float64(block[i, j])
                square += value * value
            scale = 1.0 / np.sqrt(square) if square > 0.0 else 0.0
            for j in range(d):
                out[i, j] = block[i, j] * scale
            out[i, d] = 1.0 if square > 0.0 else 0.0
            if i > starts[s]:
                for j in range(d + 1):
                    out[i, j] += out[i - 1, j]


@jit
def _count_reaching(prefix: Any, indptr: Any, last: Any, sizes: Any, observed: Any, tie: float, reached: Any) -> None:
    d = prefix.shape[1] - 1
    total = np.empty(d + 1)
    for g in range(len(indptr) - 1):
        for j in range(d + 1):
            total[j] = 0.0
        for e in range(indptr[g], indptr[g + 1]):
            row = last[e]
            for j in range(d + 1):
                total[j] += prefix[row, j]
        square = 0.0
        for j in range(d):
            square += total[j] * total[j]
        if (square - total[d]) / (sizes[g] * (sizes[g] - 1.0)) >= observed[g] - tie:
            reached[g] += 1


@jit
def _count_reaching_across(
    prefix: Any, indptr: Any, last: Any, count: Any, observed: Any, tie: float, reached: Any
) -> None:
    """As `_count_reaching`, over pairs of different strata: the set takes one prefix of each."""
    d = prefix.shape[1] - 1
    total = np.empty(d)
    for g in range(len(indptr) - 1):
        for j in range(d):
            total[j] = 0.0
        within = 0.0
        n = 0.0
        n_within = 0.0
        for e in range(indptr[g], indptr[g + 1]):
            row = last[e]
            square = 0.0
            for j in range(d):
                total[j] += prefix[row, j]
                square += prefix[row, j] * prefix[row, j]
            within += square
            n += count[e]
            n_within += count[e] * np.float64(count[e])
        square = 0.0
        for j in range(d):
            square += total[j] * total[j]
        if (square - within) / (n * n - n_within) >= observed[g] - tie:
            reached[g] += 1


def _checked_groups(groups: Ints, observed: F64, n_groups: int, draws: int) -> tuple[Ints, F64]:
    groups = np.asarray(groups, dtype=np.int64)
    observed = np.asarray(observed, dtype=np.float64)
    if draws < 1:
        raise InputError(f"draws is {draws}", remedy="use at least 20")
    if observed.shape != (n_groups,):
        raise InputError(f"there are {observed.shape} values for {n_groups} groups")
    return groups, observed


def consistency_permutation_p(
    X: Rows,
    codes: Ints,
    batch: Any,
    labels: Strings,
    groups: Ints,
    avg: F64,
    *,
    draws: int = 1000,
    seed: int = 0,
    across_batches: bool = False,
) -> F64:
    """p-values of mean cosines against random sets of perturbed samples with the same batches.

    The null of a group: sets of samples of all perturbations (its own included) that have, in each batch, as many
    samples as the group has there. p = (1 + #{null >= avg}) / (draws + 1), which is exactly valid where samples are
    exchangeable within batches. One draw shuffles every batch once and serves all groups: a group with c samples in
    a batch takes the first c. So the draws of one group are independent, those of different groups are not, and the
    cost is that of adding `draws` times as many vectors as there are (group, batch) pairs. Streams are keyed on the
    batch, and a batch's samples are drawn from in the order of their values: neither the order of groups or samples
    nor which groups are asked for changes a p-value.

    Parameters
    ----------
    X
        (n, d).
    codes
        (n,) perturbation of each sample; negative (controls): never drawn.
    batch
        (n,) batch of each sample, codes or labels.
    labels
        (n_groups,) names of the perturbations.
    groups
        (k,) codes of the perturbations to test, of at least two samples each.
    avg
        (n_groups,) mean cosines, see `group_consistency`.
    draws, seed
        Random sets per group, and their stream.
    across_batches
        Whether `avg` and the null are means over pairs of different batches only; every group has two batches then.

    Returns
    -------
    (k,) float64; NaN for a group whose batches hold no sample of another perturbation: it has no null.
    """
    matrix = checked_matrix(X)
    codes = as_codes(codes, matrix.shape[0], len(labels))
    groups, avg = _checked_groups(groups, avg, len(labels), draws)
    sets = SetDraws.of_groups(matrix, codes, batch, groups)
    sizes = sets.sizes
    if len(sizes) and sizes.min() < 2:
        small = str(labels[groups[int(sizes.argmin())]])
        raise InputError(f"perturbation {small!r} has {sizes.min()} sample(s)", remedy="test groups of two or more")
    if across_batches and len(sizes) and np.diff(sets.indptr).min() < 2:
        single = str(labels[groups[int(np.diff(sets.indptr).argmin())]])
        raise InputError(f"perturbation {single!r} is in one batch", remedy="test groups of two or more batches")
    reached = np.zeros(len(groups), dtype=np.int64)
    prefix = np.empty((sets.n_slots, matrix.shape[1] + 1))
    for chunk in sets.draw(draws, seed, "consistency"):
        for drawn in chunk:
            _prefix_units(read_rows(matrix, drawn), sets.slot_starts, prefix)
            if across_batches:
                _count_reaching_across(prefix, sets.indptr, sets.last_slots, sets.count, avg[groups], TIE, reached)
            else:
                _count_reaching(prefix, sets.indptr, sets.last_slots, sizes, avg[groups], TIE, reached)
    return np.where(sets.testable, (1 + reached) / (draws + 1), np.nan)


def choose_controls(X: Rows, is_control: Bools, *, max_controls: int = 1000, seed: int = 0) -> Ints:
    """Row numbers of the controls that serve as reference: all, or a random `max_controls` of them.

    They are drawn by their place in the order of their values, so that the order of the samples does not matter.

    Raises
    ------
    NotComputable
        Where there is no control.
    """
    rows = np.flatnonzero(is_control)
    if not len(rows):
        raise NotComputable("there are no controls to measure a distance to")
    if len(rows) <= max_controls:
        return rows
    picked = stream(seed, "magnitude", "controls").choice(len(rows), size=max_controls, replace=False)
    return np.sort(canonical_order(X, rows)[picked])


def group_energy(
    X: Rows,
    codes: Ints,
    n_groups: int,
    is_control: Bools,
    *,
    max_controls: int = 1000,
    min_samples: int = 5,
    seed: int = 0,
    max_elements: int | None = None,
    device: str = "cpu",
) -> F64:
    """Energy distance of every group to at most `max_controls` controls.

    Formula: `txeval.compute.energy.group_energies`; controls: `choose_controls`. On another `device` of torch than the
    CPU distances are float64 and not float32; results agree to about 1e-6 of the mean distance.

    Returns
    -------
    (n_groups,) float64 >= 0 up to rounding; NaN for groups of fewer than `min_samples` samples.
    """
    matrix = checked_matrix(X)
    control = _flags(is_control, matrix.shape[0])
    chosen = choose_controls(matrix, control, max_controls=max_controls, seed=seed)
    reference = Reference.of_rows(matrix, chosen, device=device)
    return group_energies(matrix, codes, n_groups, reference, min_samples=min_samples, max_elements=max_elements)[1]


def magnitude_permutation_p(
    X: Rows,
    codes: Ints,
    batch: Any,
    is_control: Bools,
    labels: Strings,
    groups: Ints,
    energy: F64,
    *,
    draws: int = 1000,
    max_controls: int = 1000,
    max_set: int = MAX_SET,
    seed: int = 0,
    device: str = "cpu",
) -> F64:
    """p-values of energy distances against random sets of perturbed samples with the same batches.

    Same sets and same validity as `consistency_permutation_p`. Groups of more than `max_set` samples are thinned to
    that size within their batches, and their distance is taken again on what is left: the test is valid, with less
    power.

    Parameters
    ----------
    energy
        (n_groups,) distances from `group_energy` with the same controls and seed.
    max_set
        See above.
    device
        Of torch: where distances are computed; the same as that of `energy`.

    Returns
    -------
    (k,) float64; NaN for a group whose batches hold no sample of another perturbation.
    """
    matrix = checked_matrix(X)
    codes = as_codes(codes, matrix.shape[0], len(labels))
    groups, energy = _checked_groups(groups, energy, len(labels), draws)
    control = _flags(is_control, matrix.shape[0])
    chosen = choose_controls(matrix, control, max_controls=max_controls, seed=seed)
    reference = Reference.of_rows(matrix, chosen, device=device)
    sets = SetDraws.of_groups(matrix, codes, batch, groups, max_samples=max_set)
    observed = energy[groups].copy()
    strata = encode(batch, matrix.shape[0], name="batch")[0]
    sizes = np.bincount(codes[codes >= 0], minlength=len(labels))
    for i in np.flatnonzero(sizes[groups] > max_set):
        rows = np.flatnonzero(codes == groups[i])
        rows = canonical_order(matrix, rows, strata[rows])
        quota = sets.count[sets.indptr[i] : sets.indptr[i + 1]]
        kept = sets.stratum[sets.indptr[i] : sets.indptr[i + 1]]
        rng = stream(seed, "magnitude", "thinned", str(labels[groups[i]]))
        thinned = [
            rng.choice(rows[strata[rows] == stratum], size=count, replace=False)
            for stratum, count in zip(kept, quota, strict=True)
        ]
        mine = np.full(matrix.shape[0], -1, dtype=np.int64)
        mine[np.concatenate(thinned)] = 0
        observed[i] = group_energies(matrix, mine, 1, reference)[1][0]
    reached = set_energies_reach(matrix, sets, reference, observed, draws=draws, seed=seed)
    return np.where(sets.testable, (1 + reached) / (draws + 1), np.nan)


def _flags(flags: Any, n: int, name: str = "is_control") -> Bools:
    array = np.asarray(flags)
    if array.shape != (n,):
        raise InputError(f"{name} has shape {array.shape} for {n} samples", remedy="give one flag per sample")
    if array.dtype != np.bool_:
        raise InputError(f"{name} holds {array.dtype} values", remedy="give booleans")
    return array


def _null_groups(null: Any, labels: Strings) -> Bools:
    """(n_groups,) which labels are the null; every null label must exist."""
    names = [null] if isinstance(null, str) else list(null)
    if not names:
        raise InputError("no null label is given", remedy="name the perturbations that serve as null")
    present = set(labels.tolist())
    for name in names:
        if name not in present:
            raise unknown("perturbation", str(name), map(str, labels), where="null")
    return np.asarray(np.isin(labels, names), dtype=bool)


def perturbation_consistency(
    X: Any,
    perturbation: Any,
    null: Any,
    *,
    p_value: PValue = "paper",
    is_control: Any = None,
    max_elements: int | None = None,
) -> pd.DataFrame:
    r"""Whether a perturbation moves its samples the same way: mean cosine of its samples against a null.

    .. math:: \bar c_g = \frac{|\sum_i u_i|^2 - n}{n (n - 1)}, \qquad
        p_g = \max(\#\{\mathrm{null} \ge \bar c_g\}, 1) / K

    Celik et al. 2024 (doi:10.1371/journal.pcbi.1012463). Pairs of a sample with itself do not count; a zero vector
    has cosine 0 with every sample.

    Parameters
    ----------
    X
        (n, d) embedding: an array or anything that gives rows.
    perturbation
        (n,) labels.
    null
        Labels whose mean cosines are the null; those of fewer than two samples do not count.
    p_value
        "paper", as above; "reference": #{null >= c} / K, which can be 0.
    is_control
        (n,) bool: samples to leave out. By default every label counts, a control label too.
    max_elements
        Values of X read at once.

    Returns
    -------
    pandas.DataFrame
        One row per label that is not in the null, sorted: perturbation, n, avg_cosine (-1 .. 1), p_value (0 .. 1),
        p_adjusted (Benjamini-Hochberg over these rows); NaN for labels of fewer than two samples.

    Raises
    ------
    InputError
        For lengths that differ, NaN, or null labels that do not exist.
    NotComputable
        Where fewer than two null labels have two samples.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[1.0, 0], [1, 0], [1, 0], [0, 1], [1, 0], [-1, 0]])
    >>> found = perturbation_consistency(X, ["a", "a", "n1", "n1", "n2", "n2"], ["n1", "n2"])
    >>> found.avg_cosine.tolist(), found.p_value.tolist()
    ([1.0], [0.5])
    """
    matrix = checked_matrix(X)
    codes, labels, in_null = _grouping(matrix, perturbation, null, is_control)
    n, avg = group_consistency(matrix, codes, len(labels), max_elements=max_elements)
    return _table(n, "avg_cosine", avg, labels, in_null, p_value)


def perturbation_magnitude(
    X: Any,
    perturbation: Any,
    is_control: Any,
    null: Any,
    *,
    max_controls: int = 1000,
    min_samples: int = 5,
    seed: int = 0,
    p_value: PValue = "paper",
    max_elements: int | None = None,
) -> pd.DataFrame:
    r"""How far a perturbation moves its samples: energy distance to the controls against a null.

    .. math:: E = 2 \overline{|x - y|} - \overline{|x - x'|} - \overline{|y - y'|}

    over all ordered pairs, a sample with itself included.

    Parameters
    ----------
    X
        (n, d) embedding: an array or anything that gives rows.
    perturbation
        (n,) labels.
    is_control
        (n,) bool; control samples are the reference and belong to no perturbation.
    null
        Labels whose distances are the null; those of fewer than `min_samples` samples do not count.
    max_controls, seed
        More controls than this are sampled, from the seed's stream.
    min_samples
        Smaller groups have no distance.
    p_value
        See `perturbation_consistency`.
    max_elements
        Values of X read at once.

    Returns
    -------
    pandas.DataFrame
        One row per label that is not in the null, sorted: perturbation, n, energy_distance (>= 0), p_value (0 .. 1),
        p_adjusted (Benjamini-Hochberg over these rows); NaN for small groups.

    Raises
    ------
    InputError
        For lengths that differ, NaN, or null labels that do not exist.
    NotComputable
        Without controls, or where fewer than two null labels have enough samples.
    """
    matrix = checked_matrix(X)
    control = _flags(is_control, matrix.shape[0])
    codes, labels, in_null = _grouping(matrix, perturbation, null, control)
    n = np.bincount(codes[codes >= 0], minlength=len(labels)).astype(np.int64)
    energy = group_energy(
        matrix,
        codes,
        len(labels),
        control,
        max_controls=max_controls,
        min_samples=min_samples,
        seed=seed,
        max_elements=max_elements,
    )
    return _table(n, "energy_distance", energy, labels, in_null, p_value)


def _grouping(X: Rows, perturbation: Any, null: Any, is_control: Any) -> tuple[Ints, Strings, Bools]:
    """Codes (-1: left out), labels, and which labels are the null."""
    codes, labels = encode(perturbation, X.shape[0], name="perturbation")
    if is_control is not None:
        codes = np.where(_flags(is_control, len(codes)), -1, codes)
    # Labels of which no sample is left are not perturbations.
    kept = np.bincount(codes[codes >= 0], minlength=len(labels)) > 0
    codes = np.where(codes >= 0, (np.cumsum(kept) - 1)[codes], -1)
    labels = labels[kept]
    return codes, labels, _null_groups(null, labels)


def _table(n: Ints, name: str, values: F64, labels: Strings, in_null: Bools, p_value: PValue) -> pd.DataFrame:
    p = tail_p(values[~in_null], values[in_null], p_value)
    return pd.DataFrame(
        {
            "perturbation": labels[~in_null],
            "n": n[~in_null],
            name: values[~in_null],
            "p_value": p,
            "p_adjusted": adjust(p),
        }
    )
