"""From results folders to boards: which scores may stand in one column, and which may not."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from txeval.compute.intervals import Units
from txeval.errors import InputError, NotComputable
from txeval.report.contributions import Place
from txeval.report.leaderboard.ranks import rank_scores
from txeval.report.paper import published_scores, screen_of, screens
from txeval.report.paper.published import SUMMARY, screen_title
from txeval.report.results import ResultsFolder
from txeval.report.spread import with_intervals
from txeval.report.summary import questions, tabulate
from txeval.report.tables import catalogue, mark_untrained, references
from txeval.run import Store, read_scores

__all__ = ["Board", "BoardCell", "BoardColumn", "BoardRow", "Source", "load_sources", "make_boards"]

#: Relative difference up to which one cell of two folders is the same score.
_SAME = 1e-6

BASELINE, CEILING, MODEL, PUBLISHED = "baseline", "ceiling", "model", "published"

#: Role of what is no model -> its group of rows.
_KINDS = {"floor": BASELINE, "ceiling": CEILING}


@dataclass(frozen=True)
class Source:
    """A results folder.

    Attributes
    ----------
    name
        What the site calls it: the name of the folder, with its parent where two share one.
    results
        What each unit contributed to each score; without it, ranks come from the intervals.
    """

    folder: Path
    name: str
    scores: pd.DataFrame
    manifest: Mapping[str, Any]
    results: ResultsFolder | None = None


@dataclass(frozen=True)
class BoardCell:
    """One score, or why there is none.

    Attributes
    ----------
    value, low, high
        Score and 95 % interval; NaN where missing.
    rank, rank_low, rank_high
        Among the models of the column; 0 for what is not ranked.
    reason
        Why there is no score.
    remark
        What to know of it.
    place
        Where between the random baseline (0) and the best of the column (1) it lies; below the baseline negative.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    sd: float = math.nan
    n_seeds: int = 0
    post_processing: str = ""
    rank: int = 0
    rank_low: int = 0
    rank_high: int = 0
    reason: str = ""
    remark: str = ""
    place: float = 0.0


@dataclass(frozen=True)
class BoardColumn:
    """Scores that may be compared: one metric, computed by one version with the same settings."""

    key: str
    task: str
    metric: str
    subset: str
    level: int
    task_title: str
    label: str
    summary: str
    higher_is_better: bool
    version: str
    settings: str
    chance: str = ""


@dataclass
class BoardRow:
    """One embedding.

    Attributes
    ----------
    kind
        "model", "baseline" or "published".
    """

    label: str
    kind: str
    source: str
    folders: tuple[str, ...]
    cells: dict[str, BoardCell] = field(default_factory=dict)

    def among_best(self) -> int:
        """Number of columns whose rank interval reaches 1; a score without an interval has no such claim."""
        return sum(cell.rank_low == 1 and not math.isnan(cell.low) for cell in self.cells.values())

    def missing(self, columns: Sequence[BoardColumn]) -> int:
        """Number of columns without a score."""
        return sum(math.isnan(self.cells[c.key].value) if c.key in self.cells else True for c in columns)


