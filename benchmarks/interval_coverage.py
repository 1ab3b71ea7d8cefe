"""Coverage of the 95 % intervals on simulated screens with known truth.

    python benchmarks/interval_coverage.py --parts build/coverage --population middle --first 0 --screens 200
    python benchmarks/interval_coverage.py --parts build/coverage --out benchmarks/results

For each population of `simulated.py` independent screens are drawn, every level is computed under `paper` and under
`corrected`, and the interval of each score is held against the truth: the mean score of all screens of that design.
With `--population` one call draws the screens `first` to `first + screens - 1` of one population and writes what it
found into a file of its own; without it the table is made of all files that are there. Every population gets the same
number of screens, fixed before the table is looked at. The two populations "held out" were drawn only after the last
change of a method.
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
from scipy import stats
from simulated import HELD_OUT, POPULATIONS, Population, centred, draw

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


def measure(population: Population, first: int, screens: int) -> dict[str, list]:
    """What each score was in each screen: "protocol/task/metric" -> [number, value, low, high, standard error] each."""
    found = defaultdict(list)
    for number in range(first, first + screens):
        for key, value in scores(population, number).items():
            found["/".join(key)].append([number, *value])
    return found


def summary(name: str, key: str, found: np.ndarray) -> dict:
    """Truth, coverage, width, error estimated and true of one score from (screens, 5) rows."""
    protocol, task, metric = key.split("/")
    number, value, low, high, error = found.T
    if len(np.unique(number)) != len(number):
        raise ValueError(f"{name}, {key}: the same screen twice")
    truth = float(value.mean())
    has = np.isfinite(low)
    hit = (low <= truth) & (truth <= high)
    n, share = int(has.sum()), float(hit[has].mean())
    sides = stats.binomtest(int(hit[has].sum()), n).proportion_ci(0.95, "wilson")
    return {
        "population": name,
        "protocol": protocol,
        "task": task,
        "metric": metric,
        "screens": len(found),
        "intervals": n,
        "truth": truth,
        "coverage": share,
        "coverage_low": float(sides.low),
        "coverage_high": float(sides.high),
        "below": float((high < truth)[has].mean()),
        "above": float((low > truth)[has].mean()),
        "least": least_coverage(value),
        "mean_width": float((high - low)[has].mean()),
        "true_sd": float(value.std(ddof=1)),
        "mean_standard_error": float(np.sqrt(np.nanmean(error**2))),
    }


def least_coverage(value: np.ndarray, level: float = 0.95) -> float:
    """What an interval of equal tails covers at least, given the distribution of a score over screens.

    It misses the truth in the screens of the lowest and in those of the highest scores, in at most (1 - level) / 2 of
    all on each side. Where few values are possible, one more of them is often one too many.
    """
    _, number = np.unique(np.round(value, 9), return_counts=True)
    tail = (1 - level) / 2
    missed = 0.0
    for counts in (number, number[::-1]):
        shares = np.cumsum(counts) / counts.sum()
        missed += float(shares[shares <= tail].max(initial=0.0))
    return 1.0 - missed


def summaries(folder: Path) -> list[dict]:
    """Rows of all parts in a folder, populations in the order of `simulated.py`."""
    parts: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*.json")):
        made = json.loads(path.read_text())
        for key, found in made["scores"].items():
            parts[made["population"]][key] += found
    return [
        summary(population.name, key, np.asarray(found, dtype=float))
        for population in (*POPULATIONS, *HELD_OUT)
        for key, found in parts.get(population.name, {}).items()
    ]


def outside(row: dict) -> bool:
    """Whether a cell is not between 90 and 98 %."""
    return not 0.90 <= row["coverage"] <= 0.98


def table(rows: list[dict]) -> str:
    """The rows as Markdown: coverage per score and population."""
    names = list(dict.fromkeys(row["population"] for row in rows))
    keys = list(dict.fromkeys((row["protocol"], row["task"], row["metric"]) for row in rows))
    by = {(row["protocol"], row["task"], row["metric"], row["population"]): row for row in rows}
    numbers = sorted({row["screens"] for row in rows})
    screens = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
    out = [row for row in rows if outside(row)]
    sure = [row for row in out if row["coverage_high"] < 0.90 or row["coverage_low"] > 0.98]
    constant = [row for row in out if row["true_sd"] == 0]
    discrete = [row for row in out if row["coverage"] > 0.98 and row["least"] > 0.98]
    lines = [
        "# Coverage of the 95 % intervals",
        "",
        f"`python benchmarks/interval_coverage.py`: {screens} independent screens of each population, truth = mean",
        "score of all of them. Share of the intervals that hold the truth, in percent; its standard error is about "
        f"{100 * math.sqrt(0.95 * 0.05 / numbers[0]):.1f}.",
        "Last columns: range over populations, and mean of the ratio of the estimated to the true standard error.",
        "",
        f"{len(rows) - len(out)} of {len(rows)} cells lie between 90 and 98 %. Of the {len(out)} others (bold), "
        f"{len(sure)} do so beyond doubt (their 95 % binomial range does not reach 90 to 98 %); in {len(constant)} the "
        f"score is the same in every screen. In {len(discrete)} (with *) the score takes so few values that an",
        "interval of equal tails, which misses on each side in at most 2.5 % of the screens, covers more than 98 %",
        "whatever its method: to miss one more value is to miss too often. What it covers at least stands below.",
        "",
        "| protocol | score | " + " | ".join(names) + " | range | error ratio |",
        "| --- | --- | " + " | ".join("---:" for _ in names) + " | --- | ---: |",
    ]
    for key in keys:
        mine = [by.get((*key, name)) for name in names]
        there = [row for row in mine if row is not None]
        cells = ["-" if row is None else f"{100 * row['coverage']:.1f}" for row in mine]
        cells = [f"**{cell}**" if row and outside(row) else cell for cell, row in zip(cells, mine, strict=True)]
        cells = [f"{cell}*" if row in discrete else cell for cell, row in zip(cells, mine, strict=True)]
        shares = [100 * row["coverage"] for row in there]
        ratios = [row["mean_standard_error"] / row["true_sd"] for row in there if row["true_sd"] > 0]
        ratio = f"{np.mean(ratios):.2f}" if ratios else "-"
        lines.append(
            f"| {key[0]} | {key[1]} / {key[2]} | {' | '.join(cells)} | {min(shares):.0f}-{max(shares):.0f} | {ratio} |"
        )
    if discrete:
        lines += [
            "",
            "Covered at least by any interval of equal tails, for the distribution of the score over screens:",
            "",
        ]
        lines += [
            "| population | protocol | score | truth | least | covered |",
            "| --- | --- | --- | ---: | ---: | ---: |",
        ]
        lines += [
            f"| {row['population']} | {row['protocol']} | {row['task']} / {row['metric']} | {row['truth']:.3f} | "
            f"{100 * row['least']:.1f} | {100 * row['coverage']:.1f} |"
            for row in discrete
        ]
    lines += ["", "Mean width of the intervals:", "", "| protocol | score | " + " | ".join(names) + " |"]
    lines.append("| --- | --- | " + " | ".join("---:" for _ in names) + " |")
    for key in keys:
        mine = [by.get((*key, name)) for name in names]
        cells = ["-" if row is None else f"{row['mean_width']:.3g}" for row in mine]
        lines.append(f"| {key[0]} | {key[1]} / {key[2]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure one part, or make the tables of all parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = {population.name: population for population in (*POPULATIONS, *HELD_OUT)}
    parser.add_argument("--parts", type=Path, required=True, help="folder of the parts")
    parser.add_argument("--population", choices=every)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--screens", type=int, default=200)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.population is not None:
        start, cpu = time.perf_counter(), time.process_time()
        found = measure(every[given.population], given.first, given.screens)
        given.parts.mkdir(parents=True, exist_ok=True)
        name = f"{given.population.replace(' ', '_').replace(':', '')}_{given.first}.json"
        (given.parts / name).write_text(json.dumps({"population": given.population, "scores": found}))
        took = time.process_time() - cpu, time.perf_counter() - start
        print(f"{given.population} {given.first}: {took[0]:.0f} s CPU, {took[1]:.0f} s", flush=True)
        return
    rows = summaries(given.parts)
    text = table(rows)
    print(text)
    if given.out is not None:
        (given.out / "coverage.md").write_text(text)
        (given.out / "coverage.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
