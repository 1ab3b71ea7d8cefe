from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from txeval.compute.intervals import Units
from txeval.compute.paired import difference, holm, match, ranking
from txeval.errors import NotComputable

DRAWS = 300


def named(n: int) -> list[str]:
    return [f"u{i}" for i in range(n)]


def one_factor(values: np.ndarray, weights: np.ndarray | None = None, labels: list[str] | None = None) -> Units:
    weights = np.ones(len(values)) if weights is None else weights
    return Units.single("perturbation", labels or named(len(values)), values * weights, weights)


def screen(rng: np.random.Generator, n_batch: int, n_pert: int, spread: tuple[float, float, float], k: int = 2):
    """Scores of k models without a true difference, with effects of batches, of perturbations and of samples."""
    sizes = np.exp(0.7 * rng.normal(size=n_batch))[:, None] * np.exp(0.5 * rng.normal(size=n_pert))[None, :]
    n = rng.poisson(3 * sizes)
    batch, pert = np.nonzero(n)
    weight = n[batch, pert].astype(float)
    made = []
    for _ in range(k):
        mean = 0.3 + spread[0] * rng.normal(size=n_batch)[batch] + spread[1] * rng.normal(size=n_pert)[pert]
        values = mean + spread[2] * rng.normal(size=len(batch)) / np.sqrt(weight)
        labels = (named(n_batch), named(n_pert))
        made.append(Units.crossed(("batch", "perturbation"), labels, (batch, pert), values * weight, weight))
    return made


def test_with_one_unit_per_pair_it_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 40))
    found = difference([one_factor(one)], [one_factor(other)])
    oracle = scipy.stats.ttest_rel(one, other)
    assert found.value == pytest.approx((one - other).mean())
    assert found.value / found.error == pytest.approx(oracle.statistic)
    # Its degrees of freedom are those of the sample at most.
    assert found.freedom <= 39
    assert found.p_value == pytest.approx(oracle.pvalue, abs=0.02)


@pytest.mark.parametrize(
    ("design", "spread"),
    [((3, 40), (0.1, 0.1, 0.3)), ((6, 40), (0.3, 0.05, 0.1)), ((20, 60), (0.1, 0.0, 0.3)), ((20, 60), (0.0, 0.1, 0.3))],
)
def test_the_p_value_is_uniform_where_there_is_no_difference(design, spread) -> None:
    rng = np.random.default_rng(7)
    p = [difference(*([units] for units in screen(rng, *design, spread))).p_value for _ in range(DRAWS)]
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.asarray(p) < 0.05) < 0.09


@pytest.mark.parametrize("n", [6, 30])
def test_it_is_uniform_for_units_of_very_unequal_size(n: int) -> None:
    rng = np.random.default_rng(3)
    p = []
    for _ in range(DRAWS):
        weights = 1.0 + rng.poisson(5 * np.exp(rng.normal(size=n)))
        one, other = rng.normal(size=(2, n))
        p.append(difference([one_factor(one, weights)], [one_factor(other, weights)]).p_value)
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_a_difference_that_few_units_carry_is_not_oversold() -> None:
    rng = np.random.default_rng(5)
    p = []
    for _ in range(DRAWS):
        same = rng.random(100) < 0.5
        one, other = (same ^ (rng.random(100) < 0.02) for _ in range(2))
        p.append(difference([one_factor(one.astype(float))], [one_factor(other.astype(float))]).p_value)
    assert np.mean(np.asarray(p) < 0.05) <= 0.05


def test_the_interval_holds_the_true_difference_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    inside = []
    for _ in range(3 * DRAWS):
        one, other = screen(rng, 12, 40, (0.1, 0.1, 0.3))
        shifted = Units(
            one.factors, one.labels, one.codes, one.numerator + 0.07 * one.denominator, one.denominator, 0, 1
        )
        found = difference([shifted], [other])
        inside.append(found.low <= 0.07 <= found.high)
        assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
    assert 0.93 <= np.mean(inside) <= 0.98


@pytest.mark.parametrize("n_batch", [12, 5])
@pytest.mark.parametrize("spread", [(0.0, 0.0, 1.0), (0.0, 0.3, 1.0), (0.3, 0.0, 1.0)])
def test_uneven_levels_that_hardly_differ_leave_the_variance_and_the_p_value_right(n_batch: int, spread) -> None:
    rng = np.random.default_rng(21)
    draws = 1000
    found = [difference(*([units] for units in screen(rng, n_batch, 48, spread))) for _ in range(draws)]
    p = np.asarray([one.p_value for one in found])
    true = np.mean([one.value**2 for one in found])
    assert np.mean([one.error**2 for one in found]) / true == pytest.approx(1.0, abs=0.2)
    assert scipy.stats.binomtest(int((p <= 0.05).sum()), draws, 0.05, "greater").pvalue > 0.01
    assert scipy.stats.kstest(p, "uniform").statistic < 0.07


