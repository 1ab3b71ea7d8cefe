"""Tables of scores: pure functions from score rows to frames. They compute nothing but means over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from txeval.errors import InputError, NotComputable
from txeval.report.contributions import Place, UnitSource, mean_interval

__all__ = [
    "MetricInfo",
    "aggregate",
    "catalogue",
    "full",
    "holes",
    "left_out",
    "mark_untrained",
    "references",
    "remarks",
]

#: Embedders that are no models but floors and ceilings: shown apart and never ranked.
REFERENCES: Mapping[str, str] = {
    "random": "floor",
    "random_uniform": "floor",
    "shuffled": "floor",
    "control_mean": "floor",
    "ceiling": "ceiling",
}

#: Order of the post-processings in every table, and the order in which a tie is broken.
_POST_ORDER = ("raw", "centering", "center_scaling", "tvn")

#: One table is made of the rows that agree in these.
TABLE = ["dataset", "screen_fingerprint", "protocol", "protocol_fingerprint"]
_CELL = ["level", "task", "metric", "subset", "model", "post_processing"]


@dataclass(frozen=True)
class MetricInfo:
    """What a table needs to know of a metric.

    Attributes
    ----------
    position
        Place among all metrics: level, then the order in which the task lists them.
    known
        False for a metric of rows whose plug-in is not installed here; higher is then taken as better.
    """

    task: str
    task_title: str
    level: int
    metric: str
    label: str
    summary: str = ""
    higher_is_better: bool = True
    low: float = 0.0
    high: float = 1.0
    headline: bool = False
    position: int = 0
    known: bool = True


def catalogue(scores: pd.DataFrame | None = None) -> dict[tuple[str, str], MetricInfo]:
    """Every metric of every registered task by (task, metric), plus those that only the rows know."""
    from txeval.tasks.registry import list_tasks, metrics_of

    found: dict[tuple[str, str], MetricInfo] = {}
    for task in list_tasks():
        for metric in metrics_of(task):
            found[task.name, metric.name] = MetricInfo(
                task=task.name,
                task_title=task.title,
                level=task.level,
                metric=metric.name,
                label=metric.label,
                summary=metric.summary,
                higher_is_better=metric.higher_is_better,
                low=metric.low,
                high=metric.high,
                headline=metric.headline,
                position=len(found),
            )
    if scores is not None:
        for task_name, metric_name, level in scores[["task", "metric", "level"]].drop_duplicates().itertuples(False):
            if (task_name, metric_name) not in found:
                found[task_name, metric_name] = MetricInfo(
                    task=task_name,
                    task_title=task_name,
                    level=int(level),
                    metric=metric_name,
                    label=metric_name,
                    high=float("inf"),
                    position=len(found),
                    known=False,
                )
    return found


def aggregate(scores: pd.DataFrame, units: UnitSource | None = None) -> pd.DataFrame:
    """Mean and sample standard deviation over seeds, one row per model, post-processing, metric and subset.

    Parameters
    ----------
    scores
        Rows as `txeval.read_scores` gives them.
    units
        What each unit contributed, for the intervals of means over seeds; without it these have none.

    Returns
    -------
    Frame with the columns dataset, screen_fingerprint, protocol, protocol_fingerprint, level, task, metric,
    subset, model, post_processing; `value`: mean over seeds, NaN where any seed has no score, with the `reason`;
    `sd`: sample standard deviation over seeds, NaN for a deterministic score and for a single seed; `n_seeds`,
    `n_failed`, `deterministic`; `chance`, `chance_low`, `chance_high`: means over seeds; `low`, `high`,
    `interval_unit`, `interval_note`: 95 % interval (that of a mean is not the mean of intervals); `n_samples`,
    `n_groups`, `group`, `left_out`, `notes`.

    Raises
    ------
    InputError
        Where one seed of one cell occurs twice: two different embeddings under one label, for instance.
    """
    rows = _spread_failures(scores)
    keys = [*TABLE, *_CELL]
    twice = rows[rows.duplicated([*keys, "seed"], keep=False)]
    if len(twice):
        first = twice.iloc[0]
        raise InputError(
            f"{len(twice)} score rows occur more than once, first: model {first['model']!r}, post-processing "
            f"{first['post_processing']!r}, metric {first['task']}/{first['metric']}, dataset {first['dataset']!r}",
            remedy="two embeddings share a label, or two versions of a score are in one folder: "
            "run one of them into another folder or under another label",
        )
    info, apart = catalogue(rows), list(references(scores))

    def place(cell: Mapping[str, Any]) -> tuple[Any, ...]:
        """Floors and ceilings first, then models in alphabetical order."""
        model, metric = cell["model"], info[cell["task"], cell["metric"]]
        where = apart.index(model) if model in apart else len(apart)
        order = (metric.position, cell["subset"].lower(), where, model.lower(), model)
        return (*(str(cell[name]) for name in TABLE), *order, post_position(cell["post_processing"]))

    made = [_one_cell(dict(zip(keys, key, strict=True)), part) for key, part in rows.groupby(keys, dropna=False)]
    if units is not None:
        for cell in made:
            if cell["n_seeds"] > 1 and not math.isnan(cell["value"]):
                cell.update(_interval_of_mean(cell, units, info[cell["task"], cell["metric"]]))
    made.sort(key=place)
    return pd.DataFrame(made, columns=_AGGREGATED)


_OPTIONAL = (
    "chance",
    "chance_low",
    "chance_high",
    "low",
    "high",
    "interval_unit",
    "interval_note",
    "n_samples",
    "n_groups",
    "group",
    "left_out",
    "notes",
)

_AGGREGATED = [
    *TABLE,
    *_CELL,
    "value",
    "sd",
    "n_seeds",
    "n_failed",
    "deterministic",
    "reason",
    *_OPTIONAL,
]


def _one_cell(key: Mapping[str, Any], part: pd.DataFrame) -> dict[str, Any]:
    good = part[part["status"] == "ok"]
    bad = part[part["status"] != "ok"]
    deterministic = bool(part["seed"].isna().all())
    values = good["value"].to_numpy(dtype=float)
    complete = len(bad) == 0
    single = len(part) == 1
    return {
        **key,
        "value": float(values.mean()) if complete else np.nan,
        "sd": float(values.std(ddof=1)) if complete and len(values) > 1 else np.nan,
        "n_seeds": 0 if deterministic else len(part),
        "n_failed": len(bad),
        "deterministic": deterministic,
        "reason": _why(part, bad),
        "chance": _mean(part["chance"]),
        "chance_low": _mean(part["chance_low"]),
        "chance_high": _mean(part["chance_high"]),
        "low": _mean(part["low"]) if single else np.nan,
        "high": _mean(part["high"]) if single else np.nan,
        "interval_unit": texts(part["interval_unit"]),
        "interval_note": texts(part["interval_note"]),
        "n_samples": _mean(part["n_samples"]),
        "n_groups": _mean(part["n_groups"]),
        "group": texts(part["group"]),
        "left_out": _left_out(part["left_out"]),
        "notes": texts(note for text in part["notes"] for note in _text(text).split(" | ")),
    }


def _interval_of_mean(cell: Mapping[str, Any], units: UnitSource, entry: MetricInfo) -> dict[str, Any]:
    try:
        found = mean_interval(units.seeds(place_of(cell)), low=entry.low, high=entry.high)
    except NotComputable as why:
        return {"interval_note": str(why)}
    return {"low": found.low, "high": found.high, "interval_unit": found.unit, "interval_note": found.note}


def place_of(cell: Mapping[Any, Any]) -> Place:
    """Where the units of an aggregated row are."""
    return Place(*(str(cell[name]) for name in Place._fields))


def _why(part: pd.DataFrame, bad: pd.DataFrame) -> str:
    if bad.empty:
        return ""
    reasons = texts(bad["reason"]) or "no reason was recorded"
    if len(bad) == len(part):
        return reasons
    seeds = ", ".join(str(seed) for seed in bad["seed"].dropna())
    return f"seed {seeds} of {len(part)} seeds has no score: {reasons}"


def _mean(values: pd.Series) -> float:
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    numbers = numbers[~np.isnan(numbers)]
    return float(numbers.mean()) if len(numbers) else float("nan")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def texts(values: Iterable[object]) -> str:
    return " | ".join(dict.fromkeys(text for value in values if (text := _text(value).strip())))


def _left_out(values: Iterable[object]) -> str:
    """Reason -> number left out, over seeds: the number, or its range where seeds differ."""
    seen: dict[str, list[int]] = {}
    for value in values:
        text = _text(value)
        for reason, number in (json.loads(text) if text else {}).items():
            seen.setdefault(reason, []).append(int(number))
    parts = []
    for reason, numbers in seen.items():
        low, high = min(numbers), max(numbers)
        parts.append(f"{reason}: {low}" if low == high else f"{reason}: {low} to {high}")
    return "; ".join(parts)


def _spread_failures(scores: pd.DataFrame) -> pd.DataFrame:
    """Give a failed row without a subset to every subset that the same metric has elsewhere in the table.

    A level that could not be prepared fails as a whole; where other models have a score per database,
    the hole belongs under each of them.
    """
    missing = [name for name in (*TABLE, *_CELL, "seed", "status", "value", "reason") if name not in scores]
    if missing:
        raise InputError(f"these are no score rows: column {missing[0]!r} is missing", remedy="use txeval.read_scores")
    rows = scores.copy()
    for name in ("subset", "screen_fingerprint", "protocol_fingerprint", "post_processing", "reason"):
        rows[name] = rows[name].map(_text)
    for name in set(_OPTIONAL) - set(rows.columns):
        rows[name] = None
    group = [*TABLE, "task", "metric"]
    whole = (rows["status"] != "ok") & (rows["subset"] == "")
    named = rows.loc[rows["subset"] != "", [*group, "subset"]].drop_duplicates()
    if named.empty or not whole.any():
        return rows
    failed = rows[whole].drop(columns="subset").merge(named, on=group, how="left")
    failed["subset"] = failed["subset"].map(_text)
    return pd.concat([rows[~whole], failed[rows.columns]], ignore_index=True)


def post_position(post: str) -> tuple[int, str]:
    """Sort key of a post-processing."""
    return (_POST_ORDER.index(post) if post in _POST_ORDER else len(_POST_ORDER), post)


def references(scores: pd.DataFrame) -> dict[str, str]:
    """Labels of the floors and the ceilings -> "floor" or "ceiling", in the order in which tables show them."""
    pairs = scores[["model", "source"]].drop_duplicates().itertuples(index=False, name=None)
    found = {str(model): str(source) for model, source in pairs if source in REFERENCES}
    order = list(REFERENCES)
    return {model: REFERENCES[found[model]] for model in sorted(found, key=lambda m: (order.index(found[m]), m))}


def full(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """All post-processings of all models: task -> `aggregate` rows of that task, in the order of the levels."""
    cells = aggregate(scores)
    return {str(task): part.reset_index(drop=True) for task, part in cells.groupby("task", sort=False)}


def holes(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores that could not be computed: reason, and the cells that it holds for (one row per reason).

    Returns
    -------
    Frame with dataset, protocol, task, reason, metrics, models, post_processings, n_rows; names comma-joined.
    """
    failed = scores[scores["status"] != "ok"]
    made = []
    for (dataset, protocol, task, reason), part in failed.groupby(
        ["dataset", "protocol", "task", "reason"], sort=False, dropna=False
    ):
        made.append(
            {
                "dataset": dataset,
                "protocol": protocol,
                "task": task,
                "reason": _text(reason) or "no reason was recorded",
                "metrics": _joined(part["metric"]),
                "models": _joined(part["model"]),
                "post_processings": _joined(part["post_processing"]),
                "n_rows": len(part),
            }
        )
    names = ["dataset", "protocol", "task", "reason", "metrics", "models", "post_processings", "n_rows"]
    return pd.DataFrame(made, columns=names)


