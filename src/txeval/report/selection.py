"""Choice of the post-processing of a model: on the numbers that are shown, or without leakage."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from txeval.compute.arrays import Bools
from txeval.compute.intervals import Units
from txeval.errors import NotComputable

__all__ = ["CrossFitted", "cross_fitted", "halving_factor"]

#: Tasks whose halves are batches: what they learn from is the same for both, what they are asked is not.
BY_BATCH = ("linear_probe", "knn")

#: What is halved elsewhere: the first of these that the score is made of.
ORDER = ("perturbation", "gene", "batch")


@dataclass(frozen=True)
class CrossFitted:
    """A score whose post-processing was chosen on other units than those that it is reported on.

    Attributes
    ----------
    chosen
        Post-processing chosen on the second half and reported on the first, and the other way round.
    units
        For each seed the contributions of both reported halves together.
    factor
        What was halved.
    sizes
        Number of its levels in each half.
    left_out
        What is in neither half -> how many.
    """

    chosen: tuple[str, str]
    units: tuple[Units, ...]
    factor: str
    sizes: tuple[int, int]
    left_out: Mapping[str, int]

    @property
    def values(self) -> list[float]:
        """The score for each seed."""
        return [units.value for units in self.units]


def halving_factor(task: str, units: Units) -> str:
    """Which units are halved: test batches for probing and kNN, else perturbations, genes or batches.

    Raises
    ------
    NotComputable
        None of the score's factors has two levels.
    """
    order = ("batch", *ORDER) if task in BY_BATCH else ORDER
    for factor in (*order, *units.pools):
        if factor in units.pools and units.n_levels(factor) >= 2:
            return str(factor)
    few = " and ".join(f"{units.n_levels(factor)} {factor}" for factor in units.pools)
    raise NotComputable(f"the score is made of {few}, which cannot be halved")


def cross_fitted(
    candidates: Mapping[str, Sequence[Units]], *, factor: str, split: str, higher_is_better: bool = True
) -> CrossFitted:
    """Choose a post-processing on each half of the units and report it on the other.

    Of pairs of units, those with both in one half count; the others belong to neither half.

    Parameters
    ----------
    candidates
        Post-processing -> units of each seed, in the order in which a tie is broken.
    factor
        What is halved.
    split
        Name of the split, which seeds the halves: they are the same for every model and metric.

    Raises
    ------
    NotComputable
        A half has no score under any post-processing.
    """
    every = [units for seeds in candidates.values() for units in seeds]
    second_half = _second_half(every, factor, split)
    parts: dict[str, list[tuple[Units, Units]]] = {}
    for post, seeds in candidates.items():
        parts[post] = [_parted(units, factor, second_half) for units in seeds]
    chosen = []
    for half in (0, 1):
        # Judged by one half, reported on the other.
        values = {post: float(np.mean([pair[1 - half].value for pair in pairs])) for post, pairs in parts.items()}
        known = {post: value for post, value in values.items() if np.isfinite(value)}
        if not known:
            raise NotComputable(f"one half of the {factor} levels has no score")
        best = max(known.values()) if higher_is_better else min(known.values())
        chosen.append(next(post for post, value in known.items() if value == best))
    pairs = zip(parts[chosen[0]], parts[chosen[1]], strict=True)
    made = tuple(_joined(first[0], second[1]) for first, second in pairs)
    if not all(np.isfinite(units.value) for units in made):
        raise NotComputable(f"one half of the {factor} levels has no score")
    whole = candidates[chosen[0]][0]
    left_out = {}
    if whole.dyadic:
        left_out[f"pairs of {factor}s of different halves"] = len(whole.numerator) - len(made[0].numerator)
    in_second = sum(second_half.values())
    return CrossFitted((chosen[0], chosen[1]), made, factor, (len(second_half) - in_second, in_second), left_out)


def _second_half(every: Sequence[Units], factor: str, split: str) -> dict[str, bool]:
    """Level -> whether it is in the second half, by the order of digests of split and label."""
    labels = sorted({label for units in every for label in _present(units, factor)})

    def place(label: str) -> bytes:
        return hashlib.sha256(f"{split}\x1f{factor}\x1f{label}".encode("utf-8", "surrogatepass")).digest()

    order = sorted(labels, key=place)
    return {label: i >= len(order) // 2 for i, label in enumerate(order)}


def _present(units: Units, factor: str) -> list[str]:
    found: set[str] = set()
    for name, labels, codes in zip(units.factors, units.labels, units.codes, strict=True):
        if name == factor:
            found.update(str(label) for label in labels[np.unique(codes)])
    return sorted(found)


def _parted(units: Units, factor: str, second_half: Mapping[str, bool]) -> tuple[Units, Units]:
    labels = units.labels[units.factors.index(factor)]
    second: Bools = np.asarray([second_half.get(str(label), False) for label in labels], dtype=bool)
    return units.subset(factor, ~second), units.subset(factor, second)


def _joined(one: Units, other: Units) -> Units:
    """Contributions of disjoint units to one score, on the scale of the score."""
    labels, codes = [], []
    for side in range(len(one.factors)):
        both = [*one.labels[:2], *other.labels[:2]] if one.dyadic else [one.labels[side], other.labels[side]]
        union = np.unique(np.concatenate([np.asarray(part).astype(str) for part in both]))
        labels.append(union)
        codes.append(
            np.concatenate(
                [
                    np.searchsorted(union, np.asarray(part.labels[side]).astype(str))[part.codes[side]]
                    for part in (one, other)
                ]
            ).astype(np.int64)
        )
    denominator = np.concatenate([one.denominator, other.denominator])
    numerator = np.concatenate([part.offset * part.denominator + part.scale * part.numerator for part in (one, other)])
    alone = None
    if one.alone is not None and other.alone is not None:
        alone = np.concatenate(
            [part.offset * part.denominator + part.scale * np.asarray(part.alone) for part in (one, other)]
        )
    return Units(one.factors, tuple(labels), tuple(codes), numerator, denominator, alone=alone)
