"""From frames to grids: what stands in which cell, before any output format."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from txeval.report.tables import TABLE, MetricInfo, aggregate, baseline_models, catalogue, full, post_position, summary

__all__ = ["Cell", "Column", "Grid", "Row", "detail_grids", "full_grids", "summary_grids"]

#: One letter per post-processing for the summary.
LETTERS = {"raw": "r", "centering": "c", "center_scaling": "s", "tvn": "t"}


@dataclass(frozen=True)
class Cell:
    """One entry: its text, the letter of the chosen post-processing, and the numbers of its reasons or remarks."""

    text: str
    letter: str = ""
    best: bool = False
    marks: tuple[int, ...] = ()
    dim: bool = False


@dataclass(frozen=True)
class Column:
    """A column of scores. Columns of one group stand together, apart from the next group."""

    label: str
    group: str = ""


@dataclass(frozen=True)
class Row:
    """A row; a rule is drawn where the section changes."""

    names: tuple[str, ...]
    cells: tuple[Cell, ...]
    section: str = ""


@dataclass(frozen=True)
class Grid:
    """A table for people.

    Attributes
    ----------
    index
        Titles of the leading columns, whose entries are `Row.names`.
    notes
        How to read it.
    reasons
        Why cells are empty, and other remarks on single cells; `Cell.marks` are numbers, from 1, of entries.
    """

    title: str
    index: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


def clean(text: object) -> str:
    """Text from data without control characters, so that a label cannot steer a terminal."""
    return "".join(
        char if unicodedata.category(char)[0] != "C" else f"\\x{ord(char):02x}" for char in str(text).replace("\n", " ")
    )


def number(value: float) -> str:
    """A score as text: three decimals, but not for what these cannot show."""
    if math.isnan(value):
        return "–"
    if 0 < abs(value) < 0.0005:
        return f"{value:.0e}"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


@dataclass
class _Reasons:
    """Numbers reasons and remarks in the order in which they appear."""

    texts: list[str] = field(default_factory=list)

    def number(self, text: str) -> int:
        text = clean(text)
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1

    def hole(self, reason: str) -> Cell:
        return Cell("–", marks=(self.number(reason or "no reason was recorded"),))


def _title(table: pd.Series) -> str:
    return f"{clean(table['dataset'])}, protocol {clean(table['protocol'])}"


def summary_grids(scores: pd.DataFrame, *, metrics: Collection[str] | None = None) -> list[Grid]:
    """Lay out the summary as in the paper's Table 2, one grid per dataset and protocol.

    Rows are metrics, grouped by level; columns are chance, the random baseline, then the models.
    """
    frame = summary(scores, metrics=metrics)
    baselines = baseline_models(scores)
    info = catalogue(frame)
    grids = []
    for _, part in frame.groupby(TABLE, dropna=False, sort=False):
        reasons = _Reasons()
        models = list(dict.fromkeys(part["model"]))
        columns = [Column("chance", "reference")]
        columns += [Column(clean(m), "reference" if m in baselines else "models") for m in models]
        rows: list[Row] = []
        seen_level = ""
        for key, entries in part.groupby(["task", "metric", "subset"], sort=False):
            entry = info[str(key[0]), str(key[1])]
            cells = [Cell(_range(entries["chance"]), dim=True)]
            for _, row in entries.iterrows():
                if pd.isna(row["value"]):
                    cells.append(reasons.hole(row["reason"]))
                else:
                    letter = LETTERS.get(row["post_processing"], row["post_processing"])
                    cells.append(Cell(number(row["value"]), letter=letter, best=bool(row["best"])))
            level = f"{entry.level} {clean(entry.task_title)}"
            arrow = "" if entry.higher_is_better else " (lower is better)"
            label = clean(entries.iloc[0]["label"]) + arrow
            rows.append(Row(("" if level == seen_level else level, label), tuple(cells), section=level))
            seen_level = level
        grids.append(
            Grid(
                title=_title(part.iloc[0]),
                index=("level", "metric"),
                columns=tuple(columns),
                rows=tuple(rows),
                notes=tuple(_summary_notes(part, scores)),
                reasons=tuple(reasons.texts),
            )
        )
    return grids


def _range(values: pd.Series) -> str:
    numbers = values.dropna()
    if numbers.empty:
        return ""
    low, high = number(numbers.min()), number(numbers.max())
    return low if low == high else f"{low}-{high}"


def _summary_notes(part: pd.DataFrame, scores: pd.DataFrame) -> list[str]:
    notes = []
    posts = sorted({post for post in part["post_processing"] if post}, key=post_position)
    if posts:
        legend = ", ".join(f"{LETTERS.get(post, post)} {clean(post)}" for post in posts)
        notes.append(f"Post-processing chosen per model and metric: {legend}.")
    here = scores[(scores["dataset"] == part.iloc[0]["dataset"]) & (scores["protocol"] == part.iloc[0]["protocol"])]
    tried = here["post_processing"].nunique()
    if tried > 1:
        notes.append(
            f"The best of {tried} post-processings is chosen on the numbers shown, which is optimistic, "
            "for the random baseline as well; the full tables have all of them."
        )
    notes.extend(_seed_notes(part))
    partial = part[part["value"].notna() & (part["n_holes"] > 0)]
    if len(partial):
        notes.append(
            f"In {len(partial)} cells the choice was among fewer post-processings: the others have no score "
            "(see the full tables)."
        )
    lost = _not_above_baseline(part)
    if lost:
        notes.append(f"No model is better than the random baseline on: {', '.join(lost)}.")
    return notes


def _seed_notes(part: pd.DataFrame) -> list[str]:
    with_seeds = part[(part["n_seeds"] > 0) & part["value"].notna()]
    if with_seeds.empty:
        return ["Every score is deterministic and was computed once."] if part["value"].notna().any() else []
    low, high = int(with_seeds["n_seeds"].min()), int(with_seeds["n_seeds"].max())
    if low == high:
        text = "one seed" if low == 1 else f"the mean of {low} seeds"
        notes = [f"A score that depends on a seed is {text}; the others are deterministic and computed once."]
    else:
        notes = [f"Scores are means of different numbers of seeds ({low} to {high}): compare them with care."]
    return notes


def _not_above_baseline(part: pd.DataFrame) -> list[str]:
    lost = []
    for _, entries in part.groupby(["task", "metric", "subset"], sort=False):
        base = entries.loc[entries["is_baseline"], "value"].dropna()
        models = entries.loc[~entries["is_baseline"], "value"].dropna()
        if base.empty or models.empty:
            continue
        higher = bool(entries.iloc[0]["higher_is_better"])
        if (models.max() <= base.max()) if higher else (models.min() >= base.min()):
            lost.append(clean(entries.iloc[0]["label"]))
    return lost


def full_grids(scores: pd.DataFrame, *, task: str | None = None, metrics: Collection[str] | None = None) -> list[Grid]:
    """One grid per dataset, protocol and task: model x post-processing (x subset) against metrics, mean ± sd."""
    grids = []
    for name, frame in full(scores).items():
        if task is not None and name != task:
            continue
        kept = frame if metrics is None else frame[frame["metric"].isin(list(metrics))]
        for _, part in kept.groupby(TABLE, dropna=False, sort=False):
            grids.append(_full_grid(part))
    return grids


def _full_grid(part: pd.DataFrame) -> Grid:
    info = catalogue(part)
    reasons = _Reasons()
    names = list(dict.fromkeys(zip(part["task"], part["metric"], strict=True)))
    entries = [info[pair] for pair in names]
    subsets = any(part["subset"] != "")
    by_cell = {
        (row["model"], row["post_processing"], row["subset"], row["metric"]): row for row in part.to_dict("records")
    }
    rows: list[Row] = []
    lines = list(dict.fromkeys(zip(part["model"], part["post_processing"], part["subset"], strict=True)))
    lines.sort(key=lambda line: (list(dict.fromkeys(part["model"])).index(line[0]), post_position(line[1]), line[2]))
    last: tuple[str, ...] = ()
    for model, post, subset in lines:
        cells = tuple(_full_cell(by_cell.get((model, post, subset, e.metric)), reasons) for e in entries)
        shown = (clean(model), clean(post)) + ((clean(subset),) if subsets else ())
        rows.append(Row(_unrepeated(shown, last), cells, section=model))
        last = shown
    for subset in dict.fromkeys(line[2] for line in lines):
        chances = [
            _range(part.loc[(part["metric"] == e.metric) & (part["subset"] == subset), "chance"]) for e in entries
        ]
        if any(chances):
            shown = ("chance", "") + ((clean(subset),) if subsets else ())
            cells = tuple(Cell(text, dim=True) for text in chances)
            rows.append(Row(_unrepeated(shown, last), cells, section="\0chance"))
            last = shown
    title = f"{_title(part.iloc[0])}: level {entries[0].level}, {clean(entries[0].task_title)}"
    return Grid(
        title=title,
        index=("model", "post-processing") + (("subset",) if subsets else ()),
        columns=tuple(
            Column(clean(e.label) + ("" if e.higher_is_better else " (lower is better)") + ("" if e.known else " ?"))
            for e in entries
        ),
        rows=tuple(rows),
        notes=tuple(_full_notes(part, entries)),
        reasons=tuple(reasons.texts),
    )


def _unrepeated(shown: tuple[str, ...], last: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out the leading names that the line above has already."""
    out, same = [], True
    for place, name in enumerate(shown):
        same = same and place < len(last) and place < len(shown) - 1 and last[place] == name
        out.append("" if same else name)
    return tuple(out)


