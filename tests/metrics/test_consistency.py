from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import kstest
from sklearn.metrics.pairwise import cosine_similarity

from txeval.errors import InputError, NotComputable
from txeval.metrics import perturbation_consistency, perturbation_magnitude
from txeval.metrics.consistency import (
    adjust,
    choose_controls,
    consistency_permutation_p,
    group_consistency,
    group_energy,
    magnitude_permutation_p,
    tail_p,
)

POSTS = {"raw": "embedding", "center_scaling": "post_center_scaling", "tvn": "post_tvn"}


class OnDemand:
    def __init__(self, values: np.ndarray) -> None:
        self._values, self.shape = values, values.shape

    def __getitem__(self, rows: object) -> np.ndarray:
        return self._values[rows]


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> tuple[dict, dict]:
    with np.load(golden_dir / "norman.npz", allow_pickle=True) as arrays:
        inputs = dict(arrays)
    return inputs, json.loads((golden_dir / "norman.json").read_text())["answers"]


@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize("on_demand", [False, True])
def test_consistency_is_the_golden_one(golden: tuple[dict, dict], post: str, on_demand: bool) -> None:
    inputs, answers = golden
    answer = answers[f"consistency/{post}"]
    X = inputs[POSTS[post]]
    found = perturbation_consistency(
        OnDemand(X) if on_demand else X,
        inputs["perturbation"],
        answer["null"],
        p_value="reference",
        max_elements=10_000 if on_demand else None,
    ).set_index("perturbation")
    assert set(found.index) == set(answer["avgcossim"]) | {"control"}
    for label, value in answer["avgcossim"].items():
        assert found.avg_cosine[label] == pytest.approx(value, rel=1e-9)
        assert found.p_value[label] == pytest.approx(answer["pval"][label], abs=1e-12)


@pytest.mark.parametrize("post", POSTS)
def test_magnitude_is_the_golden_one(golden: tuple[dict, dict], post: str) -> None:
    inputs, answers = golden
    answer = answers[f"magnitude/{post}"]
    found = perturbation_magnitude(
        inputs[POSTS[post]],
        inputs["perturbation"],
        inputs["is_control"],
        answers[f"consistency/{post}"]["null"],
        p_value="reference",
    ).set_index("perturbation")
    assert set(found.index) == set(answer)
    for label, value in answer.items():
        assert found.energy_distance[label] == pytest.approx(value["edist"], rel=1e-5)
        assert found.p_value[label] == pytest.approx(value["pval"], abs=1e-12)


def made(seed: int = 0, n: int = 400, groups: int = 25, d: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    perturbation = rng.permutation(np.arange(n) % groups)
    X = rng.standard_normal((n, d)) + 0.5 * rng.standard_normal((groups, d))[perturbation]
    return X, np.array([f"g{i:02d}" for i in range(groups)])[perturbation]


def test_mean_cosine_is_that_of_sklearn() -> None:
    X, labels = made()
    X[5] = 0
    found = perturbation_consistency(X, labels, ["g00", "g01", "g02"])
    assert found.perturbation.tolist() == [f"g{i:02d}" for i in range(3, 25)]
    for row in found.itertuples():
        similarity = cosine_similarity(X[labels == row.perturbation])
        pairs = similarity[~np.eye(len(similarity), dtype=bool)]
        assert row.avg_cosine == pytest.approx(pairs.mean(), abs=1e-12)
        assert row.n == len(similarity)


def test_both_p_values_by_their_definition() -> None:
    X, labels = made(1)
    null = [f"g{i:02d}" for i in range(6)]
    paper = perturbation_consistency(X, labels, null).set_index("perturbation")
    reference = perturbation_consistency(X, labels, null, p_value="reference").set_index("perturbation")
    codes = np.unique(labels, return_inverse=True)[1]
    avg = group_consistency(X, codes, 25)[1]
    above = (avg[None, :6] >= avg[6:, None]).sum(axis=1)
    assert (above == 0).any()
    assert (above > 1).any()
    np.testing.assert_allclose(paper.p_value, np.maximum(above, 1) / 6)
    np.testing.assert_allclose(reference.p_value, above / 6, atol=1e-15)


def test_a_value_of_the_null_counts_as_reached() -> None:
    assert tail_p([1.0, 2.0, 3.0, 4.0, np.nan], [1.0, 2.0, 2.0, 3.0])[:4].tolist() == [1.0, 0.75, 0.25, 0.25]
    assert tail_p([4.0], [1.0, 2.0], "reference").tolist() == [0.0]
    assert np.isnan(tail_p([np.nan], [1.0, 2.0])).all()


def test_adjusted_p_values_by_benjamini_and_hochberg() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.005, 0.9])
    known = np.sort(p[np.isfinite(p)])
    steps = np.minimum.accumulate((known * 5 / np.arange(1, 6))[::-1])[::-1]
    expected = dict(zip(known, steps, strict=True))
    np.testing.assert_allclose(adjust(p), [expected.get(v, np.nan) for v in p])
    assert np.isnan(adjust([np.nan, np.nan])).all()
    X, labels = made(2)
    found = perturbation_consistency(X, labels, ["g00", "g01", "g02"])
    np.testing.assert_allclose(found.p_adjusted, adjust(found.p_value))


