"""The paper's tables with scores of one's own beside the printed ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from txeval.errors import InputError
from txeval.report.layout import Cell, Column, Grid, Row
from txeval.report.paper.published import (
    SUMMARY,
    Printed,
    errata,
    facts,
    model_of,
    model_title,
    printed,
    screen_of,
    screen_title,
    screens,
    summary_sd,
)
from txeval.report.summary import summary
from txeval.report.tables import aggregate, catalogue
from txeval.text import clean

__all__ = ["beside", "paper_grids"]

_POSTS = {"raw": "raw", "centering": "centering", "center_scaling": "center scaling", "tvn": "TVN", "": ""}
_ZERO = "The paper prints ± 0.000 here, so the difference is in the units of the score, not of a standard deviation."
_NONE = "The full tables print no standard deviation for this number, so the difference is in the units of the score."


def paper_grids(
    table: str,
    scores: pd.DataFrame | None = None,
    *,
    manifests: Sequence[Mapping[str, Any]] = (),
    stands_for: str | None = None,
) -> list[Grid]:
    """Lay out one of the paper's tables, with ours and the difference below each row that has ours.

    Parameters
    ----------
    table
        "table1" to "table10".
    scores
        Rows as `txeval.read_scores` gives them; None: the printed numbers alone.
    manifests
        Manifests of the results folders, for Table 1.
    stands_for
        The paper's screen that the scores are of; None: told from the name of the data set.

    Raises
    ------
    InputError
        No such table; or the scores are of none of the paper's screens.
    """
    if table == "table1":
        return [_facts(manifests)]
    numbers = printed(table)
    ours = None if scores is None else beside(table, scores, stands_for=stands_for)
    return [
        (_summary if table == SUMMARY else _full)(
            table, screen, [n for n in numbers if n.screen == screen], ours, manifests
        )
        for screen in dict.fromkeys(number.screen for number in numbers)
    ]


def beside(table: str, scores: pd.DataFrame, *, stands_for: str | None = None) -> pd.DataFrame:
    """Scores that a table prints as well.

    Returns
    -------
    One row per printed number and embedding that has a row for it: table, screen, model, post_processing, task, metric,
    subset, printed, value, sd; `ours` (label of the embedding, with the protocol where there are several), `dataset`,
    `protocol`, `ours_post_processing`, `ours_value`, `ours_sd`, `reason`; `difference`, `difference_in_sd`: ours less
    the printed one, NaN where the paper prints no deviation or 0.

    Raises
    ------
    InputError
        The scores are of none of the paper's screens.
    """
    if stands_for is not None and stands_for not in screens():
        raise InputError(f"the paper has no screen {stands_for!r}", remedy=f"choose {' or '.join(screens())}")
    found = {name: stands_for or screen_of(str(name)) for name in dict.fromkeys(scores["dataset"])}
    if not any(found.values()):
        raise InputError(
            f"these scores are of {', '.join(map(repr, found))}; the paper's screens are {', '.join(screens())}",
            remedy=f"say which of them it is: --as {screens()[0]}; or leave the results folder out",
        )
    mine = scores[[bool(found[name]) for name in scores["dataset"]]]
    numbers = printed(table)
    frame = _chosen(table, mine, numbers)
    several = len(frame[["dataset", "protocol"]].drop_duplicates()) > 1
    sources = {} if "source" not in mine else dict(zip(mine["model"], mine["source"], strict=True))
    by_place: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in frame.to_dict("records"):
        row = {str(name): value for name, value in record.items()}
        model = model_of(str(row["model"]), str(sources.get(row["model"], "")))
        post = "" if table == SUMMARY else row["post_processing"]
        place = (found[row["dataset"]], model, post, row["task"], row["metric"], row["subset"])
        by_place.setdefault(place, []).append(row)
    made = []
    for number in numbers:
        key = (number.screen, number.model, number.post_processing, number.task, number.metric, number.subset)
        for row in by_place.get(key, []):
            sd = summary_sd(number) if table == SUMMARY else number.sd
            difference = row["value"] - number.value
            made.append(
                {
                    "table": table,
                    **dict(zip(("screen", "model", "post_processing", "task", "metric", "subset"), key, strict=True)),
                    "printed": number.text,
                    "value": number.value,
                    "sd": sd,
                    "ours": f"{row['model']} ({row['dataset']}, {row['protocol']})" if several else row["model"],
                    "dataset": row["dataset"],
                    "protocol": row["protocol"],
                    "ours_post_processing": row["post_processing"],
                    "ours_value": row["value"],
                    "ours_sd": row["sd"],
                    "reason": row["reason"],
                    "difference": difference,
                    "difference_in_sd": difference / sd if sd > 0 else math.nan,
                }
            )
    return pd.DataFrame(made, columns=_BESIDE)


_BESIDE = [
    "table",
    "screen",
    "model",
    "post_processing",
    "task",
    "metric",
    "subset",
    "printed",
    "value",
    "sd",
    "ours",
    "dataset",
    "protocol",
    "ours_post_processing",
    "ours_value",
    "ours_sd",
    "reason",
    "difference",
    "difference_in_sd",
]


def _chosen(table: str, scores: pd.DataFrame, numbers: Sequence[Printed]) -> pd.DataFrame:
    if table != SUMMARY:
        return aggregate(scores)
    return summary(scores, metrics={number.metric for number in numbers})


class _Notes:
    """Numbers the footnotes of one grid in the order in which they are met."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.texts = {erratum.id: erratum.text for erratum in errata()}

    def mark(self, ids: Sequence[str]) -> tuple[int, ...]:
        for name in ids:
            if name not in self.ids:
                self.ids.append(name)
        return tuple(self.ids.index(name) + 1 for name in ids)

    def plain(self, text: str) -> tuple[int, ...]:
        text = clean(text)
        self.texts.setdefault(text, text)
        return self.mark([text])

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(self.texts[name] for name in self.ids)


