"""Results of experiments: which embeddings of a results folder belong to one, and their scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from txeval.embed.spec import parse_spec
from txeval.embed.trained_on import NAME as TRAINED_ON
from txeval.report.layout import Cell, Column, Grid, Row, number
from txeval.report.style import post_title
from txeval.report.tables import TABLE, catalogue
from txeval.text import clean

__all__ = ["experiment_grids", "likelihood_frame", "reference_frame", "scaling_frame"]

_LIKELIHOODS = {"zinb": "ZINB", "nb": "NB", "poisson": "Poisson"}


def scaling_frame(scores: pd.DataFrame, manifest: Mapping[str, Any]) -> pd.DataFrame:
    """Scores against the number of training samples.

    Parameters
    ----------
    scores
        Rows as `txeval.read_scores` gives them.
    manifest
        `manifest.json` of the same folder, which says what each embedding was trained on.

    Returns
    -------
    One row per dataset, protocol, metric, subset, model and size: `dataset`, `screen_fingerprint`, `protocol`,
    `protocol_fingerprint`, `level`, `task`, `metric`, `subset`, `label`, `higher_is_better`, `group` (the model),
    `size` (training samples), `post_processing` (one for all sizes: that with the highest mean over them), `value`
    (mean over repeats), `sd`, `n`, `low`, `high` (95 %: Student's t over the repeats within the metric's range, where
    there are two or more; else the interval of the one score), `interval` (what it is over), `chance`, `reason`,
    `repeats` (the single scores). Empty where there is no such experiment.
    """
    places = {}
    for model in manifest.get("embeddings", []):
        if model.get("source") != TRAINED_ON:
            continue
        options = model.get("options") or {}
        parts = [found["trained_on_part"] for found in model.get("provenance", []) if "trained_on_part" in found]
        size = parts[0]["samples"] if parts else int(options.get("samples", 0))
        if size:
            group = parse_spec(str(options.get("of", "scvi"))).label
            places[model["dataset"], model["label"]] = (group, size)
    return _frame(scores, places, "size")


def likelihood_frame(scores: pd.DataFrame, manifest: Mapping[str, Any]) -> pd.DataFrame:
    """Scores of models that differ in the likelihood alone.

    Returns
    -------
    As `scaling_frame`, with `likelihood` (ZINB, NB, Poisson) in place of `size`.
    """
    groups: dict[tuple[Any, ...], dict[str, str]] = {}
    for model in manifest.get("embeddings", []):
        if model.get("source") not in ("scvi", "transfer-scvi"):
            continue
        options = dict(model.get("options") or {})
        likelihood = str(options.pop("likelihood", "zinb"))
        place = (model["dataset"], model["source"], json.dumps(options, sort_keys=True, default=str))
        groups.setdefault(place, {}).setdefault(likelihood, model["label"])
    places = {}
    for (dataset, source, _), labels in groups.items():
        if len(labels) > 1:
            names = list(labels.values())
            shared = _common(names).strip(" ,") or source
            for likelihood, label in labels.items():
                places[dataset, label] = (shared, _LIKELIHOODS.get(likelihood, likelihood))
    return _frame(scores, places, "likelihood")


def reference_frame(scores: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Scores of the other embeddings under the post-processing that an experiment is shown with.

    Returns
    -------
    One row per metric, subset and other embedding: the columns of the experiment, with `group` the embedding.
    """
    if frame.empty:
        return frame
    shown = set(frame["row_models"].explode())
    places = {
        (dataset, model): (model, 0)
        for dataset, model in scores[["dataset", "model"]].drop_duplicates().itertuples(index=False)
        if model not in shown
    }
    chosen = {
        (row["dataset"], row["protocol"], row["task"], row["metric"]): row["post_processing"]
        for row in frame.to_dict("records")
    }
    return _frame(scores, places, "size", chosen)


