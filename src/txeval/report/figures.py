"""Figures for papers, as Vega-Altair charts, from the scores on disk."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from txeval.errors import InputError
from txeval.report.experiments import likelihood_frame, reference_frame, scaling_frame
from txeval.report.layout import number
from txeval.report.results import ResultsFolder
from txeval.report.spread import with_intervals
from txeval.report.style import ABOVE, BASELINE, BELOW, CATEGORIES, POST_COLOURS, post_title
from txeval.report.summary import summary
from txeval.report.tables import TABLE, catalogue, post_position, references
from txeval.text import clean

if TYPE_CHECKING:
    import altair

__all__ = [
    "difference_figure",
    "FORMATS",
    "distribution_figure",
    "level_figure",
    "likelihood_figure",
    "list_figures",
    "save",
    "scaling_figure",
    "summary_figure",
]

#: File formats of figures.
FORMATS = ("svg", "pdf", "png")

_FONT = "Helvetica, Arial, sans-serif"
_DPI = 300
#: Models that a figure names; more would not be read.
_MAX_NAMED = 40
#: Of what is shown beside an experiment.
_GREYS = ("#8c8c8c", "#bdbdbd", "#595959", "#d9d9d9")


def _altair() -> Any:
    try:
        module = importlib.import_module("altair")
        importlib.import_module("vl_convert")
    except ImportError:
        raise InputError(
            "figures need altair and vl-convert-python, which are not installed", remedy="pip install 'txeval[report]'"
        ) from None
    return module


def save(chart: altair.TopLevelMixin, path: Path) -> None:
    """Write a figure in the format that the name of the file ends with: svg, pdf or png (300 dpi).

    Raises
    ------
    InputError
        Another format, or the file cannot be written.
    """
    kind = path.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise InputError(f"{path.name} is no figure", remedy=f"choose one of {', '.join(FORMATS)}")
    convert = importlib.import_module("vl_convert")
    spec = chart.to_dict(context={"pre_transform": False})
    if kind == "png":
        content: bytes = convert.vegalite_to_png(spec, ppi=_DPI, scale=1)
    elif kind == "pdf":
        content = convert.vegalite_to_pdf(spec)
    else:
        content = convert.vegalite_to_svg(spec).encode("utf-8")
    try:
        path.write_bytes(content)
    except OSError as why:
        raise InputError(f"{path} cannot be written: {why.strerror}", remedy="choose another folder") from None


def _data(rows: Iterable[Mapping[Any, Any]]) -> Any:
    """Plain values, NaN as null: no size limit of altair applies to these."""
    return _altair().Data(values=[{str(name): _plain(value) for name, value in row.items()} for row in rows])


def _plain(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    return value if value is None or isinstance(value, bool) else clean(value)


def _finished(chart: Any, title: str, subtitle: str | list[str] = "") -> altair.TopLevelMixin:
    alt = _altair()
    made: altair.TopLevelMixin = (
        chart.properties(
            title=alt.TitleParams(
                clean(title), subtitle=subtitle, anchor="start", fontSize=12, subtitleFontSize=9, subtitleColor="#555"
            ),
            background="white",
        )
        .configure(font=_FONT)
        .configure_axis(
            labelFontSize=9, titleFontSize=9, grid=False, domainColor="#888", tickColor="#888", labelLimit=220
        )
        .configure_legend(labelFontSize=9, titleFontSize=9, labelLimit=260, symbolStrokeWidth=2)
        .configure_header(labelFontSize=9, titleFontSize=9, labelFontWeight="bold", labelAnchor="start")
        .configure_view(stroke=None)
    )
    return made


def _where(row: Any) -> str:
    return f"{clean(row['dataset'])}, protocol {clean(row['protocol'])}"


def summary_figure(scores: pd.DataFrame, results: ResultsFolder | None = None) -> altair.TopLevelMixin:
    """Heat map: models across, metrics by level down, the number in the cell.

    The colour says where a score lies between the best floor (white; chance where there is none) and the best model of
    the row; below it is orange. A cell without a score has a dash. The best model of a row is framed.

    Parameters
    ----------
    scores
        Rows as `txeval.read_scores` gives them.
    results
        Their folder: the choice of post-processing is then that of its protocol; without it, the best.
    """
    shown = summary(scores, results)
    parts = [_summary_part(part, scores) for _, part in shown.groupby(TABLE, dropna=False, sort=False)]
    return _finished(
        _altair().vconcat(*parts, spacing=30).resolve_scale(color="shared"),
        "Scores of the best post-processing",
        "Blue: between the best floor (white) and the best model of the row. Orange: below the floor. –: no score.",
    )


def _summary_part(part: pd.DataFrame, scores: pd.DataFrame) -> Any:
    alt = _altair()
    roles = references(scores)
    rows, labels, levels = [], [], {}
    for (task, _, _), cells in part.groupby(["task", "metric", "subset"], sort=False):
        first = cells.iloc[0]
        label = f"{first['level']}  {first['label']}"
        labels.append(label)
        levels[label] = task
        sign = 1.0 if first["higher_is_better"] else -1.0
        best = sign * (cells.loc[cells["role"] == "", "value"] * sign).max()
        floor = sign * (cells.loc[cells["role"] == "floor", "value"] * sign).max()
        if math.isnan(floor):
            floor = cells["chance"].mean()
        for row in cells.to_dict("records"):
            missing = math.isnan(row["value"])
            # Where nothing is clearly above the baseline, a small difference must not have a strong colour.
            span = max(abs(best - floor), 0.05 * abs(floor))
            place = 0.0 if missing or not span > 0 else float(np.clip(sign * (row["value"] - floor) / span, -1, 1))
            rows.append(
                {
                    "metric": label,
                    "model": row["model"],
                    "text": "–" if missing else number(row["value"]),
                    "place": place,
                    "best": bool(row["best"]),
                }
            )
    models = list(dict.fromkeys(part["model"]))[:_MAX_NAMED]
    shown = [row for row in rows if row["model"] in models]
    base = alt.Chart(_data(shown)).encode(
        x=alt.X(
            "model:N",
            sort=[clean(model) for model in models],
            title=None,
            axis=alt.Axis(orient="top", labelAngle=-35, domain=False, ticks=False),
        ),
        y=alt.Y(
            "metric:N", sort=[clean(label) for label in labels], title=None, axis=alt.Axis(domain=False, ticks=False)
        ),
    )
    colour = alt.Color(
        "place:Q",
        scale=alt.Scale(domain=[-1, 0, 1], range=[BELOW, "#ffffff", ABOVE], interpolate="lab"),
        legend=None,
    )
    text = base.mark_text(fontSize=9).encode(
        text="text:N",
        color=alt.condition("abs(datum.place) > 0.75", alt.value("white"), alt.value("black")),
        opacity=alt.value(1),
    )
    bold = base.transform_filter("datum.best").mark_rect(fill=None, stroke="black", strokeWidth=1.2)
    grid = base.mark_rect(stroke="#e5e5e5", strokeWidth=0.5).encode(color=colour)
    width = max(42, min(64, 900 // max(1, len(models))))
    named = [f"{clean(model)} ({roles[model]})" for model in models if model in roles]
    return alt.layer(grid, bold, text).properties(
        width=width * len(models),
        height=20 * len(labels),
        title=alt.TitleParams(
            _where(part.iloc[0]),
            anchor="start",
            fontSize=10,
            subtitle=[f"not ranked: {', '.join(named)}; framed: best of the row"]
            if named
            else ["framed: best of the row"],
            subtitleFontSize=8,
            subtitleColor="#555",
        ),
    )


def level_figure(scores: pd.DataFrame, task: str, *, metrics: Iterable[str] | None = None) -> altair.TopLevelMixin:
    """Every post-processing of every model on one level: points with 95 % intervals, chance as a line.

    Parameters
    ----------
    metrics
        Which to show; None: the headline metrics of the level.

    Raises
    ------
    InputError
        The scores have no such level.
    """
    alt = _altair()
    frame = with_intervals(scores)
    frame = frame[frame["task"] == task]
    if frame.empty:
        raise InputError(
            f"these results have no level {task!r}", remedy=f"choose one of {', '.join(set(scores['task']))}"
        )
    info = catalogue(frame)
    wanted = set(metrics) if metrics is not None else {m.metric for m in info.values() if m.headline and m.task == task}
    frame = frame[frame["metric"].isin(wanted)]
    baselines = references(scores)
    parts = []
    for _, table in frame.groupby(TABLE, dropna=False, sort=False):
        models = sorted(set(table["model"]), key=lambda model: (model not in baselines, model.lower()))[:_MAX_NAMED]
        posts = sorted(set(table.loc[table["value"].notna(), "post_processing"]), key=post_position)
        panels = []
        for (metric, subset), cells in table[table["value"].notna()].groupby(["metric", "subset"], sort=False):
            entry = info[task, str(metric)]
            label = f"{entry.label} {subset}".strip() + ("" if entry.higher_is_better else " (lower is better)")
            panels.append(_level_panel(cells, label, models, posts))
        row = alt.concat(*panels, columns=3, spacing=18).properties(
            title=alt.TitleParams(_where(table.iloc[0]), anchor="start", fontSize=10)
        )
        parts.append(row)
    title = next(entry for entry in info.values() if entry.task == task)
    return _finished(
        alt.vconcat(*parts, spacing=24),
        f"Level {title.level}: {title.task_title}",
        ["Bars: 95 % interval, where there are enough units for one. Dashed: chance.", *_holes(frame)],
    )


def _holes(frame: pd.DataFrame) -> list[str]:
    """What is not shown since it has no score."""
    missing = frame[frame["value"].isna()]
    if missing.empty:
        return []
    cells = missing[["model", "post_processing"]].drop_duplicates()
    posts = ", ".join(post_title(post) for post in sorted(set(cells["post_processing"]), key=post_position))
    reasons = list(dict.fromkeys(clean(reason) for reason in missing["reason"]))
    said = reasons[0] if len(reasons) == 1 else f"{len(reasons)} reasons, see txeval show"
    return [f"No score: {len(cells)} of model and post-processing ({posts}): {said}."]


def _level_panel(cells: pd.DataFrame, label: str, models: list[str], posts: list[str]) -> Any:
    alt = _altair()
    rows = [
        {"post": post_title(row["post_processing"]), **{name: row[name] for name in ("model", "value", "low", "high")}}
        for row in cells.to_dict("records")
    ]
    order = [post_title(post) for post in posts]
    base = alt.Chart(_data(rows)).encode(
        y=alt.Y(
            "model:N",
            sort=[clean(model) for model in models],
            title=None,
            scale=alt.Scale(domain=[clean(m) for m in models]),
            axis=alt.Axis(grid=True, gridColor="#eee", domain=False, ticks=False, labels=True),
        ),
        yOffset=alt.YOffset("post:N", sort=order, scale=alt.Scale(domain=order)),
        color=alt.Color(
            "post:N",
            title="post-processing",
            sort=order,
            scale=alt.Scale(
                domain=order,
                range=[POST_COLOURS.get(post, CATEGORIES[i % len(CATEGORIES)]) for i, post in enumerate(posts)],
            ),
        ),
    )
    scale = alt.Scale(zero=False, nice=True)
    points = base.mark_point(filled=True, size=32, opacity=1).encode(
        x=alt.X("value:Q", title=clean(label), scale=scale)
    )
    bars = base.mark_rule(strokeWidth=1.2).encode(x=alt.X("low:Q", scale=scale, title=clean(label)), x2="high:Q")
    layers = [bars, points]
    chance = cells["chance"].dropna()
    if len(chance):
        rule = alt.Chart(_data([{"chance": float(chance.mean())}])).mark_rule(strokeDash=[4, 3], color=BASELINE)
        layers.insert(0, rule.encode(x=alt.X("chance:Q", title=clean(label))))
    return alt.layer(*layers).properties(width=200, height=max(40, 9 * len(models) * (len(posts) + 1)))


def distribution_figure(details: pd.DataFrame, column: str, title: str) -> altair.TopLevelMixin:
    """Distribution of a number over perturbations: cumulative share per model, one panel per post-processing.

    Parameters
    ----------
    details
        A table of `details/`, with dataset, protocol, model, post_processing, seed, perturbation and `column`; means
        over seeds are shown.
    """
    alt = _altair()
    keys = ["dataset", "protocol", "model", "post_processing", "perturbation"]
    means = details.dropna(subset=[column]).groupby(keys, sort=False)[column].mean().reset_index()
    parts = []
    for (dataset, protocol), table in means.groupby(["dataset", "protocol"], sort=False):
        models = list(dict.fromkeys(table["model"]))
        rows = []
        for (model, post), cell in table.groupby(["model", "post_processing"], sort=False):
            values = np.sort(cell[column].to_numpy(dtype=float))
            # A thousand steps look the same as all of them.
            picked = np.unique(np.linspace(0, len(values) - 1, min(len(values), 1000)).astype(int))
            rows += [
                {
                    "model": model,
                    "post": post_title(str(post)),
                    "value": float(values[i]),
                    "share": (i + 1) / len(values),
                }
                for i in picked
            ]
        order = [post_title(post) for post in sorted(set(table["post_processing"]), key=post_position)]
        panels = []
        for post in order:
            chart = alt.Chart(
                _data(row for row in rows if row["post"] == post), title=alt.TitleParams(post, fontSize=10)
            ).mark_line(interpolate="step-after")
            panels.append(
                chart.encode(
                    x=alt.X("value:Q", title=title, scale=alt.Scale(zero=False)),
                    y=alt.Y("share:Q", title="share of perturbations", scale=alt.Scale(domain=[0, 1])),
                    color=alt.Color("model:N", title="model", sort=[clean(m) for m in models], scale=_colours(models)),
                    strokeDash=alt.StrokeDash("model:N", sort=[clean(m) for m in models], scale=_dashes(models)),
                ).properties(width=190, height=130)
            )
        name = alt.TitleParams(f"{clean(dataset)}, protocol {clean(protocol)}", anchor="start", fontSize=10)
        parts.append(alt.concat(*panels, columns=4, spacing=14).properties(title=name))
    return _finished(
        alt.vconcat(*parts, spacing=24),
        f"{title[:1].upper()}{title[1:]} of each perturbation",
        "Cumulative share; means over seeds.",
    )


def _colours(names: Iterable[str]) -> Any:
    listed = [clean(name) for name in names]
    colours = [CATEGORIES[i % len(CATEGORIES)] for i in range(len(listed))]
    return _altair().Scale(domain=listed, range=colours)


def _dashes(names: Iterable[str]) -> Any:
    """Lines of a second round of colours are dashed, so that no two look alike."""
    listed = [clean(name) for name in names]
    kinds = [[1, 0], [6, 3], [2, 2], [8, 2, 2, 2]]
    return _altair().Scale(domain=listed, range=[kinds[i // len(CATEGORIES) % len(kinds)] for i in range(len(listed))])


def scaling_figure(scores: pd.DataFrame, manifest: Mapping[str, Any], *, headline: bool = True) -> altair.TopLevelMixin:
    """Score against the number of training samples, with repeats, intervals and the other embeddings as lines.

    Raises
    ------
    InputError
        The folder holds no such experiment.
    """
    alt = _altair()
    frame = _shown(scaling_frame(scores, manifest), headline=headline)
    if frame.empty:
        raise InputError("these results hold no experiment on sizes", remedy="see txeval experiment scaling --help")
    others = _shown(reference_frame(scores, frame), headline=headline)
    parts = []
    for table, part in frame.groupby(TABLE, dropna=False, sort=False):
        lines = (
            others[(others[TABLE].astype(str) == [str(item) for item in table]).all(axis=1)] if len(others) else others
        )
        groups = list(dict.fromkeys([*part["group"], *lines.get("group", [])]))
        panels = []
        for (label, post), cells in part.groupby(["label", "post_processing"], sort=False):
            mine = lines[lines["label"] == label] if len(lines) else lines
            panels.append(_scaling_panel(cells, mine, str(label), str(post), groups))
        name = alt.TitleParams(_where(part.iloc[0]), anchor="start", fontSize=10)
        parts.append(alt.concat(*panels, columns=3, spacing=18).properties(title=name))
    return _finished(alt.vconcat(*parts, spacing=24), "Score against training samples", _interval_text(frame))


def _shown(frame: pd.DataFrame, *, headline: bool) -> pd.DataFrame:
    if frame.empty or not headline:
        return frame
    info = catalogue()
    kept = [info[pair].headline if pair in info else True for pair in zip(frame["task"], frame["metric"], strict=True)]
    frame = frame[kept]
    # A level that the screen is too small for would be an empty panel.
    return frame[frame.groupby("label")["value"].transform("count") > 0]


def _interval_text(*frames: pd.DataFrame) -> str:
    over = " or ".join(dict.fromkeys(text for frame in frames if len(frame) for text in frame["interval"] if text))
    text = f"Rings: single repeats; bars: 95 % interval over {over}. " if over else ""
    return text + "Dashed: chance. One post-processing per metric, the best on average."


def _scaling_panel(cells: pd.DataFrame, others: pd.DataFrame, label: str, post: str, groups: list[str]) -> Any:
    alt = _altair()
    sizes = sorted({int(size) for size in cells["size"]})
    names = [clean(group) for group in groups]
    x = alt.X(
        "size:Q",
        title="training samples",
        scale=alt.Scale(type="log", domain=[sizes[0] * 0.85, sizes[-1] * 1.18], nice=False),
        axis=alt.Axis(values=sizes, format=",d", labelAngle=-40),
    )
    y = alt.Y("value:Q", title=clean(label), scale=alt.Scale(zero=False, nice=True))
    colour = alt.Color("group:N", title="model", sort=names, scale=_colours(groups), legend=alt.Legend(symbolOpacity=1))
    wanted = ["size", "value", "low", "high", "group"]
    base = alt.Chart(_data(cells[wanted].to_dict("records"))).encode(x=x, color=colour)
    layers = []
    if len(others):
        rows = others[["value", "group"]].dropna().to_dict("records")
        layers.append(alt.Chart(_data(rows)).mark_rule(strokeWidth=1.2).encode(y=y, color=colour))
    chance = cells["chance"].dropna()
    if len(chance):
        dashed = alt.Chart(_data([{"value": float(chance.mean())}])).mark_rule(strokeDash=[4, 3], color=BASELINE)
        layers.append(dashed.encode(y=y))
    single = [
        {"size": row["size"], "group": row["group"], "value": value}
        for row in cells.to_dict("records")
        for value in row["repeats"]
    ]
    layers += [
        alt.Chart(_data(single)).mark_point(size=14, opacity=0.55, strokeWidth=1).encode(x=x, y=y, color=colour),
        base.mark_line(strokeWidth=1.5).encode(y=y),
        base.mark_rule(strokeWidth=1.2).encode(y=alt.Y("low:Q", title=clean(label)), y2="high:Q"),
        base.mark_point(filled=True, size=36, opacity=1).encode(y=y),
    ]
    return alt.layer(*layers).properties(
        width=200, height=150, title=alt.TitleParams(post_title(post), fontSize=9, fontWeight="normal", color="#555")
    )


def likelihood_figure(
    scores: pd.DataFrame, manifest: Mapping[str, Any], *, headline: bool = True
) -> altair.TopLevelMixin:
    """Scores by likelihood, grouped by database on level 5 as in the paper's Figure 1, one panel per other metric.

    Raises
    ------
    InputError
        The folder holds no such experiment.
    """
    alt = _altair()
    frame = _shown(likelihood_frame(scores, manifest), headline=headline)
    if frame.empty:
        raise InputError(
            "these results hold no experiment on likelihoods", remedy="see txeval experiment likelihood --help"
        )
    others = _shown(reference_frame(scores, frame), headline=headline)
    parts = []
    for key, own in frame.groupby([*TABLE, "group"], dropna=False, sort=False):
        order = list(dict.fromkeys(own["likelihood"]))
        part = own
        if len(others):
            same = (others[TABLE].astype(str) == [str(item) for item in key[: len(TABLE)]]).all(axis=1)
            beside = others[same].assign(likelihood=[clean(name) for name in others.loc[same, "group"]])
            part = pd.concat([own, beside], ignore_index=True)
        panels = []
        for (task, metric, post), cells in part.groupby(["task", "metric", "post_processing"], sort=False):
            panels.append(
                _likelihood_panel(cells, order, str(post), databases=str(task) == "relationships", metric=str(metric))
            )
        title = f"{_where(part.iloc[0])}: {clean(part.iloc[0]['group'])}"
        name = alt.TitleParams(title, anchor="start", fontSize=10)
        parts.append(alt.concat(*panels, columns=4, spacing=18).properties(title=name))
    return _finished(alt.vconcat(*parts, spacing=24), "Scores by likelihood", _interval_text(frame, others))


def _likelihood_panel(cells: pd.DataFrame, order: list[str], post: str, *, databases: bool, metric: str) -> Any:
    alt = _altair()
    label = "recall of known relationships" if databases and metric == "recall" else str(cells.iloc[0]["label"])
    rows = [
        {
            "place": row["subset"] if databases else row["likelihood"],
            **{k: row[k] for k in ("likelihood", "value", "low", "high")},
        }
        for row in cells.to_dict("records")
    ]
    names = [*order, *(name for name in dict.fromkeys(cells["likelihood"]) if name not in order)]
    colours = [CATEGORIES[i] if i < len(order) else _GREYS[(i - len(order)) % len(_GREYS)] for i in range(len(names))]
    colour = alt.Color(
        "likelihood:N", title="likelihood", sort=names, scale=alt.Scale(domain=[clean(n) for n in names], range=colours)
    )
    single = [
        {"place": row["subset"] if databases else row["likelihood"], "likelihood": row["likelihood"], "value": value}
        for row in cells.to_dict("records")
        for value in row["repeats"]
    ]
    x = alt.X(
        "place:N", title=None, sort=None if databases else names, axis=alt.Axis(labelAngle=0 if databases else -40)
    )
    base = alt.Chart(_data(rows)).encode(x=x, color=colour)
    if databases:
        base = base.encode(xOffset=alt.XOffset("likelihood:N", sort=names, scale=alt.Scale(domain=names)))
    title = clean(label)
    layers = [
        base.mark_bar(opacity=0.85).encode(y=alt.Y("value:Q", title=title)),
        base.mark_rule(strokeWidth=1.2).encode(y=alt.Y("low:Q", title=title), y2="high:Q", color=alt.value("#222")),
    ]
    rings = (
        alt.Chart(_data(single))
        .mark_point(size=14, opacity=0.7, strokeWidth=1, color="#222")
        .encode(x=x, y=alt.Y("value:Q", title=title))
    )
    layers.append(
        rings.encode(xOffset=alt.XOffset("likelihood:N", sort=names, scale=alt.Scale(domain=names)))
        if databases
        else rings
    )
    chance = cells["chance"].dropna()
    if len(chance):
        rule = alt.Chart(_data([{"value": float(chance.mean())}])).mark_rule(strokeDash=[4, 3], color=BASELINE)
        layers.append(rule.encode(y=alt.Y("value:Q", title=title)))
    n = len({row["place"] for row in rows})
    width = (24 * len(names) + 14) * n if databases else 34 * n
    return alt.layer(*layers).properties(
        width=max(80, width),
        height=150,
        title=alt.TitleParams(post_title(post), fontSize=9, fontWeight="normal", color="#555"),
    )


def difference_figure(frame: pd.DataFrame) -> altair.TopLevelMixin:
    """Paired differences with 95 % intervals, a panel per pair of embeddings: right of 0 the first is better.

    Differences are in units of the largest absolute end of an interval of their row, as scores have different ranges;
    the difference itself is written beside. A score where lower is better is turned round.

    Parameters
    ----------
    frame
        Rows of `txeval.report.comparison.compare`; those without a difference are left out.

    Raises
    ------
    InputError
        No row has a difference.
    """
    alt = _altair()
    found = frame[frame["difference"].notna()]
    if found.empty:
        raise InputError(
            "no paired difference could be computed", remedy="see the reasons: txeval compare without --plot"
        )
    rows = []
    for row in found.to_dict("records"):
        sign = 1.0 if row["higher_is_better"] else -1.0
        ends = [end for end in (row["low"], row["high"], row["difference"]) if not math.isnan(end)]
        scale = max(map(abs, ends)) or 1.0
        low, high = sorted((sign * row["low"] / scale, sign * row["high"] / scale))
        rows.append(
            {
                "pair": f"{clean(row['first'])} minus {clean(row['second'])}",
                "score": f"{row['level']}  {clean(row['label'])}",
                "place": sign * row["difference"] / scale,
                "low": low,
                "high": high,
                "text": f"{row['difference']:+.3f}",
                "sure": bool(row["p_holm"] < _ALPHA),
            }
        )
    labels = list(dict.fromkeys(row["score"] for row in rows))
    panels = []
    for pair in dict.fromkeys(row["pair"] for row in rows):
        base = alt.Chart(_data([row for row in rows if row["pair"] == pair])).encode(
            y=alt.Y("score:N", sort=labels, title=None, axis=alt.Axis(domain=False, ticks=False))
        )
        words = {"title": "worse  <  difference, scaled per score  >  better", "axis": alt.Axis(labels=False)}
        place, ends = alt.X("place:Q", **words), alt.X("low:Q", **words)
        zero = (
            alt.Chart(_data([{"zero": 0}]))
            .mark_rule(color="#888", strokeDash=[3, 3])
            .encode(x=alt.X("zero:Q", **words))
        )
        span = base.mark_rule(color=ABOVE, strokeWidth=2).encode(x=ends, x2="high:Q")
        dot = base.mark_point(size=60, filled=True, opacity=1, stroke=ABOVE, strokeWidth=1.5).encode(
            x=place, color=alt.condition("datum.sure", alt.value(ABOVE), alt.value("white"))
        )
        text = base.mark_text(align="left", fontSize=9).encode(x=alt.value(_WIDE + 10), text="text:N")
        panels.append(alt.layer(zero, span, dot, text).properties(width=_WIDE, height=22 * len(labels), title=pair))
    return _finished(
        alt.vconcat(*panels, spacing=30),
        "Paired differences",
        "Lines: 95 % intervals. Filled: beyond chance (p < 0.05 after Holm's correction); open: cannot be told apart.",
    )


_ALPHA, _WIDE = 0.05, 320


#: Task -> (table of details, column, what it is): numbers of single perturbations that are worth a figure.
_DISTRIBUTIONS = {
    "consistency": ("perturbations", "avg_cosine", "mean cosine similarity"),
    "linear_probe": ("perturbations", "top1", "top-1 accuracy of the linear probe"),
    "knn": ("perturbations", "top1_perturbed", "top-1 accuracy of kNN, controls out"),
}


def list_figures(folder: Path) -> dict[str, altair.TopLevelMixin]:
    """Every figure that a results folder has the numbers for, by name.

    Raises
    ------
    InputError
        The folder holds no results, or the libraries are not installed.
    """
    from txeval.run import Store, read_details

    _altair()
    results = ResultsFolder.open(folder)
    scores = results.scores
    if scores.empty:
        raise InputError(f"{folder} holds no scores", remedy="run `txeval run` with this folder as --out")
    store = Store(folder)
    manifest, there = store.manifest(), store.details()
    figures = {"summary": summary_figure(scores, results)}
    info = catalogue(scores)
    good = scores[scores["status"] == "ok"]
    for task in dict.fromkeys(entry.task for entry in info.values()):
        headline = [entry.metric for entry in info.values() if entry.task == task and entry.headline]
        if len(good[(good["task"] == task) & good["metric"].isin(headline)]):
            level = next(entry.level for entry in info.values() if entry.task == task)
            figures[f"level{level}-{_safe(task)}"] = level_figure(scores, task)
    for task, (table, column, title) in _DISTRIBUTIONS.items():
        if (task, table) in there:
            details = read_details(folder, task, table)
            if column in details and details[column].notna().any():
                figures[f"perturbations-{_safe(task)}"] = distribution_figure(details, column, title)
    if len(_shown(scaling_frame(scores, manifest), headline=True)):
        figures["scaling"] = scaling_figure(scores, manifest)
    if len(_shown(likelihood_frame(scores, manifest), headline=True)):
        figures["likelihood"] = likelihood_figure(scores, manifest)
    return figures


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".") or "task"
