"""Coverage of the 95 % intervals on simulated screens with known truth.

    python benchmarks/interval_coverage.py [--screens 300] [--out benchmarks/results]

For each population of `simulated.py` independent screens are drawn, every level is computed under `paper` and under
`corrected`, and the interval of each score is held against the truth: the mean score of all screens of that design.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from simulated import POPULATIONS, Population, centred, draw

from txeval.compute.intervals import interval, spread
from txeval.errors import NotComputable
from txeval.protocol import load_protocol
from txeval.tasks import get_task, run_task, task_params
from txeval.tasks.registry import metrics_of

#: What a small screen needs: fewer neighbours, relationships and steps.
SMALL = {
    "batch_mixing": {"perplexity": 20, "mixing_draws": 3},
    "linear_probe": {"epochs": 40, "lr": 2e-2, "warmup_epochs": 2},
    "consistency": {"null": "permutation", "draws": 200},
    "knn": {"k": 31},
    "relationships": {"min_genes": 10, "min_relations": 5, "draws": 20},
    "reconstruction": {"decoder": "least_squares"},
}

#: What each protocol shows of each level.
METRICS = {
    "paper": {
        "batch_mixing": ["ilisi"],
        "linear_probe": ["top1", "top5"],
        "consistency": ["consistent", "magnitude"],
        "knn": ["top1", "top5"],
        "relationships": ["recall"],
        "reconstruction": ["spearman", "structural_integrity"],
    },
    "corrected": {
        "batch_mixing": ["ilisi_perfect"],
        "linear_probe": ["top1_balanced", "top1"],
        "consistency": ["consistent_adjusted", "consistent"],
        "knn": ["top1_perturbed_balanced", "map", "map_significant"],
        "relationships": ["recall", "recall_perturbed_mean", "auroc"],
        "reconstruction": ["pearson_delta", "structural_integrity_rescaled", "spearman"],
    },
}


def parameters(protocol: str, task: str) -> dict:
    """Parameters of a protocol, made for small screens."""
    given = dict(load_protocol(protocol).tasks.get(task, {}))
    small = dict(SMALL.get(task, {}))
    if protocol == "corrected" and task == "linear_probe":
        # The choice of the weight decay costs ten times the rest.
        small = {"weight_decays": [0.01]}
    if protocol == "corrected" and task == "knn":
        small["retrieval_draws"] = 200
    return {**given, **small}


def scores(population: Population, number: int) -> dict:
    """(protocol, task, metric) -> (value, low, high, standard error)."""
    screen = draw(population, number)
    embedding = {"batch_mixing": screen.embedding}
    other = centred(screen)
    found = {}
    for protocol, tasks in METRICS.items():
        for name, wanted in tasks.items():
            task = get_task(name)
            params = task_params(task, parameters(protocol, name))
            inputs = replace(screen, embedding=embedding.get(name, other), params=params)
            result = run_task(task, inputs, [metric for metric in metrics_of(task) if metric.name in wanted])
            for metric, score in result.scores:
                if score.value is None or score.units is None:
                    continue
                made = score.interval or interval(score.units, low=metric.low, high=metric.high)
                try:
                    error = math.sqrt(spread(score.units).variance)
                except NotComputable:
                    error = float("nan")
                found[protocol, name, metric.name] = (score.value, made.low, made.high, error)
    return found


def measure(population: Population, screens: int) -> list[dict]:
    """One row per score: truth, coverage and its binomial range, width, error estimated and true."""
    values = defaultdict(list)
    for number in range(screens):
        for key, value in scores(population, number).items():
            values[key].append(value)
    rows = []
    for (protocol, task, metric), found in values.items():
        value, low, high, error = np.asarray(found).T
        truth = float(value.mean())
        has = np.isfinite(low)
        hit = (low <= truth) & (truth <= high)
        n = int(has.sum())
        share = float(hit[has].mean())
        rows.append(
            {
                "population": population.name,
                "protocol": protocol,
                "task": task,
                "metric": metric,
                "screens": len(found),
                "intervals": n,
                "truth": truth,
                "coverage": share,
                "coverage_error": math.sqrt(max(share * (1 - share), 0.25 / n) / n),
                "below": float((high < truth)[has].mean()),
                "above": float((low > truth)[has].mean()),
                "mean_width": float((high - low)[has].mean()),
                "true_sd": float(value.std(ddof=1)),
                "mean_standard_error": float(np.sqrt(np.nanmean(error**2))),
            }
        )
    return rows


def table(rows: list[dict], screens: int) -> str:
    """The rows as Markdown: coverage per score and population."""
    names = list(dict.fromkeys(row["population"] for row in rows))
    keys = list(dict.fromkeys((row["protocol"], row["task"], row["metric"]) for row in rows))
    by = {(row["protocol"], row["task"], row["metric"], row["population"]): row for row in rows}
    lines = [
        "# Coverage of the 95 % intervals",
        "",
        f"`python benchmarks/interval_coverage.py`: {screens} independent screens of each population, truth = mean",
        "score of all of them. Share of the intervals that hold the truth, in percent; its standard error is about "
        f"{100 * math.sqrt(0.95 * 0.05 / screens):.1f}.",
        "Last columns: range over populations, and mean of the ratio of the estimated to the true standard error.",
        "",
        "| protocol | score | " + " | ".join(names) + " | range | error ratio |",
        "| --- | --- | " + " | ".join("---:" for _ in names) + " | --- | ---: |",
    ]
    for key in keys:
        mine = [by.get((*key, name)) for name in names]
        there = [row for row in mine if row is not None]
        cells = ["-" if row is None else f"{100 * row['coverage']:.1f}" for row in mine]
        shares = [100 * row["coverage"] for row in there]
        ratios = [row["mean_standard_error"] / row["true_sd"] for row in there if row["true_sd"] > 0]
        ratio = f"{np.mean(ratios):.2f}" if ratios else "-"
        lines.append(
            f"| {key[0]} | {key[1]} / {key[2]} | {' | '.join(cells)} | {min(shares):.0f}-{max(shares):.0f} | {ratio} |"
        )
    lines += ["", "Mean width of the intervals:", "", "| protocol | score | " + " | ".join(names) + " |"]
    lines.append("| --- | --- | " + " | ".join("---:" for _ in names) + " |")
    for key in keys:
        mine = [by.get((*key, name)) for name in names]
        cells = ["-" if row is None else f"{row['mean_width']:.3g}" for row in mine]
        lines.append(f"| {key[0]} | {key[1]} / {key[2]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all populations and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--screens", type=int, default=300)
    parser.add_argument("--populations", nargs="*", default=[population.name for population in POPULATIONS])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    for population in POPULATIONS:
        if population.name not in given.populations:
            continue
        start, cpu = time.perf_counter(), time.process_time()
        rows += measure(population, given.screens)
        print(
            f"# {population.name}: {time.process_time() - cpu:.0f} s CPU, {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        for row in rows:
            if row["population"] == population.name:
                print(
                    f"{row['protocol']:9s} {row['task']}/{row['metric']}: truth {row['truth']:.3f} coverage "
                    f"{100 * row['coverage']:.1f} (below {100 * row['below']:.1f}, above {100 * row['above']:.1f}) "
                    f"width {row['mean_width']:.3f} error {row['mean_standard_error']:.4f} of {row['true_sd']:.4f}",
                    flush=True,
                )
        if given.out is not None:
            (given.out / "coverage.md").write_text(table(rows, given.screens))
            (given.out / "coverage.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows, given.screens))


if __name__ == "__main__":
    main()
