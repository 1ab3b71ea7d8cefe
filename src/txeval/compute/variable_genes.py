"""Genes that vary more than others of the same mean, from moments that are summed block by block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from txeval.compute.arrays import F64, Ints

__all__ = ["GeneMoments", "gene_moments", "normalised_dispersions", "quantile_dispersions", "variable_genes"]

#: Groups of genes of similar mean, as in Seurat and scanpy.
BINS = 20


@dataclass(frozen=True)
class GeneMoments:
    """Mean and variance of each gene over samples.

    Attributes
    ----------
    n
        Number of samples.
    mean, variance
        (g,) float64; the variance has ddof 1 and is 0 for a single sample.
    nonzero
        (g,) int64, number of samples with another value than 0.
    """

    n: int
    mean: F64
    variance: F64
    nonzero: Ints


def gene_moments(blocks: Iterable[Any], g: int) -> GeneMoments:
    """Mean and variance of each gene, in one pass over blocks of samples.

    Parameters
    ----------
    blocks
        CSR matrices or arrays (m, g), any real type; summed in float64.
    g
        Number of genes.
    """
    n, total, squares = 0, np.zeros(g), np.zeros(g)
    nonzero = np.zeros(g, dtype=np.int64)
    for block in blocks:
        n += block.shape[0]
        if sp.issparse(block):
            csr = sp.csr_matrix(block)
            values = csr.data.astype(np.float64)
            total += np.bincount(csr.indices, weights=values, minlength=g)
            squares += np.bincount(csr.indices, weights=values * values, minlength=g)
            nonzero += np.bincount(csr.indices[values != 0], minlength=g)
        else:
            dense = np.asarray(block, dtype=np.float64)
            total += dense.sum(axis=0)
            squares += np.einsum("ij,ij->j", dense, dense)
            nonzero += np.count_nonzero(dense, axis=0)
    mean = total / max(1, n)
    variance = np.maximum(squares / max(1, n) - mean**2, 0.0) * (n / max(1, n - 1))
    return GeneMoments(n, mean, variance, nonzero)


def normalised_dispersions(moments: GeneMoments) -> F64:
    """Dispersion of each gene relative to genes of similar mean (Satija et al. 2015; scanpy's flavour "seurat").

    d = log(variance / mean), m = log(1 + mean); genes are put into 20 groups of equal width of m, and
    score = (d - mean of d in the group) / (standard deviation of d in the group, ddof 1). The only gene of a group
    has score 1.

    Parameters
    ----------
    moments
        Of depth-normalised expression, not of its logarithm.

    Returns
    -------
    (g,) float64
        NaN for a gene that does not vary.
    """
    mean = np.where(moments.mean == 0, 1e-12, moments.mean)
    ratio = moments.variance / mean
    dispersion = np.full(len(mean), np.nan)
    np.log(ratio, out=dispersion, where=ratio > 0)
    if not len(mean):
        return dispersion
    table = pd.DataFrame({"group": pd.cut(np.log1p(mean), bins=BINS, labels=False), "dispersion": dispersion})
    groups = table.groupby("group")["dispersion"]
    centre, spread = groups.transform("mean").to_numpy(copy=True), groups.transform("std").to_numpy(copy=True)
    alone = np.isnan(spread)
    spread[alone], centre[alone] = centre[alone], 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        score: F64 = (dispersion - centre) / spread
    return score


def quantile_dispersions(moments: GeneMoments) -> F64:
    """Dispersion of each gene relative to genes of similar mean (Zheng et al. 2017; scanpy's flavour "cell_ranger").

    d = variance / mean; genes are put into 20 groups by quantiles of their mean, and score = (d - median of the group)
    / median absolute deviation of the group, scaled to a standard deviation. Where that deviation is 0, genes above the
    group's median come first.

    Parameters
    ----------
    moments
        Of log-normalised expression.

    Returns
    -------
    (g,) float64
    """
    mean = np.where(moments.mean == 0, 1e-12, moments.mean)
    dispersion = moments.variance / mean
    edges = np.unique(np.percentile(mean, np.arange(10, 105, 5)))
    # Groups are closed on the right, as in pandas.cut.
    group = np.searchsorted(edges, mean, side="left")
    score = np.empty_like(mean)
    for label in np.unique(group):
        own = group == label
        centred = dispersion[own] - np.median(dispersion[own])
        deviation = np.median(np.abs(centred)) / 0.6744897501960817
        score[own] = centred / deviation if deviation > 0 else np.where(centred > 0, np.inf, 0.0)
    return score


def variable_genes(moments: GeneMoments, n_top: int, *, flavour: Literal["seurat", "cell_ranger"] = "seurat") -> Ints:
    """Columns of the most variable genes.

    Parameters
    ----------
    moments
        Of depth-normalised expression for "seurat", of its logarithm for "cell_ranger".
    n_top
        How many; of equal scores the first columns are taken.
    flavour
        Score: `normalised_dispersions` or `quantile_dispersions`.

    Returns
    -------
    (k,) int64, increasing
        All genes where there are no more than `n_top`; else k = n_top, or fewer where not so many genes vary.
    """
    if n_top >= len(moments.mean):
        return np.arange(len(moments.mean), dtype=np.int64)
    score = (normalised_dispersions if flavour == "seurat" else quantile_dispersions)(moments)
    order = np.argsort(np.where(np.isnan(score), np.inf, -score), kind="stable")
    return np.sort(order[: min(n_top, int(np.sum(~np.isnan(score))))]).astype(np.int64)
