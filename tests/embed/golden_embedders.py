"""What the golden tests of the embedders share: the official answers, and the samples they were made for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

from txeval.compute.arrays import take_rows
from txeval.data import Roles
from txeval.embed.base import Embedding


@dataclass
class Golden:
    """One folder of official answers."""

    folder: Path
    expected: dict[str, Any]
    arrays: Any
    adata: ad.AnnData

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def ragged(self, name: str, indptr: str | None = None) -> list[np.ndarray]:
        """Array `name` cut into samples."""
        return np.split(self.arrays[name], self.arrays[indptr or f"{name.rsplit('_', 1)[0]}_indptr"][1:-1])

    def counts(self, layer: str | None = None) -> sp.csr_matrix:
        return sp.csr_matrix(self.adata.X if layer is None else self.adata.layers[layer])


def load(golden_dir: Path, model: str) -> Golden:
    folder = golden_dir / "embedders" / model
    expected = json.loads((folder / "expected.json").read_text())
    arrays = np.load(folder / "expected.npz")
    for name, array in expected["arrays"].items():
        assert list(arrays[name].shape) == array["shape"]
    return Golden(folder, expected, arrays, ad.read_h5ad(folder / "input.h5ad"))


def roles(**more: Any) -> Roles:
    """Roles of the screens that `written` writes."""
    return Roles(perturbation="label", control=("control",), **more)


def written(golden: Golden, folder: Path, *columns: str, batch: bool = False, rows: int | None = None) -> Path:
    """The official samples (the first rows of them) as a screen, with labels that say nothing."""
    adata = golden.adata
    obs = adata.obs[["batch"]].copy() if batch else adata.obs[[]].copy()
    obs["label"] = np.resize(["control", "a", "b"], adata.n_obs)
    made = ad.AnnData(golden.counts(), obs=obs, var=adata.var[list(columns)].copy(), layers=dict(adata.layers))
    path = folder / "screen.h5ad"
    made[:rows].copy().write_h5ad(path)
    return path


def check_embedding(made: Embedding, official: np.ndarray, tolerance: float = 1e-5) -> None:
    values = take_rows(made.values)
    assert values.shape == official.shape
    assert values.dtype == np.float32
    assert np.abs(values - official).max() < tolerance
