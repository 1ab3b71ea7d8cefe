"""What is learnt from a screen whose parameters are known, and a screen simulated like it."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import ks_2samp, spearmanr

from txeval.data import Roles
from txeval.data import profile as profile_module
from txeval.data.profile import Profile, fit_profile
from txeval.data.simulate import simulate_screen
from txeval.errors import InputError
from txeval.testing import ROLES

MANY = {"n_samples": 8_000, "n_genes": 150, "n_perturbations": 10, "unexpressed_targets": 0, "depth": 3000.0}


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> tuple[Profile, Path]:
    path = tmp_path_factory.mktemp("profile") / "known.h5ad"
    simulate_screen(path, **MANY, n_batches=10, batch_effect=0.3, dispersion=0.4, program_noise=0.0, effect=0.5)
    return fit_profile(path, ROLES), path


def test_planted_parameters_are_learnt(known):
    learnt, path = known
    truth = anndata.read_h5ad(path)
    mean = np.asarray(truth.X.mean(axis=0)).ravel()
    np.testing.assert_allclose(learnt.mean, mean / mean.sum(), rtol=1e-9)
    common = mean > 1
    assert np.median(learnt.spread[common]) == pytest.approx(0.4, rel=0.1)
    # The batches are graded from 0.4 to 1.6: root mean square 1.07.
    assert np.sqrt(np.mean(learnt.batch_spread[common] ** 2)) == pytest.approx(0.3 * 1.07, rel=0.15)
    assert learnt.depth == pytest.approx(3000, rel=0.15)
    assert learnt.library[25] == pytest.approx(0.25 * -0.6745, abs=0.05)


def test_nothing_is_learnt_where_nothing_is(tmp_path):
    path = tmp_path / "flat.h5ad"
    simulate_screen(path, **MANY, n_batches=4, batch_effect=0.0, dispersion=0.0, program_noise=0.0, effect=0.0)
    learnt = fit_profile(path, ROLES)
    assert np.median(learnt.spread) < 0.01
    assert learnt.batch_spread.max() < 0.03


def test_a_screen_like_another_teaches_the_same(known, tmp_path):
    learnt, _ = known
    truth = simulate_screen(
        tmp_path / "like.h5ad", like=learnt, **{**MANY, "depth": None}, n_batches=10, effect=0.5, seed=3
    )
    again = fit_profile(truth.path, ROLES)
    assert list(again.genes) == list(learnt.genes)
    assert spearmanr(again.mean, learnt.mean).statistic > 0.95
    common = learnt.mean > 1e-3
    assert np.median(np.abs(np.log(again.spread / learnt.spread)[common])) < 0.15
    ratio = np.sqrt(np.mean(again.batch_spread[common] ** 2) / np.mean(learnt.batch_spread[common] ** 2))
    assert 0.8 < ratio < 1.25
    assert np.abs(again.library - learnt.library)[5:-5].max() < 0.1


def test_genes_are_drawn_where_another_number_is_asked_for(known, tmp_path):
    learnt, _ = known
    truth = simulate_screen(tmp_path / "more.h5ad", like=learnt, **{**MANY, "n_samples": 300, "n_genes": 400})
    assert len(truth.genes) == 400
    assert truth.genes["gene"].iloc[0] == "GENE0001"
    assert ks_2samp(truth.genes["batch_spread"], learnt.batch_spread).pvalue > 1e-4


@pytest.mark.parametrize("most_sums", [20_000_000, 100])
def test_controls_alone_tell_the_spread_of_large_screens(known, monkeypatch, most_sums):
    _, path = known
    monkeypatch.setattr(profile_module, "_MOST_SUMS", most_sums)
    learnt = fit_profile(path, ROLES)
    assert ("dispersions are those of the controls" in learnt.notes) == (most_sums == 100)
    assert np.median(learnt.spread[learnt.mean > 1e-3]) == pytest.approx(0.4, rel=0.15)


def test_continuous_values(tmp_path):
    truth = simulate_screen(
        tmp_path / "c.h5ad",
        mode="continuous",
        n_samples=3000,
        n_genes=80,
        n_perturbations=10,
        unexpressed_targets=0,
        batch_effect=0.3,
        program_noise=0.0,
        n_batches=8,
    )
    learnt = fit_profile(truth.path, ROLES)
    assert learnt.mode == "continuous"
    assert np.median(learnt.spread) == pytest.approx(0.5, rel=0.05)
    assert np.sqrt(np.mean(learnt.batch_spread**2)) == pytest.approx(0.3 * 1.07 / np.log(2), rel=0.2)
    like = simulate_screen(
        tmp_path / "d.h5ad", like=learnt, mode="continuous", n_samples=3000, n_genes=80, n_perturbations=10, n_batches=8
    )
    again = fit_profile(like.path, ROLES)
    assert spearmanr(again.mean[again.mean > 1], learnt.mean[again.mean > 1]).statistic > 0.9
    with pytest.raises(InputError, match="holds continuous values, but mode is 'counts'"):
        simulate_screen(tmp_path / "e.h5ad", like=learnt, n_genes=80, n_perturbations=10)


def test_bad_screens(tmp_path):
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(3.0, (60, 5)).astype(np.float32))
    obs = pd.DataFrame({"p": ["c", "a"] * 30, "b": ["x", "y", "z"] * 20}, index=[str(i) for i in range(60)])
    roles = Roles("p", control=("c",), batch="b")
    path = tmp_path / "a.h5ad"
    anndata.AnnData(X=counts.log1p(), obs=obs, layers={"raw": counts}).write_h5ad(path)
    with pytest.raises(InputError, match="values of X are log1p") as caught:
        fit_profile(path, roles, scale="log1p")
    assert "raw" in str(caught.value.remedy)
    assert fit_profile(path, roles, layer="raw").mode == "counts"
    anndata.AnnData(X=sp.csr_matrix((60, 5), dtype=np.float32), obs=obs).write_h5ad(path)
    with pytest.raises(InputError, match="no cell has a count"):
        fit_profile(path, roles, scale="counts")


def test_cells_with_one_count_each(tmp_path):
    """Nothing tells a dispersion or a shift there; the screen is as plain as it can be."""
    counts = sp.csr_matrix(np.eye(5, dtype=np.float32)[np.arange(40) % 5])
    obs = pd.DataFrame({"p": ["c", "a"] * 20, "b": ["x"] * 20 + ["y"] * 20}, index=[str(i) for i in range(40)])
    path = tmp_path / "a.h5ad"
    anndata.AnnData(X=counts, obs=obs).write_h5ad(path)
    learnt = fit_profile(path, Roles("p", control=("c",), batch="b"))
    assert learnt.depth == 1
    assert np.isfinite(learnt.spread).all() and (learnt.batch_spread == 0).all()
    assert learnt.notes == ("no gene has enough counts in every batch: no shifts between batches are learnt",)


@pytest.mark.parametrize(
    ("file", "roles", "layer"),
    [
        (
            "norman2019_k562_crispra_500hvg.h5ad",
            Roles("perturbation", control=("control",), batch="gem_group"),
            "counts",
        ),
        (
            "papalexi2021_thp1_ecciteseq_299genes.h5ad",
            Roles("perturbation", control=("non-targeting",), batch="bio_rep"),
            None,
        ),
    ],
)
def test_like_a_real_screen(data_dir, tmp_path, file, roles, layer):
    """Library sizes and dropout of the simulated screen are those of the real one."""
    path = data_dir / file
    learnt = fit_profile(path, roles, layer=layer)
    real = anndata.read_h5ad(path)
    counts = sp.csr_matrix(real.layers[layer] if layer else real.X)
    truth = simulate_screen(
        tmp_path / "like.h5ad",
        like=learnt,
        n_samples=3000,
        n_genes=counts.shape[1],
        n_perturbations=25,
        unexpressed_targets=0,
        n_batches=8,
        effect=0.5,
    )
    made = sp.csr_matrix(anndata.read_h5ad(truth.path).X)
    totals = [np.asarray(matrix.sum(axis=1)).ravel() for matrix in (counts, made)]
    assert ks_2samp(*totals).statistic < 0.12
    zeros = [1 - np.bincount(m.indices, minlength=m.shape[1]) / m.shape[0] for m in (counts, made)]
    assert np.abs(zeros[0] - zeros[1]).mean() < 0.03
    assert np.corrcoef(*zeros)[0, 1] > 0.95
