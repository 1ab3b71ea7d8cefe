"""The page: what is readable without JavaScript, the data for what is not, styles and script, in one file."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from txeval._version import __version__
from txeval.report.html.data import Column, View
from txeval.report.html.markup import Markup, element, label, table
from txeval.report.html.packing import Packer, embedded_json
from txeval.report.html.verdict import LevelVerdict
from txeval.report.layout import number
from txeval.report.style import ABOVE, BELOW, CATEGORIES, post_title, short_post
from txeval.tasks.registry import list_tasks

__all__ = ["page", "summary_table"]

#: Parts of the script, in order; they share one scope.
SCRIPTS = ("core.js", "summary.js", "levels.js", "tables.js", "maps.js", "main.js")

#: Remarks of one level that are shown at once; the others are behind a fold.
SHOWN_REMARKS = 6

_PAPER = (
    "Bendidi et al. 2024, Benchmarking Transcriptomics Foundation Models for Perturbation Analysis: one PCA still "
    "rules them all, arXiv:2410.13956"
)


def asset(name: str) -> str:
    """Text of a file of the page."""
    return resources.files("txeval.report.html").joinpath("assets", name).read_text(encoding="utf-8")


def page(
    folder: Path,
    views: Sequence[View],
    data: Sequence[Mapping[str, Any]],
    manifest: Mapping[str, Any],
    packer: Packer,
    digest: str,
) -> str:
    """The whole file."""
    script = '"use strict";\n(() => {\n' + "\n".join(map(asset, SCRIPTS)) + "\n})();\n"
    allowed = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    # Nothing may be loaded, and no script may run but this one: not even one that data smuggled in.
    policy = (
        f"default-src 'none'; script-src 'sha256-{allowed}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    names = list(dict.fromkeys(view.dataset for view in views))
    content = embedded_json({"views": list(data), "version": __version__, "categories": list(CATEGORIES)})
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", **{"http-equiv": "Content-Security-Policy", "content": policy}),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content=f"txeval {__version__}"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{', '.join(names)}: representations compared (txeval)"),
        element("style", Markup(_colours() + asset("report.css"))),
    )
    sections = [_view(i, view, manifest, several=len(views) > 1) for i, view in enumerate(views)]
    body = element(
        "body",
        element("a", "Skip to the answer", href="#main", class_="skip"),
        _top(views),
        element("main", sections, _provenance(folder, views, manifest, digest), id="main"),
        element(
            "footer",
            f"Made by txeval {__version__}. This file is complete: it loads nothing and sends nothing. ",
            f"Benchmark: {_PAPER}.",
        ),
        element("div", id="tip", role="tooltip", hidden=True),
        element("script", Markup(content), type="application/json", id="data"),
        [Markup(text) for text in packer.elements()],
        element("script", Markup(script)),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _colours() -> str:
    categories = "".join(f"--c{i}:{colour};" for i, colour in enumerate(CATEGORIES))
    return f":root{{--above:{ABOVE};--below:{BELOW};{categories}}}\n"


def _top(views: Sequence[View]) -> Markup:
    links = [
        ("answer", "Answer"),
        ("scores", "Scores"),
        ("levels", "Levels"),
        ("perturbations", "Perturbations"),
        ("relations", "Known relationships"),
        ("map", "Map"),
        ("cells", "2-D view"),
        ("provenance", "Provenance"),
    ]
    several = None
    if len(views) > 1:
        options = [
            element("option", f"{view.dataset}, protocol {view.protocol}", value=str(i)) for i, view in enumerate(views)
        ]
        several = element("label", "Screen ", element("select", options, id="which"), class_="js")
    nav = element(
        "nav",
        [
            element("a", text, href=f"#{name}" if name == "provenance" else f"#{name}-0", data_section=name)
            for name, text in links
        ],
        aria_label="Sections",
    )
    theme = element("button", "Dark", type="button", id="theme", class_="js", aria_pressed="false")
    return element("header", element("span", "txeval report", class_="brand"), nav, several, theme, class_="top")


def _view(i: int, view: View, manifest: Mapping[str, Any], *, several: bool) -> Markup:
    return element(
        "div",
        _answer(i, view, manifest),
        _ladder(view),
        _scores(i, view),
        _levels(i, view),
        _perturbations(i, view),
        class_="view",
        id=f"view-{i}",
        data_view=str(i),
    )


# The answer


def _answer(i: int, view: View, manifest: Mapping[str, Any]) -> Markup:
    verdict = view.verdict
    caveats = []
    if len(view.posts) > 1:
        caveats.append(
            f"Each score is the best of {len(view.posts)} post-processings, chosen on the numbers shown. That is "
            "optimistic, for the random baseline as well."
        )
    state = manifest.get("state")
    if state == "incomplete":
        caveats.append(f"The run is not finished: {manifest.get('pending_cells')} parts are missing.")
    return element(
        "section",
        element(
            "div",
            element("p", label(view.dataset), " · protocol ", label(view.protocol), class_="kicker"),
            element("h1", verdict.headline),
            element("ul", [element("li", text) for text in verdict.sentences], class_="sentences"),
            _facts(view, manifest),
            [element("p", text, class_="caveat") for text in caveats],
            class_="words",
        ),
        _board(view),
        id=f"answer-{i}",
        class_="answer",
    )


def _key(kind: str, text: str) -> list[object]:
    """A mark and what it means, on one line."""
    return [element("span", element("span", class_=kind, aria_hidden="true"), f" {text}", class_="item"), " "]


#: Embeddings on the board of the first screen.
ON_BOARD = 8


def _board(view: View) -> Markup | None:
    """Who leads where: embeddings against levels."""
    levels = view.verdict.levels
    real = [model.label for model in view.models if not model.is_baseline]
    if len(real) < 2:
        return None

    def mark(name: str, found: LevelVerdict) -> tuple[str, str]:
        if not found.leaders:
            return "", "not scored"
        if name in found.leaders:
            clear = len(found.leaders) == 1 and not found.rivals and not found.unknown
            return ("lead clear", "clear lead") if clear else ("lead", "leads")
        return ("near", "not told apart from the leader") if name in found.rivals else ("", "behind")

    def rank(name: str) -> tuple[int, int]:
        return -view.verdict.wins.get(name, 0), -sum(name in found.rivals for found in levels)

    shown = sorted(real, key=rank)[:ON_BOARD]
    rows = []
    for name in shown:
        cells = []
        for found in levels:
            kind, text = mark(name, found)
            dot = element("span", class_=f"disc {kind}", aria_hidden="true") if kind else None
            missing = "hole" if not found.leaders else None
            cells.append(element("td", dot, element("span", text, class_="sr"), class_=missing))
        rows.append(element("tr", element("th", label(name), scope="row"), cells))
    head = [element("th", element("span", "level ", class_="sr"), str(found.level), scope="col") for found in levels]
    more = (
        element("p", f"and {len(real) - len(shown)} more, below", class_="caveat") if len(real) > len(shown) else None
    )
    return element(
        "div",
        element(
            "table",
            element("caption", "Who leads on which level"),
            element("thead", element("tr", element("td"), head)),
            element("tbody", rows),
        ),
        more,
        element(
            "p",
            _key("disc lead clear", "clear lead"),
            _key("disc lead", "leads"),
            _key("disc near", "not told apart from the leader"),
            class_="legend",
        ),
        class_="board",
    )


def _facts(view: View, manifest: Mapping[str, Any]) -> Markup:
    screen = _screen(view, manifest)
    shown: list[tuple[str, str]] = []
    if isinstance(screen.get("n"), int):
        shown.append((f"{screen['n']:,}", "samples"))
    report = _part(screen, "report")
    for key, what in (("n_perturbations", "perturbation"), ("n_batches", "batch"), ("n_controls", "control")):
        found = report.get(key)
        if isinstance(found, int):
            several = "batches" if what == "batch" else f"{what}s"
            shown.append((f"{found:,}", what if found == 1 else several))
    n_models = sum(not model.is_baseline for model in view.models)
    shown.append((str(n_models), "embedding" if n_models == 1 else "embeddings"))
    for role, what in (("floor", "baseline"), ("ceiling", "ceiling")):
        n = sum(model.role == role for model in view.models)
        if n:
            shown.append((str(n), what + "s" * (n > 1)))
    shown.append((str(len(view.posts)), "post-processing" + "s" * (len(view.posts) > 1)))
    seeds = int(view.cells["n_seeds"].max()) if len(view.cells) else 0
    if seeds:
        shown.append((str(seeds), "seed" if seeds == 1 else "seeds"))
    return element("p", [element("span", element("b", value), f" {what}") for value, what in shown], class_="facts")


def _screen(view: View, manifest: Mapping[str, Any]) -> dict[str, Any]:
    found = [item for item in manifest.get("screens", []) if item.get("fingerprint") == view.screen]
    return dict(found[0]) if found else {}


_BADGES = {
    "none": ("not scored", "hole"),
    "below": ("not above random", "bad"),
    "clear": ("clear lead", "good"),
    "tie": ("shared lead", "mid"),
    "overlap": ("not told apart", "mid"),
    "unknown": ("no interval", "mid"),
    "above": ("clearly above random", "good"),
    "unclear": ("not clearly above random", "mid"),
    "only": ("one embedding", "mid"),
}


def _badge(found: LevelVerdict, n_models: int) -> str:
    if not found.leaders:
        return "none"
    if found.above_baseline == "no":
        return "below"
    if n_models == 1:
        return {"yes": "above", "unclear": "unclear"}.get(found.above_baseline, "only")
    if len(found.leaders) > 1:
        return "tie"
    if found.rivals:
        return "overlap"
    return "unknown" if found.unknown else "clear"


_COUNTS = {
    1: "One question",
    2: "Two questions",
    3: "Three questions",
    4: "Four questions",
    5: "Five questions",
    6: "Six questions",
}


def _ladder(view: View) -> Markup:
    tasks = {task.title: task for task in list_tasks()}
    n_models = sum(not model.is_baseline for model in view.models)
    steps = []
    for found in view.verdict.levels:
        task = tasks.get(found.title)
        text, kind = _BADGES[_badge(found, n_models)]
        columns = [c for c in view.columns if c.headline and task is not None and c.task == task.name]
        steps.append(
            element(
                "li",
                element("span", str(found.level), class_="number", aria_hidden="true"),
                element(
                    "div",
                    element("h3", element("span", f"Level {found.level}: ", class_="sr"), found.title),
                    element("p", task.question, class_="question") if task is not None else None,
                    element("p", element("b", "Cannot tell: "), task.limits, class_="limits") if task else None,
                    class_="what",
                ),
                element(
                    "div",
                    element("p", element("span", text, class_=f"badge {kind}"), class_="state"),
                    element("p", _sentence(found, columns), class_="sentence"),
                    _strip(view, columns),
                    class_="result",
                ),
                style=f"--step:{max(found.level - 1, 0)}",
            )
        )
    legend = element(
        "p",
        _key("mark dot", "embedding"),
        _key("mark dot lead", "best"),
        _key("mark random", "random baseline"),
        _key("mark chance", "chance"),
        _key("mark ceiling", "ceiling") if any(model.role == "ceiling" for model in view.models) else None,
        "The scale of each level goes from its lowest to its highest mark; numbers are in the table below.",
        class_="legend",
    )
    return element(
        "section",
        element("h2", f"{_COUNTS.get(len(steps), str(len(steps)))}, from the simplest to the hardest"),
        element(
            "p",
            "Each level asks more of a representation than the one before. A good score says something only where the "
            "levels below it hold.",
        ),
        element("ol", steps, class_="ladder"),
        legend,
        class_="ladder-section",
    )


def _sentence(found: LevelVerdict, columns: Sequence[Column]) -> str:
    text = found.sentence or "No score."
    if found.leaders and columns and columns[0].random_is_best:
        text += " The random baseline mixes perfectly because it knows nothing: read this beside the other levels."
    return text


def _strip(view: View, columns: Sequence[Column]) -> Markup | None:
    """Where every embedding lies between chance, the random baseline and the best, on the first score of a level."""
    for column in columns:
        part = view.summary[
            (view.summary["task"] == column.task)
            & (view.summary["metric"] == column.metric)
            & (view.summary["subset"] == column.subset)
        ]
        scored = part[part["value"].notna()]
        if scored.empty:
            continue
        ends = [*scored["value"], *(v for v in (column.chance,) if not math.isnan(v))]
        low, high = min(ends), max(ends)
        span = (high - low) or 1.0

        def place(value: float, low: float = low, span: float = span) -> str:
            return f"--x:{100 * (value - low) / span:.1f}"

        marks = []
        if not math.isnan(column.chance):
            marks.append(element("span", class_="mark chance", style=place(column.chance)))
        roles = {model.label: model.role for model in view.models}
        real = scored[scored["model"].map(roles) == ""]
        best = (real["value"].max() if column.higher_is_better else real["value"].min()) if len(real) else math.nan
        for row in scored.to_dict("records"):
            kind = {"floor": "random", "ceiling": "ceiling"}.get(roles[row["model"]], "dot")
            kind = "dot lead" if kind == "dot" and row["value"] == best else kind
            marks.append(element("span", class_=f"mark {kind}", style=place(row["value"])))
        ends_text = f"{column.label}: {number(low)} to {number(high)}"
        track = element("span", marks, class_="track", aria_hidden="true")
        return element("p", track, element("span", ends_text, class_="ends"), class_="strip")
    return None


# The table of scores


def _scores(i: int, view: View) -> Markup:
    return element(
        "section",
        element("h2", "All embeddings on all levels"),
        element(
            "p",
            "The number is the score. Blue: how far it lies from what is known without information (chance or the "
            "random baseline, whichever is better) towards the best embedding. Orange: below that. The best of a "
            "column is framed and marked ",
            element("span", "★", class_="star"),
            ".",
        ),
        element("div", class_="controls js", data_part="summary-controls"),
        element(
            "div",
            summary_table(view),
            class_="scroll",
            tabindex="0",
            role="region",
            aria_label="Scores of all embeddings, scrolls sideways",
            data_part="summary",
        ),
        element("p", class_="legend js", data_part="summary-legend"),
        _holes(view),
        id=f"scores-{i}",
    )


def summary_table(view: View) -> Markup:
    """Models against headline scores, best post-processing of each."""
    columns = [view.columns[c] for c in view.headline]
    by_cell = {
        (row["model"], row["task"], row["metric"], row["subset"]): row for row in view.summary.to_dict("records")
    }
    groups: list[tuple[str, int, int]] = []
    titles = {task.name: task.title for task in list_tasks()}
    for column in columns:
        title = titles.get(column.task, column.task)
        if groups and groups[-1][0] == title:
            groups[-1] = (title, column.level, groups[-1][2] + 1)
        else:
            groups.append((title, column.level, 1))
    first = element(
        "tr",
        element("td"),
        [element("th", f"{level} {title}", colspan=str(n), scope="colgroup") for title, level, n in groups],
    )
    second = element(
        "tr",
        element("th", "Embedding", scope="col"),
        [
            element("th", column.label, "" if column.higher_is_better else " (lower is better)", scope="col")
            for column in columns
        ],
    )
    rows = []
    for model in view.models:
        cells = [_cell(by_cell.get((model.label, c.task, c.metric, c.subset)), c) for c in columns]
        kind = "baseline" if model.is_baseline else None
        rows.append(element("tr", element("th", label(model.label), scope="row"), cells, class_=kind))
    chance = [element("td", "" if math.isnan(c.chance) else number(c.chance)) for c in columns]
    rows.append(element("tr", element("th", "chance", scope="row"), chance, class_="baseline"))
    return element(
        "table",
        element("caption", "Best post-processing of every embedding", class_="sr"),
        element("thead", first, second),
        element("tbody", rows),
        class_="heat",
    )


def _cell(row: Mapping[Any, Any] | None, column: Column) -> Markup:
    if row is None or math.isnan(row["value"]):
        reason = "not in the run" if row is None else row["reason"]
        return element("td", element("abbr", "–", title=reason), class_="hole")
    place = column.position(row["value"])
    kind = "" if math.isnan(place) else " above" if place >= 0 else " below"
    star = element("span", "★", class_="star", title="best") if row["best"] else None
    return element(
        "td",
        element("span", number(row["value"]), class_="value"),
        star,
        element("small", " | ".join(map(short_post, row["post_processing"].split(" | ")))),
        class_=f"cell{kind}{' best' if row['best'] else ''}",
        style=None if math.isnan(place) else f"--t:{abs(place):.3f}",
    )


def _holes(view: View) -> Markup | None:
    if view.holes.empty:
        return None
    items = [
        element("li", element("b", row["task"]), ": ", row["reason"], " (", label(row["models"]), ")")
        for row in view.holes.to_dict("records")
    ]
    return element(
        "div", element("h3", "Not computed, and why"), element("ul", items, class_="reasons"), class_="holes"
    )


# Levels one by one


def _levels(i: int, view: View) -> Markup:
    parts = []
    order = sorted({(column.level, column.task) for column in view.columns})
    tasks = {task.name: task for task in list_tasks()}
    for level, name in order:
        task = tasks.get(name)
        title = task.title if task is not None else name
        parts.append(
            element(
                "details",
                element("summary", element("h3", f"{level} {title}")),
                element("p", task.question, class_="question") if task is not None else None,
                element("p", element("b", "Cannot tell: "), task.limits, class_="limits") if task is not None else None,
                element("div", class_="js parts", data_part="level", data_task=name),
                element("noscript", _full_table(view, name)),
                _texts("Left out of scores", _left_out(view.left_out, name)),
                _texts("Remarks on scores", _remarks(view.remarks, name)),
                open=True,
                class_="level",
            )
        )
    return element("section", element("h2", "Level by level"), parts, id=f"levels-{i}")


def _full_table(view: View, task: str) -> Markup:
    """Headline scores of all post-processings, mean and standard deviation over seeds."""
    columns = [c for c in view.columns if c.task == task and c.headline] or [c for c in view.columns if c.task == task]
    part = view.cells[view.cells["task"] == task]
    by_cell = {(r["model"], r["post_processing"], r["metric"], r["subset"]): r for r in part.to_dict("records")}
    rows: list[list[object]] = []
    for model in view.models:
        for post in view.posts:
            cells: list[object] = [element("span", label(model.label), f", {post_title(post)}")]
            for column in columns:
                row = by_cell.get((model.label, post, column.metric, column.subset))
                if row is None or math.isnan(row["value"]):
                    cells.append("–")
                else:
                    spread = "" if math.isnan(row["sd"]) else f" ± {row['sd']:.3f}"
                    cells.append(number(row["value"]) + spread)
            rows.append(cells)
    return table(["Embedding", *(c.label for c in columns)], rows, class_="plain")


def _left_out(frame: pd.DataFrame, task: str) -> list[str]:
    found = []
    for row in frame[frame["task"] == task].to_dict("records"):
        low, high = row["lowest"], row["highest"]
        found.append(f"{row['reason']}: {low}" if low == high else f"{row['reason']}: {low} to {high}")
    return found


def _remarks(frame: pd.DataFrame, task: str) -> list[str]:
    return [f"{row['note']} ({row['n_rows']} scores)" for row in frame[frame["task"] == task].to_dict("records")]


def _texts(title: str, texts: Sequence[str]) -> Markup | None:
    if not texts:
        return None
    shown = element("ul", [element("li", text) for text in texts[:SHOWN_REMARKS]])
    more = None
    if len(texts) > SHOWN_REMARKS:
        rest = element("ul", [element("li", text) for text in texts[SHOWN_REMARKS:]])
        more = element("details", element("summary", f"{len(texts) - SHOWN_REMARKS} more"), rest)
    return element("div", element("h4", title), shown, more, class_="texts")


# Perturbations, relationships, map, cells: their tables are drawn by the script


def _perturbations(i: int, view: View) -> Markup:
    def part(name: str, title: str, text: str, otherwise: str) -> Markup:
        return element(
            "section",
            element("h2", title),
            element("p", text),
            element("noscript", element("p", otherwise, class_="caveat")),
            element("div", class_="js", data_part=name),
            id=f"{name}-{i}",
        )

    return Markup(
        part(
            "perturbations",
            "Single perturbations",
            "How consistent and how strong each perturbation is, how often its samples are recognised, and which "
            "perturbations lie closest in the embedding.",
            "This table needs JavaScript. The same numbers are in details/consistency.perturbations.parquet, "
            "details/linear_probe.perturbations.parquet and details/knn.perturbations.parquet of the results folder.",
        )
        + part(
            "relations",
            "Known relationships, found and missed",
            "A known relationship between two perturbed genes counts as found where their profiles are among the most "
            "similar or the most opposite of all pairs.",
            "This table needs JavaScript. The same numbers are in details/relationships.relations.parquet of the "
            "results folder.",
        )
        + part(
            "map",
            "Map of perturbations",
            "Cosine similarity of the mean profiles of perturbations, clustered: blocks on the diagonal are groups "
            "that do the same to the samples.",
            "This map needs JavaScript.",
        )
        + part(
            "cells",
            "Samples in two dimensions",
            "A picture, not a score: two dimensions show only a part of what the embedding holds.",
            "This view needs JavaScript.",
        )
    )


# Provenance


def _provenance(folder: Path, views: Sequence[View], manifest: Mapping[str, Any], digest: str) -> Markup:
    runs = [run for run in manifest.get("runs", []) if isinstance(run, dict)]
    commands = [
        shlex.join(["txeval", *map(str, run["command"][1:])])
        for run in runs
        if isinstance(run.get("command"), list) and run["command"]
    ]
    parts: list[object] = [_screen_table(screen) for screen in manifest.get("screens", [])]
    parts += [_embeddings(manifest), _splits(manifest)]
    for protocol in manifest.get("protocols", []):
        text = yaml.safe_dump(_plain(protocol), sort_keys=False, allow_unicode=True, width=100)
        parts.append(
            element(
                "details",
                element("summary", "Protocol ", label(protocol.get("name", "")), ": every parameter"),
                element("pre", text, tabindex="0"),
            )
        )
    if runs:
        last = runs[-1]
        versions = _part(last, "versions")
        rows = [[name, str(text)] for name, text in versions.items()]
        rows += [["platform", str(last.get("platform", ""))], ["processor", str(last.get("cpu", ""))]]
        parts.append(
            element("details", element("summary", "Versions"), table(["What", "Version"], rows, class_="plain"))
        )
    warnings = [str(text) for text in manifest.get("warnings", [])]
    if warnings:
        parts.append(
            element(
                "details",
                element("summary", f"Warnings ({len(warnings)})"),
                element("ul", [element("li", text) for text in warnings]),
            )
        )
    started = [str(run.get("started", "")) for run in runs]
    days = list(dict.fromkeys(text[:10] for text in started if text))
    when = f" Computed {' to '.join(days[:1] + days[-1:] if len(days) > 1 else days)}." if days else ""
    how_to = element(
        "div",
        element("h3", "To repeat it"),
        element("pre", "\n".join(dict.fromkeys(commands)) or "no command was recorded", tabindex="0"),
        element("p", "or, from the results folder: ", element("code", "txeval run run.yaml --out NEW_FOLDER")),
        element("p", f"Scores: digest {digest}.{when}"),
    )
    return element("section", element("h2", "Where this comes from"), how_to, parts, id="provenance")


def _part(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A mapping within a mapping; empty where there is none."""
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def _plain(data: Any) -> Any:
    return json.loads(json.dumps(data, default=str))


