"""Comparison of embeddings: paired differences on the same units, corrected for their number, and in words."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from txeval.compute.paired import difference, holm
from txeval.errors import InputError, NotComputable, unknown
from txeval.metrics.consistency import adjust
from txeval.report.layout import Cell, Column, Grid, Row, number
from txeval.report.results import ResultsFolder
from txeval.report.summary import Chosen, Question, questions
from txeval.report.tables import TABLE, references
from txeval.text import clean

__all__ = ["Side", "compare", "difference_grids", "rank_grids", "rank_words", "verdicts", "words"]

#: Below this adjusted p-value two embeddings are said to differ.
ALPHA = 0.05

_COLUMNS = [
    *TABLE,
    "level",
    "task",
    "metric",
    "subset",
    "label",
    "higher_is_better",
    "first",
    "second",
    "first_post_processing",
    "second_post_processing",
    "choice",
    "first_value",
    "second_value",
    "difference",
    "low",
    "high",
    "p_value",
    "p_holm",
    "p_bh",
    "detectable",
    "units",
    "verdict",
    "left_out",
    "note",
    "reason",
]


@dataclass(frozen=True)
class Side:
    """An embedding of a results folder, and what to call it beside one of another folder."""

    results: ResultsFolder
    model: str
    name: str


def compare(
    pairs: Sequence[tuple[Side, Side]],
    *,
    metrics: Collection[str] | None = None,
    post_processing: str | None = None,
    choice: str | None = None,
) -> pd.DataFrame:
    """Paired differences of embeddings, first less second, for every metric.

    Parameters
    ----------
    pairs
        What to compare.
    metrics
        Names of the metrics; None for those of the summary.
    post_processing
        The same one for both; None for the one that is chosen for each.
    choice
        "best" or "cross_fitted" instead of what the protocol says.

    Returns
    -------
    One row per pair and metric: both values, `difference` with its 95 % interval `low` to `high`, `p_value`; `p_holm`
    and `p_bh`: adjusted for all rows of the data set, by Holm and by Benjamini-Hochberg; `detectable`: the smallest
    difference that would have been seen (p < 0.05) with probability 0.8; `units`: how many both have in common;
    `verdict`: "first", "second" (the better one, p_holm < 0.05), "not told apart", or "" with a `reason`.

    Raises
    ------
    InputError
        Two folders have no metric of the same screen in common.
    """
    asked: dict[tuple[int, int], tuple[Side, Side]] = {(id(a), id(b)): (a, b) for a, b in pairs}
    cache: dict[int, list[Question]] = {}

    def of(results: ResultsFolder) -> list[Question]:
        if id(results) not in cache:
            cache[id(results)] = list(
                questions(
                    results.scores,
                    results,
                    metrics=metrics,
                    post_processing=post_processing,
                    choice=choice,
                    rank=False,
                )
            )
        return cache[id(results)]

    made: list[dict[str, Any]] = []
    for first, second in asked.values():
        for question, other in _matched(of(first.results), of(second.results), same=first.results is second.results):
            if first.model in question.models and second.model in other.models:
                made.append(_row(question, first, question.models[first.model], second, other.models[second.model]))
    if not made:
        raise InputError(
            "there is no score of the same screen and metric on both sides",
            remedy="compare results of one screen; `txeval show DIR --format csv` lists the metrics of each",
        )
    frame = pd.DataFrame(made, columns=_COLUMNS)
    for rows in frame.groupby("screen_fingerprint", sort=False).groups.values():
        p = frame.loc[rows, "p_value"].to_numpy(dtype=float)
        frame.loc[rows, "p_holm"] = holm(p)
        frame.loc[rows, "p_bh"] = adjust(p)
    frame["verdict"] = [_verdict(row) for row in frame.to_dict("records")]
    return frame


def _matched(
    ours: Sequence[Question], theirs: Sequence[Question], *, same: bool
) -> Iterator[tuple[Question, Question]]:
    if same:
        yield from ((question, question) for question in ours)
        return
    # Results of one protocol each are held against each other whatever it is called; else names must agree.
    single = len({q.table for q in ours}) == 1 and len({q.table for q in theirs}) == 1

    def key(question: Question) -> tuple[str, ...]:
        table = (question.table[1], "" if single else question.table[2])
        return (*table, question.info.task, question.info.metric, question.subset)

    found = {key(question): question for question in theirs}
    for question in ours:
        if key(question) in found:
            yield question, found[key(question)]


def _row(question: Question, first: Side, one: Chosen, second: Side, other: Chosen) -> dict[str, Any]:
    entry = question.info
    made: dict[str, Any] = {
        **dict(zip(TABLE, question.table, strict=True)),
        "level": entry.level,
        "task": entry.task,
        "metric": entry.metric,
        "subset": question.subset,
        "label": question.label,
        "higher_is_better": entry.higher_is_better,
        "first": first.name,
        "second": second.name,
        "first_post_processing": one.post_processing,
        "second_post_processing": other.post_processing,
        "choice": one.how if one.how == other.how else f"{one.how} | {other.how}",
        "first_value": one.value,
        "second_value": other.value,
        **dict.fromkeys(("difference", "low", "high", "p_value", "p_holm", "p_bh", "detectable"), float("nan")),
        **dict.fromkeys(("units", "left_out", "note", "reason"), ""),
    }
    for side, chosen in ((first, one), (second, other)):
        if math.isnan(chosen.value):
            return {**made, "reason": f"{side.name} has no score: {chosen.reason}"}
    for side, chosen in ((first, one), (second, other)):
        if not chosen.units:
            why = chosen.interval_note or "no contributions of units are stored"
            return {**made, "reason": f"{side.name}: {why}"}
    try:
        found = difference(one.units, other.units)
    except NotComputable as why:
        return {**made, "reason": str(why)}
    remarks = dict.fromkeys(filter(None, (found.note, one.remark, other.remark)))
    return {
        **made,
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "p_value": found.p_value,
        "detectable": found.detectable,
        "units": found.units,
        "left_out": "; ".join(f"{what}: {count}" for what, count in found.left_out.items()),
        "note": "; ".join(remarks),
    }


def _verdict(row: dict[Any, Any]) -> str:
    if math.isnan(row["p_holm"]):
        return ""
    if not row["p_holm"] < ALPHA:
        return "not told apart"
    return "first" if (row["difference"] > 0) == row["higher_is_better"] else "second"


def sides(
    results: ResultsFolder, other: ResultsFolder | None, names: Sequence[str], tags: tuple[str, str] = ("A", "B")
) -> list[tuple[Side, Side]]:
    """Pairs to compare: of one folder all pairs of its models (or of those named), of two folders model by model.

    Parameters
    ----------
    names
        Labels of embeddings. Of two folders: one label for both, or first that of `results`, then that of `other`;
        none for all models that both have.
    tags
        What to put behind a label that both folders have.

    Raises
    ------
    InputError
        For a label that is not there, or nothing to compare.
    """
    if other is None:
        models = [_known(results, name) for name in names] or _models(results)
        if len(models) < 2:
            raise InputError(
                f"{results.folder} has {len(models)} embedding(s) to compare: {', '.join(models)}",
                remedy="name two with --embeddings (floors and ceilings too), or give a second folder",
            )
        every = [Side(results, model, model) for model in models]
        return [(a, b) for i, a in enumerate(every) for b in every[i + 1 :]]
    if len(names) > 2:
        raise InputError(
            f"{len(names)} embeddings are named for two folders", remedy="name one, or one of each folder, or none"
        )
    if names:
        chosen = [(_known(results, names[0]), _known(other, names[-1]))]
    else:
        theirs = _models(other)
        chosen = [(model, model) for model in _models(results) if model in theirs]
    if not chosen:
        raise InputError(
            f"{results.folder} and {other.folder} have no embedding of the same label: "
            f"{', '.join(_models(results))} against {', '.join(_models(other))}",
            remedy="name one of each: --embeddings A B",
        )
    return [
        (Side(results, a, f"{a} [{tags[0]}]" if a == b else a), Side(other, b, f"{b} [{tags[1]}]" if a == b else b))
        for a, b in chosen
    ]


def _models(results: ResultsFolder) -> list[str]:
    apart = references(results.scores)
    return sorted({str(model) for model in results.scores["model"]} - set(apart), key=lambda m: (m.lower(), m))


def _known(results: ResultsFolder, name: str) -> str:
    there = list(dict.fromkeys(map(str, results.scores["model"])))
    if name not in there:
        raise unknown("embedding", name, there, where=str(results.folder))
    return name


# For people


def difference_grids(frame: pd.DataFrame) -> list[Grid]:
    """One grid per data set, protocol and pair: values, difference with interval, p-values, what could be seen."""
    grids = []
    for keys, part in frame.groupby([*TABLE, "first", "second"], sort=False, dropna=False):
        first, second = clean(keys[4]), clean(keys[5])
        reasons: list[str] = []
        rows = []
        for row in part.to_dict("records"):
            label = clean(row["label"]) + ("" if row["higher_is_better"] else " (lower is better)")
            values = (_score(row["first_value"]), _score(row["second_value"]))
            if row["reason"]:
                text = clean(row["reason"])
                if text not in reasons:
                    reasons.append(text)
                hole = Cell("–", marks=(reasons.index(text) + 1,))
                cells = (*values, hole, Cell(""), Cell(""), Cell(""), Cell("not compared"))
            else:
                told = {"first": first, "second": second}.get(row["verdict"])
                cells = (
                    *values,
                    Cell(_signed(row["difference"]), below=f"[{_signed(row['low'])}, {_signed(row['high'])}]"),
                    Cell(p_text(row["p_value"])),
                    Cell(p_text(row["p_holm"])),
                    Cell(number(row["detectable"])),
                    Cell(f"{told} better" if told else "not told apart", best=told is not None),
                )
            rows.append(Row((f"{row['level']}", label), cells, section=str(row["level"])))
        columns = (first, second, "difference", "p", "p (Holm)", "detectable", "verdict")
        title = f"{clean(keys[0])}, protocol {clean(keys[2])}: {first} less {second}"
        grids.append(
            Grid(
                title=title,
                index=("level", "metric"),
                columns=tuple(Column(name) for name in columns),
                rows=tuple(rows),
                notes=tuple(_notes(part, frame)),
                reasons=tuple(reasons),
            )
        )
    return grids


def _score(value: float) -> Cell:
    return Cell(number(value))


def _signed(value: float) -> str:
    text = number(value)
    return text if math.isnan(value) or value <= 0 else f"+{text}"


def p_text(p: float) -> str:
    """A p-value as text."""
    if math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _notes(part: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    family = frame[frame["screen_fingerprint"] == part.iloc[0]["screen_fingerprint"]]
    n = int(family["p_value"].notna().sum())
    notes = [
        "Paired differences on the units that both have, with 95 % interval. p (Holm): adjusted for the "
        f"{n} comparison(s) made here; below 0.05 one of the two is called better. detectable: smallest difference "
        "that would have been seen (p < 0.05, one comparison) in 4 cases of 5."
    ]
    units: dict[str, list[str]] = {}
    for row in part.to_dict("records"):
        if row["units"]:
            text = row["units"] + "".join(f"; {extra}" for extra in (row["note"], row["left_out"]) if extra)
            units.setdefault(clean(text), []).append(clean(row["label"]))
    notes += [f"Over {text}: {', '.join(labels)}." for text, labels in units.items()]
    chosen = "; ".join(
        f"{clean(row['label'])} {clean(row['first_post_processing'])} and {clean(row['second_post_processing'])}"
        for row in part.to_dict("records")
        if row["first_post_processing"] or row["second_post_processing"]
    )
    if chosen:
        notes.append(f"Post-processing of the two: {chosen}.")
    return notes


def verdicts(frame: pd.DataFrame) -> list[str]:
    """What the comparison of each pair comes to, as one sentence each."""
    made = []
    for keys, part in frame.groupby([*TABLE, "first", "second"], sort=False, dropna=False):
        first, second = clean(keys[4]), clean(keys[5])
        groups = {
            f"{first} is better on": part[part["verdict"] == "first"],
            f"{second} is better on": part[part["verdict"] == "second"],
            "not told apart on": part[part["verdict"] == "not told apart"],
            "not compared on": part[part["verdict"] == ""],
        }
        said = [
            f"{text} {len(rows)} ({', '.join(map(clean, rows['label']))})" for text, rows in groups.items() if len(rows)
        ]
        made.append(f"{clean(keys[0])}, protocol {clean(keys[2])}, {len(part)} metric(s): {'; '.join(said)}.")
    return made


def words(frame: pd.DataFrame) -> list[str]:
    """Every comparison as a sentence."""
    made = []
    for row in frame.to_dict("records"):
        head = f"{clean(row['label'])} ({clean(row['dataset'])}, protocol {clean(row['protocol'])}): "
        first, second = clean(row["first"]), clean(row["second"])
        if row["reason"]:
            made.append(f"{head}{first} and {second} cannot be compared: {clean(row['reason'])}.")
            continue
        one, other = f"{first} ({number(row['first_value'])})", f"{second} ({number(row['second_value'])})"
        interval = f"95 % interval {_signed(row['low'])} to {_signed(row['high'])}"
        p = f"p {_equals(row['p_value'])} (after Holm {_equals(row['p_holm'])})"
        over = f"over {row['units']}"
        if row["verdict"] == "not told apart":
            if row["detectable"] > 0:
                seen = f"a difference of {number(row['detectable'])} would have been seen in 4 cases of 5"
            else:
                seen = "they are equal on every unit"
            made.append(
                f"{head}{one} and {other} cannot be told apart at this size: difference {_signed(row['difference'])}, "
                f"{interval}, {p}, {over}; {seen}."
            )
        else:
            better, worse = (one, other) if row["verdict"] == "first" else (other, one)
            made.append(
                f"{head}{better} is better than {worse}: difference {_signed(row['difference'])}, {interval}, {p}, "
                f"{over}."
            )
    return made


def _equals(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def rank_grids(asked: Sequence[Question], models: Sequence[str]) -> list[Grid]:
    """Ranks of several models with their intervals, one grid per data set and protocol."""
    grids = []
    for table in dict.fromkeys(question.table for question in asked):
        here = [question for question in asked if question.table == table]
        reasons: list[str] = []
        rows = []
        for question in here:
            cells = [_rank_cell(question, model, reasons) for model in models]
            label = clean(question.label) + ("" if question.info.higher_is_better else " (lower is better)")
            rows.append(Row((str(question.info.level), label), tuple(cells), section=str(question.info.level)))
        grids.append(
            Grid(
                title=f"{clean(table[0])}, protocol {clean(table[2])}: ranks of {len(models)} embeddings",
                index=("level", "metric"),
                columns=tuple(Column(clean(model)) for model in models),
                rows=tuple(rows),
                notes=(
                    "Rank with the range that holds for all embeddings of the row together at 95 %, and the score. * "
                    "marks those that cannot be told apart from the first.",
                ),
                reasons=tuple(reasons),
            )
        )
    return grids


def _rank_cell(question: Question, model: str, reasons: list[str]) -> Cell:
    chosen = question.models.get(model)
    found = question.ranking
    if chosen is None or found is None or model not in question.ranked:
        why = "not in the run" if chosen is None else chosen.reason or question.why_not or chosen.interval_note
        why = clean(why or "no contributions of units are stored")
        if why not in reasons:
            reasons.append(why)
        text = "–" if chosen is None or math.isnan(chosen.value) else number(chosen.value)
        return Cell(text, marks=(reasons.index(why) + 1,))
    i = question.ranked.index(model)
    low, high = int(found.low[i]), int(found.high[i])
    text = f"#{low}" if low == high else f"#{low}-{high}"
    return Cell(text, tied=low == 1, best=int(found.rank[i]) == 1, below=number(chosen.value))


def rank_words(asked: Sequence[Question]) -> list[str]:
    """Who leads, question by question, as sentences."""
    made = []
    for question in asked:
        head = f"{clean(question.label)} ({clean(question.table[0])}, protocol {clean(question.table[2])}): "
        found = question.ranking
        if found is None:
            made.append(f"{head}{clean(question.why_not or 'fewer than two embeddings have a score')}.")
            continue
        order = sorted(range(len(question.ranked)), key=lambda i: (int(found.rank[i]), question.ranked[i]))
        first = [clean(question.ranked[i]) for i in order if found.low[i] == 1]
        behind = [clean(question.ranked[i]) for i in order if found.low[i] > 1]
        if len(first) == 1:
            text = f"{first[0]} is first"
        elif not behind:
            text = f"{_listed(first)} cannot be told apart"
        else:
            text = f"{first[0]} has the best score; {_listed(first[1:])} cannot be told apart from it"
        made.append(
            head + text + (f"; {_listed(behind)} {'is' if len(behind) == 1 else 'are'} behind" if behind else "") + "."
        )
    return made


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
