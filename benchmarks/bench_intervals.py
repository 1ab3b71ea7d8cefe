"""Cost of units and intervals at the size of Replogle 2022, against the task that they come from.

    python benchmarks/bench_intervals.py [--fraction 0.02]

The tasks are timed on a fraction of their queries, genes or samples and scaled; units and intervals are timed whole.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from txeval.compute.correlation import correlation_influence, spearman_by_gene, twice_ranks
from txeval.compute.deletion import correlation_gap
from txeval.compute.intervals import interval, units_to_frame
from txeval.metrics.knn import true_class_ranks
from txeval.tasks.accuracy import Ranked, contributions
from txeval.tasks.measured import INFLUENCE_ELEMENTS

#: Test cells, reference cells, batches and perturbations of the test split, held-out cells, genes.
QUERIES, REFERENCE, BATCHES, PERTURBATIONS, HELDOUT, GENES = 500_000, 100_000, 81, 6_905, 200_000, 8_248


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print the times and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fraction", type=float, default=0.005)
    fraction = parser.parse_args().fraction
    rng = np.random.default_rng(0)

    few = max(500, int(fraction * QUERIES))
    reference = rng.standard_normal((REFERENCE, 32)).astype(np.float32)
    queries = rng.standard_normal((few, 32)).astype(np.float32)
    classes = rng.integers(0, PERTURBATIONS, REFERENCE)

    def knn() -> None:
        true_class_ranks(reference, classes, queries, classes[:few], n_classes=PERTURBATIONS, k=251)

    true_class_ranks(reference[:500], classes[:500], queries[:5], classes[:5], n_classes=PERTURBATIONS, k=51)
    task = seconds(knn) * QUERIES / few
    hits = (rng.random(QUERIES) < 0.1).astype(float)
    codes = (rng.integers(0, BATCHES, QUERIES), rng.integers(0, PERTURBATIONS, QUERIES))
    labels = (np.arange(BATCHES).astype(str), np.arange(PERTURBATIONS).astype(str))

    # Half of the others are just not right: what a class takes from others is found for all of them.
    rank = np.where(hits > 0, 0, 1 + rng.integers(0, 2, QUERIES))
    ranked = Ranked(
        rank=rank,
        tied=np.zeros_like(rank),
        truth=codes[1],
        classes=labels[1],
        ahead=np.where(rank[:, None] == 1, rng.integers(0, PERTURBATIONS, (QUERIES, 5)), -1),
        unit_labels=labels,
        unit_codes=codes,
        train_counts=np.ones(PERTURBATIONS, dtype=np.int64),
    )

    def units() -> None:
        made = [(f"metric {i}", "", contributions(ranked, 1)) for i in range(6)]
        for _, _, one in made:
            interval(one, low=0, high=1)
        with tempfile.TemporaryDirectory() as folder:
            units_to_frame(made).to_parquet(Path(folder) / "units.parquet")

    cost = seconds(units)
    print(f"kNN, {QUERIES:,} queries, {REFERENCE:,} references: {task:.0f} s (from {few:,} queries)")
    print(f"units, intervals and table of 6 metrics: {cost:.1f} s, {100 * cost / task:.2f} % of the task")

    genes = max(4, int(fraction * GENES))
    true = rng.poisson(0.5, (HELDOUT, genes)).astype(np.float32)
    predicted = rng.standard_normal((HELDOUT, genes)).astype(np.float32)
    spearman_by_gene(lambda part: predicted[:100, part], lambda part: true[:100, part], 100, genes)
    scored = seconds(
        lambda: spearman_by_gene(lambda part: predicted[:, part], lambda part: true[:, part], HELDOUT, genes)
    )
    scored *= GENES / genes
    used = min(GENES, INFLUENCE_ELEMENTS // HELDOUT)
    sides = (rng.integers(0, BATCHES, HELDOUT), rng.integers(0, 2_960, HELDOUT))

    def influences() -> None:
        for k in range(4):
            correlation_influence(predicted[:, k], true[:, k])
        # Every fourth gene also without whole batches and perturbations, for values and ranks.
        columns = np.ascontiguousarray(predicted[:, 0]), np.ascontiguousarray(true[:, 0])
        for x, y in (columns, (twice_ranks(columns[0]), twice_ranks(columns[1]))):
            for side in sides:
                correlation_gap(x, y, side, int(side.max()) + 1)

    influences()
    influence = seconds(influences) * used / 4
    print(f"Spearman of {GENES:,} genes in {HELDOUT:,} cells: {scored:.0f} s, without the decoder and its training")
    print(f"influence on it, {used} genes: {influence:.1f} s, {100 * influence / scored:.1f} % of that")


if __name__ == "__main__":
    main()
