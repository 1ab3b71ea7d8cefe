"""Nine embeddings under `paper` and `corrected` on three small real screens: scores, intervals and ranks.

    python benchmarks/ranking.py DATA [--out benchmarks/results/ranking.md] [--samples 8000] [--work FOLDER]

A results folder that is there already (--work) is gone on with, so that a run can be stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from screens import SCREENS, cut

from txeval.protocol import load_protocol
from txeval.report.results import ResultsFolder
from txeval.report.summary import Question, questions
from txeval.run import PlainProgress, build_config, execute, make_plan, read_scores

#: Epochs and width of scVI are those of a small screen; everything else is the paper's.
SCVI = "max_epochs=30,kl_warmup=30,hidden=128,genes=0"
EMBEDDINGS = {
    "PCA 256": "pca@components=256",
    "PCA 16": "pca@components=16",
    "PCA 256 log": "pca@components=256,input=lognorm",
    "scVI zinb": f"scvi@likelihood=zinb,{SCVI}",
    "scVI nb": f"scvi@likelihood=nb,{SCVI}",
    "scVI poisson": f"scvi@likelihood=poisson,{SCVI}",
    "random projection": "random_projection",
    "uniform noise": "random_uniform",
}
PROTOCOLS = ("paper", "corrected")
#: Shown besides the headline metrics of each protocol.
SHOWN = {
    "paper": ("ilisi_normalized", "top1", "consistent", "spearman", "structural_integrity"),
    "corrected": (
        "mixing_and_biology",
        "top1_balanced",
        "consistent_adjusted",
        "top1_perturbed_balanced",
        "map",
        "pearson_delta",
        "structural_integrity_rescaled",
    ),
}


def run(screen: str, data: Path, work: Path, samples: int, workers: int) -> tuple[Path, str]:
    """Compute all scores of a screen; its results folder and a line on the screen."""
    part = cut(screen, data, work / "screens", samples)
    out = work / screen.split()[0].lower()
    for protocol in PROTOCOLS:
        config = build_config(
            {
                **part.config,
                "embeddings": [f"{label}={source}" for label, source in EMBEDDINGS.items()],
                "baselines": ["random"],
                "protocol": protocol,
                "seeds": 1,
                "workers": workers,
                "out": out,
            }
        )
        outcome = execute(make_plan(config), progress=PlainProgress())
        if outcome.interrupted:
            raise SystemExit(outcome.exit_status)
    return out, part.note


def asked(out: Path) -> dict[str, list[Question]]:
    """Questions of both protocols, random ranked among the models."""
    scores = read_scores(out)
    results = ResultsFolder.open(out, scores)
    found: dict[str, list[Question]] = {}
    for protocol in PROTOCOLS:
        mine = scores[scores["protocol"] == protocol]
        wanted = set(SHOWN[protocol])
        every = questions(mine, results, metrics=wanted, rank_references=True)
        found[protocol] = [q for q in every if (q.info.task, q.info.metric) not in SKIPPED]
    return found


#: The same name in two levels: one of them is enough.
SKIPPED = {("knn", "top1_balanced")}


HEAD = (
    "# Ranking of nine embeddings under `paper` and `corrected`",
    "",
    "`python benchmarks/ranking.py DATA`: one seed, four post-processings; scVI with",
    f"`{SCVI}`, otherwise as the paper trains it: short",
    "training on small screens, no verdict on scVI. A cell: score [95 % interval], rank (its simultaneous 95 %",
    "interval) over the units that all embeddings share. Level 5 needs 50 perturbed genes, which no screen has; level",
    "1 two test batches, which Norman 2019 alone has. Shares after Benjamini-Hochberg are no sums over perturbations:",
    "a cross-fitted one is approximate, and where it is small it can fall below 0.",
    "",
)


def number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def table(question: Question) -> list[dict[str, Any]]:
    """One record per model: score, interval, rank and its interval."""
    rows = []
    for model, chosen in question.models.items():
        rank: tuple[float, float, float] = (math.nan, math.nan, math.nan)
        if question.ranking is not None and model in question.ranked:
            i = question.ranked.index(model)
            rank = tuple(
                float(side[i]) for side in (question.ranking.rank, question.ranking.low, question.ranking.high)
            )
        rows.append(
            {
                "task": question.info.task,
                "metric": question.info.metric,
                "model": model,
                "post_processing": chosen.post_processing,
                "value": chosen.value,
                "low": chosen.low,
                "high": chosen.high,
                "interval_unit": chosen.interval_unit,
                "chance": chosen.chance,
                "rank": rank[0],
                "rank_low": rank[1],
                "rank_high": rank[2],
                "reason": chosen.reason,
                "why_no_ranks": question.why_not,
            }
        )
    return rows


def markdown(screen: str, note: str, rows: list[dict[str, Any]]) -> list[str]:
    """A table per protocol: models by metrics, "value [interval], rank (interval)"."""
    lines = [f"## {screen}", "", note, ""]
    for protocol in PROTOCOLS:
        mine = pd.DataFrame([row for row in rows if row["protocol"] == protocol])
        mine = mine[mine["reason"] == ""]
        keys = list(dict.fromkeys(zip(mine["task"], mine["metric"], strict=True)))
        lines += [
            f"`{protocol}`, choice of post-processing: {load_protocol(protocol).choice}",
            "",
            "| model | " + " | ".join(f"{task} {metric}" for task, metric in keys) + " |",
            "| --- |" + " --- |" * len(keys),
        ]
        chance = []
        for task, metric in keys:
            value = mine[(mine["task"] == task) & (mine["metric"] == metric)]["chance"].iloc[0]
            chance.append(number(None if pd.isna(value) else float(value)))
        lines.append("| chance | " + " | ".join(chance) + " |")
        for model in dict.fromkeys(mine["model"]):
            cells = []
            for task, metric in keys:
                row = mine[(mine["task"] == task) & (mine["metric"] == metric) & (mine["model"] == model)]
                if not len(row):
                    cells.append("-")
                    continue
                one = row.iloc[0]
                text = number(one["value"])
                if pd.notna(one["low"]):
                    text += f" [{one['low']:.3f}, {one['high']:.3f}]"
                if pd.notna(one["rank"]):
                    text += f", {one['rank']:.0f} ({one['rank_low']:.0f}-{one['rank_high']:.0f})"
                cells.append(text)
            lines.append(f"| {model} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ranking.md")
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--screens", nargs="*", default=list(SCREENS))
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp())
    for screen in given.screens:
        out, note = run(screen, given.data, work, given.samples, given.workers)
        rows = [{"protocol": name, **row} for name, found in asked(out).items() for q in found for row in table(q)]
        write(given.out, {screen: {"note": note, "scores": rows}})


def write(out: Path, made: dict[str, Any]) -> None:
    """Put the records of some screens into the file beside those of others, and make the tables again."""
    path = out.with_suffix(".json")
    records = {**(json.loads(path.read_text()) if path.exists() else {}), **made}
    records = {screen: records[screen] for screen in SCREENS if screen in records}
    path.write_text(json.dumps(_without_nan(records), indent=1) + "\n")
    lines = [*HEAD]
    for screen, record in json.loads(path.read_text()).items():
        lines += markdown(screen, record["note"], record["scores"])
    out.write_text("\n".join(lines))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    main()
