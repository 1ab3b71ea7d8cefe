"""The summary: one post-processing per model and metric, its interval, and ranks of the models."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from txeval.compute.intervals import Units
from txeval.compute.paired import Ranking, difference, ranking
from txeval.errors import NotComputable
from txeval.report.contributions import Contributions, mean_interval
from txeval.report.selection import cross_fitted, halving_factor
from txeval.report.tables import TABLE, MetricInfo, aggregate, catalogue, place_of, references, texts

__all__ = ["Chosen", "Question", "best_of", "not_above_floor", "questions", "summary", "tabulate"]


@dataclass(frozen=True)
class Chosen:
    """Score of one model for one metric, under the post-processing that was chosen for it.

    Attributes
    ----------
    post_processing
        The one chosen, or "A | B" where the halves chose differently.
    how
        "only" where there was one to choose from, "best": on the numbers that are shown, "cross_fitted": on other
        units than those reported; "" without a score.
    value, sd
        Mean and sample standard deviation over seeds.
    units
        What each unit contributed, for each seed; empty where that is not stored.
    remark
        What is to be known of this score: why the choice is another than asked for, why there is no interval.
    """

    model: str
    role: str
    post_processing: str
    how: str
    value: float
    sd: float
    n_seeds: int
    deterministic: bool
    chance: float
    n_choices: int
    n_holes: int
    low: float = float("nan")
    high: float = float("nan")
    interval_unit: str = ""
    interval_note: str = ""
    reason: str = ""
    left_out: str = ""
    notes: str = ""
    remark: str = ""
    units: Sequence[Units] = ()


@dataclass(frozen=True)
class Question:
    """One metric on one part of the data: a row of the summary.

    Attributes
    ----------
    table
        dataset, screen_fingerprint, protocol, protocol_fingerprint.
    models
        Label -> score, floors and ceilings first.
    ranking
        Of the models in `ranked`; None with the reason in `why_not`.
    """

    table: tuple[str, str, str, str]
    info: MetricInfo
    subset: str
    label: str
    models: Mapping[str, Chosen]
    ranked: tuple[str, ...] = ()
    ranking: Ranking | None = None
    why_not: str = ""


def questions(
    scores: pd.DataFrame,
    results: Contributions | None = None,
    *,
    metrics: Collection[str] | None = None,
    post_processing: str | None = None,
    choice: str | None = None,
    rank: bool = True,
    rank_references: bool = False,
) -> Iterator[Question]:
    """Scores of all models, question by question, in the order of the levels.

    Parameters
    ----------
    scores
        Rows as `txeval.read_scores` gives them.
    results
        Their folder: gives intervals, ranks, the choice and the metrics that its protocols ask for.
    metrics
        Names of the metrics; None for those of the protocol.
    post_processing
        The same one for every model, instead of a choice.
    choice
        "best" or "cross_fitted" instead of what the protocol says.
    rank, rank_references
        Whether to rank the models, and floors and ceilings with them.
    """
    cells = aggregate(scores)
    info = catalogue(cells)
    apart = references(scores)
    for table, part in cells.groupby(TABLE, dropna=False, sort=False):
        protocol = str(table[2])
        headline = results.headline(protocol) if results is not None else {}

        def is_wanted(key: tuple[str, str], headline: Mapping[str, Sequence[str]] = headline) -> bool:
            if metrics is not None:
                return key[1] in metrics
            return key[1] in headline[key[0]] if key[0] in headline else info[key].headline

        rule = choice or (results.choice(protocol) if results is not None else "best")
        here = set(part["model"])
        models = [model for model in apart if model in here]
        models += sorted(here - set(apart), key=lambda model: (model.lower(), model))
        shown = [key for key in _pairs(part) if is_wanted(key)]
        split = _split_of(scores, table)
        for keys, column in part.groupby(["task", "metric", "subset"], sort=False):
            task, metric, subset = map(str, keys)
            if not is_wanted((task, metric)):
                continue
            if post_processing is not None:
                column = column[column["post_processing"] == post_processing]
            entry = info[task, metric]
            chosen = {
                model: _choose(
                    model,
                    apart.get(model, ""),
                    column[column["model"] == model],
                    entry,
                    results,
                    rule=rule,
                    split=split,
                )
                for model in models
            }
            made = Question(
                tuple(map(str, table)),  # type: ignore[arg-type]
                entry,
                subset,
                _label(entry, subset, [key for key in shown if key[0] == task]),
                chosen,
            )
            yield _ranked(made, references=rank_references) if rank and results is not None else made


def _pairs(part: pd.DataFrame) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(part["task"].astype(str), part["metric"].astype(str), strict=True)))


def _split_of(scores: pd.DataFrame, table: tuple[Any, ...]) -> str:
    rows = scores
    for name, value in zip(TABLE, table, strict=True):
        rows = rows[rows[name] == value]
    return str(rows["split"].iloc[0]) if len(rows) else ""


def _label(entry: MetricInfo, subset: str, shown: list[tuple[str, str]]) -> str:
    """Label of a row: the subset alone where it can only be meant for one metric, as Table 2 has it."""
    if not subset:
        return entry.label
    return subset if len(shown) == 1 else f"{entry.label} {subset}"


def _choose(
    model: str,
    role: str,
    candidates: pd.DataFrame,
    entry: MetricInfo,
    results: Contributions | None,
    *,
    rule: str,
    split: str,
) -> Chosen:
    ok = candidates[candidates["value"].notna()]
    counts: dict[str, Any] = {"n_choices": len(ok), "n_holes": len(candidates) - len(ok)}
    if ok.empty:
        reason = texts(candidates["reason"]) if len(candidates) else "not in the run"
        chance = candidates["chance"].mean() if len(candidates) else float("nan")
        nan = float("nan")
        return Chosen(model, role, "", "", nan, nan, 0, False, float(chance), reason=reason, **counts)
    values = ok["value"].to_numpy(dtype=float)
    row = ok.iloc[int(values.argmax() if entry.higher_is_better else values.argmin())]
    best = Chosen(
        model,
        role,
        **{name: row[name] for name in _CHOSEN},
        how="best" if len(ok) > 1 else "only",
        n_seeds=int(row["n_seeds"]),
        **counts,
    )
    if results is None:
        return best
    if rule == "cross_fitted" and len(ok) > 1:
        try:
            return _cross_fitted(best, ok, entry, results, split)
        except NotComputable as why:
            best = replace(best, remark=f"post-processing chosen on the number shown, which is optimistic: {why}")
    return _with_units(best, row.to_dict(), entry, results)


_CHOSEN = (
    "post_processing",
    "value",
    "sd",
    "deterministic",
    "chance",
    "low",
    "high",
    "interval_unit",
    "interval_note",
    "reason",
    "left_out",
    "notes",
)


def _with_units(chosen: Chosen, row: Mapping[Any, Any], entry: MetricInfo, results: Contributions) -> Chosen:
    try:
        units = results.seeds(place_of(row))
    except NotComputable as why:
        return replace(chosen, interval_note=chosen.interval_note or str(why))
    if len(units) == 1:
        return replace(chosen, units=units)
    return replace(chosen, units=units, **_interval(units, entry))


def _cross_fitted(best: Chosen, rows: pd.DataFrame, entry: MetricInfo, results: Contributions, split: str) -> Chosen:
    candidates = {row["post_processing"]: results.seeds(place_of(row)) for row in rows.to_dict("records")}
    first = next(iter(candidates.values()))
    if len({len(seeds) for seeds in candidates.values()}) > 1:
        raise NotComputable("the post-processings have different numbers of seeds")
    found = cross_fitted(
        candidates,
        factor=halving_factor(entry.task, first[0]),
        split=split,
        higher_is_better=entry.higher_is_better,
    )
    values = np.asarray(found.values)
    left_out = "; ".join(filter(None, [best.left_out, *(f"{why}: {n}" for why, n in found.left_out.items())]))
    return replace(
        best,
        post_processing=" | ".join(dict.fromkeys(found.chosen)),
        how="cross_fitted",
        value=float(values.mean()),
        sd=float(values.std(ddof=1)) if len(values) > 1 else float("nan"),
        units=found.units,
        left_out=left_out,
        **_interval(found.units, entry),
    )


def _interval(units: Sequence[Units], entry: MetricInfo) -> dict[str, Any]:
    found = mean_interval(units, low=entry.low, high=entry.high)
    return {"low": found.low, "high": found.high, "interval_unit": found.unit, "interval_note": found.note}


def _ranked(question: Question, *, references: bool) -> Question:
    scored = [
        chosen
        for chosen in question.models.values()
        if (references or not chosen.role) and not math.isnan(chosen.value)
    ]
    if len(scored) < 2:
        return question
    able = [chosen for chosen in scored if chosen.units]
    if len(able) < 2:
        why = scored[0].interval_note or "contributions of units are stored for fewer than two models"
        return replace(question, why_not=f"no ranks: {why}")
    try:
        found = ranking([chosen.units for chosen in able], higher_is_better=question.info.higher_is_better)
    except NotComputable as why_not:
        return replace(question, why_not=f"no ranks: {why_not}")
    return replace(question, ranked=tuple(chosen.model for chosen in able), ranking=found)


def summary(
    scores: pd.DataFrame, results: Contributions | None = None, *, metrics: Collection[str] | None = None
) -> pd.DataFrame:
    """One post-processing per model and metric, as in the paper's Table 2, with intervals and ranks.

    Under the choice "best" it is the best on the very numbers that are shown, which is optimistic: the best of four
    draws of a score without information lies above its expectation. Under "cross_fitted" see
    `txeval.report.selection.cross_fitted`.

    Parameters
    ----------
    scores
        Rows as `txeval.read_scores` gives them.
    results
        Their folder; without it the choice is "best", and there are neither ranks nor intervals of means over seeds.
    metrics
        Names of the metrics to show; None for the headline metrics.

    Returns
    -------
    One row per dataset, protocol, metric, subset and model: `value`, `sd`, `low`, `high`, `chance` and more of the
    chosen post-processing as in `aggregate`, and `label`, `task_title`, `higher_is_better`; `role`: "floor",
    "ceiling" or "" for a model; `choice`: how the post-processing was chosen; `n_choices` (post-processings that have
    a score), `n_holes` (those that have none); `best`: highest of two models or more; `rank`, `rank_low`, `rank_high`:
    rank among the models on the units that all of them have, with its simultaneous 95 % interval; `tied_best`: not
    worse than any other beyond chance; `remark`, `rank_note`. A model without any score for a metric has a row with
    value NaN and its reason.
    """
    return tabulate(questions(scores, results, metrics=metrics))


def tabulate(asked: Iterable[Question]) -> pd.DataFrame:
    """Questions as the table that `summary` gives."""
    made: list[dict[str, Any]] = []
    for question in asked:
        entry = question.info
        best = best_of(question)
        for model, chosen in question.models.items():
            made.append(
                {
                    **dict(zip(TABLE, question.table, strict=True)),
                    "level": entry.level,
                    "task": entry.task,
                    "task_title": entry.task_title,
                    "metric": entry.metric,
                    "subset": question.subset,
                    "label": question.label,
                    "higher_is_better": entry.higher_is_better,
                    "best": model in best,
                    "choice": chosen.how,
                    "rank_note": question.why_not or (question.ranking.note if question.ranking else ""),
                    **{name: getattr(chosen, name) for name in _SUMMARY if hasattr(chosen, name)},
                    **_rank_of(question, model),
                }
            )
    return pd.DataFrame(made, columns=_SUMMARY)


def _rank_of(question: Question, model: str) -> dict[str, Any]:
    found = question.ranking
    if found is None or model not in question.ranked:
        return {"rank": float("nan"), "rank_low": float("nan"), "rank_high": float("nan"), "tied_best": False}
    i = question.ranked.index(model)
    low = int(found.low[i])
    return {"rank": int(found.rank[i]), "rank_low": low, "rank_high": int(found.high[i]), "tied_best": low == 1}


_SUMMARY = [
    *TABLE,
    "level",
    "task",
    "task_title",
    "metric",
    "subset",
    "label",
    "model",
    "role",
    "post_processing",
    "choice",
    "value",
    "sd",
    "n_seeds",
    "deterministic",
    "low",
    "high",
    "interval_unit",
    "interval_note",
    "chance",
    "best",
    "rank",
    "rank_low",
    "rank_high",
    "tied_best",
    "rank_note",
    "higher_is_better",
    "n_choices",
    "n_holes",
    "reason",
    "remark",
    "left_out",
    "notes",
]


def best_of(question: Question) -> set[str]:
    """Models of the highest score, where there are two models or more."""
    entry = question.info
    values = {row.model: row.value for row in question.models.values() if not row.role and not math.isnan(row.value)}
    if len(values) < 2:
        return set()
    top = max(values.values()) if entry.higher_is_better else min(values.values())
    return {model for model, value in values.items() if value == top}


def not_above_floor(question: Question) -> bool:
    """Whether there are floors and the best model is not better than each of them beyond chance.

    By the paired difference (p < 0.05) where contributions of units are stored, else by the numbers.
    """
    scored = [chosen for chosen in question.models.values() if not math.isnan(chosen.value)]
    floors = [chosen for chosen in scored if chosen.role == "floor"]
    models = [chosen for chosen in scored if not chosen.role]
    if not floors or not models:
        return False
    sign = 1 if question.info.higher_is_better else -1
    best = max(models, key=lambda chosen: sign * chosen.value)

    def above(floor: Chosen) -> bool:
        if sign * best.value <= sign * floor.value:
            return False
        if not best.units or not floor.units:
            return True
        try:
            return difference(best.units, floor.units).p_value < 0.05
        except NotComputable:
            return True

    return not all(above(floor) for floor in floors)