@dataclass
class Board:
    """One screen, split and protocol."""

    id: str
    dataset: str
    protocol: str
    split: str
    screen_fingerprint: str
    protocol_fingerprint: str
    columns: list[BoardColumn]
    rows: list[BoardRow]
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def load_sources(folders: Iterable[Path]) -> list[Source]:
    """Read results folders.

    Raises
    ------
    InputError
        One does not exist, holds no scores, or is given twice.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise InputError("no results folder is given", remedy="name those that `txeval run --out` wrote")
    resolved = [path.resolve() for path in paths]
    for path in resolved:
        if resolved.count(path) > 1:
            raise InputError(f"{path} is given twice", remedy="name each folder once")
    names = [path.name for path in resolved]
    made = []
    for path, own, name in zip(paths, resolved, names, strict=True):
        rows = read_scores(path)
        scores = mark_untrained(rows)
        if scores.empty:
            raise InputError(f"{path} holds no scores", remedy="run `txeval run` with this folder as --out")
        title = name if names.count(name) == 1 else f"{own.parent.name}/{name}"
        manifest = Store(path).manifest()
        made.append(Source(path, title, scores, manifest, ResultsFolder.open(path, rows)))
    return made


def make_boards(sources: Sequence[Source], *, metrics: Iterable[str] | None = None) -> list[Board]:
    """Boards of all folders, then those of the paper's screens that no folder is of.

    Scores of one screen, split and protocol (by fingerprint) make a board. Within it a column holds one metric of one
    version of txeval with one set of settings, so that scores of two versions stand in two columns.

    Raises
    ------
    InputError
        Two folders have different values for the same cell.
    """
    keys = ["dataset", "screen_fingerprint", "protocol", "protocol_fingerprint", "split"]
    frame = _joined(sources)
    folders = _Folders(sources, frame)
    boards: list[Board] = []
    for key, part in frame.groupby(keys, sort=False, dropna=False):
        place = dict(zip(keys, map(str, key), strict=True))
        boards.append(_board(f"board-{len(boards) + 1}", place, part, sources, folders, metrics))
    seen = {screen_of(board.dataset) for board in boards}
    for screen in screens():
        if screen not in seen:
            boards.append(_published_board(f"board-{len(boards) + 1}", screen))
    return boards


class _Folders:
    """Several results folders as one: each score's contributions come from the folder that its row is from."""

    def __init__(self, sources: Sequence[Source], frame: pd.DataFrame) -> None:
        self._results = {source.name: source.results for source in sources if source.results is not None}
        good = frame[frame["status"] == "ok"]
        columns = [*Place._fields, "folder", "stored_model"]
        self._origins: dict[Place, set[tuple[str, str]]] = {}
        for *place, folder, stored in good[columns].drop_duplicates().itertuples(index=False, name=None):
            self._origins.setdefault(Place(*map(str, place)), set()).add((str(folder), str(stored)))

    def choice(self, protocol: str) -> str:
        """How the protocol chooses post-processings; "best" where two folders have two rules under one name."""
        found = {results.choice(protocol) for results in self._results.values() if results.has(protocol)}
        return found.pop() if len(found) == 1 else "best"

    def headline(self, protocol: str) -> Mapping[str, Sequence[str]]:
        """Task -> metrics that the protocol wants in the summary."""
        found = [results.headline(protocol) for results in self._results.values() if results.has(protocol)]
        return found[0] if found else {}

    def seeds(self, place: Place) -> Sequence[Units]:
        """Units of a score, one for each seed; raises NotComputable where no one folder has them."""
        origins = self._origins.get(place, set())
        if len(origins) != 1:
            raise NotComputable("the seeds of this score are in several folders" if origins else "no such score")
        folder, stored = next(iter(origins))
        if folder not in self._results:
            raise NotComputable(f"contributions of units of {folder} are not at hand")
        return self._results[folder].seeds(place._replace(model=stored))


def _joined(sources: Sequence[Source]) -> pd.DataFrame:
    """All rows, each cell once, models of one label but different content told apart."""
    contents: dict[tuple[str, str], dict[str, list[str]]] = {}
    for source in sources:
        for (dataset, label), content in _contents(source).items():
            contents.setdefault((dataset, label), {}).setdefault(content, []).append(source.name)
    parts = []
    for source in sources:
        rows = source.scores.copy()
        own = _contents(source)
        labels = {}
        for dataset, model in rows[["dataset", "model"]].drop_duplicates().itertuples(index=False):
            plain = str(model).removesuffix(" (untrained)")
            several = contents.get((str(dataset), plain), {})
            mine = several.get(own.get((str(dataset), plain), ""), [source.name])
            labels[dataset, model] = str(model) if len(several) < 2 else f"{model} · {mine[0]}"
        rows["stored_model"] = rows["model"]
        rows["model"] = [labels[key] for key in zip(rows["dataset"], rows["model"], strict=True)]
        rows["folder"] = source.name
        digests = {
            (item["protocol"], item["task"]): str(item["digest"])[:8] for item in source.manifest.get("tasks", [])
        }
        rows["settings"] = [digests.get(key, "") for key in zip(rows["protocol"], rows["task"], strict=True)]
        parts.append(rows)
    frame = pd.concat(parts, ignore_index=True)
    return _each_once(frame)