def test_groups_that_are_too_small_stay_without_a_score() -> None:
    X, labels = made(3)
    labels = labels.astype(object)
    labels[0] = "alone"
    found = perturbation_consistency(X, labels, ["g00", "g01", "g02"]).set_index("perturbation")
    assert found.n["alone"] == 1
    assert found.loc["alone", ["avg_cosine", "p_value", "p_adjusted"]].isna().all()
    assert found.drop("alone").notna().all().all()
    control = labels == "g24"
    found = perturbation_magnitude(X, labels, control, ["g00", "g01", "g02"]).set_index("perturbation")
    assert found.loc["alone", ["energy_distance", "p_value", "p_adjusted"]].isna().all()
    assert "g24" not in found.index
    with pytest.raises(NotComputable, match="1 group"):
        perturbation_consistency(X, labels, ["alone", "g00"])


def test_controls_can_be_left_out() -> None:
    X, labels = made(4)
    control = labels == "g24"
    found = perturbation_consistency(X, labels, ["g00", "g01"], is_control=control)
    assert "g24" not in found.perturbation.tolist()
    rest = perturbation_consistency(X[~control], labels[~control], ["g00", "g01"])
    pd.testing.assert_frame_equal(found, rest)


def test_magnitude_is_the_direct_formula_and_samples_the_controls() -> None:
    X, labels = made(5, n=600)
    control = np.isin(labels, ["g20", "g21", "g22", "g23", "g24"])
    found = perturbation_magnitude(X, labels, control, ["g00", "g01"], max_controls=50, seed=3)
    rows = choose_controls(X, control, max_controls=50, seed=3)
    assert len(set(rows)) == 50
    assert control[rows].all()
    assert set(rows) != set(choose_controls(X, control, max_controls=50, seed=4))
    Y = X[rows]
    for row in found.itertuples():
        x = X[labels == row.perturbation]
        expected = 2 * cdist(x, Y).mean() - cdist(x, x).mean() - cdist(Y, Y).mean()
        assert row.energy_distance == pytest.approx(expected, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3000))
def test_rotation_scale_order_and_blocks_change_nothing(seed: int, max_elements: int) -> None:
    X, labels = made(6, n=150, groups=10, d=4)
    rng = np.random.default_rng(seed)
    control = labels == "g09"
    before = perturbation_consistency(X, labels, ["g00", "g01", "g02"])
    rotation = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    lengths = np.exp(rng.standard_normal((150, 1)))
    order = rng.permutation(150)
    after = perturbation_consistency(
        (lengths * (X @ rotation))[order], labels[order], ["g02", "g00", "g01"], max_elements=max_elements
    )
    pd.testing.assert_frame_equal(before, after, rtol=1e-9)
    before = perturbation_magnitude(X, labels, control, ["g00", "g01", "g02"], max_controls=7)
    after = perturbation_magnitude(
        X[order], labels[order], control[order], ["g00", "g01", "g02"], max_controls=7, max_elements=max_elements
    )
    pd.testing.assert_frame_equal(before, after, rtol=1e-9)


def test_p_values_are_uniform_under_the_null_of_labels() -> None:
    # The first perturbation of each screen has no more effect than the 99 of the null.
    p, q = [], []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((550, 3))
        labels = np.r_[np.repeat(np.arange(100), 5), np.full(50, 100)].astype(str)
        null = [str(i) for i in range(1, 100)]
        control = labels == "100"
        p.append(perturbation_consistency(X[~control], labels[~control], null).p_value[0])
        q.append(perturbation_magnitude(X, labels, control, null).p_value[0])
    # The test asks for a continuous variable: spread each p over its step of 1 / 99.
    jitter = np.random.default_rng(0).random(150) / 99
    assert kstest(np.asarray(p) - jitter, "uniform").pvalue > 0.01
    assert kstest(np.asarray(q) - jitter, "uniform").pvalue > 0.01


