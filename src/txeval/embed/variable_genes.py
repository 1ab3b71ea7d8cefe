"""Genes that vary more than others of the same mean, chosen in one pass over blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.sparse as sp

from txeval.compute.arrays import F64, Ints

__all__ = ["variable_genes"]


def variable_genes(blocks: Iterable[Any], g: int, n_top: int) -> Ints:
    """Columns of the most variable genes, as scanpy's flavour "cell_ranger" chooses them (Zheng et al. 2017).

    Dispersion = variance / mean; genes are put into 20 groups by quantiles of their mean, and ranked by
    (dispersion - median of the group) / median absolute deviation of the group. Where that deviation is 0, genes of
    the group that are above its median come first.

    Parameters
    ----------
    blocks
        Log-normalised expression, (m, g) CSR matrices or arrays.
    n_top
        How many; all where there are no more.

    Returns
    -------
    (min(n_top, g),) int64, increasing
    """
    count, total, squares = 0, np.zeros(g), np.zeros(g)
    for block in blocks:
        csr = sp.csr_matrix(block)
        count += csr.shape[0]
        values = csr.data.astype(np.float64)
        total += np.bincount(csr.indices, weights=values, minlength=g)
        squares += np.bincount(csr.indices, weights=values * values, minlength=g)
    if n_top >= g:
        return np.arange(g, dtype=np.int64)
    score = _normalised_dispersion(count, total, squares)
    # Equal scores keep the order of the columns.
    return np.sort(np.argsort(-score, kind="stable")[:n_top]).astype(np.int64)


def _normalised_dispersion(count: int, total: F64, squares: F64) -> F64:
    mean = total / max(1, count)
    variance = np.maximum(squares - total * mean, 0.0) / max(1, count - 1)
    mean = np.where(mean == 0, 1e-12, mean)
    dispersion = variance / mean
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