def _common(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    for place, char in enumerate(first):
        if place >= len(last) or last[place] != char:
            return first[:place]
    return first


_VALUES = ("value", "sd", "n", "low", "high", "interval", "chance", "reason", "repeats")


def _frame(
    scores: pd.DataFrame,
    places: Mapping[tuple[str, str], tuple[str, Any]],
    axis: str,
    chosen: Mapping[tuple[Any, ...], str] | None = None,
) -> pd.DataFrame:
    columns = [*TABLE, "level", "task", "metric", "subset", "label", "higher_is_better", "group", axis]
    columns += ["post_processing", *_VALUES, "row_models"]
    keep = [key in places for key in zip(scores["dataset"], scores["model"], strict=True)]
    rows = scores[keep]
    if rows.empty:
        return pd.DataFrame(columns=columns)
    info = catalogue(rows)
    made = []
    for table, part in rows.groupby([*TABLE, "task", "metric"], dropna=False, sort=False):
        fixed = dict(zip([*TABLE, "task", "metric"], table, strict=True))
        entry = info[str(fixed["task"]), str(fixed["metric"])]
        wanted = None if chosen is None else chosen.get((fixed["dataset"], fixed["protocol"], entry.task, entry.metric))
        post = _one_post(part, higher=entry.higher_is_better) if chosen is None else wanted
        if post is None:
            continue
        for (subset, model), cell in part[part["post_processing"] == post].groupby(["subset", "model"], sort=False):
            group, where = places[str(fixed["dataset"]), str(model)]
            made.append(
                {
                    **fixed,
                    "level": entry.level,
                    "subset": subset,
                    "label": f"{entry.label} {subset}".strip(),
                    "higher_is_better": entry.higher_is_better,
                    "group": group,
                    axis: where,
                    "post_processing": post,
                    "position": entry.position,
                    "row_models": [model],
                    **_repeats(cell, entry.low, entry.high),
                }
            )
    found = pd.DataFrame(made, columns=[*columns, "position"])
    # Likelihoods keep the order in which they were asked for.
    order = ["position", "subset", "group", *(["size"] if axis == "size" else [])]
    return found.sort_values(order, kind="stable").drop(columns="position").reset_index(drop=True)


def _one_post(part: pd.DataFrame, *, higher: bool) -> str | None:
    """The post-processing with the best mean over everything that is compared, so that none of it is favoured."""
    good = part[part["status"] == "ok"]
    if good.empty:
        return str(part["post_processing"].iloc[0]) if len(part) else None
    cells = good.groupby(["post_processing", "model", "subset"])["value"].mean()
    # One that lacks a score somewhere would be compared on the rest alone.
    counts = cells.groupby("post_processing").count()
    means = cells.groupby("post_processing").mean()[counts == counts.max()]
    return str(means.idxmax() if higher else means.idxmin())


def _repeats(cell: pd.DataFrame, lowest: float, highest: float) -> dict[str, Any]:
    bad = cell[cell["status"] != "ok"]
    values = cell.loc[cell["status"] == "ok", "value"].to_numpy(dtype=float)
    empty: dict[str, Any] = dict.fromkeys(_VALUES, math.nan) | {
        "interval": "",
        "reason": "",
        "n": len(values),
        "repeats": values.tolist(),
    }
    if len(bad) or not len(values):
        return {**empty, "reason": str(bad["reason"].iloc[0]) if len(bad) else "no score"}
    mean, n = float(values.mean()), len(values)
    chance = pd.to_numeric(cell["chance"], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    chance = chance[~np.isnan(chance)]
    made = {**empty, "value": mean, "chance": float(chance.mean()) if len(chance) else math.nan}
    if n > 1:
        sd = float(values.std(ddof=1))
        half = float(scipy.stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
        low, high = max(lowest, mean - half), min(highest, mean + half)
        return {**made, "sd": sd, "low": low, "high": high, "interval": f"{n} repeats"}
    row = cell.iloc[0]
    return {**made, "low": float(row["low"]), "high": float(row["high"]), "interval": str(row["interval_unit"])}


def experiment_grids(frame: pd.DataFrame, axis: str) -> list[Grid]:
    """Lay an experiment out: one grid per dataset and protocol, sizes or likelihoods down, metrics across."""
    grids = []
    for table, part in frame.groupby(TABLE, dropna=False, sort=False):
        fixed = dict(zip(TABLE, table, strict=True))
        labels = list(dict.fromkeys(part["label"]))
        posts = {row["label"]: row["post_processing"] for row in part.to_dict("records")}
        reasons: list[str] = []
        rows = []
        for (group, where), cells in part.groupby(["group", axis], sort=False):
            by_label = {row["label"]: row for row in cells.to_dict("records")}
            shown = []
            for label in labels:
                row = by_label.get(label)
                if row is None or math.isnan(row["value"]):
                    reason = clean(row["reason"] if row is not None else "not in the run")
                    if reason not in reasons:
                        reasons.append(reason)
                    shown.append(Cell("–", marks=(reasons.index(reason) + 1,)))
                else:
                    sure = not math.isnan(row["low"])
                    text = f" ({number(row['low'])} to {number(row['high'])})" if sure else ""
                    shown.append(Cell(number(row["value"]) + text))
            name = f"{where:,}" if isinstance(where, int | np.integer) else str(where)
            rows.append(Row((clean(group), name), tuple(shown), section=str(group)))
        over = " or ".join(sorted({text for text in part["interval"] if text}))
        notes = [f"In brackets: 95 % interval over {over}."] if over else []
        used = "; ".join(f"{label}: {post_title(post)}" for label, post in posts.items())
        notes.append(
            f"One post-processing per metric for all rows, the one with the best mean over them ({clean(used)})."
        )
        title = f"{clean(fixed['dataset'])}, protocol {clean(fixed['protocol'])}"
        index = ("model", "training samples" if axis == "size" else "likelihood")
        grids.append(
            Grid(title, index, tuple(map(Column, map(clean, labels))), tuple(rows), tuple(notes), tuple(reasons))
        )
    return grids