@pytest.mark.parametrize(("won", "lost"), [(0, 1), (7, 0), (5, 5), (3, 11), (40, 20)])
def test_shares_of_hits_have_the_exact_test_of_mcnemar(won: int, lost: int) -> None:
    n = 80
    hits = np.zeros((2, n))
    hits[0, :won] = hits[1, won : won + lost] = hits[:, -5:] = 1
    found = difference([one_factor(hits[0])], [one_factor(hits[1])])
    both = scipy.stats.binomtest(won, won + lost).pvalue
    same = scipy.stats.binom.pmf(won, won + lost, 0.5)
    # Mid-P: half of the outcome itself, on both sides.
    assert found.p_value == pytest.approx(both - same if won != lost else 1.0)
    assert found.value == pytest.approx((won - lost) / n)
    assert found.low <= found.value <= found.high
    assert (found.p_value <= 0.05) == (not found.low <= 0 <= found.high)


def test_the_interval_of_a_difference_of_shares_covers() -> None:
    rng = np.random.default_rng(13)
    for share, delta in ((0.1, 0.1), (0.2, 0.1), (0.3, -0.2)):
        held = []
        for _ in range(DRAWS):
            kind = rng.choice(3, size=60, p=[(share + delta) / 2, (share - delta) / 2, 1 - share])
            found = difference([one_factor((kind == 0).astype(float))], [one_factor((kind == 1).astype(float))])
            held.append(found.low <= delta <= found.high)
        assert 0.91 <= np.mean(held) <= 0.985


def test_at_every_level_shares_of_hits_differ_no_more_often_than_by_chance() -> None:
    rng = np.random.default_rng(14)
    p = []
    for _ in range(1000):
        kind = rng.choice(3, size=60, p=[0.08, 0.08, 0.84])
        p.append(difference([one_factor((kind == 0) * 1.0)], [one_factor((kind == 1) * 1.0)]).p_value)
    for level in (0.01, 0.05, 0.1, 0.2):
        hits = int((np.asarray(p) <= level).sum())
        assert scipy.stats.binomtest(hits, len(p), level, "greater").pvalue > 0.01


def test_the_smallest_detectable_difference_is_seen_in_four_cases_of_five() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.normal(size=(2, 60)) * 0.1
    size = difference([one_factor(one)], [one_factor(other)]).detectable
    seen = [
        difference([one_factor(rng.normal(size=60) * 0.1 + size)], [one_factor(rng.normal(size=60) * 0.1)]).p_value
        for _ in range(DRAWS)
    ]
    assert 0.65 < np.mean(np.asarray(seen) < 0.05) < 0.92


def test_scores_of_pairs_vary_by_all_pairs_that_share_a_unit() -> None:
    rng = np.random.default_rng(1)
    n = 12
    first, second = (side.astype(np.int64) for side in np.triu_indices(n, 1))
    effect = rng.random((2, n)) / 2
    hits = (rng.random((2, len(first))) < effect[:, first] + effect[:, second]).astype(float)
    one, other = (Units.pairs("gene", named(n), first, second, hit) for hit in hits)
    (a, b) = match([[one], [other]]).influence
    shared = (first[:, None] == first) | (first[:, None] == second) | (second[:, None] == first)
    shared |= second[:, None] == second
    brute, pairs = (a - b) @ shared @ (a - b), (a - b) @ (a - b)
    assert brute > pairs
    # Sums over units and pairs are corrected for their numbers.
    expected = (brute + pairs) / (1 - 1 / n) - pairs / (1 - 1 / len(first))
    assert difference([one], [other]).error ** 2 == pytest.approx(expected)


def test_units_match_by_label_and_what_is_not_common_is_counted() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=30)
    labels = named(30)
    shuffled = rng.permutation(30)[:25]
    one = one_factor(values, labels=labels)
    other = one_factor(values[shuffled] - 0.5, labels=[labels[i] for i in shuffled])
    found = difference([one], [other])
    assert found.value == pytest.approx(0.5)
    assert found.counts == {"perturbation": 25}
    assert found.left_out == {"perturbation labels that some scores lack": 5}
    assert found.note == "the same difference on every unit; p-value of the sign test"
    assert found.p_value == 2.0**-24


def test_cells_that_one_score_lacks_are_left_out_and_counted() -> None:
    rng = np.random.default_rng(1)
    one, other = screen(rng, 8, 30, (0.1, 0.1, 0.1))
    keep = np.arange(len(other.numerator)) % 10 > 0
    less = Units(
        other.factors,
        other.labels,
        tuple(code[keep] for code in other.codes),
        other.numerator[keep],
        other.denominator[keep],
    )
    found = difference([one], [less])
    assert found.units == "8 batches x 30 perturbations"
    assert found.left_out["cells of batch x perturbation that some scores lack"] == int((~keep).sum())
    assert found.second == pytest.approx(less.value)


