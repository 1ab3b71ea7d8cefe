"""Recall of known relationships."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from benchmarks.bench.measure import Case, Check, Step, Way
from sklearn.metrics.pairwise import cosine_similarity

from txeval.metrics.relationships import RelationMap

SIZES = (8_000, 12_000, 24_000, 3_000, 15_000)


def sorted_recalls(x: np.ndarray, genes: np.ndarray, databases: list[pd.DataFrame], tail: float) -> list[float]:
    """Recall by the definition: ranks in the sorted list of all pairs, one `.loc` per relationship."""
    similarity = pd.DataFrame(cosine_similarity(x), index=genes, columns=genes)
    every = np.sort(similarity.to_numpy()[np.triu_indices(len(genes), 1)])
    recalls = []
    for relations in databases:
        known = {frozenset(pair) for pair in relations.itertuples(index=False) if pair[0] != pair[1]}
        values = np.array([similarity.loc[a, b] for a, b in map(sorted, known)])
        left = np.searchsorted(every, values, side="left") / len(every)
        right = np.searchsorted(every, values, side="right") / len(every)
        recalls.append(float(((left >= 1 - tail) | (right <= tail)).mean()))
    return recalls


def recall(quick: bool) -> Case:
    """Recall in five databases from one map."""
    n = 500 if quick else 9_866
    sizes = [size // 100 for size in SIZES] if quick else list(SIZES)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 256)).astype(np.float32)
    genes = np.array([f"G{i:05d}" for i in range(n)])
    databases = [pd.DataFrame(genes[rng.integers(0, n, (size, 2))]) for size in sizes]

    def ours() -> list[float]:
        relation_map = RelationMap(x, genes)
        return [relation_map.recall(relation_map.links(relations), 0.05) for relations in databases]

    def check(found: list[Any], others: Mapping[str, list[Any]]) -> list[Check]:
        theirs = sorted_recalls(x.astype(np.float64), genes, databases, 0.05)
        return [
            Check(
                "largest difference from the sorted list in float64",
                float(abs(np.subtract(found[0], theirs)).max()),
                0.0,
            )
        ]

    return Case(
        size=f"{n:,} genes, d 256, five databases of {sum(sizes):,} relationships",
        ours=Way.of(ours),
        others={"sort and look up": Way.of(lambda: sorted_recalls(x, genes, databases, 0.05))},
        check=check,
        warm=lambda: RelationMap(x[:50], genes[:50]).thresholds(0.05),
        flops=float(n) * n * 256,
        inner=256,
    )


def relabelling(quick: bool) -> Case:
    """The null of the recall: random relabellings of the genes."""
    n, draws = (500, 20) if quick else (5_000, 200)
    rng = np.random.default_rng(0)
    genes = np.array([f"G{i:05d}" for i in range(n)])
    relation_map = RelationMap(rng.standard_normal((n, 64)), genes)
    links = relation_map.links(pd.DataFrame(genes[rng.integers(0, n, (12 * n, 2))]))
    low, high = relation_map.thresholds(0.05)
    seeds = itertools.count()

    def plain() -> np.ndarray:
        from txeval.compute.pairs import pair_position

        out = []
        for _ in range(draws):
            order = rng.permutation(n)
            a, b = order[links.first], order[links.second]
            cosine = relation_map.cosines[pair_position(np.minimum(a, b), np.maximum(a, b), n)]
            out.append(np.count_nonzero((cosine < low) | (cosine > high)) / len(links))
        return np.array(out)

    def check(ours: list[Any], others: Mapping[str, list[Any]]) -> list[Check]:
        gap = abs(ours[0].recalls.mean() - others["numpy look-ups"][0].mean())
        error = np.hypot(ours[0].recalls.std(), others["numpy look-ups"][0].std()) / np.sqrt(draws)
        return [Check("difference of the means, in standard errors", float(gap / error), 4.0)]

    return Case(
        size=f"{n:,} genes, {len(links):,} relationships, {draws} relabellings",
        # Another seed each time: a map keeps what it has drawn.
        ours=Way.of(lambda: relation_map.relabelled(links, 0.05, draws=draws, seed=next(seeds))),
        others={"numpy look-ups": Way.of(plain)},
        check=check,
        warm=lambda: relation_map.relabelled(links, 0.05, draws=1),
    )


STEPS = (
    Step("recall", "Recall of relationships", recall, {"sort and look up": 8}),
    Step("relabelling", "Null of the recall", relabelling),
)
