"""Neighbours, votes and iLISI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from benchmarks.bench.measure import Case, Check, Step, Way

from txeval.compute.neighbours import NeighbourIndex
from txeval.metrics.batch_mixing import ilisi
from txeval.metrics.knn import true_class_ranks

CLASSES, K, PERPLEXITY, BATCHES = 6_906, 251, 83, 81


def labelled(n: int, m: int, d: int) -> tuple[np.ndarray, ...]:
    """Samples and queries of many weak classes, variances falling as 1 / rank: x, y, queries, truth."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, d + 1) ** -0.5
    centres = rng.normal(size=(CLASSES, d)) * spectrum
    y, truth = rng.integers(0, CLASSES, n), rng.integers(0, CLASSES, m)
    x, queries = (
        (1.5 * centres[labels] + rng.normal(size=(len(labels), d)) * spectrum).astype(np.float32)
        for labels in (y, truth)
    )
    return x, y, queries, truth


def lost(found: np.ndarray, true: np.ndarray) -> float:
    """Share of the true neighbours that are not found."""
    pairs = zip(found, true, strict=True)
    return 1 - float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in pairs]))


def knn(d: int, quick: bool) -> Case:
    """k nearest neighbours of a part of the queries in the whole reference set."""
    import faiss
    from sklearn.neighbors import NearestNeighbors

    n, m = (10_000, 256) if quick else (100_000, 4_096)
    x, _, queries, _ = labelled(n, m, d)
    index = NeighbourIndex(x)
    faiss.omp_set_num_threads(1)
    flat = faiss.IndexFlatL2(d)
    flat.add(x)
    brute = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(x)
    few = queries[:32].astype(np.float64)

    def check(ours: list[Any], others: Mapping[str, list[Any]]) -> list[Check]:
        found = np.concatenate([part[2] for part in ours[0]])
        exact = np.array([np.argsort(((x.astype(np.float64) - q) ** 2).sum(axis=1), kind="stable")[:K] for q in few])
        return [
            Check("neighbours missed, of 32 queries in float64", lost(found[:32], exact), 0.0),
            Check("and of those by scikit-learn, all queries", lost(found, others["scikit-learn brute"][0][1]), 1e-4),
        ]

    return Case(
        size=f"{m:,} queries in {n:,} samples, d {d}, k {K} (seconds grow linearly with the queries)",
        ours=Way.of(lambda: list(index.blocks(queries, K))),
        others={
            "faiss IndexFlatL2": Way.of(lambda: flat.search(queries, K)),
            "scikit-learn brute": Way.of(lambda: brute.kneighbors(queries)),
        },
        check=check,
        warm=lambda: list(NeighbourIndex(x[:4000]).blocks(queries[:8], 20)),
        flops=2.0 * n * m * d,
        inner=d,
    )


def votes(quick: bool) -> Case:
    """The whole classifier against distances, top k and one-hot votes, as the published code has it."""
    n, m, few = (10_000, 256, 16) if quick else (100_000, 4_096, 64)
    x, y, queries, truth = labelled(n, m, 32)
    reference, labels = torch.from_numpy(x), torch.from_numpy(y)

    def one_hot() -> np.ndarray:
        ranks = []
        for start in range(0, few, 32):
            part = torch.from_numpy(queries[start : start + 32])[: few - start]
            similarity, near = (1 / (torch.cdist(part, reference) + 1e-5)).topk(K)
            votes = torch.zeros(len(part) * K, CLASSES)
            votes.scatter_(1, labels[near].view(-1, 1), 1)
            votes = (votes.view(len(part), K, CLASSES) * similarity[:, :, None]).sum(dim=1)
            order = votes.sort(1, True).indices
            ranks.append((order == torch.from_numpy(truth[start : start + 32])[: few - start, None]).nonzero()[:, 1])
        return torch.cat(ranks).numpy()

    def check(ours: list[Any], others: Mapping[str, list[Any]]) -> list[Check]:
        rank, other = ours[0].rank[:few], others["one-hot votes"][0]
        wrong = [float(((rank < top) != (other < top)).mean()) for top in (1, 5)]
        return [Check("queries whose top 1 or top 5 differs", max(wrong), 0.0)]

    return Case(
        size=f"{m:,} queries in {n:,} samples, d 32, k {K}, {CLASSES:,} classes; one-hot votes on {few} of the queries",
        ours=Way.of(lambda: true_class_ranks(x, y, queries, truth, n_classes=CLASSES, k=K)),
        others={"one-hot votes": Way.of(one_hot, m / few)},
        check=check,
        warm=lambda: true_class_ranks(x[:3000], y[:3000], queries[:9], truth[:9], n_classes=CLASSES, k=20),
    )


