"""What a report shows of the scores: one view per screen and protocol, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from txeval.report.html.packing import plain_text
from txeval.report.html.verdict import Contender, LevelScores, ScoreColumn, Verdict, judge
from txeval.report.results import ResultsFolder
from txeval.report.summary import Question, questions, tabulate
from txeval.report.tables import (
    TABLE,
    MetricInfo,
    aggregate,
    catalogue,
    holes,
    left_out,
    mark_untrained,
    post_position,
    references,
    remarks,
)
from txeval.tasks.registry import list_tasks

__all__ = ["Column", "Model", "View", "make_views"]

#: Levels whose aim is what the random baseline has: it mixes batches perfectly, and knows nothing.
RANDOM_IS_BEST = frozenset({"batch_mixing"})

_ALPHA = 0.05


@dataclass(frozen=True)
class Model:
    """One embedding.

    Attributes
    ----------
    name
        Label in the score rows.
    label
        What the report calls it: says so where the weights were never trained.
    role
        "floor" for a baseline without information, "ceiling" for what could be reached at most, "" for a model.
    fingerprints
        Of the embeddings of all seeds, the lowest seed first.
    """

    name: str
    label: str
    source: str
    role: str
    fingerprints: tuple[str, ...]

    @property
    def is_baseline(self) -> bool:
        """Whether it is something to hold models against, and no model."""
        return self.role != ""


@dataclass(frozen=True)
class Column:
    """One score of every model: a metric, or one subset of it.

    Attributes
    ----------
    floor, top
        Ends of the colour scale: what is known without information, and the best score of a model.
    """

    task: str
    level: int
    metric: str
    subset: str
    label: str
    summary: str
    higher_is_better: bool
    headline: bool
    chance: float
    random: float
    floor: float
    top: float

    @property
    def random_is_best(self) -> bool:
        """Whether the random baseline is what is aimed at."""
        return self.task in RANDOM_IS_BEST

    def position(self, value: float) -> float:
        """Place of a score on the scale: 0 at the floor, 1 at the best score, negative below the floor."""
        span = self.top - self.floor
        if math.isnan(value) or math.isnan(span):
            return math.nan
        if span == 0 or (span < 0) == self.higher_is_better:
            # No model reaches the floor: everything lies below it.
            return -1.0 if value != self.floor else 0.0
        return max(-1.0, min(1.0, (value - self.floor) / span))


@dataclass(frozen=True)
class View:
    """Everything about the scores of one screen under one protocol.

    Attributes
    ----------
    cells
        `aggregate` rows with `low`, `high` that span the intervals of all seeds, `seeds` (a list of (seed, value,
        low, high)) and `column`, the number of the column.
    posts
        Post-processings, in the usual order.
    """

    dataset: str
    screen: str
    protocol: str
    protocol_fingerprint: str
    models: tuple[Model, ...]
    posts: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: pd.DataFrame
    summary: pd.DataFrame
    holes: pd.DataFrame
    left_out: pd.DataFrame
    remarks: pd.DataFrame
    verdict: Verdict

    @property
    def headline(self) -> list[int]:
        """Numbers of the columns of the summary."""
        return [i for i, column in enumerate(self.columns) if column.headline]

    def usual_post(self, model: Model) -> str:
        """The post-processing that is best on most headline scores of a model."""
        chosen = self.summary.loc[self.summary["model"] == model.label, "post_processing"]
        # "A | B" where halves of the units chose differently.
        named = [post for text in chosen for post in text.split(" | ") if post in self.posts]
        return min(named, key=lambda post: (-named.count(post), post_position(post)), default=self.posts[0])


def make_views(scores: pd.DataFrame, results: ResultsFolder | None = None) -> list[View]:
    """One view per screen and protocol, from score rows as `read_scores` gives them.

    Parameters
    ----------
    results
        Their folder: gives the protocol's choice of post-processing, intervals of means over seeds and paired ranks.
    """
    marked = mark_untrained(scores)
    names = dict(zip(marked["model"], scores["model"], strict=True))
    return [
        _view(part.reset_index(drop=True), names, results)
        for _, part in marked.groupby(TABLE, dropna=False, sort=False)
    ]


def _view(rows: pd.DataFrame, names: Mapping[str, str], results: ResultsFolder | None) -> View:
    cells = _with_seeds(aggregate(rows, results), rows)
    asked = list(questions(rows, results))
    shown = tabulate(asked)
    models = _models(rows, names, references(rows))
    columns, number_of = _columns(cells, shown, {model.label: model.role for model in models})
    cells["column"] = [number_of[key] for key in _keys(cells)]
    first = rows.iloc[0]
    return View(
        dataset=str(first["dataset"]),
        screen=str(first["screen_fingerprint"]),
        protocol=str(first["protocol"]),
        protocol_fingerprint=str(first["protocol_fingerprint"]),
        models=models,
        posts=tuple(sorted({str(post) for post in rows["post_processing"]}, key=post_position)),
        columns=columns,
        cells=cells,
        summary=shown,
        holes=holes(rows),
        left_out=left_out(rows),
        remarks=remarks(rows),
        verdict=_verdict(cells, shown, columns, models, asked),
    )


def _keys(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(zip(frame["task"], frame["metric"], frame["subset"], strict=True))


def _models(rows: pd.DataFrame, names: Mapping[str, str], roles: Mapping[str, str]) -> tuple[Model, ...]:
    found = []
    for label, part in rows.groupby("model", sort=False):
        prints = part.sort_values("seed", na_position="first")["embedding_fingerprint"]
        found.append(
            Model(
                name=names[str(label)],
                label=str(label),
                source=str(part.iloc[0]["source"]),
                role=roles.get(str(label), ""),
                fingerprints=tuple(dict.fromkeys(text for text in prints if text)),
            )
        )
    order = ("", "floor", "ceiling")
    return tuple(sorted(found, key=lambda model: (order.index(model.role), model.label.lower(), model.label)))


def _with_seeds(cells: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Add the score of every seed; where there are several, low and high span their intervals."""
    keys = ["task", "metric", "subset", "model", "post_processing"]
    good = rows[rows["status"] == "ok"]
    seeds: dict[tuple[Any, ...], list[tuple[int | None, float, float, float]]] = {}
    for *key, seed, value, low, high in good[[*keys, "seed", "value", "low", "high"]].itertuples(index=False):
        number = None if pd.isna(seed) else int(seed)
        seeds.setdefault(tuple(key), []).append((number, float(value), float(low), float(high)))
    cells = cells.copy()
    found = [seeds.get(key, []) for key in cells[keys].itertuples(index=False, name=None)]
    cells["seeds"] = pd.Series(found, index=cells.index, dtype=object)
    for name, end in (("low", min), ("high", max)):
        place = 2 if name == "low" else 3
        cells[name] = [
            own if not math.isnan(own) or math.isnan(value) else _end([one[place] for one in several], end)
            for own, value, several in zip(cells[name], cells["value"], cells["seeds"], strict=True)
        ]
    return cells


