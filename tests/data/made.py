"""Small screens for the tests of txeval.data, written by anndata itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

from txeval.data import Roles

ROLES = Roles(perturbation="perturbation", control="control", batch="batch")

LAYOUTS = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": lambda x: x.toarray() if sp.issparse(x) else x}


def counts(n: int = 60, g: int = 12, seed: int = 0, density: float = 0.4) -> np.ndarray:
    """Counts (n, g) float32, at least one for each sample."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(5.0, (n, g)) * (rng.random((n, g)) < density)
    x[:, 0] += 1
    return x.astype(np.float32)


def adata(n: int = 60, g: int = 12, seed: int = 0, x: Any = None) -> ad.AnnData:
    """Screen of counts: 3 batches, a control and 4 perturbations named after genes, in every batch."""
    x = counts(n, g, seed) if x is None else x
    n, g = x.shape
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical(np.resize(["control", "G1", "G2", "G3", "G1+G2"], n)),
            "batch": pd.Categorical([f"b{i}" for i in (np.arange(n) // 5) % 3]),
            "is_control": np.resize([True, False, False, False, False], n),
            "depth": np.linspace(0.5, 1.5, n),
            "lane": np.resize([3, 1, 2], n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    made = ad.AnnData(X=x, obs=obs, var=pd.DataFrame(index=[f"G{j}" for j in range(g)]))
    made.obsm["X_pca"] = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    return made


def write(a: ad.AnnData, path: Path, *, layout: str = "csr", zarr_format: int = 2, **options: Any) -> Path:
    """Write as .h5ad or .zarr with X in a layout."""
    a = a.copy()
    if a.X is not None:
        a.X = LAYOUTS[layout](sp.csr_matrix(a.X) if not sp.issparse(a.X) else a.X)
    if path.suffix == ".zarr":
        with ad.settings.override(zarr_write_format=zarr_format):
            a.write_zarr(path)
    else:
        a.write_h5ad(path, **options)
    return path


def rewrite_matrix(path: Path, where: str, x: Any, **options: Any) -> None:
    """Replace a matrix of a written file, with options such as chunks."""
    root: Any = h5py.File(path, "r+") if path.suffix == ".h5ad" else zarr.open_group(str(path), mode="r+")
    if where in root:
        del root[where]
    ad.io.write_elem(root, where, x, dataset_kwargs=options)
    if path.suffix == ".h5ad":
        root.close()
