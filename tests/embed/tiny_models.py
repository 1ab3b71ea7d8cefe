"""Every model with ready-made weights, each with a tiny untrained checkpoint, for the tests of their contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from txeval.compute.arrays import take_rows
from txeval.data import Roles, open_screen
from txeval.embed import EmbeddingContext, EmbeddingSpec, make_embedding
from txeval.testing import make_tiny_cellplm, make_tiny_geneformer, make_tiny_scgpt, make_tiny_uce

GENES = [f"GENE{number:03d}" for number in range(40)]
#: Genes that no model knows, at the end of every screen.
UNKNOWN = ["unknown-1", "unknown-2"]
ROLES = Roles(perturbation="label", control=("control",), batch="batch")


@dataclass(frozen=True)
class Tiny:
    """A model and how to try it.

    Attributes
    ----------
    mates
        Whether a sample's row depends on other samples of the screen.
    scales
        Scales that it accepts.
    filled
        Whether unusable samples have something else than zeros.
    """

    id: str
    name: str
    make: Callable[[Path, Sequence[str]], Path]
    options: Mapping[str, Any] = field(default_factory=dict)
    mates: bool = False
    draws: bool = True
    scales: tuple[str, ...] = ("counts",)
    filled: bool = False

    @property
    def batch_size(self) -> bool:
        """Whether the size of batches is an option that does not matter."""
        return self.name != "cellplm" and self.options.get("mask") != "official"


def _geneformer(version: Any, **sizes: Any) -> Callable[[Path, Sequence[str]], Path]:
    return lambda folder, genes: make_tiny_geneformer(folder, genes, version=version, **sizes)


def _uce_33l(folder: Path, genes: Sequence[str]) -> Path:
    return make_tiny_uce(folder, genes, model="uce-33l", layers=3)


_RANKS = ("counts", "normalized", "log1p")
_TRAINING = {"epochs": 2, "train_batch_size": 8, "learning_rate": 1e-3}

MODELS = [
    Tiny("geneformer-v1", "geneformer-v1", _geneformer(1), draws=False),
    Tiny("geneformer-v1-last", "geneformer-v1", _geneformer(1), {"layer": 0, "max_length": 16}, draws=False),
    Tiny("geneformer-v2", "geneformer-v2-104m", _geneformer(2), draws=False),
    Tiny("geneformer-v2-cls", "geneformer-v2-104m", _geneformer(2), {"pooling": "cls", "max_length": 12}, draws=False),
    Tiny("geneformer-v2-316m", "geneformer-v2-316m", _geneformer(2, size="316M", layers=4), draws=False),
    Tiny("scgpt", "scgpt", make_tiny_scgpt, scales=_RANKS),
    Tiny("scgpt-short", "scgpt", make_tiny_scgpt, {"max_length": 10, "pooling": "mean"}, scales=_RANKS),
    Tiny("scgpt-finetuned", "scgpt-finetuned", make_tiny_scgpt, _TRAINING, mates=True, scales=_RANKS),
    Tiny(
        "uce-4l-official", "uce-4l", make_tiny_uce, {"mask": "official", "batch_size": 4, "sample_size": 60}, mates=True
    ),
    Tiny("uce-4l-bool", "uce-4l", make_tiny_uce, {"mask": "bool", "sample_size": 100}),
    Tiny("uce-33l", "uce-33l", _uce_33l, {"mask": "bool", "sample_size": 64}),
    Tiny("cellplm", "cellplm", make_tiny_cellplm, mates=True, filled=True),
    Tiny(
        "cellplm-argmax", "cellplm", make_tiny_cellplm, {"noise": "argmax", "batch_size": 7}, True, False, filled=True
    ),
]


def make_counts(n: int = 30, seed: int = 0) -> np.ndarray:
    """Counts (n, 42); sample 4 has counts of unknown genes only."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.gamma(1.0, 4.0, len(GENES) + len(UNKNOWN)), (n, len(GENES) + len(UNKNOWN)))
    x *= rng.random(x.shape) < 0.7
    x[:, -1] += 1
    x[4, : len(GENES)] = 0
    return x.astype(np.float32)


def make_adata(x: np.ndarray | None = None, genes: Sequence[str] = (*GENES, *UNKNOWN)) -> ad.AnnData:
    x = make_counts() if x is None else x
    obs = pd.DataFrame(
        {
            "label": np.resize(["control", "GENE001", "GENE002"], len(x)),
            "batch": [f"b{row // 5 % 3}" for row in range(len(x))],
        },
        index=[f"cell{row}" for row in range(len(x))],
    )
    return ad.AnnData(sp.csr_matrix(x), obs=obs, var=pd.DataFrame(index=list(genes)))


def embed(
    tiny: Tiny,
    weights: Path | None,
    adata: ad.AnnData,
    folder: Path,
    *,
    seed: int = 0,
    scale: str | None = None,
    max_elements: int | None = None,
    train_rows: np.ndarray | None = None,
    **options: Any,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Values and provenance of an embedding made the way that the command line makes it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "screen.h5ad"
    adata.write_h5ad(path)
    spec = EmbeddingSpec(tiny.id, tiny.name, {**tiny.options, "weights": str(weights or ""), **options})
    context = EmbeddingContext(folder / "work", seed=seed, max_elements=max_elements, train_rows=train_rows)
    with open_screen(path, ROLES, scale=scale) as screen:
        made = make_embedding(spec, screen, context)
        return take_rows(made.values), dict(made.provenance)