def _end(bounds: list[float], end: Any) -> float:
    return float(end(bounds)) if bounds and not any(map(math.isnan, bounds)) else math.nan


def _columns(
    cells: pd.DataFrame, shown: pd.DataFrame, roles: Mapping[str, str]
) -> tuple[tuple[Column, ...], dict[tuple[str, str, str], int]]:
    info = catalogue(cells)
    headline = {key: str(label) for key, label in zip(_keys(shown), shown["label"], strict=True)}
    columns: list[Column] = []
    number_of: dict[tuple[str, str, str], int] = {}
    for key, part in cells.groupby(["task", "metric", "subset"], sort=False):
        task, metric, subset = map(str, key)
        number_of[task, metric, subset] = len(columns)
        columns.append(_column(part, info[task, metric], subset, headline.get((task, metric, subset)), roles))
    return tuple(columns), number_of


def _column(
    part: pd.DataFrame, info: MetricInfo, subset: str, headline: str | None, roles: Mapping[str, str]
) -> Column:
    values = part["value"].to_numpy(dtype=float)
    role = part["model"].map(roles).to_numpy()
    base, real = role == "floor", role == ""
    best = np.nanmax if info.higher_is_better else np.nanmin
    random = _reduce(values[base], best)
    chance = _reduce(part["chance"].to_numpy(dtype=float), np.nanmean)
    top = _reduce(values[real], best)
    known = np.asarray([level for level in (chance, random) if not math.isnan(level)])
    if info.task in RANDOM_IS_BEST:
        # One batch alone around every sample.
        floor = info.low if math.isfinite(info.low) else _reduce(values, np.nanmin)
        top = _reduce(np.asarray([top, *known]), best)
    else:
        floor = _reduce(known, best) if len(known) else info.low
    return Column(
        task=info.task,
        level=info.level,
        metric=info.metric,
        subset=subset,
        label=headline or (f"{info.label} {subset}" if subset else info.label),
        summary=info.summary,
        higher_is_better=info.higher_is_better,
        headline=headline is not None,
        chance=chance,
        random=random,
        floor=float(floor),
        top=top,
    )


