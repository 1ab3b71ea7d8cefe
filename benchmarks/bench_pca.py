"""Exact PCA from block-wise moments against scikit-learn's IncrementalPCA, in the same run.

    python benchmarks/bench_pca.py [--samples 8192] [--genes 8248] [--components 256]

Prints seconds and ratios for the Gram matrix (int8 and float32 products) and for the whole fit. One thread.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from scipy import sparse
from sklearn.decomposition import IncrementalPCA
from threadpoolctl import threadpool_limits

from txeval.compute.moments import Kernel, gram, int8_gemm_is_exact
from txeval.embed.pca import principal_axes


def make_counts(n: int, g: int, density: float, seed: int = 0) -> sparse.csr_matrix:
    """Counts with the spread of a Perturb-seq screen, a few above 127."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.3, 1.0, g)
    rate *= -np.log1p(-density) / np.mean(1 - np.exp(-rate)) * 0.5
    blocks = [
        sparse.csr_matrix(rng.poisson(rate * rng.lognormal(0, 0.4, (min(1024, n - i), 1))).astype(np.float32))
        for i in range(0, n, 1024)
    ]
    return sparse.csr_matrix(sparse.vstack(blocks))


def seconds(function, *args, **keywords):
    """(seconds, result) of one call."""
    start = time.perf_counter()
    result = function(*args, **keywords)
    return time.perf_counter() - start, result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--genes", type=int, default=8248)
    parser.add_argument("--components", type=int, default=256)
    parser.add_argument("--density", type=float, default=0.22)
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    x = make_counts(options.samples, options.genes, options.density)
    print(f"{x.shape[0]} x {x.shape[1]}, density {x.nnz / np.prod(x.shape):.2f}, largest {x.data.max():g}")

    def blocks(size: int):
        return (x[i : i + size] for i in range(0, x.shape[0], size))

    times: dict[str, float] = {}
    gram([x[:64, :64]], 64)  # compiles and loads what the first product needs
    kernels: list[Kernel] = ["float32", *(["int8"] if int8_gemm_is_exact() else [])]
    for kernel in kernels:
        times[kernel], (_, _, scatter) = seconds(gram, blocks(485), options.genes, kernel=kernel)
        print(f"Gram, exact, {kernel}: {times[kernel]:.2f} s")
    times["eigen"], axes = seconds(principal_axes, scatter, options.components)
    print(f"eigenvectors (once, whatever the number of samples): {times['eigen']:.2f} s")

    def incremental() -> IncrementalPCA:
        model = IncrementalPCA(options.components)
        for block in blocks(2048):
            model.partial_fit(block.toarray())
        return model

    times["incremental"], model = seconds(incremental)
    print(f"IncrementalPCA: {times['incremental']:.2f} s")
    kept = [float(np.einsum("kg,gh,kh->", v, scatter, v, optimize=True)) for v in (axes[1].T, model.components_)]
    total = float(np.trace(scatter))
    print(f"variance kept: exact {kept[0] / total:.4f}, IncrementalPCA {kept[1] / total:.4f}")
    best = min(times[kernel] for kernel in kernels)
    print(f"ratio float32 / int8 Gram: {times['float32'] / best:.1f}")
    print(f"ratio IncrementalPCA / Gram, which is what grows with the samples: {times['incremental'] / best:.1f}")
    print(f"ratio IncrementalPCA / whole fit at this size: {times['incremental'] / (best + times['eigen']):.1f}")


if __name__ == "__main__":
    main()
