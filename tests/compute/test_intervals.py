"""Units and intervals: values, closed forms, sums and differences, tables, and coverage where it is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from txeval.compute.intervals import (
    CONTROLS,
    Units,
    adjusted_share_interval,
    combine,
    interval,
    once_of_pairs,
    seed_interval,
    spread,
    units_from_frame,
    units_to_frame,
    with_margins,
)
from txeval.errors import NotComputable


def names(prefix: str, n: int) -> np.ndarray:
    return np.asarray([f"{prefix}{i}" for i in range(n)])


def crossed(rng: np.random.Generator, n: int = 400, a: int = 8, b: int = 30, **changes: object) -> Units:
    codes = (rng.integers(0, a, n), rng.integers(0, b, n))
    return Units.crossed(("batch", "perturbation"), (names("b", a), names("p", b)), codes, rng.random(n), **changes)


def test_a_mean_has_the_interval_of_student() -> None:
    values = np.random.default_rng(0).normal(3, 2, 40)
    found = interval(Units.single("perturbation", names("p", 40), values))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.05)
    # Units of one weight: what is left is that no unit may carry more than its share of the variance.
    made = spread(Units.single("perturbation", names("p", 40), values))
    assert (made.variance, made.df) == pytest.approx((values.var(ddof=1) / 40, 39))


@pytest.mark.parametrize(("hits", "n"), [(0, 30), (30, 30), (3, 40), (39, 40), (100, 200)])
def test_a_share_has_the_mid_p_interval(hits: int, n: int) -> None:
    units = Units.single("perturbation", names("p", n), np.r_[np.ones(hits), np.zeros(n - hits)])
    found = interval(units, low=0, high=1)
    assert found.low <= hits / n <= found.high
    assert 0 <= found.low < found.high <= 1
    if hits == 0:
        assert found.low == 0
    if hits == n:
        assert found.high == 1
    if 3 < hits < n - 3:
        exact = stats.binomtest(hits, n).proportion_ci(0.95, "exact")
        assert exact.low < found.low
        assert found.high < exact.high


@pytest.mark.parametrize("p", [0.01, 0.05, 0.3, 0.9, 0.997])
def test_the_interval_of_a_share_covers(p: float) -> None:
    n = 60
    covered = 0.0
    for hits in range(n + 1):
        units = Units.single("perturbation", names("p", n), np.r_[np.ones(hits), np.zeros(n - hits)])
        found = interval(units, low=0, high=1)
        covered += stats.binom.pmf(hits, n, p) * (found.low <= p <= found.high)
    # Mid-P is right on average over shares, not at least at each.
    assert 0.92 <= covered <= 1


def test_one_factor_of_equal_weights_is_the_delete_one_jackknife() -> None:
    rng = np.random.default_rng(1)
    above = rng.random(12)
    left = np.asarray([np.delete(above, i).mean() for i in range(12)])
    expected = 11 / 12 * ((left - left.mean()) ** 2).sum()
    assert spread(Units.single("batch", names("b", 12), above)).variance == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("effects", [True, False])
def test_the_variance_over_levels_of_unequal_size_is_not_too_small(effects: bool) -> None:
    rng = np.random.default_rng(1)
    size = np.asarray([1.0, 1, 2, 3, 5, 8])
    found, means = [], []
    for _ in range(4000):
        # Effects of one variance, or scatter that goes with 1 / size.
        values = rng.standard_normal(6) / (1.0 if effects else np.sqrt(size))
        means.append((size * values).sum() / size.sum())
        found.append(spread(Units.single("batch", names("b", 6), size * values, size)).variance)
    assert 0.95 < np.mean(found) / np.var(means) < 1.4


def test_two_factors_are_known_from_their_parts() -> None:
    rng = np.random.default_rng(2)
    a, b = 9, 40
    values = rng.normal(0, 1, a)[:, None] + rng.normal(0, 2, b)[None, :] + rng.normal(0, 1, (a, b))
    codes = tuple(np.asarray(side).ravel() for side in np.indices((a, b)))
    units = Units.crossed(("batch", "perturbation"), (names("b", a), names("p", b)), codes, values.ravel())
    rows, columns = values.mean(axis=1).var(ddof=1) / a, values.mean(axis=0).var(ddof=1) / b
    cells = values.var() / (a * b)
    assert spread(units).variance == pytest.approx(rows + columns - cells, rel=0.03)


def simulated_coverage(draws: int, a: int, b: int, sd_a: float, sd_b: float, sd_cell: float) -> float:
    rng = np.random.default_rng(3)
    hits = 0
    codes = tuple(np.asarray(side).ravel() for side in np.indices((a, b)))
    labels = (names("b", a), names("p", b))
    for _ in range(draws):
        values = (
            sd_a * rng.standard_normal(a)[:, None]
            + sd_b * rng.standard_normal(b)[None, :]
            + sd_cell * rng.standard_normal((a, b))
        )
        found = interval(Units.crossed(("batch", "perturbation"), labels, codes, values.ravel()))
        hits += found.low <= 0 <= found.high
    return hits / draws


@pytest.mark.parametrize(
    ("a", "b", "sd_a", "sd_b", "sd_cell"),
    [(6, 40, 1, 1, 3), (12, 12, 1, 0, 1), (5, 60, 0, 1, 1), (4, 30, 1, 1, 1), (20, 20, 0, 0, 1)],
)
def test_crossed_intervals_cover(a: int, b: int, sd_a: float, sd_b: float, sd_cell: float) -> None:
    assert 0.90 <= simulated_coverage(300, a, b, sd_a, sd_b, sd_cell) <= 1.0


def test_pairs_cover_where_genes_share_an_effect() -> None:
    rng = np.random.default_rng(4)
    first, second = np.triu_indices(30, 1)
    kept = rng.random(len(first)) < 0.3
    first, second = first[kept], second[kept]
    hits = 0
    for _ in range(300):
        gene = rng.standard_normal(30)
        found = interval(
            Units.pairs(
                "gene", names("g", 30), first, second, gene[first] + gene[second] + rng.standard_normal(len(first))
            )
        )
        hits += found.low <= 0 <= found.high
    assert 0.90 <= hits / 300 <= 0.99


def test_controls_beside_perturbations_are_design_and_not_spread() -> None:
    rng = np.random.default_rng(5)
    batch = np.repeat(np.arange(10), 60)
    label = np.tile(np.r_[np.arange(40), np.full(20, 40)], 10)
    level = np.where(label == 40, 40 + batch, label)
    values = (label == 40) + 0.01 * rng.standard_normal(600)
    labels = np.concatenate([names("p", 40), [f"{CONTROLS}b{i}" for i in range(10)]])
    apart = Units.crossed(("batch", "perturbation"), (names("b", 10), labels), (batch, level), values)
    # The same with the controls as one more perturbation.
    mixed = Units.crossed(("batch", "perturbation"), (names("b", 10), names("p", 41)), (batch, label), values)
    assert apart.value == pytest.approx(mixed.value)
    assert spread(apart).variance < 0.01 * spread(mixed).variance


def test_too_few_units_give_a_reason_and_one_level_is_taken_as_given() -> None:
    few = interval(Units.single("batch", names("b", 4), np.ones(4)))
    assert np.isnan(few.low)
    assert few.note == "no interval: 4 batches, 5 needed"
    rng = np.random.default_rng(6)
    one = crossed(rng, a=1)
    found = interval(one, low=0, high=1)
    assert found.unit == "perturbation"
    assert found.note == "1 batch taken as given"
    assert interval(crossed(rng), low=0, high=1).unit == "batch x perturbation"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(-3, 3), st.floats(0.1, 4))
def test_value_weights_and_sums(seed: int, offset: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    units = crossed(rng, n=60, denominator=rng.random(60) + 0.1, offset=offset, scale=scale)
    assert units.weighted({"batch": np.full(len(units.labels[0]), 2.5)}) == pytest.approx(units.value)
    assert units.influence.sum() == pytest.approx(0, abs=1e-9)
    keep = rng.random(len(units.labels[0])) < 0.6
    if keep.any():
        assert units.subset("batch", keep).value == pytest.approx(units.weighted({"batch": keep.astype(float)}))
    other = crossed(rng, n=60)
    assert combine([units, other], [1, -1]).value == pytest.approx(units.value - other.value)
    assert combine([units] * 3, [1 / 3] * 3).value == pytest.approx(units.value)
    same = combine([units] * 3, [1 / 3] * 3)
    assert spread(same).variance == pytest.approx(spread(units).variance, rel=1e-6, abs=1e-15)


def test_sums_of_scores_match_their_units() -> None:
    rng = np.random.default_rng(7)
    common = rng.standard_normal(50)
    one = Units.single("perturbation", names("p", 50), common + 0.1 + 0.05 * rng.standard_normal(50))
    other = Units.single("perturbation", names("p", 50)[::-1], (common + 0.05 * rng.standard_normal(50))[::-1])
    found = interval(combine([one, other], [1, -1]))
    assert 0 < found.low < 0.1 < found.high < 0.15
    with pytest.raises(NotComputable, match="in common"):
        combine([one, Units.single("perturbation", names("q", 50), common)], [1, -1])
    with pytest.raises(NotComputable, match="different units"):
        combine([one, Units.single("batch", names("p", 50), common)], [1, -1])


def test_margins_are_met_and_keep_what_they_do_not_ask_for() -> None:
    rng = np.random.default_rng(13)
    codes = (rng.integers(0, 6, 300), rng.integers(0, 20, 300))
    values, weight = rng.standard_normal(300), rng.random(300)
    rows, columns = rng.standard_normal(6), rng.standard_normal(20)
    columns += (rows.sum() - columns.sum()) / 20
    made = with_margins(values, weight, codes, (rows, columns))
    np.testing.assert_allclose(np.bincount(codes[0], weights=made), rows, atol=1e-8)
    np.testing.assert_allclose(np.bincount(codes[1], weights=made), columns, atol=1e-8)
    # The changes are a term for each batch and each perturbation, times the weight.
    design = np.column_stack([codes[0][:, None] == np.arange(6), codes[1][:, None] == np.arange(20)]).astype(float)
    change = (made - values) / weight
    np.testing.assert_allclose(design @ np.linalg.lstsq(design, change, rcond=None)[0], change, atol=1e-7)
    same = (np.bincount(codes[0], weights=values), np.bincount(codes[1], weights=values))
    np.testing.assert_allclose(with_margins(values, weight, codes, same), values, atol=1e-12)


def test_what_pairs_do_is_counted_once() -> None:
    rng = np.random.default_rng(14)
    first, second = np.triu_indices(40, 1)
    found, sums = [], []
    for _ in range(300):
        values = rng.standard_normal(len(first))
        moved = np.bincount(first, weights=values, minlength=40) + np.bincount(second, weights=values, minlength=40)
        moved -= moved.mean()
        found.append(
            (once_of_pairs(moved, second, first, values) * moved) @ moved * once_of_pairs(moved, first, second, values)
        )
        sums.append(values.sum())
    assert np.mean(found) == pytest.approx(np.var(sums), rel=0.15)
    # Without pairs, and with a floor, nothing is taken away.
    assert once_of_pairs(moved, first[:0], second[:0], values[:0]) == 1.0
    assert once_of_pairs(moved, first, second, values, at_least=float(moved @ moved)) == 1.0


def skewed_mean(rng: np.random.Generator) -> Units:
    return Units.single("perturbation", names("p", 25), np.exp(rng.standard_normal(25)))


def test_a_skewed_score_misses_less_than_with_a_symmetric_interval() -> None:
    rng = np.random.default_rng(15)
    truth, plain, skewed = float(np.exp(0.5)), [], []
    for _ in range(500):
        units = skewed_mean(rng)
        found, made = interval(units), spread(units)
        reach = stats.t.ppf(0.975, made.df) * np.sqrt(made.variance)
        plain.append(abs(units.value - truth) <= reach)
        skewed.append(found.low <= truth <= found.high)
    assert np.mean(plain) < 0.92
    assert np.mean(skewed) > np.mean(plain) + 0.015


def test_a_correlation_has_the_interval_of_fisher() -> None:
    rng = np.random.default_rng(16)
    values = np.tanh(1.4 + 0.5 * rng.standard_normal(30))
    units = Units.single("perturbation", names("p", 30), values)
    found, made = interval(units, low=-1, high=1), spread(units)
    reach = stats.t.ppf(0.975, made.df_carried) * np.sqrt(made.variance) / (1 - units.value**2)
    assert np.arctanh(found.high) - np.arctanh(units.value) == pytest.approx(reach)
    assert np.arctanh(units.value) - np.arctanh(found.low) == pytest.approx(reach)
    assert found.high < 1
    assert found.high - units.value < units.value - found.low


def test_seeds_come_on_top_of_the_units() -> None:
    rng = np.random.default_rng(12)
    half = rng.standard_normal(15)
    # Not skewed, so that the interval is symmetric.
    base = np.concatenate([half, -half])
    seeds = [Units.single("perturbation", names("p", 30), base + shift) for shift in (-0.3, 0.0, 0.3)]
    found, sd = seed_interval(seeds)
    alone = interval(seeds[1])
    assert sd == pytest.approx(0.3)
    assert (found.high + found.low) / 2 == pytest.approx(base.mean())
    variance = spread(seeds[1]).variance
    assert (found.high - found.low) / (alone.high - alone.low) == pytest.approx(np.sqrt(1 + 0.09 / 3 / variance))
    assert np.isnan(seed_interval(seeds[:1])[1])
    assert seed_interval(seeds[:1])[0] == interval(seeds[0])


def test_tables_give_units_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    made = {
        ("top1", ""): crossed(rng),
        ("recall", "CORUM"): Units.pairs(
            "gene", names("g", 9), np.asarray([0, 1, 7]), np.asarray([3, 5, 8]), [1.0, 0.0, 1.0]
        ),
        ("consistent", ""): Units.single("perturbation", names("é ", 6), rng.random(6), offset=1.0, scale=-2.0),
    }
    path = tmp_path / "units.parquet"
    units_to_frame([(*key, units) for key, units in made.items()]).to_parquet(path)
    back = units_from_frame(pd.read_parquet(path))
    assert set(back) == set(made)
    for key, units in made.items():
        assert back[key].factors == units.factors
        assert back[key].value == pytest.approx(units.value, rel=1e-12)
        assert spread(back[key]).variance == pytest.approx(spread(units).variance, rel=1e-9)
        assert combine([back[key], units], [1, -1]).value == pytest.approx(0, abs=1e-12)
    # Tables of before there were labels.
    assert units_from_frame(pd.DataFrame({"metric": ["a"], "subset": [""], "unit": ["batch"], "index": [0]})) == {}


def test_many_cells_are_put_together_in_the_same_groups_everywhere() -> None:
    rng = np.random.default_rng(10)
    whole, grouped, other = (
        crossed(np.random.default_rng(10), n=6000, a=10, b=500, max_cells=limit) for limit in (10**6, 600, 600)
    )
    assert len(grouped.numerator) <= 600 < len(whole.numerator)
    assert grouped.value == pytest.approx(whole.value)
    assert grouped.labels[1].tolist() == other.labels[1].tolist()
    assert "perturbation group" in grouped.labels[1][0]
    assert 0.5 < spread(grouped).variance / spread(whole).variance < 2
    both = combine([grouped, crossed(rng, n=6000, a=10, b=500, max_cells=600)], [1, -1])
    assert both.labels[1].tolist() == sorted(grouped.labels[1].tolist())


@pytest.mark.parametrize(("strong", "effect"), [(0.0, 0.0), (0.5, 3.5), (0.9, 5.0), (0.3, 2.5)])
def test_the_interval_after_benjamini_hochberg_covers(strong: float, effect: float) -> None:
    rng = np.random.default_rng(11)

    def p_values() -> np.ndarray:
        z = rng.standard_normal(100) + effect * (rng.random(100) < strong)
        return np.asarray(stats.norm.sf(z))

    def share(p: np.ndarray) -> float:
        return float((stats.false_discovery_control(p) < 0.05).mean())

    truth = np.mean([share(p_values()) for _ in range(400)])
    found = [adjusted_share_interval(p_values(), 0.05, "perturbation") for _ in range(200)]
    assert 0.90 <= np.mean([one.low <= truth <= one.high for one in found]) <= 1.0
    one = p_values()
    made = adjusted_share_interval(one, 0.05, "perturbation")
    assert made.low <= share(one) <= made.high


def test_units_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="codes of batch"):
        Units(("batch",), (names("b", 2),), (np.asarray([0, 2]),), np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="no factor 'gene'"):
        Units.single("batch", names("b", 3), np.ones(3)).subset("gene", np.ones(3, dtype=bool))
