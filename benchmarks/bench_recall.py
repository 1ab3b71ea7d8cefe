"""Level 5 against the plain way, in the same run: sort all pairs, look up every relationship.

    python benchmarks/bench_recall.py [--genes 5000] [--relations 60000]

CPU seconds, one thread.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
from sklearn.metrics.pairwise import cosine_similarity
from threadpoolctl import threadpool_limits

from txeval.compute.pairs import pair_position
from txeval.metrics.relationships import RelationMap, relationship_recall


def sort_and_look_up(x, genes, relations, tail):
    """Recall by the definition: ranks in the sorted list of all pairs, one `.loc` per relationship."""
    similarity = pd.DataFrame(cosine_similarity(x), index=genes, columns=genes)
    every = np.sort(similarity.to_numpy()[np.triu_indices(len(genes), 1)])
    known = {frozenset(pair) for pair in relations.itertuples(index=False) if pair[0] != pair[1]}
    values = np.array([similarity.loc[a, b] for a, b in map(sorted, known)])
    left = np.searchsorted(every, values, side="left") / len(every)
    right = np.searchsorted(every, values, side="right") / len(every)
    return float(((left >= 1 - tail) | (right <= tail)).mean())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genes", type=int, default=5000)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--relations", type=int, default=60_000)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    threadpool_limits(1)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((options.genes, options.dimensions)).astype(np.float32)
    genes = np.array([f"G{i}" for i in range(options.genes)])
    relations = pd.DataFrame(genes[rng.integers(0, options.genes, (options.relations, 2))])
    print(f"{options.genes} genes x {options.dimensions} dimensions, {options.relations} relationships")

    start = time.process_time()
    expected = sort_and_look_up(x, genes, relations, 0.05)
    plain = time.process_time() - start
    relationship_recall(x[:100], genes[:100], [("G1", "G2")])
    start = time.process_time()
    found = relationship_recall(x, genes, relations)
    ours = time.process_time() - start
    print(f"recall: {ours:.2f} s, sort and look up {plain:.2f} s: {plain / ours:.1f}x")
    print(f"  {found['recall']:.6f}, {expected:.6f}")

    relation_map = RelationMap(x, genes)
    links = relation_map.links(relations)
    relation_map.relabelled(links, 0.05, draws=1)
    start = time.process_time()
    relation_map.relabelled(links, 0.05, draws=options.draws)
    ours = time.process_time() - start
    start = time.process_time()
    for _ in range(max(1, options.draws // 10)):
        order = rng.permutation(len(genes))
        a, b = order[links.first], order[links.second]
        cosine = relation_map.cosines[pair_position(np.minimum(a, b), np.maximum(a, b), len(genes))]
        np.count_nonzero((cosine < found["low"]) | (cosine > found["high"]))
    plain = (time.process_time() - start) / max(1, options.draws // 10) * options.draws
    print(f"{options.draws} relabellings: {ours:.2f} s, numpy look-ups {plain:.2f} s: {plain / ours:.1f}x")
    start = time.process_time()
    relation_map.ranking(links)
    print(f"AUROC and average precision: {time.process_time() - start:.2f} s")


if __name__ == "__main__":
    main()
