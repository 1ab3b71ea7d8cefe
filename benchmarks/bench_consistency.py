"""Level 3 against plain alternatives, in the same run.

    python benchmarks/bench_consistency.py [--groups 200] [--samples 193] [--dimensions 256]

Alternatives: `sklearn.metrics.pairwise.cosine_similarity` per perturbation; the three blocks of distances of every
perturbation by `scipy.spatial.distance.cdist`; adding up the vectors of every drawn set. CPU seconds, one thread.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import cosine_similarity
from threadpoolctl import threadpool_limits

from txeval.metrics.consistency import (
    choose_controls,
    consistency_permutation_p,
    group_consistency,
    group_energy,
    magnitude_permutation_p,
)


def seconds(function, *args, **keywords):
    """(CPU seconds, result) of the second of two calls: the first one compiles."""
    function(*args, **keywords)
    start = time.process_time()
    result = function(*args, **keywords)
    return time.process_time() - start, result


def cosines_by_group(x, codes, groups):
    """Mean cosine of every group from its matrix of similarities."""
    out = np.empty(groups)
    for g in range(groups):
        similarity = cosine_similarity(x[codes == g])
        n = len(similarity)
        out[g] = (similarity.sum() - np.trace(similarity)) / (n * (n - 1))
    return out


def energies_by_group(x, codes, groups, controls):
    """Energy distance of every group from three matrices of distances."""
    y = x[controls]
    return np.array(
        [
            2 * cdist(mine, y).mean() - cdist(mine, mine).mean() - cdist(y, y).mean()
            for mine in (x[codes == g] for g in range(groups))
        ]
    )


def draws_by_group(x, codes, batch, groups, draws):
    """Mean cosines of random sets, each drawn and added up by itself."""
    rng = np.random.default_rng(0)
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    rows = [np.flatnonzero((batch == b) & (codes >= 0)) for b in range(batch.max() + 1)]
    out = np.empty((groups, draws))
    for g in range(groups):
        counts = np.bincount(batch[codes == g], minlength=len(rows))
        n = counts.sum()
        for t in range(draws):
            drawn = np.concatenate([rng.choice(r, c, replace=False) for r, c in zip(rows, counts, strict=True) if c])
            out[g, t] = ((units[drawn].sum(axis=0) ** 2).sum() - n) / (n * (n - 1))
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=200)
    parser.add_argument("--samples", type=int, default=193)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--draws", type=int, default=50)
    options = parser.parse_args()
    threadpool_limits(1)
    rng = np.random.default_rng(0)
    groups, n = options.groups, options.groups * options.samples
    x = rng.standard_normal((n + 1000, options.dimensions), dtype=np.float32)
    codes = np.r_[rng.permutation(np.arange(n) % groups), np.full(1000, -1)]
    x[:n] += 0.1 * rng.standard_normal((groups, options.dimensions), dtype=np.float32)[codes[:n]]
    is_control = codes < 0
    batch = rng.integers(0, options.batches, len(x))
    labels = np.arange(groups).astype(str)
    print(f"{groups} perturbations x {options.samples} samples x {options.dimensions} dimensions")

    ours, (_, avg) = seconds(group_consistency, x, codes, groups)
    plain, expected = seconds(cosines_by_group, x, codes, groups)
    print(f"mean cosine: {ours:.3f} s, cosine_similarity {plain:.3f} s: {plain / ours:.0f}x")
    print(f"  largest difference {np.abs(avg - expected).max():.1e}")

    ours, energy = seconds(group_energy, x, codes, groups, is_control)
    plain, expected = seconds(energies_by_group, x, codes, groups, choose_controls(x, is_control))
    print(f"energy distance: {ours:.2f} s, cdist {plain:.2f} s: {plain / ours:.0f}x")
    print(f"  largest relative difference {np.abs(energy / expected - 1).max():.1e}")

    every = np.arange(groups)
    ours, _ = seconds(consistency_permutation_p, x, codes, batch, labels, every, avg, draws=options.draws)
    start = time.process_time()
    draws_by_group(x, codes, batch, min(20, groups), 5)
    plain = (time.process_time() - start) / (min(20, groups) * 5) * groups * options.draws
    print(f"permutation null, {options.draws} draws: {ours:.2f} s, set by set {plain:.1f} s: {plain / ours:.0f}x")
    ours, _ = seconds(magnitude_permutation_p, x, codes, batch, is_control, labels, every, energy, draws=options.draws)
    print(f"permutation null of the magnitude, {options.draws} draws: {ours:.2f} s")


if __name__ == "__main__":
    main()
