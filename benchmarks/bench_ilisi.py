"""Level 1 against plain alternatives, in the same run.

    python benchmarks/bench_ilisi.py [--samples 20000] [--dimensions 32] [--batches 81] [--perplexity 83]

Alternatives: scikit-learn's kd-tree with a Python loop over samples and batches, as the published code does it (on some
of the samples), and `scib_metrics.lisi_knn` on neighbours by scikit-learn. CPU seconds, one thread.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import numpy as np
import torch
from scib_metrics import lisi_knn
from scib_metrics.nearest_neighbors import NeighborsResults
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from txeval.metrics.batch_mixing import ilisi


def seconds(function):
    """(CPU seconds, result) of one call."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def loop(distances, codes, perplexity, n_batches):
    """ILISI by a Python loop with a bisection per sample."""
    scores = []
    for d, batch in zip(distances, codes, strict=True):
        beta, low, high = 1.0, -np.inf, np.inf
        for _ in range(51):
            p = np.exp(-d * beta)
            total = p.sum()
            difference = np.log(total) + beta * (d * p).sum() / total - np.log(perplexity)
            p /= total
            if abs(difference) < 1e-5:
                break
            if difference > 0:
                low, beta = beta, beta * 2 if np.isinf(high) else (beta + high) / 2
            else:
                high, beta = beta, beta / 2 if np.isinf(low) else (beta + low) / 2
        scores.append(1 / sum(p[batch == c].sum() ** 2 for c in range(n_batches)))
    return np.array(scores)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--loop-samples", type=int, default=500)
    parser.add_argument("--dimensions", type=int, default=32)
    parser.add_argument("--batches", type=int, default=81)
    parser.add_argument("--perplexity", type=int, default=83)
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    n, d, perplexity = options.samples, options.dimensions, options.perplexity
    k = 3 * perplexity
    rng = np.random.default_rng(0)
    batch = rng.integers(0, options.batches, n)
    shift = 0.3 * rng.normal(size=(options.batches, d))
    x = ((shift[batch] + rng.normal(size=(n, d))) * np.arange(1, d + 1) ** -0.5).astype(np.float32)
    print(f"{n} samples, d = {d}, {options.batches} batches, perplexity {perplexity}; one thread")

    ilisi(x[:2000], batch[:2000])
    mine, scores = seconds(lambda: ilisi(x, batch, perplexity=perplexity))

    few = min(n, options.loop_samples)
    tree, (distances, indices) = seconds(
        lambda: NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(x).kneighbors(x[:few])
    )
    simpson, expected = seconds(lambda: loop(distances[:, 1:], batch[indices[:, 1:]], perplexity, options.batches))
    print(f"ours {1e3 * mine / n:.3f} ms per sample; kd-tree and loop {1e3 * (tree + simpson) / few:.3f}:", end=" ")
    print(f"{(tree + simpson) / few / (mine / n):.0f} x; largest difference {abs(scores[:few] - expected).max():.1e}")

    def scib():
        near = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x).kneighbors(x)
        return np.asarray(lisi_knn(NeighborsResults(distances=near[0], indices=near[1]), batch, perplexity=perplexity))

    scib()
    other, expected = seconds(scib)
    print(f"sklearn brute and scib-metrics {1e3 * other / n:.3f} ms per sample: {other / mine:.1f} x;", end=" ")
    print(f"largest difference {abs(scores - expected).max():.1e}")


if __name__ == "__main__":
    main()
