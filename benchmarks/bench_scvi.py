"""scVI: CPU seconds per epoch against scvi-tools' own training, seconds to embed, seconds to choose genes.

    python benchmarks/bench_scvi.py [--samples 20000] [--genes 2000] [--hidden 128] [--epochs 2]

One thread. CPU seconds are the fair figure on a busy machine. scvi-tools trains through AnnData and Lightning.
"""

from __future__ import annotations

import argparse
import logging
import resource
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from threadpoolctl import threadpool_limits

from txeval.compute.variable_genes import gene_moments, variable_genes
from txeval.embed.scvi_model import Architecture, ScVIModel, SparseRows, Training, fit


def make_counts(n: int, g: int, density: float = 0.2, seed: int = 0) -> sparse.csr_matrix:
    """Counts with the spread of a Perturb-seq screen."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.3, 1.0, g)
    rate *= density * 4
    blocks = [
        sparse.csr_matrix(rng.poisson(rate * rng.lognormal(0, 0.4, (min(1024, n - i), 1)) + 1e-3).astype(np.float32))
        for i in range(0, n, 1024)
    ]
    return sparse.csr_matrix(sparse.vstack(blocks))


def cpu(function, *args, **keywords):
    """(CPU seconds, result) of one call."""
    start = time.process_time()
    result = function(*args, **keywords)
    return time.process_time() - start, result


def theirs(x: sparse.csr_matrix, batch, shape: Architecture, epochs: int) -> None:
    """Train by scvi-tools."""
    import anndata
    import pandas as pd
    from scvi.model import SCVI

    logging.disable(logging.CRITICAL)
    names = pd.Index([f"c{i}" for i in range(x.shape[0])])
    adata = anndata.AnnData(x, obs=pd.DataFrame({"batch": batch.astype(str)}, index=names))
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(
        adata,
        n_hidden=shape.hidden,
        n_latent=shape.latent,
        n_layers=shape.layers,
        dropout_rate=0.0,
        gene_likelihood=shape.likelihood,
    )
    model.train(max_epochs=epochs, accelerator="cpu", devices=1, enable_progress_bar=False)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--likelihoods", nargs="+", default=["zinb", "nb", "poisson"])
    parser.add_argument("--alone", action="store_true", help="do not run scvi-tools")
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    warnings.simplefilter("ignore")
    x = make_counts(options.samples, options.genes)
    data, batch = SparseRows.of(x), np.arange(x.shape[0]) % 10
    print(f"{x.shape[0]} x {x.shape[1]}, density {x.nnz / np.prod(x.shape):.2f}, {data.nbytes / 1e6:.0f} MB sparse")

    taken, moments = cpu(gene_moments, (x[i : i + 2000] for i in range(0, x.shape[0], 2000)), x.shape[1])
    more, _ = cpu(variable_genes, moments, x.shape[1] // 2)
    print(f"variable genes: {taken + more:.2f} s")

    for likelihood in options.likelihoods:
        shape = Architecture(x.shape[1], 10, hidden=options.hidden, likelihood=likelihood)
        fit(shape, SparseRows.of(x[:300]), batch[:300], Training(max_epochs=1), seed=0)  # imports, first allocations
        once, _ = cpu(fit, shape, data, batch, Training(max_epochs=1), seed=0)
        with tempfile.TemporaryDirectory() as folder:
            ours, (module, history) = cpu(
                fit,
                shape,
                data,
                batch,
                Training(max_epochs=1 + options.epochs),
                seed=0,
                checkpoint=Path(folder) / "state.pt",
            )
        own = (ours - once) / options.epochs
        line = f"{likelihood}: {own:.1f} s per epoch with checkpoints"
        if not options.alone:
            theirs(x[:300], batch[:300], shape, 1)
            once, _ = cpu(theirs, x, batch, shape, 1)
            twice, _ = cpu(theirs, x, batch, shape, 1 + options.epochs)
            per_epoch = (twice - once) / options.epochs
            line += f", scvi-tools {per_epoch:.1f} s ({per_epoch / own:.2f} x)"
        print(f"{line}; ELBO {-history.elbo_train[-1]:.1f}")
    model = ScVIModel(module, shape, "counts", tuple(map(str, range(x.shape[1]))))
    parts = [np.arange(i, min(i + 2000, x.shape[0])) for i in range(0, x.shape[0], 2000)]
    taken, _ = cpu(lambda: [model.latent(data.dense(rows)) for rows in parts])
    print(f"embedding: {x.shape[0] / taken:,.0f} samples per CPU second")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
