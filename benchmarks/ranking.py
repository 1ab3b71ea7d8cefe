"""Nine embeddings under `paper` and `corrected` on real screens and a simulated one: scores, intervals and ranks.

    python benchmarks/ranking.py DATA [--out benchmarks/results/ranking.md] [--seeds 3] [--work FOLDER]
        [--screens "TAP-seq 2020" ...] [--protocols corrected] [--tasks consistency ...] [--tables]

A results folder that is there already (--work) is gone on with, so that a run can be stopped, cut into parts by screen,
protocol and task, and extended by seeds. --tables makes the tables of what is there.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from scipy.stats import kendalltau
from screens import SCREENS, cut

from txeval.data.simulate import relations_folder, simulate_screen
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
    "paper": ("ilisi_normalized", "top1", "consistent", "recall", "spearman", "structural_integrity"),
    "corrected": (
        "mixing_and_biology",
        "top1_balanced",
        "consistent_adjusted",
        "top1_perturbed_balanced",
        "map",
        "recall",
        "recall_perturbed_mean",
        "pearson_delta",
        "structural_integrity_rescaled",
    ),
}

#: Mean effects of targets, one row each: level 5 and nothing else.
TARGETS = "iPSC-EC targets"
#: Programs of the effects instead of genes; no counts, so that nothing can be trained on them.
OF_TARGETS = {
    "X as it is": "X",
    "PCA 16": "pca@components=16,input=as_is",
    "PCA 256": "pca@components=256,input=as_is",
    "random projection": "random_projection@components=16,input=as_is",
    "uniform noise": "random_uniform",
}
SIMULATED = "simulated"
SIMULATION = {
    "n_samples": 10_000,
    "n_genes": 400,
    "n_perturbations": 100,
    "unexpressed_targets": 25,
    "n_batches": 10,
    "n_programs": 12,
    "effect": 0.6,
    "program_noise": 0.35,
    "depth": 2_000.0,
    "seed": 11,
}


def setup(screen: str, data: Path, work: Path) -> tuple[dict[str, Any], str]:
    """Arguments of `build_config` for a screen, and a line on it."""
    embeddings = [f"{label}={source}" for label, source in EMBEDDINGS.items()]
    if screen == TARGETS:
        config = {
            "screen": data / "ipsc_ec_perturbseq_298targets_x_120programs.h5ad",
            "roles": {"perturbation": "perturbation", "control": ["safe-targeting"]},
            "scale": "continuous",
            "min_counts": 0,
            "relations": data / "relationships",
            "embeddings": [f"{label}={source}" for label, source in OF_TARGETS.items()],
            "post_processing": ["raw"],
            "tasks": ["relationships"],
        }
        return config, (
            "297 targets x 120 program effects, one row per target and one control: level 5 alone, raw alone, no scVI; "
            "`PCA 256` has the 120 components that there are"
        )
    if screen == SIMULATED:
        path = work / "screens" / "simulated.h5ad"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            simulate_screen(path, **SIMULATION)
        config = {
            "screen": path,
            "roles": {
                "perturbation": "perturbation",
                "control_column": "control",
                "batch": "batch",
                "target_gene": "gene",
            },
            "min_counts": 0,
            "relations": relations_folder(path),
            "embeddings": embeddings,
            "tasks": ["relationships"],
        }
        return config, (
            f"{SIMULATION['n_samples']:,} cells x {SIMULATION['n_genes']} genes, {SIMULATION['n_perturbations']} "
            f"perturbations and {SIMULATION['unexpressed_targets']} of unexpressed genes in {SIMULATION['n_batches']} "
            f"batches, {SIMULATION['n_programs']} planted programs whose members are the known relationships, effect "
            f"{SIMULATION['effect']}: level 5 alone"
        )
    part = cut(screen, data, work / "screens", 0)
    return {**part.config, "embeddings": embeddings}, part.note


def _protocol_file(folder: Path, name: str) -> Path:
    """The protocol without the magnitude of level 3, which no table here shows and which costs ten times the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    changed = {"name": name, "extends": name, "tasks": {"consistency": {"min_samples": 1_000_000}}}
    path.write_text(yaml.safe_dump(changed))
    return path


