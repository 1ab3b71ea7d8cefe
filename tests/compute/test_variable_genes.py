"""Variable genes against scanpy, closed forms and invariants."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from txeval.compute.variable_genes import GeneMoments, gene_moments, normalised_dispersions, variable_genes


def _blocks(x, size: int):
    return (x[start : start + size] for start in range(0, x.shape[0], size))


@pytest.mark.parametrize(
    "file, layer",
    [
        ("kang2018_pbmc_ifnb_9015genes.h5ad", None),
        ("papalexi2021_thp1_ecciteseq_299genes.h5ad", None),
        ("norman2019_k562_crispra_500hvg.h5ad", "counts"),
    ],
)
def test_scores_and_choice_are_those_of_scanpy(data_dir: Path, file: str, layer: str | None) -> None:
    sc = pytest.importorskip("scanpy", reason="scanpy comes with the extra scvi")
    adata = ad.read_h5ad(data_dir / file)[:2000]
    adata = ad.AnnData(sp.csr_matrix(adata.X if layer is None else adata.layers[layer], dtype=np.float32))
    sc.pp.normalize_total(adata, target_sum=1e4)
    normalised = adata.X.copy()
    sc.pp.log1p(adata)
    for n_top in (20, adata.n_vars // 3):
        expected = sc.pp.highly_variable_genes(adata, n_top_genes=n_top, inplace=False)
        lifted = adata.X.copy()
        lifted.data = np.expm1(lifted.data)
        moments = gene_moments(_blocks(lifted, 300), adata.n_vars)
        np.testing.assert_allclose(normalised_dispersions(moments), expected["dispersions_norm"], rtol=1e-6, atol=1e-6)
        chosen = variable_genes(moments, n_top)
        assert chosen.tolist() == np.flatnonzero(expected["highly_variable"]).tolist()
        # The detour through the logarithm, which scanpy takes, changes nothing.
        direct = gene_moments(_blocks(normalised, 300), adata.n_vars)
        assert variable_genes(direct, n_top).tolist() == chosen.tolist()


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 12), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_moments_do_not_depend_on_blocks_or_storage(seed: int, n: int, g: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.poisson(2.0, (n, g)) * rng.random((n, g))
    for made in (gene_moments(_blocks(x, size), g), gene_moments(_blocks(sp.csr_matrix(x), size), g)):
        assert made.n == n
        np.testing.assert_allclose(made.mean, x.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(made.variance, x.var(axis=0, ddof=1) if n > 1 else 0 * x[0], rtol=1e-9, atol=1e-12)
        assert made.nonzero.tolist() == np.count_nonzero(x, axis=0).tolist()


def test_genes_that_do_not_vary_have_no_score_and_are_not_chosen() -> None:
    moments = GeneMoments(5, np.array([0.0, 3.0, 3.0, 3.0]), np.array([0.0, 0.0, 2.0, 4.0]), np.array([0, 5, 5, 5]))
    score = normalised_dispersions(moments)
    assert np.isnan(score[:2]).all() and score[3] > score[2]
    assert variable_genes(moments, 3).tolist() == [2, 3]
    assert variable_genes(moments, 4).tolist() == [0, 1, 2, 3]


def test_nothing_is_chosen_of_nothing() -> None:
    empty = gene_moments([], 3)
    assert empty.n == 0 and variable_genes(empty, 2).tolist() == []
    assert variable_genes(gene_moments([], 0), 2).tolist() == []


def test_groups_have_equal_width_and_a_lone_gene_scores_one() -> None:
    mean = np.concatenate([np.full(10, 1.0), [1000.0]])
    variance = np.concatenate([np.arange(1.0, 11.0), [5.0]])
    score = normalised_dispersions(GeneMoments(9, mean, variance, np.full(11, 9)))
    log = np.log(np.arange(1.0, 11.0))
    np.testing.assert_allclose(score[:10], (log - log.mean()) / log.std(ddof=1), rtol=1e-12)
    assert score[10] == pytest.approx(1.0)


def quantile_choice(blocks: Iterable[Any], g: int, n_top: int) -> np.ndarray:
    return variable_genes(gene_moments(blocks, g), n_top, flavour="cell_ranger")


def cell_ranger(x: np.ndarray, n_top: int) -> np.ndarray:
    """scanpy 1.11, `highly_variable_genes(flavor="cell_ranger")`, written down again on a data frame."""
    mean, variance = x.mean(axis=0), x.var(axis=0, ddof=1)
    mean = np.where(mean == 0, 1e-12, mean)
    frame = pd.DataFrame({"mean": mean, "dispersion": variance / mean})
    edges = np.r_[-np.inf, np.unique(np.percentile(mean, np.arange(10, 105, 5))), np.inf]
    groups = frame.groupby(pd.cut(frame["mean"], edges), observed=True)["dispersion"]
    median = groups.transform("median")
    deviation = groups.transform(lambda values: (values - values.median()).abs().median() / 0.6744897501960817)
    score = (frame["dispersion"] - median) / deviation
    return np.sort(np.argsort(-score.to_numpy(), kind="stable")[:n_top])


@pytest.mark.parametrize("n_top", [1, 20, 150])
def test_cell_ranger_agrees_with_the_definition(n_top: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.poisson(rng.gamma(0.5, 3.0, 400) * rng.gamma(2.0, 0.5, (300, 1)), (300, 400))
    logged = np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4)
    wanted = cell_ranger(logged, n_top)
    for size in (300, 37, 1):
        blocks = (sp.csr_matrix(logged[low : low + size]) for low in range(0, 300, size))
        assert np.array_equal(quantile_choice(blocks, 400, n_top), wanted)
    assert np.array_equal(quantile_choice([logged], 400, n_top), wanted)


def test_all_where_there_are_no_more() -> None:
    assert quantile_choice([np.ones((3, 4))], 4, 10).tolist() == [0, 1, 2, 3]


def test_constant_and_silent_genes_are_not_chosen() -> None:
    rng = np.random.default_rng(1)
    x = np.zeros((50, 60))
    x[:, :20] = rng.gamma(1.0, 2.0, (50, 20))
    x[:, 20:40] = 3.0
    chosen = quantile_choice([x], 60, 6)
    assert set(chosen) <= set(range(20))
    assert np.array_equal(chosen, np.unique(chosen))
