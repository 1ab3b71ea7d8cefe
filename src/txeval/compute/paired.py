"""Comparison of scores on the same units: paired differences, corrections for many, ranks with intervals.

Every score is a ratio of sums over units (`txeval.compute.intervals.Units`). On the units that all scores have, each
cell of units pulls on each score by its influence (the derivative of the ratio). The variance of a difference is that
of the differences of the influences (`txeval.compute.intervals.cluster_moments`). Shares of units that are hits or
not are compared on the units in which they differ (McNemar's test, exact with mid-P).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.optimize
import scipy.stats

from txeval.compute.arrays import F64, Bools, Ints, Strings
from txeval.compute.intervals import CONTROLS, MIN_LEVELS, MIN_UNITS, Units, cluster_moments
from txeval.errors import NotComputable

__all__ = ["Difference", "Matched", "Ranking", "difference", "holm", "match", "mcnemar", "ranking"]

#: One score: its units, once for each seed that it depends on.
Seeds = Sequence[Units]

#: Chance to see a difference of the smallest detectable size.
POWER = 0.8


@dataclass(frozen=True)
class Matched:
    """Several scores on the units that they have in common.

    Attributes
    ----------
    codes
        Per factor (m,) level of each cell.
    counts
        Factor -> number of common levels.
    values
        (k,) scores on the common units, means over seeds.
    influence
        (k, m) pull of each cell on each score.
    weight
        (m,) share of each cell in the denominators; sums to 1.
    spread
        (k,) variance of each score that is due to seeds and is not in the influence already.
    apart
        (m,) cells of controls; see `cluster_moments`.
    left_out
        What is not common to all -> how many.
    fixed
        Which factor has too few levels to vary, as text.
    hits
        Whether each score is the share of hits among the levels of one factor, without seeds.
    """

    factors: tuple[str, ...]
    codes: tuple[Ints, ...]
    counts: Mapping[str, int]
    values: F64
    influence: F64
    weight: F64
    spread: F64
    apart: Bools | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    fixed: str = ""
    hits: bool = False

    @property
    def dyadic(self) -> bool:
        """Whether a cell is a pair of levels of one pool."""
        return len(self.factors) == 2 and self.factors[0] == self.factors[1]


def match(scores: Sequence[Seeds]) -> Matched:
    """Put scores on the units that all of them have, found by their labels.

    Parameters
    ----------
    scores
        Units of each score; several per score are seeds, whose scores are averaged.

    Raises
    ------
    NotComputable
        The scores are made of different kinds of units, or have too few in common.
    """
    every = [units for seeds in scores for units in seeds]
    if not every or not all(len(seeds) for seeds in scores):
        raise NotComputable("there is nothing to compare")
    factors = every[0].factors
    for units in every:
        if units.factors != factors:
            raise NotComputable(
                f"the scores are made of different units: {_named(factors)} against {_named(units.factors)}"
            )
    dyadic = len(factors) == 2 and factors[0] == factors[1]
    pools, left_out = _common_labels(every, factors, dyadic=dyadic)
    tables = [_cells(units, pools, dyadic=dyadic) for units in every]
    common, left = _common_cells([keys for keys, _, _ in tables])
    if left:
        left_out[f"cells of {_named(factors)} that some scores lack"] = left
    width = len(pools[-1])
    codes = tuple(np.divmod(common, max(1, width))) if len(factors) == 2 else (common,)
    counts = _counts(factors, codes, dyadic=dyadic)
    few = [name for name, number in counts.items() if number < MIN_LEVELS]
    if max(counts.values()) < MIN_UNITS:
        there = " and ".join(f"{number} of {name}" for name, number in counts.items())
        raise NotComputable(f"too few units in common: {there}; {MIN_UNITS} are needed")
    influence = np.empty((len(every), len(common)))
    values = np.empty(len(every))
    weight = np.zeros(len(common))
    hits = len(factors) == 1 and all(len(seeds) == 1 for seeds in scores)
    for i, (units, (keys, numerator, denominator)) in enumerate(zip(every, tables, strict=True)):
        place = np.searchsorted(keys, common)
        num, den = numerator[place], denominator[place]
        total = den.sum()
        if not total > 0:
            raise NotComputable("the units in common have no weight")
        ratio = num.sum() / total
        values[i] = units.offset + units.scale * ratio
        influence[i] = units.scale * (num - ratio * den) / total
        weight += den / total / len(every)
        hits = hits and units.scale == 1 and bool(np.all(den == 1) and np.all((num == 0) | (num == 1)))
    apart = None
    if len(factors) == 2 and not dyadic:
        apart = np.asarray(np.char.startswith(pools[-1].astype(str), CONTROLS)[codes[-1]], dtype=bool)
    fixed = ""
    if few:
        # Levels of the other factor alone; what these few would vary by is not in the comparison.
        fixed = f"{_counted(few[0], counts[few[0]])} taken as given"
        stay = 1 - factors.index(few[0])
        factors, counts, apart = (factors[stay],), {factors[stay]: counts[factors[stay]]}, None
        levels, place_of = np.unique(codes[stay], return_inverse=True)
        codes = (np.arange(len(levels)),)
        influence = np.stack([np.bincount(place_of, weights=row, minlength=len(levels)) for row in influence])
        weight = np.bincount(place_of, weights=weight, minlength=len(levels)).astype(np.float64)
    # Codes without gaps, so that every level that is counted occurs.
    codes = _dense(codes, dyadic=dyadic)
    made = Matched(
        factors, codes, counts, values, influence, weight, np.zeros(len(every)), apart, left_out, fixed, hits
    )
    return _over_seeds(made, [len(seeds) for seeds in scores])


def _counted(name: str, number: int) -> str:
    return f"{number:,} {name}" + ("" if number == 1 else "es" if name.endswith("ch") else "s")


def _named(factors: Sequence[str]) -> str:
    return f"pairs of {factors[0]}" if len(factors) == 2 and factors[0] == factors[1] else " x ".join(factors)


def _common_labels(
    every: Sequence[Units], factors: tuple[str, ...], *, dyadic: bool
) -> tuple[list[Strings], dict[str, int]]:
    """Sorted labels that all have, per factor, and how many others there are."""
    pools: list[Strings] = []
    left_out: dict[str, int] = {}
    for place, name in enumerate(factors[:1] if dyadic else factors):
        present = []
        for units in every:
            places = (0, 1) if dyadic else (place,)
            used = np.unique(np.concatenate([units.codes[p] for p in places]))
            present.append(np.asarray(units.labels[place], dtype=object)[used].astype(str))
        common = present[0]
        union = present[0]
        for labels in present[1:]:
            common = np.intersect1d(common, labels)
            union = np.union1d(union, labels)
        pools.append(np.unique(common))
        if len(union) > len(pools[-1]):
            left_out[f"{name} labels that some scores lack"] = len(union) - len(pools[-1])
    return (pools * 2 if dyadic else pools), left_out


def _cells(units: Units, pools: Sequence[Strings], *, dyadic: bool) -> tuple[Ints, F64, F64]:
    """Sorted keys of the cells with common labels, and their sums."""
    codes = []
    for place, pool in enumerate(pools):
        labels = np.asarray(units.labels[place], dtype=object).astype(str)
        if len(pool) == 0:
            found = np.full(len(labels), -1, dtype=np.int64)
        else:
            at = np.minimum(np.searchsorted(pool, labels), len(pool) - 1)
            found = np.where(pool[at] == labels, at, -1).astype(np.int64)
        codes.append(found[units.codes[place]])
    if dyadic:
        codes = [np.minimum(codes[0], codes[1]), np.maximum(codes[0], codes[1])]
    keep = np.logical_and.reduce([code >= 0 for code in codes])
    key = codes[0] if len(codes) == 1 else codes[0] * max(1, len(pools[1])) + codes[1]
    keys, place_of = np.unique(key[keep], return_inverse=True)
    numerator = np.bincount(place_of, weights=np.asarray(units.numerator, dtype=float)[keep], minlength=len(keys))
    denominator = np.bincount(place_of, weights=np.asarray(units.denominator, dtype=float)[keep], minlength=len(keys))
    return keys, numerator.astype(np.float64), denominator.astype(np.float64)


def _common_cells(keys: Sequence[Ints]) -> tuple[Ints, int]:
    common = union = keys[0]
    for other in keys[1:]:
        if len(other) == len(common) and np.array_equal(other, common):
            continue
        common, union = np.intersect1d(common, other), np.union1d(union, other)
    return common, len(union) - len(common)


def _counts(factors: tuple[str, ...], codes: Sequence[Ints], *, dyadic: bool) -> dict[str, int]:
    if dyadic:
        return {factors[0]: len(np.unique(np.concatenate(codes)))}
    return {name: len(np.unique(code)) for name, code in zip(factors, codes, strict=True)}


def _dense(codes: tuple[Ints, ...], *, dyadic: bool) -> tuple[Ints, ...]:
    if dyadic:
        both = np.unique(np.concatenate(codes), return_inverse=True)[1].astype(np.int64)
        return both[: len(codes[0])], both[len(codes[0]) :]
    return tuple(np.unique(code, return_inverse=True)[1].astype(np.int64) for code in codes)


def _over_seeds(every: Matched, n_seeds: Sequence[int]) -> Matched:
    """Average over the seeds of each score.

    A score that moves as a whole from seed to seed does so in all of its units at once: this part of its variance
    over seeds, beyond what the units' own scatter over seeds explains, stands in `spread`.
    """
    ends = np.cumsum(n_seeds)
    influence, values, spread = [], [], []
    for end, number in zip(ends, n_seeds, strict=True):
        part = slice(end - number, end)
        mean = every.influence[part].mean(axis=0)
        influence.append(mean)
        values.append(every.values[part].mean())
        extra = 0.0
        if number > 1:
            total = float(every.values[part].var(ddof=1))
            own = sum(_variance(every, row)[0] for row in every.influence[part] - mean) / (number - 1)
            extra = max(0.0, total - own) / number
        spread.append(extra)
    return Matched(
        every.factors,
        every.codes,
        every.counts,
        np.asarray(values),
        np.asarray(influence),
        every.weight,
        np.asarray(spread),
        every.apart,
        every.left_out,
        every.fixed,
        every.hits,
    )


def _variance(matched: Matched, row: F64) -> tuple[float, float]:
    """Variance of one score or difference with influence (m,), and its degrees of freedom."""
    made = cluster_moments(row, matched.weight, matched.codes, dyadic=matched.dyadic, apart=matched.apart)
    return made.variance, made.df


@dataclass(frozen=True)
class Difference:
    """Score of one less score of the other, on the same units.

    Attributes
    ----------
    low, high
        95 % interval.
    p_value
        Two-sided, of no difference; below 0.05 where the interval does not hold 0.
    detectable
        Smallest true difference that would have been seen (p < 0.05) with probability 0.8.
    counts
        Factor -> number of levels that both have.
    left_out
        What is not common to both -> how many.
    """

    first: float
    second: float
    value: float
    low: float
    high: float
    p_value: float
    error: float
    freedom: float
    detectable: float
    counts: Mapping[str, int]
    left_out: Mapping[str, int]
    note: str = ""

    @property
    def units(self) -> str:
        """The units, as text: "35 batches x 412 perturbations"."""
        return " x ".join(_counted(name, number) for name, number in self.counts.items())


def difference(first: Seeds, second: Seeds, *, level: float = 0.95) -> Difference:
    """Paired difference of two scores on their common units, with interval and p-value.

    By the t distribution; for shares of hits McNemar's exact test with mid-P, and the score interval that agrees
    with it.

    Raises
    ------
    NotComputable
        See `match`.
    """
    return pair(match([first, second]), 0, 1, level=level)


def pair(matched: Matched, i: int, j: int, *, level: float = 0.95) -> Difference:
    """Difference of scores i and j of matched ones."""
    value = float(matched.values[i] - matched.values[j])
    variance, freedom = _variance(matched, matched.influence[i] - matched.influence[j])
    seeds = float(matched.spread[i] + matched.spread[j])
    if seeds > 0:
        # Few seeds tell a variance poorly; a handful of degrees of freedom is what they have.
        freedom = (variance + seeds) ** 2 / (variance**2 / freedom + seeds**2 / 4.0)
        variance += seeds
    error, note = math.sqrt(variance), ""
    if error > 1e-12 * max(1.0, float(np.abs(matched.values).max())):
        p = float(2 * scipy.stats.t.sf(abs(value) / error, freedom))
        reach = float(scipy.stats.t.ppf((1 + level) / 2, freedom)) * error
        seen = float(scipy.stats.t.ppf((1 + level) / 2, freedom) + scipy.stats.t.ppf(POWER, freedom)) * error
        low, high = value - reach, value + reach
        if matched.hits:
            apart = np.rint((matched.influence[i] - matched.influence[j]) * len(matched.weight) + value)
            won, lost = int((apart > 0).sum()), int((apart < 0).sum())
            p = mcnemar(won, lost)
            low, high = _share_difference(won, lost, len(apart), p, level)
    else:
        error = seen = 0.0
        if abs(value) <= 1e-12 * max(1.0, float(np.abs(matched.values).max())):
            value, p, note = 0.0, 1.0, "equal on every unit"
        else:
            # Without scatter only the sign is left: every unit would have to fall on the same side by chance.
            p = 2.0 ** (1 - min(matched.counts.values()))
            note = "the same difference on every unit; p-value of the sign test"
        low = high = value
    return Difference(
        first=float(matched.values[i]),
        second=float(matched.values[j]),
        value=value,
        low=low,
        high=high,
        p_value=p,
        error=error,
        freedom=freedom,
        detectable=seen,
        counts=dict(matched.counts),
        left_out=dict(matched.left_out),
        note="; ".join(text for text in (note, matched.fixed) if text),
    )


def mcnemar(won: int, lost: int) -> float:
    """Two-sided exact p-value (mid-P) of McNemar's test: of the units that differ, one half each is expected."""
    most, units = max(won, lost), won + lost
    if 2 * most == units:
        return 1.0
    return float(2 * scipy.stats.binom.sf(most, units, 0.5) + scipy.stats.binom.pmf(most, units, 0.5))