def test_an_embedding_against_itself_is_equal() -> None:
    one, _ = screen(np.random.default_rng(0), 8, 20, (0.1, 0.1, 0.1))
    found = difference([one], [one])
    assert (found.value, found.p_value, found.note) == (0.0, 1.0, "equal on every unit")


def test_a_factor_of_two_levels_is_taken_as_given_and_said() -> None:
    one, other = screen(np.random.default_rng(0), 2, 40, (0.1, 0.1, 0.1))
    found = difference([one], [other])
    assert found.counts.keys() == {"perturbation"}
    assert found.note == "2 batches taken as given"
    with pytest.raises(NotComputable, match="3 of batch and 4 of perturbation"):
        difference(*([units] for units in screen(np.random.default_rng(0), 3, 4, (0.1, 0.1, 0.1))))


def test_scores_of_different_units_cannot_be_compared() -> None:
    one = one_factor(np.arange(9.0))
    other = Units.single("gene", named(9), np.arange(9.0))
    with pytest.raises(NotComputable, match="perturbation against gene"):
        difference([one], [other])


def test_seeds_are_averaged_and_their_common_shift_widens_the_interval() -> None:
    rng = np.random.default_rng(4)
    base = rng.normal(size=50)
    still = [one_factor(base + 0.1 * rng.normal(size=50)) for _ in range(5)]
    moving = [one_factor(base + 0.1 * rng.normal(size=50) + shift) for shift in (-0.4, -0.2, 0.0, 0.2, 0.4)]
    other = [one_factor(rng.normal(size=50))]
    calm, restless = difference(still, other), difference(moving, other)
    assert calm.first == pytest.approx(np.mean([units.value for units in still]))
    assert restless.error**2 - calm.error**2 == pytest.approx(np.var([-0.4, -0.2, 0, 0.2, 0.4], ddof=1) / 5, rel=0.1)
    # Scatter of single units over seeds is in the units' own variance already.
    spread = match([still, other]).spread
    assert spread[0] < 1e-4


def test_seeds_that_shuffle_every_unit_leave_the_p_value_uniform() -> None:
    rng = np.random.default_rng(8)
    p = []
    for _ in range(DRAWS):
        one, other = ([one_factor(rng.normal(size=40)) for _ in range(4)] for _ in range(2))
        p.append(difference(one, other).p_value)
    assert np.mean(np.asarray(p) < 0.05) < 0.09
    assert np.mean(p) == pytest.approx(0.5, abs=0.06)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_equals_its_definition(p_values: list[float]) -> None:
    found = holm(p_values)
    order = np.argsort(p_values, kind="stable")
    for place, i in enumerate(order):
        steps = [(len(order) - j) * p_values[order[j]] for j in range(place + 1)]
        assert found[i] == pytest.approx(min(1.0, max(steps)))


def test_holm_leaves_out_what_has_no_p_value() -> None:
    np.testing.assert_allclose(holm([0.01, float("nan"), 0.04]), [0.02, float("nan"), 0.04])


def test_rank_intervals_hold_the_true_ranks_of_all_together() -> None:
    rng = np.random.default_rng(6)
    truth = np.array([0.9, 0.6, 0.6, 0.5, 0.0])
    held, width = [], []
    for _ in range(120):
        common = rng.normal(size=60)
        made = ranking([[one_factor(level + common + 0.5 * rng.normal(size=60))] for level in truth])
        # Equal scores may have any of the ranks that they share.
        best, worst = 1 + (truth[:, None] > truth).sum(axis=0), (truth[:, None] >= truth).sum(axis=0)
        held.append(((made.low <= best) & (made.high >= worst)).all())
        width.append(made.high - made.low)
        assert ((made.low <= made.rank) & (made.rank <= made.high)).all()
    assert np.mean(held) >= 0.93
    assert np.mean(width, axis=0)[[0, 4]].max() < 1.0


def test_equal_models_are_all_first() -> None:
    rng = np.random.default_rng(9)
    alone = [
        (ranking([[units] for units in screen(rng, 10, 30, (0.1, 0.1, 0.2), 6)]).low > 1).any() for _ in range(100)
    ]
    assert np.mean(alone) <= 0.09


def test_ranks_turn_where_lower_is_better_and_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(3)
    scores = [[one_factor(rng.normal(size=40) + level)] for level in (0, 1, 5)]
    up, down = ranking(scores), ranking(scores, higher_is_better=False)
    assert list(up.rank) == [3, 2, 1]
    assert list(down.rank) == [1, 2, 3]
    for order in itertools.permutations(range(3)):
        again = ranking([scores[i] for i in order])
        assert list(again.rank) == [up.rank[i] for i in order]
        assert list(again.low) == [up.low[i] for i in order]