def public_source(source: str) -> str:
    """Where an embedding is from, without the folders of the machine that it was computed on."""
    path, hash_, element = source.partition("#")
    name = re.split(r"[/\\]", path)[-1]
    return f"{name}{hash_}{element}"


def _contents(source: Source) -> dict[tuple[str, str], str]:
    """(data set, label) -> digest of the embedding."""
    return {
        (str(m["dataset"]), str(m["label"])): str(m.get("content", "")) for m in source.manifest.get("embeddings", [])
    }


def _each_once(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop what several folders have alike; refuse what they have differently."""
    keys = ["dataset", "protocol", "protocol_fingerprint", "split", "model", "post_processing", "task", "metric"]
    keys += ["subset", "seed", "txeval_version", "settings"]
    filled = frame.assign(seed=frame["seed"].astype("float64").fillna(-1))
    folders = filled.groupby(keys, sort=False)["folder"].agg(lambda names: " + ".join(dict.fromkeys(names)))
    # A score of one folder stands for the failure of another.
    order = filled["status"].ne("ok").sort_values(kind="stable").index
    filled = filled.loc[order]
    for _, part in filled[filled.duplicated(keys, keep=False)].groupby(keys, sort=False):
        good = part[part["status"] == "ok"].to_dict("records")
        for first, row in pairwise(good):
            if not math.isclose(row["value"], first["value"], rel_tol=_SAME, abs_tol=_SAME):
                raise InputError(
                    f"{row['model']} / {row['post_processing']} / {row['task']} / {row['metric']} is "
                    f"{first['value']!r} in {first['folder']} and {row['value']!r} in {row['folder']}",
                    remedy="leave one of the folders out, or find out why they differ: txeval leaderboard check DIR",
                )
    once = filled.drop_duplicates(keys).copy()
    index = pd.MultiIndex.from_frame(once[keys])
    once["folders"] = folders.loc[index].to_numpy()
    return once.sort_index().reset_index(drop=True)


def _board(
    name: str,
    place: Mapping[str, str],
    part: pd.DataFrame,
    sources: Sequence[Source],
    folders: _Folders,
    metrics: Iterable[str] | None,
) -> Board:
    columns: list[BoardColumn] = []
    rows: dict[str, BoardRow] = {}
    for label, own in part.groupby("model", sort=False):
        named = " + ".join(dict.fromkeys(" + ".join(own["folders"]).split(" + ")))
        rows[str(label)] = BoardRow(str(label), MODEL, public_source(str(own.iloc[0]["source"])), (named,))
    for (version, settings, _), same in part.groupby(["txeval_version", "settings", "task"], sort=False):
        _fill(columns, rows, same, str(version), str(settings), folders, metrics)
    columns.sort(key=lambda column: (column.level, _position(column), column.version, column.settings))
    notes = []
    if len({column.version for column in columns}) > 1:
        notes.append("Scores of different versions of txeval stand in columns of their own.")
    settled: dict[tuple[str, str], set[str]] = {}
    for column in columns:
        settled.setdefault((column.task, column.version), set()).add(column.settings)
    for (task, _), found in settled.items():
        if len(found) > 1:
            notes.append(f"{task} was computed with {len(found)} different settings: each has columns of its own.")
    board = Board(
        id=name,
        dataset=place["dataset"],
        protocol=place["protocol"],
        split=place["split"],
        screen_fingerprint=place["screen_fingerprint"],
        protocol_fingerprint=place["protocol_fingerprint"],
        columns=columns,
        rows=sorted(rows.values(), key=_order),
        facts=_facts(place, part, sources),
        notes=notes,
    )
    screen = screen_of(board.dataset)
    if screen:
        board.rows += _published_rows(screen, columns)
    return board


def _order(row: BoardRow) -> tuple[Any, ...]:
    """Models that are among the best of most columns first, then baselines."""
    return ((MODEL, BASELINE, CEILING, PUBLISHED).index(row.kind), -row.among_best(), row.label.lower())


def _position(column: BoardColumn) -> tuple[int, str]:
    known = catalogue().get((column.task, column.metric))
    return (known.position if known else 10**6, column.subset.lower())


def _fill(
    columns: list[BoardColumn],
    rows: dict[str, BoardRow],
    part: pd.DataFrame,
    version: str,
    settings: str,
    folders: _Folders,
    metrics: Iterable[str] | None,
) -> None:
    """Columns of one task under one version and one set of settings."""
    chosen = tabulate(questions(part, folders, metrics=None if metrics is None else list(metrics)))
    info, roles = catalogue(part), references(part)
    spans = {
        (row["model"], row["metric"], row["subset"], row["post_processing"]): (row["low"], row["high"])
        for row in with_intervals(part).to_dict("records")
    }
    for (task, metric, subset), cells in chosen.groupby(["task", "metric", "subset"], sort=False):
        entry = info[str(task), str(metric)]
        label = f"{entry.label} {subset}".strip() if str(task) != "relationships" or not subset else str(subset)
        column = BoardColumn(
            key=f"c{len(columns)}",
            task=entry.task,
            metric=entry.metric,
            subset=str(subset),
            level=entry.level,
            task_title=entry.task_title,
            label=label,
            summary=entry.summary,
            higher_is_better=entry.higher_is_better,
            version=version,
            settings=settings,
            chance=_chance(cells["chance"]),
        )
        columns.append(column)
        made: dict[str, BoardCell] = {}
        for row in cells.to_dict("records"):
            label_ = str(row["model"])
            if label_ in roles:
                rows[label_].kind = _KINDS[roles[label_]]
            low, high = spans.get((row["model"], metric, subset, row["post_processing"]), (math.nan, math.nan))
            if not math.isnan(row["low"]):
                low, high = row["low"], row["high"]
            made[label_] = BoardCell(
                value=float(row["value"]),
                low=float(low),
                high=float(high),
                sd=float(row["sd"]),
                n_seeds=int(row["n_seeds"]),
                post_processing=str(row["post_processing"]),
                reason=str(row["reason"]),
                remark=_remark(row),
            )
        ranked = [label for label, cell in made.items() if rows[label].kind == MODEL and not math.isnan(cell.value)]
        # By paired differences on the units that all models have; else by the intervals, which is coarser.
        paired = {
            str(row["model"]): (int(row["rank"]), int(row["rank_low"]), int(row["rank_high"]))
            for row in cells.to_dict("records")
            if not math.isnan(row["rank"])
        }
        if set(paired) != set(ranked):
            ranks = rank_scores(
                [made[label].value for label in ranked],
                [made[label].low for label in ranked],
                [made[label].high for label in ranked],
                higher_is_better=entry.higher_is_better,
            )
            paired = dict(zip(ranked, zip(ranks.rank, ranks.low, ranks.high, strict=True), strict=True))
        floor = [
            cell.value for label, cell in made.items() if rows[label].kind == BASELINE and not math.isnan(cell.value)
        ]
        for label, cell in made.items():
            rank, rank_low, rank_high = paired.get(label, (0, 0, 0))
            best = [made[name].value for name in ranked]
            rows[label].cells[column.key] = BoardCell(
                **{
                    **vars(cell),
                    "rank": rank,
                    "rank_low": rank_low,
                    "rank_high": rank_high,
                    "place": _place(cell.value, floor, best, higher=entry.higher_is_better),
                }
            )


def _place(value: float, floor: Sequence[float], best: Sequence[float], *, higher: bool) -> float:
    """Where a score lies between the baseline and the best; 0 where this cannot be said."""
    if math.isnan(value) or not floor or not best:
        return 0.0
    base = sum(floor) / len(floor)
    top = max(best) if higher else min(best)
    # Where nothing is clearly above the baseline, a small difference must not have a strong colour.
    span = max(abs(top - base), 0.05 * abs(base))
    step = (value - base) if higher else (base - value)
    return max(-1.0, min(1.0, step / span)) if span > 0 else 0.0


def _chance(values: pd.Series) -> str:
    numbers = values.dropna()
    if numbers.empty:
        return ""
    low, high = f"{numbers.min():.3f}", f"{numbers.max():.3f}"
    return low if low == high else f"{low} to {high}"


def _remark(row: Mapping[Any, Any]) -> str:
    parts = []
    if row["n_holes"] and not math.isnan(row["value"]):
        parts.append(f"{row['n_holes']} of {row['n_choices'] + row['n_holes']} post-processings have no score")
    return "; ".join(parts)


def _facts(place: Mapping[str, str], part: pd.DataFrame, sources: Sequence[Source]) -> dict[str, str]:
    made = {}
    for source in sources:
        for screen in source.manifest.get("screens", []):
            if screen.get("fingerprint") != place["screen_fingerprint"]:
                continue
            report = screen.get("report", {})
            known = (
                ("samples", screen.get("n")),
                ("genes", screen.get("n_genes")),
                ("perturbations", report.get("n_perturbations")),
                ("batches", report.get("n_batches")),
                ("controls", report.get("n_controls")),
            )
            made = {name: f"{int(value):,}" for name, value in known if value is not None}
    names = dict.fromkeys(" + ".join(part["folders"]).split(" + "))
    made["results folders"] = ", ".join(names)
    made["versions of txeval"] = ", ".join(sorted(set(part["txeval_version"])))
    made["split"] = place["split"]
    made["fingerprint of the screen"] = place["screen_fingerprint"][:16]
    made["fingerprint of the protocol"] = place["protocol_fingerprint"]
    return made


# The paper's values


def _published_rows(screen: str, columns: Sequence[BoardColumn]) -> list[BoardRow]:
    """The paper's Table 2 in the columns of a board; a column per metric, once, in its first version."""
    frame = published_scores()
    frame = frame[(frame["table"] == SUMMARY) & _is_screen(frame, screen)]
    first: dict[tuple[str, str, str], str] = {}
    for column in columns:
        first.setdefault((column.task, column.metric, column.subset), column.key)
    rows = []
    for title, cells in frame.groupby("title", sort=False):
        row = BoardRow(str(title), PUBLISHED, "Bendidi et al. 2024, Table 2", ())
        for cell in cells.to_dict("records"):
            key = first.get((cell["task"], cell["metric"], cell["subset"]))
            if key is not None:
                row.cells[key] = BoardCell(value=cell["value"], sd=cell["sd"], n_seeds=5, remark=cell["errata"])
        rows.append(row)
    return rows


def _is_screen(frame: pd.DataFrame, screen: str) -> pd.Series:
    return frame["screen"] == screen


def _published_board(name: str, screen: str) -> Board:
    """A board that holds nothing but the paper's values."""
    info = catalogue()
    frame = published_scores()
    frame = frame[(frame["table"] == SUMMARY) & _is_screen(frame, screen)]
    columns: list[BoardColumn] = []
    for task, metric, subset in frame[["task", "metric", "subset"]].drop_duplicates().itertuples(index=False):
        entry = info[task, metric]
        columns.append(
            BoardColumn(
                key=f"c{len(columns)}",
                task=task,
                metric=metric,
                subset=subset,
                level=entry.level,
                task_title=entry.task_title,
                label=subset or entry.label,
                summary=entry.summary,
                higher_is_better=entry.higher_is_better,
                version="",
                settings="",
            )
        )
    return Board(
        id=name,
        dataset=screen_title(screen),
        protocol="as published",
        split="",
        screen_fingerprint="",
        protocol_fingerprint="",
        columns=columns,
        rows=_published_rows(screen, columns),
        notes=["No results folder is of this screen: these are the paper's values alone, and they are not ranked."],
    )


def as_json(boards: Sequence[Board]) -> str:
    """Boards as JSON, for programs that read the site."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    made = [
        {
            **{name: getattr(board, name) for name in ("dataset", "protocol", "split", "facts", "notes")},
            "screen_fingerprint": board.screen_fingerprint,
            "protocol_fingerprint": board.protocol_fingerprint,
            "columns": [vars(column) for column in board.columns],
            "rows": [
                {
                    "label": row.label,
                    "kind": row.kind,
                    "source": row.source,
                    "folders": list(row.folders),
                    "cells": {
                        key: {name: plain(value) for name, value in vars(cell).items()}
                        for key, cell in row.cells.items()
                    },
                }
                for row in board.rows
            ],
        }
        for board in boards
    ]
    return json.dumps(made, ensure_ascii=False, indent=1, allow_nan=False)
