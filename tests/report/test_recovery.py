"""What a run finds of a simulated screen: stronger effects score higher, none is at chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from txeval.cli import main
from txeval.data.simulate import simulate_screen
from txeval.data.truth import Truth, run_file
from txeval.errors import InputError
from txeval.report.recovery import auroc, find_truth, rank_correlation, recovery

PROTOCOL = """
name: quick
extends: paper
tasks:
  linear_probe: {solver: lda}
  knn: {k: 31}
  reconstruction: {decoder: least_squares}
  consistency: {min_null: 20}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Truth, Path]:
    folder = tmp_path_factory.mktemp("recovery")
    truth = simulate_screen(
        folder / "screen.h5ad",
        n_samples=3000,
        n_genes=160,
        n_perturbations=48,
        n_batches=12,
        null_fraction=0.25,
        effect=1.5,
    )
    (folder / "quick.yaml").write_text(PROTOCOL)
    out = folder / "screen-results"
    asked = ["--post-processing", "raw", "--seeds", "1", "--protocol", str(folder / "quick.yaml"), "--plain"]
    assert main(["run", str(run_file(truth.path)), "--out", str(out), *asked]) in (0, 1)
    return truth, out


def values(found: pd.DataFrame, model: str) -> dict[tuple[str, str], float]:
    mine = found[found["model"] == model]
    return {(row.task, row.measure): row.value for row in mine.itertuples()}


def test_every_level_finds_what_was_planted(ran):
    _, out = ran
    found = recovery(out, Truth.load(find_truth(out)))
    assert set(found["level"]) == {1, 2, 3, 4, 5, 6}
    good, random = values(found, "truth"), values(found, "random")
    for task in ("linear_probe", "consistency", "magnitude", "knn", "relationships"):
        assert good[task, "order"] > 0.5, task
        assert good[task, "told apart"] > 0.8, task
        assert good[task, "strongest"] > good[task, "none"] + 0.3, task
        assert abs(random[task, "told apart"] - 0.5) < 0.25, task
    # A gene outside the programs is predicted too, by way of the share that the programs leave to it.
    assert good["reconstruction", "order"] > 0.2
    assert good["reconstruction", "strongest"] > 2 * good["reconstruction", "none"]
    chance = found.set_index(["model", "task", "measure"])["chance"]
    for task in ("linear_probe", "knn"):
        assert good[task, "none"] == pytest.approx(chance["truth", task, "none"], abs=0.1)
    assert good["consistency", "none"] <= 0.25


def test_rows_are_tidy(ran):
    _, out = ran
    found = recovery(out, Truth.load(find_truth(out)))
    assert not found.duplicated(["level", "task", "model", "post_processing", "measure"]).any()
    assert (found["n"] > 0).all()
    inside = found["value"].dropna().between(-1, 1)
    assert inside.all()


def test_it_is_printed(ran, capsys):
    _, out = ran
    assert main(["recovery", str(out)]) == 0
    text = capsys.readouterr().out
    assert "told apart" in text and "3 magnitude" in text and "without information 0.5" in " ".join(text.split())
    assert main(["recovery", str(out), "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("level,task,model,post_processing,measure,value,chance,n")


def test_results_of_another_screen_are_refused(ran, tmp_path):
    _, out = ran
    other = simulate_screen(tmp_path / "other.h5ad", n_samples=500, n_genes=60, n_perturbations=10, seed=4)
    with pytest.raises(InputError, match=r"perturbations that other\.h5ad does not have"):
        recovery(out, other)
    with pytest.raises(InputError, match="does not exist"):
        find_truth(tmp_path / "nothing")
    with pytest.raises(InputError, match="has no truth beside it"):
        Truth.load(tmp_path / "nothing.h5ad")


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=8, max_size=40))
def test_measures_against_scipy_and_sklearn(pairs):
    score, positive = np.array([a for a, _ in pairs], float), np.array([b for _, b in pairs])
    if 0 < positive.sum() < len(positive):
        assert auroc(score, positive) == pytest.approx(roc_auc_score(positive, score))
    else:
        assert np.isnan(auroc(score, positive))
    other = np.arange(len(score)) % 5 * 1.0
    if np.ptp(score):
        assert rank_correlation(score, other) == pytest.approx(spearmanr(score, other).statistic, abs=1e-12)
    else:
        assert np.isnan(rank_correlation(score, other))
