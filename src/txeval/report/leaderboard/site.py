"""A leaderboard as one page that works offline, with the scores beside it as files."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from txeval._version import __version__
from txeval.destination import check_destination
from txeval.errors import InputError
from txeval.report.html.markup import Markup, element, label
from txeval.report.layout import number
from txeval.report.leaderboard.collect import (
    BASELINE,
    CEILING,
    MODEL,
    PUBLISHED,
    Board,
    BoardCell,
    BoardColumn,
    BoardRow,
    Source,
    as_json,
    public_source,
)
from txeval.report.leaderboard.ranks import METHOD, span
from txeval.report.style import ABOVE, BELOW, post_title
from txeval.run.files import write_atomically
from txeval.text import csv_text

__all__ = ["page", "write_site"]

#: Marks a folder as a site of ours, so that nothing else is ever replaced.
MARKER = "leaderboard.json"

_GROUPS = {
    MODEL: "Models",
    BASELINE: "Baselines without information (not ranked)",
    CEILING: "Ceilings: what the noise of the data allows (not ranked)",
    PUBLISHED: "Published: Bendidi et al. 2024, Table 2, ± standard deviation of 5 runs (not by txeval, not ranked)",
}


def write_site(boards: Sequence[Board], sources: Sequence[Source], out: Path, *, title: str) -> list[Path]:
    """Write `index.html`, `scores.csv` (every row of every folder) and `leaderboard.json` (what the page shows).

    Raises
    ------
    InputError
        The folder holds something else, or cannot be written to.
    """
    check_site(out)
    out.mkdir(parents=True, exist_ok=True)
    scores = pd.concat([source.scores.assign(folder=source.name) for source in sources], ignore_index=True)
    scores["source"] = scores["source"].map(public_source)
    content = {
        MARKER: as_json(boards),
        "scores.csv": csv_text(scores),
        "index.html": page(boards, title=title),
    }
    for name, text in content.items():
        data = text.encode("utf-8", errors="backslashreplace")

        def write(handle: Any, data: bytes = data) -> None:
            handle.write(data)

        write_atomically(out / name, write)
    return [out / name for name in content]


def check_site(out: Path) -> None:
    """Refuse a folder that cannot be written to, or holds something else than a site."""
    check_destination(out, folder=True)
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise InputError(f"{out} holds other files", remedy="name a new folder with --out")


def page(boards: Sequence[Board], *, title: str) -> str:
    """The page: every text from data is escaped; nothing is loaded from anywhere."""
    script = _asset("leaderboard.js")
    allowed = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; script-src 'sha256-{allowed}'; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )
    colours = f":root{{--above:{ABOVE};--below:{BELOW}}}\n"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", **{"http-equiv": "Content-Security-Policy", "content": policy}),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content=f"txeval {__version__}"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Markup(colours + _asset("leaderboard.css"))),
    )
    body = element(
        "body",
        element("a", "Skip to the boards", href="#boards", class_="skip"),
        _top(boards, title),
        element("main", [_board(board) for board in boards], id="boards"),
        _footer(),
        element("script", Markup(script)),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _asset(name: str) -> str:
    return (resources.files("txeval.report.leaderboard") / "assets" / name).read_text(encoding="utf-8")


def _top(boards: Sequence[Board], title: str) -> Markup:
    options = [element("option", "all", value="")]
    options += [element("option", f"{b.dataset}, protocol {b.protocol}", value=b.id) for b in boards]
    links = [element("li", element("a", label(b.dataset), " · ", label(b.protocol), href=f"#{b.id}")) for b in boards]
    return element(
        "header",
        element("h1", title),
        element(
            "p",
            "Representations of transcriptomes on the six levels of the benchmark of Bendidi et al. 2024. A column "
            "holds scores of one screen, split, protocol and version, so everything in it can be compared; nothing is "
            "averaged over columns. The shade goes from the random baseline to the best model of the column.",
        ),
        element("nav", element("ol", links), aria_label="Boards"),
        element(
            "div",
            element("label", "Board ", element("select", options, id="which")),
            element("label", "Find a model ", element("input", type="search", id="search")),
            element("label", element("input", type="checkbox", id="brief", checked=True), " intervals"),
            element("button", "Dark", type="button", id="theme", aria_pressed="false"),
            class_="bar js",
        ),
    )


def _footer() -> Markup:
    return element(
        "footer",
        element("h2", "How to read it"),
        element(
            "p",
            "Each score is that of the model's best post-processing on this metric, named below it; this is optimistic "
            "for all alike, as it is chosen on the number shown. Below it its 95 % interval, over the units that the "
            "metric is a mean of (perturbations, genes, batches), widened by the spread of the seeds. ",
            METHOD,
        ),
        element(
            "p",
            "A hatched cell has no score: it counts for nothing, neither as zero nor as the mean of others. "
            "“May be the best” counts the columns whose rank interval reaches 1, where there is one; it is no overall "
            "score.",
        ),
        element(
            "p",
            "All numbers: ",
            element("a", "scores.csv", href="scores.csv"),
            " (every row of every folder), ",
            element("a", "leaderboard.json", href="leaderboard.json"),
            f" (what is shown here). Made by txeval {__version__}; the page loads nothing from elsewhere.",
        ),
    )


# One board


def _board(board: Board) -> Markup:
    notes: list[str] = []
    table = element(
        "div", _table(board, notes), class_="scroll", role="region", tabindex="0", aria_labelledby=f"{board.id}-title"
    )
    facts = [element("span", element("b", name), " ", label(value)) for name, value in board.facts.items()]
    told = [element("li", note) for note in board.notes]
    return element(
        "section",
        element(
            "h2",
            label(board.dataset),
            " ",
            element("small", "protocol ", label(board.protocol)),
            id=f"{board.id}-title",
        ),
        element("div", facts, class_="facts") if facts else None,
        element("ul", told, class_="notes") if told else None,
        element("p", role="status", class_="muted js"),
        table,
        element("div", element("ol", [element("li", note) for note in notes]), class_="notes") if notes else None,
        id=board.id,
        class_="board",
    )


def _table(board: Board, notes: list[str]) -> Markup:
    several = len({column.version for column in board.columns}) > 1
    settings = {
        (c.task, c.version): {d.settings for d in board.columns if (d.task, d.version) == (c.task, c.version)}
        for c in board.columns
    }
    levels = [
        (level, list(columns)) for level, columns in groupby(board.columns, key=lambda c: (c.level, c.task_title))
    ]
    firsts = {columns[0].key for _, columns in levels}
    top = element(
        "tr",
        element("td", class_="name"),
        [
            element("th", f"{level} {title}", colspan=len(columns), scope="colgroup", class_="level")
            for (level, title), columns in levels
        ],
    )
    heads = [
        element(
            "th",
            element("span", "model", class_="sr"),
            element("button", "Model", type="button", class_="js"),
            scope="col",
            class_="name",
            data_place="0",
            data_higher="0",
        )
    ]
    for place, column in enumerate(board.columns, start=1):
        what = [f"chance {column.chance}"] if column.chance else []
        what += [] if column.higher_is_better else ["lower is better"]
        what += [f"version {column.version}"] if several and column.version else []
        what += [f"settings {column.settings}"] if len(settings[column.task, column.version]) > 1 else []
        heads.append(
            element(
                "th",
                element("span", column.label, class_="sr"),
                element("button", column.label, type="button", title=column.summary, class_="js"),
                [element("span", text, class_="what") for text in what],
                scope="col",
                class_="first" if column.key in firsts else None,
                data_place=str(place),
                data_higher="1" if column.higher_is_better else "0",
            )
        )
    bodies = []
    for kind, rows in groupby(board.rows, key=lambda row: row.kind):
        group = element(
            "tr",
            element("th", element("span", _GROUPS[kind]), colspan=len(board.columns) + 1, scope="rowgroup"),
            class_="group",
        )
        lines = [_row(row, board.columns, firsts, notes) for row in rows]
        bodies.append(element("tbody", group, lines, class_="published" if kind == PUBLISHED else None))
    caption = element("caption", f"Scores on {board.dataset}, protocol {board.protocol}", class_="sr")
    return element("table", caption, element("thead", top, element("tr", heads)), bodies)


def _row(row: BoardRow, columns: Sequence[BoardColumn], firsts: set[str], notes: list[str]) -> Markup:
    missing = row.missing(columns)
    lines: list[str] = []
    if row.kind == MODEL:
        lines.append(f"may be the best: {row.among_best()} of {len(columns)}")
    if missing and row.kind != PUBLISHED:
        lines.append(f"{missing} of {len(columns)} missing")
    if row.kind != PUBLISHED and row.source and row.source != row.label:
        lines.append(row.source)
    if row.kind == PUBLISHED:
        lines.append("published")
    lines += row.folders
    name = element(
        "th",
        label(row.label),
        [element("span", label(line), class_="tag" if line == "published" else None) for line in lines],
        scope="row",
        class_="name",
        data_label=row.label.lower(),
    )
    return element("tr", name, [_cell(row, column, column.key in firsts, notes) for column in columns])


def _cell(row: BoardRow, column: BoardColumn, first: bool, notes: list[str]) -> Markup:
    cell = row.cells.get(column.key)
    edge = " first" if first else ""
    if cell is None or math.isnan(cell.value):
        return _hole(row, cell, edge)
    remarks = [text for text in cell.remark.split(" | ") if text]
    notes += [text for text in remarks if text not in notes]
    raised = element("sup", [f"[{notes.index(text) + 1}]" for text in remarks]) if remarks else None
    lines = []
    if row.kind == MODEL:
        known = not math.isnan(cell.low)
        lines.append(element("small", f"rank {span(cell.rank_low, cell.rank_high)}" if known else "rank not known"))
    if not math.isnan(cell.low):
        lines.append(element("small", f"{number(cell.low)} to {number(cell.high)}", class_="interval"))
    elif row.kind == PUBLISHED and not math.isnan(cell.sd):
        spread = "below 0.001" if 0 < cell.sd < 0.0005 else number(cell.sd)
        lines.append(element("small", f"± {spread}", class_="interval"))
    elif row.kind == MODEL:
        lines.append(element("small", "no interval", class_="interval"))
    if cell.post_processing:
        lines.append(element("small", "raw" if cell.post_processing == "raw" else post_title(cell.post_processing)))
    attributes: Mapping[str, Any] = {"data_value": repr(cell.value)}
    if row.kind == PUBLISHED:
        return element("td", element("b", number(cell.value)), raised, lines, class_=edge.strip() or None, **attributes)
    under = " under" if cell.place < 0 else ""
    return element(
        "td",
        element("b", number(cell.value)),
        raised,
        lines,
        class_=f"score{under}{edge}",
        style=f"--place:{abs(cell.place):.3f}",
        **attributes,
    )


def _hole(row: BoardRow, cell: BoardCell | None, edge: str) -> Markup:
    if row.kind == PUBLISHED:
        return element("td", element("span", "not in the paper", class_="why"), class_=f"hole{edge}")
    reason = cell.reason if cell is not None and cell.reason else "not in the run"
    return element(
        "td",
        element("details", element("summary", "no score"), element("span", reason, class_="why")),
        class_=f"hole{edge}",
    )
