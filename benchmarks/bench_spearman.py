"""Level 6 against plain alternatives, in the same run.

    python benchmarks/bench_spearman.py [--samples 50000] [--genes 100]

Alternatives: `scipy.stats.spearmanr` per gene; Structural Integrity from centred copies; Pearson, errors and R2 by
numpy on whole matrices. CPU seconds, one thread.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy.stats import spearmanr
from threadpoolctl import threadpool_limits

from txeval.compute.correlation import columns_of, spearman_by_gene
from txeval.metrics.reconstruction import GeneMoments, IntegritySums


def seconds(function):
    """(CPU seconds, result) of the second of two calls: the first one compiles."""
    function()
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def centred_copies(pred, true, batch, is_control):
    """Structural Integrity by its definition."""
    distance, most = [], []
    for b in np.unique(batch):
        mine = batch == b
        p, t = (m[mine] - m[mine & is_control].mean(axis=0) for m in (pred, true))
        distance.append(np.linalg.norm(p - t) / mine.sum())
        most.append(2 * np.linalg.norm(t) / mine.sum())
    return 1 - np.mean(distance) / np.mean(most)


def whole_matrices(pred, true):
    """Pearson, mean squared and absolute error, R2."""
    p, t = pred - pred.mean(axis=0), true - true.mean(axis=0)
    pearson = (p * t).sum(axis=0) / np.sqrt((p * p).sum(axis=0) * (t * t).sum(axis=0))
    error = pred - true
    r2 = 1 - (error**2).sum() / ((true - true.mean()) ** 2).sum()
    return pearson.mean(), (error**2).mean(), np.abs(error).mean(), r2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--genes", type=int, default=100)
    parser.add_argument("--batches", type=int, default=40)
    options = parser.parse_args()
    threadpool_limits(1)
    rng = np.random.default_rng(0)
    n, g = options.samples, options.genes
    true = np.where(rng.random((n, g)) < 0.78, 0, np.log1p(rng.gamma(2, 2, (n, g)))).astype(np.float32)
    pred = (0.3 * true + rng.standard_normal((n, g))).astype(np.float32)
    batch, is_control = rng.integers(0, options.batches, n), rng.random(n) < 0.1
    print(f"{n} samples x {g} genes, 78 % zeros")

    ours, found = seconds(lambda: spearman_by_gene(columns_of(pred), columns_of(true), n, g))
    plain, expected = seconds(lambda: [spearmanr(pred[:, j], true[:, j]).statistic for j in range(g)])
    print(f"Spearman: {ours:.2f} s, scipy.stats.spearmanr {plain:.2f} s: {plain / ours:.0f}x")
    print(f"  largest difference {np.abs(found.values - expected).max():.1e}")

    def one_pass():
        sums = IntegritySums(g, options.batches)
        for start in range(0, n, 4096):
            rows = slice(start, start + 4096)
            sums.add(pred[rows], true[rows], batch[rows], is_control[rows])
        return sums.result().score

    ours, found = seconds(one_pass)
    plain, expected = seconds(lambda: centred_copies(pred, true, batch, is_control))
    print(f"Structural Integrity: {ours:.3f} s, centred copies {plain:.3f} s: {plain / ours:.1f}x")
    print(f"  difference {abs(found - expected):.1e}")

    def moments():
        sums = GeneMoments(g)
        for start in range(0, n, 4096):
            sums.add(pred[start : start + 4096], true[start : start + 4096])
        return sums.scores()

    ours, found = seconds(moments)
    plain, expected = seconds(lambda: whole_matrices(pred.astype(np.float64), true.astype(np.float64)))
    print(f"Pearson, MSE, MAE, R2: {ours:.3f} s, whole float64 matrices {plain:.3f} s: {plain / ours:.1f}x")
    print(f"  largest difference {np.abs(np.subtract(list(found.values()), expected)).max():.1e}")


if __name__ == "__main__":
    main()
