"""Intervals and differences of scores from what each unit of resampling contributed to them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import optimize, special, stats

from txeval.compute.arrays import F64, Bools, Ints, Strings
from txeval.errors import NotComputable

__all__ = [
    "CONTROLS",
    "MAX_CELLS",
    "MIN_UNITS",
    "UNITS_VERSION",
    "Interval",
    "Spread",
    "Units",
    "adjusted_share_interval",
    "cluster_moments",
    "combine",
    "interval",
    "once_of_pairs",
    "seed_interval",
    "spread",
    "units_from_frame",
    "units_to_frame",
    "with_margins",
]

#: Where no factor has so many levels there is no interval: it would say more about luck than about the score.
MIN_UNITS = 5

#: A second factor with fewer levels than this is taken as given: two of them tell next to nothing of how they vary.
MIN_LEVELS = 3

#: Variances that are differences are no less than this share of what they are with no part below 0.
LEAST_VARIANCE = 0.1

#: Of a score; beyond this its estimate and the expansion that uses it are no longer to be trusted.
MAX_SKEWNESS = 0.3

#: Start of the names of levels that are no draw from a population but the design of a screen: the controls of a batch.
#: What tells them apart from the other levels is not spread.
CONTROLS = "controls of batch "

#: Crossed contributions are kept in at most about so many cells; see `Units.crossed`.
MAX_CELLS = 50_000

#: Changes when stored contributions are to be computed again.
UNITS_VERSION = 3

_COLUMNS = (
    "metric",
    "subset",
    "factor_a",
    "factor_b",
    "label_a",
    "label_b",
    "numerator",
    "alone",
    "denominator",
    "offset",
    "scale",
)


@dataclass(frozen=True, eq=False)
class Units:
    """What each unit of resampling contributed to a score.

    `score = offset + scale * sum(numerator) / sum(denominator)`. Each of the m contributions belongs to one level
    of each factor. Two factors of the same name hold pairs of units of one pool.

    Attributes
    ----------
    factors
        One or two names: ("perturbation",), ("batch", "perturbation"), ("gene", "gene").
    labels
        Per factor its levels, distinct; what makes the units of two embeddings match.
    codes
        Per factor (m,) int64 codes into its labels.
    numerator, denominator
        (m,) float64.
    alone
        (m,) numerators for the interval of the score by itself, with the same sum; None: `numerator`. They hold what
        does not bear on a difference of two scores of the same samples, such as what a class takes from others.
    """

    factors: tuple[str, ...]
    labels: tuple[Strings, ...]
    codes: tuple[Ints, ...]
    numerator: F64
    denominator: F64
    offset: float = 0.0
    scale: float = 1.0
    alone: F64 | None = None

    def __post_init__(self) -> None:
        m = len(self.numerator)
        if not len(self.factors) == len(self.labels) == len(self.codes) or len(self.factors) not in (1, 2):
            raise ValueError("units have one or two factors, each with labels and codes")
        for name, labels, codes in zip(self.factors, self.labels, self.codes, strict=True):
            if len(codes) != m or len(self.denominator) != m:
                raise ValueError(f"{len(codes)} codes of {name} for {m} contributions")
            if m and not (codes.min() >= 0 and codes.max() < len(labels)):
                raise ValueError(f"codes of {name} go from {codes.min()} to {codes.max()} for {len(labels)} labels")

    # Constructors

    @classmethod
    def single(
        cls,
        factor: str,
        labels: npt.ArrayLike,
        numerator: npt.ArrayLike,
        denominator: npt.ArrayLike | None = None,
        *,
        offset: float = 0.0,
        scale: float = 1.0,
    ) -> Units:
        """One contribution per level of one factor; without `denominator` the score is their mean."""
        values = np.asarray(numerator, dtype=np.float64)
        below = np.ones(len(values)) if denominator is None else np.asarray(denominator, dtype=np.float64)
        names = np.asarray(labels).astype(str)
        return cls((factor,), (names,), (np.arange(len(values)),), values, below, offset, scale)

    @classmethod
    def crossed(
        cls,
        factors: tuple[str, str],
        labels: tuple[npt.ArrayLike, npt.ArrayLike],
        codes: tuple[Ints, Ints],
        numerator: npt.ArrayLike,
        denominator: npt.ArrayLike | None = None,
        *,
        offset: float = 0.0,
        scale: float = 1.0,
        alone: npt.ArrayLike | None = None,
        max_cells: int = MAX_CELLS,
    ) -> Units:
        """Contributions of samples, summed into the cells of two crossed factors.

        Where there are more than `max_cells` cells, the levels of the factor that has more of them are put together
        in groups at random (by a digest of their names, so that the groups of all embeddings are the same): the
        variance that is estimated from groups of independent units has the same expectation.

        Parameters
        ----------
        codes
            Per factor (n,) codes of the samples into its labels.
        numerator, denominator, alone
            (n,) per sample; without `denominator` 1 each.
        """
        values = np.asarray(numerator, dtype=np.float64)
        below = np.ones(len(values)) if denominator is None else np.asarray(denominator, dtype=np.float64)
        names = [np.asarray(side).astype(str) for side in labels]
        used = [np.unique(side, return_inverse=True) for side in codes]
        present = [name[levels] for name, (levels, _) in zip(names, used, strict=True)]
        place = [np.asarray(inverse, dtype=np.int64).reshape(-1) for _, inverse in used]
        cells = np.unique(place[0] * max(1, len(present[1])) + place[1])
        if len(cells) > max_cells:
            side = int(len(present[1]) >= len(present[0]))
            groups = max(MIN_UNITS, max_cells // len(present[1 - side]))
            if groups < len(present[side]):
                merged, group = _grouped(present[side], groups, factors[side])
                present[side], place[side] = merged, group[place[side]]
        single = None if alone is None else np.asarray(alone, dtype=np.float64)
        made = cls(factors, (present[0], present[1]), (place[0], place[1]), values, below, offset, scale, single)
        return made._summed()

    @classmethod
    def pairs(
        cls,
        factor: str,
        labels: npt.ArrayLike,
        first: Ints,
        second: Ints,
        numerator: npt.ArrayLike,
        denominator: npt.ArrayLike | None = None,
        *,
        offset: float = 0.0,
        scale: float = 1.0,
    ) -> Units:
        """Contributions of pairs of units of one pool; levels without a pair are left out."""
        values = np.asarray(numerator, dtype=np.float64)
        below = np.ones(len(values)) if denominator is None else np.asarray(denominator, dtype=np.float64)
        levels, codes = np.unique(np.concatenate([first, second]), return_inverse=True)
        names = np.asarray(labels).astype(str)[levels]
        half, codes = len(values), np.asarray(codes, dtype=np.int64).reshape(-1)
        return cls((factor, factor), (names, names), (codes[:half], codes[half:]), values, below, offset, scale)

    # Properties

    @property
    def dyadic(self) -> bool:
        """Whether contributions are of pairs of units of one pool."""
        return len(self.factors) == 2 and self.factors[0] == self.factors[1]

    @property
    def pools(self) -> tuple[str, ...]:
        """Names of the pools of units: the factors, that of pairs once."""
        return self.factors[:1] if self.dyadic else self.factors

    @property
    def value(self) -> float:
        """The score."""
        return self.offset + self.scale * self._ratio

    @property
    def _ratio(self) -> float:
        total = float(self.denominator.sum())
        return float(self.numerator.sum()) / total if total != 0 else float("nan")

    @property
    def influence(self) -> F64:
        """(m,) linearised contributions to the score about its value; they sum to 0."""
        return self._about(self.numerator)

    @property
    def influence_alone(self) -> F64:
        """(m,) the same for the interval of the score by itself."""
        return self._about(self.numerator if self.alone is None else self.alone)

    def _about(self, numerator: F64) -> F64:
        return np.asarray(self.scale * (numerator - self._ratio * self.denominator) / self.denominator.sum())

    @property
    def share(self) -> F64:
        """(m,) share of each contribution in the denominator; they sum to 1."""
        return np.asarray(self.denominator / self.denominator.sum())

    @property
    def apart(self) -> Bools:
        """(m,) whether each contribution is of a level of the last factor that is no draw, such as controls."""
        return np.asarray(np.char.startswith(self.labels[-1].astype(str), CONTROLS)[self.codes[-1]], dtype=bool)

    def n_levels(self, factor: str) -> int:
        """Number of levels of a factor that contribute."""
        parts = [codes for name, codes in zip(self.factors, self.codes, strict=True) if name == factor]
        return len(np.unique(np.concatenate(parts)))

    # Views

    def weighted(self, weights: Mapping[str, F64]) -> float:
        """Score where each contribution counts with the product of the weights of its levels.

        Parameters
        ----------
        weights
            Factor -> (levels,) weights; a factor that is not named has weight 1.
        """
        w = np.ones(len(self.numerator))
        for name, codes in zip(self.factors, self.codes, strict=True):
            if name in weights:
                w = w * np.asarray(weights[name], dtype=np.float64)[codes]
        total = float(w @ self.denominator)
        return self.offset + self.scale * float(w @ self.numerator) / total if total != 0 else float("nan")

    def subset(self, factor: str, keep: Bools) -> Units:
        """Contributions of some levels of a factor alone; of pairs, those with both units kept.

        Parameters
        ----------
        keep
            (levels,) bool, in the order of the factor's labels.
        """
        if factor not in self.factors:
            raise ValueError(f"the units have no factor {factor!r}, only {', '.join(self.pools)}")
        keep = np.asarray(keep, dtype=bool)
        kept = np.ones(len(self.numerator), dtype=bool)
        for name, labels, codes in zip(self.factors, self.labels, self.codes, strict=True):
            if name == factor:
                if keep.shape != (len(labels),):
                    raise ValueError(f"{keep.shape} flags for {len(labels)} levels of {factor}")
                kept &= keep[codes]
        return self._of(kept)

    def _of(self, kept: Bools) -> Units:
        codes = [side[kept] for side in self.codes]
        labels = list(self.labels)
        if self.dyadic:
            levels, both = np.unique(np.concatenate(codes), return_inverse=True)
            half, both = len(codes[0]), np.asarray(both, dtype=np.int64).reshape(-1)
            codes, labels = [both[:half], both[half:]], [self.labels[0][levels]] * 2
        else:
            for i, side in enumerate(codes):
                levels, inverse = np.unique(side, return_inverse=True)
                codes[i], labels[i] = np.asarray(inverse, dtype=np.int64).reshape(-1), self.labels[i][levels]
        return Units(
            self.factors,
            tuple(labels),
            tuple(codes),
            self.numerator[kept],
            self.denominator[kept],
            self.offset,
            self.scale,
            None if self.alone is None else self._kept_alone(kept),
        )

    def _kept_alone(self, kept: Bools) -> F64:
        """Those of some contributions, moved in proportion to the denominators so that their sum is the score's."""
        assert self.alone is not None
        single, below = self.alone[kept], self.denominator[kept]
        total = float(below.sum())
        even = below / total if total > 0 else np.full(len(below), 1.0 / max(1, len(below)))
        return np.asarray(single + even * float(self.numerator[kept].sum() - single.sum()))

    def without(self, factor: str) -> Units:
        """The same score with one of two factors summed out: its levels are then taken as given."""
        keep = 1 - self.factors.index(factor)
        return Units(
            (self.factors[keep],),
            (self.labels[keep],),
            (self.codes[keep],),
            self.numerator,
            self.denominator,
            self.offset,
            self.scale,
            self.alone,
        )._summed()

    def _summed(self) -> Units:
        """One contribution per cell."""
        width = len(self.labels[-1])
        cell = self.codes[0] if len(self.codes) == 1 else self.codes[0] * max(1, width) + self.codes[1]
        levels, inverse = np.unique(cell, return_inverse=True)
        inverse = np.asarray(inverse).reshape(-1)
        numerator = np.bincount(inverse, weights=self.numerator, minlength=len(levels)).astype(np.float64)
        denominator = np.bincount(inverse, weights=self.denominator, minlength=len(levels)).astype(np.float64)
        codes = (levels,) if len(self.codes) == 1 else (levels // max(1, width), levels % max(1, width))
        alone = None
        if self.alone is not None:
            alone = np.bincount(inverse, weights=self.alone, minlength=len(levels)).astype(np.float64)
        return Units(self.factors, self.labels, codes, numerator, denominator, self.offset, self.scale, alone)

    # Tables

    def to_frame(self, metric: str, subset: str = "") -> pd.DataFrame:
        """Long table, one row per contribution; names are dictionary-encoded."""
        m = len(self.numerator)

        def constant(text: str) -> pd.Categorical:
            return _categories(np.asarray([text], dtype=object), np.zeros(m, dtype=np.int64))

        two = len(self.factors) == 2
        return pd.DataFrame(
            {
                "metric": constant(metric),
                "subset": constant(subset),
                "factor_a": constant(self.factors[0]),
                "factor_b": constant(self.factors[1] if two else ""),
                "label_a": _categories(self.labels[0], self.codes[0]),
                "label_b": _categories(self.labels[1], self.codes[1]) if two else constant(""),
                "numerator": self.numerator,
                "alone": self.numerator if self.alone is None else self.alone,
                "denominator": self.denominator,
                "offset": self.offset,
                "scale": self.scale,
            }
        )

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Units:
        """Units from the rows of one score of a table of `to_frame`.

        Raises
        ------
        NotComputable
            Where the rows have no labels: they were written before units had any.
        """
        missing = [name for name in _COLUMNS if name not in frame]
        if missing or not len(frame):
            raise NotComputable("the contributions stored for this score have no labels: compute it again")
        first = str(frame["factor_a"].iloc[0])
        second = str(frame["factor_b"].iloc[0])
        numerator, denominator, alone = (
            frame[name].to_numpy(dtype=np.float64) for name in ("numerator", "denominator", "alone")
        )
        offset, scale = float(frame["offset"].iloc[0]), float(frame["scale"].iloc[0])
        names: list[Strings] = []
        codes: list[Ints] = []
        if second == first:
            both, levels = pd.factorize(
                pd.concat([frame["label_a"].astype(str), frame["label_b"].astype(str)]), sort=True
            )
            labels = np.asarray(levels, dtype=str)
            names, codes = [labels, labels], [both[: len(frame)].astype(np.int64), both[len(frame) :].astype(np.int64)]
        else:
            for column in ("label_a", "label_b") if second else ("label_a",):
                side, levels = pd.factorize(frame[column].astype(str), sort=True)
                names.append(np.asarray(levels, dtype=str))
                codes.append(side.astype(np.int64))
        factors = (first, second) if second else (first,)
        same = bool(np.array_equal(alone, numerator))
        return cls(factors, tuple(names), tuple(codes), numerator, denominator, offset, scale, None if same else alone)


def _categories(labels: Strings, codes: Ints) -> pd.Categorical:
    made: pd.Categorical = pd.Categorical.from_codes(
        codes.astype(np.int32), categories=pd.Index(labels.astype(str), dtype=object)
    )
    return made


def _grouped(labels: Strings, n_groups: int, factor: str) -> tuple[Strings, Ints]:
    """Random groups of levels that depend on their names alone: (names of the groups, group of each level).

    Controls stay apart.
    """

    def name(label: str) -> str:
        if label.startswith(CONTROLS):
            return label
        made = hashlib.blake2b(label.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return f"{factor} group {int.from_bytes(made, 'big') % n_groups + 1} of {n_groups}"

    names, inverse = np.unique(np.asarray([name(str(label)) for label in labels], dtype=str), return_inverse=True)
    return names, np.asarray(inverse, dtype=np.int64).reshape(-1)


def units_to_frame(scores: Sequence[tuple[str, str, Units]]) -> pd.DataFrame:
    """One table of the units of several scores, given as (metric, subset, units)."""
    frames = [units.to_frame(metric, subset) for metric, subset, units in scores]
    if not frames:
        return pd.DataFrame({name: [] for name in _COLUMNS})
    columns: dict[str, Any] = {}
    for name in _COLUMNS:
        parts = [frame[name] for frame in frames]
        if isinstance(parts[0].dtype, pd.CategoricalDtype):
            columns[name] = pd.api.types.union_categoricals(parts, sort_categories=True)
        else:
            columns[name] = np.concatenate([part.to_numpy() for part in parts])
    return pd.DataFrame(columns)


def units_from_frame(frame: pd.DataFrame) -> dict[tuple[str, str], Units]:
    """Units by (metric, subset) from a table of units of one cell; empty where it holds none with labels."""
    if not len(frame) or any(name not in frame for name in _COLUMNS):
        return {}
    grouped = frame.groupby(["metric", "subset"], sort=False, observed=True, dropna=False)
    return {(str(metric), str(subset)): Units.from_frame(part) for (metric, subset), part in grouped}


def with_margins(
    values: F64, weight: F64, codes: Sequence[Ints], sums: Sequence[npt.NDArray[Any]], *, rounds: int = 50
) -> F64:
    """Contributions changed, in proportion to their weight, so that their sums over the levels of factors are given.

    What a factor's levels do together may not be the sum of what their cells do each: the score without a whole batch
    is known by computing it, not by adding up single samples. The corrections are additive, a term for each level.

    Parameters
    ----------
    values, weight
        (m,) contributions, and weights of 0 or more.
    codes, sums
        Per factor (m,) levels and (levels,) sums; all with the same total. Those of the last are met exactly, those of
        the others as far as the layout allows.
    """
    out = np.asarray(values, dtype=np.float64).copy()
    parts = []
    for side, wanted in zip(codes, sums, strict=True):
        whole = np.bincount(side, weights=weight, minlength=len(wanted))
        parts.append((side, wanted, weight / np.where(whole > 0, whole, 1.0)[side]))
    limit = 1e-10 * max(1e-300, float(np.abs(out).sum()))
    for _ in range(rounds if len(parts) > 1 else 1):
        moved = 0.0
        for side, wanted, even in parts:
            missing = wanted - np.bincount(side, weights=out, minlength=len(wanted))
            out += missing[side] * even
            moved = max(moved, float(np.abs(missing).max(initial=0.0)))
        if moved <= limit:
            break
    return out


def once_of_pairs(moved: F64, first: Ints, second: Ints, values: F64, *, at_least: float = 0.0) -> float:
    """Factor on sums over levels after which their squares count once what pairs of levels do together.

    Where a score is made of pairs of levels, the sum over a level holds all of its pairs, and that over the other level
    holds them again. The variance is sum moved^2 - sum pair^2 (Fafchamps and Gubert 2007), and the factor is the root
    of its share in the first.

    Parameters
    ----------
    moved
        (k,) sums over levels about their mean.
    first, second, values
        (m,) levels of each pair in any order, and what it moved; the same pair may come several times.
    at_least
        The variance is no less than this.
    """
    total, k = float(moved @ moved), len(moved)
    if not total > 0 or k < 3:
        return 1.0
    pair = np.minimum(first, second) * k + np.maximum(first, second)
    apart = first != second
    sums = np.bincount(np.unique(pair[apart], return_inverse=True)[1].reshape(-1), weights=values[apart])
    together = float((sums**2).sum()) - float(sums.sum()) ** 2 / (k * (k - 1) / 2)
    return float(np.sqrt(np.clip((total - together) / total, min(1.0, at_least / total), 1.0)))


# Sums of scores


def combine(units: Sequence[Units], coefficients: Sequence[float]) -> Units:
    """Contributions to a weighted sum of scores, matched by their labels.

    A contribution that one of the scores does not have counts as none. The result's score is exactly
    `sum(coefficient * score)`, and its influences are the same sums of influences.

    Raises
    ------
    NotComputable
        Where the scores have different factors, or no label in common.
    """
    if not units or len(units) != len(coefficients):
        raise ValueError(f"{len(units)} units and {len(coefficients)} coefficients")
    first = units[0]
    if any(other.factors != first.factors for other in units):
        kinds = " and ".join(sorted({" x ".join(other.factors) for other in units}))
        raise NotComputable(f"the scores have different units: {kinds}")
    sides = range(len(first.factors))
    labels: list[Strings] = []
    codes: list[list[Ints]] = [[] for _ in units]
    pools = [[other.labels[side] for other in units] for side in sides]
    if first.dyadic:
        pools = [pools[0] + pools[1]] * 2
    for side in sides:
        union = np.unique(np.concatenate([pool.astype(str) for pool in pools[side]]))
        labels.append(union)
        for k, other in enumerate(units):
            codes[k].append(np.searchsorted(union, other.labels[side].astype(str))[other.codes[side]].astype(np.int64))
    if first.dyadic:
        codes = [[np.minimum(a, b), np.maximum(a, b)] for a, b in codes]
    if len(units) > 1:
        for side in sides:
            shared = set(map(str, units[0].labels[side]))
            for other in units[1:]:
                shared &= set(map(str, other.labels[side]))
            if not shared:
                raise NotComputable(f"the scores have no {first.factors[side]} in common")
    value = sum(c * other.value for c, other in zip(coefficients, units, strict=True))
    joined = [np.concatenate([codes[k][side] for k in range(len(units))]) for side in sides]
    share = np.concatenate([other.share for other in units]) / len(units)
    moved = np.concatenate([c * other.influence for c, other in zip(coefficients, units, strict=True)])
    alone = None
    if any(other.alone is not None for other in units):
        alone = np.concatenate([c * other.influence_alone for c, other in zip(coefficients, units, strict=True)])
        alone += value * share
    made = Units(first.factors, tuple(labels), tuple(joined), moved + value * share, share, alone=alone)
    return made._summed()


# Variance


@dataclass(frozen=True)
class Spread:
    """Variance of a score over resampled units.

    Attributes
    ----------
    value
        The score.
    variance
        Of the score.
    df
        Degrees of freedom of the variance.
    n_units
        Units of the factor that has most: what a score without any spread is judged by.
    unit
        What varies, as text.
    fixed
        Factors taken as given, because they have fewer than `MIN_LEVELS` levels: "1 batch".
    df_carried
        The same by how unevenly the units carry the variance, where the score is no share.
    skewness
        Of the score.
    """

    value: float
    variance: float
    df: float
    n_units: int
    unit: str
    fixed: tuple[str, ...] = ()
    df_carried: float = float("inf")
    skewness: float = 0.0


@dataclass(frozen=True)
class Moments:
    """Variance of a sum of contributions, and the skewness of the sum.

    Attributes
    ----------
    df
        Degrees of freedom of the variance, by the number and the sizes of the levels.
    df_carried
        The same by how unevenly the levels carry the variance.
    """

    variance: float
    df: float
    df_carried: float
    skewness: float


@dataclass(frozen=True)
class _Levels:
    """Sums of the squares and of the cubes of what the levels of a factor moved, and degrees of freedom."""

    squares: float
    cubes: float
    df: float
    df_carried: float

    @classmethod
    def of(cls, influence: F64, share: F64, codes: Ints) -> _Levels:
        """Sum influences per level, corrected for what each level takes from the mean.

        A residual about a mean is too small by that. Where levels of shares w shift the mean by effects of equal
        variance, the square of one level's influence is w^2 (1 - 2 w + sum w^2) of that variance; where they only
        scatter, it is w (1 - w). The larger correction is made: for levels of one size both are the n / (n - 1) of a
        variance. Unequal levels have 1 / sum w^2 - 1 degrees of freedom (Kish's effective number of them, less 1), and
        no more than the scatter of the squares shows: what a few levels carry is known no better than these few tell.
        """
        there = np.bincount(codes) > 0
        moved = np.bincount(codes, weights=influence)[there]
        part = np.bincount(codes, weights=share)[there]
        together = float(part @ part)
        kept = np.maximum(np.minimum(1.0 - part, 1.0 - 2.0 * part + together), 1.0 / len(part) ** 2)
        moved = moved / np.sqrt(kept)
        squares, fourth = float(moved @ moved), float((moved**4).sum())
        most = max(1.0, 1.0 / together - 1.0)
        scatter = fourth - squares**2 / len(part)
        carried = min(most, max(1.0, 2.0 * squares**2 / scatter)) if scatter > 0 else most
        return cls(squares, float((moved**3).sum()), most, carried)


def _shares(weight: F64) -> F64:
    """Weights divided by their sum; even where that is 0."""
    total = float(weight.sum())
    return np.asarray(weight / total) if total > 1e-12 else np.full(len(weight), 1.0 / max(1, len(weight)))


def _about_kind(influence: F64, share: F64, apart: Bools) -> F64:
    """Influences less the mean of their kind, those `apart` and the others, in proportion to their share."""
    out = influence.copy()
    for kind in (apart, ~apart):
        out[kind] -= _shares(share[kind]) * influence[kind].sum()
    return out


@dataclass(frozen=True)
class _Beyond:
    """What the levels of a factor vary by beyond their cells, and the variance of this estimate."""

    value: float
    variance: float

    @classmethod
    def of(cls, influence: F64, share: F64, codes: Ints, cells: F64) -> _Beyond:
        r"""From (m,) influences, their shares, levels, and (m,) variances of the cells.

        Where levels of shares :math:`w_i` have effects of variance :math:`\sigma^2` and cells that add up to the
        variance :math:`v_i`, the squares of the sums over levels about their mean have the expectation
        :math:`\sigma^2 \sum w_i^2 (1 - 2 w_i + s) + \sum v_i (1 - 2 w_i) + s v`, with :math:`s = \sum w_i^2` and
        :math:`v = \sum v_i`. Solved for :math:`\sigma^2 s`, the effects' part in the variance, it is without bias
        however uneven the levels are, and may be below 0. Its own variance is that of normal effects and cells.
        """
        there = np.bincount(codes) > 0
        moved, part, inside = (np.bincount(codes, weights=w)[there] for w in (influence, share, cells))
        total, together = float(inside.sum()), float(part @ part)
        squared = part * part
        times = together / max(float(squared @ (1 - 2 * part + together)), together / len(part) ** 2)
        value = times * (float(moved @ moved) - float(inside @ (1 - 2 * part)) - together * total)
        each = max(value, 0.0) / together * squared + total * part
        first, second, third = float(each.sum()), float(each @ part), float(each @ squared)
        # Trace of the square of the covariance of the sums about their mean.
        trace = together**2 * first**2 + 2 * first * third - 4 * together * first * second + 2 * second**2
        trace += float(each**2 @ ((1 - 2 * part + together) ** 2 - (together - 2 * part) ** 2))
        return cls(value, 2 * times**2 * trace)


def _crossed_moments(influence: F64, share: F64, codes: Sequence[Ints], apart: Bools | None) -> Moments:
    """`cluster_moments` of two factors."""
    whole = np.ones(len(influence), dtype=bool)
    kinds, about = [whole], influence
    if apart is not None and apart.any() and not apart.all():
        kinds, about = [~apart, apart], _about_kind(influence, share, apart)
    cells = np.empty(len(influence))
    second = []
    cubes = 0.0
    for kind in kinds:
        part = _shares(share[kind])
        cells[kind] = about[kind] ** 2 / np.maximum(1 - part, 0.5)
        second.append(_Beyond.of(about[kind], part, codes[1][kind], cells[kind]))
        cubes += _Levels.of(about[kind], part, codes[1][kind]).cubes
        cubes -= float((about[kind] ** 3 / np.maximum(1 - part, 0.5) ** 1.5).sum())
    first = _Beyond.of(influence, share, codes[0], cells)
    alone = float(cells.sum())
    beyond = first.value, sum(made.value for made in second)
    likely = alone + max(beyond[0], 0.0) + max(beyond[1], 0.0)
    if not likely > 0:
        return Moments(0.0, float("inf"), float("inf"), 0.0)
    variance = max(alone + sum(beyond), LEAST_VARIANCE * likely)
    levels = _Levels.of(influence, share, codes[0])
    main = _Levels.of(about[kinds[0]], _shares(share[kinds[0]]), codes[1][kinds[0]])
    uncertain = (first.variance + sum(made.variance for made in second)) / 2
    df = max(1.0, likely**2 / uncertain)
    carried = sum(
        (alone + max(value, 0.0)) ** 2 / made.df_carried for value, made in zip(beyond, (levels, main), strict=True)
    )
    return Moments(variance, df, min(df, max(1.0, likely**2 / carried)), (cubes + levels.cubes) / variance**1.5)


def cluster_moments(
    influence: F64, share: F64, codes: Sequence[Ints], *, dyadic: bool = False, apart: Bools | None = None
) -> Moments:
    """Variance of a sum of influences over levels of one or two factors, with its degrees of freedom.

    Of two factors it is that of the cells, and what the levels of each factor vary by beyond their cells: V_a + V_b -
    V_ab, V_a and V_b the variances of sums over levels, V_ab that of the cells, which both hold (Cameron, Gelbach and
    Miller 2011). Of pairs of one pool, V_a - V_ab, since each pair is in two sums (Fafchamps and Gubert 2007). What is
    beyond is taken as estimated also where it is below 0: a variance that is no less than that of the cells would be
    too large on average. Degrees of freedom are Satterthwaite's, of the variance with nothing below 0: few levels make
    a variance uncertain, whether or not they happen to differ. The third moment is made of the same parts.

    Parameters
    ----------
    influence, share
        (m,) linearised contributions, which sum to 0, and their shares in the denominator, which sum to 1.
    codes
        Per factor (m,) levels.
    dyadic
        Whether the two factors are one pool.
    apart
        (m,) bool: contributions of the second factor's levels that are no draw from a population, such as controls;
        how they differ from the others on average is no spread.
    """
    if len(codes) == 2 and not dyadic:
        return _crossed_moments(influence, share, codes, apart)
    main = _Levels.of(influence, share, codes[0])
    variance, third, likely = main.squares, main.cubes, main.squares
    uncertain, carried = main.squares**2 / main.df, main.squares**2 / main.df_carried
    if dyadic:
        main = _Levels.of(influence, share, np.arange(len(influence)))
        units = _Levels.of(np.tile(influence, 2), np.tile(share, 2) / 2, np.concatenate(codes))
        most = max(units.squares, 2 * main.squares)
        likely = most - main.squares
        variance = max(units.squares - main.squares, LEAST_VARIANCE * likely)
        third = units.cubes - main.cubes
        uncertain = main.squares**2 / main.df + most**2 / units.df
        carried = main.squares**2 / main.df_carried + most**2 / units.df_carried
    if not variance > 0:
        return Moments(0.0, float("inf"), float("inf"), 0.0)
    return Moments(variance, max(1.0, likely**2 / uncertain), max(1.0, likely**2 / carried), third / variance**1.5)


def _counted(name: str, count: int) -> str:
    ending = "" if count == 1 else "es" if name.endswith("ch") else "s"
    return f"{count} {name}{ending}"


def spread(units: Units) -> Spread:
    """Variance of a score from its linearised contributions; see `cluster_moments`.

    Raises
    ------
    NotComputable
        Where no factor has `MIN_UNITS` levels.
    """
    counts = {name: units.n_levels(name) for name in units.pools}
    if max(counts.values()) < MIN_UNITS:
        few = " and ".join(_counted(name, count) for name, count in counts.items())
        raise NotComputable(f"no interval: {few}, {MIN_UNITS} needed")
    fixed = tuple(name for name, count in counts.items() if count < MIN_LEVELS)
    given = tuple(_counted(name, counts[name]) for name in fixed)
    if fixed:
        units = units.without(fixed[0])
    made = cluster_moments(
        units.influence_alone,
        units.share,
        units.codes,
        dyadic=units.dyadic,
        apart=None if len(units.codes) == 1 else units.apart,
    )
    return Spread(
        units.value,
        made.variance,
        made.df,
        max(counts.values()),
        " x ".join(units.pools),
        given,
        made.df_carried,
        made.skewness,
    )


# Intervals


@dataclass(frozen=True)
class Interval:
    """Interval of a score.

    Attributes
    ----------
    low, high
        Bounds; NaN where there is none.
    unit
        What is resampled.
    method
        How it was made.
    note
        Why there is none, or what it leaves out.
    """

    low: float
    high: float
    unit: str
    method: str
    note: str = ""


def interval(
    units: Units,
    *,
    low: float = float("-inf"),
    high: float = float("inf"),
    level: float = 0.95,
    extra_variance: float = 0.0,
) -> Interval:
    """Interval of a score over its units.

    Parameters
    ----------
    units
        Contributions.
    low, high
        Range of the score. With both bounds finite the interval is a binomial one (mid-P) with the number of
        observations that the variance corresponds to; else it is symmetric.
    level
        Coverage aimed at.
    extra_variance
        Of another source, such as the mean over seeds.

    Returns
    -------
    Interval
        With its reason in `note` where there is none.
    """
    try:
        found = spread(units)
    except NotComputable as why:
        return Interval(float("nan"), float("nan"), " x ".join(units.pools), "", str(why))
    note = "".join(f"{few} taken as given" for few in found.fixed)
    variance = found.variance + extra_variance
    if not (np.isfinite(variance) and np.isfinite(found.value)):
        return Interval(float("nan"), float("nan"), found.unit, "", "no interval: its variance is not a number")
    if not low <= found.value <= high:
        # A metric that leaves the range that it declares has no use for it.
        low, high = float("-inf"), float("inf")
    t = float(stats.t.ppf((1 + level) / 2, found.df_carried))
    error = float(np.sqrt(variance))
    if (low, high) == (-1.0, 1.0) and abs(found.value) < 1:
        # The standard error of a correlation goes with 1 - r^2.
        middle, reach = np.arctanh(found.value), t * error / (1.0 - found.value**2)
        low, high = float(np.tanh(middle - reach)), float(np.tanh(middle + reach))
        return Interval(low, high, found.unit, "clustered, t of Fisher's z", note)
    skewness = found.skewness * (found.variance / variance) ** 1.5 if variance > 0 else 0.0
    if np.isfinite(low) and np.isfinite(high):
        sides = t, t
        if len(units.factors) == 2 and not units.dyadic and variance > 0 and low < found.value < high:
            # Beyond the skewness of the binomial distribution with this variance.
            p = (found.value - low) / (high - low)
            beyond = skewness - (1 - 2 * p) / (p * (1 - p)) * error / (high - low)
            sides = _skewed(t, beyond), -_skewed(-t, beyond)
        elif len(units.factors) == 1 or units.dyadic:
            # The scatter of hits is that of the binomial distribution.
            sides = (float(stats.t.ppf((1 + level) / 2, found.df)),) * 2
        bounds = _share_bounds(found.value, variance, low, high, level, sides, found.n_units)
        return Interval(*bounds, found.unit, "clustered, mid-P", note)
    bounds = (found.value - error * _skewed(t, skewness), found.value - error * _skewed(-t, skewness))
    return Interval(max(low, bounds[0]), min(high, bounds[1]), found.unit, "clustered, skewed t", note)


def _skewed(t: float, skewness: float) -> float:
    """Quantile of the studentised score where the quantile of its normal (or t) approximation is `t`.

    Inverse of Hall's (1992) cubic transformation, which takes the skewness out: a score that few large contributions
    raise is more often too low than too high. The skewness is bounded so that the inverse stays tame.
    """
    skewness = float(np.clip(skewness, -MAX_SKEWNESS, MAX_SKEWNESS))
    if abs(skewness) < 1e-6:
        return t
    return 3.0 / skewness * float(np.cbrt(1.0 + skewness * (t - skewness / 6.0)) - 1.0)


def _share_bounds(
    value: float,
    variance: float,
    low: float,
    high: float,
    level: float,
    sides: tuple[float, float],
    n_units: int,
) -> tuple[float, float]:
    """Interval of a share from its variance: mid-P binomial with the number of observations of that variance.

    p (1 - p) / V independent observations would have this variance. They are fewer by (z / t)^2, t the quantile of the
    studentised score at the lower and at the upper side (Korn and Graubard 1998). A share of 0 or 1 has no variance,
    and as many observations as units. Mid-P rather than Wilson, which is too short next to 0 and 1.
    """
    width = high - low
    p = min(1.0, max(0.0, (value - low) / width))
    v = variance / width**2
    inside = 1e-12 < p < 1 - 1e-12
    if v <= 0 and inside:
        return value, value
    observations = p * (1 - p) / v if inside else float(n_units)
    tail = (1 - level) / 2
    lower, upper = (observations * float(stats.norm.isf(tail) / t) ** 2 for t in sides)
    # At an edge of the range the bound is the edge itself.
    below = 0.0 if p <= 1e-12 else _mid_p(p * lower, (1 - p) * lower, tail)
    above = 1.0 if p >= 1 - 1e-12 else 1 - _mid_p((1 - p) * upper, p * upper, tail)
    return low + width * below, low + width * above


def _mid_p(hits: float, misses: float, tail: float) -> float:
    """Share at which so many hits or more have probability `tail`, those of exactly so many counted half."""

    def above(share: float) -> float:
        more = special.betainc(hits + 1, misses, share) if misses > 0 else 0.0
        return float(special.betainc(hits, misses + 1, share) + more) / 2 - tail

    return float(optimize.brentq(above, 0.0, 1.0, xtol=1e-12)) if above(1.0) > 0 else 1.0


def adjusted_share_interval(
    p: npt.ArrayLike, alpha: float, unit: str, *, resolution: float = 0.0, level: float = 0.95
) -> Interval:
    """Interval of the share of p-values below `alpha` after Benjamini-Hochberg.

    With F the distribution of the p-values, the share R that is adjusted to below alpha solves F(alpha R) = R. The
    interval holds every r for which the share of p-values up to alpha r could be a draw of as many hits with
    probability r (mid-P): it does not collapse where no p-value is adjusted to below alpha, and it knows that the
    threshold moves with the share.

    Parameters
    ----------
    p
        (n,) p-values before the adjustment, of independent units; NaN ones are not counted.
    resolution
        Smallest p-value that the test can give, such as 1 / (draws + 1). Where alpha r is below it, nothing speaks for
        or against r.
    """
    values = np.asarray(p, dtype=np.float64)
    values = np.sort(values[np.isfinite(values)])
    n = len(values)
    if n < MIN_UNITS:
        return Interval(float("nan"), float("nan"), unit, "", f"no interval: {_counted(unit, n)}, {MIN_UNITS} needed")
    tail = (1 - level) / 2
    r = np.linspace(0, 1, 2001)
    hits = np.searchsorted(values, alpha * r, side="right")
    share = hits / n
    # As for other shares: the variance is over n - 1, and known no better than so many units tell.
    counted = (n - 1) * float(stats.norm.isf(tail) / stats.t.isf(tail, n - 1)) ** 2
    below, above = counted * share, counted * (1 - share)
    upto = np.ones((2, len(r)))
    some, not_all = above > 0, below > 0
    upto[0, some] = special.betainc(above[some], below[some] + 1, 1 - r[some])
    upto[1, not_all] = special.betainc(above[not_all] + 1, below[not_all], 1 - r[not_all])
    upto[1, ~not_all] = 0.0
    middle = upto.mean(axis=0)
    possible = (middle >= tail) & (middle <= 1 - tail)
    possible |= alpha * r < resolution
    # The share itself, the largest solution; what is not connected with it belongs to other solutions.
    solved = np.flatnonzero(share >= r)
    at = int(solved[-1])
    apart = np.flatnonzero(~possible)
    first = apart[apart < at][-1] + 1 if (apart < at).any() else 0
    last = apart[apart > at][0] - 1 if (apart > at).any() else len(r) - 1
    return Interval(float(r[first]), float(r[last]), unit, "inverted Benjamini-Hochberg, mid-P")


def seed_interval(
    units: Sequence[Units], *, low: float = float("-inf"), high: float = float("inf"), level: float = 0.95
) -> tuple[Interval, float]:
    """Interval of the mean of a score over seeds, and the standard deviation of the score over them.

    The units vary as in `interval`, their contributions averaged over seeds; the variance of a mean over so many seeds
    comes on top, as a source of its own.

    Parameters
    ----------
    units
        Contributions of the same units under each seed.

    Returns
    -------
    (interval, sd)
        The sample standard deviation (ddof 1); NaN for one seed.

    Raises
    ------
    NotComputable
        Where the seeds have different units.
    """
    if len(units) == 1:
        return interval(units[0], low=low, high=high, level=level), float("nan")
    values = np.asarray([one.value for one in units])
    sd = float(values.std(ddof=1))
    mean = combine(units, [1 / len(units)] * len(units))
    return interval(mean, low=low, high=high, level=level, extra_variance=sd**2 / len(units)), sd
