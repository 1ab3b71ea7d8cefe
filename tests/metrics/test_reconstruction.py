from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from txeval.errors import InputError, NotComputable
from txeval.metrics import reconstruction_scores, structural_integrity
from txeval.metrics.reconstruction import GeneMoments, IntegritySums, gene_mean


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> tuple[dict, dict]:
    with np.load(golden_dir / "norman.npz", allow_pickle=True) as arrays:
        inputs = dict(arrays)
    return inputs, json.loads((golden_dir / "norman.json").read_text())["answers"]


class OnDemand:
    def __init__(self, values: np.ndarray) -> None:
        self._values, self.shape = values, values.shape

    def __getitem__(self, rows: object) -> np.ndarray:
        return self._values[rows]


@pytest.mark.parametrize("on_demand", [False, True])
def test_scores_are_the_golden_ones(golden: tuple[dict, dict], on_demand: bool) -> None:
    inputs, answers = golden
    answer = answers["reconstruction/scores"]
    pred, true = inputs["recon_pred"], inputs["recon_true"]
    if on_demand:
        pred, true = OnDemand(pred), OnDemand(true)
    found = reconstruction_scores(pred, true, max_elements=20_000 if on_demand else None)
    assert found["mse"] == pytest.approx(answer["MSE"], rel=1e-5)
    assert found["mae"] == pytest.approx(answer["MAE"], rel=1e-5)
    assert found["r2"] == pytest.approx(answer["R-squared"], rel=1e-5)
    # One gene is constant in truth: the published code counts its rank correlation as 0 and its Pearson as NaN.
    assert (found["n_constant_true"], found["n_constant_pred"], found["n_genes_scored"]) == (1, 0, 149)
    as_published = reconstruction_scores(pred, true, constant_truth="zero")
    assert as_published["spearman"] == pytest.approx(answer["Average Spearman Correlation"], rel=1e-5)
    assert found["spearman"] == pytest.approx(answer["Average Spearman Correlation"] * 150 / 149, rel=1e-5)
    assert np.isnan(answer["Average Pearson Correlation"])
    varying = np.ptp(inputs["recon_true"], axis=0) > 0
    pearson = [
        pearsonr(inputs["recon_pred"][:, j].astype(float), inputs["recon_true"][:, j].astype(float)).statistic
        for j in np.flatnonzero(varying)
    ]
    assert found["pearson"] == pytest.approx(np.mean(pearson), rel=1e-9)


def test_structural_integrity_is_the_golden_one(golden: tuple[dict, dict]) -> None:
    inputs, answers = golden
    rows = inputs["recon_rows"]
    found = structural_integrity(
        inputs["recon_pred"], inputs["recon_true"], inputs["batch"][rows], inputs["is_control"][rows]
    )
    assert found == pytest.approx(answers["reconstruction/structural_integrity"], rel=1e-5)