def ilisi_by_definition(x: np.ndarray, batch: np.ndarray, few: int, perplexity: int) -> np.ndarray:
    """iLISI of the first few samples in float64: distances, the published bisection and a sum over batches each."""
    wide = x.astype(np.float64)
    scores = []
    for i in range(few):
        distance = np.sqrt(((wide - wide[i]) ** 2).sum(axis=1))
        distance[i] = -1.0
        near = np.argsort(distance, kind="stable")[1 : 3 * perplexity]
        d = distance[near]
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
        scores.append(1 / sum(p[batch[near] == c].sum() ** 2 for c in np.unique(batch)))
    return np.array(scores)


def mixing(quick: bool) -> Case:
    """iLISI from embedding to scores against two libraries, each with its own search for neighbours."""
    from harmonypy import compute_lisi
    from scib_metrics import lisi_knn
    from scib_metrics.nearest_neighbors import pynndescent

    n, few, of_harmony, of_scib = (3_000, 50, 3_000, 3_000) if quick else (100_000, 200, 40_000, 20_000)
    rng = np.random.default_rng(0)
    batch = rng.integers(0, BATCHES, n)
    shift = 0.3 * rng.normal(size=(BATCHES, 32))
    x = ((shift[batch] + rng.normal(size=(n, 32))) * np.arange(1, 33) ** -0.5).astype(np.float32)

    def harmony(m: int = of_harmony) -> np.ndarray:
        return compute_lisi(x[:m], pd.DataFrame({"batch": batch[:m]}), ["batch"], perplexity=PERPLEXITY)[:, 0]

    def scib(m: int = of_scib) -> np.ndarray:
        return np.asarray(lisi_knn(pynndescent(x[:m], 3 * PERPLEXITY), batch[:m], perplexity=PERPLEXITY))

    def check(ours: list[Any], others: Mapping[str, list[Any]]) -> list[Check]:
        return [
            Check(
                f"largest difference from the definition, {few} samples",
                float(abs(ours[0][:few] - ilisi_by_definition(x, batch, few, PERPLEXITY)).max()),
                1e-4,
            )
        ]

    return Case(
        size=(
            f"{n:,} samples, d 32, {BATCHES} batches, perplexity {PERPLEXITY}. harmonypy compares all with all: "
            f"from {of_harmony:,}, quadratic. scib-metrics by pynndescent (approximate): {of_scib:,}, linear"
        ),
        ours=Way.of(lambda: ilisi(x, batch, perplexity=PERPLEXITY)),
        others={"harmonypy": Way.of(harmony, (n / of_harmony) ** 2), "scib-metrics": Way.of(scib, n / of_scib)},
        check=check,
        warm=lambda: (ilisi(x[:2000], batch[:2000]), harmony(1000), scib(1000)),
        flops=2.0 * n * n * 32,
        inner=32,
    )


STEPS = (
    Step("knn_32", "kNN, d 32", lambda quick: knn(32, quick), {"faiss IndexFlatL2": 2.5, "scikit-learn brute": 2}),
    Step("knn_256", "kNN, d 256", lambda quick: knn(256, quick), {"faiss IndexFlatL2": 2.5, "scikit-learn brute": 2}),
    Step("votes", "kNN classifier", votes),
    Step("ilisi", "iLISI", mixing, {"harmonypy": 20, "scib-metrics": 20}),
)