def screen(seed: int, effect: float = 0.0) -> tuple[np.ndarray, ...]:
    """A screen with strong batches and groups that are spread unevenly over them."""
    rng = np.random.default_rng(seed)
    n, groups, batches = 240, 12, 4
    codes = rng.integers(0, groups, n)
    batch = np.where(rng.random(n) < 0.7, codes % batches, rng.integers(0, batches, n))
    X = rng.standard_normal((n, 3)) + 2 * rng.standard_normal((batches, 3))[batch]
    X[codes == 0] += effect * np.array([1.0, 0, 0])
    is_control = codes == groups - 1
    return X, np.where(is_control, -1, codes), batch, is_control, np.array([f"g{i}" for i in range(groups)])


def test_permutation_p_values_are_uniform_under_the_null_in_spite_of_batches() -> None:
    p, q = [], []
    for seed in range(200):
        X, codes, batch, is_control, labels = screen(seed)
        group = np.array([seed % 11])
        avg = group_consistency(X, codes, 12)[1]
        p.append(consistency_permutation_p(X, codes, batch, labels, group, avg, draws=99, seed=seed)[0])
        energy = group_energy(X, codes, 12, is_control, seed=seed)
        q.append(magnitude_permutation_p(X, codes, batch, is_control, labels, group, energy, draws=99, seed=seed)[0])
    jitter = np.random.default_rng(0).random(200) / 100
    assert kstest(np.asarray(p) - jitter, "uniform").pvalue > 0.01
    assert kstest(np.asarray(q) - jitter, "uniform").pvalue > 0.01
    # Without the batches the same screens look full of consistent perturbations: the stratification matters.
    blind = []
    for seed in range(200):
        X, codes, batch, is_control, labels = screen(seed)
        avg = group_consistency(X, codes, 12)[1]
        blind.append(
            consistency_permutation_p(
                X, codes, np.zeros_like(batch), labels, np.array([seed % 11]), avg, draws=99, seed=seed
            )[0]
        )
    assert np.mean(np.asarray(blind) <= 0.05) > 0.3


def test_permutation_finds_an_effect() -> None:
    X, codes, batch, is_control, labels = screen(0, effect=4.0)
    groups = np.arange(11)
    avg = group_consistency(X, codes, 12)[1]
    p = consistency_permutation_p(X, codes, batch, labels, groups, avg, draws=199)
    energy = group_energy(X, codes, 12, is_control)
    q = magnitude_permutation_p(X, codes, batch, is_control, labels, groups, energy, draws=199)
    assert p[0] == q[0] == 1 / 200
    assert (p[1:] > 0.01).sum() >= 9


def test_permutation_p_is_the_share_of_direct_draws() -> None:
    X, codes, batch, _, labels = screen(3)
    groups = np.array([2, 7])
    avg = group_consistency(X, codes, 12)[1]
    found = consistency_permutation_p(X, codes, batch, labels, groups, avg, draws=4000)
    rng = np.random.default_rng(0)
    for p, g in zip(found, groups, strict=True):
        reached = 0
        for _ in range(4000):
            drawn = np.concatenate(
                [
                    rng.choice(
                        np.flatnonzero((batch == b) & (codes >= 0)),
                        size=((batch == b) & (codes == g)).sum(),
                        replace=False,
                    )
                    for b in range(4)
                ]
            )
            reached += group_consistency(X[drawn], np.zeros(len(drawn), dtype=int), 1)[1][0] >= avg[g]
        assert p == pytest.approx(reached / 4000, abs=0.03)


def test_permutation_does_not_depend_on_order_or_on_the_other_groups() -> None:
    X, codes, batch, is_control, labels = screen(1)
    groups = np.array([5, 0, 3])
    avg = group_consistency(X, codes, 12)[1]
    energy = group_energy(X, codes, 12, is_control)
    p = consistency_permutation_p(X, codes, batch, labels, groups, avg, draws=120)
    q = magnitude_permutation_p(X, codes, batch, is_control, labels, groups, energy, draws=60)
    order = np.random.default_rng(0).permutation(len(X))
    assert p.tolist() == (
        consistency_permutation_p(X[order], codes[order], batch[order], labels, groups, avg, draws=120).tolist()
    )
    assert q.tolist() == (
        magnitude_permutation_p(
            X[order], codes[order], batch[order], is_control[order], labels, groups, energy, draws=60
        ).tolist()
    )
    alone = np.array([3])
    assert consistency_permutation_p(X, codes, batch, labels, alone, avg, draws=120)[0] == p[2]
    assert magnitude_permutation_p(X, codes, batch, is_control, labels, alone, energy, draws=60)[0] == q[2]
    again = consistency_permutation_p(X, codes, batch, labels, groups, avg, draws=120, seed=1)
    assert again.tolist() != p.tolist()