def _joined(values: pd.Series) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))


def left_out(scores: pd.DataFrame) -> pd.DataFrame:
    """What was left out of scores, and why: dataset, protocol, task, reason, lowest and highest number, n_rows."""
    found: dict[tuple[str, str, str, str], list[int]] = {}
    columns = [scores[name] for name in ("dataset", "protocol", "task", "left_out")]
    for dataset, protocol, task, text in zip(*columns, strict=True):
        for reason, number in (json.loads(text) if _text(text) else {}).items():
            found.setdefault((dataset, protocol, task, reason), []).append(int(number))
    names = ["dataset", "protocol", "task", "reason", "lowest", "highest", "n_rows"]
    rows = [(*key, min(numbers), max(numbers), len(numbers)) for key, numbers in found.items() if max(numbers) > 0]
    return pd.DataFrame(rows, columns=names)


def remarks(scores: pd.DataFrame) -> pd.DataFrame:
    """Notes on how scores were made: dataset, protocol, task, note, n_rows, in order of appearance."""
    found: dict[tuple[str, str, str, str], int] = {}
    columns = [scores[name] for name in ("dataset", "protocol", "task", "notes")]
    for dataset, protocol, task, text in zip(*columns, strict=True):
        for note in filter(None, _text(text).split(" | ")):
            key = (dataset, protocol, task, note)
            found[key] = found.get(key, 0) + 1
    rows = [(*key, number) for key, number in found.items()]
    return pd.DataFrame(rows, columns=["dataset", "protocol", "task", "note", "n_rows"])


def mark_untrained(scores: pd.DataFrame) -> pd.DataFrame:
    """Score rows whose model labels say so where the weights were never trained (any note that says "untrained:")."""
    said = scores["notes"].fillna("").str.contains("untrained:", regex=False)
    models = set(scores.loc[said, "model"])
    marked = scores.copy()
    marked["model"] = [f"{model} (untrained)" if model in models else model for model in scores["model"]]
    return marked
