"""Small screens for tests, ours and those of plug-ins."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from txeval.compute.random import stream
from txeval.data.roles import Roles

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["ROLES", "make_adata", "make_screen"]

#: The roles of the screens that this module makes.
ROLES = Roles(perturbation="perturbation", control=("non-targeting",), batch="batch", target_gene="gene")


def make_adata(
    n_samples: int = 120,
    n_genes: int = 30,
    *,
    n_perturbations: int = 5,
    n_batches: int = 3,
    storage: Literal["csr", "csc", "dense"] = "csr",
    scale: Literal["counts", "normalized", "log1p", "continuous"] = "counts",
    obsm: Mapping[str, int] | None = None,
    mean_count: float = 50.0,
    seed: int = 0,
) -> AnnData:
    """Make a small screen with the columns of `ROLES`.

    Labels and batches go around, so every batch has every label where n_samples >= (n_perturbations + 1) x n_batches.
    Perturbation i quarters gene i and doubles gene i + n_perturbations; a batch shifts all genes.

    Parameters
    ----------
    n_samples, n_genes, n_perturbations, n_batches
        Dimensions; n_genes is at least 2 x n_perturbations.
    storage
        How X is held.
    scale
        What X holds: Poisson counts; the same with 10,000 per sample; log1p of that; or that, centred per gene.
    obsm
        Key -> number of columns of standard normal values, float32.
    mean_count
        Mean count per gene and sample.

    Examples
    --------
    >>> make_adata().shape
    (120, 30)
    """
    import anndata

    if n_genes < 2 * n_perturbations:
        raise ValueError(f"{n_genes} genes are too few for {n_perturbations} perturbations")
    rng = stream(seed, "testing", "screen")
    genes = np.array([f"GENE{i + 1:03d}" for i in range(n_genes)])
    labels = np.array(["non-targeting", *genes[:n_perturbations]])
    label = np.arange(n_samples) % (n_perturbations + 1)
    batch = np.arange(n_samples) // (n_perturbations + 1) % n_batches

    factor = np.ones((n_perturbations + 1, n_genes))
    acted = np.arange(n_perturbations)
    factor[acted + 1, acted] = 0.25
    factor[acted + 1, acted + n_perturbations] = 2.0
    base = rng.gamma(2.0, mean_count / 2.0, n_genes)
    shift = np.exp(rng.normal(0.0, 0.2, (n_batches, n_genes)))
    values = rng.poisson(base * factor[label] * shift[batch]).astype(np.float32)
    if scale != "counts":
        values *= 1e4 / np.maximum(values.sum(axis=1, keepdims=True), 1)
    if scale in ("log1p", "continuous"):
        values = np.log1p(values)
    if scale == "continuous":
        values -= values.mean(axis=0)
    matrix: Any = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}[storage](values)
    return anndata.AnnData(
        X=matrix,
        obs=pd.DataFrame(
            {
                "perturbation": pd.Categorical(labels[label]),
                "gene": pd.Categorical(np.where(label > 0, labels[label], "")),
                "batch": pd.Categorical([f"batch_{i + 1}" for i in batch]),
                "control": label == 0,
            },
            index=pd.Index([f"cell_{i + 1}" for i in range(n_samples)]),
        ),
        var=pd.DataFrame(index=pd.Index(genes)),
        obsm={
            name: rng.standard_normal((n_samples, columns)).astype(np.float32) for name, columns in (obsm or {}).items()
        },
    )


def make_screen(path: Path | str, **options: Any) -> Path:
    """Write the screen of `make_adata` as `.h5ad` or `.zarr`, by the suffix of the path; its options are the same."""
    path = Path(path)
    adata = make_adata(**options)
    if path.suffix == ".zarr":
        with warnings.catch_warnings():
            # Which version of zarr it is does not matter here.
            warnings.filterwarnings("ignore", message="Writing zarr v2", category=UserWarning)
            adata.write_zarr(path)
    else:
        adata.write_h5ad(path)
    return path
