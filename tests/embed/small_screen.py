"""A small screen with known values."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from txeval.data import Roles

N, G, D = 120, 30, 6
ROLES = Roles(perturbation="gene", control=("ctrl",), batch="lane")


def small_adata(seed=0, *, scale="counts", order=None, n=N):
    """Counts (or another scale) with labels, names cell_0 ... and two embeddings in obsm."""
    rng = np.random.default_rng(seed)
    factors = rng.gamma(2, 1, (n, 4)) @ rng.gamma(0.3, 1, (4, G))
    x = rng.poisson(factors * rng.lognormal(0, 0.3, (n, 1)) * 3).astype(np.float32)
    x[:, 3] *= 40  # some counts above 127
    if scale != "counts":
        x = x / np.maximum(x.sum(axis=1, keepdims=True), 1) * 1e4
        x = {"normalized": x, "log1p": np.log1p(x), "continuous": np.log1p(x) - 3}[scale].astype(np.float32)
    obs = pd.DataFrame(
        {"gene": rng.choice(["ctrl", "a", "b", "c"], n), "lane": rng.choice(["l1", "l2"], n)},
        index=[f"cell_{i}" for i in range(n)],
    )
    adata = anndata.AnnData(sparse.csr_matrix(x), obs, pd.DataFrame(index=[f"g{i}" for i in range(G)]))
    adata.obsm["X_emb"] = rng.normal(size=(n, D)).astype(np.float32)
    adata.obsm["X_half"] = adata.obsm["X_emb"].astype(np.float16)
    adata.layers["log"] = sparse.csr_matrix(np.log1p(np.maximum(x, 0)))
    return adata if order is None else adata[order].copy()
