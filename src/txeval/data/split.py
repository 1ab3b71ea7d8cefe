"""Splits by whole batches and whole perturbations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from txeval.compute.arrays import Bools, Ints, Strings
from txeval.compute.random import stream
from txeval.errors import InputError, unknown

__all__ = ["SPLIT_SCHEMES", "split"]

#: Ways to draw the train batches and the seen perturbations.
SPLIT_SCHEMES: tuple[str, ...] = ("paper", "reference")


def split(
    perturbation: npt.ArrayLike,
    batch: npt.ArrayLike,
    is_control: npt.ArrayLike,
    *,
    seed: int,
    scheme: str = "paper",
    train_fraction: float = 0.7,
) -> dict[str, Ints]:
    """Split samples by whole batches and by whole perturbations.

    - `train`: train batches, seen perturbations;
    - `test`: test batches, seen perturbations that do occur in `train`;
    - `heldout`: test batches, held-out perturbations;
    - controls: in each of the three, those of the batches that the split has perturbed samples of.

    Samples of held-out perturbations in train batches are in none.

    Parameters
    ----------
    perturbation, batch
        (n,) labels of any type. They are compared as text, so give the labels themselves: codes of the
        same labels draw another split.
    is_control
        (n,) bool. The perturbation label of a control is not looked at.
    seed
        Seed of the draw.
    scheme
        `paper`: labels are sorted as text before the draw, so that the same samples in another order are
        split alike; int(train_fraction * number) of the batches and of the perturbations are train, but at
        least one and, where there are two or more, never all. `reference`: the draw of the published code,
        numpy's legacy generator over the batches and then the perturbations, in order of first
        appearance among the perturbed samples; int(train_fraction * number), which can be 0.
    train_fraction
        Between 0 and 1, both excluded.

    Returns
    -------
    dict
        Sorted row numbers (int64) of `train`, `test` and `heldout`. One that cannot be made is empty: with a
        single batch there is no `test` and no `heldout`, with a single perturbation no `heldout`.

    Raises
    ------
    InputError
        For no samples, different lengths, no perturbed samples, missing labels, flags that are not boolean,
        or a seed, scheme or fraction out of range.
    """
    control = _flags(is_control)
    perturbation_code, perturbations = _labels(perturbation, "perturbation", len(control), needed=~control)
    batch_code, batches = _labels(batch, "batch", len(control), needed=np.ones(len(control), dtype=bool))
    if scheme not in SPLIT_SCHEMES:
        raise unknown("split scheme", str(scheme), SPLIT_SCHEMES)
    if not 0 < train_fraction < 1:
        raise InputError(f"train_fraction is {train_fraction!r}", remedy="give a number between 0 and 1")
    perturbed = ~control
    if not perturbed.any():
        raise InputError(
            f"all {len(control):,} samples are controls: there is no perturbed sample to split",
            remedy="check which labels are declared as controls",
        )

    present_batches = pd.unique(batch_code[perturbed])
    present_perturbations = pd.unique(perturbation_code[perturbed])
    if scheme == "paper":
        train_batches = _draw(present_batches, batches, seed, "batches", train_fraction)
        seen = _draw(present_perturbations, perturbations, seed, "perturbations", train_fraction)
    else:
        if not 0 <= seed < 2**32:
            raise InputError(f"seed is {seed!r}", remedy="scheme 'reference' needs a seed from 0 to 4294967295")
        legacy = np.random.RandomState(seed)  # the published splits came from this generator
        train_batches = legacy.permutation(present_batches)[: int(train_fraction * len(present_batches))]
        seen = legacy.permutation(present_perturbations)[: int(train_fraction * len(present_perturbations))]

    in_train_batch = _members(train_batches, len(batches))[batch_code]
    is_seen = _members(seen, len(perturbations))[perturbation_code] & perturbed
    train = in_train_batch & is_seen
    in_train = _members(perturbation_code[train], len(perturbations))[perturbation_code]
    parts = {
        "train": train,
        "test": ~in_train_batch & is_seen & in_train,
        "heldout": ~in_train_batch & perturbed & ~is_seen,
    }
    rows: dict[str, Ints] = {}
    for name, part in parts.items():
        own_batch = _members(batch_code[part], len(batches))[batch_code]
        rows[name] = np.flatnonzero(part | (control & own_batch)).astype(np.int64)
    return rows


def _draw(codes: Ints, labels: Strings, seed: int, what: str, fraction: float) -> Ints:
    """Codes drawn for train, by a stream that sees the labels in sorted order only."""
    ordered = codes[np.argsort(labels[codes], kind="stable")]
    n = len(ordered)
    n_train = min(max(int(fraction * n), 1), max(n - 1, 1))
    return stream(seed, "split", what).permutation(ordered)[:n_train]


def _members(codes: Ints, n_labels: int) -> Bools:
    """Mark (n_labels,) the codes that occur."""
    found = np.zeros(n_labels, dtype=bool)
    found[codes] = True
    return found


def _flags(values: npt.ArrayLike) -> Bools:
    flags = np.asarray(values)
    if flags.ndim != 1 or len(flags) == 0:
        raise InputError(
            f"is_control has shape {flags.shape}", remedy="give one flag per sample, for at least one sample"
        )
    if flags.dtype != bool:
        if pd.isna(flags).any() or not np.isin(flags, (0, 1)).all():
            raise InputError("is_control has values that are neither true nor false", remedy="give booleans")
        flags = flags.astype(bool)
    return flags


def _labels(values: npt.ArrayLike, what: str, n: int, *, needed: Bools) -> tuple[Ints, Strings]:
    """Codes (n,) in order of first appearance and their labels as text; rows not needed may lack a label."""
    array: Any = values if isinstance(values, pd.Series | pd.Categorical | pd.Index) else np.asarray(values)
    if array.ndim != 1 or len(array) != n:
        raise InputError(
            f"{what} has shape {tuple(array.shape)} and is_control has {n:,} values",
            remedy=f"give one {what} label per sample",
        )
    raw, uniques = pd.factorize(array)
    missing = (raw < 0) & needed
    if missing.any():
        raise InputError(
            f"{int(missing.sum()):,} of {n:,} samples have no {what} label, the first is row {int(missing.argmax())}",
            remedy=f"label every sample, or leave out those without a {what}",
        )
    # Labels that read the same are one label; rows that need none share a code of their own.
    code_of_unique, labels = pd.factorize(np.asarray([str(label) for label in uniques], dtype=object))
    lookup = np.append(code_of_unique, len(labels)).astype(np.int64)
    return lookup[raw], np.append(np.asarray(labels, dtype=object), "")
