"""What each difference between the protocols changes: one parameter switched at a time, on parts of three real screens.

    python benchmarks/parity.py DATA [--out benchmarks/results/parity.md] [--samples N] [--work FOLDER]

Level 5 needs more perturbed genes than these screens have; a table of 297 targets stands in for it.
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
from screens import SCREENS, cut

from txeval.protocol import load_protocol
from txeval.report.parameters import differences
from txeval.report.results import ResultsFolder
from txeval.report.summary import questions
from txeval.run import NullProgress, build_config, execute, make_plan, read_scores

MODELS = ("pca", "random")
OTHERS = ("reference", "corrected")
#: Parameters that only say what is computed beside, or that matter above a size that no screen here has.
NOT_MEASURED = {
    "tasks.batch_mixing.biology": "adds a metric",
    "tasks.batch_mixing.downsample": "matters above 300,000 samples",
    "tasks.knn.retrieval": "adds metrics",
    "tasks.knn.downsample": "matters above 100,000 samples",
    "tasks.linear_probe.max_train": "matters above 100,000 samples",
    **{
        f"tasks.{task}.blocks": "no screen here names cell lines"
        for task in ("batch_mixing", "linear_probe", "consistency", "knn", "relationships", "reconstruction")
    },
}
#: The level 5 screen: mean effects of the targets, so that nothing else can be computed on it.
TARGETS = "iPSC-EC targets"
#: A change smaller than this is none; one smaller than SHOWN is not in the Markdown table.
SMALL = 1e-6
SHOWN = 5e-4
#: Metrics and databases of the Markdown table; the JSON file has them all.
METRICS = {
    "batch_mixing": ("ilisi", "ilisi_perfect"),
    "linear_probe": ("top1", "top1_balanced"),
    "consistency": ("consistent", "consistent_adjusted", "magnitude"),
    "knn": ("top1", "top1_balanced", "top1_perturbed"),
    "relationships": ("recall", "recall_positive", "recall_perturbed_mean", "auroc"),
    "reconstruction": ("spearman", "pearson_delta", "structural_integrity"),
}
DATABASES = ("", "CORUM", "StringDB")


def variants() -> dict[str, tuple[str, Any, dict[str, Any]]]:
    """Name of a variant -> (parameter, its value, what a protocol file says)."""
    protocols = [load_protocol(name) for name in ("paper", *OTHERS)]
    found: dict[str, tuple[str, Any, dict[str, Any]]] = {}
    for name, (paper, *values) in differences(protocols):
        section, _, rest = name.partition(".")
        if name in NOT_MEASURED or section not in ("split", "tasks"):
            continue
        for value in dict.fromkeys(map(json.dumps, values)):
            if value == json.dumps(paper):
                continue
            content: Any = json.loads(value)
            for key in reversed(rest.split(".")):
                content = {key: content}
            found[f"{name}={value}"] = (name, json.loads(value), {section: content})
    return found


def scored(config: dict[str, Any], folder: Path, name: str, content: dict[str, Any], tasks: list[str]) -> pd.DataFrame:
    """Scores of one variant of `paper`, raw embeddings."""
    label = "".join(c if c.isalnum() else "-" for c in name)
    path = folder / f"{label}.yaml"
    path.write_text(yaml.safe_dump({"name": label, "extends": "paper", **content}))
    made = build_config(
        {
            **config,
            "embeddings": config.get("embeddings", ["pca"]),
            "baselines": ["random"],
            "protocol": str(path),
            "tasks": tasks,
            "post_processing": ["raw"],
            "seeds": 1,
            "workers": 1,
            "out": folder / "out",
        }
    )
    outcome = execute(make_plan(made), progress=NullProgress())
    if outcome.interrupted:
        raise SystemExit(outcome.exit_status)
    scores = outcome.scores
    return scores[(scores["protocol"] == label) & scores["task"].isin(tasks)]


def changes(before: pd.DataFrame, after: pd.DataFrame) -> list[dict[str, Any]]:
    """Scores (or chance levels) that differ."""
    keys = ["task", "metric", "subset", "source"]
    both = after.merge(before, on=keys, suffixes=("_after", "_before"), how="left")
    rows = []
    for row in both.to_dict("records"):
        values = {side: _float(row[f"value_{side}"]) for side in ("before", "after")}
        chances = {side: _float(row[f"chance_{side}"]) for side in ("before", "after")}
        if not (_differ(values) or _differ(chances)):
            continue
        rows.append(
            {
                **{key: str(row[key]) for key in keys},
                **{f"value_{side}": value for side, value in values.items()},
                **{f"chance_{side}": value for side, value in chances.items()},
                "reason": str(row["reason_after"] or ""),
            }
        )
    return rows


def _float(value: Any) -> float | None:
    return None if pd.isna(value) or not math.isfinite(float(value)) else float(value)


def _differ(values: dict[str, float | None]) -> bool:
    one, other = values["before"], values["after"]
    return (one is None) != (other is None) or (one is not None and other is not None and abs(one - other) > SMALL)


def chosen(config: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The choice of post-processing: best of four against cross-fitted, on the same scores."""
    tasks = ["linear_probe", "consistency", "knn"]
    made = build_config(
        {**config, "embeddings": ["pca"], "baselines": ["random"], "protocol": "paper", "tasks": tasks, "seeds": 1}
        | {"workers": 1, "out": folder / "choice"}
    )
    execute(make_plan(made), progress=NullProgress())
    scores = read_scores(folder / "choice")
    results = ResultsFolder.open(folder / "choice", scores)
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for side, choice in (("before", "best"), ("after", "cross_fitted")):
        for question in questions(scores, results, choice=choice, rank=False):
            for model, found in question.models.items():
                key = (question.info.task, question.info.metric, model)
                row = rows.setdefault(key, {"task": key[0], "metric": key[1], "subset": "", "source": model})
                row[f"value_{side}"], row[f"chance_{side}"] = _float(found.value), _float(found.chance)
    return [{**row, "reason": ""} for row in rows.values()]