@pytest.mark.parametrize("seed", range(6))
def test_identical_samples_are_never_significant(seed: int) -> None:
    X, codes, batch, is_control, labels = screen(seed)
    # The controls differ, so that the distances are sums that rounding can order either way.
    X = np.where(is_control[:, None], X, 0.1).astype(np.float32)
    groups = np.arange(11)
    avg = group_consistency(X, codes, 12)[1]
    assert (consistency_permutation_p(X, codes, batch, labels, groups, avg, draws=30) == 1).all()
    energy = group_energy(X, codes, 12, is_control)
    assert (magnitude_permutation_p(X, codes, batch, is_control, labels, groups, energy, draws=30) == 1).all()


def test_a_perturbation_alone_in_its_batches_has_no_p_value() -> None:
    X, codes, batch, is_control, labels = screen(2)
    batch = np.where(codes == 4, 9, batch)
    avg = group_consistency(X, codes, 12)[1]
    p = consistency_permutation_p(X, codes, batch, labels, np.array([3, 4]), avg, draws=30)
    energy = group_energy(X, codes, 12, is_control)
    q = magnitude_permutation_p(X, codes, batch, is_control, labels, np.array([3, 4]), energy, draws=30)
    assert np.isnan([p[1], q[1]]).all()
    assert np.isfinite([p[0], q[0]]).all()


def test_a_perturbation_alone_has_no_magnitude_also_when_it_is_thinned() -> None:
    """Sets drawn from what thinning leaves out are sets of the perturbation itself."""
    X, codes, batch, is_control, _ = screen(2, effect=5.0)
    codes = np.where(codes >= 0, 0, codes)
    labels = np.array(["drug"])
    energy = group_energy(X, codes, 1, is_control)
    q = magnitude_permutation_p(X, codes, batch, is_control, labels, np.array([0]), energy, draws=30, max_set=10)
    assert np.isnan(q).all()


def test_large_groups_are_thinned_for_the_permutation_of_magnitudes() -> None:
    X, codes, batch, is_control, labels = screen(4, effect=5.0)
    codes = np.where((codes > 0) & (codes % 2 == 1), 1, codes)
    energy = group_energy(X, codes, 12, is_control)
    q = magnitude_permutation_p(X, codes, batch, is_control, labels, np.array([0, 1]), energy, draws=99, max_set=10)
    assert q[0] == 0.01
    assert q[1] > 0.01


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"perturbation": ["a"]}, InputError, "1 entries for 400 samples"),
        ({"null": []}, InputError, "no null label"),
        ({"null": ["g00", "g0"]}, InputError, "no perturbation called 'g0'"),
        ({"null": "g00"}, NotComputable, "1 group"),
        ({"p_value": "papr"}, InputError, "paper"),
        ({"is_control": np.zeros(3, dtype=bool)}, InputError, "400 samples"),
        ({"is_control": np.zeros(400)}, InputError, "booleans"),
        ({"X": np.full((400, 2), np.nan)}, InputError, r"value nan in row \d+, column 0"),
        ({"X": np.zeros(400)}, InputError, "shape"),
    ],
)
def test_bad_input_is_refused(change: dict, error: type[Exception], message: str) -> None:
    X, labels = made()
    arguments = {"X": X, "perturbation": labels, "is_control": labels == "g24", "null": ["g00", "g01"], **change}
    for function in (perturbation_consistency, perturbation_magnitude):
        with pytest.raises(error, match=message):
            function(**arguments)


def test_what_the_kernels_refuse() -> None:
    X, codes, batch, _, labels = screen(0)
    avg = group_consistency(X, codes, 12)[1]
    with pytest.raises(NotComputable, match="no controls"):
        group_energy(X, codes, 12, np.zeros(len(X), dtype=bool))
    with pytest.raises(InputError, match="draws"):
        consistency_permutation_p(X, codes, batch, labels, np.array([0]), avg, draws=0)
    with pytest.raises(InputError, match="for 12 groups"):
        consistency_permutation_p(X, codes, batch, labels, np.array([0]), avg[:3])
    codes = np.where(codes == 5, -1, codes)
    codes[0] = 5
    with pytest.raises(InputError, match="'g5' has 1 sample"):
        consistency_permutation_p(X, codes, batch, labels, np.array([1, 5]), avg)