def made(seed: int = 0, n: int = 60, g: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = np.where(rng.random((n, g)) < 0.5, 0, rng.random((n, g)) * 3)
    pred = 0.5 * true + rng.standard_normal((n, g))
    batch = rng.integers(0, 4, n)
    control = rng.random(n) < 0.3
    control[[int(np.flatnonzero(batch == b)[0]) for b in range(4)]] = True
    return pred, true, batch, control


def test_scores_are_those_of_scipy_and_sklearn() -> None:
    pred, true, *_ = made()
    found = reconstruction_scores(pred, true)
    genes = range(true.shape[1])
    assert found["spearman"] == pytest.approx(np.mean([spearmanr(pred[:, j], true[:, j]).statistic for j in genes]))
    assert found["pearson"] == pytest.approx(np.mean([pearsonr(pred[:, j], true[:, j]).statistic for j in genes]))
    assert found["mse"] == pytest.approx(mean_squared_error(true, pred))
    assert found["mae"] == pytest.approx(mean_absolute_error(true, pred))
    assert found["r2"] == pytest.approx(r2_score(true.ravel(), pred.ravel()))


def test_scores_by_gene_are_those_of_scipy_and_sklearn() -> None:
    pred, true, *_ = made(1)
    moments = GeneMoments(12)
    for start in range(0, 60, 7):
        moments.add(pred[start : start + 7], true[start : start + 7])
    assert moments.n == 60
    np.testing.assert_allclose(moments.pearson, [pearsonr(pred[:, j], true[:, j]).statistic for j in range(12)])
    np.testing.assert_allclose(moments.r2_by_gene, r2_score(true, pred, multioutput="raw_values"))
    np.testing.assert_allclose(moments.mse, mean_squared_error(true, pred, multioutput="raw_values"))
    np.testing.assert_allclose(moments.mae, mean_absolute_error(true, pred, multioutput="raw_values"))
    np.testing.assert_allclose(moments.mean_true, true.mean(axis=0))


@pytest.mark.parametrize("offset", [1e3, 1e6])
def test_a_large_offset_does_not_cancel(offset: float) -> None:
    pred, true, *_ = made(2)
    plain = reconstruction_scores(pred, true)
    moved = reconstruction_scores(pred + offset, true + offset)
    assert moved["pearson"] == pytest.approx(plain["pearson"], rel=1e-8)
    assert moved["r2"] == pytest.approx(plain["r2"], rel=1e-8)


def test_constant_genes_by_the_rule() -> None:
    pred, true, *_ = made(3, g=4)
    true[:, 0] = 1.1
    pred[:, 1] = 0.7
    true[:, 2], pred[:, 2] = 2.2, 2.2
    found = reconstruction_scores(pred, true)
    for name, function in (("spearman", spearmanr), ("pearson", pearsonr)):
        # Genes 0 and 2 are left out, gene 1 counts as 0.
        value = function(pred[:, 3], true[:, 3]).statistic
        assert found[name] == pytest.approx(value / 2)
        assert reconstruction_scores(pred, true, constant_truth="zero")[name] == pytest.approx(value / 4)
    assert (found["n_constant_true"], found["n_constant_pred"], found["n_genes_scored"]) == (2, 2, 2)


def test_what_rounding_leaves_of_a_constant_prediction_has_no_correlation() -> None:
    rng = np.random.default_rng(0)
    true = rng.random((200, 3)).astype(np.float32)
    pred = np.full((200, 3), 0.7, dtype=np.float32)
    # One float32 step up in some samples; next to it a gene that varies by a hundred thousandth.
    pred[rng.random(200) < 0.4, 0] = np.nextafter(np.float32(0.7), np.float32(1))
    pred[:, 1] += 1e-5 * true[:, 1]
    pred[:, 2] = true[:, 2]
    found = reconstruction_scores(pred, true)
    assert found["n_constant_pred"] == 1
    assert found["spearman"] == pytest.approx((spearmanr(pred[:, 1], true[:, 1]).statistic + 1) / 3)
    assert found["pearson"] == pytest.approx((pearsonr(pred[:, 1], true[:, 1]).statistic + 1) / 3, rel=1e-4)


def test_where_no_correlation_exists_there_is_none() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = reconstruction_scores(np.random.default_rng(0).random((5, 3)), np.ones((5, 3)))
        assert np.isnan([found["spearman"], found["pearson"], found["r2"]]).all()
        assert found["mse"] > 0
        single = reconstruction_scores([[1.0, 2.0]], [[1.0, 3.0]])
    assert np.isnan([single["spearman"], single["pearson"]]).all()
    assert single["mse"] == 0.5
    assert np.isnan(gene_mean(np.empty(0), np.empty(0, dtype=bool), np.empty(0, dtype=bool)))


def test_an_exact_prediction() -> None:
    _, true, batch, control = made(4)
    found = reconstruction_scores(true, true)
    assert found["spearman"] == found["pearson"] == pytest.approx(1)
    assert (found["mse"], found["mae"], found["r2"]) == (0, 0, 1)
    assert structural_integrity(true, true, batch, control) == 1


def direct_integrity(pred: np.ndarray, true: np.ndarray, batch: np.ndarray, control: np.ndarray) -> float:
    """The definition, with centred copies."""
    distance, most = [], []
    for b in np.unique(batch):
        mine = batch == b
        if not control[mine].any():
            continue
        p, t = (m[mine] - m[mine & control].mean(axis=0) for m in (pred, true))
        distance.append(np.linalg.norm(p - t) / mine.sum())
        most.append(2 * np.linalg.norm(t) / mine.sum())
    return 1 - np.mean(distance) / np.mean(most)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 800), st.sampled_from([np.float32, np.float64]))
