"""From frames to grids: what stands in which cell, before any output format."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from txeval.report.results import ResultsFolder
from txeval.report.summary import Chosen, Question, best_of, not_above_floor, questions
from txeval.report.tables import TABLE, MetricInfo, aggregate, catalogue, full, post_position
from txeval.text import clean

__all__ = ["Cell", "Column", "Grid", "Row", "detail_grids", "full_grids", "summary_grids"]

#: One letter per post-processing for the summary.
LETTERS = {"raw": "r", "centering": "c", "center_scaling": "s", "tvn": "t"}


@dataclass(frozen=True)
class Cell:
    """One entry: its text, the letter of the chosen post-processing, and the numbers of its reasons or remarks.

    Attributes
    ----------
    best, tied
        Highest of its row; not worse than the first beyond chance.
    rank
        "#1-2".
    below
        Second line: the interval.
    """

    text: str
    letter: str = ""
    best: bool = False
    tied: bool = False
    rank: str = ""
    below: str = ""
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


def number(value: float) -> str:
    """A score as text: three decimals, but not for what these cannot show."""
    if math.isnan(value):
        return "–"
    if 0 < abs(value) < 0.0005:
        return f"{value:.0e}"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


#: How rows of level 2 name the probe, and that of the paper.
_SOLVER = re.compile(r"\bsolver: ([\w-]+)")
_RECIPE = "adamw"


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


def summary_grids(
    scores: pd.DataFrame, results: ResultsFolder | None = None, *, metrics: Collection[str] | None = None
) -> list[Grid]:
    """Lay out the summary as in the paper's Table 2, one grid per dataset and protocol.

    Rows are metrics, grouped by level; columns are chance, floors and ceilings, then the models with interval and rank.
    """
    grids = []
    by_table: dict[tuple[str, ...], list[Question]] = {}
    for question in questions(scores, results, metrics=metrics):
        by_table.setdefault(question.table, []).append(question)
    for asked in by_table.values():
        reasons = _Reasons()
        first = asked[0].models
        columns = [Column("chance", "reference")]
        columns += [Column(clean(m), "reference" if first[m].role else "models") for m in first]
        rows: list[Row] = []
        seen_level = ""
        for question in asked:
            entry = question.info
            best = best_of(question)
            cells = [Cell(_range(pd.Series([chosen.chance for chosen in question.models.values()])), dim=True)]
            cells += [_summary_cell(question, chosen, reasons, best) for chosen in question.models.values()]
            level = f"{entry.level} {clean(entry.task_title)}"
            arrow = "" if entry.higher_is_better else " (lower is better)"
            rows.append(Row(("" if level == seen_level else level, clean(question.label) + arrow), tuple(cells), level))
            seen_level = level
        grids.append(
            Grid(
                title=f"{clean(asked[0].table[0])}, protocol {clean(asked[0].table[2])}",
                index=("level", "metric"),
                columns=tuple(columns),
                rows=tuple(rows),
                notes=(*_summary_notes(asked), *solver_notes(_of_table(scores, asked[0].table))),
                reasons=tuple(reasons.texts),
            )
        )
    return grids


def _summary_cell(question: Question, chosen: Chosen, reasons: _Reasons, best: Collection[str]) -> Cell:
    if math.isnan(chosen.value):
        return reasons.hole(chosen.reason)
    letter = "|".join(LETTERS.get(post, clean(post)) for post in chosen.post_processing.split(" | "))
    marks = (reasons.number(chosen.remark),) if chosen.remark else ()
    if chosen.role:
        return Cell(number(chosen.value), letter=letter, marks=marks)
    below = "" if math.isnan(chosen.low) else f"[{number(chosen.low)}, {number(chosen.high)}]"
    rank, tied = "", False
    if question.ranking is not None and chosen.model in question.ranked:
        i = question.ranked.index(chosen.model)
        low, high = int(question.ranking.low[i]), int(question.ranking.high[i])
        rank, tied = f"#{low}" if low == high else f"#{low}-{high}", low == 1
    return Cell(
        number(chosen.value), letter=letter, best=chosen.model in best, tied=tied, rank=rank, below=below, marks=marks
    )


def _range(values: pd.Series) -> str:
    numbers = values.dropna()
    if numbers.empty:
        return ""
    low, high = number(numbers.min()), number(numbers.max())
    return low if low == high else f"{low}-{high}"


def _summary_notes(asked: Sequence[Question]) -> list[str]:
    notes = []
    every = [chosen for question in asked for chosen in question.models.values()]
    scored = [chosen for chosen in every if not math.isnan(chosen.value)]
    posts = sorted({post for chosen in scored for post in chosen.post_processing.split(" | ")}, key=post_position)
    if posts:
        legend = ", ".join(f"{LETTERS.get(post, post)} {clean(post)}" for post in posts)
        notes.append(f"Post-processing chosen per model and metric: {legend}.")
    tried = max((chosen.n_choices + chosen.n_holes for chosen in every), default=0)
    if any(chosen.how == "best" for chosen in scored) and tried > 1:
        notes.append(
            f"The best of {tried} post-processings is chosen on the numbers shown, which is optimistic, "
            "for floors and ceilings as well; the full tables have all of them."
        )
    if any(chosen.how == "cross_fitted" for chosen in scored):
        notes.append(
            "Post-processing is chosen on one half of the units (probe and kNN: test batches; relationships: genes; "
            "else perturbations) and reported on the other, and the halves are swapped; two letters: the halves chose "
            "differently."
        )
    if any(question.ranking is not None for question in asked):
        notes.append(
            "[low, high]: 95 % interval. #: rank among the models, with the range that holds for all models of the row "
            "together at 95 %; * marks those that cannot be told apart from the first."
        )
    elif any(not math.isnan(chosen.low) for chosen in scored if not chosen.role):
        notes.append("[low, high]: 95 % interval.")
    notes.extend(_seed_notes(scored))
    partial = sum(chosen.n_holes > 0 for chosen in scored)
    if partial:
        notes.append(
            f"In {partial} cells the choice was among fewer post-processings: the others have no score "
            "(see the full tables)."
        )
    without: dict[str, list[str]] = {}
    for question in asked:
        if question.why_not:
            without.setdefault(question.why_not, []).append(clean(question.label))
        elif question.ranking is not None and question.ranking.note:
            without.setdefault(f"ranks with {question.ranking.note}", []).append(clean(question.label))
    notes += [f"{', '.join(labels)}: {clean(why)}." for why, labels in without.items()]
    lost = [clean(question.label) for question in asked if not_above_floor(question)]
    if lost:
        notes.append(f"No model is better than the floors beyond chance on: {', '.join(lost)}.")
    return notes


def _of_table(scores: pd.DataFrame, table: Sequence[Any]) -> pd.DataFrame:
    """Rows of one table: see `TABLE`."""
    keep = pd.Series(True, index=scores.index)
    for name, value in zip(TABLE, table, strict=True):
        keep &= scores[name].astype(str) == str(value)
    return scores[keep]


def solver_notes(scores: pd.DataFrame) -> list[str]:
    """Says which probe is shown where it is not that of the paper; every row of level 2 names its own."""
    if "notes" not in scores:
        return []
    notes = scores.loc[scores["task"] == "linear_probe", "notes"].astype(str)
    found = {name for text in notes for name in _SOLVER.findall(text)} - {_RECIPE}
    if not found:
        return []
    return [f"Linear probe: solver {', '.join(sorted(found))}, which is not the paper's recipe ({_RECIPE})."]


def _seed_notes(scored: Sequence[Chosen]) -> list[str]:
    counts = [chosen.n_seeds for chosen in scored if chosen.n_seeds > 0]
    if not counts:
        return ["Every score is deterministic and was computed once."] if scored else []
    low, high = min(counts), max(counts)
    if low == high:
        text = "one seed" if low == 1 else f"the mean of {low} seeds"
        return [f"A score that depends on a seed is {text}; the others are deterministic and computed once."]
    return [f"Scores are means of different numbers of seeds ({low} to {high}): compare them with care."]


def full_grids(scores: pd.DataFrame, *, task: str | None = None, metrics: Collection[str] | None = None) -> list[Grid]:
    """One grid per dataset, protocol and task: model x post-processing (x subset) against metrics, mean ± sd."""
    grids = []
    for name, frame in full(scores).items():
        if task is not None and name != task:
            continue
        kept = frame if metrics is None else frame[frame["metric"].isin(list(metrics))]
        for table, part in kept.groupby(TABLE, dropna=False, sort=False):
            notes = solver_notes(_of_table(scores, table)) if name == "linear_probe" else []
            grids.append(_full_grid(part, notes))
    return grids


def _full_grid(part: pd.DataFrame, notes: Sequence[str]) -> Grid:
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
        notes=(*_full_notes(part, entries), *notes),
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
    scores: pd.DataFrame,
    results: ResultsFolder | None = None,
    *,
    task: str | None = None,
    metrics: Collection[str] | None = None,
) -> list[Grid]:
    """One row per score with interval, chance, numbers, what was left out and notes."""
    wanted = scores if task is None else scores[scores["task"] == task]
    frame = aggregate(wanted if metrics is None else wanted[wanted["metric"].isin(list(metrics))], results)
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
                notes=("Intervals are over what the column names; where seeds shift a score, over seeds as well.",),
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
