"""The numbers that Bendidi et al. 2024 printed, as data, with the marks of those that contradict each other."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd
import yaml

from txeval.errors import InputError, unknown

__all__ = [
    "TABLES",
    "Erratum",
    "Printed",
    "errata",
    "facts",
    "model_of",
    "model_title",
    "printed",
    "published_scores",
    "screen_of",
    "screen_title",
    "screens",
]

#: The tables that can be asked for.
TABLES: tuple[str, ...] = tuple(f"table{number}" for number in range(1, 11))

#: The table of the best post-processing per model and metric.
SUMMARY = "table2"


@dataclass(frozen=True)
class Printed:
    """One printed number.

    Attributes
    ----------
    table, screen, model, post_processing
        Where it stands, in txeval's names; no post-processing in Table 2.
    task, metric, subset
        What it is, in txeval's names.
    label
        Name of the metric in the table.
    text
        As printed.
    value, sd
        As txeval scores are: accuracies as fractions. sd is NaN in Table 2.
    percent
        Whether `text` is in percent.
    marks
        Ids of the errata that concern it.
    """

    table: str
    screen: str
    model: str
    post_processing: str
    task: str
    metric: str
    subset: str
    label: str
    text: str
    value: float
    sd: float
    percent: bool
    marks: tuple[str, ...]

    @property
    def column(self) -> str:
        """Task, metric and subset as one name."""
        return ".".join(part for part in (self.task, self.metric, self.subset) if part)


@dataclass(frozen=True)
class Erratum:
    """A contradiction in the paper.

    Attributes
    ----------
    cells
        Patterns table/screen/model/post-processing/metric of the numbers that carry the mark.
    tables
        Tables that have it as a note.
    """

    id: str
    text: str
    cells: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()

    def concerns(self, place: str) -> bool:
        """Whether a number (table/screen/model/post-processing/metric) carries the mark."""
        return any(fnmatchcase(place, pattern) for pattern in self.cells)


def _read(name: str) -> str:
    return (files("txeval.report.paper") / name).read_text(encoding="utf-8")


@cache
def _layout() -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load(_read("tables.yaml"))
    return made


@cache
def errata() -> tuple[Erratum, ...]:
    """Every known contradiction, in the order in which footnotes are numbered."""
    return tuple(
        Erratum(
            id=item["id"],
            text=item["text"],
            cells=tuple(item.get("cells", ())),
            tables=tuple(item.get("tables", ())),
        )
        for item in yaml.safe_load(_read("errata.yaml"))
    )


def screens() -> tuple[str, ...]:
    """Names of the paper's two evaluated screens."""
    return tuple(_layout()["screens"])


def screen_title(screen: str) -> str:
    """Name of a screen for people."""
    return str(_layout()["screens"][screen]["title"])


def screen_of(dataset: str) -> str:
    """Screen of the paper that a data set's name speaks of; empty where none."""
    lowered = dataset.lower()
    for name, screen in _layout()["screens"].items():
        if any(part in lowered for part in screen["match"]):
            return str(name)
    return ""


def model_title(model: str) -> str:
    """Name of a published model for people."""
    return str(_layout()["models"][model]["title"])


def model_of(label: str, source: str) -> str:
    """Published model that an embedding is: by what made it, or else by its label; empty where none."""
    for name, model in _layout()["models"].items():
        if source in model["sources"]:
            return str(name)
    plain = _plain(label)
    for name, model in _layout()["models"].items():
        if plain in {_plain(name), _plain(model["title"]), *map(_plain, model["sources"])}:
            return str(name)
    return ""


def _plain(text: str) -> str:
    return "".join(char for char in text.lower() if char.isalnum())


def facts() -> tuple[dict[str, str], list[list[str]]]:
    """Table 1: (screen -> title, rows of a name and one text per screen)."""
    made = _layout()["facts"]
    return dict(made["columns"]), [list(map(str, row)) for row in made["rows"]]


@cache
def printed(table: str) -> tuple[Printed, ...]:
    """Every number of Tables 2 to 10, in the order of models, post-processings and columns.

    Raises
    ------
    InputError
        There is no such table, or it holds no scores (Table 1).
    """
    if table not in TABLES:
        raise unknown("table", table, TABLES, where="the paper")
    layout = _layout()
    if table == SUMMARY:
        return tuple(_numbers(table, "summary.csv", "summary", tuple(layout["screens"]), None))
    if table not in layout["full"]:
        raise InputError(f"{table} holds facts on the data sets, not scores", remedy="choose table2 to table10")
    about = layout["full"][table]
    return tuple(_numbers(table, "full.csv", "full", (about["screen"],), tuple(about["tasks"])))


def _numbers(table: str, file: str, name: str, wanted: tuple[str, ...], tasks: tuple[str, ...] | None) -> list[Printed]:
    metrics = _layout()["metrics"]
    made = []
    for row in csv.DictReader(_read(file).splitlines()):
        if row["screen"] not in wanted:
            continue
        for column, text in row.items():
            if column not in metrics or not text:
                continue
            task, metric, *subset = column.split(".")
            if tasks is not None and task not in tasks:
                continue
            percent = name == "full" and bool(metrics[column].get("percent"))
            numbers = [float(part) / (100 if percent else 1) for part in text.split(" ± ")]
            post = row.get("post_processing") or ""
            place = "/".join((table, row["screen"], row["model"], post, column))
            made.append(
                Printed(
                    table=table,
                    screen=row["screen"],
                    model=row["model"],
                    post_processing=post,
                    task=task,
                    metric=metric,
                    subset="".join(subset),
                    label=str(metrics[column][name]),
                    text=text,
                    value=numbers[0],
                    sd=numbers[1] if len(numbers) > 1 else math.nan,
                    percent=percent,
                    marks=tuple(erratum.id for erratum in errata() if erratum.concerns(place)),
                )
            )
    return made


def summary_sd(entry: Printed) -> float:
    """Standard deviation of a number of Table 2: that of the best post-processing in the full tables.

    iLISI is divided there, so its deviation is scaled alike. NaN where the full tables have no such row.
    """
    column = entry.column.replace("ilisi_normalized", "ilisi")
    found = [
        item
        for table in _layout()["full"]
        for item in printed(table)
        if (item.screen, item.model, item.column) == (entry.screen, entry.model, column)
    ]
    if not found:
        return math.nan
    best = max(found, key=lambda item: item.value)
    return best.sd if column == entry.column else best.sd * entry.value / best.value


def published_scores() -> pd.DataFrame:
    """Every printed number: table, screen, model, title, post_processing, task, metric, subset, value, sd, printed,
    percent, errata (texts joined by " | ")."""
    texts = {erratum.id: erratum.text for erratum in errata()}
    rows = [
        {
            "table": item.table,
            "screen": item.screen,
            "model": item.model,
            "title": model_title(item.model),
            "post_processing": item.post_processing,
            "task": item.task,
            "metric": item.metric,
            "subset": item.subset,
            "value": item.value,
            "sd": summary_sd(item) if item.table == SUMMARY else item.sd,
            "printed": item.text,
            "percent": item.percent,
            "errata": " | ".join(texts[mark] for mark in item.marks),
        }
        for table in TABLES[1:]
        for item in printed(table)
    ]
    return pd.DataFrame(rows)