def _full_cell(row: Mapping[Hashable, Any] | None, reasons: _Reasons) -> Cell:
    if row is None:
        return reasons.hole("not in the run")
    if math.isnan(row["value"]):
        return reasons.hole(row["reason"])
    text = number(row["value"])
    return Cell(text if math.isnan(row["sd"]) else f"{text} ± {row['sd']:.3f}")


def _full_notes(part: pd.DataFrame, entries: Sequence[MetricInfo]) -> list[str]:
    notes = []
    scored = part[part["value"].notna()]
    seeds = sorted({int(n) for n in scored.loc[scored["n_seeds"] > 0, "n_seeds"]})
    if any(n > 1 for n in seeds):
        counts = " or ".join(str(n) for n in seeds)
        notes.append(f"Mean ± sample standard deviation over {counts} seeds.")
    if 1 in seeds:
        notes.append("Some scores come from one seed only and have no standard deviation.")
    if scored["deterministic"].any():
        notes.append("A score without ± that has no seed is deterministic and was computed once.")
    unknown = [e.metric for e in entries if not e.known]
    if unknown:
        notes.append(f"? not installed here, so direction and range are not known: {', '.join(map(clean, unknown))}.")
    return notes


def detail_grids(
    scores: pd.DataFrame, *, task: str | None = None, metrics: Collection[str] | None = None
) -> list[Grid]:
    """One row per score with interval, chance, numbers, what was left out and notes."""
    frame = aggregate(scores)
    if task is not None:
        frame = frame[frame["task"] == task]
    if metrics is not None:
        frame = frame[frame["metric"].isin(list(metrics))]
    info = catalogue(frame)
    grids = []
    for _, part in frame.groupby([*TABLE, "task"], dropna=False, sort=False):
        reasons = _Reasons()
        rows = []
        for row in part.to_dict("records"):
            entry = info[row["task"], row["metric"]]
            name = clean(entry.label) + (f" {clean(row['subset'])}" if row["subset"] else "")
            left_out = [f"left out: {row['left_out']}"] if row["left_out"] else []
            remarks = [*left_out, *row["notes"].split(" | "), *row["interval_note"].split(" | ")]
            cells = (
                _full_cell(row, reasons),
                Cell(_interval(row)),
                Cell(clean(row["interval_unit"]) if _interval(row) else ""),
                Cell(_range(pd.Series([row["chance"]]))),
                Cell(_count(row["n_samples"])),
                Cell(f"{_count(row['n_groups'])} {clean(row['group'])}".strip()),
                Cell("", marks=tuple(dict.fromkeys(reasons.number(remark) for remark in remarks if remark))),
            )
            rows.append(Row((clean(row["model"]), clean(row["post_processing"]), name), cells, section=row["model"]))
        entry = info[part.iloc[0]["task"], part.iloc[0]["metric"]]
        labels = ("score", "95 % interval", "over", "chance", "samples", "groups", "remarks")
        grids.append(
            Grid(
                title=f"{_title(part.iloc[0])}: level {entry.level}, {clean(entry.task_title)}, every score",
                index=("model", "post-processing", "metric"),
                columns=tuple(Column(label) for label in labels),
                rows=tuple(rows),
                notes=("An interval is given for a single score, not for a mean over seeds.",),
                reasons=tuple(reasons.texts),
            )
        )
    return grids


def _interval(row: Mapping[Hashable, Any]) -> str:
    if math.isnan(row["low"]) or math.isnan(row["high"]):
        return ""
    return f"{number(row['low'])} to {number(row['high'])}"


def _count(value: float) -> str:
    return "" if math.isnan(value) else f"{value:,.0f}"