def measured(screen: str, data: Path, work: Path, samples: int) -> tuple[str, list[dict[str, Any]]]:
    folder = work / screen.split()[0].lower()
    folder.mkdir(parents=True, exist_ok=True)
    if screen == TARGETS:
        config: dict[str, Any] = {
            "screen": data / "ipsc_ec_perturbseq_298targets_x_120programs.h5ad",
            "roles": {"perturbation": "perturbation", "control": ["safe-targeting"]},
            "embeddings": ["pca=X"],
            "scale": "continuous",
            "min_counts": 0,
            "relations": data / "relationships",
        }
        note = "297 targets x 120 program effects, level 5 alone"
    else:
        part = cut(screen, data, work / "screens", samples)
        config, note = part.config, part.note
    levels = (
        ["relationships"]
        if screen == TARGETS
        else ["batch_mixing", "linear_probe", "consistency", "knn", "reconstruction"]
    )
    base = scored(config, folder, "base", {}, levels)
    rows = []
    for name, (parameter, value, content) in variants().items():
        task = parameter.split(".")[1] if parameter.startswith("tasks.") else ""
        if task and task not in levels:
            continue
        after = scored(config, folder, name, content, [task] if task else levels)
        found = changes(base, after)
        rows += [{"parameter": parameter, "value": value, **row} for row in found]
        print(f"{screen}: {name}: {len(found)} scores differ", flush=True)
    if screen != TARGETS:
        rows += [{"parameter": "choice", "value": "cross_fitted", **row} for row in chosen(config, folder)]
    return note, rows


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def markdown(records: dict[str, Any]) -> list[str]:
    lines = [
        "# What each parameter changes",
        "",
        "`python benchmarks/parity.py DATA`: `paper` with one parameter switched, raw embeddings,",
        "one seed; `choice` with four post-processings. A cell: PCA before → after; random before → after; chance",
        "levels in brackets where they change; `=`: no change above 0.0005.",
        "",
        *[f"- {screen}: {record['note']}" for screen, record in records.items()],
        "",
    ]
    screens = list(records)
    table: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for screen, record in records.items():
        for row in record["changes"]:
            if row["metric"] not in METRICS[row["task"]] or row["subset"] not in DATABASES:
                continue
            if not any(_moved(row, what) for what in ("value", "chance")):
                continue
            name = row["metric"] + (f" ({row['subset']})" if row["subset"] else "")
            key = (row["parameter"], json.dumps(row["value"]), f"{row['task']} {name}")
            model = "random" if row["source"] == "random" else "pca"
            table.setdefault(key, {}).setdefault(screen, {})[model] = row
    lines += [
        "| parameter | value | score | " + " | ".join(screens) + " |",
        "| --- |" * 1 + " --- |" * (2 + len(screens)),
    ]
    for (parameter, value, score), cells in table.items():
        texts = [_cell(cells.get(screen, {})) for screen in screens]
        lines.append(f"| `{parameter}` | `{value}` | {score} | " + " | ".join(texts) + " |")
    lines += ["", "Not measured: " + "; ".join(f"`{name}` ({why})" for name, why in NOT_MEASURED.items()) + "."]
    seen = {(row["parameter"], json.dumps(row["value"])) for record in records.values() for row in record["changes"]}
    none = [
        f"`{name}`" for name, (parameter, value, _) in variants().items() if (parameter, json.dumps(value)) not in seen
    ]
    if none:
        lines.append(f"Without an effect here: {', '.join(none)}.")
    return [*lines, ""]


def _moved(row: dict[str, Any], what: str) -> bool:
    before, after = row[f"{what}_before"], row[f"{what}_after"]
    return (before is None) != (after is None) or (before is not None and abs(before - after) >= SHOWN)


def _cell(rows: dict[str, Any]) -> str:
    parts = []
    for model in MODELS:
        row = rows.get(model)
        if row is None:
            parts.append("=")
            continue
        text = f"{number(row['value_before'])} → {number(row['value_after'])}"
        if _moved(row, "chance"):
            text += f" [{number(row['chance_before'])} → {number(row['chance_after'])}]"
        parts.append(text)
    return "; ".join(parts) if rows else "="


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "parity.md")
    parser.add_argument("--samples", type=int, default=3000, help="cells per screen; 0: all")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--screens", nargs="*", default=[*SCREENS, TARGETS])
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp())
    path = given.out.with_suffix(".json")
    records: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for screen in given.screens:
        note, rows = measured(screen, given.data, work, given.samples)
        records[screen] = {"note": note, "changes": rows}
        records = {name: records[name] for name in (*SCREENS, TARGETS) if name in records}
        given.out.write_text("\n".join(markdown(records)))
        path.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