def test_structural_integrity_is_the_definition(seed: int, max_elements: int, dtype: type) -> None:
    pred, true, batch, control = made(seed)
    pred, true = pred.astype(dtype), true.astype(dtype)
    control = control & (batch != 3)
    expected = direct_integrity(pred.astype(float), true.astype(float), batch, control)
    names = np.array(["x", "a", "m", "k"])[batch]
    order = np.random.default_rng(seed).permutation(60)
    found = structural_integrity(pred, true, names, control, max_elements=max_elements)
    assert found == pytest.approx(expected, rel=1e-9)
    assert structural_integrity(pred[order], true[order], names[order], control[order]) == pytest.approx(
        found, rel=1e-12
    )


def test_a_prediction_that_is_constant_within_batches_scores_one_half() -> None:
    _, true, batch, control = made(5)
    means = np.stack([true[(batch == b) & control].mean(axis=0) for b in range(4)])
    assert structural_integrity(means[batch], true, batch, control) == pytest.approx(0.5, abs=1e-12)
    shift = np.random.default_rng(0).standard_normal((4, 12))[batch]
    assert structural_integrity(shift, true, batch, control) == pytest.approx(0.5, abs=1e-12)
    assert structural_integrity(true + shift, true, batch, control) == pytest.approx(1, abs=1e-7)


def test_batches_without_controls_are_left_out_and_counted() -> None:
    pred, true, batch, control = made(6)
    control = control & (batch != 2)
    sums = IntegritySums(12, 5)
    for start in range(0, 60, 11):
        rows = slice(start, start + 11)
        sums.add(pred[rows], true[rows], batch[rows], control[rows])
    found = sums.result()
    assert found.batches.tolist() == [0, 1, 3]
    assert (found.n_batches_left_out, found.n_samples_left_out) == (1, (batch == 2).sum())
    assert found.n_samples == (batch != 2).sum()
    kept = batch != 2
    assert found.score == pytest.approx(direct_integrity(pred[kept], true[kept], batch[kept], control[kept]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 800))
def test_no_block_size_and_no_order_changes_a_score(seed: int, max_elements: int) -> None:
    pred, true, *_ = made(7)
    whole = reconstruction_scores(pred, true)
    order = np.random.default_rng(seed).permutation(60)
    parts = reconstruction_scores(OnDemand(pred[order]), OnDemand(true[order]), max_elements=max_elements)
    assert parts == pytest.approx(whole, rel=1e-9)


def test_bad_input_is_refused() -> None:
    pred, true, batch, control = made(8)
    with pytest.raises(InputError, match="pred has shape"):
        reconstruction_scores(pred[:, :3], true)
    with pytest.raises(InputError, match="true has shape"):
        reconstruction_scores(pred, true[0])
    with pytest.raises(InputError, match="pred has the value nan"):
        reconstruction_scores(np.where(pred > 1, np.nan, pred), true)
    with pytest.raises(InputError, match="true has the value inf"):
        structural_integrity(pred, np.where(true > 1, np.inf, true), batch, control)
    with pytest.raises(InputError, match="leave_out"):
        reconstruction_scores(pred, true, constant_truth="drop")
    with pytest.raises(InputError, match="batch has 3 entries"):
        structural_integrity(pred, true, batch[:3], control)
    with pytest.raises(InputError, match="one boolean"):
        structural_integrity(pred, true, batch, control.astype(int))
    with pytest.raises(InputError, match="one boolean"):
        structural_integrity(pred, true, batch, control[:4])
    with pytest.raises(NotComputable, match="no samples"):
        reconstruction_scores(pred[:0], true[:0])
    with pytest.raises(NotComputable, match="none of the 4"):
        structural_integrity(pred, true, batch, np.zeros(60, dtype=bool))
    with pytest.raises(NotComputable, match="no structure"):
        structural_integrity(pred, np.ones_like(true), batch, control)
    sums = IntegritySums(12, 2)
    with pytest.raises(InputError, match="there are 2 batches"):
        sums.add(pred, true, batch, control)
    with pytest.raises(InputError, match="do not match"):
        GeneMoments(12).add(pred[:, :5], true)
