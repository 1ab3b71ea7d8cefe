from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txeval.compute.intervals import Units
from txeval.errors import NotComputable
from txeval.report.selection import cross_fitted, halving_factor

POSTS = ("raw", "centering", "center_scaling", "tvn")


def names(n: int, prefix: str = "p") -> list[str]:
    return [f"{prefix}{i}" for i in range(n)]


def mean_of(values: np.ndarray, labels: list[str] | None = None) -> Units:
    return Units.single("perturbation", labels or names(len(values)), values)


def crossed(values: np.ndarray) -> Units:
    batch, pert = np.indices(values.shape).reshape(2, -1)
    labels = (names(values.shape[0], "b"), names(values.shape[1]))
    return Units.crossed(("batch", "perturbation"), labels, (batch, pert), values.ravel())


def fit(candidates: dict[str, list[Units]], factor: str = "perturbation", split: str = "s", **options: bool):
    return cross_fitted(candidates, factor=factor, split=split, **options)


def test_each_half_reports_what_the_other_half_chose() -> None:
    labels = names(20)
    flat = {"raw": [mean_of(np.zeros(20))], "tvn": [mean_of(np.zeros(20))]}
    halves = fit(flat)
    assert halves.sizes == (10, 10)
    # Which labels are in the half that is listed second shows by the order of the joined units.
    first = [str(halves.units[0].labels[0][code]) for code in halves.units[0].codes[0][:10]]
    in_first = np.isin(labels, first)
    # raw is better on the first half, tvn on the second: each half must report the worse one.
    raw, tvn = np.where(in_first, 1.0, 0.0), np.where(in_first, 0.0, 1.0)
    found = fit({"raw": [mean_of(raw)], "tvn": [mean_of(tvn)]})
    assert found.chosen == ("tvn", "raw")
    assert found.values == [0.0]


def test_where_both_halves_agree_the_score_is_that_of_all_units() -> None:
    rng = np.random.default_rng(0)
    good, bad = mean_of(rng.random(31) + 1), mean_of(rng.random(31))
    found = fit({"raw": [bad], "tvn": [good]})
    assert found.chosen == ("tvn", "tvn")
    assert found.values[0] == pytest.approx(good.value)
    assert len(found.units[0].numerator) == 31


def test_the_lowest_is_chosen_where_lower_is_better() -> None:
    good, bad = mean_of(np.zeros(10)), mean_of(np.ones(10))
    assert fit({"raw": [bad], "tvn": [good]}, higher_is_better=False).chosen == ("tvn", "tvn")


def test_a_tie_goes_to_the_first() -> None:
    same = mean_of(np.ones(10))
    assert fit({post: [same] for post in POSTS}).chosen == ("raw", "raw")


def test_halves_depend_on_the_split_and_the_labels_alone() -> None:
    rng = np.random.default_rng(1)
    values = {post: rng.random(24) for post in POSTS}
    order = rng.permutation(24)
    labels = names(24)
    one = fit({post: [mean_of(v)] for post, v in values.items()})
    two = fit({post: [mean_of(v[order], [labels[i] for i in order])] for post, v in values.items()})
    assert one.chosen == two.chosen
    assert one.values[0] == pytest.approx(two.values[0])
    others = {tuple(fit({p: [mean_of(v)] for p, v in values.items()}, split=f"s{i}").values) for i in range(5)}
    assert len(others) > 1


def test_scales_and_offsets_of_the_parts_are_kept() -> None:
    values = np.linspace(0, 1, 12)
    plain = mean_of(values)
    turned = Units.single("perturbation", names(12), 1 - values, offset=1.0, scale=-1.0)
    assert turned.value == pytest.approx(plain.value)
    found = fit({"raw": [turned]})
    assert found.values[0] == pytest.approx(plain.value)


def test_of_pairs_those_within_one_half_count_and_the_others_are_counted() -> None:
    first, second = (side.astype(np.int64) for side in np.triu_indices(10, 1))
    hits = np.random.default_rng(0).random(len(first))
    units = Units.pairs("gene", names(10, "g"), first, second, hits)
    found = fit({"raw": [units], "tvn": [units]}, factor="gene")
    assert len(found.units[0].numerator) == 2 * 10
    assert found.left_out == {"pairs of genes of different halves": 45 - 20}
    assert found.units[0].dyadic


def test_seeds_are_averaged_for_the_choice_and_kept_apart_in_the_report() -> None:
    rng = np.random.default_rng(3)
    seeds = {post: [mean_of(rng.random(20)) for _ in range(3)] for post in POSTS}
    found = fit(seeds)
    assert len(found.values) == 3
    assert len({round(value, 6) for value in found.values}) == 3


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 5))
def test_every_unit_is_reported_once(n: int, n_posts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = fit({post: [mean_of(rng.random(n))] for post in POSTS[:n_posts]}, split=str(seed))
    labels = [str(found.units[0].labels[0][code]) for code in found.units[0].codes[0]]
    assert sorted(labels) == sorted(names(n))
    assert abs(found.sizes[0] - found.sizes[1]) <= 1
    assert sum(found.sizes) == n


def test_test_batches_are_halved_for_the_probe_and_knn_and_perturbations_elsewhere() -> None:
    units = crossed(np.ones((4, 6)))
    assert halving_factor("linear_probe", units) == "batch"
    assert halving_factor("knn", units) == "batch"
    assert halving_factor("reconstruction", units) == "perturbation"
    assert (
        halving_factor("relationships", Units.pairs("gene", names(4), np.array([0, 1]), np.array([2, 3]), [1, 0]))
        == "gene"
    )
    assert halving_factor("batch_mixing", Units.single("batch", names(4), np.ones(4))) == "batch"
    # One batch cannot be halved; the perturbations in it can.
    assert halving_factor("knn", crossed(np.ones((1, 6)))) == "perturbation"
    with pytest.raises(NotComputable, match="1 batch and 1 perturbation"):
        halving_factor("knn", crossed(np.ones((1, 1))))


def test_random_embeddings_are_at_chance_where_the_choice_does_not_leak() -> None:
    rng = np.random.default_rng(0)
    best, honest = [], []
    for number in range(200):
        candidates = {post: [crossed((rng.random((8, 20)) < 0.1).astype(float))] for post in POSTS}
        best.append(max(units.value for [units] in candidates.values()))
        honest.append(fit(candidates, factor="batch", split=str(number)).values[0])
    error = np.std(honest, ddof=1) / np.sqrt(200)
    assert abs(np.mean(honest) - 0.1) < 3 * error
    assert np.mean(best) > 0.1 + 5 * error