def _screen_table(screen: Mapping[str, Any]) -> Markup:
    roles = _part(screen, "roles")
    rows = [
        ["file", Path(str(screen.get("path", ""))).name],
        ["fingerprint", str(screen.get("fingerprint", ""))[:16]],
        ["samples kept", f"{screen.get('n')} of {screen.get('n_file')}"],
        ["genes", str(screen.get("n_genes", ""))],
        ["scale", str(screen.get("scale_note") or screen.get("scale", ""))],
        *([f"column: {name}", str(value)] for name, value in roles.items() if value is not None),
    ]
    control = _part(screen, "report").get("quality_control")
    if control:
        rows.append(["quality control", str(control)])
    return element(
        "div",
        element("h3", "Screen ", label(screen.get("name", ""))),
        _wide(table(["What", "Value"], rows, class_="plain"), "The screen"),
    )


def _embeddings(manifest: Mapping[str, Any]) -> Markup:
    rows = []
    for item in manifest.get("embeddings", []):
        shape = item.get("shape")
        provenance = item.get("provenance") or []
        text = yaml.safe_dump(_plain(provenance[0]), sort_keys=False, allow_unicode=True) if provenance else ""
        rows.append(
            [
                label(item.get("label", "")),
                label(item.get("source", "")),
                " × ".join(f"{n:,}" for n in shape) if isinstance(shape, list) else "",
                str(item.get("content", ""))[:16],
                element("details", element("summary", "how it was made"), element("pre", text, tabindex="0"))
                if text
                else "",
            ]
        )
    header = ["Embedding", "Source", "Samples × features", "Fingerprint", "Record"]
    wrapped = _wide(table(header, rows, class_="plain"), "Embeddings")
    return element("div", element("h3", "Embeddings"), wrapped)


def _splits(manifest: Mapping[str, Any]) -> Markup:
    rows = []
    for split in manifest.get("splits", []):
        for name, sizes in (split.get("parts") or {}).items():
            shown = [f"{sizes.get(key, 0):,}" for key in ("samples", "controls", "batches", "perturbations")]
            rows.append([element("span", label(split.get("id", "")), f" {name}"), *shown])
    header = ["Split", "Samples", "Controls", "Batches", "Perturbations"]
    return element("div", element("h3", "Splits"), _wide(table(header, rows, class_="plain"), "Splits"))


def _wide(content: Markup, name: str) -> Markup:
    """A table that scrolls sideways where it does not fit."""
    options = {"class_": "scroll", "tabindex": "0", "role": "region", "aria_label": f"{name}, scrolls sideways"}
    return element("div", content, **options)