def _percent(value: float, number: Printed) -> float:
    return value * 100 if number.percent else value


def _shared(numbers: Sequence[Printed]) -> set[str]:
    """Marks of every number of a metric: they stand at its name instead."""
    return set.intersection(*(set(number.marks) for number in numbers)) if len(numbers) > 1 else set()


def _label(text: str, marks: set[str], notes: _Notes) -> str:
    order = [erratum.id for erratum in errata() if erratum.id in marks]
    return text + "".join(f" [{number}]" for number in notes.mark(order))


def _published(number: Printed, notes: _Notes, shared: set[str]) -> Cell:
    return Cell(number.text, marks=notes.mark([mark for mark in number.marks if mark not in shared]))


def _mine(number: Printed, row: Mapping[str, Any], notes: _Notes) -> Cell:
    if math.isnan(row["ours_value"]):
        return Cell("–", marks=notes.plain(row["reason"] or "no reason was recorded"))
    text = f"{_percent(row['ours_value'], number):.3f}"
    if not math.isnan(row["ours_sd"]) and number.table != SUMMARY:
        text += f" ± {_percent(row['ours_sd'], number):.3f}"
    letter = _POSTS.get(row["ours_post_processing"], row["ours_post_processing"]) if number.table == SUMMARY else ""
    return Cell(text, letter=letter)


def _gap(number: Printed, row: Mapping[str, Any], notes: _Notes) -> Cell:
    if math.isnan(row["difference"]):
        return Cell("", dim=True)
    if not math.isnan(row["difference_in_sd"]):
        return Cell(f"{row['difference_in_sd']:+.1f} sd", dim=True)
    why = _NONE if math.isnan(row["sd"]) else _ZERO
    return Cell(f"{_percent(row['difference'], number):+.3f}", marks=notes.plain(why), dim=True)


def _lines(
    entries: Sequence[Printed | None], ours: pd.DataFrame | None, notes: _Notes, shared: Mapping[str, set[str]]
) -> list[tuple[str, tuple[Cell, ...]]]:
    """Rows below each other for the same cells: the printed ones, then for each of our embeddings ours and the
    difference."""
    cells_ = [Cell("") if entry is None else _published(entry, notes, shared[entry.column]) for entry in entries]
    made = [("paper", tuple(cells_))]
    if ours is None:
        return made
    by_cell: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    labels: list[str] = []
    for row in ours.to_dict("records"):
        key = tuple(row[name] for name in ("screen", "model", "post_processing", "task", "metric", "subset"))
        by_cell.setdefault(key, {})[row["ours"]] = {str(name): value for name, value in row.items()}
        labels.append(row["ours"])

    def cells(label: str, render: Callable[[Printed, Mapping[str, Any], _Notes], Cell]) -> tuple[Cell, ...]:
        found = []
        for entry in entries:
            row = None if entry is None else by_cell.get(_key(entry), {}).get(label)
            found.append(Cell("") if entry is None or row is None else render(entry, row, notes))
        return tuple(found)

    for label in dict.fromkeys(labels):
        if any(entry is not None and label in by_cell.get(_key(entry), {}) for entry in entries):
            made.append((f"ours: {clean(label)}", cells(label, _mine)))
            made.append(("difference", cells(label, _gap)))
    return made


def _key(entry: Printed) -> tuple[str, ...]:
    return (entry.screen, entry.model, entry.post_processing, entry.task, entry.metric, entry.subset)


def _title(table: str, screen: str, what: str) -> str:
    return f"Bendidi et al. 2024, Table {table.removeprefix('table')}: {screen_title(screen)}, {what}"


def _summary(
    table: str,
    screen: str,
    numbers: Sequence[Printed],
    ours: pd.DataFrame | None,
    manifests: Sequence[Mapping[str, Any]],
) -> Grid:
    notes = _Notes()
    models = list(dict.fromkeys(number.model for number in numbers))
    rows = []
    for column in dict.fromkeys(number.column for number in numbers):
        here = {number.model: number for number in numbers if number.column == column}
        first = next(iter(here.values()))
        shared = {column: _shared(list(here.values()))}
        label = _label(first.label, shared[column], notes)
        for place, (name, cells) in enumerate(_lines([here.get(model) for model in models], ours, notes, shared)):
            names = (label if place == 0 else "", name)
            rows.append(Row(names if ours is not None else names[:1], cells, section=first.task))
    return Grid(
        title=_title(table, screen, "best post-processing"),
        index=("metric", "of") if ours is not None else ("metric",),
        columns=tuple(Column(model_title(m), "reference" if m == "random" else "models") for m in models),
        rows=tuple(rows),
        notes=_general(table, screen, ours, notes, manifests),
        reasons=notes.reasons,
    )


