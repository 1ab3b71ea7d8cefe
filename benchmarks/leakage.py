"""Does choosing the best post-processing on the reported numbers lift embeddings that know nothing?

Many random embeddings of a simulated screen pass through the four post-processings; of each, the score of the chosen
one is reported as `paper` does (the best of the four, on the very numbers) and as `corrected` does (chosen on one half
of the units, reported on the other, and the halves swapped). An honest choice reports what the chosen post-processing
scores on average over the embeddings: some post-processings do change a score (batch mixing, for instance), and that
is no leakage.

    python benchmarks/leakage.py [--embeddings 30] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from txeval.data.simulate import relations_folder, simulate_screen
from txeval.report import ResultsFolder
from txeval.report.selection import cross_fitted, halving_factor
from txeval.report.summary import questions
from txeval.report.tables import place_of
from txeval.run import NullProgress, build_config, execute, make_plan

HEADLINE = {
    "batch_mixing": ["ilisi"],
    "linear_probe": ["top1", "top1_balanced"],
    "consistency": ["consistent"],
    "knn": ["top1_perturbed", "top5_perturbed"],
    "relationships": ["recall"],
}
PROTOCOL = """
extends: corrected
name: leakage
seeds: 1
baselines: []
tasks:
  consistency: {draws: 200}
  batch_mixing: {perplexity: 30}
  knn: {k: 25, retrieval: false}
  linear_probe: {solver: lda}
  relationships: {null: relabelled, reference_mean: controls}
"""


def run(folder: Path, n_embeddings: int, dim: int) -> Path:
    """Score random embeddings of a simulated screen; gives the results folder."""
    screen = folder / "screen.h5ad"
    simulate_screen(screen, n_samples=2400, n_genes=120, n_perturbations=60, n_batches=16, unexpressed_targets=0)
    (folder / "leakage.yaml").write_text(PROTOCOL)
    rng = np.random.default_rng(0)
    embeddings = []
    for number in range(n_embeddings):
        # Independent of batch, perturbation and each other.
        np.save(folder / f"random{number}.npy", rng.normal(size=(2400, dim)).astype(np.float32))
        embeddings.append(f"random {number}={folder}/random{number}.npy")
    config = build_config(
        {
            "screen": screen,
            "roles": {"perturbation": "perturbation", "control": ["non-targeting"], "batch": "batch"},
            "embeddings": embeddings,
            "positional": True,
            "protocol": str(folder / "leakage.yaml"),
            "tasks": list(HEADLINE),
            "min_counts": 0,
            "relations": relations_folder(screen),
            "workers": 1,
            "out": folder / "results",
        }
    )
    execute(make_plan(config), progress=NullProgress())
    return folder / "results"


def table(folder: Path) -> pd.DataFrame:
    """Mean over embeddings of the chosen score under both choices, per metric."""
    results = ResultsFolder.open(folder)
    names = [name for names in HEADLINE.values() for name in names]
    chosen = {
        how: {
            (q.info.task, q.info.metric, q.subset): list(q.models.values())
            for q in questions(results.scores, results, metrics=names, choice=how, rank=False)
        }
        for how in ("best", "cross_fitted")
    }
    rows = []
    for key, best in chosen["best"].items():
        task, metric, subset = key
        mine = results.scores
        for name, value in zip(("task", "metric", "subset"), key, strict=True):
            mine = mine[mine[name] == value]
        level = mine.groupby("post_processing")["value"].mean()
        levels = {"best": level, "cross_fitted": _reported_level(results, mine, level)}
        row = {"metric": f"{task}/{metric}" + (f" {subset}" if subset else ""), "embeddings": len(best)}
        row["without choice"] = float(level.mean())
        for how in ("best", "cross_fitted"):
            scores = chosen[how][key]
            values = np.array([score.value for score in scores])
            honest = np.array([levels[how][score.post_processing.split(" | ")].mean() for score in scores])
            added = values - honest
            row[how] = float(values.mean())
            row[f"{how}: added"] = float(added.mean())
            row[f"{how}: z"] = float(added.mean() / (added.std(ddof=1) / np.sqrt(len(added))))
        rows.append(row)
    return pd.DataFrame(rows)


def _reported_level(results: ResultsFolder, rows: pd.DataFrame, level: pd.Series) -> pd.Series:
    """Mean per post-processing of what is reported without a choice: of pairs of genes, those within the halves."""
    first = rows.iloc[0]
    if first["task"] != "relationships":
        return level
    made: dict[str, list[float]] = {post: [] for post in level.index}
    for row in rows.to_dict("records"):
        units = results.seeds(place_of(row))
        found = cross_fitted({"": units}, factor=halving_factor(row["task"], units[0]), split=row["split"])
        made[row["post_processing"]].append(float(np.mean(found.values)))
    return pd.Series({post: float(np.mean(values)) for post, values in made.items()})


def report(frame: pd.DataFrame) -> str:
    """Render the table with what it says."""
    lines = [
        "# Choice of post-processing and leakage",
        "",
        f"{int(frame['embeddings'].iloc[0])} embeddings of independent normal numbers, four post-processings, one "
        "simulated screen (2,400 samples, 60 perturbations, 16 batches); `python benchmarks/leakage.py`. "
        "*Without choice*: mean over embeddings and post-processings. *Best of four*: the best on the reported "
        "numbers (`paper`). *Cross-fitted*: chosen on one half of the units, reported on the other (`corrected`). "
        "Adds: score less what the chosen post-processing scores on average over the embeddings; z: that over its "
        "standard error.",
        "",
        "| metric | without choice | best of four | adds (z) | cross-fitted | adds (z) |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['metric']} | {row['without choice']:.4f} | {row['best']:.4f} | {row['best: added']:+.4f} "
        f"({row['best: z']:+.1f}) | {row['cross_fitted']:.4f} | {row['cross_fitted: added']:+.4f} "
        f"({row['cross_fitted: z']:+.1f}) |"
        for row in frame.to_dict("records")
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Run and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--embeddings", type=int, default=30)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        frame = table(run(Path(folder), args.embeddings, args.dim))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "leakage.md").write_text(report(frame))
    (args.out / "leakage.json").write_text(json.dumps(frame.to_dict("records"), indent=1) + "\n")
    print(report(frame))


if __name__ == "__main__":
    main()