def run(config: dict[str, Any], out: Path, protocol: str, tasks: list[str] | None, seeds: int, workers: int) -> None:
    """Compute the scores that the folder lacks."""
    ready = build_config(
        {
            **config,
            "baselines": ["random"],
            "protocol": str(_protocol_file(out.parent / "protocols", protocol)),
            "seeds": seeds,
            "workers": workers,
            "out": out,
            **({"tasks": tasks} if tasks else {}),
        }
    )
    outcome = execute(make_plan(ready), progress=PlainProgress())
    if outcome.interrupted:
        raise SystemExit(outcome.exit_status)


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
    "`python benchmarks/ranking.py DATA`: four post-processings, seeds as each table says; scVI with",
    f"`{SCVI}`, otherwise as the paper trains it: short",
    "training on small screens, no verdict on scVI. A cell: score [95 % interval], rank (its simultaneous 95 %",
    "interval) over the units that all embeddings share; several seeds are averaged. Where a screen lacks what a level",
    "takes, the reason stands below its table. The magnitude of level 3, which is not shown, is not computed.",
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
                "subset": question.subset,
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
                "n_seeds": chosen.n_seeds,
                "reason": chosen.reason,
                "why_no_ranks": question.why_not,
            }
        )
    return rows


def markdown(screen: str, record: dict[str, Any]) -> list[str]:
    """A table per protocol: models by metrics, "value [interval], rank (interval)"."""
    lines = [f"## {screen}", "", record["note"], "", *moves(record)]
    for protocol in PROTOCOLS:
        rows = pd.DataFrame([row for row in record["scores"] if row["protocol"] == protocol])
        if rows.empty:
            continue
        mine = rows[rows["reason"] == ""]
        keys = list(dict.fromkeys(zip(mine["task"], mine["metric"], mine["subset"], strict=True)))
        heads = [f"{task} {metric}" + (f" ({subset})" if subset else "") for task, metric, subset in keys]
        seeds = sorted({int(n) for n in mine["n_seeds"] if n})
        lines += [
            f"`{protocol}`, choice of post-processing: {load_protocol(protocol).choice}; "
            + (f"where a score depends on a seed, {' or '.join(map(_seeds, seeds))}" if seeds else "no seed matters"),
            "",
            "| model | " + " | ".join(heads) + " |",
            "| --- |" + " --- |" * len(keys),
        ]
        column = {key: part.set_index("model") for key, part in mine.groupby(["task", "metric", "subset"])}
        lines.append("| chance | " + " | ".join(_range(column[key]["chance"].dropna()) for key in keys) + " |")
        for model in dict.fromkeys(mine["model"]):
            cells = [_cell(column[key].loc[model]) if model in column[key].index else "-" for key in keys]
            lines.append(f"| {model} | " + " | ".join(cells) + " |")
        lines.append("")
        holes = rows[(rows["reason"] != "") & ~rows["task"].isin(mine["task"])]
        for task, part in holes.groupby("task", sort=False):
            lines.append(f"No {task}: {part['reason'].iloc[0]}.")
        unranked = mine[(mine["why_no_ranks"] != "")]
        for why, part in unranked.groupby("why_no_ranks", sort=False):
            pairs = zip(part["task"], part["metric"], strict=True)
            names = dict.fromkeys(f"{task} {metric}" for task, metric in pairs)
            lines.append(f"{', '.join(names)}: {why}.")
        if len(holes) or len(unranked):
            lines.append("")
    return lines


def _seeds(n: int) -> str:
    return "one" if n == 1 else f"the mean of {n}"


#: Question of a level under `paper` and the one that takes its place under `corrected`.
MOVED = {
    "level 1": (("batch_mixing", "ilisi_normalized"), ("batch_mixing", "mixing_and_biology")),
    "level 2": (("linear_probe", "top1"), ("linear_probe", "top1_balanced")),
    "level 3": (("consistency", "consistent"), ("consistency", "consistent_adjusted")),
    "level 4": (("knn", "top1"), ("knn", "top1_perturbed_balanced")),
    "level 5": (("relationships", "recall"), ("relationships", "recall_perturbed_mean")),
    "level 6": (("reconstruction", "structural_integrity"), ("reconstruction", "pearson_delta")),
}


