"""Level 4 against plain alternatives, in the same run.

    python benchmarks/bench_knn.py [--reference 100000] [--queries 2048] [--dimensions 32] [--k 251] [--classes 6906]

Alternatives: `sklearn.neighbors.NearestNeighbors(algorithm="brute")`, and `torch.cdist` with `topk` and one-hot votes,
as the published code does it. Medians of interleaved repeats, CPU seconds, one thread.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from txeval.compute.neighbours import NeighbourIndex
from txeval.metrics.knn import true_class_ranks


def seconds(function):
    """(CPU seconds, result) of one call."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def one_hot_ranks(x, y, queries, truth, k, n_classes):
    """Top-1 and top-5 hits by full distance rows and one-hot votes."""
    reference, labels = torch.from_numpy(x), torch.from_numpy(y)
    step = max(1, int(5e6) // len(x))
    hits = np.zeros(2)
    for start in range(0, len(queries), step):
        part = torch.from_numpy(queries[start : start + step])
        similarity, near = (1 / (torch.cdist(part, reference) + 1e-5)).topk(k)
        votes = torch.zeros(len(part) * k, n_classes)
        votes.scatter_(1, labels[near].view(-1, 1), 1)
        votes = (votes.view(len(part), k, n_classes) * similarity[:, :, None]).sum(dim=1)
        right = votes.sort(1, True).indices == torch.from_numpy(truth[start : start + step])[:, None]
        hits += [right[:, :1].sum(), right[:, :5].sum()]
    return hits / len(queries)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=2048)
    parser.add_argument("--one-hot-queries", type=int, default=128)
    parser.add_argument("--dimensions", type=int, default=32)
    parser.add_argument("--k", type=int, default=251)
    parser.add_argument("--classes", type=int, default=6906)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    n, m, d, k, c = options.reference, options.queries, options.dimensions, options.k, options.classes
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, d + 1) ** -0.5
    centres = rng.normal(size=(c, d)) * spectrum
    y, truth = rng.integers(0, c, n), rng.integers(0, c, m)
    x = (1.5 * centres[y] + rng.normal(size=(n, d)) * spectrum).astype(np.float32)
    queries = (1.5 * centres[truth] + rng.normal(size=(m, d)) * spectrum).astype(np.float32)
    print(f"{n} reference samples, {m} queries, d = {d}, k = {k}, {c} classes; one thread")

    preparation, index = seconds(lambda: NeighbourIndex(x))

    def ours():
        return [part[1:] for part in index.blocks(queries, k)]

    brute = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x)
    ours()
    times = np.array(
        [[seconds(ours)[0], seconds(lambda: brute.kneighbors(queries))[0]] for _ in range(options.repeats)]
    )
    mine, theirs = np.median(times, axis=0)
    indices = np.concatenate([part[1] for part in ours()])
    same = (np.sort(indices) == np.sort(brute.kneighbors(queries)[1])).mean()
    a, out = torch.from_numpy(queries[:512]), torch.empty(min(m, 512), 1024)
    tiles = [torch.from_numpy(x[i : i + 1024]).t() for i in range(0, n - 1023, 1024)]
    product = seconds(lambda: [torch.mm(a, tile, out=out) for tile in tiles])[0] * m / len(a)
    print(f"neighbours: ours {mine:.2f} s, sklearn brute {theirs:.2f} s: {theirs / mine:.1f} x; same {same:.6f}")
    print(f"            the matrix products alone {product:.2f} s, ours {mine / product:.1f} times that;", end=" ")
    print(f"preparing the reference set {preparation:.2f} s, once")

    few = min(m, options.one_hot_queries)
    one_hot, hits = seconds(lambda: one_hot_ranks(x, y, queries[:few], truth[:few], k, c))
    whole, found = seconds(lambda: true_class_ranks(x, y, queries, truth, n_classes=c, k=k))
    ratio = (one_hot / few) / (whole / m)
    print(
        f"classifier: ours {1e3 * whole / m:.2f} ms per query, one-hot votes {1e3 * one_hot / few:.2f}: {ratio:.0f} x"
    )
    rank = found.rank[:few]
    print(f"            top 1, top 5 of {few} queries: ours {(rank < 1).mean():.4f} {(rank < 5).mean():.4f},", end=" ")
    print(f"one-hot votes {hits[0]:.4f} {hits[1]:.4f}")


if __name__ == "__main__":
    main()
