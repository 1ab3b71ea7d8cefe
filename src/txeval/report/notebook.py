"""A results folder in a notebook: the answer in words, tables, figures, the report."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from txeval.errors import InputError, unknown
from txeval.report import results as folders
from txeval.report.html.data import View, make_views
from txeval.report.html.markup import Markup, element, label
from txeval.report.html.page import summary_table
from txeval.report.style import ABOVE, BELOW
from txeval.report.summary import summary
from txeval.report.tables import TABLE
from txeval.run.store import read_details, read_scores

if TYPE_CHECKING:
    import altair

__all__ = ["Results", "open_results"]

#: Rules for the table in a notebook, light or dark: only its own cells are coloured.
_STYLE = f"""
.txeval-results td, .txeval-results th {{ text-align: left; padding: 2px 8px; }}
.txeval-results td.above {{ background: color-mix(in srgb, {ABOVE} calc(var(--t) * 45%), transparent); }}
.txeval-results td.below {{ background: color-mix(in srgb, {BELOW} calc(10% + var(--t) * 30%), transparent); }}
.txeval-results td.best {{ font-weight: bold; }}
.txeval-results small {{ display: block; opacity: 0.8; }}
.txeval-results tr.baseline {{ font-style: italic; }}
.txeval-results .sr {{ display: none; }}
"""


def open_results(folder: Path | str) -> Results:
    """Open a results folder of `txeval run` or `txeval merge`.

    Raises
    ------
    InputError
        The folder does not exist, holds no results, or its table is damaged.
    """
    return Results(folder)


class Results:
    """Scores of a results folder, for a notebook: it shows itself as the answer in words and the summary table.

    Parameters
    ----------
    folder
        Results folder.

    Examples
    --------
    >>> results = open_results("results")  # doctest: +SKIP
    >>> results.summary()  # doctest: +SKIP
    >>> results.table(4)  # doctest: +SKIP
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        #: One row per score, as `txeval.read_scores` gives them.
        self.scores: pd.DataFrame = read_scores(self.folder)
        if self.scores.empty:
            raise InputError(f"{folder} holds no scores", remedy="run `txeval run` with this folder as --out")

    @cached_property
    def _folder(self) -> folders.ResultsFolder:
        return folders.ResultsFolder.open(self.folder, self.scores)

    @cached_property
    def _views(self) -> list[View]:
        return make_views(self.scores, self._folder)

    @property
    def verdict(self) -> str:
        """Which representation is best, and how sure that is; one paragraph per screen and protocol."""
        parts = []
        for view in self._views:
            where = f"{view.dataset}, protocol {view.protocol}: " if len(self._views) > 1 else ""
            parts.append(where + " ".join([view.verdict.headline, *view.verdict.sentences]))
        return "\n".join(parts)

    def summary(self) -> pd.DataFrame:
        """Headline scores, each under one post-processing: rows are metrics, columns are models.

        The protocol says how it is chosen: on the numbers shown, as in the paper's Table 2, or on other units. A
        score that could not be computed is NaN. Index: level, task, metric and subset, after dataset and protocol
        where there are several.
        """
        frame = summary(self._folder.scores, self._folder)
        return self._wide(frame, ["level", "task", "metric", "subset"], ["model"])

    def table(self, level: int | str) -> pd.DataFrame:
        """Every score of one level: rows are models and post-processings, columns are metrics and subsets.

        Parameters
        ----------
        level
            Number of the level, or name of the task.

        Returns
        -------
        Means over seeds; NaN where a score could not be computed (`scores` has the reason).

        Raises
        ------
        InputError
            These results have no such level.
        """
        task = self._task(level)
        found = [view.cells[view.cells["task"] == task] for view in self._views]
        return self._wide(pd.concat(found, ignore_index=True), ["model", "post_processing"], ["metric", "subset"])

    def details(self, level: int | str, table: str = "perturbations") -> pd.DataFrame:
        """Numbers behind the scores of one level: per perturbation, gene, batch or relationship."""
        return read_details(self.folder, self._task(level), table)

    def plot(self, level: int | str | None = None) -> altair.TopLevelMixin:
        """A chart of the summary, or of one level under every post-processing (needs `txeval[report]`)."""
        from txeval.report.figures import level_figure, summary_figure

        return (
            summary_figure(self._folder.scores, self._folder)
            if level is None
            else level_figure(self.scores, self._task(level))
        )

    def report(self, out: Path | str | None = None) -> Path:
        """Write the HTML report and give its path; see `txeval report`."""
        from txeval.report.html import write_report

        return write_report(self.folder, out)

    def _task(self, level: int | str) -> str:
        levels = {
            str(task): int(number) for task, number in zip(self.scores["task"], self.scores["level"], strict=True)
        }
        if isinstance(level, str):
            if level not in levels:
                raise unknown("level", level, list(levels), where=str(self.folder))
            return level
        names = [task for task, number in levels.items() if number == level]
        if not names:
            there = ", ".join(map(str, sorted(set(levels.values()))))
            raise InputError(f"{self.folder} has no level {level}", remedy=f"it has {there}")
        if len(names) > 1:
            raise InputError(f"level {level} has several tasks", remedy=f"give one by name: {', '.join(names)}")
        return names[0]

    def _wide(self, frame: pd.DataFrame, index: list[str], columns: list[str]) -> pd.DataFrame:
        """Values of a long frame, in the order of its rows."""
        tables = frame[TABLE].drop_duplicates()
        several = [name for name in TABLE if len(tables[name].drop_duplicates()) > 1]
        # Fingerprints only where names do not tell the tables apart.
        named = [name for name in several if name in ("dataset", "protocol")]
        if len(tables[named].drop_duplicates()) == len(tables) if named else len(tables) == 1:
            several = named
        rows = [*several, *index]
        wide = frame.set_index([*rows, *columns])["value"].unstack(columns)  # noqa: PD010 - pivot would sort
        order = pd.MultiIndex.from_frame(frame[rows].drop_duplicates())
        heads = frame[columns].drop_duplicates()
        wide = wide.reindex(order)
        if len(columns) == 1:
            return wide[heads[columns[0]].tolist()]
        made: pd.DataFrame = wide[list(heads.itertuples(index=False, name=None))]
        return made

    def __repr__(self) -> str:
        return f"<Results of {self.folder}: {len(self.scores):,} scores>\n{self.verdict}"

    def _repr_html_(self) -> str:
        parts: list[Any] = [element("style", Markup(_STYLE))]
        for view in self._views:
            where = element("p", label(view.dataset), ", protocol ", label(view.protocol))
            words = element("p", element("b", view.verdict.headline), " ", " ".join(view.verdict.sentences))
            parts += [where, words, summary_table(view)]
        return element("div", parts, class_="txeval-results")