def moves(record: dict[str, Any]) -> list[str]:
    """What changes in the ranking: places under `paper` and under `corrected`, and Kendall's tau of the two."""
    rows = pd.DataFrame(record["scores"])
    rows = rows[rows["reason"] == ""]
    columns: dict[str, dict[str, str]] = {}
    for level, pair in MOVED.items():
        sides = [
            rows[(rows["protocol"] == protocol) & (rows["task"] == task) & (rows["metric"] == metric)]
            for protocol, (task, metric) in zip(PROTOCOLS, pair, strict=True)
        ]
        for subset in dict.fromkeys(sides[0]["subset"]):
            one, other = (side[side["subset"] == subset].set_index("model") for side in sides)
            models = [model for model in one.index if model in other.index]
            if not models:
                continue
            columns[f"{level}{f' ({subset})' if subset else ''}: {pair[0][1]} → {pair[1][1]}"] = {
                **{model: f"{_place(one, model)} → {_place(other, model)}" for model in models},
                "tau": number(float(kendalltau(one.loc[models, "value"], other.loc[models, "value"]).statistic)),
            }
    lines = [
        "Places under `paper` → `corrected` (95 % intervals of the rank), and Kendall's tau of the two orders:",
        "",
        "| model | " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    models = [*dict.fromkeys(rows["model"]), "tau"]
    lines += [f"| {model} | " + " | ".join(c.get(model, "-") for c in columns.values()) + " |" for model in models]
    return [*lines, ""]


def _place(rows: pd.DataFrame, model: str) -> str:
    """Rank by value, with its interval where there is one."""
    place = int((rows["value"] > rows.loc[model, "value"]).sum()) + 1
    low, high = rows.loc[model, ["rank_low", "rank_high"]]
    return f"{place}" if pd.isna(low) else f"{place} ({low:.0f}-{high:.0f})"


def _range(values: pd.Series) -> str:
    """A number, or from the least to the largest of the models."""
    ends = [number(float(end)) for end in (values.min(), values.max())] if len(values) else ["-"]
    return " to ".join(dict.fromkeys(ends))


def _cell(row: pd.Series) -> str:
    text = number(row["value"])
    if pd.notna(row["low"]):
        text += f" [{row['low']:.3f}, {row['high']:.3f}]"
    if pd.notna(row["rank"]):
        text += f", {row['rank']:.0f} ({row['rank_low']:.0f}-{row['rank_high']:.0f})"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*SCREENS, SIMULATED, TARGETS]
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ranking.md")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--screens", nargs="*", default=every)
    parser.add_argument("--protocols", nargs="*", default=list(PROTOCOLS))
    parser.add_argument("--tasks", nargs="*")
    parser.add_argument("--tables", action="store_true")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp())
    for screen in given.screens:
        config, note = setup(screen, given.data, work)
        out = work / screen.split()[0].lower()
        if not given.tables:
            for protocol in given.protocols:
                run(config, out, protocol, given.tasks, given.seeds, given.workers)
        if given.tables or given.tasks is None:
            rows = [{"protocol": name, **row} for name, found in asked(out).items() for q in found for row in table(q)]
            write(given.out, {screen: {"note": note, "scores": rows}}, every)


def write(out: Path, made: dict[str, Any], every: list[str]) -> None:
    """Put the records of some screens into the file beside those of others, and make the tables again."""
    path = out.with_suffix(".json")
    records = {**(json.loads(path.read_text()) if path.exists() else {}), **made}
    records = {screen: records[screen] for screen in every if screen in records}
    path.write_text(json.dumps(_without_nan(records), indent=1) + "\n")
    lines = [*HEAD]
    for screen, record in json.loads(path.read_text()).items():
        lines += markdown(screen, record)
    out.write_text("\n".join(lines))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    main()