def _reduce(values: Any, how: Any) -> float:
    numbers = np.asarray(values, dtype=float)
    numbers = numbers[~np.isnan(numbers)]
    return float(how(numbers)) if len(numbers) else math.nan


def _verdict(
    cells: pd.DataFrame,
    shown: pd.DataFrame,
    columns: tuple[Column, ...],
    models: tuple[Model, ...],
    asked: Sequence[Question],
) -> Verdict:
    levels = []
    told_apart = {(one.info.task, one.info.metric, one.subset): _told_apart(one) for one in asked}
    by_column = dict(iter(cells.groupby("column")))
    chosen = dict(iter(shown.groupby(["task", "metric", "subset"], sort=False)))
    tasks = {task.name: task.title for task in list_tasks()}
    for task in dict.fromkeys(column.task for column in columns):
        own = [i for i, column in enumerate(columns) if column.task == task and column.headline]
        if not own:
            continue
        reasons = [str(text) for i in own for text in by_column[i]["reason"] if text]
        key = [(columns[i].task, columns[i].metric, columns[i].subset) for i in own]
        levels.append(
            LevelScores(
                level=columns[own[0]].level,
                title=tasks.get(task, task),
                columns=[
                    _score_column(columns[i], by_column[i], chosen[k], told_apart[k])
                    for i, k in zip(own, key, strict=True)
                ],
                reason=reasons[0] if reasons else "",
                random_is_best=task in RANDOM_IS_BEST,
            )
        )
    levels.sort(key=lambda level: level.level)
    # A ceiling is neither to be beaten nor a baseline that must be.
    judged = [model.label for model in models if model.role != "ceiling"]
    return judge(levels, judged, {model.label for model in models if model.role == "floor"})


def _told_apart(question: Question) -> dict[tuple[str, str], bool]:
    """Pairs of ranked models -> whether their paired difference is beyond chance (p < 0.05 after Holm)."""
    found = question.ranking
    if found is None:
        return {}
    p = found.p_adjusted
    names = list(enumerate(question.ranked))
    return {(one, other): bool(p[i, j] < _ALPHA) for i, one in names for j, other in names if i != j}


_CONTENDER = ["model", "post_processing", "value", "low", "high"]


def _score_column(
    column: Column, part: pd.DataFrame, shown: pd.DataFrame, told_apart: Mapping[tuple[str, str], bool]
) -> ScoreColumn:
    contenders = [Contender(*row) for row in part[_CONTENDER].itertuples(index=False, name=None)]
    chosen = [Contender(*row) for row in shown[_CONTENDER].itertuples(index=False, name=None)]
    # The chosen score of several seeds has no interval of its own: it gets that which spans the intervals of all.
    spans = {(one.model, one.post_processing): one for one in contenders}
    chosen = [
        spans.get((one.model, one.post_processing), one) if math.isnan(one.low) else one
        for one in chosen
        if not math.isnan(one.value)
    ]
    chosen_of = {one.model: one for one in chosen}
    return ScoreColumn(column.label, contenders, column.higher_is_better, chosen_of, told_apart)