def _full(
    table: str,
    screen: str,
    numbers: Sequence[Printed],
    ours: pd.DataFrame | None,
    manifests: Sequence[Mapping[str, Any]],
) -> Grid:
    notes = _Notes()
    columns = list(dict.fromkeys(number.column for number in numbers))
    shared = {column: _shared([number for number in numbers if number.column == column]) for column in columns}
    labels = {number.column: number.label + (" (%)" if number.percent else "") for number in numbers}
    labels = {column: _label(text, shared[column], notes) for column, text in labels.items()}
    rows = []
    last = ""
    for model, post in dict.fromkeys((number.model, number.post_processing) for number in numbers):
        here = {n.column: n for n in numbers if (n.model, n.post_processing) == (model, post)}
        for place, (name, cells) in enumerate(_lines([here.get(column) for column in columns], ours, notes, shared)):
            names = ("" if model == last else model_title(model), _POSTS[post] if place == 0 else "", name)
            rows.append(Row(names if ours is not None else names[:2], cells, section=model))
            last = model
    titles = {entry.task: entry.task_title for entry in catalogue().values()}
    tasks = ", ".join(dict.fromkeys(titles[number.task] for number in numbers))
    return Grid(
        title=_title(table, screen, tasks),
        index=("model", "post-processing", "of") if ours is not None else ("model", "post-processing"),
        columns=tuple(Column(labels[column]) for column in columns),
        rows=tuple(rows),
        notes=_general(table, screen, ours, notes, manifests),
        reasons=notes.reasons,
    )


def _general(
    table: str, screen: str, ours: pd.DataFrame | None, notes: _Notes, manifests: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    made = ["Published: mean over 5 runs" + (" ± standard deviation." if table != SUMMARY else ".")]
    made += [erratum.text for erratum in errata() if table in erratum.tables and erratum.id not in notes.ids]
    here = pd.DataFrame() if ours is None else ours[ours["screen"] == screen]
    if len(here):
        places = here[["dataset", "protocol"]].drop_duplicates().itertuples(index=False)
        where = "; ".join(f"{clean(dataset)}, protocol {clean(protocol)}" for dataset, protocol in places)
        made.append(
            f"Ours: {where}. Difference: ours less the paper's, in units of the printed standard deviation"
            + (" of the best post-processing in the full tables." if table == SUMMARY else ".")
        )
        made += _settings(here, manifests)
    elif ours is not None:
        made.append("The results folder has no score that stands in this table.")
    return tuple(made)


def _settings(here: pd.DataFrame, manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    """How large the screens behind our scores are, and with which settings the embeddings were made."""
    made = []
    for manifest in manifests:
        for screen in manifest.get("screens", []):
            if screen["name"] in set(here["dataset"]):
                report = screen.get("report", {})
                sizes = (("n", "samples"), ("n_genes", "genes"), ("n_perturbations", "perturbations"))
                counts = [
                    f"{int(report.get(k, screen.get(k))):,} {what}" for k, what in sizes if k in {**screen, **report}
                ]
                made.append(f"{clean(screen['name'])}: {', '.join(counts)}.")
        for model in manifest.get("embeddings", []):
            label, options = str(model["label"]), model.get("options") or {}
            if options and any(str(name).split(" (")[0] == label or name == label for name in here["ours"]):
                chosen = ", ".join(f"{name} {value}" for name, value in options.items())
                made.append(clean(f"{label}: {model['source']} with {chosen}."))
    return list(dict.fromkeys(made))


def _facts(manifests: Sequence[Mapping[str, Any]]) -> Grid:
    """Table 1, with a column for each screen of one's own."""
    titles, rows = facts()
    columns = [Column(title, "paper") for title in titles.values()]
    own: list[Mapping[str, Any]] = [screen for manifest in manifests for screen in manifest.get("screens", [])]
    columns += [Column(f"ours: {clean(screen['name'])}", "ours") for screen in own]
    made = [
        Row((name,), tuple(Cell(text) for text in texts) + tuple(Cell(_fact(name, screen)) for screen in own))
        for name, *texts in rows
    ]
    notes = [erratum.text for erratum in errata() if "table1" in erratum.tables]
    return Grid("Bendidi et al. 2024, Table 1: data sets", ("",), tuple(columns), tuple(made), tuple(notes))


def _fact(name: str, screen: Mapping[str, Any]) -> str:
    report = screen.get("report", {})
    known = {
        "samples": screen.get("n"),
        "control samples": report.get("n_controls"),
        "perturbations": report.get("n_perturbations"),
        "measured genes": screen.get("n_genes"),
        "batches": report.get("n_batches"),
    }
    value = known.get(name)
    return "" if value is None else f"{int(value):,}"