def _share_difference(won: int, lost: int, n: int, p: float, level: float) -> tuple[float, float]:
    """Score interval (Tango 1998) of the difference of two paired shares, with a quantile that makes it agree with p.

    The interval holds 0 where p is above 1 - level: the normal quantile is multiplied by what the score is at 0
    relative to the normal score of p.
    """

    def score(delta: float) -> float:
        slope = (2 * n - won + lost) * delta - won - lost
        least = (math.sqrt(max(0.0, slope**2 + 8 * n * lost * delta * (1 - delta))) - slope) / (4 * n)
        variance = n * (2 * least + delta * (1 - delta))
        away = won - lost - n * delta
        if abs(away) < 1e-9:
            return 0.0
        return away / math.sqrt(max(variance, 1e-24))

    limit = float(scipy.stats.norm.isf((1 - level) / 2))
    if won != lost:
        limit *= abs(score(0.0)) / float(scipy.stats.norm.isf(p / 2))
    value = (won - lost) / n

    def bound(end: float, sign: float) -> float:
        if sign * score(end) > -limit:
            return end
        return float(scipy.optimize.brentq(lambda delta: sign * score(delta) + limit, value, end, xtol=1e-12))

    return bound(-1.0, -1.0), bound(1.0, 1.0)


def holm(p_values: Sequence[float] | F64) -> F64:
    """P-values adjusted by Holm: any of them below 0.05 is wrong with probability 0.05 at most. NaN stays."""
    p = np.asarray(p_values, dtype=np.float64)
    out = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    stepped = p[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return out


@dataclass(frozen=True)
class Ranking:
    """Ranks of k scores with 95 % intervals that hold for all of them together.

    Attributes
    ----------
    values
        (k,) scores on the common units.
    rank, low, high
        (k,) rank by value, 1 for the best (equal scores share the lower rank), and its interval: `low` is 1 more than
        the number of scores that are better beyond chance.
    p_adjusted
        (k, k) p-values of the paired differences, adjusted for all pairs; 1 on the diagonal.
    """

    values: F64
    rank: Ints
    low: Ints
    high: Ints
    p_adjusted: F64
    counts: Mapping[str, int]
    left_out: Mapping[str, int]
    note: str = ""


def ranking(scores: Sequence[Seeds], *, higher_is_better: bool = True, level: float = 0.95) -> Ranking:
    """Ranks with simultaneous intervals, from all paired differences on the units that all scores have.

    A score lies behind as many others as are better with a p-value below 0.05, adjusted by Holm for all pairs, and
    before as many as are worse: with probability 0.95 no interval misses (Mogstad, Romano, Shaikh & Wilhelm 2024).

    Raises
    ------
    NotComputable
        See `match`.
    """
    matched = match(scores)
    k = len(scores)
    first, second = np.triu_indices(k, 1)
    p = [pair(matched, int(i), int(j), level=level).p_value for i, j in zip(first, second, strict=True)]
    p_adjusted = np.ones((k, k))
    p_adjusted[first, second] = p_adjusted[second, first] = holm(p)
    values = matched.values if higher_is_better else -matched.values
    better = values[:, None] > values[None, :]
    beyond_chance = better & (p_adjusted < 1 - level)
    return Ranking(
        values=matched.values,
        rank=1 + better.sum(axis=0).astype(np.int64),
        low=1 + beyond_chance.sum(axis=0).astype(np.int64),
        high=k - beyond_chance.sum(axis=1).astype(np.int64),
        p_adjusted=p_adjusted,
        counts=dict(matched.counts),
        left_out=dict(matched.left_out),
        note=matched.fixed,
    )