def view_data(view: View) -> dict[str, Any]:
    """What the page's script reads of a view."""
    tasks = {task.name: task for task in list_tasks()}
    texts = _Texts()
    models = {model.label: i for i, model in enumerate(view.models)}
    posts = {post: i for i, post in enumerate(view.posts)}
    cells = [
        [
            int(row["column"]),
            models[row["model"]],
            posts[row["post_processing"]],
            row["value"],
            row["sd"],
            row["low"],
            row["high"],
            row["chance"],
            _whole(row["n_samples"]),
            _whole(row["n_groups"]),
            texts.number(row["group"]),
            texts.number(row["reason"]),
            texts.number(row["left_out"]),
            [texts.number(note) for note in str(row["notes"]).split(" | ") if note],
            texts.number(row["interval_unit"] if not math.isnan(row["low"]) else row["interval_note"]),
            [list(one) for one in row["seeds"]] if len(row["seeds"]) > 1 else [],
        ]
        for row in view.cells.to_dict("records")
    ]
    choice = view.verdict.choice
    numbers = {(column.task, column.metric, column.subset): i for i, column in enumerate(view.columns)}
    spans = {(c[0], c[1], view.posts[c[2]]): (c[5], c[6]) for c in cells}
    chosen = []
    for row in view.summary.to_dict("records"):
        if not math.isnan(row["value"]):
            column, model = numbers[row["task"], row["metric"], row["subset"]], models[row["model"]]
            ends = (row["low"], row["high"])
            if math.isnan(row["low"]):
                ends = spans.get((column, model, row["post_processing"]), ends)
            picked = [posts[name] for name in str(row["post_processing"]).split(" | ") if name in posts]
            chosen.append([column, model, row["value"], row["sd"], *ends, picked, bool(row["best"])])
    return {
        "chosen": chosen,
        "choice": None if choice is None else [models[choice[0]], posts[choice[1]]],
        "dataset": plain_text(view.dataset),
        "protocol": plain_text(view.protocol),
        "models": [
            {
                "label": plain_text(model.label),
                "source": plain_text(model.source),
                "baseline": model.is_baseline,
                "role": model.role,
                "post": posts.get(view.usual_post(model), 0),
            }
            for model in view.models
        ],
        "posts": [plain_text(post) for post in view.posts],
        "columns": [
            {
                "task": column.task,
                "level": column.level,
                "metric": plain_text(column.metric),
                "subset": plain_text(column.subset),
                "label": plain_text(column.label),
                "summary": plain_text(column.summary),
                "higher": column.higher_is_better,
                "headline": column.headline,
                "chance": column.chance,
                "random": column.random,
                "floor": column.floor,
                "top": column.top,
                "ceiling": column.random_is_best,
            }
            for column in view.columns
        ],
        "levels": [
            {"task": task, "title": plain_text(tasks[task].title if task in tasks else task)}
            for task in _tasks_in_order(view)
        ],
        "cells": cells,
        "texts": texts.texts,
    }


def _tasks_in_order(view: View) -> list[str]:
    levels = {column.task: column.level for column in view.columns}
    return sorted(levels, key=lambda task: levels[task])


def _whole(value: float) -> int | None:
    return None if math.isnan(value) else round(value)


class _Texts:
    """Texts that repeat in many cells, once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: object) -> int:
        """Number of a text; -1 for none."""
        cleaned = plain_text(text) if isinstance(text, str) else ""
        if not cleaned:
            return -1
        if cleaned not in self._numbers:
            self._numbers[cleaned] = len(self.texts)
            self.texts.append(cleaned)
        return self._numbers[cleaned]
